//! The rules between objects, checked before an object goes in or out.
//!
//! Live slot: of the tasks of a slot that are wanted, no two may be made from the same spec and wanted in the same state.
//! So two decisions that both fill an empty slot, or both replace the same task, are caught, while a replacement that
//! waits in *ready* beside its predecessor, and a start-first update (another spec) beside the old task, are let through.
//! For global services the slot is the node.

use std::sync::Arc;

use orch_model::{
    ConfigId, NetworkId, Object, ObjectId, SecretId, ServiceId,
    secret::Secret,
    service::{Protocol, Service, TaskSpec, UpdateState},
    task::{Task, TaskState},
};

use super::{
    AddressHolder, ApplyError, State,
    index::{claimed_ports, held_addresses, holder_of, is_removing, name_of, unique_name},
    limits,
};

pub(crate) fn may_put(state: &State, old: Option<&Object>, new: &Object) -> Result<(), ApplyError> {
    limits::has_room(state, old, new)?;
    name_is_free(state, new)?;
    addresses_are_free(state, old, new)?;
    if is_removing(new) && !old.is_some_and(is_removing) {
        is_given_up(state, new)?;
    }
    match new {
        Object::Cluster(new) => match state.cluster() {
            Some(cluster) if cluster.id != new.id => Err(ApplyError::AnotherCluster),
            _ => Ok(()),
        },
        Object::Node(new) => match state.index_holder(new.index) {
            Some(holder) if *holder != new.id => {
                Err(ApplyError::IndexTaken { index: new.index, holder: holder.clone() })
            }
            _ => Ok(()),
        },
        Object::Network(new) => {
            let vni = new.allocation.as_ref().map(|a| a.vni);
            match vni.and_then(|vni| state.vni_holder(vni).map(|holder| (vni, holder))) {
                Some((vni, holder)) if *holder != new.id => Err(ApplyError::VniTaken { vni, holder: holder.clone() }),
                _ => Ok(()),
            }
        }
        Object::Service(new) => {
            ports_are_free(state, new)?;
            references_exist(state, new)
        }
        Object::Task(new) if new.is_one_off() => attachments_exist(state, new),
        Object::Task(new) => {
            if state.service(&new.service).is_none() {
                let missing = ObjectId::Service(new.service.clone());
                return Err(ApplyError::Dangling { what: ObjectId::Task(new.id.clone()), missing });
            }
            slot_is_free(state, new)
        }
        Object::Secret(_) | Object::Config(_) | Object::Image(_) => Ok(()),
    }
}

pub(super) fn may_remove(state: &State, object: &Object) -> Result<(), ApplyError> {
    is_given_up(state, object)?;
    let user = match object {
        Object::Cluster(_) => return Err(ApplyError::Permanent(object.id())),
        Object::Service(service) => state.tasks_of(&service.id).next().map(|task| format!("task {}", task.name())),
        Object::Network(network) => {
            let on_it = |t: &Task| t.networks.iter().any(|n| n.network == network.id);
            stopping_task(state, &on_it)
        }
        Object::Secret(secret) => stopping_task(state, &|t| has_secret(&t.spec, &secret.id)),
        Object::Config(config) => stopping_task(state, &|t| has_config(&t.spec, &config.id)),
        Object::Node(_) | Object::Task(_) | Object::Image(_) => None,
    };
    user.map_or(Ok(()), |user| Err(in_use(object, user)))
}

/// Whether nobody who stays uses the object; tasks that stop may.
fn is_given_up(state: &State, object: &Object) -> Result<(), ApplyError> {
    let user = match object {
        Object::Network(network) => network_keeper(state, &network.id),
        Object::Secret(secret) => {
            let pulls =
                || login_users(state, &secret.id).next().map(|s| format!("service {}", s.spec.annotations.name));
            services_with(state, &|spec| has_secret(spec, &secret.id)).or_else(pulls)
        }
        Object::Config(config) => services_with(state, &|spec| has_config(spec, &config.id)),
        Object::Service(_) | Object::Cluster(_) | Object::Node(_) | Object::Task(_) | Object::Image(_) => None,
    };
    user.map_or(Ok(()), |user| Err(in_use(object, user)))
}

