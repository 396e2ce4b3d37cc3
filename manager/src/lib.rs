//! The manager daemon: consensus, the replicated state, the leader's loop, the dispatcher, the CA and the API.
//!
//! It decides nothing itself: `orch-manager-core` does, from the state alone. This crate commits decisions, carries
//! them to nodes and answers people. Crash-only: killed at any instant, it reads its disk and carries on.
//!
//! `daemon` puts it together: `log` (bytes on disk) under `raft` (the only user of openraft), `leader` (the loop that
//! commits decisions, and what lives as long as a reign) with `dispatcher` (agents) and `streams` (logs, exec), `api`
//! (control API, CA, access) in front, `membership` and `home` at the start.

mod ailing;
pub mod api;
mod authority;
mod autolock;
pub mod daemon;
pub mod dispatcher;
pub mod home;
mod lanes;
pub mod leader;
pub mod log;
pub mod membership;
mod memory;
mod metrics;
pub mod raft;
mod random;
mod roles;
#[cfg(test)]
mod simulation;
pub mod streams;

pub use daemon::{Config, run};
