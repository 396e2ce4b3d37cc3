//! The cluster's time: the clock of the manager that leads, but never earlier than what is stamped already.
//!
//! A clock may be put back, and another leader's may be behind: then the last stamp is ahead of the clock. Were that the
//! time until the clock has come there, it would stand still, and with it each delay, window and time limit of the
//! cluster. So it goes on from the stamp, slower than the clock, which catches up.

use std::sync::{Arc, Mutex, PoisonError};

use orch_model::Timestamp;
use tokio::time::Instant;

/// How much slower it goes while it is ahead. A jump by an hour is over after two, in which delays take twice as long.
const SLOWED: u32 = 2;

/// Clones share it: whoever decides and whoever stamps mean the same time.
#[derive(Clone, Default)]
pub(super) struct Clock(Arc<Mutex<Option<Ahead>>>);

/// It was here at this moment, and the machine's clock was behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ahead {
    time: Timestamp,
    at: Instant,
}

impl Clock {
    /// `wall` is what the machine's clock says, `stamp` the last one in the log.
    pub(super) fn now(&self, wall: Timestamp, stamp: Timestamp) -> Timestamp {
        // Each holder makes one change.
        let mut ahead = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, time) = step(*ahead, wall, stamp, Instant::now());
        *ahead = next;
        time
    }
}

fn step(ahead: Option<Ahead>, wall: Timestamp, stamp: Timestamp, now: Instant) -> (Option<Ahead>, Timestamp) {
    let went_on = |ahead: Ahead| ahead.time + now.saturating_duration_since(ahead.at) / SLOWED;
    let time = ahead.map_or(stamp, went_on);
    if wall >= time.max(stamp) {
        (None, wall)
    } else if time >= stamp {
        (ahead.or(Some(Ahead { time, at: now })), time)
    } else {
        // Another manager led meanwhile.
        (Some(Ahead { time: stamp, at: now }), stamp)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_goes_on_when_the_clock_is_put_back() {
        let born = Instant::now();
        let (clock, at) = (Timestamp::from_unix_ms, |ms| born + Duration::from_millis(ms));
        let mut ahead = None;
        // What passed in fact, what the machine's clock says, the last stamp; the cluster's time.
        for (passed, wall, stamp, want) in [
            (0, 1_000, 0, 1_000),
            (100, 1_100, 1_000, 1_100),
            // An hour ahead, and back again.
            (200, 3_601_200, 1_100, 3_601_200),
            (300, 1_300, 3_601_200, 3_601_200),
            (10_300, 11_300, 3_601_200, 3_606_200),
            // What was stamped meanwhile changes nothing.
            (20_300, 21_300, 3_606_200, 3_611_200),
            // Another one led, and was further.
            (30_300, 31_300, 3_700_000, 3_700_000),
            (31_300, 32_300, 3_700_000, 3_700_500),
            // Caught up.
            (7_400_000, 7_401_000, 3_700_500, 7_401_000),
            (7_400_100, 7_401_100, 7_401_000, 7_401_100),
            // A little behind its predecessor, as clocks are.
            (7_400_200, 7_401_200, 7_401_250, 7_401_250),
            (7_400_240, 7_401_240, 7_401_250, 7_401_270),
            (7_400_400, 7_401_400, 7_401_270, 7_401_400),
        ] {
            let (next, time) = step(ahead, clock(wall), clock(stamp), at(passed));
            assert_eq!(time, clock(want), "after {passed} ms");
            ahead = next;
        }
    }
}
