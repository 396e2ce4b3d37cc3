//! The manager daemon: consensus, the replicated state, the leader's loop, the dispatcher, the CA and the API.
//!
//! It decides nothing itself: `orch-manager-core` does, from the state alone. This crate commits decisions, carries
//! them to nodes and answers people. Crash-only: killed at any instant, it reads its disk and carries on.

pub mod api;
pub mod log;
pub mod raft;
