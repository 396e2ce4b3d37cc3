//! How fast a container may fill its log: beyond that its output waits in the pipe, and the program with it. Pure: time is
//! an argument.
//!
//! A program that writes as fast as it can would otherwise keep a core busy with writing what is deleted again a moment
//! later, and the disk with it. Whoever writes a lot at once, and then less, never waits.

use std::time::{Duration, Instant};

/// In the long run. More than any log that somebody reads, and a tenth of a core.
const BYTES_PER_S: u32 = 16 * 1024 * 1024;
/// So many seconds' worth may come at once.
const BURST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Pace {
    /// Until when what was taken counts.
    owed_until: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { owed_until: now }
    }

    /// So much was read.
    pub(super) fn took(&mut self, bytes: usize, now: Instant) {
        let length = Duration::from_secs(1) * u32::try_from(bytes).unwrap_or(u32::MAX) / BYTES_PER_S;
        self.owed_until = self.owed_until.max(now) + length;
    }

    /// How long the next is left where it is; `None`: not at all.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        self.owed_until.checked_duration_since(now + BURST).filter(|pause| !pause.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_a_flood_goes_at_its_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let second = BYTES_PER_S as usize;
        pace.took(second, start);
        assert_eq!(pace.pause(start), None);
        pace.took(second / 4, start);
        assert_eq!(pace.pause(start), Some(Duration::from_millis(250)));
        assert_eq!(pace.pause(start + Duration::from_millis(250)), None);
        // What was not used is not saved up beyond the burst.
        let later = start + Duration::from_secs(3600);
        pace.took(second, later);
        assert_eq!(pace.pause(later), None);
        pace.took(1024, later);
        assert!(pace.pause(later).is_some());
    }
}
