//! One manager's part in raft: starting it, watching who leads, proposing, changing members.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use openraft::{
    ChangeMembers, Config, Instant as _, ReadPolicy, SnapshotPolicy,
    async_runtime::WatchReceiver,
    errors::{ClientWriteError, LinearizableReadError, RaftError},
    raft::VoteRequest,
};
use orch_manager_core::roles::{Seat, Seats};
use orch_model::{ClusterId, Timestamp};
use orch_proto::report::chain;
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    leader_line::LeaderLine,
    log_store::LogStore,
    machine::StateMachine,
    network::{Dial, Network, Refusals},
    snapshot::SnapshotFolder,
    store::Store,
    types::{Applied, LogId, Member, Proposal, Raft, TypeConfig, Vote},
};
use crate::log::{LogEngine, Sealer};

const HEARTBEAT_MS: u64 = 200;
/// A follower asks for an election when it has not heard of its leader for the lease (the greater of these) and a random
/// time between the two: after 1.5 to 2 s, seven heartbeats or more.
const ELECTION_MIN_MS: u64 = 500;
const ELECTION_MAX_MS: u64 = 1000;
const ENTRIES_PER_MESSAGE: u64 = 64;
/// Enough for the first snapshot chunks on a slow link; the transfer itself is limited by progress.
const SNAPSHOT_TIMEOUT_MS: u64 = 120_000;
/// How long a proposal may wait for a quorum before its author is told that nobody knows.
const PROPOSAL_LIMIT: Duration = Duration::from_secs(10);
const READ_LIMIT: Duration = Duration::from_secs(5);
/// For a manager that does not lead: an election takes one to two seconds.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(6);
/// Before another look for a leader that answers.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(50);
/// An election takes one to two seconds; who has heard of no leader for longer asks the others.
pub(crate) const ASK_AROUND_AFTER: Duration = Duration::from_secs(2);
/// For a new member to catch up, and for a change of members to commit.
const MEMBER_LIMIT: Duration = Duration::from_secs(60);
/// A manager that has not answered for this long does not count towards a quorum.
const REACHABLE_WITHIN: Duration = Duration::from_secs(3);
/// Before the others are asked again, unless there is a leader.
const ASK_AROUND_PAUSE: Duration = Duration::from_secs(1);
/// For the heir to be elected.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(2);
/// A manager to which nobody comes does not hand leadership over again for so long.
const GIVE_WAY_PAUSE: Duration = Duration::from_secs(600);
/// A log that has grown by more gives way to a snapshot, however few entries that is.
const LOG_LIMIT_BYTES: usize = 1 << 30;
const LOG_LOOK: Duration = Duration::from_secs(5);

/// Why consensus did not do something.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    #[error("raft does not start: {0}")]
    Start(String),
    /// Said before anything was appended, also by a leader that others have not answered for a while.
    #[error(
        "nothing was changed: the cluster has no leader now, or one that cannot reach more than half of the managers (a \
         quorum). Try again; if this lasts, look at the managers with \"orch info\" and start the missing ones"
    )]
    NotLeader,
    #[error(
        "no quorum of managers answered in time; whether the change was made is not known: look, and try again when \
         more managers are up"
    )]
    NoQuorum,
    /// Nothing was changed or read.
    #[error(
        "the cluster has no leader that this manager reaches. More than half of the managers must be up and reach each other (a \
         quorum): start the missing ones (\"orch info\" names them), or open 2377/tcp between this one and the leader that it \
         knew, {leader}: {why}"
    )]
    OutOfReach { leader: Member, why: String },
    /// Nothing was read.
    #[error(
        "the leader ({leader}) answers this manager, but what it sends has not arrived here: ask another manager. If this \
         lasts, open 2377/tcp on this node, or see whether its disk is too slow"
    )]
    Deaf { leader: Member },
    #[error("raft has stopped on this manager: {0}")]
    Stopped(String),
    #[error("another change of the managers is under way: try again")]
    MembersBusy,
    #[error("this node is not to be a manager: promote it first (\"orch node promote\")")]
    NotWanted,
    #[error("cannot change the managers: {0}")]
    Members(String),
    #[error(
        "removing this manager would leave {reachable} of {remaining} managers, fewer than the quorum of {quorum}: bring others up first"
    )]
    WouldLoseQuorum { remaining: usize, reachable: usize, quorum: usize },
}

