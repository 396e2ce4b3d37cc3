//! Nodes: role, availability, labels; leaving for good.

use std::{collections::BTreeSet, sync::Arc};

use orch_model::{
    NodeId, Object, ObjectId, Timestamp, Version,
    change::Change,
    image::Image,
    node::{Availability, Node, NodeRole, NodeSpec, NodeState},
    service::Service,
};

use super::{ControlError, Proposal, missing, propose, removal};
use crate::{
    image_name::digest_of,
    roles::{self, Seats},
    state::State,
    validate, volume,
};

/// Changes what the operator wants of a node.
///
/// # Errors
/// See [`ControlError`].
pub fn update_node(
    state: &State,
    now: Timestamp,
    id: &NodeId,
    version: Version,
    spec: NodeSpec,
    seats: &Seats,
) -> Result<Proposal, ControlError> {
    let node = state.node(id).ok_or_else(|| missing(id))?;
    validate::node_spec(&spec, &node.spec)?;
    if node.spec.role == NodeRole::Manager && spec.role == NodeRole::Worker {
        may_demote(state, node, seats)?;
    }
    let mut next = Node::clone(node);
    next.meta.version = version;
    next.spec = spec;
    let drains = next.spec.availability == Availability::Drain && node.spec.availability != Availability::Drain;
    let warnings = if drains { left_pending(state, node) } else { Vec::new() };
    let change = Change::Update(Object::Node(Arc::new(next)));
    Ok(Proposal { warnings, ..propose(state, now, ObjectId::Node(id.clone()), vec![change])? })
}

/// What a drained node leaves without a place: slots whose volumes it has.
fn left_pending(state: &State, node: &Node) -> Vec<String> {
    let services: BTreeSet<_> = state.tasks_on(&node.id).filter(|t| t.is_wanted()).map(|t| &t.service).collect();
    let services = services.into_iter().filter_map(|id| state.service(id));
    let of_service = |service: &Arc<Service>| {
        let name = service.spec.annotations.name.clone();
        let held = volume::pins(state, service).into_iter().filter(|(_, on)| *on == node.id);
        held.map(move |(slot, _)| format!("{name}.{slot}")).collect::<Vec<_>>()
    };
    let slots: Vec<String> = services.flat_map(of_service).collect();
    let note = format!(
        "{} will stay pending while this node is drained: their volumes are here; `orch service unpin` gives them up",
        slots.join(", ")
    );
    if slots.is_empty() { Vec::new() } else { vec![note] }
}

fn may_demote(state: &State, node: &Node, seats: &Seats) -> Result<(), ControlError> {
    let name = &node.description.hostname;
    // A node that was promoted and is not yet in raft cannot take over.
    let takes_over = |n: &Node| seats.all.iter().any(|seat| seat.is_voter && seat.node == n.id.as_str());
    let mut others = state.nodes().filter(|n| n.spec.role == NodeRole::Manager && n.id != node.id);
    if takes_over(node) && !others.any(|n| takes_over(n)) {
        return Err(ControlError::precondition(format!(
            "attempting to demote the last manager of the cluster: promote another node first, {name} is the only one"
        )));
    }
    match roles::demotion_shortage(state, seats, node) {
        Some(shortage) => Err(ControlError::precondition(format!(
            "can't remove member from the raft: this would result in a loss of quorum: {shortage}"
        ))),
        None => Ok(()),
    }
}

/// Removes a node that has left or is down; its tasks are orphaned.
///
/// # Errors
/// See [`ControlError`].
pub fn remove_node(state: &State, now: Timestamp, id: &NodeId, force: bool) -> Result<Proposal, ControlError> {
    let node = state.node(id).ok_or_else(|| missing(id))?;
    let name = &node.description.hostname;
    // Taking a member out of raft behind its back could cost the quorum.
    if node.spec.role == NodeRole::Manager || node.role == NodeRole::Manager || node.manager.is_some() {
        return Err(ControlError::precondition(format!(
            "node {name} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before \
             removal: \"orch node demote {name}\""
        )));
    }
    if node.status.state != NodeState::Down && !force {
        return Err(ControlError::precondition(format!(
            "node {name} is not down and can't be removed: run \"orch leave\" on it first, or remove it with --force"
        )));
    }
    let mut changes = vec![removal(&Object::Node(node.clone()))];
    for image in state.images().filter(|i| i.holders.contains(id)) {
        let mut next = Image::clone(image);
        next.holders.remove(id);
        // The machine keeps its images. When it joins anew it says which contents it has, but of names only those by digest:
        // the others stay for it.
        changes.push(match next.holders.is_empty() && digest_of(&next.name).is_some() {
            true => removal(&Object::Image(image.clone())),
            false => Change::Update(Object::Image(Arc::new(next))),
        });
    }
    propose(state, now, ObjectId::Node(id.clone()), changes)
}
