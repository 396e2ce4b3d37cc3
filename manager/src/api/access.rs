//! Who may make which call, and which manager answers it: one row per call.
//!
//! A call that is not here is refused.

use orch_model::node::NodeRole;

/// Where a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The local socket: its file mode has decided who may use it.
    LocalSocket,
    /// Mutual TLS; the certificate is optional.
    Network,
}

/// What a caller has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The local socket, or a manager's certificate.
    Admin,
    /// A certificate of one of these roles.
    Nodes(&'static [NodeRole]),
    /// Nothing: the call brings a proof of its own (a join token).
    Anyone,
}

/// Which manager answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The one that was asked.
    Here,
    /// The leader; others pass the call on.
    Leader,
    /// The leader, or the one that was asked while there is no leader.
    LeaderElseHere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) access: Access,
    pub(super) place: Place,
}

pub(super) const ANY_NODE: Access = Access::Nodes(&[NodeRole::Worker, NodeRole::Manager]);
const MANAGERS: Access = Access::Nodes(&[NodeRole::Manager]);

const RULES: &[(&str, Access, Place)] = &[
    ("/orch.v1.Control/Create", Access::Admin, Place::Leader),
    ("/orch.v1.Control/Update", Access::Admin, Place::Leader),
    ("/orch.v1.Control/Remove", Access::Admin, Place::Leader),
    ("/orch.v1.Control/Get", Access::Admin, Place::Here),
    ("/orch.v1.Control/List", Access::Admin, Place::Here),
    ("/orch.v1.Control/Watch", Access::Admin, Place::Here),
    ("/orch.v1.Control/RotateJoinToken", Access::Admin, Place::Leader),
    ("/orch.v1.Control/Info", Access::Admin, Place::LeaderElseHere),
    ("/orch.v1.Control/GetUnlockKey", Access::Admin, Place::Leader),
    ("/orch.v1.Control/RotateUnlockKey", Access::Admin, Place::Leader),
    ("/orch.v1.Control/RotateRoot", Access::Admin, Place::Leader),
    ("/orch.v1.Lock/Unlock", Access::Admin, Place::Here),
    ("/orch.v1.Control/Logs", Access::Admin, Place::Leader),
    ("/orch.v1.Control/Exec", Access::Admin, Place::Leader),
    ("/orch.v1.Ca/Join", Access::Anyone, Place::Leader),
    ("/orch.v1.Ca/Renew", ANY_NODE, Place::Leader),
    ("/orch.v1.Ca/Report", ANY_NODE, Place::Leader),
    ("/orch.v1.Ca/Leave", ANY_NODE, Place::Leader),
    ("/orch.v1.Dispatcher/Session", ANY_NODE, Place::Here),
    ("/orch.v1.Dispatcher/Heartbeat", ANY_NODE, Place::Here),
    ("/orch.v1.Dispatcher/Pings", ANY_NODE, Place::Here),
    ("/orch.v1.Dispatcher/Assignments", ANY_NODE, Place::Here),
    ("/orch.v1.Dispatcher/Ack", ANY_NODE, Place::Here),
    ("/orch.v1.Dispatcher/UpdateTaskStatus", ANY_NODE, Place::Here),
    ("/orch.v1.Dispatcher/RegisterImage", ANY_NODE, Place::Here),
    ("/orch.v1.Dispatcher/ForgetImage", ANY_NODE, Place::Here),
    ("/orch.v1.Dispatcher/SetContainerNetworks", ANY_NODE, Place::Here),
    ("/orch.v1.Dispatcher/KeepContainers", ANY_NODE, Place::Here),
    ("/orch.v1.Streams/Attach", ANY_NODE, Place::Here),
    ("/orch.v1.Raft/AppendEntries", MANAGERS, Place::Here),
    ("/orch.v1.Raft/Vote", MANAGERS, Place::Here),
    ("/orch.v1.Raft/Snapshot", MANAGERS, Place::Here),
    ("/orch.v1.Raft/TransferLeader", MANAGERS, Place::Here),
    ("/orch.v1.Raft/ReadIndex", MANAGERS, Place::Here),
    ("/orch.v1.Raft/AddMember", MANAGERS, Place::Here),
    ("/orch.v1.Raft/RemoveMember", MANAGERS, Place::Here),
];

/// Calls whose request is a stream without an end.
const STREAMED: &[&str] =
    &["/orch.v1.Control/Exec", "/orch.v1.Dispatcher/Pings", "/orch.v1.Streams/Attach", "/orch.v1.Raft/Snapshot"];

