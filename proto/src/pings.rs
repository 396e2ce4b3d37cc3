//! When nodes give their signs of life.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nodes speak at full multiples of this of the time of day: who leads thousands of them is woken forty times a second, not
/// thousands of times. Clocks that disagree cost the leader sleep, and nothing else.
const BEAT: Duration = Duration::from_millis(25);

/// How long to wait before the next sign of life, when one is due `after` this: a little less, so that it falls on a beat.
#[must_use]
pub fn until_ping(now: SystemTime, after: Duration) -> Duration {
    let due = now.duration_since(UNIX_EPOCH).unwrap_or_default() + after;
    let past_beat = Duration::from_nanos(due.subsec_nanos().into()).as_nanos() % BEAT.as_nanos();
    // Less than a beat.
    after.saturating_sub(Duration::from_nanos(u64::try_from(past_beat).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_life_fall_on_beats_and_are_never_late() {
        for (at_us, after_ms) in [(0, 1000), (1, 1000), (999_999, 930), (24_999, 25), (123_456_789, 4987), (7, 1)] {
            let (at, after) = (Duration::from_micros(at_us), Duration::from_millis(after_ms));
            let wait = until_ping(UNIX_EPOCH + at, after);
            assert!(wait <= after && after - wait < BEAT, "{wait:?} of {after:?}");
            assert_eq!((at + wait).as_nanos() % BEAT.as_nanos() * u128::from(!wait.is_zero()), 0, "{at:?} {after:?}");
        }
        assert_eq!(until_ping(UNIX_EPOCH - Duration::from_secs(1), BEAT), BEAT, "a clock that was never set");
    }
}
