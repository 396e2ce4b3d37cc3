//! Certificates are renewed at a random point between 50 % and 80 % of their life, so that nodes do not ask all at once.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use orch_model::node::NodeRole;
use orch_proto::{
    tls::Identity,
    transport::tls_channel,
    wire::{self, ca_client::CaClient},
};
use tokio::time::{sleep, timeout};

use super::{
    credentials::{NewKeys, worker_identity},
    daemon::Role,
    error::{NodeError, Result},
    managers,
    member::Member,
    supervisor::Supervisor,
};

const CHECK_INTERVAL: Duration = Duration::from_secs(60);
const RENEW_LIMIT: Duration = Duration::from_secs(20);

/// Renews for as long as the supervisor runs.
pub(super) async fn keep_fresh(supervisor: Arc<Supervisor>) {
    let point = 0.5 + 0.3 * rand::random::<f64>();
    loop {
        sleep(CHECK_INTERVAL).await;
        let Some(member) = remember_managers(&supervisor).await else { continue };
        let Ok(identity) = worker_identity(&supervisor.paths) else { continue };
        if SystemTime::now() < due(&identity, point) {
            continue;
        }
        match timeout(RENEW_LIMIT, renew(&supervisor, member, &identity)).await {
            Ok(Ok(())) => tracing::info!("certificates renewed"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot renew the certificates, will try again"),
            Err(_) => tracing::warn!("no manager renewed the certificates in time, will try again"),
        }
    }
}

/// Keeps the state file's list current: after a restart it is all this node has.
async fn remember_managers(supervisor: &Supervisor) -> Option<Member> {
    let mut member = supervisor.member()?;
    let managers = managers::known(supervisor, &member).await;
    if managers != member.managers
        && let Ok(_operation) = supervisor.begin()
        && supervisor.member().as_ref() == Some(&member)
    {
        member.managers = managers;
        if let Err(error) = supervisor.become_member(member.clone()) {
            tracing::warn!("cannot write the managers' addresses down: {error:#}");
        }
    }
    Some(member)
}

fn due(identity: &Identity, point: f64) -> SystemTime {
    let (start, end) = (identity.not_before(), identity.not_after());
    start + end.duration_since(start).unwrap_or_default().mul_f64(point)
}

async fn renew(supervisor: &Supervisor, mut member: Member, identity: &Identity) -> Result<()> {
    let keys = NewKeys::generate()?;
    let request = wire::RenewRequest {
        worker_csr_pem: keys.worker.csr_pem.clone(),
        manager_csr_pem: if member.manager { keys.manager.csr_pem.clone() } else { String::new() },
    };
    let mut failure = NodeError::Refused("this node knows no manager".to_owned());
    for addr in &member.managers {
        let channel = match tls_channel(addr, identity, NodeRole::Manager).await {
            Ok(channel) => channel,
            Err(error) => {
                failure = error.into();
                continue;
            }
        };
        match CaClient::new(channel).renew(request.clone()).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let _operation = supervisor.begin()?;
                // It may have left, or be another node by now.
                if supervisor.member().is_none_or(|now| now.node_id != member.node_id) {
                    return Err(NodeError::Refused("the node left its cluster meanwhile".to_owned()));
                }
                keys.save(&answer, &supervisor.paths)?;
                supervisor.hand_over(Role::Manager)?;
                if !answer.managers.is_empty() {
                    member.managers = answer.managers;
                    supervisor.become_member(member)?;
                }
                return Ok(());
            }
            Err(status) => failure = NodeError::answered(&status),
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orch_model::{ClusterId, NodeId};
    use orch_proto::ca::{generate_root, new_key_and_csr, sign_csr};

    #[test]
    fn renewal_is_due_between_half_and_four_fifths_of_a_certificates_life() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (cluster, node) = (ClusterId::from_random(1), NodeId::from_random(2));
        let root = generate_root(&cluster, now).unwrap();
        let key = new_key_and_csr().unwrap();
        let life = Duration::from_secs(9 * 3600);
        let cert = sign_csr(&root, &key.csr_pem, &node, &cluster, NodeRole::Worker, life, now).unwrap();
        let identity = Identity::from_pem(root.cert_pem, cert, key.key_pem).unwrap();
        // Ten hours in all: certificates are backdated by one.
        assert_eq!(due(&identity, 0.5), now + Duration::from_secs(4 * 3600));
        assert_eq!(due(&identity, 0.8), now + Duration::from_secs(7 * 3600));
    }
}
