//! Who is alive, as far as this node can tell: probes, what others say, and what follows.
//!
//! Each node probes the few that it watches. One that does not answer is probed again, directly, by way of two others, and
//! by a TCP handshake that its kernel answers even while its processes stand still; only when all of that fails does this
//! node call it unreachable, and tell everyone. A node is *suspect* when the majority of those that watch it call it
//! unreachable, or when this node itself reaches it only by way of others: the network between the two is cut, so that no
//! connection should be tried. News go from node to node along the watched, so that they reach all without anybody knowing all.
//!
//! This module must not read a clock, a socket or a source of randomness: `now` counts from any start, numbers are given.
//! What it wants done comes out as [`Effect`]s. A node that was never reached is never called unreachable (its gossip may
//! be blocked), and time in which this node itself stood still is held against nobody.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use orch_model::NodeId;

/// How often each watched node is probed.
pub(super) const PERIOD: Duration = Duration::from_millis(500);
/// How long a probe may take, and then again for those by way of others.
pub(super) const PATIENCE: Duration = Duration::from_millis(350);
/// How often [`Prober::tick`] is called.
pub(super) const TICK: Duration = Duration::from_millis(50);
/// A tick that comes later than this says that this node stood still.
const LATE: Duration = Duration::from_millis(200);
/// After so many probes in a row that were answered only by way of others, a node is out of this node's own reach.
const INDIRECT_ROUNDS: u32 = 2;
/// By way of so many others.
const RELAYS: usize = 2;
/// An unreachable node is said to be so again this often, …
const REPEAT: Duration = Duration::from_secs(2);
/// … and what was not said again for so long is forgotten: its observer may be gone.
const NEWS_LAST: Duration = Duration::from_secs(7);
/// Nothing heard for so long although there are peers: gossip does not reach this node.
const DEAF_AFTER: Duration = Duration::from_secs(8);
/// Relayed probes under way.
const MAX_RELAYED: usize = 1024;
/// Pairs of observer and observed that news are kept of.
const MAX_NEWS: usize = 16_384;
/// News waiting to be passed on.
const MAX_WAITING: usize = 2_048;
/// News in one packet: some 60 bytes each, in what every network carries.
const NEWS_PER_PACKET: usize = 16;

/// One that this node watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) id: NodeId,
    pub(super) addr: IpAddr,
}

/// What managers say of gossip.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Circle {
    pub(super) peers: Vec<Peer>,
    /// How many watch each node.
    pub(super) watchers: usize,
}

/// What a packet says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    Probe(u64),
    Ack(u64),
    /// Probe that one and pass its ack on under this number.
    Relay(u64, Peer),
    News(Vec<Verdict>),
}

/// What one node says of another that it watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) observer: NodeId,
    pub(super) target: NodeId,
    pub(super) sequence: u64,
    pub(super) unreachable: bool,
}

/// Where a packet goes: a node at its gossip port, or wherever a packet of that node came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct To<A> {
    pub(super) node: NodeId,
    pub(super) at: At<A>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At<A> {
    Port(IpAddr),
    Source(A),
}

/// What the shell should do. `A`: how it knows where a packet came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect<A> {
    Send(To<A>, Message),
    /// See whether the kernel of this node answers, and call [`Prober::handshake`].
    Handshake(NodeId, IpAddr),
}

/// What this node sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct View {
    /// Those it watches and cannot reach.
    pub(super) unreachable: BTreeSet<NodeId>,
    /// Nodes that the majority of those that watch them cannot reach, and those out of this node's own reach.
    pub(super) suspects: BTreeSet<NodeId>,
    /// Those that it watches and reaches by way of others only.
    pub(super) beyond: BTreeSet<NodeId>,
    /// All that it watches.
    pub(super) watched: BTreeSet<NodeId>,
    pub(super) deaf: bool,
}

#[derive(Debug)]
pub(super) struct Prober<A> {
    own: NodeId,
    circle: Circle,
    watched: BTreeMap<NodeId, Watched>,
    relayed: VecDeque<Relayed<A>>,
    news: BTreeMap<(NodeId, NodeId), News>,
    waiting: VecDeque<Verdict>,
    /// Of this node's own verdicts.
    sequence: u64,
    /// Of this node's probes.
    number: u64,
    ticked: Duration,
    heard: Duration,
}

