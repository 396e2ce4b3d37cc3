//! `orch stack …`.

mod change;
mod config;
mod current;
mod deploy;
mod files;
mod plan;
mod record;
mod remove;
mod rotate;

use std::{collections::BTreeMap, process::ExitCode, sync::Arc};

use anyhow::bail;
use clap::{Args, Subcommand};
use orch_model::{service::Service, task::Task};
use orch_proto::{paths::Paths, wire};

use super::{ListFlags, logs, service};
use crate::{
    api::Api,
    compose::NAMESPACE_LABEL,
    render::{
        listing::{Listing, Row, Shape, row},
        natural_order,
    },
};

#[derive(Debug, Subcommand)]
pub(crate) enum StackCommand {
    /// Deploy a new stack or update an existing stack
    Deploy(deploy::DeployArgs),
    /// Deploy the stack file of this folder and wait until its services run
    Up(change::UpArgs),
    /// Show what a deployment would create, change field by field, restart and remove
    Plan(change::PlanArgs),
    /// Compare what runs with what the files say, line by line
    Diff(change::DiffArgs),
    /// Return the whole stack to the deployment before its last one
    Rollback(change::RollbackArgs),
    /// Write a file that deploys to what runs now
    Export { stack: String },
    /// Fetch the logs of all services of a stack
    Logs(logs::StackLogsArgs),
    /// Outputs the final config file, after doing merges and interpolations
    Config(config::ConfigArgs),
    /// List stacks
    #[command(visible_alias = "list")]
    Ls {
        /// Format output: 'table', 'table TEMPLATE', 'json' or a Go template
        #[arg(long)]
        format: Option<String>,
    },
    /// List the tasks in the stack
    Ps(PsArgs),
    /// List the services in the stack
    Services {
        #[command(flatten)]
        list: ListFlags,
        stack: String,
    },
    /// Remove one or more stacks
    #[command(visible_aliases = ["remove", "down"])]
    Rm {
        /// Do not wait for the removal to complete (default true)
        #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
        detach: Option<bool>,
        /// Wait until the stack's names, ports and addresses are free (the same as --detach=false)
        #[arg(short, long)]
        wait: bool,
        #[arg(required = true, value_name = "STACK")]
        stacks: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    list: ListFlags,
    /// Do not map IDs to names
    #[arg(long)]
    no_resolve: bool,
    stack: String,
}

const STACKS: Listing<'static> = Listing {
    default: "{{.Name}}\t{{.Services}}",
    headings: &[("Name", "NAME"), ("Services", "SERVICES"), ("Orchestrator", "ORCHESTRATOR")],
    quiet: "Name",
};

pub(crate) async fn run(command: StackCommand, paths: &Paths) -> anyhow::Result<ExitCode> {
    match command {
        StackCommand::Plan(args) => return change::plan(args, paths).await,
        StackCommand::Diff(args) => return change::diff(args, paths).await,
        StackCommand::Up(args) => change::up(args, paths).await,
        StackCommand::Rollback(args) => change::rollback(args, paths).await,
        StackCommand::Export { stack } => change::export(&stack, paths).await,
        StackCommand::Logs(args) => logs::stack_logs(args, paths).await,
        StackCommand::Deploy(args) => deploy::run(args, paths).await,
        StackCommand::Config(args) => config::run(&args),
        StackCommand::Ls { format } => list(format, paths).await,
        StackCommand::Ps(args) => {
            let mut api = Api::connect(paths).await?;
            let services = services_of(&mut api, &args.stack).await?;
            let tasks = api.list::<Task>(service::list::of_services(&services)).await?;
            service::print_tasks(&mut api, &tasks, &args.list, args.no_resolve).await
        }
        StackCommand::Services { list, stack } => service::list::print(&list, Some(&stack), paths).await,
        StackCommand::Rm { stacks, wait, detach } => remove::run(&stacks, wait || detach == Some(false), paths).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

/// The services of a stack; none means that there is no such stack.
pub(crate) async fn services_of(api: &mut Api, stack: &str) -> anyhow::Result<Vec<Arc<Service>>> {
    let services = api.list::<Service>(in_stack(stack)).await?;
    if services.is_empty() {
        bail!("{}", nothing_found(stack));
    }
    Ok(services)
}

/// Docker's words. For `rm` and `services` that is a remark, as there: what was wanted gone is gone.
pub(crate) fn nothing_found(stack: &str) -> String {
    format!("Nothing found in stack: {stack}; `orch stack ls` shows the stacks there are")
}

pub(crate) fn in_stack(stack: &str) -> wire::Filters {
    wire::Filters { labels: vec![format!("{NAMESPACE_LABEL}={stack}")], ..wire::Filters::default() }
}

async fn list(format: Option<String>, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let mut stacks: BTreeMap<String, u64> = BTreeMap::new();
    for service in api.all::<Service>().await?.iter().filter(|service| !service.removing) {
        if let Some(stack) = service.spec.annotations.labels.get(NAMESPACE_LABEL) {
            *stacks.entry(stack.clone()).or_default() += 1;
        }
    }
    let mut stacks: Vec<_> = stacks.into_iter().collect();
    stacks.sort_by(|a, b| natural_order(&a.0, &b.0));
    let rows: Vec<Row> = stacks
        .into_iter()
        .map(|(name, count)| {
            row([("Name", name.into()), ("Services", count.to_string().into()), ("Orchestrator", "Orch".into())])
        })
        .collect();
    Ok(STACKS.print(&Shape { format, quiet: false }, &rows)?)
}
