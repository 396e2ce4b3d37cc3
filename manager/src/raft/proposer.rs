//! The batcher in front of raft: many proposals share few entries, and each gets its own answer.
//!
//! At most two entries are in flight. While they are, proposals gather and go together into the next; see [`Pace`].

use std::{mem, sync::Arc, time::Duration};

use bytes::Bytes;
use orch_manager_core::ApplyError;
use orch_model::{Timestamp, change::Change};
use orch_proto::{conv::ToProto, wire};
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    clock::Clock,
    consensus::{Consensus, ConsensusError},
    types::Proposal,
};

const ENTRIES_IN_FLIGHT: usize = 2;
const BATCH_CHANGES: usize = 200;
const BATCH_BYTES: usize = 1024 * 1024;
/// One transaction may be larger than a batch, but must fit into a raft message.
const TRANSACTION_LIMIT_BYTES: usize = 16 * 1024 * 1024;
const QUEUE: usize = 1024;
/// So many proposals go at once, also while another entry is under way.
const WORTH_AN_ENTRY: usize = 64;
/// How long after its answer a busy author's next proposal may take to arrive.
const RETURN_TIME: Duration = Duration::from_millis(1);
/// How long a smaller batch waits for the entry that is under way.
const PATIENCE: Duration = Duration::from_millis(20);

/// Why a proposal was not committed.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    #[error(transparent)]
    Refused(#[from] ApplyError),
    #[error(transparent)]
    Consensus(#[from] Arc<ConsensusError>),
    #[error(
        "this change is too large: {bytes} bytes, and at most {TRANSACTION_LIMIT_BYTES} are possible; make it in smaller steps"
    )]
    TooLarge { bytes: usize },
    #[error("this manager is stopping")]
    Stopping,
}

/// Proposes transactions. Clones share the batches.
#[derive(Clone)]
pub struct Proposer {
    consensus: Consensus,
    clock: Clock,
    queue: mpsc::Sender<Pending>,
}

struct Pending {
    transaction: wire::Transaction,
    changes: usize,
    bytes: usize,
    reply: oneshot::Sender<Result<u64, ProposeError>>,
}

impl Proposer {
    /// Starts the batcher where raft runs: between the two nobody has to be woken.
    #[must_use]
    pub fn start(consensus: Consensus) -> Self {
        let (queue, pending) = mpsc::channel(QUEUE);
        let clock = Clock::default();
        let last_stamp = Timestamp::default();
        let batcher = Batcher { consensus: consensus.clone(), clock: clock.clone(), pending, last_stamp };
        consensus.runtime().spawn(batcher.run());
        Self { consensus, clock, queue }
    }

    /// Proposals that wait for their turn.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Commits these changes together, or none of them. Returns the raft index; the [`super::Store`] has the result.
    pub async fn propose(&self, changes: Vec<Change>) -> Result<u64, ProposeError> {
        if !self.consensus.is_leader() {
            return Err(ProposeError::Consensus(Arc::new(ConsensusError::NotLeader)));
        }
        let count = changes.len();
        let transaction = wire::Transaction { at: 0, changes: changes.iter().map(ToProto::to_proto).collect() };
        let bytes = transaction.encoded_len();
        if bytes > TRANSACTION_LIMIT_BYTES {
            return Err(ProposeError::TooLarge { bytes });
        }
        let (reply, answer) = oneshot::channel();
        let pending = Pending { transaction, changes: count, bytes, reply };
        crate::metrics::note_proposal();
        self.queue.send(pending).await.map_err(|_| ProposeError::Stopping)?;
        answer.await.map_err(|_| ProposeError::Stopping)?
    }

    /// The stamp that a transaction would get now: never earlier than the last one.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now(self.consensus.wall_clock(), self.consensus.store().view().state.last_stamp())
    }
}

