//! `orch join`: this node becomes part of a cluster that exists.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use orch_proto::{
    tls::JoinToken,
    transport::{TransportError, token_channel},
    wire::{self, ca_client::CaClient, daemon_config::FirstStart},
};
use tokio::{net::lookup_host, time::timeout};
use tonic::{Code, transport::Channel};

use super::{
    address,
    credentials::NewKeys,
    daemon::Role,
    error::{NodeError, Result},
    init::{availability, daemon_config, hostname},
    leave,
    member::Member,
    ports, rejoin,
    supervisor::Supervisor,
    wait,
};

/// For everything up to the first byte to the manager.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The manager commits a new node object before it answers.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Joins, or leaves the machine as it was.
pub(super) async fn join(supervisor: &Supervisor, request: wire::JoinNodeRequest) -> Result<wire::JoinNodeResponse> {
    let _operation = supervisor.turn().await?;
    let expired = rejoin::expired(supervisor);
    if expired.is_none() {
        supervisor.refuse_member()?;
    }
    let token = JoinToken::parse(&request.token).map_err(|error| NodeError::Invalid(error.to_string()))?;
    let remote = address::remote(&request.remote_addr)?;
    let connected = timeout(CONNECT_LIMIT, connect(&remote, &token)).await;
    let (channel, peer) =
        connected.map_err(|_| TransportError::TimedOut { addr: remote.clone(), limit: CONNECT_LIMIT })??;
    if let Some(old) = expired {
        return rejoin::rejoin(supervisor, &old, &request, remote, channel).await;
    }
    let plan = Plan::new(&request, remote, peer)?;
    ports::peer()?;
    // What a leave or a join that was cut short left behind.
    leave::finish(supervisor).await?;
    supervisor.make_room()?;
    match plan.carry_out(supervisor, channel).await {
        Ok(response) => Ok(response),
        Err(error) => {
            leave::tell_managers(supervisor, &[plan.remote], true).await;
            supervisor.stop_daemons().await;
            leave::clean_up(supervisor).await;
            Err(error)
        }
    }
}

async fn connect(remote: &str, token: &JoinToken) -> Result<(Channel, SocketAddr)> {
    let found = lookup_host(remote).await.map(|mut found| found.next());
    let peer = match found {
        Ok(Some(peer)) => peer,
        Ok(None) => return Err(NodeError::Invalid(format!("{remote} has no address: check the name"))),
        Err(error) => return Err(NodeError::Invalid(format!("{remote} cannot be resolved ({error}): check the name"))),
    };
    Ok((token_channel(remote, token).await?, peer))
}

struct Plan {
    remote: String,
    token: String,
    availability: String,
    advertise: SocketAddr,
    listen: SocketAddr,
    data: IpAddr,
    /// Nobody gave any of these addresses.
    chosen: bool,
    hostname: String,
}

impl Plan {
    fn new(request: &wire::JoinNodeRequest, remote: String, peer: SocketAddr) -> Result<Self> {
        let locals = address::local_addresses()?;
        // The address that reaches the manager is the one that managers reach.
        let advertise = match address::towards(peer).filter(|ip| request.advertise_addr.is_empty() && !ip.is_loopback())
        {
            Some(ip) => address::advertised(&ip.to_string(), &request.listen_addr, &locals)?,
            None => address::advertised(&request.advertise_addr, &request.listen_addr, &locals)?,
        };
        let listen = address::listened(&request.listen_addr, advertise, &locals)?;
        Ok(Self {
            remote,
            token: request.token.trim().to_owned(),
            availability: availability(&request.availability)?,
            advertise,
            listen,
            data: address::data_path(&request.data_path_addr, advertise, &locals)?,
            chosen: is_address_chosen(request, listen),
            hostname: hostname()?,
        })
    }

