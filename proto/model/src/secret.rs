//! Secrets and configs: content that tasks find as files.

use crate::{Annotations, ConfigId, Meta, SecretId};

/// Less than 500 KiB, as with Docker.
pub const MAX_SECRET_BYTES: usize = 500 * 1024 - 1;
/// Less than 1000 KiB, as with Docker.
pub const MAX_CONFIG_BYTES: usize = 1000 * 1024 - 1;

/// What fills in the content of a secret or config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateDriver {
    /// Go's templates.
    Golang,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    pub id: SecretId,
    pub meta: Meta,
    pub annotations: Annotations,
    pub data: Vec<u8>,
    /// The content is filled in for each task that gets it.
    pub template: Option<TemplateDriver>,
    /// Goes once no task has it any more; its name is free.
    pub removing: bool,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("id", &self.id).field("annotations", &self.annotations).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub id: ConfigId,
    pub meta: Meta,
    pub annotations: Annotations,
    pub data: Vec<u8>,
    /// The content is filled in for each task that gets it.
    pub template: Option<TemplateDriver>,
    /// Goes once no task has it any more; its name is free.
    pub removing: bool,
}
