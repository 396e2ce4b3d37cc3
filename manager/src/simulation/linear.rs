//! Whether a history could have happened on one machine that does one thing at a time.
//!
//! The managers' state is one register: every write gives it a new version (the raft index), every read says which
//! version it saw. Since versions are ordered, a history is linearizable exactly when nothing that started after
//! something else had ended saw less than that: a read that follows anything sees at least its version, and a write that
//! follows anything makes a greater one.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Made this version.
    Wrote,
    /// Saw this version.
    Saw,
}

/// Something that a client did and got an answer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) effect: Effect,
    pub(super) version: u64,
    pub(super) started: Duration,
    pub(super) ended: Duration,
}

/// Two operations that cannot both be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not linearizable: {earlier:?} had ended before {later:?} started")]
pub(super) struct Contradiction {
    pub(super) earlier: Operation,
    pub(super) later: Operation,
}

pub(super) fn check(history: &[Operation]) -> Result<(), Contradiction> {
    let mut by_end: Vec<&Operation> = history.iter().collect();
    by_end.sort_by_key(|operation| operation.ended);
    let mut by_start = by_end.clone();
    by_start.sort_by_key(|operation| operation.started);
    let mut ended = by_end.into_iter().peekable();
    // Of everything that had ended by then, what had come furthest.
    let mut furthest: Option<&Operation> = None;
    for later in by_start {
        while let Some(operation) = ended.next_if(|operation| operation.ended < later.started) {
            if furthest.is_none_or(|known| known.version <= operation.version) {
                furthest = Some(operation);
            }
        }
        let Some(earlier) = furthest else { continue };
        let is_possible = match later.effect {
            Effect::Saw => later.version >= earlier.version,
            Effect::Wrote => later.version > earlier.version,
        };
        if !is_possible {
            return Err(Contradiction { earlier: *earlier, later: *later });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Effect::*, *};

    fn history(operations: &[(Effect, u64, u64, u64)]) -> Result<(), Contradiction> {
        let operation = |(effect, version, started, ended): &(Effect, u64, u64, u64)| Operation {
            effect: *effect,
            version: *version,
            started: Duration::from_millis(*started),
            ended: Duration::from_millis(*ended),
        };
        check(&operations.iter().map(operation).collect::<Vec<_>>())
    }

    #[test]
    fn what_one_machine_could_have_done_passes() {
        let good: [&[_]; 7] = [
            &[],
            &[(Wrote, 1, 0, 10), (Saw, 1, 11, 20)],
            // While a write is under way, either answer will do.
            &[(Wrote, 1, 0, 10), (Wrote, 2, 20, 30), (Saw, 1, 25, 29), (Saw, 2, 22, 28)],
            // Two writes of one entry.
            &[(Wrote, 5, 0, 10), (Wrote, 5, 2, 12), (Saw, 5, 13, 14)],
            // A write whose author waited long for the answer.
            &[(Wrote, 1, 0, 100), (Saw, 1, 10, 20), (Wrote, 2, 30, 40), (Saw, 2, 50, 60)],
            &[(Saw, 0, 0, 1), (Wrote, 1, 2, 3), (Saw, 1, 4, 5), (Saw, 1, 6, 7)],
            // A paused reader answers late, and started early.
            &[(Saw, 1, 5, 100), (Wrote, 1, 0, 4), (Wrote, 2, 10, 20), (Saw, 2, 30, 40)],
        ];
        for operations in good {
            assert_eq!(history(operations), Ok(()));
        }
    }

    #[test]
    fn what_no_machine_could_have_done_is_found() {
        let bad: [&[_]; 6] = [
            // A stale read.
            &[(Wrote, 1, 0, 10), (Wrote, 2, 20, 30), (Saw, 1, 31, 40)],
            // Two readers who disagree on what came first.
            &[(Wrote, 1, 0, 10), (Wrote, 2, 20, 100), (Saw, 2, 30, 40), (Saw, 1, 50, 60)],
            // An acknowledged write that went missing.
            &[(Wrote, 7, 0, 10), (Saw, 6, 20, 30)],
            // History that went backwards.
            &[(Wrote, 7, 0, 10), (Wrote, 6, 20, 30)],
            // A version that was seen before it was made.
            &[(Saw, 3, 0, 10), (Wrote, 3, 20, 30)],
            // The contradiction is with something older than the last that ended.
            &[(Wrote, 9, 0, 10), (Saw, 9, 2, 12), (Wrote, 2, 0, 14), (Saw, 3, 15, 16)],
        ];
        for operations in bad {
            assert!(history(operations).is_err(), "{operations:?}");
        }
    }
}
