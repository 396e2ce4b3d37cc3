//! Waiting for a condition: polled, with a deadline, and with the last answer in the failure.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::PATIENCE;

const POLL: Duration = Duration::from_millis(100);

/// Polls `probe` until it answers `Ok`; panics with what it waited for and the last `Err` when `limit` is over.
#[track_caller]
pub fn within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if start.elapsed() > limit => panic!("not within {limit:?}: {what}; last seen: {last}"),
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// [`within`] the usual patience.
#[track_caller]
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
    within(PATIENCE, what, probe)
}
