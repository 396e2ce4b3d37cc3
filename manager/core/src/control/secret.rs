//! Secrets and configs. The content of one does not change; labels may, and another content makes another version.

use std::sync::Arc;

use orch_model::{
    Annotations, ConfigId, Meta, Object, ObjectId, SecretId, Timestamp, Version,
    change::Change,
    secret::{Config, Secret, TemplateDriver},
};

use super::{ControlError, Proposal, missing, propose, removal, version};
use crate::{decision::Ids, state::State, validate};

/// Stores a secret.
///
/// # Errors
/// See [`ControlError`].
pub fn create_secret(
    state: &State,
    now: Timestamp,
    ids: Ids<'_>,
    annotations: Annotations,
    data: Vec<u8>,
    template: Option<TemplateDriver>,
) -> Result<Proposal, ControlError> {
    validate::secret(&annotations, &data, template)?;
    let id = SecretId::from_random(ids());
    let secret = Secret { id: id.clone(), meta: Meta::default(), annotations, data, template, removing: false };
    propose(state, now, ObjectId::Secret(id), vec![Change::Create(Object::Secret(Arc::new(secret)))])
}

/// Stores a config.
///
/// # Errors
/// See [`ControlError`].
pub fn create_config(
    state: &State,
    now: Timestamp,
    ids: Ids<'_>,
    annotations: Annotations,
    data: Vec<u8>,
    template: Option<TemplateDriver>,
) -> Result<Proposal, ControlError> {
    validate::config(&annotations, &data, template)?;
    let id = ConfigId::from_random(ids());
    let config = Config { id: id.clone(), meta: Meta::default(), annotations, data, template, removing: false };
    propose(state, now, ObjectId::Config(id), vec![Change::Create(Object::Config(Arc::new(config)))])
}

/// Changes a secret's labels.
///
/// # Errors
/// See [`ControlError`].
pub fn update_secret(
    state: &State,
    now: Timestamp,
    id: &SecretId,
    version: Version,
    annotations: Annotations,
    data: &[u8],
) -> Result<Proposal, ControlError> {
    let secret = state.secret(id).ok_or_else(|| missing(id))?;
    only_labels_change(&secret.annotations, &secret.data, &annotations, data)?;
    validate::secret(&annotations, &secret.data, secret.template)?;
    let mut next = Secret::clone(secret);
    next.meta.version = version;
    next.annotations = annotations;
    propose(state, now, ObjectId::Secret(id.clone()), vec![Change::Update(Object::Secret(Arc::new(next)))])
}

/// Changes a config's labels.
///
/// # Errors
/// See [`ControlError`].
pub fn update_config(
    state: &State,
    now: Timestamp,
    id: &ConfigId,
    version: Version,
    annotations: Annotations,
    data: &[u8],
) -> Result<Proposal, ControlError> {
    let config = state.config(id).ok_or_else(|| missing(id))?;
    only_labels_change(&config.annotations, &config.data, &annotations, data)?;
    validate::config(&annotations, &config.data, config.template)?;
    let mut next = Config::clone(config);
    next.meta.version = version;
    next.annotations = annotations;
    propose(state, now, ObjectId::Config(id.clone()), vec![Change::Update(Object::Config(Arc::new(next)))])
}

/// Gives a secret another content, and lets the services that use it go over to that.
///
/// # Errors
/// See [`ControlError`].
pub fn replace_secret(
    state: &State,
    now: Timestamp,
    ids: Ids<'_>,
    id: &SecretId,
    version: Version,
    annotations: Annotations,
    data: Vec<u8>,
) -> Result<Proposal, ControlError> {
    let old = state.secret(id).ok_or_else(|| missing(id))?;
    if data.is_empty() || data == old.data {
        return update_secret(state, now, id, version, annotations, &data);
    }
    same_name(&old.annotations, &annotations)?;
    validate::secret(&annotations, &data, old.template)?;
    version::replace(state, now, ids, old.as_ref(), version, annotations, data)
}

/// Gives a config another content, and lets the services that use it go over to that.
///
/// # Errors
/// See [`ControlError`].
pub fn replace_config(
    state: &State,
    now: Timestamp,
    ids: Ids<'_>,
    id: &ConfigId,
    version: Version,
    annotations: Annotations,
    data: Vec<u8>,
) -> Result<Proposal, ControlError> {
    let old = state.config(id).ok_or_else(|| missing(id))?;
    if data.is_empty() || data == old.data {
        return update_config(state, now, id, version, annotations, &data);
    }
    same_name(&old.annotations, &annotations)?;
    validate::config(&annotations, &data, old.template)?;
    version::replace(state, now, ids, old.as_ref(), version, annotations, data)
}

/// Removes a secret that nobody uses.
///
/// # Errors
/// See [`ControlError`].
pub fn remove_secret(state: &State, now: Timestamp, id: &SecretId) -> Result<Proposal, ControlError> {
    let secret = state.secret(id).ok_or_else(|| missing(id))?;
    propose(state, now, ObjectId::Secret(id.clone()), vec![removal(&Object::Secret(secret.clone()))])
}

/// Removes a config that nobody uses.
///
/// # Errors
/// See [`ControlError`].
pub fn remove_config(state: &State, now: Timestamp, id: &ConfigId) -> Result<Proposal, ControlError> {
    let config = state.config(id).ok_or_else(|| missing(id))?;
    propose(state, now, ObjectId::Config(id.clone()), vec![removal(&Object::Config(config.clone()))])
}

fn same_name(old: &Annotations, new: &Annotations) -> Result<(), ControlError> {
    if old.name == new.name {
        return Ok(());
    }
    Err(ControlError::invalid(format!(
        "{} cannot be renamed to {}: create another object beside it",
        old.name, new.name
    )))
}

/// Callers that never saw a secret's content leave the data empty.
fn only_labels_change(
    old: &Annotations,
    old_data: &[u8],
    new: &Annotations,
    new_data: &[u8],
) -> Result<(), ControlError> {
    let same_data = new_data.is_empty() || new_data == old_data;
    if old.name == new.name && same_data {
        return Ok(());
    }
    Err(ControlError::invalid(format!(
        "only updates to Labels are allowed: for another content create another object beside {} and let the services \
         use that",
        old.name
    )))
}
