//! Local volumes hold a slot to its node: a replacement elsewhere would find an empty one.
//!
//! Nothing is stored: the newest task that had started in a slot says where its volumes are. A volume that the service
//! does not mount any more holds nobody, nor does one on a node that was removed, nor one that was given up
//! ([`Task::displaced`] on a task that is over).

use std::collections::{BTreeMap, BTreeSet};

use orch_model::{
    NodeId, Timestamp,
    service::{MountKind, Service, TaskSpec},
    task::{Task, TaskState},
};

use crate::{orchestrator::slot::is_replicated, state::State};

/// A service with this label set to `false` does not hold its slots: its volumes are the same everywhere, or nobody
/// needs them again.
pub const PIN_LABEL: &str = "orch.volumes.pin";

/// The slots that are held, and where.
#[must_use]
pub fn pins(state: &State, service: &Service) -> BTreeMap<u64, NodeId> {
    let mut newest: BTreeMap<u64, (Timestamp, &Task)> = BTreeMap::new();
    let wanted = local_volumes(&service.spec.task);
    if !is_replicated(service) || wanted.is_empty() || is_opted_out(service) {
        return BTreeMap::new();
    }
    for task in state.tasks_of(&service.id).filter(|task| has_started(task)) {
        let entry = newest.entry(task.slot).or_insert((task.meta.created_at, task));
        if task.meta.created_at >= entry.0 {
            *entry = (task.meta.created_at, task);
        }
    }
    let holds = |task: &Task| {
        let node = task.node.as_ref().filter(|id| state.node(id).is_some())?;
        let has_them = !local_volumes(&task.spec).is_disjoint(&wanted);
        let given_up = task.displaced && !task.is_wanted();
        (has_them && !given_up).then(|| node.clone())
    };
    newest.into_iter().filter_map(|(slot, (_, task))| Some((slot, holds(task)?))).collect()
}

/// What the operator can do about a slot that waits for its node.
pub(crate) fn advice(service: &str, slot: u64, node: &str) -> String {
    format!(
        "its volume is on node {node}: bring that back, or give the data up with `orch service unpin {service}.{slot}`"
    )
}

/// Named volumes of the plain local driver. With options, it may mount what is the same everywhere (NFS).
fn local_volumes(spec: &TaskSpec) -> BTreeSet<&str> {
    let is_plain = |mount: &&orch_model::service::Mount| {
        let driver = mount.volume_driver.as_ref();
        let plain = driver.is_none_or(|d| ["", "local"].contains(&d.name.as_str()) && d.options.is_empty());
        mount.kind == MountKind::Volume && !mount.source.is_empty() && plain
    };
    spec.container.mounts.iter().filter(is_plain).map(|mount| mount.source.as_str()).collect()
}

fn is_opted_out(service: &Service) -> bool {
    service.spec.annotations.labels.get(PIN_LABEL).is_some_and(|value| value.eq_ignore_ascii_case("false"))
}

/// What was never started has written nothing.
fn has_started(task: &Task) -> bool {
    let started = [TaskState::Starting, TaskState::Running, TaskState::Complete, TaskState::Failed];
    task.running_since.is_some() || started.contains(&task.status.state)
}
