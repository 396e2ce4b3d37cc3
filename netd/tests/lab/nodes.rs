//! Nodes: namespaces on a switch, a daemon in each, and what managers and worker would tell it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use orch_model::{
    NetworkId, NodeId, ServiceId, TaskId,
    assignment::{Assignment, EndpointItem, NetworkItem, Peer, ServiceEndpointItem},
    service::{PortConfig, Protocol, PublishMode},
};
use orch_proto::{
    conv::ToProto as _,
    paths::Paths,
    transport,
    wire::{
        AttachTaskRequest, DesiredNetworks, DnsConfig, Empty, NetdStatus, TaskAttachment, TaskRequest,
        netd_client::NetdClient,
    },
};
use tonic::transport::Channel;

use crate::sockets::{command, in_ns};

pub(crate) const USER_A: &str = "000000000000000000000000a";
pub(crate) const USER_B: &str = "000000000000000000000000b";
/// Of both families.
pub(crate) const USER_C: &str = "000000000000000000000000c";
pub(crate) const INGRESS: &str = "000000000000000000000000i";

static LABS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Lab {
    name: String,
    nodes: BTreeMap<u8, Node>,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
    namespaces: Vec<String>,
}

struct Node {
    daemon: Option<Child>,
    client: NetdClient<Channel>,
    paths: Paths,
    sequence: u64,
}

/// An AttachTask under way.
pub(crate) type Sent = tokio::task::JoinHandle<Result<(), tonic::Status>>;

pub(crate) fn task_id(task: u32) -> TaskId {
    TaskId::from_random(task.into())
}

fn node_id(node: u8) -> NodeId {
    NodeId::from_random(node.into())
}

fn service_id(service: u32) -> ServiceId {
    ServiceId::from_random(service.into())
}

fn id(network: &str) -> NetworkId {
    network.parse().unwrap()
}

pub(crate) fn network(network: &str, name: &str, subnet: &str, ingress: bool) -> Assignment {
    let subnet: ipnetwork::IpNetwork = subnet.parse().unwrap();
    let vni = 4096 + u32::from(network.as_bytes()[24]);
    Assignment::Network(NetworkItem {
        id: id(network),
        name: name.to_owned(),
        vni,
        subnets: vec![subnet],
        gateways: subnet.iter().nth(1).into_iter().collect(),
        internal: false,
        ingress,
        driver_options: BTreeMap::new(),
        data_path_port: 4789,
    })
}

pub(crate) fn service(network: &str, service: u32, name: &str, vips: &[[u8; 4]]) -> Assignment {
    Assignment::ServiceEndpoint(ServiceEndpointItem {
        network: id(network),
        service: service_id(service),
        names: vec![name.to_owned()],
        vips: vips.iter().map(|vip| IpAddr::from(*vip)).collect(),
        ports: vec![],
        declared: vec![],
        balance: None,
        prefer_local: false,
    })
}

/// With an IPv6 address beside it.
pub(crate) fn endpoint_of_both(endpoint: Assignment, addr: &str) -> Assignment {
    let Assignment::Endpoint(mut endpoint) = endpoint else { panic!("{endpoint:?} is no endpoint") };
    endpoint.addresses.push(addr.parse().unwrap());
    Assignment::Endpoint(endpoint)
}

/// With an IPv6 subnet beside it.
pub(crate) fn network_of_both(network: Assignment, subnet: &str) -> Assignment {
    let Assignment::Network(mut network) = network else { panic!("{network:?} is no network") };
    network.subnets.push(subnet.parse().unwrap());
    Assignment::Network(network)
}

fn port(protocol: Protocol, published_port: u16, target_port: u16, publish_mode: PublishMode) -> PortConfig {
    PortConfig::new(protocol, published_port, target_port, publish_mode)
}

/// Ports as (protocol, published, in the task).
pub(crate) fn ingress_service(service: u32, ports: &[(Protocol, u16, u16)]) -> Assignment {
    let port = |(protocol, published, target): &_| port(*protocol, *published, *target, PublishMode::Ingress);
    Assignment::ServiceEndpoint(ServiceEndpointItem {
        network: id(INGRESS),
        service: service_id(service),
        names: vec![],
        vips: vec![],
        ports: ports.iter().map(port).collect(),
        declared: vec![],
        balance: None,
        prefer_local: false,
    })
}

