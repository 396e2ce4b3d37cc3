//! Rows of (what happened, when) and who is down then.

use super::*;

const PERIOD: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(3600);

fn id(n: u8) -> NodeId {
    NodeId::from_random(n.into())
}

fn ring(nodes: u8) -> Ring {
    let mut members: Vec<_> = (1..=nodes).map(|n| (id(n), IpAddr::from([192, 0, 2, n]))).collect();
    members.sort_unstable();
    Ring::of(members)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What happens, in order; times are milliseconds since the reign began.
enum Step {
    /// Nodes 1..=n open sessions.
    All(u8, u64),
    Heard(&'static [u8], u64),
    Broke(u8),
    /// These say that they cannot reach that one.
    Blind(&'static [u8], u8),
    Forgive(u64, u64),
}
use Step::{All, Blind, Broke, Forgive, Heard};

/// Who of `nodes` is down at `at`.
fn down(nodes: u8, steps: &[Step], at: u64) -> Vec<(u8, Cause)> {
    let mut liveness = Liveness::default();
    for step in steps {
        match step {
            All(count, at) => (1..=*count).for_each(|n| liveness.connected(id(n), ms(*at))),
            Heard(who, at) => who.iter().for_each(|n| liveness.heard(&id(*n), ms(*at))),
            Broke(n) => liveness.broke(&id(*n)),
            Blind(who, target) => {
                who.iter().for_each(|n| liveness.reported(&id(*n), BTreeSet::from([id(*target)]), false));
            }
            Forgive(stall, at) => liveness.forgive(ms(*stall), ms(*at)),
        }
    }
    let verdict = |n: u8| Some((n, liveness.verdict(&id(n), &ring(nodes), LONG, PERIOD, ms(at))?));
    (1..=nodes).filter_map(verdict).collect()
}

#[test]
fn who_is_down_follows_from_silence_and_peers() {
    use Cause::{MissedHeartbeats as Missed, UnreachableForPeers as Unreachable};
    let check = |what: &str, nodes, steps: &[Step], at, expected: &[(u8, Cause)]| {
        assert_eq!(down(nodes, steps, at), expected, "{what}");
    };
    check("all is well", 3, &[All(3, 0), Heard(&[1, 2, 3], 900)], 1_000, &[]);
    let cut = [All(3, 0), Heard(&[1, 2], 2_000), Blind(&[1, 2], 3)];
    check("silent for 2 s and out of everyone's sight", 3, &cut, 2_000, &[(3, Unreachable)]);
    check("not silent for long enough", 3, &cut, 1_999, &[]);
    let broke = [All(3, 0), Heard(&[1, 2, 3], 1_000), Broke(3), Blind(&[1, 2], 3)];
    check("a broken session is silence", 3, &broke, 1_100, &[(3, Unreachable)]);
    let alive = [All(3, 0), Heard(&[1, 2, 3], 2_000), Blind(&[1, 2], 3)];
    check("out of sight but heard: its gossip is blocked", 3, &alive, 2_100, &[]);
    let half = [All(3, 0), Heard(&[1, 2], 2_000), Blind(&[1], 3)];
    check("half of the peers is no majority", 3, &half, 2_100, &[]);
    let most = [All(5, 0), Heard(&[1, 2, 3], 2_000), Blind(&[1, 2, 3], 5)];
    check("one peer fell silent with it, a majority is left", 5, &most, 2_100, &[(5, Unreachable)]);
    let cut_off = [All(3, 0), Blind(&[1, 2], 3), Blind(&[3], 1)];
    check("a manager that hears nobody believes nobody", 3, &cut_off, 14_999, &[]);
    check(
        "with two nodes only the grace time counts",
        2,
        &[All(2, 0), Heard(&[1], 14_000), Blind(&[1], 2)],
        14_500,
        &[],
    );
    check("and it does", 2, &[All(2, 0), Heard(&[1], 15_000)], 15_001, &[(2, Missed)]);
    let paused = [All(3, 0), Blind(&[1, 2], 3), Forgive(20_000, 20_000)];
    check("a manager that stood still blames nobody", 3, &paused, 20_100, &[]);
    check("a new leader waits twice as long", 3, &[], 30_000, &[]);
    check("and no longer", 3, &[], 30_001, &[(1, Missed), (2, Missed), (3, Missed)]);
    let new = [All(2, 500), Heard(&[1, 2], 1_000), Blind(&[1, 2], 3)];
    check("a new leader is told of the node that died with the old one", 3, &new, 1_000, &[(3, Unreachable)]);
    check("and gives it a second to be heard first", 3, &new, 999, &[]);
}

#[test]
fn a_node_that_has_just_joined_is_given_time() {
    let verdict = Liveness::default().verdict(&id(1), &ring(3), Duration::ZERO, PERIOD, LONG);
    assert_eq!(verdict, None);
}

#[test]
fn gossip_that_does_not_arrive_is_said_only_while_there_is_somebody_to_hear() {
    let mut liveness = Liveness::default();
    (1..=2).for_each(|n| liveness.connected(id(n), ms(0)));
    liveness.reported(&id(1), BTreeSet::new(), true);
    assert!(liveness.is_deaf(&id(1), &ring(2), PERIOD, ms(100)));
    assert!(!liveness.is_deaf(&id(2), &ring(2), PERIOD, ms(100)));
    liveness.heard(&id(1), ms(3_000));
    assert!(!liveness.is_deaf(&id(1), &ring(2), PERIOD, ms(3_000)), "the other one is silent: it may be dead");
}

#[test]
fn a_manager_to_which_nobody_comes_knows_it_before_it_takes_anyone_for_dead() {
    // Managers answer on nodes 2 and 3; 1 is this one's own; 4 is a worker.
    let shunned = |liveness: &Liveness, others: &[u8], reached: &[u8], at: u64| {
        let (others, reached): (Vec<_>, _) = (others.iter().map(|n| id(*n)).collect(), reached.iter().map(|n| id(*n)));
        liveness.is_shunned(&others, &reached.collect(), PERIOD, ms(at))
    };
    let mut liveness = Liveness::default();
    (1..=4).for_each(|n| liveness.connected(id(n), ms(0)));
    (1..=4).for_each(|n| liveness.heard(&id(n), ms(1_000)));
    liveness.heard(&id(1), ms(8_000));
    assert!(!shunned(&liveness, &[2, 3, 4], &[2, 3], 8_500), "half of the grace time is not over");
    assert!(shunned(&liveness, &[2, 3, 4], &[2, 3], 8_501));
    assert!(shunned(&liveness, &[2, 3, 4], &[3], 8_501), "one manager is enough to see that somebody is there");
    assert!(!shunned(&liveness, &[2, 3, 4], &[], 8_501), "nobody answers: they may be dead, or this one is cut off");
    assert!(!shunned(&liveness, &[4], &[2, 3], 8_501), "the managers' nodes count as down");
    assert!(!shunned(&liveness, &[], &[2, 3], 8_501));
    (2..=4).for_each(|n| liveness.broke(&id(n)));
    assert!(shunned(&liveness, &[2, 3, 4], &[2, 3], 8_501));
    liveness.heard(&id(4), ms(2_000));
    assert!(!shunned(&liveness, &[2, 3, 4], &[2, 3], 8_501), "the worker comes");
    liveness.forgive(ms(3_000), ms(9_600));
    assert!(!shunned(&liveness, &[2, 3, 4], &[2, 3], 11_500), "this manager stood still");

    let new = Liveness::default();
    assert!(!shunned(&new, &[2, 3, 4], &[2, 3], 15_000), "a new leader waits twice as long");
    assert!(shunned(&new, &[2, 3, 4], &[2, 3], 15_001));
}

#[test]
fn everyone_is_watched_by_as_many_as_it_watches() {
    for nodes in 1..=20 {
        let ring = ring(nodes);
        for n in 1..=nodes {
            let watched: BTreeSet<_> = ring.watched_by(&id(n)).map(|(id, _)| id.clone()).collect();
            let watchers: BTreeSet<_> = ring.watchers_of(&id(n)).cloned().collect();
            assert_eq!((watched.len(), watchers.len()), (ring.watchers(), ring.watchers()), "{nodes} nodes");
            assert!(!watched.contains(&id(n)));
            for target in watched {
                assert!(ring.watchers_of(&target).any(|watcher| *watcher == id(n)));
            }
        }
    }
    assert_eq!(ring(3).watched_by(&id(9)).count(), 0);
    assert_eq!(Ring::default().watchers_of(&id(1)).count(), 0);
}

#[test]
fn news_from_watcher_to_watched_reach_everyone_in_a_few_steps() {
    let steps = |members: usize| {
        let distances = distances(members);
        assert_eq!(distances.iter().collect::<BTreeSet<_>>().len(), distances.len());
        let (mut reached, mut edge, mut steps) = (vec![false; members], vec![0], 0);
        reached[0] = true;
        loop {
            let next: BTreeSet<usize> =
                edge.iter().flat_map(|at| distances.iter().map(move |d| (at + d) % members)).collect();
            edge = next.into_iter().filter(|at| !std::mem::replace(&mut reached[*at], true)).collect();
            if edge.is_empty() {
                return (reached.into_iter().all(|is| is), steps);
            }
            steps += 1;
        }
    };
    assert_eq!(steps(2), (true, 1));
    assert_eq!(steps(8), (true, 1));
    assert_eq!(steps(9), (true, 2));
    assert_eq!(steps(250), (true, 7));
    assert_eq!(steps(5_000), (true, 14));
}

#[test]
fn a_large_cluster_gives_signs_of_life_less_often_but_never_less_often_than_the_operator_set() {
    let period = |members: usize, heartbeat| {
        let ring = Ring { members: vec![(id(1), IpAddr::from([192, 0, 2, 1])); members], distances: Vec::new() };
        ring.ping_period(heartbeat).as_millis()
    };
    let rows = [3, 1_000, 2_500, 5_000, 10_000].map(|members| period(members, PERIOD));
    assert_eq!(rows, [1_000, 1_000, 2_500, 5_000, 5_000]);
    assert_eq!(period(3, ms(500)), 500);
}

/// Signs of life are due every five seconds here.
#[test]
fn a_suspect_is_asked_and_is_down_when_it_does_not_answer() {
    let large = {
        let mut members: Vec<_> = (1..=5_000).map(|n| (NodeId::from_random(n), IpAddr::from([192, 0, 2, 1]))).collect();
        members.sort_unstable();
        Ring::of(members)
    };
    let suspect = id(3);
    let watchers: Vec<_> = large.watchers_of(&suspect).cloned().collect();
    let mut liveness = Liveness::default();
    watchers.iter().chain([&suspect]).for_each(|node| liveness.connected(node.clone(), ms(0)));
    let accuse = |liveness: &mut Liveness, count: usize, at| {
        for watcher in &watchers[..count] {
            liveness.heard(watcher, ms(at));
            liveness.reported(watcher, BTreeSet::from([suspect.clone()]), false);
        }
    };
    accuse(&mut liveness, 3, 1_500);
    assert!(liveness.to_ask(&large, PERIOD, ms(1_600)).is_empty(), "three of seven are no majority");
    accuse(&mut liveness, 4, 1_700);
    let asked = |liveness: &mut Liveness, at| liveness.to_ask(&large, PERIOD, ms(at)) == [suspect.clone()];
    let verdict = |liveness: &Liveness, at| liveness.verdict(&suspect, &large, LONG, PERIOD, ms(at));
    assert!(asked(&mut liveness, 1_700) && !asked(&mut liveness, 1_900), "once a second is enough");
    assert_eq!(verdict(&liveness, 2_699), None, "it is given a second");
    assert_eq!(verdict(&liveness, 2_700), Some(Cause::UnreachableForPeers));
    // It answers: only its gossip is blocked. A second later it is asked again.
    liveness.heard(&suspect, ms(2_650));
    assert_eq!(verdict(&liveness, 3_600), None);
    assert!(!asked(&mut liveness, 3_600) && asked(&mut liveness, 3_700));
    // Asking again does not start the time anew.
    assert!(asked(&mut liveness, 4_700));
    assert_eq!(verdict(&liveness, 4_700), Some(Cause::UnreachableForPeers));
    // The others see it again.
    watchers.iter().for_each(|watcher| liveness.reported(watcher, BTreeSet::new(), false));
    assert_eq!(verdict(&liveness, 6_000), None);
    assert!(liveness.accused.is_empty());
}
