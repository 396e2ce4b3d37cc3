//! Services that wait for others: `depends_on` of stack files.
//!
//! Only the first tasks wait. Once one of a service's tasks had a node, what it depends on is its own business: a
//! replacement must not wait for a database that is down just now.

use std::collections::BTreeMap;

use orch_model::{
    Kind, ObjectId,
    service::{Dependency, DependencyCondition, Service, ServiceMode},
    task::{Task, TaskState},
};

use crate::state::State;

/// What the service's tasks have to wait for, if anything.
pub(super) fn waits_for(state: &State, service: &Service) -> Option<String> {
    if service.spec.depends_on.is_empty() || state.tasks_of(&service.id).any(|task| had_a_node(task)) {
        return None;
    }
    service.spec.depends_on.iter().find_map(|dependency| unmet(state, dependency))
}

pub(super) fn had_a_node(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned
}

fn unmet(state: &State, dependency: &Dependency) -> Option<String> {
    let name = &dependency.service;
    let found = match state.named(Kind::Service, name) {
        Some(ObjectId::Service(id)) => state.service(&id).filter(|service| !service.removing),
        _ => None,
    };
    let Some(service) = found else {
        return dependency.required.then(|| format!("waiting for service {name}, which does not exist"));
    };
    let (done, total) = progress(state, service, dependency.condition);
    let word = match dependency.condition {
        DependencyCondition::Started => "started",
        DependencyCondition::Healthy => "running and healthy",
        DependencyCondition::Completed => "completed",
    };
    (done < total).then(|| format!("waiting for service {name}: {done} of {total} tasks {word}"))
}

/// How many places of a service have come far enough, and how many there are.
fn progress(state: &State, service: &Service, condition: DependencyCondition) -> (u64, u64) {
    let mut places: BTreeMap<(u64, Option<&str>), bool> = BTreeMap::new();
    let mut newest: Vec<&Task> = state.tasks_of(&service.id).map(|task| &**task).collect();
    newest.sort_by_key(|task| (task.meta.created_at, task.id.clone()));
    for task in newest {
        let node = task.node.as_ref().filter(|_| task.slot == 0).map(|node| node.as_str());
        let far = is_far_enough(task, service.spec.mode, condition);
        let place = places.entry((task.slot, node)).or_default();
        // A task that has ended well stays an answer; any other is replaced by the next one.
        *place =
            far || (*place && condition == DependencyCondition::Completed && task.status.state < TaskState::Running);
    }
    let done = places.values().filter(|far| **far).count() as u64;
    let total = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::ReplicatedJob { total_completions, .. } => total_completions,
        // One at least: without a node to run on, nothing has started.
        ServiceMode::Global | ServiceMode::GlobalJob => (places.len() as u64).max(1),
    };
    (done, total)
}

fn is_far_enough(task: &Task, mode: ServiceMode, condition: DependencyCondition) -> bool {
    let state = task.status.state;
    let is_job = matches!(mode, ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob);
    match condition {
        DependencyCondition::Started if is_job => state >= TaskState::Starting,
        DependencyCondition::Started => (TaskState::Starting..=TaskState::Running).contains(&state),
        DependencyCondition::Healthy if is_job => matches!(state, TaskState::Running | TaskState::Complete),
        DependencyCondition::Healthy => state == TaskState::Running && task.desired_state == TaskState::Running,
        DependencyCondition::Completed => state == TaskState::Complete,
    }
}
