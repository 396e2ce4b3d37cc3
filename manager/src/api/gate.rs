//! The one door of both servers: checks the caller against the call's rule, and sends the call where it is answered.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, UNIX_EPOCH},
};

use http::{Request, Response};
use orch_manager_core::roles::Standing;
use orch_model::node::NodeRole;
use orch_proto::tls::{ConnectionInfo, PeerIdentity, role_word};
use tokio::time::{Instant, sleep};
use tonic::{
    Status,
    body::Body,
    transport::{Channel, server::UdsConnectInfo},
};
use tower::{Layer, Service};

use super::{
    access::{Access, Origin, Place, Rule, is_metered, may_change, rule},
    budget::{Answer, Budget, Metered, Payer, Tab},
    forward::{ForwardedCaller, Forwarder, VIA_KEY, forwarded_caller},
    register::Register,
    status,
};
use crate::{leader::Throne, raft::Consensus};

/// How long a call waits for a leader to appear; an election takes one to two seconds.
const LEADER_LIMIT: Duration = Duration::from_secs(6);
const LEADER_POLL: Duration = Duration::from_millis(50);
/// A call that was passed on once waits only for this manager to get ready to lead.
const FORWARDED_LIMIT: Duration = Duration::from_secs(2);

/// Puts the gate in front of a server's services.
#[derive(Clone)]
pub struct GateLayer {
    gate: Arc<Gate>,
}

struct Gate {
    origin: Origin,
    consensus: Consensus,
    throne: Throne,
    forwarder: Forwarder,
    register: Register,
    budget: Budget,
}

