//! `orch pause|unpause|stats|top|diff`, and `orch container update`.

use std::{
    collections::{HashMap, HashSet},
    io::Write as _,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use orch_model::size;
use orch_proto::{paths::Paths, wire};
use tonic::{Code, Status};

use super::{
    container_control::{Named, named},
    for_each, run,
};
use crate::{
    api::{Worker, explain, worker},
    flags::quantity,
    render::{
        listing::{Listing, Row, Shape, align, row},
        short_id, time,
    },
};

/// Between two looks at the counters, from which the use of processors follows.
const STATS_INTERVAL: Duration = Duration::from_secs(1);
/// How often containers are listed again because one of them went before it was looked at.
const STATS_TRIES: u32 = 5;
/// Clears the screen and goes to its start, as Docker does between two tables.
const CLEAR: &str = "\x1b[2J\x1b[H";

pub(crate) async fn pause(args: Named, paused: bool, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    for_each(&args.containers, async |reference| {
        let outcome = match paused {
            true => worker.pause_container(named(reference)).await,
            false => worker.unpause_container(named(reference)).await,
        };
        outcome.map_err(explain)?;
        println!("{reference}");
        Ok(())
    })
    .await
}

#[derive(Debug, Args)]
pub(crate) struct UpdateContainerArgs {
    /// Number of CPUs
    #[arg(long, value_name = "CPUS", value_parser = quantity::nano_cpus)]
    cpus: Option<u64>,
    /// CPU shares (relative weight)
    #[arg(short = 'c', long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "CPUS")]
    cpuset_cpus: Option<String>,
    /// Memory limit
    #[arg(short, long, value_name = "BYTES", value_parser = quantity::bytes)]
    memory: Option<u64>,
    /// Memory soft limit
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes)]
    memory_reservation: Option<u64>,
    /// Swap limit equal to memory plus swap: -1 to enable unlimited swap
    #[arg(long, value_name = "BYTES", value_parser = run::swap, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Tune container pids limit (0 or -1: unlimited)
    #[arg(long, value_name = "N", value_parser = quantity::processes, allow_hyphen_values = true)]
    pids_limit: Option<u64>,
    /// Restart policy to apply when a container exits
    #[arg(long, value_name = "POLICY", value_parser = run::restart)]
    restart: Option<run::Restart>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) async fn update(args: UpdateContainerArgs, paths: &Paths) -> anyhow::Result<()> {
    let request = wire::UpdateContainerRequest {
        reference: String::new(),
        nano_cpus: args.cpus,
        memory_bytes: args.memory,
        pids: args.pids_limit,
        restart: args.restart.map(|run::Restart(restart)| restart),
        cpu_shares: args.cpu_shares,
        cpuset_cpus: args.cpuset_cpus,
        memory_swap_bytes: args.memory_swap,
        memory_reservation_bytes: args.memory_reservation,
    };
    if request == wire::UpdateContainerRequest::default() {
        bail!("you must provide one or more flags when using this command");
    }
    let mut worker = worker(paths).await?;
    for_each(&args.containers, async |reference| {
        let request = wire::UpdateContainerRequest { reference: reference.into(), ..request.clone() };
        worker.update_container(request).await.map_err(explain)?;
        println!("{reference}");
        Ok(())
    })
    .await
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Disable streaming stats and only pull the first result
    #[arg(long)]
    no_stream: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Format output: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

const STATS: Listing<'static> = Listing {
    default: "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
    headings: &[
        ("Container", "CONTAINER"),
        ("ID", "CONTAINER ID"),
        ("Name", "NAME"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("MemPerc", "MEM %"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
    ],
    quiet: "ID",
};

/// Tasks' containers too: each under the name that `orch ps` shows.
pub(crate) async fn stats(args: StatsArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    let mut before = counters(&args, &mut worker).await.map_err(explain)?;
    let shape = Shape { format: args.format.clone(), quiet: false };
    loop {
        tokio::time::sleep(STATS_INTERVAL).await;
        let now = match counters(&args, &mut worker).await {
            // The others go on.
            Err(error) if error.code() == Code::NotFound => each_counters(&args, &mut worker).await.map_err(explain)?,
            now => now.map_err(explain)?,
        };
        let earlier: HashMap<&str, &wire::ContainerStats> =
            before.iter().map(|stats| (stats.container_id.as_str(), stats)).collect();
        let row = |(n, now): (usize, &wire::ContainerStats)| {
            let asked = args.containers.get(n).map(String::as_str);
            stats_row(asked, now, earlier.get(now.container_id.as_str()), args.no_trunc)
        };
        let rows: Vec<Row> = now.iter().enumerate().map(row).collect();
        let text = STATS.render(&shape, &rows)?;
        let mut out = std::io::stdout().lock();
        if !args.no_stream {
            write!(out, "{CLEAR}")?;
        }
        write!(out, "{text}")?;
        out.flush()?;
        if args.no_stream {
            return Ok(());
        }
        before = now;
    }
}

/// In the order of the names that were given.
async fn counters(args: &StatsArgs, worker: &mut Worker) -> Result<Vec<wire::ContainerStats>, Status> {
    if !args.all || !args.containers.is_empty() {
        let references = args.containers.clone();
        return Ok(worker.container_stats(wire::ContainerReferences { references }).await?.into_inner().containers);
    }
    let mut tries = 0;
    loop {
        let all = worker.list_containers(wire::Empty {}).await?.into_inner().containers;
        let references: Vec<String> = all.into_iter().map(|container| container.container_id).collect();
        if references.is_empty() {
            return Ok(Vec::new());
        }
        match worker.container_stats(wire::ContainerReferences { references }).await {
            // One was removed since.
            Err(error) if error.code() == Code::NotFound && tries < STATS_TRIES => tries += 1,
            list => return Ok(list?.into_inner().containers),
        }
    }
}

/// One by one, where one is not there any more: nothing is known of that.
async fn each_counters(args: &StatsArgs, worker: &mut Worker) -> Result<Vec<wire::ContainerStats>, Status> {
    let mut all = Vec::new();
    for name in &args.containers {
        let references = vec![name.clone()];
        match worker.container_stats(wire::ContainerReferences { references }).await {
            Ok(list) => all.extend(list.into_inner().containers),
            Err(error) if error.code() == Code::NotFound => all.push(wire::ContainerStats::default()),
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// `asked`: the name that was given, if one was.
#[allow(clippy::cast_precision_loss)] // Shown with two decimals.
fn stats_row(
    asked: Option<&str>,
    now: &wire::ContainerStats,
    before: Option<&&wire::ContainerStats>,
    no_trunc: bool,
) -> Row {
    let id = if no_trunc { now.container_id.as_str() } else { short_id(&now.container_id) };
    if id.is_empty() {
        return unknown_stats(asked.unwrap_or_default());
    }
    let percent = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 };
    let cpu = before.map_or(0.0, |before| {
        percent(now.cpu_ns.saturating_sub(before.cpu_ns), now.at_ns.saturating_sub(before.at_ns))
    });
    let pair = |a: u64, b: u64| format!("{} / {}", size::human(a), size::human(b));
    let memory = format!("{} / {}", size::human_binary(now.memory_bytes), size::human_binary(now.memory_limit_bytes));
    row([
        ("Container", asked.unwrap_or(id).into()),
        ("ID", id.into()),
        ("Name", now.name.as_str().into()),
        ("CPUPerc", format!("{cpu:.2}%").into()),
        ("MemUsage", memory.into()),
        ("MemPerc", format!("{:.2}%", percent(now.memory_bytes, now.memory_limit_bytes)).into()),
        ("NetIO", pair(now.net_rx_bytes, now.net_tx_bytes).into()),
        ("BlockIO", pair(now.block_read_bytes, now.block_write_bytes).into()),
        ("PIDs", now.pids.to_string().into()),
    ])
}

/// Of a container that is gone, as Docker shows it.
fn unknown_stats(asked: &str) -> Row {
    let none = |name: &'static str| (name, "--".into());
    row([
        ("Container", asked.into()),
        none("ID"),
        none("Name"),
        none("CPUPerc"),
        ("MemUsage", "-- / --".into()),
        none("MemPerc"),
        none("NetIO"),
        none("BlockIO"),
        none("PIDs"),
    ])
}

#[derive(Debug, Args)]
pub(crate) struct OneContainer {
    container: String,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    container: String,
    /// Options of this node's ps, as `-o pid,cmd` or `aux`; its output must have the column PID
    #[arg(value_name = "PS OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// As `ps -ef` has it; numbers are the node's.
pub(crate) async fn top(args: TopArgs, paths: &Paths) -> anyhow::Result<()> {
    let list = worker(paths).await?.container_processes(named(&args.container)).await.map_err(explain)?.into_inner();
    if !args.options.is_empty() {
        let pids = list.processes.iter().map(|process| process.pid.to_string()).collect();
        return ps(&args.options, &pids).await;
    }
    let now_ms = time::now().unix_ms;
    let line = |process: &wire::Process| {
        let lived_ms = now_ms.saturating_sub(process.start_ms).max(1);
        let tty = if process.tty.is_empty() { "?" } else { &process.tty };
        let seconds = process.cpu_ms / 1000;
        let spent = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let busy = (process.cpu_ms * 100 / lived_ms).min(99);
        let start = time::clock(process.start_ms);
        let user = user_name(process.uid);
        format!("{user}\t{}\t{}\t{busy}\t{start}\t{tty}\t{spent}\t{}", process.pid, process.parent, process.command)
    };
    let heading = "UID\tPID\tPPID\tC\tSTIME\tTTY\tTIME\tCMD".to_owned();
    let lines: Vec<String> = [heading].into_iter().chain(list.processes.iter().map(line)).collect();
    print!("{}", align(&lines));
    Ok(())
}

/// What the node's `ps` says of these processes.
async fn ps(options: &[String], pids: &HashSet<String>) -> anyhow::Result<()> {
    let output = tokio::process::Command::new("ps").args(options).output().await;
    let output =
        output.context("cannot run ps, which options of `orch top` are for: install procps, or leave them out")?;
    if !output.status.success() {
        bail!("ps refused {}: {}", options.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = lines_of(&text, pids);
    let lines = lines.with_context(|| format!("ps {} has no column PID: add -o pid", options.join(" ")))?;
    Ok(writeln!(std::io::stdout(), "{}", lines.join("\n"))?)
}

/// The heading and the lines of these processes; `None` without a column for them.
fn lines_of<'a>(table: &'a str, pids: &HashSet<String>) -> Option<Vec<&'a str>> {
    let mut lines = table.lines();
    let heading = lines.next()?;
    let column = heading.split_whitespace().position(|title| title == "PID")?;
    let is_one = |line: &&str| line.split_whitespace().nth(column).is_some_and(|pid| pids.contains(pid));
    Some([heading].into_iter().chain(lines.filter(is_one)).collect())
}

/// As the node calls the user, whose numbers these are.
fn user_name(uid: u32) -> String {
    let found = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    found.map_or_else(|| uid.to_string(), |user| user.name)
}

pub(crate) async fn diff(args: OneContainer, paths: &Paths) -> anyhow::Result<()> {
    let list = worker(paths).await?.container_changes(named(&args.container)).await.map_err(explain)?.into_inner();
    for change in list.changes {
        println!("{} {}", change.kind, change.path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateContainerArgs,
    }

    #[test]
    fn a_limit_of_processes_is_taken_away_as_with_docker() {
        for (limit, pids) in [("-1", 0), ("0", 0), ("5", 5)] {
            let args = Line::try_parse_from(["update", "--pids-limit", limit, "web"]).unwrap().args;
            assert_eq!((args.pids_limit, args.containers), (Some(pids), vec!["web".to_owned()]), "{limit}");
        }
    }

    #[test]
    fn of_what_ps_says_a_containers_lines_are_shown() {
        let pids = ["12", "7"].map(String::from).into();
        let table = "USER     PID CMD\nroot       1 init 7\nroot       7 sh -c x\nwww       12 nginx\n";
        assert_eq!(lines_of(table, &pids).unwrap(), ["USER     PID CMD", "root       7 sh -c x", "www       12 nginx"]);
        assert_eq!(lines_of("CMD\nsh\n", &pids), None);
        assert_eq!(lines_of("", &pids), None);
    }

    /// As Docker's, whose readers expect nothing else.
    #[test]
    fn what_stats_shows_is_text() {
        let now = wire::ContainerStats { pids: 3, container_id: "0".repeat(64), ..wire::ContainerStats::default() };
        let gone = wire::ContainerStats::default();
        for (asked, now, container, pids) in
            [(None, &now, "000000000000", "3"), (Some("web"), &now, "web", "3"), (Some("web"), &gone, "web", "--")]
        {
            let row = serde_json::to_value(stats_row(asked, now, None, false)).unwrap();
            let row = row.as_object().unwrap();
            assert_eq!((&row["Container"], &row["PIDs"]), (&container.into(), &pids.into()));
            assert_eq!(row.len(), STATS.headings.len());
            assert!(row.values().all(serde_json::Value::is_string), "{row:?}");
        }
    }
}
