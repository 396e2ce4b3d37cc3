//! `orch join` on a node that slept past its certificates: it comes back under its old name.
//!
//! Nothing of the node is removed: its containers, volumes and records are those of the node that it still is.

use std::time::SystemTime;

use orch_proto::{
    ca::{rejoin_statement, sign_statement},
    code,
    tls::Identity,
    transport::{TransportError, unix_channel},
    wire::{self, ca_client::CaClient, control_client::ControlClient},
};
use tokio::time::timeout;
use tonic::transport::Channel;

use super::{
    credentials::{NewKeys, worker_identity},
    error::{NodeError, Result},
    join::ANSWER_LIMIT,
    member::Member,
    role::{self, Manager},
    supervisor::Supervisor,
    wait,
};

/// The identity of a member whose certificate has expired; what is valid needs no rejoining.
pub(super) fn expired(supervisor: &Supervisor) -> Option<Identity> {
    supervisor.member()?;
    worker_identity(&supervisor.paths).ok().filter(|identity| identity.not_after() <= SystemTime::now())
}

pub(super) async fn rejoin(
    supervisor: &Supervisor,
    old: &Identity,
    request: &wire::JoinNodeRequest,
    remote: String,
    channel: Channel,
) -> Result<wire::JoinNodeResponse> {
    let Some(member) = supervisor.member() else {
        return Err(NodeError::Refused("the node left its cluster meanwhile".to_owned()));
    };
    refuse_changes(request)?;
    let keys = NewKeys::generate()?;
    let answer = ask(old, &keys, request, &member, remote, channel).await?;
    if answer.node_id != member.node_id || answer.cluster_id != member.cluster_id {
        return Err(NodeError::Invalid("the manager sent the certificate of another node".to_owned()));
    }
    let manager = Manager::with(&answer, is_locked(supervisor).await);
    let manager = role::take_with(supervisor, member, keys, &answer, manager).await?;
    wait::worker_ready(supervisor).await?;
    Ok(wire::JoinNodeResponse { node_id: answer.node_id, cluster_id: answer.cluster_id, manager, came_back: true })
}

/// The node is the one that it was; what it should be else is changed where that is always changed.
fn refuse_changes(request: &wire::JoinNodeRequest) -> Result<()> {
    let is_given = |text: &str| !text.is_empty();
    if is_given(&request.advertise_addr) || is_given(&request.data_path_addr) {
        return Err(NodeError::Invalid(
            "this node is part of a cluster already and comes back with the addresses that it had: leave \
             --advertise-addr and --data-path-addr away"
                .to_owned(),
        ));
    }
    Ok(())
}

async fn ask(
    old: &Identity,
    keys: &NewKeys,
    request: &wire::JoinNodeRequest,
    member: &Member,
    remote: String,
    channel: Channel,
) -> Result<wire::JoinResponse> {
    let (worker, manager) = (&keys.worker.csr_pem, &keys.manager.csr_pem);
    let statement = rejoin_statement(&old.cluster_id, &old.node_id, worker, manager);
    let proof = wire::RejoinProof {
        worker_cert_pem: old.cert_pem.clone(),
        signature: sign_statement(&old.key_pem, &statement)?.into(),
    };
    let request = wire::JoinRequest {
        token: request.token.trim().to_owned(),
        worker_csr_pem: worker.clone(),
        manager_csr_pem: manager.clone(),
        hostname: member.hostname.clone(),
        advertise_addr: member.advertise_addr.clone(),
        availability: String::new(),
        rejoin: Some(proof),
    };
    match timeout(ANSWER_LIMIT, CaClient::new(channel).join(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(NodeError::answered(status)),
        Err(_) => Err(TransportError::TimedOut { addr: remote, limit: ANSWER_LIMIT }.into()),
    }
}

/// Whether this node's manager waits for its unlock key.
pub(super) async fn is_locked(supervisor: &Supervisor) -> bool {
    let Ok(channel) = unix_channel(&supervisor.paths.manager_sock()).await else { return false };
    let answer = timeout(ANSWER_LIMIT, async { ControlClient::new(channel).info(wire::Empty {}).await }).await;
    matches!(answer, Ok(Err(status)) if code::of(&status) == Some("locked"))
}