impl GateLayer {
    #[must_use]
    pub fn new(
        origin: Origin,
        consensus: Consensus,
        throne: Throne,
        forwarder: Forwarder,
        register: Register,
        budget: Budget,
    ) -> Self {
        Self { gate: Arc::new(Gate { origin, consensus, throne, forwarder, register, budget }) }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = GateService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        GateService { gate: Arc::clone(&self.gate), inner }
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub struct GateService<S> {
    gate: Arc<Gate>,
    inner: S,
}

impl<S> Service<Request<Body>> for GateService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let gate = Arc::clone(&self.gate);
        // The instance that is ready serves this call, a fresh one the next.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            match gate.pass(request).await {
                Ok(Passed::Here(request, tab)) => {
                    let answer = inner.call(request).await;
                    answer.map(|answer| answer.map(|body| Answer::wrap(body, tab)))
                }
                Ok(Passed::Answered(response, tab)) => Ok(response.map(|body| Answer::wrap(body, tab))),
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

enum Passed {
    Here(Request<Body>, Tab),
    Answered(Response<Body>, Tab),
}

enum Destination {
    Here,
    Leader(Channel),
}

/// Who calls, after what a manager that passed the call on says of it.
struct Caller {
    is_admin: bool,
    peer: Option<PeerIdentity>,
    was_forwarded: bool,
}

impl Gate {
    async fn pass(&self, mut request: Request<Body>) -> Result<Passed, Box<Status>> {
        let rule =
            rule(request.uri().path()).ok_or_else(|| Box::new(Status::unimplemented("there is no such call")))?;
        let caller = self.caller(&request, rule)?;
        check(rule, &caller)?;
        let payer = payer(&request, &caller);
        self.budget.turn(&payer).await;
        let tab = self.budget.open(payer)?;
        if is_metered(request.uri().path()) {
            let metered = tab.clone();
            request = request.map(|body| Metered::wrap(body, metered));
        }
        request.extensions_mut().insert(tab.clone());
        if let Some(peer) = &caller.peer {
            // Services ask for this before they look at the connection.
            request.extensions_mut().insert(peer.clone());
        }
        if !caller.was_forwarded {
            request.headers_mut().remove(VIA_KEY);
        }
        match self.destination(rule.place, caller.was_forwarded).await? {
            Destination::Here => Ok(Passed::Here(request, tab)),
            Destination::Leader(channel) => {
                let may_change = may_change(request.uri().path());
                let origin = if caller.is_admin { Origin::LocalSocket } else { Origin::Network };
                let answer = self.forwarder.forward(channel, request, origin, caller.peer.as_ref()).await;
                answer.map(|answer| Passed::Answered(answer, tab)).map_err(|error| {
                    tracing::debug!(%error, "passing a call on to the leader failed");
                    Box::new(status::leader_lost(may_change))
                })
            }
        }
    }

    fn caller(&self, request: &Request<Body>, rule: Rule) -> Result<Caller, Box<Status>> {
        if self.origin == Origin::LocalSocket {
            // Calls of nodes: the local socket speaks for this node, also when its certificates have expired.
            let own = || PeerIdentity {
                node_id: self.register.own().clone(),
                cluster_id: self.consensus.cluster().clone(),
                role: NodeRole::Worker,
                issued_at: UNIX_EPOCH,
            };
            let peer = matches!(rule.access, Access::Nodes(_)).then(own);
            return Ok(Caller { is_admin: peer.is_none(), peer, was_forwarded: false });
        }
        let shown = request.extensions().get::<ConnectionInfo>().and_then(|info| info.peer.clone());
        if shown.as_ref().is_some_and(|peer| peer.cluster_id != *self.consensus.cluster()) {
            return Err(Box::new(Status::permission_denied("this certificate belongs to another cluster")));
        }
        if let Some(peer) = &shown {
            self.check_standing(peer)?;
        }
        let is_manager = shown.as_ref().is_some_and(|peer| peer.role == NodeRole::Manager);
        let forwarded = forwarded_caller(request.headers()).filter(|_| is_manager);
        Ok(match forwarded {
            None => Caller { is_admin: is_manager, peer: shown, was_forwarded: false },
            Some(ForwardedCaller::Admin) => Caller { is_admin: true, peer: shown, was_forwarded: true },
            Some(ForwardedCaller::Nobody) => Caller { is_admin: false, peer: None, was_forwarded: true },
            Some(ForwardedCaller::Node(peer)) => {
                self.check_standing(&peer)?;
                Caller { is_admin: peer.role == NodeRole::Manager, peer: Some(peer), was_forwarded: true }
            }
        })
    }

    fn check_standing(&self, peer: &PeerIdentity) -> Result<(), Box<Status>> {
        match self.register.standing(peer) {
            Standing::Good => Ok(()),
            Standing::Removed => Err(Box::new(status::removed(&peer.node_id))),
            Standing::Demoted => Err(Box::new(status::demoted(&peer.node_id))),
        }
    }

    async fn destination(&self, place: Place, was_forwarded: bool) -> Result<Destination, Box<Status>> {
        if place == Place::Here {
            return Ok(Destination::Here);
        }
        let deadline = Instant::now() + if was_forwarded { FORWARDED_LIMIT } else { LEADER_LIMIT };
        loop {
            if self.throne.load().is_some() {
                return Ok(Destination::Here);
            }
            let leadership = self.consensus.leadership().borrow().clone();
            if let Some((_, leader)) = leadership.leader.as_ref().filter(|_| !leadership.is_own && !was_forwarded) {
                match self.forwarder.channel(&leader.addr).await {
                    Ok(channel) => return Ok(Destination::Leader(channel)),
                    Err(error) => tracing::debug!(%leader, %error, "cannot reach the leader"),
                }
            }
            if Instant::now() >= deadline || leadership.failed.is_some() {
                break;
            }
            sleep(LEADER_POLL).await;
        }
        match place {
            Place::LeaderElseHere if !was_forwarded => Ok(Destination::Here),
            _ => Err(Box::new(status::no_leader())),
        }
    }
}

/// Whose account a call goes to.
fn payer(request: &Request<Body>, caller: &Caller) -> Payer {
    let extensions = request.extensions();
    match &caller.peer {
        Some(peer) if peer.role == NodeRole::Manager => Payer::Manager(peer.node_id.clone()),
        Some(peer) => Payer::Worker(peer.node_id.clone()),
        None if caller.is_admin => {
            let process = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred?.pid());
            Payer::Process(process.unwrap_or_default())
        }
        None if caller.was_forwarded => Payer::Stranger(None),
        None => Payer::Stranger(extensions.get::<ConnectionInfo>().map(|info| info.remote_addr.ip())),
    }
}

fn check(rule: Rule, caller: &Caller) -> Result<(), Box<Status>> {
    let Access::Nodes(roles) = rule.access else {
        let admitted = rule.access == Access::Anyone || caller.is_admin;
        return if admitted {
            Ok(())
        } else if caller.peer.is_none() {
            Err(Box::new(Status::unauthenticated("this call needs the certificate of a manager of this cluster")))
        } else {
            Err(Box::new(Status::permission_denied("this call is for managers: ask on a manager node")))
        };
    };
    match &caller.peer {
        Some(peer) if roles.contains(&peer.role) => Ok(()),
        Some(peer) => Err(Box::new(Status::permission_denied(format!(
            "this call is not for a {} (node {})",
            role_word(peer.role),
            peer.node_id
        )))),
        None => Err(Box::new(Status::unauthenticated("this call needs the certificate of a node of this cluster"))),
    }
}
