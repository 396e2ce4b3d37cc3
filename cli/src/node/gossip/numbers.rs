//! With which number a node's packets begin: higher than in any earlier life, or its peers take them for repeated ones.
//!
//! The clock gives it. One that was ahead and was put right since gives a lower one, so what may have been used is on the disk.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::super::files;

/// More than a node sends while it is up, and little enough to add at each start: an hour by the clock.
const RESERVED: u64 = 1 << 32;

pub(super) fn first(node_dir: &Path) -> u64 {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let used = fs::read_to_string(file(node_dir)).ok();
    let first = after(u64::try_from(micros).unwrap_or(u64::MAX), used.as_deref());
    let now_used = first.saturating_add(RESERVED);
    if let Err(error) = files::write_atomically(&file(node_dir), format!("{now_used}\n").as_bytes(), 0o600) {
        tracing::warn!("cannot write down the numbers of gossip: {error:#}");
    }
    first
}

fn file(node_dir: &Path) -> PathBuf {
    node_dir.join("gossip-numbers")
}

fn after(clock: u64, used: Option<&str>) -> u64 {
    let used = used.and_then(|text| text.trim().parse().ok()).unwrap_or_default();
    // A damaged file must not use up all numbers there are.
    clock.max(Some(used).filter(|used| *used < u64::MAX / 2).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_only_go_up() {
        for (clock, used, want) in [
            (1_000, None, 1_000),
            (1_000, Some("900\n"), 1_000),
            // The clock was ahead in the life before.
            (1_000, Some("5000\n"), 5_000),
            (1_000, Some("what"), 1_000),
            (1_000, Some(""), 1_000),
            (1_000, Some("18446744073709551615"), 1_000),
        ] {
            assert_eq!(after(clock, used), want, "{clock} {used:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (first(dir.path()), first(dir.path()));
        assert!(two >= one + RESERVED, "{one} {two}");
    }
}
