//! A machine of its own for a test: a manager and a netd that note what they hear, over real TLS and a real socket.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant, SystemTime},
};

use futures::{StreamExt, stream::BoxStream};
use orch_model::{
    Annotations, ClusterId, Meta, NodeId, ServiceId, Timestamp,
    cluster::RootCa,
    node::{Encryption, NodeRole},
    secret::Secret,
    service::{ContainerSpec, TaskSpec},
    task::Task,
};
use orch_proto::{
    ca::{generate_root, new_key_and_csr, sign_csr},
    code,
    conv::FromProto as _,
    tls::{Identity, install_crypto_provider, require_role},
    transport::{tls_incoming, unix_incoming},
    wire::{
        AckRequest, AssignmentsMessage, AssignmentsRequest, AttachTaskRequest, AttachTaskResponse, DesiredNetworks,
        Empty, ExecOutput, ForgetImageRequest, FromNode, HeartbeatRequest, HeartbeatResponse, KeepContainersRequest,
        NetdStatus, Ping, Pong, RegisterImageRequest, RegisterImageResponse, SessionMessage, SessionRequest,
        SetContainerNetworksRequest, SetContainerNetworksResponse, SetDesiredResponse, StreamAnnouncement,
        SuspectNodes, TaskRequest, ToNode, TraceRequest, TraceResponse, UpdateTaskStatusRequest,
        dispatcher_server::{Dispatcher, DispatcherServer},
        exec_output, from_node,
        netd_server::{Netd as NetdService, NetdServer},
        streams_server::{Streams, StreamsServer},
    },
};
use prost::Message;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    time::timeout,
};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue, transport::Server};

use super::super::*;
use crate::image::{config::ImageConfig, import, reference::Reference, store::ImageStore};

const LIMIT: Duration = Duration::from_secs(20);
/// What happens to a container while managers are asked for its networks happens in this time.
const MANAGERS_PAUSE: Duration = Duration::from_secs(2);
/// How long the leader takes to forget an image.
const LEADER_PAUSE: Duration = Duration::from_millis(200);
const HOUR: Duration = Duration::from_secs(3600);

/// What the manager and netd of the test have heard, in order.
#[derive(Default)]
pub(crate) struct Heard {
    pub log: Mutex<Vec<String>>,
    /// So many names are not taken, as by a manager that leads no more.
    pub leaderless: AtomicUsize,
    news: tokio::sync::Notify,
}

impl Heard {
    fn note(&self, line: String) {
        self.log.lock().unwrap().push(line);
        self.news.notify_waiters();
    }

    pub(crate) fn has(&self, line: &str) -> bool {
        self.log.lock().unwrap().iter().any(|heard| heard.starts_with(line))
    }

    pub(crate) fn position(&self, line: &str) -> Option<usize> {
        self.log.lock().unwrap().iter().position(|heard| heard.starts_with(line))
    }

    pub(crate) async fn wait(&self, line: &str) {
        let wait = async {
            loop {
                let news = self.news.notified();
                if self.has(line) {
                    return;
                }
                news.await;
            }
        };
        if timeout(LIMIT, wait).await.is_err() {
            panic!("never heard {line:?}, but {:#?}", self.log.lock().unwrap());
        }
    }
}

struct FakeManager {
    heard: Arc<Heard>,
    wanted: watch::Receiver<(u64, Vec<Assignment>)>,
    streams: watch::Receiver<Vec<StreamAnnouncement>>,
}

#[tonic::async_trait]
impl Dispatcher for FakeManager {
    type SessionStream = BoxStream<'static, Result<SessionMessage, Status>>;
    type PingsStream = BoxStream<'static, Result<Pong, Status>>;
    type AssignmentsStream = BoxStream<'static, Result<AssignmentsMessage, Status>>;

