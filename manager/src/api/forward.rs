//! Passing calls on to the leader, as the bytes they are.
//!
//! The leader sees this manager's certificate; who really asked travels in metadata, which counts only when a manager
//! says it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderValue, Request, Response};
use orch_model::node::NodeRole;
use orch_proto::{
    tls::{Identity, PeerIdentity, SharedIdentity},
    transport::{self, TransportError},
};
use tonic::{body::Body, transport::Channel};
use tower::Service;

use super::access::{Origin, is_unhurried};

/// `CLUSTER/NODE/ROLE` of the caller, or one of the words below.
const CALLER_KEY: &str = "orch-caller";
/// The node that passed the call on.
pub(super) const VIA_KEY: &str = "orch-via";
const LOCAL_CALLER: &str = "local";
const NO_CALLER: &str = "none";
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// A connection is tried before it gets a call: a call that was lost on the way cannot be repeated, because nobody knows
/// whether it was carried out.
const TRIAL_LIMIT: Duration = Duration::from_secs(1);
/// A connection is cut when a certificate or root that it was made with is not good any more. Calls under way would end
/// with it, so another one is made well before.
const MAX_AGE: Duration = Duration::from_secs(600);
/// No service has it; any answer shows that somebody is there.
const TRIAL_PATH: &str = "/orch.v1.Control/Nothing";

/// Connections to leaders, to one at a time.
#[derive(Clone)]
pub struct Forwarder {
    identity: SharedIdentity,
    calls: Arc<Mutex<Option<Connection>>>,
    /// For answers that may lie unread: what was sent of them takes up room of a connection, which calls would wait for.
    unhurried: Arc<Mutex<Option<Connection>>>,
}

#[derive(Clone)]
struct Connection {
    addr: String,
    channel: Channel,
    /// What it was made with, and when.
    identity: Arc<Identity>,
    since: Instant,
}

impl Forwarder {
    #[must_use]
    pub fn new(identity: SharedIdentity) -> Self {
        Self { identity, calls: Arc::default(), unhurried: Arc::default() }
    }

    /// A connection to the leader at `addr`, for calls whose answer may lie unread or for the others.
    pub(super) async fn channel(&self, addr: &str, is_unhurried: bool) -> Result<Channel, TransportError> {
        let identity = self.identity.current();
        let is_fresh = |known: &Connection| Arc::ptr_eq(&known.identity, &identity) && known.since.elapsed() < MAX_AGE;
        let known = self.lock(is_unhurried).clone().filter(|known| known.addr == addr && is_fresh(known));
        if let Some(known) = known
            && is_alive(known.channel.clone()).await
        {
            return Ok(known.channel);
        }
        let connecting = async {
            match is_unhurried {
                true => transport::patient_channel(addr, &self.identity).await,
                false => transport::shared_channel(addr, &self.identity, NodeRole::Manager).await,
            }
        };
        let channel = tokio::time::timeout(CONNECT_LIMIT, connecting)
            .await
            .map_err(|_| TransportError::TimedOut { addr: addr.to_owned(), limit: CONNECT_LIMIT })??;
        let since = Instant::now();
        *self.lock(is_unhurried) =
            Some(Connection { addr: addr.to_owned(), channel: channel.clone(), identity, since });
        Ok(channel)
    }

    /// Passes a call on. The caller's identity goes along.
    pub(super) async fn forward(
        &self,
        mut channel: Channel,
        mut request: Request<Body>,
        origin: Origin,
        caller: Option<&PeerIdentity>,
    ) -> Result<Response<Body>, tonic::transport::Error> {
        let own = self.identity.current();
        let caller = match (origin, caller) {
            (Origin::LocalSocket, _) => LOCAL_CALLER.to_owned(),
            (Origin::Network, None) => NO_CALLER.to_owned(),
            (Origin::Network, Some(peer)) => render(peer),
        };
        request.extensions_mut().clear();
        let is_unhurried = is_unhurried(request.uri().path());
        set(request.headers_mut(), CALLER_KEY, &caller);
        set(request.headers_mut(), VIA_KEY, own.node_id.as_str());
        let outcome = async {
            std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
            channel.call(request).await
        }
        .await;
        if outcome.is_err() {
            *self.lock(is_unhurried) = None;
        }
        outcome
    }

    fn lock(&self, is_unhurried: bool) -> std::sync::MutexGuard<'_, Option<Connection>> {
        let connection = if is_unhurried { &self.unhurried } else { &self.calls };
        connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn is_alive(mut channel: Channel) -> bool {
    let Ok(trial) = Request::post(TRIAL_PATH).body(Body::empty()) else { return false };
    let answer = async {
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
        channel.call(trial).await
    };
    matches!(tokio::time::timeout(TRIAL_LIMIT, answer).await, Ok(Ok(_)))
}

/// What a manager said of the caller of a call that it passed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ForwardedCaller {
    Admin,
    Nobody,
    Node(PeerIdentity),
}

/// Reads the metadata of a call that a manager passed on; `None` when it was not passed on or is malformed.
pub(super) fn forwarded_caller(headers: &HeaderMap) -> Option<ForwardedCaller> {
    let text = headers.get(CALLER_KEY)?.to_str().ok()?;
    match text {
        LOCAL_CALLER => return Some(ForwardedCaller::Admin),
        NO_CALLER => return Some(ForwardedCaller::Nobody),
        _ => {}
    }
    let mut parts = text.split('/');
    let (cluster, node, role) = (parts.next()?, parts.next()?, parts.next()?);
    let role = [NodeRole::Worker, NodeRole::Manager].into_iter().find(|r| role_word(*r) == role)?;
    let (node_id, cluster_id) = (node.parse().ok()?, cluster.parse().ok()?);
    // The leader needs no age: nobody knows more than it does.
    let issued_at = SystemTime::UNIX_EPOCH;
    Some(ForwardedCaller::Node(PeerIdentity { node_id, cluster_id, role, issued_at }))
}

fn render(peer: &PeerIdentity) -> String {
    format!("{}/{}/{}", peer.cluster_id, peer.node_id, role_word(peer.role))
}

fn role_word(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

fn set(headers: &mut HeaderMap, key: &'static str, value: &str) {
    // Ids and words are visible ASCII.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use orch_model::{ClusterId, NodeId};

    use super::*;

    #[test]
    fn a_caller_survives_being_passed_on_and_nonsense_does_not() {
        let peer = PeerIdentity {
            node_id: NodeId::from_random(1),
            cluster_id: ClusterId::from_random(2),
            role: NodeRole::Worker,
            issued_at: SystemTime::UNIX_EPOCH,
        };
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            set(&mut headers, CALLER_KEY, text);
            forwarded_caller(&headers)
        };
        assert_eq!(read(&render(&peer)), Some(ForwardedCaller::Node(peer)));
        assert_eq!(read("local"), Some(ForwardedCaller::Admin));
        assert_eq!(read("none"), Some(ForwardedCaller::Nobody));
        for text in ["", "local/", "a/b/worker", "root"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
