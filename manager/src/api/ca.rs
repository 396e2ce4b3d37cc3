//! The `Ca` service: nodes join, renew their certificates and leave.

use std::{sync::Arc, time::SystemTime};

use orch_model::{
    Annotations, Meta, NodeId, Object, ObjectId,
    change::Change,
    cluster::Cluster,
    node::{Availability, Node, NodeCertificates, NodeDescription, NodeRole, NodeSpec, NodeState, NodeStatus},
};
use orch_proto::{
    ca::{self, CaError, Made},
    code,
    tls::{Identity, JoinToken, PeerIdentity, peer_identity},
    wire::{self, ca_server},
};
use tonic::{Code, Request, Response, Status};

use super::{rejoin, status};
use crate::{
    authority,
    dispatcher::Reign,
    leader::Throne,
    raft::{Consensus, View},
    random,
};

/// Signs certificates with the cluster's authority; on the leader only.
pub struct CaService {
    consensus: Consensus,
    throne: Throne,
}

impl CaService {
    #[must_use]
    pub fn new(consensus: Consensus, throne: Throne) -> Self {
        Self { consensus, throne }
    }

    fn reign(&self) -> Result<Arc<Reign>, Status> {
        self.throne.load_full().ok_or_else(|| status::not_leader(&self.consensus.leadership().borrow()))
    }

    fn caller<T>(request: &Request<T>) -> Result<NodeId, Status> {
        Self::peer(request).map(|peer| peer.node_id.clone())
    }

    fn peer<T>(request: &Request<T>) -> Result<&PeerIdentity, Status> {
        peer_identity(request).ok_or_else(|| Status::unauthenticated("this call needs a certificate"))
    }

    /// New certificates for a node whose old ones have expired.
    async fn rejoin(
        &self,
        reign: &Reign,
        request: &wire::JoinRequest,
        proof: &wire::RejoinProof,
        token_role: NodeRole,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        // Whether the node is still there must be true.
        self.consensus.read_barrier().await.map_err(|e| status::from_catch_up(&e))?;
        let view = self.consensus.store().view();
        let cluster = cluster(&view)?;
        let node = rejoin::proven(&view, &cluster, request, proof, token_role)?;
        let now = authority::made_now(reign);
        let (worker, manager) = (&request.worker_csr_pem, &request.manager_csr_pem);
        let certificates = Certificates::sign(&cluster, &node.id, node.role, worker, manager, now)?;
        tracing::info!(node = %node.id, hostname = request.hostname, "a node came back with expired certificates");
        Ok(Response::new(certificates.answer(&cluster, &node.id, &view)))
    }

    /// A join that failed on the node's side is undone whole. What refers to the node keeps it, as a node that is down.
    async fn forget(&self, reign: &Reign, id: &NodeId) {
        let version = self.consensus.store().view().state.node(id).map(|node| node.meta.version);
        let Some(version) = version else { return };
        let remove = Change::Remove { id: ObjectId::Node(id.clone()), version };
        if let Err(error) = reign.proposer().propose(vec![remove]).await {
            tracing::warn!(node = %id, %error, "cannot remove a node that never took part");
        }
    }
}

