//! Refusals with a stable code: the shell turns the code into a gRPC status and shows the text as it is.

use crate::{resolve::ResolveError, state::ApplyError, validate::SpecError};

/// What kind of refusal it is. Stable: programs branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    NotFound,
    AlreadyExists,
    InvalidArgument,
    FailedPrecondition,
    /// The object changed since the caller read it; reading again and repeating may help.
    Aborted,
}

/// Why a request is refused, in a sentence for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ControlError {
    pub code: Code,
    pub text: String,
}

impl ControlError {
    #[must_use]
    pub fn not_found(text: impl Into<String>) -> Self {
        Self { code: Code::NotFound, text: text.into() }
    }

    #[must_use]
    pub fn exists(text: impl Into<String>) -> Self {
        Self { code: Code::AlreadyExists, text: text.into() }
    }

    #[must_use]
    pub fn invalid(text: impl Into<String>) -> Self {
        Self { code: Code::InvalidArgument, text: text.into() }
    }

    #[must_use]
    pub fn precondition(text: impl Into<String>) -> Self {
        Self { code: Code::FailedPrecondition, text: text.into() }
    }

    #[must_use]
    pub fn aborted(text: impl Into<String>) -> Self {
        Self { code: Code::Aborted, text: text.into() }
    }
}

impl From<SpecError> for ControlError {
    fn from(error: SpecError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<ResolveError> for ControlError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::NotFound { .. } => Self::not_found(error.to_string()),
            ResolveError::Ambiguous { .. } => Self::invalid(error.to_string()),
        }
    }
}

impl From<ApplyError> for ControlError {
    fn from(error: ApplyError) -> Self {
        let code = match &error {
            ApplyError::Missing(_) => Code::NotFound,
            ApplyError::Exists(_) | ApplyError::NameTaken { .. } => Code::AlreadyExists,
            ApplyError::PortTaken { .. } => Code::InvalidArgument,
            ApplyError::Stale { .. }
            | ApplyError::VniTaken { .. }
            | ApplyError::AddressTaken { .. }
            | ApplyError::IndexTaken { .. }
            | ApplyError::SlotTaken { .. } => Code::Aborted,
            ApplyError::AnotherCluster
            | ApplyError::Dangling { .. }
            | ApplyError::InUse { .. }
            | ApplyError::Permanent(_)
            | ApplyError::TooMany { .. }
            | ApplyError::TooManyOnNode { .. }
            | ApplyError::TooManyTasks { .. }
            | ApplyError::TooMuchContent { .. }
            | ApplyError::Backwards { .. } => Code::FailedPrecondition,
        };
        Self { code, text: error.to_string() }
    }
}
