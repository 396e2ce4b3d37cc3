//! Who is let in and who is refused, over real connections on loopback.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use orch_model::{ClusterId, NodeId, cluster::RootCa, node::NodeRole};
use tonic::{Code, Request};

use super::*;
use crate::{
    ca::{generate_root, new_key_and_csr, sign_csr},
    transport::{Connections, TransportError, shared_channel, tls_channel, tls_doors, tls_incoming, token_channel},
    wire::{self, node_control_client::NodeControlClient, node_control_server as node},
};

const HOUR: Duration = Duration::from_secs(3600);

struct TestCluster {
    id: ClusterId,
    root: RootCa,
}

impl TestCluster {
    fn new(bits: u128) -> Self {
        let id = ClusterId::from_random(bits);
        let root = generate_root(&id, SystemTime::now()).unwrap();
        Self { id, root }
    }

    fn identity(&self, role: NodeRole) -> Identity {
        self.identity_until(role, SystemTime::now() + HOUR)
    }

    fn identity_until(&self, role: NodeRole, not_after: SystemTime) -> Identity {
        let key = new_key_and_csr().unwrap();
        let (node, made) = (NodeId::from_random(7), not_after - HOUR);
        let cert = sign_csr(&self.root, &key.csr_pem, &node, &self.id, role, HOUR, made).unwrap();
        Identity::from_pem(self.root.cert_pem.clone(), cert, key.key_pem).unwrap()
    }

    fn token(&self) -> JoinToken {
        JoinToken::parse(&JoinToken::generate(&self.root.cert_pem, 42).unwrap()).unwrap()
    }
}

/// Answers `Info` with who asked; everything else needs a manager.
struct Echo;

#[tonic::async_trait]
impl node::NodeControl for Echo {
    type GossipStream = tonic::codegen::BoxStream<wire::GossipView>;

    async fn gossip(
        &self,
        _: Request<tonic::Streaming<wire::GossipConfig>>,
    ) -> Result<tonic::Response<Self::GossipStream>, tonic::Status> {
        Err(tonic::Status::unimplemented(""))
    }

    async fn info(&self, request: Request<wire::Empty>) -> Result<tonic::Response<wire::NodeInfo>, tonic::Status> {
        let node_id = peer_identity(&request).map_or_else(String::new, |peer| peer.node_id.to_string());
        let state = remote_addr(&request).map_or_else(String::new, |addr| addr.ip().to_string());
        Ok(tonic::Response::new(wire::NodeInfo { node_id, state, ..Default::default() }))
    }

    async fn reset_manager(
        &self,
        _: Request<wire::Empty>,
    ) -> Result<tonic::Response<wire::ResetManagerResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented(""))
    }

    async fn init(&self, _: Request<wire::InitRequest>) -> Result<tonic::Response<wire::InitResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented(""))
    }

    async fn join(
        &self,
        _: Request<wire::JoinNodeRequest>,
    ) -> Result<tonic::Response<wire::JoinNodeResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented(""))
    }

    async fn leave(
        &self,
        request: Request<wire::LeaveNodeRequest>,
    ) -> Result<tonic::Response<wire::Empty>, tonic::Status> {
        require_role(&request, &[NodeRole::Manager])?;
        Ok(tonic::Response::new(wire::Empty {}))
    }
}

async fn serve(identity: Identity) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let incoming = tls_incoming(listener, SharedIdentity::new(identity));
    let server = tonic::transport::Server::builder().add_service(node::NodeControlServer::new(Echo));
    tokio::spawn(server.serve_with_incoming(incoming));
    addr
}

async fn refusal(addr: &str, identity: &Identity, role: NodeRole) -> TransportError {
    tls_channel(addr, identity, role).await.expect_err("must be refused")
}

#[tokio::test]
async fn members_of_a_cluster_know_each_other() {
    let cluster = TestCluster::new(1);
    let addr = serve(cluster.identity(NodeRole::Manager)).await;
    for role in [NodeRole::Worker, NodeRole::Manager] {
        let us = cluster.identity(role);
        let mut client = NodeControlClient::new(tls_channel(&addr, &us, NodeRole::Manager).await.unwrap());
        let info = client.info(wire::Empty {}).await.unwrap().into_inner();
        assert_eq!((info.node_id, info.state), (us.node_id.to_string(), "127.0.0.1".to_owned()));
        let left = client.leave(wire::LeaveNodeRequest::default()).await.map_err(|status| status.code());
        let expected = if role == NodeRole::Manager { Ok(()) } else { Err(Code::PermissionDenied) };
        assert_eq!(left.map(drop), expected);
    }
}

