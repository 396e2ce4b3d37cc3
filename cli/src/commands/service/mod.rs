//! `orch service …`.

mod capabilities;
pub(super) mod change;
pub(crate) use change::constraint;
pub(crate) mod create;
mod flags;
pub(crate) mod list;
#[cfg(test)]
mod parity;
mod pretty;
mod ps;
#[cfg(test)]
mod refusals;
pub(crate) mod registry;
pub(crate) mod resolve;
#[cfg(test)]
mod surface;
mod update;

use std::sync::Arc;

use clap::{Args, Subcommand};
use orch_model::{
    Kind,
    network::Network,
    service::{Service, ServiceMode, ServiceSpec},
};
use orch_proto::paths::Paths;
use tonic::Code;

use super::{ListFlags, for_each, print_inspected, warn};
use crate::{
    api::{Api, explain, updated},
    flags::quantity,
    inspect, progress,
    render::time,
};

pub(crate) use ps::print_tasks;

/// How often a change is sent to a service to which the managers write meanwhile.
const STORE_ATTEMPTS: usize = 5;

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Create a new service
    Create(Box<create::CreateArgs>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// List the tasks of one or more services
    Ps(ps::PsArgs),
    /// Display detailed information on one or more services
    Inspect(InspectArgs),
    /// Scale one or multiple replicated services
    Scale(ScaleArgs),
    /// Update a service
    Update(Box<update::UpdateArgs>),
    /// Remove one or more services
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// Fetch the logs of a service or task
    Logs(super::logs::ServiceLogsArgs),
    /// Revert changes to a service's configuration
    Rollback(RollbackArgs),
    /// Spread the tasks of services anew, for instance over nodes that joined later
    ///
    /// As few tasks as needed are replaced, a few at a time, as the service's update settings say.
    Rebalance {
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// Let slots start elsewhere that wait for the node which has their volumes; what those hold is given up
    Unpin {
        #[arg(required = true, value_name = "SERVICE[.SLOT]")]
        slots: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output: 'json' or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Print the information in a human friendly format
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    detach: Option<bool>,
    #[arg(required = true, value_name = "SERVICE=REPLICAS", value_parser = scale_target)]
    targets: Vec<(String, u64)>,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    detach: Option<bool>,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    service: String,
}

pub(crate) async fn run(command: ServiceCommand, paths: &Paths) -> anyhow::Result<()> {
    match command {
        ServiceCommand::Create(args) => create::run(*args, paths).await,
        ServiceCommand::Ls(flags) => list::run(&flags, paths).await,
        ServiceCommand::Ps(args) => ps::run(&args, paths).await,
        ServiceCommand::Inspect(args) => inspect_services(&args, paths).await,
        ServiceCommand::Scale(args) => scale(args, paths).await,
        ServiceCommand::Update(args) => update::run(*args, paths).await,
        ServiceCommand::Rm { services } => remove(&services, paths).await,
        ServiceCommand::Logs(args) => super::logs::service_logs(args, paths).await,
        ServiceCommand::Rollback(args) => rollback(args, paths).await,
        ServiceCommand::Rebalance { services } => rebalance(&services, paths).await,
        ServiceCommand::Unpin { slots } => unpin(&slots, paths).await,
    }
}

async fn inspect_services(args: &InspectArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let mut found = Vec::new();
    let outcome = for_each(&args.services, async |reference| {
        found.push(api.get::<Service>(reference).await?);
        Ok(())
    })
    .await;
    if args.pretty {
        let networks = api.all::<Network>().await?;
        let name = |id: &str| {
            let known = networks.iter().find(|network| network.id.as_str() == id);
            known.map_or_else(|| id.to_owned(), |network| network.spec.annotations.name.clone())
        };
        let texts: Vec<_> = found.iter().map(|s| pretty::service(s, time::now(), &name)).collect();
        print!("{}", texts.join("\n"));
    } else {
        print_inspected(found.iter().map(|s| inspect::service(s)).collect(), args.format.as_deref())?;
    }
    outcome
}

async fn scale(args: ScaleArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let mut scaled = Vec::new();
    let mut failures = Vec::new();
    for (reference, replicas) in &args.targets {
        match scale_one(&mut api, reference, *replicas).await {
            Ok(watch) => {
                println!("{reference} scaled to {replicas}");
                scaled.push(watch);
            }
            Err(error) => failures.push(format!("{reference}: {error:#}")),
        }
    }
    if !args.detach.unwrap_or(false) {
        for watch in scaled {
            progress::wait(&mut api, &watch, false).await?;
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(failures.join("\n"))) }
}

async fn scale_one(api: &mut Api, reference: &str, replicas: u64) -> anyhow::Result<progress::Watched> {
    let service = api.get::<Service>(reference).await?;
    let mut spec = service.spec.clone();
    spec.mode = match spec.mode {
        ServiceMode::Replicated { .. } => ServiceMode::Replicated { replicas },
        ServiceMode::ReplicatedJob { max_concurrent, .. } => {
            ServiceMode::ReplicatedJob { max_concurrent, total_completions: replicas }
        }
        ServiceMode::Global | ServiceMode::GlobalJob => {
            anyhow::bail!(
                "scale can only be used with replicated or replicated-job mode; a global service runs once on every node"
            )
        }
    };
    store(api, &service, &spec).await
}

/// Sends a changed spec; what the progress display needs afterwards.
async fn store(api: &mut Api, before: &Service, spec: &ServiceSpec) -> anyhow::Result<progress::Watched> {
    let after = send(api, before, Some(spec)).await?;
    Ok(progress::Watched::after_update(before, &after))
}

/// Returns to the spec before the last change; what the progress display needs afterwards.
async fn roll_back(api: &mut Api, before: &Service) -> anyhow::Result<progress::Watched> {
    let after = send(api, before, None).await?;
    Ok(progress::Watched::after_rollback(before, &after))
}

/// The service after the change: this spec, or without one the spec before.
///
/// The managers write to a service, too, for example when an update of it ends. Only what another person changed meanwhile is
/// a conflict.
pub(crate) async fn send(api: &mut Api, before: &Service, spec: Option<&ServiceSpec>) -> anyhow::Result<Arc<Service>> {
    let (id, mut version, mut attempts) = (before.id.as_str(), before.meta.version, 1..STORE_ATTEMPTS);
    loop {
        let wire = spec.map(resolve::asked);
        let status = match api.try_update(Kind::Service, id, version, wire).await {
            Ok(response) => {
                let (after, warnings) = updated::<Service>(response)?;
                warn(&warnings);
                return Ok(after);
            }
            Err(status) => status,
        };
        if status.code() != Code::Aborted {
            return Err(explain(status));
        }
        let now = api.get::<Service>(id).await?;
        if now.spec != before.spec || attempts.next().is_none() {
            return Err(explain(status).context(format!("service {} is as it was", before.spec.annotations.name)));
        }
        version = now.meta.version;
    }
}

async fn rollback(args: RollbackArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let before = api.get::<Service>(&args.service).await?;
    let watched = roll_back(&mut api, &before).await?;
    println!("{}", args.service);
    if args.detach.unwrap_or(false) {
        return Ok(());
    }
    progress::wait(&mut api, &watched, args.quiet).await
}

async fn rebalance(services: &[String], paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    for_each(services, async |reference| {
        let service = api.get::<Service>(reference).await?;
        for note in api.rebalance(service.id.as_str()).await? {
            println!("{reference}: {note}");
        }
        Ok(())
    })
    .await
}

async fn unpin(references: &[String], paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    for_each(references, async |reference| {
        // A name with dots is a name first.
        let (service, slots) = match (api.get_optional::<Service>(reference).await?, reference.rsplit_once('.')) {
            (Some(service), _) => (service, Vec::new()),
            (None, Some((name, slot))) if slot.parse::<u64>().is_ok() => {
                (api.get::<Service>(name).await?, slot.parse().into_iter().collect())
            }
            (None, _) => (api.get::<Service>(reference).await?, Vec::new()),
        };
        for note in api.unpin(service.id.as_str(), slots).await? {
            println!("{note}");
        }
        Ok(())
    })
    .await
}

async fn remove(services: &[String], paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    for_each(services, async |reference| {
        api.remove(Kind::Service, reference, false).await?;
        println!("{reference}");
        Ok(())
    })
    .await
}

fn scale_target(text: &str) -> Result<(String, u64), String> {
    let form = "expected SERVICE=REPLICAS, such as web=5";
    let (name, count) = text.split_once('=').ok_or(form)?;
    if name.is_empty() {
        return Err(form.into());
    }
    let count = quantity::count(count).map_err(|_| format!("{count:?} is not a number of replicas; {form}"))?;
    Ok((name.to_owned(), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_targets() {
        assert_eq!(scale_target("web=5"), Ok(("web".into(), 5)));
        for text in ["web", "web=", "web=-1", "web=+1", "=3", "web=x", "web=18446744073709551616"] {
            assert!(scale_target(text).unwrap_err().contains("web=5"), "{text}");
        }
    }
}
