//! A large state in one manager's process: how much memory it takes, how fast it is listed, written, saved and loaded.
//!
//! Services are created through the control API; agents without workers report their tasks as running.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use orch_model::{
    Annotations,
    service::{EndpointSpec, ServiceMode, ServiceSpec, TaskSpec},
};
use orch_proto::{
    conv::ToProto,
    wire::{self, control_client::ControlClient},
};
use tokio::{task::JoinSet, time::sleep};
use tonic::transport::Channel;

use crate::{agents::Agents, load::median, managers::Managers, raft::create_config};

/// Agents are slow on a loaded machine; nobody is to be taken for dead.
const HEARTBEAT: Duration = Duration::from_secs(30);
const CREATORS: usize = 16;
const LOAD_LIMIT: Duration = Duration::from_secs(1200);
const LISTS: usize = 50;
const VALUE_BYTES: usize = 512;
const SETTLE: Duration = Duration::from_secs(3);
/// Writes go on until a snapshot was made, but not for ever.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(300);
const MESSAGE_BYTES: usize = 256 << 20;

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long, default_value = "target/release/orch")]
    orch: PathBuf,
    #[arg(long, default_value_t = 10_000)]
    services: u64,
    /// Tasks of each service
    #[arg(long, default_value_t = 10)]
    replicas: u64,
    #[arg(long, default_value_t = 20)]
    nodes: usize,
    #[arg(long, default_value_t = 1)]
    managers: usize,
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("orch-bench").tempdir_in(&options.dir)?;
    let mut managers = Managers::start(&options.orch, dir.path(), options.managers, HEARTBEAT).await?;
    let agents = Agents::start(&managers, options.nodes).await?;
    let leader = managers.leader().await?;
    let channel = managers.connect(leader).await?;
    let tasks = options.services * options.replicas;
    let took = load(&channel, options, &agents).await?;
    println!("| | |\n|---|---|");
    println!(
        "| {} services, {tasks} tasks: created and all running on {} nodes | {took:.1?} |",
        options.services,
        agents.count()
    );
    print_memory("resident memory of the leader, loaded", &managers, leader)?;
    let (median_ms, worst_ms, bytes) = lists(&channel, options).await?;
    println!(
        "| list of one service's tasks, median (worst) of {LISTS} | {median_ms:.1} ms ({worst_ms:.1} ms), {bytes} bytes |"
    );
    let quiet = write_latencies(&channel, 300).await?;
    println!("| writes, one client: p50, p99, worst | {} |", summary(&quiet));
    let during = during_snapshot(&channel, dir.path(), leader).await?;
    println!("| the same while a snapshot is made | {} |", summary(&during));
    // The state of the snapshot before is let go when this one is on the disk.
    sleep(SETTLE).await;
    print_memory("resident memory of the leader, after the snapshot", &managers, leader)?;
    let restart = restart(&mut managers, leader, options).await?;
    println!("| kill -9 of the leader, started again: until it serves the whole state | {restart:.1?} |");
    print_memory("resident memory, started again", &managers, leader)?;
    Ok(())
}

