//! Stack files (Compose version 3) to specs.
//!
//! Pure: the text, the environment and the content of env files come from the caller, specs with names still in them
//! go out. Every key is either acted on, stored, or named in a warning; a key that the file's version does not know is
//! an error with its line. Nothing here may ask a daemon or the file system.

mod convert;
mod deploy;
mod error;
mod interpolate;
mod keys;
mod service;
mod yaml;

use orch_model::{Kind, network::NetworkSpec, service::ServiceSpec};

pub(crate) use error::ComposeError;

use crate::flags::{file_ref::NamedFile, network::NamedAttachment};

/// Says which stack an object belongs to.
pub(crate) const NAMESPACE_LABEL: &str = "com.docker.stack.namespace";
/// The image as the file names it.
pub(crate) const IMAGE_LABEL: &str = "com.docker.stack.image";

/// A parsed file; its meaning depends on the stack's name.
pub(crate) struct Document {
    root: yaml::Node,
    source: error::Source,
    version: keys::Version,
}

/// What the file cannot say itself.
pub(crate) struct Surroundings<'a> {
    /// The stack's name.
    pub(crate) stack: &'a str,
    /// Folder that relative paths start from, absolute.
    pub(crate) dir: &'a str,
    pub(crate) variable: &'a dyn Fn(&str) -> Option<String>,
    /// Content of an env file by absolute path.
    pub(crate) env_file: &'a dyn Fn(&str) -> Result<String, String>,
}

#[derive(Debug, Default)]
pub(crate) struct Stack {
    pub(crate) services: Vec<StackService>,
    /// Only those that a service uses.
    pub(crate) networks: Vec<StackNetwork>,
    pub(crate) data: Vec<StackData>,
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct StackService {
    pub(crate) spec: ServiceSpec,
    pub(crate) networks: Vec<NamedAttachment>,
    pub(crate) secrets: Vec<NamedFile>,
    pub(crate) configs: Vec<NamedFile>,
}

#[derive(Debug)]
pub(crate) struct StackNetwork {
    pub(crate) external: bool,
    pub(crate) spec: NetworkSpec,
}

/// A secret or config of the file.
#[derive(Debug)]
pub(crate) struct StackData {
    pub(crate) kind: Kind,
    pub(crate) annotations: orch_model::Annotations,
    /// Absolute path of the content; `None`: it must be there already.
    pub(crate) file: Option<String>,
}

impl Document {
    /// `file` is only for messages.
    pub(crate) fn parse(text: &str, file: &str) -> Result<Self, ComposeError> {
        let source = error::Source::new(file, text);
        let root = yaml::parse(&source)?;
        let version = keys::version(&root, &source)?;
        Ok(Self { root, source, version })
    }

    /// The stack's name according to the file.
    pub(crate) fn name(&self) -> Option<&str> {
        self.root.get("name").and_then(|node| node.text())
    }

    pub(crate) fn resolve(mut self, around: &Surroundings<'_>) -> Result<Stack, ComposeError> {
        let warnings = interpolate::document(&mut self.root, &self.source, around.variable)?;
        let mut stack = convert::stack(&self.root, self.version, &self.source, around)?;
        stack.warnings.splice(0..0, warnings);
        Ok(stack)
    }
}

#[cfg(test)]
mod tests;
