//! The derived side of the state: who has which name, port, address, slot.
//!
//! An index never decides: [`super::check`] looks here before an object goes in, and [`super::State::put`] keeps both
//! in step.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::{OrdMap, OrdSet};
use orch_model::{
    Annotations, Kind, NetworkId, NodeId, Object, ObjectId, ServiceId, TaskId,
    network::Network,
    node::Node,
    service::{PortConfig, Protocol, PublishMode, Service, TaskSpec},
    task::{Task, TaskState},
};

use super::{AddressHolder, State, limits};

/// How much of what is limited by its size there is; see [`limits`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    pub(super) content_bytes: u64,
    pub(super) replicas: u64,
    pub(super) globals: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Indexes {
    pub(super) weight: Weight,
    pub(super) names: OrdMap<(Kind, Arc<str>), ObjectId>,
    pub(super) tasks_by_node: OrdMap<NodeId, OrdSet<TaskId>>,
    /// One set for all: a set of its own per slot would take a kilobyte each. Nothing comes before everything. A service's
    /// tasks are those of its slots.
    pub(super) tasks_by_slot: OrdSet<(ServiceId, u64, Option<TaskId>)>,
    pub(super) without_place: OrdSet<TaskId>,
    pub(super) vnis: OrdMap<u32, NetworkId>,
    pub(super) ports: OrdMap<(Protocol, u16), ServiceId>,
    pub(super) addresses: OrdMap<NetworkId, OrdMap<IpAddr, AddressHolder>>,
    pub(super) cursors: OrdMap<(NetworkId, bool), IpAddr>,
    pub(super) node_indexes: OrdMap<u16, NodeId>,
    pub(super) shared: OrdMap<ServiceId, Shared>,
    /// What is on its way out.
    pub(super) removing: OrdSet<ObjectId>,
}

/// What a service's tasks have in common, in one copy.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) spec: Arc<TaskSpec>,
    pub(super) annotations: Arc<Annotations>,
}

impl Shared {
    /// What has not changed stays the same copy.
    fn of(service: &Service, before: Option<&Self>) -> Self {
        Self {
            spec: one_copy(&service.spec.task, before.map(|before| &before.spec)),
            annotations: one_copy(&service.spec.annotations, before.map(|before| &before.annotations)),
        }
    }
}

fn one_copy<T: Clone + PartialEq>(value: &T, before: Option<&Arc<T>>) -> Arc<T> {
    before.filter(|before| ***before == *value).cloned().unwrap_or_else(|| Arc::new(value.clone()))
}

impl State {
    /// Stores an object that has been checked, in place of the one with its id.
    pub(super) fn put(&mut self, object: Object) {
        match (self.get(&object.id()), &object) {
            (Some(Object::Task(old)), Object::Task(new)) if keeps_its_slot(&old, new) => {
                self.indexes.move_task(&old, new);
            }
            (Some(old), new) => {
                self.indexes.forget(&old);
                self.indexes.learn(new, &held_addresses(&old));
            }
            (None, new) => self.indexes.learn(new, &[]),
        }
        match object {
            Object::Cluster(o) => self.cluster = Some(o),
            Object::Node(o) => drop(self.nodes.insert(o.id.clone(), o)),
            Object::Service(o) => drop(self.services.insert(o.id.clone(), o)),
            Object::Task(o) => drop(self.tasks.insert(o.id.clone(), o)),
            Object::Network(o) => drop(self.networks.insert(o.id.clone(), o)),
            Object::Secret(o) => drop(self.secrets.insert(o.id.clone(), o)),
            Object::Config(o) => drop(self.configs.insert(o.id.clone(), o)),
            Object::Image(o) => drop(self.images.insert(o.id.clone(), o)),
        }
    }

    /// Takes out an object whose removal has been checked.
    pub(super) fn take(&mut self, old: &Object) {
        self.indexes.forget(old);
        match old {
            Object::Cluster(_) => self.cluster = None,
            Object::Node(o) => drop(self.nodes.remove(&o.id)),
            Object::Service(o) => {
                self.services.remove(&o.id);
                self.indexes.shared.remove(&o.id);
            }
            Object::Task(o) => drop(self.tasks.remove(&o.id)),
            Object::Network(o) => {
                self.networks.remove(&o.id);
                self.indexes.cursors.remove(&(o.id.clone(), false));
                self.indexes.cursors.remove(&(o.id.clone(), true));
            }
            Object::Secret(o) => drop(self.secrets.remove(&o.id)),
            Object::Config(o) => drop(self.configs.remove(&o.id)),
            Object::Image(o) => drop(self.images.remove(&o.id)),
        }
    }
}

