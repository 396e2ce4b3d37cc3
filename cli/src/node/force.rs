//! `orch init --force-new-cluster`: the quorum is lost for good, and this manager goes on alone with the state it has.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use orch_proto::{
    transport::unix_channel,
    wire::{self, control_client::ControlClient, daemon_config::FirstStart},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    address,
    daemon::Role,
    error::{NodeError, Result},
    init::daemon_config,
    member::Member,
    ports, rejoin,
    supervisor::Supervisor,
    wait,
};
use crate::commands::info::has_quorum;

const ASK_LIMIT: Duration = Duration::from_secs(8);
const ALONE_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn go_on_alone(supervisor: &Supervisor, request: &wire::InitRequest) -> Result<wire::InitResponse> {
    let Some(mut member) = supervisor.member().filter(|member| member.manager) else {
        return Err(NodeError::Refused(
            "--force-new-cluster goes on with the state of a manager, and this node is none: run it on a manager, or \
             make a new cluster with \"orch init\""
                .to_owned(),
        ));
    };
    refuse_while_there_is_a_quorum(supervisor).await?;
    let is_moved = !request.advertise_addr.is_empty();
    if is_moved {
        move_to(&mut member, request)?;
    }
    supervisor.stop_daemon(Role::Manager).await;
    let outcome = restart(supervisor, &member).await;
    // Also after a failure: a manager that cannot go on alone waits for the others, as before.
    supervisor.start_daemon(Role::Manager)?;
    outcome?;
    let info = match wait::manager_ready(supervisor).await {
        Ok(()) => Some(until_alone(supervisor, &member).await?),
        // It goes on alone as soon as somebody brings the key.
        Err(_) if rejoin::is_locked(supervisor).await => None,
        Err(error) => return Err(error),
    };
    member.managers = vec![member.advertise_addr.clone()];
    supervisor.become_member(member.clone())?;
    supervisor.write_config(Role::Worker, &daemon_config(&member, None))?;
    if is_moved {
        // It looks for managers where they were, and tells others where it was; containers go on.
        supervisor.stop_daemon(Role::Worker).await;
        supervisor.start_daemon(Role::Worker)?;
        if info.is_some() {
            wait::worker_ready(supervisor).await?;
        }
    }
    let locked = info.is_none();
    let info = info.unwrap_or_default();
    Ok(wire::InitResponse {
        node_id: member.node_id,
        cluster_id: member.cluster_id,
        worker_token: info.worker_token,
        manager_token: info.manager_token,
        advertise_addr: member.advertise_addr,
        locked,
    })
}

/// Forcing would split such a cluster in two.
async fn refuse_while_there_is_a_quorum(supervisor: &Supervisor) -> Result<()> {
    let Some(info) = timeout(ASK_LIMIT, info(supervisor)).await.ok().flatten() else { return Ok(()) };
    if info.reachability.len() <= 1 || !has_quorum(&info) {
        return Ok(());
    }
    Err(NodeError::Refused(format!(
        "the cluster has a quorum, led by the manager at {}: nothing was changed. Take managers away with \"orch node \
         demote\"; --force-new-cluster is for a cluster that has lost more than half of them",
        info.leader_addr
    )))
}

fn move_to(member: &mut Member, request: &wire::InitRequest) -> Result<()> {
    let locals = address::local_addresses()?;
    let advertise = address::advertised(&request.advertise_addr, &request.listen_addr, &locals)?;
    member.advertise_addr = advertise.to_string();
    member.listen_addr = address::listened(&request.listen_addr, advertise, &locals)?.to_string();
    member.data_addr = address::data_path(&request.data_path_addr, advertise, &locals)?.to_string();
    Ok(())
}

async fn restart(supervisor: &Supervisor, member: &Member) -> Result<()> {
    let damaged = "an address in the state file is damaged";
    let listen: SocketAddr = member.listen_addr.parse().context(damaged)?;
    ports::manager(listen, member.advertise_addr.parse().context(damaged)?).await?;
    let alone = FirstStart::ForceNewCluster(wire::Empty {});
    supervisor.write_config(Role::Manager, &daemon_config(member, Some(alone)))?;
    supervisor.hand_over(Role::Manager)?;
    Ok(())
}

/// Until the manager has written down that it is the only one.
async fn until_alone(supervisor: &Supervisor, member: &Member) -> Result<wire::ClusterInfo> {
    let deadline = Instant::now() + ALONE_LIMIT;
    loop {
        if let Some(info) = timeout(ASK_LIMIT, info(supervisor)).await.ok().flatten()
            && info.managers == 1
            && info.leader_id == member.node_id
        {
            return Ok(info);
        }
        if Instant::now() >= deadline {
            return Err(NodeError::Refused(
                "the manager does not go on alone: its log (\"/var/lib/orch/node/log/manager.log\") says why"
                    .to_owned(),
            ));
        }
        sleep(POLL).await;
    }
}

async fn info(supervisor: &Supervisor) -> Option<wire::ClusterInfo> {
    let channel = unix_channel(&supervisor.paths.manager_sock()).await.ok()?;
    Some(ControlClient::new(channel).info(wire::Empty {}).await.ok()?.into_inner())
}
