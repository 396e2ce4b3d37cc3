//! Nodes: what the operator wants of them, what they say of themselves, what managers observe.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{Annotations, Meta, NetworkId, NodeId, Timestamp};

#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    pub spec: NodeSpec,
    /// The role that the node's certificate has now; follows `spec.role`.
    pub role: NodeRole,
    pub description: NodeDescription,
    pub status: NodeStatus,
    /// Present on managers.
    pub manager: Option<ManagerStatus>,
    /// Small unique number that managers allocate: conntrack zone and mark of connections that entered here. 1..=65535.
    pub index: u16,
    /// The node's own address on the networks that every node takes part in (ingress).
    pub attachments: BTreeMap<NetworkId, IpAddr>,
    /// Absent until the node has reported them.
    pub certificates: Option<NodeCertificates>,
}

/// The certificates that a node uses, as it said last and a manager checked. Roots are named by the SHA-256 of their
/// certificate (DER), in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificates {
    /// The root that signed them.
    pub issuer: String,
    /// Every root that the node trusts.
    pub trusted: Vec<String>,
    /// When the first of them expires.
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    pub annotations: Annotations,
    pub role: NodeRole,
    pub availability: Availability,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeRole {
    Worker,
    Manager,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Takes tasks.
    Active,
    /// Keeps its tasks, takes no new ones.
    Pause,
    /// Its tasks are moved elsewhere.
    Drain,
}

/// What a node says of itself when its session starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeDescription {
    pub hostname: String,
    pub platform: Platform,
    pub resources: Resources,
    pub engine_version: String,
    pub engine_labels: BTreeMap<String, String>,
    /// What this node can do (`seccomp`, `ipv6`, `cgroup-v2`, …); the scheduler filters by it.
    pub features: Vec<String>,
    /// The node's own networks, which the allocator keeps out of.
    pub underlay: Vec<ipnetwork::IpNetwork>,
    /// Where other nodes send overlay traffic (the VXLAN tunnel endpoint).
    pub data_addr: Option<IpAddr>,
    /// What the operator says the node has besides: `node-generic-resources` of its configuration.
    pub generic: GenericResources,
    /// Whether it can take part in encrypted networks; `None`: its version does not know them, or (with
    /// [`features::ENCRYPTED_NETWORKS`]) it does not say so yet, and what it said before holds.
    pub encryption: Option<Encryption>,
}

/// What a node says of encrypted networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// Others seal packets for it with this.
    Key(TunnelKey),
    /// It takes no part, and why.
    Unavailable(String),
}

/// The public half of a node's WireGuard key; the private one never leaves its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelKey(pub [u8; 32]);

impl NodeDescription {
    /// `None`: it takes no part in encrypted networks.
    #[must_use]
    pub fn tunnel_key(&self) -> Option<TunnelKey> {
        match self.encryption {
            Some(Encryption::Key(key)) => Some(key),
            Some(Encryption::Unavailable(_)) | None => None,
        }
    }

    /// Whether it can take part in encrypted networks.
    #[must_use]
    pub fn can_encrypt(&self) -> bool {
        self.tunnel_key().is_some()
    }

    /// Why it cannot take part in encrypted networks, for the operator; `None`: it can.
    #[must_use]
    pub fn cannot_encrypt(&self) -> Option<&str> {
        match &self.encryption {
            Some(Encryption::Key(_)) => None,
            Some(Encryption::Unavailable(why)) => Some(why),
            None => Some("it has only just joined, or its version does not know encrypted networks"),
        }
    }
}

/// What a node's version knows, among [`NodeDescription::features`]: managers ask for it before they give nodes what older
/// ones would ignore.
pub mod features {
    /// Ports on one address, hidden clients, local tasks first, weights.
    pub const PUBLISH_OPTIONS: &str = "publish-options";
    /// Binds without what is mounted below them, or with it and writable.
    pub const MOUNT_OPTIONS: &str = "mount-options";
    /// Services on the node's own network.
    pub const NODE_NETWORKS: &str = "node-networks";
    /// Names for the node's own address.
    pub const HOST_GATEWAY: &str = "host-gateway";
    /// A folder of a volume instead of all of it.
    pub const VOLUME_SUBPATH: &str = "volume-subpath";
    /// Networks with packets that are encrypted between nodes, whether this node can take part in them or not.
    pub const ENCRYPTED_NETWORKS: &str = "encrypted-networks";
}

/// Things of the operator's own that tasks reserve: GPUs, licences, disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GenericResources {
    /// So many of a kind, all alike.
    pub counted: BTreeMap<String, u64>,
    /// Each by its name: a task is told which ones are its own.
    pub named: BTreeSet<NamedResource>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedResource {
    pub kind: String,
    pub name: String,
}

impl GenericResources {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counted.is_empty() && self.named.is_empty()
    }

    /// How many of a kind there are, counted or named.
    #[must_use]
    pub fn count(&self, kind: &str) -> u64 {
        let named = self.named.iter().filter(|resource| resource.kind == kind).count() as u64;
        self.counted.get(kind).copied().unwrap_or(0) + named
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// Docker's spelling in `node inspect`: `x86_64`, `aarch64`.
    pub arch: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// Billionths of a CPU.
    pub nano_cpus: u64,
    pub memory_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    pub state: NodeState,
    pub message: String,
    /// The address that its session comes from.
    pub addr: Option<IpAddr>,
    /// When `state` last changed.
    pub since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// Not heard of since this cluster object was written (after joining, after a change of leader).
    Unknown,
    Down,
    Ready,
    Disconnected,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerStatus {
    pub raft_id: u64,
    /// `ADDR:PORT` of the control API and raft.
    pub addr: String,
}
