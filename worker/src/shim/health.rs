//! When a container's health is checked, and what the results mean. Pure: time is what has passed since the container's
//! start.
//!
//! As Docker has it, with one addition: before the first interval is over, checks are made early too, at growing
//! distances. Their failures do not count. So a container whose interval is 30 s need not take 30 s to be healthy.

use std::{collections::VecDeque, time::Duration};

use super::protocol::{HealthPlan, HealthRecord, HealthResult, HealthWord};

/// How many results are kept.
const KEPT_RESULTS: usize = 5;
/// Longest output of a check that is kept.
pub(super) const MAX_OUTPUT_BYTES: usize = 4096;
/// The first early check; each next one is twice as far away.
const FIRST_EARLY: Duration = Duration::from_millis(500);

/// What the checks have said so far.
#[derive(Debug)]
pub(super) struct Monitor {
    plan: HealthPlan,
    health: HealthWord,
    failing_streak: u32,
    results: VecDeque<HealthResult>,
    /// When the next check begins.
    due: Duration,
    early: Duration,
}

impl Monitor {
    pub(super) fn new(mut plan: HealthPlan) -> Self {
        let mut results = VecDeque::from(std::mem::take(&mut plan.earlier));
        results.drain(..results.len().saturating_sub(KEPT_RESULTS));
        let mut monitor = Self {
            plan,
            health: HealthWord::Starting,
            failing_streak: 0,
            results,
            due: Duration::ZERO,
            early: FIRST_EARLY,
        };
        monitor.due = monitor.pause(Duration::ZERO);
        monitor
    }

    pub(super) fn due(&self) -> Duration {
        self.due
    }

