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
    role,
    supervisor::Supervisor,
};

const CHECK_INTERVAL: Duration = Duration::from_secs(60);
const RENEW_LIMIT: Duration = Duration::from_secs(20);

/// Renews for as long as the supervisor runs.
pub(super) async fn keep_fresh(supervisor: Arc<Supervisor>) {
    let point = 0.5 + 0.3 * rand::random::<f64>();
    loop {
        sleep(CHECK_INTERVAL).await;
        if remember_managers(&supervisor).await.is_none() {
            continue;
        }
        let Ok(identity) = worker_identity(&supervisor.paths) else { continue };
        if SystemTime::now() < due(&identity, point) {
            continue;
        }
        match renew_now(&supervisor).await {
            Ok(()) => tracing::info!("certificates renewed"),
            Err(error) => tracing::warn!(%error, "cannot renew the certificates, will try again"),
        }
    }
}

/// Gets new certificates from the first manager that gives some, and takes the role that they show.
pub(super) async fn renew_now(supervisor: &Supervisor) -> Result<()> {
    let Some(member) = remember_managers(supervisor).await else { return Ok(()) };
    let identity = worker_identity(&supervisor.paths)?;
    match timeout(RENEW_LIMIT, renew(supervisor, member, &identity)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(NodeError::Refused("no manager answered in time".to_owned())),
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
        // Answered only when this node is to be a manager.
        manager_csr_pem: keys.manager.csr_pem.clone(),
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
                let manager = keys.save(&answer, &supervisor.paths)?;
                if manager {
                    supervisor.hand_over(Role::Manager)?;
                }
                if !answer.managers.is_empty() {
                    member.managers = answer.managers;
                }
                return role::take(supervisor, member, manager).await;
            }
            Err(status) => failure = NodeError::answered(&status),
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orch_model::{ClusterId, NodeId, cluster::RootCa};
    use orch_proto::{
        ca::{generate_root, new_key_and_csr, sign_csr},
        paths::Paths,
        tls::{SharedIdentity, require_role},
        transport::tls_incoming,
        wire::ca_server::{Ca, CaServer},
    };
    use tonic::{Request, Response, Status};

    const HOUR: Duration = Duration::from_secs(3600);

    struct Authority {
        cluster: ClusterId,
        root: RootCa,
    }

    impl Authority {
        fn new(now: SystemTime) -> Self {
            let cluster = ClusterId::from_random(1);
            let root = generate_root(&cluster, now).unwrap();
            Self { cluster, root }
        }

        fn sign(&self, csr: &str, node: &NodeId, role: NodeRole, life: Duration, now: SystemTime) -> String {
            sign_csr(&self.root, csr, node, &self.cluster, role, life, now).unwrap()
        }

        fn identity(&self, bits: u128, role: NodeRole, life: Duration, now: SystemTime) -> Identity {
            let key = new_key_and_csr().unwrap();
            let cert = self.sign(&key.csr_pem, &NodeId::from_random(bits), role, life, now);
            Identity::from_pem(self.root.cert_pem.clone(), cert, key.key_pem).unwrap()
        }
    }

    #[tonic::async_trait]
    impl Ca for Authority {
        async fn join(&self, _: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
            Err(Status::unimplemented("join"))
        }

        async fn leave(&self, _: Request<wire::LeaveRequest>) -> Result<Response<wire::Empty>, Status> {
            Err(Status::unimplemented("leave"))
        }

        async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::JoinResponse>, Status> {
            let peer = require_role(&request, &[NodeRole::Worker])?;
            let csr = request.into_inner().worker_csr_pem;
            Ok(Response::new(wire::JoinResponse {
                node_id: peer.node_id.to_string(),
                cluster_id: self.cluster.to_string(),
                root_cert_pem: self.root.cert_pem.clone(),
                worker_cert_pem: self.sign(&csr, &peer.node_id, NodeRole::Worker, 9 * HOUR, SystemTime::now()),
                manager_cert_pem: String::new(),
                managers: vec!["192.0.2.1:2377".to_owned()],
            }))
        }
    }

    #[test]
    fn renewal_is_due_between_half_and_four_fifths_of_a_certificates_life() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let identity = Authority::new(now).identity(2, NodeRole::Worker, 9 * HOUR, now);
        // Ten hours in all: certificates are backdated by one.
        assert_eq!(due(&identity, 0.5), now + 4 * HOUR);
        assert_eq!(due(&identity, 0.8), now + 7 * HOUR);
    }

    #[tokio::test]
    async fn a_renewed_certificate_and_the_managers_addresses_are_saved() {
        let now = SystemTime::now();
        let authority = Authority::new(now);
        let manager = authority.identity(1, NodeRole::Manager, HOUR, now);
        let ours = authority.identity(2, NodeRole::Worker, HOUR, now);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let incoming = tls_incoming(listener, SharedIdentity::new(manager));
        let server = tonic::transport::Server::builder().add_service(CaServer::new(authority));
        tokio::spawn(server.serve_with_incoming(incoming));

        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::open(Paths::under(dir.path())).unwrap();
        ours.save(&supervisor.paths.worker_dir().join("tls")).unwrap();
        let member = Member {
            cluster_id: ours.cluster_id.to_string(),
            node_id: ours.node_id.to_string(),
            manager: false,
            hostname: "h".to_owned(),
            advertise_addr: "192.0.2.2:2377".to_owned(),
            listen_addr: "0.0.0.0:2377".to_owned(),
            data_addr: "192.0.2.2".to_owned(),
            // The first manager is gone; the second renews.
            managers: vec!["127.0.0.1:1".to_owned(), addr],
        };
        supervisor.become_member(member.clone()).unwrap();
        renew(&supervisor, member, &ours).await.unwrap();

        let renewed = worker_identity(&supervisor.paths).unwrap();
        assert_eq!(renewed.node_id, ours.node_id);
        assert!(renewed.not_after() > ours.not_after() + 7 * HOUR);
        assert_ne!(renewed.key_pem, ours.key_pem);
        let saved = supervisor.node_dir.load().unwrap().unwrap();
        assert_eq!(saved.managers, ["192.0.2.1:2377"]);
    }
}
