//! Rebalancing: which tasks of a replicated service would have to move so that it is spread as if it were placed now.
//!
//! Only ever on request: moving a task restarts it. As few as possible are chosen, and none that would land where it is.

use std::{collections::BTreeMap, sync::Arc};

use orch_model::{
    NodeId, Object, TaskId, Timestamp,
    change::{Change, Transaction},
    node::Node,
    service::Service,
    task::{Task, TaskState},
};

use crate::{
    orchestrator::{fits, new_task, slot::SlotKey, takes_tasks},
    scheduler::{self, spread},
    state::{State, UNCOMMITTED},
};

/// The tasks that should move, in the order of their slots.
#[must_use]
pub fn surplus(state: &State, service: &Service, now: Timestamp) -> Vec<Arc<Task>> {
    let nodes: Vec<&Arc<Node>> = state.nodes().filter(|n| takes_tasks(n) && fits(state, service, n)).collect();
    let mut on: BTreeMap<&NodeId, Vec<&Arc<Task>>> = nodes.iter().map(|n| (&n.id, Vec::new())).collect();
    for task in state.tasks_of(&service.id).filter(|t| t.is_wanted()) {
        if let Some(tasks) = task.node.as_ref().and_then(|id| on.get_mut(id)) {
            tasks.push(task);
        }
    }
    let have: BTreeMap<&NodeId, u64> = on.iter().map(|(id, tasks)| (*id, tasks.len() as u64)).collect();
    let total = have.values().sum();
    let mut goal = BTreeMap::new();
    divide(&nodes, &service.spec.task.placement.spread, total, &have, &mut goal);
    let mut chosen = Vec::new();
    for (node, tasks) in &mut on {
        let keeps = usize::try_from(goal.get(*node).copied().unwrap_or(0)).unwrap_or(usize::MAX);
        // What runs longest stays.
        tasks.sort_by_key(|t| (t.status.state != TaskState::Running, t.meta.created_at, t.id.clone()));
        chosen.extend(tasks.iter().skip(keeps).map(|t| Arc::clone(t)));
    }
    let mut moved = without_returning(state, service, chosen, now);
    moved.sort_by_key(|t| t.slot);
    moved
}

/// Gives each node its share: even between the branches of each level. Who has most already gets what does not divide.
fn divide<'a>(
    nodes: &[&'a Arc<Node>],
    descriptors: &[String],
    total: u64,
    have: &BTreeMap<&NodeId, u64>,
    goal: &mut BTreeMap<&'a NodeId, u64>,
) {
    let mut branches: BTreeMap<&str, Vec<&'a Arc<Node>>> = BTreeMap::new();
    for node in nodes {
        let value = descriptors.first().map_or(node.id.as_str(), |descriptor| spread::value(node, descriptor));
        branches.entry(value).or_default().push(node);
    }
    let of = |nodes: &[&Arc<Node>]| nodes.iter().filter_map(|n| have.get(&n.id)).sum::<u64>();
    let mut branches: Vec<_> = branches.into_values().collect();
    branches.sort_by_key(|nodes| std::cmp::Reverse(of(nodes)));
    let count = branches.len() as u64;
    for (rank, nodes) in (0..).zip(branches) {
        let share = total / count + u64::from(rank < total % count);
        match (descriptors.split_first(), nodes.as_slice()) {
            (Some((_, rest)), _) => divide(&nodes, rest, share, have, goal),
            (None, [node]) => drop(goal.insert(&node.id, share)),
            // Without a descriptor the branches are the nodes themselves.
            (None, _) => {}
        }
    }
}

/// Leaves out tasks that would come back to the node that they are on: elsewhere is no room.
fn without_returning(state: &State, service: &Service, chosen: Vec<Arc<Task>>, now: Timestamp) -> Vec<Arc<Task>> {
    let mut landing = landings(state, service, &chosen, now);
    let mut returns = |task: &Arc<Task>| {
        let here = task.node.as_ref().and_then(|node| landing.get_mut(node)).filter(|count| **count > 0);
        here.map(|count| *count -= 1).is_some()
    };
    let (_, moved): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|task| returns(task));
    // Those that find no place at all stay too.
    let places: u64 = landing.values().sum();
    moved.into_iter().take(usize::try_from(places).unwrap_or(usize::MAX)).collect()
}

/// Where the scheduler would put their successors, were they gone.
fn landings(state: &State, service: &Service, chosen: &[Arc<Task>], now: Timestamp) -> BTreeMap<NodeId, u64> {
    let mut tentative = state.clone();
    let mut changes = Vec::new();
    for (number, task) in (1_u128..).zip(chosen) {
        let mut gone = Task::clone(task);
        gone.desired_state = TaskState::Shutdown;
        gone.status.state = TaskState::Shutdown;
        changes.push(Change::Update(Object::Task(Arc::new(gone))));
        let key = SlotKey::Slot(task.slot);
        let mut next = new_task(state, service, &key, TaskState::Running, None, now, number);
        next.status.state = TaskState::Pending;
        next.meta.version = UNCOMMITTED;
        changes.push(Change::Create(Object::Task(Arc::new(next))));
    }
    let mut landing = BTreeMap::new();
    // What the state refuses cannot be foreseen: then nothing is known to land anywhere.
    if tentative.apply(u64::MAX, &Transaction { at: now, changes }).is_err() {
        return landing;
    }
    let own: Vec<TaskId> = (1_u128..).take(chosen.len()).map(TaskId::from_random).collect();
    for change in scheduler::decide(&tentative, now).changes {
        if let Change::Update(Object::Task(task)) = change
            && own.contains(&task.id)
            && let Some(node) = &task.node
        {
            *landing.entry(node.clone()).or_default() += 1;
        }
    }
    landing
}