/// Proposals on their way into one entry.
#[derive(Default)]
struct Batch {
    proposals: Vec<Pending>,
    changes: usize,
    bytes: usize,
    /// When its first proposal came.
    since: Option<Instant>,
    /// What did not fit any more, and opens the next one.
    carried: Option<Pending>,
}

impl Batch {
    fn opened_by(first: Option<Pending>, now: Instant) -> Self {
        let mut batch = Self::default();
        first.into_iter().for_each(|first| batch.push(first, now));
        batch
    }

    fn push(&mut self, next: Pending, now: Instant) {
        let (changes, bytes) = (self.changes + next.changes, self.bytes + next.bytes);
        if !self.proposals.is_empty() && (changes > BATCH_CHANGES || bytes > BATCH_BYTES) {
            self.carried = Some(next);
            return;
        }
        (self.changes, self.bytes) = (changes, bytes);
        self.since.get_or_insert(now);
        self.proposals.push(next);
    }

    fn is_full(&self) -> bool {
        self.carried.is_some()
    }
}

/// When the next entry is due. An entry costs three managers much the same whether one proposal is in it or many, so it
/// is worth a moment to have those together that come at the same time.
#[derive(Debug, Clone, Copy)]
struct Pace {
    entries_under_way: usize,
    /// Who had an answer a moment ago may have something new to say, and those who wait have: as many are expected.
    expected: usize,
    /// They come until then, or not at all.
    until: Instant,
}

impl Pace {
    fn ended(&mut self, answered: usize, waiting: usize, now: Instant) {
        self.entries_under_way = self.entries_under_way.saturating_sub(1);
        self.expected = answered + waiting;
        self.until = now + RETURN_TIME;
    }

    /// When a batch with proposals in it is to go; `None`: when an entry has ended.
    fn due(&self, batch: &Batch) -> Option<Instant> {
        let since = batch.since.filter(|_| self.entries_under_way < ENTRIES_IN_FLIGHT)?;
        let is_enough = |enough: usize| batch.is_full() || batch.proposals.len() >= enough;
        Some(match self.entries_under_way {
            0 if is_enough(self.expected.min(WORTH_AN_ENTRY)) => since,
            0 => self.until,
            _ if is_enough(WORTH_AN_ENTRY) => since,
            // Replication takes one entry after the other anyway, unless the way is long.
            _ => since + PATIENCE,
        })
    }
}

struct Batcher {
    consensus: Consensus,
    clock: Clock,
    pending: mpsc::Receiver<Pending>,
    last_stamp: Timestamp,
}

