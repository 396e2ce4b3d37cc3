//! Everything that the managers decide, in order, each on what those before it decided.
//!
//! The stages run on a tentative copy of the state until none has anything to add; what is proposed is the difference
//! between the state and that copy, so a task that is created, given an address and assigned is one change. Deciding
//! again on the outcome proposes nothing: a fixed point.

mod planner;
mod scope;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use orch_model::{
    Kind, NodeId, Object, ObjectId, ServiceId, Timestamp, Version,
    change::{Change, Transaction},
    service::Service,
    task::{Task, TaskState},
};

pub use planner::Planner;
use scope::Scope;

use crate::{
    allocator,
    decision::{Decision, Ids, earliest},
    orchestrator::{global, job, orphan, reaper, replicated, restart, sweeper, update},
    scheduler,
    state::{Event, State, UNCOMMITTED, limits, only_gives_back},
};

/// Changes in one transaction, at most: a raft entry stays small.
pub const MAX_CHANGES: usize = 200;
/// What users gave of the changes in one transaction, at most, unless it is a single change: each task carries its whole
/// spec, and what is larger than raft takes would never be committed.
pub const MAX_TEXT_BYTES: u64 = 4 * 1024 * 1024;
/// Rounds until the stages must agree. Each task passes all stages in one; chains (a network, then its services, then
/// their tasks) take a few.
const MAX_ROUNDS: usize = 12;
/// Versions that tentative changes get: above any committed one.
const TENTATIVE_INDEX: u64 = u64::MAX;

/// What should be committed now, and when to decide again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// To be committed in this order. Each is all-or-nothing; if one is refused, the state has moved on: decide again.
    pub transactions: Vec<Transaction>,
    pub wake: Option<Timestamp>,
    /// Changes that a stage proposed and the state refused: a bug, for the log. The others go ahead.
    pub refused: Vec<String>,
}

/// Decides what follows from a state at a time, looking at everything. A [`Planner`] decides the same and looks only at
/// what changed.
pub fn decide(state: &State, now: Timestamp, ids: Ids<'_>) -> Plan {
    let outcome = run(state, now, ids, Scope::everything());
    let wake = outcome.wakes.into_values().flatten().min();
    Plan { wake: earliest(outcome.plan.wake, wake), ..outcome.plan }
}

/// What came of deciding within a scope.
struct Outcome {
    /// Its wake-up is that of the stages without a service.
    plan: Plan,
    /// What was looked at in the end.
    scope: Scope,
    /// When each service that was looked at wants to be looked at again.
    wakes: BTreeMap<ServiceId, Option<Timestamp>>,
    /// Not all stages were asked.
    is_cut_short: bool,
}

fn run(state: &State, now: Timestamp, ids: Ids<'_>, scope: Scope) -> Outcome {
    let mut draft =
        Draft { state: state.clone(), now, refused: Vec::new(), touched: BTreeSet::new(), new_version: false, scope };
    let (mut wake, mut wakes) = (None, BTreeMap::new());
    for _ in 0..MAX_ROUNDS {
        let mut changed = false;
        (wake, wakes) = (None, BTreeMap::new());
        for stage in STAGES {
            match stage {
                Stage::Whole(stage) => {
                    let decision = stage(&draft.state, now);
                    wake = earliest(wake, decision.wake);
                    changed |= draft.take(&decision.changes);
                }
                Stage::Each(stage) => {
                    for id in draft.scope.services(&draft.state) {
                        let service = draft.state.service(&id).cloned();
                        let decision = service.map(|s| stage(&draft.state, &s, now, &mut *ids)).unwrap_or_default();
                        let known = wakes.entry(id).or_default();
                        *known = earliest(*known, decision.wake);
                        changed |= draft.take(&decision.changes);
                    }
                }
            }
            if draft.new_version {
                // Tasks carry the version at which their spec was committed: that must happen first.
                return draft.into_outcome(state, Some(now), wakes, true);
            }
        }
        if !changed {
            break;
        }
    }
    draft.into_outcome(state, wake, wakes, false)
}

