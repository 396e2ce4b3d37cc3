//! A network namespace as data: what should be in it, and what was seen in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnetwork::IpNetwork;
use orch_model::{NetworkId, TaskId, node::TunnelKey};

use crate::{
    names::{HOST_PREFIX, Mac, PORT_PREFIX},
    ruleset::Ruleset,
};

/// Names a namespace of this node. The order is the order in which they are brought up to date: a pair of links is made
/// from the earlier one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NsName {
    /// The daemon's own.
    Host,
    /// Where tunnels of encrypted networks lead out: by WireGuard and no other way.
    Crypt,
    /// Where a network's tunnel and its local tasks meet.
    Sandbox(NetworkId),
    Task(TaskId),
}

impl NsName {
    /// Whether a link that is there and not wanted is the daemon's to remove.
    #[must_use]
    pub fn may_remove(&self, link: &str) -> bool {
        match self {
            Self::Host => link.starts_with(HOST_PREFIX),
            Self::Sandbox(_) => link.starts_with(PORT_PREFIX),
            Self::Crypt => false,
            // They go together with their other end.
            Self::Task(_) => false,
        }
    }
}

impl fmt::Display for NsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the node"),
            Self::Crypt => f.write_str("encryption"),
            Self::Sandbox(network) => write!(f, "network {network}"),
            Self::Task(task) => write!(f, "task {task}"),
        }
    }
}

/// What should be in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NsPlan {
    pub links: BTreeMap<String, Link>,
    pub addresses: BTreeSet<(String, IpNetwork)>,
    pub routes: BTreeSet<Route>,
    pub rules: BTreeSet<PolicyRule>,
    pub neighbours: BTreeSet<Neighbour>,
    pub fdb: BTreeSet<FdbEntry>,
    /// Path below /proc/sys to value.
    pub sysctls: BTreeMap<String, String>,
    pub ruleset: Ruleset,
    /// What its WireGuard device should know.
    pub wireguard: Option<WireGuard>,
}

impl NsPlan {
    /// Whether `other` is the same, or has other rules and nothing else.
    #[must_use]
    pub fn is_but_for_rules(&self, other: &Self) -> bool {
        let Self { links, addresses, routes, rules, neighbours, fdb, sysctls, ruleset: _, wireguard } = self;
        (links, addresses, routes, rules) == (&other.links, &other.addresses, &other.routes, &other.rules)
            && (neighbours, fdb, sysctls, wireguard)
                == (&other.neighbours, &other.fdb, &other.sysctls, &other.wireguard)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub kind: LinkKind,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    /// The bridge that it is a port of.
    pub master: Option<String>,
    pub up: bool,
}

impl Link {
    /// Up, and all else as the kernel makes it.
    #[must_use]
    pub fn up(kind: LinkKind) -> Self {
        Self { kind, mac: None, mtu: None, master: None, up: true }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    Loopback,
    Bridge,
    /// Made from another namespace: there its packets leave and arrive.
    Vxlan {
        tunnel: Vxlan,
        outside: NsName,
    },
    /// Made from the daemon's own namespace, where what it has encrypted leaves and arrives.
    WireGuard,
    /// A pair, made from here with its other end in another namespace.
    Veth {
        peer_ns: NsName,
        peer_name: String,
    },
    /// The other end of a pair; made from over there.
    VethPeer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: u32,
    pub port: u16,
    pub local: IpAddr,
}

/// What a WireGuard device knows, but its own key: that is made in place, and nobody else's to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WireGuard {
    pub port: u16,
    pub peers: BTreeMap<TunnelKey, Correspondent>,
}

/// Another node, as the device knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Correspondent {
    /// Where it is. Packets that it signed correct it, so that what is seen may be another.
    pub endpoint: SocketAddr,
    /// The only address inside that may come from there.
    pub inner: Ipv4Addr,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub table: u32,
    pub destination: IpNetwork,
    pub target: Target,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Straight out of a link.
    Link(String),
    /// By a neighbour that is on the link even when no subnet says so.
    Via(IpAddr, String),
    /// Dropped without a word.
    Blackhole,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    pub priority: u32,
    pub selector: Selector,
    pub table: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    From(IpAddr),
    Mark(u32),
}

/// Bits of the packet mark that carry a node's index.
pub const MARK_MASK: u32 = 0xffff;

/// A permanent entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub link: String,
    pub addr: IpAddr,
    pub mac: Mac,
}

/// Behind which tunnel endpoint a MAC address is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    pub link: String,
    pub mac: Mac,
    pub vtep: IpAddr,
    /// The link is a bridge's port: the bridge is told as well.
    pub bridged: bool,
}

/// What was seen in a namespace, as far as it concerns the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    pub links: BTreeMap<String, ObservedLink>,
    pub addresses: BTreeSet<(String, IpNetwork)>,
    /// Only those that the daemon made.
    pub routes: BTreeSet<Route>,
    /// Only those that the daemon made.
    pub rules: BTreeSet<PolicyRule>,
    /// Only permanent ones.
    pub neighbours: BTreeSet<Neighbour>,
    pub fdb: BTreeSet<FdbEntry>,
    pub sysctls: BTreeMap<String, String>,
    /// The ruleset that is known to be loaded; `None` when someone else may have changed it.
    pub ruleset: Option<Ruleset>,
    /// `None`: there is no such device.
    pub wireguard: Option<ObservedWireGuard>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedWireGuard {
    /// `None` until it has a key.
    pub key: Option<TunnelKey>,
    pub knows: WireGuard,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    pub vxlan: Option<Vxlan>,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub master: Option<String>,
    pub up: bool,
    /// Taken down because the program behind it has ended.
    pub ended: bool,
}

impl Observed {
    /// Whether links that should be up in a task's namespace were taken down because its program has ended. One says it:
    /// they are taken down one after the other.
    #[must_use]
    pub fn has_ended(&self, plan: &NsPlan) -> bool {
        let links = plan.links.iter().filter(|(_, link)| link.kind == LinkKind::VethPeer && link.up);
        links.filter_map(|(name, _)| self.links.get(name)).any(|link| link.ended)
    }
}
