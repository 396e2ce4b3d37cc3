//! `orch network …`: networks of the cluster (driver overlay) and of this node (driver bridge), as if they were one.

mod create;
mod member;
pub(crate) mod prune;
mod report;
mod trace;

use std::{collections::BTreeSet, sync::Arc};

use clap::Subcommand;
use orch_model::{Annotations, Kind, network::Network, task::Task};
use orch_proto::{paths::Paths, wire};
use serde_json::Value;

use super::{ListFlags, container_control::agreed, for_each, print_inspected, warn};
use crate::{
    api::{Api, explain, worker},
    flags::filter::{self, FilterSet},
    inspect,
    render::{
        listing::{Listing, Row, by_key, row},
        natural_order, short_id, time,
    },
};

pub(crate) use member::{NetworkFlags, is_joined};

/// What people are told before the network of published ports goes.
const MESH_GOES: &str = "This is the routing mesh: without it no port is published on all nodes until \
    `orch network create --ingress` makes another.";

/// Networks of one node.
const DRIVER_BRIDGE: &str = "bridge";

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Create a network
    Create(create::CreateArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Display detailed information on one or more networks
    Inspect {
        /// Format output: 'json' or a Go template
        #[arg(short, long)]
        format: Option<String>,
        /// Who is on it and where: peers, services, tasks, containers, addresses that are free
        #[arg(short, long)]
        verbose: bool,
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Show the way from a container of this node to a service, and where it breaks
    Trace(trace::TraceArgs),
    /// Remove one or more networks
    #[command(visible_alias = "remove")]
    Rm {
        /// Do not error if the network does not exist, and do not ask before the routing mesh goes
        #[arg(short, long)]
        force: bool,
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Remove all unused networks
    Prune(prune::PruneArgs),
    /// Connect a container of this node to a network
    Connect(member::ConnectArgs),
    /// Disconnect a container of this node from a network
    Disconnect(member::DisconnectArgs),
}

const NETWORKS: Listing<'static> = Listing {
    default: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    headings: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
    quiet: "ID",
};

pub(crate) async fn run(command: NetworkCommand, paths: &Paths) -> anyhow::Result<()> {
    match command {
        NetworkCommand::Create(args) => create::create(args, paths).await,
        NetworkCommand::Ls(flags) => list(&flags, paths).await,
        NetworkCommand::Trace(args) => trace::trace(args, paths).await,
        NetworkCommand::Inspect { format, verbose, networks } => {
            let known = Known::read(paths).await?;
            let here = known.here(&networks, paths).await?;
            let cluster = if verbose { report::Cluster::read(paths).await? } else { None };
            let mut found = Vec::new();
            let outcome = for_each(&networks, async |reference| {
                let mut shown = known.inspected(reference, &here)?;
                if let (Some(cluster), Some(Found::OfCluster(network)), Value::Object(fields)) =
                    (&cluster, known.find(reference), &mut shown)
                {
                    fields.extend(cluster.on(network));
                }
                found.push(shown);
                Ok(())
            })
            .await;
            print_inspected(found, format.as_deref())?;
            outcome
        }
        NetworkCommand::Rm { force, networks } => {
            let known = Known::read(paths).await?;
            for_each(&networks, async |reference| {
                let is_mesh = matches!(known.find(reference), Some(Found::OfCluster(network)) if network.spec.ingress);
                if is_mesh && !force && !agreed(MESH_GOES)? {
                    return Ok(());
                }
                match remove(&known, reference, paths).await {
                    Err(_) if force && known.find(reference).is_none() => Ok(()),
                    Err(error) => Err(error),
                    Ok(()) => {
                        println!("{reference}");
                        Ok(())
                    }
                }
            })
            .await
        }
        NetworkCommand::Prune(args) => prune::prune(args, paths).await,
        NetworkCommand::Connect(args) => member::connect(args, paths).await,
        NetworkCommand::Disconnect(args) => member::disconnect(args, paths).await,
    }
}

/// A network of the cluster or of this node, as `inspect` shows it.
pub(super) async fn inspected(reference: &str, paths: &Paths) -> anyhow::Result<Option<Value>> {
    let known = Known::read(paths).await?;
    let Some(found) = known.find(reference) else { return Ok(None) };
    let here = known.here(&[reference.to_owned()], paths).await?;
    Ok(Some(found.inspected(&here)))
}

/// Every network that this node can see.
struct Known {
    /// Empty on a worker: managers are not asked from there.
    of_cluster: Vec<Arc<Network>>,
    of_node: Vec<wire::LocalNetwork>,
}

/// One of them.
enum Found<'a> {
    OfCluster(&'a Network),
    OfNode(&'a wire::LocalNetwork),
}

impl Known {
    async fn read(paths: &Paths) -> anyhow::Result<Self> {
        let mut worker = worker(paths).await;
        let of_node = match &mut worker {
            Ok(worker) => worker.list_networks(wire::Empty {}).await.map_err(explain)?.into_inner().networks,
            Err(_) => Vec::new(),
        };
        let of_cluster = match Api::connect(paths).await {
            // What is being removed is no longer anybody's, as with services.
            Ok(mut api) => api.all::<Network>().await?.into_iter().filter(|network| !network.removing).collect(),
            // Docker's workers list their own networks only.
            Err(_) if worker.is_ok() => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { of_cluster, of_node })
    }

    fn all(&self) -> impl Iterator<Item = Found<'_>> {
        let of_cluster = self.of_cluster.iter().map(|network| Found::OfCluster(network));
        of_cluster.chain(self.of_node.iter().map(Found::OfNode))
    }

    /// Names before ids, ids before their beginnings.
    fn find(&self, reference: &str) -> Option<Found<'_>> {
        let mut starts = self.all().filter(|network| network.id().starts_with(reference));
        let start = starts.next().filter(|_| starts.next().is_none());
        self.all().find(|n| n.name() == reference).or_else(|| self.all().find(|n| n.id() == reference)).or(start)
    }

    /// What of this node is on networks of the cluster, when one of these is.
    async fn here(&self, references: &[String], paths: &Paths) -> anyhow::Result<Vec<(String, Arc<Task>)>> {
        if self.is_any_of_cluster(references) { report::here(paths).await } else { Ok(Vec::new()) }
    }

    fn is_any_of_cluster(&self, references: &[String]) -> bool {
        references.iter().any(|reference| matches!(self.find(reference), Some(Found::OfCluster(_))))
    }

    fn inspected(&self, reference: &str, here: &[(String, Arc<Task>)]) -> anyhow::Result<Value> {
        self.find(reference).map(|found| found.inspected(here)).ok_or_else(|| not_found(reference))
    }
}

