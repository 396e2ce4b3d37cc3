//! When certificates are renewed, and what is kept of the answer.

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
    /// Whoever asks was a node once.
    all_removed: bool,
}

impl Authority {
    fn new(now: SystemTime) -> Self {
        let cluster = ClusterId::from_random(1);
        let root = generate_root(&cluster, now).unwrap();
        Self { cluster, root, all_removed: false }
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

    async fn report(&self, _: Request<wire::CertificateReport>) -> Result<Response<wire::Empty>, Status> {
        Ok(Response::new(wire::Empty {}))
    }

    async fn leave(&self, _: Request<wire::LeaveRequest>) -> Result<Response<wire::Empty>, Status> {
        Err(Status::unimplemented("leave"))
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        let peer = require_role(&request, &[NodeRole::Worker])?;
        if self.all_removed {
            let mut refused = Status::permission_denied("this node was removed");
            refused.metadata_mut().insert(code::KEY, code::NODE_REMOVED.parse().unwrap());
            return Err(refused);
        }
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

/// The address of a manager that renews, and a worker's identity.
async fn serve_authority() -> (String, Identity) {
    serve_authority_that(false).await
}

/// As [`serve_authority`]; one that removed all nodes renews nothing.
pub(in crate::node) async fn serve_authority_that(all_removed: bool) -> (String, Identity) {
    let now = SystemTime::now();
    let authority = Authority { all_removed, ..Authority::new(now) };
    let manager = authority.identity(1, NodeRole::Manager, HOUR, now);
    let ours = authority.identity(2, NodeRole::Worker, HOUR, now);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let incoming = tls_incoming(listener, SharedIdentity::new(manager));
    let server = tonic::transport::Server::builder().add_service(CaServer::new(authority));
    tokio::spawn(server.serve_with_incoming(incoming));
    (addr, ours)
}

#[test]
fn renewal_is_due_between_half_and_four_fifths_of_a_certificates_life() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let identity = Authority::new(now).identity(2, NodeRole::Worker, 9 * HOUR, now);
    // What they are backdated by does not count.
    assert_eq!(due(&identity, 0.5), now + HOUR * 9 / 2);
    assert_eq!(due(&identity, 0.8), now + HOUR * 36 / 5);
}

#[tokio::test]
async fn a_renewed_certificate_and_the_managers_addresses_are_saved_and_nothing_else() {
    let (addr, ours) = serve_authority().await;
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
        chosen: true,
    };
    // The node's address changed while a manager was asked.
    let moved = Member { data_addr: "192.0.2.3".to_owned(), ..member.clone() };
    supervisor.become_member(moved.clone()).unwrap();
    renew(&supervisor, member).await.unwrap();

    let renewed = worker_identity(&supervisor.paths).unwrap();
    assert_eq!(renewed.node_id, ours.node_id);
    assert!(renewed.not_after() > ours.not_after() + 7 * HOUR);
    assert_ne!(renewed.key_pem, ours.key_pem);
    let saved = supervisor.node_dir.load().unwrap().unwrap();
    assert_eq!(saved, Member { managers: vec!["192.0.2.1:2377".to_owned()], ..moved });
}
