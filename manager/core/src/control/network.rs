//! Networks.

use std::sync::Arc;

use orch_model::{
    Meta, NetworkId, Object, ObjectId, Timestamp,
    change::Change,
    cluster::Cluster,
    network::{Network, NetworkSpec},
};

use super::{ControlError, Proposal, missing, propose, removal};
use crate::{
    allocator::ipam::overlaps,
    decision::Ids,
    encryption,
    state::{State, publishes_on_ingress},
    validate,
};

/// Creates a network; the allocator gives it its identifier and subnets.
///
/// # Errors
/// See [`ControlError`].
pub fn create_network(
    state: &State,
    now: Timestamp,
    ids: Ids<'_>,
    spec: NetworkSpec,
) -> Result<Proposal, ControlError> {
    validate::network_spec(&spec)?;
    keeps_out_of_others(state, &spec)?;
    if spec.is_encrypted()
        && let Some(why) = encryption::refusal(state)
    {
        return Err(ControlError::precondition(why));
    }
    if spec.ingress && state.networks().any(|n| n.spec.ingress) {
        return Err(ControlError::exists(
            "Ingress network already exists: remove it first (no service may publish ports meanwhile)",
        ));
    }
    let id = NetworkId::from_random(ids());
    let is_ingress = spec.ingress;
    let network =
        Network { id: id.clone(), meta: Meta::default(), spec, allocation: None, problem: None, removing: false };
    let mut changes = vec![Change::Create(Object::Network(Arc::new(network)))];
    changes.extend(is_ingress.then(|| set_ingress(state, Some(id.clone()))).flatten());
    propose(state, now, ObjectId::Network(id), changes)
}

/// Removes a network that nobody is on.
///
/// # Errors
/// See [`ControlError`].
pub fn remove_network(state: &State, now: Timestamp, id: &NetworkId) -> Result<Proposal, ControlError> {
    let network = state.network(id).ok_or_else(|| missing(id))?;
    if network.spec.ingress
        && let Some(user) = state.services().find(|s| !s.removing && publishes_on_ingress(&s.spec))
    {
        return Err(ControlError::precondition(format!(
            "ingress network cannot be removed because service {} depends on it: remove its published ports first",
            user.spec.annotations.name
        )));
    }
    let mut changes = Vec::new();
    if network.spec.ingress {
        changes.extend(set_ingress(state, None));
        changes.extend(detach_nodes(state, id));
    }
    changes.push(removal(&Object::Network(network.clone())));
    propose(state, now, ObjectId::Network(id.clone()), changes)
}

fn keeps_out_of_others(state: &State, spec: &NetworkSpec) -> Result<(), ControlError> {
    for asked in &spec.ipam {
        // What a network that goes still has is waited for.
        let allocated = state.networks().filter(|n| !n.removing).flat_map(|n| {
            let subnets = n.allocation.iter().flat_map(|a| &a.ipam).chain(&n.spec.ipam);
            subnets.map(|i| (i.subnet, format!("network {}", n.spec.annotations.name)))
        });
        let own = state.nodes().flat_map(|n| {
            let whose = format!("a network that node {} is on", n.description.hostname);
            n.description.underlay.iter().map(move |u| (*u, whose.clone()))
        });
        if let Some((other, whose)) = allocated.chain(own).find(|(other, _)| overlaps(*other, asked.subnet)) {
            return Err(ControlError::invalid(format!(
                "invalid pool request: Pool overlaps with other one on this address space: subnet {} overlaps {other} \
                 of {whose}; choose another subnet",
                asked.subnet
            )));
        }
    }
    Ok(())
}

fn set_ingress(state: &State, id: Option<NetworkId>) -> Option<Change> {
    let mut cluster = Cluster::clone(state.cluster()?);
    cluster.ingress_network = id;
    Some(Change::Update(Object::Cluster(Arc::new(cluster))))
}

/// Nodes give back their addresses on a network that goes.
fn detach_nodes<'a>(state: &'a State, id: &'a NetworkId) -> impl Iterator<Item = Change> + 'a {
    let attached = state.nodes().filter(|n| n.attachments.contains_key(id));
    attached.map(|n| {
        let mut node = orch_model::node::Node::clone(n);
        node.attachments.remove(id);
        Change::Update(Object::Node(Arc::new(node)))
    })
}
