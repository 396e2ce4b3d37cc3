//! A disk that forgets: what was not flushed may be gone after a crash.
//!
//! Writes are visible at once and reach the platter in order, some time after somebody asks for it. A crash keeps what
//! was flushed and any number of the writes that came next. The disk can be slow, and it can fail.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep_until};

use crate::log::{Flushed, LogEngine, LogError, META_PURGED};

/// Ways to get durability wrong, to see that the checks notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    Kept,
    /// A flush reports success before it is done.
    AcknowledgesEarly,
    /// A vote never reaches the platter.
    LosesVotes,
}

/// The platter: what stays when the machine crashes.
#[derive(Clone)]
pub(super) struct Disk(Arc<Mutex<Inner>>);

struct Inner {
    random: StdRng,
    durability: Durability,
    /// Counts starts: an engine of an earlier one has no say any more.
    mount: u64,
    safe: Content,
    /// As the running machine sees it.
    seen: Content,
    /// What lies between the two.
    unsafe_writes: VecDeque<Write>,
    writes: u64,
    /// The flush that is under way, and the one that waits for it and takes in everybody who comes meanwhile.
    flushes: VecDeque<Flush>,
    flush_ms: u64,
    is_failing: bool,
}

struct Flush {
    ends: Instant,
    /// The last write that it makes safe.
    upto: u64,
    waiters: Vec<Flushed>,
}

#[derive(Default, Clone)]
struct Content {
    entries: BTreeMap<u64, Vec<u8>>,
    values: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone)]
enum Write {
    Append(Vec<(u64, Vec<u8>)>),
    Truncate(u64),
    Purge(u64, Vec<u8>),
    Value(String, Vec<u8>),
}

impl Content {
    fn apply(&mut self, write: Write) {
        match write {
            Write::Append(entries) => self.entries.extend(entries),
            Write::Truncate(first) => drop(self.entries.split_off(&first)),
            Write::Purge(last, record) => {
                self.values.insert(META_PURGED.to_owned(), record);
                self.entries = self.entries.split_off(&last.saturating_add(1));
            }
            Write::Value(key, value) => drop(self.values.insert(key, value)),
        }
    }
}

impl Disk {
    pub(super) fn new(seed: u64, durability: Durability) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let flush_ms = [2, 10, 60][random.random_range(0..3)];
        let inner = Inner {
            random,
            durability,
            mount: 0,
            safe: Content::default(),
            seen: Content::default(),
            unsafe_writes: VecDeque::new(),
            writes: 0,
            flushes: VecDeque::new(),
            flush_ms,
            is_failing: false,
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// The disk as a machine that starts finds it.
    pub(super) fn mount(&self) -> Engine {
        let mut inner = self.lock();
        inner.mount += 1;
        inner.is_failing = false;
        Engine { disk: self.clone(), mount: inner.mount }
    }

    pub(super) fn crash(&self) {
        let mut inner = self.lock();
        inner.mount += 1;
        let most = inner.unsafe_writes.len();
        let survive = if most == 0 { 0 } else { inner.random.random_range(0..=most) };
        let survivors: Vec<_> = inner.unsafe_writes.drain(..).take(survive).collect();
        survivors.into_iter().for_each(|write| inner.persist(write));
        inner.seen = inner.safe.clone();
        inner.flushes.clear();
    }

    /// How many log entries it holds.
    pub(super) fn entries(&self) -> usize {
        self.lock().seen.entries.len()
    }

    /// The longest time of a flush.
    pub(super) fn set_flush_ms(&self, flush_ms: u64) {
        self.lock().flush_ms = flush_ms;
    }

    /// Every flush fails from now on, until the machine starts again.
    pub(super) fn fail(&self) {
        self.lock().is_failing = true;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn write(&mut self, write: Write) {
        self.seen.apply(write.clone());
        self.unsafe_writes.push_back(write);
        self.writes += 1;
    }

    fn persist(&mut self, write: Write) {
        let is_lost = self.durability == Durability::LosesVotes
            && matches!(&write, Write::Value(key, _) if key == crate::raft::META_VOTE);
        if !is_lost {
            self.safe.apply(write);
        }
    }

    /// Everything up to the write with this number is safe.
    fn flushed(&mut self, upto: u64) {
        let first = self.writes - self.unsafe_writes.len() as u64;
        for _ in first..upto {
            if let Some(write) = self.unsafe_writes.pop_front() {
                self.persist(write);
            }
        }
    }
}

/// A machine's view of its disk, for as long as it runs.
pub(super) struct Engine {
    disk: Disk,
    mount: u64,
}

impl Engine {
    fn inner(&self) -> Result<MutexGuard<'_, Inner>, LogError> {
        let inner = self.disk.lock();
        if inner.mount == self.mount { Ok(inner) } else { Err(closed()) }
    }
}

impl LogEngine for Engine {
    fn append(&self, entries: Vec<(u64, Vec<u8>)>) -> Result<(), LogError> {
        let mut inner = self.inner()?;
        let mut before = inner.seen.entries.last_key_value().map(|(index, _)| *index);
        for (index, _) in &entries {
            assert!(before.is_none_or(|before| *index == before + 1), "a hole in the log: {before:?}, then {index}");
            before = Some(*index);
        }
        inner.write(Write::Append(entries));
        Ok(())
    }

