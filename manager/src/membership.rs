//! How a manager gets into raft: the first one starts it, the others ask to be added.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnetwork::IpNetwork;
use orch_manager_core::{
    bootstrap::{Bootstrap, transaction},
    roles::only_manager,
};
use orch_model::{
    Annotations, Meta, NodeId,
    cluster::{ClusterSpec, JoinTokens, RootCa},
    node::{ManagerStatus, Node, NodeDescription, NodeRole, NodeSpec, NodeState, NodeStatus},
};
use orch_proto::{
    conv::{FromProto, required},
    tls::{SharedIdentity, UnlockKey},
    transport,
    wire::{self, BootstrapConfig, DaemonConfig, daemon_config::FirstStart, raft_client::RaftClient},
};
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::{
    api::{self, status::LEADER_KEY},
    home::{Home, HomeError},
    raft::{Consensus, Member, Proposer},
    random,
};

const RETRY: Duration = Duration::from_secs(1);
/// Between looks at whether the others still count this manager in.
const LOOK: Duration = Duration::from_secs(5);
/// Longer than the leader waits for the new member to catch up.
const ADD_LIMIT: Duration = Duration::from_secs(130);

/// Why a manager did not get in.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("the material of the first start is not usable: {0}")]
    Material(String),
    #[error(transparent)]
    Consensus(#[from] crate::raft::ConsensusError),
}

/// Everything that getting in needs.
pub struct Entrance {
    pub home: Arc<Home>,
    pub config: DaemonConfig,
    pub consensus: Consensus,
    pub proposer: Proposer,
    pub identity: SharedIdentity,
}

impl Entrance {
    /// Returns when this manager is a member and nothing of the first start is left on the disk.
    pub async fn enter(&self) -> Result<(), MembershipError> {
        match &self.config.first_start {
            Some(FirstStart::Bootstrap(material)) => self.bootstrap(material).await,
            Some(FirstStart::ForceNewCluster(_)) => self.go_on_alone().await,
            Some(FirstStart::Join(_)) | None if !self.home.is_member() || self.has_moved() => self.join().await,
            Some(FirstStart::Join(_)) | None => Ok(()),
        }
    }

    /// Gets in again whenever this manager was taken out and is wanted: who is demoted and promoted in the same moment may
    /// hear of neither. Nobody tells a member that it is none any more; it only hears nothing from the leader. Asking is
    /// free for a member, and the leader refuses whoever is not to be a manager.
    pub async fn stay(&self) -> ! {
        loop {
            sleep(LOOK).await;
            if self.consensus.catch_up().await.is_ok() {
                continue;
            }
            for addr in self.others() {
                match self.ask(&addr).await {
                    Ok(()) => break,
                    Err(error) => tracing::debug!(manager = addr, error, "cannot ask whether this manager is a member"),
                }
            }
        }
    }

    /// Addresses of the other managers, as far as this one knows.
    fn others(&self) -> Vec<String> {
        let mut known: Vec<String> = self.consensus.members().into_iter().map(|(_, m)| m.addr).collect();
        known.extend(self.config.managers.iter().cloned());
        known.retain(|addr| *addr != self.config.advertise_addr);
        known.dedup();
        known
    }

    fn own_member(&self) -> Member {
        Member { node_id: self.config.node_id.clone(), addr: self.config.advertise_addr.clone() }
    }

    fn has_moved(&self) -> bool {
        let own = self.consensus.raft_id();
        self.consensus.members().into_iter().any(|(id, member)| id == own && member != self.own_member())
    }

    /// Killed at any point, the next start finds the material again and goes on.
    async fn bootstrap(&self, material: &BootstrapConfig) -> Result<(), MembershipError> {
        self.consensus.initialize(self.own_member()).await?;
        let mut leadership = self.consensus.leadership();
        while self.consensus.store().view().state.cluster().is_none() {
            // Ends only with raft itself, which the daemon watches.
            let _ = leadership.wait_for(|l| l.is_own).await;
            // What an earlier start committed has to be applied before anyone can tell that it is missing.
            if self.consensus.read_barrier().await.is_err() || self.consensus.store().view().state.cluster().is_some() {
                sleep(RETRY / 10).await;
                continue;
            }
            let init = self.init(material)?;
            let first = transaction(init, self.proposer.now(), &mut random::bits);
            if let Err(error) = self.proposer.propose(first.changes).await {
                tracing::warn!(%error, "cannot write the cluster's first objects; trying again");
                sleep(RETRY).await;
            }
        }
        self.home.note_member()?;
        self.home.forget_first_start()?;
        tracing::info!("the cluster is there");
        Ok(())
    }

