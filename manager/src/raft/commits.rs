//! Commits on their way to those who follow the state.
//!
//! A follower that does not keep up loses what it has not read, and is told so: what is kept for all of them together is
//! bounded in number and in bytes, whatever a commit weighs.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use super::store::Commit;

/// Commits that a slow follower may lag behind before it has to start over.
const COMMIT_BACKLOG: usize = 1024;
/// What commits that somebody has yet to read may weigh together; the last one is always kept.
const UNREAD_BYTES: u64 = 64 * 1024 * 1024;

/// A commit that not everybody has read yet, unless it was taken back.
struct Parcel(Mutex<Option<Arc<Commit>>>);

impl Parcel {
    fn content(&self) -> MutexGuard<'_, Option<Arc<Commit>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands commits out.
pub(super) struct Post {
    parcels: broadcast::Sender<Arc<Parcel>>,
    unread: Mutex<Unread>,
}

/// What was handed out, the oldest first, and what it weighs. Those that everybody has read are gone.
#[derive(Default)]
struct Unread {
    parcels: VecDeque<(Weak<Parcel>, u64)>,
    bytes: u64,
}

impl Unread {
    fn push(&mut self, parcel: &Arc<Parcel>, bytes: u64) {
        self.parcels.push_back((Arc::downgrade(parcel), bytes));
        self.bytes += bytes;
        while self.parcels.len() > 1 {
            let Some((oldest, bytes)) = self.parcels.front() else { return };
            match oldest.upgrade() {
                Some(oldest) if self.bytes > UNREAD_BYTES => *oldest.content() = None,
                Some(_) => return,
                None => {}
            }
            self.bytes -= bytes;
            self.parcels.pop_front();
        }
    }
}

impl Post {
    pub(super) fn new() -> Self {
        Self { parcels: broadcast::Sender::new(COMMIT_BACKLOG), unread: Mutex::default() }
    }

    pub(super) fn send(&self, commit: &Arc<Commit>) {
        let parcel = Arc::new(Parcel(Mutex::new(Some(Arc::clone(commit)))));
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        unread.push(&parcel, commit.held_bytes());
        // Nobody may be listening.
        let _ = self.parcels.send(parcel);
    }

    pub(super) fn subscribe(&self) -> Commits {
        Commits(self.parcels.subscribe())
    }
}

/// Commits as they are made. Whoever lags behind starts over with the state of now: [`RecvError::Lagged`].
pub struct Commits(broadcast::Receiver<Arc<Parcel>>);

impl Commits {
    pub async fn recv(&mut self) -> Result<Arc<Commit>, RecvError> {
        let parcel = self.0.recv().await?;
        self.open(&parcel).ok_or(RecvError::Lagged(1))
    }

    pub(crate) fn try_recv(&mut self) -> Result<Arc<Commit>, TryRecvError> {
        let parcel = self.0.try_recv()?;
        self.open(&parcel).ok_or(TryRecvError::Lagged(1))
    }

    /// Leaves out what has not been read.
    pub(crate) fn skip_to_now(&mut self) {
        self.0 = self.0.resubscribe();
    }

    fn open(&mut self, parcel: &Parcel) -> Option<Arc<Commit>> {
        let commit = parcel.content().clone();
        if commit.is_none() {
            // Those that follow it may be gone as well: to be told once is enough.
            self.skip_to_now();
        }
        commit
    }
}

#[cfg(test)]
mod tests {
    use orch_manager_core::Event;
    use orch_model::{Annotations, ConfigId, Meta, Object, secret::Config};

    use super::*;
    use crate::raft::Committed;

    const CONTENT_BYTES: usize = 1024 * 1024;

    fn removed(index: u64, content_bytes: usize) -> Arc<Commit> {
        let config = Config {
            id: ConfigId::from_random(index.into()),
            meta: Meta::default(),
            annotations: Annotations::default(),
            data: vec![0; content_bytes],
            template: None,
            removing: false,
        };
        let events = [Event::Removed(Object::Config(Arc::new(config)))];
        Arc::new(Commit { index, change: Committed::Transactions(vec![Arc::new(events)]) })
    }

    /// Hands out commits of `content_bytes` each and returns how many of them somebody still holds.
    fn send(post: &Post, indexes: std::ops::RangeInclusive<u64>, content_bytes: usize) -> usize {
        let sent: Vec<_> = indexes
            .map(|index| {
                let commit = removed(index, content_bytes);
                post.send(&commit);
                Arc::downgrade(&commit)
            })
            .collect();
        sent.iter().filter(|commit| commit.strong_count() > 0).count()
    }

    fn rest(commits: &mut Commits) -> Vec<Result<u64, TryRecvError>> {
        let next =
            || Some(commits.try_recv().map(|commit| commit.index)).filter(|next| *next != Err(TryRecvError::Empty));
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_follower_that_does_not_read_holds_back_so_many_bytes_and_starts_over() {
        let post = Post::new();
        let (mut slow, mut quick) = (post.subscribe(), post.subscribe());
        let held = send(&post, 1..=200, CONTENT_BYTES);
        assert!((60..=64).contains(&held), "{held}");
        assert_eq!(held as u64, UNREAD_BYTES / removed(0, CONTENT_BYTES).held_bytes(), "of {CONTENT_BYTES} bytes each");
        assert_eq!(rest(&mut slow), [Err(TryRecvError::Lagged(1))]);
        // Of now on, it hears everything.
        assert_eq!(send(&post, 201..=203, CONTENT_BYTES), 3);
        assert_eq!(rest(&mut slow), [Ok(201), Ok(202), Ok(203)]);
        let _ = rest(&mut quick);
        assert_eq!(send(&post, 204..=204, CONTENT_BYTES), 1);
        assert_eq!((rest(&mut slow), rest(&mut quick)), (vec![Ok(204)], vec![Ok(204)]));
        assert_eq!(post.unread.lock().unwrap().parcels.len(), 1, "what everybody has read is forgotten");

        // Larger than all together may be: it is handed out all the same.
        assert_eq!(send(&post, 205..=205, 65 * CONTENT_BYTES), 1);
        assert_eq!(rest(&mut slow), [Ok(205)]);
    }

    #[test]
    fn nothing_is_held_back_for_nobody() {
        let post = Post::new();
        assert_eq!(send(&post, 1..=10, CONTENT_BYTES), 0);
        let mut late = post.subscribe();
        assert_eq!(rest(&mut late), []);
    }
}
