//! Everything that a leader holds for the agents, from the day it leads until it does not.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use orch_manager_core::liveness::Ring;
use orch_model::{
    NodeId, Object, ObjectId,
    change::Change,
    node::{Node, NodeState},
};
use tokio::{
    sync::{broadcast::error::RecvError, watch},
    time::sleep,
};

use super::{
    assigner::{Assigner, AssignerHandle},
    guide::{self, Guide},
    sessions::{Finding, Sessions},
};
use crate::{
    raft::{Committed, Consensus, ProposeError, Proposer},
    streams::StreamHub,
};

/// How often it is looked at the nodes that somebody cannot reach.
const SWEEP: Duration = Duration::from_millis(200);
/// How often at all of them, or as often as nodes are to give a sign of life: grace times are long.
const FULL_SWEEP: Duration = Duration::from_secs(1);
/// A sweep that comes later than this says that the manager stood still.
const LATE: Duration = Duration::from_millis(500);
/// Tries of a change that others keep getting in the way of.
const ATTEMPTS: usize = 8;

/// One term of leadership of this manager.
pub struct Reign {
    pub(super) consensus: Consensus,
    pub(super) proposer: Proposer,
    pub(super) sessions: Sessions,
    pub(super) assigner: AssignerHandle,
    pub(super) guide: watch::Sender<Arc<Guide>>,
    streams: StreamHub,
    /// Taken by [`Reign::run`].
    work: Mutex<Option<Assigner>>,
    ended: watch::Sender<bool>,
}

impl Reign {
    #[must_use]
    pub fn start(consensus: Consensus, proposer: Proposer) -> Arc<Self> {
        let (work, assigner) = Assigner::new(consensus.clone(), proposer.clone());
        Arc::new(Self {
            guide: guide::channel(&consensus, &proposer),
            consensus,
            proposer,
            sessions: Sessions::new(),
            assigner,
            streams: StreamHub::default(),
            work: Mutex::new(Some(work)),
            ended: watch::Sender::new(false),
        })
    }

    /// Serves until dropped.
    pub async fn run(self: Arc<Self>) {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(assigner) = work else { return };
        tokio::select! {
            () = assigner.run() => {}
            () = guide::keep(self.consensus.clone(), self.proposer.clone(), self.guide.clone()) => {}
            () = self.watch_nodes() => {}
            () = self.tell_nodes() => {}
        }
    }

    /// Ends every stream of this reign.
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Tells when the reign is over.
    #[must_use]
    pub fn ended(&self) -> End {
        End(self.ended.subscribe())
    }

    #[must_use]
    pub fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    #[must_use]
    pub fn proposer(&self) -> &Proposer {
        &self.proposer
    }

    /// Streams that nodes are asked to open.
    #[must_use]
    pub fn streams(&self) -> &StreamHub {
        &self.streams
    }

    /// Asks a node to open a stream; `false` when it is not connected.
    pub fn announce(&self, node: &NodeId, announcement: orch_proto::wire::StreamAnnouncement) -> bool {
        self.sessions.announce(node, announcement)
    }