/// Calls of the leader whose answer is a stream, which may be read as slowly as anybody likes.
const UNHURRIED: &[&str] = &["/orch.v1.Control/Logs", "/orch.v1.Control/Exec"];

/// Calls that the leader answers and that change nothing.
const READS: &[&str] = &["/orch.v1.Control/Info", "/orch.v1.Control/GetUnlockKey", "/orch.v1.Control/Logs"];

/// Calls that change something in more than one step: a leader that gives up in the middle has done a part.
const IN_STEPS: &[&str] = &["/orch.v1.Ca/Leave"];

/// Whether a call that is refused for want of a leader has changed nothing, so that the same request can be made again.
pub(super) fn is_one_step(path: &str) -> bool {
    !IN_STEPS.contains(&path) && !STREAMED.contains(&path)
}

/// Whether a call's answer may lie unread for long.
pub(super) fn is_unhurried(path: &str) -> bool {
    UNHURRIED.contains(&path)
}

/// Whether a call that got no answer may have changed something.
pub(super) fn may_change(path: &str) -> bool {
    !READS.contains(&path)
}

/// Whether a request has to arrive whole, soon and within its caller's budget. Streams are bounded message by message, and
/// raft's messages by their number.
pub(super) fn is_metered(path: &str) -> bool {
    !path.starts_with("/orch.v1.Raft/") && !STREAMED.contains(&path)
}

/// The path of every call.
pub(crate) fn calls() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|(path, ..)| *path)
}

/// The row of a call; `None` when there is no such call.
pub(super) fn rule(path: &str) -> Option<Rule> {
    RULES.iter().find(|(known, ..)| *known == path).map(|(_, access, place)| Rule { access: *access, place: *place })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Served on other sockets, by other daemons.
    const OTHERS: &[&str] = &["NodeControl", "WorkerLocal", "Netd", "Peer"];

    /// `(path, whether the request is a stream, whether the answer is)` of every call of every service that is not another
    /// daemon's.
    fn declared() -> Vec<(String, bool, bool)> {
        let mut declared = Vec::new();
        for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/orch/v1")).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            let mut service = "";
            for line in text.lines() {
                if let Some(rest) = line.strip_prefix("service ") {
                    service = rest.split_whitespace().next().unwrap();
                } else if let Some(rest) = line.trim().strip_prefix("rpc ").filter(|_| !OTHERS.contains(&service)) {
                    let (name, request) = rest.split_once('(').unwrap();
                    let is_answer_a_stream = request.contains("returns (stream ");
                    declared.push((
                        format!("/orch.v1.{service}/{name}"),
                        request.starts_with("stream "),
                        is_answer_a_stream,
                    ));
                }
            }
        }
        declared.sort();
        declared
    }

    /// Every call of a manager has a row, and no row is left over.
    #[test]
    fn every_call_has_a_rule() {
        let declared: Vec<_> = declared().into_iter().map(|(path, ..)| path).collect();
        let mut ruled: Vec<_> = RULES.iter().map(|(path, ..)| (*path).to_owned()).collect();
        ruled.sort();
        assert_eq!(declared, ruled);
    }

    #[test]
    fn requests_are_metered_unless_they_are_streams_or_rafts() {
        for (path, is_stream, _) in declared() {
            assert_eq!(is_metered(&path), !is_stream && !path.contains("Raft"), "{path}");
        }
    }

    #[test]
    fn streams_of_the_leader_are_known() {
        for (path, _, is_answer_a_stream) in declared() {
            let is_leaders = rule(&path).is_some_and(|rule| rule.place != Place::Here);
            assert_eq!(is_unhurried(&path), is_leaders && is_answer_a_stream, "{path}");
        }
    }

    #[test]
    fn what_is_never_made_again() {
        let in_steps: Vec<_> = RULES
            .iter()
            .filter(|(path, _, place)| *place != Place::Here && !is_one_step(path))
            .map(|(path, ..)| *path)
            .collect();
        assert_eq!(in_steps, ["/orch.v1.Control/Exec", "/orch.v1.Ca/Leave"]);
    }

    /// They are made again also when their answer got lost.
    #[test]
    fn reads_of_the_leader_are_known() {
        let reads: Vec<_> = RULES
            .iter()
            .filter(|(path, _, place)| *place != Place::Here && !may_change(path))
            .map(|(path, ..)| *path)
            .collect();
        assert_eq!(reads, ["/orch.v1.Control/Info", "/orch.v1.Control/GetUnlockKey", "/orch.v1.Control/Logs"]);
    }
}