impl Batcher {
    async fn run(mut self) {
        let (ended, mut ends) = mpsc::channel(ENTRIES_IN_FLIGHT);
        let mut pace = Pace { entries_under_way: 0, expected: 0, until: Instant::now() };
        let mut batch = Batch::default();
        loop {
            let due = pace.due(&batch);
            if due.is_some_and(|due| due <= Instant::now()) {
                let next = Batch::opened_by(batch.carried.take(), Instant::now());
                self.submit(mem::replace(&mut batch, next).proposals, ended.clone());
                pace.entries_under_way += 1;
                continue;
            }
            tokio::select! {
                // In this order, so that a simulation goes the same way every time.
                biased;
                Some(answered) = ends.recv() => pace.ended(answered, batch.proposals.len(), Instant::now()),
                next = self.pending.recv(), if !batch.is_full() => match next {
                    Some(next) => self.gather(next, &mut batch),
                    // Whoever still waits is told by dropping them that this manager stops.
                    None => return,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    /// Whatever waits and still fits.
    fn gather(&mut self, first: Pending, batch: &mut Batch) {
        let now = Instant::now();
        batch.push(first, now);
        while !batch.is_full()
            && let Ok(next) = self.pending.try_recv()
        {
            batch.push(next, now);
        }
    }

    fn submit(&mut self, mut batch: Vec<Pending>, ended: mpsc::Sender<usize>) {
        let proposal = self.stamped(&mut batch);
        let consensus = self.consensus.clone();
        tokio::spawn(async move {
            let (outcome, count) = (consensus.propose(proposal).await, batch.len());
            answer(batch, outcome);
            // The batcher may have ended.
            let _ = ended.send(count).await;
        });
    }

    /// Moves the transactions out of `batch`, into an entry.
    fn stamped(&mut self, batch: &mut [Pending]) -> Proposal {
        let applied = self.consensus.store().view().state.last_stamp();
        self.last_stamp = self.clock.now(self.consensus.wall_clock(), applied.max(self.last_stamp));
        let at = self.last_stamp.unix_ms;
        let stamp = |p: &mut Pending| wire::Transaction { at, ..mem::take(&mut p.transaction) };
        let transactions = batch.iter_mut().map(stamp).collect();
        Proposal(Bytes::from(wire::Proposal { transactions }.encode_to_vec()))
    }
}

fn answer(batch: Vec<Pending>, outcome: Result<super::types::Applied, ConsensusError>) {
    match outcome {
        Ok(applied) => {
            debug_assert_eq!(batch.len(), applied.results.len());
            for (pending, result) in batch.into_iter().zip(applied.results) {
                // The author may have gone away.
                let _ = pending.reply.send(result.map(|()| applied.index).map_err(ProposeError::Refused));
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            for pending in batch {
                let _ = pending.reply.send(Err(ProposeError::Consensus(Arc::clone(&error))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(proposals: usize, since: Instant) -> Batch {
        let mut batch = Batch::default();
        for _ in 0..proposals {
            let (reply, _) = oneshot::channel();
            batch.push(Pending { transaction: wire::Transaction::default(), changes: 1, bytes: 600, reply }, since);
        }
        batch
    }

    #[test]
    fn an_entry_waits_for_those_who_come_together_and_for_nobody_else() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let check = |pace: &Pace, proposals: usize, expected: Option<Instant>| {
            assert_eq!(pace.due(&batch(proposals, ms(5))), expected, "{proposals} proposals, {pace:?}");
        };
        let mut pace = Pace { entries_under_way: 0, expected: 0, until: start };
        check(&pace, 0, None);
        check(&pace, 1, Some(ms(5)));
        pace.entries_under_way = 1;
        check(&pace, 3, Some(ms(5) + PATIENCE));
        check(&pace, WORTH_AN_ENTRY, Some(ms(5)));
        pace.entries_under_way = 2;
        check(&pace, 200, None);
        // One author alone never waits; of 16 that had their answers together, the first waits for the others.
        pace.entries_under_way = 1;
        pace.ended(1, 0, ms(4));
        check(&pace, 1, Some(ms(5)));
        pace.entries_under_way = 1;
        pace.ended(16, 0, ms(4));
        check(&pace, 15, Some(ms(4) + RETURN_TIME));
        check(&pace, 16, Some(ms(5)));
        // Of two groups that took turns, one waits for the other once, and they go on as one.
        pace.entries_under_way = 1;
        pace.ended(8, 8, ms(4));
        check(&pace, 8, Some(ms(4) + RETURN_TIME));
        pace.entries_under_way = 1;
        pace.ended(500, 0, ms(4));
        check(&pace, WORTH_AN_ENTRY, Some(ms(5)));
    }

    #[test]
    fn what_does_not_fit_opens_the_next() {
        let now = Instant::now();
        let mut full = batch(BATCH_CHANGES + 1, now);
        assert_eq!((full.proposals.len(), full.is_full()), (BATCH_CHANGES, true));
        let next = Batch::opened_by(full.carried.take(), now);
        assert_eq!((next.proposals.len(), next.changes, next.is_full()), (1, 1, false));
        // One that is larger than a batch goes alone.
        let (reply, _) = oneshot::channel();
        let large = Pending { transaction: wire::Transaction::default(), changes: 900, bytes: 2 * BATCH_BYTES, reply };
        assert!(!Batch::opened_by(Some(large), now).is_full());
    }
}