    async fn session(&self, request: Request<SessionRequest>) -> Result<Response<Self::SessionStream>, Status> {
        let node = require_role(&request, &[NodeRole::Worker])?.node_id;
        let description = request.into_inner().description.unwrap();
        self.heard.note(format!("session {node} {}", description.hostname));
        let encryption = Encryption::from_proto(description.encryption.unwrap()).unwrap();
        self.heard.note(format!("encryption {encryption:?}"));
        let messages = WatchStream::new(self.streams.clone()).map(|streams| {
            Ok(SessionMessage { session_id: "s1".to_owned(), heartbeat_period_ms: 300, streams, ..Default::default() })
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        self.heard.note("heartbeat".to_owned());
        Ok(Response::new(HeartbeatResponse { period_ms: 300 }))
    }

    async fn pings(&self, request: Request<Streaming<Ping>>) -> Result<Response<Self::PingsStream>, Status> {
        let heard = self.heard.clone();
        let pongs = request.into_inner().map(move |ping| {
            let Ping { session_id, view } = ping?;
            heard.note(format!("ping {session_id} {:?}", view.unwrap().unreachable));
            Ok(Pong::default())
        });
        Ok(Response::new(pongs.boxed()))
    }

    async fn assignments(&self, _: Request<AssignmentsRequest>) -> Result<Response<Self::AssignmentsStream>, Status> {
        let sets = WatchStream::new(self.wanted.clone()).map(|(sequence, items)| {
            let put = items.iter().map(ToProto::to_proto).collect();
            Ok(AssignmentsMessage { complete: true, results_in: sequence, put, ..Default::default() })
        });
        Ok(Response::new(sets.boxed()))
    }

    async fn ack(&self, request: Request<AckRequest>) -> Result<Response<Empty>, Status> {
        self.heard.note(format!("ack {}", request.into_inner().sequence));
        Ok(Response::new(Empty {}))
    }

    async fn update_task_status(&self, request: Request<UpdateTaskStatusRequest>) -> Result<Response<Empty>, Status> {
        for update in request.into_inner().updates {
            let status = TaskStatus::from_proto(update.status.unwrap()).unwrap();
            let pid = status.container.as_ref().map_or(0, |container| container.pid);
            let error = status.error.unwrap_or_default();
            self.heard.note(format!("{} {} {error} pid={pid}", update.task_id, status.state.word()));
        }
        Ok(Response::new(Empty {}))
    }

    async fn register_image(
        &self,
        request: Request<RegisterImageRequest>,
    ) -> Result<Response<RegisterImageResponse>, Status> {
        let one_less = |left: usize| left.checked_sub(1);
        if self.heard.leaderless.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            let mut refused = Status::unavailable("this manager is not the leader");
            refused.metadata_mut().insert(code::KEY, MetadataValue::from_static("not-leader"));
            return Err(refused);
        }
        let request = request.into_inner();
        self.heard.note(format!("image {} holder_only={}", request.name, request.holder_only));
        Ok(Response::new(RegisterImageResponse { image: None }))
    }

    async fn forget_image(&self, request: Request<ForgetImageRequest>) -> Result<Response<Empty>, Status> {
        let ForgetImageRequest { name, digest } = request.into_inner();
        self.heard.note(format!("forget {name} {digest}"));
        tokio::time::sleep(LEADER_PAUSE).await;
        self.heard.note("forgotten".to_owned());
        Ok(Response::new(Empty {}))
    }

    async fn set_container_networks(
        &self,
        request: Request<SetContainerNetworksRequest>,
    ) -> Result<Response<SetContainerNetworksResponse>, Status> {
        self.heard.note(format!("networks {}", request.into_inner().name));
        tokio::time::sleep(MANAGERS_PAUSE).await;
        Err(Status::unimplemented("no container of these tests is on a network of the cluster"))
    }

    async fn keep_containers(&self, _: Request<KeepContainersRequest>) -> Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }
}

#[tonic::async_trait]
impl Streams for FakeManager {
    type AttachStream = BoxStream<'static, Result<ToNode, Status>>;

