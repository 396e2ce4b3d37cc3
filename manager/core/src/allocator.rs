//! The allocator: identifiers, subnets, addresses and ports, for networks, nodes, services and tasks.
//!
//! What is in use is read from the state's indexes; within one call, what was just handed out is kept beside them. What
//! cannot be given is said on the object itself (`problem`, or the task's error) and tried again whenever it is asked.

pub mod ipam;
pub mod port;
pub mod vni;

use std::{collections::BTreeMap, sync::Arc};

use orch_model::{
    NetworkId, Object, Timestamp,
    change::Change,
    network::{Network, NetworkAllocation},
    node::Node,
    service::{Endpoint, EndpointMode, Service, Vip},
    task::{Task, TaskAttachment, TaskState},
};

use crate::{
    decision::Decision,
    state::{State, publishes_on_ingress},
};
use ipam::Addresses;

/// Docker's message on a task that waits for the scheduler.
pub const PENDING_MESSAGE: &str = "pending task scheduling";

/// Gives networks their VXLAN identifier and subnets.
#[must_use]
pub fn networks(state: &State) -> Decision {
    let mut decision = Decision::default();
    let mut vnis = vni::Vnis::new(state);
    let mut subnets = ipam::Subnets::new(state);
    // Older networks first, so that a retry after exhaustion is fair.
    let mut waiting: Vec<_> = state.networks().filter(|n| n.allocation.is_none()).collect();
    waiting.sort_by_key(|n| (n.meta.created_at, n.id.clone()));
    for network in waiting {
        let result = subnets.allocate(&network.spec).and_then(|ipam| match vnis.allocate() {
            Some(vni) => Ok(NetworkAllocation { vni, ipam }),
            None => Err("every VXLAN identifier is in use: remove networks that are not needed".to_owned()),
        });
        let mut next = Network::clone(network);
        (next.allocation, next.problem) = match result {
            Ok(allocation) => (Some(allocation), None),
            Err(problem) => (None, Some(problem)),
        };
        if next != **network {
            decision.changes.push(Change::Update(Object::Network(Arc::new(next))));
        }
    }
    decision
}

/// Gives nodes their index and their address on the ingress network.
#[must_use]
pub fn nodes(state: &State) -> Decision {
    let mut decision = Decision::default();
    let mut addresses = Addresses::new(state);
    let mut free_indexes = (1..=u16::MAX).filter(|index| state.index_holder(*index).is_none());
    let ingress = state.ingress_network().filter(|n| n.allocation.is_some());
    for node in state.nodes() {
        let mut next = Node::clone(node);
        if next.index == 0 {
            next.index = free_indexes.next().unwrap_or(0);
        }
        if let Some(ingress) = ingress.filter(|n| !next.attachments.contains_key(&n.id)) {
            // The node's own presence needs one family; services and tasks have every one.
            let address = addresses.next_of_each_family(ingress).ok().and_then(|a| a.into_iter().next());
            next.attachments.extend(address.map(|a| (ingress.id.clone(), a.ip())));
        }
        if next != **node {
            decision.changes.push(Change::Update(Object::Node(Arc::new(next))));
        }
    }
    decision
}

/// Gives a service its virtual addresses and automatic ports.
#[must_use]
pub fn service(state: &State, service: &Service) -> Decision {
    let mut decision = Decision::default();
    if service.removing {
        return decision;
    }
    let endpoint = endpoint_for(state, service, &mut Addresses::new(state), &mut port::Ports::new(state));
    if endpoint != service.endpoint {
        let mut next = Service::clone(service);
        next.endpoint = endpoint;
        decision.changes.push(Change::Update(Object::Service(Arc::new(next))));
    }
    decision
}

/// Gives new tasks their addresses; then they wait for the scheduler.
#[must_use]
pub fn tasks(state: &State, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let mut addresses = Addresses::new(state);
    let mut waiting: Vec<_> = state.tasks_without_place().filter(|t| t.status.state == TaskState::New).collect();
    waiting.sort_by_key(|t| (t.meta.created_at, t.service.clone(), t.slot));
    for task in waiting {
        let mut next = Task::clone(task);
        match attach(state, &mut next, &mut addresses) {
            Ok(()) => {
                next.status.state = TaskState::Pending;
                next.status.at = now;
                PENDING_MESSAGE.clone_into(&mut next.status.message);
                next.status.error = None;
            }
            Err(problem) => {
                next = Task::clone(task);
                next.status.error = Some(problem);
            }
        }
        if next != **task {
            decision.changes.push(Change::Update(Object::Task(Arc::new(next))));
        }
    }
    decision
}

fn endpoint_for(
    state: &State,
    service: &Service,
    addresses: &mut Addresses<'_>,
    ports: &mut port::Ports<'_>,
) -> Endpoint {
    let mut problem = None;
    let ports = match ports.allocate(service) {
        Ok(ports) => ports,
        Err(text) => {
            problem = Some(text);
            service.endpoint.ports.clone()
        }
    };
    let mut vips = Vec::new();
    if service.spec.endpoint.mode == EndpointMode::Vip {
        for network_id in networks_of(state, service) {
            let kept: Vec<_> = service.endpoint.vips.iter().filter(|v| v.network == network_id).cloned().collect();
            if !kept.is_empty() {
                vips.extend(kept);
                continue;
            }
            match addresses_on(state, &network_id, addresses) {
                Ok(given) => vips.extend(given.into_iter().map(|addr| Vip { network: network_id.clone(), addr })),
                Err(text) => problem = problem.or(Some(text)),
            }
        }
    }
    if publishes_on_ingress(&service.spec) && state.ingress_network().is_none() {
        problem = problem.or(Some(
            "it publishes a port on every node, but there is no ingress network: create one with \
             \"orch network create --driver overlay --ingress NAME\""
                .to_owned(),
        ));
    }
    Endpoint { ports, vips, problem }
}

/// The networks on which a service is reached: its own, and ingress when it publishes ports there.
fn networks_of(state: &State, service: &Service) -> Vec<NetworkId> {
    let own = service.spec.task.networks.iter().map(|n| n.network.clone());
    let ingress = state.ingress_network().filter(|_| publishes_on_ingress(&service.spec)).map(|n| n.id.clone());
    let mut seen = BTreeMap::new();
    own.chain(ingress).filter(|id| seen.insert(id.clone(), ()).is_none()).collect()
}

fn addresses_on(
    state: &State,
    network: &NetworkId,
    addresses: &mut Addresses<'_>,
) -> Result<Vec<ipnetwork::IpNetwork>, String> {
    let network = state.network(network).ok_or_else(|| format!("network {network} does not exist any more"))?;
    addresses.next_of_each_family(network)
}

fn attach(state: &State, task: &mut Task, addresses: &mut Addresses<'_>) -> Result<(), String> {
    if let Some(problem) = state.service(&task.service).and_then(|s| s.endpoint.problem.clone()) {
        return Err(problem);
    }
    // There may have been none when the task was made.
    let published = state.service(&task.service).is_some_and(|service| publishes_on_ingress(&service.spec));
    let missing = |n: &&Arc<Network>| published && task.networks.iter().all(|own| own.network != n.id);
    if let Some(ingress) = state.ingress_network().filter(missing) {
        let (network, addresses, aliases) = (ingress.id.clone(), Vec::new(), Vec::new());
        task.networks.push(TaskAttachment { network, addresses, aliases });
    }
    for attachment in task.networks.iter_mut().filter(|a| a.addresses.is_empty()) {
        attachment.addresses = addresses_on(state, &attachment.network, addresses)?;
    }
    Ok(())
}
