//! Managers in this process, each with folders, certificates and a raft runtime of its own.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use orch_manager::{daemon::Manager, raft::Consensus};
use orch_model::{
    ClusterId, NodeId,
    cluster::RootCa,
    node::{NodeRole, NodeState},
};
use orch_proto::{
    ca,
    conv::{FromProto, ToProto},
    paths::Paths,
    tls::{self, Identity, JoinToken},
    transport,
    wire::{
        self, Kind, ca_client::CaClient, control_client::ControlClient, daemon_config::FirstStart,
        dispatcher_client::DispatcherClient, raft_client::RaftClient, streams_client::StreamsClient,
    },
};
use prost::Message;
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Lab {
    dir: TempDir,
    runtime: Runtime,
    cluster: ClusterId,
    places: Mutex<Vec<Place>>,
}

struct Place {
    node: NodeId,
    addr: String,
}

impl Lab {
    pub(crate) fn new(managers: usize) -> Self {
        Self::with_heartbeat(managers, Duration::from_secs(5))
    }

    /// A lab whose first manager is ready to bootstrap.
    pub(crate) fn with_heartbeat(managers: usize, heartbeat: Duration) -> Self {
        tls::install_crypto_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let cluster = ClusterId::from_random(rand::random());
        // All at once, so that no two get the same.
        let ports: Vec<_> = (0..managers).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let place = |port: &std::net::TcpListener| Place {
            node: NodeId::from_random(rand::random()),
            addr: port.local_addr().unwrap().to_string(),
        };
        let places = Mutex::new(ports.iter().map(place).collect());
        let lab = Self { dir: tempfile::tempdir().unwrap(), runtime, cluster, places };
        lab.prepare_first(heartbeat);
        lab
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(crate) fn addr(&self, number: usize) -> String {
        self.places.lock().unwrap()[number].addr.clone()
    }

    pub(crate) fn node_id(&self, number: usize) -> String {
        self.places.lock().unwrap()[number].node.to_string()
    }

    pub(crate) fn dir(&self, number: usize) -> PathBuf {
        self.dir.path().join(number.to_string())
    }

    pub(crate) fn paths(&self, number: usize) -> Paths {
        Paths::under(&self.dir(number))
    }

    /// What the supervisor does for `orch init`.
    fn prepare_first(&self, heartbeat: Duration) {
        let root = ca::generate_root(&self.cluster, SystemTime::now()).unwrap();
        let token = || JoinToken::generate(&root.cert_pem, rand::random()).unwrap();
        let join_tokens = Some(wire::JoinTokens { worker: token(), manager: token() });
        let mut spec = orch_manager_core::bootstrap::default_cluster_spec();
        spec.heartbeat_period = heartbeat;
        let material = wire::BootstrapConfig {
            spec: Some(spec.to_proto()),
            root_ca: Some(root.to_proto()),
            join_tokens,
            availability: String::new(),
        };
        let node = self.places.lock().unwrap()[0].node.clone();
        self.save_identity(0, &root, &node);
        self.save_config(0, &[], FirstStart::Bootstrap(material));
    }

    fn save_identity(&self, number: usize, root: &RootCa, node: &NodeId) {
        let key = ca::new_key_and_csr().unwrap();
        let hour = Duration::from_secs(3600);
        let cert = ca::sign_csr(root, &key.csr_pem, node, &self.cluster, NodeRole::Manager, hour, SystemTime::now());
        let identity = Identity::from_pem(root.cert_pem.clone(), cert.unwrap(), key.key_pem).unwrap();
        identity.save(&self.paths(number).manager_dir().join("tls")).unwrap();
    }

    fn save_config(&self, number: usize, managers: &[String], first_start: impl Into<Option<FirstStart>>) {
        let config = wire::DaemonConfig {
            node_id: self.node_id(number),
            cluster_id: self.cluster.to_string(),
            hostname: format!("m{number}"),
            advertise_addr: self.addr(number),
            listen_addr: self.addr(number),
            data_addr: "127.0.0.1".to_owned(),
            managers: managers.to_vec(),
            first_start: first_start.into(),
        };
        let dir = self.paths(number).manager_dir();
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("daemon.pb"), config.encode_to_vec()).unwrap();
    }

