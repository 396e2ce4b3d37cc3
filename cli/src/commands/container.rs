//! `orch ps` and `orch container …`: this node's containers.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use orch_model::{
    Timestamp,
    task::{Health, TaskState, TaskStatus},
};
use orch_proto::{conv::FromProto, paths::Paths, wire};

use super::{
    ListFlags, container_attach::AttachArgs, container_control as control, container_copy as copy,
    container_live as live, exec, logs, run,
};
use crate::{
    api::{explain, worker},
    render::{
        ellipsis,
        listing::{Listing, Row, row},
        short_id, time,
    },
};

#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// Create and run a new container from an image
    Run(Box<run::RunArgs>),
    /// Create a new container
    Create(Box<run::CreateArgs>),
    /// List containers
    #[command(visible_aliases = ["list", "ps"])]
    Ls(PsArgs),
    /// Display detailed information on one or more containers
    Inspect(control::InspectContainerArgs),
    /// Start one or more stopped containers
    Start(control::StartArgs),
    /// Stop one or more running containers
    Stop(control::StopArgs),
    /// Restart one or more containers
    Restart(control::StopArgs),
    /// Kill one or more running containers
    Kill(control::KillArgs),
    /// Remove one or more containers
    #[command(visible_alias = "remove")]
    Rm(control::RmArgs),
    /// Rename a container
    Rename(control::RenameArgs),
    /// Block until containers stop, then print their exit codes
    Wait(control::Named),
    /// List port mappings of a container
    Port(control::PortArgs),
    /// Attach local standard input, output, and error streams to a running container
    Attach(AttachArgs),
    /// Execute a command in a running container
    Exec(exec::ExecArgs),
    /// Fetch the logs of a container
    Logs(logs::LogsArgs),
    /// Pause all processes within one or more containers
    Pause(control::Named),
    /// Unpause all processes within one or more containers
    Unpause(control::Named),
    /// Update configuration of one or more containers
    Update(live::UpdateContainerArgs),
    /// Display a live stream of container(s) resource usage statistics
    Stats(live::StatsArgs),
    /// Display the running processes of a container
    Top(live::OneContainer),
    /// Inspect changes to files or directories on a container's filesystem
    Diff(live::OneContainer),
    /// Copy files/folders between a container and the local filesystem
    Cp(copy::CopyArgs),
    /// Remove all stopped containers
    Prune(control::PruneArgs),
}

pub(crate) async fn run(command: ContainerCommand, paths: &Paths) -> anyhow::Result<ExitCode> {
    match command {
        ContainerCommand::Run(args) => return run::run(*args, paths).await,
        ContainerCommand::Start(args) => return control::start(args, paths).await,
        ContainerCommand::Attach(args) => return control::attach(args, paths).await,
        ContainerCommand::Exec(args) => return exec::run(args, paths).await,
        ContainerCommand::Create(args) => run::create(*args, paths).await,
        ContainerCommand::Ls(args) => ps(args, paths).await,
        ContainerCommand::Inspect(args) => control::inspect(args, paths).await,
        ContainerCommand::Stop(args) => control::stop(args, false, paths).await,
        ContainerCommand::Restart(args) => control::stop(args, true, paths).await,
        ContainerCommand::Kill(args) => control::kill(args, paths).await,
        ContainerCommand::Rm(args) => control::remove(args, paths).await,
        ContainerCommand::Rename(args) => control::rename(args, paths).await,
        ContainerCommand::Wait(args) => control::wait(args, paths).await,
        ContainerCommand::Port(args) => control::port(args, paths).await,
        ContainerCommand::Logs(args) => logs::logs(args, paths).await,
        ContainerCommand::Pause(args) => live::pause(args, true, paths).await,
        ContainerCommand::Unpause(args) => live::pause(args, false, paths).await,
        ContainerCommand::Update(args) => live::update(args, paths).await,
        ContainerCommand::Stats(args) => live::stats(args, paths).await,
        ContainerCommand::Top(args) => live::top(args, paths).await,
        ContainerCommand::Diff(args) => live::diff(args, paths).await,
        ContainerCommand::Cp(args) => copy::copy(args, paths).await,
        ContainerCommand::Prune(args) => control::prune(args, paths).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

/// A one-off container of this node by that name or id; `None` also when the worker cannot be asked.
pub(crate) async fn one_off(paths: &Paths, reference: &str) -> Option<wire::ContainerDetails> {
    let request = wire::ContainerReference { reference: reference.into() };
    let details = worker(paths).await.ok()?.inspect_container(request).await.ok()?.into_inner();
    details.local.is_some().then_some(details)
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    list: ListFlags,
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Show n last created containers (includes all states)
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    latest: bool,
}

const CONTAINERS: Listing<'static> = Listing {
    default: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}",
    headings: &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("RunningFor", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Status", "STATUS"),
        ("State", "STATE"),
        ("Ports", "PORTS"),
        ("Names", "NAMES"),
        ("Labels", "LABELS"),
    ],
    quiet: "ID",
};