#[tokio::test]
async fn a_joiner_needs_no_certificate_but_is_nobody() {
    let cluster = TestCluster::new(1);
    let addr = serve(cluster.identity(NodeRole::Manager)).await;
    let mut client = NodeControlClient::new(token_channel(&addr, &cluster.token()).await.unwrap());
    assert_eq!(client.info(wire::Empty {}).await.unwrap().into_inner().node_id, "");
    let status = client.leave(wire::LeaveNodeRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_token_opens_only_managers_of_its_own_cluster() {
    let (ours, theirs) = (TestCluster::new(1), TestCluster::new(2));
    let addr = serve(theirs.identity(NodeRole::Manager)).await;
    let error = token_channel(&addr, &ours.token()).await.expect_err("must be refused");
    assert!(matches!(error, TransportError::WrongToken { .. }), "{error:?}");
    let worker = serve(ours.identity(NodeRole::Worker)).await;
    let error = token_channel(&worker, &ours.token()).await.expect_err("must be refused");
    assert!(matches!(error, TransportError::AnotherRole { .. }), "{error:?}");
}

#[tokio::test]
async fn another_cluster_is_refused_in_both_directions() {
    // The same cluster id, as someone who read it somewhere could choose.
    let (ours, theirs) = (TestCluster::new(1), TestCluster::new(1));
    let addr = serve(theirs.identity(NodeRole::Manager)).await;
    let error = refusal(&addr, &ours.identity(NodeRole::Worker), NodeRole::Manager).await;
    assert!(matches!(error, TransportError::AnotherCluster { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("the node at {addr} belongs to another cluster"));

    // A client that trusts the server, with a certificate that the server does not trust.
    let mut forged = theirs.identity(NodeRole::Worker);
    let stranger = ours.identity(NodeRole::Worker);
    (forged.cert_pem, forged.key_pem) = (stranger.cert_pem, stranger.key_pem);
    if let Ok(channel) = tls_channel(&addr, &forged, NodeRole::Manager).await {
        // TLS 1.3: the client hears of the refusal with its first read.
        NodeControlClient::new(channel).info(wire::Empty {}).await.expect_err("must be refused");
    }
}

#[tokio::test]
async fn a_worker_cannot_pose_as_a_manager() {
    let cluster = TestCluster::new(1);
    let addr = serve(cluster.identity(NodeRole::Worker)).await;
    let error = refusal(&addr, &cluster.identity(NodeRole::Worker), NodeRole::Manager).await;
    assert_eq!(error.to_string(), format!("what answers at {addr} is not a manager of this cluster"));
}

#[tokio::test]
async fn expired_certificates_are_refused_and_said_so() {
    let cluster = TestCluster::new(1);
    let past = SystemTime::now() - Duration::from_secs(60);
    let addr = serve(cluster.identity_until(NodeRole::Manager, past)).await;
    let error = refusal(&addr, &cluster.identity(NodeRole::Worker), NodeRole::Manager).await;
    assert!(matches!(error, TransportError::Expired { .. }), "{error:?}");
    let error = refusal(&addr, &cluster.identity_until(NodeRole::Worker, past), NodeRole::Manager).await;
    assert!(matches!(error, TransportError::Tls(TlsError::OwnCertificateExpired { .. })), "{error:?}");
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let cluster = TestCluster::new(1);
    let addr = serve(cluster.identity(NodeRole::Manager)).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity::certificate(&cluster.root.cert_pem, "root").unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = role_dns_name(NodeRole::Manager, &cluster.id).try_into().unwrap();
    let tcp = tokio::net::TcpStream::connect(&addr).await.unwrap();
    let error = tokio_rustls::TlsConnector::from(Arc::new(old)).connect(name, tcp).await.expect_err("must be refused");
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_a_sentence() {
    let cluster = TestCluster::new(1);
    let error = token_channel("127.0.0.1:1", &cluster.token()).await.expect_err("nobody listens");
    assert!(error.to_string().starts_with("127.0.0.1:1 does not answer"), "{error}");
    for addr in ["", "localhost", ":2377", "host:", "host:0", "host:x"] {
        let error = token_channel(addr, &cluster.token()).await.expect_err("not an address");
        assert!(matches!(error, TransportError::BadAddress(_)), "{addr}: {error:?}");
    }
}

#[test]
fn tokens_round_trip_and_every_changed_character_matters() {
    let cluster = TestCluster::new(1);
    let text = JoinToken::generate(&cluster.root.cert_pem, u128::MAX).unwrap();
    assert_eq!(text.len(), "ORCHTKN-1-".len() + 50 + 1 + 25);
    let token = JoinToken::parse(&text).unwrap();
    assert_eq!(token.to_string(), text);
    assert_eq!(JoinToken::parse(&format!(" {text}\n")).unwrap(), token);
    for place in 0..text.len() {
        let mut changed = text.clone().into_bytes();
        changed[place] = if changed[place] == b'0' { b'1' } else { b'0' };
        let changed = JoinToken::parse(&String::from_utf8(changed).unwrap());
        assert_ne!(changed.as_ref().ok(), Some(&token), "character {place}");
    }
}

#[test]
fn what_is_not_a_token_is_refused() {
    let good = TestCluster::new(1).token().to_string();
    for text in ["", "ORCHTKN", "ORCHTKN-1-a-b", &good[..good.len() - 1], &good.to_uppercase(), &format!("{good}-")] {
        assert_eq!(JoinToken::parse(text), Err(TokenError::Malformed), "{text}");
    }
    let too_large = format!("ORCHTKN-1-{}-{}", "z".repeat(50), "0".repeat(25));
    assert_eq!(JoinToken::parse(&too_large), Err(TokenError::Malformed));
    assert_eq!(JoinToken::parse("SWMTKN-1-x-y"), Err(TokenError::Swarm));
    assert_eq!(JoinToken::parse(&good.replacen("-1-", "-2-", 1)), Err(TokenError::UnknownVersion("2".to_owned())));
}

#[test]
fn an_identity_survives_a_crash_while_it_is_saved() {
    let cluster = TestCluster::new(1);
    let (old, new) = (cluster.identity(NodeRole::Worker), cluster.identity(NodeRole::Worker));
    let dir = tempfile::tempdir().unwrap();
    old.save(dir.path()).unwrap();
    assert_eq!(Identity::load(dir.path()).unwrap(), old);

    std::fs::write(dir.path().join("node.key.next"), &new.key_pem).unwrap();
    assert_eq!(Identity::load(dir.path()).unwrap(), old, "the new certificate is not there yet");
    std::fs::write(dir.path().join("node.crt"), &new.cert_pem).unwrap();
    assert_eq!(Identity::load(dir.path()).unwrap(), new, "only the key's last rename is missing");
    new.save(dir.path()).unwrap();
    assert_eq!(Identity::load(dir.path()).unwrap(), new);

    std::fs::write(dir.path().join("node.crt"), &old.cert_pem).unwrap();
    assert!(matches!(Identity::load(dir.path()), Err(TlsError::KeyMismatch { .. })));
}

/// In the middle of a rotation of the root: nodes that have heard of it and nodes that have not.
#[tokio::test]
async fn nodes_on_both_sides_of_a_rotation_know_each_other() {
    let cluster = TestCluster::new(1);
    let next = generate_root(&cluster.id, SystemTime::now()).unwrap();
    let crossed = crate::ca::cross_sign(&cluster.root, &next, &cluster.id, SystemTime::now()).unwrap();
    let both = crate::ca::bundle([cluster.root.cert_pem.as_str(), &next.cert_pem]);
    let renewed = |role, roots: &str, chain: &str| {
        let key = new_key_and_csr().unwrap();
        let cert = sign_csr(&next, &key.csr_pem, &NodeId::from_random(8), &cluster.id, role, HOUR, SystemTime::now());
        let chain = crate::ca::bundle([cert.unwrap().as_str(), chain]);
        Identity::from_pem(roots.to_owned(), chain, key.key_pem).unwrap()
    };
    let old = |role| cluster.identity(role);
    let told = |role| Identity { root_pem: both.clone(), ..old(role) };
    let new = |role| renewed(role, &both, &crossed);
    let done = |role| renewed(role, &next.cert_pem, "");
    for (what, server, client, is_known) in [
        ("not told, renewed", old(NodeRole::Manager), new(NodeRole::Worker), true),
        ("renewed, not told", new(NodeRole::Manager), old(NodeRole::Worker), true),
        ("told, done", told(NodeRole::Manager), done(NodeRole::Worker), false),
        ("renewed, done", new(NodeRole::Manager), done(NodeRole::Worker), true),
        ("done, renewed", done(NodeRole::Manager), new(NodeRole::Worker), true),
        ("done, not told", done(NodeRole::Manager), old(NodeRole::Worker), false),
    ] {
        let addr = serve(server).await;
        let answer = match tls_channel(&addr, &client, NodeRole::Manager).await {
            Ok(channel) => {
                NodeControlClient::new(channel).info(wire::Empty {}).await.map(drop).map_err(|e| e.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(answer.is_ok(), is_known, "{what}: {answer:?}");
    }
    // A joiner with the present token, and one with the next.
    let addr = serve(new(NodeRole::Manager)).await;
    token_channel(&addr, &cluster.token()).await.unwrap();
    let token = JoinToken::parse(&JoinToken::generate(&next.cert_pem, 42).unwrap()).unwrap();
    token_channel(&addr, &token).await.unwrap();
    let addr = serve(done(NodeRole::Manager)).await;
    let error = token_channel(&addr, &cluster.token()).await.expect_err("the old root is gone");
    assert!(matches!(error, TransportError::WrongToken { .. }), "{error:?}");
}

/// A server whose identity can change, and a hand on its connections.
async fn serve_shared(identity: &SharedIdentity) -> (String, Connections) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (connections, incoming) = tls_doors(listener, identity.clone());
    let server = tonic::transport::Server::builder().add_service(node::NodeControlServer::new(Echo));
    tokio::spawn(server.serve_with_incoming(incoming));
    (addr, connections)
}

type Connection = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// One connection that does not come back when it was cut.
async fn connection(addr: &str, identity: &Identity) -> Connection {
    let tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(identity).unwrap()));
    connector.connect(server_name(identity, NodeRole::Manager).unwrap(), tcp).await.unwrap()
}

/// Whether the server ends the connection within `limit`.
async fn is_cut(connection: &mut Connection, limit: Duration) -> bool {
    let mut rest = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(connection, &mut rest);
    // However it ends.
    tokio::time::timeout(limit, end).await.is_ok()
}

const SOON: Duration = Duration::from_secs(10);
const A_MOMENT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_connection_ends_when_its_root_is_dropped_and_others_stay() {
    let (old, new) = (TestCluster::new(1), TestCluster::new(1));
    let both = |mut identity: Identity| {
        identity.root_pem = format!("{}{}", old.root.cert_pem, new.root.cert_pem);
        identity
    };
    let shared = SharedIdentity::new(both(new.identity(NodeRole::Manager)));
    let (addr, _) = serve_shared(&shared).await;
    let mut of_old = connection(&addr, &both(old.identity(NodeRole::Worker))).await;
    let mut of_new = connection(&addr, &both(new.identity(NodeRole::Worker))).await;
    assert!(!is_cut(&mut of_old, A_MOMENT).await);
    shared.replace(new.identity(NodeRole::Manager));
    assert!(is_cut(&mut of_old, SOON).await);
    assert!(!is_cut(&mut of_new, A_MOMENT).await);
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let cluster = TestCluster::new(1);
    let (addr, _) = serve_shared(&SharedIdentity::new(cluster.identity(NodeRole::Manager))).await;
    let soon = cluster.identity_until(NodeRole::Worker, SystemTime::now() + Duration::from_secs(4));
    let mut short = connection(&addr, &soon).await;
    let mut long = connection(&addr, &cluster.identity(NodeRole::Worker)).await;
    assert!(!is_cut(&mut short, A_MOMENT).await);
    assert!(is_cut(&mut short, SOON).await);
    assert!(!is_cut(&mut long, A_MOMENT).await);
}

#[tokio::test]
async fn a_connection_ends_when_its_node_is_not_welcome_any_more() {
    let cluster = TestCluster::new(1);
    let (addr, connections) = serve_shared(&SharedIdentity::new(cluster.identity(NodeRole::Manager))).await;
    let mut worker = connection(&addr, &cluster.identity(NodeRole::Worker)).await;
    let mut manager = connection(&addr, &cluster.identity(NodeRole::Manager)).await;
    assert!(!is_cut(&mut worker, A_MOMENT).await);
    connections.retain(|peer| peer.role == NodeRole::Manager);
    assert!(is_cut(&mut worker, SOON).await);
    assert!(!is_cut(&mut manager, A_MOMENT).await);
}

type Client = NodeControlClient<tonic::transport::Channel>;

/// Waits until calls fail for this reason; what is cut in the middle of a call says less.
async fn until_refused(client: &mut Client, why: &str) {
    let mut last = None;
    let failing = async {
        loop {
            last = client.info(wire::Empty {}).await.err().map(|status| crate::report::chain(&status));
            if last.as_ref().is_some_and(|said| said.contains(why)) {
                return;
            }
            tokio::time::sleep(A_MOMENT).await;
        }
    };
    let outcome = tokio::time::timeout(SOON, failing).await;
    assert!(outcome.is_ok(), "the server is still believed: {last:?}");
}

#[tokio::test]
async fn a_client_leaves_a_server_whose_certificate_has_expired() {
    let cluster = TestCluster::new(1);
    let brief = cluster.identity_until(NodeRole::Manager, SystemTime::now() + Duration::from_secs(3));
    let server = SharedIdentity::new(brief);
    let (addr, _) = serve_shared(&server).await;
    let us = cluster.identity(NodeRole::Worker);
    let mut client = NodeControlClient::new(tls_channel(&addr, &us, NodeRole::Manager).await.unwrap());
    client.info(wire::Empty {}).await.unwrap();
    until_refused(&mut client, "has expired").await;
    // Renewed, it is believed again.
    server.replace(cluster.identity(NodeRole::Manager));
    client.info(wire::Empty {}).await.unwrap();
}

#[tokio::test]
async fn a_client_leaves_a_server_whose_root_was_dropped_and_reconnects_as_who_it_is_by_then() {
    let (old, new) = (TestCluster::new(1), TestCluster::new(1));
    let both = |mut identity: Identity| {
        identity.root_pem = format!("{}{}", old.root.cert_pem, new.root.cert_pem);
        identity
    };
    let server = SharedIdentity::new(both(old.identity(NodeRole::Manager)));
    let (addr, _) = serve_shared(&server).await;
    let (ours, others) = (both(old.identity(NodeRole::Worker)), both(new.identity(NodeRole::Worker)));
    let (ours, others) = (SharedIdentity::new(ours), SharedIdentity::new(others));
    let connect = |identity: SharedIdentity| {
        let addr = addr.clone();
        async move { NodeControlClient::new(shared_channel(&addr, &identity, NodeRole::Manager).await.unwrap()) }
    };
    let (mut client, mut other) = (connect(ours.clone()).await, connect(others).await);
    for client in [&mut client, &mut other] {
        client.info(wire::Empty {}).await.unwrap();
    }
    ours.replace(new.identity(NodeRole::Worker));
    until_refused(&mut client, "belongs to another cluster").await;
    other.info(wire::Empty {}).await.unwrap();
    server.replace(new.identity(NodeRole::Manager));
    client.info(wire::Empty {}).await.unwrap();
}

/// Who resumed a session would not be asked for its certificate, which may have expired since.
#[tokio::test]
async fn no_session_is_resumed() {
    let cluster = TestCluster::new(1);
    let addr = serve(cluster.identity(NodeRole::Manager)).await;
    let us = cluster.identity(NodeRole::Worker);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(&us).unwrap()));
    for _ in 0..2 {
        let tcp = tokio::net::TcpStream::connect(&addr).await.unwrap();
        let mut stream = connector.connect(server_name(&us, NodeRole::Manager).unwrap(), tcp).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        // Tickets would come after the handshake.
        assert!(!is_cut(&mut stream, A_MOMENT).await);
    }
}
