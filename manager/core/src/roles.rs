//! From wanted roles to raft's membership: which one step comes next.
//!
//! A node's `spec.role` is what the operator wants; its `role` is what its certificates may say; raft's membership is
//! who votes. They are brought together in an order that never takes the quorum away: a role is given before a member
//! is added (by the node itself, which then has a certificate to ask with), and taken only after the member has left.
//! Nothing is remembered between steps, so whichever manager leads next carries on.

use std::{fmt, sync::Arc};

use orch_model::{
    NodeId, Object, Timestamp,
    change::Change,
    node::{ManagerStatus, Node, NodeRole},
};

use crate::state::State;

/// One manager in raft's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    pub raft_id: u64,
    /// As the membership records it.
    pub node: String,
    /// Takes part in decisions; otherwise it only learns.
    pub is_voter: bool,
    /// It has answered the leader lately.
    pub is_reachable: bool,
}

/// Raft's membership as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seats {
    /// The leader's own raft number.
    pub leader: u64,
    pub all: Vec<Seat>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Let the node have a manager's certificate.
    Grant(NodeId),
    /// Give leadership to this manager, because the leader's own seat is to go.
    HandOver { heir: u64 },
    /// Take this member out of raft.
    Remove { raft_id: u64 },
    /// It is out of raft: take the role, and with it the certificate, away.
    Revoke(NodeId),
}

/// What is left of the managers without some of them, compared with what deciding takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The manager that would go.
    pub leaving: String,
    pub voters: usize,
    pub remaining: usize,
    pub reachable: usize,
    pub quorum: usize,
    /// Names of those that would remain and do not answer.
    pub silent: Vec<String>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { leaving, voters, remaining, reachable, quorum, silent } = self;
        let (be, need) = (if *reachable == 1 { "is" } else { "are" }, if *quorum == 1 { "is" } else { "are" });
        write!(
            f,
            "without {leaving}, {remaining} of the {voters} managers remain, {quorum} of them {need} needed for a \
             quorum, and {reachable} {be} reachable now: the cluster could not change anything any more. Start {} \
             first, or demote what is lost",
            silent.join(", ")
        )
    }
}

/// The next step towards what is wanted; `None` when nothing can or need be done.
#[must_use]
pub fn next_step(state: &State, seats: &Seats) -> Option<Step> {
    let promoted = state.nodes().find(|n| n.spec.role == NodeRole::Manager && n.role == NodeRole::Worker);
    if let Some(node) = promoted {
        return Some(Step::Grant(node.id.clone()));
    }
    let mut leaving: Vec<&Seat> = seats.all.iter().filter(|seat| !is_wanted(state, seat)).collect();
    // Those that do not answer first, which makes the rest safer; the leader's own last.
    leaving.sort_by_key(|seat| (seat.raft_id == seats.leader, seat.is_voter, seat.is_reachable, seat.raft_id));
    for seat in leaving {
        if seat.raft_id == seats.leader {
            if let Some(heir) = heir(state, seats) {
                return Some(Step::HandOver { heir });
            }
        } else if shortage(state, seats, &[seat.raft_id]).is_none() {
            return Some(Step::Remove { raft_id: seat.raft_id });
        }
    }
    let demoted = state.nodes().find(|n| {
        n.spec.role == NodeRole::Worker
            && (n.role == NodeRole::Manager || n.manager.is_some())
            && seats.all.iter().all(|seat| seat.node != n.id.as_str())
    });
    demoted.map(|node| Step::Revoke(node.id.clone()))
}

/// Why a node cannot stop being a manager now, if so. Managers that are already to be demoted count as gone.
#[must_use]
pub fn demotion_shortage(state: &State, seats: &Seats, node: &Node) -> Option<Shortage> {
    let is_leaving = |seat: &&Seat| seat.node == node.id.as_str() || !is_wanted(state, seat);
    let leaving: Vec<u64> = seats.all.iter().filter(is_leaving).map(|seat| seat.raft_id).collect();
    shortage(state, seats, &leaving).map(|found| Shortage { leaving: node.description.hostname.clone(), ..found })
}

/// The changes after which `own` is the only manager, because the others are lost for good. Should one of them come
/// back, it finds itself a worker.
#[must_use]
pub fn only_manager(state: &State, own: &NodeId, seat: &ManagerStatus) -> Vec<Change> {
    let changed = state.nodes().filter_map(|known| {
        let mut node = Node::clone(known);
        let (role, manager) =
            if known.id == *own { (NodeRole::Manager, Some(seat.clone())) } else { (NodeRole::Worker, None) };
        (node.spec.role, node.role, node.manager) = (role, role, manager);
        (node != **known).then(|| Change::Update(Object::Node(Arc::new(node))))
    });
    changed.collect()
}

/// What a certificate is worth to a manager with this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Good,
    /// The node is not in the cluster any more.
    Removed,
    /// The node is still there, but not as a manager.
    Demoted,
}

/// Certificates outlive roles and nodes, so each call asks the state. A certificate that is newer than the state is
/// believed: this manager has yet to hear of what it was made for.
#[must_use]
pub fn standing(state: &State, id: &NodeId, role: NodeRole, issued_at: Timestamp) -> Standing {
    let is_news = state.last_stamp() <= issued_at;
    match state.node(id) {
        _ if is_news || state.cluster().is_none() => Standing::Good,
        None => Standing::Removed,
        Some(node) if role == NodeRole::Manager && node.role == NodeRole::Worker => Standing::Demoted,
        Some(_) => Standing::Good,
    }
}

/// A manager whose role the operator wants, and that has it.
fn is_wanted(state: &State, seat: &Seat) -> bool {
    let node = state.nodes().find(|n| n.id.as_str() == seat.node);
    node.is_some_and(|n| n.spec.role == NodeRole::Manager && n.role == NodeRole::Manager)
}

fn heir(state: &State, seats: &Seats) -> Option<u64> {
    let mut able = seats.all.iter().filter(|s| s.is_voter && s.is_reachable && s.raft_id != seats.leader);
    able.find(|seat| is_wanted(state, seat)).map(|seat| seat.raft_id)
}

fn shortage(state: &State, seats: &Seats, leaving: &[u64]) -> Option<Shortage> {
    let voters = seats.all.iter().filter(|seat| seat.is_voter);
    let remaining: Vec<&Seat> = voters.clone().filter(|seat| !leaving.contains(&seat.raft_id)).collect();
    let (answering, silent): (Vec<&Seat>, Vec<&Seat>) = remaining.iter().partition(|seat| seat.is_reachable);
    let quorum = remaining.len() / 2 + 1;
    let is_learner = leaving.iter().all(|id| seats.all.iter().any(|s| s.raft_id == *id && !s.is_voter));
    if is_learner || answering.len() >= quorum {
        return None;
    }
    let name = |seat: &Seat| {
        let node = state.nodes().find(|n| n.id.as_str() == seat.node);
        node.map_or_else(|| seat.node.clone(), |n| n.description.hostname.clone())
    };
    let gone = seats.all.iter().filter(|seat| leaving.contains(&seat.raft_id));
    Some(Shortage {
        leaving: gone.map(name).collect::<Vec<_>>().join(", "),
        voters: voters.count(),
        remaining: remaining.len(),
        reachable: answering.len(),
        quorum,
        silent: silent.into_iter().map(name).collect(),
    })
}
