//! The two threads behind the log: one writes frames and tells those who wait, one folds the journal into sled. Who has
//! nothing else to do writes the frame on its own thread ([`Flusher::flush_here`]).

use std::{
    fs::{self, File},
    io, mem,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
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

/// Takes those who want to know when what they wrote is safe.
pub(super) struct Flusher {
    waiting: Arc<Waiting>,
    writer: Arc<Mutex<Writer>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Those who wait, in the order in which they asked.
#[derive(Default)]
struct Waiting {
    line: Mutex<Line>,
    changed: Condvar,
}

#[derive(Default)]
struct Line {
    waiters: Vec<Flushed>,
    is_closed: bool,
}

impl Flusher {
    /// Starts both threads.
    pub(super) fn start(
        staged: Arc<Mutex<Staged>>,
        end: Arc<Mutex<End>>,
        journal: Journal,
        folder: Folder,
        number: u64,
    ) -> io::Result<Self> {
        let waiting = Arc::new(Waiting::default());
        let writer = Arc::new(Mutex::new(Writer::start(staged, end, journal, folder, number)?));
        let (line, shared) = (Arc::clone(&waiting), Arc::clone(&writer));
        let serve = move || {
            while line.somebody() {
                lock(&shared).serve(&line);
            }
        };
        let thread = thread::Builder::new().name("raft-log-flush".to_owned()).spawn(serve)?;
        Ok(Self { waiting, writer, thread: Some(thread) })
    }

    /// Calls `done` from another thread.
    pub(super) fn flush(&self, done: Flushed) {
        lock(&self.waiting.line).waiters.push(done);
        self.waiting.changed.notify_one();
    }

    /// Calls `done`, and whoever waits before it, from this thread and before this returns.
    pub(super) fn flush_here(&self, done: Flushed) {
        lock(&self.waiting.line).waiters.push(done);
        lock(&self.writer).serve(&self.waiting);
    }
}

impl Drop for Flusher {
    /// Ends the threads after everyone who waits was served.
    fn drop(&mut self) {
        lock(&self.waiting.line).is_closed = true;
        self.waiting.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panicked one has already failed its waiters by dropping them.
            let _ = thread.join();
        }
        lock(&self.writer).stop();
    }
}

impl Waiting {
    /// Waits until somebody does; false when nobody will any more.
    fn somebody(&self) -> bool {
        let mut line = lock(&self.line);
        while line.waiters.is_empty() && !line.is_closed {
            line = self.changed.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        !line.waiters.is_empty()
    }
}

/// Writes frames in order.
struct Writer {
    staged: Arc<Mutex<Staged>>,
    end: Arc<Mutex<End>>,
    journal: Journal,
    /// The last frame.
    number: u64,
    unfolded_bytes: usize,
    progress: Arc<Progress>,
    /// One request at a time is enough: a fold takes in everything written before it. `None` once it was stopped.
    fold: Option<mpsc::SyncSender<()>>,
    folding: Option<thread::JoinHandle<()>>,
    dir: PathBuf,
    /// After a failure nobody can say what the disk has.
    broken: Option<String>,
}

impl Writer {
    /// Starts the folding thread.
    fn start(
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
        let (fold, folding) = (Some(fold), Some(folding));
        Ok(Self { staged, end, journal, number, unfolded_bytes: 0, progress, fold, folding, dir, broken: None })
    }

    /// Makes everything safe that was written before, and tells everyone who waits. Called with this writer locked, so
    /// that nobody is told out of turn.
    fn serve(&mut self, waiting: &Waiting) {
        let waiters = mem::take(&mut lock(&waiting.line).waiters);
        if waiters.is_empty() {
            // Somebody else served them meanwhile.
            return;
        }
        let (staged, appended, cuts) = {
            let mut staged = lock(&self.staged);
            let end = lock(&self.end);
            (staged.take(), end.appended, end.cuts)
        };
        match self.make_durable(&staged, appended) {
            Ok(()) => {
                waiters.into_iter().for_each(|done| done(Ok(())));
                self.note_safe(appended, cuts);
            }
            Err(error) => self.fail(waiters, &error),
        }
    }

    fn stop(&mut self) {
        self.fold = None;
        if let Some(folding) = self.folding.take() {
            // It has nothing to say that a waiter has not been told.
            let _ = folding.join();
        }
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
            self.ask_to_fold();
        }
        self.progress.failure().map_or(Ok(()), |reason| Err(self.error(io::Error::other(reason))))
    }

    fn ask_to_fold(&self) {
        if let Some(fold) = &self.fold {
            // Full: one is asked for already.
            let _ = fold.try_send(());
        }
    }

    fn wait_for_fold(&self, until: u64) -> Result<(), LogError> {
        self.ask_to_fold();
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

    fn fail(&mut self, waiters: Vec<Flushed>, error: &LogError) {
        let reason = orch_proto::report::chain(error);
        for done in waiters {
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
            folded = self.changed.wait(folded).unwrap_or_else(PoisonError::into_inner);
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
