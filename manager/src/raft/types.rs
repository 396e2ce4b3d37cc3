//! openraft's type parameters as Orch fills them in.

use std::fmt;

use bytes::Bytes;
use openraft::alias;
use orch_manager_core::ApplyError;

use super::machine::StateMachine;

openraft::declare_raft_types!(
    /// Raft over encoded proposals between managers.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Applied,
        NodeId = u64,
        Node = Member,
        AsyncRuntime = Runtime,
);

#[cfg(not(test))]
type Runtime = openraft_rt_tokio::TokioRuntime;
/// In tests, raft runs on virtual time and with randomness from a seed where a simulation says so.
#[cfg(test)]
type Runtime = crate::simulation::Runtime;

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type LeaderId = alias::LeaderIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;

/// An encoded `wire::Proposal`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying one entry gave: a result per transaction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied {
    pub(crate) index: u64,
    pub(crate) results: Vec<Result<(), ApplyError>>,
}

/// A manager as the membership records it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    pub node_id: String,
    /// `HOST:PORT` of its control and raft port.
    pub addr: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.node_id, self.addr)
    }
}
