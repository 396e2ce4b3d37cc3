//! The state machine: applies committed entries to the state in memory and makes snapshots of it.
//!
//! Nothing here decides; [`State::apply`] does, the same on every manager. A change of a kind that this version does
//! not know stops the manager: skipping it would make the managers differ.

use std::{io, sync::Arc, time::Instant};

use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot,
    storage::{EntryResponder, RaftStateMachine},
};
use orch_manager_core::{Event, State};
use orch_model::change::Transaction;
use orch_proto::{conv::FromProto, wire};
use parking::Shelf;
use prost::Message;

use crate::memory::{self, Churn};

use super::{
    blocking::{blocking, in_background},
    snapshot::SnapshotFolder,
    store::{Committed, Store},
    types::{Applied, LogId, Proposal, SnapshotMeta, StoredMembership, TypeConfig},
};

/// A state to send or to install. A clone costs nothing.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) state: State,
}

type CurrentSnapshot = Option<(SnapshotMeta, Image)>;

/// The replicated state of this manager.
pub(crate) struct StateMachine {
    store: Arc<Store>,
    folder: SnapshotFolder,
    /// The last snapshot that is on the disk.
    current: Shelf<CurrentSnapshot>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    churn: Churn,
}

impl StateMachine {
    pub(crate) fn new(store: Arc<Store>, folder: SnapshotFolder) -> Self {
        let membership = StoredMembership::default();
        Self { store, folder, current: Shelf::default(), last_applied: None, membership, churn: Churn::default() }
    }

    fn apply_proposal(&self, log_id: LogId, proposal: &Proposal) -> io::Result<Applied> {
        let transactions = decode(proposal).map_err(|detail| {
            let index = log_id.index;
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("raft entry {index} holds a change that this version of orch does not know ({detail}): upgrade this manager"),
            )
        })?;
        let (state, committed, applied) = apply_all(&self.store.view().state, log_id.index, &transactions);
        self.churn.count(committed.iter().map(|events| events.len()).sum());
        self.store.publish(log_id.index, state, Committed::Transactions(committed));
        Ok(applied)
    }

    /// The index moves on also where nothing changes: managers that applied the same say the same.
    fn apply_nothing(&self, log_id: LogId) -> Applied {
        let index = log_id.index;
        self.store.publish(index, self.store.view().state.clone(), Committed::Transactions(Vec::new()));
        Applied { index, results: Vec::new() }
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Image;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let applied = match &entry.payload {
                EntryPayload::Blank => self.apply_nothing(entry.log_id),
                EntryPayload::Normal(proposal) => self.apply_proposal(entry.log_id, proposal)?,
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    self.apply_nothing(entry.log_id)
                }
            };
            self.last_applied = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder {
            meta: self.meta(),
            image: Image { state: self.store.view().state.clone() },
            folder: self.folder.clone(),
            current: self.current.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Image) -> Result<(), io::Error> {
        // At a start the file is where the image came from.
        let is_saved = self.current.get().is_some_and(|(saved, _)| saved == *meta);
        if !is_saved {
            save(&self.folder, meta, &image).await?;
            self.current.put(Some((meta.clone(), image.clone())));
        }
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        let index = meta.last_log_id.map_or(0, |id| id.index);
        self.store.publish(index, image.state, Committed::Replaced);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot_>, io::Error> {
        if self.current.get().is_none() {
            let loaded = self.folder.load().map_err(io::Error::other)?;
            self.current.put(loaded.map(|(meta, state)| (meta, Image { state })));
        }
        Ok(self.current.get().map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

type Snapshot_ = openraft::alias::SnapshotOf<TypeConfig, Image>;

/// Writes one snapshot, away from the threads that raft runs on.
pub(crate) struct Builder {
    meta: SnapshotMeta,
    image: Image,
    folder: SnapshotFolder,
    current: Shelf<CurrentSnapshot>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Image;

    async fn build_snapshot(&mut self) -> Result<Snapshot_, io::Error> {
        save(&self.folder, &self.meta, &self.image).await?;
        let built = (self.meta.clone(), self.image.clone());
        // A newer one may have been installed meanwhile.
        self.current.change(|current| {
            if current.as_ref().is_none_or(|(meta, _)| meta.last_log_id < built.0.last_log_id) {
                *current = Some(built);
            }
        });
        Ok(Snapshot { meta: self.meta.clone(), snapshot: self.image.clone() })
    }
}

async fn save(folder: &SnapshotFolder, meta: &SnapshotMeta, image: &Image) -> io::Result<()> {
    let (folder, meta, image) = (folder.clone(), meta.clone(), image.clone());
    let saved = in_background(move || {
        let start = Instant::now();
        let saved = folder.save(&meta, &image.state);
        crate::metrics::note_snapshot(start.elapsed());
        saved
    });
    let saved = saved.await?.map_err(io::Error::other);
    // Not in the background, where it would hold up those who ask for memory for longer.
    blocking(memory::give_back).await?;
    saved
}

fn decode(proposal: &Proposal) -> Result<Vec<Transaction>, String> {
    let proposal = wire::Proposal::decode(proposal.0.clone()).map_err(|e| e.to_string())?;
    let transactions = proposal.transactions.into_iter();
    transactions.map(|t| Transaction::from_proto(t).map_err(|e| e.to_string())).collect()
}

/// Every transaction on top of the ones before it; a refused one leaves no trace.
fn apply_all(state: &State, index: u64, transactions: &[Transaction]) -> (State, Vec<Arc<[Event]>>, Applied) {
    let mut state = state.clone();
    let mut committed = Vec::new();
    let mut results = Vec::with_capacity(transactions.len());
    for transaction in transactions {
        match state.apply(index, transaction) {
            Ok(events) => {
                committed.push(events.into());
                results.push(Ok(()));
            }
            Err(error) => results.push(Err(error)),
        }
    }
    (state, committed, Applied { index, results })
}

/// A place that two owners put values into and take copies from.
mod parking {
    use std::sync::{Arc, Mutex, PoisonError};

    #[derive(Default)]
    pub(super) struct Shelf<T>(Arc<Mutex<T>>);

    impl<T: Clone> Shelf<T> {
        pub(super) fn get(&self) -> T {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }

        pub(super) fn put(&self, value: T) {
            self.change(|current| *current = value);
        }

        pub(super) fn change(&self, edit: impl FnOnce(&mut T)) {
            edit(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    impl<T> Clone for Shelf<T> {
        fn clone(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }
}
