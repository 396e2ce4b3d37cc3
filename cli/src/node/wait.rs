//! Waiting, with a limit, until a daemon that was started does its work.

use std::time::Duration;

use anyhow::anyhow;
use orch_proto::{
    paths::Paths,
    transport::unix_channel,
    wire::{self, control_client::ControlClient, worker_local_client::WorkerLocalClient},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    daemon::{Role, log_tail},
    error::{NodeError, Result},
    supervisor::Supervisor,
};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
const READY_LIMIT: Duration = Duration::from_secs(30);
/// A daemon that ended this often will not come up.
const MAX_RESTARTS: u64 = 3;

/// Until the manager of this node knows a leader.
pub(super) async fn manager_ready(supervisor: &Supervisor) -> Result<()> {
    until_ready(supervisor, Role::Manager, "knows no leader").await
}

/// Until the worker of this node has a session with a manager.
pub(super) async fn worker_ready(supervisor: &Supervisor) -> Result<()> {
    until_ready(supervisor, Role::Worker, "has no session with a manager").await
}

async fn until_ready(supervisor: &Supervisor, role: Role, otherwise: &str) -> Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        if let Ok(Some(true)) = timeout(ANSWER_LIMIT, is_ready(&supervisor.paths, role)).await {
            return Ok(());
        }
        let died = supervisor.restarts(role) >= MAX_RESTARTS;
        if died || Instant::now() >= deadline {
            let name = role.word();
            let problem = if died {
                "ends as soon as it starts".to_owned()
            } else {
                format!("{otherwise} after {} s", READY_LIMIT.as_secs())
            };
            let log = log_tail(&supervisor.paths, name);
            return Err(NodeError::Failed(anyhow!("the {name} of this node {problem}; the end of its log:\n{log}")));
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// `None` while the daemon does not answer.
async fn is_ready(paths: &Paths, role: Role) -> Option<bool> {
    match role {
        Role::Manager => {
            let channel = unix_channel(&paths.manager_sock()).await.ok()?;
            let info = ControlClient::new(channel).info(wire::Empty {}).await.ok()?;
            Some(!info.into_inner().leader_id.is_empty())
        }
        Role::Worker => {
            let channel = unix_channel(&paths.worker_sock()).await.ok()?;
            let info = WorkerLocalClient::new(channel).info(wire::Empty {}).await.ok()?;
            Some(!info.into_inner().manager.is_empty())
        }
        Role::Netd => unix_channel(&paths.netd_sock()).await.ok().map(|_| true),
    }
}