impl Found<'_> {
    fn inspected(self, here: &[(String, Arc<Task>)]) -> Value {
        match self {
            Self::OfCluster(network) => inspect::network(network, here),
            Self::OfNode(network) => inspect::local_network(network),
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::OfCluster(network) => network.id.as_str(),
            Self::OfNode(network) => &network.id,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::OfCluster(network) => &network.spec.annotations.name,
            Self::OfNode(network) => &network.name,
        }
    }

    fn driver(&self) -> &str {
        match self {
            Self::OfCluster(network) => &network.spec.driver,
            Self::OfNode(network) => &network.driver,
        }
    }

    fn scope(&self) -> &'static str {
        match self {
            Self::OfCluster(_) => "swarm",
            Self::OfNode(_) => "local",
        }
    }

    fn is_builtin(&self) -> bool {
        match self {
            Self::OfCluster(network) => network.spec.ingress,
            Self::OfNode(network) => network.predefined,
        }
    }

    fn annotations(&self) -> Annotations {
        match self {
            Self::OfCluster(network) => network.spec.annotations.clone(),
            Self::OfNode(network) => Annotations { name: network.name.clone(), labels: network.labels.clone() },
        }
    }

    /// What a name filter takes: of a cluster's network its beginning, of a node's a pattern in it, as with Docker.
    fn is_named(&self, wanted: &str) -> bool {
        match self {
            Self::OfCluster(_) => self.name().starts_with(wanted),
            Self::OfNode(_) => filter::names(wanted, self.name()),
        }
    }

    /// Neither a service nor a container is on it; `used` is [`prune::used`].
    fn is_dangling(&self, used: &BTreeSet<String>) -> bool {
        !self.is_builtin() && !used.contains(self.id()) && !used.contains(self.name())
    }

    fn matches(&self, filters: &FilterSet, used: &BTreeSet<String>) -> bool {
        let labels = self.annotations().labels;
        // A cluster can be without its routing mesh, or with one of the user's making.
        let kind = if matches!(self, Self::OfNode(network) if network.predefined) { "builtin" } else { "custom" };
        filters.any("id", |id| self.id().starts_with(id))
            && filters.any("name", |wanted| self.is_named(wanted))
            && filters.any("driver", |driver| self.driver() == driver)
            && filters.any("scope", |scope| scope == self.scope())
            && filters.any("type", |wanted| kind == wanted)
            && filters.any("dangling", |wanted| matches!(wanted, "true" | "1") == self.is_dangling(used))
            && filters.labels("label", &labels)
    }

    fn row(&self, no_trunc: bool) -> Row {
        let (id, Annotations { name, labels }) = (self.id(), self.annotations());
        let listed: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let (ipv6, internal, created) = match self {
            Self::OfCluster(network) => (network.spec.has_ipv6(), network.spec.internal, network.meta.created_at),
            Self::OfNode(network) => {
                (network.ipv6, network.internal, orch_model::Timestamp::from_unix_ms(network.created_at_ms))
            }
        };
        row([
            ("ID", if no_trunc { id } else { short_id(id) }.into()),
            ("Name", name.as_str().into()),
            ("Driver", self.driver().into()),
            ("Scope", self.scope().into()),
            ("IPv4", "true".into()),
            ("IPv6", ipv6.to_string().into()),
            ("Internal", internal.to_string().into()),
            ("Labels", listed.join(",").into()),
            ("Label", by_key(&labels)),
            ("CreatedAt", time::go_style(created).into()),
        ])
    }
}

