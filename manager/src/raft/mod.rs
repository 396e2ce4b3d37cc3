//! Consensus between managers: the only place that knows openraft.
//!
//! The rest of the manager sees [`Consensus`] (who leads, propose, read safely, members), [`Proposer`] (batched
//! proposals with a result for each transaction) and [`Store`] (the state and its changes). Raft runs on a runtime of
//! its own, so that a busy API cannot delay a heartbeat.

mod blocking;
mod clock;
mod commits;
mod consensus;
mod leader_line;
mod log_store;
mod machine;
mod network;
mod proposer;
mod recent;
mod service;
mod snapshot;
mod store;
mod types;
mod wire;

#[cfg(test)]
mod tests;

pub use commits::Commits;
pub(crate) use consensus::ASK_AROUND_AFTER;
pub use consensus::{Compaction, Consensus, ConsensusError, Leadership, Settings, WallClock};
#[cfg(test)]
pub(crate) use log_store::META_VOTE;
pub use network::{Broken, Dial, Link, MESSAGE_LIMIT_BYTES, TlsDial};
pub use proposer::{ProposeError, Proposer};
pub use service::RaftService;
pub use store::{Commit, Committed, Store, View};
pub use types::Member;
