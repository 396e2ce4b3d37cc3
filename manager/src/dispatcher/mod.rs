//! The leader's side of the agents: sessions, assignments, reports.
//!
//! All of it belongs to one [`Reign`]. When that ends, every stream ends with a pointer to the new leader, and agents
//! register there.

mod assigner;
mod containers;
mod grants;
mod guide;
mod reign;
mod service;
mod sessions;

pub use reign::Reign;
pub use service::DispatcherService;
