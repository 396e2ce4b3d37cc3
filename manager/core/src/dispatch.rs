//! Assignment sets: what each node should know and run.
//!
//! The set is a function of the state (and of which tasks have been drained); the dispatcher's shell compares it with
//! what a session was sent last and sends the difference. A node learns of a network only while it takes part in it.

mod touched;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use orch_model::{
    NetworkId, NodeId, TaskId,
    assignment::{
        Assignment, AssignmentKey, EndpointItem, ImageSource, NetworkItem, Peer, ServiceEndpointItem, TaskAssignment,
    },
    network::Network,
    node::Node,
    service::{ContainerSpec, MAX_WEIGHT, PublishMode, Service, WEIGHT_LABEL},
    task::{Health, Task, TaskState},
};

use crate::{
    drain, encryption,
    state::{State, publishes_on_ingress},
};

pub use touched::Touched;

/// VXLAN's own port, while there is no cluster object that says another.
pub(crate) const DEFAULT_DATA_PATH_PORT: u16 = 4789;

/// What the shell knows and the state does not.
pub struct Sources<'a> {
    /// Whether a stopping task's backends are known to be withdrawn everywhere: [`drain::Drain::is_drained`].
    pub drained: &'a dyn Fn(&TaskId) -> bool,
    /// Where a node serves its images: `ADDR:7946`.
    pub holder: &'a dyn Fn(&Node) -> Option<String>,
    /// A signed permission for a node to fetch a digest. Should be the same when asked again, or sets never settle.
    pub grant: &'a dyn Fn(&NodeId, &str) -> Vec<u8>,
}

/// A node's assignments by key.
pub type AssignmentSet = BTreeMap<AssignmentKey, Assignment>;

/// The complete set of one node. For many nodes of one state, share a [`View`].
#[must_use]
pub fn assignments(state: &State, node: &NodeId, sources: &Sources<'_>) -> AssignmentSet {
    View::new(state).assignments(node, sources)
}

/// The increment that leads from one set to the next: what to put, what to remove.
#[must_use]
pub fn diff(old: &AssignmentSet, new: &AssignmentSet) -> (Vec<Assignment>, Vec<AssignmentKey>) {
    let changed = |(key, item): &(&AssignmentKey, &Assignment)| !old.get(key).is_some_and(|o| means_the_same(o, item));
    let put = new.iter().filter(changed).map(|(_, item)| item.clone()).collect();
    let removed = old.keys().filter(|key| !new.contains_key(key)).cloned().collect();
    (put, removed)
}

/// What one state means for all nodes; what nodes share is computed once, when the first asks for it.
pub struct View<'a> {
    state: &'a State,
    shared: RefCell<SharedItems>,
}

/// The items of a network, the same for every node that takes part in it; without a network, those of all peers.
pub type Shared = BTreeMap<Option<NetworkId>, Arc<AssignmentSet>>;

/// What nodes share, kept from one state to the next.
#[derive(Debug, Clone, Default)]
pub struct SharedItems {
    known: Shared,
    /// Endpoints of services by network, for all networks at once.
    services: Option<Arc<BTreeMap<NetworkId, Vec<ServiceEndpointItem>>>>,
}

impl SharedItems {
    /// Forgets what may have changed. Items that come out the same are the same [`Arc`] afterwards.
    pub fn refresh(&mut self, state: &State, touched: &Touched) {
        if touched.everything || !touched.networks.is_empty() {
            self.services = None;
        }
        let is_stale = |key: &Option<NetworkId>| match key {
            Some(network) => touched.everything || touched.networks.contains(network),
            None => touched.everything || touched.peers,
        };
        let stale: Vec<Option<NetworkId>> = self.known.keys().filter(|key| is_stale(key)).cloned().collect();
        for key in stale {
            let now = self.compute(state, key.as_ref());
            match self.known.get(&key) {
                Some(before) if **before == now => {}
                _ => drop(self.known.insert(key, Arc::new(now))),
            }
        }
        self.known.retain(|key, _| key.as_ref().is_none_or(|network| state.network(network).is_some()));
    }

