//! Sends each node its assignment set: complete once, then what changed.
//!
//! One task computes the sets of all nodes from one state, so that the order of things across nodes is known: a task
//! is told to stop only after every node that balances to it has acknowledged that it is out ([`Drain`]).

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
    time::Duration,
};

use orch_manager_core::{
    State,
    dispatch::{self, AssignmentSet, Shared, SharedItems, Sources, Touched},
    drain::Drain,
};
use orch_model::{
    NodeId, SessionId, TaskId, Timestamp,
    assignment::{Assignment, AssignmentKey},
    node::{Node, NodeState},
};
use orch_proto::{
    conv::ToProto,
    wire::{self, AssignmentsMessage},
};
use prost::Message;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::grants::Grants;
use crate::raft::{Commit, Committed, Consensus, Proposer};

/// Changes that arrive this close together travel together: acknowledgements of many nodes, say. Nobody is told for so long.
const COALESCE: Duration = Duration::from_millis(2);
/// Nodes that were told are left alone for so long for each thing that they were told, but no longer than the other: each
/// increment is a pass over a node's namespaces, and while much happens, more comes.
const REST_PER_ITEM: Duration = Duration::from_millis(1);
const LONGEST_REST: Duration = Duration::from_millis(50);
/// Increments that may wait for a slow node before it has to start over with a complete set.
const INCREMENTS_AHEAD: usize = 64;
/// Bytes of one message; a set that is larger takes several.
const MESSAGE_BYTES: usize = 1024 * 1024;
const COMMANDS: usize = 4096;
/// Where nodes serve images to each other.
const PEER_PORT: u16 = 7946;
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Messages that belong to one sequence.
pub(super) type Increment = Vec<AssignmentsMessage>;

pub(super) enum Command {
    Subscribe { node: NodeId, session: SessionId, increments: mpsc::Sender<Increment> },
    Ack { node: NodeId, session: String, sequence: u64 },
    Gone { node: NodeId, session: SessionId },
}

/// How services talk to the assigner.
#[derive(Clone)]
pub(super) struct AssignerHandle(mpsc::Sender<Command>);

impl AssignerHandle {
    pub(super) async fn subscribe(&self, node: NodeId, session: SessionId) -> mpsc::Receiver<Increment> {
        let (increments, receiver) = mpsc::channel(INCREMENTS_AHEAD);
        // After the reign's end the receiver ends at once, which is what the caller should see.
        let _ = self.0.send(Command::Subscribe { node, session, increments }).await;
        receiver
    }

    pub(super) async fn ack(&self, node: NodeId, session: String, sequence: u64) {
        let _ = self.0.send(Command::Ack { node, session, sequence }).await;
    }

    pub(super) async fn gone(&self, node: NodeId, session: SessionId) {
        let _ = self.0.send(Command::Gone { node, session }).await;
    }
}

pub(super) struct Assigner {
    consensus: Consensus,
    proposer: Proposer,
    commands: mpsc::Receiver<Command>,
    subscribers: HashMap<NodeId, Subscriber>,
    drain: Drain,
    /// Whom to look at the next time.
    touched: Touched,
    /// Tasks that were drained since the last time: their nodes may be told.
    released: Vec<TaskId>,
    shared: SharedItems,
    grants: RefCell<Grants>,
    /// When nodes may be told again.
    rested: Instant,
}

struct Subscriber {
    session: SessionId,
    increments: mpsc::Sender<Increment>,
    /// What the node has been sent; `None` before the complete set.
    sent: Option<Sent>,
    sequence: u64,
    acknowledged: u64,
}

/// A node's set in its parts.
#[derive(Default)]
struct Sent {
    own: AssignmentSet,
    shared: Shared,
}

