//! Networks of this node alone: bridges that the user made, and the three that every node has.
//!
//! A bridge has a subnet that nobody else here uses, and an address for each container that runs on it. Invariants: names
//! are unique; a network is on disk before anyone is on it; what a container was given nobody else has until it ends.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use orch_model::{
    NetworkId, NodeId, ServiceId, TaskId,
    assignment::{Assignment, EndpointItem, NetworkItem},
    network::{IpamConfig, is_predefined, predefined_id},
    task::TaskAttachment,
};
use orch_proto::{
    conv::{FromProto, ToProto},
    wire::{self, LocalNetwork},
};

use super::create::{BRIDGE, HOST, NONE};
use crate::store::{Store, StoreError};

/// Docker's driver of networks of one node.
pub(crate) const DRIVER_BRIDGE: &str = "bridge";
/// Networks that a user may make on one node: each is a namespace.
const MAX_NETWORKS: usize = 256;
/// What fits into one label of a name in DNS.
const MAX_NAME_LEN: usize = 63;
/// The smallest subnet has room for a gateway and a few containers.
const MAX_PREFIX: u8 = 29;
const MAX_PREFIX_V6: u8 = 120;
/// An IPv6 subnet that the user did not choose: a unique local one of this length.
const LOCAL_PREFIX_V6: u8 = 64;
/// Where subnets are cut from when the user names none: Docker's pools, from the end that the node's gateway network
/// takes last.
const POOLS: [(u8, u8); 13] = [
    (172, 31),
    (172, 30),
    (172, 29),
    (172, 28),
    (172, 27),
    (172, 26),
    (172, 25),
    (172, 24),
    (172, 23),
    (172, 22),
    (172, 21),
    (172, 20),
    (172, 19),
];
/// Docker's second pool is cut into /20.
const SMALL_POOL: (u8, u8) = (192, 168);
const SMALL_PREFIX: u8 = 20;

