//! The cluster's state in memory: every object by kind, and the indexes that keep the rules between objects cheap to
//! check.
//!
//! A clone is O(1) (persistent maps), so readers, snapshots and tentative decisions each take one. Only [`State::apply`]
//! changes a state, and it does so all-or-nothing and deterministically: the same log gives the same state on every
//! manager. Indexes are derived: a state rebuilt by [`State::from_objects`] behaves like the one it was taken from. The
//! only exception is the address cursor, a hint for the leader's allocator that no rule depends on.

mod apply;
pub(crate) mod check;
mod error;
mod index;
pub mod limits;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};
use orch_model::{
    Annotations, ConfigId, ImageId, Kind, NetworkId, NodeId, Object, ObjectId, SecretId, ServiceId, TaskId, Timestamp,
    Version,
    cluster::Cluster,
    image::Image,
    network::Network,
    node::Node,
    secret::{Config, Secret},
    service::{Protocol, PublishMode, Service, ServiceSpec, TaskSpec},
    task::Task,
};

pub use error::ApplyError;
use index::Indexes;
pub(crate) use index::only_gives_back;

use crate::image_name::normalise_image_name;

/// A committed change, with the objects before and after.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Created(Object),
    Updated { old: Object, new: Object },
    Removed(Object),
}

impl Event {
    /// The object that the event is about.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        match self {
            Self::Created(object) | Self::Removed(object) | Self::Updated { new: object, .. } => object.id(),
        }
    }

    /// The object after the event; `None` when it is gone.
    #[must_use]
    pub fn current(&self) -> Option<&Object> {
        match self {
            Self::Created(object) | Self::Updated { new: object, .. } => Some(object),
            Self::Removed(_) => None,
        }
    }
}

/// Who holds an address of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressHolder {
    Service(ServiceId),
    Task(TaskId),
    Node(NodeId),
}

/// The nodes of one moment. Two are equal when nothing was written to any node between them.
#[derive(Debug, Clone, Default)]
pub struct NodesMark(OrdMap<NodeId, Arc<Node>>);

impl PartialEq for NodesMark {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

/// All objects of a cluster.
#[derive(Debug, Clone, Default)]
pub struct State {
    last_index: u64,
    last_stamp: Timestamp,
    cluster: Option<Arc<Cluster>>,
    nodes: OrdMap<NodeId, Arc<Node>>,
    services: OrdMap<ServiceId, Arc<Service>>,
    tasks: OrdMap<TaskId, Arc<Task>>,
    networks: OrdMap<NetworkId, Arc<Network>>,
    secrets: OrdMap<SecretId, Arc<Secret>>,
    configs: OrdMap<ConfigId, Arc<Config>>,
    images: OrdMap<ImageId, Arc<Image>>,
    indexes: Indexes,
}

impl State {
    /// A state with no objects: before `init`, or before the first snapshot arrives.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// The state that a snapshot describes.
    #[must_use]
    pub fn from_objects(objects: Vec<Object>, last_stamp: Timestamp) -> Self {
        let mut state = Self { last_stamp, ..Self::default() };
        // Services first: the tasks share what they have in common.
        let (services, mut others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|o| o.kind() == Kind::Service);
        // The newest last: behind its addresses the next are looked for.
        others.sort_by_key(|object| object.meta().created_at);
        // Tasks of earlier specs have theirs in common, too.
        let mut specs: BTreeMap<(ServiceId, Version), Arc<TaskSpec>> = BTreeMap::new();
        for object in services.into_iter().chain(others) {
            state.last_index = state.last_index.max(object.meta().version.0);
            let mut object = state.interned(object);
            if let Object::Task(task) = &mut object {
                let first = specs.entry((task.service.clone(), task.spec_version)).or_insert_with(|| task.spec.clone());
                apply::share(&mut Arc::make_mut(task).spec, first);
            }
            state.put(object);
        }
        state
    }

    /// Every object, cluster first, by kind and then by id: what a snapshot holds.
    pub fn objects(&self) -> impl Iterator<Item = Object> + '_ {
        let cluster = self.cluster.iter().cloned().map(Object::Cluster);
        cluster
            .chain(self.nodes.values().cloned().map(Object::Node))
            .chain(self.networks.values().cloned().map(Object::Network))
            .chain(self.secrets.values().cloned().map(Object::Secret))
            .chain(self.configs.values().cloned().map(Object::Config))
            .chain(self.images.values().cloned().map(Object::Image))
            .chain(self.services.values().cloned().map(Object::Service))
            .chain(self.tasks.values().cloned().map(Object::Task))
    }

