//! `orch inspect`: whatever has that name or id, tasks too.

use clap::Args;
use orch_model::{
    network::Network,
    node::Node,
    secret::{Config, Secret},
    service::Service,
    task::Task,
};
use orch_proto::paths::Paths;
use serde_json::Value;

use super::{container, for_each, node::reachability, print_inspected};
use crate::{api::Api, inspect};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output: 'json' or a Go template
    #[arg(short, long)]
    format: Option<String>,
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
}

pub(crate) async fn run(args: InspectArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut found = Vec::new();
    let outcome = for_each(&args.names, async |reference| {
        // What this node has needs no manager.
        let object = match container::one_off(paths, reference).await {
            Some(details) => inspect::local_container(&details),
            None => find(&mut Api::connect(paths).await?, reference).await?,
        };
        found.push(object);
        Ok(())
    })
    .await;
    print_inspected(found, args.format.as_deref())?;
    outcome
}

async fn find(api: &mut Api, reference: &str) -> anyhow::Result<Value> {
    if let Some(service) = api.get_optional::<Service>(reference).await? {
        return Ok(inspect::service(&service));
    }
    if let Some(task) = api.get_optional::<Task>(reference).await? {
        return Ok(inspect::task(&task));
    }
    if let Some(node) = api.get_optional::<Node>(reference).await? {
        let reachable = reachability(&api.info().await?).get(node.id.as_str()).copied();
        return Ok(inspect::node(&node, reachable));
    }
    if let Some(network) = api.get_optional::<Network>(reference).await? {
        return Ok(inspect::network(&network));
    }
    if let Some(secret) = api.get_optional::<Secret>(reference).await? {
        return Ok(inspect::secret(&secret));
    }
    if let Some(config) = api.get_optional::<Config>(reference).await? {
        return Ok(inspect::config(&config));
    }
    anyhow::bail!("no such object: {reference}; see `orch service ls`, `orch node ls`, `orch network ls`")
}
