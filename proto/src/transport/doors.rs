//! The doors of a TLS listener: who gets in, and who has to leave again.
//!
//! A certificate is looked at when a connection is made, and what it is worth may change while the connection lives: it
//! expires, its root is dropped, its node is removed. Those connections are cut, the first two here, the last by whoever
//! knows the nodes ([`Connections::retain`]).

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use futures::Stream;
use orch_model::node::NodeRole;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{
    ACCEPT_PAUSE, Lease, leased,
    pace::{Pace, Rate},
    seats::{Limit, Seats},
};
use crate::tls::{self, ConnectionInfo, Identity, PeerIdentity, SharedIdentity};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// New connections of one address that have not shown a certificate. One that does is forgotten here.
const NEWCOMERS: Rate = Rate { burst: 512, per_second: 256 };
/// After so many that were hung up on: the connections that are in have their turn.
const REFUSED_AT_ONCE: u32 = 64;
const BREATH: Duration = Duration::from_millis(2);
/// Handshakes that may be under way at once. An honest one takes milliseconds, so the oldest can go.
const HANDSHAKES: Limit = Limit { total: 1024, per_owner: 512 };
/// Connections of one node (and of all): its session, its manager's raft and calls that are passed on, logs and commands.
const NODE_CONNECTIONS: Limit = Limit { total: 16_384, per_owner: 256 };
/// Connections without a certificate, by address. They can only ask to join.
const STRANGERS: Limit = Limit { total: 256, per_owner: 64 };
/// Longer than any join takes.
const STRANGER_LIFETIME: Duration = Duration::from_secs(30);
/// Connections that are ready and that the server has not picked up yet.
const MAX_READY: usize = 64;
/// How often it is looked whose certificate has expired.
const EXPIRY_CHECK: Duration = Duration::from_secs(1);

/// Accepts TLS connections; a client's certificate is optional and verified when shown. Connections whose handshake
/// fails are logged and never reach the stream. Accepting ends when the stream is dropped.
pub fn tls_incoming(listener: TcpListener, identity: SharedIdentity) -> impl Stream<Item = io::Result<TlsConnection>> {
    tls_doors(listener, identity).1
}

/// As [`tls_incoming`], with a hand on the connections that are in.
pub fn tls_doors(
    listener: TcpListener,
    identity: SharedIdentity,
) -> (Connections, impl Stream<Item = io::Result<TlsConnection>>) {
    let (ready, incoming) = mpsc::channel(MAX_READY);
    let doors = Doors {
        newcomers: Arc::new(Mutex::new(Pace::new(NEWCOMERS))),
        handshakes: Seats::new(HANDSHAKES),
        nodes: Seats::new(NODE_CONNECTIONS),
        first_expiry: Arc::default(),
        strangers: Seats::new(STRANGERS),
        identity,
    };
    let connections = Connections(doors.nodes.clone());
    tokio::spawn(accept_loop(listener, doors, ready));
    (connections, ReceiverStream::new(incoming))
}

/// The connections of nodes that a listener has.
#[derive(Debug, Clone)]
pub struct Connections(Seats<Owner, Arc<Shown>>);

impl Connections {
    /// Cuts the connections of nodes that are not to have one any more.
    pub fn retain(&self, mut is_welcome: impl FnMut(&PeerIdentity) -> bool) {
        self.0.retain(|shown| {
            let stays = is_welcome(&shown.peer);
            if !stays {
                tracing::info!(node = %shown.peer.node_id, "cut a connection of a node that may not have one any more");
            }
            stays
        });
    }
}

/// What a node showed when it came in.
#[derive(Debug)]
struct Shown {
    peer: PeerIdentity,
    not_after: SystemTime,
    /// Its certificate, then what leads to a root.
    chain: Vec<CertificateDer<'static>>,
}

/// Whose connection it is, as far as limits go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Owner {
    Node(String),
    Address(IpAddr),
}

