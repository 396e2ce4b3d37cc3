//! Waiting, with a limit, until a daemon that was started does its work.

use std::time::Duration;

use anyhow::anyhow;
use orch_proto::{
    code,
    paths::Paths,
    transport::unix_channel,
    wire::{self, control_client::ControlClient, worker_local_client::WorkerLocalClient},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    daemon::{LAST_LINES, Role, log_tail},
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
    manager_ready_within(supervisor, READY_LIMIT).await
}

/// As [`manager_ready`], for one that may have much to read.
pub(super) async fn manager_ready_within(supervisor: &Supervisor, limit: Duration) -> Result<()> {
    until_ready(supervisor, Role::Manager, "knows no leader", limit).await
}

/// Until the worker of this node has a session with a manager.
pub(super) async fn worker_ready(supervisor: &Supervisor) -> Result<()> {
    until_ready(supervisor, Role::Worker, "has no session with a manager", READY_LIMIT).await
}

async fn until_ready(supervisor: &Supervisor, role: Role, otherwise: &str, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let before = supervisor.restarts(role);
    loop {
        match timeout(ANSWER_LIMIT, is_ready(&supervisor.paths, role)).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Err(failed)) => return Err(NodeError::Failed(anyhow!(failed))),
            Ok(Ok(false)) | Err(_) => {}
        }
        let died = is_given_up(before, supervisor.restarts(role));
        if died || Instant::now() >= deadline {
            let name = role.word();
            let log = log_tail(&supervisor.paths, name, LAST_LINES);
            let said = |problem: &str| format!("the {name} of this node {problem}; the end of its log:\n{log}");
            return Err(match died {
                true => NodeError::Failed(anyhow!(said("ends as soon as it starts"))),
                false => NodeError::Late(said(&format!("{otherwise} after {} s", limit.as_secs()))),
            });
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// How often it was started again before anybody waited for it does not count: it may have had reason to.
fn is_given_up(before: u64, restarts: u64) -> bool {
    restarts.saturating_sub(before) >= MAX_RESTARTS
}

/// An error is the daemon's own word that it cannot serve.
async fn is_ready(paths: &Paths, role: Role) -> std::result::Result<bool, String> {
    let answer = match role {
        Role::Manager => match unix_channel(&paths.manager_sock()).await {
            Ok(channel) => {
                ControlClient::new(channel).info(wire::Empty {}).await.map(|i| !i.get_ref().leader_id.is_empty())
            }
            Err(_) => return Ok(false),
        },
        Role::Worker => match unix_channel(&paths.worker_sock()).await {
            Ok(channel) => {
                WorkerLocalClient::new(channel).info(wire::Empty {}).await.map(|i| !i.get_ref().manager.is_empty())
            }
            Err(_) => return Ok(false),
        },
        Role::Netd => return Ok(unix_channel(&paths.netd_sock()).await.is_ok()),
    };
    match answer {
        Err(status) if matches!(code::of(&status), Some("failed" | "locked")) => Err(status.message().to_owned()),
        answer => Ok(answer.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_was_started_again_earlier_may_still_come_up() {
        for (before, now, expected) in [(0, 2, false), (0, 3, true), (7, 7, false), (7, 9, false), (7, 10, true)] {
            assert_eq!(is_given_up(before, now), expected, "{before} {now}");
        }
        // It is supervised anew.
        assert!(!is_given_up(7, 0));
    }
}
