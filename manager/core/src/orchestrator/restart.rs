//! The restart supervisor: what follows when a task ends, or loses its node.
//!
//! The old task gets desired *shutdown*; if the policy says so, the place gets a new one with desired *ready* (so that its
//! image is there in time), which is promoted to *running* after its delay and after the old task stopped. The history of
//! a place is the tasks that are kept of it, so it must not be reaped below `max_attempts + 1`.

use std::sync::Arc;

use orch_model::{
    Duration, Timestamp,
    node::{Availability, NodeState},
    service::{RestartCondition, Service, UpdateOrder},
    task::{Task, TaskState},
};

use super::{
    create, desire, fits, job, may_stay, new_task,
    slot::{Slot, SlotKey, ended_by_itself, is_dirty, is_job, slots_of},
    takes_tasks, update,
};
use crate::{
    decision::{Decision, Ids, earliest},
    state::State,
};

/// A replacement waits this long at most for the task before it to stop.
pub const MAX_WAIT_FOR_STOP: Duration = Duration::from_secs(60);
/// Failures within this time count towards back-off (and make a node faulty for a service).
pub const FAILURE_WINDOW: Duration = Duration::from_secs(5 * 60);
/// From this many failures within [`FAILURE_WINDOW`] on, the delay doubles.
pub const FAILURES_BEFORE_BACKOFF: usize = 5;
/// The delay doubles up to this.
pub const MAX_BACKOFF: Duration = Duration::from_secs(5 * 60);
/// What a delay of zero doubles from.
const MIN_BACKOFF: Duration = Duration::from_secs(1);

/// What the restart policy says about a task that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Restart {
        delay: Duration,
    },
    /// The place keeps its ended task and gets no other.
    Leave,
}

/// Why a task that should run cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Ended,
    NodeLost,
    NodeDrained,
    /// The node no longer fits the service's constraints, or can no longer take part in the task's networks. Such a task is told to stop like any other and not marked
    /// *rejected* while it runs: a state past *running* would give its addresses back before they are free.
    Misplaced,
}

/// Replaces tasks that ended or lost their node, and promotes replacements whose time has come.
pub fn decide(state: &State, service: &Service, now: Timestamp, ids: Ids<'_>) -> Decision {
    let mut decision = Decision::default();
    if service.removing {
        return decision;
    }
    for (key, slot) in slots_of(state, service) {
        // Two tasks of one place may end at once; the place gets one successor.
        let mut has_successor = false;
        // A job's earlier runs are over, whatever became of them.
        let counts = |t: &Arc<Task>| !is_job(service) || job::is_current(service, t);
        for task in slot.tasks.iter().filter(|t| t.desired_state <= TaskState::Running && counts(t)) {
            match cause(state, service, task) {
                // It failed to get ready while it waited for its turn: the next one gets no earlier turn.
                Some(Cause::Ended) if task.start_at.is_some_and(|start| now < start) => {
                    decision.wake = earliest(decision.wake, task.start_at);
                }
                Some(cause) => {
                    replace(state, service, &key, &slot, task, cause, now, &mut has_successor, ids, &mut decision)
                }
                None if task.desired_state == TaskState::Ready => {
                    promote(state, service, &slot, task, now, &mut decision);
                }
                None => {}
            }
        }
    }
    decision
}

/// What the policy says about a task that ended by itself.
///
/// It looks at when the task ended and not at the present time, so that asking again later gives the same answer.
#[must_use]
pub fn verdict(service: &Service, slot: &Slot, task: &Task) -> Verdict {
    let policy = &service.spec.task.restart;
    let failed = task.status.state != TaskState::Complete;
    let asked_for = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => failed,
        // A job's task that has done its work is not done again.
        RestartCondition::Any => failed || !is_job(service),
    };
    // A changed spec clears the history: other versions do not count.
    let history = || slot.tasks.iter().filter(|t| t.spec_version == service.spec_version && ended_by_itself(t));
    let in_window = |t: &&Arc<Task>| policy.window.is_zero() || task.status.at.since(t.status.at) <= policy.window;
    // The first task of the place was no attempt at a restart.
    let attempts = history().filter(in_window).count() as u64;
    let exhausted = policy.max_attempts > 0 && attempts > policy.max_attempts;
    if !asked_for || exhausted {
        return Verdict::Leave;
    }
    let recent =
        |t: &&Arc<Task>| t.status.state != TaskState::Complete && task.status.at.since(t.status.at) < FAILURE_WINDOW;
    let delay = match task.spec_version == service.spec_version {
        true => backed_off(policy.delay, task, history().filter(recent).count()),
        false => policy.delay,
    };
    Verdict::Restart { delay }
}

