//! Connections between daemons: unix sockets on a machine, mutual TLS between machines.
//!
//! Invariants: every connection attempt and handshake has a time limit; nobody can occupy more than a bounded number of
//! handshakes and connections, and whoever takes the most loses first; a connection lives no longer than what it was
//! admitted for; a failure says which daemon or address, and what to do.

mod doors;
mod faith;
mod gather;
pub mod pace;
mod seats;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime},
};

use futures::Stream;
use http::Uri;
use hyper_util::rt::TokioIo;
use orch_model::node::NodeRole;
use rustls::{CertificateError, ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixListener, UnixStream},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsConnector, client};
use tonic::transport::{
    Channel, Endpoint,
    server::{Connected, UdsConnectInfo},
};
use tower::service_fn;

pub use self::doors::{Connections, TlsConnection, tls_doors, tls_incoming};
use self::faith::Faithful;
use self::gather::Gathering;
use self::pace::{Pace, Rate};
use self::seats::{Limit, Seat, Seats};
use crate::tls::{self, Identity, JoinToken, SharedIdentity, TlsError, WrongRoot, role_word};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What may lie unread of each answer of a [`patient_channel`], and how many there may be: as many as a manager takes calls
/// on one connection.
const UNREAD_BYTES: u32 = 256 << 10;
const UNREAD_ANSWERS: u32 = 256;
/// Connections to a local socket, by process.
const LOCAL_CONNECTIONS: Limit = Limit { total: 512, per_owner: 256 };
/// New connections to a local socket, by process.
const LOCAL_RATE: Rate = Rate { burst: 64, per_second: 256 };
/// After so many that were hung up on, whoever makes them has to wait, at the kernel's queue. Others wait while they are
/// hung up on, so it is few at a time.
const REFUSED_AT_ONCE: u32 = 16;
const REFUSED_PAUSE: Duration = Duration::from_millis(3);
/// After a failed accept (usually: no file descriptors left), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("the {daemon} daemon does not run on this machine (no answer at {path:?})")]
    NotRunning { daemon: String, path: PathBuf, source: io::Error },
    #[error("no permission to use {path:?}: run this command as root or as a member of the socket's group")]
    NotAllowed { path: PathBuf, source: io::Error },
    #[error("another {daemon} daemon already answers at {path:?}")]
    AlreadyRunning { daemon: String, path: PathBuf },
    #[error("cannot open the socket {path:?}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("{0:?} is not an address: expected HOST:PORT, such as 192.168.1.5:2377")]
    BadAddress(String),
    #[error("{addr} does not answer: check the address, that orch runs there, and that no firewall is in between")]
    NoAnswer { addr: String, source: io::Error },
    #[error("{addr} does not answer within {} s: check the address, and that no firewall is in between", .limit.as_secs())]
    TimedOut { addr: String, limit: Duration },
    #[error("the node at {addr} belongs to another cluster")]
    AnotherCluster { addr: String },
    #[error(
        "the join token does not belong to the cluster that answers at {addr}: \
         check the address, or get a token with \"orch join-token worker\" on a manager of that cluster"
    )]
    WrongToken { addr: String },
    #[error("what answers at {addr} is not a {role} of this cluster")]
    AnotherRole { addr: String, role: &'static str },
    #[error(
        "the certificate of the node at {addr} has expired; look at orch's log there, and compare the clocks of the two machines"
    )]
    Expired { addr: String },
    #[error("the certificate of the node at {addr} is not valid yet: compare the clocks of the two machines")]
    NotValidYet { addr: String },
    #[error("what answers at {addr} is not an orch node (the TLS handshake failed)")]
    Handshake { addr: String, source: io::Error },
    #[error("the connection to {addr} broke while it was set up")]
    Http { addr: String, source: tonic::transport::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A connection to a daemon of this machine.
pub async fn unix_channel(path: &Path) -> Result<Channel, TransportError> {
    let first = UnixStream::connect(path).await.map_err(|source| unix_error(path, source))?;
    let endpoint = endpoint("localhost")?;
    let (target, first) = (path.to_owned(), Prefetched::new(first));
    let connector = service_fn(move |_: Uri| {
        let (target, first) = (target.clone(), first.take());
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => UnixStream::connect(target).await?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let addr = path.display().to_string();
    endpoint.connect_with_connector(connector).await.map_err(|source| TransportError::Http { addr, source })
}

/// A mutually authenticated connection to the node at `addr` (`host:port`), which must have `peer_role` in the same
/// cluster. It reconnects by itself, with the same identity.
pub async fn tls_channel(addr: &str, identity: &Identity, peer_role: NodeRole) -> Result<Channel, TransportError> {
    shared_channel(addr, &SharedIdentity::new(identity.clone()), peer_role).await
}

/// As [`tls_channel`], with an identity that is renewed: it reconnects with the one of then, and ends when the roots of
/// now say nothing good of what the other end showed.
pub async fn shared_channel(
    addr: &str,
    identity: &SharedIdentity,
    peer_role: NodeRole,
) -> Result<Channel, TransportError> {
    let trust = Trust::Cluster { identity: identity.clone(), role: peer_role, config: tls::client_config };
    Dialer { addr: checked(addr)?, trust }.channel().await
}

/// As [`shared_channel`], to the manager at `addr` and for answers that may lie unread for as long as their readers like:
/// none of them takes the room of the others.
pub async fn patient_channel(addr: &str, identity: &SharedIdentity) -> Result<Channel, TransportError> {
    let trust = Trust::Cluster { identity: identity.clone(), role: NodeRole::Manager, config: tls::client_config };
    let dialer = Dialer { addr: checked(addr)?, trust };
    let endpoint = endpoint(addr)?
        .initial_stream_window_size(UNREAD_BYTES)
        .initial_connection_window_size(UNREAD_BYTES * UNREAD_ANSWERS);
    dialer.channel_of(endpoint).await
}

/// As [`shared_channel`], to the manager at `addr` and for raft's messages alone: see [`TlsConnection::is_for_raft`].
pub async fn raft_channel(addr: &str, identity: &SharedIdentity) -> Result<Channel, TransportError> {
    let config = tls::raft_client_config;
    let trust = Trust::Cluster { identity: identity.clone(), role: NodeRole::Manager, config };
    Dialer { addr: checked(addr)?, trust }.channel().await
}

/// A connection without a certificate to a manager of the token's cluster. Nothing is sent before the server has shown
/// the root certificate that the token names.
pub async fn token_channel(addr: &str, token: &JoinToken) -> Result<Channel, TransportError> {
    let trust = Trust::Token(Arc::new(tls::token_client_config(token)?));
    Dialer { addr: checked(addr)?, trust }.channel().await
}

/// Listens on a local socket with this file mode. A socket that nobody listens on any more is replaced.
pub fn unix_incoming(path: &Path, mode: u32) -> Result<UnixIncoming, TransportError> {
    let failed = |source| TransportError::Socket { path: path.to_owned(), source };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(TransportError::AlreadyRunning { daemon: daemon_of(path), path: path.to_owned() });
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    // The socket gets its name only after its mode, so that there is no moment with a wider one.
    let unnamed = path.with_extension(format!("{}.tmp", std::process::id()));
    match fs::remove_file(&unnamed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&unnamed).map_err(failed)?;
    fs::set_permissions(&unnamed, fs::Permissions::from_mode(mode)).map_err(failed)?;
    fs::rename(&unnamed, path).map_err(failed)?;
    let (seats, pace) = (Seats::new(LOCAL_CONNECTIONS), Pace::new(LOCAL_RATE));
    Ok(UnixIncoming { listener, seats, pace, refused: 0, pause: None })
}

/// What a server holds of a connection while it lives: a seat, and for strangers a time limit.
#[derive(Debug)]
struct Lease<K: std::hash::Hash + Eq + Clone, V: Clone = ()> {
    seat: Seat<K, V>,
    until: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

impl<K: std::hash::Hash + Eq + Clone, V: Clone> Lease<K, V> {
    fn new(seat: Seat<K, V>, lifetime: Option<Duration>) -> Self {
        Self { seat, until: lifetime.map(|lifetime| Box::pin(sleep(lifetime))), is_over: false }
    }

    /// Ready with an error when the connection has to go.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let is_over = self.is_over
            || Pin::new(self.seat.lost()).poll(cx).is_ready()
            || self.until.as_mut().is_some_and(|until| until.as_mut().poll(cx).is_ready());
        self.is_over = is_over;
        if is_over { Poll::Ready(io::ErrorKind::ConnectionAborted.into()) } else { Poll::Pending }
    }
}

/// Connections to a local socket.
#[derive(Debug)]
pub struct UnixIncoming {
    listener: UnixListener,
    seats: Seats<i32>,
    pace: Pace<i32>,
    refused: u32,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for UnixIncoming {
    type Item = io::Result<UnixConnection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => {
                    let process = stream.peer_cred().ok().and_then(|cred| cred.pid()).unwrap_or_default();
                    if !self.pace.admit(process, Instant::now()) {
                        self.refused += 1;
                        if self.refused >= REFUSED_AT_ONCE {
                            tracing::debug!(process, "a process makes too many connections");
                            self.refused = 0;
                            self.pause = Some(Box::pin(sleep(REFUSED_PAUSE)));
                        }
                        continue;
                    }
                    let lease = Lease::new(self.seats.take(process, ()), None);
                    return Poll::Ready(Some(Ok(UnixConnection { stream, lease })));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a local connection");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// A connection that was made to a local socket.
#[derive(Debug)]
pub struct UnixConnection {
    stream: UnixStream,
    lease: Lease<i32>,
}

impl Connected for UnixConnection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

/// Reading and writing end with the lease: a server that waits for a client does one or the other.
macro_rules! leased {
    ($connection:ty) => {
        impl AsyncRead for $connection {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                if let Poll::Ready(over) = self.lease.poll_over(cx) {
                    return Poll::Ready(Err(over));
                }
                Pin::new(&mut self.stream).poll_read(cx, buf)
            }
        }

        impl AsyncWrite for $connection {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write(cx, buf)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_flush(cx)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_shutdown(cx)
            }
        }
    };
}
leased!(UnixConnection);
use leased;

/// Dials one address again and again on behalf of a channel.
#[derive(Clone)]
struct Dialer {
    addr: String,
    trust: Trust,
}

/// Who is believed to be who.
#[derive(Clone)]
enum Trust {
    /// The roots of the identity, each time as it is then.
    Cluster { identity: SharedIdentity, role: NodeRole, config: fn(&Identity) -> Result<ClientConfig, TlsError> },
    /// Managers of the cluster that a join token names.
    Token(Arc<ClientConfig>),
}

impl Trust {
    fn role(&self) -> NodeRole {
        match self {
            Self::Cluster { role, .. } => *role,
            Self::Token(_) => NodeRole::Manager,
        }
    }
}

impl Dialer {
    async fn channel(self) -> Result<Channel, TransportError> {
        let endpoint = endpoint(&self.addr)?;
        self.channel_of(endpoint).await
    }

    /// The first connection is made here and not inside the channel, so that its failure keeps its meaning.
    async fn channel_of(self, endpoint: Endpoint) -> Result<Channel, TransportError> {
        let first = Prefetched::new(self.dial().await?);
        let addr = self.addr.clone();
        let connector = service_fn(move |_: Uri| {
            let (dialer, first) = (self.clone(), first.take());
            async move {
                let stream = match first {
                    Some(stream) => stream,
                    None => dialer.dial().await?,
                };
                Ok::<_, TransportError>(TokioIo::new(Gathering::new(stream)))
            }
        });
        endpoint.connect_with_connector(connector).await.map_err(|source| TransportError::Http { addr, source })
    }

    async fn dial(&self) -> Result<Faithful, TransportError> {
        match &self.trust {
            Trust::Cluster { identity, role, config } => {
                let mut renewals = identity.renewals();
                let current = renewals.borrow_and_update().clone();
                let not_after = current.not_after();
                if not_after <= SystemTime::now() {
                    return Err(TlsError::OwnCertificateExpired { not_after }.into());
                }
                // Another one each time: no session of before is resumed, so the server always shows its certificate.
                let config = Arc::new(config(&current)?);
                let stream = self.handshake(config, tls::server_name(&current, *role)?).await?;
                Ok(Faithful::new(stream, *role, identity.clone(), renewals))
            }
            Trust::Token(config) => {
                // Only announced; the verifier derives the name that counts from the root certificate.
                let name =
                    ServerName::try_from("manager.orch").map_err(|error| TlsError::Verifier(error.to_string()))?;
                Ok(Faithful::brief(self.handshake(Arc::clone(config), name).await?))
            }
        }
    }

    async fn handshake(
        &self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<client::TlsStream<TcpStream>, TransportError> {
        let addr = self.addr.clone();
        let tcp = match timeout(CONNECT_TIMEOUT, TcpStream::connect(&addr)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(TransportError::NoAnswer { addr, source }),
            Err(_) => return Err(TransportError::TimedOut { addr, limit: CONNECT_TIMEOUT }),
        };
        tcp.set_nodelay(true).map_err(|source| TransportError::NoAnswer { addr: addr.clone(), source })?;
        let connector = TlsConnector::from(config);
        match timeout(CONNECT_TIMEOUT, connector.connect(name, tcp)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(self.refusal(source)),
            Err(_) => Err(TransportError::TimedOut { addr, limit: CONNECT_TIMEOUT }),
        }
    }

    /// Puts a failed handshake into words.
    fn refusal(&self, source: io::Error) -> TransportError {
        let addr = self.addr.clone();
        let tls_error = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(rustls::Error::InvalidCertificate(reason)) = tls_error else {
            return TransportError::Handshake { addr, source };
        };
        match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TransportError::Expired { addr },
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TransportError::NotValidYet { addr }
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TransportError::AnotherCluster { addr },
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TransportError::AnotherRole { addr, role: role_word(self.trust.role()) }
            }
            CertificateError::Other(other) if other.0.is::<WrongRoot>() => TransportError::WrongToken { addr },
            _ => TransportError::Handshake { addr, source },
        }
    }
}

/// The connection that was made before the channel asked for its first.
struct Prefetched<S>(Arc<Mutex<Option<S>>>);

impl<S> Prefetched<S> {
    fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Some(stream))))
    }

    fn take(&self) -> Option<S> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn checked(addr: &str) -> Result<String, TransportError> {
    let port = addr.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(port)) if port > 0 => Ok(addr.to_owned()),
        _ => Err(TransportError::BadAddress(addr.to_owned())),
    }
}

/// The scheme says "http" because the connectors above do the TLS.
fn endpoint(authority: &str) -> Result<Endpoint, TransportError> {
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|_| TransportError::BadAddress(authority.to_owned()))?;
    Ok(endpoint
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

fn unix_error(path: &Path, source: io::Error) -> TransportError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            TransportError::NotRunning { daemon: daemon_of(&path), path, source }
        }
        io::ErrorKind::PermissionDenied => TransportError::NotAllowed { path, source },
        _ => TransportError::Socket { path, source },
    }
}

/// `/run/orch/manager.sock` is the manager's.
fn daemon_of(path: &Path) -> String {
    path.file_stem().map_or_else(|| "orch".to_owned(), |stem| stem.to_string_lossy().into_owned())
}
