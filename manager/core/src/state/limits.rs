//! How much the state may hold. Every manager keeps all of it in memory, whoever asks for it.
//!
//! Far beyond what the benchmarks show to work: these keep a loop that creates things from ending the managers. What
//! exists may always become less. Tasks have no limit of their own: they follow from the replicas that are wanted, the nodes
//! and the task history.

use std::collections::BTreeMap;

use orch_model::{
    Annotations, Kind, Object,
    change::Change,
    service::{ContainerSpec, FileRef, LogDriver, Mount, Service, ServiceMode, ServiceSpec, TaskSpec},
};

use super::{ApplyError, State, index::Weight};

pub const NODES: usize = 10_000;
pub const SERVICES: usize = 50_000;
pub const NETWORKS: usize = 20_000;
pub const SECRETS: usize = 500_000;
pub const CONFIGS: usize = 500_000;
pub const IMAGES: usize = 50_000;
/// Replicas and completions of all services together; a global service counts once for each node.
pub const WANTED_TASKS: u64 = 500_000;
/// What users gave: contents of secrets and configs, texts and labels of services, labels of everything.
pub const CONTENT_BYTES: u64 = 1024 * 1024 * 1024;
/// Tasks on a node, ended ones included, beyond which it may not report further containers of its own.
pub const NODE_TASKS: usize = 10_000;

/// What users gave of an object, as [`CONTENT_BYTES`] counts it.
#[must_use]
pub fn content_bytes(object: &Object) -> u64 {
    weight(object).content_bytes
}

/// What users gave of all that a change carries: a task's is its own copy there, a service has its previous spec with it.
pub(crate) fn text_bytes(change: &Change) -> u64 {
    match change {
        Change::Create(Object::Task(task)) | Change::Update(Object::Task(task)) => {
            (task_bytes(&task.spec) + bytes_of(&task.service_annotations)) as u64
        }
        Change::Create(Object::Service(service)) | Change::Update(Object::Service(service)) => {
            (spec_bytes(&service.spec) + service.previous_spec.as_deref().map_or(0, spec_bytes)) as u64
        }
        Change::Create(object) | Change::Update(object) => content_bytes(object),
        Change::Remove { .. } | Change::TaskStatus { .. } => 0,
    }
}

/// Whether the state has room for `new` in place of `old`.
pub(super) fn has_room(state: &State, old: Option<&Object>, new: &Object) -> Result<(), ApplyError> {
    if old.is_none() {
        count_fits(state, new)?;
    }
    let (before, after) = (old.map(weight).unwrap_or_default(), weight(new));
    let content = state.indexes.weight.content_bytes - before.content_bytes + after.content_bytes;
    if after.content_bytes > before.content_bytes && content > CONTENT_BYTES {
        return Err(ApplyError::TooMuchContent { bytes: content, limit: CONTENT_BYTES });
    }
    let nodes = state.nodes.len() as u64;
    let tasks = |weight: Weight| weight.replicas.saturating_add(weight.globals.saturating_mul(nodes));
    let wanted = (tasks(state.indexes.weight) - tasks(before)).saturating_add(tasks(after));
    if tasks(after) > tasks(before) && wanted > WANTED_TASKS {
        return Err(ApplyError::TooManyTasks { wanted, limit: WANTED_TASKS });
    }
    Ok(())
}

/// What an object adds to the state, as far as that is limited by its size.
pub(super) fn weight(object: &Object) -> Weight {
    match object {
        Object::Service(o) => service_weight(o),
        Object::Secret(o) => content(bytes_of(&o.annotations) + o.data.len()),
        Object::Config(o) => content(bytes_of(&o.annotations) + o.data.len()),
        Object::Network(o) => content(bytes_of(&o.spec.annotations)),
        Object::Node(o) => content(bytes_of(&o.spec.annotations)),
        // A task shares its service's spec.
        Object::Cluster(_) | Object::Task(_) | Object::Image(_) => Weight::default(),
    }
}

