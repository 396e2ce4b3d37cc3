//! Which objects a list or a watch shows: every field that is set must match, within a field any value.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use orch_model::{
    Kind, NodeId, Object, ServiceId,
    task::{Task, TaskState},
};
use orch_proto::wire;
use tonic::Status;

/// A checked filter.
#[derive(Debug, Default)]
pub(super) struct Filter {
    ids: Vec<String>,
    names: Vec<String>,
    labels: Vec<(String, Option<String>)>,
    services: Vec<String>,
    nodes: Vec<String>,
    desired: Vec<TaskState>,
}

impl Filter {
    pub(super) fn new(filters: Option<wire::Filters>) -> Result<Self, Box<Status>> {
        let filters = filters.unwrap_or_default();
        let labels = filters.labels.iter().map(|label| match label.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (label.clone(), None),
        });
        let desired = filters.desired_states.iter().map(|word| desired_state(word)).collect::<Result<_, _>>()?;
        Ok(Self {
            labels: labels.collect(),
            ids: filters.ids,
            names: filters.names,
            services: filters.service_ids,
            nodes: filters.node_ids,
            desired,
        })
    }

    pub(super) fn matches(&self, object: &Object) -> bool {
        let id = object.id();
        let any = |values: &[String], test: &dyn Fn(&str) -> bool| values.is_empty() || values.iter().any(|v| test(v));
        any(&self.ids, &|prefix| id.as_str().starts_with(prefix))
            && any(&self.names, &|prefix| name(object).starts_with(prefix))
            && self.labels_match(object)
            && self.task_matches(object)
    }

    fn labels_match(&self, object: &Object) -> bool {
        let labels = labels(object);
        self.labels.is_empty()
            || self.labels.iter().any(|(key, wanted)| match (labels.and_then(|l| l.get(key)), wanted) {
                (Some(found), Some(wanted)) => found == wanted,
                (Some(_), None) => true,
                (None, _) => false,
            })
    }

    fn task_matches(&self, object: &Object) -> bool {
        let Object::Task(task) = object else {
            return self.services.is_empty() && self.nodes.is_empty() && self.desired.is_empty();
        };
        let node = task.node.as_ref().map(orch_model::NodeId::as_str);
        (self.services.is_empty() || self.services.iter().any(|id| id == task.service.as_str()))
            && (self.nodes.is_empty() || self.nodes.iter().any(|id| Some(id.as_str()) == node))
            && (self.desired.is_empty() || self.desired.contains(&shown_state(task.desired_state)))
    }
}

fn desired_state(word: &str) -> Result<TaskState, Box<Status>> {
    match word.to_ascii_lowercase().as_str() {
        "running" => Ok(TaskState::Running),
        "shutdown" => Ok(TaskState::Shutdown),
        "accepted" => Ok(TaskState::Accepted),
        _ => Err(Box::new(Status::invalid_argument(format!(
            "{word:?} is no desired state to filter by: use running, shutdown or accepted"
        )))),
    }
}

/// People know three desired states.
fn shown_state(state: TaskState) -> TaskState {
    match state {
        TaskState::Running | TaskState::Complete => TaskState::Running,
        state if state > TaskState::Running => TaskState::Shutdown,
        _ => TaskState::Accepted,
    }
}

fn name(object: &Object) -> String {
    match object {
        Object::Cluster(o) => o.spec.annotations.name.clone(),
        Object::Node(o) if o.spec.annotations.name.is_empty() => o.description.hostname.clone(),
        Object::Node(o) => o.spec.annotations.name.clone(),
        Object::Service(o) => o.spec.annotations.name.clone(),
        Object::Task(o) => o.name(),
        Object::Network(o) => o.spec.annotations.name.clone(),
        Object::Secret(o) => o.annotations.name.clone(),
        Object::Config(o) => o.annotations.name.clone(),
        Object::Image(o) => o.name.clone(),
    }
}

fn labels(object: &Object) -> Option<&BTreeMap<String, String>> {
    match object {
        Object::Cluster(o) => Some(&o.spec.annotations.labels),
        Object::Node(o) => Some(&o.spec.annotations.labels),
        Object::Service(o) => Some(&o.spec.annotations.labels),
        Object::Task(o) => Some(&o.service_annotations.labels),
        Object::Network(o) => Some(&o.spec.annotations.labels),
        Object::Secret(o) => Some(&o.annotations.labels),
        Object::Config(o) => Some(&o.annotations.labels),
        Object::Image(_) => None,
    }
}

/// The objects of a kind that a filter shows. Tasks of given services or nodes are found without looking at all others.
pub(super) fn shown(state: &orch_manager_core::State, kind: Kind, filter: &Filter) -> Vec<Object> {
    if kind != Kind::Task {
        return of_kind(state, kind).into_iter().filter(|object| filter.matches(object)).collect();
    }
    let services: BTreeSet<ServiceId> = filter.services.iter().filter_map(|id| id.parse().ok()).collect();
    let nodes: BTreeSet<NodeId> = filter.nodes.iter().filter_map(|id| id.parse().ok()).collect();
    let tasks: Box<dyn Iterator<Item = &Arc<Task>>> = match (filter.services.is_empty(), filter.nodes.is_empty()) {
        (false, _) => Box::new(services.iter().flat_map(|id| state.tasks_of(id))),
        (true, false) => Box::new(nodes.iter().flat_map(|id| state.tasks_on(id))),
        (true, true) => Box::new(state.tasks()),
    };
    // One-off containers are no service's tasks: who wants them asks for the service that is nobody's.
    let tasks = tasks.filter(|task| !task.is_one_off() || services.iter().any(ServiceId::is_nobody));
    tasks.map(|task| Object::Task(Arc::clone(task))).filter(|object| filter.matches(object)).collect()
}

/// The objects of one kind.
pub(super) fn of_kind(state: &orch_manager_core::State, kind: Kind) -> Vec<Object> {
    match kind {
        Kind::Cluster => state.cluster().cloned().map(Object::Cluster).into_iter().collect(),
        Kind::Node => state.nodes().cloned().map(Object::Node).collect(),
        Kind::Service => state.services().cloned().map(Object::Service).collect(),
        Kind::Task => state.tasks().cloned().map(Object::Task).collect(),
        Kind::Network => state.networks().cloned().map(Object::Network).collect(),
        Kind::Secret => state.secrets().cloned().map(Object::Secret).collect(),
        Kind::Config => state.configs().cloned().map(Object::Config).collect(),
        Kind::Image => state.images().cloned().map(Object::Image).collect(),
    }
}
