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
    let (listed, in_session) = tokio::join!(
        async { if member.manager { ask(own_manager(supervisor)).await } else { None } },
        ask(own_worker(supervisor)),
    );
    let mut known = listed.unwrap_or_default();
    // A manager knows them all; older addresses would only be those of managers that left.
    let older = if known.is_empty() { &member.managers[..] } else { &[] };
    for addr in in_session.iter().chain(older) {
        if !known.contains(addr) {
            known.push(addr.clone());
        }
    }
    known
}

async fn ask<T>(question: impl Future<Output = Option<T>>) -> Option<T> {
    timeout(ASK_LIMIT, question).await.ok().flatten()
}

async fn own_manager(supervisor: &Supervisor) -> Option<Vec<String>> {
    let channel = unix_channel(&supervisor.paths.manager_sock()).await.ok()?;
    Some(ControlClient::new(channel).info(wire::Empty {}).await.ok()?.into_inner().manager_addrs)
}

/// The manager that this node's worker has a session with.
async fn own_worker(supervisor: &Supervisor) -> Option<String> {
    let channel = unix_channel(&supervisor.paths.worker_sock()).await.ok()?;
    let manager = WorkerLocalClient::new(channel).info(wire::Empty {}).await.ok()?.into_inner().manager;
    Some(manager).filter(|addr| !addr.is_empty())
}