    /// Raft has been made a raft of this manager alone when it was started; the nodes' roles follow.
    async fn go_on_alone(&self) -> Result<(), MembershipError> {
        let own =
            NodeId::from_proto(self.config.node_id.clone()).map_err(|e| MembershipError::Material(e.to_string()))?;
        let seat = ManagerStatus { raft_id: self.consensus.raft_id(), addr: self.config.advertise_addr.clone() };
        let mut leadership = self.consensus.leadership();
        loop {
            let _ = leadership.wait_for(|l| l.is_own).await;
            if self.consensus.read_barrier().await.is_ok() {
                let changes = only_manager(&self.consensus.store().view().state, &own, &seat);
                match self.proposer.propose(changes).await {
                    Ok(_) => break,
                    Err(error) => tracing::warn!(%error, "cannot note that this manager is the only one; trying again"),
                }
            }
            sleep(RETRY / 10).await;
        }
        // The state says the same, but after a restart it comes later than the first call of a lost manager may.
        self.home.set_fence(self.proposer.now())?;
        self.home.note_member()?;
        self.home.forget_first_start()?;
        tracing::warn!("this manager is the only one of the cluster now");
        Ok(())
    }

    fn init(&self, material: &BootstrapConfig) -> Result<Bootstrap, MembershipError> {
        let failed = |e: &dyn std::fmt::Display| MembershipError::Material(e.to_string());
        let BootstrapConfig { spec, root_ca, join_tokens, availability } = material.clone();
        let message = "BootstrapConfig";
        let spec: ClusterSpec = required(spec, message, "spec").map_err(|e| failed(&e))?;
        let root_ca: RootCa = required(root_ca, message, "root_ca").map_err(|e| failed(&e))?;
        let join_tokens: JoinTokens = required(join_tokens, message, "join_tokens").map_err(|e| failed(&e))?;
        let availability = api::availability(&availability).map_err(|e| failed(&e.message()))?;
        let node = Node {
            id: NodeId::from_proto(self.config.node_id.clone()).map_err(|e| failed(&e))?,
            meta: Meta::default(),
            spec: NodeSpec { annotations: Annotations::default(), role: NodeRole::Manager, availability },
            role: NodeRole::Manager,
            description: NodeDescription {
                hostname: self.config.hostname.clone(),
                underlay: own_networks(),
                data_addr: self.config.data_addr.parse().ok(),
                ..NodeDescription::default()
            },
            status: NodeStatus {
                state: NodeState::Unknown,
                message: "the node's worker has not yet reported".to_owned(),
                addr: None,
                since: self.proposer.now(),
            },
            manager: Some(ManagerStatus {
                raft_id: self.consensus.raft_id(),
                addr: self.config.advertise_addr.clone(),
            }),
            index: 0,
            attachments: BTreeMap::new(),
            certificates: None,
        };
        let unlock_key = spec.autolock.then(|| UnlockKey::generate(random::bits()).text());
        Ok(Bootstrap { cluster_id: self.consensus.cluster().clone(), spec, root_ca, join_tokens, node, unlock_key })
    }

    /// Asks the managers in turn, following their pointers to the leader, until one has added this one.
    async fn join(&self) -> Result<(), MembershipError> {
        let mut complaint = String::new();
        loop {
            for addr in self.others() {
                match self.ask(&addr).await {
                    Ok(()) => {
                        self.home.note_member()?;
                        self.home.forget_first_start()?;
                        tracing::info!("this manager is a member of raft");
                        return Ok(());
                    }
                    // The same complaint every second helps nobody.
                    Err(error) if error != complaint => {
                        tracing::warn!(manager = addr, error, "not yet a member of raft; trying again");
                        complaint = error;
                    }
                    Err(_) => {}
                }
            }
            sleep(RETRY).await;
        }
    }

    async fn ask(&self, addr: &str) -> Result<(), String> {
        match self.ask_one(addr).await? {
            Ok(()) => Ok(()),
            Err(status) => match status.metadata().get(LEADER_KEY).and_then(|v| v.to_str().ok()) {
                Some(leader) if leader != addr => {
                    self.ask_one(leader).await?.map_err(|status| status.message().to_owned())
                }
                _ => Err(status.message().to_owned()),
            },
        }
    }

    async fn ask_one(&self, addr: &str) -> Result<Result<(), Status>, String> {
        let channel =
            transport::shared_channel(addr, &self.identity, NodeRole::Manager).await.map_err(|e| e.to_string())?;
        let Member { node_id, addr } = self.own_member();
        let request = wire::AddMemberRequest { raft_id: self.consensus.raft_id(), node_id, addr };
        let mut client = RaftClient::new(channel);
        let answer = timeout(ADD_LIMIT, client.add_member(request)).await;
        Ok(answer.map_err(|_| "the leader did not answer in time".to_owned())?.map(drop))
    }
}

/// The networks of this machine, so that the first overlay keeps out of them.
fn own_networks() -> Vec<IpNetwork> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let network = |interface: nix::ifaddrs::InterfaceAddress| {
        let addr = interface.address?.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip)?;
        let mask = interface.netmask?.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip)?;
        let network = ipnetwork::Ipv4Network::with_netmask(addr, mask).ok()?;
        let whole = ipnetwork::Ipv4Network::new(network.network(), network.prefix()).ok()?;
        (!addr.is_loopback()).then_some(IpNetwork::V4(whole))
    };
    interfaces.filter_map(network).collect()
}
