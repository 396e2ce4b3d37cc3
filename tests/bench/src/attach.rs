//! The network daemon alone, in a namespace: how long it takes to attach tasks and to take in a change of backends.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use ipnetwork::IpNetwork;
use orch_model::{
    NetworkId, NodeId, ServiceId, TaskId,
    assignment::{Assignment, EndpointItem, NetworkItem, Peer, ServiceEndpointItem},
};
use orch_proto::{
    conv::ToProto as _,
    paths::Paths,
    transport,
    wire::{AttachTaskRequest, DesiredNetworks, DnsConfig, TaskAttachment, TaskRequest, netd_client::NetdClient},
};
use tonic::transport::Channel;

use crate::process::Process;

const DATA_PATH_PORT: u16 = 4789;
const SUBNET: &str = "10.90.0.0/16";
const NODE: u64 = 1;
const OTHER_NODE: u64 = 2;
/// Between changes.
const CHANGE_PAUSE: Duration = Duration::from_millis(150);
/// The service whose backends change, on the other node.
const CHANGING: u64 = 1;
/// The one of the tasks here.
const HERE: u64 = 2;
const START_DEADLINE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The program under test
    #[arg(long, default_value = "target/release/orch")]
    orch: PathBuf,
    /// Tasks on the node
    #[arg(long, default_value_t = 100)]
    tasks: u16,
    /// Fresh daemons
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Changes of backends in each round
    #[arg(long, default_value_t = 40)]
    changes: u16,
}

/// A namespace with an address, and a daemon in it.
struct Node {
    name: String,
    netd: Option<Process>,
    dir: tempfile::TempDir,
}

