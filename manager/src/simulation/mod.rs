//! Managers in a simulated world: the real log store, state machine, consensus, batcher, raft service and reads, on
//! virtual time, a network and disks that fail as a seed says.
//!
//! A seed decides everything: machines, clients, faults, randomness. Two runs of a seed are the same, so a violation can
//! be looked at as often as one likes: `ORCH_SIM_SEED=SEED cargo nextest run -p orch-manager simulation::seeds`.

mod disk;
mod host;
mod linear;
mod nemesis;
mod net;
mod ordered_watch;
mod record;
mod runtime;
mod scenarios;
mod seeds;
mod world;

pub(crate) use runtime::{Runtime, disk_pause};
