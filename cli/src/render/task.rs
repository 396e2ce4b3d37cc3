//! Rows of `service ps`, `node ps` and `stack ps`.

use std::collections::{BTreeMap, HashMap, HashSet};

use orch_model::{
    Timestamp,
    task::{Task, TaskState},
};

use super::{
    ellipsis,
    listing::{Listing, Row, row},
    natural_order, ports, short_id, time,
};

pub(crate) const TASKS: Listing<'static> = Listing {
    default: "{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t{{.Ports}}",
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
    ],
    quiet: "ID",
};

/// Docker cuts an error to this many characters.
const ERROR_WIDTH: usize = 30;

pub(crate) struct View<'a> {
    pub(crate) now: Timestamp,
    pub(crate) no_trunc: bool,
    pub(crate) no_resolve: bool,
    /// Node id to hostname.
    pub(crate) nodes: &'a HashMap<String, String>,
    /// Service id to today's name.
    pub(crate) services: &'a HashMap<String, String>,
    /// The ids of the services that are jobs: their tasks are wanted complete, not running.
    pub(crate) jobs: &'a HashSet<String>,
}

/// By name, newest first within a name; older ones are marked as history.
pub(crate) fn rows(tasks: &[impl AsRef<Task>], view: &View<'_>) -> Vec<Row> {
    let mut named: Vec<(String, &Task)> = tasks.iter().map(|t| (name(t.as_ref(), view), t.as_ref())).collect();
    named.sort_by(|(name_a, a), (name_b, b)| {
        natural_order(name_a, name_b).then(b.meta.created_at.cmp(&a.meta.created_at)).then(b.id.cmp(&a.id))
    });
    let mut seen: BTreeMap<String, ()> = BTreeMap::new();
    named
        .into_iter()
        .map(|(name, task)| {
            let history = seen.insert(name.clone(), ()).is_some();
            let name = if history { format!(" \\_ {name}") } else { name };
            task_row(task, name, view)
        })
        .collect()
}

/// `web.1`; for global services the node's id, as Docker does, so that the name is the same while hosts are renamed.
pub(crate) fn name(task: &Task, view: &View<'_>) -> String {
    let service = view.services.get(task.service.as_str()).filter(|_| !view.no_resolve);
    let service = service.map_or(task.service_annotations.name.as_str(), String::as_str);
    match (task.slot, &task.node) {
        (0, Some(node)) => format!("{service}.{node}"),
        (slot, _) => format!("{service}.{slot}"),
    }
}

fn task_row(task: &Task, name: String, view: &View<'_>) -> Row {
    let id = task.id.as_str();
    let error = task.status.error.as_deref().filter(|e| !e.is_empty());
    // One line a task, whatever the error holds.
    let error = error.map(|e| e.replace('\n', " "));
    let error = error.map(|e| if view.no_trunc { e } else { ellipsis(&e, ERROR_WIDTH) });
    let image = &task.spec.container.image;
    let image = if view.no_trunc && image.contains('@') { image.clone() } else { super::image(image) };
    row([
        ("ID", if view.no_trunc { id } else { short_id(id) }.into()),
        ("Name", name.into()),
        ("Image", image.into()),
        ("Node", node_name(task, view).into()),
        ("DesiredState", desired_state(task, view).into()),
        ("CurrentState", current_state(task, view).into()),
        ("Error", error.map(|e| format!("\"{e}\"")).unwrap_or_default().into()),
        // Without a node it has none, whatever it is to have.
        ("Ports", task.node.as_ref().map(|_| ports::host(&task.host_ports)).unwrap_or_default().into()),
    ])
}

