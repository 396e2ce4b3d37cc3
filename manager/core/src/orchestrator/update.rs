//! Rolling updates: tasks made from an older spec are replaced, a few at a time, watched for failures.
//!
//! Progress is read from the tasks: what this update created has the service's current spec version and is not older
//! than the update. `Service.update_status` only says that one is under way, since when, and how it ended. One that was
//! paused and begins anew has the tasks that it made before, except those that had ended.

use std::{collections::BTreeMap, sync::Arc};

use orch_model::{
    Duration, Object, Timestamp,
    change::Change,
    service::{FailureAction, RestartCondition, Service, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus},
    task::{Task, TaskState},
};

use super::{
    create, desire, new_task,
    slot::{Slot, SlotKey, differs, ended_by_itself, is_dirty, is_global, is_job, is_replicated, slots_of},
    takes_tasks,
};
use crate::{
    decision::{Decision, Ids},
    state::{State, check::may_put},
};

/// Stands between what an update does and what it waits for.
const WAITS: &str = "; task ";

/// A service's label that says how long a new task may take until it runs: `90s`, `30m`, `2h`, or `0` for as long as it
/// takes. The time that its predecessor has to stop, and that its health checks have to begin, is not counted.
pub const STEP_LIMIT_LABEL: &str = "orch.update.step-limit";
const DEFAULT_STEP_LIMIT: Duration = Duration::from_secs(10 * 60);
/// More is a mistake.
const MAX_STEP_LIMIT: Duration = Duration::from_secs(366 * 24 * 3600);

/// What the label's value means; `None` where that is nothing.
#[must_use]
pub fn step_limit(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 3] = [("s", 1), ("m", 60), ("h", 3600)];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (number, seconds) = UNITS.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))?;
    let is_number = number.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| is_number)?;
    number.checked_mul(*seconds).map(Duration::from_secs).filter(|limit| *limit <= MAX_STEP_LIMIT)
}

/// Starts, continues, pauses, rolls back and completes updates.
pub fn decide(state: &State, service: &Service, now: Timestamp, ids: Ids<'_>) -> Decision {
    let mut decision = Decision::default();
    if service.removing || !(is_replicated(service) || is_global(service)) {
        return decision;
    }
    let slots = slots_of(state, service);
    retire_predecessors(state, service, &slots, &mut decision);
    let dirty = dirty_slots(state, service, &slots);
    let status = service.update_status.as_ref();
    match status.map(|s| (s, s.state)) {
        None | Some((_, UpdateState::Completed | UpdateState::RollbackCompleted)) => {
            if !dirty.is_empty() {
                decision.changes.push(with_status(service, begun(UpdateState::Updating, now)));
            }
        }
        Some((_, UpdateState::Paused | UpdateState::RollbackPaused)) => {}
        Some((status, UpdateState::Updating | UpdateState::RollbackStarted)) => {
            let update = Update { state, service, status, slots: &slots, dirty: &dirty };
            update.proceed(now, ids, &mut decision);
            if decision.changes.is_empty() {
                decision.changes.extend(update.explained());
            }
        }
    }
    decision
}

/// A status for an update or rollback that starts now.
#[must_use]
pub fn begun(state: UpdateState, now: Timestamp) -> UpdateStatus {
    let message = match state {
        UpdateState::RollbackStarted => "rollback in progress",
        _ => "update in progress",
    };
    UpdateStatus { state, started_at: now, first_started_at: None, completed_at: None, message: message.to_owned() }
}

/// The status of one that was paused and begins anew: it goes on with what it has made, and what failed is forgiven.
#[must_use]
pub fn begun_anew(paused: &UpdateStatus, now: Timestamp) -> Option<UpdateStatus> {
    let state = match paused.state {
        UpdateState::Paused => UpdateState::Updating,
        UpdateState::RollbackPaused => UpdateState::RollbackStarted,
        UpdateState::Updating
        | UpdateState::Completed
        | UpdateState::RollbackStarted
        | UpdateState::RollbackCompleted => return None,
    };
    let first_started_at = paused.first_started_at.or(Some(paused.started_at));
    Some(UpdateStatus { first_started_at, ..begun(state, now) })
}