/// What is known of a node that this one watches.
#[derive(Debug)]
struct Watched {
    addr: IpAddr,
    stage: Stage,
    next: Duration,
    /// It has answered at this address.
    was_reached: bool,
    unreachable: bool,
    said: Duration,
    /// Probes in a row that were answered only by way of others.
    indirect: u32,
}

impl Watched {
    fn is_beyond(&self) -> bool {
        self.indirect >= INDIRECT_ROUNDS
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    /// Probed directly.
    Direct {
        number: u64,
        until: Duration,
    },
    /// Probed again in every way.
    Everything {
        number: u64,
        until: Duration,
        /// Others have reached it; it may yet answer this node itself.
        by_others: bool,
    },
}

/// A probe for somebody else.
#[derive(Debug)]
struct Relayed<A> {
    number: u64,
    target: NodeId,
    answer: To<A>,
    answer_number: u64,
    until: Duration,
}

#[derive(Debug)]
struct News {
    sequence: u64,
    unreachable: bool,
    heard: Duration,
}

impl<A: Clone> Prober<A> {
    /// `sequence` must be higher than that of any earlier life of this node.
    pub(super) fn new(own: NodeId, sequence: u64, now: Duration) -> Self {
        Self {
            own,
            circle: Circle::default(),
            watched: BTreeMap::new(),
            relayed: VecDeque::new(),
            news: BTreeMap::new(),
            waiting: VecDeque::new(),
            sequence,
            number: sequence,
            ticked: now,
            heard: now,
        }
    }

    /// Managers give this node others to watch. What is known of those that stay is kept.
    pub(super) fn set_circle(&mut self, circle: Circle, now: Duration) {
        if self.circle.peers.is_empty() {
            self.heard = now;
        }
        let mut known = std::mem::take(&mut self.watched);
        for (place, peer) in (0_u32..).zip(&circle.peers) {
            let fresh = Watched {
                addr: peer.addr,
                stage: Stage::Idle,
                // Spread over the period.
                next: now + PERIOD * place / u32::try_from(circle.peers.len()).unwrap_or(1),
                was_reached: false,
                unreachable: false,
                said: now,
                indirect: 0,
            };
            let kept = known.remove(&peer.id).filter(|watched| watched.addr == peer.addr);
            self.watched.insert(peer.id.clone(), kept.unwrap_or(fresh));
        }
        self.circle = circle;
    }

    pub(super) fn view(&self, now: Duration) -> View {
        let unreachable = self.watched.iter().filter(|(_, watched)| watched.unreachable);
        let mut against: BTreeMap<&NodeId, usize> = BTreeMap::new();
        for (_, target) in self.news.iter().filter(|(_, news)| news.unreachable).map(|(pair, _)| pair) {
            *against.entry(target).or_default() += 1;
        }
        let majority = |count: usize| count * 2 > self.circle.watchers;
        // Whoever reaches a node needs nobody's word on it.
        let is_in_sight = |id: &NodeId| self.watched.get(id).is_some_and(|w| w.was_reached && !w.unreachable);
        let is_suspect = |(id, count): &(&NodeId, usize)| majority(*count) && !is_in_sight(id);
        let dead = against.into_iter().filter(is_suspect).map(|(id, _)| id);
        let beyond = || self.watched.iter().filter(|(_, watched)| watched.is_beyond()).map(|(id, _)| id);
        View {
            unreachable: unreachable.map(|(id, _)| id.clone()).collect(),
            suspects: dead.chain(beyond()).cloned().collect(),
            beyond: beyond().cloned().collect(),
            watched: self.watched.keys().cloned().collect(),
            deaf: !self.watched.is_empty() && now.saturating_sub(self.heard) > DEAF_AFTER,
        }
    }

    /// Time has passed. `pick` chooses a number below its argument.
    pub(super) fn tick(&mut self, now: Duration, mut pick: impl FnMut(usize) -> usize) -> Vec<Effect<A>> {
        let late = now.saturating_sub(self.ticked).saturating_sub(TICK);
        self.ticked = now;
        if late > LATE {
            self.forgive(now, late);
        }
        self.relayed.retain(|relayed| relayed.until > now);
        self.news.retain(|_, news| now.saturating_sub(news.heard) <= NEWS_LAST);
        let mut effects = Vec::new();
        let ids: Vec<NodeId> = self.watched.keys().cloned().collect();
        for id in ids {
            self.step(&id, now, &mut pick, &mut effects);
        }
        self.pass_news_on(&mut effects);
        effects
    }

