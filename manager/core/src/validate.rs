//! Specs that a user submits: each refusal names the field, the value and what is accepted.
//!
//! Only what the spec itself says is checked here; rules between objects are [`crate::control`]'s and the state's.