/// What a service goes back to: its previous spec, but as many replicas as it has now.
#[must_use]
pub fn rolled_back(service: &Service, now: Timestamp) -> Option<Service> {
    let previous = service.previous_spec.as_deref()?;
    let mut next = service.clone();
    next.spec = previous.clone();
    if is_replicated(service) && matches!(previous.mode, orch_model::service::ServiceMode::Replicated { .. }) {
        next.spec.mode = service.spec.mode;
    }
    next.previous_spec = None;
    next.update_status = (!is_job(service)).then(|| begun(UpdateState::RollbackStarted, now));
    Some(next)
}

/// The settings that apply now: those for updates, or for rollbacks during one.
pub(super) fn config(service: &Service) -> UpdateConfig {
    let is_rollback = |s: &UpdateStatus| {
        matches!(s.state, UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted)
    };
    let rolling_back = service.update_status.as_ref().is_some_and(is_rollback);
    let config = if rolling_back { &service.spec.rollback } else { &service.spec.update };
    config.clone().unwrap_or_default()
}

/// In which order the tasks of a slot are replaced. One that is to move and its successor are made from the same spec: they
/// cannot both run in the slot.
pub(super) fn order_in(service: &Service, slot: &Slot) -> UpdateOrder {
    let moves = slot.wanted().any(|t| t.displaced && t.spec_version == service.spec_version);
    if moves { UpdateOrder::StopFirst } else { config(service).order }
}

/// An update that is under way.
struct Update<'a> {
    state: &'a State,
    service: &'a Service,
    status: &'a UpdateStatus,
    slots: &'a BTreeMap<SlotKey, Slot>,
    dirty: &'a [SlotKey],
}

