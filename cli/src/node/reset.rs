//! `orch node reset-manager`: this node's manager has lost its files or has damaged ones. It goes out of raft and comes back
//! as a new member, under the same node.
//!
//! Certificates come from the other managers, as for a promotion. Interrupted after the files were put aside, the role is
//! taken up again by itself, because the cluster still wants this node to be a manager.

use std::{path::PathBuf, time::Duration};

use orch_model::node::NodeRole;
use orch_proto::{
    transport::tls_channel,
    wire::{self, ca_client::CaClient},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    credentials::{NewKeys, worker_identity},
    daemon::Role,
    error::{NodeError, Result},
    managers, rejoin, renew,
    supervisor::Supervisor,
    wait,
};

/// Per manager that is asked; they may have to elect a leader first.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// A leader that has lost its quorum with this manager finds out within this.
const LEASE: Duration = Duration::from_secs(3);
/// For the certificates to come.
const ROLE_LIMIT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(500);

pub(super) async fn reset_manager(supervisor: &Supervisor) -> Result<wire::ResetManagerResponse> {
    let aside = {
        let _operation = supervisor.turn().await?;
        leave_raft(supervisor).await?
    };
    take_the_role_again(supervisor).await?;
    wait::manager_ready(supervisor).await?;
    let kept = aside.map(|path| path.display().to_string()).unwrap_or_default();
    Ok(wire::ResetManagerResponse { kept })
}

/// What this node is, is read while nobody else changes it: a renewal may have told it of other managers just before.
async fn leave_raft(supervisor: &Supervisor) -> Result<Option<PathBuf>> {
    let Some(mut member) = supervisor.member().filter(|member| member.manager) else {
        return Err(NodeError::Refused("this node is not a manager: there is nothing to reset".to_owned()));
    };
    if rejoin::is_locked(supervisor).await {
        return Err(NodeError::Refused(
            "this manager's files are whole, it only waits for its key: give it by \"orch unlock\". Where the key is lost, \
             another manager lets this one in anew: there, \"orch node demote\" and then \"orch node promote\""
                .to_owned(),
        ));
    }
    let mut others = managers::known(supervisor, &member).await;
    others.retain(|addr| *addr != member.advertise_addr);
    if others.is_empty() {
        return Err(nobody("this node knows no other manager"));
    }
    // First of all, so that it does not count when the others are asked whether they can decide.
    supervisor.stop_daemon(Role::Manager).await;
    if let Err(refused) = refuse_unless_others_decide(supervisor, &others).await {
        supervisor.start_daemon(Role::Manager)?;
        return Err(refused);
    }
    member.managers = others;
    member.manager = false;
    // From here on this node has no manager, whatever happens; the role comes back with the certificates.
    supervisor.become_member(member)?;
    Ok(supervisor.put_manager_aside()?)
}

/// Without a quorum of the others nobody could let this manager in again, and what it has may be all there is.
async fn refuse_unless_others_decide(supervisor: &Supervisor, others: &[String]) -> Result<()> {
    let identity = worker_identity(&supervisor.paths)?;
    sleep(LEASE).await;
    let mut reason = String::new();
    for addr in others {
        let asked = timeout(ASK_LIMIT, async {
            let keys = NewKeys::generate()?;
            let request =
                wire::RenewRequest { worker_csr_pem: keys.worker.csr_pem, manager_csr_pem: keys.manager.csr_pem };
            let channel = tls_channel(addr, &identity, NodeRole::Manager).await?;
            let answer = CaClient::new(channel).renew(request).await.map_err(NodeError::answered)?;
            Ok::<_, NodeError>(!answer.into_inner().manager_cert_pem.is_empty())
        });
        match asked.await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Err(error)) if renew::needs_manager_key(&error) => {
                return Err(NodeError::Refused(format!("nothing was changed: {error}")));
            }
            Ok(Ok(false)) => return Err(NodeError::Refused("the cluster wants this node to be a worker".to_owned())),
            Ok(Err(error)) => reason = format!("the manager at {addr} says: {error}"),
            Err(_) => reason = format!("the manager at {addr} does not answer"),
        }
    }
    Err(nobody(&reason))
}

fn nobody(reason: &str) -> NodeError {
    NodeError::Refused(format!(
        "nothing was changed: the other managers cannot let this one in again ({reason}). Without a quorum of them, what \
         this manager has may be all that is left: restore its folder from a copy, or go on with another manager by \
         \"orch init --force-new-cluster\" there"
    ))
}

/// Whoever follows the node's role may be quicker; either will do.
async fn take_the_role_again(supervisor: &Supervisor) -> Result<()> {
    let deadline = Instant::now() + ROLE_LIMIT;
    loop {
        let renewed = renew::renew_now(supervisor).await;
        let is_manager = supervisor.member().is_some_and(|member| member.manager);
        match renewed {
            _ if is_manager => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Ok(()) | Err(_) => sleep(RETRY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use orch_proto::paths::Paths;

    use super::*;
    use crate::node::member::Member;

    /// A renewal may say meanwhile that the node is a worker now, or name other managers.
    #[tokio::test]
    async fn what_the_node_is_counts_once_nobody_else_changes_it() {
        let member = |manager| Member {
            cluster_id: "c".into(),
            node_id: "n".into(),
            manager,
            hostname: "h".into(),
            advertise_addr: "192.0.2.1:2377".into(),
            listen_addr: "0.0.0.0:2377".into(),
            data_addr: "192.0.2.1".into(),
            managers: vec!["192.0.2.1:2377".into()],
            chosen: false,
        };
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::open(Paths::under(dir.path())).unwrap();
        for (after, expected) in [(false, "this node is not a manager"), (true, "this node knows no other manager")] {
            supervisor.become_member(member(true)).unwrap();
            let renewing = supervisor.begin().unwrap();
            let (reset, ()) = tokio::join!(reset_manager(&supervisor), async {
                tokio::task::yield_now().await;
                supervisor.become_member(member(after)).unwrap();
                drop(renewing);
            });
            let error = reset.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(supervisor.member(), Some(member(after)), "{expected}");
        }
    }
}