    /// The items of one network, or of peers, as they are now.
    #[must_use]
    pub fn current(&self, key: &Option<NetworkId>) -> Option<&Arc<AssignmentSet>> {
        self.known.get(key)
    }

    fn get(&mut self, state: &State, network: Option<&NetworkId>) -> Arc<AssignmentSet> {
        let key = network.cloned();
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let items = Arc::new(self.compute(state, network));
        self.known.insert(key, items.clone());
        items
    }

    fn compute(&mut self, state: &State, network: Option<&NetworkId>) -> AssignmentSet {
        let mut set = AssignmentSet::new();
        let Some(network) = network else {
            let ingress = state.ingress_network().map(|n| &n.id);
            state.nodes().filter_map(|n| peer(n, ingress)).for_each(|peer| insert(&mut set, Assignment::Peer(peer)));
            return set;
        };
        let Some(item) = state.network(network).and_then(|network| network_item(state, network)) else { return set };
        insert(&mut set, Assignment::Network(item));
        let tasks = state.tasks_with_address(network).into_iter().filter_map(|id| state.task(id));
        for endpoint in tasks.filter(|t| is_reachable(t)).flat_map(|t| endpoints_of(t)) {
            if endpoint.network == *network {
                insert(&mut set, Assignment::Endpoint(endpoint));
            }
        }
        let services = self.services.get_or_insert_with(|| Arc::new(endpoints_of_services(state)));
        for service in services.get(network).into_iter().flatten() {
            insert(&mut set, Assignment::ServiceEndpoint(service.clone()));
        }
        set
    }
}

fn endpoints_of_services(state: &State) -> BTreeMap<NetworkId, Vec<ServiceEndpointItem>> {
    let ingress = state.ingress_network().map(|n| &n.id);
    let mut services: BTreeMap<NetworkId, Vec<ServiceEndpointItem>> = BTreeMap::new();
    for item in state.services().flat_map(|service| service_endpoints(service, ingress)) {
        services.entry(item.network.clone()).or_default().push(item);
    }
    services
}

impl<'a> View<'a> {
    #[must_use]
    pub fn new(state: &'a State) -> Self {
        Self::with(state, SharedItems::default())
    }

    /// With what is known of this state already.
    #[must_use]
    pub fn with(state: &'a State, shared: SharedItems) -> Self {
        Self { state, shared: RefCell::new(shared) }
    }

    /// What was learnt, for the next state.
    #[must_use]
    pub fn into_shared(self) -> SharedItems {
        self.shared.into_inner()
    }

    /// The complete set of one node.
    #[must_use]
    pub fn assignments(&self, node: &NodeId, sources: &Sources<'_>) -> AssignmentSet {
        let mut set = self.own(node, sources);
        for items in self.shared(node).values() {
            set.extend(items.iter().map(|(key, item)| (key.clone(), item.clone())));
        }
        set
    }

    /// The part of a node's set that no other node has: its tasks and what they need.
    #[must_use]
    pub fn own(&self, node: &NodeId, sources: &Sources<'_>) -> AssignmentSet {
        let mut set = AssignmentSet::new();
        let tasks = self.state.tasks_on(node).filter(|t| t.status.state >= TaskState::Assigned);
        // One-off containers are the node's own.
        for task in tasks.filter(|task| !task.is_one_off()) {
            let desired_state = desired_on_node(task, sources);
            insert(&mut set, Assignment::Task(TaskAssignment { task: task.clone(), desired_state }));
            if !task.status.state.is_terminal() {
                self.insert_needs(&mut set, node, task, sources);
            }
        }
        set
    }