impl Update<'_> {
    fn proceed(&self, now: Timestamp, ids: Ids<'_>, decision: &mut Decision) {
        let config = config(self.service);
        // One for a place, however often it has been tried there: a task that ends again and again is one that fails.
        let mut failure_of =
            |slot| self.created_in(slot).rfind(|t| self.failed(t, &config) || self.is_late(t, now, decision));
        let failures: Vec<_> = self.slots.values().filter_map(&mut failure_of).collect();
        #[allow(clippy::cast_precision_loss)] // A ratio of task counts: 24 bits are plenty.
        let ratio = failures.len() as f32 / self.slots.len().max(1) as f32;
        if let Some(failure) = failures.last().filter(|_| ratio > config.max_failure_ratio) {
            match self.after_failure(&config, failure, now) {
                Some(change) => {
                    decision.changes.push(change);
                }
                None => self.advance(&config, now, ids, decision),
            }
        } else {
            self.advance(&config, now, ids, decision);
        }
    }

    /// What holds the update up, if it is something that the user should know: which task waits for what.
    fn explained(&self) -> Option<Change> {
        let waits = |task: &Arc<Task>| {
            let why = task.status.error.as_ref().filter(|_| task.status.state < TaskState::Assigned)?;
            Some(format!("{} waits: {why}", task.name()))
        };
        let waiting = self.created().filter(|task| task.is_wanted()).find_map(waits);
        let said = self.status.message.split(WAITS).next().unwrap_or_default();
        let message = waiting.map_or_else(|| said.to_owned(), |waiting| format!("{said}{WAITS}{waiting}"));
        let status = UpdateStatus { message, ..self.status.clone() };
        (status != *self.status).then(|| with_status(self.service, status))
    }

    fn rolling_back(&self) -> bool {
        self.status.state == UpdateState::RollbackStarted
    }

    /// The tasks that this update made, in the order of slots and age.
    fn created(&self) -> impl Iterator<Item = &Arc<Task>> + '_ {
        self.slots.values().flat_map(|slot| self.created_in(slot))
    }

    fn created_in<'s>(&'s self, slot: &'s Slot) -> impl DoubleEndedIterator<Item = &'s Arc<Task>> {
        slot.tasks.iter().filter(|t| self.is_mine(t))
    }

    /// What it made; if it was paused and began anew, without what had ended until then.
    fn is_mine(&self, task: &Task) -> bool {
        let since = self.status.started_at;
        let is_current = task.spec_version == self.service.spec_version && !task.displaced;
        let goes_on = || task.is_wanted() || task.status.at >= since;
        match self.status.first_started_at {
            Some(first) if task.meta.created_at < since => is_current && task.meta.created_at >= first && goes_on(),
            Some(_) | None => is_current && task.meta.created_at >= since,
        }
    }

    /// Whether a task failed before it ran, or so soon after that the update is to blame. What is restarted whatever
    /// becomes of it is meant to run: then an end without an error is one too early.
    fn failed(&self, task: &Task, config: &UpdateConfig) -> bool {
        let soon = task.running_since.is_none_or(|since| task.status.at.since(since) <= config.monitor);
        let ended = match task.status.state {
            TaskState::Failed | TaskState::Rejected => true,
            TaskState::Complete => task.spec.restart.condition == RestartCondition::Any,
            _ => false,
        };
        ended && soon
    }

    /// Whether a task has not come to run in the time that it has for that.
    fn is_late(&self, task: &Task, now: Timestamp, decision: &mut Decision) -> bool {
        let Some(limit) = self.step_limit().filter(|_| task.is_wanted() && task.running_since.is_none()) else {
            return false;
        };
        let slot = SlotKey::of(task).and_then(|key| self.slots.get(&key));
        let graces = slot.into_iter().flat_map(|slot| &slot.tasks).filter_map(|t| t.spec.container.stop_grace_period);
        let health = task.spec.container.health.as_ref();
        let start_period = health.and_then(|health| health.start_period).unwrap_or_default();
        let extra = graces.max().unwrap_or_default().saturating_add(start_period);
        let until = task.meta.created_at.max(self.status.started_at) + limit.saturating_add(extra);
        if now < until {
            decision.wake_at(until);
        }
        now >= until
    }

    fn step_limit(&self) -> Option<Duration> {
        let said = self.service.spec.annotations.labels.get(STEP_LIMIT_LABEL).and_then(|text| step_limit(text));
        Some(said.unwrap_or(DEFAULT_STEP_LIMIT)).filter(|limit| !limit.is_zero())
    }

    fn after_failure(&self, config: &UpdateConfig, failure: &Task, now: Timestamp) -> Option<Change> {
        let said = failure.status.error.as_deref().filter(|error| !error.is_empty());
        let of = format!("of task {} ({}", failure.id, failure.name());
        let because = match (failure.status.state.is_terminal(), self.step_limit()) {
            (false, Some(limit)) => {
                let why = said.map_or_else(|| format!("it is {}", failure.status.state.word()), str::to_owned);
                format!("due to the delay {of}: not running within {} s: {why})", limit.as_secs())
            }
            _ => format!("due to failure or early termination {of}: {})", said.unwrap_or("it ended")),
        };
        let because = because.replace('\n', " ");
        let pause = |state, word: &str| {
            let name = &self.service.spec.annotations.name;
            let message = match (state, word) {
                (UpdateState::Paused, "update") => format!(
                    "{word} paused {because}; correct it with `orch service update {name}`, or return with \
                     `orch service rollback {name}`"
                ),
                _ => format!("{word} paused {because}; correct it with `orch service update {name}`"),
            };
            Some(with_status(self.service, UpdateStatus { state, message, ..self.status.clone() }))
        };
        match (config.failure_action, self.rolling_back()) {
            (FailureAction::Continue, _) => None,
            (FailureAction::Pause, false) => pause(UpdateState::Paused, "update"),
            // A rollback is never rolled back by itself.
            (FailureAction::Pause | FailureAction::Rollback, true) => pause(UpdateState::RollbackPaused, "rollback"),
            (FailureAction::Rollback, false) => match rolled_back(self.service, now) {
                Some(mut next) => {
                    if let Some(status) = &mut next.update_status {
                        status.message = format!("update rolled back {because}");
                    }
                    let (old, next) =
                        (Object::Service(Arc::new(self.service.clone())), Object::Service(Arc::new(next)));
                    // What it used may have gone meanwhile, and its port to another service.
                    match may_put(self.state, Some(&old), &next) {
                        Ok(()) => Some(Change::Update(next)),
                        Err(error) => {
                            pause(UpdateState::Paused, &format!("update (which cannot be rolled back: {error})"))
                        }
                    }
                }
                None => pause(UpdateState::Paused, "update (there is no previous spec to roll back to)"),
            },
        }
    }

    /// Replaces as many more as may be under way at once; completes when all have run for the monitored time.
    fn advance(&self, config: &UpdateConfig, now: Timestamp, ids: Ids<'_>, decision: &mut Decision) {
        // What is to be replaced holds nothing up, though it may be an attempt itself, which waits in vain. (`dirty` has
        // the order of the slots.)
        let others = self.slots.iter().filter(|(key, _)| self.dirty.binary_search(key).is_err());
        let under_way = others.filter(|(_, slot)| self.is_busy(slot, config, now, decision)).count();
        let limit = match usize::try_from(config.parallelism) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        };
        for key in self.dirty.iter().take(limit.saturating_sub(under_way)) {
            if let Some(slot) = self.slots.get(key) {
                self.replace(key, slot, now, ids, decision);
            }
        }
        if self.dirty.is_empty() && under_way == 0 && self.has_settled(config, now, decision) {
            let (state, message) = match self.rolling_back() {
                true => (UpdateState::RollbackCompleted, "rollback completed"),
                false => (UpdateState::Completed, "update completed"),
            };
            let status =
                UpdateStatus { state, message: message.to_owned(), completed_at: Some(now), ..self.status.clone() };
            decision.changes.push(with_status(self.service, status));
        }
    }

    /// Whether a slot's replacement is still on its way, or ran for less than the delay between steps.
    ///
    /// Only the first attempt holds the update up: what fails and is restarted has been counted as a failure.
    fn is_busy(&self, slot: &Slot, config: &UpdateConfig, now: Timestamp, decision: &mut Decision) -> bool {
        // A slot without a past was added by scaling: the update does not wait for it.
        if slot.tasks.iter().all(|t| t.spec_version == self.service.spec_version && !t.displaced) {
            return false;
        }
        // What was given up before it had a node was no attempt.
        let was_tried = |t: &Task| t.is_wanted() || t.status.state >= TaskState::Assigned;
        let mut mine = slot.tasks.iter().filter(|t| self.is_mine(t) && was_tried(t));
        let (Some(first), None) = (mine.next(), mine.next()) else { return false };
        match first.running_since.map(|since| since + config.delay) {
            _ if !first.is_wanted() => false,
            None => !self.is_late(first, now, decision),
            Some(free_at) if now < free_at => {
                decision.wake_at(free_at);
                true
            }
            Some(_) => false,
        }
    }

    fn replace(&self, key: &SlotKey, slot: &Slot, now: Timestamp, ids: Ids<'_>, decision: &mut Decision) {
        // What never came to run makes room at once; what runs stays until its successor is ready.
        let superseded = slot.tasks.iter().filter(|t| t.desired_state <= TaskState::Running && !serves(t));
        decision.changes.extend(superseded.map(|t| desire(t, TaskState::Shutdown)));
        let desired = match order_in(self.service, slot) {
            UpdateOrder::StopFirst => TaskState::Ready,
            UpdateOrder::StartFirst => TaskState::Running,
        };
        decision.changes.push(create(new_task(self.state, self.service, key, desired, None, now, ids())));
    }

    fn has_settled(&self, config: &UpdateConfig, now: Timestamp, decision: &mut Decision) -> bool {
        let mut settled = true;
        // A failure that is put up with has been counted; what is tried in its place would be waited for for ever.
        let unfailed = self.slots.values().filter(|slot| !self.created_in(slot).any(|t| self.failed(t, config)));
        for holder in unfailed.filter_map(Slot::holder).filter(|t| self.is_mine(t)) {
            match holder.running_since.map(|since| since + config.monitor) {
                // Or its node was drained, or is down.
                _ if ended_by_itself(holder) || !holder.is_wanted() => {}
                None => settled &= self.is_late(holder, now, decision),
                Some(at) if now < at => {
                    decision.wake_at(at);
                    settled = false;
                }
                Some(_) => {}
            }
        }
        settled
    }
}

