//! `orch service ps`, and the same list for nodes and stacks.

use std::sync::Arc;

use clap::Args;
use orch_model::{
    node::Node,
    service::{Service, ServiceMode},
    task::{Task, TaskState},
};
use orch_proto::paths::Paths;

use super::list::of_services;
use crate::{
    api::Api,
    commands::{ListFlags, for_each, node_names, service_names},
    render::{
        task::{self, TASKS, View},
        time,
    },
};

/// What `--filter` takes.
pub(super) const FILTERS: [&str; 4] = ["id", "name", "node", "desired-state"];
const DESIRED: [&str; 4] = ["running", "shutdown", "accepted", "ready"];

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) list: ListFlags,
    /// Do not map IDs to names
    #[arg(long)]
    pub(crate) no_resolve: bool,
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

pub(super) async fn run(args: &PsArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let mut services = Vec::new();
    let missing = for_each(&args.services, async |reference| {
        services.push(api.get::<Service>(reference).await?);
        Ok(())
    })
    .await;
    if services.is_empty() {
        return missing;
    }
    let tasks = api.list::<Task>(of_services(&services)).await?;
    print_tasks(&mut api, &tasks, &args.list, args.no_resolve).await?;
    missing
}

pub(crate) async fn print_tasks(
    api: &mut Api,
    tasks: &[Arc<Task>],
    flags: &ListFlags,
    no_resolve: bool,
) -> anyhow::Result<()> {
    let filters = flags.filters(&FILTERS)?.only("desired-state", &DESIRED).map_err(anyhow::Error::msg)?;
    let nodes = node_names(&api.all::<Node>().await?);
    let own = if filters.values("node").iter().any(|name| name == "self") {
        api.info().await?.node_id
    } else {
        String::new()
    };
    for name in filters.values("node").iter().filter(|name| *name != "self") {
        let is_node = nodes.iter().any(|(id, hostname)| id.starts_with(name.as_str()) || hostname == name);
        // A node that was removed has tasks for a while.
        let was_node =
            tasks.iter().filter_map(|task| task.node.as_ref()).any(|id| id.as_str().starts_with(name.as_str()));
        if !is_node && !was_node {
            anyhow::bail!("node {name} not found: `orch node ls` shows the nodes");
        }
    }
    let services = api.all::<Service>().await?;
    let is_job = |s: &&Arc<Service>| matches!(s.spec.mode, ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob);
    let jobs = services.iter().filter(is_job).map(|s| s.id.to_string()).collect();
    let services = service_names(&services);
    let (now, no_trunc) = (time::now(), flags.no_trunc);
    let view = View { now, no_trunc, no_resolve, nodes: &nodes, services: &services, jobs: &jobs };
    let kept: Vec<Arc<Task>> = tasks
        .iter()
        // Tasks that wait for deletion are no longer part of the service.
        .filter(|t| t.desired_state != TaskState::Remove || flags.no_trunc)
        .filter(|t| {
            let node = t.node.as_ref().map(|n| n.as_str()).unwrap_or_default();
            filters.any("id", |id| t.id.as_str().starts_with(id))
                && filters.any("name", |prefix| task::name(t, &view).starts_with(prefix))
                && filters.any("node", |name| {
                    (name == "self" && node == own)
                        || node.starts_with(name)
                        || nodes.get(node).is_some_and(|n| n == name)
                })
                && filters.any("desired-state", |state| desired(t.desired_state, state))
        })
        .cloned()
        .collect();
    Ok(TASKS.print(&flags.shape(), &task::rows(&kept, &view))?)
}

fn desired(state: TaskState, word: &str) -> bool {
    match word.to_lowercase().as_str() {
        "running" => state <= TaskState::Running && state > TaskState::Ready,
        "accepted" => state == TaskState::Accepted,
        "ready" => state == TaskState::Ready,
        "shutdown" => state > TaskState::Running,
        _ => false,
    }
}
