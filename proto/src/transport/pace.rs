//! How many connections somebody may make in a while: beyond that they are hung up on at once, which costs next to nothing,
//! so that a loop that connects takes no time from those who are in.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// So many at once, and so many a second in the long run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) burst: u32,
    pub(super) per_second: u32,
}

/// Owners that are remembered.
const OWNERS: usize = 1024;

#[derive(Debug)]
pub(super) struct Pace<K> {
    rate: Rate,
    /// Until when what an owner has taken counts; one that is not here has taken nothing.
    owed_until: HashMap<K, Instant>,
}

impl<K: Hash + Eq> Pace<K> {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, owed_until: HashMap::new() }
    }

    /// Whether `owner` may have one more.
    pub(super) fn admit(&mut self, owner: K, now: Instant) -> bool {
        if self.owed_until.len() >= OWNERS {
            self.owed_until.retain(|_, until| *until > now);
        }
        if self.owed_until.len() >= OWNERS {
            // So many different ones are no loop.
            self.owed_until.clear();
        }
        let one = Duration::from_secs(1) / self.rate.per_second.max(1);
        let until = self.owed_until.get(&owner).copied().unwrap_or(now).max(now) + one;
        let fits = until - now <= one * self.rate.burst;
        if fits {
            self.owed_until.insert(owner, until);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_so_many_a_second_and_others_do_not_notice() {
        let mut pace = Pace::new(Rate { burst: 3, per_second: 10 });
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut admitted = |owner, ms| pace.admit(owner, at(ms));
        let first: Vec<_> = (0..5).map(|_| admitted(1, 0)).collect();
        assert_eq!(first, [true, true, true, false, false]);
        assert!(admitted(2, 0));
        // One for each tenth of a second that passed, and a whole burst after a pause.
        assert_eq!([admitted(1, 90), admitted(1, 110), admitted(1, 120)], [false, true, false]);
        let later: Vec<_> = (0..4).map(|_| admitted(1, 5000)).collect();
        assert_eq!(later, [true, true, true, false]);
    }

    #[test]
    fn owners_are_forgotten() {
        let mut pace = Pace::new(Rate { burst: 1, per_second: 1 });
        let now = Instant::now();
        for owner in 0..10 * OWNERS {
            assert!(pace.admit(owner, now));
        }
        assert!(pace.owed_until.len() <= OWNERS);
    }
}
