//! Puts the lines of many tasks in the order of their times, as far as that is possible without waiting for ever.
//!
//! Each source is in order by itself. A line goes out when no open source could still give an earlier one: when each has
//! its next line here, has ended, or has been silent for its grace. Pure: the time is an argument.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// So long the first line of a source is waited for, and each while none is followed.
const FIRST: Duration = Duration::from_secs(2);
/// So long a followed source that has spoken holds up the others.
const NEXT: Duration = Duration::from_millis(50);
/// Beyond this many lines nobody is waited for.
const LIMIT: usize = 4096;

/// What is held back of each source.
pub(super) struct Merger<T> {
    follow: bool,
    sources: BTreeMap<usize, Source<T>>,
    held: usize,
}

struct Source<T> {
    lines: VecDeque<(u64, T)>,
    is_open: bool,
    has_spoken: bool,
    /// Since when there is nothing of it.
    silent_since: Duration,
}

impl<T> Merger<T> {
    pub(super) fn new(follow: bool) -> Self {
        Self { follow, sources: BTreeMap::new(), held: 0 }
    }

    pub(super) fn open(&mut self, source: usize, now: Duration) {
        let new = Source { lines: VecDeque::new(), is_open: true, has_spoken: false, silent_since: now };
        self.sources.insert(source, new);
    }

    pub(super) fn put(&mut self, source: usize, at: u64, line: T) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.lines.push_back((at, line));
            source.has_spoken = true;
            self.held += 1;
        }
    }

    pub(super) fn end(&mut self, source: usize) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.is_open = false;
        }
    }

    /// The next line, if it may go out now.
    pub(super) fn next(&mut self, now: Duration) -> Option<T> {
        self.sources.retain(|_, source| source.is_open || !source.lines.is_empty());
        let may_come_earlier = |source: &Source<T>| self.silence(source).is_some_and(|until| now < until);
        if self.held < LIMIT && self.sources.values().any(may_come_earlier) {
            return None;
        }
        let earliest = |source: &&mut Source<T>| source.lines.front().map(|(at, _)| *at);
        let source = self.sources.values_mut().filter(|source| !source.lines.is_empty()).min_by_key(earliest)?;
        let (_, line) = source.lines.pop_front()?;
        source.silent_since = now;
        self.held -= 1;
        Some(line)
    }

    /// Whether nothing is held back.
    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// When [`Self::next`] may have something although nothing was put in.
    pub(super) fn wake(&self) -> Option<Duration> {
        if self.held == 0 {
            return None;
        }
        self.sources.values().filter_map(|source| self.silence(source)).max()
    }

    /// Until when a source that has nothing here holds up the others.
    fn silence(&self, source: &Source<T>) -> Option<Duration> {
        let grace = if self.follow && source.has_spoken { NEXT } else { FIRST };
        (source.is_open && source.lines.is_empty()).then(|| source.silent_since + grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);

    fn all(merger: &mut Merger<u64>, now: Duration) -> Vec<u64> {
        std::iter::from_fn(|| merger.next(now)).collect()
    }

    fn two(follow: bool) -> Merger<u64> {
        let mut merger = Merger::new(follow);
        merger.open(1, START);
        merger.open(2, START);
        merger
    }

    #[test]
    fn lines_come_in_the_order_of_their_times() {
        let mut merger = two(false);
        for at in [1, 4, 6] {
            merger.put(1, at, at);
        }
        assert_eq!(all(&mut merger, START), [0; 0], "the second may have an earlier one");
        for at in [2, 3] {
            merger.put(2, at, at);
        }
        assert_eq!(all(&mut merger, START), [1, 2, 3], "and then one between");
        merger.end(2);
        assert_eq!(all(&mut merger, START), [4, 6]);
        merger.end(1);
        assert_eq!((all(&mut merger, START), merger.wake()), (Vec::new(), None));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut merger = two(true);
        merger.put(1, 5, 5);
        assert_eq!((all(&mut merger, START), merger.wake()), (Vec::new(), Some(START + FIRST)));
        assert_eq!(all(&mut merger, START + FIRST), [5]);
        // Once it has spoken, a followed source is waited for much shorter.
        let later = START + FIRST;
        merger.put(2, 6, 6);
        assert_eq!(all(&mut merger, later), [0; 0]);
        assert_eq!(all(&mut merger, later + NEXT), [6]);
        merger.put(1, 8, 8);
        assert_eq!(merger.wake(), Some(later + NEXT + NEXT));
        assert_eq!(all(&mut merger, later + NEXT * 2), [8]);
    }

    #[test]
    fn what_is_held_has_a_limit() {
        let mut merger = two(false);
        (0..LIMIT as u64 + 10).for_each(|at| merger.put(1, at, at));
        assert_eq!(all(&mut merger, START).len(), 11);
    }
}
