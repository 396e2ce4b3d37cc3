//! Which agents are connected, what they and their silence say of nodes' lives, and how to tell them something.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use orch_manager_core::liveness::{DEAF_MESSAGE, Liveness, Ring};
use orch_model::{
    NodeId, SessionId, Timestamp,
    node::{Node, NodeState, NodeStatus},
};
use orch_proto::wire::StreamAnnouncement;
use tokio::sync::{Notify, mpsc};

use crate::streams::STREAMS_PER_NODE;

/// Announcements that a session may have waiting: an agent takes them at once, and they come by as many as a node carries.
const ANNOUNCEMENTS: usize = STREAMS_PER_NODE;

/// The sessions of one reign.
pub(super) struct Sessions {
    started: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    open: HashMap<NodeId, Session>,
    liveness: Liveness,
}

struct Session {
    id: SessionId,
    announcements: mpsc::Sender<StreamAnnouncement>,
    calls: Calls,
}

/// What is to be noted of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    Down,
    /// What a ready node's status is to say of whether gossip reaches it.
    Hearing(&'static str),
}

/// What wakes a session's stream up.
#[derive(Clone, Default)]
pub(super) struct Calls {
    /// Something of the node itself has changed.
    pub(super) news: Arc<Notify>,
    /// The node is to give a sign of life.
    pub(super) ping: Arc<Notify>,
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), inner: Mutex::default() }
    }

    /// Replaces the node's session: its old stream ends, because the channel behind it closes.
    pub(super) fn open(&self, node: NodeId, id: SessionId) -> (mpsc::Receiver<StreamAnnouncement>, Calls) {
        let (announcements, receiver) = mpsc::channel(ANNOUNCEMENTS);
        let calls = Calls::default();
        let now = self.now();
        let mut inner = self.lock();
        inner.liveness.connected(node.clone(), now);
        inner.open.insert(node, Session { id, announcements, calls: calls.clone() });
        (receiver, calls)
    }

    /// Something of the node itself has changed.
    pub(super) fn nudge(&self, node: &NodeId) {
        if let Some(session) = self.lock().open.get(node) {
            session.calls.news.notify_one();
        }
    }

    /// Something may have changed of any node.
    pub(super) fn nudge_all(&self) {
        self.lock().open.values().for_each(|session| session.calls.news.notify_one());
    }

    /// Notes a sign of life; says whether the session is still the node's.
    pub(super) fn heard(&self, node: &NodeId, id: &str) -> bool {
        let now = self.now();
        let mut inner = self.lock();
        let is_its = inner.open.get(node).is_some_and(|session| session.id.as_str() == id);
        if is_its {
            inner.liveness.heard(node, now);
        }
        is_its
    }

    /// What the node sees of its peers.
    pub(super) fn reported(&self, node: &NodeId, unreachable: BTreeSet<NodeId>, deaf: bool) {
        self.lock().liveness.reported(node, unreachable, deaf);
    }

    /// The session's stream broke. When the node was last heard stays known, so that an agent which reconnects in time
    /// is not declared down.
    pub(super) fn close(&self, node: &NodeId, id: &SessionId) {
        let mut inner = self.lock();
        if inner.open.get(node).is_some_and(|session| session.id == *id) {
            inner.open.remove(node);
            inner.liveness.broke(node);
        }
    }

    /// Nodes with a session.
    pub(super) fn count(&self) -> usize {
        self.lock().open.len()
    }

    /// Ends the node's session whatever it is.
    pub(super) fn expel(&self, node: &NodeId) {
        let mut inner = self.lock();
        inner.open.remove(node);
        inner.liveness.forget(node);
    }

    /// The nodes that somebody cannot reach.
    pub(super) fn suspects(&self) -> Vec<NodeId> {
        self.lock().liveness.suspects().cloned().collect()
    }

    /// Asks nodes that may be down for a sign of life.
    pub(super) fn ask_suspects(&self, ring: &Ring, period: Duration) {
        let now = self.now();
        let mut inner = self.lock();
        for node in inner.liveness.to_ask(ring, period, now) {
            if let Some(session) = inner.open.get(&node) {
                session.calls.ping.notify_one();
            }
        }
    }

    /// Passes an announcement to the node; `false` when it is not connected.
    pub(super) fn announce(&self, node: &NodeId, announcement: StreamAnnouncement) -> bool {
        let inner = self.lock();
        inner.open.get(node).is_some_and(|session| session.announcements.try_send(announcement).is_ok())
    }

    /// This manager itself stood still for so long (paused, starved).
    pub(super) fn forgive(&self, stall: Duration) {
        let now = self.now();
        self.lock().liveness.forgive(stall, now);
    }

    /// Whether nobody comes to this manager although there is somebody to come.
    pub(super) fn is_shunned(&self, others: &[NodeId], reached: &BTreeSet<NodeId>, period: Duration) -> bool {
        let now = self.now();
        self.lock().liveness.is_shunned(others, reached, period, now)
    }

    /// What is to be noted of which of these nodes, that are not down.
    pub(super) fn review<'a>(
        &self,
        nodes: impl Iterator<Item = &'a Arc<Node>>,
        ring: &Ring,
        period: Duration,
        now: Timestamp,
    ) -> Vec<(NodeId, Finding)> {
        let elapsed = self.now();
        let liveness = &self.lock().liveness;
        let finding = |node: &Node| {
            if liveness.verdict(&node.id, ring, now.since(node.status.since), period, elapsed).is_some() {
                return Some(Finding::Down);
            }
            let message = if liveness.is_deaf(&node.id, ring, period, elapsed) { DEAF_MESSAGE } else { "" };
            let is_news = node.status.state == NodeState::Ready && node.status.message != message;
            is_news.then_some(Finding::Hearing(message))
        };
        nodes.filter_map(|node| finding(node).map(|finding| (node.id.clone(), finding))).collect()
    }

    /// Puts into the node's status that it is down, if that is still so.
    pub(super) fn note_down(&self, node: &mut Node, ring: &Ring, period: Duration, now: Timestamp) {
        let elapsed = self.now();
        let known_for = now.since(node.status.since);
        let verdict = self.lock().liveness.verdict(&node.id, ring, known_for, period, elapsed);
        let Some(cause) = verdict else { return };
        node.status = NodeStatus {
            state: NodeState::Down,
            message: cause.message().to_owned(),
            addr: node.status.addr,
            since: now,
        };
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use orch_manager_core::liveness::Cause;
    use orch_model::{
        Annotations, Meta,
        node::{Availability, NodeDescription, NodeRole, NodeSpec},
    };

    use super::*;

    #[test]
    fn a_session_is_its_nodes_until_another_takes_its_place() {
        let sessions = Sessions::new();
        let (node, first, second) = (NodeId::from_random(1), SessionId::from_random(2), SessionId::from_random(3));
        let _old = sessions.open(node.clone(), first.clone());
        let (mut new, _) = sessions.open(node.clone(), second.clone());
        assert!(!sessions.heard(&node, first.as_str()), "the old session was replaced");
        assert!(sessions.heard(&node, second.as_str()));
        assert!(sessions.announce(&node, StreamAnnouncement::default()) && new.try_recv().is_ok());
        sessions.close(&node, &first);
        assert!(sessions.heard(&node, second.as_str()), "closing the old one does not touch the new one");
        sessions.close(&node, &second);
        assert!(!sessions.announce(&node, StreamAnnouncement::default()));
        assert!(!sessions.heard(&node, second.as_str()));
        let node = Arc::new(ready(node));
        let found = |period, at_ms: u64| {
            let now = Timestamp::from_unix_ms(at_ms);
            sessions.review([&node].into_iter(), &Ring::default(), period, now)
        };
        assert_eq!(found(Duration::from_secs(5), 3_600_000), [], "a broken stream is not yet silence");
        let down = [(node.id.clone(), Finding::Down)];
        assert_eq!(found(Duration::ZERO, 3_600_000), down, "when it was last heard stays known");
    }

    #[test]
    fn a_node_that_has_come_back_is_not_noted_as_down() {
        let mut sessions = Sessions::new();
        let node = ready(NodeId::from_random(1));
        drop(sessions.open(node.id.clone(), SessionId::from_random(2)));
        sessions.started -= Duration::from_secs(60);
        let noted = || {
            let (mut node, now) = (node.clone(), Timestamp::from_unix_ms(60_000));
            sessions.note_down(&mut node, &Ring::default(), Duration::from_secs(5), now);
            (node.status.state, node.status.message)
        };
        assert_eq!(noted(), (NodeState::Down, Cause::MissedHeartbeats.message().to_owned()));
        let _session = sessions.open(node.id.clone(), SessionId::from_random(3));
        assert_eq!(noted(), (NodeState::Ready, String::new()));
    }

    #[test]
    fn what_a_status_says_of_gossip_is_news_only_while_it_is_not_so() {
        let sessions = Sessions::new();
        let mut node = ready(NodeId::from_random(1));
        let _session = sessions.open(node.id.clone(), SessionId::from_random(2));
        let mut found = |message: &str, state| {
            (node.status.message, node.status.state) = (message.to_owned(), state);
            let node = Arc::new(node.clone());
            let now = Timestamp::from_unix_ms(1000);
            sessions.review([&node].into_iter(), &Ring::default(), Duration::from_secs(5), now).pop()
        };
        assert_eq!(found("", NodeState::Ready), None);
        assert_eq!(found(DEAF_MESSAGE, NodeState::Ready).map(|(_, finding)| finding), Some(Finding::Hearing("")));
        assert_eq!(found(DEAF_MESSAGE, NodeState::Unknown), None, "only what is ready has such a message");
    }

    fn ready(id: NodeId) -> Node {
        Node {
            id,
            meta: Meta::default(),
            spec: NodeSpec {
                annotations: Annotations::default(),
                role: NodeRole::Worker,
                availability: Availability::Active,
            },
            role: NodeRole::Worker,
            description: NodeDescription::default(),
            status: NodeStatus {
                state: NodeState::Ready,
                message: String::new(),
                addr: None,
                since: Timestamp::default(),
            },
            manager: None,
            index: 0,
            attachments: BTreeMap::new(),
            certificates: None,
        }
    }
}
