//! `orch logs TASK` and `orch service logs SERVICE|TASK`.

use std::{collections::HashMap, io::Write as _};

use clap::Args;
use orch_model::{node::Node, service::Service, task::Task};
use orch_proto::{paths::Paths, wire};
use tokio_stream::StreamExt as _;

use super::{container, node_names, service_names};
use crate::{
    api::{Api, Worker, explain},
    render::{
        short_id,
        time::{self, NANOS_PER_MILLI},
    },
};

#[derive(Debug, Clone, Args)]
pub(crate) struct LogFlags {
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, value_name = "TIME", value_parser = since, allow_hyphen_values = true)]
    since: Option<u64>,
    /// Show logs before a timestamp or relative time
    #[arg(long, value_name = "TIME", value_parser = since, allow_hyphen_values = true)]
    until: Option<u64>,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Show extra details provided to logs
    #[arg(long)]
    details: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    flags: LogFlags,
    /// Number of lines to show from the end of the logs, or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = tail, allow_hyphen_values = true)]
    tail: Tail,
    task: String,
}

/// How lines of several tasks are shown.
#[derive(Debug, Args)]
pub(crate) struct LinesArgs {
    #[command(flatten)]
    flags: LogFlags,
    /// Number of lines to show from the end of the logs, or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = strict_tail, allow_hyphen_values = true)]
    tail: Tail,
    /// Do not map IDs to names in output
    #[arg(long)]
    no_resolve: bool,
    /// Do not include task IDs in output
    #[arg(long)]
    no_task_ids: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Do not neatly format logs
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServiceLogsArgs {
    #[command(flatten)]
    lines: LinesArgs,
    #[arg(value_name = "SERVICE|TASK")]
    target: String,
}

#[derive(Debug, Args)]
pub(crate) struct StackLogsArgs {
    #[command(flatten)]
    lines: LinesArgs,
    stack: String,
}

#[derive(Debug, Clone, Copy)]
struct Tail(Option<u64>);

/// Docker's services refuse what its containers take for all.
fn strict_tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        count => count.parse().map(|n| Tail(Some(n))).map_err(|_| "expected a number of lines, or all".into()),
    }
}

/// As with Docker, whatever is no number of lines means all of them: `all`, `-1`.
#[allow(clippy::unnecessary_wraps)] // The shape that clap wants.
fn tail(text: &str) -> Result<Tail, String> {
    Ok(Tail(text.parse().ok()))
}

fn since(text: &str) -> Result<u64, String> {
    time::parse_since_ns(text, time::now())
}

impl LogFlags {
    fn options(&self, tail: Tail) -> wire::LogOptions {
        wire::LogOptions {
            follow: self.follow,
            tail: tail.0,
            since_ms: self.since.map(|at| at / NANOS_PER_MILLI),
            until_ms: self.until.map(|at| at / NANOS_PER_MILLI),
            stdout: true,
            stderr: true,
            since_unix_ns: self.since,
            until_unix_ns: self.until,
        }
    }
}

/// One task's output as it was written.
pub(crate) async fn logs(args: LogsArgs, paths: &Paths) -> anyhow::Result<()> {
    let request = wire::LogsRequest {
        tasks: vec![args.task.clone()],
        services: Vec::new(),
        options: Some(args.flags.options(args.tail)),
    };
    let of_managers = async |mut api: Api| api.control.logs(request.clone()).await;
    let of_worker = async |mut worker: Worker| worker.logs(request.clone()).await;
    let mut lines = container::ask(paths, &args.task, of_managers, of_worker).await?.into_inner();
    let mut missing = 0;
    while let Some(line) = lines.next().await {
        let line = line.map_err(explain)?;
        missing += usize::from(!line.notice.is_empty());
        write_line(&line, "", &args.flags)?;
    }
    all_was_there(missing, &args.flags)
}

/// A script that reads what was written has to know that it has not all of it.
fn all_was_there(missing: usize, flags: &LogFlags) -> anyhow::Result<()> {
    // Of tasks that are followed it is told what is waited for.
    if missing > 0 && !flags.follow {
        let tasks = if missing == 1 { "a task" } else { &format!("{missing} tasks") };
        anyhow::bail!("the output of {tasks} is missing, for the reason above");
    }
    Ok(())
}

pub(crate) async fn service_logs(args: ServiceLogsArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let service = api.get_optional::<Service>(&args.target).await?;
    let (services, tasks) = match &service {
        Some(service) => (vec![service.id.to_string()], Vec::new()),
        None => (Vec::new(), vec![args.target.clone()]),
    };
    let request = wire::LogsRequest { tasks, services, options: Some(args.lines.flags.options(args.lines.tail)) };
    let lines = match api.control.logs(request).await {
        Ok(lines) => lines.into_inner(),
        Err(status) if service.is_none() && status.code() == tonic::Code::NotFound => {
            anyhow::bail!("no such task or service: {}", args.target)
        }
        Err(status) => return Err(explain(status)),
    };
    print(&mut api, lines, &args.lines).await
}

