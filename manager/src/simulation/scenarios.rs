//! What raft promises, one by one: each of these fails without the part that it is about.

use std::{future::Future, sync::Arc, time::Duration};

use orch_model::{Object, change::Change};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    host::Running,
    record::Outcome,
    world::{Bug, World, propose, register_now},
};
use crate::raft::{ConsensusError, ProposeError};

const ELECTION: Duration = Duration::from_secs(5);

/// Three managers in good health; the seed is one that makes three.
fn with_managers<F: Future<Output = ()>>(scenario: impl FnOnce(World) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = World::new(1, Bug::None, dir.path());
        let count = {
            let mut state = world.lock();
            state.hosts.truncate(3);
            state.hosts.iter().for_each(|host| host.disk.set_flush_ms(2));
            state.hosts.len()
        };
        assert_eq!(count, 3);
        world.begin().await.unwrap();
        // The others hear of their membership with the next heartbeat.
        sleep(Duration::from_secs(1)).await;
        scenario(world.clone()).await;
        world.end();
    });
}

fn term(running: &Running) -> u64 {
    running.consensus.leadership().borrow().term
}

/// The manager that leads, other than `former`, as soon as there is one.
async fn leader_after(world: &World, former: usize) -> (usize, Running) {
    let found = timeout(ELECTION, async {
        loop {
            let leading = |number: usize| world.running(number).filter(|r| number != former && r.consensus.is_leader());
            if let Some((number, running)) = (0..3).find_map(|number| Some((number, leading(number)?)))
                && running.consensus.read_barrier().await.is_ok()
            {
                return (number, running);
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.unwrap()
}

async fn write(world: &World, leader: &Running) -> (u64, u64) {
    let mark = world.next_mark();
    match propose(leader, mark, &[0]).await {
        Outcome::Acknowledged { index } => (mark, index),
        other => panic!("{other:?} at {:?}", world.now()),
    }
}

fn isolate(world: &World, number: usize) {
    let addrs: Vec<String> = world.lock().hosts.iter().map(|host| host.addr().to_owned()).collect();
    for other in addrs.iter().filter(|other| **other != addrs[number]) {
        world.net.cut(&addrs[number], other);
        world.net.cut(other, &addrs[number]);
    }
}

/// Pre-vote: who was cut off asks first, and does not force an election on those who have a leader.
#[test]
fn a_manager_that_was_cut_off_comes_back_without_a_new_election() {
    with_managers(|world| async move {
        let (leader, before) = world.leader().unwrap();
        let term_before = term(&before);
        isolate(&world, (leader + 1) % 3);
        sleep(Duration::from_secs(30)).await;
        world.net.heal();
        sleep(Duration::from_secs(10)).await;
        assert_eq!((world.leader().unwrap().0, term(&before)), (leader, term_before));
        write(&world, &before).await;
    });
}

/// Leadership transfer: no election time-out passes, so writes go on within less than one.
#[test]
fn leadership_is_handed_over_without_a_pause() {
    with_managers(|world| async move {
        let (former, leader) = world.leader().unwrap();
        let start = world.now();
        leader.consensus.hand_over().await;
        let (_, heir) = leader_after(&world, former).await;
        write(&world, &heir).await;
        let pause = world.now() - start;
        assert!(pause < Duration::from_millis(700), "{pause:?}");
        assert!(!leader.consensus.is_leader());
    });
}

/// A leader dies between the two halves of a change: until somebody ends it, both memberships have to agree.
#[test]
fn the_next_leader_ends_a_change_of_the_members() {
    with_managers(|world| async move {
        let (former, leader) = world.leader().unwrap();
        let (stays, leaves) = ((former + 1) % 3, (former + 2) % 3);
        let raft_id = world.lock().hosts[leaves].raft_id;
        let removing = leader.consensus.clone();
        leader.life.spawn(async move { removing.remove_member(raft_id, false).await });
        let other = world.running(stays).unwrap();
        let begun = async {
            while !other.consensus.is_between_members() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(ELECTION, begun).await.unwrap();
        world.crash(former).unwrap();
        world.start(former).await.unwrap();
        isolate(&world, leaves);
        // Nobody but these two can lead, and both have to vote.
        let (_, next) = leader_after(&world, leaves).await;
        assert!(next.consensus.is_between_members());
        next.consensus.settle_members().await.unwrap();
        assert!(!next.consensus.is_between_members());
        assert!(!next.consensus.voters().0.contains(&raft_id));
        write(&world, &next).await;
    });
}

/// The batcher: what waits for the disk shares entries, and each transaction has an answer of its own.
#[test]
fn proposals_share_entries_and_each_gets_its_own_answer() {
    with_managers(|world| async move {
        let (_, leader) = world.leader().unwrap();
        world.lock().hosts.iter().for_each(|host| host.disk.set_flush_ms(50));
        let before = leader.consensus.last_log_index();
        let stale = register_now(&leader, 0);
        let mut proposals = JoinSet::new();
        for number in 0..200u64 {
            let (proposer, mut config) = (leader.proposer.clone(), stale.clone());
            // All update the same version: one of them can.
            config.data = number.to_be_bytes().to_vec();
            let changes = vec![Change::Update(Object::Config(Arc::new(config)))];
            proposals.spawn(async move { proposer.propose(changes).await });
        }
        let outcomes = proposals.join_all().await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        assert!(outcomes.iter().all(|o| matches!(o, Ok(_) | Err(ProposeError::Refused(_)))), "{outcomes:?}");
        let entries = leader.consensus.last_log_index() - before;
        assert!(entries < 20, "200 transactions took {entries} entries");
    });
}

/// Transactions: all or nothing.
#[test]
fn a_transaction_of_which_a_part_is_refused_leaves_no_trace() {
    with_managers(|world| async move {
        let (_, leader) = world.leader().unwrap();
        let stale = register_now(&leader, 0);
        write(&world, &leader).await;
        let (mut fresh, untouched) = (register_now(&leader, 1), register_now(&leader, 1));
        fresh.data = vec![9; 8];
        let changes = [fresh, stale].map(|config| Change::Update(Object::Config(Arc::new(config)))).to_vec();
        assert!(matches!(leader.proposer.propose(changes).await, Err(ProposeError::Refused(_))));
        assert_eq!(register_now(&leader, 1), untouched);
    });
}

/// Compaction: the log stays short, and who was away longer than it reaches back gets a snapshot, piece by piece.
#[test]
fn the_log_gives_way_to_snapshots_which_travel_in_pieces() {
    with_managers(|world| async move {
        let (leader, leading) = world.leader().unwrap();
        let away = (leader + 1) % 3;
        isolate(&world, away);
        for _ in 0..200 {
            write(&world, &leading).await;
        }
        // A purge waits until nobody is being sent what it takes.
        let is_short = async {
            while world.lock().hosts[leader].disk.entries() >= 80 {
                sleep(Duration::from_secs(1)).await;
            }
        };
        timeout(Duration::from_secs(60), is_short).await.expect("the log stays long");
        let before = world.net.carried();
        world.net.heal();
        let returned = world.running(away).unwrap();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(register_now(&returned, 0), register_now(&leading, 0));
        let after = world.net.carried();
        assert!(after.snapshots > before.snapshots);
        // Three registers of 200 bytes, and 300 bytes to a piece.
        let (snapshots, frames) = (after.snapshots - before.snapshots, after.snapshot_frames - before.snapshot_frames);
        assert!(frames >= 2 * snapshots, "{snapshots} snapshots in {frames} pieces");
    });
}

/// Reads at any manager: everything that was acknowledged before is there.
#[test]
fn every_manager_reads_what_was_acknowledged() {
    with_managers(|world| async move {
        let (_, leader) = world.leader().unwrap();
        for _ in 0..5 {
            let (_, index) = write(&world, &leader).await;
            for number in 0..3 {
                let running = world.running(number).unwrap();
                running.consensus.catch_up().await.unwrap();
                assert!(running.consensus.store().view().index >= index, "manager {number}");
            }
        }
    });
}

/// A leader that others have replaced does not answer from its past: not while it is cut off, and not when it was
/// stopped and goes on in the middle of its lease.
#[test]
fn a_former_leader_does_not_answer_from_its_past() {
    with_managers(|world| async move {
        let (former, old) = world.leader().unwrap();
        isolate(&world, former);
        let (_, new) = leader_after(&world, former).await;
        write(&world, &new).await;
        assert!(matches!(
            old.consensus.read_barrier().await,
            Err(ConsensusError::NoQuorum | ConsensusError::NotLeader)
        ));
        assert!(matches!(old.consensus.catch_up().await, Err(ConsensusError::NoQuorum)));
        world.net.heal();
        sleep(Duration::from_secs(3)).await;

        let (former, old) = world.leader().unwrap();
        old.life.pause(true);
        let (_, new) = leader_after(&world, former).await;
        let (_, index) = write(&world, &new).await;
        let consensus = old.consensus.clone();
        let reading =
            old.life.spawn(async move { consensus.catch_up().await.map(|()| consensus.store().view().index) });
        old.life.pause(false);
        if let Ok(read) = reading.await.unwrap() {
            assert!(read >= index, "read {read} after {index} was acknowledged elsewhere");
        }
    });
}

/// A leader that crashed within its term comes back with everything that it acknowledged.
#[test]
fn a_leader_that_crashed_reads_its_last_writes() {
    with_managers(|world| async move {
        for _ in 0..5 {
            let (number, leader) = world.leader().unwrap();
            let (_, index) = write(&world, &leader).await;
            world.crash(number).unwrap();
            world.start(number).await.unwrap();
            let running = world.running(number).unwrap();
            running.consensus.catch_up().await.unwrap();
            assert!(running.consensus.store().view().index >= index);
            sleep(Duration::from_secs(3)).await;
        }
    });
}
