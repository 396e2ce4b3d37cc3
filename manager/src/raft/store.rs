//! The replicated state as the rest of the manager sees it: a snapshot at any time, and what each commit changed.
//!
//! Only the state machine writes here. A reader never waits for a writer.

use std::sync::Arc;

use arc_swap::ArcSwap;
use orch_manager_core::{Event, State};
use tokio::sync::{broadcast, watch};

/// Commits that a slow watcher may lag behind before it has to start over.
const COMMIT_BACKLOG: usize = 1024;

/// The state after a raft index.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub index: u64,
    pub state: State,
}

/// What one raft entry changed.
#[derive(Debug, Clone)]
pub struct Commit {
    pub index: u64,
    pub change: Committed,
}

#[derive(Debug, Clone)]
pub enum Committed {
    /// One list of events per transaction that was not refused.
    Transactions(Vec<Arc<[Event]>>),
    /// A snapshot replaced everything.
    Replaced,
}

/// The current state and its changes.
pub struct Store {
    view: ArcSwap<View>,
    commits: broadcast::Sender<Arc<Commit>>,
    index: watch::Sender<u64>,
}

impl Store {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            view: ArcSwap::default(),
            commits: broadcast::Sender::new(COMMIT_BACKLOG),
            index: watch::Sender::new(0),
        })
    }

    /// The state now. Cheap; never changes under the reader.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Every commit from now on. Subscribe before taking a [`Store::view`] to miss none.
    #[must_use]
    pub fn commits(&self) -> broadcast::Receiver<Arc<Commit>> {
        self.commits.subscribe()
    }

    /// Notifies of new indexes, without saying what changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.index.subscribe()
    }

    pub(crate) fn publish(&self, index: u64, state: State, change: Committed) {
        self.view.store(Arc::new(View { index, state }));
        // Nobody may be listening.
        let _ = self.commits.send(Arc::new(Commit { index, change }));
        self.index.send_replace(index);
    }
}
