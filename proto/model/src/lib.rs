//! The vocabulary of Orch: identifiers, specs, states and objects, as plain data.
//!
//! Every crate that decides something sees only these types. This crate must not know how they travel (that is
//! `orch-proto`), how they are stored, or what time it is.
//!
//! Invariants: a *spec* is what the user asked for and no daemon rewrites it; *status* is what was observed; an address
//! is an [`std::net::IpAddr`] everywhere, so that IPv6 is never an afterthought.

pub mod assignment;
pub mod change;
pub mod cluster;
pub mod id;
pub mod image;
pub mod linux;
pub mod logging;
pub mod nanos;
pub mod network;
pub mod node;
pub mod object;
pub mod resolver;
pub mod secret;
pub mod service;
pub mod size;
pub mod task;
pub mod time;

pub use id::{ClusterId, ConfigId, ImageId, NetworkId, NodeId, ParseIdError, SecretId, ServiceId, SessionId, TaskId};
pub use object::{Annotations, Kind, Meta, Object, ObjectId, Version};
pub use time::{Duration, Timestamp};
