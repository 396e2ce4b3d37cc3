//! `orch leave`: this node goes out of its cluster and keeps nothing of it.

use std::{process::Stdio, sync::Arc, time::Duration};

use orch_model::node::NodeRole;
use orch_proto::{
    transport::tls_channel,
    wire::{self, ca_client::CaClient},
};
use tokio::{process::Command, time::timeout};

use super::{
    credentials::worker_identity,
    daemon::{Role, own_program},
    error::{NodeError, Result},
    managers,
    supervisor::Supervisor,
};

/// Per manager; a cluster that does not answer does not keep a node from leaving.
const TELL_LIMIT: Duration = Duration::from_secs(5);
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn leave(supervisor: &Supervisor, request: wire::LeaveNodeRequest) -> Result<wire::Empty> {
    let _operation = supervisor.turn().await?;
    let Some(member) = supervisor.member() else {
        return Err(NodeError::Refused("This node is not part of a cluster".to_owned()));
    };
    let managers = managers::known(supervisor, &member).await;
    if member.manager && !request.force {
        return Err(NodeError::Refused(manager_warning(managers.len() <= 1)));
    }
    // The other managers: the own one is about to go.
    let others: Vec<String> =
        managers.into_iter().filter(|addr| !member.manager || *addr != member.advertise_addr).collect();
    tell_managers(supervisor, &others, request.force).await;
    supervisor.forget_membership()?;
    supervisor.stop_daemons().await;
    finish(supervisor).await?;
    Ok(wire::Empty {})
}

/// At the start of the supervisor: removes what a leave that was cut short did not get to.
pub(super) async fn go_on(supervisor: Arc<Supervisor>) {
    let Ok(_operation) = supervisor.turn().await else { return };
    if let Err(error) = finish(&supervisor).await {
        tracing::warn!(%error, "cannot finish a leave that was cut short");
    }
}

/// The rest of a leave, if one is under way, however often it was cut short.
pub(super) async fn finish(supervisor: &Supervisor) -> Result<()> {
    if supervisor.member().is_none() && supervisor.node_dir.is_leaving() {
        clean_up(supervisor).await;
        supervisor.node_dir.have_left()?;
    }
    Ok(())
}

/// Docker's words, which people search for.
fn manager_warning(last: bool) -> String {
    let consequence = if last {
        "Removing the last manager erases all current state of the cluster."
    } else {
        "Leaving with too few managers left makes the cluster unable to change anything."
    };
    format!(
        "You are attempting to leave the cluster on a node that is participating as a manager. {consequence} Use \
         `--force` to ignore this message."
    )
}

/// Says goodbye to the first manager that listens.
pub(super) async fn tell_managers(supervisor: &Supervisor, managers: &[String], force: bool) {
    let Ok(identity) = worker_identity(&supervisor.paths) else {
        // Nothing was signed yet, so no manager knows this node.
        return;
    };
    for addr in managers {
        let told = timeout(TELL_LIMIT, async {
            let channel = tls_channel(addr, &identity, NodeRole::Manager).await?;
            CaClient::new(channel).leave(wire::LeaveRequest { force }).await.map_err(NodeError::answered)?;
            Ok::<_, NodeError>(())
        });
        match told.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!(%addr, %error, "cannot tell this manager that the node leaves"),
            Err(_) => tracing::warn!(%addr, "this manager does not answer"),
        }
    }
    if !managers.is_empty() {
        tracing::warn!("no manager was told: the cluster shows this node as down until it is removed there");
    }
}

/// Removes containers, networks and files of the membership; goes on after a failure, and logs it.
pub(super) async fn clean_up(supervisor: &Supervisor) {
    for role in [Role::Worker, Role::Netd] {
        if let Err(error) = run_clean_up(role).await {
            tracing::error!("cannot clean up after the {}: {error:#}", role.word());
        }
    }
    if let Err(error) = supervisor.wipe() {
        tracing::error!("cannot remove the files of the membership: {error:#}");
    }
}

/// The daemon's own program knows what it made; its process is gone, so a new one removes it.
async fn run_clean_up(role: Role) -> anyhow::Result<()> {
    let mut command = Command::new(own_program()?);
    command.args([role.word(), "--cleanup"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(CLEAN_UP_LIMIT, command.output()).await??;
    if output.status.success() {
        return Ok(());
    }
    anyhow::bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}

#[cfg(test)]
mod tests {
    use orch_proto::paths::Paths;

    use super::*;
    use crate::node::member::Member;

    /// The daemons' programs are this test binary, which does not know what it is told.
    #[tokio::test]
    async fn a_leave_that_was_cut_short_is_finished_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let member = Member {
            cluster_id: "c".into(),
            node_id: "n".into(),
            manager: true,
            hostname: "h".into(),
            advertise_addr: "192.0.2.1:2377".into(),
            listen_addr: "0.0.0.0:2377".into(),
            data_addr: "192.0.2.1".into(),
            managers: Vec::new(),
            chosen: false,
        };
        for is_cut_short in [false, true] {
            let supervisor = Supervisor::open(paths.clone()).unwrap();
            supervisor.become_member(member.clone()).unwrap();
            std::fs::create_dir_all(paths.manager_dir().join("keys")).unwrap();
            if is_cut_short {
                supervisor.forget_membership().unwrap();
            }
            drop(supervisor);
            let supervisor = Arc::new(Supervisor::open(paths.clone()).unwrap());
            go_on(Arc::clone(&supervisor)).await;
            assert_eq!(paths.manager_dir().exists(), !is_cut_short);
            assert_eq!((supervisor.member().is_none(), supervisor.node_dir.is_leaving()), (is_cut_short, false));
        }
    }
}
