//! Filters: each says whether a node can take a task, and in Docker's words why nodes cannot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use orch_model::{
    network::Network,
    node::{GenericResources, NamedResource, Node, Platform, Resources},
    service::{ContainerSpec, Protocol, Service, TaskSpec},
    task::{Task, TaskState},
};

use crate::{
    constraint::{Constraint, same_arch},
    features,
    orchestrator::takes_tasks,
    state::State,
};

/// What a node calls it when its kernel can route IPv6.
const FEATURE_IPV6: &str = "ipv6";

/// What a node still offers, with what was assigned to it in this round.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub node: Arc<Node>,
    pub free: Resources,
    pub free_generic: GenericResources,
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
    /// What the image runs on, where the cluster knows that.
    pub platform: Option<Platform>,
    /// What the node's kernel has to be able to do.
    pub features: Vec<&'static str>,
    /// Whether one of their networks is encrypted.
    pub encryption: bool,
    /// What the node's version must know.
    pub versions: Vec<&'static str>,
}

/// The filters, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    Ready,
    Resources,
    Features,
    Version,
    Encryption,
    Constraints,
    Platform,
    HostPort,
    MaxReplicas,
}

impl Filter {
    pub const ALL: [Self; 9] = [
        Self::Ready,
        Self::Resources,
        Self::Features,
        Self::Version,
        Self::Encryption,
        Self::Constraints,
        Self::Platform,
        Self::HostPort,
        Self::MaxReplicas,
    ];
    /// Those whose answer is the same for all tasks that are alike, whatever is assigned.
    pub const FIXED: [Self; 6] =
        [Self::Ready, Self::Features, Self::Version, Self::Encryption, Self::Constraints, Self::Platform];
    /// Those whose answer changes with what is assigned.
    pub const CHANGING: [Self; 3] = [Self::Resources, Self::HostPort, Self::MaxReplicas];

    /// Whether the node, which has so many tasks of the service, passes.
    #[must_use]
    pub fn passes(self, info: &NodeInfo, needs: &Needs<'_>, of_service: u64) -> bool {
        match self {
            Self::Ready => takes_tasks(&info.node),
            Self::Resources => {
                let asked = needs.task.spec.reservations;
                let generic = &needs.task.spec.generic;
                asked.nano_cpus <= info.free.nano_cpus
                    && asked.memory_bytes <= info.free.memory_bytes
                    && generic.iter().all(|(kind, count)| *count <= info.free_generic.count(kind))
            }
            Self::Features => {
                let has = |feature: &&str| info.node.description.features.iter().any(|known| known == feature);
                needs.features.iter().all(has)
            }
            Self::Version => needs.versions.iter().all(|feature| features::knows(&info.node.description, feature)),
            Self::Encryption => !needs.encryption || info.node.description.can_encrypt(),
            Self::Platform => needs.platform.as_ref().is_none_or(|platform| runs_on(platform, &info.node)),
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

    /// What an operator can do about it, where it is not plain.
    #[must_use]
    pub fn advice(self) -> Option<&'static str> {
        match self {
            Self::Ready | Self::Features => None,
            Self::Resources => Some("lower what its tasks reserve, or add a node"),
            Self::Version => Some("upgrade these nodes, or add one of a newer version"),
            Self::Encryption => Some("give nodes a kernel with WireGuard, or add a node that has it"),
            Self::Platform => Some("name an image for the nodes' platform"),
            Self::Constraints => Some("change the constraint, or label a node with `orch node update --label-add`"),
            Self::HostPort => Some("publish another port, or remove what has it"),
            Self::MaxReplicas => Some("raise --replicas-max-per-node, or add a node"),
        }
    }

    /// Docker's words for so many nodes that did not pass.
    #[must_use]
    pub fn explain(self, nodes: usize) -> String {
        let s = if nodes == 1 { "" } else { "s" };
        match self {
            Self::Ready => format!("{nodes} node{s} not available for new tasks"),
            Self::Resources => format!("insufficient resources on {nodes} node{s}"),
            Self::Features => format!("missing feature of the kernel on {nodes} node{s}"),
            Self::Version => format!("a version too old for what the service asks for on {nodes} node{s}"),
            Self::Encryption => format!("no WireGuard for an encrypted network on {nodes} node{s}"),
            Self::Platform => format!("unsupported platform on {nodes} node{s}"),
            Self::Constraints => format!("scheduling constraints not satisfied on {nodes} node{s}"),
            Self::HostPort => format!("host-mode port already in use on {nodes} node{s}"),
            Self::MaxReplicas => format!("max replicas per node limit exceeded on {nodes} node{s}"),
        }
    }
}

impl<'a> Needs<'a> {
    #[must_use]
    pub fn of(state: &State, service: &'a Service, task: &'a Task) -> Self {
        let constraints = &service.spec.task.placement.constraints;
        let constraints = constraints.iter().map(|text| Constraint::parse(text).ok()).collect();
        let platform = platform_of(state, &task.spec.container);
        let features = features_of(state, &task.spec);
        let encryption = networks_of(state, &task.spec).any(|network| network.spec.is_encrypted());
        let versions = features::required(&task.spec);
        Self { service, task, constraints, platform, features, encryption, versions }
    }
}

/// What the image runs on. One that is named by a digest means that content, whatever its name means by now.
fn platform_of(state: &State, container: &ContainerSpec) -> Option<Platform> {
    let is_meant = |digest: &str| container.image_digest.as_deref().is_none_or(|meant| meant == digest);
    match state.image_named(&container.image).filter(|image| is_meant(&image.digest)) {
        Some(image) => image.platform.clone(),
        None => {
            let digest = container.image_digest.as_deref()?;
            state.images().find(|image| image.digest == digest).and_then(|image| image.platform.clone())
        }
    }
}

fn features_of(state: &State, task: &TaskSpec) -> Vec<&'static str> {
    let has_ipv6 = networks_of(state, task).any(|network| network.spec.has_ipv6());
    if has_ipv6 { vec![FEATURE_IPV6] } else { Vec::new() }
}