    /// The stamp of the last transaction. The next one must not be earlier.
    #[must_use]
    pub fn last_stamp(&self) -> Timestamp {
        self.last_stamp
    }

    /// The log index of the last transaction that changed something.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.last_index
    }

    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> + '_ {
        self.nodes.values()
    }

    /// What tells at no cost that no node has changed.
    #[must_use]
    pub fn nodes_mark(&self) -> NodesMark {
        NodesMark(self.nodes.clone())
    }

    #[must_use]
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> + '_ {
        self.services.values()
    }

    #[must_use]
    pub fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> + '_ {
        self.tasks.values()
    }

    #[must_use]
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    #[must_use]
    pub fn network(&self, id: &NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> + '_ {
        self.networks.values()
    }

    #[must_use]
    pub fn secret(&self, id: &SecretId) -> Option<&Arc<Secret>> {
        self.secrets.get(id)
    }

    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret>> + '_ {
        self.secrets.values()
    }

    #[must_use]
    pub fn config(&self, id: &ConfigId) -> Option<&Arc<Config>> {
        self.configs.get(id)
    }

    pub fn configs(&self) -> impl Iterator<Item = &Arc<Config>> + '_ {
        self.configs.values()
    }

    #[must_use]
    pub fn image(&self, id: &ImageId) -> Option<&Arc<Image>> {
        self.images.get(id)
    }

    pub fn images(&self) -> impl Iterator<Item = &Arc<Image>> + '_ {
        self.images.values()
    }

    /// Any object by id.
    #[must_use]
    pub fn get(&self, id: &ObjectId) -> Option<Object> {
        match id {
            ObjectId::Cluster(id) => self.cluster.clone().filter(|c| c.id == *id).map(Object::Cluster),
            ObjectId::Node(id) => self.nodes.get(id).cloned().map(Object::Node),
            ObjectId::Service(id) => self.services.get(id).cloned().map(Object::Service),
            ObjectId::Task(id) => self.tasks.get(id).cloned().map(Object::Task),
            ObjectId::Network(id) => self.networks.get(id).cloned().map(Object::Network),
            ObjectId::Secret(id) => self.secrets.get(id).cloned().map(Object::Secret),
            ObjectId::Config(id) => self.configs.get(id).cloned().map(Object::Config),
            ObjectId::Image(id) => self.images.get(id).cloned().map(Object::Image),
        }
    }

    /// The object that has this unique name. What is being removed has given its name back.
    #[must_use]
    pub fn named(&self, kind: Kind, name: &str) -> Option<ObjectId> {
        self.indexes.names.get(&(kind, name.into())).cloned()
    }

    /// What an image's name means, however it is written; nothing while no node has that.
    #[must_use]
    pub fn image_named(&self, text: &str) -> Option<&Arc<Image>> {
        let name = normalise_image_name(text).ok()?;
        match self.named(Kind::Image, &name)? {
            ObjectId::Image(id) => self.image(&id).filter(|image| !image.holders.is_empty()),
            _ => None,
        }
    }

    /// The objects that are on their way out and still there.
    pub fn removing(&self) -> impl Iterator<Item = &ObjectId> + '_ {
        self.indexes.removing.iter()
    }

    /// A service's tasks, in the order of their slots.
    pub fn tasks_of<'a>(&'a self, service: &ServiceId) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        let service = service.clone();
        let from_there = self.indexes.tasks_by_slot.range((service.clone(), 0, None)..);
        let ids = from_there.take_while(move |(of, ..)| *of == service);
        ids.filter_map(|(_, _, id)| self.tasks.get(id.as_ref()?))
    }

    /// A service's tasks in one slot (0: all tasks of a global service).
    pub fn tasks_in<'a>(&'a self, service: &'a ServiceId, slot: u64) -> impl Iterator<Item = &'a Arc<Task>> + 'a {
        let place = self.indexes.tasks_by_slot.range((service.clone(), slot, None)..);
        let ids = place.take_while(move |(of, number, _)| of == service && *number == slot);
        ids.filter_map(|(_, _, id)| self.tasks.get(id.as_ref()?))
    }

    /// The tasks that were given to a node, in the order of their ids.
    pub fn tasks_on(&self, node: &NodeId) -> impl Iterator<Item = &Arc<Task>> + '_ {
        self.by_ids(self.indexes.tasks_by_node.get(node))
    }

    /// The nodes, there or not, that tasks were given to.
    pub fn nodes_with_tasks(&self) -> impl Iterator<Item = &NodeId> + '_ {
        self.indexes.tasks_by_node.keys()
    }

    /// The tasks that should run and that no node has been chosen for, in the order of their ids.
    pub fn tasks_without_place(&self) -> impl Iterator<Item = &Arc<Task>> + '_ {
        self.by_ids(Some(&self.indexes.without_place))
    }

    fn by_ids<'a>(&'a self, ids: Option<&'a OrdSet<TaskId>>) -> impl Iterator<Item = &'a Arc<Task>> + 'a {
        ids.into_iter().flat_map(OrdSet::iter).filter_map(|id| self.tasks.get(id))
    }

    /// The one copy of a service's current task spec, which its tasks share.
    #[must_use]
    pub fn task_spec(&self, service: &ServiceId) -> Option<&Arc<TaskSpec>> {
        self.indexes.shared.get(service).map(|shared| &shared.spec)
    }

    /// The one copy of a service's annotations, which its tasks share.
    #[must_use]
    pub fn task_annotations(&self, service: &ServiceId) -> Option<&Arc<Annotations>> {
        self.indexes.shared.get(service).map(|shared| &shared.annotations)
    }

    /// The network that has this VXLAN identifier.
    #[must_use]
    pub fn vni_holder(&self, vni: u32) -> Option<&NetworkId> {
        self.indexes.vnis.get(&vni)
    }

    /// The service that publishes this port on every node.
    #[must_use]
    pub fn port_holder(&self, protocol: Protocol, port: u16) -> Option<&ServiceId> {
        self.indexes.ports.get(&(protocol, port))
    }

    /// Who holds this address of this network.
    #[must_use]
    pub fn address_holder(&self, network: &NetworkId, address: IpAddr) -> Option<&AddressHolder> {
        self.indexes.addresses.get(network)?.get(&address)
    }

    /// The tasks that hold an address of a network.
    #[must_use]
    pub fn tasks_with_address<'a>(&'a self, network: &NetworkId) -> BTreeSet<&'a TaskId> {
        let held = self.indexes.addresses.get(network).into_iter().flat_map(imbl::OrdMap::values);
        let task = |holder: &'a AddressHolder| match holder {
            AddressHolder::Task(id) => Some(id),
            AddressHolder::Service(_) | AddressHolder::Node(_) => None,
        };
        held.filter_map(task).collect()
    }

    /// The address of this network that was given out last: the next search starts behind it, so that an address
    /// which was just freed rests for a while.
    #[must_use]
    pub fn address_cursor(&self, network: &NetworkId, v6: bool) -> Option<IpAddr> {
        self.indexes.cursors.get(&(network.clone(), v6)).copied()
    }

    /// The node that has this index.
    #[must_use]
    pub fn index_holder(&self, index: u16) -> Option<&NodeId> {
        self.indexes.node_indexes.get(&index)
    }

    /// The network that published ports arrive on.
    #[must_use]
    pub fn ingress_network(&self) -> Option<&Arc<Network>> {
        let named = self.cluster.as_ref().and_then(|c| c.ingress_network.as_ref()).and_then(|id| self.networks.get(id));
        named.or_else(|| self.networks.values().find(|n| n.spec.ingress))
    }
}

/// Whether a service publishes a port on every node, so that its tasks join the ingress network.
#[must_use]
pub fn publishes_on_ingress(spec: &ServiceSpec) -> bool {
    spec.endpoint.ports.iter().any(|p| p.publish_mode == PublishMode::Ingress)
}

/// Whether going from one spec to another asks for other tasks than there are.
///
/// The ports that every node answers on are not the tasks' business, except that the tasks must be on the ingress
/// network at all.
#[must_use]
pub fn makes_other_tasks(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    let host = |spec: &ServiceSpec| -> Vec<_> {
        spec.endpoint.ports.iter().filter(|p| p.publish_mode == PublishMode::Host).cloned().collect()
    };
    // Another login makes no other task.
    let same_task = || {
        let mut before = old.task.clone();
        before.container.registry_auth.clone_from(&new.task.container.registry_auth);
        before == new.task
    };
    (old.task != new.task && !same_task())
        || host(old) != host(new)
        || (!publishes_on_ingress(old) && publishes_on_ingress(new))
}

/// The version that a new object has before it is committed.
pub const UNCOMMITTED: Version = Version(0);
