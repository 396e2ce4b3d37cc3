//! Consensus between managers: the only place that knows openraft.
//!
//! The rest of the manager sees [`Consensus`] (who leads, propose, read safely, members), [`Proposer`] (batched
//! proposals with a result for each transaction) and [`Store`] (the state and its changes). Raft runs on a runtime of
//! its own, so that a busy API cannot delay a heartbeat.

mod consensus;
mod log_store;
mod machine;
mod network;
mod proposer;
mod service;
mod snapshot;
mod store;
mod types;
mod wire;

#[cfg(test)]
mod tests;

pub use consensus::{Consensus, ConsensusError, Leadership, Settings};
pub use network::MESSAGE_LIMIT_BYTES;
pub use proposer::{ProposeError, Proposer};
pub use service::RaftService;
pub use store::{Commit, Committed, Store, View};
pub use types::Member;
