//! Errors as gRPC statuses, all in one place.
//!
//! A status carries a sentence for the operator and, in its metadata, a stable code for programs.

use http::HeaderMap;
use orch_manager_core::{ApplyError, control::ControlError, resolve::ResolveError};
use orch_model::NodeId;
use orch_proto::code;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::raft::{ConsensusError, Leadership, ProposeError};

/// `HOST:PORT` of the leader, on answers that only it could have given.
pub const LEADER_KEY: &str = "orch-leader";

/// A status with its stable code.
#[must_use]
pub fn with_code(code: Code, stable: &'static str, message: impl Into<String>) -> Status {
    let mut status = Status::new(code, message);
    status.metadata_mut().insert(code::KEY, MetadataValue::from_static(stable));
    status
}

/// For calls that are not passed on: the caller dials the leader itself.
#[must_use]
pub fn not_leader(leadership: &Leadership) -> Status {
    let Some((_, leader)) = leadership.leader.as_ref().filter(|_| !leadership.is_own) else { return no_leader() };
    let mut status =
        with_code(Code::Unavailable, "not-leader", format!("this manager is not the leader; the leader is {leader}"));
    if let Ok(addr) = leader.addr.parse() {
        status.metadata_mut().insert(LEADER_KEY, addr);
    }
    status
}

/// Nobody leads.
#[must_use]
pub fn no_leader() -> Status {
    with_code(
        Code::Unavailable,
        "no-leader",
        "the cluster has no leader now: more than half of the managers must be up and reach each other (a quorum). \
         If this lasts, look at the managers with \"orch info\" and start the missing ones",
    )
}

/// For whoever still has a certificate of a node that is not in the cluster any more.
#[must_use]
pub fn removed(id: &NodeId) -> Status {
    with_code(
        Code::PermissionDenied,
        code::NODE_REMOVED,
        format!("node {id} was removed from the cluster: leave it with \"orch leave --force\" and join again"),
    )
}

/// For whoever still has a manager's certificate of a node that is a worker now.
#[must_use]
pub fn demoted(id: &NodeId) -> Status {
    with_code(
        Code::PermissionDenied,
        "node-demoted",
        format!("node {id} is not a manager any more: promote it with \"orch node promote\" to make it one again"),
    )
}

#[must_use]
pub fn from_consensus(error: &ConsensusError) -> Status {
    let message = error.to_string();
    match error {
        ConsensusError::NotLeader => with_code(Code::Unavailable, "not-leader", message),
        ConsensusError::NoQuorum => with_code(Code::Unavailable, "no-quorum", message),
        ConsensusError::OutOfReach { .. } | ConsensusError::Deaf { .. } => {
            with_code(Code::Unavailable, "no-leader", message)
        }
        ConsensusError::MembersBusy => with_code(Code::Unavailable, "members-busy", message),
        ConsensusError::Stopped(_) | ConsensusError::Start(_) => with_code(Code::Unavailable, "stopped", message),
        ConsensusError::NotWanted => with_code(Code::FailedPrecondition, "not-a-manager", message),
        ConsensusError::Members(_) => with_code(Code::FailedPrecondition, "members", message),
        ConsensusError::WouldLoseQuorum { .. } => with_code(Code::FailedPrecondition, "quorum", message),
    }
}

/// For a read that this manager cannot answer.
#[must_use]
pub fn from_catch_up(error: &ConsensusError) -> Status {
    match error {
        ConsensusError::NoQuorum | ConsensusError::NotLeader => no_leader(),
        other => from_consensus(other),
    }
}

#[must_use]
pub fn from_propose(error: &ProposeError) -> Status {
    match error {
        ProposeError::Refused(refused) => from_apply(refused),
        ProposeError::Consensus(consensus) => from_consensus(consensus),
        ProposeError::TooLarge { .. } => with_code(Code::InvalidArgument, "too-large", error.to_string()),
        ProposeError::Stopping => with_code(Code::Unavailable, "stopped", error.to_string()),
    }
}

