//! Slots: the places of a service, each with the tasks that have held it.
//!
//! A place is a number for replicated services and a node for global ones; everything that acts on places (restart,
//! update, reaper) is the same for both.

use std::{collections::BTreeMap, sync::Arc};

use orch_model::{
    NodeId,
    service::{PublishMode, Service, ServiceMode},
    task::{Task, TaskState},
};

use super::{
    job,
    restart::{self, Verdict},
};
use crate::state::{State, publishes_on_ingress};

/// The place that a task holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotKey {
    /// From 1.
    Slot(u64),
    Node(NodeId),
}

impl SlotKey {
    /// The place of an existing task; `None` for a global task without a node, which nothing makes.
    #[must_use]
    pub fn of(task: &Task) -> Option<Self> {
        match (task.slot, &task.node) {
            (0, node) => node.clone().map(Self::Node),
            (slot, _) => Some(Self::Slot(slot)),
        }
    }
}

/// The tasks of one place, oldest first, without those that are to be deleted.
#[derive(Debug, Clone, Default)]
pub struct Slot {
    pub tasks: Vec<Arc<Task>>,
}

impl Slot {
    /// The tasks that run or are on their way to.
    pub fn wanted(&self) -> impl DoubleEndedIterator<Item = &Arc<Task>> + '_ {
        self.tasks.iter().filter(|t| t.is_wanted())
    }

    #[must_use]
    pub fn newest(&self) -> Option<&Arc<Task>> {
        self.tasks.last()
    }

    /// The task that stands for the place: the newest that is wanted, else the newest.
    #[must_use]
    pub fn holder(&self) -> Option<&Arc<Task>> {
        self.wanted().next_back().or_else(|| self.newest())
    }

    /// Whether the place needs no new task: it has one, or its last one ended and shall not be restarted.
    #[must_use]
    pub fn is_occupied(&self, service: &Service) -> bool {
        // A task that ended but still should run is the restart supervisor's.
        self.tasks.iter().any(|t| t.desired_state <= TaskState::Running) || self.is_finished(service)
    }

    /// Whether the last task ended by itself and the restart policy leaves it at that. What an earlier run of a job
    /// did says nothing about this one.
    #[must_use]
    pub fn is_finished(&self, service: &Service) -> bool {
        let counts = |t: &Task| ended_by_itself(t) && (!is_job(service) || job::is_current(service, t));
        self.newest().is_some_and(|t| counts(t) && restart::verdict(service, self, t) == Verdict::Leave)
    }
}

/// A service's places, in order.
#[must_use]
pub fn slots_of(state: &State, service: &Service) -> BTreeMap<SlotKey, Slot> {
    let mut slots: BTreeMap<SlotKey, Slot> = BTreeMap::new();
    for task in state.tasks_of(&service.id).filter(|t| t.desired_state < TaskState::Remove) {
        if let Some(key) = SlotKey::of(task) {
            slots.entry(key).or_default().tasks.push(task.clone());
        }
    }
    for slot in slots.values_mut() {
        slot.tasks.sort_by(|a, b| age(a).cmp(&age(b)));
    }
    slots
}

/// Oldest first. Stamps may be equal; then what is wanted is the newer one.
fn age(task: &Task) -> (orch_model::Timestamp, orch_model::Version, bool, &str) {
    (task.meta.created_at, task.spec_version, task.is_wanted(), task.id.as_str())
}

/// Whether a task came to its end without being told to stop: then the restart policy has a say.
///
/// `apply` records what ends after it was told to stop as *shutdown*, so these states mean the task's own end.
#[must_use]
pub fn ended_by_itself(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// Whether an update must replace a task: it is to move, or differs from what its service asks for now.
#[must_use]
pub fn is_dirty(state: &State, service: &Service, task: &Task) -> bool {
    task.displaced || differs(state, service, task)
}

/// Whether a task differs from what its service asks for now.
#[must_use]
pub fn differs(state: &State, service: &Service, task: &Task) -> bool {
    if task.spec_version == service.spec_version {
        return false;
    }
    let on_ingress = || match state.ingress_network() {
        Some(ingress) => task.networks.iter().any(|n| n.network == ingress.id),
        None => true,
    };
    !task.spec.does_the_work_of(&service.spec.task)
        || !same_host_ports(service, task)
        || (publishes_on_ingress(&service.spec) && !on_ingress())
}

fn same_host_ports(service: &Service, task: &Task) -> bool {
    let asked: Vec<_> = service.spec.endpoint.ports.iter().filter(|p| p.publish_mode == PublishMode::Host).collect();
    asked.len() == task.host_ports.len()
        && asked.iter().zip(&task.host_ports).all(|(a, b)| {
            let automatic = a.published_port == 0;
            a.protocol == b.protocol
                && a.target_port == b.target_port
                && (a.masquerade, a.host_ip) == (b.masquerade, b.host_ip)
                && (automatic || a.published_port == b.published_port)
        })
}

/// Whether the service keeps a number of tasks running, one per slot.
#[must_use]
pub fn is_replicated(service: &Service) -> bool {
    matches!(service.spec.mode, ServiceMode::Replicated { .. })
}

/// Whether the service's tasks run to completion, once each.
#[must_use]
pub fn is_job(service: &Service) -> bool {
    matches!(service.spec.mode, ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob)
}

/// Whether the service keeps one task running per node.
#[must_use]
pub fn is_global(service: &Service) -> bool {
    matches!(service.spec.mode, ServiceMode::Global)
}