fn has_secret(spec: &TaskSpec, id: &SecretId) -> bool {
    spec.container.secrets.iter().any(|s| s.id == *id)
}

fn has_config(spec: &TaskSpec, id: &ConfigId) -> bool {
    spec.container.configs.iter().any(|c| c.id == *id)
}

/// Who stays on a network: a service that names it, or a container of no service.
fn network_keeper(state: &State, network: &NetworkId) -> Option<String> {
    let names_it = |s: &&Arc<Service>| !s.removing && s.spec.task.networks.iter().any(|n| n.network == *network);
    let named = state.services().find(names_it).map(|s| format!("service {}", s.spec.annotations.name));
    let attached = |t: &&Arc<Task>| !t.status.state.is_terminal() && t.networks.iter().any(|n| n.network == *network);
    let container = || state.tasks_of(&ServiceId::nobody()).find(attached);
    named.or_else(|| container().map(|t| format!("container {} (an active endpoint)", t.name())))
}

/// The services, none of which is on its way out, whose tasks use something.
fn services_with(state: &State, uses: &dyn Fn(&TaskSpec) -> bool) -> Option<String> {
    let users = state.services().filter(|s| !s.removing && uses(&s.spec.task));
    let mut names: Vec<&str> = users.map(|s| s.spec.annotations.name.as_str()).collect();
    names.sort_unstable();
    match &names[..] {
        [] => None,
        [one] => Some(format!("service {one}")),
        [some @ .., last] => Some(format!("services {} and {last}", some.join(", "))),
    }
}

fn stopping_task(state: &State, uses: &dyn Fn(&Task) -> bool) -> Option<String> {
    let task = state.tasks().find(|t| !t.status.state.is_terminal() && uses(t));
    task.map(|t| {
        let (task, service) = (t.name(), &t.service_annotations.name);
        match t.desired_state > TaskState::Running {
            true => format!("task {task} (which is stopping)"),
            // Another spec would replace once more what it has replaced by now, and take the place of the one to go back to.
            false if is_updated(state, &t.service) => {
                format!("task {task} (which the update of service {service} has yet to replace)")
            }
            false => format!(
                "task {task} (from before its service gave that up: `orch service update --force {service}` replaces it)"
            ),
        }
    })
}

/// Whether an update or rollback of the service is not over.
fn is_updated(state: &State, service: &ServiceId) -> bool {
    let status = state.service(service).and_then(|service| service.update_status.as_ref());
    status.is_some_and(|status| match status.state {
        UpdateState::Updating | UpdateState::Paused | UpdateState::RollbackStarted | UpdateState::RollbackPaused => {
            true
        }
        UpdateState::Completed | UpdateState::RollbackCompleted => false,
    })
}

/// Services that pull their image with this login. Tasks do not count: they have pulled it.
pub(crate) fn login_users<'a>(state: &'a State, login: &SecretId) -> impl Iterator<Item = &'a Arc<Service>> {
    state.services().filter(move |s| !s.removing && s.spec.task.container.registry_auth.as_ref() == Some(login))
}

/// The login that goes with a service when that goes, or gets another.
pub(crate) fn unused_login<'a>(state: &'a State, service: &Service) -> Option<&'a Arc<Secret>> {
    let login = service.spec.task.container.registry_auth.as_ref()?;
    let is_shared = login_users(state, login).any(|other| other.id != service.id);
    state.secret(login).filter(|_| !is_shared)
}

fn in_use(object: &Object, user: String) -> ApplyError {
    ApplyError::InUse { kind: object.kind(), name: name_of(object).unwrap_or_default().to_owned(), user }
}

