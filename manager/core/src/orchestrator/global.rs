//! Global services: one task on every node that takes tasks and fits.

use orch_model::{
    Timestamp,
    node::{Availability, Node, NodeState},
    service::Service,
    task::TaskState,
};

use super::{
    create, desire, fits, new_task, replicated,
    slot::{SlotKey, is_global, slots_of},
    takes_tasks,
};
use crate::{
    decision::{Decision, Ids},
    state::State,
};

/// What a global service does on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// Runs a task, and starts one if there is none.
    Runs,
    /// Keeps what is there.
    Keeps,
    /// Has nothing to run there.
    Leaves,
}

/// Adds a task where one is missing, shuts down where none belongs, forgets nodes that were removed.
pub fn decide(state: &State, service: &Service, now: Timestamp, ids: Ids<'_>) -> Decision {
    let mut decision = Decision::default();
    if !is_global(service) {
        return decision;
    }
    if service.removing {
        decision.changes.extend(replicated::remove_all(state, service));
        return decision;
    }
    let slots = slots_of(state, service);
    for node in state.nodes() {
        let key = SlotKey::Node(node.id.clone());
        let slot = slots.get(&key);
        match share(state, service, node) {
            Share::Runs if !slot.is_some_and(|s| s.is_occupied(service)) => {
                decision.changes.push(create(new_task(state, service, &key, TaskState::Running, None, now, ids())));
            }
            Share::Leaves => {
                let wanted = slot.into_iter().flat_map(|s| &s.tasks);
                let wanted = wanted.filter(|t| t.desired_state <= TaskState::Running);
                decision.changes.extend(wanted.map(|t| desire(t, TaskState::Shutdown)));
            }
            Share::Runs | Share::Keeps => {}
        }
    }
    for (key, slot) in &slots {
        let gone = matches!(key, SlotKey::Node(node) if state.node(node).is_none());
        if gone || matches!(key, SlotKey::Slot(_)) {
            decision.changes.extend(slot.tasks.iter().map(|t| desire(t, TaskState::Remove)));
        }
    }
    decision
}

fn share(state: &State, service: &Service, node: &Node) -> Share {
    let unreachable = node.status.state == NodeState::Down;
    if unreachable || node.spec.availability == Availability::Drain || !fits(state, service, node) {
        return Share::Leaves;
    }
    if takes_tasks(node) { Share::Runs } else { Share::Keeps }
}
