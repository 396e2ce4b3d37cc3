//! Specs that a user submits: each refusal names the field, the value and what is accepted.
//!
//! Only what the spec itself says is checked here; rules between objects are [`crate::control`]'s and the state's.
//! Where Docker has words for a refusal, they are used: people search for them.

mod cluster;
mod container;
mod network;
mod service;

use std::collections::BTreeMap;

use orch_model::{
    Annotations,
    node::NodeSpec,
    secret::{MAX_CONFIG_BYTES, MAX_SECRET_BYTES, TemplateDriver},
    service::{MAX_WEIGHT, WEIGHT_LABEL},
};

use orch_template::files;

use crate::dispatch;

pub use cluster::cluster_spec;
pub use network::network_spec;
pub use service::service_spec;

/// Longest name of a service: a DNS label.
const MAX_SERVICE_NAME: usize = 63;
/// Longest name of a secret, config or network.
const MAX_NAME: usize = 64;
/// Labels together, in bytes.
const MAX_LABELS_BYTES: usize = 64 * 1024;

/// A spec that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Names the field, the value and the accepted form.
    #[error("{field} {value:?} is not valid: {expected}")]
    Field { field: &'static str, value: String, expected: String },
    /// A sentence that says it all.
    #[error("{0}")]
    Rule(String),
    #[error(transparent)]
    Constraint(#[from] crate::constraint::ConstraintError),
    #[error(transparent)]
    Image(#[from] crate::image_name::ImageNameError),
}

/// Checks a secret.
///
/// # Errors
/// See [`SpecError`].
pub fn secret(annotations: &Annotations, data: &[u8], template: Option<TemplateDriver>) -> Result<(), SpecError> {
    object_name("secret name", &annotations.name)?;
    labels(annotations)?;
    content("secret", data, MAX_SECRET_BYTES)?;
    file_template("secret", data, template)
}

/// Checks a config.
///
/// # Errors
/// See [`SpecError`].
pub fn config(annotations: &Annotations, data: &[u8], template: Option<TemplateDriver>) -> Result<(), SpecError> {
    object_name("config name", &annotations.name)?;
    labels(annotations)?;
    content("config", data, MAX_CONFIG_BYTES)?;
    file_template("config", data, template)
}

/// Checks what the operator wants of a node. Labels that it has already are left: such a node could not be drained any
/// more.
///
/// # Errors
/// See [`SpecError`].
pub fn node_spec(spec: &NodeSpec, stored: &NodeSpec) -> Result<(), SpecError> {
    if !spec.annotations.name.is_empty() {
        object_name("node name", &spec.annotations.name)?;
    }
    let (labels, stored) = (&spec.annotations.labels, &stored.annotations.labels);
    let weight = labels.get(WEIGHT_LABEL).filter(|text| stored.get(WEIGHT_LABEL) != Some(text));
    if let Some(text) = weight.filter(|text| dispatch::weight(text).is_none()) {
        return Err(field(
            "label orch.balance.weight",
            text,
            format!("expected a whole number from 0 to {MAX_WEIGHT}"),
        ));
    }
    label_names("label", labels.keys().filter(|name| !stored.contains_key(*name)))?;
    if labels == stored { Ok(()) } else { labels_fit(labels) }
}

fn content(what: &str, data: &[u8], limit: usize) -> Result<(), SpecError> {
    if data.is_empty() || data.len() > limit {
        return Err(SpecError::Rule(format!(
            "{what} data has {} bytes: it must be larger than 0 and at most {} bytes",
            data.len(),
            limit
        )));
    }
    Ok(())
}

/// What could never be filled in is refused before it is stored.
fn file_template(what: &str, data: &[u8], template: Option<TemplateDriver>) -> Result<(), SpecError> {
    let Some(TemplateDriver::Golang) = template else { return Ok(()) };
    let text = std::str::from_utf8(data)
        .map_err(|_| SpecError::Rule(format!("{what} data is not text: leave out the template driver")))?;
    files::check(text).map_err(|error| SpecError::Rule(format!("{what} data: {error}")))
}

fn field(field: &'static str, value: impl ToString, expected: impl Into<String>) -> SpecError {
    SpecError::Field { field, value: value.to_string(), expected: expected.into() }
}

fn service_name(name: &str) -> Result<(), SpecError> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.len() > MAX_SERVICE_NAME || !has_form(name, inner) {
        return Err(field(
            "service name",
            name,
            "name must be valid as a DNS name component: at most 63 letters, digits, '-' and '_', with a letter or \
             digit at both ends",
        ));
    }
    Ok(())
}

fn object_name(what: &'static str, name: &str) -> Result<(), SpecError> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.len() > MAX_NAME || !has_form(name, inner) {
        return Err(field(
            what,
            name,
            "only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
        ));
    }
    Ok(())
}

fn has_form(name: &str, inner: impl Fn(u8) -> bool) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    edge(name.bytes().next()) && edge(name.bytes().last()) && name.bytes().all(inner)
}

/// What could not be named in a filter or a constraint is no label.
fn label_names<'a>(what: &'static str, mut names: impl Iterator<Item = &'a String>) -> Result<(), SpecError> {
    let is_name = |name: &str| !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control());
    match names.find(|name| !is_name(name)) {
        Some(name) => Err(field(what, name, "a label needs a name without spaces: NAME or NAME=VALUE")),
        None => Ok(()),
    }
}

fn labels(annotations: &Annotations) -> Result<(), SpecError> {
    label_names("label", annotations.labels.keys())?;
    labels_fit(&annotations.labels)
}

fn labels_fit(labels: &BTreeMap<String, String>) -> Result<(), SpecError> {
    let bytes: usize = labels.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > MAX_LABELS_BYTES {
        return Err(SpecError::Rule(format!("the labels have {bytes} bytes together: at most {MAX_LABELS_BYTES}")));
    }
    Ok(())
}