/// In Docker's words where it has some.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("network {0} not found")]
    NotFound(String),
    #[error("network with name {0} already exists")]
    Exists(String),
    #[error("operation is not permitted on predefined {0} network")]
    Predefined(String),
    #[error("{0} is a pre-defined network and cannot be removed")]
    PredefinedRemoval(String),
    #[error("invalid network name: {0:?}: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    Name(String),
    #[error("error while removing network: network {name} has active endpoints: {}", .users.join(", "))]
    InUse { name: String, users: Vec<String> },
    #[error(
        "could not find plugin {0} in v1 plugin registry: plugin not found: networks of a node use the driver bridge"
    )]
    Driver(String),
    #[error("option {0:?} is not one that networks of a node have: only com.docker.network.driver.mtu is")]
    Option(String),
    #[error("invalid subnet {subnet}: {why}")]
    Subnet { subnet: String, why: String },
    #[error(
        "invalid pool request: Pool overlaps with other one on this address space: subnet {subnet} overlaps {other} of \
         {whose}; choose another subnet"
    )]
    Overlap { subnet: IpNetwork, other: IpNetwork, whose: String },
    #[error("could not find an available, non-overlapping IPv4 address pool among the defaults: name a --subnet")]
    NoSubnet,
    #[error("this node's kernel has no IPv6 (ipv6.disable=1?): leave --ipv6 and IPv6 subnets out")]
    NoV6,
    #[error("a node can have {MAX_NETWORKS} networks of its own at most: remove some")]
    TooMany,
    #[error("no available {family} addresses on this network's address pools: {name}")]
    Full { family: &'static str, name: String },
    #[error("invalid address {0}: It does not belong to any of this network's subnets")]
    Outside(IpAddr),
    #[error("user specified IP address is supported only when connecting to networks with user configured subnets")]
    NoUserSubnet,
    #[error("Address already in use: {0}")]
    AddressTaken(IpAddr),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A bridge, and what is given out of it.
#[derive(Debug, Clone)]
struct Bridge {
    record: LocalNetwork,
    ipam: Vec<IpamConfig>,
    /// The user chose the subnet.
    chosen: bool,
    /// Given out last, by family.
    last: BTreeMap<bool, IpAddr>,
    members: BTreeMap<TaskId, Member>,
}

#[derive(Debug, Clone, PartialEq)]
struct Member {
    names: Vec<String>,
    addresses: Vec<IpNetwork>,
}

/// What of this node must not be used again.
pub(crate) struct Taken(pub(crate) Vec<(IpNetwork, String)>);

pub(crate) struct UserNetworks {
    store: Arc<Store>,
    table: Mutex<BTreeMap<NetworkId, Bridge>>,
}

/// The marker of a subnet that the user chose, kept among the options: only there may addresses be chosen.
const CHOSEN: &str = "orch.subnet.chosen";

impl UserNetworks {
    /// Without any until they are [loaded](Self::load).
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store, table: Mutex::default() }
    }

    /// Takes up those that an earlier worker made.
    pub(crate) fn load(&self) -> Result<(), StoreError> {
        let mut table = self.lock();
        for mut record in self.store.user_networks()? {
            let ipam = Vec::<IpamConfig>::from_proto(record.ipam.clone());
            let (Ok(id), Ok(ipam)) = (record.id.parse::<NetworkId>(), ipam) else {
                tracing::error!(name = record.name, "the record of a network of this node cannot be read");
                continue;
            };
            let chosen = record.options.remove(CHOSEN).is_some();
            table.insert(id, Bridge { record, ipam, chosen, last: BTreeMap::new(), members: BTreeMap::new() });
        }
        Ok(())
    }

    /// Names are looked up first; then ids and unique starts of them.
    pub(crate) fn find(&self, reference: &str) -> Option<(NetworkId, String)> {
        let table = self.lock();
        let named = table.iter().find(|(_, bridge)| bridge.record.name == reference);
        let found = named.or_else(|| {
            let mut matches = table.iter().filter(|(id, _)| reference.len() >= 3 && id.as_str().starts_with(reference));
            matches.next().filter(|_| matches.next().is_none())
        });
        found.map(|(id, bridge)| (id.clone(), bridge.record.name.clone()))
    }

    pub(crate) fn create(
        &self,
        asked: LocalNetwork,
        taken: Taken,
        bits: u128,
        now_ms: u64,
    ) -> Result<LocalNetwork, NetworkError> {
        if !is_valid(&asked.name) {
            return Err(NetworkError::Name(asked.name));
        }
        if is_predefined(&asked.name) {
            return Err(NetworkError::Predefined(asked.name));
        }
        if !matches!(asked.driver.as_str(), "" | DRIVER_BRIDGE) {
            return Err(NetworkError::Driver(asked.driver));
        }
        if let Some(option) = asked.options.keys().find(|option| *option != "com.docker.network.driver.mtu") {
            return Err(NetworkError::Option(option.clone()));
        }
        let mut table = self.lock();
        if table.values().any(|bridge| bridge.record.name == asked.name) {
            return Err(NetworkError::Exists(asked.name));
        }
        if table.len() >= MAX_NETWORKS {
            return Err(NetworkError::TooMany);
        }
        let mut taken = taken.0;
        taken.extend(table.values().flat_map(|bridge| {
            bridge.ipam.iter().map(|ipam| (ipam.subnet, format!("network {}", bridge.record.name)))
        }));
        let invalid = |error: orch_proto::conv::DecodeError| NetworkError::Subnet {
            subnet: String::new(),
            why: error.to_string(),
        };
        let wanted = Vec::<IpamConfig>::from_proto(asked.ipam.clone()).map_err(invalid)?;
        let chosen = !wanted.is_empty();
        let mut ipam = checked(wanted, &taken)?;
        if !ipam.iter().any(|ipam| ipam.subnet.is_ipv4()) {
            ipam.push(free_subnet(&taken).ok_or(NetworkError::NoSubnet)?);
        }
        if asked.ipv6 && !ipam.iter().any(|ipam| ipam.subnet.is_ipv6()) {
            ipam.push(local_subnet(bits));
        }
        // What shows one subnet shows the first.
        ipam.sort_by_key(|ipam| ipam.subnet.is_ipv6());
        let id = NetworkId::from_random(bits);
        let record = LocalNetwork {
            id: id.to_string(),
            driver: DRIVER_BRIDGE.to_owned(),
            ipv6: ipam.iter().any(|ipam| ipam.subnet.is_ipv6()),
            ipam: ipam.to_proto(),
            created_at_ms: now_ms,
            predefined: false,
            members: Vec::new(),
            ..asked
        };
        let mut stored = record.clone();
        if chosen {
            stored.options.insert(CHOSEN.to_owned(), String::new());
        }
        self.store.save_user_network(&stored)?;
        table.insert(
            id,
            Bridge { record: record.clone(), ipam, chosen, last: BTreeMap::new(), members: BTreeMap::new() },
        );
        Ok(record)
    }

    /// `users`: containers that do not run but are to be on it are no reason to keep it, as with Docker.
    pub(crate) fn remove(&self, reference: &str) -> Result<(), NetworkError> {
        if is_predefined(reference) {
            return Err(NetworkError::PredefinedRemoval(reference.to_owned()));
        }
        let (id, name) = self.find(reference).ok_or_else(|| NetworkError::NotFound(reference.to_owned()))?;
        let mut table = self.lock();
        let users: Vec<_> = table.get(&id).into_iter().flat_map(|bridge| bridge.members.values()).collect();
        if !users.is_empty() {
            let users = users.iter().filter_map(|member| member.names.first().cloned()).collect();
            return Err(NetworkError::InUse { name, users });
        }
        self.store.forget_user_network(&id)?;
        table.remove(&id);
        Ok(())
    }

    /// All of them, the predefined ones first; `bridge_members`: who is on the node's own network.
    pub(crate) fn list(
        &self,
        bridge_members: Vec<wire::NetworkMember>,
        gateway: Option<IpNetwork>,
    ) -> Vec<LocalNetwork> {
        let mut networks: Vec<_> = [(BRIDGE, DRIVER_BRIDGE), (HOST, "host"), (NONE, "null")]
            .map(|(name, driver)| LocalNetwork {
                id: predefined_id(name),
                name: name.to_owned(),
                driver: driver.to_owned(),
                predefined: true,
                ..LocalNetwork::default()
            })
            .into();
        networks[0].members = bridge_members;
        if let Some(IpNetwork::V4(net)) = gateway {
            let subnet = Ipv4Network::new(net.network(), net.prefix()).map_or(IpNetwork::V4(net), IpNetwork::V4);
            let ipam =
                IpamConfig { subnet, range: None, gateway: Some(IpAddr::V4(first_of(net))), aux: BTreeMap::new() };
            networks[0].ipam = vec![ipam.to_proto()];
        }
        networks.extend(self.lock().values().map(|bridge| LocalNetwork {
            members: bridge.members.iter().map(|(task, member)| wire_member(task, member)).collect(),
            ..bridge.record.clone()
        }));
        networks
    }

    /// Puts a container on the network; what it was given there before it keeps.
    pub(crate) fn join(
        &self,
        network: &NetworkId,
        task: &TaskId,
        names: Vec<String>,
        wanted: &[IpAddr],
    ) -> Result<TaskAttachment, NetworkError> {
        let mut table = self.lock();
        let bridge = table.get_mut(network).ok_or_else(|| NetworkError::NotFound(network.to_string()))?;
        let addresses = match bridge.members.get(task) {
            Some(member) => member.addresses.clone(),
            None => bridge.give(wanted)?,
        };
        bridge.members.insert(task.clone(), Member { names, addresses: addresses.clone() });
        Ok(TaskAttachment { network: network.clone(), addresses, aliases: Vec::new() })
    }

    /// Whether the network could give these addresses.
    pub(crate) fn check(&self, network: &NetworkId, wanted: &[IpAddr]) -> Result<(), NetworkError> {
        let table = self.lock();
        let bridge = table.get(network).ok_or_else(|| NetworkError::NotFound(network.to_string()))?;
        wanted.iter().try_for_each(|address| bridge.allows(*address).map(drop))
    }

    /// Takes up what an earlier worker gave.
    pub(crate) fn rejoin(&self, network: &NetworkId, task: &TaskId, names: Vec<String>, addresses: Vec<IpNetwork>) {
        if let Some(bridge) = self.lock().get_mut(network) {
            bridge.members.insert(task.clone(), Member { names, addresses });
        }
    }

    /// Takes the container off every network that is not in `kept`.
    pub(crate) fn leave_but(&self, task: &TaskId, kept: &[NetworkId]) {
        for (id, bridge) in self.lock().iter_mut() {
            if !kept.contains(id) {
                bridge.members.remove(task);
            }
        }
    }

    /// What netd is to know of them.
    pub(crate) fn items(&self, node: &NodeId) -> Vec<wire::Assignment> {
        let table = self.lock();
        let mut items = Vec::new();
        for (id, bridge) in table.iter() {
            items.push(Assignment::Network(bridge.item(id)).to_proto());
            for (task, member) in &bridge.members {
                let endpoint = EndpointItem {
                    network: id.clone(),
                    task: task.clone(),
                    service: ServiceId::nobody(),
                    node: node.clone(),
                    addresses: member.addresses.iter().map(IpNetwork::ip).collect(),
                    names: member.names.clone(),
                    serving: true,
                };
                items.push(Assignment::Endpoint(endpoint).to_proto());
            }
        }
        items
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NetworkId, Bridge>> {
        // Each holder changes one entry as a whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bridge {
    fn item(&self, id: &NetworkId) -> NetworkItem {
        NetworkItem {
            id: id.clone(),
            name: self.record.name.clone(),
            vni: 0,
            subnets: self.ipam.iter().map(|ipam| ipam.subnet).collect(),
            gateways: self.ipam.iter().filter_map(|ipam| ipam.gateway).collect(),
            internal: self.record.internal,
            ingress: false,
            driver_options: self.record.options.clone().into_iter().collect(),
            data_path_port: 0,
        }
    }

    fn is_free(&self, address: IpAddr) -> bool {
        let is_aux = |ipam: &IpamConfig| ipam.aux.values().any(|aux| *aux == address);
        let reserved = self.ipam.iter().any(|ipam| ipam.gateway == Some(address) || is_aux(ipam));
        !reserved && !self.members.values().any(|member| member.addresses.iter().any(|a| a.ip() == address))
    }

    fn allows(&self, address: IpAddr) -> Result<IpNetwork, NetworkError> {
        if !self.chosen {
            return Err(NetworkError::NoUserSubnet);
        }
        let ipam = self.ipam.iter().find(|ipam| ipam.subnet.contains(address)).ok_or(NetworkError::Outside(address))?;
        if is_edge(ipam.subnet, address) || !self.is_free(address) {
            return Err(NetworkError::AddressTaken(address));
        }
        IpNetwork::new(address, ipam.subnet.prefix()).map_err(|_| NetworkError::Outside(address))
    }

    /// One of each family that the network has.
    fn give(&mut self, wanted: &[IpAddr]) -> Result<Vec<IpNetwork>, NetworkError> {
        let mut given = Vec::new();
        for v6 in [false, true] {
            match wanted.iter().find(|address| address.is_ipv6() == v6) {
                Some(address) => given.push(self.allows(*address)?),
                None if self.ipam.iter().any(|ipam| ipam.subnet.is_ipv6() == v6) => given.push(self.next(v6)?),
                None => {}
            }
        }
        self.last.extend(given.iter().filter(|_| wanted.is_empty()).map(|address| (address.is_ipv6(), address.ip())));
        Ok(given)
    }

    /// In turn, so that an address rests before it is used again.
    fn next(&self, v6: bool) -> Result<IpNetwork, NetworkError> {
        let candidates = || self.ipam.iter().filter(|ipam| ipam.subnet.is_ipv6() == v6).flat_map(usable);
        let behind = candidates().skip_while(|a| self.last.get(&v6).is_some_and(|last| a.ip() <= *last));
        let family = if v6 { "IPv6" } else { "IPv4" };
        let full = || NetworkError::Full { family, name: self.record.name.clone() };
        behind.chain(candidates()).find(|a| self.is_free(a.ip())).ok_or_else(full)
    }
}

fn is_valid(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= MAX_NAME_LEN
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn wire_member(task: &TaskId, member: &Member) -> wire::NetworkMember {
    wire::NetworkMember {
        container_id: crate::agent::container_id_of(task),
        name: member.names.first().cloned().unwrap_or_default(),
        addresses: member.addresses.iter().map(ToString::to_string).collect(),
    }
}

fn usable(ipam: &IpamConfig) -> impl Iterator<Item = IpNetwork> + use<> {
    let range = ipam.range.unwrap_or(ipam.subnet);
    let (subnet, prefix) = (ipam.subnet, ipam.subnet.prefix());
    let hosts: Box<dyn Iterator<Item = IpAddr>> = match range {
        IpNetwork::V4(net) => Box::new(net.iter().map(IpAddr::V4)),
        IpNetwork::V6(net) => Box::new(net.iter().map(IpAddr::V6)),
    };
    hosts
        .filter(move |address| !is_edge(subnet, *address))
        .filter_map(move |address| IpNetwork::new(address, prefix).ok())
}

/// Whether it is nobody's: IPv6 has no broadcast address, but the first means any router.
fn is_edge(subnet: IpNetwork, address: IpAddr) -> bool {
    address == subnet.network() || (address == subnet.broadcast() && subnet.is_ipv4())
}

fn checked(wanted: Vec<IpamConfig>, taken: &[(IpNetwork, String)]) -> Result<Vec<IpamConfig>, NetworkError> {
    let mut checked: Vec<IpamConfig> = Vec::new();
    for ipam in wanted {
        let refuse = |why: String| NetworkError::Subnet { subnet: ipam.subnet.to_string(), why };
        let net = ipam.subnet;
        if net.network() != net.ip() {
            return Err(refuse(format!("host bits are set, write {}/{}", net.network(), net.prefix())));
        }
        let max = if net.is_ipv4() { MAX_PREFIX } else { MAX_PREFIX_V6 };
        if net.prefix() > max {
            return Err(refuse(format!("it is too small for a network: use /{max} or larger")));
        }
        if net.network().is_multicast() || net.network().is_loopback() || net.network().is_unspecified() {
            return Err(refuse("it is not a range of ordinary addresses, like 192.168.7.0/24".to_owned()));
        }
        let inside =
            |range: &IpNetwork| ipam.subnet.contains(range.network()) && ipam.subnet.contains(range.broadcast());
        if let Some(range) = ipam.range.filter(|range| !inside(range)) {
            return Err(refuse(format!("the ip range {range} is not inside it")));
        }
        if let Some(gateway) = ipam.gateway.filter(|gateway| !ipam.subnet.contains(*gateway)) {
            return Err(refuse(format!("the gateway {gateway} is not inside it")));
        }
        let own = checked.iter().map(|other| (other.subnet, "this network".to_owned()));
        if let Some((other, whose)) = taken.iter().cloned().chain(own).find(|(other, _)| overlap(*other, ipam.subnet)) {
            return Err(NetworkError::Overlap { subnet: ipam.subnet, other, whose });
        }
        let gateway = ipam.gateway.or(Some(match net {
            IpNetwork::V4(net) => IpAddr::V4(first_of(net)),
            IpNetwork::V6(net) => IpAddr::V6(first_of_v6(net)),
        }));
        checked.push(IpamConfig { gateway, ..ipam });
    }
    Ok(checked)
}

fn free_subnet(taken: &[(IpNetwork, String)]) -> Option<IpamConfig> {
    let large = POOLS.iter().filter_map(|(a, b)| Ipv4Network::new(Ipv4Addr::new(*a, *b, 0, 0), 16).ok());
    let (a, b) = SMALL_POOL;
    let small = (0..=u8::MAX).step_by(1 << (24 - SMALL_PREFIX)).rev();
    let small = small.filter_map(|third| Ipv4Network::new(Ipv4Addr::new(a, b, third, 0), SMALL_PREFIX).ok());
    let is_free = |net: &Ipv4Network| !taken.iter().any(|(other, _)| overlap(*other, IpNetwork::V4(*net)));
    let net = large.chain(small).find(is_free)?;
    Some(IpamConfig {
        subnet: IpNetwork::V4(net),
        range: None,
        gateway: Some(IpAddr::V4(first_of(net))),
        aux: BTreeMap::new(),
    })
}

fn first_of(net: Ipv4Network) -> Ipv4Addr {
    Ipv4Addr::from_bits(net.network().to_bits().saturating_add(1))
}

fn first_of_v6(net: Ipv6Network) -> Ipv6Addr {
    Ipv6Addr::from_bits(net.network().to_bits().saturating_add(1))
}

/// `fd`, and what is random: such a subnet meets nobody else's, so nothing needs to be looked at.
fn local_subnet(bits: u128) -> IpamConfig {
    let address = Ipv6Addr::from_bits((0xfd << 120) | ((bits << 64) & (u128::MAX >> 8)));
    // The length is valid for every address.
    let net = Ipv6Network::new(address, LOCAL_PREFIX_V6).unwrap_or_else(|_| address.into());
    let gateway = Some(IpAddr::V6(first_of_v6(net)));
    IpamConfig { subnet: IpNetwork::V6(net), range: None, gateway, aux: BTreeMap::new() }
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    // The way out is no network.
    let is_default = |net: IpNetwork| net.prefix() == 0;
    match (a, b) {
        _ if is_default(a) || is_default(b) => false,
        (IpNetwork::V4(a), IpNetwork::V4(b)) => a.overlaps(b),
        (IpNetwork::V6(a), IpNetwork::V6(b)) => a.overlaps(b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(dir: &std::path::Path) -> UserNetworks {
        let networks = UserNetworks::new(Arc::new(Store::open(dir).unwrap()));
        networks.load().unwrap();
        networks
    }

    fn asked(name: &str, subnet: &str) -> LocalNetwork {
        let ipam =
            |text: &str| IpamConfig { subnet: text.parse().unwrap(), range: None, gateway: None, aux: BTreeMap::new() };
        let ipam = if subnet.is_empty() { vec![] } else { vec![ipam(subnet).to_proto()] };
        LocalNetwork { name: name.to_owned(), ipam, ..LocalNetwork::default() }
    }

    fn create(networks: &UserNetworks, name: &str, subnet: &str) -> Result<LocalNetwork, NetworkError> {
        let taken = Taken(vec![("172.31.4.0/24".parse().unwrap(), "the node".to_owned())]);
        networks.create(asked(name, subnet), taken, u128::from(name.len() as u64) + 7, 1)
    }

    #[test]
    fn subnets_are_the_users_or_free_ones_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let all = networks(dir.path());
        assert_eq!(create(&all, "a", "").unwrap().ipam[0].subnet, "172.30.0.0/16");
        assert_eq!(create(&all, "bb", "192.168.7.0/24").unwrap().ipam[0].gateway.as_deref(), Some("192.168.7.1"));
        for (name, subnet, said) in [
            ("a", "", "network with name a already exists"),
            ("host", "", "predefined host network"),
            ("c", "192.168.7.128/25", "overlaps 192.168.7.0/24 of network bb"),
            ("c", "172.31.0.0/16", "of the node"),
            ("c", "192.168.9.0/30", "too small"),
            ("c", "192.168.9.1/24", "host bits are set"),
            ("c", "fd00::1/64", "host bits are set"),
            ("c", "fd00::/124", "too small"),
            ("c", "ff02::/64", "not a range of ordinary addresses"),
            ("-c", "", "invalid network name"),
        ] {
            let error = create(&all, name, subnet).unwrap_err().to_string();
            assert!(error.contains(said), "{name} {subnet}: {error}");
        }
        drop(all);
        let again = networks(dir.path());
        assert!(again.find("a").is_some() && again.find("bb").is_some() && again.find("c").is_none());
        assert!(again.check(&again.find("bb").unwrap().0, &["192.168.7.9".parse().unwrap()]).is_ok());
        assert!(again.check(&again.find("a").unwrap().0, &["172.30.0.9".parse().unwrap()]).is_err());
        again.remove("a").unwrap();
        assert!(again.find("a").is_none() && again.remove("a").is_err() && again.remove("bridge").is_err());
    }

    #[test]
    fn addresses_are_given_in_turn_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let all = networks(dir.path());
        create(&all, "n", "192.168.7.0/29").unwrap();
        let (id, _) = all.find("n").unwrap();
        let join = |n: u128, wanted: &[&str]| {
            let wanted: Vec<IpAddr> = wanted.iter().map(|a| a.parse().unwrap()).collect();
            let given = all.join(&id, &TaskId::from_random(n), vec![format!("c{n}")], &wanted);
            given.map(|a| a.addresses[0].to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(join(1, &[]).unwrap(), "192.168.7.2/29");
        assert_eq!(join(1, &[]).unwrap(), "192.168.7.2/29", "it keeps what it has");
        assert_eq!(join(2, &["192.168.7.4"]).unwrap(), "192.168.7.4/29");
        assert!(join(3, &["192.168.7.4"]).unwrap_err().contains("Address already in use"));
        assert!(join(3, &["192.168.7.1"]).unwrap_err().contains("Address already in use"), "the gateway");
        assert!(join(3, &["10.0.0.1"]).unwrap_err().contains("does not belong"));
        assert!(all.remove("n").unwrap_err().to_string().contains("active endpoints: c1, c2"));
        all.leave_but(&TaskId::from_random(1), &[]);
        assert_eq!(join(3, &[]).unwrap(), "192.168.7.3/29", "what was just free rests");
        assert_eq!(join(4, &[]).unwrap(), "192.168.7.5/29");
        assert_eq!(join(5, &[]).unwrap(), "192.168.7.6/29");
        assert_eq!(join(6, &[]).unwrap(), "192.168.7.2/29");
        assert!(join(7, &[]).unwrap_err().contains("no available IPv4 addresses"));
    }

    #[test]
    fn a_container_has_an_address_of_each_family() {
        let dir = tempfile::tempdir().unwrap();
        let all = networks(dir.path());
        let made = all.create(LocalNetwork { ipv6: true, ..asked("auto", "") }, Taken(vec![]), 7, 1).unwrap();
        let subnets: Vec<_> = made.ipam.iter().map(|ipam| ipam.subnet.as_str()).collect();
        assert_eq!((subnets, made.ipv6), (vec!["172.31.0.0/16", "fd00:0:0:7::/64"], true));
        let made = create(&all, "own", "fd00:9::/64").unwrap();
        let subnets: Vec<_> = made.ipam.iter().map(|ipam| ipam.subnet.as_str()).collect();
        assert_eq!((subnets, made.ipv6), (vec!["172.30.0.0/16", "fd00:9::/64"], true));
        assert_eq!(made.ipam[1].gateway.as_deref(), Some("fd00:9::1"));
        assert!(create(&all, "again", "fd00:9::/80").unwrap_err().to_string().contains("overlaps"));
        let (id, _) = all.find("own").unwrap();
        let join = |n: u128, wanted: &[&str]| {
            let wanted: Vec<IpAddr> = wanted.iter().map(|a| a.parse().unwrap()).collect();
            let given = all.join(&id, &TaskId::from_random(n), vec![format!("c{n}")], &wanted);
            given.map(|a| a.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()).map_err(|e| e.to_string())
        };
        assert_eq!(join(1, &[]).unwrap(), ["172.30.0.2/16", "fd00:9::2/64"]);
        assert_eq!(join(2, &["fd00:9::3"]).unwrap(), ["172.30.0.3/16", "fd00:9::3/64"]);
        assert_eq!(join(3, &[]).unwrap(), ["172.30.0.4/16", "fd00:9::4/64"]);
        assert!(join(4, &["fd00:9::"]).unwrap_err().contains("Address already in use"), "any router's");
        assert!(join(4, &["fd00:8::1"]).unwrap_err().contains("does not belong"));
    }
}
