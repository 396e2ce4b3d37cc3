//! What the network daemon decides, without doing any of it: which namespaces, links, routes, rules and names there
//! should be ([`plan`]), which steps lead there from what was observed ([`ops`]), and what a DNS query is answered with
//! ([`dns`]).
//!
//! This crate must not know netlink, sockets, files, clocks or async code. Equal input gives equal output, byte for byte.
//!
//! Invariants: carrying out `ops::steps(plan, observed)` leads to a state for which `steps` is empty; a ruleset only names
//! tables that start with `orch_`; nothing is removed that the daemon did not make.

pub mod counts;
pub mod desired;
pub mod dns;
pub mod flows;
pub mod gateway;
pub mod names;
pub mod ns;
pub mod ops;
pub mod plan;
pub mod resolv;
pub mod ruleset;
pub mod settings;
pub mod trace;
