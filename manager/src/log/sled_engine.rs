//! The log engine on sled 0.34.7, with what sled leaves out of durability added.
//!
//! sled's `flush()` asks the kernel to start writing (`sync_file_range`) and does not wait for the drive's cache, and it is
//! slow: see [`super::journal`]. So every change goes to sled, which answers reads, and into a frame of the journal. One
//! thread writes and syncs frames, then tells everyone who waited, in order; another brings sled to the disk now and then
//! (*folds*), so that frames can be overwritten. Opening does again what sled does not have yet.

mod threads;

use std::{
    fs::{self, File},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use self::threads::{Flusher, Folder};
use super::{
    Flushed, LogEngine, LogError, META_PURGED,
    journal::{Found, Journal, Op, Staged},
    tip::{Safe, Tip},
};

/// sled keeps a leaf of up to 17 values as one record, and writes a record that is larger than a quarter of a segment
/// to a file of its own, which it never syncs. Small pieces in large segments keep all of the log in one file.
const PIECE_BYTES: usize = 16 * 1024;
const SEGMENT_BYTES: usize = 2 * 1024 * 1024;
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Entries removed per batch by a purge or a truncation.
const REMOVE_BATCH: usize = 512;
/// How long another holder of the log may take to let go of it.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(10);
const LAST_PIECE: u8 = 1;
const MORE_PIECES: u8 = 0;
/// Where sled says up to which frame of the journal it has everything.
const META_FOLDED: &str = "journal";

/// A log in a folder of its own.
pub struct SledEngine {
    dir: PathBuf,
    db: sled::Db,
    log: sled::Tree,
    meta: sled::Tree,
    /// Held while sled is changed, so that frames say the same in the same order.
    staged: Arc<Mutex<Staged>>,
    end: Arc<Mutex<End>>,
    /// Started last. Dropped first: it serves everyone who waits before sled goes.
    flusher: Option<Flusher>,
}

/// How far the log goes, and how far that is known to be safe.
struct End {
    tip: Tip,
    safe: Safe,
    /// Greatest index appended (or purged).
    appended: u64,
    /// Raised whenever the log is cut: what was appended before says nothing about what comes after.
    cuts: u64,
}

impl SledEngine {
    /// Opens the log in `dir`, or makes an empty one.
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        fs::create_dir_all(dir).map_err(|source| LogError::Io { what: "create", path: dir.into(), source })?;
        remove_unfinished_snapshots(dir)?;
        let (tip, safe) = Tip::open(dir.join("tip"))?;
        let db = open_db(dir)?;
        let damaged = |detail: String| LogError::Damaged { path: dir.join("db"), detail };
        let log = db.open_tree("log").map_err(|e| damaged(e.to_string()))?;
        let meta = db.open_tree("meta").map_err(|e| damaged(e.to_string()))?;
        let mut engine = Self {
            dir: dir.into(),
            db,
            log,
            meta,
            staged: Arc::default(),
            end: Arc::new(Mutex::new(End { tip, safe, appended: safe.index, cuts: 0 })),
            flusher: None,
        };
        let (journal, found) = Journal::open(&dir.join("journal"))?;
        let folded = engine.folded()?;
        let last_frame = found.frames.last().map_or(folded, |frame| frame.number.max(folded));
        engine.replay(found, folded, safe)?;
        engine.check_against(safe.index)?;
        if let Some((last, _)) = engine.last()? {
            lock(&engine.end).appended = last;
        }
        engine.start_threads(journal, last_frame)?;
        Ok(engine)
    }

    /// Does again what the journal has and sled does not.
    fn replay(&self, found: Found, folded: u64, safe: Safe) -> Result<(), LogError> {
        let journal = |detail: String| LogError::Damaged { path: self.dir.join("journal"), detail };
        let Found { frames, newest } = found;
        let (last, safe) = (frames.last().map_or(folded, |frame| frame.number.max(folded)), safe.frame.max(newest));
        if last < safe {
            return Err(journal(format!("frame {safe} was safe, and the last one that can be read is {last}")));
        }
        let mut end = None;
        for (expected, frame) in (folded + 1..).zip(frames.into_iter().filter(|frame| frame.number > folded)) {
            if frame.number != expected {
                let detail = format!("it ends at frame {folded} of the journal, which goes on at {}", frame.number);
                return Err(self.damaged(detail));
            }
            end = Some(frame.last_index);
            frame.ops.into_iter().try_for_each(|op| self.redo(op))?;
        }
        // sled may have got further, with what was never safe: of that, a part may be overwritten by now.
        match (end, self.log.last().map_err(|e| self.sled_error(&e))?) {
            (Some(end), Some((key, _))) if self.index_of(&key)? > end => self.remove_from(end.saturating_add(1)),
            _ => Ok(()),
        }
    }

    fn redo(&self, op: Op) -> Result<(), LogError> {
        match op {
            Op::Append { index, bytes } => {
                self.remove_from(index)?;
                let last = self.log.last().map_err(|e| self.sled_error(&e))?;
                let last = last.map(|(key, _)| self.index_of(&key)).transpose()?;
                if let Some(last) = last.filter(|last| last + 1 != index) {
                    return Err(self.damaged(format!("it ends at entry {last}, and the journal goes on at {index}")));
                }
                self.insert(index, &bytes)
            }
            Op::Truncate { first } => self.remove_from(first),
            Op::Purge { last } => self.remove_to(last),
            Op::Meta { key, value } => self.meta.insert(key, value).map(drop).map_err(|e| self.sled_error(&e)),
        }
    }

    fn folded(&self) -> Result<u64, LogError> {
        let Some(value) = self.meta.get(META_FOLDED).map_err(|e| self.sled_error(&e))? else { return Ok(0) };
        let bytes = value.as_ref().try_into().map_err(|_| self.damaged("a number in it is too short".to_owned()))?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Refuses a log that ends before what was once safe.
    fn check_against(&self, witnessed: u64) -> Result<(), LogError> {
        let last = self.last()?.map(|(index, _)| index);
        if witnessed == 0 || last.is_some_and(|index| index >= witnessed) {
            return Ok(());
        }
        // A log that was purged to its end is whole: its last entry lives in a snapshot.
        if last.is_none() && self.meta(META_PURGED)?.is_some() {
            return Ok(());
        }
        let found = last.map_or("nothing".to_owned(), |index| format!("entry {index}"));
        Err(self.damaged(format!(
            "{} says that entry {witnessed} was safe, and the last one found is {found}",
            lock(&self.end).tip.path().display()
        )))
    }

    /// What was done again is brought to the disk before anything else is written.
    fn start_threads(&mut self, journal: Journal, last_frame: u64) -> Result<(), LogError> {
        let path = self.dir.join("db");
        let file = File::open(&path).map_err(|source| LogError::Io { what: "open", path: path.clone(), source })?;
        let folder = Folder::new(self.db.clone(), self.meta.clone(), file, self.dir.clone());
        folder.fold(last_frame).map_err(|source| LogError::Io { what: "sync", path, source })?;
        let failed = |source| LogError::Io { what: "start a thread of", path: self.dir.clone(), source };
        let (staged, end) = (Arc::clone(&self.staged), Arc::clone(&self.end));
        self.flusher = Some(Flusher::start(staged, end, journal, folder, last_frame).map_err(failed)?);
        Ok(())
    }

    /// An entry of one piece is one write of sled's; of more, an atomic batch.
    fn insert(&self, index: u64, bytes: &[u8]) -> Result<(), LogError> {
        let value = |flag: u8, piece: &[u8]| {
            let mut value = Vec::with_capacity(piece.len() + 1);
            value.push(flag);
            value.extend_from_slice(piece);
            value
        };
        if bytes.len() <= PIECE_BYTES {
            let inserted = self.log.insert(piece_key(index, 0), value(LAST_PIECE, bytes));
            return inserted.map(drop).map_err(|e| self.sled_error(&e));
        }
        let mut batch = sled::Batch::default();
        let count = bytes.len().div_ceil(PIECE_BYTES);
        for (number, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            let flag = if number + 1 == count { LAST_PIECE } else { MORE_PIECES };
            batch.insert(&piece_key(index, number)[..], value(flag, piece));
        }
        self.log.apply_batch(batch).map_err(|e| self.sled_error(&e))
    }

    /// From the end backwards, so that there is never a hole.
    fn remove_from(&self, first: u64) -> Result<(), LogError> {
        self.remove_all(self.log.range(piece_key(first, 0)..).keys().rev())
    }

    fn remove_to(&self, last: u64) -> Result<(), LogError> {
        self.remove_all(self.log.range(..piece_key(last.saturating_add(1), 0)).keys())
    }

    fn damaged(&self, detail: String) -> LogError {
        LogError::Damaged { path: self.dir.join("db"), detail }
    }

    fn sled_error(&self, error: &sled::Error) -> LogError {
        self.damaged(error.to_string())
    }

    /// Removes `keys` in batches, so that a long purge holds up nobody.
    fn remove_all(&self, keys: impl Iterator<Item = sled::Result<sled::IVec>>) -> Result<(), LogError> {
        let mut keys = keys.peekable();
        while keys.peek().is_some() {
            let mut batch = sled::Batch::default();
            for key in keys.by_ref().take(REMOVE_BATCH) {
                batch.remove(key.map_err(|e| self.sled_error(&e))?);
            }
            self.log.apply_batch(batch).map_err(|e| self.sled_error(&e))?;
        }
        Ok(())
    }

    fn index_of(&self, key: &[u8]) -> Result<u64, LogError> {
        let bytes = key.get(..8).and_then(|b| <[u8; 8]>::try_from(b).ok());
        bytes.map(u64::from_be_bytes).ok_or_else(|| self.damaged("a key in it is too short".to_owned()))
    }

    /// Puts the pieces of entries together again.
    fn assemble(
        &self,
        pieces: impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>>,
    ) -> Result<Vec<(u64, Vec<u8>)>, LogError> {
        let mut entries = Vec::new();
        let mut current: Option<(u64, Vec<u8>)> = None;
        for piece in pieces {
            let (key, value) = piece.map_err(|e| self.sled_error(&e))?;
            let index = self.index_of(&key)?;
            let Some((flag, bytes)) = value.split_first() else {
                return Err(self.damaged(format!("a piece of entry {index} is empty")));
            };
            let (started, mut whole) = current.take().unwrap_or((index, Vec::new()));
            if started != index {
                return Err(self.damaged(format!("the end of entry {started} is missing")));
            }
            whole.extend_from_slice(bytes);
            if *flag == LAST_PIECE {
                entries.push((index, whole));
            } else {
                current = Some((index, whole));
            }
        }
        match current {
            None => Ok(entries),
            Some((index, _)) => Err(self.damaged(format!("the end of entry {index} is missing"))),
        }
    }
}

impl LogEngine for SledEngine {
    fn append(&self, entries: Vec<(u64, Vec<u8>)>) -> Result<(), LogError> {
        let Some(last) = entries.last().map(|(index, _)| *index) else { return Ok(()) };
        let mut staged = lock(&self.staged);
        for (index, bytes) in &entries {
            self.insert(*index, bytes)?;
            staged.append(*index, bytes);
        }
        lock(&self.end).appended = last;
        Ok(())
    }

    fn truncate_from(&self, first: u64) -> Result<(), LogError> {
        let keep = first.saturating_sub(1);
        let mut staged = lock(&self.staged);
        {
            let mut end = lock(&self.end);
            if end.appended > keep {
                let safe = Safe { index: keep, ..end.safe };
                end.tip.lower(safe)?;
                end.safe = safe;
                end.appended = keep;
                end.cuts += 1;
            }
        }
        staged.truncate(first);
        self.remove_from(first)
    }

    fn purge_to(&self, last: u64, record: Vec<u8>) -> Result<(), LogError> {
        self.put_meta(META_PURGED, record)?;
        let mut staged = lock(&self.staged);
        {
            let mut end = lock(&self.end);
            end.appended = end.appended.max(last);
        }
        staged.purge(last);
        self.remove_to(last)
    }

    fn read(&self, first: u64, end: u64) -> Result<Vec<(u64, Vec<u8>)>, LogError> {
        if first >= end {
            return Ok(Vec::new());
        }
        self.assemble(self.log.range(piece_key(first, 0)..piece_key(end, 0)))
    }

    fn last(&self) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        let Some((key, _)) = self.log.last().map_err(|e| self.sled_error(&e))? else { return Ok(None) };
        let index = self.index_of(&key)?;
        Ok(self.assemble(self.log.range(piece_key(index, 0)..))?.pop())
    }

    fn put_meta(&self, key: &str, value: Vec<u8>) -> Result<(), LogError> {
        let mut staged = lock(&self.staged);
        staged.meta(key.as_bytes(), &value);
        self.meta.insert(key, value).map(drop).map_err(|e| self.sled_error(&e))
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, LogError> {
        let value = self.meta.get(key).map_err(|e| self.sled_error(&e))?;
        Ok(value.map(|v| v.to_vec()))
    }

    fn flush(&self, done: Flushed) {
        match &self.flusher {
            Some(flusher) => flusher.flush(done),
            None => done(Err(LogError::Closed { path: self.dir.clone() })),
        }
    }

    fn flush_here(&self, done: Flushed) {
        match &self.flusher {
            Some(flusher) => flusher.flush_here(done),
            None => done(Err(LogError::Closed { path: self.dir.clone() })),
        }
    }
}

impl Drop for SledEngine {
    fn drop(&mut self) {
        self.flusher = None;
    }
}

/// An empty one, left by a crash, makes sled refuse to open.
fn remove_unfinished_snapshots(dir: &Path) -> Result<(), LogError> {
    let error = |what, path: &Path| {
        let path = path.to_owned();
        move |source| LogError::Io { what, path, source }
    };
    for entry in fs::read_dir(dir).map_err(error("list", dir))? {
        let path = entry.map_err(error("list", dir))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(&path).map_err(error("remove", &path))?;
        }
    }
    Ok(())
}

