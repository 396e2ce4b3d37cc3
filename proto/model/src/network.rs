//! Networks: what the user asked for and what the allocator gave.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::{Annotations, Meta, NetworkId, id::ID_LEN};

/// The only driver whose networks span nodes.
pub const DRIVER_OVERLAY: &str = "overlay";
/// Docker's option of a network whose packets nobody between the nodes can read. It counts whatever its value is.
pub const ENCRYPTED_OPTION: &str = "encrypted";

/// Where nodes receive the packets of encrypted networks (UDP, WireGuard).
pub const ENCRYPTED_PORT: u16 = 7947;

/// Docker's name for no network at all.
pub const NONE: &str = "none";

/// Whether the name servers of nodes can answer to it: a name of containers on a network.
#[must_use]
pub fn is_host_name(text: &str) -> bool {
    let label =
        |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    text.len() <= 253 && text.split('.').all(label)
}

/// A network that every node has of its own, without the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeNetwork {
    /// The node's own interfaces and addresses.
    Host,
    /// A way out and nothing else, which every task has.
    Bridge,
}

impl NodeNetwork {
    pub const ALL: [Self; 2] = [Self::Host, Self::Bridge];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Bridge => "bridge",
        }
    }

    /// By its name or the id that it is listed with.
    #[must_use]
    pub fn find(reference: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|network| network.name() == reference || predefined_id(network.name()) == reference)
    }

    /// The one that a service asks for with this reference, and what it says besides it; `None`: it means one of the
    /// cluster's.
    ///
    /// # Errors
    /// What nodes have and services cannot use, or not like that.
    pub fn of_service(reference: &str, is_plain: bool) -> Result<Option<Self>, NotForServices> {
        if reference == NONE {
            return Err(NotForServices::None);
        }
        match Self::find(reference) {
            Some(network) if !is_plain => Err(NotForServices::Settings(network.name())),
            found => Ok(found),
        }
    }
}

impl fmt::Display for NodeNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a service cannot have a network of its nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotForServices {
    #[error(
        "a service cannot be on the network none: its tasks need a network to be found in, or a way out; to shut them in, \
         use a network made with --internal"
    )]
    None,
    #[error(
        "the network {0} is each node's own and knows neither aliases nor driver options: leave them out, or use a \
         network of the cluster"
    )]
    Settings(&'static str),
}

/// The id that a predefined network is listed with, the same on every node: nobody draws ids that begin with a name and
/// end with so many zeros.
#[must_use]
pub fn predefined_id(name: &str) -> String {
    format!("{name:0<ID_LEN$}")
}

/// Whether every node has a network of this name, so that no other may have it.
#[must_use]
pub fn is_predefined(name: &str) -> bool {
    name == NONE || name == "default" || NodeNetwork::ALL.iter().any(|network| network.name() == name)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_be_asked_for() {
        for (text, want) in [
            ("db", true),
            ("a_b.example-1.org", true),
            ("a b", false),
            ("", false),
            ("a..b", false),
            ("a.", false),
            ("caf\u{e9}", false),
            ("a/b", false),
        ] {
            assert_eq!(is_host_name(text), want, "{text:?}");
        }
        assert!(is_host_name(&"a".repeat(63)) && !is_host_name(&"a".repeat(64)));
    }
}