    async fn attach(&self, request: Request<Streaming<FromNode>>) -> Result<Response<Self::AttachStream>, Status> {
        let mut messages = request.into_inner();
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Ok(Some(FromNode { message: Some(message) })) = messages.message().await {
                heard.note(match message {
                    from_node::Message::Hello(hello) => format!("hello {}", hello.stream_id),
                    from_node::Message::Log(line) => format!("log {}", String::from_utf8_lossy(&line.data)),
                    from_node::Message::Exec(ExecOutput { output }) => match output.unwrap() {
                        exec_output::Output::Stdout(data) => format!("stdout {}", String::from_utf8_lossy(&data)),
                        exec_output::Output::Stderr(data) => format!("stderr {}", String::from_utf8_lossy(&data)),
                        exec_output::Output::ExitCode(code) => format!("exit {code}"),
                        exec_output::Output::StdinRoom(bytes) => format!("room {bytes}"),
                    },
                    from_node::Message::Error(error) => format!("error {error}"),
                });
            }
            heard.note("stream ended".to_owned());
        });
        Ok(Response::new(futures::stream::pending().boxed()))
    }
}

struct FakeNetd {
    heard: Arc<Heard>,
    paths: Paths,
    sequence: Arc<Mutex<u64>>,
    encryption: Arc<Mutex<Encryption>>,
    refusals: Arc<Mutex<u32>>,
    held: Arc<Mutex<Option<oneshot::Receiver<()>>>>,
}

#[tonic::async_trait]
impl NetdService for FakeNetd {
    async fn set_suspects(&self, _: Request<SuspectNodes>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("only the supervisor says this"))
    }

    async fn set_desired(&self, request: Request<DesiredNetworks>) -> Result<Response<SetDesiredResponse>, Status> {
        let request = request.into_inner();
        *self.sequence.lock().unwrap() = request.sequence;
        self.heard.note(format!("desired {}", request.items.len()));
        Ok(Response::new(SetDesiredResponse { problems: Vec::new() }))
    }

    async fn attach_task(&self, request: Request<AttachTaskRequest>) -> Result<Response<AttachTaskResponse>, Status> {
        let request = request.into_inner();
        self.heard.note(format!("attach {}", request.task_id));
        let held = self.held.lock().unwrap().take();
        if let Some(held) = held {
            held.await.map_err(|_| Status::failed_precondition("this attachment is refused"))?;
        }
        let path = self.paths.netns(&request.task_id.parse().unwrap());
        make_netns(&path);
        Ok(Response::new(AttachTaskResponse {
            netns_path: path.display().to_string(),
            resolv_conf: "nameserver 127.0.0.11\n".to_owned(),
            primary_address: "10.9.0.7".to_owned(),
        }))
    }

    async fn task_down(&self, request: Request<TaskRequest>) -> Result<Response<Empty>, Status> {
        self.heard.note(format!("down {}", request.into_inner().task_id));
        Ok(Response::new(Empty {}))
    }

    async fn detach_task(&self, request: Request<TaskRequest>) -> Result<Response<Empty>, Status> {
        let task = request.into_inner().task_id;
        {
            let mut refusals = self.refusals.lock().unwrap();
            if *refusals > 0 {
                *refusals -= 1;
                return Err(Status::unavailable("netd is just starting"));
            }
        }
        remove_netns(&self.paths.netns(&task.parse().unwrap()));
        self.heard.note(format!("detach {task}"));
        Ok(Response::new(Empty {}))
    }

    async fn trace(&self, _: Request<TraceRequest>) -> Result<Response<TraceResponse>, Status> {
        Err(Status::unimplemented("nobody traces here"))
    }

    async fn status(&self, _: Request<Empty>) -> Result<Response<NetdStatus>, Status> {
        Ok(Response::new(NetdStatus {
            sequence: *self.sequence.lock().unwrap(),
            encryption: Some(self.encryption.lock().unwrap().to_proto()),
            tasks: self.tasks(),
            ..Default::default()
        }))
    }
}

impl FakeNetd {
    /// Who has a namespace.
    fn tasks(&self) -> Vec<String> {
        let folder = fs::read_dir(self.paths.netns_dir());
        folder.into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn make_netns(path: &Path) {
    if path.exists() {
        return;
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "").unwrap();
    let path = path.to_owned();
    // A thread of its own: it changes its namespace for good.
    let made = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &path).unwrap();
    });
    made.join().unwrap();
}

fn remove_netns(path: &Path) {
    let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
    let _ = fs::remove_file(path);
}