fn not_found(reference: &str) -> anyhow::Error {
    anyhow::anyhow!("network {reference} not found")
}

async fn remove(known: &Known, reference: &str, paths: &Paths) -> anyhow::Result<()> {
    match known.find(reference) {
        Some(Found::OfNode(network)) => {
            let reference = if network.predefined { network.name.clone() } else { network.id.clone() };
            let request = wire::NetworkReference { reference };
            worker(paths).await?.remove_network(request).await.map_err(explain)?;
        }
        // The manager says what is wrong with a reference that fits nothing.
        Some(Found::OfCluster(_)) | None => {
            Api::connect(paths).await?.remove(Kind::Network, reference, false).await?;
        }
    }
    Ok(())
}

async fn list(flags: &ListFlags, paths: &Paths) -> anyhow::Result<()> {
    let filters = flags.filters(&["id", "name", "driver", "label", "scope", "type", "dangling"])?;
    let filters = filters.only("dangling", &["true", "false", "1", "0"]).map_err(anyhow::Error::msg)?;
    let known = Known::read(paths).await?;
    let used = if filters.has("dangling") { prune::used(paths).await? } else { BTreeSet::new() };
    let mut networks: Vec<_> = known.all().filter(|network| network.matches(&filters, &used)).collect();
    networks.sort_by(|a, b| natural_order(a.name(), b.name()));
    let rows: Vec<Row> = networks.iter().map(|network| network.row(flags.no_trunc)).collect();
    Ok(NETWORKS.print(&flags.shape(), &rows)?)
}

#[cfg(test)]
mod tests {
    use orch_model::{Meta, NetworkId, network::NetworkSpec};

    use super::*;

    #[test]
    fn managers_are_asked_about_networks_of_the_cluster_only() {
        let annotations = Annotations { name: "shop".to_owned(), ..Default::default() };
        let of_cluster = Network {
            id: NetworkId::from_random(1),
            meta: Meta::default(),
            spec: NetworkSpec { annotations, ..Default::default() },
            allocation: None,
            problem: None,
            removing: false,
        };
        let of_node = wire::LocalNetwork { name: "bridge".to_owned(), id: "b1".to_owned(), ..Default::default() };
        let known = Known { of_cluster: vec![Arc::new(of_cluster)], of_node: vec![of_node] };
        for (references, asked) in
            [(&["bridge"][..], false), (&["nosuch"], false), (&["shop"], true), (&["bridge", "shop"], true)]
        {
            let references: Vec<String> = references.iter().map(|&reference| reference.to_owned()).collect();
            assert_eq!(known.is_any_of_cluster(&references), asked, "{references:?}");
        }
    }
}
