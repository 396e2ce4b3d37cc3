//! Services of a stack that is deployed again while its removal is under way.
//!
//! The first tasks of a service wait until those of its namesake have stopped: they may have the same volume, the same
//! port of a node, the same place in a group of databases. A task on a node that is down may never be heard of again and
//! holds nobody up.

use std::collections::BTreeSet;

use orch_model::{ObjectId, node::NodeState, service::Service, task::Task};

use super::dependency::had_a_node;
use crate::{resolve::STACK_LABEL, state::State};

/// What the service's tasks have to wait for, if anything.
pub(super) fn waits_for(state: &State, service: &Service) -> Option<String> {
    let annotations = &service.spec.annotations;
    let stack = annotations.labels.get(STACK_LABEL)?;
    let is_namesake = |other: &Service| {
        let theirs = &other.spec.annotations;
        other.id != service.id && theirs.name == annotations.name && theirs.labels.get(STACK_LABEL) == Some(stack)
    };
    let going = state.removing().filter_map(|id| match id {
        ObjectId::Service(id) => state.service(id).filter(|other| is_namesake(other)),
        _ => None,
    });
    let stopping: Vec<&Task> = going
        .flat_map(|other| state.tasks_of(&other.id))
        .map(|task| &**task)
        .filter(|t| is_stopping(state, t))
        .collect();
    if stopping.is_empty() || state.tasks_of(&service.id).any(|task| had_a_node(task)) {
        return None;
    }
    let nodes: BTreeSet<&str> = stopping.iter().filter_map(|task| hostname(state, task)).collect();
    let nodes: Vec<&str> = nodes.into_iter().collect();
    Some(format!(
        "waiting for the removal of the earlier {}: {} of its tasks still to stop on {}",
        annotations.name,
        stopping.len(),
        nodes.join(", ")
    ))
}

/// Its container may still run, and somebody is there to stop it.
fn is_stopping(state: &State, task: &Task) -> bool {
    let node = task.node.as_ref().and_then(|id| state.node(id));
    let is_up = node.is_some_and(|node| node.status.state == NodeState::Ready);
    had_a_node(task) && !task.status.state.is_terminal() && is_up
}

fn hostname<'a>(state: &'a State, task: &Task) -> Option<&'a str> {
    task.node.as_ref().and_then(|id| state.node(id)).map(|node| node.description.hostname.as_str())
}
