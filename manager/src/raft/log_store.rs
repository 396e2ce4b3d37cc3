//! openraft's log storage on a [`LogEngine`], every record sealed.
//!
//! A log record is `term | leader | sealed payload`: who wrote it stays readable, because the seal is bound to it.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use orch_proto::wire;
use prost::Message;
use tokio::{sync::oneshot, time::Instant};

use super::{
    recent::Recent,
    types::{Entry, LeaderId, LogId, Member, Membership, TypeConfig, Vote},
    wire as convert,
};
use crate::log::{Aad, Flushed, Kind, LogEngine, META_PURGED, Sealer, key_of};

pub(crate) const META_VOTE: &str = "vote";
const META_COMMITTED: &str = "committed";
const NAMED: [(&str, Kind); 3] =
    [(META_VOTE, Kind::Vote), (META_COMMITTED, Kind::Committed), (META_PURGED, Kind::Purged)];
/// Bytes of entries read for one replication message (but at least one entry).
const READ_LIMIT_BYTES: usize = 2 * 1024 * 1024;
/// Entries read at a time while that limit is counted.
const READ_STEP: u64 = 16;
const RECORD_HEADER_BYTES: usize = 16;
/// Entries between two saves of how far the log is committed.
const COMMITTED_EVERY: u64 = 64;
/// When little happens, how far the log is committed is noted every time but in quick succession.
const COMMITTED_PAUSE: Duration = Duration::from_millis(50);

/// The log of this manager. Clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    own_id: u64,
    engine: Arc<dyn LogEngine>,
    sealer: Arc<Sealer>,
    recent: Arc<Mutex<Recent>>,
    /// Saved again from this entry on.
    next_committed: u64,
    note_again_at: Instant,
    /// Held while one of the named values is read and written again.
    naming: Arc<Mutex<()>>,
    /// Since something was purged, or since the start.
    written_bytes: Arc<AtomicUsize>,
}

impl LogStore {
    pub(crate) fn new(own_id: u64, engine: Arc<dyn LogEngine>, sealer: Arc<Sealer>) -> Self {
        Self {
            own_id,
            engine,
            sealer,
            recent: Arc::default(),
            next_committed: 0,
            note_again_at: Instant::now(),
            naming: Arc::default(),
            written_bytes: Arc::default(),
        }
    }

    /// About how much the log has grown by.
    pub(crate) fn written_bytes(&self) -> usize {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Whether raft never wrote anything here.
    pub(crate) fn is_pristine(&self) -> io::Result<bool> {
        let vote = self.engine.meta(META_VOTE).map_err(io::Error::other)?;
        Ok(vote.is_none() && self.engine.is_empty().map_err(io::Error::other)?)
    }

    /// Ends the log with a membership of this manager alone, on the disk when this returns. Raft must not be running:
    /// what it makes of the entry when it starts is that it needs nobody else to decide.
    pub(crate) async fn force_single(&mut self, raft_id: u64, member: Member) -> io::Result<()> {
        let Some(last) = self.get_log_state().await?.last_log_id else {
            return Err(io::Error::other("this manager has no raft log to go on with"));
        };
        let members = std::collections::BTreeMap::from([(raft_id, member)]);
        let alone = Membership::new(vec![std::collections::BTreeSet::from([raft_id])], members);
        let log_id = LogId { leader_id: last.leader_id, index: last.index + 1 };
        let entry = Entry { log_id, payload: EntryPayload::Membership(alone.map_err(io::Error::other)?) };
        let record = self.seal_entry(&entry)?;
        self.engine.append(vec![record]).map_err(io::Error::other)?;
        self.flushed().await
    }

    fn seal_entry(&self, entry: &Entry) -> io::Result<(u64, Vec<u8>)> {
        let LogId { leader_id, index } = entry.log_id;
        let plain = wire::Entry { id: None, payload: Some(convert::payload(entry)) }.encode_to_vec();
        let place = Aad { kind: Kind::Entry, index, term: leader_id.term };
        let sealed = self.sealer.seal(place, &plain).map_err(io::Error::other)?;
        let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + sealed.len());
        record.extend_from_slice(&leader_id.term.to_be_bytes());
        record.extend_from_slice(&leader_id.node_id.to_be_bytes());
        record.extend_from_slice(&sealed);
        Ok((index, record))
    }

