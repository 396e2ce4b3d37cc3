//! Whose assignments may differ after a commit.
//!
//! Comparing the sets of thousands of nodes at every commit would be most of what a leader does; this says which of them
//! are worth a look. It may name too many, never too few: the simulated clusters of the tests compare the two.

use std::{collections::BTreeSet, sync::Arc};

use orch_model::{
    NetworkId, NodeId, Object, TaskId,
    image::Image,
    node::{Node, NodeState},
    service::{Service, ServiceSpec},
    task::Task,
};

use super::{endpoints_of, is_reachable, peer};
use crate::{
    drain,
    image_name::normalise_image_name,
    state::{Event, State, publishes_on_ingress},
};

/// What has to be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    pub everything: bool,
    /// Nodes whose own part may differ.
    pub nodes: BTreeSet<NodeId>,
    /// Networks whose items may differ.
    pub networks: BTreeSet<NetworkId>,
    pub peers: bool,
    /// Tasks that may have to be drained.
    pub stopping: BTreeSet<TaskId>,
}

impl Touched {
    #[must_use]
    pub fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether anything is touched that nodes share.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.everything || self.peers || !self.networks.is_empty()
    }

    /// Takes in what an event concerns; `state` is the one after it, or a later one.
    pub fn note(&mut self, state: &State, event: &Event) {
        match event {
            Event::Created(object) => self.changed(state, None, Some(object)),
            Event::Removed(object) => self.changed(state, Some(object), None),
            Event::Updated { old, new } => self.changed(state, Some(old), Some(new)),
        }
    }

    fn changed(&mut self, state: &State, old: Option<&Object>, new: Option<&Object>) {
        match (old, new) {
            (Some(Object::Task(old)), Some(Object::Task(new))) => self.task(Some(old), Some(new)),
            (None, Some(Object::Task(new))) => self.task(None, Some(new)),
            (Some(Object::Task(old)), None) => self.task(Some(old), None),
            (Some(Object::Node(old)), Some(Object::Node(new))) => self.node(state, Some(old), Some(new)),
            (None, Some(Object::Node(new))) => self.node(state, None, Some(new)),
            (Some(Object::Node(old)), None) => self.node(state, Some(old), None),
            (old, new) => old.into_iter().chain(new).for_each(|object| self.other(state, object, old.is_none())),
        }
    }

    fn task(&mut self, old: Option<&Arc<Task>>, new: Option<&Arc<Task>>) {
        if let Some(new) = new.filter(|task| drain::needs_drain(task)) {
            self.stopping.insert(new.id.clone());
        }
        let is_report = match (old, new) {
            (Some(old), Some(new)) => {
                let same_end = old.status.state.is_terminal() == new.status.state.is_terminal();
                // A report leaves the version alone; what is told to stop may be held until it is drained.
                same_end && old.meta.version == new.meta.version && !drain::needs_drain(new)
            }
            _ => false,
        };
        let both = || old.into_iter().chain(new);
        if !is_report {
            self.nodes.extend(both().filter_map(|task| task.node.clone()));
        }
        let items = |task: Option<&Arc<Task>>| {
            let reachable = task.filter(|task| is_reachable(task));
            reachable.map(|task| endpoints_of(task).collect::<Vec<_>>()).unwrap_or_default()
        };
        if both().any(|task| !task.networks.is_empty()) && items(old) != items(new) {
            self.networks.extend(both().flat_map(|task| &task.networks).map(|n| n.network.clone()));
        }
    }

    fn node(&mut self, state: &State, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>) {
        let ingress = state.ingress_network().map(|n| &n.id);
        let as_peer = |node: Option<&Arc<Node>>| node.and_then(|node| peer(node, ingress));
        self.peers |= as_peer(old) != as_peer(new);
        let serves = |node: &Arc<Node>| (node.status.addr, node.status.state == NodeState::Down);
        let both = || old.into_iter().chain(new);
        let holds_images = || both().any(|node| state.images().any(|image| image.holders.contains(&node.id)));
        if old.map(serves) != new.map(serves) && holds_images() {
            self.everything = true;
        }
        // Whether it can says which networks it is told of.
        let can_encrypt = |node: &Arc<Node>| node.description.can_encrypt();
        if old.map(can_encrypt) != new.map(can_encrypt) {
            self.nodes.extend(both().map(|node| node.id.clone()));
        }
    }

    fn other(&mut self, state: &State, object: &Object, is_new: bool) {
        match object {
            Object::Service(service) => self.service(state, service),
            Object::Network(network) => drop(self.networks.insert(network.id.clone())),
            Object::Image(image) => self.image(state, image),
            Object::Cluster(_) => self.everything = true,
            // Nobody uses a file that was just made.
            Object::Secret(_) | Object::Config(_) => self.everything |= !is_new,
            // Seen to above.
            Object::Task(_) | Object::Node(_) => {}
        }
    }

    fn service(&mut self, state: &State, service: &Service) {
        self.networks.extend(service.spec.task.networks.iter().map(|n| n.network.clone()));
        if publishes_on_ingress(&service.spec) {
            self.networks.extend(state.ingress_network().map(|n| n.id.clone()));
        }
    }

    /// Who may be told where the content is.
    fn image(&mut self, state: &State, image: &Image) {
        let names = |spec: &ServiceSpec| {
            let container = &spec.task.container;
            container.image_digest.as_deref() == Some(&image.digest)
                || normalise_image_name(&container.image).is_ok_and(|name| name == image.name)
        };
        let uses = |s: &&Arc<Service>| names(&s.spec) || s.previous_spec.as_ref().is_some_and(|spec| names(spec));
        let tasks = state.services().filter(uses).flat_map(|service| state.tasks_of(&service.id));
        let live = tasks.filter(|task| !task.status.state.is_terminal());
        self.nodes.extend(live.filter_map(|task| task.node.clone()));
    }
}
