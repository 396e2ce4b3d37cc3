//! What one-off containers are called: given names, and made-up ones.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use orch_model::TaskId;

const ADJECTIVES: [&str; 24] = [
    "amber", "brisk", "calm", "clever", "daring", "eager", "fair", "gentle", "honest", "jolly", "keen", "lively",
    "merry", "nimble", "patient", "quick", "quiet", "rapid", "silver", "steady", "sunny", "tidy", "vivid", "witty",
];
const NOUNS: [&str; 24] = [
    "badger", "beacon", "birch", "canyon", "comet", "falcon", "fjord", "harbor", "heron", "lantern", "lynx", "maple",
    "meadow", "otter", "pebble", "pine", "raven", "reef", "river", "sparrow", "spruce", "summit", "tundra", "willow",
];

type Names = BTreeMap<String, TaskId>;

/// Of what is being made or renamed: until it is called so, nothing else tells that a name is taken.
#[derive(Debug, Default)]
pub(super) struct ReservedNames(Arc<Mutex<Names>>);

/// Who looks for a name and takes it: nobody else does meanwhile.
pub(super) struct Turn<'a> {
    all: &'a ReservedNames,
    names: MutexGuard<'a, Names>,
}

/// Keeps a name for one, until others see it at what has it.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) name: String,
    all: Arc<Mutex<Names>>,
}

impl ReservedNames {
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn { all: self, names: lock(&self.0) }
    }
}

impl Turn<'_> {
    pub(super) fn owner(&self, name: &str) -> Option<&TaskId> {
        self.names.get(name)
    }

    pub(super) fn take(mut self, name: String, id: &TaskId) -> Reserved {
        self.names.insert(name.clone(), id.clone());
        Reserved { name, all: self.all.0.clone() }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.name);
    }
}

fn lock(names: &Mutex<Names>) -> MutexGuard<'_, Names> {
    // Each holder adds or removes one entry as a whole.
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Letters, digits, `_`, `.` and `-`; the first a letter or digit, at least two of them.
pub(super) fn is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.len() >= 2
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// A name from random bits; with a number when the first tries were taken.
pub(super) fn made_up(bits: u64, attempt: u32) -> String {
    let pick = |words: &[&'static str], bits: u64| words[usize::try_from(bits % words.len() as u64).unwrap_or(0)];
    let (adjective, noun) = (pick(&ADJECTIVES, bits), pick(&NOUNS, bits / ADJECTIVES.len() as u64));
    if attempt == 0 { format!("{adjective}_{noun}") } else { format!("{adjective}_{noun}{attempt}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_anothers_until_it_is_given_up() {
        let one = TaskId::from_random(1);
        let all = ReservedNames::default();
        let reserved = all.turn().take("web".to_owned(), &one);
        assert_eq!(all.turn().owner("web"), Some(&one));
        assert_eq!(all.turn().owner("db"), None);
        drop(reserved);
        assert_eq!(all.turn().owner("web"), None);
    }

    #[test]
    fn names_are_dockers() {
        for good in ["registry", "a1", "A_b.c-d", "1web"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "a", "-web", ".web", "we b", "web/1", "wéb"] {
            assert!(!is_valid(bad), "{bad}");
        }
        assert!((0..2000).all(|bits| is_valid(&made_up(bits, 0)) && is_valid(&made_up(bits, 7))));
    }
}
