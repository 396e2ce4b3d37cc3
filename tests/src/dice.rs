//! Random choices that a seed repeats.

/// A small generator (SplitMix64): the same seed throws the same numbers on every machine.
#[derive(Debug, Clone)]
pub struct Dice {
    state: u64,
}

impl Dice {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Dice of another thread, which depend on these but not on how often either is thrown later.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.next())
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `low` to `high`, both possible.
    #[must_use]
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "{low} is above {high}");
        low + self.next() % (high - low + 1)
    }

    /// One in `n` times.
    #[must_use]
    pub fn one_in(&mut self, n: u64) -> bool {
        self.between(1, n) == 1
    }

    #[must_use]
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let last = u64::try_from(from.len() - 1).expect("a length");
        &from[usize::try_from(self.between(0, last)).expect("an index")]
    }
}