pub(crate) fn endpoint(network: &str, task: u32, service: u32, node: u8, addr: [u8; 4], serving: bool) -> Assignment {
    let service_name = ["", "web", "idle", "asker", "other"][service as usize];
    Assignment::Endpoint(EndpointItem {
        network: id(network),
        task: task_id(task),
        service: service_id(service),
        node: node_id(node),
        addresses: vec![addr.into()],
        names: vec![format!("{service_name}.{task}"), format!("{service_name}.{task}.{}", task_id(task))],
        serving,
    })
}

fn peer(node: u8) -> Assignment {
    Assignment::Peer(Peer {
        node: node_id(node),
        index: u16::from(node) + 300,
        data_addr: IpAddr::from([10, 77, 0, node]),
        ingress_addr: Some(IpAddr::from([10, 0, 0, 100 + node])),
        weight: None,
        tunnel_key: None,
    })
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().expect("these tests need `ip` (package iproute2)");
    assert!(status.success(), "ip {args:?}");
}

impl Lab {
    /// Nodes 1..=`count` and a client, on one switch, with a daemon on each node.
    pub(crate) fn up(count: u8) -> Self {
        let name = format!("orchnt-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut lab = Self { name, nodes: BTreeMap::new(), runtime, dir, namespaces: vec![] };
        lab.add_ns("sw");
        let switch = lab.ns_path("sw");
        command(&switch, "ip", &["link", "add", "br0", "type", "bridge"]);
        command(&switch, "ip", &["link", "set", "br0", "up"]);
        for (host, last) in (1..=count).map(|n| (format!("n{n}"), n)).chain([("client".to_owned(), 9)]) {
            lab.join(&host, last);
        }
        lab.serve_outside();
        for node in 1..=count {
            let paths = Paths::under(&lab.dir.path().join(format!("n{node}")));
            lab.serve_resolver(node);
            let (daemon, client) = lab.spawn(node, &paths);
            lab.nodes.insert(node, Node { daemon: Some(daemon), client, paths, sequence: 0 });
        }
        lab
    }

    fn add_ns(&mut self, name: &str) {
        let full = format!("{}-{name}", self.name);
        ip(&["netns", "add", &full]);
        self.namespaces.push(full.clone());
        ip(&["-n", &full, "link", "set", "lo", "up"]);
    }

    fn ns_path(&self, name: &str) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-{name}", self.name))
    }

