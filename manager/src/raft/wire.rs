//! openraft's types from and to `orch.v1` messages: on the network, in the log and in snapshot files.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{
    EntryPayload,
    raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse},
};
use orch_proto::wire;

use super::types::{
    Entry, LeaderId, LogId, Member, Membership, Proposal, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};

/// A raft message that lacks a part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a raft message has no {0}")]
    Missing(&'static str),
    #[error("a raft entry has a payload of a kind that this version does not know")]
    UnknownPayload,
    #[error("a raft membership is not valid: {0}")]
    Membership(String),
}

pub(crate) fn log_id(id: &LogId) -> wire::LogId {
    wire::LogId { leader: Some(leader_id(&id.leader_id)), index: id.index }
}

pub(crate) fn log_id_from(id: wire::LogId) -> Result<LogId, WireError> {
    let leader = id.leader.ok_or(WireError::Missing("leader of a log id"))?;
    Ok(LogId { leader_id: leader_id_from(leader), index: id.index })
}

fn optional_log_id(id: Option<wire::LogId>) -> Result<Option<LogId>, WireError> {
    id.map(log_id_from).transpose()
}

fn leader_id(id: &LeaderId) -> wire::LeaderId {
    wire::LeaderId { term: id.term, node: id.node_id }
}

fn leader_id_from(id: wire::LeaderId) -> LeaderId {
    LeaderId { term: id.term, node_id: id.node }
}

pub(crate) fn vote(vote: &Vote) -> wire::RaftVote {
    wire::RaftVote { leader: Some(leader_id(&vote.leader_id)), committed: vote.committed }
}

pub(crate) fn vote_from(vote: wire::RaftVote) -> Result<Vote, WireError> {
    let leader = vote.leader.ok_or(WireError::Missing("leader of a vote"))?;
    Ok(Vote { leader_id: leader_id_from(leader), committed: vote.committed })
}

fn required_vote(vote: Option<wire::RaftVote>) -> Result<Vote, WireError> {
    vote.ok_or(WireError::Missing("vote")).and_then(vote_from)
}

pub(crate) fn payload(entry: &Entry) -> wire::entry::Payload {
    match &entry.payload {
        EntryPayload::Blank => wire::entry::Payload::Blank(wire::Empty {}),
        EntryPayload::Normal(proposal) => wire::entry::Payload::Normal(proposal.0.clone()),
        EntryPayload::Membership(m) => wire::entry::Payload::Membership(membership(m)),
    }
}

pub(crate) fn entry(entry: &Entry) -> wire::Entry {
    wire::Entry { id: Some(log_id(&entry.log_id)), payload: Some(payload(entry)) }
}

pub(crate) fn entry_from(entry: wire::Entry) -> Result<Entry, WireError> {
    let id = entry.id.ok_or(WireError::Missing("id of an entry")).and_then(log_id_from)?;
    entry_with(id, entry.payload)
}

pub(crate) fn entry_with(log_id: LogId, payload: Option<wire::entry::Payload>) -> Result<Entry, WireError> {
    let payload = match payload.ok_or(WireError::UnknownPayload)? {
        wire::entry::Payload::Blank(_) => EntryPayload::Blank,
        wire::entry::Payload::Normal(bytes) => EntryPayload::Normal(Proposal(bytes)),
        wire::entry::Payload::Membership(m) => EntryPayload::Membership(membership_from(m)?),
    };
    Ok(Entry { log_id, payload })
}

pub(crate) fn membership(membership: &Membership) -> wire::Membership {
    let sets = membership.get_joint_config().iter();
    let members = membership
        .nodes()
        .map(|(id, member)| (*id, wire::Member { node_id: member.node_id.clone(), addr: member.addr.clone() }));
    wire::Membership {
        configs: sets.map(|ids| wire::MemberSet { ids: ids.iter().copied().collect() }).collect(),
        members: members.collect(),
    }
}

pub(crate) fn membership_from(membership: wire::Membership) -> Result<Membership, WireError> {
    let configs: Vec<BTreeSet<u64>> = membership.configs.into_iter().map(|set| set.ids.into_iter().collect()).collect();
    let members: BTreeMap<u64, Member> = membership
        .members
        .into_iter()
        .map(|(id, member)| (id, Member { node_id: member.node_id, addr: member.addr }))
        .collect();
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members).map_err(|e| WireError::Membership(e.to_string()))
}

pub(crate) fn stored_membership(stored: &StoredMembership) -> wire::StoredMembership {
    wire::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id),
        membership: Some(membership(stored.membership())),
    }
}

