//! Filters: each says whether a node can take a task, and in Docker's words why nodes cannot.

use std::{collections::BTreeSet, sync::Arc};

use orch_model::{
    node::{Node, Resources},
    service::{Protocol, Service},
    task::{Task, TaskState},
};

use crate::{constraint::Constraint, orchestrator::takes_tasks, state::State};

/// What a node still offers, with what was assigned to it in this round.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub node: Arc<Node>,
    pub free: Resources,
    /// Tasks that it is to keep.
    pub tasks: u64,
    pub host_ports: BTreeSet<(Protocol, u16)>,
}

/// What tasks that are alike need of a node.
#[derive(Debug, Clone)]
pub struct Needs<'a> {
    pub service: &'a Service,
    pub task: &'a Task,
    /// `None`: one of them does not parse, which no node satisfies.
    pub constraints: Option<Vec<Constraint>>,
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
    /// Those whose answer changes with what is assigned.
    pub const CHANGING: [Self; 3] = [Self::Resources, Self::HostPort, Self::MaxReplicas];

    /// Whether the node, which has so many tasks of the service, passes.
    #[must_use]
    pub fn passes(self, info: &NodeInfo, needs: &Needs<'_>, of_service: u64) -> bool {
        match self {
            Self::Ready => takes_tasks(&info.node),
            Self::Resources => {
                let asked = needs.task.spec.reservations;
                asked.nano_cpus <= info.free.nano_cpus && asked.memory_bytes <= info.free.memory_bytes
            }
            Self::Constraints => match &needs.constraints {
                Some(constraints) => constraints.iter().all(|constraint| constraint.matches(&info.node)),
                None => false,
            },
            Self::HostPort => needs
                .task
                .host_ports
                .iter()
                .all(|p| p.published_port == 0 || !info.host_ports.contains(&(p.protocol, p.published_port))),
            Self::MaxReplicas => {
                let limit = needs.service.spec.task.placement.max_replicas_per_node;
                limit == 0 || of_service < limit
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
        let constraints = &service.spec.task.placement.constraints;
        let constraints = constraints.iter().map(|text| Constraint::parse(text).ok()).collect();
        Self { service, task, constraints }
    }
}

impl NodeInfo {
    #[must_use]
    pub fn new(state: &State, node: &Arc<Node>) -> Self {
        let free = node.description.resources;
        let mut info = Self { node: node.clone(), free, tasks: 0, host_ports: BTreeSet::new() };
        for task in state.tasks_on(&node.id) {
            if task.status.state >= TaskState::Assigned && !task.status.state.is_terminal() {
                info.add(task);
            }
        }
        info
    }

    /// Counts a task that occupies the node. What was told to stop still has its resources, but is no reason to keep
    /// other tasks away.
    pub fn add(&mut self, task: &Task) {
        let asked = task.spec.reservations;
        self.free.nano_cpus = self.free.nano_cpus.saturating_sub(asked.nano_cpus);
        self.free.memory_bytes = self.free.memory_bytes.saturating_sub(asked.memory_bytes);
        self.host_ports.extend(task.host_ports.iter().map(|p| (p.protocol, p.published_port)));
        if counts(task) {
            self.tasks += 1;
        }
    }
}

/// Whether a task is one that its node is to keep.
pub(super) fn counts(task: &Task) -> bool {
    task.desired_state <= TaskState::Running
}
