//! The deciding half of the managers: what should be done, given the cluster's state and the time.
//!
//! This crate must not know tokio, clocks, the environment, randomness, storage or the wire. Every function here takes a
//! [`state::State`], a time and a source of identifiers, and returns what it wants changed; the `orch-manager` crate
//! commits it. So a manager that takes over decides the same from the same state: nothing is remembered outside it.

pub mod allocator;
pub mod bootstrap;
pub mod constraint;
pub mod control;
pub mod decision;
pub mod dispatch;
pub mod drain;
pub mod encryption;
pub mod features;
pub mod image_name;
pub mod liveness;
pub mod orchestrator;
pub mod plan;
pub mod rebalance;
pub mod resolve;
pub mod roles;
pub mod rotation;
pub mod scheduler;
pub mod state;
pub mod validate;
pub mod volume;

pub use decision::{Decision, Ids};
pub use state::{ApplyError, Event, State};