    pub(super) fn health(&self) -> HealthWord {
        self.health
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.plan.timeout_ms)
    }

    pub(super) fn record(&self) -> HealthRecord {
        HealthRecord {
            health: self.health,
            failing_streak: self.failing_streak,
            results: self.results.iter().cloned().collect(),
        }
    }

    /// A check that began at `began` has ended at `now`. Whether the health is another one now.
    pub(super) fn ended(&mut self, result: HealthResult, began: Duration, now: Duration) -> bool {
        let before = self.health;
        if result.exit_code == 0 {
            self.failing_streak = 0;
            self.health = HealthWord::Healthy;
        } else if self.health != HealthWord::Starting || began >= self.patience() {
            self.failing_streak += 1;
            if self.failing_streak >= self.plan.retries {
                self.health = HealthWord::Unhealthy;
            }
        }
        self.results.push_back(result);
        if self.results.len() > KEPT_RESULTS {
            self.results.pop_front();
        }
        self.due = now + self.pause(now);
        before != self.health
    }

    /// What was due at `now` does not take place.
    pub(super) fn skipped(&mut self, now: Duration) {
        self.due = now + self.pause(now);
    }

    /// Until then failures of a container that was never healthy do not count.
    fn patience(&self) -> Duration {
        match self.plan.start_period_ms {
            // The first check that Docker would make counts.
            0 => self.interval(),
            period => Duration::from_millis(period),
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.plan.interval_ms)
    }

    /// From the end of a check, or the start, to the next check.
    fn pause(&mut self, now: Duration) -> Duration {
        if self.health != HealthWord::Starting || now >= self.patience() {
            return self.interval();
        }
        let early = self.early;
        self.early = self.early.saturating_mul(2);
        if self.plan.start_period_ms > 0 {
            return early.min(Duration::from_millis(self.plan.start_interval_ms));
        }
        // The check at the first interval is due whatever the early ones do.
        early.min(self.interval().saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn plan(interval_s: u64, retries: u32, start_period_s: u64) -> HealthPlan {
        HealthPlan {
            test: vec!["true".to_owned()],
            interval_ms: interval_s * 1000,
            timeout_ms: 1000,
            start_period_ms: start_period_s * 1000,
            start_interval_ms: 2000,
            retries,
            earlier: Vec::new(),
        }
    }

    /// Checks that take no time, each with its code; what health is after each, and when it began in milliseconds.
    fn check(plan: HealthPlan, codes: &[i32], want: &[(u128, HealthWord)]) {
        let mut monitor = Monitor::new(plan);
        let seen: Vec<_> = codes
            .iter()
            .map(|&exit_code| {
                let at = monitor.due();
                monitor.ended(HealthResult { exit_code, ..HealthResult::default() }, at, at);
                (at.as_millis(), monitor.health())
            })
            .collect();
        assert_eq!(seen, want);
    }

    use HealthWord::{Healthy, Starting, Unhealthy};

    #[test]
    fn a_container_is_unhealthy_after_as_many_failures_as_it_may_have() {
        check(
            plan(1, 2, 0),
            &[0, 1, 0, 1, 1, 0],
            &[(500, Healthy), (1500, Healthy), (2500, Healthy), (3500, Healthy), (4500, Unhealthy), (5500, Healthy)],
        );
    }

    #[test]
    fn early_failures_do_not_count() {
        check(plan(3, 1, 0), &[1, 1, 1, 0], &[(500, Starting), (1500, Starting), (3000, Unhealthy), (6000, Healthy)]);
    }

    #[test]
    fn failures_in_the_start_period_do_not_count() {
        check(
            plan(10, 2, 5),
            &[1, 1, 1, 1, 1, 1],
            &[
                (500, Starting),
                (1500, Starting),
                (3500, Starting),
                (5500, Starting),
                (15_500, Unhealthy),
                (25_500, Unhealthy),
            ],
        );
        // Once it was healthy, they do.
        check(plan(10, 1, 60), &[0, 1], &[(500, Healthy), (10_500, Unhealthy)]);
    }

    #[test]
    fn a_start_period_may_be_as_long_as_it_likes() {
        let mut monitor = Monitor::new(plan(10, 1, 1_000_000));
        for _ in 0..100 {
            let at = monitor.due();
            monitor.ended(HealthResult { exit_code: 1, ..HealthResult::default() }, at, at);
            monitor.skipped(at);
            assert_eq!((monitor.health(), monitor.due()), (Starting, at + (monitor.due() - at).min(SECOND * 2)));
        }
    }

    #[test]
    fn the_last_results_are_kept() {
        let mut monitor = Monitor::new(plan(1, 100, 0));
        for exit_code in 1..=7 {
            monitor.ended(HealthResult { exit_code, ..HealthResult::default() }, SECOND * 9, SECOND * 9);
        }
        let kept: Vec<i32> = monitor.record().results.iter().map(|result| result.exit_code).collect();
        assert_eq!(kept, [3, 4, 5, 6, 7]);
        assert_eq!(monitor.record().failing_streak, 7);
        // Those of the run before too, but they do not count.
        let plan = HealthPlan { earlier: monitor.record().results, ..plan(1, 2, 0) };
        let mut monitor = Monitor::new(plan);
        assert_eq!((monitor.record().results.len(), monitor.record().failing_streak), (5, 0));
        assert_eq!(monitor.health(), Starting);
        monitor.ended(HealthResult { exit_code: 8, ..HealthResult::default() }, SECOND, SECOND);
        let kept: Vec<i32> = monitor.record().results.iter().map(|result| result.exit_code).collect();
        assert_eq!(kept, [4, 5, 6, 7, 8]);
        assert_eq!((monitor.record().failing_streak, monitor.health()), (1, Starting));
    }

    #[test]
    fn what_is_skipped_counts_for_nothing_and_comes_an_interval_later() {
        let mut monitor = Monitor::new(plan(3, 1, 0));
        monitor.ended(HealthResult::default(), SECOND, SECOND);
        for second in [4, 7, 10] {
            assert_eq!(monitor.due(), SECOND * second);
            monitor.skipped(SECOND * second);
        }
        assert_eq!((monitor.health(), monitor.record().results.len()), (Healthy, 1));
    }
}
