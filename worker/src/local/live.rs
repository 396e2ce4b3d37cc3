//! What is done to a running one-off container besides starting and stopping it: pause, new limits.

use orch_model::service::{ResourceLimits, TaskSpec};
use orch_proto::{conv::FromProto, wire::UpdateContainerRequest};

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
        let new = NewLimits {
            nano_cpus: request.nano_cpus,
            memory_bytes: request.memory_bytes,
            memory_swap_bytes: request.memory_swap_bytes.or_else(|| {
                // As when it was made: as much swap as memory.
                let bytes = request.memory_bytes.filter(|&bytes| bytes > 0)?;
                i64::try_from(bytes.saturating_mul(2)).ok()
            }),
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
            limits.memory_bytes = request.memory_bytes.unwrap_or(limits.memory_bytes);
            limits.pids = request.pids.unwrap_or(limits.pids);
            let more = now.record.options.get_or_insert_default().limits.get_or_insert_default();
            more.cpu_shares = request.cpu_shares.unwrap_or(more.cpu_shares);
            more.memory_swap_bytes = request.memory_swap_bytes.unwrap_or(more.memory_swap_bytes);
            more.memory_reservation_bytes = request.memory_reservation_bytes.unwrap_or(more.memory_reservation_bytes);
            if let Some(cpus) = request.cpuset_cpus {
                more.cpuset_cpus = cpus;
            }
        });
        self.tell(one, "update");
        Ok(())
    }
}

/// The specification with the limits that it has by now.
pub(super) fn spec_now(one: &One) -> TaskSpec {
    let record = one.now().record.clone();
    let limits = record.spec.and_then(|spec| spec.limits).and_then(|limits| ResourceLimits::from_proto(limits).ok());
    TaskSpec { limits: limits.unwrap_or(one.task.spec.limits), ..one.task.spec.as_ref().clone() }
}