    /// Three managers; the first leads.
    pub(crate) async fn start_three(&self) -> [LabManager; 3] {
        let first = self.start(0).await;
        self.join_manager(1, &first).await;
        let second = self.start(1).await;
        self.join_manager(2, &first).await;
        [first, second, self.start(2).await]
    }

    /// What the supervisor does for `orch join` with a manager's token.
    pub(crate) async fn join_manager(&self, number: usize, known: &LabManager) {
        let info = known.info().await;
        let (worker, manager) = (ca::new_key_and_csr().unwrap(), ca::new_key_and_csr().unwrap());
        let token = JoinToken::parse(&info.manager_token).unwrap();
        let channel = transport::token_channel(&self.addr(0), &token).await.unwrap();
        let request = wire::JoinRequest {
            token: info.manager_token,
            worker_csr_pem: worker.csr_pem,
            manager_csr_pem: manager.csr_pem,
            hostname: format!("m{number}"),
            advertise_addr: self.addr(number),
            availability: String::new(),
            rejoin: None,
        };
        let joined = CaClient::new(channel).join(request).await.unwrap().into_inner();
        self.places.lock().unwrap()[number].node = joined.node_id.parse().unwrap();
        let identity = Identity::from_pem(joined.root_cert_pem, joined.manager_cert_pem, manager.key_pem).unwrap();
        identity.save(&self.paths(number).manager_dir().join("tls")).unwrap();
        self.save_config(number, &joined.managers, FirstStart::Join(wire::Empty {}));
    }

    /// What the supervisor does for `orch leave`, asking manager `at`.
    pub(crate) async fn leave(&self, number: usize, at: usize) -> Result<(), Status> {
        let identity = Identity::load(&self.paths(number).manager_dir().join("tls")).unwrap();
        let channel = transport::tls_channel(&self.addr(at), &identity, NodeRole::Manager).await.unwrap();
        CaClient::new(channel).leave(wire::LeaveRequest { force: false }).await.map(drop)
    }

    /// What the supervisor does for `orch init --force-new-cluster`.
    pub(crate) fn go_on_alone(&self, number: usize) {
        self.save_config(number, &[], FirstStart::ForceNewCluster(wire::Empty {}));
    }

    /// What the supervisor writes when nothing is to be done at the start.
    pub(crate) fn take_back(&self, number: usize) {
        self.save_config(number, &[], None);
    }

    /// A call that needs a manager's certificate, with the one of manager `number`, to manager `at`; else its code.
    pub(crate) async fn call_as_manager(&self, number: usize, at: usize) -> Result<(), (tonic::Code, String)> {
        let identity = Identity::load(&self.paths(number).manager_dir().join("tls")).unwrap();
        let channel = transport::tls_channel(&self.addr(at), &identity, NodeRole::Manager).await.unwrap();
        let answer = ControlClient::new(channel).info(wire::Empty {}).await.map(drop);
        answer.map_err(|status| {
            let stable = status.metadata().get("orch-code").and_then(|code| code.to_str().ok());
            (status.code(), stable.unwrap_or_default().to_owned())
        })
    }

    pub(crate) async fn open(&self, number: usize) -> anyhow::Result<(Manager, Threads)> {
        let threads = Threads::start();
        let (paths, raft) = (self.paths(number), threads.raft.as_ref().unwrap().handle().clone());
        // On its own threads, where everything that it starts ends with them.
        let opening = threads.main().spawn(async move { Manager::open(&paths, &raft, None).await });
        Ok((opening.await.unwrap()?, threads))
    }

    /// Killed as soon as raft runs.
    pub(crate) async fn start_and_crash(&self, number: usize) {
        let (manager, threads) = self.open(number).await.unwrap();
        let consensus = manager.consensus().clone();
        drop((manager, threads));
        // The last handle on raft, and with it on the log.
        consensus.shutdown().await;
        drop(consensus);
        released(&self.paths(number)).await;
    }

    pub(crate) async fn start(&self, number: usize) -> LabManager {
        let (manager, threads) = self.open(number).await.unwrap();
        let consensus = manager.consensus().clone();
        let (stop, stopping) = oneshot::channel::<()>();
        let running = threads.main().spawn(manager.run(async {
            // Dropped or sent: stop.
            let _ = stopping.await;
        }));
        let lab_manager = LabManager {
            paths: self.paths(number),
            consensus,
            stop: Some(stop),
            running: Some(running),
            threads: Some(threads),
        };
        eventually("it answers", LIMIT, async || lab_manager.try_info().await.is_some()).await;
        lab_manager
    }
}

