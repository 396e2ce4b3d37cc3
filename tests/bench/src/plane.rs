//! The control plane alone: thousands of nodes without containers, each with a session of its own over TLS, and one
//! service that is scaled from nothing to a hundred thousand tasks.
//!
//! The agents report a task as running as soon as they are given it; a task counts as running when the manager has
//! committed that report. Manager and agents share the machine.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use orch_model::{
    Annotations,
    service::{EndpointSpec, ServiceMode, ServiceSpec, TaskSpec},
};
use orch_proto::{
    conv::ToProto,
    wire::{self, control_client::ControlClient},
};
use tokio::time::sleep;

use crate::{agents::Agents, managers::Managers};

const MESSAGE_BYTES: usize = 512 << 20;
const LIMIT: Duration = Duration::from_secs(200);
/// After everything runs: history is written, tables grow quiet.
const SETTLE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long, default_value = "target/release/orch")]
    orch: PathBuf,
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    #[arg(long, default_value_t = 100_000)]
    tasks: u64,
    #[arg(long, default_value_t = 1)]
    managers: usize,
    /// Seconds for which the idle leader is watched
    #[arg(long, default_value_t = 30)]
    idle: u64,
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    raise_file_limit()?;
    let dir = tempfile::Builder::new().prefix("orch-bench").tempdir_in(&options.dir)?;
    let managers = Managers::start(&options.orch, dir.path(), options.managers, Duration::from_secs(5)).await?;
    let leader = managers.leader().await?;
    eprintln!("manager {}", managers.members[leader].process()?.id());
    let joining = Instant::now();
    let agents = Agents::start(&managers, options.nodes).await?;
    eprintln!("{} nodes joined after {:.1?}", options.nodes, joining.elapsed());
    let channel = managers.connect(leader).await?;
    let mut control = ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    until_ready(&mut control, options.nodes).await?;
    eprintln!("all nodes are ready after {:.1?}", joining.elapsed());

    println!("| {} nodes, {} tasks, {} manager(s) | |\n|---|---|", options.nodes, options.tasks, options.managers);
    let empty = idle(&managers, leader, options).await?;
    println!("| idle leader, no tasks | {:.1} % of a core |", empty * 100.0);
    let created = control.create(wire::CreateRequest { spec: Some(service(0)) }).await?.into_inner();
    let before = (managers.members[leader].process()?.cpu_split()?, own_cpu());
    let start = Instant::now();
    scale(&mut control, created, options.tasks).await?;
    let wanted = usize::try_from(options.tasks)?;
    let mut shown = Instant::now();
    while agents.running() < wanted {
        anyhow::ensure!(start.elapsed() < LIMIT, "only {} of {wanted} tasks run", agents.running());
        if shown.elapsed() > Duration::from_secs(2) {
            eprintln!("{} of {wanted} tasks run after {:.1?}", agents.running(), start.elapsed());
            shown = Instant::now();
        }
        sleep(POLL).await;
    }
    let took = start.elapsed();
    let after = (managers.members[leader].process()?.cpu_split()?, own_cpu());
    report(options, took, before, after);
    sleep(SETTLE).await;
    let busy = idle(&managers, leader, options).await?;
    println!("| idle leader, {} tasks | {:.1} % of a core |", options.tasks, busy * 100.0);
    let bytes = managers.members[leader].process()?.resident_bytes()?;
    println!("| resident memory of the leader | {} MB |", bytes / 1_000_000);
    println!("| nodes that counted as down meanwhile | {} |", managers.count_in_log(leader, "counts as down")?);
    until_ready(&mut control, options.nodes).await
}

type Cpu = (f64, f64);

#[allow(clippy::cast_precision_loss)] // Counts of tasks.
fn report(options: &Options, took: Duration, before: (Cpu, Cpu), after: (Cpu, Cpu)) {
    let tasks = options.tasks as f64;
    let spent = |a: Cpu, b: Cpu| (b.0 - a.0, b.1 - a.1);
    let per_task = |seconds: f64| seconds * 1e6 / tasks;
    let (manager, agents) = (spent(before.0, after.0), spent(before.1, after.1));
    println!("| 0 to all running | {:.2} s, {:.0} tasks/s |", took.as_secs_f64(), tasks / took.as_secs_f64());
    println!(
        "| CPU of the manager per task | {:.0} µs ({:.0} user, {:.0} system) |",
        per_task(manager.0 + manager.1),
        per_task(manager.0),
        per_task(manager.1)
    );
    println!("| CPU of the agents per task | {:.0} µs |", per_task(agents.0 + agents.1));
}

fn raise_file_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}

/// Share of a core that the leader uses.
async fn idle(managers: &Managers, leader: usize, options: &Options) -> anyhow::Result<f64> {
    let process = managers.members[leader].process()?;
    let (before, start) = (process.cpu_seconds()?, Instant::now());
    sleep(Duration::from_secs(options.idle)).await;
    Ok((process.cpu_seconds()? - before) / start.elapsed().as_secs_f64())
}

/// User and system time of this process, in seconds.
fn own_cpu() -> Cpu {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return (0.0, 0.0) };
    #[allow(clippy::cast_precision_loss)] // Seconds.
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    (seconds(usage.user_time()), seconds(usage.system_time()))
}

async fn until_ready(control: &mut ControlClient<tonic::transport::Channel>, nodes: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let request = wire::ListRequest { kind: wire::Kind::Node.into(), filters: None };
        let listed = control.list(request).await?.into_inner().objects;
        let is_ready = |object: &&wire::Object| match &object.object {
            Some(wire::object::Object::Node(node)) => {
                node.status.as_ref().is_some_and(|status| status.state() == wire::NodeState::Ready)
            }
            _ => false,
        };
        let ready = listed.iter().filter(is_ready).count();
        if ready >= nodes {
            return Ok(());
        }
        anyhow::ensure!(start.elapsed() < LIMIT, "only {ready} of {nodes} nodes are ready");
        sleep(Duration::from_millis(500)).await;
    }
}

fn service(replicas: u64) -> wire::Spec {
    let mut task = TaskSpec::default();
    task.container.image = "registry.example.org/shop/web:1.2".to_owned();
    let spec = ServiceSpec {
        annotations: Annotations { name: "web".to_owned(), ..Annotations::default() },
        task,
        mode: ServiceMode::Replicated { replicas },
        update: None,
        rollback: None,
        endpoint: EndpointSpec::default(),
        depends_on: Vec::new(),
    };
    wire::Spec { spec: Some(wire::spec::Spec::Service(spec.to_proto())) }
}

async fn scale(
    control: &mut ControlClient<tonic::transport::Channel>,
    created: wire::CreateResponse,
    replicas: u64,
) -> anyhow::Result<()> {
    let Some(wire::object::Object::Service(service_)) = created.object.and_then(|object| object.object) else {
        anyhow::bail!("not a service");
    };
    let request = wire::UpdateRequest {
        kind: wire::Kind::Service.into(),
        id: service_.id,
        version: service_.meta.map_or(0, |meta| meta.version),
        spec: Some(service(replicas)),
        ..wire::UpdateRequest::default()
    };
    control.update(request).await?;
    Ok(())
}