/// Places whose task is made from another spec and has no successor yet.
fn dirty_slots(state: &State, service: &Service, slots: &BTreeMap<SlotKey, Slot>) -> Vec<SlotKey> {
    let usable = |key: &SlotKey| match key {
        // A paused node gets no new task; its turn comes when it takes tasks again.
        SlotKey::Node(node) => state.node(node).is_some_and(|n| takes_tasks(n)),
        SlotKey::Slot(_) => true,
    };
    let order = config(service).order;
    let since = service.update_status.as_ref().map(|status| status.started_at).unwrap_or_default();
    // A start-first attempt that ended for good leaves the old task running; it is not tried again and again, but once more
    // by an update that begins anew. What ended before that task was made was no attempt to replace it.
    let tried = |slot: &Slot, stale: &Task| {
        let is_own = |t: &Task| t.is_wanted() || t.meta.created_at >= since;
        let current = |t: &Task| t.spec_version == service.spec_version && !t.displaced && is_own(t);
        let later = slot.tasks.iter().rev().take_while(|t| t.id != stale.id);
        later.filter(|t| current(t)).any(|t| t.is_wanted() || ended_by_itself(t))
    };
    let is_dirty_slot = |slot: &Slot| {
        let (dirty, clean): (Vec<_>, Vec<_>) = slot.wanted().partition(|t| is_dirty(state, service, t));
        match clean.is_empty() {
            true => {
                // What is over need not move: if it was displaced, it gave its volumes up.
                let stale = slot.holder().filter(|t| match t.is_wanted() {
                    true => is_dirty(state, service, t),
                    false => differs(state, service, t),
                });
                slot.is_occupied(service) && stale.is_some_and(|stale| !tried(slot, stale))
            }
            // Only beside an old task: what waits without one has nothing to gain from another that waits.
            false => !dirty.is_empty() && clean.iter().all(|t| waits_in_vain(t, order)),
        }
    };
    slots.iter().filter(|(key, slot)| usable(key) && is_dirty_slot(slot)).map(|(key, _)| key.clone()).collect()
}