    /// The parts of a node's set that it shares with others.
    #[must_use]
    pub fn shared(&self, node: &NodeId) -> Shared {
        let mut items = self.shared.borrow_mut();
        let mut parts = Shared::new();
        for network in networks_of_node(self.state, node) {
            // Until it has its numbers, there is nothing to know of a network.
            if network.allocation.is_some() {
                parts.insert(Some(network.id.clone()), items.get(self.state, Some(&network.id)));
                parts.entry(None).or_insert_with(|| items.get(self.state, None));
            }
        }
        parts
    }

    /// What a task needs before it can run: its files and its image.
    fn insert_needs(&self, set: &mut AssignmentSet, node: &NodeId, task: &Arc<Task>, sources: &Sources<'_>) {
        let container = &task.spec.container;
        for secret in container.secrets.iter().filter_map(|s| self.state.secret(&s.id)) {
            insert(set, Assignment::Secret(secret.clone()));
        }
        if let Some(login) = container.registry_auth.as_ref().and_then(|id| self.state.secret(id)) {
            insert(set, Assignment::Secret(login.clone()));
        }
        for config in container.configs.iter().filter_map(|c| self.state.config(&c.id)) {
            insert(set, Assignment::Config(config.clone()));
        }
        let Some(digest) = self.digest_of(container) else { return };
        let images = self.state.images().filter(|i| i.digest == digest);
        let holders: BTreeSet<&NodeId> = images.flat_map(|i| &i.holders).collect();
        let others = holders.into_iter().filter(|id| *id != node).filter_map(|id| self.state.node(id));
        let holders: Vec<_> = others.filter_map(|n| (sources.holder)(n)).collect();
        if !holders.is_empty() {
            let grant = (sources.grant)(node, &digest);
            let (task, name) = (task.id.clone(), container.image.clone());
            insert(set, Assignment::Image(ImageSource { task, name, digest, holders, grant }));
        }
    }

    /// What the spec says, else what the image's name means by now: it may have been imported after the service was
    /// stored, and a spec stays as its user gave it.
    fn digest_of(&self, container: &ContainerSpec) -> Option<String> {
        let named = || self.state.image_named(&container.image).map(|image| image.digest.clone());
        container.image_digest.clone().or_else(named)
    }
}

/// The networks that a node takes part in: those of its tasks, as far as it can, and ingress everywhere.
pub fn networks_of_node<'a>(state: &'a State, node: &NodeId) -> impl Iterator<Item = &'a Arc<Network>> {
    let tasks = state.tasks_on(node);
    let live = tasks.filter(|t| t.status.state >= TaskState::Assigned && !t.status.state.is_terminal());
    let mut ids: BTreeSet<&NetworkId> = live.flat_map(|t| t.networks.iter().map(|n| &n.network)).collect();
    ids.extend(state.ingress_network().map(|n| &n.id));
    let can = |id: &&NetworkId| state.node(node).is_some_and(|node| encryption::allows(state, node, [*id]));
    ids.into_iter().filter(can).filter_map(|id| state.network(id))
}

fn insert(set: &mut AssignmentSet, item: Assignment) {
    set.insert(item.key(), item);
}

/// A running task that should stop is held until it is drained.
fn desired_on_node(task: &Task, sources: &Sources<'_>) -> TaskState {
    if drain::needs_drain(task) && !(sources.drained)(&task.id) { TaskState::Running } else { task.desired_state }
}

/// What a node reported itself is not sent back to it.
fn means_the_same(old: &Assignment, new: &Assignment) -> bool {
    let (Assignment::Task(old), Assignment::Task(new)) = (old, new) else { return old == new };
    if Arc::ptr_eq(&old.task, &new.task) {
        return old.desired_state == new.desired_state;
    }
    let mut reported = Task::clone(&old.task);
    reported.meta.clone_from(&new.task.meta);
    reported.status.clone_from(&new.task.status);
    reported.running_since = new.task.running_since;
    reported.desired_state = new.task.desired_state;
    old.desired_state == new.desired_state && reported == *new.task
}