    /// A packet of `from` that opened and is no replay.
    pub(super) fn receive(&mut self, from: &NodeId, source: A, message: Message, now: Duration) -> Vec<Effect<A>> {
        self.heard = now;
        let back = To { node: from.clone(), at: At::Source(source) };
        match message {
            Message::Probe(number) => vec![Effect::Send(back, Message::Ack(number))],
            Message::Ack(number) => self.acknowledged(from, number, now).into_iter().collect(),
            Message::Relay(number, target) => self.relay(back, number, target, now).into_iter().collect(),
            Message::News(verdicts) => {
                for verdict in verdicts {
                    self.learn(verdict, now);
                }
                // At once: there may be many steps to the last node.
                let mut effects = Vec::new();
                self.pass_news_on(&mut effects);
                effects
            }
        }
    }

    /// The kernel of a watched node answered a handshake, or refused it, which is an answer too.
    pub(super) fn handshake(&mut self, id: &NodeId, now: Duration) {
        if let Some(watched) = self.watched.get_mut(id)
            && matches!(watched.stage, Stage::Everything { .. })
        {
            watched.indirect = 0;
            self.reached(id, now);
        }
    }

    /// This node stood still: what was to be heard meanwhile waits in its socket, or was lost by its own fault.
    fn forgive(&mut self, now: Duration, late: Duration) {
        self.heard = (self.heard + late).min(now);
        for watched in self.watched.values_mut() {
            watched.stage = Stage::Idle;
            watched.next = now;
            watched.indirect = 0;
        }
        for news in self.news.values_mut() {
            news.heard = (news.heard + late).min(now);
        }
    }

    fn step(
        &mut self,
        id: &NodeId,
        now: Duration,
        pick: &mut impl FnMut(usize) -> usize,
        effects: &mut Vec<Effect<A>>,
    ) {
        let Some(watched) = self.watched.get(id) else { return };
        let (addr, was_reached) = (watched.addr, watched.was_reached);
        if let Stage::Everything { until, by_others: true, .. } = watched.stage {
            if now >= until {
                self.reached_by_others(id, now);
            }
            return;
        }
        let (stage, failed) = match watched.stage {
            Stage::Idle if now >= watched.next => {
                let number = self.next_number();
                effects.push(send(id, addr, Message::Probe(number)));
                (Stage::Direct { number, until: now + PATIENCE }, false)
            }
            // Never reached: nothing will be said of it, so nobody else is bothered.
            Stage::Direct { until, .. } if now >= until && !was_reached => (Stage::Idle, false),
            Stage::Direct { until, number } if now >= until => {
                effects.push(send(id, addr, Message::Probe(number)));
                effects.push(Effect::Handshake(id.clone(), addr));
                let target = Peer { id: id.clone(), addr };
                for relay in self.relays(id, pick) {
                    effects.push(send(&relay.id, relay.addr, Message::Relay(number, target.clone())));
                }
                (Stage::Everything { number, until: now + PATIENCE, by_others: false }, false)
            }
            Stage::Everything { until, .. } if now >= until => (Stage::Idle, true),
            waiting => (waiting, false),
        };
        let Some(watched) = self.watched.get_mut(id) else { return };
        if stage != watched.stage {
            watched.stage = stage;
            watched.next = now.max(watched.next) + if stage == Stage::Idle { PERIOD } else { Duration::ZERO };
        }
        if failed && (!watched.unreachable || now.saturating_sub(watched.said) >= REPEAT) {
            (watched.unreachable, watched.said, watched.indirect) = (true, now, 0);
            self.say(id, true, now);
        }
    }

