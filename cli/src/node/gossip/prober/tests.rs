//! Whole clusters of probers on a network of this file's making: what each sees, and how soon.

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const FLIGHT: Duration = Duration::from_millis(2);

fn id(n: usize) -> NodeId {
    NodeId::from_random(n as u128)
}

fn addr(n: usize) -> IpAddr {
    IpAddr::from([10, 0, u8::try_from(n / 250).expect("a few nodes"), u8::try_from(n % 250).expect("below 250")])
}

/// What became of a node.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Well,
    /// Power cut: nothing answers.
    Dead,
    /// Its supervisor stands still, its kernel does not.
    Paused,
    /// Its gossip port is closed, other ports are not.
    Blocked,
}

/// As managers have it: far and near.
fn distances(nodes: usize, watchers: usize) -> impl Iterator<Item = usize> {
    (0..watchers).map(move |n| {
        let power = || 3_usize.pow(u32::try_from(n).expect("a few watchers"));
        if nodes > 128 { power() % nodes } else { 1 + n }
    })
}

struct Net {
    now: Duration,
    probers: Vec<Prober<usize>>,
    fates: Vec<Fate>,
    /// Nodes in different parts do not reach each other.
    part: Vec<usize>,
    /// What the first sends does not reach the second.
    cuts: BTreeSet<(usize, usize)>,
    flights: VecDeque<(Duration, usize, usize, Message)>,
    handshakes: VecDeque<(Duration, usize, NodeId)>,
    /// Of a hundred packets, so many are lost.
    loss: u32,
    random: StdRng,
    sent: u64,
}

impl Net {
    fn new(nodes: usize, watchers: usize, seed: u64) -> Self {
        let mut net = Self {
            now: Duration::ZERO,
            probers: (0..nodes).map(|n| Prober::new(id(n), 1, Duration::ZERO)).collect(),
            fates: vec![Fate::Well; nodes],
            part: vec![0; nodes],
            cuts: BTreeSet::new(),
            flights: VecDeque::new(),
            handshakes: VecDeque::new(),
            loss: 0,
            random: StdRng::seed_from_u64(seed),
            sent: 0,
        };
        for n in 0..nodes {
            let peers = distances(nodes, watchers)
                .map(|k| (n + k) % nodes)
                .map(|k| Peer { id: id(k), addr: addr(k) })
                .collect();
            net.probers[n].set_circle(Circle { peers, watchers }, Duration::ZERO);
        }
        net
    }

    fn settled(nodes: usize, watchers: usize) -> Self {
        let mut net = Self::new(nodes, watchers, 1);
        net.run(Duration::from_secs(2));
        net
    }

    fn number(&self, wanted: &NodeId) -> usize {
        (0..self.probers.len()).find(|n| id(*n) == *wanted).unwrap()
    }

    fn at(addr: IpAddr) -> usize {
        let IpAddr::V4(v4) = addr else { unreachable!() };
        usize::from(v4.octets()[2]) * 250 + usize::from(v4.octets()[3])
    }

