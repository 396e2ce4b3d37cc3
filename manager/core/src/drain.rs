//! Drain before stop: a running task is told to stop only when no node balances to it any more.
//!
//! A pure record of who must still acknowledge what; the dispatcher's shell drives it and keeps time. It is not part of
//! the state: after a change of leader it starts empty, and a task that was already told to stop is asked to be held
//! again for at most the time limit. Agents never take a stop back, so nothing comes of that.

use std::collections::{BTreeMap, BTreeSet};

use orch_model::{
    Duration, NodeId, TaskId, Timestamp,
    task::{Task, TaskState},
};

use crate::{dispatch::networks_of_node, state::State};

/// A node that does not acknowledge in this time is not waited for.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a task's stop has to wait until it is out of every node's balancing.
#[must_use]
pub fn needs_drain(task: &Task) -> bool {
    task.status.state == TaskState::Running
        && task.desired_state > TaskState::Running
        && task.networks.iter().any(|n| !n.addresses.is_empty())
}

/// Which tasks wait for which nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drain {
    waiting: BTreeMap<TaskId, Wait>,
    drained: BTreeSet<TaskId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wait {
    deadline: Timestamp,
    /// The sequence that each node has to acknowledge.
    pending: BTreeMap<NodeId, u64>,
}

impl Drain {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing holds the task's stop up any more.
    #[must_use]
    pub fn is_drained(&self, task: &TaskId) -> bool {
        self.drained.contains(task)
    }

    /// Whether no task waits for a node.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Tells of a new state, after its increments were sent. `stopping` are the tasks that may have to be drained since
    /// the last time, or `None` for all that there are; `sent` says, per connected node, the sequence after which that
    /// node knows this state. Returns tasks that may stop now.
    pub fn on_state(
        &mut self,
        state: &State,
        stopping: Option<&BTreeSet<TaskId>>,
        sent: &dyn Fn() -> BTreeMap<NodeId, u64>,
        now: Timestamp,
    ) -> Vec<TaskId> {
        let is_current = |id: &TaskId| state.task(id).is_some_and(|t| needs_drain(t));
        self.waiting.retain(|id, _| is_current(id));
        self.drained.retain(|id| is_current(id));
        let known = |id: &TaskId| self.waiting.contains_key(id) || self.drained.contains(id);
        let is_new = |task: &&std::sync::Arc<Task>| needs_drain(task) && !known(&task.id);
        let new: Vec<_> = match stopping {
            Some(ids) => ids.iter().filter_map(|id| state.task(id)).filter(is_new).cloned().collect(),
            None => state.tasks().filter(is_new).cloned().collect(),
        };
        if new.is_empty() {
            return Vec::new();
        }
        let sent = sent();
        let networks: Vec<(&NodeId, u64, BTreeSet<_>)> = sent
            .iter()
            .map(|(node, seq)| (node, *seq, networks_of_node(state, node).map(|n| n.id.clone()).collect()))
            .collect();
        for task in new {
            let takes_part = |ids: &BTreeSet<_>| task.networks.iter().any(|n| ids.contains(&n.network));
            let pending = networks.iter().filter(|(_, _, ids)| takes_part(ids));
            let pending = pending.map(|(node, seq, _)| ((*node).clone(), *seq)).collect();
            self.waiting.insert(task.id.clone(), Wait { deadline: now + DRAIN_TIMEOUT, pending });
        }
        self.release(|wait| wait.pending.is_empty())
    }

    /// A node has applied everything up to `sequence`. Returns tasks that may stop now.
    pub fn on_ack(&mut self, node: &NodeId, sequence: u64) -> Vec<TaskId> {
        for wait in self.waiting.values_mut() {
            if wait.pending.get(node).is_some_and(|awaited| *awaited <= sequence) {
                wait.pending.remove(node);
            }
        }
        self.release(|wait| wait.pending.is_empty())
    }

    /// A node's session ended: when it comes back it gets a complete set, so nobody waits for it. Returns tasks that
    /// may stop now.
    pub fn on_session_gone(&mut self, node: &NodeId) -> Vec<TaskId> {
        for wait in self.waiting.values_mut() {
            wait.pending.remove(node);
        }
        self.release(|wait| wait.pending.is_empty())
    }

    /// Time has passed. Returns tasks that may stop now.
    pub fn on_time(&mut self, now: Timestamp) -> Vec<TaskId> {
        self.release(|wait| now >= wait.deadline)
    }

    /// When [`Self::on_time`] may next release something.
    #[must_use]
    pub fn wake(&self) -> Option<Timestamp> {
        self.waiting.values().map(|w| w.deadline).min()
    }

    fn release(&mut self, done: impl Fn(&Wait) -> bool) -> Vec<TaskId> {
        let released: Vec<_> = self.waiting.iter().filter(|(_, w)| done(w)).map(|(id, _)| id.clone()).collect();
        for id in &released {
            self.waiting.remove(id);
            self.drained.insert(id.clone());
        }
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_released_by_the_last_acknowledgement_or_by_time() {
        let (a, b) = (NodeId::from_random(1), NodeId::from_random(2));
        let task = TaskId::from_random(3);
        let wait = |pending: &[(&NodeId, u64)]| Wait {
            deadline: Timestamp::from_unix_ms(5000),
            pending: pending.iter().map(|(n, s)| ((*n).clone(), *s)).collect(),
        };
        let with = |pending: &[(&NodeId, u64)]| Drain {
            waiting: BTreeMap::from([(task.clone(), wait(pending))]),
            drained: BTreeSet::new(),
        };
        let mut drain = with(&[(&a, 7), (&b, 3)]);
        assert_eq!(drain.on_ack(&a, 6), vec![]);
        assert_eq!(drain.on_ack(&b, 9), vec![]);
        assert!(!drain.is_drained(&task));
        assert_eq!(drain.on_ack(&a, 7), vec![task.clone()]);
        assert!(drain.is_drained(&task));
        let mut drain = with(&[(&a, 7)]);
        assert_eq!(drain.on_session_gone(&a), vec![task.clone()]);
        let mut drain = with(&[(&a, 7)]);
        assert_eq!(drain.wake(), Some(Timestamp::from_unix_ms(5000)));
        assert_eq!(drain.on_time(Timestamp::from_unix_ms(4999)), vec![]);
        assert_eq!(drain.on_time(Timestamp::from_unix_ms(5000)), vec![task.clone()]);
        assert_eq!(drain.wake(), None);
    }
}
