//! Logs and exec: the leader announces a stream in the node's session, the node dials [`StreamsService`], and the two
//! ends are joined.
//!
//! A stream has a connection of its own, so a slow reader holds up nothing but itself: what is in between is bounded,
//! and each end ends the other.

mod exec;
mod logs;
mod merge;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::Stream;
use orch_model::{NodeId, SessionId, task::Task};
use orch_proto::{
    tls::peer_identity,
    wire::{self, from_node, stream_announcement, streams_server, to_node},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

pub(crate) use exec::{ExecStream, exec};
pub(crate) use logs::{LogStream, logs};

use crate::{api::status, dispatcher::Reign, leader::Throne, raft::Consensus, random};

/// For a node to dial after a stream was announced.
const ATTACH_LIMIT: Duration = Duration::from_secs(10);
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Messages to a node that may wait.
const TO_NODE: usize = 32;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    FollowedLog,
    Log,
    Command,
}

impl Kind {
    /// Streams of this kind that a node carries at once. Each takes one of the node's connections and calls, which its
    /// session needs some of; and those that go on for ever leave the others room.
    const fn limit(self) -> usize {
        match self {
            Self::FollowedLog => 96,
            Self::Log => 48,
            Self::Command => 48,
        }
    }

    /// How many of them one request may have: whoever leaves them unread holds up others, but not all of them.
    const fn share(self) -> usize {
        self.limit() * 3 / 4
    }

    /// For operators.
    fn plural(self) -> &'static str {
        match self {
            Self::FollowedLog => "logs that are followed",
            Self::Log => "logs that are read",
            Self::Command => "commands of orch exec",
        }
    }
}

/// Streams of all kinds that a node carries at once.
pub(crate) const STREAMS_PER_NODE: usize = Kind::FollowedLog.limit() + Kind::Log.limit() + Kind::Command.limit();

/// Streams that were announced and that nobody has dialled in for yet, and how many more there may be.
pub struct StreamHub {
    waiting: Mutex<HashMap<String, Waiting>>,
    places: Places,
}

impl Default for StreamHub {
    fn default() -> Self {
        Self { waiting: Mutex::default(), places: Places::new(Kind::limit) }
    }
}

/// So many streams of a kind for each node.
struct Places {
    limit: fn(Kind) -> usize,
    nodes: Mutex<HashMap<(NodeId, Kind), Arc<Semaphore>>>,
}

impl Places {
    fn new(limit: fn(Kind) -> usize) -> Self {
        Self { limit, nodes: Mutex::default() }
    }

    async fn take(&self, node: &NodeId, kind: Kind) -> Option<OwnedSemaphorePermit> {
        let of_node = {
            let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new((self.limit)(kind)));
            Arc::clone(nodes.entry((node.clone(), kind)).or_insert_with(new))
        };
        // It is never closed.
        of_node.acquire_owned().await.ok()
    }
}

/// One request's part of every node's places.
pub(crate) struct Share(Places);

impl Default for Share {
    fn default() -> Self {
        Self(Places::new(Kind::share))
    }
}

/// A place among the streams that a node carries; given back when dropped.
pub(crate) struct Place {
    _of_share: Option<OwnedSemaphorePermit>,
    _of_node: Option<OwnedSemaphorePermit>,
}

struct Waiting {
    node: NodeId,
    attached: oneshot::Sender<Attached>,
}

/// Both directions of a node's stream.
pub(crate) struct Attached {
    pub(crate) from_node: Streaming<wire::FromNode>,
    pub(crate) to_node: mpsc::Sender<wire::ToNode>,
}

impl StreamHub {
    fn expect(&self, id: String, node: NodeId) -> oneshot::Receiver<Attached> {
        let (attached, receiver) = oneshot::channel();
        self.lock().insert(id, Waiting { node, attached });
        receiver
    }

    /// Waits until the node has room for one more stream of a request, for as long as the caller likes.
    pub(crate) async fn place(&self, share: &Share, node: &NodeId, kind: Kind) -> Place {
        let of_share = share.0.take(node, kind).await;
        Place { _of_share: of_share, _of_node: self.places.take(node, kind).await }
    }

    fn take(&self, id: &str, node: &NodeId) -> Option<oneshot::Sender<Attached>> {
        let mut waiting = self.lock();
        // Another node's stream is as good as unknown.
        waiting.get(id).filter(|stream| stream.node == *node)?;
        waiting.remove(id).map(|stream| stream.attached)
    }

    fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why [`StreamHub::place`] takes long.
pub(crate) fn crowded(reign: &Reign, task: &Task, kind: Kind) -> String {
    let node = task.node.as_ref().map(|node| node_name(reign, node)).unwrap_or_default();
    let (name, limit, plural) = (task.name(), kind.limit(), kind.plural());
    format!("task {name} is on node {node}, which carries {limit} {plural} at once")
}

pub(crate) fn node_of(task: &Task) -> Result<&NodeId, Status> {
    let unplaced = || Status::failed_precondition(format!("task {} has not been given to a node yet", task.name()));
    task.node.as_ref().ok_or_else(unplaced)
}

/// Asks the task's node for a stream and waits until it is there. Whoever asks has a [`Place`] for it.
pub(crate) async fn open(reign: &Reign, task: &Task, what: stream_announcement::What) -> Result<Attached, Status> {
    let node = node_of(task)?;
    let unreachable = |why: &str| {
        let message = format!("task {} is on node {}, which {why}", task.name(), node_name(reign, node));
        status::with_code(Code::Unavailable, "node-unreachable", message)
    };
    let id = SessionId::from_random(random::bits()).to_string();
    let attached = reign.streams().expect(id.clone(), node.clone());
    let announcement =
        wire::StreamAnnouncement { stream_id: id.clone(), task_id: task.id.to_string(), what: Some(what) };
    if !reign.announce(node, announcement) {
        reign.streams().forget(&id);
        return Err(unreachable("is not connected to the managers now"));
    }
    match timeout(ATTACH_LIMIT, attached).await {
        Ok(Ok(attached)) => Ok(attached),
        Ok(Err(_)) | Err(_) => {
            reign.streams().forget(&id);
            Err(unreachable("did not answer in time"))
        }
    }
}

/// Answers nodes that dial in with a stream they were asked for.
pub struct StreamsService {
    consensus: Consensus,
    throne: Throne,
}

impl StreamsService {
    #[must_use]
    pub fn new(consensus: Consensus, throne: Throne) -> Self {
        Self { consensus, throne }
    }
}

#[tonic::async_trait]
impl streams_server::Streams for StreamsService {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<wire::ToNode, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<wire::FromNode>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let peer = peer_identity(&request).cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("this call needs the certificate of a node"))?;
        let reign = self.throne.load_full();
        let reign = reign.ok_or_else(|| status::not_leader(&self.consensus.leadership().borrow()))?;
        let mut from_node = request.into_inner();
        let first = timeout(HELLO_LIMIT, from_node.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello on this stream"))??;
        let Some(wire::FromNode { message: Some(from_node::Message::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message of a stream is its hello"));
        };
        let attached = reign.streams().take(&hello.stream_id, &peer.node_id);
        let attached = attached.ok_or_else(|| Status::not_found("nobody waits for this stream any more"))?;
        let (to_node, outgoing) = mpsc::channel(TO_NODE);
        if attached.send(Attached { from_node, to_node }).is_err() {
            return Err(Status::cancelled("the client went away"));
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing).map(Ok))))
    }
}

/// Tells the node that nobody reads any more; dropping the stream would do, but not at once.
pub(crate) fn cancel(attached: &Attached) {
    let cancel = wire::ToNode { message: Some(to_node::Message::Cancel(wire::Empty {})) };
    // A full queue is dropped with the stream.
    let _ = attached.to_node.try_send(cancel);
}

fn node_name(reign: &Reign, id: &NodeId) -> String {
    let view = reign.consensus().store().view();
    view.state.node(id).map_or_else(|| id.to_string(), |node| node.description.hostname.clone())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn at_once(hub: &StreamHub, share: &Share, node: &NodeId, kind: Kind) -> Option<Place> {
        // Outside of the runtime's budget, which would end before the places do.
        tokio::task::unconstrained(hub.place(share, node, kind)).now_or_never()
    }

    #[tokio::test]
    async fn a_node_carries_so_many_streams_of_a_kind_and_the_next_has_to_wait() {
        let hub = StreamHub::default();
        let (node, other) = (NodeId::from_random(1), NodeId::from_random(2));
        let has_room = |node, kind| at_once(&hub, &Share::default(), node, kind).is_some();
        let mut places = Vec::new();
        for _ in 0..Kind::FollowedLog.limit() {
            places.push(hub.place(&Share::default(), &node, Kind::FollowedLog).await);
        }
        assert!(!has_room(&node, Kind::FollowedLog));
        assert!(has_room(&other, Kind::FollowedLog));
        for kind in [Kind::Log, Kind::Command] {
            assert!(has_room(&node, kind), "what goes on for ever leaves room for {kind:?}");
        }
        drop(places.pop());
        assert!(has_room(&node, Kind::FollowedLog));
    }

    #[test]
    fn one_request_leaves_others_room_on_each_node() {
        let hub = StreamHub::default();
        let (node, other) = (NodeId::from_random(1), NodeId::from_random(2));
        for kind in [Kind::FollowedLog, Kind::Log] {
            let (greedy, modest) = (Share::default(), Share::default());
            let mut places = Vec::new();
            while let Some(place) = at_once(&hub, &greedy, &node, kind) {
                places.push(place);
            }
            assert_eq!(places.len(), kind.share(), "{kind:?}");
            assert!(at_once(&hub, &greedy, &other, kind).is_some(), "{kind:?}");
            assert!(at_once(&hub, &modest, &node, kind).is_some(), "{kind:?}");
            drop(places.pop());
            assert!(at_once(&hub, &greedy, &node, kind).is_some(), "{kind:?}");
        }
    }
}
