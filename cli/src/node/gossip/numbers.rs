//! The numbers of a node's packets: higher than in any earlier life, or its peers take them for repeated ones.
//!
//! The clock gives the first. One that was ahead and was put right since gives a lower one, so there is always a number on
//! the disk that none has reached yet.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::super::files;

/// So many at a time: a second by the clock, so that starts one after the other do not run ahead of it, and more than a node
/// sends in an hour.
const RESERVED: u64 = 1 << 20;
/// Between tries to reserve more.
const RETRY: Duration = Duration::from_secs(60);

pub(super) struct Numbers {
    file: PathBuf,
    last: u64,
    reserved: Arc<AtomicU64>,
    not_before: Instant,
}

impl Numbers {
    pub(super) fn load(node_dir: &Path) -> Self {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Self::after(node_dir.join("gossip-numbers"), u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn after(file: PathBuf, clock: u64) -> Self {
        let used = fs::read_to_string(&file).ok();
        let mut last = first(clock, used.as_deref(), true);
        let reserved = Arc::default();
        if let Err(error) = reserve(&file, last, &reserved) {
            last = first(clock, used.as_deref(), false);
            tracing::warn!("cannot write down the numbers of gossip: {error:#}");
        }
        Self { file, last, reserved, not_before: Instant::now() + RETRY }
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn next(&mut self) -> u64 {
        self.last = self.last.saturating_add(1);
        self.last
    }

    /// Before there are none left; again after a failure. A slow disk keeps nobody.
    pub(super) fn keep_reserved(&mut self) {
        if self.is_enough() || Instant::now() < self.not_before {
            return;
        }
        self.not_before = Instant::now() + RETRY;
        let (file, last, reserved) = (self.file.clone(), self.last, Arc::clone(&self.reserved));
        tokio::task::spawn_blocking(move || {
            if let Err(error) = reserve(&file, last, &reserved) {
                tracing::debug!("cannot write down the numbers of gossip yet: {error:#}");
            }
        });
    }

    fn is_enough(&self) -> bool {
        self.reserved.load(Ordering::Relaxed) > self.last.saturating_add(RESERVED / 2)
    }
}

/// `reserved` says what is on the disk.
fn reserve(file: &Path, last: u64, reserved: &AtomicU64) -> anyhow::Result<()> {
    let until = last.saturating_add(RESERVED);
    files::write_atomically(file, format!("{until}\n").as_bytes(), 0o600)?;
    reserved.store(until, Ordering::Relaxed);
    Ok(())
}

/// What to begin after. When that cannot be written down, the next life finds the same on the disk as this one: then it also
/// grows with the clock, by more than a node sends meanwhile.
fn first(clock: u64, used: Option<&str>, is_written: bool) -> u64 {
    let used = used.and_then(|text| text.trim().parse().ok()).unwrap_or_default();
    // A damaged file must not use up all numbers there are.
    let used = Some(used).filter(|used| *used < u64::MAX / 2).unwrap_or_default();
    let growing = if is_written { 0 } else { clock / 1024 };
    if clock > used { clock } else { used.saturating_add(growing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_only_go_up() {
        for (clock, used, is_written, want) in [
            (10_000, None, true, 10_000),
            (10_000, Some("9000\n"), true, 10_000),
            (10_000, Some("9000\n"), false, 10_000),
            // The clock was ahead in the life before.
            (10_000, Some("50000\n"), true, 50_000),
            (10_240, Some("50000\n"), false, 50_010),
            (20_480, Some("50000\n"), false, 50_020),
            (10_000, Some("what"), true, 10_000),
            (10_000, Some(""), true, 10_000),
            (10_000, Some("18446744073709551615"), true, 10_000),
        ] {
            assert_eq!(first(clock, used, is_written), want, "{clock} {used:?} {is_written}");
        }
    }

    #[tokio::test]
    async fn a_life_begins_above_the_one_before_and_near_the_clock() {
        const START: u64 = 1_800_000_000_000_000;
        const SECOND: u64 = 1_000_000;
        let dir = tempfile::tempdir().unwrap();
        let life = |clock| Numbers::after(dir.path().join("numbers"), clock);
        // Restarts one after the other, two seconds apart.
        for nth in 0..100 {
            assert_eq!(life(START + nth * 2 * SECOND).last(), START + nth * 2 * SECOND);
        }
        // The clock was put right, and the node sent more than it had reserved at first.
        let mut numbers = life(START);
        let begun = numbers.last();
        for _ in 0..RESERVED {
            numbers.next();
        }
        assert_eq!((numbers.last(), numbers.is_enough()), (begun + RESERVED, false));
        numbers.not_before = Instant::now();
        numbers.keep_reserved();
        while !numbers.is_enough() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(life(START).last() > numbers.last());
    }

    #[test]
    fn what_cannot_be_written_down_grows_with_the_clock() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("numbers");
        fs::write(&file, "50000\n").unwrap();
        // In the way of the new file.
        fs::create_dir(file.with_extension("tmp")).unwrap();
        let (one, two) = (Numbers::after(file.clone(), 10_240), Numbers::after(file, 20_480));
        assert_eq!((one.last(), two.last(), two.is_enough()), (50_010, 50_020, false));
    }
}
