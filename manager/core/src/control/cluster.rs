//! The cluster object: settings, tokens, authority.

use std::sync::Arc;

use orch_model::{
    Object, ObjectId, Timestamp, Version,
    change::Change,
    cluster::{Cluster, ClusterSpec, JoinTokens, RootCa, UnlockKeyText},
};

use super::{ControlError, Proposal, propose};
use crate::{state::State, validate};

/// Changes the settings. `fresh_key` becomes the unlock key when autolock is turned on.
///
/// # Errors
/// See [`ControlError`].
pub fn update_cluster(
    state: &State,
    now: Timestamp,
    version: Version,
    spec: ClusterSpec,
    fresh_key: UnlockKeyText,
) -> Result<Proposal, ControlError> {
    validate::cluster_spec(&spec)?;
    change(state, now, |cluster| {
        if spec.data_path_port != cluster.spec.data_path_port {
            return Err(ControlError::invalid(format!(
                "the data path port is {} and cannot be changed while the cluster exists",
                cluster.spec.data_path_port
            )));
        }
        cluster.meta.version = version;
        cluster.unlock_key = spec.autolock.then(|| cluster.unlock_key.take().unwrap_or(fresh_key));
        cluster.spec = spec;
        Ok(())
    })
}

/// Replaces the join tokens (a rotation: the caller makes the new ones).
///
/// # Errors
/// See [`ControlError`].
pub fn set_join_tokens(state: &State, now: Timestamp, tokens: JoinTokens) -> Result<Proposal, ControlError> {
    change(state, now, |cluster| {
        cluster.join_tokens = tokens;
        Ok(())
    })
}

/// Replaces the unlock key.
///
/// # Errors
/// See [`ControlError`]; autolock must be on.
pub fn set_unlock_key(state: &State, now: Timestamp, key: UnlockKeyText) -> Result<Proposal, ControlError> {
    change(state, now, |cluster| {
        if cluster.unlock_key.is_none() {
            return Err(ControlError::precondition(
                "autolock is off, so there is no unlock key: turn it on with \"orch update --autolock\"",
            ));
        }
        cluster.unlock_key = Some(key);
        Ok(())
    })
}

/// Replaces the certificate authority, with the tokens that carry its digest.
///
/// # Errors
/// See [`ControlError`].
pub fn set_root_ca(
    state: &State,
    now: Timestamp,
    root_ca: RootCa,
    tokens: JoinTokens,
) -> Result<Proposal, ControlError> {
    change(state, now, |cluster| {
        cluster.root_ca = root_ca;
        cluster.join_tokens = tokens;
        Ok(())
    })
}

fn change(
    state: &State,
    now: Timestamp,
    edit: impl FnOnce(&mut Cluster) -> Result<(), ControlError>,
) -> Result<Proposal, ControlError> {
    let Some(cluster) = state.cluster() else {
        return Err(ControlError::precondition(
            "this node is not part of a cluster: run \"orch init\" or \"orch join\"",
        ));
    };
    let mut next = Cluster::clone(cluster);
    edit(&mut next)?;
    let id = ObjectId::Cluster(next.id.clone());
    propose(state, now, id, vec![Change::Update(Object::Cluster(Arc::new(next)))])
}
