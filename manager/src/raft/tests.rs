//! openraft's own suite for storages, on ours; and what a rotation of the data key leaves of it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use openraft::{
    EntryPayload, RaftLogReader, RaftSnapshotBuilder, StorageError,
    storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
};
use orch_manager_core::State;
use orch_model::{ClusterId, NodeId};
use orch_proto::tls::UnlockKey;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use super::{
    log_store::LogStore,
    machine::{Image, StateMachine},
    snapshot::SnapshotFolder,
    store::Store,
    types::{Entry, LeaderId, LogId, Proposal, SnapshotMeta, StoredMembership, TypeConfig, Vote},
};
use crate::log::{Kept, KeyRing, Sealer, SledEngine};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = open(dir.path().to_owned());
        Ok((dir, log, machine))
    }
}

fn open(dir: PathBuf) -> (LogStore, StateMachine) {
    let ring = KeyRing::load_or_create(&dir.join("keys"), None).unwrap();
    let cluster = ClusterId::from_random(1);
    let sealer = Arc::new(Sealer::new(ring, cluster.clone(), NodeId::from_random(2)));
    let engine = Arc::new(SledEngine::open(&dir.join("log")).unwrap());
    let folder = SnapshotFolder::open(&dir.join("snapshots"), Arc::clone(&sealer), cluster).unwrap();
    (LogStore::new(1, engine, sealer), StateMachine::new(Store::new(), folder))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_storage_keeps_openrafts_rules() {
    Suite::test_all(Builder).await.unwrap();
}

/// Raft goes on while a snapshot is written, and may install one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_finished_late_does_not_replace_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine) = open(dir.path().to_owned());
    let mut builder = machine.get_snapshot_builder().await;
    let last_log_id = Some(LogId { leader_id: LeaderId { term: 1, node_id: 9 }, index: 7 });
    let installed = SnapshotMeta { last_log_id, last_membership: StoredMembership::default() };
    machine.install_snapshot(&installed, Image { state: State::empty() }).await.unwrap();
    builder.build_snapshot().await.unwrap();
    assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, installed);
    let files = std::fs::read_dir(dir.path().join("snapshots")).unwrap().map(|file| file.unwrap().file_name());
    assert_eq!(files.collect::<Vec<_>>(), [format!("{:020}-{:020}.snapshot", 7, 1).as_str()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_knows_by_how_much_it_has_grown() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path().to_owned());
    let log_id = |index| LogId { leader_id: LeaderId { term: 1, node_id: 9 }, index };
    let entry = |index| {
        let payload = EntryPayload::Normal(Proposal(vec![7; 1 << 20].into()));
        Entry { log_id: log_id(index), payload }
    };
    log.blocking_append((1..=3).map(entry)).await.unwrap();
    let grown = log.written_bytes();
    assert!((3 << 20..4 << 20).contains(&grown), "{grown}");
    log.purge(log_id(2)).await.unwrap();
    assert_eq!(log.written_bytes(), 0);
}

/// One manager's disk while its data keys are replaced.
struct Disk {
    dir: PathBuf,
    unlock: UnlockKey,
    sealer: Arc<Sealer>,
    log: LogStore,
    folder: SnapshotFolder,
}

impl Disk {
    fn open(dir: PathBuf) -> Self {
        let unlock = UnlockKey::generate(7);
        let ring = KeyRing::load_or_create(&dir.join("keys"), Some(&unlock)).unwrap();
        let cluster = ClusterId::from_random(1);
        let sealer = Arc::new(Sealer::new(ring, cluster.clone(), NodeId::from_random(2)));
        let engine = Arc::new(SledEngine::open(&dir.join("log")).unwrap());
        let folder = SnapshotFolder::open(&dir.join("snapshots"), Arc::clone(&sealer), cluster).unwrap();
        Self { dir, unlock, log: LogStore::new(1, engine, Arc::clone(&sealer)), sealer, folder }
    }

    async fn keys_in_use(&self) -> BTreeSet<u32> {
        let mut keys = self.folder.keys_in_use().unwrap();
        keys.extend(self.log.keys_in_use().await.unwrap());
        keys
    }
}

/// What must be there whenever the process ends.
#[derive(Debug, Clone, Default, PartialEq)]
struct Written {
    term: u64,
    purged: u64,
    last: u64,
    snapshot: Option<u64>,
}

impl Written {
    fn log_id(&self, index: u64) -> LogId {
        // Terms only grow, and do not matter here.
        LogId { leader_id: LeaderId { term: 1, node_id: 9 }, index }
    }

