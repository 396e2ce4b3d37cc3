//! Deletes tasks that are over: those marked for removal once they stopped, and the oldest beyond the history limit.
//!
//! A task is never deleted while it may still run, so its addresses are never given out early.

use std::{collections::BTreeMap, sync::Arc};

use orch_model::{
    Object, ObjectId,
    change::Change,
    cluster::DEFAULT_TASK_HISTORY_LIMIT,
    service::Service,
    task::{Task, TaskState},
};

use super::slot::{Slot, slots_of};
use crate::{
    decision::Decision,
    state::{State, check::unused_login},
};

/// Proposes what can be deleted now.
#[must_use]
pub fn decide(state: &State, service: &Arc<Service>) -> Decision {
    let mut decision = Decision::default();
    let limit = state.cluster().map_or(DEFAULT_TASK_HISTORY_LIMIT, |c| c.spec.task_history_limit);
    let mut over: BTreeMap<_, &Arc<Task>> = BTreeMap::new();
    for task in state.tasks_of(&service.id) {
        let unwanted = task.desired_state > TaskState::Running;
        let never_ran = unwanted && task.status.state < TaskState::Assigned;
        let removed = task.desired_state == TaskState::Remove && task.status.state.is_terminal();
        let node_gone = unwanted && task.node.as_ref().is_some_and(|id| state.node(id).is_none());
        if never_ran || removed || (node_gone && task.desired_state == TaskState::Remove) {
            over.insert(task.id.clone(), task);
        }
    }
    let slots = slots_of(state, service);
    for slot in slots.values() {
        over.extend(beyond_history(service, slot, limit).map(|t| (t.id.clone(), t)));
    }
    let all_gone = state.tasks_of(&service.id).count() == over.len();
    decision.changes.extend(over.values().map(|t| remove(&Object::Task((*t).clone()))));
    if service.removing && all_gone {
        decision.changes.push(remove(&Object::Service(service.clone())));
        decision.changes.extend(unused_login(state, service).map(|login| remove(&Object::Secret(login.clone()))));
    }
    decision
}

fn beyond_history<'a>(service: &Service, slot: &'a Slot, limit: u64) -> impl Iterator<Item = &'a Arc<Task>> {
    // The restart supervisor counts attempts by the tasks that are kept.
    let limit = limit.max(service.spec.task.restart.max_attempts.saturating_add(1));
    let over = |t: &&Arc<Task>| t.desired_state > TaskState::Running && t.status.state.is_terminal();
    let count = slot.tasks.iter().filter(over).count();
    let excess = count.saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    slot.tasks.iter().filter(move |t| over(t)).take(excess)
}

fn remove(object: &Object) -> Change {
    let id: ObjectId = object.id();
    Change::Remove { id, version: object.meta().version }
}
