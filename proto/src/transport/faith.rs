//! A client's connection lives no longer than what the server showed is good.
//!
//! A certificate is looked at when a connection is made; then it expires, or its root is dropped, while the connection
//! goes on. The server looks after its clients' ([`super::doors`]), the client after its server's.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use orch_model::node::NodeRole;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{oneshot, watch},
    time::sleep,
};
use tokio_rustls::client;

use super::leased;
use crate::tls::{self, Identity, SharedIdentity};

/// The clock may be set, and a machine may sleep: then it is noticed so late.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// When a root is dropped, whoever has calls under way takes another connection for the next ones, and finishes those.
const GRACE: Duration = Duration::from_secs(3);

/// A connection that a client made.
#[derive(Debug)]
pub(super) struct Faithful {
    stream: client::TlsStream<TcpStream>,
    lease: Faith,
}

impl Faithful {
    /// To a server whose certificates are not looked after: the connection is over soon.
    pub(super) fn brief(stream: client::TlsStream<TcpStream>) -> Self {
        Self { stream, lease: Faith::Brief }
    }

    /// To one of this role in the identity's cluster. `renewals` know what the connection was made with.
    pub(super) fn new(
        stream: client::TlsStream<TcpStream>,
        role: NodeRole,
        identity: SharedIdentity,
        renewals: watch::Receiver<Arc<Identity>>,
    ) -> Self {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let (mut cut, lost) = oneshot::channel();
        tokio::spawn(async move {
            tokio::select! {
                reason = until_lost(&chain, role, identity, renewals) => {
                    tracing::info!(reason, "cut a connection to a {} whose certificate is not good any more", tls::role_word(role));
                    // The connection may have ended by itself.
                    let _ = cut.send(());
                }
                () = cut.closed() => {}
            }
        });
        Self { stream, lease: Faith::Kept(lost) }
    }
}

#[derive(Debug)]
enum Faith {
    Brief,
    Kept(oneshot::Receiver<()>),
    Lost,
}

impl Faith {
    /// Ready with an error when the connection has to go.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            Self::Brief => return Poll::Pending,
            Self::Kept(lost) => drop(ready!(Pin::new(lost).poll(cx))),
            Self::Lost => {}
        }
        *self = Self::Lost;
        Poll::Ready(io::ErrorKind::ConnectionAborted.into())
    }
}

leased!(Faithful);

/// Returns once the certificates are not good any more, and says why. (The identity is held, so that there are renewals to
/// wait for.)
async fn until_lost(
    chain: &[CertificateDer<'static>],
    role: NodeRole,
    identity: SharedIdentity,
    mut renewals: watch::Receiver<Arc<Identity>>,
) -> String {
    let Some(leaf) = chain.first() else { return "the server showed none".to_owned() };
    let not_after = tls::not_after(leaf);
    loop {
        let Ok(left) = not_after.duration_since(SystemTime::now()) else { return "it has expired".to_owned() };
        tokio::select! {
            () = sleep(left.min(LONGEST_SLEEP)) => {}
            _ = renewals.changed() => {
                if let Err(error) = tls::verify_chain(&identity.current(), role, chain, UnixTime::now()) {
                    sleep(GRACE).await;
                    return crate::report::chain(&error);
                }
            }
        }
    }
}
