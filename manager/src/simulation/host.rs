//! One simulated machine with a manager on it: its disk, its clock, and whatever runs at the moment.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use orch_model::{ClusterId, NodeId, Timestamp};
use tokio::time::Instant;

use super::{
    disk::{Disk, Durability},
    net::Net,
    record::{Record, Violation},
    runtime::Life,
};
use crate::{
    log::{KeyRing, Sealer},
    raft::{Commits, Compaction, Consensus, Member, Proposer, RaftService, Settings, WallClock},
};

/// When the simulated world begins.
const EPOCH_MS: i64 = 1_700_000_000_000;
/// Small, so that a manager that was away for a moment needs a snapshot.
const COMPACTION: Compaction = Compaction { every_entries: 30, keep_entries: 5, purge_entries: 1, chunk_bytes: 300 };

pub(super) struct Host {
    pub(super) name: String,
    pub(super) member: Member,
    pub(super) raft_id: u64,
    pub(super) disk: Disk,
    pub(super) running: Option<Running>,
    pub(super) is_starting: bool,
    /// Its disk was made to fail: that it stops is no wonder.
    pub(super) was_broken: bool,
    clock_ms: Arc<AtomicI64>,
    dir: PathBuf,
    seed: u64,
    starts: u64,
    durability: Durability,
}

/// A manager that runs.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) life: Life,
    pub(super) consensus: Consensus,
    pub(super) proposer: Proposer,
    commits: Arc<Mutex<Commits>>,
}

impl Host {
    pub(super) fn new(number: u64, seed: u64, dir: PathBuf, durability: Durability) -> Self {
        let name = format!("m{number}");
        let node = NodeId::from_random(u128::from(number));
        Self {
            member: Member { node_id: node.to_string(), addr: format!("{name}:2377") },
            name,
            raft_id: number,
            disk: Disk::new(seed, durability),
            running: None,
            is_starting: false,
            was_broken: false,
            clock_ms: Arc::new(AtomicI64::new(0)),
            dir,
            seed,
            starts: 0,
            durability,
        }
    }

    pub(super) fn addr(&self) -> &str {
        &self.member.addr
    }

    /// The wall clock jumps.
    pub(super) fn jump(&self, by_ms: i64) {
        self.clock_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// A new disk: whatever this manager was is gone, and it is another member from now on.
    pub(super) fn wipe(&mut self, raft_id: u64) -> std::io::Result<()> {
        self.raft_id = raft_id;
        self.seed = self.seed.wrapping_add(1);
        self.disk = Disk::new(self.seed, self.durability);
        if self.dir.exists() {
            std::fs::remove_dir_all(&self.dir)?;
        }
        Ok(())
    }

    /// What starting takes; awaited by the caller, who may not hold anything meanwhile.
    pub(super) fn start(
        &mut self,
        net: &Net,
        born: Instant,
    ) -> impl Future<Output = Result<Running, Violation>> + Send + use<> {
        self.starts += 1;
        self.was_broken = false;
        let life = Life::new(self.seed.wrapping_mul(31).wrapping_add(self.starts));
        let (offset_ms, engine) = (Arc::clone(&self.clock_ms), Arc::new(self.disk.mount()));
        let clock = WallClock::new(move || {
            let elapsed_ms = i64::try_from(born.elapsed().as_millis()).unwrap_or(i64::MAX);
            let now_ms = EPOCH_MS + elapsed_ms + offset_ms.load(Ordering::Relaxed);
            Timestamp::from_unix_ms(u64::try_from(now_ms).unwrap_or_default())
        });
        let (name, dir, net, addr) = (self.name.clone(), self.dir.clone(), net.clone(), self.member.addr.clone());
        let (raft_id, node) = (self.raft_id, self.member.node_id.clone());
        async move {
            let does_not_start = |reason: String| Violation::DoesNotStart { host: name.clone(), reason };
            let cluster = ClusterId::from_random(1);
            std::fs::create_dir_all(&dir).map_err(|e| does_not_start(e.to_string()))?;
            let ring = KeyRing::load_or_create(&dir.join("keys"), None).map_err(|e| does_not_start(e.to_string()))?;
            let node = node.parse().map_err(|_| does_not_start("its id".to_owned()))?;
            let settings = Settings {
                raft_id,
                cluster: cluster.clone(),
                dial: net.dial_from(&addr),
                clock,
                engine,
                sealer: Arc::new(Sealer::new(ring, cluster, node)),
                snapshots: dir.join("snapshots"),
                compaction: COMPACTION,
                force_single: None,
            };
            let started = life.spawn(Consensus::start_here(settings)).await;
            let consensus = started
                .map_err(|e| does_not_start(e.to_string()))?
                .map_err(|e| does_not_start(orch_proto::report::chain(&e)))?;
            let commits = Arc::new(Mutex::new(consensus.store().commits()));
            let proposer = Proposer::start(consensus.clone());
            net.listen(&addr, &life, RaftService::new(consensus.clone(), proposer.clone()));
            Ok(Running { life, consensus, proposer, commits })
        }
    }

    /// Notes what was applied since the last time.
    pub(super) fn observe(&self, record: &mut Record) -> Result<(), Violation> {
        let Some(running) = &self.running else { return Ok(()) };
        let mut commits = running.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_new = false;
        while let Ok(commit) = commits.try_recv() {
            record.applied(&self.name, &commit)?;
            is_new = true;
        }
        if is_new { record.state(&self.name, &running.consensus.store().view()) } else { Ok(()) }
    }

    /// The machine is gone from one moment to the next.
    pub(super) fn crash(&mut self, net: &Net, record: &mut Record) -> Result<(), Violation> {
        let observed = self.observe(record);
        if let Some(running) = self.running.take() {
            running.life.end();
            net.hang_up(&self.member.addr);
            self.disk.crash();
        }
        observed
    }
}
