//! What a manager sends to a node: a set of items by key, complete once, then only what changed.
//!
//! A session sends one complete set, then increments. What a node needs to know of networks travels the same way, item
//! by item, and only for networks that the node takes part in.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;

use crate::{
    ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId,
    network::ENCRYPTED_OPTION,
    node::TunnelKey,
    secret::{Config, Secret},
    service::{Balance, PortConfig},
    task::{Task, TaskState},
};

/// Names one item of an assignment set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AssignmentKey {
    Task(TaskId),
    Secret(SecretId),
    Config(ConfigId),
    Image(TaskId),
    Peer(NodeId),
    Network(NetworkId),
    Endpoint(NetworkId, TaskId),
    ServiceEndpoint(NetworkId, ServiceId),
}

/// One item of an assignment set. The key follows from it.
#[derive(Debug, Clone, PartialEq)]
pub enum Assignment {
    Task(TaskAssignment),
    Secret(Arc<Secret>),
    Config(Arc<Config>),
    /// Where the image of a task assigned here can be fetched from, by digest.
    Image(ImageSource),
    Peer(Peer),
    Network(NetworkItem),
    Endpoint(EndpointItem),
    ServiceEndpoint(ServiceEndpointItem),
}

impl Assignment {
    #[must_use]
    pub fn key(&self) -> AssignmentKey {
        match self {
            Self::Task(t) => AssignmentKey::Task(t.task.id.clone()),
            Self::Secret(s) => AssignmentKey::Secret(s.id.clone()),
            Self::Config(c) => AssignmentKey::Config(c.id.clone()),
            Self::Image(i) => AssignmentKey::Image(i.task.clone()),
            Self::Peer(p) => AssignmentKey::Peer(p.node.clone()),
            Self::Network(n) => AssignmentKey::Network(n.id.clone()),
            Self::Endpoint(e) => AssignmentKey::Endpoint(e.network.clone(), e.task.clone()),
            Self::ServiceEndpoint(s) => AssignmentKey::ServiceEndpoint(s.network.clone(), s.service.clone()),
        }
    }
}

/// A task that this node should bring to `desired_state`.
///
/// `desired_state` is the task's own, except that a running task which should stop is held at *running* until every
/// node has taken it out of its balancing (drain before stop).
#[derive(Debug, Clone, PartialEq)]
pub struct TaskAssignment {
    pub task: Arc<Task>,
    pub desired_state: TaskState,
}

/// Nodes that hold an image, with the manager's permission to fetch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    pub task: TaskId,
    pub name: String,
    pub digest: String,
    /// `ADDR:7946` of the holders.
    pub holders: Vec<String>,
    /// Signed by a manager: this node may fetch this digest until then. Opaque to the node that carries it.
    pub grant: Vec<u8>,
}

/// Another node (or this one) that takes part in a network this node takes part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub node: NodeId,
    pub index: u16,
    /// VXLAN tunnel endpoint.
    pub data_addr: IpAddr,
    /// Its address on the ingress network.
    pub ingress_addr: Option<IpAddr>,
    /// How much its tasks take of a weighted service's connections; `None`: 1.
    pub weight: Option<u16>,
    /// What packets of encrypted networks are sealed with for it; `None`: it takes no part in them.
    pub tunnel_key: Option<TunnelKey>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkItem {
    pub id: NetworkId,
    pub name: String,
    /// 0: a network of this node alone.
    pub vni: u32,
    pub subnets: Vec<IpNetwork>,
    pub gateways: Vec<IpAddr>,
    pub internal: bool,
    pub ingress: bool,
    pub driver_options: BTreeMap<String, String>,
    pub data_path_port: u16,
}

impl NetworkItem {
    /// Of this node alone: no tunnel leads to others.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.vni == 0
    }

    /// Whether its packets are encrypted between nodes. Of one node alone none leave it.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        !self.is_local() && self.driver_options.contains_key(ENCRYPTED_OPTION)
    }
}

/// A task's presence on a network, wherever the task runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointItem {
    pub network: NetworkId,
    pub task: TaskId,
    pub service: ServiceId,
    pub node: NodeId,
    pub addresses: Vec<IpAddr>,
    /// Names that resolve to these addresses: task name, container name.
    pub names: Vec<String>,
    /// Whether it answers for its service now: running, healthy, not being stopped. While false it stays reachable (for
    /// connections that exist) but is neither a backend nor in `tasks.`.
    pub serving: bool,
}

/// How a service is reached on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEndpointItem {
    pub network: NetworkId,
    pub service: ServiceId,
    /// The service's name and aliases on this network.
    pub names: Vec<String>,
    /// Empty for DNS round robin.
    pub vips: Vec<IpAddr>,
    /// On the ingress network: ports that every node answers on. Empty elsewhere.
    pub ports: Vec<PortConfig>,
    /// Every port that the service says it has, published or not: what SRV is answered from. Empty on the ingress
    /// network.
    pub declared: Vec<PortConfig>,
    pub balance: Option<Balance>,
    /// A node's own tasks serve before others'.
    pub prefer_local: bool,
}
