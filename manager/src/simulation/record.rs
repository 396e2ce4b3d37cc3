//! What the managers did, and whether they may have.
//!
//! Every entry that any manager applies is noted once; whoever applies the same index must find the same in it and get
//! the same state. What clients were told is compared with that at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use orch_manager_core::{Event, State};
use orch_model::Object;

use super::linear::{self, Contradiction, Effect, Operation};
use crate::raft::{Commit, Committed, View};

/// What a client wrote: unique.
pub(super) type Mark = u64;

/// Why a run is wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum Violation {
    #[error("{host} applied something else at index {index} than another manager did")]
    Diverged { host: String, index: u64 },
    #[error("after index {index}, the state of {host} differs from another manager's")]
    StatesDiffer { host: String, index: u64 },
    #[error("the write {mark} was acknowledged with index {index} and is not there")]
    Lost { mark: Mark, index: u64 },
    #[error("the write {mark} was applied {times} times")]
    AppliedAgain { mark: Mark, times: usize },
    #[error("the write {mark} was refused, and applied all the same")]
    RefusedAndApplied { mark: Mark },
    #[error("a read at index {index} saw {saw:?} in register {key} and not {is:?}")]
    WrongValue { key: usize, index: u64, saw: Mark, is: Option<Mark> },
    #[error("half of the transaction {mark} was applied")]
    Torn { mark: Mark },
    #[error(transparent)]
    NotLinearizable(#[from] Contradiction),
    #[error("{host} stopped for no reason: {reason}")]
    Stopped { host: String, reason: String },
    #[error("{host} does not start again: {reason}")]
    DoesNotStart { host: String, reason: String },
    #[error("{limit:?} after everything was well again, {what}")]
    NoProgress { what: String, limit: Duration },
}

/// How a write ended, as far as its author knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Acknowledged {
        index: u64,
    },
    Refused,
    /// Whether it was or will be applied, nobody can say.
    Unknown,
}

#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) mark: Mark,
    pub(super) keys: Vec<usize>,
    pub(super) outcome: Outcome,
}

/// One read of all registers.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) index: u64,
    pub(super) values: Vec<Mark>,
}

#[derive(Default)]
pub(super) struct Record {
    entries: BTreeMap<u64, Vec<Arc<[Event]>>>,
    digests: BTreeMap<u64, u64>,
    written: Vec<Written>,
    seen: Vec<Seen>,
    operations: Vec<Operation>,
    pub(super) compared_states: u64,
    pub(super) installed: u64,
}

impl Record {
    /// A manager applied something.
    pub(super) fn applied(&mut self, host: &str, commit: &Commit) -> Result<(), Violation> {
        let Committed::Transactions(transactions) = &commit.change else {
            self.installed += 1;
            return Ok(());
        };
        match self.entries.get(&commit.index) {
            Some(known) if known == transactions => Ok(()),
            Some(_) => Err(Violation::Diverged { host: host.to_owned(), index: commit.index }),
            None => {
                self.entries.insert(commit.index, transactions.clone());
                Ok(())
            }
        }
    }

    /// A manager's state.
    pub(super) fn state(&mut self, host: &str, view: &View) -> Result<(), Violation> {
        let digest = digest(&view.state);
        match self.digests.get(&view.index) {
            Some(known) if *known == digest => {
                self.compared_states += 1;
                Ok(())
            }
            Some(_) => Err(Violation::StatesDiffer { host: host.to_owned(), index: view.index }),
            None => {
                self.digests.insert(view.index, digest);
                Ok(())
            }
        }
    }

    pub(super) fn wrote(&mut self, written: Written, started: Duration, ended: Duration) {
        if let Outcome::Acknowledged { index: version } = written.outcome {
            self.operations.push(Operation { effect: Effect::Wrote, version, started, ended });
        }
        self.written.push(written);
    }

    pub(super) fn saw(&mut self, seen: Seen, started: Duration, ended: Duration) {
        self.operations.push(Operation { effect: Effect::Saw, version: seen.index, started, ended });
        self.seen.push(seen);
    }

    pub(super) fn reads(&self) -> usize {
        self.seen.len()
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.written.iter().filter(|w| matches!(w.outcome, Outcome::Acknowledged { .. })).count()
    }

    /// A number that differs when anything went differently.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        format!("{:?}{:?}{:?}", self.digests, self.written, self.operations).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether what clients were told fits what the managers did.
    pub(super) fn check(&self) -> Result<(), Violation> {
        let applied = self.values();
        for written in &self.written {
            self.check_write(written, applied.marks.get(&written.mark))?;
        }
        for seen in &self.seen {
            for (key, saw) in seen.values.iter().enumerate() {
                let is = applied.registers.get(&key).and_then(|values| values.range(..=seen.index).next_back());
                let is = is.map(|(_, mark)| *mark);
                if is != Some(*saw) {
                    return Err(Violation::WrongValue { key, index: seen.index, saw: *saw, is });
                }
            }
        }
        linear::check(&self.operations)?;
        Ok(())
    }