#[tonic::async_trait]
impl ca_server::Ca for CaService {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        let reign = self.reign()?;
        let request = request.into_inner();
        let cluster = cluster(&self.consensus.store().view())?;
        let role = role_of_token(&cluster, &request.token)?;
        if let Some(proof) = &request.rejoin {
            return self.rejoin(&reign, &request, proof, role).await;
        }
        let node = new_node(&reign, &request, role)?;
        let id = node.id.clone();
        let sign = || {
            let now = authority::made_now(&reign);
            Certificates::sign(&cluster, &id, role, &request.worker_csr_pem, &request.manager_csr_pem, now)
        };
        // Tried first: a request that cannot be signed leaves no node behind.
        sign()?;
        let created = reign.proposer().propose(vec![Change::Create(Object::Node(Arc::new(node)))]).await;
        created.map_err(|e| status::from_propose(&e))?;
        // A certificate is never older than the role that it shows.
        let certificates = sign()?;
        tracing::info!(node = %id, hostname = request.hostname, ?role, "a node joined the cluster");
        Ok(Response::new(certificates.answer(&cluster, &id, &self.consensus.store().view())))
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        let reign = self.reign()?;
        let peer = Self::peer(&request)?.clone();
        let id = peer.node_id;
        let request = request.into_inner();
        // A node gives up being a manager when it hears so here: it must be true.
        self.consensus.read_barrier().await.map_err(|e| status::from_catch_up(&e))?;
        let view = self.consensus.store().view();
        let cluster = cluster(&view)?;
        let Some(node) = view.state.node(&id) else { return Err(status::removed(&id)) };
        let (worker, manager) = (&request.worker_csr_pem, &request.manager_csr_pem);
        // A locked manager keeps the certificate that it has until it is unlocked.
        let role = if manager.is_empty() { NodeRole::Worker } else { node.role };
        if role == NodeRole::Manager && peer.role == NodeRole::Worker && has_locked_keys(&cluster, node) {
            return Err(needs_manager_key(node));
        }
        let certificates = Certificates::sign(&cluster, &id, role, worker, manager, authority::made_now(&reign))?;
        Ok(Response::new(certificates.answer(&cluster, &id, &view)))
    }

    async fn report(&self, request: Request<wire::CertificateReport>) -> Result<Response<wire::Empty>, Status> {
        let reign = self.reign()?;
        let id = Self::caller(&request)?;
        let view = self.consensus.store().view();
        let Some(node) = view.state.node(&id) else { return Err(status::removed(&id)) };
        let certificates = reported(&*cluster(&view)?, node, &request.into_inner())?;
        let noted = reign.edit_node(&id, |node| node.certificates = Some(certificates.clone()));
        noted.await.map_err(|e| status::from_propose(&e))?;
        Ok(Response::new(wire::Empty {}))
    }

    async fn leave(&self, request: Request<wire::LeaveRequest>) -> Result<Response<wire::Empty>, Status> {
        let reign = self.reign()?;
        let id = Self::caller(&request)?;
        let force = request.into_inner().force;
        let view = self.consensus.store().view();
        let Some(node) = view.state.node(&id) else { return Err(status::removed(&id)) };
        let raft_id = node.manager.as_ref().map(|manager| manager.raft_id);
        let took_part = !node.description.engine_version.is_empty();
        drop(view);
        if let Some(raft_id) = raft_id {
            let (voters, _) = self.consensus.voters();
            if voters.len() == 1 && voters.contains(&raft_id) {
                return last_manager_leaves(force);
            }
            self.consensus.may_remove(raft_id, force).map_err(|e| status::from_consensus(&e))?;
        }
        let now = reign.proposer().now();
        let left = reign.edit_node(&id, |node| {
            node.role = NodeRole::Worker;
            node.spec.role = NodeRole::Worker;
            node.manager = None;
            let message = "the node left the cluster".to_owned();
            node.status = NodeStatus { state: NodeState::Down, message, addr: node.status.addr, since: now };
        });
        left.await.map_err(|e| status::from_propose(&e))?;
        reign.expel(&id);
        if let Some(raft_id) = raft_id {
            self.consensus.remove_member(raft_id, force).await.map_err(|e| status::from_consensus(&e))?;
        }
        if !took_part {
            self.forget(&reign, &id).await;
        }
        tracing::info!(node = %id, took_part, "a node left the cluster");
        Ok(Response::new(wire::Empty {}))
    }
}

/// Whether the node's manager has a key that only an unlocked manager can use. The worker's lies open on the same disk, so it
/// must not be enough to get another manager's certificate.
fn has_locked_keys(cluster: &Cluster, node: &Node) -> bool {
    cluster.unlock_key.is_some() && node.manager.is_some()
}

fn needs_manager_key(node: &Node) -> Status {
    let name = &node.description.hostname;
    status::with_code(
        Code::PermissionDenied,
        code::NEEDS_MANAGER_KEY,
        format!(
            "with autolock, a manager gets a new certificate by its manager's key only, and this request shows the \
             worker's: unlock that manager. If its own certificate has expired or is lost, let it in anew: \"orch node \
             demote {name}\" and then \"orch node promote {name}\" on another manager"
        ),
    )
}

/// Which role a token gives, or in which way it is wrong.
fn role_of_token(cluster: &Cluster, text: &str) -> Result<NodeRole, Status> {
    let refused = |stable, text: String| status::with_code(Code::PermissionDenied, stable, text);
    let token =
        JoinToken::parse(text).map_err(|e| status::with_code(Code::InvalidArgument, "bad-token", e.to_string()))?;
    let known = |text: &str| JoinToken::parse(text).ok();
    let (worker, manager) = (known(&cluster.join_tokens.worker), known(&cluster.join_tokens.manager));
    // Both are always compared, and in constant time.
    let is_worker = worker.as_ref().is_some_and(|t| same(&t.secret, &token.secret));
    let is_manager = manager.as_ref().is_some_and(|t| same(&t.secret, &token.secret));
    if [&worker, &manager].into_iter().flatten().all(|t| t.digest != token.digest) {
        return Err(refused(
            "foreign-token",
            "this join token belongs to another cluster, or to this one before its root was rotated: get one with \
             \"orch join-token worker\" on a manager of the cluster that you want to join"
                .to_owned(),
        ));
    }
    match (is_manager, is_worker) {
        (true, _) => Ok(NodeRole::Manager),
        (false, true) => Ok(NodeRole::Worker),
        (false, false) => Err(refused(
            "rotated-token",
            "this join token is not valid (any more): it was rotated or mistyped; get the current one with \
             \"orch join-token worker\" or \"orch join-token manager\" on a manager"
                .to_owned(),
        )),
    }
}

