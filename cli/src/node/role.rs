//! Whether this node is a manager: the cluster decides, this follows.
//!
//! The worker hears from the leader which role the node has. That may be old news, so before anything is changed a
//! manager is asked for certificates: what it signs is the truth of that moment. A role is taken away only after the
//! node has left raft, so what is wiped then is of no use to anybody.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use orch_model::node::NodeRole;
use orch_proto::{
    tls::role_word,
    transport::unix_channel,
    wire::{self, daemon_config::FirstStart, worker_local_client::WorkerLocalClient},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    credentials::NewKeys, daemon::Role, error::Result, init::daemon_config, member::Member, ports, renew,
    supervisor::Supervisor,
};

const LOOK: Duration = Duration::from_secs(1);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Between tries of a change that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Follows the role for as long as the supervisor runs.
pub(super) async fn follow(supervisor: Arc<Supervisor>) {
    let mut not_before = Instant::now();
    loop {
        sleep(LOOK).await;
        let Some(member) = supervisor.member().filter(|_| Instant::now() >= not_before) else { continue };
        let Some(told) = told(&supervisor).await else { continue };
        if told == role_word(own_role(&member)) {
            continue;
        }
        tracing::info!(role = told, "the cluster gives this node another role");
        // Certificates come with whatever role the node really has.
        if let Err(error) = renew::renew_now(&supervisor).await {
            tracing::warn!(%error, "cannot change the role of this node, will try again");
            not_before = Instant::now() + RETRY;
        }
    }
}

fn own_role(member: &Member) -> NodeRole {
    if member.manager { NodeRole::Manager } else { NodeRole::Worker }
}

/// What the leader told this node's worker; `None` when it is not known.
async fn told(supervisor: &Supervisor) -> Option<String> {
    let ask = async {
        let channel = unix_channel(&supervisor.paths.worker_sock()).await.ok()?;
        Some(WorkerLocalClient::new(channel).info(wire::Empty {}).await.ok()?.into_inner().node_role)
    };
    timeout(ANSWER_LIMIT, ask).await.ok().flatten().filter(|role| !role.is_empty())
}

/// What becomes of this node's manager with new certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manager {
    /// It is there if one of the certificates is for a manager, and uses that.
    AsAnswered,
    /// It goes on with what it has, because it could not seal a new private key: it is locked.
    Stays,
}

impl Manager {
    /// Also a locked one goes when the cluster wants this node to be a worker.
    pub(super) fn with(answer: &wire::JoinResponse, is_locked: bool) -> Self {
        if is_locked && !answer.manager_cert_pem.is_empty() { Self::Stays } else { Self::AsAnswered }
    }
}

/// Saves new certificates and follows them. Says whether this node is a manager.
pub(super) async fn take_with(
    supervisor: &Supervisor,
    mut member: Member,
    keys: NewKeys,
    answer: &wire::JoinResponse,
    manager: Manager,
) -> Result<bool> {
    let manager = match manager {
        Manager::Stays => {
            keys.save_worker(answer, &supervisor.paths)?;
            member.manager
        }
        Manager::AsAnswered => keys.save(answer, &supervisor.paths)?,
    };
    if manager {
        supervisor.hand_over(Role::Manager)?;
    }
    if !answer.managers.is_empty() {
        member.managers.clone_from(&answer.managers);
    }
    take(supervisor, member, manager).await?;
    Ok(manager)
}

/// Starts or ends this node's manager, once the certificates say so. Interrupted at any point, it is done again when the
/// supervisor starts or the next certificates come.
pub(super) async fn take(supervisor: &Supervisor, member: Member, manager: bool) -> Result<()> {
    if member.manager == manager {
        return Ok(supervisor.become_member(member)?);
    }
    let member = with_role(member, manager);
    if !manager {
        supervisor.become_member(member)?;
        supervisor.stop_daemon(Role::Manager).await;
        supervisor.wipe_manager()?;
        tracing::info!("this node is not a manager any more");
        return Ok(());
    }
    let listen: SocketAddr = member.listen_addr.parse().context("the state file's listen address is damaged")?;
    ports::free(listen)?;
    let join = FirstStart::Join(wire::Empty {});
    supervisor.write_config(Role::Manager, &daemon_config(&member, Some(join)))?;
    supervisor.hand_over(Role::Manager)?;
    // Written before the manager starts: one that is in raft must never be taken for leftovers.
    supervisor.become_member(member)?;
    supervisor.start_daemon(Role::Manager)?;
    tracing::info!("this node is a manager now");
    Ok(())
}

/// Managers are known by their address, so it is not this node's to change any more, nor after a demotion.
fn with_role(member: Member, manager: bool) -> Member {
    Member { manager, chosen: member.chosen && !manager, ..member }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_managers_address_stays_also_when_it_is_one_no_more() {
        for (roles, chosen) in [(&[][..], true), (&[false], true), (&[true], false), (&[true, false], false)] {
            let worker = Member {
                cluster_id: "c".into(),
                node_id: "n".into(),
                manager: false,
                hostname: "h".into(),
                advertise_addr: "192.0.2.1:2377".into(),
                listen_addr: "0.0.0.0:2377".into(),
                data_addr: "192.0.2.1".into(),
                managers: Vec::new(),
                chosen: true,
            };
            let after = roles.iter().fold(worker.clone(), |member, manager| with_role(member, *manager));
            let manager = roles.last().copied().unwrap_or_default();
            assert_eq!(after, Member { manager, chosen, ..worker }, "{roles:?}");
        }
    }
}