/// Whether the indexes have both in the same places, but perhaps for their nodes: so it is with most of what becomes of a
/// task.
fn keeps_its_slot(old: &Task, new: &Task) -> bool {
    let has_ended = |task: &Task| task.status.state > TaskState::Running;
    (&old.service, old.slot) == (&new.service, new.slot)
        && has_ended(old) == has_ended(new)
        && old.networks == new.networks
}

fn waits_for_place(task: &Task) -> bool {
    task.status.state < TaskState::Assigned && task.desired_state <= TaskState::Running
}

/// The unique name of an object, if its kind has one. What is on its way out has given its name back, so that the same
/// stack can be deployed again at once.
pub(super) fn unique_name(object: &Object) -> Option<&str> {
    name_of(object).filter(|_| !is_removing(object))
}

/// What an object is called, if its kind's names are unique.
pub(super) fn name_of(object: &Object) -> Option<&str> {
    match object {
        Object::Service(o) => Some(&o.spec.annotations.name),
        Object::Network(o) => Some(&o.spec.annotations.name),
        Object::Secret(o) => Some(&o.annotations.name),
        Object::Config(o) => Some(&o.annotations.name),
        Object::Image(o) => Some(&o.name),
        Object::Cluster(_) | Object::Node(_) | Object::Task(_) => None,
    }
}

/// Whether an object is on its way out.
pub(super) fn is_removing(object: &Object) -> bool {
    match object {
        Object::Service(o) => o.removing,
        Object::Network(o) => o.removing,
        Object::Secret(o) => o.removing,
        Object::Config(o) => o.removing,
        Object::Cluster(_) | Object::Node(_) | Object::Task(_) | Object::Image(_) => false,
    }
}

/// The ports that a service claims on every node: those it asks for and those it was given.
pub(super) fn claimed_ports(service: &Service) -> impl Iterator<Item = (Protocol, u16)> + '_ {
    let claims = |p: &&PortConfig| p.publish_mode == PublishMode::Ingress && p.published_port != 0;
    let asked = service.spec.endpoint.ports.iter().filter(claims);
    let given = service.endpoint.ports.iter().filter(claims);
    asked.chain(given).map(|p| (p.protocol, p.published_port)).filter(|_| !service.removing)
}

/// The addresses that an object holds. A task holds its own until its node has seen it stop.
pub(super) fn held_addresses(object: &Object) -> Vec<(NetworkId, IpAddr)> {
    match object {
        Object::Service(o) => o.endpoint.vips.iter().map(|v| (v.network.clone(), v.addr.ip())).collect(),
        Object::Node(o) => o.attachments.iter().map(|(network, addr)| (network.clone(), *addr)).collect(),
        Object::Task(o) if o.status.state > TaskState::Running => Vec::new(),
        Object::Task(o) => {
            o.networks.iter().flat_map(|n| n.addresses.iter().map(|a| (n.network.clone(), a.ip()))).collect()
        }
        Object::Cluster(_) | Object::Network(_) | Object::Secret(_) | Object::Config(_) | Object::Image(_) => {
            Vec::new()
        }
    }
}

/// Whether an object has given addresses or ports back, and taken none.
pub(crate) fn only_gives_back(old: &Object, new: &Object) -> bool {
    let ports = |object: &Object| match object {
        Object::Service(service) => claimed_ports(service).collect(),
        _ => BTreeSet::new(),
    };
    let addresses = |object: &Object| held_addresses(object).into_iter().collect::<BTreeSet<_>>();
    let (had, has) = ((addresses(old), ports(old)), (addresses(new), ports(new)));
    had != has && has.0.is_subset(&had.0) && has.1.is_subset(&had.1)
}

pub(super) fn holder_of(object: &Object) -> Option<AddressHolder> {
    match object {
        Object::Service(o) => Some(AddressHolder::Service(o.id.clone())),
        Object::Node(o) => Some(AddressHolder::Node(o.id.clone())),
        Object::Task(o) => Some(AddressHolder::Task(o.id.clone())),
        Object::Cluster(_) | Object::Network(_) | Object::Secret(_) | Object::Config(_) | Object::Image(_) => None,
    }
}

