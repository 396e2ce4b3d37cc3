//! The seeds that are run, and the bugs that must be found.

use std::path::PathBuf;

use super::{
    disk::Durability,
    world::{Bug, Summary, run},
};

/// How many seeds, from the environment; `ORCH_SIM_SEED` names one.
const COUNT_VAR: &str = "ORCH_SIM_SEEDS";
const FIRST_VAR: &str = "ORCH_SIM_FIRST";
const SEED_VAR: &str = "ORCH_SIM_SEED";
const DEFAULT_COUNT: u64 = 200;
/// Tests that share them, so that more than one processor is used.
const PARTS: u64 = 4;
/// A bug must be found within so many seeds.
const BUG_SEEDS: u64 = 40;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

/// In memory where the machine has such a folder: snapshots are files.
fn scratch() -> tempfile::TempDir {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap()
}

fn passes(seed: u64) -> Summary {
    let dir = scratch();
    match run(seed, Bug::None, dir.path()) {
        Ok(summary) => summary,
        Err(failure) => {
            let story = failure.story.join("\n");
            panic!(
                "{story}\n\nseed {seed}: {}\nagain with: {SEED_VAR}={seed} cargo nextest run -p orch-manager simulation::seeds",
                failure.violation
            );
        }
    }
}

fn part(part: u64) {
    if let Some(seed) = number(SEED_VAR) {
        if part == 0 {
            println!("seed {seed}: {:?}", passes(seed));
        }
        return;
    }
    let (first, count) = (number(FIRST_VAR).unwrap_or(1), number(COUNT_VAR).unwrap_or(DEFAULT_COUNT));
    let mut total = Summary::default();
    let mut run = 0;
    for seed in (first..first + count).filter(|seed| seed % PARTS == part) {
        let summary = passes(seed);
        total.add(&summary);
        run += 1;
    }
    println!("{run} seeds: {total:?}");
    if run >= 20 {
        let Summary { acknowledged, reads, compared_states, installed, crashes, pauses, membership_changes, .. } =
            total;
        let seen = [acknowledged as u64, reads as u64, compared_states, installed, crashes, pauses, membership_changes];
        assert!(seen.iter().all(|count| *count > 0), "something is never simulated: {total:?}");
        let carried = [total.carried.lost, total.carried.duplicates, total.carried.snapshots];
        assert!(carried.iter().all(|count| *count > 0), "the network is too good: {total:?}");
    }
}

#[test]
fn seeds_part_1_hold() {
    part(0);
}

#[test]
fn seeds_part_2_hold() {
    part(1);
}

#[test]
fn seeds_part_3_hold() {
    part(2);
}

#[test]
fn seeds_part_4_hold() {
    part(3);
}

#[test]
fn a_seed_decides_everything() {
    for seed in [3, 4] {
        let (once, again) = (passes(seed), passes(seed));
        assert_eq!(format!("{once:?}"), format!("{again:?}"), "seed {seed}");
        assert_ne!(once.fingerprint, passes(seed + 10).fingerprint);
    }
}

/// What the first seed says that notices this bug.
fn found(bug: Bug) -> String {
    for seed in 1..=BUG_SEEDS {
        let dir = scratch();
        if let Err(failure) = run(seed, bug, dir.path()) {
            println!("{bug:?}: seed {seed}: {}", failure.violation);
            return failure.violation.to_string();
        }
    }
    panic!("{bug:?} was not noticed in {BUG_SEEDS} seeds");
}

#[test]
fn a_log_that_acknowledges_before_it_is_safe_is_found() {
    found(Bug::Disk(Durability::AcknowledgesEarly));
}

#[test]
fn votes_that_are_forgotten_are_found() {
    found(Bug::Disk(Durability::LosesVotes));
}

#[test]
fn reads_that_ask_nobody_are_found() {
    assert!(found(Bug::ReadsWithoutAsking).contains("linearizable"));
}

#[test]
fn writes_that_are_repeated_blindly_are_found() {
    assert!(found(Bug::RepeatsWrites).contains("applied"));
}
