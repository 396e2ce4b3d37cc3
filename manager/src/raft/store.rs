//! The replicated state as the rest of the manager sees it: a snapshot at any time, and what each commit changed.
//!
//! Only the state machine writes here. A reader never waits for a writer.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use arc_swap::ArcSwap;
use orch_manager_core::{Event, State, state::limits};
use tokio::sync::watch;

use super::commits::{Commits, Post};

/// What is kept for watchers that were away for a moment.
const HISTORY_COMMITS: usize = 1024;
/// The same, in what it holds beside the state.
const HISTORY_BYTES: u64 = 8 * 1024 * 1024;
/// About what an object takes beside what users gave.
const OBJECT_BYTES: u64 = 1024;

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

impl Commit {
    /// About what it holds in memory beside the state: objects as they were. A new one is in the state as well.
    pub(super) fn held_bytes(&self) -> u64 {
        let of_event = |event: &Event| {
            let old = match event {
                Event::Created(_) => None,
                Event::Updated { old, .. } | Event::Removed(old) => Some(old),
            };
            size_of::<Event>() as u64 + old.map_or(0, |old| OBJECT_BYTES + limits::content_bytes(old))
        };
        match &self.change {
            Committed::Transactions(transactions) => {
                transactions.iter().flat_map(|events| events.iter()).map(of_event).sum()
            }
            Committed::Replaced => 0,
        }
    }
}

/// The current state and its changes.
pub struct Store {
    view: ArcSwap<View>,
    post: Post,
    index: watch::Sender<u64>,
    history: Mutex<History>,
}

/// Every commit after `floor`.
#[derive(Default)]
struct History {
    floor: u64,
    commits: VecDeque<Arc<Commit>>,
    bytes: u64,
}

impl History {
    fn push(&mut self, commit: &Arc<Commit>) {
        if matches!(commit.change, Committed::Replaced) {
            *self = Self { floor: commit.index, ..Self::default() };
            return;
        }
        self.bytes += commit.held_bytes();
        self.commits.push_back(Arc::clone(commit));
        while self.commits.len() > HISTORY_COMMITS || self.bytes > HISTORY_BYTES {
            let Some(oldest) = self.commits.pop_front() else { return };
            self.bytes -= oldest.held_bytes();
            self.floor = oldest.index;
        }
    }
}

impl Store {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            view: ArcSwap::default(),
            post: Post::new(),
            index: watch::Sender::new(0),
            history: Mutex::default(),
        })
    }

    /// The state now. Cheap; never changes under the reader.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Every commit from now on. Subscribe before taking a [`Store::view`] to miss none.
    #[must_use]
    pub fn commits(&self) -> Commits {
        self.post.subscribe()
    }

    /// The commits after `index`, and every commit from now on; `None` when some of them are forgotten, or when this
    /// manager has not come that far. One that is gone by the time it is looked at was forgotten meanwhile.
    #[must_use]
    pub fn commits_after(&self, index: u64) -> Option<(Vec<Weak<Commit>>, Commits)> {
        let history = self.history();
        let is_known = index >= history.floor && index <= self.view().index;
        is_known.then(|| {
            let since = history.commits.iter().filter(|commit| commit.index > index).map(Arc::downgrade).collect();
            (since, self.post.subscribe())
        })
    }

    /// Notifies of new indexes, without saying what changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.index.subscribe()
    }

    pub(crate) fn publish(&self, index: u64, state: State, change: Committed) {
        let commit = Arc::new(Commit { index, change });
        // Held until all know: a watcher that comes meanwhile finds the commit in one place, not in two or none.
        let mut history = self.history();
        self.view.store(Arc::new(View { index, state }));
        history.push(&commit);
        self.post.send(&commit);
        drop(history);
        self.index.send_replace(index);
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(until: u64) -> Arc<Store> {
        let store = Store::new();
        for index in 1..=until {
            store.publish(index, State::empty(), Committed::Transactions(Vec::new()));
        }
        store
    }

    fn since(store: &Store, index: u64) -> Option<Vec<u64>> {
        let (commits, _) = store.commits_after(index)?;
        Some(commits.iter().map(|commit| commit.upgrade().expect("it is remembered").index).collect())
    }

    #[test]
    fn a_watcher_goes_on_where_it_was_while_that_is_remembered() {
        let remembered = store(10);
        assert_eq!(since(&remembered, 7), Some(vec![8, 9, 10]));
        assert_eq!(since(&remembered, 10), Some(Vec::new()));
        assert_eq!(since(&remembered, 11), None, "nobody knows the future");
        let (_, mut next) = remembered.commits_after(10).unwrap();
        remembered.publish(11, State::empty(), Committed::Transactions(Vec::new()));
        assert_eq!(next.try_recv().unwrap().index, 11);

        let long = store(HISTORY_COMMITS as u64 + 5);
        assert_eq!(since(&long, 4), None);
        assert_eq!(since(&long, 5).unwrap().len(), HISTORY_COMMITS);

        let replaced = store(10);
        replaced.publish(50, State::empty(), Committed::Replaced);
        replaced.publish(51, State::empty(), Committed::Transactions(Vec::new()));
        assert_eq!(since(&replaced, 10), None);
        assert_eq!(since(&replaced, 50), Some(vec![51]));
    }
}
