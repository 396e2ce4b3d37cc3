//! The scheduler: gives each pending task a node, or says why there is none.
//!
//! It knows what nodes offer and what tasks need; it must not know networks, agents or the restart policy. Placement is
//! taken from the service as it is now, so that a changed constraint also reaches tasks that already wait.
//!
//! Tasks that need the same are placed together, and nodes that pass the same constraints are looked up together, so a
//! task costs about the same however many tasks and nodes there are.

mod board;
mod class;
mod dependency;
pub mod filter;
mod predecessor;
mod run;
pub mod spread;

use std::{collections::BTreeSet, sync::Arc};

use orch_model::{
    Object, ServiceId, Timestamp, Version,
    change::Change,
    service::{DYNAMIC_PORTS, PortConfig},
    task::{Task, TaskState},
};

use crate::{allocator::PENDING_MESSAGE, decision::Decision, state::State, volume};
use board::Board;
use filter::{Needs, NodeInfo};
use run::Run;

/// Assigns pending tasks, oldest first; those that need the same as an older one go with it.
#[must_use]
pub fn decide(state: &State, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let groups = groups(state);
    if groups.is_empty() {
        return decision;
    }
    let mut board = Board::new(state, now);
    for tasks in groups {
        let Some(service) = tasks.first().and_then(|task| state.service(&task.service)) else { continue };
        let waits_for = dependency::waits_for(state, service).or_else(|| predecessor::waits_for(state, service));
        if let Some(why) = waits_for {
            for task in tasks {
                let next = waiting(task, why.clone());
                if next != **task {
                    decision.changes.push(Change::Update(Object::Task(Arc::new(next))));
                }
            }
            continue;
        }
        let mut run = Run::new(&mut board, Needs::of(state, service, tasks[0]), volume::pins(state, service));
        for task in tasks {
            let next = match run.choose(task) {
                Ok(node) => run.take(node, |info| assigned(state, task, info, now)),
                Err(why) => waiting(task, why),
            };
            // The same explanation is not written again and again.
            if next != **task {
                decision.changes.push(Change::Update(Object::Task(Arc::new(next))));
            }
        }
        run.finish();
    }
    decision
}

/// What makes tasks alike for the scheduler.
type Likeness<'a> = (&'a ServiceId, Version, &'a [PortConfig]);

fn likeness(task: &Task) -> Likeness<'_> {
    (&task.service, task.spec_version, &task.host_ports)
}

/// Pending tasks, alike ones together, in the order of each group's oldest.
fn groups(state: &State) -> Vec<Vec<&Arc<Task>>> {
    let mut waiting: Vec<&Arc<Task>> =
        state.tasks_without_place().filter(|t| t.status.state == TaskState::Pending).collect();
    waiting.sort_by(|a, b| {
        likeness(a)
            .cmp(&likeness(b))
            .then_with(|| (a.meta.created_at, a.slot, &a.id).cmp(&(b.meta.created_at, b.slot, &b.id)))
    });
    let mut groups: Vec<Vec<&Arc<Task>>> = Vec::new();
    for task in waiting {
        match groups.last_mut() {
            Some(group) if likeness(group[0]) == likeness(task) => group.push(task),
            _ => groups.push(vec![task]),
        }
    }
    groups.sort_by(|a, b| (a[0].meta.created_at, &a[0].service).cmp(&(b[0].meta.created_at, &b[0].service)));
    groups
}

fn waiting(task: &Task, why: String) -> Task {
    let mut next = task.clone();
    PENDING_MESSAGE.clone_into(&mut next.status.message);
    next.status.error = Some(why);
    next
}

fn assigned(state: &State, task: &Task, info: &NodeInfo, now: Timestamp) -> Task {
    let mut next = task.clone();
    next.node = Some(info.node.id.clone());
    next.status.state = TaskState::Assigned;
    next.status.at = now;
    "scheduler assigned task to node".clone_into(&mut next.status.message);
    next.status.error = None;
    next.generic = info.pick(&task.spec.generic);
    give_host_ports(state, &mut next, info);
    next
}

/// Fills in the automatic ones.
fn give_host_ports(state: &State, task: &mut Task, info: &NodeInfo) {
    if task.host_ports.iter().all(|port| port.published_port != 0) {
        return;
    }
    // A program of the node may have it, of which managers know nothing: the same number would fail for ever.
    let has_failed =
        |t: &&Arc<Task>| t.service == task.service && matches!(t.status.state, TaskState::Failed | TaskState::Rejected);
    let failed = state.tasks_on(&info.node.id).filter(has_failed).flat_map(|t| &t.host_ports);
    let failed: BTreeSet<_> = failed.map(|port| (port.protocol, port.published_port)).collect();
    let mut taken = Vec::new();
    for port in task.host_ports.iter_mut().filter(|p| p.published_port == 0) {
        let is_free = |number: &u16| {
            let wanted = (port.protocol, *number);
            let is_everywhere = state.port_holder(port.protocol, *number).is_some();
            !is_everywhere && !info.host_ports.contains(&wanted) && !taken.contains(&wanted)
        };
        // From the other end than the ports of all nodes, which are given out at the same time.
        let mut free = DYNAMIC_PORTS.rev().filter(is_free);
        let untried = free.clone().find(|number| !failed.contains(&(port.protocol, *number)));
        port.published_port = untried.or_else(|| free.next()).unwrap_or(0);
        taken.push((port.protocol, port.published_port));
    }
}
