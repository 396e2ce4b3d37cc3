//! What the supervisor answers when it does not do what it was asked, and how that becomes a gRPC status.

use orch_proto::{ca::CaError, report::chain, tls::TlsError, transport::TransportError};
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
    #[error("{}", .0.message())]
    Answer(Box<Status>),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Ca(#[from] CaError),
    /// What was begun takes longer than anybody waits for it, and goes on.
    #[error("{0}")]
    Late(String),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

pub(super) type Result<T, E = NodeError> = std::result::Result<T, E>;

impl NodeError {
    /// A manager's refusal keeps its codes and its sentence.
    pub(super) fn answered(status: Status) -> Self {
        Self::Answer(Box::new(status))
    }
}

impl From<NodeError> for Status {
    fn from(error: NodeError) -> Self {
        let code = match error {
            NodeError::Answer(status) => return *status,
            NodeError::Refused(_) => Code::FailedPrecondition,
            NodeError::Invalid(_) => Code::InvalidArgument,
            NodeError::Transport(_) => Code::Unavailable,
            NodeError::Tls(_) | NodeError::Ca(_) | NodeError::Late(_) | NodeError::Failed(_) => Code::Internal,
        };
        Status::new(code, chain(&error))
    }
}
