//! How a container's links say that its program has ended.
//!
//! Whoever notices first (the shim, or netd when the worker says so) takes them down without asking the network daemon's
//! owner of state, which may be in the middle of looking at what is there. A link that is only down was taken down by
//! somebody else and is put back; one that also has this flag stays down.

/// The flag beside "down" (`IFF_DEBUG`, which virtual links do not use), as in `struct ifreq` and in link messages.
pub const ENDED: u8 = 0x4;