    fn truncate_from(&self, first: u64) -> Result<(), LogError> {
        self.inner()?.write(Write::Truncate(first));
        Ok(())
    }

    fn purge_to(&self, last: u64, record: Vec<u8>) -> Result<(), LogError> {
        self.inner()?.write(Write::Purge(last, record));
        Ok(())
    }

    fn read(&self, first: u64, end: u64) -> Result<Vec<(u64, Vec<u8>)>, LogError> {
        if first >= end {
            return Ok(Vec::new());
        }
        let inner = self.inner()?;
        Ok(inner.seen.entries.range(first..end).map(|(index, bytes)| (*index, bytes.clone())).collect())
    }

    fn last(&self) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        let inner = self.inner()?;
        Ok(inner.seen.entries.last_key_value().map(|(index, bytes)| (*index, bytes.clone())))
    }

    fn put_meta(&self, key: &str, value: Vec<u8>) -> Result<(), LogError> {
        self.inner()?.write(Write::Value(key.to_owned(), value));
        Ok(())
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, LogError> {
        Ok(self.inner()?.seen.values.get(key).cloned())
    }

    fn flush(&self, done: Flushed) {
        let Ok(mut inner) = self.inner() else { return done(Err(closed())) };
        if inner.is_failing {
            drop(inner);
            return done(Err(LogError::Io {
                what: "sync",
                path: PathBuf::from("simulated"),
                source: std::io::Error::other("the drive fails"),
            }));
        }
        let done = match inner.durability {
            Durability::AcknowledgesEarly => {
                drop(inner);
                done(Ok(()));
                inner = self.disk.lock();
                None
            }
            _ => Some(done),
        };
        let (upto, longest) = (inner.writes, inner.flush_ms);
        if inner.flushes.len() > 1
            && let Some(next) = inner.flushes.back_mut()
        {
            next.upto = upto;
            next.waiters.extend(done);
            return;
        }
        let takes = Duration::from_micros(inner.random.random_range(0..=longest * 1000));
        let ends = inner.flushes.back().map_or_else(Instant::now, |flush| flush.ends) + takes;
        inner.flushes.push_back(Flush { ends, upto, waiters: done.into_iter().collect() });
        drop(inner);
        let (disk, mount) = (self.disk.clone(), self.mount);
        tokio::spawn(async move {
            sleep_until(ends).await;
            let mut inner = disk.lock();
            if inner.mount != mount {
                return;
            }
            let Some(flush) = inner.flushes.pop_front() else { return };
            inner.flushed(flush.upto);
            drop(inner);
            flush.waiters.into_iter().for_each(|done| done(Ok(())));
        });
    }
}

fn closed() -> LogError {
    LogError::Closed { path: PathBuf::from("simulated") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indexes(engine: &Engine) -> Vec<u64> {
        engine.read(0, u64::MAX).unwrap().into_iter().map(|(index, _)| index).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_keeps_what_was_flushed_and_a_beginning_of_what_follows() {
        let mut kept = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let disk = Disk::new(seed, Durability::Kept);
            let engine = disk.mount();
            engine.append(vec![(1, vec![1]), (2, vec![2])]).unwrap();
            let (sender, receiver) = tokio::sync::oneshot::channel();
            engine.flush(Box::new(move |result| sender.send(result.is_ok()).unwrap()));
            assert!(receiver.await.unwrap());
            engine.append(vec![(3, vec![3])]).unwrap();
            engine.truncate_from(3).unwrap();
            engine.append(vec![(3, vec![4]), (4, vec![4])]).unwrap();
            disk.crash();
            assert!(engine.append(Vec::new()).is_err(), "a dead machine writes");
            kept.insert(indexes(&disk.mount()));
        }
        let expected = [vec![1, 2], vec![1, 2, 3], vec![1, 2, 3, 4]];
        assert_eq!(kept, expected.into());
    }
}