/// Once its successor can take over, an old task goes: start-first, when that runs; stop-first, when that is ready to
/// start, so that an image which cannot be had stops nothing.
fn retire_predecessors(state: &State, service: &Service, slots: &BTreeMap<SlotKey, Slot>, decision: &mut Decision) {
    for slot in slots.values() {
        let order = order_in(service, slot);
        let has_successor = slot.wanted().any(|t| !is_dirty(state, service, t) && takes_over(t, order));
        let old: Vec<_> = slot.wanted().filter(|t| is_dirty(state, service, t)).collect();
        // Of two old ones, left by an update that another overtook, one is enough to hold the place: the other may
        // have what the successors wait for.
        let stays = old.iter().rfind(|t| serves(t)).or(old.last()).filter(|_| !has_successor).map(|t| &t.id);
        let retired = old.iter().filter(|t| Some(&t.id) != stays);
        decision.changes.extend(retired.map(|t| desire(t, TaskState::Shutdown)));
    }
}

fn takes_over(task: &Task, order: UpdateOrder) -> bool {
    let has_its_image = task.status.state >= TaskState::Ready;
    let waits = task.desired_state == TaskState::Ready && order == UpdateOrder::StopFirst;
    // It may be its predecessor's port, memory or address that it waits for.
    serves(task) || (waits && (has_its_image || cannot_be_placed(task)))
}

fn cannot_be_placed(task: &Task) -> bool {
    task.status.state <= TaskState::Pending && task.status.error.is_some()
}

/// Whether a task was made to start beside its predecessor and finds no room there, although by now the predecessor may
/// stop first. It is made anew, so that the predecessor goes in its turn and no sooner. (The other way round there is
/// nothing to do: what waits for its predecessor is promoted.)
fn waits_in_vain(task: &Task, order: UpdateOrder) -> bool {
    order == UpdateOrder::StopFirst && task.desired_state == TaskState::Running && cannot_be_placed(task)
}

fn serves(task: &Task) -> bool {
    task.status.state == TaskState::Running && task.desired_state == TaskState::Running
}

fn with_status(service: &Service, status: UpdateStatus) -> Change {
    let mut service = service.clone();
    service.update_status = Some(status);
    Change::Update(Object::Service(Arc::new(service)))
}