pub(crate) async fn ps(args: PsArgs, paths: &Paths) -> anyhow::Result<()> {
    let flags = &args.list;
    let filters =
        flags.filters(&["id", "name", "label", "status", "ancestor", "health", "exited", "volume", "network"])?;
    let mut worker = worker(paths).await?;
    let mut containers = worker.list_containers(wire::Empty {}).await.map_err(explain)?.into_inner().containers;
    containers.sort_by_key(|c| std::cmp::Reverse(c.created_at_ms));
    let limit = if args.latest { Some(1) } else { args.last };
    let all = args.all || limit.is_some() || flags_filter_status(&args);
    let now = time::now();
    let mut rows: Vec<Row> = Vec::new();
    for container in &containers {
        let status = container.status.clone().map(TaskStatus::from_proto).transpose()?;
        let state = container.state.as_str();
        // A task that was given up before it had a container is in `service ps` only.
        let never_was = status.as_ref().is_some_and(|s| s.state == TaskState::Rejected && s.container.is_none());
        if !never_was
            && (all || matches!(state, "running" | "paused" | "restarting"))
            && filters.any("id", |id| container.container_id.starts_with(id))
            && filters.any("name", |part| container.name.contains(part))
            && filters.any("status", |word| word == state)
            && filters.any("ancestor", |image| container.image == image || image_id(container).starts_with(image))
            && filters.any("health", |word| word == health(container).map_or("none", Health::word))
            && filters.any("exited", |code| state == "exited" && code == container.exit_code.to_string())
            && filters.any("volume", |name| container.mounts.iter().any(|mount| mount == name))
            && filters.any("network", |name| container.networks.iter().any(|network| network == name))
            && filters.labels("label", &container.labels)
        {
            rows.push(container_row(container, now, flags.no_trunc));
        }
    }
    rows.truncate(limit.unwrap_or(usize::MAX));
    Ok(CONTAINERS.print(&flags.shape(), &rows)?)
}

fn flags_filter_status(args: &PsArgs) -> bool {
    args.list.filter.iter().any(|filter| filter.starts_with("status="))
}

fn health(container: &wire::Container) -> Option<Health> {
    container.health.and_then(|health| Health::from_proto(health).ok())
}

fn image_id(container: &wire::Container) -> &str {
    let digest = container.image_digest.as_str();
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn up(length: std::time::Duration) -> String {
    format!("Up {}", time::human(length).to_lowercase().replace("about", "About"))
}

/// As Docker has it behind `Up 5 minutes`.
fn health_words(container: &wire::Container) -> &'static str {
    match health(container) {
        None => "",
        Some(Health::Starting) => " (health: starting)",
        Some(Health::Healthy) => " (healthy)",
        Some(Health::Unhealthy) => " (unhealthy)",
    }
}

fn container_row(container: &wire::Container, now: Timestamp, no_trunc: bool) -> Row {
    let created = Timestamp::from_unix_ms(container.created_at_ms);
    let command = format!("{:?}", container.command.join(" "));
    let since = |unix_ms: u64| Timestamp::from_unix_ms(unix_ms);
    let ago = || time::ago(since(container.finished_at_ms), now);
    let words = match container.state.as_str() {
        "running" => format!("{}{}", up(now.since(since(container.started_at_ms))), health_words(container)),
        "paused" => format!("{} (Paused)", up(now.since(since(container.started_at_ms)))),
        "exited" => format!("Exited ({}) {}", container.exit_code, ago()),
        "restarting" => format!("Restarting ({}) {}", container.exit_code, ago()),
        "removing" => "Removal In Progress".to_owned(),
        _ => "Created".to_owned(),
    };
    let labels: Vec<String> = container.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let id = container.container_id.as_str();
    row([
        ("ID", if no_trunc { id } else { short_id(id) }.into()),
        ("Image", container.image.split('@').next().unwrap_or_default().into()),
        ("Command", if no_trunc { command } else { command_cut(&container.command.join(" ")) }.into()),
        ("RunningFor", time::ago(created, now).into()),
        ("CreatedAt", time::go_style(created).into()),
        ("Status", words.into()),
        ("State", container.state.as_str().into()),
        ("Ports", container.ports.join(", ").into()),
        ("Names", container.name.as_str().into()),
        ("Labels", labels.join(",").into()),
        ("PID", container.pid.into()),
    ])
}

/// Twenty characters, in quotes.
fn command_cut(command: &str) -> String {
    format!("\"{}\"", ellipsis(command, 20))
}