impl Node {
    fn start(options: &Options) -> anyhow::Result<Self> {
        let mut node = Self { name: format!("orchbench{}", std::process::id()), netd: None, dir: tempfile::tempdir()? };
        ip(&["netns", "add", &node.name])?;
        for args in [
            &["link", "set", "lo", "up"][..],
            &["link", "add", "u0", "type", "bridge"],
            &["addr", "add", "10.91.0.1/24", "dev", "u0"],
            &["link", "set", "u0", "up"],
        ] {
            ip(&[&["-n", &node.name], args].concat())?;
        }
        let paths = node.paths();
        std::fs::create_dir_all(&paths.run)?;
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &node.name])
            .arg(std::fs::canonicalize(&options.orch).with_context(|| format!("no {}", options.orch.display()))?)
            .arg("netd")
            .env("ORCH_ROOT_DIR", &paths.root)
            .env("ORCH_RUN_DIR", &paths.run)
            .env("ORCH_ETC_DIR", &paths.etc);
        node.netd = Some(Process::start(&mut command, &node.dir.path().join("log"))?);
        Ok(node)
    }

    fn paths(&self) -> Paths {
        Paths::under(self.dir.path())
    }

    async fn connect(&self) -> anyhow::Result<NetdClient<Channel>> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match transport::unix_channel(&self.paths().netd_sock()).await {
                Ok(channel) => return Ok(NetdClient::new(channel)),
                Err(error) if Instant::now() > deadline => {
                    let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                    return Err(error).with_context(|| format!("netd does not answer: {log}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.netd = None;
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("ip").args(args).status().context("no `ip`: install iproute2")?;
    ensure!(status.success(), "ip {args:?}");
    Ok(())
}

/// What managers say of the network: the tasks here, and as many backends of a service elsewhere.
fn desired(tasks: u16, backends: u16, sequence: u64) -> anyhow::Result<DesiredNetworks> {
    let network = NetworkId::from_random(1);
    let subnet: IpNetwork = SUBNET.parse()?;
    let mut items = vec![Assignment::Network(NetworkItem {
        id: network.clone(),
        name: "ov".to_owned(),
        vni: 4097,
        subnets: vec![subnet],
        gateways: subnet.iter().nth(1).into_iter().collect(),
        internal: false,
        ingress: false,
        driver_options: BTreeMap::new(),
        data_path_port: DATA_PATH_PORT,
    })];
    for (node, last) in [(NODE, 1), (OTHER_NODE, 2)] {
        items.push(Assignment::Peer(Peer {
            node: NodeId::from_random(node.into()),
            index: last,
            data_addr: IpAddr::from([10, 91, 0, u8::try_from(last)?]),
            ingress_addr: None,
            weight: None,
            tunnel_key: None,
        }));
    }
    for (service, name) in [(CHANGING, "far"), (HERE, "near")] {
        items.push(Assignment::ServiceEndpoint(ServiceEndpointItem {
            network: network.clone(),
            service: ServiceId::from_random(service.into()),
            names: vec![name.to_owned()],
            vips: vec![addr(250, u16::try_from(service)?)],
            ports: vec![],
            declared: vec![],
            balance: None,
            prefer_local: false,
        }));
    }
    let endpoint = |service: u64, node: u64, task: TaskId, addr| {
        Assignment::Endpoint(EndpointItem {
            network: network.clone(),
            names: vec![format!("{task}")],
            task,
            service: ServiceId::from_random(service.into()),
            node: NodeId::from_random(node.into()),
            addresses: vec![addr],
            serving: true,
        })
    };
    items.extend((0..tasks).map(|n| endpoint(HERE, NODE, task(n), addr(1, n))));
    items.extend((0..backends).map(|n| endpoint(CHANGING, OTHER_NODE, task(10_000 + n), addr(2, n))));
    let items = items.iter().map(|item| item.to_proto()).collect();
    Ok(DesiredNetworks { sequence, node_id: NodeId::from_random(NODE.into()).to_string(), items })
}

fn task(n: u16) -> TaskId {
    TaskId::from_random(n.into())
}

fn addr(third: u8, n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 90, third + high, low))
}

async fn attach(mut client: NetdClient<Channel>, n: u16) -> anyhow::Result<()> {
    let attachment = TaskAttachment {
        network: NetworkId::from_random(1).to_string(),
        addresses: vec![format!("{}/16", addr(1, n))],
        aliases: vec![],
    };
    let request = AttachTaskRequest {
        task_id: task(n).to_string(),
        service_id: ServiceId::from_random(HERE.into()).to_string(),
        hostname: format!("t{n}"),
        attachments: vec![attachment],
        host_ports: vec![],
        no_way_out: false,
        dns: Some(DnsConfig::default()),
    };
    client.attach_task(request).await?;
    Ok(())
}

#[derive(Default)]
struct Taken {
    first: Vec<Duration>,
    next: Vec<Duration>,
    together: Vec<Duration>,
    change: Vec<Duration>,
    detach: Vec<Duration>,
}

async fn round(options: &Options, taken: &mut Taken) -> anyhow::Result<()> {
    let node = Node::start(options)?;
    let mut client = node.connect().await?;
    client.set_desired(desired(options.tasks + 2, 2, 1)?).await?;
    for (n, durations) in [(0, &mut taken.first), (1, &mut taken.next)] {
        let began = Instant::now();
        attach(client.clone(), n).await?;
        durations.push(began.elapsed());
    }
    let began = Instant::now();
    try_join_all((0..options.tasks).map(|n| attach(client.clone(), n + 2))).await?;
    taken.together.push(began.elapsed());
    for n in 0..options.changes {
        // One that comes right after another waits for more.
        tokio::time::sleep(CHANGE_PAUSE).await;
        let desired = desired(options.tasks + 2, 2 + n % 2, 2 + u64::from(n))?;
        let began = Instant::now();
        let said = client.set_desired(desired).await?.into_inner();
        taken.change.push(began.elapsed());
        ensure!(said.problems.is_empty(), "{:?}", said.problems);
    }
    let began = Instant::now();
    try_join_all((0..options.tasks + 2).map(|n| {
        let mut client = client.clone();
        async move { client.detach_task(TaskRequest { task_id: task(n).to_string() }).await }
    }))
    .await?;
    taken.detach.push(began.elapsed());
    Ok(())
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this needs root");
    let mut taken = Taken::default();
    for _ in 0..options.rounds {
        round(options, &mut taken).await?;
    }
    let tasks = options.tasks;
    println!("| | median | slowest |\n|---|---:|---:|");
    for (what, mut durations) in [
        ("a node's first task on a network".to_owned(), taken.first),
        ("its second".to_owned(), taken.next),
        (format!("{tasks} tasks attached at once"), taken.together),
        (format!("one backend comes or goes, {} tasks attached", tasks + 2), taken.change),
        (format!("{} tasks detached at once", tasks + 2), taken.detach),
    ] {
        durations.sort_unstable();
        let ms = |duration: Option<&Duration>| duration.map_or(0.0, |d| d.as_secs_f64() * 1000.0);
        println!("| {what} | {:.1} ms | {:.1} ms |", ms(durations.get(durations.len() / 2)), ms(durations.last()));
    }
    Ok(())
}