    fn run(&mut self, length: Duration) {
        let end = self.now + length;
        while self.now < end {
            self.now += FLIGHT;
            let ticks = self.now.as_millis().is_multiple_of(TICK.as_millis());
            for n in 0..self.probers.len() {
                if ticks && matches!(self.fates[n], Fate::Well | Fate::Blocked) {
                    let random = &mut self.random;
                    let effects = self.probers[n].tick(self.now, |below| random.random_range(0..below));
                    self.carry_out(n, effects);
                }
            }
            while self.flights.front().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, from, to, message) = self.flights.pop_front().unwrap();
                if self.fates[to] == Fate::Well && self.random.random_range(0..100) >= self.loss {
                    let effects = self.probers[to].receive(&id(from), from, message, self.now);
                    self.carry_out(to, effects);
                }
            }
            while self.handshakes.front().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, n, target) = self.handshakes.pop_front().unwrap();
                self.probers[n].handshake(&target, self.now);
            }
        }
    }

    fn carry_out(&mut self, from: usize, effects: Vec<Effect<usize>>) {
        for effect in effects {
            match effect {
                Effect::Send(to, message) => {
                    self.sent += 1;
                    let n = match to.at {
                        At::Port(addr) => Self::at(addr),
                        At::Source(n) => n,
                    };
                    assert_eq!(to.node, id(n));
                    if self.part[from] == self.part[n] && !self.cuts.contains(&(from, n)) {
                        self.flights.push_back((self.now + FLIGHT, from, n, message));
                    }
                }
                Effect::Handshake(target, _) => {
                    let n = self.number(&target);
                    let is_cut = self.cuts.contains(&(from, n)) || self.cuts.contains(&(n, from));
                    if self.fates[n] != Fate::Dead && self.part[from] == self.part[n] && !is_cut {
                        self.handshakes.push_back((self.now + FLIGHT, from, target));
                    }
                }
            }
        }
    }

    fn suspects(&self, n: usize) -> BTreeSet<usize> {
        self.probers[n].view(self.now).suspects.iter().map(|id| self.number(id)).collect()
    }

    fn unreachable(&self, n: usize) -> BTreeSet<usize> {
        self.probers[n].view(self.now).unreachable.iter().map(|id| self.number(id)).collect()
    }

    /// Everyone but `but` suspects exactly these.
    fn all_suspect(&self, but: &[usize], expected: &[usize]) -> bool {
        let expected: BTreeSet<_> = expected.iter().copied().collect();
        (0..self.probers.len()).filter(|n| !but.contains(n)).all(|n| self.suspects(n) == expected)
    }
}

#[test]
fn a_dead_node_is_suspect_everywhere_within_one_and_a_half_seconds_and_no_longer_once_it_is_back() {
    for (nodes, watchers) in [(3, 2), (5, 4), (40, 7), (250, 7)] {
        let mut net = Net::settled(nodes, watchers);
        assert!(net.all_suspect(&[], &[]));
        net.fates[1] = Fate::Dead;
        net.run(Duration::from_millis(1_500));
        assert!(net.all_suspect(&[1], &[1]), "{nodes} nodes");
        net.run(Duration::from_secs(20));
        assert!(net.all_suspect(&[1], &[1]), "{nodes} nodes, and it stays so");
        net.fates[1] = Fate::Well;
        net.run(Duration::from_millis(1_500));
        assert!(net.all_suspect(&[1], &[]), "{nodes} nodes, after its return");
    }
}

#[test]
fn a_node_that_stands_still_or_whose_port_is_closed_is_not_dead() {
    for fate in [Fate::Paused, Fate::Blocked] {
        let mut net = Net::settled(3, 2);
        net.fates[1] = fate;
        net.run(Duration::from_secs(10));
        assert!(net.all_suspect(&[1], &[]), "{fate:?}");
        net.fates[1] = Fate::Well;
        net.run(Duration::from_millis(100));
        assert!(net.all_suspect(&[], &[]), "{fate:?}: having stood still, it blames nobody");
    }
}

#[test]
fn a_node_that_nothing_reaches_says_so_and_is_not_called_dead() {
    let mut net = Net::new(3, 2, 1);
    net.fates[1] = Fate::Blocked;
    net.run(Duration::from_secs(9));
    assert!(net.probers[1].view(net.now).deaf);
    assert!(!net.probers[0].view(net.now).deaf);
    assert!(net.all_suspect(&[], &[]));
    net.fates[1] = Fate::Dead;
    net.run(Duration::from_secs(5));
    assert!(net.all_suspect(&[1], &[]), "nobody ever reached it, so nobody says anything");
}

#[test]
fn a_node_that_is_cut_off_suspects_nobody_where_there_is_a_majority() {
    let mut net = Net::settled(5, 4);
    net.part[1] = 1;
    net.run(Duration::from_secs(5));
    assert_eq!(net.unreachable(1).len(), 4);
    assert_eq!(net.suspects(1), BTreeSet::new());
    assert!(net.all_suspect(&[1], &[1]));
    net.part[1] = 0;
    net.run(Duration::from_millis(1_500));
    assert!(net.all_suspect(&[], &[]));
}

