//! The scheduler: gives each pending task a node, or says why there is none.
//!
//! It knows what nodes offer and what tasks need; it must not know networks, agents or the restart policy. Placement is
//! taken from the service as it is now, so that a changed constraint also reaches tasks that already wait.

pub mod filter;
pub mod pipeline;
pub mod spread;

use std::{collections::BTreeMap, sync::Arc};

use orch_model::{
    NodeId, Object, Timestamp,
    change::Change,
    service::DYNAMIC_PORTS,
    task::{Task, TaskState},
};

use crate::{allocator::PENDING_MESSAGE, decision::Decision, state::State};
use filter::{Needs, NodeInfo};

/// Assigns pending tasks, oldest first.
#[must_use]
pub fn decide(state: &State, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let mut waiting: Vec<_> = state
        .tasks()
        .filter(|t| t.status.state == TaskState::Pending && t.desired_state <= TaskState::Running)
        .collect();
    if waiting.is_empty() {
        return decision;
    }
    waiting.sort_by_key(|t| (t.meta.created_at, t.service.clone(), t.slot, t.id.clone()));
    let mut nodes: BTreeMap<NodeId, NodeInfo> =
        state.nodes().map(|n| (n.id.clone(), NodeInfo::new(state, n, now))).collect();
    for task in waiting {
        let Some(service) = state.service(&task.service) else { continue };
        let needs = Needs::of(service, task);
        let next = match pipeline::choose(&nodes, task, &needs) {
            Ok(node) => assign(task, &node, &mut nodes, now),
            Err(why) => {
                let mut next = Task::clone(task);
                PENDING_MESSAGE.clone_into(&mut next.status.message);
                next.status.error = Some(why);
                next
            }
        };
        // The same explanation is not written again and again.
        if next != **task {
            decision.changes.push(Change::Update(Object::Task(Arc::new(next))));
        }
    }
    decision
}

fn assign(task: &Task, node: &NodeId, nodes: &mut BTreeMap<NodeId, NodeInfo>, now: Timestamp) -> Task {
    let mut next = task.clone();
    next.node = Some(node.clone());
    next.status.state = TaskState::Assigned;
    next.status.at = now;
    "scheduler assigned task to node".clone_into(&mut next.status.message);
    next.status.error = None;
    if let Some(info) = nodes.get_mut(node) {
        for port in next.host_ports.iter_mut().filter(|p| p.published_port == 0) {
            let free = |number: &u16| !info.host_ports.contains(&(port.protocol, *number));
            port.published_port = DYNAMIC_PORTS.into_iter().find(free).unwrap_or(0);
            info.host_ports.insert((port.protocol, port.published_port));
        }
        info.add(&next);
    }
    next
}
