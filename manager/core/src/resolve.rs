//! Finding an object by what the user typed: id, name, short stack name, unique id prefix.
//!
//! Names win over id prefixes: a name is what somebody chose, and no random identifier may take it over. What is being
//! removed is no longer found.

use std::sync::Arc;

use orch_model::{
    Kind, Object, ObjectId,
    cluster::Cluster,
    image::Image,
    network::Network,
    node::Node,
    secret::{Config, Secret},
    service::Service,
    task::{Task, TaskState},
};

use crate::{image_name::normalise_image_name, state::State};

/// The label that names the stack of an object.
pub const STACK_LABEL: &str = "com.docker.stack.namespace";
/// Candidates listed in an error.
const MAX_CANDIDATES: usize = 10;
/// Hexadecimal digits of a container id that users see.
const MIN_CONTAINER_PREFIX: usize = 12;

/// Why a reference names no single object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("no such {kind}: {text}")]
    NotFound { kind: Kind, text: String },
    #[error("{kind} {text} is ambiguous ({} matches found): {}", .candidates.len(), .candidates.join(", "))]
    Ambiguous { kind: Kind, text: String, candidates: Vec<String> },
}

/// Finds a service.
///
/// # Errors
/// When nothing or more than one thing has that name.
pub fn service(state: &State, text: &str) -> Result<Arc<Service>, ResolveError> {
    let live: Vec<_> = state.services().filter(|s| !s.removing).collect();
    find(Kind::Service, text, &live, |s| (s.id.as_str(), &s.spec.annotations.name, stack(&s.spec.annotations.labels)))
}

/// Finds a network.
///
/// # Errors
/// When nothing or more than one thing has that name.
pub fn network(state: &State, text: &str) -> Result<Arc<Network>, ResolveError> {
    let live: Vec<_> = state.networks().filter(|n| !n.removing).collect();
    find(Kind::Network, text, &live, |n| (n.id.as_str(), &n.spec.annotations.name, stack(&n.spec.annotations.labels)))
}

/// Finds a secret.
///
/// # Errors
/// When nothing or more than one thing has that name.
pub fn secret(state: &State, text: &str) -> Result<Arc<Secret>, ResolveError> {
    let live: Vec<_> = state.secrets().filter(|s| !s.removing).collect();
    find(Kind::Secret, text, &live, |s| (s.id.as_str(), &s.annotations.name, stack(&s.annotations.labels)))
}

/// Finds a config.
///
/// # Errors
/// When nothing or more than one thing has that name.
pub fn config(state: &State, text: &str) -> Result<Arc<Config>, ResolveError> {
    let live: Vec<_> = state.configs().filter(|c| !c.removing).collect();
    find(Kind::Config, text, &live, |c| (c.id.as_str(), &c.annotations.name, stack(&c.annotations.labels)))
}

/// Finds a node by id, hostname (or the name it was given) or unique id prefix.
///
/// # Errors
/// When nothing or more than one thing has that name.
pub fn node(state: &State, text: &str) -> Result<Arc<Node>, ResolveError> {
    let all: Vec<_> = state.nodes().collect();
    find(Kind::Node, text, &all, |n| {
        let name = &n.spec.annotations.name;
        (n.id.as_str(), if name.is_empty() { &n.description.hostname } else { name }, None)
    })
}

/// Finds an image name that the cluster knows.
///
/// # Errors
/// When nothing or more than one thing has that name.
pub fn image(state: &State, text: &str) -> Result<Arc<Image>, ResolveError> {
    let all: Vec<_> = state.images().collect();
    let full = normalise_image_name(text).unwrap_or_else(|_| text.to_owned());
    let by_name = find(Kind::Image, &full, &all, |i| (i.id.as_str(), &i.name, None));
    by_name.or_else(|_| find(Kind::Image, text, &all, |i| (i.id.as_str(), &i.name, None)))
}

/// The cluster object; there is one.
///
/// # Errors
/// When `text` is neither its id, nor a prefix, nor its name, nor empty.
pub fn cluster(state: &State, text: &str) -> Result<Arc<Cluster>, ResolveError> {
    let all: Vec<_> = state.cluster().into_iter().collect();
    match all.first() {
        Some(cluster) if text.is_empty() => Ok((*cluster).clone()),
        _ => find(Kind::Cluster, text, &all, |c| (c.id.as_str(), &c.spec.annotations.name, None)),
    }
}

