//! Networks: what the user asked for and what the allocator gave.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::{Annotations, Meta, NetworkId};

/// The only driver whose networks span nodes.
pub const DRIVER_OVERLAY: &str = "overlay";
/// Docker's option of a network whose packets nobody between the nodes can read. It counts whatever its value is.
pub const ENCRYPTED_OPTION: &str = "encrypted";

/// Where nodes receive the packets of encrypted networks (UDP, WireGuard).
pub const ENCRYPTED_PORT: u16 = 7947;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    /// What the allocator gave; `None` until it has run or while no pool has room.
    pub allocation: Option<NetworkAllocation>,
    /// Why `allocation` is missing, for the operator.
    pub problem: Option<String>,
    /// Goes once nobody is on it any more; its name is free.
    pub removing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkSpec {
    pub annotations: Annotations,
    pub driver: String,
    pub driver_options: BTreeMap<String, String>,
    /// Empty: cut a subnet from the cluster's pools.
    pub ipam: Vec<IpamConfig>,
    /// No way out.
    pub internal: bool,
    pub attachable: bool,
    /// The cluster-wide network that published ports arrive on.
    pub ingress: bool,
    pub ipv6: bool,
}

impl NetworkSpec {
    /// Whether tasks on it have IPv6 addresses: a subnet of that kind says so too.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.ipv6 || self.ipam.iter().any(|ipam| ipam.subnet.is_ipv6())
    }

    /// Whether its packets are encrypted between nodes.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.driver_options.contains_key(ENCRYPTED_OPTION)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpamConfig {
    pub subnet: IpNetwork,
    pub range: Option<IpNetwork>,
    pub gateway: Option<IpAddr>,
    /// Addresses that are somebody else's, by name: never given out.
    pub aux: BTreeMap<String, IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkAllocation {
    /// VXLAN network identifier, from 4096 up.
    pub vni: u32,
    pub ipam: Vec<IpamConfig>,
}
