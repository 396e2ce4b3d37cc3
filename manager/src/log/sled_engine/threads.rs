//! The two threads behind the log: one writes frames and tells those who wait, one folds the journal into sled.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use super::{End, META_FOLDED, lock};
use crate::log::{
    Flushed, LogError,
    journal::{Journal, Staged, Written},
    tip::Safe,
};

/// Frames between two folds. Small, so that a fold never holds up the drive for long.
const FOLD_EVERY_BYTES: usize = 1024 * 1024;

/// Writes frames in order.
pub(super) struct Flusher {
    staged: Arc<Mutex<Staged>>,
    end: Arc<Mutex<End>>,
    journal: Journal,
    /// The last frame.
    number: u64,
    unfolded_bytes: usize,
    progress: Arc<Progress>,
    /// One request at a time is enough: a fold takes in everything written before it.
    fold: mpsc::SyncSender<()>,
    folding: thread::JoinHandle<()>,
    dir: PathBuf,
    /// After a failure nobody can say what the disk has.
    broken: Option<String>,
}

impl Flusher {
    /// Starts the folding thread.
    pub(super) fn start(
        staged: Arc<Mutex<Staged>>,
        end: Arc<Mutex<End>>,
        journal: Journal,
        folder: Folder,
        number: u64,
    ) -> io::Result<Self> {
        let progress = Arc::new(Progress::new(number));
        let (fold, requests) = mpsc::sync_channel(1);
        let (dir, shared) = (folder.dir.clone(), Arc::clone(&progress));
        let folding = thread::Builder::new()
            .name("raft-log-fold".to_owned())
            .spawn(move || requests.iter().for_each(|()| shared.fold_with(&folder)))?;
        Ok(Self { staged, end, journal, number, unfolded_bytes: 0, progress, fold, folding, dir, broken: None })
    }

    /// Serves until nobody can ask any more.
    pub(super) fn run(mut self, waiters: &mpsc::Receiver<Flushed>) {
        while let Ok(first) = waiters.recv() {
            let mut batch = vec![first];
            batch.extend(waiters.try_iter());
            let (staged, appended, cuts) = {
                let mut staged = lock(&self.staged);
                let end = lock(&self.end);
                (staged.take(), end.appended, end.cuts)
            };
            match self.make_durable(&staged, appended) {
                Ok(()) => {
                    batch.into_iter().for_each(|done| done(Ok(())));
                    self.note_safe(appended, cuts);
                }
                Err(error) => self.fail(batch, &error),
            }
        }
        drop(self.fold);
        // It has nothing to say that a waiter has not been told.
        let _ = self.folding.join();
    }

    fn make_durable(&mut self, staged: &Staged, last_index: u64) -> Result<(), LogError> {
        if let Some(reason) = &self.broken {
            return Err(self.error(io::Error::other(reason.clone())));
        }
        if staged.is_empty() {
            return Ok(());
        }
        let number = self.number + 1;
        loop {
            match self.journal.write(number, last_index, staged, self.progress.folded())? {
                Written::Safe => break,
                Written::NoRoom { until } => self.wait_for_fold(until)?,
                Written::TooLarge => {
                    self.progress.written.store(number, Ordering::Release);
                    self.wait_for_fold(number)?;
                    self.journal.skip();
                    break;
                }
            }
        }
        self.number = number;
        self.progress.written.store(number, Ordering::Release);
        self.unfolded_bytes += staged.len();
        if self.unfolded_bytes >= FOLD_EVERY_BYTES {
            self.unfolded_bytes = 0;
            // Full: one is asked for already.
            let _ = self.fold.try_send(());
        }
        self.progress.failure().map_or(Ok(()), |reason| Err(self.error(io::Error::other(reason))))
    }

    fn wait_for_fold(&self, until: u64) -> Result<(), LogError> {
        let _ = self.fold.try_send(());
        self.progress.wait_for(until).map_err(|reason| self.error(io::Error::other(reason)))
    }

    /// Not when the log was cut meanwhile: the same indexes may hold other entries by now.
    fn note_safe(&self, appended: u64, cuts: u64) {
        let mut end = lock(&self.end);
        let index = if end.cuts == cuts { appended } else { end.safe.index };
        let safe = Safe { index, frame: self.number };
        if safe == end.safe {
            return;
        }
        end.safe = safe;
        if let Err(error) = end.tip.raise(safe) {
            tracing::warn!(%error, "cannot note how far the raft log is safe");
        }
    }

    fn fail(&mut self, batch: Vec<Flushed>, error: &LogError) {
        let reason = orch_proto::report::chain(error);
        for done in batch {
            done(Err(self.error(io::Error::other(reason.clone()))));
        }
        self.broken = Some(reason);
    }

    fn error(&self, source: io::Error) -> LogError {
        LogError::Io { what: "sync", path: self.dir.join("db"), source }
    }
}

/// How far each of the two threads is.
struct Progress {
    written: AtomicU64,
    folded: Mutex<Folded>,
    changed: Condvar,
}

struct Folded {
    until: u64,
    failure: Option<String>,
}

impl Progress {
    fn new(number: u64) -> Self {
        let folded = Mutex::new(Folded { until: number, failure: None });
        Self { written: AtomicU64::new(number), folded, changed: Condvar::new() }
    }

    fn folded(&self) -> u64 {
        lock(&self.folded).until
    }

    fn failure(&self) -> Option<String> {
        lock(&self.folded).failure.clone()
    }

    fn fold_with(&self, folder: &Folder) {
        let until = self.written.load(Ordering::Acquire);
        let outcome = folder.fold(until);
        let mut folded = lock(&self.folded);
        match outcome {
            Ok(()) => folded.until = until,
            Err(error) => folded.failure = Some(error.to_string()),
        }
        self.changed.notify_all();
    }

    fn wait_for(&self, until: u64) -> Result<(), String> {
        let mut folded = lock(&self.folded);
        loop {
            match &folded.failure {
                Some(reason) => return Err(reason.clone()),
                None if folded.until >= until => return Ok(()),
                None => {}
            }
            folded = self.changed.wait(folded).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

/// Brings sled to the disk.
pub(super) struct Folder {
    db: sled::Db,
    meta: sled::Tree,
    file: File,
    dir: PathBuf,
}

impl Folder {
    pub(super) fn new(db: sled::Db, meta: sled::Tree, file: File, dir: PathBuf) -> Self {
        Self { db, meta, file, dir }
    }

    /// Everything of the frames up to `number` is in sled already. sled's own log keeps its order, so whoever finds the
    /// number there finds what came before it too.
    pub(super) fn fold(&self, number: u64) -> io::Result<()> {
        let failed = |e: sled::Error| io::Error::other(e.to_string());
        self.meta.insert(META_FOLDED, &number.to_be_bytes()).map_err(failed)?;
        self.db.flush().map_err(failed)?;
        self.file.sync_data()?;
        // Only a value beyond `PIECE_BYTES` could get here; see the constant.
        for entry in fs::read_dir(self.dir.join("blobs"))? {
            File::open(entry?.path())?.sync_data()?;
        }
        Ok(())
    }
}
