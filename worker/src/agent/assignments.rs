//! The assignment set as a session builds it: one complete set, then increments chained by sequence.

use std::collections::{BTreeMap, BTreeSet};

use orch_model::assignment::{Assignment, AssignmentKey};
use orch_proto::{
    conv::{DecodeError, FromProto},
    wire,
};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AssignmentError {
    #[error("the increment applies to sequence {applies_to}, but this node has {have:?}: asking for everything again")]
    Gap { applies_to: u64, have: Option<u64> },
    #[error("an assignment cannot be understood")]
    Decode(#[from] DecodeError),
    #[error("more than {MAX_PARTS} messages for one sequence")]
    TooManyParts,
}

/// Longest run of messages that belong together.
const MAX_PARTS: usize = 10_000;

/// Built within one session.
#[derive(Debug, Default)]
pub(crate) struct AssignmentSet {
    sequence: Option<u64>,
    items: BTreeMap<AssignmentKey, Assignment>,
    /// Messages whose last part has not come yet.
    parts: Vec<wire::AssignmentsMessage>,
}

/// What one sequence changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Delta {
    pub sequence: u64,
    /// Everything that is not in the set now is gone.
    pub complete: bool,
    pub put: Vec<Assignment>,
    pub removed: BTreeSet<AssignmentKey>,
}

impl AssignmentSet {
    /// Takes one message; `None` while more messages of its sequence must follow.
    pub(crate) fn apply(&mut self, message: wire::AssignmentsMessage) -> Result<Option<Delta>, AssignmentError> {
        if !message.complete && self.sequence != Some(message.applies_to) {
            return Err(AssignmentError::Gap { applies_to: message.applies_to, have: self.sequence });
        }
        let more = message.more;
        self.parts.push(message);
        if more {
            return if self.parts.len() < MAX_PARTS { Ok(None) } else { Err(AssignmentError::TooManyParts) };
        }
        let parts = std::mem::take(&mut self.parts);
        let mut delta = Delta { sequence: 0, complete: false, put: Vec::new(), removed: BTreeSet::new() };
        for part in parts {
            delta.sequence = part.results_in;
            delta.complete |= part.complete;
            for key in part.remove {
                delta.removed.insert(AssignmentKey::from_proto(key)?);
            }
            for item in part.put {
                delta.put.push(Assignment::from_proto(item)?);
            }
        }
        self.take(&delta);
        Ok(Some(delta))
    }

    /// Everything that is assigned now.
    pub(crate) fn items(&self) -> impl Iterator<Item = &Assignment> {
        self.items.values()
    }

    fn take(&mut self, delta: &Delta) {
        if delta.complete {
            self.items.clear();
        }
        for key in &delta.removed {
            self.items.remove(key);
        }
        self.items.extend(delta.put.iter().map(|item| (item.key(), item.clone())));
        self.sequence = Some(delta.sequence);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use orch_model::{NodeId, assignment::Peer};
    use orch_proto::conv::ToProto;

    use super::*;

    fn peer(n: u128) -> Assignment {
        let data_addr = IpAddr::from([10, 0, 0, 1]);
        let (node, index) = (NodeId::from_random(n), 1);
        Assignment::Peer(Peer { node, index, data_addr, ingress_addr: None, weight: None, tunnel_key: None })
    }

    fn message(applies_to: u64, results_in: u64, put: &[u128], remove: &[u128]) -> wire::AssignmentsMessage {
        wire::AssignmentsMessage {
            applies_to,
            results_in,
            put: put.iter().map(|n| peer(*n).to_proto()).collect(),
            remove: remove.iter().map(|n| peer(*n).key().to_proto()).collect(),
            ..Default::default()
        }
    }

    fn complete(results_in: u64, put: &[u128]) -> wire::AssignmentsMessage {
        wire::AssignmentsMessage { complete: true, ..message(0, results_in, put, &[]) }
    }

    fn keys(set: &AssignmentSet) -> Vec<AssignmentKey> {
        set.items().map(Assignment::key).collect()
    }

    #[test]
    fn increments_follow_the_complete_set() {
        let mut set = AssignmentSet::default();
        assert!(set.apply(complete(5, &[1, 2])).unwrap().unwrap().complete);
        let delta = set.apply(message(5, 6, &[3], &[1])).unwrap().unwrap();
        assert_eq!((delta.sequence, delta.put, delta.removed), (6, vec![peer(3)], [peer(1).key()].into()));
        assert_eq!(keys(&set), [peer(2).key(), peer(3).key()]);
        set.apply(complete(9, &[4])).unwrap();
        assert_eq!(keys(&set), [peer(4).key()]);
    }

    #[test]
    fn a_gap_is_an_error_and_changes_nothing() {
        let mut set = AssignmentSet::default();
        let first = set.apply(message(0, 1, &[1], &[]));
        assert_eq!(first, Err(AssignmentError::Gap { applies_to: 0, have: None }));
        set.apply(complete(5, &[1])).unwrap();
        for applies_to in [4, 6] {
            let gap = set.apply(message(applies_to, 7, &[2], &[]));
            assert_eq!(gap, Err(AssignmentError::Gap { applies_to, have: Some(5) }));
        }
        assert_eq!(keys(&set), [peer(1).key()]);
    }

    #[test]
    fn parts_are_applied_together() {
        let mut set = AssignmentSet::default();
        let part = wire::AssignmentsMessage { more: true, ..complete(5, &[1]) };
        assert_eq!(set.apply(part), Ok(None));
        assert_eq!(keys(&set), []);
        let delta = set.apply(complete(5, &[2])).unwrap().unwrap();
        assert_eq!(delta.put, [peer(1), peer(2)]);
        assert_eq!(keys(&set), [peer(1).key(), peer(2).key()]);
    }
}