fn networks_of<'a>(state: &'a State, task: &'a TaskSpec) -> impl Iterator<Item = &'a Arc<Network>> {
    task.networks.iter().filter_map(|attachment| state.network(&attachment.network))
}

fn runs_on(platform: &Platform, node: &Node) -> bool {
    let own = &node.description.platform;
    // A node that has not said what it is, is not held back for it.
    let same_os = own.os.is_empty() || own.os.eq_ignore_ascii_case(&platform.os);
    same_os && (own.arch.is_empty() || same_arch(&own.arch, &platform.arch))
}

impl NodeInfo {
    #[must_use]
    pub fn new(state: &State, node: &Arc<Node>) -> Self {
        let free = node.description.resources;
        let free_generic = node.description.generic.clone();
        let mut info = Self { node: node.clone(), free, free_generic, tasks: 0, host_ports: BTreeSet::new() };
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
        for (kind, count) in &task.generic.counted {
            if let Some(free) = self.free_generic.counted.get_mut(kind) {
                *free = free.saturating_sub(*count);
            }
        }
        for taken in &task.generic.named {
            self.free_generic.named.remove(taken);
        }
        self.host_ports.extend(task.host_ports.iter().map(|p| (p.protocol, p.published_port)));
        if counts(task) {
            self.tasks += 1;
        }
    }
}

impl NodeInfo {
    /// Which of the node's generic resources a task gets that asks for so many of each kind.
    #[must_use]
    pub fn pick(&self, asked: &BTreeMap<String, u64>) -> GenericResources {
        let mut picked = GenericResources::default();
        for (kind, count) in asked {
            if self.free_generic.counted.contains_key(kind) {
                picked.counted.insert(kind.clone(), *count);
            } else {
                let free = self.free_generic.named.iter().filter(|resource| resource.kind == *kind);
                let count = usize::try_from(*count).unwrap_or(usize::MAX);
                picked.named.extend(free.take(count).cloned().collect::<Vec<NamedResource>>());
            }
        }
        picked
    }
}

/// Whether a task is one that its node is to keep.
pub(super) fn counts(task: &Task) -> bool {
    task.desired_state <= TaskState::Running
}
