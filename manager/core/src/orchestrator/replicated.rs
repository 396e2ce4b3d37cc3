//! Replicated services: as many occupied slots as the user asked for.

use std::collections::{BTreeMap, BTreeSet};

use orch_model::{
    Timestamp,
    change::Change,
    service::{Service, ServiceMode},
    task::TaskState,
};

use super::{
    create, desire, new_task,
    slot::{Slot, SlotKey, slots_of},
};
use crate::{
    decision::{Decision, Ids},
    state::State,
};

/// Fills empty slots and gives up slots that are too many; a service that is being removed gives up all.
pub fn decide(state: &State, service: &Service, now: Timestamp, ids: Ids<'_>) -> Decision {
    let mut decision = Decision::default();
    let ServiceMode::Replicated { replicas } = service.spec.mode else { return decision };
    if service.removing {
        decision.changes.extend(remove_all(state, service));
    } else {
        reconcile(state, service, replicas, now, ids, &mut decision);
    }
    decision
}

/// Marks every task of a service for deletion.
pub(super) fn remove_all<'a>(state: &'a State, service: &Service) -> impl Iterator<Item = Change> + 'a {
    let live = state.tasks_of(&service.id).filter(|t| t.desired_state < TaskState::Remove);
    live.map(|t| desire(t, TaskState::Remove))
}

fn reconcile(state: &State, service: &Service, replicas: u64, now: Timestamp, ids: Ids<'_>, decision: &mut Decision) {
    let slots = slots_of(state, service);
    let occupied: BTreeMap<u64, &Slot> = slots
        .iter()
        .filter(|(_, slot)| slot.is_occupied(service))
        .filter_map(|(key, slot)| match key {
            SlotKey::Slot(number) => Some((*number, slot)),
            SlotKey::Node(_) => None,
        })
        .collect();
    let have = occupied.len() as u64;
    let filled: BTreeSet<u64> = free_numbers(&occupied, replicas.saturating_sub(have)).collect();
    for number in &filled {
        let key = SlotKey::Slot(*number);
        decision.changes.push(create(new_task(state, service, &key, TaskState::Running, None, now, ids())));
    }
    let surplus = usize::try_from(have.saturating_sub(replicas)).unwrap_or(usize::MAX);
    let given_up: BTreeSet<u64> = least_worth_keeping(&occupied, surplus).into_iter().collect();
    for (key, slot) in &slots {
        let SlotKey::Slot(number) = key else { continue };
        // Slots that only have a past, and are not filled again now, are no longer shown either.
        let only_past = !occupied.contains_key(number) && !filled.contains(number);
        if given_up.contains(number) || only_past {
            decision.changes.extend(slot.tasks.iter().map(|t| desire(t, TaskState::Remove)));
        }
    }
}

/// The lowest numbers that are not taken.
fn free_numbers(occupied: &BTreeMap<u64, &Slot>, count: u64) -> impl Iterator<Item = u64> {
    let taken: BTreeSet<u64> = occupied.keys().copied().collect();
    (1..).filter(move |n| !taken.contains(n)).take(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Chooses slots to give up: those that do not run first, then one at a time from the node that has the most.
fn least_worth_keeping(occupied: &BTreeMap<u64, &Slot>, count: usize) -> Vec<u64> {
    if count == 0 {
        return Vec::new();
    }
    let mut idle = Vec::new();
    let mut by_node: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for (number, slot) in occupied {
        let Some(holder) = slot.holder() else { continue };
        match (&holder.node, holder.is_wanted(), holder.status.state) {
            (Some(node), true, TaskState::Running) => by_node.entry(node.clone()).or_default().push(*number),
            // Of those that do not run, what is furthest from running goes first.
            (_, wanted, state) => idle.push((wanted.then_some(state), std::cmp::Reverse(*number))),
        }
    }
    idle.sort_unstable();
    let mut chosen: Vec<u64> = idle.into_iter().map(|(_, number)| number.0).take(count).collect();
    while chosen.len() < count {
        let Some(numbers) = by_node.values_mut().max_by_key(|numbers| (numbers.len(), numbers.last().copied())) else {
            break;
        };
        match numbers.pop() {
            Some(number) => chosen.push(number),
            None => break,
        }
    }
    chosen
}
