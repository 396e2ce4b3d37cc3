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
use http_body_util::{BodyExt as _, Full};
use orch_manager_core::roles::Standing;
use orch_model::node::NodeRole;
use orch_proto::{
    report::chain,
    tls::{ConnectionInfo, PeerIdentity, role_word},
};
use tokio::time::{Instant, sleep};
use tonic::{
    Status,
    body::Body,
    transport::{Channel, server::UdsConnectInfo},
};
use tower::{Layer, Service, ServiceExt as _};

use super::{
    access::{ANY_NODE, Access, Origin, Place, Rule, is_metered, is_one_step, is_unhurried, may_change, rule},
    budget::{Answer, Budget, Metered, Payer},
    forward::{ForwardedCaller, Forwarder, VIA_KEY, forwarded_caller},
    register::Register,
    status,
};
use crate::{
    leader::Throne,
    raft::{ASK_AROUND_AFTER, Consensus, ConsensusError, Leadership, Member},
};

/// How long a call waits for a leader that answers it; an election takes one to two seconds.
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

/// What is behind the gate.
trait Inner:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

impl<S> Inner for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

/// A service behind the gate.
#[derive(Clone)]
pub struct GateService<S> {
    gate: Arc<Gate>,
    inner: S,
}

impl<S: Inner> Service<Request<Body>> for GateService<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // What is behind the gate is waited for when a call gets there.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (gate, inner) = (Arc::clone(&self.gate), self.inner.clone());
        Box::pin(async move { Ok(gate.pass(request, inner).await.unwrap_or_else(|status| status.into_http())) })
    }
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

/// A call that was let in.
struct Call {
    place: Place,
    caller: Caller,
    may_change: bool,
    is_unhurried: bool,
    deadline: Instant,
}

impl Gate {
    async fn pass(&self, mut request: Request<Body>, inner: impl Inner) -> Result<Response<Body>, Box<Status>> {
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
        let limit = if caller.was_forwarded { FORWARDED_LIMIT } else { LEADER_LIMIT };
        let call = Call {
            place: rule.place,
            may_change: may_change(request.uri().path()),
            is_unhurried: is_unhurried(request.uri().path()),
            deadline: Instant::now() + limit,
            caller,
        };
        // The manager that passed a call on asks again itself.
        let can_repeat = call.place != Place::Here && !call.caller.was_forwarded && is_one_step(request.uri().path());
        let answer = match can_repeat {
            true => self.ask_until_led(call, request, inner).await?,
            false => self.ask(&call, request, inner).await?,
        };
        Ok(answer.map(|body| Answer::wrap(body, tab)))
    }

    /// Asks again while the answer is that nothing was done because leadership is on the move.
    async fn ask_until_led(
        &self,
        mut call: Call,
        request: Request<Body>,
        inner: impl Inner,
    ) -> Result<Response<Body>, Box<Status>> {
        let (head, body) = request.into_parts();
        let kept = Request::from_parts(head, body.collect().await.map_err(Box::new)?.to_bytes());
        // The time that the body took to arrive is not time spent on waiting for a leader.
        call.deadline = Instant::now() + LEADER_LIMIT;
        loop {
            let again = kept.clone().map(|bytes| Body::new(Full::new(bytes)));
            let answer = self.ask(&call, again, inner.clone()).await?;
            if Instant::now() >= call.deadline || !status::was_left_undone(answer.headers(), call.may_change) {
                return Ok(answer);
            }
            sleep(LEADER_POLL).await;
        }
    }

    async fn ask(&self, call: &Call, request: Request<Body>, inner: impl Inner) -> Result<Response<Body>, Box<Status>> {
        let channel = match self.destination(call).await? {
            Destination::Here => return inner.oneshot(request).await.map_err(|never| match never {}),
            Destination::Leader(channel) => channel,
        };
        let origin = if call.caller.is_admin { Origin::LocalSocket } else { Origin::Network };
        let answer = self.forwarder.forward(channel, request, origin, call.caller.peer.as_ref()).await;
        Ok(answer.unwrap_or_else(|error| {
            tracing::debug!(%error, "passing a call on to the leader failed");
            status::leader_lost(call.may_change).into_http()
        }))
    }

    fn caller(&self, request: &Request<Body>, rule: Rule) -> Result<Caller, Box<Status>> {
        if self.origin == Origin::LocalSocket {
            // Calls of nodes: the local socket speaks for this node, also when its certificates have expired; and as a manager,
            // because it is served by one that has its keys.
            let own = || PeerIdentity {
                node_id: self.register.own().clone(),
                cluster_id: self.consensus.cluster().clone(),
                role: NodeRole::Manager,
                issued_at: UNIX_EPOCH,
            };
            // Raft's calls come over the network only.
            let peer = (rule.access == ANY_NODE).then(own);
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

    async fn destination(&self, call: &Call) -> Result<Destination, Box<Status>> {
        if call.place == Place::Here {
            return Ok(Destination::Here);
        }
        let (was_forwarded, began) = (call.caller.was_forwarded, Instant::now());
        let mut refusal = status::no_leader();
        loop {
            if self.throne.load().is_some() {
                return Ok(Destination::Here);
            }
            let leadership = self.consensus.leadership().borrow().clone();
            if !was_forwarded && let Some(leader) = self.leader_elsewhere(&leadership, began.elapsed()).await {
                match self.forwarder.channel(&leader.addr, call.is_unhurried).await {
                    Ok(channel) => return Ok(Destination::Leader(channel)),
                    Err(error) => {
                        tracing::debug!(%leader, %error, "cannot reach the leader");
                        let why = chain(&error);
                        refusal = status::from_consensus(&ConsensusError::OutOfReach { leader, why });
                    }
                }
            }
            if Instant::now() >= call.deadline || leadership.failed.is_some() {
                break;
            }
            sleep(LEADER_POLL).await;
        }
        match call.place {
            Place::LeaderElseHere if !was_forwarded => Ok(Destination::Here),
            _ => Err(Box::new(refusal)),
        }
    }

    /// The leader that this manager knows or, once it has heard of none for a while, that the others know.
    async fn leader_elsewhere(&self, leadership: &Leadership, waited: Duration) -> Option<Member> {
        match &leadership.leader {
            _ if leadership.is_own => None,
            Some((_, leader)) => Some(leader.clone()),
            None if waited < ASK_AROUND_AFTER => None,
            None => self.consensus.ask_around().await.map(|(leader, _)| leader),
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
