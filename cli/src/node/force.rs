//! `orch init --force-new-cluster`: the quorum is lost for good, and this manager goes on alone with the state it has.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use futures::future::join_all;
use orch_model::node::NodeRole;
use orch_proto::{
    code,
    paths::ALONE_MARK,
    transport::{tls_channel, unix_channel},
    wire::{self, ca_client::CaClient, control_client::ControlClient, daemon_config::FirstStart},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    address,
    credentials::{NewKeys, worker_identity},
    daemon::Role,
    error::{NodeError, Result},
    init::daemon_config,
    managers,
    member::Member,
    ports, rejoin,
    supervisor::Supervisor,
    wait,
};
use crate::commands::info::has_quorum;

const ASK_LIMIT: Duration = Duration::from_secs(8);
/// For a manager to read its log and its snapshot, also on a slow disk.
const READ_LIMIT: Duration = Duration::from_secs(300);
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
    refuse_while_there_is_a_quorum(supervisor, &member).await?;
    let was = member.clone();
    let is_moved = !request.advertise_addr.is_empty();
    if is_moved {
        move_to(&mut member, request)?;
    }
    supervisor.stop_daemon(Role::Manager).await;
    if let Err(error) = restart(supervisor, &member).await {
        take_back(supervisor, &was).await?;
        return Err(error);
    }
    let info = match wait::manager_ready_within(supervisor, READ_LIMIT).await {
        Ok(()) => Some(until_alone(supervisor, &member).await?),
        // It goes on alone as soon as somebody brings the key.
        Err(_) if rejoin::is_locked(supervisor).await => None,
        Err(late @ NodeError::Late(_)) => return Err(late),
        Err(error) => {
            take_back(supervisor, &was).await?;
            return Err(error);
        }
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

/// Forcing would split such a cluster in two. A manager that is locked, or ails, does not know of it: the others are asked too.
async fn refuse_while_there_is_a_quorum(supervisor: &Supervisor, member: &Member) -> Result<()> {
    let leader = match timeout(ASK_LIMIT, info(supervisor)).await.ok().flatten() {
        Some(info) if info.reachability.len() == 1 => None,
        Some(info) if has_quorum(&info) => Some(format!("led by the manager at {}", info.leader_addr)),
        Some(_) | None => decides(supervisor, member).await?.map(|addr| format!("the manager at {addr} says so")),
    };
    let Some(leader) = leader else { return Ok(()) };
    Err(NodeError::Refused(format!(
        "the cluster has a quorum, {leader}: nothing was changed. Take managers away with \"orch node \
         demote\"; --force-new-cluster is for a cluster that has lost more than half of them"
    )))
}

/// The address of another manager that has a quorum: without one, none renews a certificate. The one that it gives is not
/// kept. Where one knows this node as removed, what this node has is not to live on.
async fn decides(supervisor: &Supervisor, member: &Member) -> Result<Option<String>> {
    let Ok(identity) = worker_identity(&supervisor.paths) else { return Ok(None) };
    let worker_csr_pem = NewKeys::generate()?.worker.csr_pem;
    let mut others = managers::known(supervisor, member).await;
    others.retain(|addr| *addr != member.advertise_addr);
    let asked = others.into_iter().map(|addr| {
        let request = wire::RenewRequest { worker_csr_pem: worker_csr_pem.clone(), manager_csr_pem: String::new() };
        let identity = &identity;
        async move {
            let channel = tls_channel(&addr, identity, NodeRole::Manager).await.ok()?;
            match CaClient::new(channel).renew(request).await {
                Ok(_) => Some(Ok(addr)),
                Err(status) if code::of(&status) == Some(code::NODE_REMOVED) => {
                    Some(Err(NodeError::Refused(format!("nothing was changed: {}", status.message()))))
                }
                Err(_) => None,
            }
        }
    });
    let answers = join_all(asked.map(|answer| timeout(ASK_LIMIT, answer))).await;
    answers.into_iter().find_map(|answer| answer.ok().flatten()).transpose()
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
    supervisor.start_daemon(Role::Manager)?;
    Ok(())
}

/// A manager that cannot begin to go on alone waits for the others, as before: once they have a quorum again, it must not
/// leave them. One that has begun has left them, and comes to the end of it whenever it can.
async fn take_back(supervisor: &Supervisor, was: &Member) -> Result<()> {
    supervisor.stop_daemon(Role::Manager).await;
    if !supervisor.paths.manager_dir().join(ALONE_MARK).exists() {
        supervisor.write_config(Role::Manager, &daemon_config(was, None))?;
    }
    supervisor.hand_over(Role::Manager)?;
    Ok(supervisor.start_daemon(Role::Manager)?)
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use orch_proto::paths::Paths;
    use prost::Message as _;

    use super::*;
    use crate::node::renew::tests::serve_authority_that;

    fn member(advertise: &str, managers: Vec<String>) -> Member {
        Member {
            cluster_id: "c".into(),
            node_id: "n".into(),
            manager: true,
            hostname: "h".into(),
            advertise_addr: advertise.into(),
            listen_addr: advertise.into(),
            data_addr: "127.0.0.1".into(),
            managers,
            chosen: false,
        }
    }

    /// This node's manager does not answer at all.
    #[tokio::test]
    async fn others_that_decide_are_asked_when_the_own_manager_does_not_know() {
        for (removed, said) in
            [(false, "the cluster has a quorum"), (true, "nothing was changed: this node was removed")]
        {
            let (addr, ours) = serve_authority_that(removed).await;
            let dir = tempfile::tempdir().unwrap();
            let supervisor = Supervisor::open(Paths::under(dir.path())).unwrap();
            ours.save(&supervisor.paths.worker_dir().join("tls")).unwrap();
            let gone = "127.0.0.1:1".to_owned();
            for (own, others, refused) in [
                (&gone, vec![gone.clone(), addr.clone()], true),
                (&gone, vec![gone.clone()], false),
                (&addr, vec![addr.clone()], false),
            ] {
                let answer = refuse_while_there_is_a_quorum(&supervisor, &member(own, others)).await;
                let is_said = answer.as_ref().err().map(|error| error.to_string().contains(said));
                assert_eq!(is_said, refused.then_some(true), "{answer:?}");
            }
        }
    }

    /// The manager is this test binary, which runs the tests with that word in their name, and ends.
    #[tokio::test]
    async fn what_could_not_begin_to_go_on_alone_does_not_try_again_later() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::open(Paths::under(dir.path())).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let member = member(&free, vec![free.clone()]);
        supervisor.become_member(member.clone()).unwrap();
        let alone = supervisor.paths.manager_dir().join(ALONE_MARK);
        for (has_begun, first_start) in [(false, None), (true, Some(FirstStart::ForceNewCluster(wire::Empty {})))] {
            if has_begun {
                std::fs::create_dir_all(alone.parent().unwrap()).unwrap();
                std::fs::write(&alone, "").unwrap();
            }
            let error = go_on_alone(&supervisor, &wire::InitRequest::default()).await.unwrap_err().to_string();
            assert!(error.contains("ends as soon as it starts"), "{error}");
            let written = std::fs::read(supervisor.paths.manager_dir().join("daemon.pb")).unwrap();
            assert_eq!(wire::DaemonConfig::decode(&written[..]).unwrap(), daemon_config(&member, first_start));
        }
        supervisor.stop_daemons().await;
    }
}
