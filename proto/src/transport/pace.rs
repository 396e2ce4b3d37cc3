//! How much of something somebody may have in a while: connections beyond that are hung up on at once, calls wait for their
//! turn. Both cost next to nothing, so that a loop takes no time from the others.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// So many at once, and so many a second in the long run.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub burst: u32,
    pub per_second: u32,
}

/// Owners that are remembered.
const OWNERS: usize = 1024;

/// The rate of each owner.
#[derive(Debug)]
pub struct Pace<K> {
    rate: Rate,
    /// Until when what an owner has taken counts; one that is not here has taken nothing.
    owed_until: HashMap<K, Instant>,
}

impl<K: Hash + Eq> Pace<K> {
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, owed_until: HashMap::new() }
    }

    /// Whether `owner` may have one more.
    pub fn admit(&mut self, owner: K, now: Instant) -> bool {
        let until = self.with_one_more(&owner, now);
        let fits = until - now <= self.one() * self.rate.burst;
        if fits {
            self.owed_until.insert(owner, until);
        }
        fits
    }

    /// When one more of `owner` has its turn. Nobody waits longer than `longest`, however much they ask for.
    pub fn turn(&mut self, owner: K, now: Instant, longest: Duration) -> Instant {
        let burst = self.one() * self.rate.burst;
        let until = self.with_one_more(&owner, now).min(now + burst + longest);
        self.owed_until.insert(owner, until);
        now + (until - now).saturating_sub(burst)
    }

    /// One that `owner` had turned out to be good: it does not count.
    pub fn forgive(&mut self, owner: &K) {
        let one = self.one();
        if let Some(until) = self.owed_until.get_mut(owner) {
            *until -= one;
        }
    }

    fn one(&self) -> Duration {
        Duration::from_secs(1) / self.rate.per_second.max(1)
    }

    /// Until when what `owner` has would count.
    fn with_one_more(&mut self, owner: &K, now: Instant) -> Instant {
        if self.owed_until.len() >= OWNERS {
            self.owed_until.retain(|_, until| *until > now);
        }
        if self.owed_until.len() >= OWNERS {
            // So many different ones are no loop.
            self.owed_until.clear();
        }
        self.owed_until.get(owner).copied().unwrap_or(now).max(now) + self.one()
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
    fn whoever_is_too_fast_waits_for_its_turn_and_never_longer_than_the_longest() {
        let mut pace = Pace::new(Rate { burst: 2, per_second: 10 });
        let now = Instant::now();
        let mut waits = |owner| (pace.turn(owner, now, Duration::from_millis(250)) - now).as_millis();
        let first: Vec<_> = (0..6).map(|_| waits(1)).collect();
        assert_eq!(first, [0, 0, 100, 200, 250, 250]);
        assert_eq!(waits(2), 0);
    }

    #[test]
    fn what_is_forgiven_does_not_count() {
        let mut pace = Pace::new(Rate { burst: 1, per_second: 1 });
        let now = Instant::now();
        for _ in 0..10 {
            assert!(pace.admit(1, now));
            pace.forgive(&1);
        }
        pace.forgive(&2);
        assert!(pace.admit(1, now) && !pace.admit(1, now));
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