impl Assigner {
    pub(super) fn new(consensus: Consensus, proposer: Proposer) -> (Self, AssignerHandle) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let assigner = Self {
            consensus,
            proposer,
            commands,
            subscribers: HashMap::new(),
            drain: Drain::new(),
            // What stops already has to be drained anew.
            touched: Touched::everything(),
            released: Vec::new(),
            shared: SharedItems::default(),
            grants: RefCell::default(),
            rested: Instant::now(),
        };
        (assigner, AssignerHandle(sender))
    }

    pub(super) async fn run(mut self) {
        let mut commits = self.consensus.store().commits();
        loop {
            let wake = self.next_wake();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                commit = commits.recv() => self.note(commit.ok()),
                () = sleep_until(wake) => {}
            }
            if !self.has_news() && self.next_wake() > Instant::now() {
                continue;
            }
            // More often comes together: a commit per task, acknowledgements of many nodes.
            let gathered = (Instant::now() + COALESCE).max(self.rested);
            loop {
                tokio::select! {
                    command = self.commands.recv() => match command {
                        Some(command) => self.command(command),
                        None => return,
                    },
                    commit = commits.recv() => self.note(commit.ok()),
                    () = sleep_until(gathered) => break,
                }
            }
            self.send_all();
        }
    }

    fn has_news(&self) -> bool {
        !self.touched.is_empty() || !self.released.is_empty()
    }

    /// Takes in what a commit changed; `None`: nobody knows.
    fn note(&mut self, commit: Option<Arc<Commit>>) {
        match commit.as_deref().map(|commit| &commit.change) {
            Some(Committed::Transactions(transactions)) => {
                let view = self.consensus.store().view();
                let events = transactions.iter().flat_map(|events| events.iter());
                events.for_each(|event| self.touched.note(&view.state, event));
            }
            Some(Committed::Replaced) | None => self.touched = Touched::everything(),
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Subscribe { node, session, increments } => {
                // The node forgot what it had, so nobody waits for what it had not acknowledged.
                self.released.extend(self.drain.on_session_gone(&node));
                self.touched.nodes.insert(node.clone());
                self.subscribers
                    .insert(node, Subscriber { session, increments, sent: None, sequence: 0, acknowledged: 0 });
            }
            Command::Ack { node, session, sequence } => {
                if let Some(subscriber) = self.subscribers.get_mut(&node).filter(|s| s.session.as_str() == session) {
                    subscriber.acknowledged = subscriber.acknowledged.max(sequence);
                    self.released.extend(self.drain.on_ack(&node, sequence));
                }
            }
            Command::Gone { node, session } => {
                if self.subscribers.get(&node).is_some_and(|s| s.session == session) {
                    self.leave(&node);
                }
            }
        }
    }

    fn leave(&mut self, node: &NodeId) {
        self.subscribers.remove(node);
        self.released.extend(self.drain.on_session_gone(node));
    }

    /// Sends everyone what changed, again when that released tasks which waited to stop.
    fn send_all(&mut self) {
        let view = self.consensus.store().view();
        let now = self.proposer.now();
        self.released.extend(self.drain.on_time(now));
        loop {
            let mut touched = mem::take(&mut self.touched);
            touched.nodes.extend(self.released.drain(..).filter_map(|task| view.state.task(&task)?.node.clone()));
            let items = self.send_once(&view.state, &touched, now);
            self.rested = self.rested.max(Instant::now() + rest_after(items));
            let subscribers = &self.subscribers;
            let sent = || subscribers.iter().map(|(node, s)| (node.clone(), s.sequence)).collect::<BTreeMap<_, _>>();
            let stopping = (!touched.everything).then_some(&touched.stopping);
            let was_idle = self.drain.is_idle();
            self.released.extend(self.drain.on_state(&view.state, stopping, &sent, now));
            if was_idle && self.drain.is_idle() && self.released.is_empty() {
                return;
            }
            // Nothing new to send means that the acknowledgement is there already.
            for (node, subscriber) in &self.subscribers {
                self.released.extend(self.drain.on_ack(node, subscriber.acknowledged));
            }
            if self.released.is_empty() {
                return;
            }
        }
    }

    /// Says how many things were sent, all nodes taken together.
    fn send_once(&mut self, state: &State, touched: &Touched, now: Timestamp) -> usize {
        let Some(cluster) = state.cluster() else { return 0 };
        self.shared.refresh(state, touched);
        let (drain, grants) = (&self.drain, &self.grants);
        let sources = Sources {
            drained: &|task| drain.is_drained(task),
            holder: &image_server,
            grant: &|node, digest| grants.borrow_mut().get(&cluster.root_ca, node, digest, now),
        };
        let view = dispatch::View::with(state, mem::take(&mut self.shared));
        let mut differences = Differences::default();
        let mut lagging = Vec::new();
        let mut items = 0;
        let mut send = |node: &NodeId, subscriber: &mut Subscriber| {
            let own = touched.everything || touched.nodes.contains(node) || subscriber.sent.is_none();
            let own = own.then(|| view.own(node, &sources));
            match subscriber.send(own, view.shared(node), &mut differences) {
                Some(sent) => items += sent,
                None => lagging.push(node.clone()),
            }
        };
        if touched.is_shared() {
            self.subscribers.iter_mut().for_each(|(node, subscriber)| send(node, subscriber));
        } else {
            for node in &touched.nodes {
                if let Some(subscriber) = self.subscribers.get_mut(node) {
                    send(node, subscriber);
                }
            }
        }
        self.shared = view.into_shared();
        for node in lagging {
            // Its stream ends; it comes back for a complete set.
            self.leave(&node);
        }
        items
    }

    fn next_wake(&self) -> Instant {
        let now = self.proposer.now();
        let pause = self.drain.wake().map_or(LONGEST_SLEEP, |at| at.since(now)).min(LONGEST_SLEEP);
        Instant::now() + pause
    }
}

/// What leads from one part that nodes share to the next, for all nodes that had the one and get the other.
#[derive(Default)]
struct Differences {
    nothing: Arc<AssignmentSet>,
    known: HashMap<(*const AssignmentSet, *const AssignmentSet), Known>,
}

type Difference = (Vec<Assignment>, Vec<AssignmentKey>);

