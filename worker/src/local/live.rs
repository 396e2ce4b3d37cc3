//! What is done to a running one-off container besides starting and stopping it: pause, new limits.

use orch_model::service::{ResourceLimits, TaskSpec};
use orch_proto::{
    conv::FromProto,
    wire::{LocalContainer, LocalLimits, UpdateContainerRequest},
};

use super::{LocalError, Locals, One, limits, policy::Restart};
use crate::runtime::{Container, NewLimits};

/// Docker's words.
const SWAP_TOO_SMALL: &str =
    "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time";

impl Locals {
    pub(crate) async fn set_paused(&self, one: &One, paused: bool) -> Result<(), LocalError> {
        let _turn = one.turn.lock().await;
        let container = one.container().ok_or_else(|| LocalError::NotRunning(one.container_id()))?;
        let now = one.now().record.paused;
        match (now, paused) {
            (true, true) => {
                return Err(LocalError::Invalid(format!("Container {} is already paused", one.container_id())));
            }
            (false, false) => {
                return Err(LocalError::Invalid(format!("Container {} is not paused", one.container_id())));
            }
            _ => container.set_frozen(paused).await?,
        }
        self.change(one, |now| now.record.paused = paused);
        self.tell(one, if paused { "pause" } else { "unpause" });
        Ok(())
    }

    /// Lets it hear a signal.
    pub(super) async fn thaw(&self, one: &One, container: &Container) -> Result<(), LocalError> {
        if one.now().record.paused {
            container.set_frozen(false).await?;
            self.change(one, |now| now.record.paused = false);
        }
        Ok(())
    }

    /// New limits, now and for later starts.
    pub(crate) async fn update(&self, one: &One, request: UpdateContainerRequest) -> Result<(), LocalError> {
        let _turn = one.turn.lock().await;
        if one.is_removed() {
            return Err(LocalError::NotFound(one.container_id()));
        }
        if let Some(restart) = &request.restart {
            Restart::parse(Some(restart))?;
            if one.now().record.auto_remove && restart.condition != "no" {
                return Err(LocalError::Invalid(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container".to_owned(),
                ));
            }
        }
        limits::cpus(request.nano_cpus.unwrap_or(0))?;
        // Also when it does not run: else its next start would fail.
        let (memory_bytes, more) = updated(&one.now().record, &request)?;
        check(&request, memory_bytes, &more)?;
        let new = NewLimits {
            nano_cpus: request.nano_cpus,
            // Where swap is counted apart (version 2), one of the two says nothing without the other.
            memory_bytes: changes_memory(&request).then_some(memory_bytes),
            memory_swap_bytes: new_swap(memory_bytes, more.memory_swap_bytes, &request),
            memory_reservation_bytes: request.memory_reservation_bytes,
            pids: request.pids,
            cpu_shares: request.cpu_shares,
            cpuset_cpus: request.cpuset_cpus.clone(),
        };
        if let Some(container) = one.container() {
            container.set_limits(new).await?;
        }
        self.change(one, |now| {
            if let Some(restart) = &request.restart {
                now.record.restart = Some(restart.clone());
            }
            let spec = now.record.spec.get_or_insert_default();
            let limits = spec.limits.get_or_insert_default();
            limits.nano_cpus = request.nano_cpus.unwrap_or(limits.nano_cpus);
            limits.memory_bytes = memory_bytes;
            limits.pids = request.pids.unwrap_or(limits.pids);
            now.record.options.get_or_insert_default().limits = Some(more);
        });
        self.tell(one, "update");
        Ok(())
    }
}

/// The memory limit and the other limits that it has with these new ones. A number for swap stays, and goes with the limit
/// of memory only.
fn updated(record: &LocalContainer, request: &UpdateContainerRequest) -> Result<(u64, LocalLimits), LocalError> {
    let memory_now = record.spec.as_ref().and_then(|spec| spec.limits.as_ref()).map_or(0, |limits| limits.memory_bytes);
    let now = record.options.as_ref().and_then(|options| options.limits.clone()).unwrap_or_default();
    let kept_swap = match request.memory_bytes {
        Some(0) => now.memory_swap_bytes.min(0),
        // As much as it is, or somebody who was to have little swap would get more.
        Some(bytes) if request.memory_swap_bytes.is_none() && is_below(now.memory_swap_bytes, bytes) => {
            return Err(LocalError::Invalid(SWAP_TOO_SMALL.to_owned()));
        }
        _ => now.memory_swap_bytes,
    };
    let more = LocalLimits {
        cpu_shares: request.cpu_shares.unwrap_or(now.cpu_shares),
        memory_swap_bytes: request.memory_swap_bytes.unwrap_or(kept_swap),
        memory_reservation_bytes: request.memory_reservation_bytes.unwrap_or(now.memory_reservation_bytes),
        cpuset_cpus: request.cpuset_cpus.clone().unwrap_or_else(|| now.cpuset_cpus.clone()),
        ..now
    };
    Ok((request.memory_bytes.unwrap_or(memory_now), more))
}

/// Whether memory and swap together are a number, and less than memory.
fn is_below(swap: i64, memory_bytes: u64) -> bool {
    u64::try_from(swap).is_ok_and(|swap| swap > 0 && swap < memory_bytes)
}