/// What a manager needs to take part.
pub struct Settings {
    pub raft_id: u64,
    pub cluster: ClusterId,
    /// How the others are reached.
    pub dial: Arc<dyn Dial>,
    pub clock: WallClock,
    pub engine: Arc<dyn LogEngine>,
    pub sealer: Arc<Sealer>,
    pub snapshots: PathBuf,
    pub compaction: Compaction,
    /// Go on without the other managers, as this member.
    pub force_single: Option<Member>,
}

/// When the log gives way to a snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Compaction {
    /// A snapshot is made after so many entries.
    pub every_entries: u64,
    /// So many entries before it stay, for managers that lag a little.
    pub keep_entries: u64,
    /// Entries go when there are so many to go.
    pub purge_entries: u64,
    /// A snapshot travels in pieces of this size.
    pub chunk_bytes: usize,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { every_entries: 10_000, keep_entries: 2_000, purge_entries: 256, chunk_bytes: 1024 * 1024 }
    }
}

/// The time of day, for the leader's stamps; it may jump.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl WallClock {
    pub fn new(read: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// This machine's.
    #[must_use]
    pub fn system() -> Self {
        Self::new(|| {
            let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Timestamp::from_unix_ms(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
        })
    }
}

/// Who leads, as far as this manager knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    pub term: u64,
    pub leader: Option<(u64, Member)>,
    /// This manager leads.
    pub is_own: bool,
    /// Raft stopped on this manager, with the reason; it does not start again by itself.
    pub failed: Option<String>,
}

/// What raft keeps on this manager's disk.
struct Disk {
    log: LogStore,
    snapshots: SnapshotFolder,
}

/// A handle to this manager's raft. Clones share it.
#[derive(Clone)]
pub struct Consensus {
    raft: Raft,
    raft_id: u64,
    pristine: bool,
    store: Arc<Store>,
    cluster: ClusterId,
    clock: WallClock,
    line: Arc<LeaderLine>,
    leadership: watch::Receiver<Leadership>,
    refusals: Refusals,
    /// Held while the membership is changed: what was checked must still hold when it is done.
    changing_members: Arc<tokio::sync::Mutex<()>>,
    compacting: Arc<tokio::sync::Mutex<()>>,
    disk: Arc<ArcSwapOption<Disk>>,
    gave_way: Arc<Mutex<Option<Instant>>>,
    runtime: Handle,
}

impl Consensus {
    /// Starts raft on `runtime`.
    pub async fn start(settings: Settings, runtime: &Handle) -> Result<Self, ConsensusError> {
        runtime.spawn(Self::start_here(settings)).await.map_err(|e| ConsensusError::Start(e.to_string()))?
    }

