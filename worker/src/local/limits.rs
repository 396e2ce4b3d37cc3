//! Limits of one-off containers that fit neither each other nor this node: refused in Docker's words, before anything is made.

use std::{fs, path::Path};

use orch_proto::wire::LocalLimits;

use super::LocalError;
use crate::agent::describe;

/// With less than this the kernel cannot even start a program.
const MIN_MEMORY_BYTES: u64 = 6 << 20;
/// The kernel takes no less than a thousandth of a second of each tenth.
const MIN_NANO_CPUS: u64 = 10_000_000;
const CPUS: &str = "/sys/devices/system/cpu/online";
const MEMORY_NODES: &str = "/sys/devices/system/node/online";

pub(super) fn check(memory_bytes: u64, limits: &LocalLimits) -> Result<(), LocalError> {
    memory(memory_bytes, limits)?;
    processors(limits)
}

/// That the CPUs and memory nodes are there.
pub(super) fn processors(limits: &LocalLimits) -> Result<(), LocalError> {
    for (what, wanted, file) in
        [("CPUs", &limits.cpuset_cpus, CPUS), ("memory nodes", &limits.cpuset_mems, MEMORY_NODES)]
    {
        // A kernel that does not say what it has is asked when the container starts.
        let Ok(there) = fs::read_to_string(Path::new(file)) else { continue };
        let there = there.trim();
        if !wanted.is_empty() && !is_within(wanted, there) {
            return Err(LocalError::Invalid(format!(
                "Requested {what} are not available - requested {wanted}, available: {there}"
            )));
        }
    }
    Ok(())
}

/// What `--cpus` comes to; 0: no limit.
pub(super) fn cpus(nano_cpus: u64) -> Result<(), LocalError> {
    let there = describe::cpus();
    let most = there.saturating_mul(describe::NANOS_PER_CPU);
    if nano_cpus == 0 || (MIN_NANO_CPUS..=most).contains(&nano_cpus) {
        return Ok(());
    }
    Err(LocalError::Invalid(format!(
        "Range of CPUs is from 0.01 to {there}.00, as there are only {there} CPUs available"
    )))
}

pub(super) fn memory(bytes: u64, limits: &LocalLimits) -> Result<(), LocalError> {
    let reserved = limits.memory_reservation_bytes;
    // -1 is without limit.
    let with_swap = u64::try_from(limits.memory_swap_bytes).unwrap_or(0);
    let refusal = if bytes > 0 && bytes < MIN_MEMORY_BYTES {
        "Minimum memory limit allowed is 6MB"
    } else if with_swap > 0 && bytes == 0 {
        "You should always set the Memory limit when using Memoryswap limit, see usage"
    } else if with_swap > 0 && with_swap < bytes {
        "Minimum memoryswap limit should be larger than memory limit, see usage"
    } else if reserved > 0 && reserved < MIN_MEMORY_BYTES {
        "Minimum memory reservation allowed is 6MB"
    } else if bytes > 0 && reserved > bytes {
        "Minimum memory limit can not be less than memory reservation limit, see usage"
    } else {
        return Ok(());
    };
    Err(LocalError::Invalid(refusal.to_owned()))
}

/// Whether all numbers of one list such as `0-3,5` are in the other.
fn is_within(wanted: &str, there: &str) -> bool {
    let ranges = |list: &str| -> Option<Vec<(u32, u32)>> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        list.split(',').map(range).collect()
    };
    let (Some(wanted), Some(there)) = (ranges(wanted), ranges(there)) else { return false };
    // The kernel's list is short and in order: what lies next to each other is one range.
    wanted.iter().all(|(first, last)| there.iter().any(|(from, to)| from <= first && last <= to && first <= last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: u64, limits: &LocalLimits) -> String {
        check(bytes, limits).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_limit_is_a_hundredth_of_a_processor_or_more_and_what_there_is_at_most() {
        let most = describe::cpus() * describe::NANOS_PER_CPU;
        for (nano_cpus, fits) in
            [(0, true), (1, false), (9_999_999, false), (MIN_NANO_CPUS, true), (most, true), (most + 1, false)]
        {
            let said = cpus(nano_cpus).map_err(|error| error.to_string());
            assert_eq!(said.is_ok(), fits, "{nano_cpus}: {said:?}");
            assert!(said.err().is_none_or(|said| said.starts_with("Range of CPUs is from 0.01 to ")));
        }
    }

    #[test]
    fn memory_fits_itself() {
        let mb = |count: u64| count << 20;
        let limits = |swap: i64, reserved: u64| LocalLimits {
            memory_swap_bytes: swap << 20,
            memory_reservation_bytes: mb(reserved),
            ..LocalLimits::default()
        };
        let without_limit = LocalLimits { memory_swap_bytes: -1, ..LocalLimits::default() };
        for (bytes, limits) in [
            (0, limits(0, 0)),
            (mb(64), limits(64, 64)),
            (mb(64), without_limit),
            (0, limits(0, 8)),
            (mb(6), limits(0, 6)),
        ] {
            assert_eq!(said(bytes, &limits), "");
        }
        for (bytes, limits, words) in [
            (1024, limits(0, 0), "Minimum memory limit allowed is 6MB"),
            (0, limits(64, 0), "always set the Memory limit"),
            (mb(64), limits(32, 0), "memoryswap limit should be larger"),
            (mb(64), limits(0, 5), "Minimum memory reservation allowed is 6MB"),
            (mb(64), limits(0, 128), "can not be less than memory reservation"),
        ] {
            assert!(said(bytes, &limits).contains(words), "{words}: {}", said(bytes, &limits));
        }
    }

    #[test]
    fn processors_are_those_that_there_are() {
        for (wanted, there, fits) in [
            ("0", "0-1", true),
            ("0-1", "0-1", true),
            ("1,0", "0-1", true),
            ("2", "0-1", false),
            ("0-2", "0-1", false),
            ("3", "0-1,3", true),
            ("1-0", "0-1", false),
            ("x", "0-1", false),
        ] {
            assert_eq!(is_within(wanted, there), fits, "{wanted} of {there}");
        }
        let wanted = LocalLimits { cpuset_cpus: "4000".into(), ..LocalLimits::default() };
        assert!(said(0, &wanted).starts_with("Requested CPUs are not available - requested 4000, available: "));
    }
}
