//! Stack files (Compose version 3, and the Compose specification without `version:`) to specs.
//!
//! Pure: the text, the environment and the content of env files come from the caller, specs with names still in them
//! go out. Every key is either acted on, stored, or named in a warning; a key that the file's version does not know is
//! an error with its line. Nothing here may ask a daemon or the file system.

mod check;
mod convert;
mod depends;
mod deploy;
mod error;
mod events;
pub(crate) mod export;
mod extends;
mod interpolate;
mod keys;
mod merge;
mod output;
mod ports;
mod scalar;
mod schema;
mod service;
mod volumes;
mod yaml;

use orch_model::{Kind, nanos, network::NetworkSpec, secret::TemplateDriver, service::ServiceSpec};

pub(crate) use error::ComposeError;

use crate::flags::{file_ref::NamedFile, network::NamedAttachment};

/// Says which stack an object belongs to.
pub(crate) const NAMESPACE_LABEL: &str = "com.docker.stack.namespace";
/// The image as the file names it.
pub(crate) const IMAGE_LABEL: &str = "com.docker.stack.image";

/// Parsed files; their meaning depends on the stack's name.
pub(crate) struct Document {
    roots: Vec<yaml::Node>,
    /// What follows a file's document without being another one: said only where nothing else is wrong.
    cut: Option<ComposeError>,
    source: error::Source,
    version: keys::Version,
    strict: bool,
    /// Variables are left as they are written.
    is_raw: bool,
}

/// What the file cannot say itself.
pub(crate) struct Surroundings<'a> {
    /// The stack's name.
    pub(crate) stack: &'a str,
    /// Folder that relative paths start from, absolute.
    pub(crate) dir: &'a str,
    pub(crate) variable: &'a dyn Fn(&str) -> Option<String>,
    /// Content of an env file, or of a file that another extends, by absolute path.
    pub(crate) read: &'a dyn Fn(&str) -> Result<String, String>,
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
    pub(crate) content: Content,
    /// The content is filled in for each task that gets it.
    pub(crate) template: Option<TemplateDriver>,
}

/// Where a secret's or config's content is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// In the cluster already.
    External,
    /// In the file of this absolute path.
    File(String),
    Text(String),
}

impl Document {
    /// Each file with its name, which is only for messages; later ones are laid over the first.
    /// With `strict`, what Docker's client refuses is refused.
    pub(crate) fn parse(files: &[(String, String)], strict: bool) -> Result<Self, ComposeError> {
        let mut source = error::Source::default();
        let mut roots = Vec::new();
        let (mut first, mut cut) = (None, None);
        for (name, text) in files {
            let file = source.add(name, text);
            let yaml::Parsed { root, cut: ended } = yaml::parse(&source, file)?;
            cut = cut.or(ended);
            let version = keys::version(&root, strict, &source)?;
            let agreed = *first.get_or_insert(version);
            if agreed != version {
                let message = format!(
                    "version mismatched between two composefiles : {} and {}; write the same in both",
                    keys::shown(agreed),
                    keys::shown(version)
                );
                return Err(source.error(root.place, message));
            }
            roots.push(root);
        }
        Ok(Self { roots, source, cut, version: first.unwrap_or(keys::MODERN), strict, is_raw: false })
    }

    /// The same with variables as they are written.
    pub(crate) fn without_variables(self) -> Self {
        Self { is_raw: true, ..self }
    }

    /// The stack's name according to the files.
    pub(crate) fn name(&self, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, ComposeError> {
        let Some(node) = self.roots.iter().rev().find_map(|root| root.get("name")) else { return Ok(None) };
        let text = node.text().unwrap_or_default();
        let variables = interpolate::Variables { lookup: variable, strict: self.strict };
        let name = interpolate::expand(text, variables, &mut std::collections::BTreeSet::new());
        name.map(Some).map_err(|reason| self.source.error(node.place, reason))
    }

    /// The stack's objects.
    pub(crate) fn resolve(self, around: &Surroundings<'_>) -> Result<Stack, ComposeError> {
        let loaded = self.load(around)?;
        let mut stack = convert::stack(&loaded.root, loaded.version, &loaded.source, around)?;
        stack.warnings.splice(0..0, loaded.warnings);
        Ok(stack)
    }

    /// The files as one document with every short form written out, and warnings.
    pub(crate) fn normalised(
        self,
        around: &Surroundings<'_>,
    ) -> Result<(serde_json::Value, Vec<String>), ComposeError> {
        let loaded = self.load(around)?;
        let mut document =
            output::Writer { reader: convert::Reader::new(&loaded.root, loaded.version, &loaded.source, around) }
                .document(&loaded.root)?;
        if let (Some(version), Some(document)) = (keys::written(loaded.version), document.as_object_mut()) {
            document.insert("version".into(), version.into());
        }
        Ok((document, loaded.warnings))
    }

    fn load(mut self, around: &Surroundings<'_>) -> Result<Loaded, ComposeError> {
        let mut warnings = Vec::new();
        let mut findings = Vec::new();
        for root in &mut self.roots {
            let variables = interpolate::Variables { lookup: around.variable, strict: self.strict };
            if !self.is_raw {
                warnings.extend(interpolate::document(root, &self.source, variables)?);
            }
            let checked = check::check(root, self.version, self.strict, &self.source);
            findings.extend(checked.findings);
            warnings.extend(checked.warnings);
        }
        if let Some(error) = ComposeError::of(&findings).or(self.cut.take()) {
            return Err(error);
        }
        let mut roots = std::mem::take(&mut self.roots).into_iter();
        let empty =
            yaml::Node { value: yaml::Yaml::Null, kind: scalar::ScalarKind::Text, place: error::Place::default() };
        let mut root = roots.next().unwrap_or(empty);
        let others = &mut extends::Others { source: &mut self.source, is_raw: self.is_raw, warnings: &mut warnings };
        root = extends::include(root, others, around)?;
        extends::resolve(&mut root, others, around)?;
        for over in roots {
            let mut over = extends::include(over, others, around)?;
            extends::resolve(&mut over, others, around)?;
            merge::Merger { source: others.source, as_docker: self.version != keys::MODERN }.merge(
                &mut root,
                over,
                schema::ROOT,
            );
        }
        Ok(Loaded { root, source: self.source, version: self.version, warnings })
    }
}

/// Checked files, laid over each other.
struct Loaded {
    root: yaml::Node,
    source: error::Source,
    version: keys::Version,
    warnings: Vec<String>,
}

#[cfg(test)]
mod against_docker;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod large;
#[cfg(test)]
mod tests;