    /// Nodes that are connected.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.count()
    }

    /// Ends the node's session.
    pub fn expel(&self, node: &NodeId) {
        self.sessions.expel(node);
    }

    /// Changes a node object with `edit`, again when others changed it meanwhile. Nothing is committed when `edit`
    /// changes nothing. `None`: there is no such node.
    pub async fn edit_node(
        &self,
        id: &NodeId,
        edit: impl Fn(&mut Node) + Send + Sync,
    ) -> Result<Option<Arc<Node>>, ProposeError> {
        let mut outcome = Ok(None);
        for _ in 0..ATTEMPTS {
            let view = self.consensus.store().view();
            let Some(known) = view.state.node(id) else { return Ok(None) };
            let mut node = Node::clone(known);
            edit(&mut node);
            if node == **known {
                return Ok(Some(Arc::clone(known)));
            }
            match self.proposer.propose(vec![Change::Update(Object::Node(Arc::new(node)))]).await {
                Ok(_) => return Ok(self.consensus.store().view().state.node(id).cloned()),
                Err(ProposeError::Refused(refused)) => outcome = Err(ProposeError::Refused(refused)),
                Err(other) => return Err(other),
            }
        }
        outcome
    }

    /// Wakes the sessions of nodes that have changed, and no others.
    async fn tell_nodes(&self) {
        let mut commits = self.consensus.store().commits();
        // What was committed before is in the first message of every session that is opened from now on.
        self.sessions.nudge_all();
        loop {
            let commit = match commits.recv().await {
                Ok(commit) => commit,
                Err(RecvError::Lagged(_)) => {
                    self.sessions.nudge_all();
                    continue;
                }
                Err(RecvError::Closed) => return,
            };
            match &commit.change {
                Committed::Transactions(transactions) => {
                    for event in transactions.iter().flat_map(|events| events.iter()) {
                        if let ObjectId::Node(node) = event.id() {
                            self.sessions.nudge(&node);
                        }
                    }
                }
                Committed::Replaced => self.sessions.nudge_all(),
            }
        }
    }

    async fn watch_nodes(&self) {
        let mut looked_at_all = Instant::now();
        loop {
            let before = Instant::now();
            sleep(SWEEP).await;
            let late = before.elapsed().saturating_sub(SWEEP);
            if late > LATE {
                tracing::warn!(late_ms = late.as_millis(), "this manager stood still; nodes are given that time");
                self.sessions.forgive(late);
            }
            let view = self.consensus.store().view();
            let Some(period) = view.state.cluster().map(|c| c.spec.heartbeat_period) else { continue };
            let is_full = looked_at_all.elapsed() >= FULL_SWEEP.min(period);
            let nodes: Vec<_> = if is_full {
                looked_at_all = Instant::now();
                view.state.nodes().cloned().collect()
            } else {
                self.sessions.suspects().iter().filter_map(|node| view.state.node(node).cloned()).collect()
            };
            drop(view);
            if is_full && self.is_shunned(&nodes, period) {
                self.consensus.give_way().await;
            }
            self.sweep(&nodes, period).await;
        }
    }

    fn is_shunned(&self, nodes: &[Arc<Node>], period: Duration) -> bool {
        let seats = self.consensus.seats();
        let (own, others): (Vec<_>, Vec<_>) = seats.all.iter().partition(|seat| seat.raft_id == seats.leader);
        let is_own = |node: &Node| own.iter().any(|seat| seat.node == node.id.as_str());
        let is_other = |node: &&Arc<Node>| node.status.state != NodeState::Down && !is_own(node);
        let answers = others.iter().filter(|seat| seat.is_voter && seat.is_reachable);
        let reached = answers.filter_map(|seat| seat.node.parse().ok()).collect();
        let others: Vec<_> = nodes.iter().filter(is_other).map(|node| node.id.clone()).collect();
        self.sessions.is_shunned(&others, &reached, period)
    }

    async fn sweep(&self, nodes: &[Arc<Node>], period: Duration) {
        let (now, guide) = (self.proposer.now(), self.guide.borrow().clone());
        self.sessions.ask_suspects(&guide.ring, period);
        let nodes = nodes.iter().filter(|node| node.status.state != NodeState::Down);
        for (node, finding) in self.sessions.review(nodes, &guide.ring, period, now) {
            match finding {
                Finding::Down => self.declare_down(&node, &guide.ring, period).await,
                Finding::Hearing(message) => self.note_hearing(&node, message).await,
            }
        }
    }

    /// Notes that a node is down. When many are noted one after another, some have come back meanwhile.
    async fn declare_down(&self, id: &NodeId, ring: &Ring, period: Duration) {
        let edited = self.edit_node(id, |node| self.sessions.note_down(node, ring, period, self.proposer.now()));
        match edited.await {
            Ok(Some(node)) if node.status.state == NodeState::Down => {
                tracing::warn!(node = %id, "this node counts as down: {}", node.status.message);
                self.sessions.expel(id);
            }
            Ok(Some(_)) => tracing::info!(node = %id, "this node was silent and is back"),
            Ok(None) => self.sessions.expel(id),
            Err(error) => tracing::warn!(node = %id, %error, "cannot note that a node is down"),
        }
    }

    /// Puts into the node's status whether gossip reaches it.
    async fn note_hearing(&self, id: &NodeId, message: &'static str) {
        let edited = self.edit_node(id, |node| {
            if node.status.state == NodeState::Ready {
                message.clone_into(&mut node.status.message);
            }
        });
        match edited.await {
            Ok(_) if message.is_empty() => tracing::info!(node = %id, "gossip reaches this node again"),
            Ok(_) => tracing::warn!(node = %id, "{message}"),
            Err(error) => tracing::debug!(node = %id, %error, "cannot note whether gossip reaches a node"),
        }
    }
}

/// The end of a reign, to wait for.
#[derive(Clone)]
pub struct End(watch::Receiver<bool>);

impl End {
    /// Completes when the reign is over.
    pub async fn over(&mut self) {
        // A reign that is gone is over.
        let _ = self.0.wait_for(|over| *over).await;
    }
}
