//! The worker: brings this node's tasks to the state that managers want, and keeps them there without managers.

pub mod runtime;
pub mod shim;

mod config;
mod image;
mod store;