    /// Starts raft where this is called.
    pub(crate) async fn start_here(settings: Settings) -> Result<Self, ConsensusError> {
        let failed = |e: &dyn std::error::Error| ConsensusError::Start(chain(e));
        let store = Store::new();
        let mut log = LogStore::new(settings.raft_id, settings.engine, Arc::clone(&settings.sealer));
        if let Some(member) = settings.force_single {
            tracing::warn!(%member, "going on without the other managers");
            log.force_single(settings.raft_id, member).await.map_err(|e| failed(&e))?;
        }
        let folder = SnapshotFolder::open(&settings.snapshots, settings.sealer, settings.cluster.clone())
            .map_err(|e| failed(&e))?;
        let pristine = log.is_pristine().map_err(|e| failed(&e))?;
        let disk = Arc::new(ArcSwapOption::from_pointee(Disk { log: log.clone(), snapshots: folder.clone() }));
        let machine = StateMachine::new(Arc::clone(&store), folder);
        let Settings { raft_id, cluster, dial, clock, .. } = settings;
        let chunk_bytes = settings.compaction.chunk_bytes;
        let refusals = Refusals::default();
        let network = Network {
            own_id: raft_id,
            cluster: cluster.clone(),
            dial: Arc::clone(&dial),
            chunk_bytes,
            refusals: refusals.clone(),
        };
        let config = config(&cluster, settings.compaction).map_err(|e| failed(&e))?;
        let raft = Raft::new(raft_id, config, network, log, machine).await.map_err(|e| failed(&e))?;
        let alone = raft.voter_ids().eq([raft_id]);
        if alone {
            // Nobody else could lead: there is nothing to wait for.
            raft.trigger().elect(false).await.map_err(|e| failed(&e))?;
        }
        let (sender, leadership) = watch::channel(Leadership::default());
        tokio::spawn(watch_leadership(raft.clone(), raft_id, sender));
        Ok(Self {
            raft,
            raft_id,
            pristine,
            store,
            cluster,
            clock,
            line: Arc::new(LeaderLine::new(dial)),
            leadership,
            refusals,
            changing_members: Arc::default(),
            compacting: Arc::default(),
            gave_way: Arc::default(),
            disk,
            runtime: Handle::current(),
        })
    }

    /// Where raft runs.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The last entry that this manager knows to be committed.
    #[must_use]
    pub fn commit_index(&self) -> u64 {
        self.raft.metrics().borrow_watched().local_committed.map_or(0, |id| id.index)
    }

    #[must_use]
    pub fn raft_id(&self) -> u64 {
        self.raft_id
    }

    #[must_use]
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// Whether raft had never run here when it was started.
    #[must_use]
    pub fn was_pristine(&self) -> bool {
        self.pristine
    }

    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What this machine's clock says now.
    #[must_use]
    pub fn wall_clock(&self) -> Timestamp {
        (self.clock.0)()
    }

    /// The last entry of this manager's log, committed or not.
    #[must_use]
    pub fn last_log_index(&self) -> u64 {
        self.raft.metrics().borrow_watched().last_log_index.unwrap_or_default()
    }

