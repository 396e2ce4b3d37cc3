//! The `Dispatcher` service. The caller's certificate was checked; here it says which node it is, and only that node's
//! things are touched.

use std::{collections::BTreeSet, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use async_stream::try_stream;
use futures::Stream;
use orch_manager_core::{
    control::{Registration, forget_image, keep_containers, register_image},
    encryption,
    liveness::WATCHERS,
};
use orch_model::{
    NodeId, Object, SessionId, TaskId,
    change::{Change, Transaction},
    node::{Node, NodeDescription, NodeState, NodeStatus, Platform},
    task::TaskStatus,
};
use orch_proto::{
    conv::{FromProto, ToProto},
    tls::{peer_identity, remote_addr},
    wire::{self, dispatcher_server},
};
use prost::Message;
use rand::Rng;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{containers, guide::Guide, reign::Reign};
use crate::{
    api::status,
    leader::Throne,
    raft::{Consensus, ProposeError, View},
    random,
};

/// Heartbeats are spread by this much either way, so that they do not come all at once.
const HEARTBEAT_SPREAD_MS: u64 = 500;
/// Status updates in one transaction.
const UPDATES_PER_TRANSACTION: usize = 200;
/// Status updates in one call.
const UPDATES_PER_CALL: usize = 10_000;
/// What a status may say of a task, and what went wrong: every manager keeps it in memory and in its log.
const STATUS_TEXT_BYTES: usize = 4096;
const CONTAINER_ID_BYTES: usize = 128;
/// A node's description; labels and generic resources are the most of it.
const DESCRIPTION_BYTES: usize = 256 << 10;
/// Names and a digest.
const REGISTRATION_BYTES: usize = 4096;
const ATTEMPTS: usize = 5;

/// Answers agents; only the leader does.
pub struct DispatcherService {
    consensus: Consensus,
    throne: Throne,
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl DispatcherService {
    #[must_use]
    pub fn new(consensus: Consensus, throne: Throne) -> Self {
        Self { consensus, throne }
    }

    fn reign(&self) -> Result<Arc<Reign>, Status> {
        self.throne.load_full().ok_or_else(|| status::not_leader(&self.consensus.leadership().borrow()))
    }

    /// The caller, if it is still part of the cluster.
    fn caller<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let peer = peer_identity(request)
            .ok_or_else(|| Status::unauthenticated("this call needs the certificate of a node of this cluster"))?;
        if self.consensus.store().view().state.node(&peer.node_id).is_none() {
            return Err(status::removed(&peer.node_id));
        }
        Ok(peer.node_id.clone())
    }

    fn session_of<T>(&self, request: &Request<T>, session: &str) -> Result<(Arc<Reign>, NodeId), Status> {
        let reign = self.reign()?;
        let node = self.caller(request)?;
        if !reign.sessions.heard(&node, session) {
            return Err(no_session());
        }
        Ok((reign, node))
    }
}

#[tonic::async_trait]
impl dispatcher_server::Dispatcher for DispatcherService {
    type SessionStream = Outgoing<wire::SessionMessage>;
    type PingsStream = Outgoing<wire::Pong>;
    type AssignmentsStream = Outgoing<wire::AssignmentsMessage>;

    async fn session(&self, request: Request<wire::SessionRequest>) -> Result<Response<Self::SessionStream>, Status> {
        let reign = self.reign()?;
        let node = self.caller(&request)?;
        let remote = remote_addr(&request).map(|addr| addr.ip().to_canonical());
        let description = request.into_inner().description;
        let description = description.ok_or_else(|| Status::invalid_argument("a session without a description"))?;
        check_size("a node's description", &description, DESCRIPTION_BYTES)?;
        let description = NodeDescription::from_proto(description).map_err(invalid)?;
        let registered = register(&reign, &node, &description, remote).await?;
        let session = SessionId::from_random(random::bits());
        tracing::info!(node = %node, hostname = description.hostname, "agent session opened");
        Ok(Response::new(session_stream(reign, registered, session)))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        let session = request.get_ref().session_id.clone();
        let (reign, _) = self.session_of(&request, &session)?;
        Ok(Response::new(wire::HeartbeatResponse { period_ms: heartbeat_ms(&reign.consensus.store().view()) }))
    }

    async fn pings(&self, request: Request<Streaming<wire::Ping>>) -> Result<Response<Self::PingsStream>, Status> {
        let reign = self.reign()?;
        let node = self.caller(&request)?;
        let mut ended = reign.ended();
        let mut pings = request.into_inner();
        let stream = try_stream! {
            let mut session = String::new();
            loop {
                let ping = tokio::select! {
                    () = ended.over() => Err(status::not_leader(&reign.consensus.leadership().borrow())),
                    ping = pings.message() => ping,
                };
                let Some(ping) = ping? else { break };
                if session.is_empty() {
                    session = ping.session_id;
                }
                if !reign.sessions.heard(&node, &session) {
                    Err(no_session())?;
                }
                if let Some(view) = ping.view {
                    reign.sessions.reported(&node, peers_out_of_sight(&view), view.deaf);
                }
                yield wire::Pong { period_ms: ping_ms(&reign) };
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn assignments(
        &self,
        request: Request<wire::AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        let session = request.get_ref().session_id.clone();
        let (reign, node) = self.session_of(&request, &session)?;
        let session: SessionId = session.parse().map_err(invalid)?;
        let mut ended = reign.ended();
        let mut increments = reign.assigner.subscribe(node.clone(), session.clone()).await;
        let leave = OnDrop::new({
            let assigner = reign.assigner.clone();
            move || {
                tokio::spawn(async move { assigner.gone(node, session).await });
            }
        });
        drop(reign);
        let stream = try_stream! {
            let _leave = leave;
            loop {
                let increment = tokio::select! {
                    () = ended.over() => None,
                    increment = increments.recv() => increment,
                };
                let Some(increment) = increment else {
                    Err(Status::unavailable("the assignments start over: subscribe again"))?;
                    break;
                };
                for message in increment {
                    yield message;
                }
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn ack(&self, request: Request<wire::AckRequest>) -> Result<Response<wire::Empty>, Status> {
        let session = request.get_ref().session_id.clone();
        let (reign, node) = self.session_of(&request, &session)?;
        reign.assigner.ack(node, session, request.get_ref().sequence).await;
        Ok(Response::new(wire::Empty {}))
    }

    async fn update_task_status(
        &self,
        request: Request<wire::UpdateTaskStatusRequest>,
    ) -> Result<Response<wire::Empty>, Status> {
        let session = request.get_ref().session_id.clone();
        let (reign, node) = self.session_of(&request, &session)?;
        let updates = request.into_inner().updates;
        if updates.len() > UPDATES_PER_CALL {
            return Err(Status::invalid_argument(format!("more than {UPDATES_PER_CALL} status updates in one call")));
        }
        let changes = updates.into_iter().map(|u| status_change(u, &node)).collect::<Result<Vec<_>, _>>()?;
        for part in changes.chunks(UPDATES_PER_TRANSACTION) {
            reign.proposer.propose(part.to_vec()).await.map_err(|e| status::from_propose(&e))?;
        }
        Ok(Response::new(wire::Empty {}))
    }

    async fn register_image(
        &self,
        request: Request<wire::RegisterImageRequest>,
    ) -> Result<Response<wire::RegisterImageResponse>, Status> {
        let reign = self.reign()?;
        let node = self.caller(&request)?;
        let request = request.into_inner();
        check_size("the registration of an image", &request, REGISTRATION_BYTES)?;
        let registration = Registration {
            node,
            name: request.name,
            digest: request.digest,
            size_bytes: request.size_bytes,
            platform: request.platform.map(Platform::from_proto).transpose().map_err(invalid)?,
            replace: request.replace,
            holder_only: request.holder_only,
        };
        commit(&reign, |view, now| register_image(&view.state, now, &mut random::bits, &registration)).await?;
        let view = reign.consensus.store().view();
        let image = view.state.images().find(|i| {
            i.digest == registration.digest && (registration.holder_only || same_name(&i.name, &registration.name))
        });
        Ok(Response::new(wire::RegisterImageResponse { image: image.map(ToProto::to_proto) }))
    }

    async fn forget_image(&self, request: Request<wire::ForgetImageRequest>) -> Result<Response<wire::Empty>, Status> {
        let reign = self.reign()?;
        let node = self.caller(&request)?;
        let wire::ForgetImageRequest { name, digest } = request.into_inner();
        commit(&reign, |view, now| forget_image(&view.state, now, &node, &name, &digest)).await?;
        Ok(Response::new(wire::Empty {}))
    }

    async fn set_container_networks(
        &self,
        request: Request<wire::SetContainerNetworksRequest>,
    ) -> Result<Response<wire::SetContainerNetworksResponse>, Status> {
        let session = request.get_ref().session_id.clone();
        let (reign, node) = self.session_of(&request, &session)?;
        containers::set_networks(&reign, node, request.into_inner()).await.map(Response::new)
    }

    async fn keep_containers(
        &self,
        request: Request<wire::KeepContainersRequest>,
    ) -> Result<Response<wire::Empty>, Status> {
        let session = request.get_ref().session_id.clone();
        let (reign, node) = self.session_of(&request, &session)?;
        let kept = request.into_inner().task_ids.iter().filter_map(|id| id.parse().ok()).collect();
        commit(&reign, |view, now| keep_containers(&view.state, now, &node, &kept)).await?;
        Ok(Response::new(wire::Empty {}))
    }
}

fn no_session() -> Status {
    status::with_code(Code::FailedPrecondition, "no-session", "this session has ended: open a new one")
}

fn peers_out_of_sight(view: &wire::GossipView) -> BTreeSet<NodeId> {
    // It watches no more than this; what is no id is nobody's.
    view.unreachable.iter().take(WATCHERS).filter_map(|id| id.parse().ok()).collect()
}

/// Writes what the node says of itself and that it is there.
async fn register(
    reign: &Reign,
    id: &NodeId,
    description: &NodeDescription,
    remote: Option<IpAddr>,
) -> Result<Arc<Node>, Status> {
    let now = reign.proposer.now();
    let store = reign.consensus.store();
    let edited = reign.edit_node(id, |node| {
        node.description = description.clone();
        node.description.encryption = encryption::believed(&store.view().state, id, description);
        let addr = session_addr(node, remote);
        let since = if node.status.state == NodeState::Ready { node.status.since } else { now };
        node.status = NodeStatus { state: NodeState::Ready, message: String::new(), addr, since };
    });
    let node = edited.await.map_err(|e| status::from_propose(&e))?;
    node.ok_or_else(|| status::removed(id))
}

/// A manager's own worker comes through the loopback interface; others reach it by the manager's address.
fn session_addr(node: &Node, remote: Option<IpAddr>) -> Option<IpAddr> {
    let is_local = remote.is_none_or(|addr| addr.is_loopback());
    let advertised = node.manager.as_ref().filter(|_| is_local).and_then(|manager| host_of(&manager.addr));
    advertised.or(remote).or(node.status.addr)
}

fn host_of(addr: &str) -> Option<IpAddr> {
    addr.parse::<std::net::SocketAddr>().ok().map(|addr| addr.ip())
}

fn session_stream(reign: Arc<Reign>, node: Arc<Node>, session: SessionId) -> Outgoing<wire::SessionMessage> {
    let (mut announcements, calls) = reign.sessions.open(node.id.clone(), session.clone());
    let mut guides = reign.guide.subscribe();
    let mut ended = reign.ended();
    let weak = Arc::downgrade(&reign);
    let leave = OnDrop::new({
        let (node, session) = (node.id.clone(), session.clone());
        move || {
            if let Some(reign) = weak.upgrade() {
                reign.sessions.close(&node, &session);
            }
        }
    });
    Box::pin(try_stream! {
        let _leave = leave;
        let view = reign.consensus.store().view();
        let mut told = Told::new(node, &guides.borrow_and_update());
        let mut first = told.message(&session);
        first.heartbeat_period_ms = heartbeat_ms(&view);
        drop(view);
        yield first;
        loop {
            let news = tokio::select! {
                () = ended.over() => News::Ended,
                announcement = announcements.recv() => announcement.map_or(News::Replaced, News::Stream),
                () = calls.news.notified() => News::State,
                () = calls.ping.notified() => News::Ping,
                _ = guides.changed() => News::State,
            };
            let message = match news {
                News::Ended => Err(status::not_leader(&reign.consensus.leadership().borrow())),
                News::Replaced => {
                    Err(Status::aborted("this session was replaced by another, or the node counts as down"))
                }
                News::Stream(announcement) => {
                    Ok(Some(wire::SessionMessage { streams: vec![announcement], ..wire::SessionMessage::default() }))
                }
                News::Ping => Ok(Some(wire::SessionMessage { ping: true, ..wire::SessionMessage::default() })),
                News::State => told.update(&reign, &session),
            };
            let Some(mut message) = message? else { continue };
            message.session_id = session.to_string();
            yield message;
        }
    })
}

/// Why a session's stream woke up.
enum News {
    Ended,
    Replaced,
    Stream(wire::StreamAnnouncement),
    Ping,
    State,
}

/// What the agent was last told of its node and the others.
struct Told {
    node: Arc<Node>,
    guide: Arc<Guide>,
    gossip: wire::GossipConfig,
}

impl Told {
    fn new(node: Arc<Node>, guide: &Arc<Guide>) -> Self {
        let gossip = guide.gossip(&node.id);
        Self { node, guide: Arc::clone(guide), gossip }
    }

    /// The next message, if something has changed that the agent should know.
    fn update(&mut self, reign: &Reign, session: &SessionId) -> Result<Option<wire::SessionMessage>, Status> {
        let view = reign.consensus.store().view();
        let Some(node) = view.state.node(&self.node.id) else {
            return Err(status::removed(&self.node.id));
        };
        let guide = reign.guide.borrow().clone();
        let same_node = node.spec == self.node.spec && node.role == self.node.role;
        if same_node && Arc::ptr_eq(&guide, &self.guide) {
            return Ok(None);
        }
        let now = Self::new(Arc::clone(node), &guide);
        let is_known = same_node
            && now.guide.managers == self.guide.managers
            && now.guide.trust == self.guide.trust
            && now.gossip == self.gossip;
        *self = now;
        Ok((!is_known).then(|| self.message(session)))
    }

    fn message(&self, session: &SessionId) -> wire::SessionMessage {
        wire::SessionMessage {
            session_id: session.to_string(),
            managers: self.guide.managers.clone(),
            root_cert_pem: self.guide.trust.roots_pem.clone(),
            certificate_issuer: self.guide.trust.issuer.clone(),
            node: Some(Object::Node(Arc::clone(&self.node)).to_proto()),
            gossip: Some(self.gossip.clone()),
            ..wire::SessionMessage::default()
        }
    }
}

fn heartbeat_period(view: &View) -> Duration {
    view.state.cluster().map_or(Duration::from_secs(5), |cluster| cluster.spec.heartbeat_period)
}

/// When a node's next sign of life is due.
fn ping_ms(reign: &Reign) -> u64 {
    let period = reign.guide.borrow().ring.ping_period(heartbeat_period(&reign.consensus.store().view()));
    u64::try_from(period.as_millis()).unwrap_or(u64::MAX)
}

fn heartbeat_ms(view: &View) -> u64 {
    let period = heartbeat_period(view);
    let period = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
    let spread = HEARTBEAT_SPREAD_MS.min(period / 10);
    period - spread + rand::rng().random_range(0..=2 * spread)
}

fn status_change(update: wire::TaskStatusUpdate, node: &NodeId) -> Result<Change, Status> {
    let task: TaskId = update.task_id.parse().map_err(invalid)?;
    let status = update.status.ok_or_else(|| Status::invalid_argument("a status update without a status"))?;
    let mut status = TaskStatus::from_proto(status).map_err(invalid)?;
    cut(&mut status.message, STATUS_TEXT_BYTES);
    if let Some(error) = &mut status.error {
        cut(error, STATUS_TEXT_BYTES);
    }
    if let Some(container) = &mut status.container {
        cut(&mut container.container_id, CONTAINER_ID_BYTES);
    }
    Ok(Change::TaskStatus { task, node: node.clone(), status })
}

fn cut(text: &mut String, limit: usize) {
    let end = (0..=limit.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
}

fn check_size(what: &str, message: &impl Message, limit: usize) -> Result<(), Status> {
    match message.encoded_len() {
        bytes if bytes > limit => Err(invalid(format!("{what} of {bytes} bytes is too long: {limit} are the most"))),
        _ => Ok(()),
    }
}

/// Commits what the core makes of the state, again when the state moved on meanwhile.
pub(super) async fn commit(
    reign: &Reign,
    decide: impl Fn(&View, orch_model::Timestamp) -> Result<Transaction, orch_manager_core::control::ControlError>,
) -> Result<(), Status> {
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        let transaction = {
            let view = reign.consensus.store().view();
            decide(&view, reign.proposer.now()).map_err(|e| status::from_control(&e))?
        };
        if transaction.changes.is_empty() {
            return Ok(());
        }
        outcome = match reign.proposer.propose(transaction.changes).await {
            Ok(_) => return Ok(()),
            Err(ProposeError::Refused(error)) => Err(status::from_apply(&error)),
            Err(other) => return Err(status::from_propose(&other)),
        };
    }
    outcome
}

fn same_name(known: &str, given: &str) -> bool {
    orch_manager_core::image_name::normalise_image_name(given).is_ok_and(|full| full == known)
}

pub(super) fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Does something when a stream is dropped, however that comes.
struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> OnDrop<F> {
    fn new(action: F) -> Self {
        Self(Some(action))
    }
}

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(action) = self.0.take() {
            action();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_of_a_task_is_cut() {
        let status = wire::TaskStatus {
            state: wire::TaskState::Failed.into(),
            message: "ä".repeat(3000),
            error: Some("e".repeat(4 << 20)),
            container: Some(wire::ContainerStatus {
                container_id: "a".repeat(200),
                ..wire::ContainerStatus::default()
            }),
            ..wire::TaskStatus::default()
        };
        let task_id = TaskId::from_random(1).to_string();
        let update = wire::TaskStatusUpdate { task_id, status: Some(status) };
        let Ok(Change::TaskStatus { status, .. }) = status_change(update, &NodeId::from_random(2)) else {
            panic!("no status")
        };
        assert_eq!(status.message, "ä".repeat(STATUS_TEXT_BYTES / 2));
        assert_eq!(status.error.map(|error| error.len()), Some(STATUS_TEXT_BYTES));
        assert_eq!(status.container.map(|container| container.container_id.len()), Some(CONTAINER_ID_BYTES));
    }

    #[test]
    fn a_description_has_a_limit() {
        let of = |hostname: usize| wire::NodeDescription {
            hostname: "h".repeat(hostname),
            ..wire::NodeDescription::default()
        };
        assert!(check_size("it", &of(1000), DESCRIPTION_BYTES).is_ok());
        assert!(check_size("it", &of(DESCRIPTION_BYTES), DESCRIPTION_BYTES).is_err());
    }
}
