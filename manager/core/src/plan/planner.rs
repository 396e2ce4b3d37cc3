//! Deciding again and again while a state changes, each time only about what the changes concern.
//!
//! Nothing of it is part of the state: a planner that starts anew looks at everything once. It decides what
//! [`super::decide`] would; the simulated clusters of the tests compare the two at every step.

use std::collections::BTreeMap;

use orch_model::{ServiceId, Timestamp};

use super::{Plan, Scope, run};
use crate::{
    decision::{Ids, earliest},
    state::{Event, State},
};

/// Remembers what has changed since it last decided.
#[derive(Debug, Clone)]
pub struct Planner {
    pending: Scope,
    /// Looked at; whether its plan was committed is not known yet.
    in_question: Option<Scope>,
    /// When a service has to be looked at although nothing has changed.
    wakes: BTreeMap<ServiceId, Timestamp>,
    wake: Option<Timestamp>,
}

impl Default for Planner {
    fn default() -> Self {
        Self { pending: Scope::everything(), in_question: None, wakes: BTreeMap::new(), wake: None }
    }
}

impl Planner {
    /// Looks at everything the next time.
    pub fn start_over(&mut self) {
        *self = Self::default();
    }

    /// Notes what a commit has changed. `state` has it, and may have more.
    pub fn note(&mut self, state: &State, event: &Event) {
        self.pending.extend(state, event);
    }

    /// Whether nothing has changed, and nothing is due, that a decision could follow from.
    #[must_use]
    pub fn is_idle(&self, now: Timestamp) -> bool {
        self.pending.is_empty() && self.in_question.is_none() && self.next_wake().is_none_or(|at| now < at)
    }

    /// When to decide again although nothing has changed.
    #[must_use]
    pub fn next_wake(&self) -> Option<Timestamp> {
        earliest(self.wake, self.wakes.values().min().copied())
    }

    /// Decides. What comes of the plan is to be told with [`Self::committed`] or [`Self::failed`].
    pub fn decide(&mut self, state: &State, now: Timestamp, ids: Ids<'_>) -> Plan {
        self.failed();
        // Whoever is due stays so until everything was asked about it.
        let due = self.wakes.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone());
        due.for_each(|id| self.pending.insert(id));
        let outcome = run(state, now, ids, self.pending.clone());
        for (id, wake) in outcome.wakes {
            match wake {
                Some(at) => drop(self.wakes.insert(id, at)),
                None => drop(self.wakes.remove(&id)),
            }
        }
        self.wake = outcome.plan.wake;
        if !outcome.is_cut_short {
            self.pending.looked_at(state);
            self.in_question = (!outcome.plan.transactions.is_empty()).then_some(outcome.scope);
        }
        Plan { wake: self.next_wake(), ..outcome.plan }
    }

    /// All of the last plan was committed: what it changed comes back through [`Self::note`].
    pub fn committed(&mut self) {
        self.in_question = None;
    }

    /// The last plan was not committed, or not all of it.
    pub fn failed(&mut self) {
        if let Some(scope) = self.in_question.take() {
            self.pending.put_back(scope);
        }
    }
}
