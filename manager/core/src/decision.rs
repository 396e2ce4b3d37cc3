//! What a deciding function returns: proposed changes and when to ask again.
//!
//! A decision never acts. It is applied to a state (tentatively by [`crate::plan`], for real through the raft log).

use orch_model::{Timestamp, change::Change};

/// A source of 128 random bits, one value per new identifier.
pub type Ids<'a> = &'a mut dyn FnMut() -> u128;

/// Proposed changes, and when the answer may differ although the state has not changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    pub changes: Vec<Change>,
    /// The earliest time at which deciding again may give more; `None`: only a change of state can.
    pub wake: Option<Timestamp>,
}

impl Decision {
    /// Asks to be called again at `at`, or earlier if something else asked for that.
    pub fn wake_at(&mut self, at: Timestamp) {
        self.wake = earliest(self.wake, Some(at));
    }

    /// Takes over what another decision proposes.
    pub fn absorb(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.wake = earliest(self.wake, other.wake);
    }
}

/// The earlier of two optional times; `None` is never.
#[must_use]
pub fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}
