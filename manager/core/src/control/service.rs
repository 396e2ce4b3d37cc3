//! Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    slice::from_ref,
    sync::Arc,
};

use orch_model::{
    Kind, Meta, Object, ObjectId, ServiceId, Timestamp, Version,
    change::Change,
    network::ENCRYPTED_PORT,
    service::{
        Endpoint, PlacementStrategy, PortConfig, Protocol, PublishMode, Service, ServiceMode, ServiceSpec, UpdateStatus,
    },
    task::{Task, TaskState},
};

use super::{ControlError, Proposal, missing, propose, removal};
use crate::{
    allocator::port as ports,
    constraint,
    decision::Ids,
    dispatch::DEFAULT_DATA_PATH_PORT,
    features,
    image_name::digest_of,
    orchestrator::{
        slot::is_replicated,
        update::{begun_anew, rolled_back},
    },
    plan::Room,
    rebalance,
    state::{State, check::protocol_word, check::unused_login, makes_other_tasks},
    validate, volume,
};

/// Where managers answer unless they are told otherwise.
const MANAGER_PORT: u16 = 2377;
/// Where nodes fetch images from each other, and tell who is alive.
const PEER_PORT: u16 = 7946;

/// Creates a service.
///
/// # Errors
/// See [`ControlError`].
pub fn create_service(
    state: &State,
    now: Timestamp,
    ids: Ids<'_>,
    mut spec: ServiceSpec,
) -> Result<Proposal, ControlError> {
    validate::service_spec(&spec)?;
    let name = &spec.annotations.name;
    if state.named(Kind::Service, name).is_some() {
        return Err(ControlError::exists(format!(
            "name conflicts with an existing object: service {name} already exists; choose another name, or change \
             that one with `orch service update {name}`"
        )));
    }
    references_fit(state, &spec, None)?;
    leaves_the_clusters_ports(state, &spec, None)?;
    resolve_image(state, &mut spec, None);
    let id = ServiceId::from_random(ids());
    let service = Service {
        id: id.clone(),
        meta: Meta::default(),
        spec,
        spec_version: Version::default(),
        previous_spec: None,
        endpoint: Endpoint::default(),
        update_status: None,
        removing: false,
    };
    let warnings = warnings(state, &service);
    let created = Change::Create(Object::Service(Arc::new(service)));
    Ok(Proposal { warnings, ..propose(state, now, ObjectId::Service(id), vec![created])? })
}

/// Changes a service. `version` is the one that the caller changed.
///
/// # Errors
/// See [`ControlError`].
pub fn update_service(
    state: &State,
    now: Timestamp,
    id: &ServiceId,
    version: Version,
    mut spec: ServiceSpec,
) -> Result<Proposal, ControlError> {
    let service = live(state, id)?;
    validate::service_spec(&spec)?;
    if spec.annotations.name != service.spec.annotations.name {
        return Err(ControlError::invalid(format!(
            "renaming services is not supported: {} cannot become {}; create a new service instead",
            service.spec.annotations.name, spec.annotations.name
        )));
    }
    if std::mem::discriminant(&spec.mode) != std::mem::discriminant(&service.spec.mode) {
        return Err(ControlError::invalid(format!(
            "service mode change is not allowed: service {} is {} and would become {}; remove it and create it anew",
            spec.annotations.name,
            mode_word(service.spec.mode),
            mode_word(spec.mode)
        )));
    }
    keep_login(&mut spec, &service.spec);
    references_fit(state, &spec, Some(id))?;
    leaves_the_clusters_ports(state, &spec, Some(&service.spec))?;
    resolve_image(state, &mut spec, Some(&service.spec));
    let mut next = Service::clone(service);
    next.meta.version = version;
    let other_tasks = makes_other_tasks(&service.spec, &spec);
    // Scaling is not what a rollback should undo.
    if other_tasks || spec.endpoint != service.spec.endpoint {
        next.previous_spec = Some(Box::new(service.spec.clone()));
    }
    if other_tasks {
        next.update_status = None;
    } else if let Some(anew) = goes_on(service, &spec, now.max(state.last_stamp())) {
        next.update_status = Some(anew);
    }
    // Whatever it goes back to, it is pulled with the newest login.
    if let Some(previous) = &mut next.previous_spec {
        previous.task.container.registry_auth.clone_from(&spec.task.container.registry_auth);
    }
    next.spec = spec;
    let warnings = warnings(state, &next);
    let mut changes = vec![Change::Update(Object::Service(Arc::new(next.clone())))];
    if service.spec.task.container.registry_auth != next.spec.task.container.registry_auth {
        changes.extend(unused_login(state, service).map(|login| removal(&Object::Secret(login.clone()))));
    }
    Ok(Proposal { warnings, ..propose(state, now, ObjectId::Service(id.clone()), changes)? })
}

