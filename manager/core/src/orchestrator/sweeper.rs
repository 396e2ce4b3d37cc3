//! Deletes networks, secrets and configs that were given up while tasks that stop still had them.
//!
//! Nobody who stays uses what is marked so: the state refuses the mark, and new users. What is left are tasks, and each
//! removal waits for the last of its own.

use std::collections::BTreeMap;

use orch_model::{Object, ObjectId, change::Change};

use crate::{decision::Decision, state::State};

/// Proposes what can be deleted now.
#[must_use]
pub fn decide(state: &State) -> Decision {
    let mut decision = Decision::default();
    let going = state.removing().filter(|id| !matches!(id, ObjectId::Service(_)));
    let mut free: BTreeMap<&str, Object> =
        going.filter_map(|id| state.get(id).map(|object| (id.as_str(), object))).collect();
    if free.is_empty() {
        return decision;
    }
    for task in state.tasks().filter(|task| !task.status.state.is_terminal()) {
        let container = &task.spec.container;
        task.networks.iter().for_each(|n| drop(free.remove(n.network.as_str())));
        container.secrets.iter().for_each(|file| drop(free.remove(file.id.as_str())));
        container.configs.iter().for_each(|file| drop(free.remove(file.id.as_str())));
    }
    let removal = |object: &Object| Change::Remove { id: object.id(), version: object.meta().version };
    decision.changes.extend(free.values().map(removal));
    decision
}