enum Stage {
    /// Looks at what is few, or at what waits.
    Whole(fn(&State, Timestamp) -> Decision),
    /// Looks at one service and its tasks.
    Each(fn(&State, &Arc<Service>, Timestamp, Ids<'_>) -> Decision),
}

/// Stops and removals first, then what is new, so that freed room can be used.
const STAGES: [Stage; 13] = [
    Stage::Whole(orphan::decide),
    Stage::Each(|state, service, now, ids| restart::decide(state, service, now, ids)),
    Stage::Each(|state, service, now, ids| update::decide(state, service, now, ids)),
    Stage::Each(|state, service, now, ids| replicated::decide(state, service, now, ids)),
    Stage::Each(|state, service, now, ids| global::decide(state, service, now, ids)),
    Stage::Each(|state, service, now, ids| job::decide(state, service, now, ids)),
    Stage::Each(|state, service, _, _| reaper::decide(state, service)),
    Stage::Whole(|state, _| sweeper::decide(state)),
    Stage::Whole(|state, _| allocator::networks(state)),
    Stage::Whole(|state, _| allocator::nodes(state)),
    Stage::Each(|state, service, _, _| allocator::service(state, service)),
    Stage::Whole(allocator::tasks),
    Stage::Whole(scheduler::decide),
];

/// The tentative state.
struct Draft {
    state: State,
    now: Timestamp,
    refused: Vec<String>,
    /// What was changed: comparing whole states would cost as much as they are large.
    touched: BTreeSet<ObjectId>,
    /// A service got a new spec version.
    new_version: bool,
    scope: Scope,
}

impl Draft {
    /// Applies a stage's changes; says whether there were any.
    fn take(&mut self, changes: &[Change]) -> bool {
        let mut changed = false;
        for change in changes {
            let tx = Transaction { at: self.now, changes: vec![change.clone()] };
            match self.state.apply(TENTATIVE_INDEX, &tx) {
                Ok(events) => {
                    changed |= !events.is_empty();
                    self.touched.extend(events.iter().map(Event::id));
                    events.iter().for_each(|event| self.scope.extend(&self.state, event));
                    self.new_version |= events.iter().any(is_new_version);
                }
                Err(error) => self.refused.push(error.to_string()),
            }
        }
        changed
    }

    fn into_outcome(
        self,
        before: &State,
        wake: Option<Timestamp>,
        wakes: BTreeMap<ServiceId, Option<Timestamp>>,
        is_cut_short: bool,
    ) -> Outcome {
        let at = self.now;
        let batches = batch(difference(before, &self.state, &self.touched));
        let transactions = batches.into_iter().map(|changes| Transaction { at, changes }).collect();
        let plan = Plan { transactions, wake, refused: self.refused };
        Outcome { plan, scope: self.scope, wakes, is_cut_short }
    }
}

fn is_new_version(event: &Event) -> bool {
    match event {
        Event::Updated { old: Object::Service(old), new: Object::Service(new) } => old.spec_version != new.spec_version,
        _ => false,
    }
}

/// Which changes belong together, and in which order they go. The stages tried them in another one: what frees an address,
/// a port or a network goes before what takes it, wherever the two are.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone)]
enum Rank {
    RemoveTask,
    /// Tasks that are over by this change: what they had is free.
    End,
    Remove,
    /// Gives addresses or ports back and takes none.
    GiveBack,
    Update(Kind),
    Slot(ServiceId, u64, Option<NodeId>),
}

/// Within a slot: its old task is stopped before another may run, and before a new one is made.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Stop,
    Update,
    Create,
}

fn difference(before: &State, after: &State, touched: &BTreeSet<ObjectId>) -> Vec<(Rank, Change)> {
    let mut changes: Vec<(Rank, Turn, Change)> = Vec::new();
    for id in touched {
        match (before.get(id), after.get(id)) {
            (Some(old), None) => {
                let rank = if id.kind() == Kind::Task { Rank::RemoveTask } else { Rank::Remove };
                changes.push((rank, Turn::Stop, Change::Remove { id: id.clone(), version: old.meta().version }));
            }
            (Some(old), Some(new)) => {
                let (rank, turn) = (update_rank(&old, &new), turn(&new));
                changes.push((rank, turn, Change::Update(with_version(new, old.meta().version))));
            }
            (None, Some(new)) => {
                changes.push((rank(&new), Turn::Create, Change::Create(with_version(new, UNCOMMITTED))));
            }
            // Made and dropped within the same plan.
            (None, None) => {}
        }
    }
    changes.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    changes.into_iter().map(|(rank, _, change)| (rank, change)).collect()
}

fn update_rank(old: &Object, new: &Object) -> Rank {
    match (old, new) {
        (Object::Task(old), Object::Task(new)) if new.status.state.is_terminal() && !old.status.state.is_terminal() => {
            Rank::End
        }
        (_, Object::Task(_)) => rank(new),
        _ if only_gives_back(old, new) => Rank::GiveBack,
        _ => rank(new),
    }
}

fn turn(new: &Object) -> Turn {
    match new {
        Object::Task(task) if task.desired_state > TaskState::Running => Turn::Stop,
        _ => Turn::Update,
    }
}

fn rank(object: &Object) -> Rank {
    match object {
        Object::Task(task) => slot_rank(task),
        other => Rank::Update(other.kind()),
    }
}

fn slot_rank(task: &Task) -> Rank {
    let node = if task.slot == 0 { task.node.clone() } else { None };
    Rank::Slot(task.service.clone(), task.slot, node)
}

fn with_version(object: Object, version: Version) -> Object {
    macro_rules! with {
        ($($kind:ident),+) => {
            match object {
                $(Object::$kind(mut o) => {
                    Arc::make_mut(&mut o).meta.version = version;
                    Object::$kind(o)
                })+
            }
        };
    }
    with!(Cluster, Node, Service, Task, Network, Secret, Config, Image)
}

/// The node of a group that only makes tasks.
fn new_on(group: &[Change]) -> Option<Option<&NodeId>> {
    match group {
        [Change::Create(Object::Task(task))] => Some(task.node.as_ref()),
        _ => None,
    }
}

/// Cuts into transactions; the changes of one slot stay in one. Tasks that are only made, and stop none, are last and go
/// node by node: a node is told of many at once, not of one with each transaction.
fn batch(changes: Vec<(Rank, Change)>) -> Vec<Vec<Change>> {
    let mut batches: Vec<Vec<Change>> = Vec::new();
    let mut groups: Vec<(Rank, Vec<Change>)> = Vec::new();
    for (rank, change) in changes {
        match groups.last_mut() {
            Some((last, group)) if *last == rank && matches!(rank, Rank::Slot(..)) => group.push(change),
            _ => groups.push((rank, vec![change])),
        }
    }
    groups.sort_by(|(_, a), (_, b)| new_on(a).cmp(&new_on(b)));
    let mut room = Room::default();
    for (_, group) in groups {
        match batches.last_mut() {
            Some(batch) if room.take(&group) => batch.extend(group),
            _ => {
                room = Room::default();
                room.take(&group);
                batches.push(group);
            }
        }
    }
    batches
}

/// What a transaction still takes.
pub(crate) struct Room {
    changes: usize,
    text_bytes: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self { changes: MAX_CHANGES, text_bytes: MAX_TEXT_BYTES }
    }
}

impl Room {
    /// Takes what belongs together if there is room for all of it; the first is taken however large it is.
    pub(crate) fn take(&mut self, group: &[Change]) -> bool {
        let bytes = group.iter().map(limits::text_bytes).sum();
        let is_first = self.changes == MAX_CHANGES;
        if !is_first && (group.len() > self.changes || bytes > self.text_bytes) {
            return false;
        }
        self.changes = self.changes.saturating_sub(group.len());
        self.text_bytes = self.text_bytes.saturating_sub(bytes);
        true
    }
}

/// The parts of a transaction that may be committed one by one: the changes of one slot stay together.
#[must_use]
pub fn parts(changes: &[Change]) -> Vec<Vec<Change>> {
    let slot = |change: &Change| match change {
        Change::Create(Object::Task(task)) | Change::Update(Object::Task(task)) => Some(slot_rank(task)),
        Change::Create(_) | Change::Update(_) | Change::Remove { .. } | Change::TaskStatus { .. } => None,
    };
    changes.chunk_by(|a, b| slot(a).is_some_and(|a| slot(b) == Some(a))).map(<[Change]>::to_vec).collect()
}
