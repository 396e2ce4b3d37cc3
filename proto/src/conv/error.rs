//! Why a wire message was refused.

use std::fmt;

use orch_model::ParseIdError;

/// A wire message that the model cannot hold: `NodeSpec.role: unknown value 7`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct DecodeError {
    /// The innermost message and its field; `None` for a value decoded on its own.
    place: Option<(&'static str, &'static str)>,
    problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("missing")]
    Missing,
    #[error("unknown value {0}")]
    UnknownValue(i32),
    #[error("{value} is more than {max}")]
    TooLarge { value: u32, max: u32 },
    #[error(transparent)]
    Id(#[from] ParseIdError),
    #[error("{0:?} is not an IP address")]
    Address(String),
    #[error("{0:?} is not an IP network (ADDRESS/PREFIX)")]
    Network(String),
    #[error("{0} bytes are no key")]
    KeyLength(usize),
}

impl DecodeError {
    #[must_use]
    pub fn new(problem: Problem) -> Self {
        Self { place: None, problem }
    }

    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Says where it happened, unless something further in has said so.
    #[must_use]
    pub fn in_field(mut self, message: &'static str, field: &'static str) -> Self {
        self.place.get_or_insert((message, field));
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((message, field)) => write!(f, "{message}.{field}: {}", self.problem),
            None => write!(f, "{}", self.problem),
        }
    }
}
