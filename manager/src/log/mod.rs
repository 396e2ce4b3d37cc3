//! The raft log on disk: an engine that stores bytes by index, and the seal that keeps them secret and whole.
//!
//! Knows nothing of raft: an entry is a number and some bytes. What the bytes mean is [`crate::raft`]'s business.
//!
//! Invariants: what [`LogEngine::flush`] has reported is on the disk, not in a cache of the kernel or the drive; waiters
//! are told in the order in which they asked; the log has no holes.

mod journal;
mod seal;
mod sled_engine;
mod snapshot_file;
mod tip;

use std::path::PathBuf;

pub use seal::{Aad, Kept, KeyRing, Kind, Lease, SealError, Sealer};
pub(crate) use seal::{from_hex, key_of, to_hex};
pub use sled_engine::SledEngine;
pub use snapshot_file::{SnapshotFileError, SnapshotReader, SnapshotWriter, UNFINISHED_EXTENSION, keys_of_snapshot};

/// Called once the data is safe, or with the reason why it is not.
pub type Flushed = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Stores bytes by log index, and a few named values beside them.
///
/// Writes are visible to readers at once and safe after a later [`LogEngine::flush`].
pub trait LogEngine: Send + Sync + 'static {
    /// Adds entries; their indexes continue the log.
    fn append(&self, entries: Vec<(u64, Vec<u8>)>) -> Result<(), LogError>;

    /// Removes every entry from `first` on, from the end backwards.
    fn truncate_from(&self, first: u64) -> Result<(), LogError>;

    /// Removes every entry up to `last`. `record` is stored under [`META_PURGED`] before anything goes.
    fn purge_to(&self, last: u64, record: Vec<u8>) -> Result<(), LogError>;

    /// The entries with `first <= index < end`, in order.
    fn read(&self, first: u64, end: u64) -> Result<Vec<(u64, Vec<u8>)>, LogError>;

    /// The entry with the greatest index.
    fn last(&self) -> Result<Option<(u64, Vec<u8>)>, LogError>;

    /// Whether no entry was ever in it.
    fn is_empty(&self) -> Result<bool, LogError> {
        Ok(self.last()?.is_none() && self.meta(META_PURGED)?.is_none())
    }

    fn put_meta(&self, key: &str, value: Vec<u8>) -> Result<(), LogError>;

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, LogError>;

    /// Calls `done` when everything written before this call is on the disk.
    fn flush(&self, done: Flushed);

    /// As [`LogEngine::flush`], and on this thread: `done`, and whoever asked before, was called when this returns. For
    /// those who have nothing to do meanwhile, and would only wait for two threads to wake each other.
    fn flush_here(&self, done: Flushed) {
        self.flush(done);
    }
}

/// Name of the value that says up to where the log was purged.
pub const META_PURGED: &str = "purged";

/// What the log on disk could not do.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the raft log in {path} is damaged: {detail}. Restore it from a copy, or, if other managers are alive, move \
         this folder away and start again: the manager then joins them anew",
        path = path.display()
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("the raft log in {path} is in use by another process", path = path.display())]
    InUse { path: PathBuf },
    #[error("the raft log in {path} is closed", path = path.display())]
    Closed { path: PathBuf },
}