/// Compares without telling, by the time it takes, where the difference is.
fn same(a: &str, b: &str) -> bool {
    let difference = a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

fn new_node(reign: &Reign, request: &wire::JoinRequest, role: NodeRole) -> Result<Node, Status> {
    let availability = availability(&request.availability)?;
    let description = NodeDescription { hostname: request.hostname.clone(), ..NodeDescription::default() };
    Ok(Node {
        id: NodeId::from_random(random::bits()),
        meta: Meta::default(),
        spec: NodeSpec { annotations: Annotations::default(), role, availability },
        role,
        description,
        status: NodeStatus {
            state: NodeState::Unknown,
            message: "the node has joined and not yet reported".to_owned(),
            addr: None,
            since: reign.proposer().now(),
        },
        // Written when it asks to become a member of raft.
        manager: None,
        index: 0,
        attachments: std::collections::BTreeMap::new(),
        certificates: None,
    })
}

/// `""` is the default.
pub(crate) fn availability(word: &str) -> Result<Availability, Status> {
    match word {
        "" | "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        other => Err(Status::invalid_argument(format!("invalid availability {other:?}: use active, pause or drain"))),
    }
}

struct Certificates {
    worker: String,
    /// Empty for a worker.
    manager: String,
}

impl Certificates {
    /// Every node has a worker's certificate, managers have a manager's as well.
    fn sign(
        cluster: &Cluster,
        id: &NodeId,
        role: NodeRole,
        worker_csr: &str,
        manager_csr: &str,
        now: Made,
    ) -> Result<Self, Status> {
        let sign = |csr: &str, role| sign(csr, id, cluster, role, now);
        let worker = sign(worker_csr, NodeRole::Worker)?;
        let manager = match role {
            NodeRole::Worker => String::new(),
            NodeRole::Manager if manager_csr.is_empty() => {
                return Err(Status::invalid_argument("a manager joins with a manager's certificate request as well"));
            }
            NodeRole::Manager => sign(manager_csr, NodeRole::Manager)?,
        };
        Ok(Self { worker, manager })
    }

    fn answer(self, cluster: &Cluster, id: &NodeId, view: &View) -> wire::JoinResponse {
        let managers = view.state.nodes().filter_map(|n| n.manager.as_ref()).map(|m| m.addr.clone()).collect();
        wire::JoinResponse {
            node_id: id.to_string(),
            cluster_id: cluster.id.to_string(),
            root_cert_pem: authority::trusted_roots(cluster),
            worker_cert_pem: self.worker,
            manager_cert_pem: self.manager,
            managers,
        }
    }
}

fn sign(csr: &str, id: &NodeId, cluster: &Cluster, role: NodeRole, now: Made) -> Result<String, Status> {
    authority::sign(cluster, csr, id, role, now).map_err(|error| match error {
        CaError::Request(_) | CaError::KeyKind => Status::invalid_argument(error.to_string()),
        other => Status::internal(other.to_string()),
    })
}

/// What a node says of its certificates, after they were looked at: nobody can report another's, or those of a root that
/// did not sign them.
fn reported(cluster: &Cluster, node: &Node, report: &wire::CertificateReport) -> Result<NodeCertificates, Status> {
    let unreadable = |e: &dyn std::fmt::Display| Status::invalid_argument(format!("the report cannot be read: {e}"));
    let roots = authority::trusted_roots(cluster);
    let manager = Some(&report.manager_cert_pem).filter(|pem| !pem.is_empty());
    let mut issuers = Vec::new();
    let mut expires_at = SystemTime::UNIX_EPOCH + authority::FOREVER;
    for (pem, role) in [(Some(&report.worker_cert_pem), NodeRole::Worker), (manager, NodeRole::Manager)] {
        let Some(pem) = pem else { continue };
        let own = Identity::from_pem(String::new(), pem.clone(), String::new()).map_err(|e| unreadable(&e))?;
        if (&own.node_id, &own.cluster_id, own.role) != (&node.id, &cluster.id, role) {
            return Err(Status::permission_denied("a node can report its own certificates only"));
        }
        // Of a root that is not the cluster's any more: nobody's.
        issuers.push(ca::issuer(pem, &roots).map_err(|e| unreadable(&e))?.unwrap_or_default());
        expires_at = expires_at.min(own.not_after());
    }
    if node.role == NodeRole::Manager && manager.is_none() {
        issuers.push(String::new());
    }
    let desired = authority::desired_issuer(cluster);
    let issuer = issuers.iter().find(|issuer| **issuer != desired).cloned().unwrap_or(desired);
    let trusted = ca::digests(&report.root_cert_pem).map_err(|e| unreadable(&e))?;
    Ok(NodeCertificates { issuer, trusted, expires_at: authority::timestamp(expires_at) })
}

fn cluster(view: &View) -> Result<Arc<Cluster>, Status> {
    view.state.cluster().cloned().ok_or_else(status::no_leader)
}

fn last_manager_leaves(force: bool) -> Result<Response<wire::Empty>, Status> {
    if force {
        // There is nobody to tell: the cluster ends with it.
        return Ok(Response::new(wire::Empty {}));
    }
    Err(status::with_code(
        Code::FailedPrecondition,
        "last-manager",
        "this is the last manager: leaving ends the cluster with all its services. Use --force if you mean that",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_compared_whole() {
        assert!(same("abc", "abc"));
        for other in ["abd", "ab", "abcd", "", "bbc"] {
            assert!(!same("abc", other), "{other}");
        }
    }
}