fn desired_state(task: &Task, view: &View<'_>) -> &'static str {
    let runs_to_its_end = task.desired_state == TaskState::Running && view.jobs.contains(task.service.as_str());
    if runs_to_its_end { TaskState::Complete.word() } else { task.desired_state.word() }
}

pub(crate) fn node_name(task: &Task, view: &View<'_>) -> String {
    let Some(node) = &task.node else { return String::new() };
    let known = view.nodes.get(node.as_str()).filter(|_| !view.no_resolve);
    known.cloned().unwrap_or_else(|| node.to_string())
}

/// `Running 5 seconds ago`, `Preparing about a minute ago (downloading its image: 12MB of 140MB)`.
fn current_state(task: &Task, view: &View<'_>) -> String {
    let state = format!("{} {}", task.status.state.word(), time::ago(task.status.at, view.now).to_lowercase());
    match waits_for(task) {
        Some(what) => format!("{state} ({what})"),
        None => state,
    }
}

/// What a task that is being prepared waits for, when that takes long.
pub(crate) fn waits_for(task: &Task) -> Option<&str> {
    let message = task.status.message.as_str();
    let is_told = task.status.state == TaskState::Preparing && !matches!(message, "" | "preparing");
    is_told.then_some(message)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use orch_model::{
        Annotations, Meta, NodeId, ServiceId, TaskId, Version,
        service::{ContainerSpec, TaskSpec},
        task::TaskStatus,
    };

    use super::*;
    use crate::render::listing::Shape;

    pub(crate) fn task(id: u128, slot: u64, created: u64, state: TaskState, error: Option<&str>) -> Arc<Task> {
        let container = ContainerSpec { image: "web:1@sha256:00".into(), ..ContainerSpec::default() };
        Arc::new(Task {
            id: TaskId::from_random(id),
            meta: Meta { created_at: Timestamp::from_unix_ms(created), ..Meta::default() },
            service: ServiceId::from_random(1),
            service_annotations: Arc::new(Annotations { name: "web".into(), ..Annotations::default() }),
            slot,
            node: Some(NodeId::from_random(7)),
            spec: Arc::new(TaskSpec { container, ..TaskSpec::default() }),
            spec_version: Version(1),
            status: TaskStatus {
                state,
                at: Timestamp::from_unix_ms(created),
                message: String::new(),
                error: error.map(Into::into),
                container: None,
            },
            desired_state: if state.is_terminal() { TaskState::Shutdown } else { TaskState::Running },
            start_at: None,
            networks: Vec::new(),
            host_ports: Vec::new(),
            running_since: None,
            generic: orch_model::node::GenericResources::default(),
            displaced: false,
        })
    }

    #[test]
    fn names_are_left_unresolved_when_asked() {
        let node = NodeId::from_random(7).to_string();
        let nodes = HashMap::from([(node.clone(), "n1".to_owned())]);
        let service = ServiceId::from_random(1).to_string();
        let services = HashMap::from([(service.clone(), "shop".to_owned())]);
        let (now, jobs) = (Timestamp::from_unix_ms(10_000), HashSet::new());
        let one = [task(3, 1, 1_000, TaskState::Running, None)];
        for (no_resolve, no_trunc, named, of, id_len) in
            [(false, false, "shop.1", "n1", 12), (true, true, "web.1", &node, 25)]
        {
            let view = View { now, no_trunc, no_resolve, nodes: &nodes, services: &services, jobs: &jobs };
            let row = rows(&one, &view).remove(0);
            assert_eq!((row["Name"].as_str(), row["Node"].as_str()), (Some(named), Some(of)));
            assert_eq!(row["ID"].as_str().map(str::len), Some(id_len));
        }
    }

    #[test]
    fn history_is_under_the_newest_task_of_its_slot() {
        let tasks = [
            task(3, 10, 1_000, TaskState::Running, None),
            task(1, 2, 1_000, TaskState::Failed, Some("task: non-zero exit (137) and more words")),
            task(2, 2, 5_000, TaskState::Running, None),
        ];
        let nodes = HashMap::from([(NodeId::from_random(7).to_string(), "n1".to_owned())]);
        let services = HashMap::new();
        let now = Timestamp::from_unix_ms(10_000);
        let view =
            View { now, no_trunc: false, no_resolve: false, nodes: &nodes, services: &services, jobs: &HashSet::new() };
        let text = TASKS.render(&Shape::default(), &rows(&tasks, &view)).unwrap();
        let expected = "\
ID             NAME        IMAGE     NODE      DESIRED STATE   CURRENT STATE           ERROR                              PORTS
000000000000   web.2       web:1     n1        Running         Running 5 seconds ago                                      
000000000000    \\_ web.2   web:1     n1        Shutdown        Failed 9 seconds ago    \"task: non-zero exit (137) and…\"   
000000000000   web.10      web:1     n1        Running         Running 9 seconds ago                                      
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_a_task_waits_for_is_shown_while_it_is_prepared() {
        let (nodes, jobs, services) = (HashMap::new(), HashSet::new(), HashMap::new());
        let now = Timestamp::from_unix_ms(63_000);
        let view = View { now, no_trunc: false, no_resolve: false, nodes: &nodes, services: &services, jobs: &jobs };
        for (state, message, shown) in [
            (TaskState::Preparing, "preparing", "Preparing about a minute ago"),
            (TaskState::Preparing, "looking at its mounts", "Preparing about a minute ago (looking at its mounts)"),
            (TaskState::Starting, "starting", "Starting about a minute ago"),
        ] {
            let mut task = Task::clone(&task(1, 1, 1_000, state, None));
            task.status.message = message.into();
            assert_eq!(rows(&[Arc::new(task)], &view)[0]["CurrentState"].as_str(), Some(shown));
        }
    }
}