/// Of all services of a stack.
pub(crate) async fn stack_logs(args: StackLogsArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let services = super::stack::services_of(&mut api, &args.stack).await?;
    let services = services.iter().map(|service| service.id.to_string()).collect();
    let request =
        wire::LogsRequest { tasks: Vec::new(), services, options: Some(args.lines.flags.options(args.lines.tail)) };
    let lines = api.control.logs(request).await.map_err(explain)?.into_inner();
    print(&mut api, lines, &args.lines).await
}

async fn print(api: &mut Api, mut lines: tonic::Streaming<wire::LogLine>, args: &LinesArgs) -> anyhow::Result<()> {
    let mut prefixes = Prefixes::load(api, args).await?;
    let mut missing = 0;
    while let Some(line) = lines.next().await {
        let line = line.map_err(explain)?;
        missing += usize::from(!line.notice.is_empty());
        let prefix = if args.raw { String::new() } else { prefixes.of(api, &line.task_id).await? };
        write_line(&line, &prefix, &args.flags)?;
    }
    all_was_there(missing, &args.flags)
}

/// `web.1.abc@n1    | `, padded so that the bars are below each other.
struct Prefixes {
    nodes: HashMap<String, String>,
    services: HashMap<String, String>,
    known: HashMap<String, String>,
    no_resolve: bool,
    no_task_ids: bool,
    no_trunc: bool,
}

impl Prefixes {
    async fn load(api: &mut Api, args: &LinesArgs) -> anyhow::Result<Self> {
        Ok(Self {
            nodes: node_names(&api.all::<Node>().await?),
            services: service_names(&api.all::<Service>().await?),
            known: HashMap::new(),
            no_resolve: args.no_resolve,
            no_task_ids: args.no_task_ids,
            no_trunc: args.no_trunc,
        })
    }

    async fn of(&mut self, api: &mut Api, task_id: &str) -> anyhow::Result<String> {
        if let Some(prefix) = self.known.get(task_id) {
            return Ok(prefix.clone());
        }
        let prefix = match api.get_optional::<Task>(task_id).await? {
            Some(task) => self.make(&task),
            None => format!("{task_id}    | "),
        };
        self.known.insert(task_id.to_owned(), prefix.clone());
        Ok(prefix)
    }

    fn make(&self, task: &Task) -> String {
        let service = self.services.get(task.service.as_str());
        let service = service.map_or(task.service_annotations.name.as_str(), String::as_str);
        let node = task.node.as_ref().map(|n| n.as_str()).unwrap_or_default();
        let hostname = self.nodes.get(node).filter(|_| !self.no_resolve).map_or(node, String::as_str);
        let slot = if task.slot == 0 { node.to_owned() } else { task.slot.to_string() };
        let service = if self.no_resolve { task.service.as_str() } else { service };
        let mut name = format!("{service}.{slot}");
        if !self.no_task_ids {
            let id = task.id.as_str();
            name = format!("{name}.{}", if self.no_trunc { id } else { short_id(id) });
        }
        // As wide as slot 999, so that scaling does not move the bar.
        let padding = 3_usize.saturating_sub(if task.slot == 0 { 3 } else { slot.len() });
        format!("{name}@{hostname}{}    | ", " ".repeat(padding))
    }
}

/// `a=1,b=2 `, by name; a lone space without any, as Docker has it.
fn details(line: &wire::LogLine) -> String {
    let mut pairs: Vec<String> = line.details.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.sort_unstable();
    format!("{} ", pairs.join(","))
}

fn write_line(line: &wire::LogLine, prefix: &str, flags: &LogFlags) -> std::io::Result<()> {
    if !line.notice.is_empty() {
        remark!("{}", line.notice);
        return Ok(());
    }
    let stamp = if flags.timestamps { format!("{} ", time::rfc3339_nanos(line.at_unix_ns)) } else { String::new() };
    let mut out: Box<dyn std::io::Write> =
        if line.stderr { Box::new(std::io::stderr().lock()) } else { Box::new(std::io::stdout().lock()) };
    out.write_all(stamp.as_bytes())?;
    out.write_all(prefix.as_bytes())?;
    if flags.details {
        out.write_all(details(line).as_bytes())?;
    }
    out.write_all(&line.data)?;
    if !prefix.is_empty() && !line.data.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    out.flush()
}
