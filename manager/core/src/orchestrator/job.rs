//! Jobs: tasks that run to completion, a number of them or one on every node, and are then left alone.
//!
//! A job runs anew when what its tasks do changes, or by `update --force`: tasks of the service's current spec version are
//! this run, all others are the past. Nothing else is remembered, so completions are counted from the tasks that are
//! kept. In one place a job never runs twice at once: a new run waits until the old one's task there is gone.

use std::collections::BTreeMap;

use orch_model::{
    Timestamp,
    node::{Availability, NodeState},
    service::{Service, ServiceMode},
    task::{Task, TaskState},
};

use super::{
    create, desire, fits, new_task, replicated,
    slot::{Slot, SlotKey, is_job, slots_of},
    takes_tasks,
};
use crate::{
    decision::{Decision, Ids},
    state::State,
};

/// How far a place of a job is in the current run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing has run here yet.
    Open,
    /// A task runs, or waits for its turn.
    Busy,
    /// It has completed, or failed and gets no other attempt.
    Over,
    /// A task of an earlier run is not gone yet.
    Blocked,
}

/// Starts what has not run yet, as many at once as the job allows; stops what is left of an earlier run.
pub fn decide(state: &State, service: &Service, now: Timestamp, ids: Ids<'_>) -> Decision {
    let mut decision = Decision::default();
    if !is_job(service) {
        return decision;
    }
    if service.removing {
        decision.changes.extend(replicated::remove_all(state, service));
        return decision;
    }
    let slots = slots_of(state, service);
    let stale = slots.values().flat_map(|s| &s.tasks).filter(|t| is_unfinished(t) && !is_current(service, t));
    decision.changes.extend(stale.map(|t| desire(t, TaskState::Shutdown)));
    match service.spec.mode {
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            give_up(&slots, |key| matches!(key, SlotKey::Slot(number) if *number <= total_completions), &mut decision);
            let places = (1..=total_completions).map(SlotKey::Slot);
            start(state, service, &slots, places, max_concurrent, now, ids, &mut decision);
        }
        ServiceMode::GlobalJob => {
            give_up(&slots, |key| matches!(key, SlotKey::Node(id) if state.node(id).is_some()), &mut decision);
            let leaves = |id| state.node(id).is_none_or(|n| must_leave(state, service, n));
            let lost = slots.iter().filter(|(key, _)| matches!(key, SlotKey::Node(id) if leaves(id)));
            let unfinished = lost.flat_map(|(_, slot)| &slot.tasks).filter(|t| is_unfinished(t));
            decision.changes.extend(unfinished.map(|t| desire(t, TaskState::Shutdown)));
            let usable = state.nodes().filter(|n| takes_tasks(n) && fits(state, service, n));
            let places = usable.map(|n| SlotKey::Node(n.id.clone()));
            start(state, service, &slots, places, u64::MAX, now, ids, &mut decision);
        }
        // Not jobs.
        ServiceMode::Replicated { .. } | ServiceMode::Global => {}
    }
    decision
}

/// Whether a task belongs to the run that the service's spec asks for now.
#[must_use]
pub fn is_current(service: &Service, task: &Task) -> bool {
    task.spec_version == service.spec_version
}

/// Whether it should run and has not come to its end.
fn is_unfinished(task: &Task) -> bool {
    task.desired_state <= TaskState::Running
}

fn must_leave(state: &State, service: &Service, node: &orch_model::node::Node) -> bool {
    node.status.state == NodeState::Down || node.spec.availability == Availability::Drain || !fits(state, service, node)
}

/// Places that the job no longer has are forgotten, with their tasks.
fn give_up(slots: &BTreeMap<SlotKey, Slot>, stays: impl Fn(&SlotKey) -> bool, decision: &mut Decision) {
    let gone = slots.iter().filter(|(key, _)| !stays(key)).flat_map(|(_, slot)| &slot.tasks);
    decision.changes.extend(gone.map(|t| desire(t, TaskState::Remove)));
}

#[allow(clippy::too_many_arguments)] // A step of `decide`, shared by both kinds of job.
fn start(
    state: &State,
    service: &Service,
    slots: &BTreeMap<SlotKey, Slot>,
    places: impl Iterator<Item = SlotKey>,
    max_concurrent: u64,
    now: Timestamp,
    ids: Ids<'_>,
    decision: &mut Decision,
) {
    let progress = |key: &SlotKey| slots.get(key).map_or(Progress::Open, |slot| progress(state, service, slot));
    let (mut busy, mut open) = (0_u64, Vec::new());
    for key in places {
        match progress(&key) {
            Progress::Busy => busy += 1,
            Progress::Open => open.push(key),
            Progress::Over | Progress::Blocked => {}
        }
    }
    let room = usize::try_from(max_concurrent.saturating_sub(busy)).unwrap_or(usize::MAX);
    for key in open.into_iter().take(room) {
        decision.changes.push(create(new_task(state, service, &key, TaskState::Running, None, now, ids())));
    }
}

fn progress(state: &State, service: &Service, slot: &Slot) -> Progress {
    let current = || slot.tasks.iter().filter(|t| is_current(service, t));
    if current().any(|t| is_unfinished(t)) {
        return Progress::Busy;
    }
    if current().any(|t| t.status.state == TaskState::Complete) || slot.is_finished(service) {
        return Progress::Over;
    }
    // What a node that is down still has, nobody can wait for.
    let may_run = |t: &Task| {
        let reachable = |id| state.node(id).is_some_and(|n| n.status.state != NodeState::Down);
        t.status.state >= TaskState::Assigned && !t.status.state.is_terminal() && t.node.as_ref().is_some_and(reachable)
    };
    if slot.tasks.iter().any(|t| may_run(t)) { Progress::Blocked } else { Progress::Open }
}