    /// Reads all of it from a disk that a process left behind.
    async fn check(&self, disk: &mut Disk) {
        let entries = disk.log.try_get_log_entries(self.purged + 1..=self.last).await.unwrap();
        let indexes: Vec<u64> = entries.iter().map(|entry| entry.log_id.index).collect();
        assert_eq!(indexes, (self.purged + 1..=self.last).collect::<Vec<_>>());
        let vote = disk.log.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term);
        assert_eq!(vote, self.term);
        let snapshot = disk.folder.load().unwrap().and_then(|(meta, _)| meta.last_log_id);
        assert_eq!(snapshot.map(|id| id.index), self.snapshot);
    }

    async fn append(&mut self, disk: &mut Disk) {
        let entry = |index| Entry { log_id: self.log_id(index), payload: EntryPayload::Blank };
        disk.log.blocking_append((self.last + 1..=self.last + 3).map(entry)).await.unwrap();
        self.last += 3;
    }

    async fn vote(&mut self, disk: &mut Disk) {
        self.term += 1;
        disk.log.save_vote(&Vote::new(self.term, 9)).await.unwrap();
    }

    fn snapshot(&mut self, disk: &Disk) {
        let last_log_id = Some(self.log_id(self.last));
        let meta = SnapshotMeta { last_log_id, last_membership: StoredMembership::default() };
        disk.folder.save(&meta, &State::empty()).unwrap();
        self.snapshot = Some(self.last);
    }

    async fn purge(&mut self, disk: &mut Disk) {
        let Some(covered) = self.snapshot.filter(|covered| *covered > self.purged) else { return };
        disk.log.purge(self.log_id(covered)).await.unwrap();
        self.purged = covered;
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What a killed process leaves is what the kernel has of its files: a copy of them.
async fn killed_here(disk: &Disk, written: &Written) -> BTreeSet<u32> {
    let left = tempfile::tempdir().unwrap();
    copy(&disk.dir, left.path());
    let mut found = Disk::open(left.path().to_owned());
    written.check(&mut found).await;
    found.keys_in_use().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_key_is_replaced_and_everything_opens_wherever_that_is_cut_short() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk::open(dir.path().to_owned());
    let mut written = Written::default();
    written.append(&mut disk).await;
    written.vote(&mut disk).await;
    written.snapshot(&disk);
    assert_eq!(killed_here(&disk, &written).await, [1].into());

    // Locked for the first time: the key that lay open is replaced.
    assert_eq!(disk.sealer.keep_locked(&disk.dir.join("keys"), Some(&disk.unlock)).unwrap(), Kept::Locked);
    assert_eq!(killed_here(&disk, &written).await, [1].into());
    // A file that was not yet renamed is nobody's.
    std::fs::write(disk.dir.join("keys.new"), "orch data").unwrap();
    written.append(&mut disk).await;
    assert_eq!(killed_here(&disk, &written).await, [1].into(), "the first entry has the old key");
    disk.log.reseal().await.unwrap();
    assert_eq!(killed_here(&disk, &written).await, [1, 2].into(), "the vote has the new one");
    written.snapshot(&disk);
    assert_eq!(killed_here(&disk, &written).await, [1, 2].into(), "the first entries still need the old one");
    written.purge(&mut disk).await;
    assert_eq!(killed_here(&disk, &written).await, [2].into());
    disk.sealer.drop_old_keys(&disk.dir.join("keys"), Some(&disk.unlock)).unwrap();
    assert_eq!(killed_here(&disk, &written).await, [2].into());
    written.append(&mut disk).await;
    written.vote(&mut disk).await;
    assert_eq!(killed_here(&disk, &written).await, [2].into());
}

/// Any order of what raft writes and what a rotation does; keys go as soon as they are said to be unused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_writing_and_rotating_loses_anything() {
    let mut dropped = 0;
    for seed in 0..6_u64 {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = Disk::open(dir.path().to_owned());
        let mut written = Written::default();
        let mut random = StdRng::seed_from_u64(seed);
        let keys = disk.dir.join("keys");
        for step in 0..80 {
            match random.random_range(0..12) {
                0 | 1 => written.append(&mut disk).await,
                2 => written.vote(&mut disk).await,
                3 | 4 => written.snapshot(&disk),
                5 | 6 => written.purge(&mut disk).await,
                7 => disk.sealer.rotate(&keys, Some(&disk.unlock)).unwrap(),
                8 | 9 => disk.log.reseal().await.unwrap(),
                _ => {
                    let current = disk.sealer.current_key();
                    if disk.sealer.has_old_keys() && disk.keys_in_use().await.iter().all(|key| *key == current) {
                        disk.sealer.drop_old_keys(&keys, Some(&disk.unlock)).unwrap();
                        dropped += 1;
                    }
                }
            }
            if step % 4 == 0 {
                println!("seed {seed}, step {step}");
                let _ = killed_here(&disk, &written).await;
            }
        }
    }
    assert!(dropped > 6, "keys were let go {dropped} times only");
}
