//! The supervisor's socket, and its life from start to SIGTERM.

use std::{pin::Pin, sync::Arc};

use anyhow::{Context as _, Result};
use futures::Stream;
use orch_proto::{
    metrics::{MetricsLayer, Page},
    paths::Paths,
    tls::{Identity, TlsError},
    transport::unix_incoming,
    wire::{
        self,
        node_control_server::{NodeControl, NodeControlServer},
    },
};
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{
    broken,
    daemon::{Role, bound_own_log, log_file},
    gossip::{self, Gossip},
    init, join, leave, moved, rejoin, renew, reset, role,
    supervisor::Supervisor,
};

const SOCKET_MODE: u32 = 0o660;

pub(super) async fn serve(paths: Paths) -> Result<()> {
    let socket = paths.node_sock();
    let supervisor = Arc::new(Supervisor::open(paths)?);
    let incoming = unix_incoming(&socket, SOCKET_MODE)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    start_member(&supervisor)?;
    let log = tokio::spawn(bound_own_log(log_file(&supervisor.paths, "node")));
    let leaving = tokio::spawn(leave::go_on(Arc::clone(&supervisor)));
    let renewal = tokio::spawn(renew::keep_fresh(Arc::clone(&supervisor)));
    let address = tokio::spawn(moved::keep_address(Arc::clone(&supervisor)));
    let following = tokio::spawn(role::follow(Arc::clone(&supervisor)));
    let gossip = Gossip::new();
    let gossiping = tokio::spawn(gossip::run(Arc::clone(&supervisor), gossip.clone()));
    let page = {
        let supervisor = Arc::clone(&supervisor);
        MetricsLayer::new(move || metrics_page(&supervisor))
    };
    let service = NodeControlServer::new(NodeService { supervisor: Arc::clone(&supervisor), gossip });
    // A client that stays connected must not keep the supervisor from stopping, so there is no graceful drain.
    let served = tokio::select! {
        served = Server::builder().accept_http1(true).layer(page).add_service(service).serve_with_incoming(incoming) => {
            served.context("the supervisor's socket failed")
        }
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    tracing::info!("stopping; containers go on");
    log.abort();
    leaving.abort();
    renewal.abort();
    address.abort();
    following.abort();
    gossiping.abort();
    supervisor.stop_daemons().await;
    super::files::remove_file(&socket)?;
    served
}

/// What the supervisor tells Prometheus.
fn metrics_page(supervisor: &Supervisor) -> Page {
    let mut page = Page::default();
    let daemons = supervisor.daemon_infos();
    let each = |value: fn(&wire::DaemonInfo) -> u64| {
        daemons.iter().map(move |daemon| (daemon.name.clone(), value(daemon))).collect::<Vec<_>>()
    };
    page.gauges("daemon_up", "1 while the daemon runs", "daemon", each(|daemon| u64::from(daemon.pid != 0)));
    page.gauges("daemon_restarts", "How often the daemon was started again", "daemon", each(|daemon| daemon.restarts));
    page.gauge("node_in_cluster", "1 while this machine is in a cluster", supervisor.member().is_some().into());
    page
}

/// Starts the daemons of the cluster that this node is in.
fn start_member(supervisor: &Supervisor) -> Result<()> {
    let Some(member) = supervisor.member() else {
        tracing::info!("this node is in no cluster; \"orch init\" makes one, \"orch join\" joins one");
        return Ok(());
    };
    tracing::info!(node = member.node_id, cluster = member.cluster_id, manager = member.manager, "starting");
    if member.manager {
        supervisor.start_daemon(Role::Manager)?;
    } else {
        // A demotion may have been cut short.
        supervisor.wipe_manager()?;
    }
    // All of it is in the state file, so a lost or damaged one keeps nobody from starting; nor does a full disk.
    if let Err(error) = supervisor.restore_config(Role::Worker, &init::daemon_config(&member, None)) {
        tracing::warn!("cannot write what the worker starts from: {error:#}");
    }
    supervisor.start_daemon(Role::Netd)?;
    supervisor.start_daemon(Role::Worker)
}

struct NodeService {
    supervisor: Arc<Supervisor>,
    gossip: Gossip,
}

impl NodeService {
    fn info_now(&self) -> wire::NodeInfo {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let daemons = self.supervisor.daemon_infos();
        let broken_files = broken::files(&self.supervisor.paths);
        match self.supervisor.member() {
            None => {
                wire::NodeInfo { state: "inactive".to_owned(), version, daemons, broken_files, ..Default::default() }
            }
            Some(member) => wire::NodeInfo {
                state: "active".to_owned(),
                error: rejoin::expired(&self.supervisor).map(|old| own_expiry(&old)).unwrap_or_default(),
                node_id: member.node_id,
                cluster_id: member.cluster_id,
                manager: member.manager,
                advertise_addr: member.advertise_addr,
                managers: member.managers,
                version,
                daemons,
                broken_files,
            },
        }
    }
}

fn own_expiry(old: &Identity) -> String {
    TlsError::OwnCertificateExpired { not_after: old.not_after() }.to_string()
}

/// Lets an operation finish (or undo itself) although the caller has gone.
async fn detached<T: Send + 'static>(
    operation: impl Future<Output = super::error::Result<T>> + Send + 'static,
) -> Result<Response<T>, Status> {
    match tokio::spawn(operation).await {
        Ok(result) => Ok(Response::new(result?)),
        Err(error) => Err(Status::internal(format!("the supervisor failed: {error}"))),
    }
}

#[tonic::async_trait]
impl NodeControl for NodeService {
    type GossipStream = Pin<Box<dyn Stream<Item = Result<wire::GossipView, Status>> + Send>>;

    async fn gossip(
        &self,
        request: Request<Streaming<wire::GossipConfig>>,
    ) -> Result<Response<Self::GossipStream>, Status> {
        Ok(Response::new(self.gossip.exchange(request.into_inner())))
    }

    async fn init(&self, request: Request<wire::InitRequest>) -> Result<Response<wire::InitResponse>, Status> {
        let supervisor = Arc::clone(&self.supervisor);
        detached(async move { init::init(&supervisor, request.into_inner()).await }).await
    }

    async fn join(&self, request: Request<wire::JoinNodeRequest>) -> Result<Response<wire::JoinNodeResponse>, Status> {
        let supervisor = Arc::clone(&self.supervisor);
        detached(async move { join::join(&supervisor, request.into_inner()).await }).await
    }

    async fn leave(&self, request: Request<wire::LeaveNodeRequest>) -> Result<Response<wire::Empty>, Status> {
        let supervisor = Arc::clone(&self.supervisor);
        detached(async move { leave::leave(&supervisor, request.into_inner()).await }).await
    }

    async fn reset_manager(
        &self,
        _request: Request<wire::Empty>,
    ) -> Result<Response<wire::ResetManagerResponse>, Status> {
        let supervisor = Arc::clone(&self.supervisor);
        detached(async move { reset::reset_manager(&supervisor).await }).await
    }

    async fn info(&self, _request: Request<wire::Empty>) -> Result<Response<wire::NodeInfo>, Status> {
        Ok(Response::new(self.info_now()))
    }
}
