//! The batcher in front of raft: many proposals share few entries, and each gets its own answer.
//!
//! At most two entries are in flight. While they are, proposals gather and go together into the next.

use std::{mem, sync::Arc};

use bytes::Bytes;
use orch_manager_core::ApplyError;
use orch_model::{Timestamp, change::Change};
use orch_proto::{conv::ToProto, wire};
use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    consensus::{Consensus, ConsensusError},
    types::Proposal,
};

const ENTRIES_IN_FLIGHT: usize = 2;
const BATCH_CHANGES: usize = 200;
const BATCH_BYTES: usize = 1024 * 1024;
/// One transaction may be larger than a batch, but must fit into a raft message.
const TRANSACTION_LIMIT_BYTES: usize = 16 * 1024 * 1024;
const QUEUE: usize = 1024;

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
        let batcher = Batcher { consensus: consensus.clone(), pending, last_stamp: Timestamp::default() };
        consensus.runtime().spawn(batcher.run());
        Self { consensus, queue }
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
        self.consensus.wall_clock().max(self.consensus.store().view().state.last_stamp())
    }
}

struct Batcher {
    consensus: Consensus,
    pending: mpsc::Receiver<Pending>,
    last_stamp: Timestamp,
}

impl Batcher {
    async fn run(mut self) {
        let in_flight = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT));
        let mut carried = None;
        loop {
            let first = match carried.take() {
                Some(pending) => pending,
                None => match self.pending.recv().await {
                    Some(pending) => pending,
                    None => return,
                },
            };
            // Closed only by dropping, which this loop never does.
            let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { return };
            let mut batch = self.gather(first, &mut carried);
            let proposal = self.stamped(&mut batch);
            let consensus = self.consensus.clone();
            tokio::spawn(async move {
                let outcome = consensus.propose(proposal).await;
                drop(permit);
                answer(batch, outcome);
            });
        }
    }

    /// Whatever waits and still fits. What does not fit opens the next batch.
    fn gather(&mut self, first: Pending, carried: &mut Option<Pending>) -> Vec<Pending> {
        let (mut changes, mut bytes) = (first.changes, first.bytes);
        let mut batch = vec![first];
        while let Ok(next) = self.pending.try_recv() {
            changes += next.changes;
            bytes += next.bytes;
            if changes > BATCH_CHANGES || bytes > BATCH_BYTES {
                *carried = Some(next);
                break;
            }
            batch.push(next);
        }
        batch
    }

    /// Moves the transactions out of `batch`, into an entry.
    fn stamped(&mut self, batch: &mut [Pending]) -> Proposal {
        let applied = self.consensus.store().view().state.last_stamp();
        self.last_stamp = self.last_stamp.max(applied).max(self.consensus.wall_clock());
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