/// What a process would have to itself.
pub(crate) struct Threads {
    main: Option<Runtime>,
    raft: Option<Runtime>,
}

impl Threads {
    fn start() -> Self {
        let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().ok();
        Self { main: runtime(), raft: runtime() }
    }

    fn main(&self) -> &Runtime {
        self.main.as_ref().unwrap()
    }
}

impl Drop for Threads {
    /// Also when a test failed: it must not wait for its threads.
    fn drop(&mut self) {
        [self.main.take(), self.raft.take()].into_iter().flatten().for_each(Runtime::shutdown_background);
    }
}

pub(crate) struct LabManager {
    paths: Paths,
    consensus: Consensus,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<anyhow::Result<()>>>,
    threads: Option<Threads>,
}

impl LabManager {
    /// As SIGTERM does it.
    pub(crate) async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        timeout(LIMIT, self.running.take().unwrap()).await.unwrap().unwrap().unwrap();
        self.cut_off().await;
    }

    /// What the process ends with when raft cannot go on.
    pub(crate) async fn lose_raft(mut self) -> anyhow::Result<()> {
        self.consensus.shutdown().await;
        let outcome = timeout(LIMIT, self.running.take().unwrap()).await.unwrap().unwrap();
        self.cut_off().await;
        outcome
    }

    /// Every task and connection is cut off where it stands, as by a kill. (The process lives, so the lock is waited for.)
    pub(crate) async fn crash(mut self) {
        self.cut_off().await;
    }

    async fn cut_off(&mut self) {
        drop(self.threads.take());
        let paths = self.paths.clone();
        // The last handle on raft, and with it on the log.
        self.consensus.shutdown().await;
        released(&paths).await;
    }

    pub(crate) async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(transport::unix_channel(&self.paths.manager_sock()).await.unwrap())
    }

    async fn try_info(&self) -> Option<wire::ClusterInfo> {
        let channel = transport::unix_channel(&self.paths.manager_sock()).await.ok()?;
        let info = ControlClient::new(channel).info(wire::Empty {}).await.ok()?.into_inner();
        (!info.worker_token.is_empty()).then_some(info)
    }

    pub(crate) async fn info(&self) -> wire::ClusterInfo {
        self.control().await.info(wire::Empty {}).await.unwrap().into_inner()
    }

    pub(crate) async fn list(&self, kind: Kind) -> Vec<wire::Object> {
        let request = wire::ListRequest { kind: kind.into(), filters: None };
        self.control().await.list(request).await.unwrap().into_inner().objects
    }

    pub(crate) async fn get(&self, kind: Kind, reference: &str) -> Result<wire::Object, Status> {
        let request = wire::GetRequest { kind: kind.into(), reference: reference.to_owned() };
        self.control().await.get(request).await.map(tonic::Response::into_inner)
    }

    /// Everything that a restart must bring back.
    pub(crate) async fn objects(&self) -> Vec<wire::Object> {
        let mut all = Vec::new();
        for kind in [Kind::Cluster, Kind::Node, Kind::Service, Kind::Task, Kind::Network] {
            all.extend(self.list(kind).await);
        }
        all
    }

    pub(crate) fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    /// What this manager itself has applied.
    pub(crate) fn local_services(&self) -> usize {
        self.consensus.store().view().state.services().count()
    }

    pub(crate) async fn node_state(&self, id: &str) -> NodeState {
        let object = self.get(Kind::Node, id).await.unwrap();
        let Some(wire::object::Object::Node(node)) = object.object else { panic!("not a node") };
        NodeState::from_proto(node.status.unwrap().state).unwrap()
    }

    pub(crate) async fn running(&self) -> usize {
        let is_running = |o: &wire::Object| match &o.object {
            Some(wire::object::Object::Task(t)) => {
                t.status.as_ref().unwrap().state == i32::from(wire::TaskState::Running)
            }
            _ => false,
        };
        self.list(Kind::Task).await.iter().filter(|o| is_running(o)).count()
    }
}

/// A worker's agent without a worker.
pub(crate) struct Agent {
    pub(crate) id: String,
    addr: String,
    pub(crate) identity: Identity,
}

