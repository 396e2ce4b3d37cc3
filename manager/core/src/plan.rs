//! Everything that the managers decide, in order, each on what those before it decided.
//!
//! The stages run on a tentative copy of the state until none has anything to add; what is proposed is the difference
//! between the state and that copy, so a task that is created, given an address and assigned is one change. Deciding
//! again on the outcome proposes nothing: a fixed point.

use std::{collections::BTreeSet, sync::Arc};

use orch_model::{
    Kind, NodeId, Object, ObjectId, ServiceId, Timestamp, Version,
    change::{Change, Transaction},
    task::Task,
};

use crate::{
    allocator,
    decision::{Decision, Ids, earliest},
    orchestrator::{global, job, orphan, reaper, replicated, restart, update},
    scheduler,
    state::{Event, State, UNCOMMITTED},
};

/// Changes in one transaction, at most: a raft entry stays small.
pub const MAX_CHANGES: usize = 200;
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

/// Decides what follows from a state at a time.
pub fn decide(state: &State, now: Timestamp, ids: Ids<'_>) -> Plan {
    let mut draft =
        Draft { state: state.clone(), now, refused: Vec::new(), touched: BTreeSet::new(), new_version: false };
    let mut wake = None;
    for _ in 0..MAX_ROUNDS {
        let mut changed = false;
        wake = None;
        for stage in STAGES {
            let decision = stage(&draft.state, now, &mut *ids);
            wake = earliest(wake, decision.wake);
            changed |= draft.take(&decision.changes);
            if draft.new_version {
                // Tasks carry the version at which their spec was committed: that must happen first.
                wake = Some(now);
                return draft.into_plan(state, wake);
            }
        }
        if !changed {
            break;
        }
    }
    draft.into_plan(state, wake)
}

type Stage = fn(&State, Timestamp, Ids<'_>) -> Decision;

/// Stops and removals first, then what is new, so that freed room can be used.
const STAGES: [Stage; 12] = [
    |state, now, _| orphan::decide(state, now),
    restart::decide,
    update::decide,
    replicated::decide,
    global::decide,
    job::decide,
    |state, _, _| reaper::decide(state),
    |state, _, _| allocator::networks(state),
    |state, _, _| allocator::nodes(state),
    |state, _, _| allocator::services(state),
    |state, now, _| allocator::tasks(state, now),
    |state, now, _| scheduler::decide(state, now),
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
                    self.new_version |= events.iter().any(is_new_version);
                }
                Err(error) => self.refused.push(error.to_string()),
            }
        }
        changed
    }

    fn into_plan(self, before: &State, wake: Option<Timestamp>) -> Plan {
        let at = self.now;
        let batches = batch(difference(before, &self.state, &self.touched));
        let transactions = batches.into_iter().map(|changes| Transaction { at, changes }).collect();
        Plan { transactions, wake, refused: self.refused }
    }
}

fn is_new_version(event: &Event) -> bool {
    match event {
        Event::Updated { old: Object::Service(old), new: Object::Service(new) } => old.spec_version != new.spec_version,
        _ => false,
    }
}

/// Which changes belong together, and in which order they go: removals free what creations take, so they are first;
/// within a slot the old task is stopped before the new one is made.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone)]
enum Rank {
    RemoveTask,
    Remove,
    Update(Kind),
    Slot(ServiceId, u64, Option<NodeId>),
}

fn difference(before: &State, after: &State, touched: &BTreeSet<ObjectId>) -> Vec<(Rank, Change)> {
    let mut changes: Vec<(Rank, bool, Change)> = Vec::new();
    for id in touched {
        match (before.get(id), after.get(id)) {
            (Some(old), None) => {
                let rank = if id.kind() == Kind::Task { Rank::RemoveTask } else { Rank::Remove };
                changes.push((rank, false, Change::Remove { id: id.clone(), version: old.meta().version }));
            }
            (Some(old), Some(new)) => {
                changes.push((rank(&new), false, Change::Update(with_version(new, old.meta().version))));
            }
            (None, Some(new)) => changes.push((rank(&new), true, Change::Create(with_version(new, UNCOMMITTED)))),
            // Made and dropped within the same plan.
            (None, None) => {}
        }
    }
    changes.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    changes.into_iter().map(|(rank, _, change)| (rank, change)).collect()
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

/// Cuts into transactions; the changes of one slot stay in one.
fn batch(changes: Vec<(Rank, Change)>) -> Vec<Vec<Change>> {
    let mut batches: Vec<Vec<Change>> = Vec::new();
    let mut groups: Vec<(Rank, Vec<Change>)> = Vec::new();
    for (rank, change) in changes {
        match groups.last_mut() {
            Some((last, group)) if *last == rank && matches!(rank, Rank::Slot(..)) => group.push(change),
            _ => groups.push((rank, vec![change])),
        }
    }
    for (_, group) in groups {
        match batches.last_mut() {
            Some(batch) if batch.len() + group.len() <= MAX_CHANGES => batch.extend(group),
            _ => batches.push(group),
        }
    }
    batches
}
