//! The model's types from and to their wire form.
//!
//! [`ToProto`] cannot fail; [`FromProto`] refuses what the model cannot hold and names the message and the field. Both
//! are also implemented for what fields are made of (identifiers, addresses, times, lists, maps), with the scalar or
//! collection that carries them as their wire form: `NodeId` is a string, `NodeRole` an i32, `Vec<Vip>` a list of
//! `wire::Vip`.
//!
//! Invariants: no wire input makes decoding panic; `from_proto(to_proto(x)) == x` for every value whose durations are
//! whole milliseconds.

mod assignment;
mod change;
mod cluster;
mod error;
mod network;
mod node;
mod object;
mod record;
mod scalar;
mod service;
mod task;

pub use error::{DecodeError, Problem};

/// Something that has a wire form.
pub trait ToProto {
    type Proto;

    fn to_proto(&self) -> Self::Proto;
}

/// Something that can be made from its wire form, when that is valid.
pub trait FromProto: Sized {
    type Proto;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError>;
}

/// Decodes a field that must be present.
pub fn required<T: FromProto>(
    proto: Option<T::Proto>,
    message_name: &'static str,
    field_name: &'static str,
) -> Result<T, DecodeError> {
    field(present(proto, message_name, field_name)?, message_name, field_name)
}

/// What prost made an `Option` (a message field, a oneof) although it must be there.
pub fn present<W>(proto: Option<W>, message_name: &'static str, field_name: &'static str) -> Result<W, DecodeError> {
    proto.ok_or_else(|| DecodeError::new(Problem::Missing).in_field(message_name, field_name))
}

/// Decodes a field whose absence is its empty value or `None`.
pub fn field<T: FromProto>(
    proto: T::Proto,
    message_name: &'static str,
    field_name: &'static str,
) -> Result<T, DecodeError> {
    T::from_proto(proto).map_err(|error| error.in_field(message_name, field_name))
}
