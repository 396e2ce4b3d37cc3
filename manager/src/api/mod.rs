//! What the manager answers: the control API, the CA, and who may call what.

pub mod status;
