//! The manager's process: opens its folder, starts raft, serves, and stops cleanly when told to.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use arc_swap::ArcSwapOption;
use orch_model::{ClusterId, NodeId, Timestamp};
use orch_proto::{
    files,
    metrics::MetricsLayer,
    paths::Paths,
    tls::{self, SharedIdentity, UnlockKey},
    transport,
    wire::{
        ca_server::CaServer, control_server::ControlServer, daemon_config::FirstStart,
        dispatcher_server::DispatcherServer, lock_server::LockServer, raft_server::RaftServer,
        streams_server::StreamsServer,
    },
};
use tokio::{
    net::TcpListener,
    runtime::{Handle, Runtime},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tonic::transport::Server;

use crate::{
    ailing,
    api::{Budget, CaService, ControlService, Forwarder, GateLayer, Origin, Register},
    autolock::{self, Unlocked},
    dispatcher::DispatcherService,
    home::Home,
    lanes,
    leader::{self, Throne},
    log::{KeyRing, LogEngine as _, SealError, Sealer, SledEngine},
    membership::Entrance,
    metrics::{self, CallTimes},
    raft::{self, Compaction, Consensus, Member, Proposer, RaftService, Settings, TlsDial, WallClock},
    streams::StreamsService,
};

const SOCKET_MODE: u32 = 0o660;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Calls on one connection; more wait at the client.
const STREAMS_PER_CONNECTION: u32 = 256;
const HEADER_LIMIT_BYTES: u32 = 16 * 1024;
/// One message of a node's stream: a piece of a log or of a command's output, which workers cut at 64 KiB.
const STREAM_MESSAGE_BYTES: usize = 256 * 1024;
/// For calls in progress when the daemon is told to stop; watches and sessions would go on for ever.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What the daemon is started with; the rest is in its folder.
#[derive(Debug, Clone)]
pub struct Config {
    pub paths: Paths,
}

/// Runs the manager until SIGTERM or an error that a restart of the process would not cure by itself.
pub fn run(config: Config) -> anyhow::Result<()> {
    start_logging();
    raise_descriptor_limit();
    files::make_room();
    tls::install_crypto_provider();
    let main = runtime("manager", 2)?;
    // Raft's parts wait for each other in turn: on one thread they do so without waking anybody.
    let raft = runtime("raft", 1)?;
    let outcome = main.block_on(serve(&config.paths, &raft));
    // Tasks that still run have nothing to lose: the log is safe at any instant.
    raft.shutdown_timeout(STOP_LIMIT);
    main.shutdown_timeout(STOP_LIMIT);
    outcome
}

/// The connections that the listener admits need more than the usual 1024 descriptors.
fn raise_descriptor_limit() {
    if let Err(error) = files::raise_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files: fewer connections are possible");
    }
}

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "info,openraft=error,sled=warn".into());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would panic where what it writes to is on a disk that is full.
        .log_internal_errors(false)
        .with_ansi(false);
    // A test, or the binary's main function, may have one already.
    let _ = subscriber.try_init();
}

fn runtime(name: &str, threads: usize) -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .context("cannot start threads")
}

async fn serve(paths: &Paths, raft_runtime: &Runtime) -> anyhow::Result<()> {
    let mut stop = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let (asked, told) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = stop.recv() => {}
            _ = interrupt.recv() => {}
        }
        asked.send_replace(true);
    });
    let outcome = open_and_run(paths, raft_runtime, &told).await;
    if let Err(error) = &outcome {
        ailing::complain(paths, error, until_true(&told)).await;
    }
    outcome
}

async fn open_and_run(paths: &Paths, raft_runtime: &Runtime, told: &watch::Receiver<bool>) -> anyhow::Result<()> {
    let manager = match Manager::open(paths, raft_runtime.handle(), None).await {
        Err(error) if matches!(error.downcast_ref(), Some(SealError::Locked { .. })) => {
            let stopping = std::pin::pin!(until_true(told));
            let Some(key) = autolock::wait_for_key(paths, stopping).await? else { return Ok(()) };
            Manager::open(paths, raft_runtime.handle(), Some(key)).await?
        }
        opened => opened?,
    };
    manager.run(until_true(told)).await
}

/// A manager that is ready to serve.
pub struct Manager {
    home: Arc<Home>,
    config: orch_proto::wire::DaemonConfig,
    identity: SharedIdentity,
    node: NodeId,
    fence: Option<Timestamp>,
    sealer: Arc<Sealer>,
    unlock: Option<UnlockKey>,
    consensus: Consensus,
    proposer: Proposer,
    throne: Throne,
    listener: TcpListener,
    socket: transport::UnixIncoming,
}