#[test]
fn two_nodes_that_are_cut_off_from_each_other_alone_send_each_other_nothing_and_are_dead_for_nobody() {
    for cuts in [vec![(0, 1), (1, 0)], vec![(0, 1)], vec![(1, 0)]] {
        let mut net = Net::settled(4, 3);
        net.cuts.extend(&cuts);
        net.run(Duration::from_secs(4));
        for _ in 0..50 {
            assert_eq!((net.suspects(0), net.suspects(1)), (BTreeSet::from([1]), BTreeSet::from([0])), "{cuts:?}");
            assert!(net.all_suspect(&[0, 1], &[]), "{cuts:?}");
            assert!((0..4).all(|n| net.unreachable(n).is_empty()), "{cuts:?}");
            net.run(Duration::from_millis(200));
        }
        net.cuts.clear();
        net.run(Duration::from_millis(1_500));
        assert!(net.all_suspect(&[], &[]), "{cuts:?}");
    }
    // The kernel answers: it is gossip alone that is closed.
    let mut net = Net::settled(4, 3);
    net.fates[1] = Fate::Blocked;
    net.run(Duration::from_secs(5));
    assert!(net.all_suspect(&[1], &[]));
}

/// n0 loses n1 while n2 reaches both: n2 passes probes on, and nobody is dead.
#[test]
fn others_are_asked_before_anyone_is_called_unreachable() {
    let mut prober: Prober<usize> = Prober::new(id(0), 1, Duration::ZERO);
    let peers = vec![Peer { id: id(1), addr: addr(1) }, Peer { id: id(2), addr: addr(2) }];
    prober.set_circle(Circle { peers, watchers: 2 }, Duration::ZERO);
    let mut now = Duration::ZERO;
    let mut asked = 0;
    while now < Duration::from_secs(5) {
        now += TICK;
        for effect in prober.tick(now, |_| 0) {
            let Effect::Send(to, message) = effect else { continue };
            match message {
                // n1 has answered once, in the beginning.
                Message::Probe(number) if to.node == id(2) || now < Duration::from_millis(700) => {
                    assert!(prober.receive(&to.node, 0, Message::Ack(number), now).is_empty());
                }
                Message::Relay(number, target) => {
                    asked += 1;
                    assert_eq!((to.node, target.id), (id(2), id(1)));
                    prober.receive(&id(2), 2, Message::Ack(number), now);
                }
                _ => {}
            }
        }
        assert!(prober.view(now).unreachable.is_empty());
    }
    assert!(asked > 2);
}

