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
/// How often a node gives a sign of life; in a large cluster less often, so that all of them together give about
/// [`PINGS_PER_SECOND`].
pub const PING_PERIOD: Duration = Duration::from_secs(1);
const PINGS_PER_SECOND: u32 = 1000;
/// A node is silent when its sign of life is so late.
const LATENESS: Duration = Duration::from_secs(1);
/// A node is silent, too, when it was asked for a sign of life and gave none for so long.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// A node that a new leader has never heard is silent after this long: those that live find their way to it sooner.
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

    /// How often each member gives a sign of life: never less often than `heartbeat`, the period that operators set.
    #[must_use]
    pub fn ping_period(&self, heartbeat: Duration) -> Duration {
        let members = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        (PING_PERIOD * members / PINGS_PER_SECOND).max(PING_PERIOD).min(heartbeat)
    }

    /// After how long without a sign of life a member is silent.
    fn silence(&self, heartbeat: Duration) -> Duration {
        self.ping_period(heartbeat) + LATENESS
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
    /// Who is out of whose sight: the nodes that [`Known::unreachable`] of others names.
    accused: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// The reign counts from here; later than zero when this manager stood still.
    started: Duration,
}

#[derive(Debug)]
struct Known {
    heard: Duration,
    /// When it was last asked for a sign of life.
    asked: Option<Duration>,
    connected: bool,
    unreachable: BTreeSet<NodeId>,
    deaf: bool,
}

impl Liveness {
    /// The node opened a session.
    pub fn connected(&mut self, node: NodeId, now: Duration) {
        self.accuse(&node, BTreeSet::new());
        let fresh = Known { heard: now, asked: None, connected: true, unreachable: BTreeSet::new(), deaf: false };
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
        self.accuse(node, unreachable);
        if let Some(known) = self.known.get_mut(node) {
            known.deaf = deaf;
        }
    }

    /// Replaces what `observer` says.
    fn accuse(&mut self, observer: &NodeId, unreachable: BTreeSet<NodeId>) {
        let Some(known) = self.known.get_mut(observer) else { return };
        for gone in known.unreachable.difference(&unreachable) {
            if let Some(observers) = self.accused.get_mut(gone) {
                observers.remove(observer);
                if observers.is_empty() {
                    self.accused.remove(gone);
                }
            }
        }
        for accused in unreachable.difference(&known.unreachable) {
            self.accused.entry(accused.clone()).or_default().insert(observer.clone());
        }
        known.unreachable = unreachable;
    }

    /// The nodes that somebody cannot reach: what can be down before its grace time is among them.
    pub fn suspects(&self) -> impl Iterator<Item = &NodeId> {
        self.accused.keys()
    }

    /// Connected nodes that are out of most others' sight and were not heard lately: they are to give a sign of life now,
    /// not when their time comes. Each is named once per [`ANSWER_TIME`].
    pub fn to_ask(&mut self, ring: &Ring, heartbeat: Duration, now: Duration) -> Vec<NodeId> {
        let is_due = |known: &Known| {
            known.connected
                && now.saturating_sub(known.heard) >= ANSWER_TIME
                && known.asked.is_none_or(|asked| asked <= known.heard || now.saturating_sub(asked) >= ANSWER_TIME)
        };
        let suspects = self.accused.keys().filter(|node| self.known.get(*node).is_some_and(is_due));
        let due: Vec<_> = suspects.filter(|node| self.is_out_of_sight(node, ring, heartbeat, now)).cloned().collect();
        for node in &due {
            if let Some(known) = self.known.get_mut(node) {
                // The first question counts until it is answered.
                known.asked = known.asked.filter(|asked| *asked > known.heard).or(Some(now));
            }
        }
        due
    }

    /// The node's session broke. When it was last heard stays known: an agent that comes back in time was never down.
    pub fn broke(&mut self, node: &NodeId) {
        if let Some(known) = self.known.get_mut(node) {
            known.connected = false;
        }
    }

    pub fn forget(&mut self, node: &NodeId) {
        self.accuse(node, BTreeSet::new());
        self.known.remove(node);
    }

    /// This manager stood still for so long: what nodes said meanwhile has yet to be heard, so that time is not held
    /// against them.
    pub fn forgive(&mut self, stall: Duration, now: Duration) {
        for known in self.known.values_mut() {
            known.heard = (known.heard + stall).min(now);
            known.asked = None;
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
            Some(known) if known.connected => {
                let unanswered = known.asked.filter(|asked| *asked > known.heard);
                let is_silent = unanswered.is_some_and(|asked| now.saturating_sub(asked) >= ANSWER_TIME);
                let patience = if is_silent { Duration::ZERO } else { ring.silence(period) };
                (now.saturating_sub(known.heard), grace, patience)
            }
            Some(known) => (now.saturating_sub(known.heard), grace, Duration::ZERO),
            None => {
                let silent_for = now.saturating_sub(self.started).min(known_for);
                (silent_for, grace * AFTER_CHANGE_OF_LEADER, FIRST_SILENCE)
            }
        };
        if silent_for > grace {
            return Some(Cause::MissedHeartbeats);
        }
        (silent_for >= patience && self.is_out_of_sight(node, ring, period, now)).then_some(Cause::UnreachableForPeers)
    }

    /// Whether nobody comes to this manager although there is somebody to come: what reaches it is cut off, not the others.
    ///
    /// `others`: the nodes that are not down, without this manager's own. `reached`: those on which a manager answers
    /// this one. Half of their grace time is over then, so that another manager can hear them before it is.
    #[must_use]
    pub fn is_shunned<'a>(
        &self,
        others: impl IntoIterator<Item = &'a NodeId>,
        reached: &BTreeSet<NodeId>,
        period: Duration,
        now: Duration,
    ) -> bool {
        let patience = period * MISSED_BEATS / 2;
        let is_silent = |node: &NodeId| match self.known.get(node) {
            Some(known) => now.saturating_sub(known.heard) > patience,
            None => now.saturating_sub(self.started) > patience * AFTER_CHANGE_OF_LEADER,
        };
        let mut is_anyone_there = false;
        let all_silent = others.into_iter().all(|node| {
            is_anyone_there |= reached.contains(node);
            is_silent(node)
        });
        all_silent && is_anyone_there
    }

    /// Whether gossip does not reach the node although there is somebody to hear.
    #[must_use]
    pub fn is_deaf(&self, node: &NodeId, ring: &Ring, heartbeat: Duration, now: Duration) -> bool {
        let says_so = self.known.get(node).is_some_and(|known| known.deaf);
        let heard = |other: &NodeId| self.is_heard(other, ring.silence(heartbeat), now);
        says_so && ring.watchers_of(node).any(heard)
    }

    /// Whether the majority of all that watch it say that they cannot reach it.
    fn is_out_of_sight(&self, node: &NodeId, ring: &Ring, heartbeat: Duration, now: Duration) -> bool {
        let Some(observers) = self.accused.get(node) else { return false };
        let silence = ring.silence(heartbeat);
        let says_so = |observer: &&NodeId| observers.contains(*observer) && self.is_heard(observer, silence, now);
        let against = ring.watchers_of(node).filter(says_so).count();
        ring.watchers() >= MIN_WATCHERS && against * 2 > ring.watchers()
    }

    fn is_heard(&self, node: &NodeId, silence: Duration, now: Duration) -> bool {
        self.known.get(node).is_some_and(|known| known.connected && now.saturating_sub(known.heard) < silence)
    }
}

#[cfg(test)]
mod tests;
