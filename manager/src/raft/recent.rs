//! The end of the log, in memory: followers and the state machine ask for entries a moment after they were appended.

use std::{collections::VecDeque, ops::Range};

use openraft::EntryPayload;

use super::types::Entry;

const ENTRIES: usize = 1024;
const BYTES: usize = 4 * 1024 * 1024;

/// Consecutive entries, up to the last one of the log; empty when that is not known.
#[derive(Default)]
pub(super) struct Recent {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Recent {
    pub(super) fn push(&mut self, entry: Entry) {
        if self.entries.back().is_some_and(|last| last.log_id.index + 1 != entry.log_id.index) {
            self.clear();
        }
        self.bytes += size(&entry);
        self.entries.push_back(entry);
        while self.entries.len() > ENTRIES || self.bytes > BYTES {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= size(&oldest);
        }
    }

    /// The log now ends before `first`.
    pub(super) fn truncate_from(&mut self, first: u64) {
        while self.entries.back().is_some_and(|last| last.log_id.index >= first) {
            let Some(cut) = self.entries.pop_back() else { return };
            self.bytes -= size(&cut);
        }
    }

    /// Nothing up to `last` is in the log any more.
    pub(super) fn purge_to(&mut self, last: u64) {
        while self.entries.front().is_some_and(|first| first.log_id.index <= last) {
            let Some(cut) = self.entries.pop_front() else { return };
            self.bytes -= size(&cut);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The entries of a range, at most `limit_bytes` (but at least one); `None` when the first of them is not here.
    pub(super) fn read(&self, range: &Range<u64>, limit_bytes: usize) -> Option<Vec<Entry>> {
        let front = self.entries.front()?.log_id.index;
        let skip = usize::try_from(range.start.checked_sub(front)?).ok()?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for entry in self.entries.iter().skip(skip).take_while(|entry| entry.log_id.index < range.end) {
            bytes += size(entry);
            if bytes > limit_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        (!entries.is_empty()).then_some(entries)
    }
}

fn size(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{LeaderId, LogId, Proposal};

    fn entry(index: u64, bytes: usize) -> Entry {
        let log_id = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index };
        Entry { log_id, payload: EntryPayload::Normal(Proposal(vec![0; bytes].into())) }
    }

    fn indexes(recent: &Recent, range: Range<u64>, limit: usize) -> Option<Vec<u64>> {
        recent.read(&range, limit).map(|entries| entries.iter().map(|e| e.log_id.index).collect())
    }

    #[test]
    fn it_has_the_end_of_the_log_and_says_what_it_has_not() {
        let mut recent = Recent::default();
        assert_eq!(indexes(&recent, 1..9, usize::MAX), None);
        (5..9).for_each(|index| recent.push(entry(index, 10)));
        assert_eq!(indexes(&recent, 4..9, usize::MAX), None);
        assert_eq!(indexes(&recent, 5..7, usize::MAX), Some(vec![5, 6]));
        assert_eq!(indexes(&recent, 6..u64::MAX, usize::MAX), Some(vec![6, 7, 8]));
        assert_eq!(indexes(&recent, 6..9, 15), Some(vec![6]));
        assert_eq!(indexes(&recent, 9..20, usize::MAX), None);
        recent.truncate_from(7);
        recent.push(entry(7, 10));
        assert_eq!(indexes(&recent, 5..20, usize::MAX), Some(vec![5, 6, 7]));
        // After a snapshot the log goes on somewhere else.
        recent.push(entry(30, 10));
        assert_eq!(indexes(&recent, 5..31, usize::MAX), None);
        assert_eq!(indexes(&recent, 30..31, usize::MAX), Some(vec![30]));
    }

    #[test]
    fn it_is_bounded() {
        let mut recent = Recent::default();
        (0..9).for_each(|index| recent.push(entry(index, BYTES / 4)));
        assert_eq!(indexes(&recent, 4..9, usize::MAX), None);
        assert_eq!(indexes(&recent, 5..9, usize::MAX), Some(vec![5, 6, 7, 8]));
        (9..9 + 2 * ENTRIES as u64).for_each(|index| recent.push(entry(index, 0)));
        assert_eq!(recent.entries.len(), ENTRIES);
    }
}