pub(crate) fn stored_membership_from(stored: wire::StoredMembership) -> Result<StoredMembership, WireError> {
    let membership = stored.membership.ok_or(WireError::Missing("membership"))?;
    Ok(StoredMembership::new(optional_log_id(stored.log_id)?, membership_from(membership)?))
}

pub(crate) fn snapshot_meta(meta: &SnapshotMeta) -> wire::SnapshotMeta {
    wire::SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(log_id),
        membership: Some(stored_membership(&meta.last_membership)),
        id: String::new(),
    }
}

pub(crate) fn snapshot_meta_from(meta: wire::SnapshotMeta) -> Result<SnapshotMeta, WireError> {
    let membership = meta.membership.ok_or(WireError::Missing("membership of a snapshot"))?;
    Ok(SnapshotMeta {
        last_log_id: optional_log_id(meta.last_log_id)?,
        last_membership: stored_membership_from(membership)?,
    })
}

/// The request with only its first `count` entries.
pub(crate) fn append_request(request: &AppendEntriesRequest<TypeConfig>, count: usize) -> wire::AppendEntriesRequest {
    wire::AppendEntriesRequest {
        vote: Some(vote(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id),
        committed: request.leader_commit.as_ref().map(log_id),
        entries: request.entries.iter().take(count).map(entry).collect(),
    }
}

pub(crate) fn append_request_from(
    request: wire::AppendEntriesRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    Ok(AppendEntriesRequest {
        vote: required_vote(request.vote)?,
        prev_log_id: optional_log_id(request.prev)?,
        entries: request.entries.into_iter().map(entry_from).collect::<Result<_, _>>()?,
        leader_commit: optional_log_id(request.committed)?,
    })
}

pub(crate) fn append_response(response: &AppendEntriesResponse<TypeConfig>) -> wire::AppendEntriesResponse {
    use wire::append_entries_response::Result;
    let result = match response {
        AppendEntriesResponse::Success => Result::Success(wire::Empty {}),
        AppendEntriesResponse::PartialSuccess(matching) => {
            Result::Partial(wire::PartialSuccess { matching: matching.as_ref().map(log_id) })
        }
        AppendEntriesResponse::Conflict => Result::Conflict(wire::Empty {}),
        AppendEntriesResponse::HigherVote(higher) => Result::HigherVote(vote(higher)),
    };
    wire::AppendEntriesResponse { result: Some(result) }
}

pub(crate) fn append_response_from(
    response: wire::AppendEntriesResponse,
) -> Result<AppendEntriesResponse<TypeConfig>, WireError> {
    use wire::append_entries_response::Result;
    Ok(match response.result.ok_or(WireError::Missing("result of an append"))? {
        Result::Success(_) => AppendEntriesResponse::Success,
        Result::Partial(partial) => AppendEntriesResponse::PartialSuccess(optional_log_id(partial.matching)?),
        Result::Conflict(_) => AppendEntriesResponse::Conflict,
        Result::HigherVote(higher) => AppendEntriesResponse::HigherVote(vote_from(higher)?),
    })
}

pub(crate) fn vote_request(request: &VoteRequest<TypeConfig>, pre_vote: bool) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id),
        pre_vote,
        leader_transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote_request_from(request: wire::VoteRequest) -> Result<VoteRequest<TypeConfig>, WireError> {
    Ok(VoteRequest {
        vote: required_vote(request.vote)?,
        last_log_id: optional_log_id(request.last_log_id)?,
        leadership_transfer: request.leader_transfer,
    })
}

pub(crate) fn vote_response(response: &VoteResponse<TypeConfig>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(vote(&response.vote)),
        last_log_id: response.last_log_id.as_ref().map(log_id),
        granted: response.vote_granted,
    }
}

pub(crate) fn vote_response_from(response: wire::VoteResponse) -> Result<VoteResponse<TypeConfig>, WireError> {
    Ok(VoteResponse {
        vote: required_vote(response.vote)?,
        vote_granted: response.granted,
        last_log_id: optional_log_id(response.last_log_id)?,
    })
}

pub(crate) fn transfer_request(request: &TransferLeaderRequest<TypeConfig>) -> wire::TransferLeaderRequest {
    wire::TransferLeaderRequest {
        from: Some(vote(request.from_leader())),
        to: *request.to_node_id(),
        last_log_id: request.last_log_id().map(log_id),
    }
}

pub(crate) fn transfer_request_from(
    request: wire::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, WireError> {
    Ok(TransferLeaderRequest::new(required_vote(request.from)?, request.to, optional_log_id(request.last_log_id)?))
}