/// sled gives its lock up a moment after the last handle is gone, on a thread of its own; who opens the log again in the
/// same process may meet it.
fn open_db(dir: &Path) -> Result<sled::Db, LogError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match try_open_db(dir) {
            Err(LogError::InUse { .. }) if Instant::now() < deadline => thread::sleep(LOCK_POLL),
            outcome => return outcome,
        }
    }
}

/// sled panics on some kinds of damage; the operator gets a sentence all the same.
fn try_open_db(dir: &Path) -> Result<sled::Db, LogError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .segment_size(SEGMENT_BYTES)
        .flush_every_ms(None)
        .mode(sled::Mode::HighThroughput);
    let damaged = |detail: String| LogError::Damaged { path: dir.join("db"), detail };
    match panic::catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(e))) if e.to_string().contains("lock") => Err(LogError::InUse { path: dir.into() }),
        Ok(Err(error)) => Err(damaged(error.to_string())),
        Err(_) => Err(damaged("reading it failed half-way".to_owned())),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn piece_key(index: u64, piece: usize) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&index.to_be_bytes());
    // 65536 pieces are 1 GiB: far beyond what a batch or a message may hold.
    let piece = u16::try_from(piece).unwrap_or(u16::MAX);
    key[8..].copy_from_slice(&piece.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt, sync::mpsc};

    use super::*;

    fn flush(engine: &SledEngine) {
        let (sender, receiver) = mpsc::channel();
        engine.flush(Box::new(move |result| sender.send(result.map_err(|e| e.to_string())).unwrap()));
        receiver.recv().unwrap().unwrap();
    }

    fn entries(range: std::ops::Range<u64>, bytes: usize) -> Vec<(u64, Vec<u8>)> {
        range.map(|i| (i, vec![i.to_le_bytes()[0]; bytes])).collect()
    }

    #[test]
    fn entries_of_any_size_survive_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let sizes = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES];
        let written: Vec<_> = sizes.iter().enumerate().map(|(i, size)| (i as u64 + 1, vec![7; *size])).collect();
        {
            let engine = SledEngine::open(dir.path()).unwrap();
            engine.append(written.clone()).unwrap();
            engine.put_meta("vote", b"v".to_vec()).unwrap();
            flush(&engine);
        }
        let engine = SledEngine::open(dir.path()).unwrap();
        assert_eq!(engine.read(0, 100).unwrap(), written);
        assert_eq!(engine.last().unwrap().unwrap().0, 6);
        assert_eq!(engine.meta("vote").unwrap().unwrap(), b"v");
        let blobs = fs::read_dir(dir.path().join("blobs")).unwrap().count();
        assert_eq!(blobs, 0, "a value went to a file that sled does not sync");
    }

    #[test]
    fn waiters_are_told_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(dir.path()).unwrap();
        let (sender, receiver) = mpsc::channel();
        let mut order = Vec::new();
        for number in 0..50 {
            engine.append(entries(number + 1..number + 2, 100)).unwrap();
            let sender = sender.clone();
            let done: Flushed = Box::new(move |result| sender.send((number, result.is_ok())).unwrap());
            if number % 7 == 3 {
                engine.flush_here(done);
                order.extend(receiver.try_iter());
                assert_eq!(order.last(), Some(&(number, true)), "it was called before that returned");
            } else {
                engine.flush(done);
            }
        }
        order.extend(receiver.iter().take(50 - order.len()));
        assert_eq!(order, (0..50).map(|n| (n, true)).collect::<Vec<_>>());
    }

    #[test]
    fn purge_and_truncate_leave_what_is_between() {
        let dir = tempfile::tempdir().unwrap();
        {
            let engine = SledEngine::open(dir.path()).unwrap();
            engine.append(entries(1..2001, 50)).unwrap();
            flush(&engine);
            engine.purge_to(700, b"700".to_vec()).unwrap();
            engine.truncate_from(1900).unwrap();
            flush(&engine);
        }
        let engine = SledEngine::open(dir.path()).unwrap();
        let left: Vec<u64> = engine.read(0, 5000).unwrap().into_iter().map(|(i, _)| i).collect();
        assert_eq!(left, (701..1900).collect::<Vec<_>>());
        assert_eq!(engine.meta(META_PURGED).unwrap().unwrap(), b"700");
    }

    #[test]
    fn a_log_that_was_cut_is_not_mistaken_for_a_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..5 {
            let engine = SledEngine::open(dir.path()).unwrap();
            let first = engine.last().unwrap().map_or(1, |(index, _)| index + 1);
            engine.append(entries(first..first + 100, 50)).unwrap();
            let (sender, receiver) = mpsc::channel();
            engine.flush(Box::new(move |result| sender.send(result.is_ok()).unwrap()));
            // While that flush is under way.
            engine.truncate_from(first + 10 + round).unwrap();
            assert!(receiver.recv().unwrap());
            flush(&engine);
        }
        assert_eq!(SledEngine::open(dir.path()).unwrap().last().unwrap().unwrap().0, 60);
    }

    /// Copies the folder as a power cut would leave it, were sled's file to lose all that was not folded.
    #[test]
    fn what_sled_lost_is_done_again_from_the_journal() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let take = |names: &[&str]| {
            for name in names {
                fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
            }
        };
        let engine = SledEngine::open(dir.path()).unwrap();
        engine.append(entries(1..50, 100)).unwrap();
        flush(&engine);
        drop(engine);
        let engine = SledEngine::open(dir.path()).unwrap();
        fs::create_dir(copy.path().join("blobs")).unwrap();
        take(&["conf", "db"]);
        engine.append(entries(50..80, 100)).unwrap();
        engine.put_meta("vote", b"old".to_vec()).unwrap();
        flush(&engine);
        engine.truncate_from(70).unwrap();
        engine.append(vec![(70, b"other".to_vec()), (71, vec![1; 3 * PIECE_BYTES])]).unwrap();
        engine.purge_to(20, b"20".to_vec()).unwrap();
        engine.put_meta("vote", b"new".to_vec()).unwrap();
        flush(&engine);
        take(&["journal", "tip"]);
        // Not flushed, so nobody was told that it is safe.
        engine.append(entries(72..90, 100)).unwrap();
        let expected = engine.read(0, 72).unwrap();
        drop(engine);
        for _ in 0..2 {
            let engine = SledEngine::open(copy.path()).unwrap();
            assert_eq!(engine.read(0, 1000).unwrap(), expected);
            assert_eq!(
                (engine.meta("vote").unwrap().unwrap(), engine.last().unwrap().unwrap().0),
                (b"new".to_vec(), 71)
            );
            assert_eq!(engine.meta(META_PURGED).unwrap().unwrap(), b"20");
        }
    }

    #[test]
    fn a_journal_that_lost_what_was_safe_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        {
            let engine = SledEngine::open(dir.path()).unwrap();
            engine.put_meta("vote", b"v".to_vec()).unwrap();
            flush(&engine);
        }
        fs::write(dir.path().join("journal"), b"").unwrap();
        let error = SledEngine::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("/journal"), "{error}");
    }

    /// The witness is not synced: after a power cut it may say less than was acknowledged.
    #[test]
    fn a_damaged_frame_before_a_whole_one_is_refused_whatever_the_witness_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        {
            let engine = SledEngine::open(dir.path()).unwrap();
            for index in 1..=3 {
                engine.append(entries(index..index + 1, 100)).unwrap();
                flush(&engine);
            }
        }
        fs::remove_file(dir.path().join("tip")).unwrap();
        let whole = fs::read(&path).unwrap();
        let damage = |at: usize| {
            let mut content = whole.clone();
            content[at] ^= 1;
            fs::write(&path, content).unwrap();
        };
        damage(512 + 60);
        let error = SledEngine::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("/journal") && error.contains("frame 3 was safe"), "{error}");
        // The last one may as well be torn: nobody was told of it.
        damage(2 * 512 + 60);
        assert_eq!(SledEngine::open(dir.path()).unwrap().last().unwrap().unwrap().0, 2);
    }

    #[test]
    fn an_entry_larger_than_the_journal_survives_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let written = vec![(1, vec![1; 100]), (2, vec![2; 5 << 20]), (3, vec![3; 100])];
        {
            let engine = SledEngine::open(dir.path()).unwrap();
            for entry in &written {
                engine.append(vec![entry.clone()]).unwrap();
                flush(&engine);
            }
        }
        assert_eq!(SledEngine::open(dir.path()).unwrap().read(0, 9).unwrap(), written);
    }

    #[test]
    fn an_unfinished_snapshot_of_sled_does_not_stop_it() {
        let dir = tempfile::tempdir().unwrap();
        {
            let engine = SledEngine::open(dir.path()).unwrap();
            engine.append(entries(1..10, 50)).unwrap();
            flush(&engine);
        }
        fs::write(dir.path().join("snap.00000000000000FF.generating"), b"").unwrap();
        assert_eq!(SledEngine::open(dir.path()).unwrap().last().unwrap().unwrap().0, 9);
    }

    /// Damage of each kind: the error names the file, and nothing acknowledged goes missing in silence.
    #[test]
    fn damage_is_refused_and_names_the_file() {
        type Damage = fn(&Path);
        let damages: [(&str, Damage); 3] = [
            ("emptied", |db| fs::write(db, b"").unwrap()),
            ("cut short", |db| {
                let file = fs::OpenOptions::new().write(true).open(db).unwrap();
                file.set_len(file.metadata().unwrap().len() / 2).unwrap();
            }),
            ("overwritten", |db| {
                let file = fs::OpenOptions::new().write(true).open(db).unwrap();
                let length = file.metadata().unwrap().len();
                file.write_all_at(&[0xAA; 4096], length / 2).unwrap();
            }),
        ];
        for (kind, damage) in damages {
            let dir = tempfile::tempdir().unwrap();
            {
                let engine = SledEngine::open(dir.path()).unwrap();
                // More than the journal keeps.
                for start in 0..160 {
                    engine.append(entries(start * 50 + 1..start * 50 + 51, 2000)).unwrap();
                    flush(&engine);
                }
            }
            for snapshot in fs::read_dir(dir.path()).unwrap() {
                let path = snapshot.unwrap().path();
                if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
                    fs::remove_file(path).unwrap();
                }
            }
            damage(&dir.path().join("db"));
            let outcome = SledEngine::open(dir.path()).and_then(|engine| engine.read(1, 8001));
            match outcome {
                Ok(read) => assert_eq!(read, entries(1..8001, 2000), "{kind}: something was lost in silence"),
                Err(error) => assert!(error.to_string().contains("/db"), "{kind}: {error}"),
            }
            assert!(kind == "overwritten" || SledEngine::open(dir.path()).is_err(), "{kind}: opened all the same");
        }
    }
}
