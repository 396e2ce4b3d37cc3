//! What the C library's allocator keeps of what was freed.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::spawn_blocking;

/// So many changed objects leave enough behind to look for it.
const CHURN_EVENTS: usize = 50_000;

/// What much churn has freed lies in pieces between what is in use, and the C library keeps it until it is told. Holds
/// what every thread that asks for memory waits for, some milliseconds.
pub(crate) fn give_back() {
    // SAFETY: it takes a number, locks what it looks at, and moves nothing that is in use.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Counts changes, and gives memory back when there were many.
#[derive(Debug, Default)]
pub(crate) struct Churn {
    events: AtomicUsize,
}

impl Churn {
    /// Off the threads that serve.
    pub(crate) fn count(&self, events: usize) {
        if self.add(events) {
            drop(spawn_blocking(give_back));
        }
    }

    fn add(&self, events: usize) -> bool {
        let before = self.events.fetch_add(events, Ordering::Relaxed);
        before / CHURN_EVENTS != before.wrapping_add(events) / CHURN_EVENTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_churn_is_noticed_once() {
        let churn = Churn::default();
        assert!(!churn.add(CHURN_EVENTS - 1));
        assert!(churn.add(1));
        assert!(!churn.add(CHURN_EVENTS - 1));
        assert!(churn.add(3 * CHURN_EVENTS));
        assert!(!churn.add(0));
    }
}