impl Manager {
    /// Opens the folder, starts raft on `raft_runtime` and listens. Locked keys need the cluster's unlock key.
    pub async fn open(paths: &Paths, raft_runtime: &Handle, unlock: Option<UnlockKey>) -> anyhow::Result<Self> {
        let home = Arc::new(Home::open(paths)?);
        let config = home.config()?;
        let node: NodeId = config.node_id.parse().context("daemon.pb: node_id")?;
        let cluster: ClusterId = config.cluster_id.parse().context("daemon.pb: cluster_id")?;
        let ring = match home.has_log() {
            true => KeyRing::load_for(&home.log(), &home.keys(), unlock.as_ref())?,
            false => KeyRing::load_or_create(&home.keys(), unlock.as_ref())?,
        };
        let sealer = Arc::new(Sealer::new(ring, cluster.clone(), node.clone()));
        let open_key = autolock::open_tls_key(Arc::clone(&sealer), home.tls());
        let identity = SharedIdentity::follow_sealed(&home.tls(), open_key)
            .with_context(|| format!("this manager's certificate in {}", home.tls().display()))?;
        let own = identity.current();
        anyhow::ensure!(
            own.cluster_id == cluster && own.node_id == node,
            "the certificate in {} belongs to node {} of cluster {}, and daemon.pb says node {node} of cluster {cluster}",
            home.tls().display(),
            own.node_id,
            own.cluster_id
        );
        // Listening comes before raft, so that a taken port is found before anything is written.
        let addr: SocketAddr = config.listen_addr.parse().with_context(|| {
            format!("{:?} is not an address to listen on: expected ADDRESS:PORT", config.listen_addr)
        })?;
        let listener = TcpListener::bind(addr)
            .await
            .with_context(|| format!("cannot listen on {addr}: is another program using that port?"))?;
        let raft_id = home.raft_id()?;
        let (log, keys) = (home.log(), home.keys());
        let engine = Arc::new(SledEngine::open(&log)?);
        let alone = matches!(config.first_start, Some(FirstStart::ForceNewCluster(_)));
        if alone {
            anyhow::ensure!(!engine.is_empty()?, "this manager has no raft log to go on with");
            home.note_alone()?;
        }
        let own = Member { node_id: config.node_id.clone(), addr: config.advertise_addr.clone() };
        let settings = Settings {
            raft_id,
            cluster,
            dial: Arc::new(TlsDial(identity.clone())),
            clock: WallClock::system(),
            engine,
            sealer: Arc::clone(&sealer),
            snapshots: home.snapshots(),
            compaction: Compaction::default(),
            force_single: alone.then_some(own),
        };
        let consensus = Consensus::start(settings, raft_runtime)
            .await
            .with_context(|| format!("the raft log in {} (or the keys in {})", log.display(), keys.display()))?;
        let proposer = Proposer::start(consensus.clone());
        let socket = transport::unix_incoming(&paths.manager_sock(), SOCKET_MODE)?;
        let throne = Arc::new(ArcSwapOption::empty());
        let fence = home.fence()?;
        Ok(Self { home, config, identity, node, fence, sealer, unlock, consensus, proposer, throne, listener, socket })
    }

    /// The replicated state and who leads, for tests.
    #[must_use]
    pub fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    /// Serves until `stopping` completes, then hands leadership over and stops.
    pub async fn run(self, stopping: impl Future<Output = ()>) -> anyhow::Result<()> {
        let (stop, stopped) = watch::channel(false);
        let consensus = self.consensus.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(Self::as_task("leading", {
            let work = leader::watch(consensus.clone(), self.proposer.clone(), Arc::clone(&self.throne));
            async {
                work.await;
                Ok::<(), std::convert::Infallible>(())
            }
        }));
        let (home, sealer, unlock) = (Arc::clone(&self.home), Arc::clone(&self.sealer), self.unlock.clone());
        tasks.spawn(Self::as_task("keeping keys locked", {
            let work = autolock::keep(home, consensus.clone(), sealer, unlock);
            async {
                work.await;
                Ok::<(), std::convert::Infallible>(())
            }
        }));
        tasks.spawn(Self::as_task("keeping the log small", {
            let consensus = consensus.clone();
            async move {
                consensus.keep_log_small().await;
                Ok::<(), std::convert::Infallible>(())
            }
        }));
        let entrance = Entrance {
            home: Arc::clone(&self.home),
            config: self.config.clone(),
            consensus: consensus.clone(),
            proposer: self.proposer.clone(),
            identity: self.identity.clone(),
        };
        let entering = tokio::spawn(async move {
            entrance.enter().await?;
            entrance.stay().await
        });
        tracing::info!(node = self.config.node_id, addr = self.config.listen_addr, "manager started");
        self.start_servers(&mut tasks, &stopped);
        let mut leadership = consensus.leadership();
        let outcome = tokio::select! {
            () = stopping => Ok(()),
            failed = leadership.wait_for(|l| l.failed.is_some()) => {
                Err(raft_stopped(failed.ok().and_then(|l| l.failed.clone()).unwrap_or_default()))
            }
            ended = ended_early(entering) => ended,
            Some(ended) = tasks.join_next() => ended.context("a task of the manager failed")?,
        };
        // Tasks end with raft, and may be seen first.
        let failed = consensus.leadership().borrow().failed.clone();
        let outcome = outcome.and(failed.map_or(Ok(()), |reason| Err(raft_stopped(reason))));
        tracing::info!("manager is stopping");
        consensus.hand_over().await;
        stop.send_replace(true);
        let rest = async { while tasks.join_next().await.is_some() {} };
        // What is left is streams without an end.
        let _ = timeout(STOP_LIMIT, rest).await;
        consensus.shutdown().await;
        outcome
    }

