//! Who is down: a function of what sessions and peers say, and of the time.
//!
//! A node is down for certain when it has missed its heartbeats. It is down at once when it is silent *and* the majority of
//! those that watch it cannot reach it: neither alone is enough, since a session also breaks when a manager is cut off, and
//! peers also lose sight of a node whose gossip is blocked. What an observer says counts only while the observer itself is
//! heard, so a manager that hears nobody takes nobody for dead this way.
//!
//! This module must not read a clock: `now` is the time since this manager began to lead. Time in which it stood still is
//! taken out of it by [`Liveness::forgive`].

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::successors,
    net::IpAddr,
    time::Duration,
};

use orch_model::{
    NodeId,
    node::{Node, NodeState},
};

/// A node is down after this many missed heartbeats.
pub const MISSED_BEATS: u32 = 3;
/// Everyone has to find the new leader first.
pub const AFTER_CHANGE_OF_LEADER: u32 = 2;
/// A node is silent after this long without a sign of life; pings come every second.
pub const SILENCE: Duration = Duration::from_secs(2);
/// The same for a node that a new leader has never heard: those that live find their way to it within this.
const FIRST_SILENCE: Duration = Duration::from_secs(1);
/// How many others watch each node. Enough for a majority that means something, few enough that what a node does for it
/// does not grow with the cluster.
pub const WATCHERS: usize = 7;
/// With fewer watchers there is no majority of peers, and only the grace time counts.
const MIN_WATCHERS: usize = 2;

/// Why a node counts as down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    MissedHeartbeats,
    UnreachableForPeers,
}

impl Cause {
    /// For the operator.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::MissedHeartbeats => "heartbeat failure",
            Self::UnreachableForPeers => "unreachable for its peers",
        }
    }
}

/// What a ready node's status says while nothing of gossip reaches it.
pub const DEAF_MESSAGE: &str = "gossip does not reach it: open 7946/udp";

/// Who watches whom: nodes in the order of their ids, which are random, each watching some that follow it.
///
/// The distances are powers of one number, so that news which go from watcher to watched reach everyone in a few steps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ring {
    members: Vec<(NodeId, IpAddr)>,
    distances: Vec<usize>,
}

impl Ring {
    /// The ring of the nodes that can be reached at all.
    pub fn new<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Self {
        let up = |node: &&Node| node.status.state != NodeState::Down;
        let member = |node: &Node| Some((node.id.clone(), node.status.addr?));
        let mut members: Vec<_> = nodes.into_iter().filter(up).filter_map(member).collect();
        members.sort_unstable();
        Self::of(members)
    }

    fn of(members: Vec<(NodeId, IpAddr)>) -> Self {
        let distances = distances(members.len());
        Self { members, distances }
    }

    /// How many watch each member.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.distances.len()
    }

    /// Whom `node` watches; nobody when it is no member.
    pub fn watched_by(&self, node: &NodeId) -> impl Iterator<Item = &(NodeId, IpAddr)> {
        let len = self.members.len();
        let ahead = move |place: usize| self.distances.iter().map(move |d| &self.members[(place + d) % len]);
        self.place(node).into_iter().flat_map(ahead)
    }

    /// Who watches `node`.
    pub fn watchers_of(&self, node: &NodeId) -> impl Iterator<Item = &NodeId> {
        let len = self.members.len();
        let behind = move |place: usize| self.distances.iter().map(move |d| &self.members[(place + len - d) % len].0);
        self.place(node).into_iter().flat_map(behind)
    }

    fn place(&self, node: &NodeId) -> Option<usize> {
        self.members.binary_search_by(|(id, _)| id.cmp(node)).ok()
    }
}

/// Powers of the smallest base whose steps lead round the ring; where those are too few, the smallest others.
fn distances(members: usize) -> Vec<usize> {
    let wanted = members.saturating_sub(1).min(WATCHERS);
    let steps = |base: usize| successors(Some(1), move |step: &usize| Some(step.saturating_mul(base)));
    let reaches = |base: &usize| steps(*base).nth(WATCHERS).is_some_and(|step| step >= members);
    let base = (2..=members.max(2)).find(reaches).unwrap_or(2);
    let mut distances: Vec<_> = steps(base).take(WATCHERS).filter(|distance| *distance < members).collect();
    let others: Vec<_> = (1..members).filter(|distance| !distances.contains(distance)).take(wanted).collect();
    distances.extend(others);
    distances.truncate(wanted);
    distances
}

