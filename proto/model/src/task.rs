//! Tasks: one run of one container on one node. A task is never re-run and never moved; a slot gets a new one.

use std::{fmt, sync::Arc};

use ipnetwork::IpNetwork;

use crate::{
    Annotations, Meta, NetworkId, NodeId, ServiceId, TaskId, Timestamp, Version,
    node::GenericResources,
    service::{PortConfig, TaskSpec},
};

#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub service: ServiceId,
    /// The service's annotations when the task was made.
    pub service_annotations: Arc<Annotations>,
    /// From 1; 0 for tasks of global services.
    pub slot: u64,
    /// Global tasks are made for a node; others get one from the scheduler.
    pub node: Option<NodeId>,
    pub spec: Arc<TaskSpec>,
    /// [`crate::service::Service::spec_version`] that it was made from.
    pub spec_version: Version,
    pub status: TaskStatus,
    /// When it was first seen running, by the leader's stamp; `apply` writes it. What failed soon after counts against
    /// an update.
    pub running_since: Option<Timestamp>,
    /// Rebalancing wants it elsewhere: an update replaces it, as if its spec were an old one.
    pub displaced: bool,
    /// Where the orchestrators want it: ready, running, shutdown or remove.
    pub desired_state: TaskState,
    /// A replacement waits in desired *ready* until this time.
    pub start_at: Option<Timestamp>,
    pub networks: Vec<TaskAttachment>,
    /// Ports published on the task's node (mode host), automatic ones filled in.
    pub host_ports: Vec<PortConfig>,
    /// Which of its node's generic resources are its own.
    pub generic: GenericResources,
}

impl Task {
    /// A one-off container that is on networks of the cluster: its node runs it, managers only keep its addresses.
    #[must_use]
    pub fn is_one_off(&self) -> bool {
        self.service.is_nobody()
    }

    /// `web.3`, or `agent.<node id>` for global services: what `service ps` calls it.
    #[must_use]
    pub fn name(&self) -> String {
        if self.is_one_off() {
            return self.service_annotations.name.clone();
        }
        match (self.slot, &self.node) {
            (0, Some(node)) => format!("{}.{node}", self.service_annotations.name),
            (slot, _) => format!("{}.{slot}", self.service_annotations.name),
        }
    }

    /// `web.3.<task id>`: the container's name on its node.
    #[must_use]
    pub fn container_name(&self) -> String {
        format!("{}.{}", self.name(), self.id)
    }

    /// The last state anyone saw or wants: past `Running`, the task no longer counts as alive.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.desired_state <= TaskState::Running && self.status.state <= TaskState::Running
    }
}

/// An attachment of a task to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskAttachment {
    pub network: NetworkId,
    /// With the prefix length of the subnet; empty until allocated.
    pub addresses: Vec<IpNetwork>,
    pub aliases: Vec<String>,
}

/// States are ordered and only ever go up. The gaps are swarmkit's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskState {
    New = 0,
    Pending = 64,
    Assigned = 192,
    Accepted = 256,
    Preparing = 320,
    Ready = 384,
    Starting = 448,
    Running = 512,
    Complete = 576,
    Shutdown = 640,
    Failed = 704,
    Rejected = 768,
    /// Only ever desired.
    Remove = 800,
    Orphaned = 832,
}

impl TaskState {
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// Docker's word: `Running`, `Shutdown`, …
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "New",
            Self::Pending => "Pending",
            Self::Assigned => "Assigned",
            Self::Accepted => "Accepted",
            Self::Preparing => "Preparing",
            Self::Ready => "Ready",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Complete => "Complete",
            Self::Shutdown => "Shutdown",
            Self::Failed => "Failed",
            Self::Rejected => "Rejected",
            Self::Remove => "Remove",
            Self::Orphaned => "Orphaned",
        }
    }

    /// Past `Running`: the container does not run any more (and never will again).
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskStatus {
    pub state: TaskState,
    /// When the state was entered, by the reporter's clock.
    pub at: Timestamp,
    /// What is going on, in words.
    pub message: String,
    /// What went wrong, for the operator.
    pub error: Option<String>,
    pub container: Option<ContainerStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerStatus {
    /// 64 hex digits.
    pub container_id: String,
    pub pid: u32,
    pub exit_code: Option<i32>,
    /// `None`: it has no health check.
    pub health: Option<Health>,
}

/// What a container's health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// No check has passed yet.
    Starting,
    Healthy,
    Unhealthy,
}

impl Health {
    /// Docker's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}
