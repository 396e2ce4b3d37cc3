//! What the supervisor answers when it does not do what it was asked, and how that becomes a gRPC status.

use orch_proto::{ca::CaError, tls::TlsError, transport::TransportError};
use tonic::{Code, Status};

/// Why init, join or leave did not happen.
#[derive(Debug, thiserror::Error)]
pub(super) enum NodeError {
    /// The node is not in the state that this needs.
    #[error("{0}")]
    Refused(String),
    /// An argument is wrong.
    #[error("{0}")]
    Invalid(String),
    /// A manager said no, in its own words.
    #[error("{0}")]
    Answer(String, Code),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

pub(super) type Result<T, E = NodeError> = std::result::Result<T, E>;

impl NodeError {
    /// A manager's refusal keeps its code and its sentence.
    pub(super) fn answered(status: &Status) -> Self {
        Self::Answer(status.message().to_owned(), status.code())
    }
}

impl From<NodeError> for Status {
    fn from(error: NodeError) -> Self {
        let code = match &error {
            NodeError::Refused(_) => Code::FailedPrecondition,
            NodeError::Invalid(_) => Code::InvalidArgument,
            NodeError::Answer(_, code) => *code,
            NodeError::Transport(_) => Code::Unavailable,
            NodeError::Tls(_) | NodeError::Ca(_) | NodeError::Failed(_) => Code::Internal,
        };
        Status::new(code, sentence(&error))
    }
}

/// The error with its causes, as people read it.
fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}
