//! What is done to a running one-off container besides starting and stopping it: pause, new limits.

use orch_model::service::{ResourceLimits, TaskSpec};
use orch_proto::{
    conv::FromProto,
    wire::{LocalContainer, LocalLimits, UpdateContainerRequest},
};

use super::{LocalError, Locals, One, limits, policy::Restart};
use crate::runtime::{Container, NewLimits};

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
        // Checked as a whole, also when it does not run: else its next start would fail.
        let (memory_bytes, more) = updated(&one.now().record, &request);
        limits::check(memory_bytes, &more)?;
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

/// The memory limit and the other limits that it has with these new ones. Swap that was a number goes with the memory that
/// it was meant for: from then on it is as much as memory, as when it was made.
fn updated(record: &LocalContainer, request: &UpdateContainerRequest) -> (u64, LocalLimits) {
    let memory_now = record.spec.as_ref().and_then(|spec| spec.limits.as_ref()).map_or(0, |limits| limits.memory_bytes);
    let now = record.options.as_ref().and_then(|options| options.limits.clone()).unwrap_or_default();
    let kept_swap = if request.memory_bytes.is_some() { now.memory_swap_bytes.min(0) } else { now.memory_swap_bytes };
    let more = LocalLimits {
        cpu_shares: request.cpu_shares.unwrap_or(now.cpu_shares),
        memory_swap_bytes: request.memory_swap_bytes.unwrap_or(kept_swap),
        memory_reservation_bytes: request.memory_reservation_bytes.unwrap_or(now.memory_reservation_bytes),
        cpuset_cpus: request.cpuset_cpus.clone().unwrap_or_else(|| now.cpuset_cpus.clone()),
        ..now
    };
    (request.memory_bytes.unwrap_or(memory_now), more)
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
            ((64, 96), (Some(128), None), (128, 0, Some(256))),
            ((64, 96), (None, Some(128)), (64, 128, Some(128))),
            ((64, 96), (Some(0), None), (0, 0, None)),
            ((64, -1), (Some(128), None), (128, -1, Some(-1))),
            ((64, 96), (None, None), (64, 96, None)),
            ((64, 96), (Some(32), Some(48)), (32, 48, Some(48))),
        ] {
            let mb = |count: i64| if count > 0 { count << 20 } else { count };
            let bytes = |count: u64| count << 20;
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
            let (memory, limits) = updated(&record, &request);
            let told = new_swap(memory, limits.memory_swap_bytes, &request);
            assert_eq!((memory, limits.memory_swap_bytes), (bytes(want.0), mb(want.1)), "{before:?} {new:?}");
            assert_eq!((told, limits.cpu_shares), (want.2.map(mb), 7), "{before:?} {new:?}");
        }
    }
}