    fn open_entry(&self, index: u64, record: &[u8]) -> io::Result<Entry> {
        let (log_id, sealed) = split_record(index, record)?;
        let place = Aad { kind: Kind::Entry, index, term: log_id.leader_id.term };
        let plain = self.sealer.open(place, sealed).map_err(|e| unreadable(index, &e))?;
        let entry = wire::Entry::decode(plain.as_slice()).map_err(|e| unreadable(index, &e))?;
        convert::entry_with(log_id, entry.payload).map_err(|e| unreadable(index, &e))
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_entries(&self, first: u64, end: u64) -> io::Result<Vec<Entry>> {
        if let Some(entries) = self.recent().read(&(first..end), usize::MAX) {
            return Ok(entries);
        }
        let records = self.engine.read(first, end).map_err(io::Error::other)?;
        records.iter().map(|(index, record)| self.open_entry(*index, record)).collect()
    }

    /// Seals the named values anew that are sealed with an old key; on the disk when this returns.
    pub(crate) async fn reseal(&self) -> io::Result<()> {
        for (name, kind) in NAMED {
            let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(record) = self.engine.meta(name).map_err(io::Error::other)? else { continue };
            if key_of(&record).map_err(io::Error::other)? != self.sealer.current_key() {
                let plain = self.sealer.open(Aad::single(kind), &record).map_err(io::Error::other)?;
                let sealed = self.sealer.seal(Aad::single(kind), &plain).map_err(io::Error::other)?;
                self.engine.put_meta(name, sealed).map_err(io::Error::other)?;
            }
        }
        self.flushed().await
    }

    /// The keys that are needed to read the log. Entries are written in order, so that the first one has the oldest key;
    /// what was purged must not come back, so it is off the disk when this returns.
    pub(crate) async fn keys_in_use(&self) -> io::Result<BTreeSet<u32>> {
        let mut keys = BTreeSet::new();
        for (name, _) in NAMED {
            if let Some(record) = self.engine.meta(name).map_err(io::Error::other)? {
                keys.insert(key_of(&record).map_err(io::Error::other)?);
            }
        }
        let first = self.purged()?.map_or(0, |id| id.index + 1);
        // A log that was never purged begins with 0 or 1.
        for (index, record) in self.engine.read(first, first + 2).map_err(io::Error::other)?.iter().take(1) {
            let (_, sealed) = split_record(*index, record)?;
            keys.insert(key_of(sealed).map_err(io::Error::other)?);
        }
        self.flushed().await?;
        Ok(keys)
    }

    fn put_sealed(&self, key: &str, kind: Kind, message: &impl Message) -> io::Result<()> {
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let sealed = self.sealer.seal(Aad::single(kind), &message.encode_to_vec()).map_err(io::Error::other)?;
        self.engine.put_meta(key, sealed).map_err(io::Error::other)
    }

    fn get_sealed<M: Message + Default>(&self, key: &str, kind: Kind) -> io::Result<Option<M>> {
        let Some(record) = self.engine.meta(key).map_err(io::Error::other)? else { return Ok(None) };
        let plain = self.sealer.open(Aad::single(kind), &record).map_err(io::Error::other)?;
        M::decode(plain.as_slice()).map(Some).map_err(io::Error::other)
    }

    async fn flushed(&self) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.engine.flush(Box::new(move |result| {
            // The waiter may have been cancelled.
            let _ = sender.send(result);
        }));
        receiver.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    fn purged(&self) -> io::Result<Option<LogId>> {
        let stored: Option<wire::LogId> = self.get_sealed(META_PURGED, Kind::Purged)?;
        stored.map(|id| convert::log_id_from(id).map_err(io::Error::other)).transpose()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read_entries(first, end)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        if let Some(entries) = self.recent().read(&(start..end), READ_LIMIT_BYTES) {
            return Ok(entries);
        }
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut next = start;
        while next < end && bytes < READ_LIMIT_BYTES {
            let stop = end.min(next.saturating_add(READ_STEP));
            let records = self.engine.read(next, stop).map_err(io::Error::other)?;
            if records.is_empty() {
                break;
            }
            for (index, record) in &records {
                bytes += record.len();
                if bytes > READ_LIMIT_BYTES && !entries.is_empty() {
                    return Ok(entries);
                }
                entries.push(self.open_entry(*index, record)?);
            }
            next = stop;
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let stored: Option<wire::RaftVote> = self.get_sealed(META_VOTE, Kind::Vote)?;
        stored.map(|vote| convert::vote_from(vote).map_err(io::Error::other)).transpose()
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged = self.purged()?;
        let last = self.engine.last().map_err(io::Error::other)?;
        let last = last.map(|(index, record)| split_record(index, &record).map(|(id, _)| id)).transpose()?;
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.put_sealed(META_VOTE, Kind::Vote, &convert::vote(vote))?;
        self.flushed().await
    }

    /// Not flushed, and under load not every time: what a manager that starts without a quorum can still show.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let now = Instant::now();
        let is_due = |id: &LogId| id.index >= self.next_committed || now >= self.note_again_at;
        match committed.filter(is_due) {
            Some(id) => {
                self.note_again_at = now + COMMITTED_PAUSE;
                self.next_committed = id.index + COMMITTED_EVERY;
                self.put_sealed(META_COMMITTED, Kind::Committed, &convert::log_id(&id))
            }
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let stored: Option<wire::LogId> = self.get_sealed(META_COMMITTED, Kind::Committed)?;
        let committed = stored.map(|id| convert::log_id_from(id).map_err(io::Error::other)).transpose()?;
        // It may have reached the disk before the entries did.
        let last = self.get_log_state().await?.last_log_id;
        Ok(committed.min(last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let records = entries.iter().map(|e| self.seal_entry(e)).collect::<io::Result<Vec<_>>>()?;
        self.written_bytes.fetch_add(records.iter().map(|(_, record)| record.len()).sum(), Ordering::Relaxed);
        self.engine.append(records).map_err(io::Error::other)?;
        // A leader sends its entries to the others while its own disk works. A follower can only answer when its disk has
        // them.
        let is_follower = entries.last().is_some_and(|last| last.log_id.leader_id.node_id != self.own_id);
        {
            let mut recent = self.recent();
            entries.into_iter().for_each(|entry| recent.push(entry));
        }
        let done: Flushed = Box::new(move |result| callback.io_completed(result.map_err(io::Error::other)));
        if is_follower {
            self.engine.flush_here(done);
        } else {
            self.engine.flush(done);
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let first = last_log_id.map_or(0, |id| id.index.saturating_add(1));
        self.recent().truncate_from(first);
        self.engine.truncate_from(first).map_err(io::Error::other)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.recent().purge_to(log_id.index);
        self.written_bytes.store(0, Ordering::Relaxed);
        let record = convert::log_id(&log_id).encode_to_vec();
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let sealed = self.sealer.seal(Aad::single(Kind::Purged), &record).map_err(io::Error::other)?;
        self.engine.purge_to(log_id.index, sealed).map_err(io::Error::other)
    }
}

fn split_record(index: u64, record: &[u8]) -> io::Result<(LogId, &[u8])> {
    let number = |at: usize| record.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
    match (number(0), number(8), record.get(RECORD_HEADER_BYTES..)) {
        (Some(term), Some(node_id), Some(sealed)) => {
            Ok((LogId { leader_id: LeaderId { term, node_id }, index }, sealed))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("raft log entry {index} is too short"))),
    }
}

fn unreadable(index: u64, error: &dyn std::error::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("raft log entry {index} cannot be read: {error}"))
}