#[must_use]
pub fn from_apply(error: &ApplyError) -> Status {
    let (code, stable) = match error {
        ApplyError::Missing(_) => (Code::NotFound, "not-found"),
        ApplyError::Exists(_) => (Code::AlreadyExists, "exists"),
        ApplyError::NameTaken { .. } => (Code::AlreadyExists, "name-taken"),
        ApplyError::Stale { .. } => (Code::Aborted, "stale"),
        ApplyError::AnotherCluster => (Code::FailedPrecondition, "another-cluster"),
        ApplyError::Dangling { .. } => (Code::FailedPrecondition, "dangling"),
        ApplyError::InUse { .. } => (Code::FailedPrecondition, "in-use"),
        ApplyError::PortTaken { .. } => (Code::FailedPrecondition, "port-taken"),
        ApplyError::VniTaken { .. } => (Code::Aborted, "vni-taken"),
        ApplyError::AddressTaken { .. } => (Code::Aborted, "address-taken"),
        ApplyError::IndexTaken { .. } => (Code::Aborted, "index-taken"),
        ApplyError::SlotTaken { .. } => (Code::Aborted, "slot-taken"),
        ApplyError::Permanent(_) => (Code::FailedPrecondition, "permanent"),
        ApplyError::TooMany { .. } | ApplyError::TooManyOnNode { .. } => (Code::FailedPrecondition, "too-many"),
        ApplyError::TooManyTasks { .. } => (Code::FailedPrecondition, "too-many-tasks"),
        ApplyError::TooMuchContent { .. } => (Code::FailedPrecondition, "too-much-content"),
        ApplyError::Backwards { .. } => (Code::FailedPrecondition, "backwards"),
    };
    with_code(code, stable, error.to_string())
}

/// The connection to the leader broke while it had the call.
#[must_use]
pub fn leader_lost(may_have_changed: bool) -> Status {
    let message = if may_have_changed {
        "the leader went away before it answered; whether the change was made is not known: look, and try again"
    } else {
        "the leader went away before it answered: try again"
    };
    with_code(Code::Unavailable, "leader-lost", message)
}

/// Whether the answer with these headers says that nothing was done, because it was not for this manager to do, or not at
/// this moment.
#[must_use]
pub(super) fn was_left_undone(headers: &HeaderMap, may_have_changed: bool) -> bool {
    let code = headers.get(code::KEY).and_then(|code| code.to_str().ok()).unwrap_or_default();
    code::is_leaderless(code) || (code == "leader-lost" && !may_have_changed)
}

#[must_use]
pub fn from_control(error: &ControlError) -> Status {
    use orch_manager_core::control::Code as Refusal;
    let (code, stable) = match error.code {
        Refusal::NotFound => (Code::NotFound, "not-found"),
        Refusal::AlreadyExists => (Code::AlreadyExists, "exists"),
        Refusal::InvalidArgument => (Code::InvalidArgument, "invalid"),
        Refusal::FailedPrecondition => (Code::FailedPrecondition, "precondition"),
        Refusal::Aborted => (Code::Aborted, "stale"),
    };
    with_code(code, stable, error.text.clone())
}

#[must_use]
pub fn from_resolve(error: &ResolveError) -> Status {
    let (code, stable) = match error {
        ResolveError::NotFound { .. } => (Code::NotFound, "not-found"),
        ResolveError::Ambiguous { .. } => (Code::InvalidArgument, "ambiguous"),
    };
    with_code(code, stable, error.to_string())
}

/// A message that cannot be decoded.
#[must_use]
pub fn malformed(error: &dyn std::error::Error) -> Status {
    with_code(Code::InvalidArgument, "malformed", error.to_string())
}

#[cfg(test)]
mod tests {
    use tonic::body::Body;

    use super::*;

    #[test]
    fn what_was_left_undone_is_known_by_its_code() {
        // (code, whether nobody led, whether a read was left undone, whether a change was).
        for (code, is_leaderless, read, change) in [
            ("no-leader", true, true, true),
            ("not-leader", true, true, true),
            ("leader-lost", false, true, false),
            // The change may be in the log of a leader that lost its quorum, or that is stopping.
            ("no-quorum", false, false, false),
            ("stopped", false, false, false),
            ("members-busy", false, false, false),
            ("quorum", false, false, false),
            ("stale", false, false, false),
            ("exists", false, false, false),
            ("not-found", false, false, false),
            ("node-removed", false, false, false),
            ("", false, false, false),
        ] {
            let answer = with_code(Code::Unavailable, code, "").into_http::<Body>();
            assert_eq!(code::is_leaderless(code), is_leaderless, "{code:?}");
            assert_eq!(was_left_undone(answer.headers(), false), read, "a read, {code:?}");
            assert_eq!(was_left_undone(answer.headers(), true), change, "a change, {code:?}");
        }
        assert!(!was_left_undone(&HeaderMap::new(), false), "an answer without a code");
    }

    #[test]
    fn only_a_read_without_a_quorum_was_left_undone() {
        let lost = ConsensusError::NoQuorum;
        for (what, status, expected) in [
            ("a read", from_catch_up(&lost), "no-leader"),
            ("a change", from_propose(&ProposeError::from(std::sync::Arc::new(ConsensusError::NoQuorum))), "no-quorum"),
            ("a change of members", from_consensus(&lost), "no-quorum"),
            ("a change while stopping", from_propose(&ProposeError::Stopping), "stopped"),
            ("a call that was passed on", leader_lost(true), "leader-lost"),
        ] {
            assert_eq!(code::of(&status), Some(expected), "{what}");
        }
    }
}