async fn load(channel: &Channel, options: &Options, agents: &Agents) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut creators = JoinSet::new();
    for creator in 0..CREATORS as u64 {
        let (channel, services, replicas) = (channel.clone(), options.services, options.replicas);
        creators.spawn(async move {
            for number in (creator..services).step_by(CREATORS) {
                let request = wire::CreateRequest { spec: Some(service(number, replicas)) };
                ControlClient::new(channel.clone()).create(request).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = creators.join_next().await {
        done??;
    }
    eprintln!("services created after {:.1?}", start.elapsed());
    let wanted = usize::try_from(options.services * options.replicas)?;
    let mut shown = Instant::now();
    while agents.running() < wanted {
        anyhow::ensure!(start.elapsed() < LOAD_LIMIT, "only {} of {wanted} tasks run", agents.running());
        if shown.elapsed() > Duration::from_secs(10) {
            eprintln!("{} of {wanted} tasks run after {:.0?}", agents.running(), start.elapsed());
            shown = Instant::now();
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(start.elapsed())
}

/// What a web service of a stack looks like.
fn service(number: u64, replicas: u64) -> wire::Spec {
    let mut task = TaskSpec::default();
    task.container.image = "registry.example.org/shop/web:1.2".to_owned();
    task.container.env = (0..6).map(|i| format!("SETTING_{i}=value number {i} of service {number}")).collect();
    let labels = [("com.docker.stack.namespace".to_owned(), format!("shop{}", number / 10))];
    let spec = ServiceSpec {
        annotations: Annotations { name: format!("shop{}_web{number}", number / 10), labels: labels.into() },
        task,
        mode: ServiceMode::Replicated { replicas },
        update: None,
        rollback: None,
        endpoint: EndpointSpec::default(),
        depends_on: Vec::new(),
    };
    wire::Spec { spec: Some(wire::spec::Spec::Service(spec.to_proto())) }
}

fn print_memory(what: &str, managers: &Managers, number: usize) -> anyhow::Result<()> {
    let bytes = managers.members[number].process()?.resident_bytes()?;
    println!("| {what} | {} MB |", bytes / 1_000_000);
    Ok(())
}

/// Median and worst time in milliseconds, and the size of one answer.
async fn lists(channel: &Channel, options: &Options) -> anyhow::Result<(f64, f64, usize)> {
    let mut client = ControlClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
    let (mut times, mut bytes) = (Vec::new(), 0);
    for number in 0..LISTS as u64 {
        let service = number * options.services / LISTS as u64;
        let reference = format!("shop{}_web{service}", service / 10);
        let request = wire::GetRequest { kind: wire::Kind::Service.into(), reference };
        let found = client.get(request).await?.into_inner();
        let Some(wire::object::Object::Service(found)) = found.object else { anyhow::bail!("not a service") };
        let filters = Some(wire::Filters { service_ids: vec![found.id], ..wire::Filters::default() });
        let start = Instant::now();
        let answer = client.list(wire::ListRequest { kind: wire::Kind::Task.into(), filters }).await?.into_inner();
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        anyhow::ensure!(answer.objects.len() as u64 == options.replicas, "{} tasks", answer.objects.len());
        bytes = prost::Message::encoded_len(&answer);
    }
    Ok((median(times.iter().copied()), times.into_iter().fold(0.0, f64::max), bytes))
}

async fn write_latencies(channel: &Channel, count: usize) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..count {
        times.push(timed_write(channel).await?);
    }
    Ok(times)
}

async fn timed_write(channel: &Channel) -> anyhow::Result<Duration> {
    let start = Instant::now();
    create_config(channel.clone(), format!("write-{}", rand::random::<u64>()), VALUE_BYTES).await?;
    Ok(start.elapsed())
}

/// Writes with one timed client, and others that bring the next snapshot nearer, until one was made.
async fn during_snapshot(channel: &Channel, dir: &Path, leader: usize) -> anyhow::Result<Vec<Duration>> {
    let folder = dir.join(format!("m{leader}/root/manager/raft/snapshots"));
    let before = newest(&folder);
    let (start, mut times, mut began) = (Instant::now(), Vec::new(), None);
    loop {
        let at = Instant::now();
        times.push((at, timed_write(channel).await?));
        let unfinished = has_unfinished(&folder);
        if unfinished && began.is_none() {
            began = Some(at);
        }
        if newest(&folder) != before && !unfinished {
            break;
        }
        anyhow::ensure!(start.elapsed() < SNAPSHOT_LIMIT, "no snapshot was made");
    }
    let began = began.context("the snapshot was made unseen")?;
    eprintln!("the snapshot took {:.1?} and {} bytes", began.elapsed(), newest(&folder).map_or(0, |(_, bytes)| bytes));
    Ok(times.into_iter().filter(|(at, _)| *at >= began).map(|(_, took)| took).collect())
}

fn newest(folder: &Path) -> Option<(String, u64)> {
    let names = fs::read_dir(folder).ok()?.flatten();
    let finished = names.filter(|e| e.path().extension().is_some_and(|x| x == "snapshot"));
    finished.map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().map_or(0, |m| m.len()))).max()
}

fn has_unfinished(folder: &Path) -> bool {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    names.into_iter().any(|e| e.path().extension().is_none_or(|x| x != "snapshot"))
}

/// Until it leads again and lists everything that it had.
async fn restart(managers: &mut Managers, number: usize, options: &Options) -> anyhow::Result<Duration> {
    managers.members[number].kill();
    let start = Instant::now();
    managers.launch(number)?;
    managers.serving(number).await?;
    loop {
        if let Ok(mut client) = managers.members[number].local().await {
            let name = format!("shop{}_web{}", (options.services - 1) / 10, options.services - 1);
            let request = wire::GetRequest { kind: wire::Kind::Service.into(), reference: name };
            if client.get(request).await.is_ok() {
                return Ok(start.elapsed());
            }
        }
        anyhow::ensure!(start.elapsed() < SNAPSHOT_LIMIT, "it does not serve again");
        sleep(Duration::from_millis(10)).await;
    }
}

fn summary(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
    let ms = |time: Option<&Duration>| time.map_or(f64::NAN, |t| t.as_secs_f64() * 1000.0);
    format!("{:.1} ms, {:.1} ms, {:.1} ms ({} writes)", ms(at(50)), ms(at(99)), ms(sorted.last()), sorted.len())
}