impl Agent {
    pub(crate) async fn join(manager: &LabManager, addr: &str) -> Self {
        let info = manager.info().await;
        let key = ca::new_key_and_csr().unwrap();
        let token = JoinToken::parse(&info.worker_token).unwrap();
        let channel = transport::token_channel(addr, &token).await.unwrap();
        let request = wire::JoinRequest {
            token: info.worker_token,
            worker_csr_pem: key.csr_pem,
            hostname: "w".to_owned(),
            ..wire::JoinRequest::default()
        };
        let joined = CaClient::new(channel).join(request).await.unwrap().into_inner();
        let identity = Identity::from_pem(joined.root_cert_pem, joined.worker_cert_pem, key.key_pem).unwrap();
        Self { id: joined.node_id, addr: addr.to_owned(), identity }
    }

    pub(crate) async fn leave(&self) {
        let channel = transport::tls_channel(&self.addr, &self.identity, NodeRole::Manager).await.unwrap();
        CaClient::new(channel).leave(wire::LeaveRequest { force: false }).await.unwrap();
    }

    async fn channel(&self) -> Channel {
        transport::tls_channel(&self.addr, &self.identity, NodeRole::Manager).await.unwrap()
    }

    pub(crate) async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel().await)
    }

    pub(crate) async fn raft(&self) -> RaftClient<Channel> {
        RaftClient::new(self.channel().await)
    }

    pub(crate) async fn session(&self) -> Session {
        let mut client = DispatcherClient::new(self.channel().await);
        let description = wire::NodeDescription {
            hostname: "w".to_owned(),
            platform: Some(wire::Platform { os: "linux".to_owned(), arch: "x86_64".to_owned() }),
            resources: Some(wire::Resources { nano_cpus: 4_000_000_000, memory_bytes: 8 << 30 }),
            engine_version: "0".to_owned(),
            engine_labels: BTreeMap::new(),
            features: Vec::new(),
            underlay: Vec::new(),
            data_addr: None,
            generic: None,
            encryption: None,
        };
        let request = wire::SessionRequest { description: Some(description), session_id: String::new() };
        let mut stream = client.session(request).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap();
        assert!(first.heartbeat_period_ms > 0 && !first.managers.is_empty() && first.node.is_some());
        let request = wire::AssignmentsRequest { session_id: first.session_id.clone() };
        let assignments = client.assignments(request).await.unwrap().into_inner();
        Session { client, id: first.session_id, stream, assignments, sequence: 0 }
    }
}

pub(crate) struct Session {
    pub(crate) client: DispatcherClient<Channel>,
    pub(crate) id: String,
    stream: Streaming<wire::SessionMessage>,
    assignments: Streaming<wire::AssignmentsMessage>,
    sequence: u64,
}

impl Session {
    /// The tasks in the next message, acknowledged; none when there is no message for a while.
    pub(crate) async fn next_tasks(&mut self) -> Vec<String> {
        let Ok(message) = timeout(Duration::from_millis(100), self.assignments.message()).await else {
            return Vec::new();
        };
        let message = message.unwrap().unwrap();
        assert!(message.complete == (self.sequence == 0) && message.applies_to == self.sequence, "a gap");
        self.sequence = message.results_in;
        let request = wire::AckRequest { session_id: self.id.clone(), sequence: self.sequence };
        self.client.ack(request).await.unwrap();
        let task = |a: wire::Assignment| match a.assignment {
            Some(wire::assignment::Assignment::Task(t)) => Some(t.task.unwrap().id),
            _ => None,
        };
        message.put.into_iter().filter_map(task).collect()
    }

    /// The next message as it came, acknowledged; nothing when there is none for a while.
    pub(crate) async fn next_raw(&mut self) -> Vec<u8> {
        let Ok(message) = timeout(Duration::from_millis(100), self.assignments.message()).await else {
            return Vec::new();
        };
        let message = message.unwrap().unwrap();
        self.sequence = message.results_in;
        let request = wire::AckRequest { session_id: self.id.clone(), sequence: self.sequence };
        self.client.ack(request).await.unwrap();
        message.encode_to_vec()
    }

    /// The next stream that the node is asked for.
    pub(crate) async fn announced(&mut self) -> String {
        loop {
            let message = self.stream.message().await.unwrap().unwrap();
            if let Some(stream) = message.streams.into_iter().next() {
                return stream.stream_id;
            }
        }
    }

