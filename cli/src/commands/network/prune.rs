//! `orch network prune`.

use std::collections::BTreeSet;

use clap::Args;
use orch_model::{Kind, service::Service};
use orch_proto::{paths::Paths, wire};

use super::{Found, Known};
use crate::{
    api::{Api, explain, worker},
    commands::container_control::{confirmed, until},
    flags::filter::FilterSet,
};

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Provide filter values (e.g. "until=<timestamp>", "label=<key>=<value>")
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

pub(super) async fn prune(args: PruneArgs, paths: &Paths) -> anyhow::Result<()> {
    let filters = FilterSet::parse(&args.filter, &["until", "label", "label!"]).map_err(anyhow::Error::msg)?;
    let until = until(&filters)?;
    if !args.force && !confirmed("This will remove all custom networks not used by at least one container.")? {
        return Ok(());
    }
    prune_unused(&filters, until, paths).await.map(drop)
}

/// Says what it removes; returns whether that was anything.
pub(crate) async fn prune_unused(filters: &FilterSet, until: Option<u64>, paths: &Paths) -> anyhow::Result<bool> {
    let known = Known::read(paths).await?;
    let used = used(paths).await?;
    let mut header = "Deleted Networks:\n";
    for network in known.all().filter(|network| !network.is_builtin()) {
        let created_ms = match &network {
            Found::OfCluster(network) => network.meta.created_at.unix_ms,
            Found::OfNode(network) => network.created_at_ms,
        };
        let is_wanted = used.contains(network.id()) || used.contains(network.name());
        if is_wanted
            || until.is_some_and(|until| created_ms >= until)
            || !filters.labels("label", &network.annotations().labels)
        {
            continue;
        }
        if remove_unused(&network, paths).await? {
            println!("{header}{}", network.name());
            header = "";
        }
    }
    Ok(header.is_empty())
}

/// Networks that a service names, or a container of this node whether it runs or not.
pub(super) async fn used(paths: &Paths) -> anyhow::Result<BTreeSet<String>> {
    let mut used = BTreeSet::new();
    if let Ok(mut api) = Api::connect(paths).await {
        for service in api.all::<Service>().await? {
            used.extend(service.spec.task.networks.iter().map(|network| network.network.to_string()));
        }
    }
    let containers = worker(paths).await?.list_containers(wire::Empty {}).await.map_err(explain)?.into_inner();
    used.extend(containers.containers.into_iter().flat_map(|container| container.networks));
    Ok(used)
}

/// `false`: somebody is on it, a container of another node perhaps.
async fn remove_unused(network: &Found<'_>, paths: &Paths) -> anyhow::Result<bool> {
    match network {
        Found::OfCluster(network) => {
            let removed = Api::connect(paths).await?.remove(Kind::Network, network.id.as_str(), false).await;
            Ok(removed.is_ok())
        }
        Found::OfNode(network) => {
            let request = wire::NetworkReference { reference: network.id.clone() };
            Ok(worker(paths).await?.remove_network(request).await.is_ok())
        }
    }
}
