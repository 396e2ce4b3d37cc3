//! Clients that do not behave: TLS with any certificate, HTTP/2 frames written by hand, calls without a generated client.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use http::Request;
use orch_model::{ClusterId, NodeId, cluster::RootCa, node::NodeRole};
use orch_proto::{
    ca,
    tls::{self, Identity},
};
use rustls::{
    ClientConfig, SupportedProtocolVersion,
    client::{ResolvesClientCert, WebPkiServerVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{Code, body::Body, transport::Channel};
use tower::{Service, ServiceExt};

/// How long a server may take to hang up, or to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// A node of the cluster with this root, as its CA would have made it.
pub(crate) struct Forgery<'a> {
    pub(crate) root: &'a RootCa,
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) role: NodeRole,
    pub(crate) now: SystemTime,
    pub(crate) lifetime: Duration,
}

impl Forgery<'_> {
    /// Certificate chain and key.
    pub(crate) fn identity(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = ca::new_key_and_csr().unwrap();
        let cert = ca::sign_csr(self.root, &key.csr_pem, &self.node, &self.cluster, self.role, self.lifetime, self.now)
            .unwrap();
        (vec![der(&cert)], PrivateKeyDer::from_pem_slice(key.key_pem.as_bytes()).unwrap())
    }
}

pub(crate) fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

pub(crate) fn of_identity(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    (vec![der(&identity.cert_pem)], PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap())
}

/// Shows one certificate to whoever asks, whatever issuers it is asked for.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What a client says in its handshake.
pub(crate) struct Hello {
    pub(crate) shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    pub(crate) version: &'static SupportedProtocolVersion,
    pub(crate) alpn: &'static [u8],
}

impl Hello {
    pub(crate) fn with(shown: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)) -> Self {
        Self { shown: Some(shown), version: &rustls::version::TLS13, alpn: b"h2" }
    }

    pub(crate) fn stranger() -> Self {
        Self { shown: None, version: &rustls::version::TLS13, alpn: b"h2" }
    }

    /// A TLS connection to the manager of `cluster` at `addr`; its certificate is checked against `root_pem`.
    pub(crate) async fn connect(
        self,
        addr: &str,
        root_pem: &str,
        cluster: &ClusterId,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.over(TcpStream::connect(addr).await?, root_pem, cluster).await
    }

    pub(crate) async fn over(
        self,
        tcp: TcpStream,
        root_pem: &str,
        cluster: &ClusterId,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der(root_pem)).unwrap();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_webpki_verifier(verifier);
        let mut config = match self.shown {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let key = CertifiedKey::new(chain, provider.key_provider.load_private_key(key).unwrap());
                config.with_client_cert_resolver(Arc::new(Always(Arc::new(key))))
            }
        };
        config.alpn_protocols = vec![self.alpn.to_vec()];
        let name = format!("manager.{cluster}.orch").try_into().unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }
}

/// Whether the server still talks HTTP/2 on this connection: it sends its settings.
pub(crate) async fn is_served(mut stream: TlsStream<TcpStream>) -> bool {
    if stream.write_all(PREFACE).await.is_err() || stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.is_err() {
        return false;
    }
    let mut head = [0; 9];
    matches!(timeout(LIMIT, stream.read_exact(&mut head)).await, Ok(Ok(_))) && head[3] == SETTINGS
}

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_HEADERS: u8 = 4;
/// `INITIAL_WINDOW_SIZE` 0: this client takes no answer at all.
pub(crate) const TAKE_NOTHING: &[u8] = &[0, 4, 0, 0, 0, 0];

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a gRPC call, literally and without a table.
pub(crate) fn call_headers(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "manager"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A gRPC message as it is sent: not compressed, its length, its bytes.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    framed.extend(bytes);
    framed
}

/// Reads until the server hangs up; what it has said by then, or `None` when it does not hang up.
pub(crate) async fn until_hung_up(mut stream: impl AsyncReadExt + Unpin) -> Option<Vec<u8>> {
    let mut said = Vec::new();
    let ended = timeout(LIMIT, stream.read_to_end(&mut said)).await;
    ended.is_ok().then_some(said)
}

/// One call with any body and headers; its gRPC code and message.
pub(crate) async fn call(mut channel: Channel, path: &str, body: Body, metadata: &[(&str, &str)]) -> (Code, String) {
    let mut request = Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    for (key, value) in metadata {
        request = request.header(*key, *value);
    }
    let request = request.body(body).unwrap();
    let answer = timeout(LIMIT, async { channel.ready().await?.call(request).await }).await.expect("an answer in time");
    let response = match answer {
        Ok(response) => response,
        Err(error) => return (Code::Unavailable, format!("{error:?}")),
    };
    // A refusal has no body: its status is in the headers.
    let text = |key: &str| response.headers().get(key).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    match text("grpc-status").parse::<i32>() {
        Ok(code) => (Code::from(code), text("grpc-message")),
        Err(_) => (Code::Ok, String::new()),
    }
}

/// An empty message.
pub(crate) fn nothing() -> Body {
    body(vec![message(&[]).into()])
}

/// A body of these pieces, one after the other.
pub(crate) fn body(pieces: Vec<bytes::Bytes>) -> Body {
    Body::new(Pieces(Mutex::new(pieces.into())))
}

struct Pieces(Mutex<std::collections::VecDeque<bytes::Bytes>>);

impl http_body::Body for Pieces {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, tonic::Status>>> {
        let next = self.0.lock().unwrap().pop_front();
        std::task::Poll::Ready(next.map(|bytes| Ok(http_body::Frame::data(bytes))))
    }
}

/// A request for a certificate that asks for everything: another node's name, a manager's role and names, to be a CA.
pub(crate) fn greedy_csr(victim: &str, cluster: &ClusterId) -> (String, String) {
    use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair};
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let names = vec![format!("manager.{cluster}.orch"), victim.to_owned(), "localhost".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, victim);
    params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
    params.distinguished_name.push(DnType::OrganizationalUnitName, "orch-manager");
    let mut asking_to_sign = params.clone();
    asking_to_sign.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Not every request may carry that; then the rest is asked for.
    let csr = asking_to_sign.serialize_request(&key).or_else(|_| params.serialize_request(&key)).unwrap();
    (csr.pem().unwrap(), key.serialize_pem())
}

/// As `tls::peer_identity` reads it.
pub(crate) fn subject(cert_pem: &str) -> tls::PeerIdentity {
    tls::PeerIdentity::from_certificate(&der(cert_pem)).unwrap()
}

/// A channel over a connection that is there already.
pub(crate) async fn channel_over(stream: TlsStream<TcpStream>) -> Option<Channel> {
    let first = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = first.lock().unwrap().take();
        async move {
            let stream = stream.ok_or(std::io::ErrorKind::NotConnected)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    tonic::transport::Endpoint::from_static("http://manager").connect_with_connector(connector).await.ok()
}

pub(crate) fn encoded(message: &impl prost::Message) -> Vec<u8> {
    message.encode_to_vec()
}

/// These bytes, and then neither more nor an end.
pub(crate) fn endless(bytes: bytes::Bytes) -> Body {
    Body::new(Endless(Mutex::new(Some(bytes))))
}

struct Endless(Mutex<Option<bytes::Bytes>>);

impl http_body::Body for Endless {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, tonic::Status>>> {
        match self.0.lock().unwrap().take() {
            Some(bytes) => std::task::Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
            None => std::task::Poll::Pending,
        }
    }
}