    /// Follows who leads.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leadership.borrow().is_own
    }

    /// Makes a raft of this manager alone. Does nothing when there is one already.
    pub async fn initialize(&self, member: Member) -> Result<(), ConsensusError> {
        if self.raft.is_initialized().await.map_err(|e| ConsensusError::Stopped(e.to_string()))? {
            return Ok(());
        }
        let members = BTreeMap::from([(self.raft_id, member)]);
        self.raft.initialize(members).await.map_err(|e| ConsensusError::Start(e.to_string()))
    }

    /// Returns once everything that was committed before the call is in the [`Store`], on the leader only.
    ///
    /// Asks a quorum each time. A lease would spare that, and would trust the clock: a machine that was suspended wakes up
    /// with its lease still running, and with another leader elsewhere.
    pub async fn read_barrier(&self) -> Result<(), ConsensusError> {
        match timeout(READ_LIMIT, self.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await {
            Ok(read) => read.map(drop).map_err(read_error),
            Err(_) => Err(ConsensusError::NoQuorum),
        }
    }

    /// The index that a manager must have applied to know everything that was committed before the call, on the leader
    /// only.
    pub(super) async fn read_index(&self) -> Result<u64, ConsensusError> {
        match timeout(READ_LIMIT, self.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().log_id().index),
            Ok(Err(error)) => Err(read_error(error)),
            Err(_) => Err(ConsensusError::NoQuorum),
        }
    }

    /// Returns once everything that was committed before the call is in the [`Store`] of this manager, whoever leads.
    pub async fn catch_up(&self) -> Result<(), ConsensusError> {
        let mut obstacle = ConsensusError::NoQuorum;
        let began = Instant::now();
        let trying = async {
            loop {
                let now = self.leadership.borrow().clone();
                if let Some(reason) = now.failed {
                    return Err(ConsensusError::Stopped(reason));
                }
                match now.leader {
                    Some(_) if now.is_own => match self.read_barrier().await {
                        Ok(()) => return Ok(()),
                        Err(error) => tracing::debug!(%error, "this leader is not sure that it still leads"),
                    },
                    Some((id, leader)) => match self.line.read_index(id, &leader.addr).await {
                        Ok(index) => {
                            obstacle = ConsensusError::Deaf { leader };
                            return self.applied(index).await;
                        }
                        Err(status) => {
                            tracing::debug!(%leader, %status, "the leader does not say how far it is");
                            obstacle = ConsensusError::OutOfReach { leader, why: status.message().to_owned() };
                        }
                    },
                    None if began.elapsed() >= ASK_AROUND_AFTER => {
                        if let Some((leader, index)) = self.ask_around().await {
                            obstacle = ConsensusError::Deaf { leader };
                            return self.applied(index).await;
                        }
                    }
                    None => {}
                }
                sleep(CATCH_UP_PAUSE).await;
            }
        };
        timeout(CATCH_UP_LIMIT, trying).await.unwrap_or(Err(obstacle))
    }

    /// The leader, and how far it is, as the other managers say. Whoever leads tells it to everyone, so this is for a
    /// manager that does not hear it. `None` comes after a pause, so that many who wait for a leader do not ask all the time.
    pub async fn ask_around(&self) -> Option<(Member, u64)> {
        let others = self.members().into_iter().filter(|(id, _)| *id != self.raft_id);
        let asked =
            others.map(async |(id, member)| Some((member.clone(), self.line.ask(id, &member.addr).await.ok()?)));
        let found = futures::future::join_all(asked).await.into_iter().flatten().next();
        if found.is_none() {
            let _ = timeout(ASK_AROUND_PAUSE, self.leadership().wait_for(|now| now.leader.is_some())).await;
        }
        found
    }

    async fn applied(&self, index: u64) -> Result<(), ConsensusError> {
        let mut metrics = self.raft.metrics();
        let reached = metrics.wait_until(|m| m.last_applied.is_some_and(|applied| applied.index >= index)).await;
        reached.map(drop).map_err(|error| ConsensusError::Stopped(error.to_string()))
    }

    /// Commits one entry and applies it here.
    pub(super) async fn propose(&self, proposal: Proposal) -> Result<Applied, ConsensusError> {
        match timeout(PROPOSAL_LIMIT, self.raft.client_write(proposal)).await {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(error)) => Err(write_error(error)),
            Err(_) => Err(ConsensusError::NoQuorum),
        }
    }

    /// Makes `member` a voter; first it learns everything, so that the quorum never waits for it. On the leader only.
    /// `is_wanted` is asked when no other change of the members is under way any more.
    pub async fn add_member(
        &self,
        raft_id: u64,
        member: Member,
        is_wanted: impl FnOnce() -> bool,
    ) -> Result<(), ConsensusError> {
        let _changing = self.changing_members.lock().await;
        if !is_wanted() {
            return Err(ConsensusError::NotWanted);
        }
        let (is_voter, same, former) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            let same = membership.get_node(&raft_id) == Some(&member);
            // The same node under another number: it lost its disk and starts anew.
            let former: BTreeSet<u64> = membership
                .nodes()
                .filter(|(id, known)| **id != raft_id && known.node_id == member.node_id)
                .map(|(id, _)| *id)
                .collect();
            (membership.voter_ids().any(|id| id == raft_id), same, former)
        };
        if !former.is_empty() {
            self.change_members(ChangeMembers::RemoveVoters(former.clone()), false).await?;
            self.change_members(ChangeMembers::RemoveNodes(former), false).await?;
        }
        if is_voter && same {
            return self.settle().await;
        }
        if is_voter {
            // It has moved.
            return self.change_members(ChangeMembers::SetNodes(BTreeMap::from([(raft_id, member)])), true).await;
        }
        let learned = timeout(MEMBER_LIMIT, self.raft.add_learner(raft_id, member, true)).await;
        learned.map_err(|_| ConsensusError::NoQuorum)?.map_err(write_error)?;
        self.change_members(ChangeMembers::AddVoterIds(BTreeSet::from([raft_id])), true).await
    }

    /// Takes a manager out of the quorum, unless what remains could not decide any more. On the leader only.
    pub async fn remove_member(&self, raft_id: u64, force: bool) -> Result<(), ConsensusError> {
        let _changing = self.changing_members.lock().await;
        if self.members().iter().all(|(id, _)| *id != raft_id) {
            return self.settle().await;
        }
        if !self.voters().0.contains(&raft_id) {
            return self.change_members(ChangeMembers::RemoveNodes(BTreeSet::from([raft_id])), false).await;
        }
        self.may_remove(raft_id, force)?;
        self.change_members(ChangeMembers::RemoveVoters(BTreeSet::from([raft_id])), false).await
    }

    /// Whether a change of the members was begun and not ended. Until then the old ones and the new ones have to agree: the
    /// loss of one manager may be the loss of a quorum.
    #[must_use]
    pub fn is_between_members(&self) -> bool {
        self.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().len() > 1
    }

    /// Ends what another leader, or an impatient caller, left between two memberships. On the leader only.
    pub async fn settle_members(&self) -> Result<(), ConsensusError> {
        let _changing = self.changing_members.lock().await;
        self.settle().await
    }

    /// What this leader has as the membership is the one that holds, and it is one.
    async fn settle(&self) -> Result<(), ConsensusError> {
        let mut metrics = self.raft.metrics();
        let holds = metrics.wait_until(|m| m.last_applied.is_some() && m.last_applied >= *m.membership_config.log_id());
        match timeout(MEMBER_LIMIT, holds).await {
            Err(_) => return Err(ConsensusError::NoQuorum),
            Ok(Err(error)) => return Err(ConsensusError::Stopped(chain(&error))),
            Ok(Ok(_)) => {}
        }
        if !self.is_leader() {
            return Err(ConsensusError::NotLeader);
        }
        match self.is_between_members() {
            true => self.change_members(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await,
            false => Ok(()),
        }
    }

    /// Whether the managers that would remain could still decide.
    pub fn may_remove(&self, raft_id: u64, force: bool) -> Result<(), ConsensusError> {
        let (voters, reachable) = self.voters();
        let remaining = voters.iter().filter(|id| **id != raft_id).count();
        let reachable = reachable.iter().filter(|id| **id != raft_id).count();
        let quorum = remaining / 2 + 1;
        if reachable < quorum && !force {
            return Err(ConsensusError::WouldLoseQuorum { remaining, reachable, quorum });
        }
        Ok(())
    }

    /// The voters, and those of them that this leader can count on (itself included): they answered lately, and a change
    /// of the members that has not ended is not about them.
    #[must_use]
    pub fn voters(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let mut reachable = BTreeSet::from([self.raft_id]);
        for (id, answered) in metrics.heartbeat.iter().flatten() {
            if answered.as_ref().is_some_and(|at| at.elapsed() < REACHABLE_WITHIN) {
                reachable.insert(*id);
            }
        }
        let is_settled = |id: &u64| membership.get_joint_config().iter().all(|voters| voters.contains(id));
        reachable.retain(|id| is_settled(id) && !self.refusals.contains(*id));
        (voters, reachable)
    }

    /// The membership as the core decides by it.
    #[must_use]
    pub fn seats(&self) -> Seats {
        let (voters, reachable) = self.voters();
        let seat = |(raft_id, member): (u64, Member)| Seat {
            raft_id,
            node: member.node_id,
            is_voter: voters.contains(&raft_id),
            is_reachable: reachable.contains(&raft_id),
        };
        Seats { leader: self.raft_id, all: self.members().into_iter().map(seat).collect() }
    }

    /// Every manager in the membership.
    #[must_use]
    pub fn members(&self) -> Vec<(u64, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        membership.nodes().map(|(id, member)| (*id, member.clone())).collect()
    }

    /// Makes a snapshot now and lets go of the log that it covers, so that a new member is sent the snapshot.
    pub async fn compact(&self) -> Result<(), ConsensusError> {
        // One at a time: openraft takes it badly when a snapshot is finished while a purge of more than it wants to let go
        // of still waits for those who read the log.
        let _compacting = self.compacting.lock().await;
        let stopped = |e: &dyn std::error::Error| ConsensusError::Stopped(chain(e));
        let index = self.store.view().index;
        self.raft.trigger().snapshot().await.map_err(|e| stopped(&e))?;
        let mut metrics = self.raft.metrics();
        let covers = |log_id: Option<LogId>| log_id.is_some_and(|id| id.index >= index);
        let made = timeout(MEMBER_LIMIT, metrics.wait_until(|m| covers(m.snapshot))).await;
        made.map_err(|_| ConsensusError::NoQuorum)?.map_err(|e| stopped(&e))?;
        self.raft.trigger().purge_log(index).await.map_err(|e| stopped(&e))?;
        let purged = timeout(MEMBER_LIMIT, metrics.wait_until(|m| covers(m.purged))).await;
        purged.map_err(|_| ConsensusError::NoQuorum)?.map(drop).map_err(|e| stopped(&e))
    }

    /// Compacts the log whenever it has grown too large: raft counts entries, whatever they weigh.
    pub async fn keep_log_small(&self) {
        loop {
            sleep(LOG_LOOK).await;
            let bytes = self.disk.load().as_ref().map_or(0, |disk| disk.log.written_bytes());
            if bytes > LOG_LIMIT_BYTES
                && let Err(error) = self.compact().await
            {
                tracing::warn!(bytes, error = chain(&error), "cannot make a large log smaller yet");
            }
        }
    }

    /// Seals the few values that are written seldom, such as the vote, with the current data key.
    pub async fn reseal(&self) -> std::io::Result<()> {
        self.disk()?.log.reseal().await
    }

    /// The data keys that the log and the snapshots on this manager's disk need.
    pub async fn keys_in_use(&self) -> std::io::Result<BTreeSet<u32>> {
        let disk = self.disk()?;
        let mut keys = disk.snapshots.keys_in_use().map_err(std::io::Error::other)?;
        keys.extend(disk.log.keys_in_use().await?);
        Ok(keys)
    }

    fn disk(&self) -> std::io::Result<Arc<Disk>> {
        self.disk.load_full().ok_or_else(|| std::io::Error::other("raft has stopped on this manager"))
    }

    /// Hands leadership to another manager that is up, when this one has it.
    pub async fn hand_over(&self) {
        let (_, reachable) = self.voters();
        let Some(heir) = reachable.into_iter().find(|id| *id != self.raft_id) else { return };
        self.hand_over_to(heir).await;
    }

    /// Hands leadership over because nobody comes to this manager; not again soon, since it may be they who are at fault.
    pub async fn give_way(&self) {
        let is_due = {
            let mut last = self.gave_way.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = last.is_none_or(|at| at.elapsed() >= GIVE_WAY_PAUSE);
            if is_due {
                *last = Some(Instant::now());
            }
            is_due
        };
        if is_due {
            tracing::warn!(
                "no other node comes to this manager although managers there answer it: handing leadership over. \
                 Is its port open (2377/tcp), and its clock right?"
            );
            self.hand_over().await;
        }
    }

    /// Hands leadership to this manager, when this one has it.
    pub async fn hand_over_to(&self, heir: u64) {
        if !self.is_leader() || self.raft.trigger().transfer_leader(heir).await.is_err() {
            return;
        }
        let mut leadership = self.leadership();
        // Should it not work, an election follows all the same.
        if timeout(HAND_OVER_LIMIT, leadership.wait_for(|l| !l.is_own)).await.is_err() {
            self.step_down(heir).await;
        }
    }

    /// Stops leading, having handed over: a manager that nothing reaches does not hear that another leads. It gives the
    /// heir its vote in the next term, as it would if that one asked for it; to ask, the heir still needs a log as good.
    async fn step_down(&self, heir: u64) {
        let request = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            // A leader's last entry is its own, if only the one that it began with.
            let last = metrics.last_log_index.map(|index| LogId { leader_id: *metrics.vote.leader_id(), index });
            let vote = Vote::new(metrics.current_term + 1, heir);
            VoteRequest { vote, last_log_id: last, leadership_transfer: true }
        };
        if let Err(error) = self.raft.vote(request).await {
            tracing::warn!(%error, "cannot stop leading, having handed over");
        }
    }

    /// Stops raft; nothing that was acknowledged is lost, also without this.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
        // Whoever still holds a handle does not keep the log open.
        self.disk.store(None);
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.raft
    }

    async fn change_members(&self, change: ChangeMembers<u64, Member>, retain: bool) -> Result<(), ConsensusError> {
        match timeout(MEMBER_LIMIT, self.raft.change_membership(change, retain)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(write_error(error)),
            Err(_) => Err(ConsensusError::NoQuorum),
        }
    }
}

