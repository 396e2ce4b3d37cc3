//! The gRPC side of raft: messages from other managers, and new managers that ask to become members.

use std::sync::Arc;

use openraft::raft::SnapshotResponse;
use orch_model::{
    Object,
    change::Change,
    node::{ManagerStatus, Node, NodeRole},
};
use orch_proto::wire::{self, raft_server};
use tonic::{Request, Response, Status, Streaming};

use super::{
    blocking::blocking,
    consensus::{Consensus, ConsensusError},
    machine::Image,
    network::TARGET_KEY,
    proposer::Proposer,
    snapshot::Assembler,
    types::Member,
    wire as convert,
};
use crate::api::status;

/// Answers the `Raft` service. The caller's role was checked before it gets here.
pub struct RaftService {
    consensus: Consensus,
    proposer: Proposer,
}

impl RaftService {
    #[must_use]
    pub fn new(consensus: Consensus, proposer: Proposer) -> Self {
        Self { consensus, proposer }
    }

    /// Writes the manager's raft number and address into its node object.
    async fn note_manager(&self, request: &wire::AddMemberRequest) -> Result<(), Status> {
        let id = request.node_id.parse().map_err(|e| Status::invalid_argument(format!("node_id: {e}")))?;
        let view = self.consensus.store().view();
        let Some(node) = view.state.node(&id) else {
            return Err(Status::failed_precondition(format!("node {id} is not part of this cluster: join it first")));
        };
        if !is_manager(node) {
            return Err(status::from_consensus(&ConsensusError::NotWanted));
        }
        let manager = Some(ManagerStatus { raft_id: request.raft_id, addr: request.addr.clone() });
        if node.manager == manager {
            return Ok(());
        }
        let node = Node { manager, ..Node::clone(node) };
        let changes = vec![Change::Update(Object::Node(Arc::new(node)))];
        self.proposer.propose(changes).await.map(drop).map_err(|e| status::from_propose(&e))
    }

    /// Refuses what was meant for the manager that lived here before this one lost its log.
    fn check_target<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let target = request.metadata().get(TARGET_KEY).and_then(|id| id.to_str().ok()?.parse().ok());
        if target == Some(self.consensus.raft_id()) {
            return Ok(());
        }
        Err(Status::failed_precondition("this message is for a manager that was at this address before"))
    }

    fn refuse_unless_leader(&self) -> Result<(), Status> {
        let leadership = self.consensus.leadership();
        let leadership = leadership.borrow();
        if leadership.is_own { Ok(()) } else { Err(status::not_leader(&leadership)) }
    }
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    async fn append_entries(
        &self,
        request: Request<wire::AppendEntriesRequest>,
    ) -> Result<Response<wire::AppendEntriesResponse>, Status> {
        self.check_target(&request)?;
        let request = convert::append_request_from(request.into_inner()).map_err(malformed)?;
        let response = self.consensus.raft().append_entries(request).await.map_err(internal)?;
        Ok(Response::new(convert::append_response(&response)))
    }

    async fn vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        self.check_target(&request)?;
        let request = request.into_inner();
        let pre_vote = request.pre_vote;
        let request = convert::vote_request_from(request).map_err(malformed)?;
        let raft = self.consensus.raft();
        let response = if pre_vote { raft.pre_vote(request).await } else { raft.vote(request).await };
        Ok(Response::new(convert::vote_response(&response.map_err(internal)?)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<wire::SnapshotResponse>, Status> {
        self.check_target(&request)?;
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.ok_or_else(|| Status::invalid_argument("an empty snapshot"))?;
        let vote = first.vote.ok_or_else(|| Status::invalid_argument("a snapshot without a vote"))?;
        let meta = first.meta.ok_or_else(|| Status::invalid_argument("a snapshot without its position"))?;
        let (vote, meta) = (convert::vote_from(vote), convert::snapshot_meta_from(meta));
        let (vote, meta) = (vote.map_err(malformed)?, meta.map_err(malformed)?);
        let mut assembler = assemble(Assembler::new(self.consensus.cluster().clone()), first.data).await?;
        while let Some(chunk) = chunks.message().await? {
            assembler = assemble(assembler, chunk.data).await?;
        }
        let state = blocking(move || assembler.finish()).await.map_err(internal)?.map_err(malformed)?;
        let snapshot = openraft::Snapshot { meta, snapshot: Image { state } };
        let response = self.consensus.raft().install_full_snapshot(vote, snapshot).await.map_err(internal)?;
        let SnapshotResponse { vote } = response;
        Ok(Response::new(wire::SnapshotResponse { vote: Some(convert::vote(&vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::Empty>, Status> {
        self.check_target(&request)?;
        let request = convert::transfer_request_from(request.into_inner()).map_err(malformed)?;
        let outcome = self.consensus.raft().handle_transfer_leader(request).await.map_err(internal)?;
        outcome.map_err(|e| Status::failed_precondition(e.to_string()))?;
        Ok(Response::new(wire::Empty {}))
    }

    async fn read_index(&self, request: Request<wire::Empty>) -> Result<Response<wire::ReadIndexResponse>, Status> {
        self.check_target(&request)?;
        let index = self.consensus.read_index().await.map_err(|e| status::from_consensus(&e))?;
        Ok(Response::new(wire::ReadIndexResponse { index }))
    }

    async fn add_member(
        &self,
        request: Request<wire::AddMemberRequest>,
    ) -> Result<Response<wire::AddMemberResponse>, Status> {
        let caller = orch_proto::tls::peer_identity(&request).map(|p| p.node_id.to_string());
        let request = request.into_inner();
        self.refuse_unless_leader()?;
        if caller.as_deref() != Some(request.node_id.as_str()) {
            return Err(Status::permission_denied("a manager can only add itself"));
        }
        // The state must be the newest: who was demoted a moment ago must not get back in.
        self.consensus.read_barrier().await.map_err(|e| status::from_consensus(&e))?;
        self.note_manager(&request).await?;
        let member = Member { node_id: request.node_id, addr: request.addr };
        tracing::info!(%member, raft_id = request.raft_id, "adding a manager");
        let store = self.consensus.store();
        let is_wanted = || {
            let view = store.view();
            view.state.nodes().any(|node| node.id.as_str() == member.node_id && is_manager(node))
        };
        let added = self.consensus.add_member(request.raft_id, member.clone(), is_wanted).await;
        added.map_err(|e| status::from_consensus(&e))?;
        Ok(Response::new(wire::AddMemberResponse { membership: None }))
    }

    async fn remove_member(
        &self,
        request: Request<wire::RemoveMemberRequest>,
    ) -> Result<Response<wire::Empty>, Status> {
        self.refuse_unless_leader()?;
        let raft_id = request.into_inner().raft_id;
        let removed = self.consensus.remove_member(raft_id, false).await;
        removed.map_err(|e: ConsensusError| status::from_consensus(&e))?;
        Ok(Response::new(wire::Empty {}))
    }
}

/// Away from the thread that answers heartbeats: a chunk is a thousand objects.
async fn assemble(mut assembler: Assembler, data: bytes::Bytes) -> Result<Assembler, Status> {
    let pushed = blocking(move || assembler.push(&data).map(|()| assembler)).await;
    pushed.map_err(internal)?.map_err(malformed)
}

fn is_manager(node: &Node) -> bool {
    node.spec.role == NodeRole::Manager && node.role == NodeRole::Manager
}

fn malformed(error: impl std::error::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

fn internal(error: impl std::error::Error) -> Status {
    Status::internal(error.to_string())
}
