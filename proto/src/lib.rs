//! How Orch's vocabulary travels: the generated wire types, their conversion from and to `orch-model`, where daemons
//! find each other on a machine, and the mutual TLS between machines.
//!
//! Invariants: a wire type is turned into a model type at the edge of a daemon and nowhere else, so what the cores see
//! is valid; decoding refuses what it does not know and never panics.

pub mod ca;
pub mod code;
pub mod conv;
pub mod files;
pub mod format;
pub mod gossip;
pub mod keeper;
pub mod metrics;
pub mod passing;
pub mod paths;
pub mod pings;
pub mod report;
pub mod silence;
pub mod tls;
pub mod transport;
pub mod wire;