/// What was paused begins anew with every update that does more than scale, also with one that changes nothing: what it
/// failed for may have been put right elsewhere.
fn goes_on(service: &Service, spec: &ServiceSpec, now: Timestamp) -> Option<UpdateStatus> {
    let as_scaled = || ServiceSpec { mode: spec.mode, ..service.spec.clone() };
    if spec.mode != service.spec.mode && *spec == as_scaled() {
        return None;
    }
    begun_anew(service.update_status.as_ref()?, now)
}

/// As Docker does: who says nothing about the login leaves it as it is.
fn keep_login(spec: &mut ServiceSpec, old: &ServiceSpec) {
    let login = &mut spec.task.container.registry_auth;
    *login = login.take().or_else(|| old.task.container.registry_auth.clone());
}

/// Goes back to the previous spec.
///
/// # Errors
/// See [`ControlError`].
pub fn rollback_service(
    state: &State,
    now: Timestamp,
    id: &ServiceId,
    version: Version,
) -> Result<Proposal, ControlError> {
    let service = live(state, id)?;
    let Some(mut next) = rolled_back(service, now.max(state.last_stamp())) else {
        return Err(ControlError::precondition(format!(
            "service {} does not have a previous spec: there is nothing to roll back to",
            service.spec.annotations.name
        )));
    };
    references_fit(state, &next.spec, Some(id))?;
    next.meta.version = version;
    // Rolling back once more returns to where the user came from.
    next.previous_spec = Some(Box::new(service.spec.clone()));
    propose(state, now, ObjectId::Service(id.clone()), vec![Change::Update(Object::Service(Arc::new(next)))])
}

/// Moves tasks so that the service is spread as if it were placed now, a few at a time as its update settings say.
///
/// # Errors
/// See [`ControlError`].
pub fn rebalance_service(state: &State, now: Timestamp, id: &ServiceId) -> Result<Proposal, ControlError> {
    let service = live(state, id)?;
    if !is_replicated(service) || service.spec.task.placement.strategy == PlacementStrategy::Pack {
        return Err(ControlError::precondition(format!(
            "service {} cannot be rebalanced: only replicated services that are spread can",
            service.spec.annotations.name
        )));
    }
    if let Some((slot, _)) = volume::pins(state, service).into_iter().next() {
        return Err(ControlError::precondition(format!(
            "service {0} cannot be rebalanced: its volumes hold it (slot {slot}, for one); label it {1}=false if they \
             are the same everywhere, or give one up with `orch service unpin {0}.{slot}` while it does not run",
            service.spec.annotations.name,
            volume::PIN_LABEL
        )));
    }
    let moved = rebalance::surplus(state, service, now);
    let count = moved.len();
    let displaced =
        |task: &Arc<Task>| Change::Update(Object::Task(Arc::new(Task { displaced: true, ..Task::clone(task) })));
    let mut room = Room::default();
    let changes: Vec<_> = moved.iter().map(displaced).take_while(|change| room.take(from_ref(change))).collect();
    let note = match count {
        0 => "it is balanced: nothing moves".to_owned(),
        _ if count > changes.len() => {
            format!("{count} tasks are to move, {} of them now: ask again afterwards", changes.len())
        }
        1 => "1 task moves".to_owned(),
        _ => format!("{count} tasks move"),
    };
    Ok(Proposal { warnings: vec![note], ..propose(state, now, ObjectId::Service(id.clone()), changes)? })
}

