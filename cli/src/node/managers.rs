//! Which managers this node can turn to.

use std::time::Duration;

use orch_proto::{
    transport::unix_channel,
    wire::{self, control_client::ControlClient, worker_local_client::WorkerLocalClient},
};
use tokio::time::timeout;

use super::{member::Member, supervisor::Supervisor};

const ASK_LIMIT: Duration = Duration::from_secs(2);

/// Addresses of managers as this node's own daemons know them now, then those it was told earlier.
pub(super) async fn known(supervisor: &Supervisor, member: &Member) -> Vec<String> {
    let fresh = timeout(ASK_LIMIT, ask_own_daemon(supervisor, member)).await.ok().flatten();
    let mut known = fresh.unwrap_or_default();
    if member.manager && !known.is_empty() {
        // A manager knows them all; older addresses would only be those of managers that left.
        return known;
    }
    for addr in &member.managers {
        if !known.contains(addr) {
            known.push(addr.clone());
        }
    }
    known
}

async fn ask_own_daemon(supervisor: &Supervisor, member: &Member) -> Option<Vec<String>> {
    if member.manager {
        let channel = unix_channel(&supervisor.paths.manager_sock()).await.ok()?;
        Some(ControlClient::new(channel).info(wire::Empty {}).await.ok()?.into_inner().manager_addrs)
    } else {
        let channel = unix_channel(&supervisor.paths.worker_sock()).await.ok()?;
        let manager = WorkerLocalClient::new(channel).info(wire::Empty {}).await.ok()?.into_inner().manager;
        Some(if manager.is_empty() { Vec::new() } else { vec![manager] })
    }
}