impl Owner {
    /// A network of IPv6 is one owner: its addresses cost nothing.
    fn address(addr: SocketAddr) -> Self {
        Self::Address(match addr.ip().to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// A TLS connection that a server accepted; tells requests who sent them (see [`tls::peer_identity`]).
#[derive(Debug)]
pub struct TlsConnection {
    stream: server::TlsStream<TcpStream>,
    info: ConnectionInfo,
    lease: Place,
}

/// Nodes' seats know what they were given for.
#[derive(Debug)]
enum Place {
    Node(Lease<Owner, Arc<Shown>>),
    Stranger(Lease<Owner>),
}

impl Place {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            Self::Node(lease) => lease.poll_over(cx),
            Self::Stranger(lease) => lease.poll_over(cx),
        }
    }
}

impl TlsConnection {
    /// Whether a manager made it for raft's messages alone.
    #[must_use]
    pub fn is_for_raft(&self) -> bool {
        let is_manager = self.info.peer.as_ref().is_some_and(|peer| peer.role == NodeRole::Manager);
        is_manager && self.stream.get_ref().1.alpn_protocol() == Some(tls::RAFT_ALPN)
    }

    /// Lets `runtime` notice from now on what arrives, so that a server there need not be woken by another.
    pub fn move_to(&mut self, runtime: &Handle) -> io::Result<()> {
        let (tcp, _) = self.stream.get_mut();
        let same = std::net::TcpStream::from(tcp.as_fd().try_clone_to_owned()?);
        let _entered = runtime.enter();
        *tcp = TcpStream::from_std(same)?;
        Ok(())
    }
}

impl Connected for TlsConnection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

leased!(TlsConnection);

async fn accept_loop(listener: TcpListener, doors: Doors, ready: mpsc::Sender<io::Result<TlsConnection>>) {
    let mut acceptor = Acceptor::new(doors.identity.clone());
    let mut renewals = doors.identity.renewals();
    let mut checks = interval(EXPIRY_CHECK);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refused = 0;
    loop {
        let accepted = tokio::select! {
            () = ready.closed() => return,
            _ = checks.tick() => {
                doors.cut_expired(SystemTime::now());
                continue;
            }
            // The sender is among the doors.
            _ = renewals.changed() => {
                let doors = doors.clone();
                tokio::task::spawn_blocking(move || doors.cut_distrusted());
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (tcp, remote_addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let owner = Owner::address(remote_addr);
        if !doors.newcomers().admit(owner.clone(), Instant::now()) {
            refused += 1;
            if refused >= REFUSED_AT_ONCE {
                tracing::debug!(%remote_addr, "an address makes too many connections");
                refused = 0;
                // The connections that are in have their turn. Longer, and the kernel's queue would fill up, which would keep
                // others out.
                sleep(BREATH).await;
            }
            continue;
        }
        let Some(current) = acceptor.current() else { continue };
        let (ready, doors) = (ready.clone(), doors.clone());
        let mut seat = doors.handshakes.take(owner, ());
        tokio::spawn(async move {
            let finished = async {
                match handshake(current, tcp, remote_addr, &doors).await {
                    // A closed receiver means that the server is stopping.
                    Ok(connection) => drop(ready.send(Ok(connection)).await),
                    Err(error) => tracing::debug!(%remote_addr, %error, "refused a connection"),
                }
            };
            tokio::select! {
                () = finished => {}
                _ = seat.lost() => tracing::debug!(%remote_addr, "too many handshakes at once: dropped the oldest"),
            }
        });
    }
}

/// Who may be in at once.
#[derive(Clone)]
struct Doors {
    newcomers: Arc<Mutex<Pace<Owner>>>,
    handshakes: Seats<Owner>,
    nodes: Seats<Owner, Arc<Shown>>,
    /// When the first certificate of those that are in expires, at the earliest.
    first_expiry: Arc<Mutex<Option<SystemTime>>>,
    strangers: Seats<Owner>,
    identity: SharedIdentity,
}

impl Doors {
    fn first_expiry(&self) -> MutexGuard<'_, Option<SystemTime>> {
        self.first_expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_expiry(&self, not_after: SystemTime) {
        let mut first = self.first_expiry();
        *first = Some(first.map_or(not_after, |first| first.min(not_after)));
    }

    fn newcomers(&self) -> MutexGuard<'_, Pace<Owner>> {
        self.newcomers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut_expired(&self, now: SystemTime) {
        if self.first_expiry().take_if(|first| *first < now).is_none() {
            return;
        }
        self.nodes.retain(|shown| {
            let is_valid = now <= shown.not_after;
            if is_valid {
                self.note_expiry(shown.not_after);
            } else {
                tracing::info!(node = %shown.peer.node_id, "cut a connection whose certificate has expired");
            }
            is_valid
        });
    }

    /// Checks every certificate again, with the roots of now.
    fn cut_distrusted(&self) {
        let identity = self.identity.current();
        let verifier = match tls::client_verifier(&identity) {
            Ok(verifier) => verifier,
            Err(error) => {
                tracing::error!(%error, "cannot check who is connected");
                return;
            }
        };
        self.nodes.retain(|shown| {
            let Some((leaf, between)) = shown.chain.split_first() else { return false };
            let verified = verifier.verify_client_cert(leaf, between, UnixTime::now());
            if let Err(error) = &verified {
                tracing::info!(node = %shown.peer.node_id, %error, "cut a connection whose certificate is not good any more");
            }
            verified.is_ok()
        });
    }
}

/// Keeps the configuration until the identity is renewed.
struct Acceptor {
    identity: SharedIdentity,
    built: Option<Configured>,
}

/// What connections are accepted with, and the identity that it was made of.
#[derive(Clone)]
struct Configured {
    from: Arc<Identity>,
    acceptor: TlsAcceptor,
}

impl Acceptor {
    fn new(identity: SharedIdentity) -> Self {
        Self { identity, built: None }
    }

    fn current(&mut self) -> Option<Configured> {
        let from = self.identity.current();
        if let Some(built) = self.built.as_ref().filter(|built| Arc::ptr_eq(&built.from, &from)) {
            return Some(built.clone());
        }
        match tls::server_config(&from) {
            Ok(config) => {
                let built = Configured { from, acceptor: TlsAcceptor::from(Arc::new(config)) };
                self.built = Some(built.clone());
                Some(built)
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept connections with this node's identity");
                None
            }
        }
    }
}

async fn handshake(
    configured: Configured,
    tcp: TcpStream,
    remote_addr: SocketAddr,
    doors: &Doors,
) -> io::Result<TlsConnection> {
    tcp.set_nodelay(true)?;
    let accepting = configured.acceptor.accept(tcp);
    let stream = timeout(HANDSHAKE_TIMEOUT, accepting).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let Some(leaf) = chain.first() else {
        let seat = doors.strangers.take(Owner::address(remote_addr), ());
        let lease = Place::Stranger(Lease::new(seat, Some(STRANGER_LIFETIME)));
        return Ok(TlsConnection { stream, info: ConnectionInfo { remote_addr, peer: None }, lease });
    };
    let peer = PeerIdentity::from_certificate(leaf).map_err(io::Error::other)?;
    doors.newcomers().forgive(&Owner::address(remote_addr));
    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let shown = Arc::new(Shown { peer: peer.clone(), not_after: tls::not_after(leaf), chain });
    let seat = doors.nodes.take(Owner::Node(peer.node_id.to_string()), Arc::clone(&shown));
    // After it has the seat: who looks meanwhile sees one or the other.
    doors.note_expiry(shown.not_after);
    if !Arc::ptr_eq(&doors.identity.current(), &configured.from) {
        // The roots may have changed during the handshake, before this one had a seat to lose.
        let doors = doors.clone();
        tokio::task::spawn_blocking(move || doors.cut_distrusted());
    }
    let lease = Place::Node(Lease::new(seat, None));
    Ok(TlsConnection { stream, info: ConnectionInfo { remote_addr, peer: Some(peer) }, lease })
}
