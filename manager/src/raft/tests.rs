//! openraft's own suite for storages, on ours.

use std::{path::PathBuf, sync::Arc};

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use orch_model::{ClusterId, NodeId};
use tempfile::TempDir;

use super::{log_store::LogStore, machine::StateMachine, snapshot::SnapshotFolder, store::Store, types::TypeConfig};
use crate::log::{KeyRing, Sealer, SledEngine};

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
    (LogStore::new(engine, sealer), StateMachine::new(Store::new(), folder))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_storage_keeps_openrafts_rules() {
    Suite::test_all(Builder).await.unwrap();
}