    async fn carry_out(&self, supervisor: &Supervisor, channel: Channel) -> Result<wire::JoinNodeResponse> {
        let (keys, answer) = self.ask(channel).await?;
        let manager = keys.save(&answer, &supervisor.paths)?;
        let managers = if answer.managers.is_empty() { vec![self.remote.clone()] } else { answer.managers };
        let member = Member {
            cluster_id: answer.cluster_id.clone(),
            node_id: answer.node_id.clone(),
            manager,
            hostname: self.hostname.clone(),
            advertise_addr: self.advertise.to_string(),
            listen_addr: self.listen.to_string(),
            data_addr: self.data.to_string(),
            managers,
            chosen: self.chosen && !manager,
        };
        if manager {
            let join = FirstStart::Join(wire::Empty {});
            supervisor.write_config(Role::Manager, &daemon_config(&member, Some(join)))?;
            supervisor.hand_over(Role::Manager)?;
            supervisor.start_daemon(Role::Manager)?;
            wait::manager_ready(supervisor).await?;
        }
        supervisor.write_config(Role::Worker, &daemon_config(&member, None))?;
        supervisor.start_daemon(Role::Netd)?;
        supervisor.start_daemon(Role::Worker)?;
        wait::worker_ready(supervisor).await?;
        supervisor.become_member(member)?;
        let (node_id, cluster_id) = (answer.node_id, answer.cluster_id);
        Ok(wire::JoinNodeResponse { node_id, cluster_id, manager, came_back: false })
    }

    /// Sends both requests: only the manager can tell which role the token is for. A node that cannot be a manager asks
    /// for a worker's certificate only: with a manager's token that is refused before the cluster knows the node.
    async fn ask(&self, channel: Channel) -> Result<(NewKeys, wire::JoinResponse)> {
        let keys = NewKeys::generate()?;
        let obstacle = ports::manager(self.listen, self.advertise).await.err();
        let request = wire::JoinRequest {
            token: self.token.clone(),
            worker_csr_pem: keys.worker.csr_pem.clone(),
            manager_csr_pem: if obstacle.is_none() { keys.manager.csr_pem.clone() } else { String::new() },
            hostname: self.hostname.clone(),
            advertise_addr: self.advertise.to_string(),
            availability: self.availability.clone(),
            rejoin: None,
        };
        let answer = timeout(ANSWER_LIMIT, CaClient::new(channel).join(request)).await;
        let answer = answer.map_err(|_| TransportError::TimedOut { addr: self.remote.clone(), limit: ANSWER_LIMIT })?;
        match (answer, obstacle) {
            (Ok(answer), _) => Ok((keys, answer.into_inner())),
            (Err(status), Some(obstacle)) if status.code() == Code::InvalidArgument => Err(obstacle),
            (Err(status), _) => Err(NodeError::answered(status)),
        }
    }
}

/// An address that somebody gave is theirs to change: it may be one that this machine does not have, or not yet.
/// To listen on all, as without a word of it, names none.
fn is_address_chosen(request: &wire::JoinNodeRequest, listen: SocketAddr) -> bool {
    request.advertise_addr.is_empty() && request.data_path_addr.is_empty() && listen.ip().is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_chooses_the_address_when_none_is_given() {
        for (advertise, listen, data, chosen) in [
            ("", "0.0.0.0:2377", "", true),
            ("", "[::]:2400", "", true),
            ("", "192.0.2.7:2377", "", false),
            ("203.0.113.1", "0.0.0.0:2377", "", false),
            ("eth0", "0.0.0.0:2377", "", false),
            ("", "0.0.0.0:2377", "192.0.2.7", false),
        ] {
            let request = wire::JoinNodeRequest {
                token: "t".into(),
                remote_addr: "192.0.2.1".into(),
                advertise_addr: advertise.into(),
                data_path_addr: data.into(),
                ..wire::JoinNodeRequest::default()
            };
            assert_eq!(
                is_address_chosen(&request, listen.parse().unwrap()),
                chosen,
                "{advertise:?} {listen:?} {data:?}"
            );
        }
    }
}
