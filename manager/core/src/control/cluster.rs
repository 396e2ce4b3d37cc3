//! The cluster object: settings, tokens, authority.

use std::sync::Arc;

use orch_model::{
    Duration, Object, ObjectId, Timestamp, Version,
    change::Change,
    cluster::{Cluster, ClusterSpec, JoinTokens, RootCa, RootRotation, UnlockKeyText},
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
    min_cert_expiry: Duration,
    fresh_key: UnlockKeyText,
) -> Result<Proposal, ControlError> {
    validate::cluster_spec(&spec, min_cert_expiry)?;
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

/// The root that a rotation is to lead to.
#[derive(Debug, Clone)]
pub enum NewRoot {
    /// Certified by the root that the cluster has; see [`RootRotation`].
    Another(RootRotation),
    /// The root that the cluster has: a rotation that is under way is given up.
    Present,
}

/// Starts to replace the root, or changes where a rotation that is under way leads to. `made_for` is the root that
/// certified the new one; the cluster may have another by now.
///
/// # Errors
/// See [`ControlError`].
pub fn rotate_root(
    state: &State,
    now: Timestamp,
    made_for: &RootCa,
    new: NewRoot,
    cert_expiry: Option<Duration>,
    min_cert_expiry: Duration,
) -> Result<Proposal, ControlError> {
    change(state, now, |cluster| {
        if cluster.root_ca != *made_for {
            return Err(ControlError::precondition(
                "another rotation of the root has just been finished: nothing was changed, try again",
            ));
        }
        cluster.root_rotation = match new {
            NewRoot::Another(rotation) => Some(rotation),
            NewRoot::Present => None,
        };
        cluster.root_rotations += 1;
        if let Some(expiry) = cert_expiry {
            cluster.spec.cert_expiry = expiry;
            validate::cluster_spec(&cluster.spec, min_cert_expiry)?;
        }
        Ok(())
    })
}

/// Makes the target of the rotation the root, with the tokens that carry its digest; nothing when the rotation leads
/// elsewhere by now.
///
/// # Errors
/// See [`ControlError`].
pub fn finish_rotation(
    state: &State,
    now: Timestamp,
    target: &str,
    tokens: JoinTokens,
) -> Result<Proposal, ControlError> {
    change(state, now, |cluster| {
        if let Some(done) = cluster.root_rotation.take_if(|rotation| rotation.digest == target) {
            cluster.root_ca = done.target;
            cluster.join_tokens = tokens;
        }
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