/// What is known of the nodes' lives in one reign.
#[derive(Debug, Default)]
pub struct Liveness {
    known: BTreeMap<NodeId, Known>,
    /// The reign counts from here; later than zero when this manager stood still.
    started: Duration,
}

#[derive(Debug)]
struct Known {
    heard: Duration,
    connected: bool,
    unreachable: BTreeSet<NodeId>,
    deaf: bool,
}

impl Liveness {
    /// The node opened a session.
    pub fn connected(&mut self, node: NodeId, now: Duration) {
        let fresh = Known { heard: now, connected: true, unreachable: BTreeSet::new(), deaf: false };
        self.known.insert(node, fresh);
    }

    /// A sign of life in the node's session.
    pub fn heard(&mut self, node: &NodeId, now: Duration) {
        if let Some(known) = self.known.get_mut(node) {
            known.heard = known.heard.max(now);
        }
    }

    /// What the node sees of its peers.
    pub fn reported(&mut self, node: &NodeId, unreachable: BTreeSet<NodeId>, deaf: bool) {
        if let Some(known) = self.known.get_mut(node) {
            (known.unreachable, known.deaf) = (unreachable, deaf);
        }
    }

    /// The node's session broke. When it was last heard stays known: an agent that comes back in time was never down.
    pub fn broke(&mut self, node: &NodeId) {
        if let Some(known) = self.known.get_mut(node) {
            known.connected = false;
        }
    }

    pub fn forget(&mut self, node: &NodeId) {
        self.known.remove(node);
    }

    /// This manager stood still for so long: what nodes said meanwhile has yet to be heard, so that time is not held
    /// against them.
    pub fn forgive(&mut self, stall: Duration, now: Duration) {
        for known in self.known.values_mut() {
            known.heard = (known.heard + stall).min(now);
        }
        self.started = (self.started + stall).min(now);
    }

    /// Whether the node is down, and why. `known_for`: how long ago its state last changed, which counts while it was
    /// never heard in this reign (a node that has just joined).
    #[must_use]
    pub fn verdict(
        &self,
        node: &NodeId,
        ring: &Ring,
        known_for: Duration,
        period: Duration,
        now: Duration,
    ) -> Option<Cause> {
        let grace = period * MISSED_BEATS;
        let (silent_for, grace, patience) = match self.known.get(node) {
            Some(known) if known.connected => (now.saturating_sub(known.heard), grace, SILENCE),
            Some(known) => (now.saturating_sub(known.heard), grace, Duration::ZERO),
            None => {
                let silent_for = now.saturating_sub(self.started).min(known_for);
                (silent_for, grace * AFTER_CHANGE_OF_LEADER, FIRST_SILENCE)
            }
        };
        if silent_for > grace {
            return Some(Cause::MissedHeartbeats);
        }
        (silent_for >= patience && self.is_out_of_sight(node, ring, now)).then_some(Cause::UnreachableForPeers)
    }

    /// Whether gossip does not reach the node although there is somebody to hear.
    #[must_use]
    pub fn is_deaf(&self, node: &NodeId, ring: &Ring, now: Duration) -> bool {
        let says_so = self.known.get(node).is_some_and(|known| known.deaf);
        let heard = |other: &NodeId| self.is_heard(other, now);
        says_so && ring.watchers_of(node).any(heard)
    }

    /// Whether the majority of all that watch it say that they cannot reach it.
    fn is_out_of_sight(&self, node: &NodeId, ring: &Ring, now: Duration) -> bool {
        let says_so = |observer: &&NodeId| {
            self.is_heard(observer, now)
                && self.known.get(*observer).is_some_and(|known| known.unreachable.contains(node))
        };
        let against = ring.watchers_of(node).filter(says_so).count();
        ring.watchers() >= MIN_WATCHERS && against * 2 > ring.watchers()
    }

    fn is_heard(&self, node: &NodeId, now: Duration) -> bool {
        self.known.get(node).is_some_and(|known| known.connected && now.saturating_sub(known.heard) < SILENCE)
    }
}

#[cfg(test)]
mod tests;