/// A machine of its own with a manager and a netd; workers come and go.
pub(crate) struct Node {
    _dir: tempfile::TempDir,
    pub paths: Paths,
    pub heard: Arc<Heard>,
    wanted: watch::Sender<(u64, Vec<Assignment>)>,
    pub streams: watch::Sender<Vec<StreamAnnouncement>>,
    cgroup: String,
    netd_sequence: Arc<Mutex<u64>>,
    /// What netd says of encrypted networks.
    pub encryption: Arc<Mutex<Encryption>>,
    /// How many detachments netd still refuses, as if it were just starting.
    pub refusals: Arc<Mutex<u32>>,
    /// What netd waits for before it attaches the next; it refuses when that cannot come any more.
    pub held: Arc<Mutex<Option<oneshot::Receiver<()>>>>,
}

/// A worker in the test's own process, for looking into it.
pub(crate) struct Worker {
    pub agent: Arc<Agent>,
    tokio: Option<tokio::runtime::Runtime>,
}

impl Worker {
    /// Does something that goes on in the worker, and ends with it.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.tokio.as_ref().unwrap().spawn(work).await.unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(tokio) = self.tokio.take() {
            tokio.shutdown_background();
        }
    }
}

const WORKER_DIR_VAR: &str = "ORCH_TEST_WORKER_DIR";

/// Killed with SIGKILL when dropped.
pub(crate) struct WorkerProcess(std::process::Child);

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The other half of [`Node::worker_process`]; does nothing in an ordinary run of the tests.
pub(crate) async fn work_in_this_process() {
    let Some(dir) = std::env::var_os(WORKER_DIR_VAR) else { return };
    install_crypto_provider();
    let agent = crate::start(&Paths::under(Path::new(&dir)), shim_runtime).await.unwrap();
    tokio::join!(agent.clone().keep_session(), agent.host.netd.clone().keep(|task| agent.knows(task)));
}

fn shim_runtime(paths: &Paths, cgroup: &str) -> Result<Runtime, RuntimeError> {
    let test = std::env::current_exe().unwrap();
    let shim = test.parent().and_then(Path::parent).unwrap().join("examples/shim");
    assert!(shim.exists(), "{} is missing: cargo build -p orch-worker --example shim", shim.display());
    Runtime::with_shim_command(paths, cgroup, shim, Vec::new())
}

impl Node {
    pub(crate) async fn new() -> Self {
        install_crypto_provider();
        let dir = tempfile::Builder::new().prefix("orch-agent-").tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let (cluster, node) = (ClusterId::from_random(1), NodeId::from_random(2));
        let root = generate_root(&cluster, SystemTime::now()).unwrap();
        let (wanted, wanted_receiver) = watch::channel((1, Vec::new()));
        let (streams, streams_receiver) = watch::channel(Vec::new());
        let heard = Arc::new(Heard::default());

        let manager_identity = identity(&root, &cluster, &NodeId::from_random(3), NodeRole::Manager);
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let manager = |heard: &Arc<Heard>| FakeManager {
            heard: heard.clone(),
            wanted: wanted_receiver.clone(),
            streams: streams_receiver.clone(),
        };
        let server = Server::builder()
            .add_service(DispatcherServer::new(manager(&heard)))
            .add_service(StreamsServer::new(manager(&heard)));
        tokio::spawn(server.serve_with_incoming(tls_incoming(listener, SharedIdentity::new(manager_identity))));

        let netd_sequence = Arc::new(Mutex::new(0));
        let encryption = Arc::new(Mutex::new(Encryption::Unavailable("for a test".to_owned())));
        let refusals = Arc::new(Mutex::new(0));
        let held = Arc::new(Mutex::new(None));
        let netd = FakeNetd {
            heard: heard.clone(),
            paths: paths.clone(),
            sequence: netd_sequence.clone(),
            encryption: encryption.clone(),
            refusals: refusals.clone(),
            held: held.clone(),
        };
        let incoming = unix_incoming(&paths.netd_sock(), 0o600).unwrap();
        tokio::spawn(Server::builder().add_service(NetdServer::new(netd)).serve_with_incoming(incoming));

        let worker_dir = paths.worker_dir();
        fs::create_dir_all(&worker_dir).unwrap();
        identity(&root, &cluster, &node, NodeRole::Worker).save(&worker_dir.join("tls")).unwrap();
        let daemon = wire::DaemonConfig {
            node_id: node.to_string(),
            cluster_id: cluster.to_string(),
            hostname: "n1".to_owned(),
            data_addr: "127.0.0.1".to_owned(),
            // The dead one must not keep the node from its session.
            managers: vec!["127.0.0.1:1".to_owned(), addr],
            ..Default::default()
        };
        fs::write(worker_dir.join("daemon.pb"), daemon.encode_to_vec()).unwrap();
        let cgroup = format!("/orch-agent-test-{}-{:x}", std::process::id(), rand::random::<u32>());
        fs::create_dir_all(&paths.etc).unwrap();
        fs::write(paths.config_file(), format!("cgroup-parent = {cgroup:?}\n")).unwrap();
        Self { _dir: dir, paths, heard, wanted, streams, cgroup, netd_sequence, encryption, refusals, held }
    }