struct Known {
    difference: Arc<Difference>,
    /// Kept, so that no other set comes to be at their addresses meanwhile.
    _of: [Arc<AssignmentSet>; 2],
}

impl Differences {
    fn between(&mut self, old: &Arc<AssignmentSet>, new: &Arc<AssignmentSet>) -> Arc<Difference> {
        let known = self.known.entry((Arc::as_ptr(old), Arc::as_ptr(new))).or_insert_with(|| Known {
            difference: Arc::new(dispatch::diff(old, new)),
            _of: [Arc::clone(old), Arc::clone(new)],
        });
        Arc::clone(&known.difference)
    }
}

impl Subscriber {
    /// Sends what leads to the parts given, and says how many things that took; `own` is `None` where it has not changed.
    /// `None` when the node does not keep up or is gone.
    fn send(&mut self, own: Option<AssignmentSet>, shared: Shared, differences: &mut Differences) -> Option<usize> {
        let complete = self.sent.is_none();
        let sent = self.sent.get_or_insert_default();
        let (mut put, mut remove) = (Vec::new(), Vec::new());
        if let Some(own) = own {
            (put, remove) = dispatch::diff(&sent.own, &own);
            // Otherwise not kept: what the node was sent stays the base, so that nothing hides in differences that mean
            // nothing.
            if complete || !put.is_empty() || !remove.is_empty() {
                sent.own = own;
            }
        }
        let nothing = Arc::clone(&differences.nothing);
        for (key, new) in &shared {
            let old = sent.shared.get(key).unwrap_or(&nothing);
            if !Arc::ptr_eq(old, new) {
                let difference = differences.between(old, new);
                put.extend_from_slice(&difference.0);
                remove.extend_from_slice(&difference.1);
            }
        }
        for (_, gone) in sent.shared.iter().filter(|(key, _)| !shared.contains_key(*key)) {
            remove.extend(gone.keys().cloned());
        }
        sent.shared = shared;
        if put.is_empty() && remove.is_empty() && !complete {
            return Some(0);
        }
        let increment = messages(complete, self.sequence, &put, &remove);
        self.sequence += 1;
        self.increments.try_send(increment).ok().map(|()| put.len() + remove.len())
    }
}

fn rest_after(items: usize) -> Duration {
    let items = u32::try_from(items).unwrap_or(u32::MAX);
    REST_PER_ITEM.saturating_mul(items).min(LONGEST_REST)
}

fn messages(complete: bool, sequence: u64, put: &[Assignment], remove: &[AssignmentKey]) -> Increment {
    let message = |put: Vec<wire::Assignment>| AssignmentsMessage {
        complete,
        applies_to: sequence,
        results_in: sequence + 1,
        put,
        remove: Vec::new(),
        more: true,
    };
    let mut messages = Vec::new();
    let (mut items, mut bytes) = (Vec::new(), 0);
    for item in put {
        let item = item.to_proto();
        let size = item.encoded_len();
        if bytes + size > MESSAGE_BYTES && !items.is_empty() {
            messages.push(message(std::mem::take(&mut items)));
            bytes = 0;
        }
        bytes += size;
        items.push(item);
    }
    let mut last = message(items);
    last.remove = remove.iter().map(ToProto::to_proto).collect();
    last.more = false;
    messages.push(last);
    messages
}

/// Where a node that is up serves its images.
fn image_server(node: &Node) -> Option<String> {
    let addr = node.status.addr.filter(|_| node.status.state != NodeState::Down)?;
    Some(std::net::SocketAddr::new(addr, PEER_PORT).to_string())
}

#[cfg(test)]
mod tests {
    use orch_model::{TaskId, assignment::ImageSource};

    use super::*;

    fn image(number: u128, grant_bytes: usize) -> Assignment {
        Assignment::Image(ImageSource {
            task: TaskId::from_random(number),
            name: String::new(),
            digest: String::new(),
            holders: Vec::new(),
            grant: vec![1; grant_bytes],
        })
    }

    #[test]
    fn nodes_that_were_told_much_are_left_alone_for_longer() {
        for (items, rest) in [(0, 0), (1, 1), (30, 30), (51, 50), (usize::MAX, 50)] {
            assert_eq!(rest_after(items), Duration::from_millis(rest), "{items}");
        }
    }

    #[test]
    fn a_large_set_takes_several_messages_of_one_sequence() {
        let put: Vec<_> = (0..5).map(|n| image(n, MESSAGE_BYTES / 2)).collect();
        let messages = messages(true, 7, &put, &[AssignmentKey::Task(TaskId::from_random(9))]);
        assert!(messages.len() > 1);
        assert_eq!(messages.iter().map(|m| m.put.len()).sum::<usize>(), 5);
        let (last, before) = messages.split_last().unwrap();
        assert!(before.iter().all(|m| m.more && m.remove.is_empty()));
        assert!(!last.more && last.remove.len() == 1);
        assert!(messages.iter().all(|m| m.complete && m.applies_to == 7 && m.results_in == 8));
    }
}
