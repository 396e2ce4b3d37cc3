//! What can go wrong with a container, in words for the operator.

use std::{io, path::PathBuf};

use super::{
    apparmor::AppArmorError, caps::UnknownCapability, seccomp::SeccompError, spec::SpecError, user::UserError,
};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The container or its program could not be started; `code` as a shell would return it (126, 127).
    #[error("{message}")]
    Start { message: String, code: Option<i32> },
    #[error("the task {0} has a container already")]
    Exists(String),
    #[error("the container has ended")]
    Ended,
    #[error("the container's shim does not answer: it is stopped, or its node is overloaded; `orch rm -f` kills both")]
    Silent,
    #[error(
        "the container's shim takes no more connections: too many commands are executed in the container, or followed"
    )]
    Crowded,
    #[error("bind source path does not exist: {0}")]
    NoBindSource(PathBuf),
    #[error(
        "{} is on the same mount as {}, which passes nothing on for a container with another's IPC namespace: bind it \
         without bind-propagation=shared, or run the container without --ipc container:NAME",
        .path.display(), .shims.display()
    )]
    NotShared { path: PathBuf, shims: PathBuf },
    #[error("the device {path} cannot be used")]
    Device { path: String, source: io::Error },
    #[error("{what} {path}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot start a container shim with {program}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("the container's shim answered {0:?}, which this version does not expect")]
    Protocol(String),
    #[error(transparent)]
    User(Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Invalid(Box<dyn std::error::Error + Send + Sync>),
}

impl RuntimeError {
    /// 126 or 127 when a program could not be started, as a shell would return it.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Start { code, .. } => *code,
            _ => None,
        }
    }
}

impl From<UserError> for RuntimeError {
    fn from(err: UserError) -> Self {
        Self::User(Box::new(err))
    }
}

macro_rules! invalid {
    ($($error:ty),*) => {$(
        impl From<$error> for RuntimeError {
            fn from(err: $error) -> Self {
                Self::Invalid(Box::new(err))
            }
        }
    )*};
}

invalid!(AppArmorError, SpecError, UnknownCapability, SeccompError);