fn peer(node: &Node, ingress: Option<&NetworkId>) -> Option<Peer> {
    Some(Peer {
        node: node.id.clone(),
        index: node.index,
        data_addr: node.description.data_addr?,
        ingress_addr: ingress.and_then(|id| node.attachments.get(id)).copied(),
        weight: node.spec.annotations.labels.get(WEIGHT_LABEL).and_then(|text| weight(text)),
        tunnel_key: node.description.tunnel_key(),
    })
}

/// What the label says; `None` where it says nothing that is a weight.
#[must_use]
pub fn weight(text: &str) -> Option<u16> {
    text.parse().ok().filter(|weight| *weight <= MAX_WEIGHT)
}

fn is_reachable(task: &Task) -> bool {
    task.status.state >= TaskState::Ready && !task.status.state.is_terminal()
}

/// Its node is about to stop it; until it has, nobody is sent there.
fn is_unhealthy(task: &Task) -> bool {
    task.status.container.as_ref().is_some_and(|container| container.health == Some(Health::Unhealthy))
}

fn endpoints_of(task: &Task) -> impl Iterator<Item = EndpointItem> + '_ {
    let attached = task.networks.iter().filter(|n| !n.addresses.is_empty());
    attached.filter_map(|attachment| {
        Some(EndpointItem {
            network: attachment.network.clone(),
            task: task.id.clone(),
            service: task.service.clone(),
            node: task.node.clone()?,
            addresses: attachment.addresses.iter().map(ipnetwork::IpNetwork::ip).collect(),
            names: match task.is_one_off() {
                true => std::iter::once(task.name()).chain(attachment.aliases.clone()).collect(),
                false => vec![task.name(), task.container_name()],
            },
            serving: task.status.state == TaskState::Running
                && task.desired_state <= TaskState::Running
                && !is_unhealthy(task),
        })
    })
}

fn service_endpoints(service: &Service, ingress: Option<&NetworkId>) -> Vec<ServiceEndpointItem> {
    let name = &service.spec.annotations.name;
    let own = service.spec.task.networks.iter().map(|n| (&n.network, n.aliases.clone()));
    let on_ingress = ingress.filter(|_| publishes_on_ingress(&service.spec)).map(|id| (id, Vec::new()));
    let mut items: Vec<ServiceEndpointItem> = Vec::new();
    for (network, aliases) in own.chain(on_ingress) {
        let mut names = vec![name.clone()];
        names.extend(aliases.into_iter().filter(|a| a != name));
        let vips = service.endpoint.vips.iter().filter(|v| v.network == *network).map(|v| v.addr.ip()).collect();
        // A service on its way out has given its ports back.
        let answers = ingress == Some(network) && !service.removing;
        let ports = service.endpoint.ports.iter().filter(|p| answers && p.publish_mode == PublishMode::Ingress);
        let ports = ports.filter(|p| p.published_port != 0).cloned().collect();
        let declared = if ingress == Some(network) { Vec::new() } else { service.endpoint.ports.clone() };
        let (balance, prefer_local) = (service.spec.endpoint.balance, service.spec.endpoint.prefer_local);
        let (network, service) = (network.clone(), service.id.clone());
        items.push(ServiceEndpointItem { network, service, names, vips, ports, declared, balance, prefer_local });
    }
    items
}

fn network_item(state: &State, network: &Network) -> Option<NetworkItem> {
    let allocation = network.allocation.as_ref()?;
    Some(NetworkItem {
        id: network.id.clone(),
        name: network.spec.annotations.name.clone(),
        vni: allocation.vni,
        subnets: allocation.ipam.iter().map(|i| i.subnet).collect(),
        gateways: allocation.ipam.iter().filter_map(|i| i.gateway).collect(),
        internal: network.spec.internal,
        ingress: network.spec.ingress,
        driver_options: network.spec.driver_options.clone(),
        data_path_port: state.cluster().map_or(DEFAULT_DATA_PATH_PORT, |c| c.spec.data_path_port),
    })
}
