//! One-off containers on networks of the cluster: their node runs them, managers keep their addresses and names.
//!
//! Such a container stands in the state as a task of no service, placed and running from the start. Its node says which
//! networks it is to be on, as a whole, and which containers it still has; what it no longer has is removed.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use orch_model::{
    Annotations, Meta, NodeId, Object, ObjectId, ServiceId, TaskId, Timestamp, Version,
    change::{Change, Transaction},
    network::Network,
    node::{GenericResources, Node},
    task::{Task, TaskAttachment, TaskState, TaskStatus},
};

use super::{ControlError, propose, removal};
use crate::{allocator::ipam::Addresses, encryption, resolve, state::State};

/// Networks that one container may be on.
const MAX_NETWORKS: usize = 64;
/// Names of one container on one network.
const MAX_NAMES: usize = 64;
/// Characters of a name: what DNS can carry.
const MAX_NAME_LEN: usize = 253;

/// Where a one-off container is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerNetworks {
    pub node: NodeId,
    pub id: TaskId,
    pub name: String,
    /// Empty: nowhere, and the container is forgotten.
    pub networks: Vec<WantedNetwork>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WantedNetwork {
    /// Name or id.
    pub network: String,
    pub aliases: Vec<String>,
    /// What the user asked for; else the allocator chooses.
    pub addresses: Vec<IpAddr>,
}

/// Puts a container on its networks, and off those that are not named. Addresses that it has it keeps.
///
/// # Errors
/// In Docker's words where it has some, when a network is not there, not attachable or full, or an address is taken.
pub fn set_container_networks(
    state: &State,
    now: Timestamp,
    request: &ContainerNetworks,
) -> Result<(Transaction, Vec<TaskAttachment>), ControlError> {
    let Some(node) = state.node(&request.node) else {
        return Err(ControlError::not_found(format!("no such node: {}", request.node)));
    };
    check_sizes(request)?;
    let known = state.task(&request.id);
    if let Some(task) = known.filter(|t| !t.is_one_off() || t.node.as_ref() != Some(&request.node)) {
        return Err(ControlError::precondition(format!("{} is not a one-off container of this node", task.id)));
    }
    let mut addresses = Addresses::new(state);
    let mut networks: Vec<TaskAttachment> = Vec::new();
    for wanted in &request.networks {
        let before = known.map_or(&[][..], |task| &task.networks[..]);
        let attachment = attach(state, node, wanted, before, &mut addresses)?;
        if networks.iter().any(|n| n.network == attachment.network) {
            return Err(ControlError::invalid(format!("network {} is named twice", wanted.network)));
        }
        networks.push(attachment);
    }
    let change = match (known, networks.is_empty()) {
        (None, true) => None,
        (Some(task), true) => Some(removal(&Object::Task(task.clone()))),
        (None, false) => Some(Change::Create(Object::Task(Arc::new(container(request, now, networks.clone()))))),
        (Some(task), false) => {
            let mut next = Task::clone(task);
            next.networks.clone_from(&networks);
            Arc::make_mut(&mut next.service_annotations).name.clone_from(&request.name);
            (next != **task).then(|| Change::Update(Object::Task(Arc::new(next))))
        }
    };
    let proposal = propose(state, now, ObjectId::Task(request.id.clone()), change.into_iter().collect())?;
    Ok((proposal.transaction, networks))
}

/// Removes what the node no longer has of one-off containers.
///
/// # Errors
/// See [`ControlError`].
pub fn keep_containers(
    state: &State,
    now: Timestamp,
    node: &NodeId,
    kept: &BTreeSet<TaskId>,
) -> Result<Transaction, ControlError> {
    let gone = state.tasks_on(node).filter(|t| t.is_one_off() && !kept.contains(&t.id));
    let changes: Vec<_> = gone.map(|t| removal(&Object::Task(t.clone()))).collect();
    Ok(propose(state, now, ObjectId::Node(node.clone()), changes)?.transaction)
}

fn check_sizes(request: &ContainerNetworks) -> Result<(), ControlError> {
    let aliases = || request.networks.iter().flat_map(|n| &n.aliases);
    if request.networks.len() > MAX_NETWORKS {
        return Err(ControlError::invalid(format!("a container can be on {MAX_NETWORKS} networks at most")));
    }
    if request.networks.iter().any(|n| n.aliases.len() > MAX_NAMES) {
        return Err(ControlError::invalid(format!("a container can have {MAX_NAMES} aliases on a network at most")));
    }
    let long = |name: &&String| name.is_empty() || name.len() > MAX_NAME_LEN;
    match std::iter::once(&request.name).chain(aliases()).find(long) {
        Some(name) => Err(ControlError::invalid(format!("{name:?} cannot be a name in DNS"))),
        None => Ok(()),
    }
}

fn attach(
    state: &State,
    node: &Node,
    wanted: &WantedNetwork,
    before: &[TaskAttachment],
    addresses: &mut Addresses<'_>,
) -> Result<TaskAttachment, ControlError> {
    let name = &wanted.network;
    let network = match resolve::network(state, name) {
        Ok(network) => network,
        Err(resolve::ResolveError::NotFound { .. }) => {
            return Err(ControlError::not_found(format!("network {name} not found")));
        }
        Err(ambiguous) => return Err(ambiguous.into()),
    };
    if !network.spec.attachable {
        return Err(ControlError::precondition(format!(
            "Could not attach to network {name}: network {} not manually attachable: only services can be on it; create \
             it with --attachable to let containers be on it too",
            network.spec.annotations.name
        )));
    }
    if let Some(why) = encryption::refusal_on(node, &network) {
        return Err(ControlError::precondition(format!("Could not attach to network {name}: {why}")));
    }
    let kept = before.iter().find(|a| a.network == network.id && satisfies(&a.addresses, &wanted.addresses));
    let given = match kept {
        Some(attachment) => attachment.addresses.clone(),
        None => give(&network, wanted, addresses)?,
    };
    Ok(TaskAttachment { network: network.id.clone(), addresses: given, aliases: wanted.aliases.clone() })
}

fn satisfies(has: &[IpNetwork], wanted: &[IpAddr]) -> bool {
    !has.is_empty() && wanted.iter().all(|addr| has.iter().any(|h| h.ip() == *addr))
}

fn give(
    network: &Network,
    wanted: &WantedNetwork,
    addresses: &mut Addresses<'_>,
) -> Result<Vec<IpNetwork>, ControlError> {
    if !wanted.addresses.is_empty() && network.spec.ipam.is_empty() {
        return Err(ControlError::invalid(
            "user specified IP address is supported only when connecting to networks with user configured subnets",
        ));
    }
    addresses.of_each_family(network, &wanted.addresses).map_err(ControlError::precondition)
}

fn container(request: &ContainerNetworks, now: Timestamp, networks: Vec<TaskAttachment>) -> Task {
    Task {
        id: request.id.clone(),
        meta: Meta { version: Version(0), created_at: now, updated_at: now },
        service: ServiceId::nobody(),
        service_annotations: Arc::new(Annotations { name: request.name.clone(), ..Annotations::default() }),
        slot: 0,
        node: Some(request.node.clone()),
        spec: Arc::default(),
        spec_version: Version(0),
        status: TaskStatus {
            state: TaskState::Running,
            at: now,
            message: "attached".to_owned(),
            error: None,
            container: None,
        },
        running_since: Some(now),
        displaced: false,
        desired_state: TaskState::Running,
        start_at: None,
        networks,
        host_ports: Vec::new(),
        generic: GenericResources::default(),
    }
}
