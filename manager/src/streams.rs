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
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::Stream;
use orch_model::{NodeId, SessionId, task::Task};
use orch_proto::{
    tls::peer_identity,
    wire::{self, from_node, stream_announcement, streams_server, to_node},
};
use tokio::{sync::mpsc, sync::oneshot, time::timeout};
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

/// Streams that were announced and that nobody has dialled in for yet.
#[derive(Default)]
pub struct StreamHub {
    waiting: Mutex<HashMap<String, Waiting>>,
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

/// Asks the task's node for a stream and waits until it is there.
pub(crate) async fn open(reign: &Reign, task: &Task, what: stream_announcement::What) -> Result<Attached, Status> {
    let Some(node) = &task.node else {
        return Err(Status::failed_precondition(format!("task {} has not been given to a node yet", task.name())));
    };
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
