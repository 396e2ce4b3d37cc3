//! `orch ps` and `orch container …`: this node's containers.

use std::{collections::BTreeMap, ops::RangeInclusive, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use orch_model::{
    Timestamp, size,
    task::{Health, TaskState, TaskStatus},
};
use orch_proto::{code, conv::FromProto, paths::Paths, wire};
use tonic::{Code, Status};

use super::{
    ListFlags, container_attach::AttachArgs, container_control as control, container_copy as copy,
    container_live as live, exec, image::canonical, logs, run,
};
use crate::{
    api::{Api, Worker, explain, worker},
    flags::filter::{self, FilterSet},
    render::{
        ellipsis,
        listing::{Listing, Row, by_key, row},
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
    Top(live::TopArgs),
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

/// What the daemon that has a container says of it: this node's worker of its one-off containers, managers of tasks. Where
/// these cannot answer, or know no such task, the worker is asked for those of this node.
pub(crate) async fn ask<T>(
    paths: &Paths,
    reference: &str,
    of_managers: impl AsyncFnOnce(Api) -> Result<T, Status>,
    of_worker: impl AsyncFnOnce(Worker) -> Result<T, Status>,
) -> anyhow::Result<T> {
    if one_off(paths, reference).await.is_some() {
        return of_worker(worker(paths).await?).await.map_err(explain);
    }
    let said = match Api::connect(paths).await {
        Ok(api) => of_managers(api).await,
        // On a worker, the containers of the node itself are at hand.
        Err(no_manager) => match worker(paths).await {
            Ok(worker) => return of_worker(worker).await.map_err(explain),
            Err(_) => return Err(no_manager),
        },
    };
    match said {
        Err(status) if may_be_here(&status) => {
            let Ok(worker) = worker(paths).await else { return Err(not_found(status, reference)) };
            of_worker(worker).await.map_err(|here| match here.code() {
                Code::NotFound => not_found(status, reference),
                _ => explain(here),
            })
        }
        said => said.map_err(explain),
    }
}

/// Managers have done nothing, and this node may have the container all the same.
fn may_be_here(status: &Status) -> bool {
    match status.code() {
        Code::NotFound => true,
        // A command whose leader was lost on the way may have been started.
        Code::Unavailable => code::of(status).is_some_and(|code| code != "leader-lost"),
        _ => false,
    }
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    list: ListFlags,
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Show n last created containers (includes all states); -1: all that run, as without it
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    last: Option<i64>,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    latest: bool,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
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
        ("Mounts", "MOUNTS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Networks", "NETWORKS"),
        ("Size", "SIZE"),
    ],
    quiet: "ID",
};

const FILTERS: &[&str] = &[
    "id", "name", "label", "status", "ancestor", "health", "exited", "volume", "network", "before", "since", "publish",
    "expose", "is-task",
];
/// Docker cuts names of mounts there.
const MOUNT_WIDTH: usize = 15;
const STATES: &[&str] = &["created", "restarting", "running", "removing", "paused", "exited", "dead"];
const HEALTHS: &[&str] = &["starting", "healthy", "unhealthy", "none"];

pub(crate) async fn ps(args: PsArgs, paths: &Paths) -> anyhow::Result<()> {
    let flags = &args.list;
    let filters = flags.filters(FILTERS)?;
    let filters = filters.only("status", STATES).and_then(|filters| filters.only("health", HEALTHS));
    let filters = filters.and_then(|filters| filters.only("is-task", &["true", "false", "1", "0"]));
    let filters = filters.map_err(anyhow::Error::msg)?;
    let publish = PortFilter::parse("publish", &filters)?;
    let expose = PortFilter::parse("expose", &filters)?;
    if let Some(code) = filters.values("exited").iter().find(|code| code.parse::<i32>().is_err()) {
        bail!("invalid filter exited={code}: expected an exit code, such as 0 or 137");
    }
    let mut worker = worker(paths).await?;
    let mut containers = worker.list_containers(wire::Empty {}).await.map_err(explain)?.into_inner().containers;
    containers.sort_by_key(|c| std::cmp::Reverse(c.created_at_ms));
    let before = made_at("before", &filters, &containers)?;
    let since = made_at("since", &filters, &containers)?;
    let ancestors = digests(filters.values("ancestor"), &mut worker).await?;
    let last = args.last.and_then(|count| usize::try_from(count).ok());
    let limit = if args.latest { Some(1) } else { last };
    let all = args.all || limit.is_some() || filters.has("status");
    let mut kept = Vec::new();
    for container in &containers {
        let status = container.status.clone().map(TaskStatus::from_proto).transpose()?;
        let state = container.state.as_str();
        // A task that was given up before it had a container is in `service ps` only.
        let never_was = status.as_ref().is_some_and(|s| s.state == TaskState::Rejected && s.container.is_none());
        if !never_was
            && (all || matches!(state, "running" | "paused" | "restarting"))
            && filters.any("id", |id| container.container_id.starts_with(id))
            && filters.any("name", |pattern| is_named(pattern, &container.name))
            && filters.any("status", |word| word == state)
            && filters.any("ancestor", |image| is_of(container, image, ancestors.get(image)))
            && filters.any("health", |word| word == health(container).map_or("none", Health::word))
            && filters.any("exited", |code| state == "exited" && code == container.exit_code.to_string())
            && filters.any("volume", |name| container.mounts.iter().any(|mount| mount == name))
            && filters.any("network", |name| container.networks.iter().any(|network| network == name))
            && filters.any("is-task", |wanted| matches!(wanted, "true" | "1") != container.one_off)
            && before.is_none_or(|at| container.created_at_ms < at)
            && since.is_none_or(|at| container.created_at_ms > at)
            && filters.labels("label", &container.labels)
            && (!publish.is_set() || ports(container).any(|(public, _, protocol)| publish.has(public, protocol)))
            && (!expose.is_set() || exposes(container, &expose, &mut worker).await?)
        {
            kept.push(container);
        }
    }
    kept.truncate(limit.unwrap_or(usize::MAX));
    // Looked up only where somebody asks: every file is counted.
    let asks = args.size || flags.format.as_ref().is_some_and(|format| format.contains(".Size"));
    let sizes = if asks { sizes(&mut worker).await? } else { BTreeMap::new() };
    let now = time::now();
    let rows: Vec<Row> = kept
        .into_iter()
        .map(|container| {
            let size = sizes.get(&container.container_id).cloned().unwrap_or_else(|| "0B".to_owned());
            container_row(container, &size, now, flags.no_trunc)
        })
        .collect();
    let with_size = format!("{}\t{{{{.Size}}}}", CONTAINERS.default);
    let listing = Listing { default: if args.size { &with_size } else { CONTAINERS.default }, ..CONTAINERS };
    Ok(listing.print(&flags.shape(), &rows)?)
}

/// What each container wrote, and its image besides.
async fn sizes(worker: &mut Worker) -> anyhow::Result<BTreeMap<String, String>> {
    let report = worker.disk_usage(wire::Empty {}).await.map_err(explain)?.into_inner();
    let images: BTreeMap<String, u64> =
        report.images.into_iter().filter_map(|usage| usage.image).map(|i| (i.digest, i.size_bytes)).collect();
    let of_container = |usage: wire::ContainerUsage| {
        let container = usage.container.unwrap_or_default();
        let image = images.get(&container.image_digest).copied().unwrap_or_default();
        let (own, whole) = (size::human(usage.size_bytes), size::human(usage.size_bytes + image));
        (container.container_id, format!("{own} (virtual {whole})"))
    };
    Ok(report.containers.into_iter().map(of_container).collect())
}

/// Where a container or a task may be named, managers know of tasks only.
fn not_found(status: Status, reference: &str) -> anyhow::Error {
    if code::of(&status) == Some("not-found") {
        return anyhow::anyhow!("No such container: {reference}, nor is there such a task");
    }
    explain(status)
}

/// As Docker knows a container, with a slash before its name and without.
fn is_named(pattern: &str, name: &str) -> bool {
    filter::names(pattern, name) || filter::names(pattern, &format!("/{name}"))
}

/// Whether it was made from that image, given by name or id; `digest`: of what is called so now.
fn is_of(container: &wire::Container, image: &str, digest: Option<&String>) -> bool {
    let made_of = container.image.split('@').next().unwrap_or_default();
    image == container.image
        || canonical(made_of) == canonical(image)
        || digest.is_some_and(|digest| *digest == container.image_digest)
        || image_id(container).starts_with(image)
}

/// The digests of images that a filter names.
async fn digests(images: &[String], worker: &mut Worker) -> anyhow::Result<BTreeMap<String, String>> {
    let mut digests = BTreeMap::new();
    for image in images {
        match worker.inspect_image(wire::ImageReference { reference: image.clone() }).await {
            Ok(found) => drop(digests.insert(image.clone(), found.into_inner().digest)),
            // It may have lost that name.
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => return Err(explain(status)),
        }
    }
    Ok(digests)
}

/// When the container that `before` or `since` names was made; the last one counts, as with Docker.
fn made_at(key: &str, filters: &FilterSet, containers: &[wire::Container]) -> anyhow::Result<Option<u64>> {
    let Some(reference) = filters.values(key).last() else { return Ok(None) };
    let named = containers.iter().find(|container| container.name == *reference);
    let by_id = || containers.iter().find(|container| container.container_id.starts_with(reference.as_str()));
    let found = named.or_else(by_id).with_context(|| format!("No such container: {reference}"))?;
    Ok(Some(found.created_at_ms))
}

/// Published ports: on the node, in the container, protocol. `0.0.0.0:8080->80/tcp`
fn ports(container: &wire::Container) -> impl Iterator<Item = (u16, u16, &str)> {
    container.ports.iter().filter_map(|words| {
        let (node, inside) = words.split_once("->")?;
        let (inside, protocol) = inside.split_once('/')?;
        Some((node.rsplit_once(':')?.1.parse().ok()?, inside.parse().ok()?, protocol))
    })
}

/// Ports that it publishes, and those that its image or `--expose` names.
async fn exposes(container: &wire::Container, wanted: &PortFilter, worker: &mut Worker) -> anyhow::Result<bool> {
    if ports(container).any(|(_, inside, protocol)| wanted.has(inside, protocol)) {
        return Ok(true);
    }
    let reference = wire::ContainerReference { reference: container.container_id.clone() };
    let exposed = match worker.inspect_container(reference).await {
        // It went meanwhile.
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(false),
        details => details.map_err(explain)?.into_inner().exposed,
    };
    Ok(exposed.iter().any(|port| {
        let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        port.parse().is_ok_and(|port| wanted.has(port, protocol))
    }))
}

/// `80`, `80/udp`, `8000-8080/tcp`: any of them.
struct PortFilter(Vec<(RangeInclusive<u16>, String)>);

impl PortFilter {
    fn parse(key: &str, filters: &FilterSet) -> anyhow::Result<Self> {
        let one = |text: &String| {
            let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let (Ok(first), Ok(last)) = (first.parse(), last.parse()) else {
                bail!("invalid filter '{key}={text}': expected PORT[-PORT][/PROTOCOL], such as 80/tcp");
            };
            Ok((first..=last, protocol.to_lowercase()))
        };
        Ok(Self(filters.values(key).iter().map(one).collect::<anyhow::Result<_>>()?))
    }

    fn is_set(&self) -> bool {
        !self.0.is_empty()
    }

    fn has(&self, port: u16, protocol: &str) -> bool {
        self.0.iter().any(|(ports, of)| ports.contains(&port) && of == protocol)
    }
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

fn container_row(container: &wire::Container, size: &str, now: Timestamp, no_trunc: bool) -> Row {
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
    let shown = |mount: &String| if no_trunc { mount.clone() } else { ellipsis(mount, MOUNT_WIDTH) };
    row([
        ("ID", if no_trunc { id } else { short_id(id) }.into()),
        ("Image", image_words(&container.image, no_trunc).into()),
        ("Command", if no_trunc { command } else { command_cut(&container.command.join(" ")) }.into()),
        ("RunningFor", time::ago(created, now).into()),
        ("CreatedAt", time::go_style(created).into()),
        ("Status", words.into()),
        ("State", container.state.as_str().into()),
        ("Ports", container.ports.join(", ").into()),
        ("Names", container.name.as_str().into()),
        ("Labels", labels.join(",").into()),
        ("Label", by_key(&container.labels)),
        ("Mounts", container.mounts.iter().map(shown).collect::<Vec<_>>().join(",").into()),
        ("LocalVolumes", container.mounts.iter().filter(|m| !m.starts_with('/')).count().to_string().into()),
        ("Networks", container.networks.join(",").into()),
        ("Size", size.into()),
        ("PID", container.pid.into()),
    ])
}

/// The name that it was made by, or the id.
fn image_words(image: &str, no_trunc: bool) -> &str {
    match image.strip_prefix("sha256:") {
        Some(id) if !no_trunc => short_id(id),
        _ => image.split('@').next().unwrap_or_default(),
    }
}

/// Twenty characters, in quotes.
fn command_cut(command: &str) -> String {
    format!("\"{}\"", ellipsis(command, 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_found_by_names_and_images() {
        for (pattern, want) in [("^web$", true), ("^/web$", true), ("we", true), ("^eb", false), ("w.b", true)] {
            assert_eq!(is_named(pattern, "web"), want, "{pattern}");
        }
        let digest = "sha256:c0ffee".to_owned();
        for (made_of, image, found, want) in [
            ("busybox", "busybox:latest", None, true),
            ("busybox:latest@sha256:77", "busybox", None, true),
            ("docker.io/library/busybox", "busybox", None, true),
            ("busybox:1", "busybox", None, false),
            ("busybox", "c0ffee", None, true),
            ("busybox", "web", Some(&digest), true),
        ] {
            let container =
                wire::Container { image: made_of.into(), image_digest: digest.clone(), ..Default::default() };
            assert_eq!(is_of(&container, image, found), want, "{made_of} {image}");
        }
        for (image, no_trunc, want) in [
            ("sha256:15b1c29dcfc1725cf38a", false, "15b1c29dcfc1"),
            ("sha256:15b1c29dcfc1725cf38a", true, "sha256:15b1c29dcfc1725cf38a"),
            ("web:1@sha256:77", false, "web:1"),
        ] {
            assert_eq!(image_words(image, no_trunc), want);
        }
    }

    #[test]
    fn ports_are_filtered_by_number_range_and_protocol() {
        let container = wire::Container {
            ports: vec!["0.0.0.0:8080->80/tcp".into(), "[::1]:53->5353/udp".into()],
            ..wire::Container::default()
        };
        let matches = |key: &str, value: &str| {
            let filters = FilterSet::parse(&[format!("{key}={value}")], FILTERS).unwrap();
            let wanted = PortFilter::parse(key, &filters).map_err(|error| error.to_string())?;
            let port =
                |(public, inside, protocol)| wanted.has(if key == "publish" { public } else { inside }, protocol);
            Ok::<bool, String>(ports(&container).any(port))
        };
        for (key, value, want) in [
            ("publish", "8080", true),
            ("publish", "80", false),
            ("publish", "53/udp", true),
            ("publish", "8000-8090/tcp", true),
            ("expose", "80/tcp", true),
            ("expose", "5353", false),
        ] {
            assert_eq!(matches(key, value), Ok(want), "{key}={value}");
        }
        assert!(matches("publish", "8080:80").unwrap_err().starts_with("invalid filter 'publish=8080:80'"));
    }

    #[test]
    fn a_row_has_what_dockers_templates_name() {
        let container = wire::Container {
            container_id: "0123456789abcdef".into(),
            labels: [("a.b".to_owned(), "x,y".to_owned())].into(),
            mounts: vec!["data".into(), "/srv/a/very/long/path".into()],
            networks: vec!["bridge".into(), "web".into()],
            state: "created".into(),
            ..wire::Container::default()
        };
        let rows = [container_row(&container, "0B", Timestamp::default(), false)];
        for (format, want) in [
            ("{{.Label \"a.b\"}}|{{.Label \"none\"}}|{{.Labels}}", "x,y||a.b=x,y\n"),
            ("{{.Mounts}} {{.LocalVolumes}} {{.Networks}} {{.Size}}", "data,/srv/a/very/lo… 1 bridge,web 0B\n"),
            ("table {{.Names}}\t{{.Label \"a.b\"}}", "NAMES     a.b\n          x,y\n"),
        ] {
            let shape = crate::render::listing::Shape { format: Some(format.into()), quiet: false };
            assert_eq!(CONTAINERS.render(&shape, &rows).as_deref(), Ok(want), "{format}");
        }
        let shape = crate::render::listing::Shape { format: Some("json".into()), quiet: false };
        assert!(!CONTAINERS.render(&shape, &rows).unwrap().contains("\"Label\""));
    }
}
