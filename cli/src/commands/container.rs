//! `orch ps`: this node's containers.

use clap::Args;
use orch_model::{
    Timestamp,
    task::{TaskState, TaskStatus},
};
use orch_proto::{conv::FromProto, paths::Paths, wire};

use super::ListFlags;
use crate::{
    api::{explain, worker},
    render::{
        ellipsis,
        listing::{Listing, Row, row},
        short_id, time,
    },
};

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
    let filters = flags.filters(&["id", "name", "label", "status", "ancestor"])?;
    let mut worker = worker(paths).await?;
    let mut containers = worker.list_containers(wire::Empty {}).await.map_err(explain)?.into_inner().containers;
    containers.sort_by_key(|c| std::cmp::Reverse(c.created_at_ms));
    let limit = if args.latest { Some(1) } else { args.last };
    let all = args.all || limit.is_some() || flags_filter_status(&args);
    let now = time::now();
    let mut rows: Vec<Row> = Vec::new();
    for container in &containers {
        let status = container.status.clone().map(TaskStatus::from_proto).transpose()?;
        let state = state_word(status.as_ref());
        // A task that was given up before it had a container is in `service ps` only.
        let never_was = status.as_ref().is_some_and(|s| s.state == TaskState::Rejected && s.container.is_none());
        if !never_was
            && (all || state == "running")
            && filters.any("id", |id| container.container_id.starts_with(id))
            && filters.any("name", |part| container.name.contains(part))
            && filters.any("status", |word| word == state)
            && filters.any("ancestor", |image| container.image == image)
            && filters.labels("label", &container.labels)
        {
            rows.push(container_row(container, status.as_ref(), now, flags.no_trunc));
        }
    }
    rows.truncate(limit.unwrap_or(usize::MAX));
    Ok(CONTAINERS.print(&flags.shape(), &rows)?)
}

fn flags_filter_status(args: &PsArgs) -> bool {
    args.list.filter.iter().any(|filter| filter.starts_with("status="))
}

fn state_word(status: Option<&TaskStatus>) -> &'static str {
    match status.map(|s| s.state) {
        Some(TaskState::Running) => "running",
        Some(state) if state.is_terminal() => "exited",
        _ => "created",
    }
}

fn container_row(container: &wire::Container, status: Option<&TaskStatus>, now: Timestamp, no_trunc: bool) -> Row {
    let created = Timestamp::from_unix_ms(container.created_at_ms);
    let command = format!("{:?}", container.command.join(" "));
    let state = state_word(status);
    let since = status.map_or(created, |s| s.at);
    let exit_code = status.and_then(|s| s.container.as_ref()).and_then(|c| c.exit_code).unwrap_or_default();
    let words = match state {
        "running" => format!("Up {}", time::human(now.since(since)).to_lowercase().replace("about", "About")),
        "exited" => format!("Exited ({exit_code}) {}", time::ago(since, now)),
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
        ("State", state.into()),
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