/// The delay before the next attempt: as configured, doubled each time once a place fails again and again.
fn backed_off(configured: Duration, task: &Task, recent_failures: usize) -> Duration {
    let waited = task.start_at.map_or(Duration::ZERO, |start| start.since(task.meta.created_at));
    let ran = task.running_since.map_or(Duration::ZERO, |since| task.status.at.since(since));
    // Once the delays are long, five failures no longer fit in the window: go on from the last delay until a task
    // has stayed up.
    let backing_off = waited > configured && ran < FAILURE_WINDOW;
    if !backing_off && recent_failures < FAILURES_BEFORE_BACKOFF {
        return configured;
    }
    let doubled = waited.max(configured).max(MIN_BACKOFF).saturating_mul(2);
    doubled.min(MAX_BACKOFF).max(configured)
}

fn cause(state: &State, service: &Service, task: &Task) -> Option<Cause> {
    if task.status.state.is_terminal() {
        return Some(Cause::Ended);
    }
    // A task without a node has none to lose.
    let node_id = task.node.as_ref()?;
    match state.node(node_id) {
        None => Some(Cause::NodeLost),
        Some(node) if node.status.state == NodeState::Down => Some(Cause::NodeLost),
        Some(node) if node.spec.availability == Availability::Drain => Some(Cause::NodeDrained),
        Some(node) if !may_stay(state, service, task, node) => Some(Cause::Misplaced),
        Some(_) => None,
    }
}

#[allow(clippy::too_many_arguments)] // A step of `decide`, split off for its length: all of it is the step's input.
fn replace(
    state: &State,
    service: &Service,
    key: &SlotKey,
    slot: &Slot,
    task: &Task,
    cause: Cause,
    now: Timestamp,
    has_successor: &mut bool,
    ids: Ids<'_>,
    decision: &mut Decision,
) {
    let completed = is_job(service) && task.status.state == TaskState::Complete;
    decision.changes.push(desire(task, if completed { TaskState::Complete } else { TaskState::Shutdown }));
    let delay = match (cause, ended_by_itself(task)) {
        (Cause::Ended, true) => match verdict(service, slot, task) {
            Verdict::Leave => return,
            Verdict::Restart { delay } => delay,
        },
        // Stopped or orphaned without being told to: its place is simply empty.
        // The delay is for tasks that fail; one whose node is gone did not.
        (Cause::Ended, false) | (Cause::NodeDrained | Cause::NodeLost, _) => Duration::ZERO,
        (Cause::Misplaced, _) => service.spec.task.restart.delay,
    };
    // A global task only ever belongs to its node: without the node there is nothing to replace it with.
    if let SlotKey::Node(node) = key {
        let usable = state.node(node).is_some_and(|n| takes_tasks(n) && fits(state, service, n));
        if !usable {
            return;
        }
    }
    if *has_successor || slot.wanted().any(|other| other.id != task.id && !is_dirty(state, service, other)) {
        return;
    }
    *has_successor = true;
    // A replacement that lost its own node before it started still keeps its time.
    let start_at = task.start_at.filter(|_| task.running_since.is_none() && cause != Cause::Ended);
    let start_at = (now + delay).max(start_at.unwrap_or_default());
    decision.changes.push(create(new_task(state, service, key, TaskState::Ready, Some(start_at), now, ids())));
    decision.wake_at(start_at);
}

/// Lets a waiting replacement run once its time has come and its predecessors are gone.
fn promote(state: &State, service: &Service, slot: &Slot, task: &Task, now: Timestamp, decision: &mut Decision) {
    let start_at = task.start_at.unwrap_or(task.meta.created_at);
    if now < start_at {
        decision.wake_at(start_at);
        return;
    }
    // Stop-first: the update retires the old task once this one is ready.
    let not_yet_retired = |old: &&Arc<Task>| old.is_wanted() && old.id != task.id && is_dirty(state, service, old);
    if update::order_in(service, slot) == UpdateOrder::StopFirst && slot.tasks.iter().any(|t| not_yet_retired(&t)) {
        return;
    }
    let in_the_way = |old: &&Arc<Task>| {
        let node = old.node.as_ref().and_then(|id| state.node(id));
        let reachable = node.is_some_and(|n| n.status.state != NodeState::Down);
        old.id != task.id
            && old.desired_state > TaskState::Running
            && !old.status.state.is_terminal()
            && old.status.state >= TaskState::Assigned
            && reachable
    };
    // An old task was last written when it was told to stop.
    let told_at = slot.tasks.iter().filter(in_the_way).map(|old| old.meta.updated_at).max();
    if let Some(give_up_at) = told_at.map(|at| at + MAX_WAIT_FOR_STOP).filter(|at| now < *at) {
        decision.wake_at(give_up_at);
        return;
    }
    decision.changes.push(desire(task, TaskState::Running));
}