    fn join(&mut self, host: &str, last: u8) {
        self.add_ns(host);
        let (ns, switch) = (format!("{}-{host}", self.name), format!("{}-sw", self.name));
        let port = format!("p{last}");
        ip(&["link", "add", "u0", "netns", &ns, "type", "veth", "peer", "name", &port, "netns", &switch]);
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &ns, "addr", "add", &format!("10.77.0.{last}/24"), "dev", "u0"]);
        ip(&["-n", &ns, "link", "set", "u0", "up"]);
    }

    fn spawn(&self, node: u8, paths: &Paths) -> (Child, NetdClient<Channel>) {
        let log_path = self.dir.path().join(format!("n{node}.log"));
        let log = File::options().create(true).append(true).open(&log_path).unwrap();
        let paths = paths.clone();
        std::fs::create_dir_all(&paths.run).unwrap();
        let child = in_ns(&self.host(node), {
            let paths = paths.clone();
            move || {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "daemon", "--ignored", "--nocapture", "--test-threads=1"])
                    .env("ORCH_NETD_TEST", "1")
                    .env("RUST_LOG", "orch_netd=debug")
                    .env("ORCH_ROOT_DIR", &paths.root)
                    .env("ORCH_RUN_DIR", &paths.run)
                    .env("ORCH_ETC_DIR", &paths.etc)
                    .stdout(log.try_clone().unwrap())
                    .stderr(log)
                    .stdin(Stdio::null())
                    .spawn()
                    .unwrap()
            }
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.runtime.block_on(transport::unix_channel(&paths.netd_sock())) {
                Ok(channel) => return (child, NetdClient::new(channel)),
                Err(error) => {
                    let log = || std::fs::read_to_string(&log_path).unwrap_or_default();
                    assert!(Instant::now() < deadline, "the daemon does not answer: {error}\n{}", log());
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    /// Kills the daemon as a crash would.
    pub(crate) fn kill(&mut self, node: u8) {
        let mut daemon = self.nodes.get_mut(&node).unwrap().daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn start(&mut self, node: u8) {
        let paths = self.nodes[&node].paths.clone();
        let (daemon, client) = self.spawn(node, &paths);
        let node = self.nodes.get_mut(&node).unwrap();
        node.client = client;
        node.daemon = Some(daemon);
    }

    pub(crate) fn host(&self, node: u8) -> PathBuf {
        self.ns_path(&format!("n{node}"))
    }

    pub(crate) fn client(&self) -> PathBuf {
        self.ns_path("client")
    }

    pub(crate) fn addr(&self, node: u8) -> IpAddr {
        IpAddr::from([10, 77, 0, node])
    }

    pub(crate) fn client_octets(&self) -> [u8; 4] {
        [10, 77, 0, 9]
    }

    pub(crate) fn socket(&self, node: u8) -> PathBuf {
        self.nodes[&node].paths.netd_sock()
    }

    pub(crate) fn client_addr(&self) -> IpAddr {
        IpAddr::from([10, 77, 0, 9])
    }

    pub(crate) fn netns(&self, node: u8, task: u32) -> PathBuf {
        self.nodes[&node].paths.netns(&task_id(task))
    }

    /// Tells every node.
    pub(crate) fn set_all(&mut self, items: &[Assignment]) {
        let peers: Vec<_> = self.nodes.keys().map(|node| peer(*node)).collect();
        let items: Vec<_> = peers.iter().chain(items).map(|item| item.to_proto()).collect();
        for (number, node) in &mut self.nodes {
            let desired = DesiredNetworks {
                sequence: node.sequence,
                node_id: node_id(*number).to_string(),
                items: items.clone(),
            };
            node.sequence += 1;
            let response = self.runtime.block_on(node.client.set_desired(desired)).unwrap().into_inner();
            assert_eq!(response.problems, Vec::<String>::new(), "node {number}");
        }
    }

    pub(crate) fn send_attach(&self, node: u8, task: u32, attachments: &[(&str, &str)]) -> Sent {
        self.send(node, self.request(node, task, attachments))
    }

    /// A task without networks, with a port published on its node.
    pub(crate) fn attach_host_port(&self, node: u8, task: u32, published: u16, target: u16) {
        let mut request = self.request(node, task, &[]);
        let both = [Protocol::Tcp, Protocol::Udp].into_iter();
        request.host_ports = both.map(|of| port(of, published, target, PublishMode::Host).to_proto()).collect();
        self.wait(self.send(node, request));
    }

    fn request(&self, node: u8, task: u32, attachments: &[(&str, &str)]) -> AttachTaskRequest {
        AttachTaskRequest {
            task_id: task_id(task).to_string(),
            service_id: service_id(task).to_string(),
            hostname: format!("t{task}"),
            attachments: attachments
                .iter()
                .map(|(network, addr)| TaskAttachment {
                    network: (*network).to_owned(),
                    addresses: addr.split(' ').map(str::to_owned).collect(),
                    aliases: vec![],
                })
                .collect(),
            host_ports: vec![],
            no_way_out: false,
            dns: Some(DnsConfig { nameservers: vec![self.addr(node).to_string()], ..DnsConfig::default() }),
        }
    }

    fn send(&self, node: u8, request: AttachTaskRequest) -> Sent {
        let mut client = self.nodes[&node].client.clone();
        self.runtime.spawn(async move {
            let response = client.attach_task(request).await?.into_inner();
            assert!(response.resolv_conf.starts_with("nameserver 127.0.0.11\n"));
            Ok(())
        })
    }

    pub(crate) fn wait(&self, sent: Sent) {
        self.runtime.block_on(sent).unwrap().unwrap();
    }

    pub(crate) fn attach(&mut self, node: u8, task: u32, attachments: &[(&str, &str)]) {
        let sent = self.send_attach(node, task, attachments);
        self.wait(sent);
    }

    pub(crate) fn down(&mut self, node: u8, task: u32) {
        let request = TaskRequest { task_id: task_id(task).to_string() };
        let client = &mut self.nodes.get_mut(&node).unwrap().client;
        self.runtime.block_on(client.task_down(request)).unwrap();
    }

    pub(crate) fn detach(&mut self, node: u8, task: u32) {
        let request = TaskRequest { task_id: task_id(task).to_string() };
        let client = &mut self.nodes.get_mut(&node).unwrap().client;
        self.runtime.block_on(client.detach_task(request)).unwrap();
    }

    pub(crate) fn status(&mut self, node: u8) -> NetdStatus {
        let client = &mut self.nodes.get_mut(&node).unwrap().client;
        self.runtime.block_on(client.status(Empty {})).unwrap().into_inner()
    }

    /// In a task: tells its name and the peer's address, then echoes.
    pub(crate) fn serve(&self, node: u8, task: u32, port: u16) {
        let listener = in_ns(&self.netns(node, task), move || TcpListener::bind(("0.0.0.0", port)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                thread::spawn(move || {
                    let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                    let _ = stream.write_all(format!("t{task} {peer}\n").as_bytes());
                    let mut buffer = [0; 512];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        let _ = stream.write_all(&buffer[..length]);
                    }
                });
            }
        });
    }

    /// In a task: answers each datagram with its name.
    pub(crate) fn serve_udp(&self, node: u8, task: u32, port: u16) {
        let socket = in_ns(&self.netns(node, task), move || UdpSocket::bind(("0.0.0.0", port)).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("t{task}").as_bytes(), from);
            }
        });
    }

    /// On the client: something outside the cluster.
    fn serve_outside(&self) {
        let listener = in_ns(&self.client(), || TcpListener::bind(("0.0.0.0", 7777)).unwrap());
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(b"outside\n");
            }
        });
    }

    /// On a node: a resolver that knows `outside.example`.
    fn serve_resolver(&self, node: u8) {
        let socket = in_ns(&self.host(node), move || UdpSocket::bind((Ipv4Addr::new(10, 77, 0, node), 53)).unwrap());
        thread::spawn(move || crate::dns::resolver(&socket));
    }

    /// Stops the daemons, cleans up as leaving a cluster does, and looks.
    pub(crate) fn assert_nothing_left_after_cleanup(&mut self) {
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        for node in nodes {
            self.kill(node);
            let paths = self.nodes[&node].paths.clone();
            let cleaned = paths.clone();
            in_ns(&self.host(node), move || orch_netd::cleanup(&cleaned).unwrap());
            let tables = command(&self.host(node), "nft", &["list", "tables"]);
            assert_eq!(tables, "", "node {node}");
            let links = command(&self.host(node), "ip", &["-o", "link"]);
            assert!(!links.contains(": orch"), "node {node}: {links}");
            let forwards = command(&self.host(node), "cat", &["/proc/sys/net/ipv6/conf/all/forwarding"]);
            assert_eq!(forwards, "0\n", "node {node}");
            assert_eq!(std::fs::read_dir(paths.netns_dir()).unwrap().count(), 0);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (number, node) in &mut self.nodes {
            if let Some(mut daemon) = node.daemon.take() {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
            if thread::panicking() {
                let log = std::fs::read_to_string(self.dir.path().join(format!("n{number}.log")));
                eprintln!("---- daemon of node {number}\n{}", log.unwrap_or_default());
            }
            for entry in std::fs::read_dir(node.paths.netns_dir()).into_iter().flatten().flatten() {
                let _ = nix::mount::umount2(&entry.path(), nix::mount::MntFlags::MNT_DETACH);
            }
        }
        for ns in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}
