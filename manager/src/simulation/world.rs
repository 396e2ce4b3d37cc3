//! The simulated world: machines, network, clients, and somebody who breaks things, all from one seed.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use orch_model::{Annotations, ConfigId, Meta, Object, ObjectId, change::Change, secret::Config};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::{Instant, sleep, timeout};

use super::{
    disk::Durability,
    host::{Host, Running},
    net::{Carried, Net, Weather},
    record::{Mark, Outcome, Record, Seen, Violation, Written, register},
};
use crate::raft::{Consensus, ProposeError};

const REGISTERS: usize = 3;
const CLIENTS: u64 = 6;
const CHAOS: Duration = Duration::from_secs(10);
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(8);
const WRITE_ATTEMPTS: usize = 5;
/// From the moment when everything is well again.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
const MEMBER_PATIENCE: Duration = Duration::from_secs(15);

/// Bugs on purpose, to see that the checks find them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    None,
    Disk(Durability),
    /// Reads what this manager has, whatever the others know.
    ReadsWithoutAsking,
    /// A client whose write got no answer sends it again under the same name, without looking.
    RepeatsWrites,
}

/// What happened in a run without a violation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Summary {
    pub(super) acknowledged: usize,
    pub(super) reads: usize,
    pub(super) compared_states: u64,
    pub(super) installed: u64,
    pub(super) crashes: u64,
    pub(super) pauses: u64,
    pub(super) membership_changes: u64,
    pub(super) transfers: u64,
    pub(super) last_term: u64,
    pub(super) carried: Carried,
    pub(super) recovery: Duration,
    pub(super) fingerprint: u64,
}

impl Summary {
    pub(super) fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.compared_states += other.compared_states;
        self.installed += other.installed;
        self.crashes += other.crashes;
        self.pauses += other.pauses;
        self.membership_changes += other.membership_changes;
        self.transfers += other.transfers;
        self.last_term = self.last_term.max(other.last_term);
        self.carried.requests += other.carried.requests;
        self.carried.lost += other.carried.lost;
        self.carried.duplicates += other.carried.duplicates;
        self.carried.snapshots += other.carried.snapshots;
        self.carried.snapshot_frames += other.carried.snapshot_frames;
        self.recovery = self.recovery.max(other.recovery);
    }
}

/// A violation with what led to it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) violation: Violation,
    pub(super) story: Vec<String>,
}

/// Runs the world of this seed to its end.
pub(super) fn run(seed: u64, bug: Bug, scratch: &Path) -> Result<Summary, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    let outcome = runtime.block_on(async {
        let world = World::new(seed, bug, scratch);
        let outcome = world.live().await;
        world.end();
        outcome.map_err(|violation| Failure { violation, story: std::mem::take(&mut world.lock().story) })
    });
    drop(runtime);
    outcome
}

#[derive(Clone)]
pub(super) struct World {
    state: Arc<Mutex<State>>,
    pub(super) net: Net,
    born: Instant,
    bug: Bug,
}

pub(super) struct State {
    pub(super) random: StdRng,
    pub(super) hosts: Vec<Host>,
    pub(super) record: Record,
    pub(super) violation: Option<Violation>,
    pub(super) story: Vec<String>,
    pub(super) summary: Summary,
    /// A machine that lost its disk, until it is a member again.
    pub(super) replacing: Option<usize>,
    /// A manager was to leave, and nobody knows whether it did.
    pub(super) may_lack_members: bool,
    pub(super) next_raft_id: u64,
    next_mark: Mark,
    is_over: bool,
}