fn name_is_free(state: &State, new: &Object) -> Result<(), ApplyError> {
    let Some(name) = unique_name(new) else { return Ok(()) };
    match state.named(new.kind(), name) {
        Some(holder) if holder != new.id() => Err(ApplyError::NameTaken { kind: new.kind(), name: name.to_owned() }),
        _ => Ok(()),
    }
}

fn addresses_are_free(state: &State, old: Option<&Object>, new: &Object) -> Result<(), ApplyError> {
    let Some(owner) = holder_of(new) else { return Ok(()) };
    // What it held before it may keep without a look.
    let before = old.map(held_addresses).unwrap_or_default();
    for (network, address) in held_addresses(new) {
        if before.iter().any(|(n, a)| *n == network && *a == address) {
            continue;
        }
        if let Some(holder) = state.address_holder(&network, address).filter(|h| **h != owner) {
            let holder = match holder {
                AddressHolder::Service(id) => ObjectId::Service(id.clone()),
                AddressHolder::Task(id) => ObjectId::Task(id.clone()),
                AddressHolder::Node(id) => ObjectId::Node(id.clone()),
            };
            return Err(ApplyError::AddressTaken { network, address, holder: holder.to_string() });
        }
    }
    Ok(())
}

fn ports_are_free(state: &State, new: &Service) -> Result<(), ApplyError> {
    for (protocol, port) in claimed_ports(new) {
        if let Some(holder) = state.port_holder(protocol, port).filter(|h| **h != new.id) {
            return Err(ApplyError::PortTaken { port, protocol: protocol_word(protocol), holder: holder.clone() });
        }
    }
    Ok(())
}

fn references_exist(state: &State, new: &Service) -> Result<(), ApplyError> {
    if new.removing {
        return Ok(());
    }
    let container = &new.spec.task.container;
    let networks = new.spec.task.networks.iter().map(|n| ObjectId::Network(n.network.clone()));
    let secrets = container.secrets.iter().map(|s| ObjectId::Secret(s.id.clone()));
    let configs = container.configs.iter().map(|c| ObjectId::Config(c.id.clone()));
    let login = container.registry_auth.iter().map(|id| ObjectId::Secret(id.clone()));
    match networks.chain(secrets).chain(configs).chain(login).find(|id| !stays(state, id)) {
        Some(missing) => Err(ApplyError::Dangling { what: ObjectId::Service(new.id.clone()), missing }),
        None => Ok(()),
    }
}

/// Whether there is such an object, and will be.
fn stays(state: &State, id: &ObjectId) -> bool {
    state.get(id).is_some_and(|object| !is_removing(&object))
}

/// A one-off container is there for its networks.
fn attachments_exist(state: &State, new: &Task) -> Result<(), ApplyError> {
    let networks = new.networks.iter().map(|n| ObjectId::Network(n.network.clone()));
    match networks.filter(|_| !new.status.state.is_terminal()).find(|id| !stays(state, id)) {
        Some(missing) => Err(ApplyError::Dangling { what: ObjectId::Task(new.id.clone()), missing }),
        None => Ok(()),
    }
}

fn slot_is_free(state: &State, new: &Task) -> Result<(), ApplyError> {
    if !new.is_wanted() {
        return Ok(());
    }
    let rival = |t: &&std::sync::Arc<Task>| {
        t.id != new.id
            && t.is_wanted()
            && t.spec_version == new.spec_version
            && (t.desired_state >= TaskState::Running) == (new.desired_state >= TaskState::Running)
            && (new.slot != 0 || t.node == new.node)
    };
    match state.tasks_in(&new.service, new.slot).find(rival) {
        Some(holder) => {
            Err(ApplyError::SlotTaken { service: new.service.clone(), slot: new.slot, holder: holder.id.clone() })
        }
        None => Ok(()),
    }
}

pub(crate) fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}
