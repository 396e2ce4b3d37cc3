//! A node that slept past its certificates comes back under its old name.
//!
//! It proves that it is that node with its old key and its old certificate, which a root of this cluster must have
//! signed; its object must still be there, and it must bring a token of its role.

use orch_model::{
    cluster::Cluster,
    node::{Node, NodeRole},
};
use orch_proto::{
    ca::{CaError, check_statement, rejoin_statement},
    wire,
};
use tonic::{Code, Status};

use super::status;
use crate::{authority, raft::View};

/// The node that asks, when nothing is missing.
pub(super) fn proven<'a>(
    view: &'a View,
    cluster: &Cluster,
    request: &wire::JoinRequest,
    proof: &wire::RejoinProof,
    token_role: NodeRole,
) -> Result<&'a Node, Status> {
    let refused = |stable, text: String| status::with_code(Code::PermissionDenied, stable, text);
    let roots = authority::trusted_roots(cluster);
    let statement = |peer: &orch_proto::tls::PeerIdentity| {
        rejoin_statement(&peer.cluster_id, &peer.node_id, &request.worker_csr_pem, &request.manager_csr_pem)
    };
    let peer = check_statement(&proof.worker_cert_pem, &roots, statement, &proof.signature).map_err(|e| match e {
        CaError::Signature => refused(
            "rejoin-key",
            "this node does not have the private key of its old certificate, so it cannot come back under its old name: \
             run \"orch leave --force\" on it, then join it as a new node"
                .to_owned(),
        ),
        _ => refused(
            "rejoin-certificate",
            "the old certificate of this node is not one of this cluster, so it cannot come back under its old name: run \
             \"orch leave --force\" on it, then join it as a new node"
                .to_owned(),
        ),
    })?;
    if peer.cluster_id != cluster.id {
        return Err(refused(
            "rejoin-certificate",
            format!(
                "the old certificate of this node is one of the cluster {}, and this is {}",
                peer.cluster_id, cluster.id
            ),
        ));
    }
    let Some(node) = view.state.node(&peer.node_id) else { return Err(status::removed(&peer.node_id)) };
    if node.role != token_role {
        let (name, role) = (&node.description.hostname, word(node.role));
        return Err(refused(
            "rejoin-token",
            format!(
                "node {name} is a {role}, and this token is one for a {}: get the right one with \"orch join-token \
                 {role}\" on a manager",
                word(token_role)
            ),
        ));
    }
    Ok(node)
}

fn word(role: NodeRole) -> &'static str {
    orch_proto::tls::role_word(role)
}
