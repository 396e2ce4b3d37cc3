//! Tasks that nobody will ever report on again: their node was removed, or has been down for a day.

use std::sync::Arc;

use orch_model::{
    Duration, Object, ObjectId, Timestamp,
    change::Change,
    node::NodeState,
    task::{Task, TaskState},
};

use crate::{decision::Decision, state::State};

/// A node that is down for this long gives its tasks up, and with them their addresses.
pub const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Marks tasks as orphaned.
#[must_use]
pub fn decide(state: &State, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    for node in state.nodes().filter(|n| n.status.state == NodeState::Down) {
        let at = node.status.since + ORPHAN_AFTER;
        let tasks: Vec<_> = state.tasks_on(&node.id).filter(|t| may_still_run(t)).collect();
        if now >= at {
            decision.changes.extend(tasks.into_iter().map(|t| orphan(t, now, "its node was down for 24 hours")));
        } else if !tasks.is_empty() {
            decision.wake_at(at);
        }
    }
    let gone = state.nodes_with_tasks().filter(|id| state.node(id).is_none());
    let nodeless = gone.flat_map(|id| state.tasks_on(id)).filter(|t| may_still_run(t));
    decision.changes.extend(nodeless.map(|t| orphan(t, now, "its node was removed from the cluster")));
    decision
}

fn may_still_run(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned && !task.status.state.is_terminal()
}

fn orphan(task: &Task, now: Timestamp, why: &str) -> Change {
    if task.is_one_off() {
        // Nobody asks what became of it; only its addresses were kept.
        return Change::Remove { id: ObjectId::Task(task.id.clone()), version: task.meta.version };
    }
    let mut task = task.clone();
    task.status.state = TaskState::Orphaned;
    task.status.at = now;
    task.status.message = "orphaned".to_owned();
    task.status.error = Some(format!("nobody knows what became of the task: {why}"));
    Change::Update(Object::Task(Arc::new(task)))
}
