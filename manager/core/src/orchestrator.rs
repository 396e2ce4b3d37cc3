//! The orchestrators: which tasks there should be, and where each should be heading.
//!
//! None of them knows nodes' details (that is the scheduler), addresses (the allocator) or agents (the dispatcher), and
//! none remembers anything: delays, attempts and progress are read from the tasks in the state, so a manager that takes
//! over in the middle carries on.

pub mod global;
pub mod job;
pub mod orphan;
pub mod reaper;
pub mod replicated;
pub mod restart;
pub mod slot;
pub mod sweeper;
pub mod update;

use std::sync::Arc;

use orch_model::{
    Meta, Object, TaskId, Timestamp,
    change::Change,
    node::{Availability, Node, NodeState},
    service::{PublishMode, Service},
    task::{Task, TaskAttachment, TaskState, TaskStatus},
};

use crate::{
    constraint, encryption, features,
    state::{State, publishes_on_ingress},
};
use slot::SlotKey;

/// A task that does not exist yet, made from the service's current spec.
#[must_use]
pub fn new_task(
    state: &State,
    service: &Service,
    key: &SlotKey,
    desired_state: TaskState,
    start_at: Option<Timestamp>,
    now: Timestamp,
    random: u128,
) -> Task {
    let spec = match state.task_spec(&service.id) {
        Some(shared) => shared.clone(),
        None => Arc::new(service.spec.task.clone()),
    };
    let annotations = match state.task_annotations(&service.id) {
        Some(shared) => shared.clone(),
        None => Arc::new(service.spec.annotations.clone()),
    };
    let asked = spec.networks.iter().map(|n| (n.network.clone(), n.aliases.clone()));
    let ingress = state.ingress_network().filter(|_| publishes_on_ingress(&service.spec));
    let networks = asked
        .chain(ingress.map(|n| (n.id.clone(), Vec::new())))
        .map(|(network, aliases)| TaskAttachment { network, addresses: Vec::new(), aliases })
        .collect();
    let host_ports = service.spec.endpoint.ports.iter().filter(|p| p.publish_mode == PublishMode::Host);
    let (slot, node) = match key {
        SlotKey::Slot(slot) => (*slot, None),
        SlotKey::Node(node) => (0, Some(node.clone())),
    };
    Task {
        id: TaskId::from_random(random),
        meta: Meta::default(),
        service: service.id.clone(),
        service_annotations: annotations,
        slot,
        node,
        spec: spec.clone(),
        spec_version: service.spec_version,
        status: TaskStatus {
            state: TaskState::New,
            at: now,
            message: "created".to_owned(),
            error: None,
            container: None,
        },
        running_since: None,
        generic: orch_model::node::GenericResources::default(),
        displaced: false,
        desired_state,
        start_at,
        networks,
        host_ports: host_ports.cloned().collect(),
    }
}

/// The change that stores a new task.
pub(crate) fn create(task: Task) -> Change {
    Change::Create(Object::Task(Arc::new(task)))
}

/// The change that gives a task another desired state.
pub(crate) fn desire(task: &Task, desired_state: TaskState) -> Change {
    let mut task = task.clone();
    task.desired_state = desired_state;
    Change::Update(Object::Task(Arc::new(task)))
}

/// Whether a node may get new tasks.
#[must_use]
pub fn takes_tasks(node: &Node) -> bool {
    node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
}

/// Whether a node fits the placement that the service asks for now, and can take part in its networks.
pub(crate) fn fits(state: &State, service: &Service, node: &Node) -> bool {
    let networks = service.spec.task.networks.iter().map(|attachment| &attachment.network);
    constraint::all_match(&service.spec.task.placement.constraints, node)
        && encryption::allows(state, node, networks)
        && features::allows(&node.description, &service.spec.task)
}

/// Whether a task may stay on its node: the networks that it is on count, which may not be those that its service asks for
/// now.
pub(crate) fn may_stay(state: &State, service: &Service, task: &Task, node: &Node) -> bool {
    let networks = task.networks.iter().map(|attachment| &attachment.network);
    constraint::all_match(&service.spec.task.placement.constraints, node)
        && encryption::allows(state, node, networks)
        && features::allows(&node.description, &task.spec)
}