/// Lets slots go that wait for the node which has their volumes: their next tasks start elsewhere, with empty ones. No
/// slots: all of the service.
///
/// # Errors
/// See [`ControlError`].
pub fn unpin_service(
    state: &State,
    now: Timestamp,
    id: &ServiceId,
    slots: &BTreeSet<u64>,
) -> Result<Proposal, ControlError> {
    let service = live(state, id)?;
    let name = &service.spec.annotations.name;
    let pins = volume::pins(state, service);
    let asked: Vec<u64> =
        if slots.is_empty() { pins.keys().copied().collect() } else { slots.iter().copied().collect() };
    let (mut changes, mut notes, mut room) = (Vec::new(), Vec::new(), Room::default());
    for slot in asked {
        let of_slot: Vec<_> = state.tasks_in(id, slot).collect();
        let Some(node) = pins.get(&slot) else {
            notes.push(format!("{name}.{slot}: no volume holds it to a node"));
            continue;
        };
        if of_slot.iter().any(|task| task.is_wanted() && task.status.state >= TaskState::Assigned) {
            notes.push(format!("{name}.{slot} runs where its volume is: nothing was given up"));
            continue;
        }
        let over = of_slot.into_iter().filter(|task| !task.is_wanted() && task.node.is_some() && !task.displaced);
        let given_up: Vec<_> = over
            .map(|task| Change::Update(Object::Task(Arc::new(Task { displaced: true, ..Task::clone(task) }))))
            .collect();
        if !room.take(&given_up) {
            notes.push(format!("{name}.{slot} and those behind it keep their volumes for now: ask again for them"));
            break;
        }
        changes.extend(given_up);
        let host = state.node(node).map_or(node.as_str(), |node| node.description.hostname.as_str());
        notes.push(format!("{name}.{slot} gives its volume on node {host} up"));
    }
    if notes.is_empty() {
        notes.push(format!("no volume holds a slot of {name} to a node"));
    }
    Ok(Proposal { warnings: notes, ..propose(state, now, ObjectId::Service(id.clone()), changes)? })
}

/// Marks a service for removal: its tasks are drained and stopped, then it is deleted.
///
/// # Errors
/// See [`ControlError`].
pub fn remove_service(state: &State, now: Timestamp, id: &ServiceId) -> Result<Proposal, ControlError> {
    let service = live(state, id)?;
    let mut next = Service::clone(service);
    next.removing = true;
    propose(state, now, ObjectId::Service(id.clone()), vec![Change::Update(Object::Service(Arc::new(next)))])
}

fn live<'a>(state: &'a State, id: &ServiceId) -> Result<&'a Arc<Service>, ControlError> {
    state.service(id).filter(|s| !s.removing).ok_or_else(|| missing(id))
}

/// A published port is taken from whatever listens on the node. Were it one of the cluster's own, nodes would find the
/// service's tasks where they look for each other. What `stored` publishes already is left: such a service could not be
/// scaled any more.
fn leaves_the_clusters_ports(
    state: &State,
    spec: &ServiceSpec,
    stored: Option<&ServiceSpec>,
) -> Result<(), ControlError> {
    let data_path = state.cluster().map_or(DEFAULT_DATA_PATH_PORT, |cluster| cluster.spec.data_path_port);
    let is_managers = |port: u16| {
        let mut addresses = state.nodes().filter_map(|node| node.manager.as_ref()).map(|manager| manager.addr.as_str());
        port == MANAGER_PORT || addresses.any(|addr| addr.ends_with(&format!(":{port}")))
    };
    let is_stored = |port: &PortConfig| {
        let mut ports = stored.into_iter().flat_map(|stored| &stored.endpoint.ports);
        ports.any(|old| (old.protocol, old.published_port) == (port.protocol, port.published_port))
    };
    for port in spec.endpoint.ports.iter().filter(|port| port.published_port != 0 && !is_stored(port)) {
        let taken = match (port.protocol, port.published_port) {
            (Protocol::Tcp | Protocol::Udp, PEER_PORT) => "nodes reach each other",
            (Protocol::Udp, ENCRYPTED_PORT) => "encrypted networks connect nodes",
            (Protocol::Udp, number) if number == data_path => "the cluster's networks connect nodes",
            (Protocol::Tcp, number) if is_managers(number) => "managers answer",
            (Protocol::Tcp | Protocol::Udp | Protocol::Sctp, _) => continue,
        };
        return Err(ControlError::invalid(format!(
            "port {}/{} cannot be published: {taken} on it, and would find the service there; publish another port",
            port.published_port,
            protocol_word(port.protocol)
        )));
    }
    Ok(())
}