    /// Others to probe by way of: watched ones that answer.
    fn relays(&self, but: &NodeId, pick: &mut impl FnMut(usize) -> usize) -> Vec<Peer> {
        let usable = |(id, watched): &(&NodeId, &Watched)| *id != but && watched.was_reached && !watched.unreachable;
        let mut usable: Vec<_> = self.watched.iter().filter(usable).collect();
        let mut relays = Vec::new();
        while relays.len() < RELAYS && !usable.is_empty() {
            let (id, watched) = usable.swap_remove(pick(usable.len()) % usable.len());
            relays.push(Peer { id: id.clone(), addr: watched.addr });
        }
        relays
    }

    fn acknowledged(&mut self, from: &NodeId, number: u64, now: Duration) -> Option<Effect<A>> {
        if let Some(place) = self.relayed.iter().position(|r| r.number == number && r.target == *from) {
            let relayed = self.relayed.remove(place)?;
            return Some(Effect::Send(relayed.answer, Message::Ack(relayed.answer_number)));
        }
        let asked = |watched: &Watched| match watched.stage {
            Stage::Direct { number: asked, .. } | Stage::Everything { number: asked, .. } => asked == number,
            Stage::Idle => false,
        };
        let (id, watched) = self.watched.iter_mut().find(|(_, watched)| asked(watched))?;
        // The ack of a relayed probe comes from the relay.
        if id == from {
            (watched.was_reached, watched.indirect) = (true, 0);
            self.reached(from, now);
        } else if let Stage::Everything { by_others, .. } = &mut watched.stage {
            *by_others = true;
        }
        None
    }

    fn reached_by_others(&mut self, id: &NodeId, now: Duration) {
        if let Some(watched) = self.watched.get_mut(id) {
            watched.indirect = watched.indirect.saturating_add(1);
        }
        self.reached(id, now);
    }

    fn reached(&mut self, id: &NodeId, now: Duration) {
        let Some(watched) = self.watched.get_mut(id) else { return };
        watched.stage = Stage::Idle;
        watched.next = now.max(watched.next) + PERIOD;
        if std::mem::take(&mut watched.unreachable) {
            self.say(id, false, now);
        }
    }

    fn relay(&mut self, answer: To<A>, answer_number: u64, target: Peer, now: Duration) -> Option<Effect<A>> {
        if self.relayed.len() >= MAX_RELAYED {
            return None;
        }
        let number = self.next_number();
        let until = now + PATIENCE;
        let probe = send(&target.id, target.addr, Message::Probe(number));
        self.relayed.push_back(Relayed { number, target: target.id, answer, answer_number, until });
        Some(probe)
    }

    fn say(&mut self, target: &NodeId, unreachable: bool, now: Duration) {
        self.sequence += 1;
        let (observer, target) = (self.own.clone(), target.clone());
        self.learn(Verdict { observer, target, sequence: self.sequence, unreachable }, now);
    }

    /// Keeps what is new, and passes it on.
    fn learn(&mut self, verdict: Verdict, now: Duration) {
        // Nobody else knows what this node sees, and it knows itself to be alive.
        let is_own = verdict.observer == self.own;
        if verdict.target == self.own || (is_own && verdict.sequence != self.sequence) {
            return;
        }
        let pair = (verdict.observer.clone(), verdict.target.clone());
        let is_full = self.news.len() >= MAX_NEWS && !self.news.contains_key(&pair);
        if is_full || self.news.get(&pair).is_some_and(|known| known.sequence >= verdict.sequence) {
            return;
        }
        let (sequence, unreachable) = (verdict.sequence, verdict.unreachable);
        self.news.insert(pair, News { sequence, unreachable, heard: now });
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(verdict);
        }
    }

    fn pass_news_on(&mut self, effects: &mut Vec<Effect<A>>) {
        if self.waiting.is_empty() {
            return;
        }
        let waiting: Vec<Verdict> = self.waiting.drain(..).collect();
        for verdicts in waiting.chunks(NEWS_PER_PACKET) {
            for peer in &self.circle.peers {
                effects.push(send(&peer.id, peer.addr, Message::News(verdicts.to_vec())));
            }
        }
    }

    fn next_number(&mut self) -> u64 {
        self.number = self.number.wrapping_add(1);
        self.number
    }
}

fn send<A>(id: &NodeId, addr: IpAddr, message: Message) -> Effect<A> {
    Effect::Send(To { node: id.clone(), at: At::Port(addr) }, message)
}

#[cfg(test)]
mod tests;