/// What was not asked for is no reason to refuse.
fn check(request: &UpdateContainerRequest, memory_bytes: u64, more: &LocalLimits) -> Result<(), LocalError> {
    if changes_memory(request) || request.memory_reservation_bytes.is_some() {
        limits::memory(memory_bytes, more)?;
    }
    if request.cpuset_cpus.is_some() { limits::processors(more) } else { Ok(()) }
}

fn changes_memory(request: &UpdateContainerRequest) -> bool {
    request.memory_bytes.is_some() || request.memory_swap_bytes.is_some()
}

/// What the kernel is told about memory and swap together, when one of them is new.
fn new_swap(memory_bytes: u64, swap: i64, request: &UpdateContainerRequest) -> Option<i64> {
    match swap {
        _ if !changes_memory(request) => None,
        0 if memory_bytes > 0 => i64::try_from(memory_bytes.saturating_mul(2)).ok(),
        0 => None,
        swap => Some(swap),
    }
}

/// The specification with the limits that it has by now.
pub(super) fn spec_now(one: &One) -> TaskSpec {
    let record = one.now().record.clone();
    let limits = record.spec.and_then(|spec| spec.limits).and_then(|limits| ResourceLimits::from_proto(limits).ok());
    TaskSpec { limits: limits.unwrap_or(one.task.spec.limits), ..one.task.spec.as_ref().clone() }
}

#[cfg(test)]
mod tests {
    use orch_proto::wire;

    use super::*;

    #[test]
    fn new_limits_fit_the_old_ones() {
        // In MB: memory and swap before, new memory, new swap; memory, swap, and what the kernel is told of swap.
        for (before, new, want) in [
            ((0, 0), (Some(64), None), (64, 0, Some(128))),
            ((64, 96), (Some(80), None), (80, 96, Some(96))),
            ((64, 96), (Some(96), None), (96, 96, Some(96))),
            ((64, 64), (Some(128), Some(128)), (128, 128, Some(128))),
            ((64, 96), (None, Some(128)), (64, 128, Some(128))),
            ((64, 96), (Some(0), None), (0, 0, None)),
            ((64, -1), (Some(128), None), (128, -1, Some(-1))),
            ((64, 96), (None, None), (64, 96, None)),
            ((64, 96), (Some(32), Some(48)), (32, 48, Some(48))),
        ] {
            let (record, request) = given(before, new);
            let (memory, limits) = updated(&record, &request).unwrap();
            let told = new_swap(memory, limits.memory_swap_bytes, &request);
            assert_eq!((memory, limits.memory_swap_bytes), (bytes(want.0), mb(want.1)), "{before:?} {new:?}");
            assert_eq!((told, limits.cpu_shares), (want.2.map(mb), 7), "{before:?} {new:?}");
        }
        // Nobody gets swap that he was made without.
        for (before, new) in [((64, 64), (Some(128), None)), ((64, 96), (Some(128), None))] {
            let (record, request) = given(before, new);
            assert_eq!(updated(&record, &request).unwrap_err().to_string(), SWAP_TOO_SMALL, "{before:?} {new:?}");
        }
    }

    #[test]
    fn an_update_is_refused_for_what_it_asks_only() {
        // Of an earlier version, or of a machine that has fewer processors by now.
        let odd = LocalLimits { memory_swap_bytes: mb(16), cpuset_cpus: "4000".into(), ..Default::default() };
        for (request, said) in [
            (UpdateContainerRequest { pids: Some(7), ..Default::default() }, ""),
            (
                UpdateContainerRequest { memory_reservation_bytes: Some(bytes(8)), ..Default::default() },
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ),
            (
                UpdateContainerRequest { cpuset_cpus: Some("4000".into()), ..Default::default() },
                "Requested CPUs are not available - requested 4000, available: ",
            ),
        ] {
            let refused = check(&request, bytes(64), &odd).map_or_else(|error| error.to_string(), |()| String::new());
            assert!(refused.starts_with(said) && refused.is_empty() == said.is_empty(), "{request:?}: {refused}");
        }
    }

    fn mb(count: i64) -> i64 {
        if count > 0 { count << 20 } else { count }
    }

    fn bytes(count: u64) -> u64 {
        count << 20
    }

    /// A container with these limits of memory and swap, and a request for others.
    fn given(before: (u64, i64), new: (Option<u64>, Option<i64>)) -> (LocalContainer, UpdateContainerRequest) {
        let limits = wire::ResourceLimits { memory_bytes: bytes(before.0), ..Default::default() };
        let more = LocalLimits { memory_swap_bytes: mb(before.1), cpu_shares: 7, ..Default::default() };
        let record = LocalContainer {
            spec: Some(wire::TaskSpec { limits: Some(limits), ..Default::default() }),
            options: Some(wire::LocalOptions { limits: Some(more), ..Default::default() }),
            ..Default::default()
        };
        let request = UpdateContainerRequest {
            memory_bytes: new.0.map(bytes),
            memory_swap_bytes: new.1.map(mb),
            ..Default::default()
        };
        (record, request)
    }
}
