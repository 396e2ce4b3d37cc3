//! Filters: each says whether a node can take a task, and in Docker's words why nodes cannot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use orch_model::{
    ServiceId, Timestamp,
    node::{Node, Resources},
    service::{Protocol, Service},
    task::{Task, TaskState},
};

use crate::{
    constraint,
    orchestrator::{restart::FAILURE_WINDOW, takes_tasks},
    state::State,
};

/// What a node still offers, with what was assigned to it in this round.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub node: Arc<Node>,
    pub free: Resources,
    pub tasks: u64,
    pub tasks_by_service: BTreeMap<ServiceId, u64>,
    pub host_ports: BTreeSet<(Protocol, u16)>,
    /// Recent failures of each service's current version.
    pub failures: BTreeMap<ServiceId, usize>,
}

/// What a task needs of a node.
#[derive(Debug, Clone)]
pub struct Needs<'a> {
    pub service: &'a Service,
    pub task: &'a Task,
}

/// The filters, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    Ready,
    Resources,
    Constraints,
    HostPort,
    MaxReplicas,
}

impl Filter {
    pub const ALL: [Self; 5] = [Self::Ready, Self::Resources, Self::Constraints, Self::HostPort, Self::MaxReplicas];

    /// Whether the node passes.
    #[must_use]
    pub fn passes(self, info: &NodeInfo, needs: &Needs<'_>) -> bool {
        let placement = &needs.service.spec.task.placement;
        match self {
            Self::Ready => takes_tasks(&info.node),
            Self::Resources => {
                let asked = needs.task.spec.reservations;
                asked.nano_cpus <= info.free.nano_cpus && asked.memory_bytes <= info.free.memory_bytes
            }
            Self::Constraints => constraint::all_match(&placement.constraints, &info.node),
            Self::HostPort => needs
                .task
                .host_ports
                .iter()
                .all(|p| p.published_port == 0 || !info.host_ports.contains(&(p.protocol, p.published_port))),
            Self::MaxReplicas => {
                let have = info.tasks_by_service.get(&needs.service.id).copied().unwrap_or(0);
                placement.max_replicas_per_node == 0 || have < placement.max_replicas_per_node
            }
        }
    }

    /// Docker's words for so many nodes that did not pass.
    #[must_use]
    pub fn explain(self, nodes: usize) -> String {
        let s = if nodes == 1 { "" } else { "s" };
        match self {
            Self::Ready => format!("{nodes} node{s} not available for new tasks"),
            Self::Resources => format!("insufficient resources on {nodes} node{s}"),
            Self::Constraints => format!("scheduling constraints not satisfied on {nodes} node{s}"),
            Self::HostPort => format!("host-mode port already in use on {nodes} node{s}"),
            Self::MaxReplicas => format!("max replicas per node limit exceeded on {nodes} node{s}"),
        }
    }
}

impl<'a> Needs<'a> {
    #[must_use]
    pub fn of(service: &'a Service, task: &'a Task) -> Self {
        Self { service, task }
    }
}

impl NodeInfo {
    #[must_use]
    pub fn new(state: &State, node: &Arc<Node>, now: Timestamp) -> Self {
        let mut info = Self {
            node: node.clone(),
            free: node.description.resources,
            tasks: 0,
            tasks_by_service: BTreeMap::new(),
            host_ports: BTreeSet::new(),
            failures: BTreeMap::new(),
        };
        for task in state.tasks_on(&node.id) {
            if task.status.state >= TaskState::Assigned && !task.status.state.is_terminal() {
                info.add(task);
            }
            let current = state.service(&task.service).is_some_and(|s| s.spec_version == task.spec_version);
            let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
            if current && failed && now.since(task.status.at) < FAILURE_WINDOW {
                *info.failures.entry(task.service.clone()).or_default() += 1;
            }
        }
        info
    }

    /// Counts a task that occupies the node. What was told to stop still has its resources, but is no reason to keep
    /// other tasks of its service away.
    pub fn add(&mut self, task: &Task) {
        let asked = task.spec.reservations;
        self.free.nano_cpus = self.free.nano_cpus.saturating_sub(asked.nano_cpus);
        self.free.memory_bytes = self.free.memory_bytes.saturating_sub(asked.memory_bytes);
        self.host_ports.extend(task.host_ports.iter().map(|p| (p.protocol, p.published_port)));
        if task.desired_state <= TaskState::Running {
            self.tasks += 1;
            *self.tasks_by_service.entry(task.service.clone()).or_default() += 1;
        }
    }
}