    fn check_write(&self, written: &Written, places: Option<&Vec<(u64, usize)>>) -> Result<(), Violation> {
        let mark = written.mark;
        let places = places.map(Vec::as_slice).unwrap_or_default();
        let keys: BTreeSet<usize> = places.iter().map(|(_, key)| *key).collect();
        let indexes: BTreeSet<u64> = places.iter().map(|(index, _)| *index).collect();
        match written.outcome {
            Outcome::Acknowledged { index } if !indexes.contains(&index) => {
                return Err(Violation::Lost { mark, index });
            }
            Outcome::Refused if !places.is_empty() => return Err(Violation::RefusedAndApplied { mark }),
            Outcome::Acknowledged { .. } | Outcome::Refused | Outcome::Unknown => {}
        }
        if indexes.len() > 1 || places.len() > keys.len() {
            return Err(Violation::AppliedAgain { mark, times: places.len() });
        }
        if !places.is_empty() && !keys.iter().eq(&written.keys) {
            return Err(Violation::Torn { mark });
        }
        Ok(())
    }

    fn values(&self) -> Values {
        let mut values = Values::default();
        for (index, transactions) in &self.entries {
            for event in transactions.iter().flat_map(|events| events.iter()) {
                if let Some((key, mark)) = event.current().and_then(register) {
                    values.registers.entry(key).or_default().insert(*index, mark);
                    values.marks.entry(mark).or_default().push((*index, key));
                }
            }
        }
        values
    }
}

/// What the registers were, according to what was applied.
#[derive(Default)]
struct Values {
    registers: BTreeMap<usize, BTreeMap<u64, Mark>>,
    /// Where each write was applied: index and register.
    marks: BTreeMap<Mark, Vec<(u64, usize)>>,
}

/// Registers are configs: the name says which, the content is the mark.
pub(super) fn register(object: &Object) -> Option<(usize, Mark)> {
    let Object::Config(config) = object else { return None };
    let mark = config.data.get(..8)?.try_into().ok().map(u64::from_be_bytes)?;
    Some((config.annotations.name.parse().ok()?, mark))
}

fn digest(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    for object in state.objects() {
        let meta = object.meta();
        (meta.version.0, meta.created_at.unix_ms, meta.updated_at.unix_ms).hash(&mut hasher);
        match &object {
            Object::Config(config) => (config.id.as_str(), &config.annotations.name, &config.data).hash(&mut hasher),
            other => format!("{other:?}").hash(&mut hasher),
        }
    }
    state.last_stamp().unix_ms.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use orch_model::{Annotations, ConfigId, Meta, secret::Config};

    use super::*;

    fn commit(index: u64, writes: &[(usize, Mark)]) -> Commit {
        let event = |(key, mark): &(usize, Mark)| {
            Event::Created(Object::Config(Arc::new(Config {
                id: ConfigId::from_random(*key as u128),
                meta: Meta::default(),
                annotations: Annotations { name: key.to_string(), ..Annotations::default() },
                data: mark.to_be_bytes().to_vec(),
                template: None,
                removing: false,
            })))
        };
        Commit { index, change: Committed::Transactions(vec![writes.iter().map(event).collect()]) }
    }

    fn checked(
        commits: &[Commit],
        written: &[(Mark, &[usize], Outcome)],
        seen: &[(u64, &[Mark])],
    ) -> Option<Violation> {
        let mut record = Record::default();
        for commit in commits {
            if let Err(violation) = record.applied("a", commit) {
                return Some(violation);
            }
        }
        for (mark, keys, outcome) in written {
            record.written.push(Written { mark: *mark, keys: keys.to_vec(), outcome: *outcome });
        }
        for (index, values) in seen {
            record.seen.push(Seen { index: *index, values: values.to_vec() });
        }
        record.check().err()
    }

    #[test]
    fn what_may_not_be_is_found() {
        use Outcome::*;
        let good = [commit(5, &[(0, 1), (1, 1)]), commit(6, &[(0, 2)])];
        let told: [(Mark, &[usize], Outcome); 4] =
            [(1, &[0, 1], Acknowledged { index: 5 }), (2, &[0], Unknown), (3, &[0], Refused), (4, &[1], Unknown)];
        assert!(checked(&good, &told, &[(5, &[1, 1]), (6, &[2, 1]), (9, &[2, 1])]).is_none());

        let lost: [(Mark, &[usize], Outcome); 1] = [(7, &[0], Acknowledged { index: 5 })];
        assert!(matches!(checked(&good, &lost, &[]), Some(Violation::Lost { mark: 7, index: 5 })));
        let moved: [(Mark, &[usize], Outcome); 1] = [(2, &[0], Acknowledged { index: 5 })];
        assert!(matches!(checked(&good, &moved, &[]), Some(Violation::Lost { .. })));
        let refused: [(Mark, &[usize], Outcome); 1] = [(2, &[0], Refused)];
        assert!(matches!(checked(&good, &refused, &[]), Some(Violation::RefusedAndApplied { mark: 2 })));
        let torn: [(Mark, &[usize], Outcome); 1] = [(2, &[0, 1], Unknown)];
        assert!(matches!(checked(&good, &torn, &[]), Some(Violation::Torn { mark: 2 })));
        let twice = [commit(5, &[(0, 1)]), commit(6, &[(0, 1)])];
        let told: [(Mark, &[usize], Outcome); 1] = [(1, &[0], Acknowledged { index: 5 })];
        assert!(matches!(checked(&twice, &told, &[]), Some(Violation::AppliedAgain { mark: 1, times: 2 })));
        assert!(matches!(checked(&good, &[], &[(5, &[2, 1])]), Some(Violation::WrongValue { key: 0, .. })));
        let split = [commit(5, &[(0, 1)]), commit(5, &[(0, 2)])];
        assert!(matches!(checked(&split, &[], &[]), Some(Violation::Diverged { index: 5, .. })));
    }
}