impl World {
    pub(super) fn new(seed: u64, bug: Bug, scratch: &Path) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let durability = if let Bug::Disk(durability) = bug { durability } else { Durability::Kept };
        let hosts = if random.random_bool(0.5) { 3 } else { 5 };
        let host = |number: u64| Host::new(number, seed * 100 + number, scratch.join(format!("m{number}")), durability);
        let state = State {
            hosts: (1..=hosts).map(host).collect(),
            record: Record::default(),
            violation: None,
            story: Vec::new(),
            summary: Summary::default(),
            replacing: None,
            may_lack_members: false,
            next_raft_id: 100,
            next_mark: 1,
            is_over: false,
            random,
        };
        Self { state: Arc::new(Mutex::new(state)), net: Net::new(seed ^ 0x5eed), born: Instant::now(), bug }
    }

    async fn live(&self) -> Result<Summary, Violation> {
        self.begin().await?;
        let observer = tokio::spawn(self.clone().observe());
        let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(self.clone().client())).collect();
        self.break_things(CHAOS).await?;
        let well = self.now();
        self.mend().await?;
        self.recover().await?;
        self.lock().is_over = true;
        for client in clients {
            let _ = client.await;
        }
        observer.abort();
        let mut state = self.lock();
        state.observe()?;
        state.violation.take().map_or(Ok(()), Err)?;
        state.record.check()?;
        let record = &state.record;
        Ok(Summary {
            acknowledged: record.acknowledged(),
            reads: record.reads(),
            compared_states: record.compared_states,
            installed: record.installed,
            fingerprint: record.fingerprint(),
            carried: self.net.carried(),
            recovery: self.now() - well,
            ..state.summary
        })
    }

    /// Nothing runs any more, and nothing stays in memory.
    pub(super) fn end(&self) {
        self.net.forget_everyone();
        let running: Vec<_> = self.lock().hosts.iter_mut().filter_map(|host| host.running.take()).collect();
        running.iter().for_each(|running| running.life.end());
    }

    pub(super) fn now(&self) -> Duration {
        self.born.elapsed()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        let line = format!("{:>9.3}s  {}", self.now().as_secs_f64(), what());
        self.lock().story.push(line);
    }

    /// The first manager makes the cluster, the others join, and the registers get their first values.
    pub(super) async fn begin(&self) -> Result<(), Violation> {
        let count = self.lock().hosts.len();
        for number in 0..count {
            self.start(number).await?;
        }
        let members: Vec<_> = self.lock().hosts.iter().map(|h| (h.raft_id, h.member.clone())).collect();
        let first = self.running(0).ok_or_else(|| self.stuck("the first manager runs not"))?;
        let started = first.consensus.initialize(members[0].1.clone()).await;
        started.map_err(|e| self.stuck(&e.to_string()))?;
        let _ = first.consensus.leadership().wait_for(|l| l.is_own).await;
        first.consensus.read_barrier().await.map_err(|e| self.stuck(&e.to_string()))?;
        for (raft_id, member) in members.into_iter().skip(1) {
            let added = first.consensus.add_member(raft_id, member, || true).await;
            added.map_err(|e| self.stuck(&e.to_string()))?;
        }
        let keys: Vec<usize> = (0..REGISTERS).collect();
        let (started, mark) = (self.now(), self.next_mark());
        let changes =
            keys.iter().map(|key| Change::Create(Object::Config(Arc::new(first_value(*key, mark))))).collect();
        let index = first.proposer.propose(changes).await.map_err(|e| self.stuck(&e.to_string()))?;
        let written = Written { mark, keys, outcome: Outcome::Acknowledged { index } };
        self.lock().record.wrote(written, started, self.now());
        Ok(())
    }

    pub(super) fn stuck(&self, what: &str) -> Violation {
        Violation::NoProgress { what: what.to_owned(), limit: Duration::ZERO }
    }

    pub(super) fn running(&self, number: usize) -> Option<Running> {
        self.lock().hosts[number].running.clone()
    }

    pub(super) async fn start(&self, number: usize) -> Result<(), Violation> {
        let starting = {
            let mut state = self.lock();
            let host = &mut state.hosts[number];
            if host.running.is_some() || host.is_starting {
                return Ok(());
            }
            host.is_starting = true;
            host.start(&self.net, self.born)
        };
        let started = starting.await;
        let mut state = self.lock();
        let host = &mut state.hosts[number];
        host.is_starting = false;
        host.running = Some(started?);
        Ok(())
    }

    /// Looks at every manager all the time.
    async fn observe(self) {
        loop {
            sleep(Duration::from_millis(20)).await;
            let mut state = self.lock();
            if let Err(violation) = state.observe() {
                state.violation.get_or_insert(violation);
            }
        }
    }

    /// Writes and reads through random managers, until the end.
    async fn client(self) {
        loop {
            let (pause_ms, number, reads) = {
                let mut state = self.lock();
                if state.is_over {
                    return;
                }
                let hosts = state.hosts.len();
                (state.random.random_range(0..80), state.random.random_range(0..hosts), state.random.random_bool(0.5))
            };
            sleep(Duration::from_millis(pause_ms)).await;
            let Some(running) = self.running(number) else { continue };
            if reads { self.read(&running).await } else { self.write(number, &running).await }
        }
    }

    async fn read(&self, running: &Running) {
        let (started, consensus, bug) = (self.now(), running.consensus.clone(), self.bug);
        let reading = running.life.spawn(async move {
            if bug != Bug::ReadsWithoutAsking {
                consensus.catch_up().await.ok()?;
            }
            let view = consensus.store().view();
            let values: Vec<Mark> = view
                .state
                .configs()
                .filter_map(|c| register(&Object::Config(c.clone())))
                .map(|(_, mark)| mark)
                .collect();
            Some(Seen { index: view.index, values })
        });
        if let Ok(Ok(Some(seen))) = timeout(PATIENCE, reading).await {
            // Before the first value of a manager that knows nothing yet, there is nothing to compare.
            if !seen.values.is_empty() || bug != Bug::ReadsWithoutAsking {
                self.lock().record.saw(seen, started, self.now());
            }
        }
    }

    async fn write(&self, number: usize, running: &Running) {
        let (mark, keys) = {
            let mut state = self.lock();
            state.next_mark += 1;
            let first = state.random.random_range(0..REGISTERS);
            let both = state.random.random_bool(0.3);
            (
                state.next_mark,
                (first..=if both { first + 1 } else { first }).filter(|k| *k < REGISTERS).collect::<Vec<_>>(),
            )
        };
        let started = self.now();
        let mut outcome = self.send(number, running, mark, &keys).await;
        if outcome == Outcome::Unknown && self.bug == Bug::RepeatsWrites {
            let numbers: Vec<usize> = (0..self.lock().hosts.len()).collect();
            for other in numbers {
                let Some(running) = self.running(other) else { continue };
                outcome = self.send(other, &running, mark, &keys).await;
                if outcome != Outcome::Unknown {
                    break;
                }
            }
        }
        self.lock().record.wrote(Written { mark, keys, outcome }, started, self.now());
    }

    /// One write through this manager, which passes it on when another leads.
    async fn send(&self, number: usize, running: &Running, mark: Mark, keys: &[usize]) -> Outcome {
        let (world, consensus, keys) = (self.clone(), running.consensus.clone(), keys.to_vec());
        let passing = running.life.spawn(async move {
            let leadership = consensus.leadership().borrow().clone();
            let Some((_, leader)) = leadership.leader else { return Outcome::Refused };
            let from = world.lock().hosts[number].addr().to_owned();
            let found = {
                let state = world.lock();
                state.hosts.iter().find(|h| h.addr() == leader.addr).and_then(|h| h.running.clone())
            };
            let Some(leading) = found else { return Outcome::Refused };
            world.net.travel(&from, &leader.addr).await;
            let writing = leading.life.clone().spawn(async move { propose(&leading, mark, &keys).await });
            let outcome = writing.await.unwrap_or(Outcome::Unknown);
            world.net.travel(&leader.addr, &from).await;
            outcome
        });
        match timeout(PATIENCE, passing).await {
            Ok(Ok(outcome)) => outcome,
            _ => Outcome::Unknown,
        }
    }

    pub(super) fn next_mark(&self) -> Mark {
        let mut state = self.lock();
        state.next_mark += 1;
        state.next_mark
    }

    /// Everything works, from now on.
    async fn mend(&self) -> Result<(), Violation> {
        self.tell(|| "everything is mended".to_owned());
        self.net.heal();
        self.net.set_weather(Weather::FAIR);
        let count = self.lock().hosts.len();
        for number in 0..count {
            let mut restart = false;
            {
                let mut state = self.lock();
                let host = &mut state.hosts[number];
                host.disk.set_flush_ms(2);
                if let Some(running) = &host.running {
                    running.life.set_disk_ms(2);
                    running.life.pause(false);
                    restart = host.was_broken;
                }
            }
            if restart {
                self.crash(number)?;
            }
            self.start(number).await?;
        }
        Ok(())
    }

    /// Every manager is a member again, knows everything, and a write goes through.
    pub(super) async fn recover(&self) -> Result<(), Violation> {
        let deadline = self.now() + RECOVERY_LIMIT;
        loop {
            let missing = self.not_yet_well().await?;
            let Some(what) = missing else { return Ok(()) };
            if self.now() > deadline {
                return Err(Violation::NoProgress { what, limit: RECOVERY_LIMIT });
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// What is missing for all to be well, if anything; does what an operator would do about it.
    async fn not_yet_well(&self) -> Result<Option<String>, Violation> {
        self.restart_stopped().await?;
        if let Some(violation) = self.lock().violation.take() {
            return Err(violation);
        }
        let Some((number, leader)) = self.leader() else { return Ok(Some("nobody leads".to_owned())) };
        let wanted: Vec<_> = self.lock().hosts.iter().map(|h| (h.raft_id, h.member.clone())).collect();
        for (raft_id, member) in wanted {
            let added = timeout(MEMBER_PATIENCE, leader.consensus.add_member(raft_id, member.clone(), || true)).await;
            if !matches!(added, Ok(Ok(()))) {
                return Ok(Some(format!("{member} is not added again: {added:?}")));
            }
        }
        let known: std::collections::BTreeSet<u64> = self.lock().hosts.iter().map(|h| h.raft_id).collect();
        for (raft_id, member) in leader.consensus.members() {
            if !known.contains(&raft_id) {
                let removed = timeout(MEMBER_PATIENCE, leader.consensus.remove_member(raft_id, false)).await;
                if !matches!(removed, Ok(Ok(()))) {
                    return Ok(Some(format!("{member}, which is gone, is not removed: {removed:?}")));
                }
            }
        }
        if leader.consensus.is_between_members() {
            return Ok(Some("a change of the members has not ended".to_owned()));
        }
        self.lock().replacing = None;
        let started = self.now();
        let (mark, keys) = (self.next_mark(), vec![0]);
        let outcome = self.send(number, &leader, mark, &keys).await;
        self.lock().record.wrote(Written { mark, keys, outcome }, started, self.now());
        let Outcome::Acknowledged { index } = outcome else {
            return Ok(Some("a write does not go through".to_owned()));
        };
        let count = self.lock().hosts.len();
        for number in 0..count {
            let Some(running) = self.running(number) else { return Ok(Some(format!("m{number} is down"))) };
            let consensus = running.consensus.clone();
            let read = timeout(PATIENCE, running.life.spawn(async move { consensus.catch_up().await })).await;
            if !matches!(read, Ok(Ok(Ok(())))) || running.consensus.store().view().index < index {
                return Ok(Some(format!("manager {} does not read: {read:?}", number + 1)));
            }
        }
        self.lock().summary.last_term = leader.consensus.leadership().borrow().term;
        Ok(None)
    }

    /// The manager that leads, as far as it knows itself.
    pub(super) fn leader(&self) -> Option<(usize, Running)> {
        let state = self.lock();
        let leading = state.hosts.iter().enumerate().filter_map(|(number, host)| Some((number, host.running.clone()?)));
        leading
            .filter(|(_, running)| running.consensus.is_leader() && !running.life.is_paused())
            .max_by_key(|(_, running)| term(&running.consensus))
    }

    pub(super) fn crash(&self, number: usize) -> Result<(), Violation> {
        let mut state = self.lock();
        let state = &mut *state;
        state.hosts[number].crash(&self.net, &mut state.record)
    }

    /// A manager whose raft stopped is started again, as its supervisor does.
    pub(super) async fn restart_stopped(&self) -> Result<(), Violation> {
        let count = self.lock().hosts.len();
        for number in 0..count {
            let Some(running) = self.running(number) else { continue };
            let Some(reason) = running.consensus.leadership().borrow().failed.clone() else { continue };
            {
                let state = self.lock();
                let host = &state.hosts[number];
                if !host.was_broken {
                    return Err(Violation::Stopped { host: host.name.clone(), reason });
                }
            }
            self.tell(|| format!("m{} stopped ({reason}) and starts again", number + 1));
            self.crash(number)?;
            self.start(number).await?;
        }
        Ok(())
    }
}

impl State {
    fn observe(&mut self) -> Result<(), Violation> {
        self.hosts.iter().try_for_each(|host| host.observe(&mut self.record))
    }

    pub(super) fn pick(&mut self, from: &[usize]) -> Option<usize> {
        from.choose(&mut self.random).copied()
    }
}

fn term(consensus: &Consensus) -> u64 {
    consensus.leadership().borrow().term
}

pub(super) fn config_id(key: usize) -> ConfigId {
    ConfigId::from_random(key as u128)
}

/// A register as this manager has it.
pub(super) fn register_now(running: &Running, key: usize) -> Config {
    match running.consensus.store().view().state.get(&ObjectId::Config(config_id(key))) {
        Some(Object::Config(config)) => Config::clone(&config),
        other => panic!("register {key} is {other:?}"),
    }
}

fn first_value(key: usize, mark: Mark) -> Config {
    Config {
        id: config_id(key),
        meta: Meta::default(),
        annotations: Annotations { name: key.to_string(), ..Annotations::default() },
        data: value(mark),
        template: None,
        removing: false,
    }
}

/// With some weight, so that a snapshot has something to carry.
fn value(mark: Mark) -> Vec<u8> {
    let mut value = mark.to_be_bytes().to_vec();
    value.resize(200, 7);
    value
}

/// What the control API does: decide on the state, propose, decide again when it moved on.
pub(super) async fn propose(leading: &Running, mark: Mark, keys: &[usize]) -> Outcome {
    for _ in 0..WRITE_ATTEMPTS {
        let view = leading.consensus.store().view();
        let mut changes = Vec::new();
        for key in keys {
            let Some(Object::Config(old)) = view.state.get(&ObjectId::Config(config_id(*key))) else {
                return Outcome::Refused;
            };
            changes.push(Change::Update(Object::Config(Arc::new(Config { data: value(mark), ..Config::clone(&old) }))));
        }
        match leading.proposer.propose(changes).await {
            Ok(index) => return Outcome::Acknowledged { index },
            Err(ProposeError::Refused(_)) => {}
            Err(ProposeError::TooLarge { .. }) => return Outcome::Refused,
            Err(ProposeError::Consensus(_) | ProposeError::Stopping) => return Outcome::Unknown,
        }
    }
    Outcome::Refused
}