    pub(crate) async fn worker(&self) -> Worker {
        let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
        let paths = self.paths.clone();
        let started = tokio.spawn(async move {
            let deadline = Instant::now() + LIMIT;
            let agent = loop {
                match crate::start(&paths, shim_runtime).await {
                    // What an earlier one of this test was about lets go of the folder a moment after it was dropped.
                    Err(error) if error.to_string().contains("in use by another") && Instant::now() < deadline => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    started => break started.unwrap(),
                }
            };
            tokio::spawn(agent.clone().keep_session());
            let known = agent.clone();
            tokio::spawn(agent.host.netd.clone().keep(move |task| known.knows(task)));
            agent
        });
        let agent = started.await.unwrap();
        Worker { agent, tokio: Some(tokio) }
    }

    /// A worker in a process of its own, which can be killed as a process is: this test program, running
    /// [`work_in_this_process`].
    pub(crate) fn worker_process(&self) -> WorkerProcess {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent::tests::worker_process", "--nocapture"])
            .env(WORKER_DIR_VAR, self._dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        WorkerProcess(child)
    }

    /// netd answers as one does that has just started.
    pub(crate) fn restart_netd(&self) {
        *self.netd_sequence.lock().unwrap() = u64::MAX;
    }

    /// Assigns a secret too.
    pub(crate) fn assign_with_secret(&self, secret: Secret, task: &Arc<Task>) {
        let (task, desired_state) = (task.clone(), TaskState::Running);
        let items =
            vec![Assignment::Secret(Arc::new(secret)), Assignment::Task(TaskAssignment { task, desired_state })];
        let sequence = self.wanted.borrow().0 + 1;
        self.wanted.send_replace((sequence, items));
    }

    pub(crate) fn runtime(&self) -> Runtime {
        shim_runtime(&self.paths, &self.cgroup).unwrap()
    }

    /// Once a worker that was dropped has let go of them.
    pub(crate) fn records(&self) -> Store {
        let deadline = Instant::now() + LIMIT;
        loop {
            match Store::open(&self.paths.worker_dir()) {
                Err(crate::store::StoreError::Locked(_)) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                opened => return opened.unwrap(),
            }
        }
    }

    pub(crate) fn store(&self) -> ImageStore {
        ImageStore::open(&self.paths.worker_dir().join("images")).unwrap()
    }

    pub(crate) fn assign(&self, tasks: &[(&Arc<Task>, TaskState)]) {
        let items = tasks.iter().map(|(task, desired_state)| {
            Assignment::Task(TaskAssignment { task: (*task).clone(), desired_state: *desired_state })
        });
        let sequence = self.wanted.borrow().0 + 1;
        self.wanted.send_replace((sequence, items.collect()));
    }

    pub(crate) async fn wait(&self, task: &Task, state: TaskState) {
        self.heard.wait(&format!("{} {}", task.id, state.word())).await;
    }

    pub(crate) fn pid(&self, task: &Task) -> u32 {
        let log = self.heard.log.lock().unwrap();
        let prefix = format!("{} Running", task.id);
        let running = log.iter().rev().find(|line| line.starts_with(&prefix)).unwrap();
        running.rsplit_once('=').unwrap().1.parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let parents =
            ["", "memory", "cpu", "pids", "unified", "cpuacct", "cpuset", "devices", "freezer", "blkio", "systemd"];
        for parent in parents.map(|controller| Path::new("/sys/fs/cgroup").join(controller).join(&self.cgroup[1..])) {
            for child in fs::read_dir(&parent).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
                let procs = fs::read_to_string(child.path().join("cgroup.procs")).unwrap_or_default();
                for pid in procs.lines().filter_map(|pid| pid.parse().ok()) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
                for _ in 0..100 {
                    if fs::remove_dir(child.path()).is_ok() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            let _ = fs::remove_dir(parent);
        }
        for entry in fs::read_dir(self.paths.netns_dir()).into_iter().flatten().flatten() {
            remove_netns(&entry.path());
        }
        for entry in fs::read_dir(self.paths.worker_dir().join("containers")).into_iter().flatten().flatten() {
            let _ = crate::image::rootfs::Rootfs::inside(&entry.path()).delete();
        }
    }
}

fn identity(root: &RootCa, cluster: &ClusterId, node: &NodeId, role: NodeRole) -> Identity {
    let keys = new_key_and_csr().unwrap();
    let cert = sign_csr(root, &keys.csr_pem, node, cluster, role, HOUR, SystemTime::now()).unwrap();
    Identity::from_pem(root.cert_pem.clone(), cert, keys.key_pem.to_string()).unwrap()
}

/// Imports an image of busybox and nothing else as `box:latest`.
pub(crate) fn import_box(store: &ImageStore) {
    let busybox = fs::read("/bin/busybox").expect("these tests need busybox: apt-get install busybox-static");
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        tar.append_data(&mut header, name, content).unwrap();
    };
    for folder in ["bin", "etc", "tmp", "proc", "sys", "dev", "data"] {
        add(tar::EntryType::Directory, folder, "", &[]);
    }
    add(tar::EntryType::Regular, "bin/busybox", "", &busybox);
    add(tar::EntryType::Regular, "data/seed", "", b"from the image\n");
    for program in ["sh", "cat", "echo", "sleep"] {
        add(tar::EntryType::Symlink, &format!("bin/{program}"), "busybox", &[]);
    }
    let tar = tar.into_inner().unwrap();
    let layer = store.put_bytes(&tar, None).unwrap();
    let mut config = ImageConfig::default();
    config.config.env = vec!["PATH=/bin".to_owned()];
    let image = import::import(store, &layer, config, "").unwrap();
    store.set_name(&Reference::parse("box").unwrap(), &image.digest).unwrap();
}

pub(crate) fn task(n: u128, image: &str, command: &[&str]) -> Arc<Task> {
    task_with(
        n,
        ContainerSpec {
            image: image.to_owned(),
            command: command.iter().map(|&arg| arg.to_owned()).collect(),
            stop_grace_period: Some(Duration::from_millis(300)),
            ..Default::default()
        },
    )
}

pub(crate) fn task_with(n: u128, container: ContainerSpec) -> Arc<Task> {
    let at = Timestamp::from_unix_ms(1);
    let status = TaskStatus { state: TaskState::Assigned, at, message: String::new(), error: None, container: None };
    Arc::new(Task {
        id: TaskId::from_random(n + (u128::from(std::process::id()) << 64)),
        meta: Meta { created_at: at, ..Meta::default() },
        service: ServiceId::from_random(7),
        service_annotations: Arc::new(Annotations { name: "web".to_owned(), ..Default::default() }),
        slot: 1,
        node: Some(NodeId::from_random(2)),
        spec: Arc::new(TaskSpec { container, ..Default::default() }),
        spec_version: Default::default(),
        status,
        desired_state: TaskState::Running,
        start_at: None,
        networks: Vec::new(),
        host_ports: Vec::new(),
        running_since: None,
        generic: orch_model::node::GenericResources::default(),
        displaced: false,
    })
}

pub(crate) async fn wait_until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, wait).await.expect("it does not come true");
}

pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}