fn config(cluster: &ClusterId, compaction: Compaction) -> Result<Arc<Config>, openraft::ConfigError> {
    let config = Config {
        cluster_name: cluster.to_string(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        enable_pre_vote: Some(true),
        // A leader that crashed and comes back within its term has forgotten how far it had committed, and would answer
        // reads without what it acknowledged last. Elected anew, it commits an entry first.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(compaction.every_entries),
        max_in_snapshot_log_to_keep: compaction.keep_entries,
        purge_batch_size: compaction.purge_entries,
        max_payload_entries: ENTRIES_PER_MESSAGE,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        ..Config::default()
    };
    config.validate().map(Arc::new)
}

async fn watch_leadership(raft: Raft, raft_id: u64, sender: watch::Sender<Leadership>) {
    let mut metrics = raft.metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_and_update();
            let member = |id: u64| metrics.membership_config.membership().get_node(&id).cloned().unwrap_or_default();
            Leadership {
                term: metrics.current_term,
                leader: metrics.current_leader.map(|id| (id, member(id))),
                is_own: metrics.state.is_leader() && metrics.current_leader == Some(raft_id),
                failed: metrics.running_state.as_ref().err().map(|fatal| chain(fatal)),
            }
        };
        sender.send_if_modified(|known| {
            let differs = *known != now;
            if differs {
                *known = now;
            }
            differs
        });
        if metrics.changed().await.is_err() {
            sender.send_modify(|known| {
                known.is_own = false;
                known.leader = None;
                known.failed.get_or_insert_with(|| "it was shut down".to_owned());
            });
            return;
        }
    }
}

fn read_error(error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> ConsensusError {
    match error {
        RaftError::Fatal(fatal) => ConsensusError::Stopped(chain(&fatal)),
        RaftError::APIError(LinearizableReadError::ForwardToLeader(_)) => ConsensusError::NotLeader,
        RaftError::APIError(_) => ConsensusError::NoQuorum,
    }
}

fn write_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ConsensusError {
    match error {
        RaftError::Fatal(fatal) => ConsensusError::Stopped(chain(&fatal)),
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => ConsensusError::NotLeader,
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => ConsensusError::NoQuorum,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            openraft::errors::ChangeMembershipError::InProgress(_),
        )) => ConsensusError::MembersBusy,
        RaftError::APIError(other) => ConsensusError::Members(other.to_string()),
    }
}