    fn start_servers(self, tasks: &mut JoinSet<anyhow::Result<()>>, stopped: &watch::Receiver<bool>) {
        let Self { identity, node, fence, consensus, proposer, throne, listener, socket, .. } = self;
        let forwarder = Forwarder::new(identity.clone());
        let budget = Budget::default();
        let register = Register::new(consensus.clone(), node, fence);
        let gate = |origin| {
            let (consensus, throne) = (consensus.clone(), Arc::clone(&throne));
            GateLayer::new(origin, consensus, throne, forwarder.clone(), register.clone(), budget.clone())
        };
        let times = CallTimes::new();
        let control = ControlService::new(consensus.clone(), Arc::clone(&throne), identity.clone());
        let raft_service = RaftServer::new(RaftService::new(consensus.clone(), proposer.clone()))
            .max_decoding_message_size(raft::MESSAGE_LIMIT_BYTES)
            .max_encoding_message_size(raft::MESSAGE_LIMIT_BYTES);
        let streams = StreamsServer::new(StreamsService::new(consensus.clone(), Arc::clone(&throne)))
            .max_decoding_message_size(STREAM_MESSAGE_BYTES);
        let listening = || {
            Server::builder()
                .http2_keepalive_interval(Some(KEEP_ALIVE))
                .http2_keepalive_timeout(Some(KEEP_ALIVE))
                .http2_max_header_list_size(HEADER_LIMIT_BYTES)
                .max_concurrent_streams(STREAMS_PER_CONNECTION)
                .tcp_nodelay(true)
        };
        let between_managers =
            listening().layer(times.clone()).layer(gate(Origin::Network)).add_service(raft_service.clone());
        let network = listening()
            .layer(times.clone())
            .layer(gate(Origin::Network))
            .add_service(raft_service)
            .add_service(ControlServer::new(control.clone()))
            .add_service(CaServer::new(CaService::new(consensus.clone(), Arc::clone(&throne))))
            .add_service(DispatcherServer::new(DispatcherService::new(consensus.clone(), Arc::clone(&throne))))
            .add_service(streams);
        let page = {
            let (consensus, throne, budget) = (consensus.clone(), Arc::clone(&throne), budget.clone());
            MetricsLayer::new(move || metrics::page(&consensus, &proposer, &throne, &budget))
        };
        let local = Server::builder()
            // For /metrics only; whoever calls anything else this way is refused.
            .accept_http1(true)
            .layer(page)
            .http2_max_header_list_size(HEADER_LIMIT_BYTES)
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .layer(times)
            .layer(gate(Origin::LocalSocket))
            .add_service(ControlServer::new(control))
            .add_service(CaServer::new(CaService::new(consensus.clone(), Arc::clone(&throne))))
            .add_service(LockServer::new(Unlocked));
        let (connections, incoming) = transport::tls_doors(listener, identity);
        tasks.spawn(async move { match register.show_out(connections).await {} });
        let (for_raft, incoming) = lanes::split(incoming, consensus.runtime().clone());
        let (network_stop, local_stop, raft_stop) = (until_true(stopped), until_true(stopped), until_true(stopped));
        let serve_raft = async move { between_managers.serve_with_incoming_shutdown(for_raft, raft_stop).await };
        tasks.spawn_on(Self::as_task("the server between managers", serve_raft), consensus.runtime());
        tasks.spawn(Self::as_task("the network server", async move {
            network.serve_with_incoming_shutdown(incoming, network_stop).await
        }));
        tasks.spawn(Self::as_task("the local server", async move {
            local.serve_with_incoming_shutdown(socket, local_stop).await
        }));
    }

    async fn as_task<E>(what: &'static str, work: impl Future<Output = Result<(), E>>) -> anyhow::Result<()>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        work.await.with_context(|| format!("{what} failed"))
    }
}

fn raft_stopped(reason: String) -> anyhow::Error {
    anyhow::anyhow!("raft stopped: {reason}")
}

/// Completes only when entering failed: a manager that is in stays.
async fn ended_early(
    entering: tokio::task::JoinHandle<Result<std::convert::Infallible, crate::membership::MembershipError>>,
) -> anyhow::Result<()> {
    match entering.await {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(error.into()),
    }
}

fn until_true(flag: &watch::Receiver<bool>) -> impl Future<Output = ()> + use<> {
    let mut flag = flag.clone();
    async move {
        // A sender that is gone means stopping, too.
        let _ = flag.wait_for(|stop| *stop).await;
    }
}