/// Networks that may be joined, ports that nobody else has.
fn references_fit(state: &State, spec: &ServiceSpec, own: Option<&ServiceId>) -> Result<(), ControlError> {
    if let Some(older) = features::missing(state, spec) {
        return Err(ControlError::invalid(older));
    }
    for attachment in &spec.task.networks {
        let network =
            state.network(&attachment.network).filter(|n| !n.removing).ok_or_else(|| missing(&attachment.network))?;
        if network.spec.ingress {
            return Err(ControlError::invalid(format!(
                "Service cannot be explicitly attached to the ingress network {:?}: publish a port instead",
                network.spec.annotations.name
            )));
        }
    }
    // A spec to go back to may name what is gone; its id alone tells nobody what that was.
    let no_such = |kind: Kind, name: &str, id: &str| ControlError::not_found(format!("no such {kind}: {name} ({id})"));
    for file in &spec.task.container.secrets {
        let found = state.secret(&file.id).filter(|s| !s.removing);
        found.ok_or_else(|| no_such(Kind::Secret, &file.name, file.id.as_str()))?;
    }
    if let Some(login) = &spec.task.container.registry_auth {
        state.secret(login).ok_or_else(|| missing(login))?;
    }
    for file in &spec.task.container.configs {
        let found = state.config(&file.id).filter(|c| !c.removing);
        found.ok_or_else(|| no_such(Kind::Config, &file.name, file.id.as_str()))?;
    }
    ports_are_free(state, spec, own)
}

/// A port on which every node answers is not one that tasks have on their own nodes, nor the other way round: which of the
/// two is reached would depend on the node. Tasks of several services may have the same one, each on its node. What is
/// stored is left: such a service could not be changed any more.
fn ports_are_free(state: &State, spec: &ServiceSpec, own: Option<&ServiceId>) -> Result<(), ControlError> {
    let stored = own.and_then(|id| state.service(id));
    let named: Vec<_> = spec.endpoint.ports.iter().filter(|port| port.published_port != 0).collect();
    // Looked for once: a range may have thousands.
    let others = state.services().filter(|other| !named.is_empty() && Some(&other.id) != own && !other.removing);
    let on_nodes: BTreeMap<_, _> =
        others.flat_map(|other| ports::on_nodes(state, other).map(move |taken| (taken, other))).collect();
    for port in named {
        let wanted = (port.protocol, port.published_port);
        let is_same = |old: &PortConfig| {
            (old.protocol, old.published_port, old.publish_mode) == (wanted.0, wanted.1, port.publish_mode)
        };
        let is_stored = stored.is_some_and(|service| service.spec.endpoint.ports.iter().any(is_same));
        let ingress = || {
            let holder = state.port_holder(wanted.0, wanted.1).filter(|holder| Some(*holder) != own);
            holder.and_then(|id| state.service(id)).map(|holder| (holder, "an ingress port"))
        };
        let on_nodes = || on_nodes.get(&wanted).map(|holder| (*holder, "a host-published port"));
        let taken = match (port.publish_mode, is_stored) {
            (PublishMode::Ingress, false) => ingress().or_else(on_nodes),
            (PublishMode::Ingress, true) | (PublishMode::Host, false) => ingress(),
            (PublishMode::Host, true) => None,
        };
        if let Some((holder, how)) = taken {
            return Err(ControlError::invalid(format!(
                "port '{}' is already in use by service '{}' ({}, {}) as {how}: choose another published port",
                port.published_port,
                holder.spec.annotations.name,
                holder.id,
                protocol_word(port.protocol)
            )));
        }
    }
    Ok(())
}

/// Fills in which content the image's name means now, if the cluster knows it.
fn resolve_image(state: &State, spec: &mut ServiceSpec, old: Option<&ServiceSpec>) {
    let container = &mut spec.task.container;
    let was = old.map(|s| &s.task.container);
    let is_left_over = was.is_some_and(|w| w.image != container.image && w.image_digest == container.image_digest);
    if container.image_digest.is_some() && !is_left_over {
        return;
    }
    let known = state.image_named(&container.image).map(|image| image.digest.clone());
    // A name that the cluster no longer knows still means what it did: nothing restarts for that.
    let before = || was.filter(|w| w.image == container.image).and_then(|w| w.image_digest.clone());
    container.image_digest = digest_of(&container.image).map(str::to_owned).or(known).or_else(before);
}

/// What will go wrong although it may be asked for.
fn warnings(state: &State, service: &Service) -> Vec<String> {
    let constraints = &service.spec.task.placement.constraints;
    let unplaceable = !constraints.is_empty() && !state.nodes().any(|n| constraint::all_match(constraints, n));
    let warning = format!(
        "no node of this cluster satisfies the constraints {}: its tasks stay pending until one does",
        constraints.join(", ")
    );
    unplaceable.then_some(warning).into_iter().collect()
}

fn mode_word(mode: ServiceMode) -> &'static str {
    match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
        ServiceMode::ReplicatedJob { .. } => "a replicated job",
        ServiceMode::GlobalJob => "a global job",
    }
}