/// Finds a task: id, `web.5` (the newest that is wanted, else the newest), container name, container id of at least 12
/// digits, unique id prefix.
///
/// # Errors
/// When nothing or more than one thing has that name.
pub fn task(state: &State, text: &str) -> Result<Arc<Task>, ResolveError> {
    if let Some(task) = text.parse().ok().and_then(|id| state.task(&id)) {
        return Ok(task.clone());
    }
    // SERVICE.SLOT.TASKID: the id alone says which.
    if let Some(task) = text.rsplit_once('.').and_then(|(_, id)| id.parse().ok()).and_then(|id| state.task(&id))
        && task.container_name() == text
    {
        return Ok(task.clone());
    }
    if let Some(task) = task_in_slot(state, text)? {
        return Ok(task);
    }
    let is_container = |t: &&Arc<Task>| {
        let id = t.status.container.as_ref().map(|c| c.container_id.as_str());
        text.len() >= MIN_CONTAINER_PREFIX && id.is_some_and(|id| id.starts_with(text))
    };
    let containers: Vec<_> = state.tasks().filter(is_container).collect();
    if !containers.is_empty() {
        return only(Kind::Task, text, &containers, |t| t.container_name());
    }
    let prefixed: Vec<_> = state.tasks().filter(|t| !text.is_empty() && t.id.as_str().starts_with(text)).collect();
    only(Kind::Task, text, &prefixed, |t| t.container_name())
}

/// Finds any object of a kind.
///
/// # Errors
/// When nothing or more than one thing has that name.
pub fn object(state: &State, kind: Kind, text: &str) -> Result<Object, ResolveError> {
    Ok(match kind {
        Kind::Cluster => Object::Cluster(cluster(state, text)?),
        Kind::Node => Object::Node(node(state, text)?),
        Kind::Service => Object::Service(service(state, text)?),
        Kind::Task => Object::Task(task(state, text)?),
        Kind::Network => Object::Network(network(state, text)?),
        Kind::Secret => Object::Secret(secret(state, text)?),
        Kind::Config => Object::Config(config(state, text)?),
        Kind::Image => Object::Image(image(state, text)?),
    })
}

/// The id of any object of a kind.
///
/// # Errors
/// When nothing or more than one thing has that name.
pub fn id(state: &State, kind: Kind, text: &str) -> Result<ObjectId, ResolveError> {
    object(state, kind, text).map(|o| o.id())
}

fn stack(labels: &std::collections::BTreeMap<String, String>) -> Option<&str> {
    labels.get(STACK_LABEL).map(String::as_str)
}

/// `web.5`, `shop_web.5`, or `agent.<node>` for a global service.
fn task_in_slot(state: &State, text: &str) -> Result<Option<Arc<Task>>, ResolveError> {
    let Some((name, place)) = text.rsplit_once('.') else { return Ok(None) };
    let service = match service(state, name) {
        Ok(service) => service,
        Err(ResolveError::NotFound { .. }) => return Ok(None),
        Err(ambiguous) => return Err(ambiguous),
    };
    let in_place = |t: &&Arc<Task>| match place.parse::<u64>() {
        Ok(slot) if slot > 0 && t.slot == slot => true,
        _ => t.slot == 0 && t.node.as_ref().is_some_and(|n| n.as_str() == place),
    };
    let newest =
        |t: &&Arc<Task>| (t.desired_state != TaskState::Remove, t.is_wanted(), t.meta.created_at, t.meta.version);
    Ok(state.tasks_of(&service.id).filter(in_place).max_by_key(newest).cloned())
}

fn find<'a, T>(
    kind: Kind,
    text: &str,
    all: &[&'a Arc<T>],
    names: impl Fn(&'a T) -> (&'a str, &'a str, Option<&'a str>),
) -> Result<Arc<T>, ResolveError> {
    let show = |o: &'a T| {
        let (id, name, _) = names(o);
        format!("{name} ({})", &id[..MIN_CONTAINER_PREFIX.min(id.len())])
    };
    if text.is_empty() {
        return Err(ResolveError::NotFound { kind, text: text.to_owned() });
    }
    let is_short = |o: &'a T| {
        let (_, name, stack) = names(o);
        let rest = stack.and_then(|stack| name.strip_prefix(stack)).and_then(|rest| rest.strip_prefix('_'));
        rest == Some(text)
    };
    let tests: [&dyn Fn(&'a T) -> bool; 4] =
        [&|o| names(o).0 == text, &|o| names(o).1 == text, &is_short, &|o| names(o).0.starts_with(text)];
    for test in tests {
        let found: Vec<_> = all.iter().copied().filter(|o| test(o)).collect();
        if !found.is_empty() {
            return only(kind, text, &found, show);
        }
    }
    Err(ResolveError::NotFound { kind, text: text.to_owned() })
}

fn only<'a, T>(
    kind: Kind,
    text: &str,
    found: &[&'a Arc<T>],
    show: impl Fn(&'a T) -> String,
) -> Result<Arc<T>, ResolveError> {
    match found {
        [] => Err(ResolveError::NotFound { kind, text: text.to_owned() }),
        [one] => Ok((*one).clone()),
        many => Err(ResolveError::Ambiguous {
            kind,
            text: text.to_owned(),
            candidates: many.iter().take(MAX_CANDIDATES).map(|o| show(o)).collect(),
        }),
    }
}