#[test]
fn a_probe_for_another_is_made_and_its_ack_passed_on_under_the_askers_number() {
    let mut prober: Prober<usize> = Prober::new(id(0), 1, Duration::ZERO);
    let now = Duration::from_secs(1);
    let target = Peer { id: id(2), addr: addr(2) };
    let effects = prober.receive(&id(1), 11, Message::Relay(77, target), now);
    let [Effect::Send(to, Message::Probe(number))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(*to, To { node: id(2), at: At::Port(addr(2)) });
    assert!(prober.receive(&id(3), 33, Message::Ack(*number), now).is_empty(), "another one's ack");
    let back = To { node: id(1), at: At::Source(11) };
    assert_eq!(prober.receive(&id(2), 22, Message::Ack(*number), now), [Effect::Send(back, Message::Ack(77))]);
    assert!(prober.receive(&id(2), 22, Message::Ack(*number), now).is_empty(), "once");
}

#[test]
fn work_for_others_and_news_are_bounded() {
    let mut prober: Prober<usize> = Prober::new(id(0), 1, Duration::ZERO);
    let now = Duration::from_secs(1);
    for n in 0..2 * MAX_NEWS {
        let target = Peer { id: id(2), addr: addr(2) };
        prober.receive(&id(1), 1, Message::Relay(n as u64, target), now);
        let verdict = Verdict { observer: id(n), target: id(n + 1), sequence: 1, unreachable: true };
        prober.learn(verdict, now);
    }
    assert_eq!((prober.relayed.len(), prober.news.len(), prober.waiting.len()), (MAX_RELAYED, MAX_NEWS, MAX_WAITING));
    prober.tick(now + NEWS_LAST + TICK, |_| 0);
    prober.tick(now + NEWS_LAST + TICK + LATE + NEWS_LAST + TICK, |_| 0);
    let rest = now + 3 * NEWS_LAST;
    let mut at = rest;
    while at < rest + NEWS_LAST + TICK {
        at += TICK;
        prober.tick(at, |_| 0);
    }
    assert_eq!((prober.relayed.len(), prober.news.len(), prober.waiting.len()), (0, 0, 0));
}

#[test]
fn what_a_node_does_does_not_grow_with_the_cluster() {
    let rate = |nodes: usize| {
        let mut net = Net::settled(nodes, 7);
        let before = net.sent;
        net.run(Duration::from_secs(4));
        (net.sent - before) / (4 * nodes as u64)
    };
    // Seven probes each half second, and as many acks.
    assert!((20..=30).contains(&rate(8)), "{}", rate(8));
    assert!((20..=30).contains(&rate(250)), "{}", rate(250));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Nobody alive is suspect for want of some packets, and the dead are, however the rest is doing.
    #[test]
    fn the_living_are_not_suspect_and_the_dead_are(
        nodes in 5..12usize,
        loss in 0..6u32,
        dead in prop::option::of(0..5usize),
        paused in prop::option::of(0..5usize),
        seed: u64,
    ) {
        let watchers = (nodes - 1).min(7);
        let mut net = Net::new(nodes, watchers, seed);
        net.loss = loss;
        net.run(Duration::from_secs(3));
        paused.iter().for_each(|n| net.fates[*n] = Fate::Paused);
        dead.iter().for_each(|n| net.fates[*n] = Fate::Dead);
        for _ in 0..50 {
            net.run(Duration::from_millis(200));
            for n in (0..nodes).filter(|n| net.fates[*n] == Fate::Well) {
                prop_assert!(net.suspects(n).iter().all(|suspect| net.fates[*suspect] == Fate::Dead));
            }
        }
        let gone: Vec<usize> = dead.into_iter().chain(paused).collect();
        let expected: Vec<usize> = dead.into_iter().collect();
        prop_assert!(net.all_suspect(&gone, &expected));
    }

    /// Whatever members say in whatever order, nothing panics and nothing grows without bound.
    #[test]
    fn no_message_does_harm(
        messages in prop::collection::vec((0..6usize, 0..4u8, 0..6usize, 0..6usize, 0..9u64, any::<bool>()), 0..300),
    ) {
        let mut prober: Prober<usize> = Prober::new(id(0), 1, Duration::ZERO);
        let peers = (1..4).map(|n| Peer { id: id(n), addr: addr(n) }).collect();
        prober.set_circle(Circle { peers, watchers: 3 }, Duration::ZERO);
        let mut now = Duration::ZERO;
        for (from, kind, one, other, number, flag) in messages {
            now += TICK;
            prober.tick(now, |below| usize::from(flag) % below);
            let message = match kind {
                0 => Message::Probe(number),
                1 => Message::Ack(number),
                2 => Message::Relay(number, Peer { id: id(one), addr: addr(other) }),
                _ => {
                    let (observer, target) = (id(one), id(other));
                    Message::News(vec![Verdict { observer, target, sequence: number, unreachable: flag }])
                }
            };
            prober.receive(&id(from), from, message, now);
            prober.handshake(&id(other), now);
            prop_assert!(!prober.view(now).suspects.contains(&id(0)), "itself");
        }
    }
}