impl Indexes {
    /// `held_before`: the addresses that the object had before. Only those that are new move the place from which the next are
    /// looked for, or one that was just given back would be handed out at once.
    fn learn(&mut self, object: &Object, held_before: &[(NetworkId, IpAddr)]) {
        let more = limits::weight(object);
        self.weight = Weight {
            content_bytes: self.weight.content_bytes + more.content_bytes,
            replicas: self.weight.replicas + more.replicas,
            globals: self.weight.globals + more.globals,
        };
        if let Some(name) = unique_name(object) {
            self.names.insert((object.kind(), name.into()), object.id());
        }
        if is_removing(object) {
            self.removing.insert(object.id());
        }
        if let Some(holder) = holder_of(object) {
            for (network, address) in held_addresses(object) {
                let held = self.addresses.entry(network.clone()).or_default();
                let is_free = held.insert(address, holder.clone()).is_none();
                let key = (network, address);
                if is_free && !held_before.contains(&key) {
                    self.cursors.insert((key.0, address.is_ipv6()), address);
                }
            }
        }
        match object {
            Object::Service(o) => self.learn_service(o),
            Object::Task(o) => self.learn_task(o),
            Object::Network(o) => self.learn_network(o),
            Object::Node(o) => self.learn_node(o),
            Object::Cluster(_) | Object::Secret(_) | Object::Config(_) | Object::Image(_) => {}
        }
    }

    fn forget(&mut self, object: &Object) {
        let less = limits::weight(object);
        self.weight = Weight {
            content_bytes: self.weight.content_bytes - less.content_bytes,
            replicas: self.weight.replicas - less.replicas,
            globals: self.weight.globals - less.globals,
        };
        if let Some(name) = unique_name(object) {
            self.names.remove(&(object.kind(), name.into()));
        }
        if is_removing(object) {
            self.removing.remove(&object.id());
        }
        for (network, address) in held_addresses(object) {
            if let Some(held) = self.addresses.get_mut(&network) {
                held.remove(&address);
                if held.is_empty() {
                    self.addresses.remove(&network);
                }
            }
        }
        match object {
            Object::Service(o) => {
                for claim in claimed_ports(o) {
                    self.ports.remove(&claim);
                }
            }
            Object::Task(o) => self.forget_task(o),
            Object::Network(o) => {
                if let Some(allocation) = &o.allocation {
                    self.vnis.remove(&allocation.vni);
                }
            }
            Object::Node(o) => drop(self.node_indexes.remove(&o.index)),
            Object::Cluster(_) | Object::Secret(_) | Object::Config(_) | Object::Image(_) => {}
        }
    }

    fn learn_service(&mut self, service: &Service) {
        for claim in claimed_ports(service) {
            self.ports.insert(claim, service.id.clone());
        }
        let shared = Shared::of(service, self.shared.get(&service.id));
        self.shared.insert(service.id.clone(), shared);
    }

    fn learn_task(&mut self, task: &Task) {
        if waits_for_place(task) {
            self.without_place.insert(task.id.clone());
        }
        self.tasks_by_slot.insert((task.service.clone(), task.slot, Some(task.id.clone())));
        if let Some(node) = &task.node {
            self.tasks_by_node.entry(node.clone()).or_default().insert(task.id.clone());
        }
    }

    /// Of a task that keeps its slot and its addresses: a node has been found for it, or need not be any more.
    fn move_task(&mut self, old: &Task, new: &Task) {
        match (waits_for_place(old), waits_for_place(new)) {
            (true, false) => drop(self.without_place.remove(&new.id)),
            (false, true) => drop(self.without_place.insert(new.id.clone())),
            (true, true) | (false, false) => {}
        }
        if old.node == new.node {
            return;
        }
        if let Some(node) = &old.node {
            withdraw(&mut self.tasks_by_node, node, &old.id);
        }
        if let Some(node) = &new.node {
            self.tasks_by_node.entry(node.clone()).or_default().insert(new.id.clone());
        }
    }

    fn forget_task(&mut self, task: &Task) {
        self.without_place.remove(&task.id);
        self.tasks_by_slot.remove(&(task.service.clone(), task.slot, Some(task.id.clone())));
        if let Some(node) = &task.node {
            withdraw(&mut self.tasks_by_node, node, &task.id);
        }
    }

    fn learn_network(&mut self, network: &Network) {
        if let Some(allocation) = &network.allocation {
            self.vnis.insert(allocation.vni, network.id.clone());
        }
    }

    fn learn_node(&mut self, node: &Node) {
        if node.index != 0 {
            self.node_indexes.insert(node.index, node.id.clone());
        }
    }
}

fn withdraw<K: Ord + Clone>(map: &mut OrdMap<K, OrdSet<TaskId>>, key: &K, task: &TaskId) {
    if let Some(set) = map.get_mut(key) {
        set.remove(task);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