fn count_fits(state: &State, new: &Object) -> Result<(), ApplyError> {
    let (count, limit) = match new {
        Object::Cluster(_) => return Ok(()),
        Object::Task(task) => {
            let on_node = task.node.as_ref().and_then(|node| state.indexes.tasks_by_node.get(node));
            let count = on_node.map_or(0, imbl::OrdSet::len);
            return match task.is_one_off() && count >= NODE_TASKS {
                true => Err(ApplyError::TooManyOnNode { limit: NODE_TASKS }),
                false => Ok(()),
            };
        }
        Object::Node(_) => (state.nodes.len(), NODES),
        Object::Service(_) => (state.services.len(), SERVICES),
        Object::Network(_) => (state.networks.len(), NETWORKS),
        Object::Secret(_) => (state.secrets.len(), SECRETS),
        Object::Config(_) => (state.configs.len(), CONFIGS),
        Object::Image(_) => (state.images.len(), IMAGES),
    };
    too_many(new.kind(), count, limit)
}

fn too_many(kind: Kind, count: usize, limit: usize) -> Result<(), ApplyError> {
    if count < limit { Ok(()) } else { Err(ApplyError::TooMany { kind, limit }) }
}

fn content(bytes: usize) -> Weight {
    Weight { content_bytes: bytes as u64, ..Weight::default() }
}

fn bytes_of(annotations: &Annotations) -> usize {
    of_pairs(&annotations.labels)
}

fn spec_bytes(spec: &ServiceSpec) -> usize {
    bytes_of(&spec.annotations) + task_bytes(&spec.task)
}

/// The texts of which a user may give as many, or as long ones, as a request takes.
fn task_bytes(task: &TaskSpec) -> usize {
    let networks = task.networks.iter().map(|network| of_texts(&network.aliases) + of_pairs(&network.driver_options));
    container_bytes(&task.container)
        + of_texts(&task.placement.constraints)
        + of_texts(&task.placement.spread)
        + of_texts(task.generic.keys())
        + networks.sum::<usize>()
        + task.log_driver.as_ref().map_or(0, of_driver)
}

fn container_bytes(container: &ContainerSpec) -> usize {
    let c = container;
    let lists = [&c.command, &c.args, &c.env, &c.groups, &c.hosts, &c.dns.search, &c.dns.options];
    let rights = [&c.cap_add, &c.cap_drop, &c.devices];
    of_texts(lists.into_iter().chain(rights).flatten())
        + of_texts([&c.image, &c.hostname, &c.dir, &c.user, &c.stop_signal])
        + of_pairs(&c.labels)
        + of_pairs(&c.sysctls)
        + c.mounts.iter().map(of_mount).sum::<usize>()
        + c.secrets.iter().map(of_file).sum::<usize>()
        + c.configs.iter().map(of_file).sum::<usize>()
        + of_texts(c.health.iter().flat_map(|health| &health.test))
        + of_texts(c.ulimits.iter().map(|limit| &limit.name))
}

fn of_mount(mount: &Mount) -> usize {
    of_texts([&mount.source, &mount.target, &mount.propagation, &mount.volume_subpath])
        + of_pairs(&mount.volume_labels)
        + mount.volume_driver.as_ref().map_or(0, of_driver)
}

fn of_file<Id>(file: &FileRef<Id>) -> usize {
    of_texts([&file.name, &file.target, &file.uid, &file.gid])
}

fn of_driver(driver: &LogDriver) -> usize {
    driver.name.len() + of_pairs(&driver.options)
}

fn of_texts<'a>(texts: impl IntoIterator<Item = &'a String>) -> usize {
    texts.into_iter().map(String::len).sum()
}

fn of_pairs(pairs: &BTreeMap<String, String>) -> usize {
    pairs.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn service_weight(service: &Service) -> Weight {
    let mut weight = content(spec_bytes(&service.spec));
    match service.spec.mode {
        _ if service.removing => {}
        ServiceMode::Replicated { replicas } => weight.replicas = replicas,
        ServiceMode::ReplicatedJob { total_completions, .. } => weight.replicas = total_completions,
        ServiceMode::Global | ServiceMode::GlobalJob => weight.globals = 1,
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_fits_and_the_next_is_told_why_not() {
        assert_eq!(too_many(Kind::Config, CONFIGS - 1, CONFIGS), Ok(()));
        let refused = too_many(Kind::Config, CONFIGS, CONFIGS).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the cluster has 500000 configs and can hold no more: remove what is not needed"
        );
    }
}
