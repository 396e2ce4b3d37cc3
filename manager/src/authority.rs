//! The cluster's certificate authority as its object describes it: which root signs, and which are trusted.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use orch_manager_core::{control, rotation};
use orch_model::{
    NodeId, Timestamp,
    cluster::{Cluster, JoinTokens, RootCa, RootRotation},
    node::NodeRole,
};
use orch_proto::{
    ca::{self, CaError, Made},
    tls::JoinToken,
    wire,
};
use tokio::time::sleep;

use crate::{
    dispatcher::Reign,
    raft::{ProposeError, View},
    random,
};

/// Longer than any certificate lives.
pub(crate) const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Pause after a step that failed.
const RETRY: Duration = Duration::from_secs(1);

/// The roots that nodes are to trust now, as one PEM text.
pub(crate) fn trusted_roots(cluster: &Cluster) -> String {
    let target = cluster.root_rotation.as_ref().map(|rotation| rotation.target.cert_pem.as_str());
    ca::bundle([cluster.root_ca.cert_pem.as_str()].into_iter().chain(target))
}

/// The digest of the root that certificates are to be of.
pub(crate) fn desired_issuer(cluster: &Cluster) -> String {
    match &cluster.root_rotation {
        Some(rotation) => rotation.digest.clone(),
        // A root that cannot be read signs nothing either, and that is said there.
        None => ca::digest(&cluster.root_ca.cert_pem).unwrap_or_default(),
    }
}

/// A certificate for the key in the request, with the chain that it needs.
pub(crate) fn sign(
    cluster: &Cluster,
    csr_pem: &str,
    id: &NodeId,
    role: NodeRole,
    made: Made,
) -> Result<String, CaError> {
    let (root, chain) = match &cluster.root_rotation {
        Some(rotation) => (&rotation.target, rotation.cross_signed_pem.as_str()),
        None => (&cluster.root_ca, ""),
    };
    let leaf = ca::sign_csr(root, csr_pem, id, &cluster.id, role, cluster.spec.cert_expiry, made)?;
    Ok(ca::bundle([leaf.as_str(), chain].into_iter().filter(|pem| !pem.is_empty())))
}

/// The present moment, for a certificate. It must be valid now by everybody's clock, also when the cluster's time is ahead.
pub(crate) fn made_now(reign: &Reign) -> Made {
    Made { at: system_time(reign.consensus().wall_clock()), stamp: system_time(reign.proposer().now()) }
}

/// The root that a request asks for; the operator's own, or a new one. `now` is by the clock.
pub(crate) fn new_root(
    cluster: &Cluster,
    request: &wire::RotateRootRequest,
    now: Timestamp,
) -> Result<control::NewRoot, CaError> {
    let now = system_time(now);
    let target = match (request.ca_cert_pem.as_str(), request.ca_key_pem.as_str()) {
        ("", "") => ca::generate_root(&cluster.id, now)?,
        (_, "") => return Err(CaError::OwnRoot("its key is needed as well, because managers sign with it".to_owned())),
        ("", _) => return Err(CaError::OwnRoot("its certificate is needed as well as its key".to_owned())),
        (cert, key) => ca::own_root(cert, key, &cluster.id, now)?,
    };
    let digest = ca::digest(&target.cert_pem)?;
    if digest == ca::digest(&cluster.root_ca.cert_pem)? {
        return Ok(control::NewRoot::Present);
    }
    let cross_signed_pem = ca::cross_sign(&cluster.root_ca, &target, &cluster.id, now)?;
    Ok(control::NewRoot::Another(RootRotation { target, digest, cross_signed_pem }))
}

/// Tokens for both roles that name this root.
pub(crate) fn new_tokens(root: &RootCa) -> Result<JoinTokens, orch_proto::tls::TlsError> {
    let fresh = || JoinToken::generate(&root.cert_pem, random::bits());
    Ok(JoinTokens { worker: fresh()?, manager: fresh()? })
}

/// Finishes rotations of the root, for as long as the reign.
pub(crate) async fn rotate(reign: Arc<Reign>) {
    let mut changes = reign.consensus().store().changes();
    loop {
        changes.mark_unchanged();
        let view = reign.consensus().store().view();
        let Some(step) = rotation::next_step(&view.state) else {
            drop(view);
            // The store outlives this task.
            let _ = changes.changed().await;
            continue;
        };
        if let Err(error) = carry_out(&reign, &view, step).await {
            tracing::warn!(error, "cannot finish the rotation of the root now; trying again");
            sleep(RETRY).await;
        }
    }
}

async fn carry_out(reign: &Reign, view: &View, step: rotation::Step) -> Result<(), String> {
    let rotation::Step::Finish = step;
    let cluster = view.state.cluster();
    let Some(rotation) = cluster.and_then(|cluster| cluster.root_rotation.as_ref()) else { return Ok(()) };
    let tokens = new_tokens(&rotation.target).map_err(|e| e.to_string())?;
    let now = reign.proposer().now();
    let finished = control::finish_rotation(&view.state, now, &rotation.digest, tokens).map_err(|e| e.to_string())?;
    match reign.proposer().propose(finished.transaction.changes).await {
        Ok(_) => {
            tracing::info!(digest = rotation.digest, "the cluster has a new root");
            Ok(())
        }
        // The state moved on: look again.
        Err(ProposeError::Refused(_)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn system_time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(at.unix_ms)
}

pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let ms = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    Timestamp::from_unix_ms(u64::try_from(ms).unwrap_or(u64::MAX))
}