    pub(crate) async fn heartbeat(&mut self) -> Result<(), Status> {
        self.client.heartbeat(wire::HeartbeatRequest { session_id: self.id.clone() }).await.map(drop)
    }

    pub(crate) async fn report(&mut self, task: &str, state: wire::TaskState) -> Result<(), Status> {
        let status = wire::TaskStatus { state: state.into(), at: 1, ..wire::TaskStatus::default() };
        let updates = vec![wire::TaskStatusUpdate { task_id: task.to_owned(), status: Some(status) }];
        let request = wire::UpdateTaskStatusRequest { session_id: self.id.clone(), updates };
        self.client.update_task_status(request).await.map(drop)
    }
}

/// The node's end of a stream.
pub(crate) struct NodeStream {
    say: mpsc::Sender<wire::FromNode>,
    hear: Streaming<wire::ToNode>,
}

impl NodeStream {
    pub(crate) async fn say(&self, message: wire::from_node::Message) {
        self.say.send(wire::FromNode { message: Some(message) }).await.unwrap();
    }

    /// The end, in order: resetting the stream could overtake what was said.
    pub(crate) async fn finish(self) {
        let Self { say, mut hear } = self;
        drop(say);
        while let Ok(Some(_)) = hear.message().await {}
    }

    /// What arrives on stdin; `None` when the client went away.
    pub(crate) async fn hear(&mut self) -> Option<Vec<u8>> {
        use wire::{exec_input::Input, to_node::Message};
        match self.hear.message().await.ok()??.message? {
            Message::Exec(wire::ExecInput { input: Some(Input::Stdin(bytes)) }) => Some(bytes.to_vec()),
            Message::Exec(other) => panic!("{other:?}"),
            Message::Cancel(_) => None,
        }
    }
}

