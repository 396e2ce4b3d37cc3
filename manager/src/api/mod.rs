//! What the manager answers: the control API, the CA, and who may call what where.

mod access;
mod budget;
mod ca;
mod control;
mod filter;
mod forward;
mod gate;
mod info;
mod outgoing;
mod register;
mod rejoin;
mod spec;
pub mod status;
mod watch;

pub use access::Origin;
pub(crate) use access::calls;
pub use budget::Budget;
pub use ca::CaService;
pub(crate) use ca::availability;
pub use control::ControlService;
pub use forward::Forwarder;
pub use gate::GateLayer;
pub use register::Register;
