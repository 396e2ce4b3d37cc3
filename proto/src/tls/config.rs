//! TLS configurations: who is accepted by whom.

use std::{fmt, sync::Arc};

use orch_model::node::NodeRole;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use sha2::{Digest, Sha256};

use super::{Identity, JoinToken, TlsError, identity::certificates, peer::PeerIdentity, role_dns_name};

/// HTTP/2, the only protocol that gRPC speaks.
const ALPN: &[u8] = b"h2";
/// The same, for a connection that a manager makes for raft's messages alone.
pub(crate) const RAFT_ALPN: &[u8] = b"orch-raft";

/// For a server that is this identity. A client's certificate is optional and, when shown, checked against the root.
pub fn server_config(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(client_verifier(identity)?)
        .with_single_cert(chain(identity)?, key(identity)?)?;
    config.alpn_protocols = vec![RAFT_ALPN.to_vec(), ALPN.to_vec()];
    // Who resumes a session is not asked for a certificate again, however long ago it expired.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Checks clients' certificates against the roots that this identity trusts.
pub(crate) fn client_verifier(identity: &Identity) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Verifier(error.to_string()))
}

/// For a client that is this identity and talks to servers of its own cluster; see [`server_name`].
pub fn client_config(identity: &Identity) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(chain(identity)?, key(identity)?)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// As [`client_config`], for raft's messages. A manager of an older version takes it for any other connection.
pub(crate) fn raft_client_config(identity: &Identity) -> Result<ClientConfig, TlsError> {
    let mut config = client_config(identity)?;
    config.alpn_protocols.insert(0, RAFT_ALPN.to_vec());
    Ok(config)
}

/// The name that a server must prove to be accepted as one of this role in this identity's cluster.
pub fn server_name(identity: &Identity, role: NodeRole) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(role_dns_name(role, &identity.cluster_id))
        .map_err(|error| TlsError::Verifier(error.to_string()))
}

/// Checks this identity's own certificate as another node would that trusts the same roots.
pub(crate) fn verify_server(identity: &Identity, now: UnixTime) -> Result<(), TlsError> {
    let chain = certificates(&identity.cert_pem, "the node's certificate")?;
    verify_chain(identity, identity.role, &chain, now)
}

/// Checks what a server showed: its certificate, then what leads to a root.
pub(crate) fn verify_chain(
    identity: &Identity,
    role: NodeRole,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(identity)?, provider())
        .build()
        .map_err(|error| TlsError::Verifier(error.to_string()))?;
    let Some((own, between)) = chain.split_first() else { return Ok(()) };
    let name = server_name(identity, role)?;
    verifier.verify_server_cert(own, between, &name, &[], now).map(drop).map_err(TlsError::Config)
}

/// For a client that has nothing but a join token: the server must be a manager of the cluster with that root.
pub fn token_client_config(token: &JoinToken) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(RootDigestVerifier { digest: token.digest, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The server showed no root certificate with the token's digest.
#[derive(Debug, thiserror::Error)]
#[error("the root certificate is not the one that the join token names")]
pub(crate) struct WrongRoot;

/// Finds the root certificate by its digest in what the server sends, then trusts that root alone.
struct RootDigestVerifier {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for RootDigestVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootDigestVerifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for RootDigestVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let root = intermediates.iter().find(|cert| Sha256::digest(cert).as_slice() == self.digest);
        let root = root.ok_or_else(|| refusal(WrongRoot))?;
        // The root signs for its cluster alone, or for those of one owner: then the token's secret decides.
        let cluster = PeerIdentity::from_certificate(end_entity).map_err(refusal)?.cluster_id;
        let manager = ServerName::try_from(role_dns_name(NodeRole::Manager, &cluster)).map_err(refusal)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(refusal)?
            .verify_server_cert(end_entity, intermediates, &manager, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn refusal(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(&identity.root_pem, "the root certificate")? {
        roots.add(root)?;
    }
    Ok(Arc::new(roots))
}

/// The roots go along although a member has them: a joiner finds the one that it knows there by its digest.
fn chain(identity: &Identity) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let mut chain = certificates(&identity.cert_pem, "the node's certificate")?;
    chain.extend(certificates(&identity.root_pem, "the root certificate")?);
    Ok(chain)
}

fn key(identity: &Identity) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
        .map_err(|error| TlsError::Pem { what: "the node's private key", reason: error.to_string() })
}