impl Session {
    /// Waits for an announcement and dials in.
    pub(crate) async fn answer_stream(&mut self, agent: &Agent) -> NodeStream {
        let announced = loop {
            let message = self.stream.message().await.unwrap().unwrap();
            if let Some(stream) = message.streams.into_iter().next() {
                break stream;
            }
        };
        let (say, outgoing) = mpsc::channel(8);
        let hello = wire::StreamHello { stream_id: announced.stream_id };
        say.send(wire::FromNode { message: Some(wire::from_node::Message::Hello(hello)) }).await.unwrap();
        let mut client = StreamsClient::new(agent.channel().await);
        let hear = client.attach(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        NodeStream { say, hear }
    }
}

pub(crate) fn log_line(text: &str) -> wire::from_node::Message {
    let data = bytes::Bytes::copy_from_slice(text.as_bytes());
    wire::from_node::Message::Log(wire::LogLine { data, ..wire::LogLine::default() })
}

pub(crate) fn exec_start(task: &str) -> wire::ExecInput {
    let start = wire::ExecStart { task: task.to_owned(), argv: vec!["sh".to_owned()], ..wire::ExecStart::default() };
    wire::ExecInput { input: Some(wire::exec_input::Input::Start(start)) }
}

pub(crate) fn stdin(bytes: &'static [u8]) -> wire::ExecInput {
    wire::ExecInput { input: Some(wire::exec_input::Input::Stdin(bytes.into())) }
}

pub(crate) fn stdout(bytes: &'static [u8]) -> wire::from_node::Message {
    let output = Some(wire::exec_output::Output::Stdout(bytes.into()));
    wire::from_node::Message::Exec(wire::ExecOutput { output })
}

pub(crate) fn exit(code: i32) -> wire::from_node::Message {
    let output = Some(wire::exec_output::Output::ExitCode(code));
    wire::from_node::Message::Exec(wire::ExecOutput { output })
}

/// Set for a child process that is to be a manager.
pub(crate) const PROCESS_VAR: &str = "ORCH_TEST_MANAGER_PROCESS";

/// The first manager as a process of its own.
pub(crate) struct Process {
    child: Child,
    paths: Paths,
}

impl Process {
    pub(crate) fn start(lab: &Lab) -> Self {
        let paths = lab.paths(0);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "manager_process", "--nocapture"])
            .env(PROCESS_VAR, "1")
            .env("ORCH_ROOT_DIR", &paths.root)
            .env("ORCH_RUN_DIR", &paths.run)
            .env("ORCH_ETC_DIR", &paths.etc)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, paths }
    }

    /// A client, as soon as it leads.
    pub(crate) async fn control(&self) -> ControlClient<Channel> {
        let start = Instant::now();
        loop {
            if let Ok(channel) = transport::unix_channel(&self.paths.manager_sock()).await {
                let mut client = ControlClient::new(channel);
                let request = wire::GetRequest { kind: Kind::Cluster.into(), reference: String::new() };
                if client.get(request).await.is_ok() {
                    return client;
                }
            }
            assert!(start.elapsed() < LIMIT, "the process does not answer");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killed already, or the test is over.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection without any certificate.
pub(crate) async fn stranger(manager: &LabManager, addr: &str) -> Channel {
    let token = JoinToken::parse(&manager.info().await.worker_token).unwrap();
    transport::token_channel(addr, &token).await.unwrap()
}

/// A join with any token over a connection that trusts the cluster.
pub(crate) async fn join(addr: &str, root_pem: &str, token: &str) -> Result<wire::JoinResponse, Status> {
    let trusted = JoinToken::parse(&JoinToken::generate(root_pem, 0).unwrap()).unwrap();
    let channel = transport::token_channel(addr, &trusted).await.unwrap();
    let request = wire::JoinRequest {
        token: token.to_owned(),
        worker_csr_pem: ca::new_key_and_csr().unwrap().csr_pem,
        hostname: "new".to_owned(),
        ..wire::JoinRequest::default()
    };
    CaClient::new(channel).join(request).await.map(tonic::Response::into_inner)
}

/// The identity of a worker that joins with this token.
pub(crate) async fn join_with(addr: &str, root_pem: &str, token: &str) -> Identity {
    let trusted = JoinToken::parse(token).unwrap();
    let key = ca::new_key_and_csr().unwrap();
    let request = wire::JoinRequest {
        token: token.to_owned(),
        worker_csr_pem: key.csr_pem,
        hostname: "w".to_owned(),
        ..wire::JoinRequest::default()
    };
    let channel = transport::token_channel(addr, &trusted).await.unwrap();
    let joined = CaClient::new(channel).join(request).await.unwrap().into_inner();
    Identity::from_pem(root_pem.to_owned(), joined.worker_cert_pem, key.key_pem).unwrap()
}

/// Another cluster, as far as its tokens go.
pub(crate) struct LoneCluster;

impl LoneCluster {
    pub(crate) fn token() -> String {
        let root = ca::generate_root(&ClusterId::from_random(rand::random()), SystemTime::now()).unwrap();
        JoinToken::generate(&root.cert_pem, rand::random()).unwrap()
    }
}

pub(crate) fn service(name: &str, replicas: u64) -> wire::CreateRequest {
    use orch_model::{
        Annotations,
        service::{EndpointSpec, ServiceMode, ServiceSpec, TaskSpec},
    };
    let mut task = TaskSpec::default();
    task.container.image = "web".to_owned();
    let spec = ServiceSpec {
        annotations: Annotations { name: name.to_owned(), ..Annotations::default() },
        task,
        mode: ServiceMode::Replicated { replicas },
        update: None,
        rollback: None,
        endpoint: EndpointSpec::default(),
        depends_on: Vec::new(),
    };
    let spec = wire::spec::Spec::Service(spec.to_proto());
    wire::CreateRequest { spec: Some(wire::Spec { spec: Some(spec) }) }
}

pub(crate) fn id_of(object: &wire::Object) -> String {
    orch_model::Object::from_proto(object.clone()).unwrap().id().as_str().to_owned()
}

/// Polls until it is so.
pub(crate) async fn eventually(what: &str, limit: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < limit, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether any file under `dir`, except those named, holds these bytes.
pub(crate) fn contains(dir: &Path, bytes: &[u8], except: &[&str]) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            return contains(&path, bytes, except);
        }
        let is_file = path.is_file() && !except.contains(&name.as_str());
        is_file && fs::read(&path).is_ok_and(|content| content.windows(bytes.len()).any(|w| w == bytes))
    })
}

/// Waits until the last task of a manager has let go of its folder.
pub(crate) async fn released(paths: &Paths) {
    eventually("the log and the folder are free", LIMIT, async || {
        ["raft/log/db", "lock"].iter().all(|held| {
            let file = fs::File::open(paths.manager_dir().join(held)).unwrap();
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
        })
    })
    .await;
}
