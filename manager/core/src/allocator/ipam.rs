//! Subnets for networks and addresses within them.
//!
//! A subnet never overlaps another network's or one of a node's own. Addresses are handed out in turn, so that one
//! which was just freed rests while the others have theirs; the first address of a subnet is its gateway.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use orch_model::{
    NetworkId,
    cluster::{DEFAULT_ADDRESS_POOL, DEFAULT_SUBNET_PREFIX_LEN},
    network::{IpamConfig, Network, NetworkSpec},
};

use crate::state::State;

/// Prefix length of an IPv6 subnet cut from a pool.
const IPV6_SUBNET_PREFIX_LEN: u8 = 64;

/// Said of a network whose last tasks stop.
const GOES: &str = ", which is being removed";

/// Whether two networks have an address in common.
#[must_use]
pub fn overlaps(a: IpNetwork, b: IpNetwork) -> bool {
    match (a, b) {
        (IpNetwork::V4(a), IpNetwork::V4(b)) => a.overlaps(b),
        (IpNetwork::V6(a), IpNetwork::V6(b)) => a.overlaps(b),
        _ => false,
    }
}

/// The first usable address of a subnet.
#[must_use]
pub fn first_address(subnet: IpNetwork) -> IpAddr {
    let bits = to_bits(subnet.network());
    from_bits(bits.saturating_add(1), subnet.is_ipv6())
}

/// Cuts subnets.
pub struct Subnets {
    pools: Vec<IpNetwork>,
    prefix_len: u8,
    /// With the words that say whose it is.
    taken: Vec<(IpNetwork, String)>,
}

impl Subnets {
    #[must_use]
    pub fn new(state: &State) -> Self {
        let spec = state.cluster().map(|c| &c.spec);
        let pools = spec.map(|s| s.address_pools.clone()).filter(|pools| !pools.is_empty());
        let mut taken = Vec::new();
        for network in state.networks() {
            let allocated = network.allocation.iter().flat_map(|a| &a.ipam);
            let name = &network.spec.annotations.name;
            let goes = if network.removing { GOES } else { "" };
            taken.extend(allocated.map(|i| (i.subnet, format!("network {name}{goes}"))));
        }
        for node in state.nodes() {
            let name = &node.description.hostname;
            taken.extend(node.description.underlay.iter().map(|n| (*n, format!("a network that node {name} is on"))));
        }
        Self {
            pools: pools.unwrap_or_else(|| DEFAULT_ADDRESS_POOL.parse().into_iter().collect()),
            prefix_len: spec.map_or(DEFAULT_SUBNET_PREFIX_LEN, |s| s.subnet_prefix_len),
            taken,
        }
    }

    /// The subnets of a network: those that it asks for, or new ones.
    ///
    /// # Errors
    /// With a sentence for the operator.
    pub fn allocate(&mut self, spec: &NetworkSpec) -> Result<Vec<IpamConfig>, String> {
        let mut ipam = Vec::new();
        for asked in &spec.ipam {
            if let Some((other, whose)) = self.taken.iter().find(|(other, _)| overlaps(*other, asked.subnet)) {
                let advice = match whose.ends_with(GOES) {
                    true => "this network gets it when that is gone",
                    false => "remove this network and create it with another subnet",
                };
                return Err(format!("subnet {} overlaps {other} of {whose}: {advice}", asked.subnet));
            }
            let gateway = asked.gateway.or(Some(first_address(asked.subnet)));
            ipam.push(IpamConfig { gateway, ..asked.clone() });
        }
        if !ipam.iter().any(|i| i.subnet.is_ipv4()) {
            ipam.push(self.cut(false)?);
        }
        if spec.ipv6 && !ipam.iter().any(|i| i.subnet.is_ipv6()) {
            ipam.push(self.cut(true)?);
        }
        let name = &spec.annotations.name;
        self.taken.extend(ipam.iter().map(|i| (i.subnet, format!("network {name}"))));
        Ok(ipam)
    }

    fn cut(&self, v6: bool) -> Result<IpamConfig, String> {
        let prefix = if v6 { IPV6_SUBNET_PREFIX_LEN } else { self.prefix_len };
        let pools = self.pools.iter().filter(|p| p.is_ipv6() == v6);
        match pools.filter_map(|pool| self.free_in(*pool, prefix)).next() {
            Some(subnet) => {
                Ok(IpamConfig { subnet, range: None, gateway: Some(first_address(subnet)), aux: BTreeMap::new() })
            }
            None => {
                let pools: Vec<_> = self.pools.iter().filter(|p| p.is_ipv6() == v6).map(ToString::to_string).collect();
                if pools.is_empty() {
                    return Err(format!(
                        "the cluster has no {} address pool: remove this network and create it with a --subnet, or \
                         give the cluster a pool (`orch init --default-addr-pool`)",
                        if v6 { "IPv6" } else { "IPv4" }
                    ));
                }
                let pools = pools.join(", ");
                Err(format!(
                    "could not find an available, non-overlapping {} address pool: every /{prefix} of {pools} belongs \
                     to a network or overlaps a network that a node is on; remove networks that are not needed, or \
                     name a subnet",
                    if v6 { "IPv6" } else { "IPv4" }
                ))
            }
        }
    }

    fn free_in(&self, pool: IpNetwork, prefix: u8) -> Option<IpNetwork> {
        if prefix < pool.prefix() {
            return None;
        }
        let (mut at, last) = (to_bits(pool.network()), to_bits(pool.broadcast()));
        loop {
            let candidate = IpNetwork::new(from_bits(at, pool.is_ipv6()), prefix).ok()?;
            let end = to_bits(candidate.broadcast());
            let after = match self.taken.iter().find(|(other, _)| overlaps(*other, candidate)) {
                None => return Some(candidate),
                // Go on behind whichever of the two reaches further.
                Some((other, _)) => to_bits(other.broadcast()).max(end).checked_add(1)?,
            };
            if after > last {
                return None;
            }
            at = after;
        }
    }
}

/// Hands out addresses of networks.
pub struct Addresses<'a> {
    state: &'a State,
    given: BTreeMap<NetworkId, BTreeSet<IpAddr>>,
    cursors: BTreeMap<(NetworkId, bool), IpAddr>,
}

impl<'a> Addresses<'a> {
    #[must_use]
    pub fn new(state: &'a State) -> Self {
        Self { state, given: BTreeMap::new(), cursors: BTreeMap::new() }
    }

    /// One address of each family that the network has, with the prefix length of its subnet.
    ///
    /// # Errors
    /// With a sentence for the operator, when the network is not ready or has no free address.
    pub fn next_of_each_family(&mut self, network: &Network) -> Result<Vec<IpNetwork>, String> {
        self.of_each_family(network, &[])
    }

    /// As [`Self::next_of_each_family`], with those of `wanted` where it names one.
    ///
    /// # Errors
    /// Also when a wanted address is outside the network's subnets or taken.
    pub fn of_each_family(&mut self, network: &Network, wanted: &[IpAddr]) -> Result<Vec<IpNetwork>, String> {
        let name = &network.spec.annotations.name;
        let Some(allocation) = &network.allocation else {
            let why = network.problem.as_deref().unwrap_or("it has no subnet yet");
            return Err(format!("network {name} is not ready: {why}"));
        };
        let mut addresses = Vec::new();
        for address in wanted {
            addresses.push(self.wanted_in(network, &allocation.ipam, *address)?);
        }
        for v6 in [false, true] {
            let subnets: Vec<_> = allocation.ipam.iter().filter(|i| i.subnet.is_ipv6() == v6).collect();
            if subnets.is_empty() || wanted.iter().any(|address| address.is_ipv6() == v6) {
                continue;
            }
            match subnets.iter().find_map(|i| self.next_in(network, i)) {
                Some(address) => addresses.push(address),
                None => {
                    let list: Vec<_> = subnets.iter().map(|i| i.subnet.to_string()).collect();
                    return Err(format!(
                        "network {name} has no free address left in {}: scale services on it down, or use a larger \
                         subnet",
                        list.join(", ")
                    ));
                }
            }
        }
        // Wanted ones come in the order of flags; what shows one address shows the first.
        addresses.sort_by_key(IpNetwork::is_ipv6);
        let given = self.given.entry(network.id.clone()).or_default();
        for address in &addresses {
            given.insert(address.ip());
            self.cursors.insert((network.id.clone(), address.is_ipv6()), address.ip());
        }
        Ok(addresses)
    }

    /// Docker's words.
    fn wanted_in(&self, network: &Network, ipam: &[IpamConfig], address: IpAddr) -> Result<IpNetwork, String> {
        let Some(config) = ipam.iter().find(|i| i.subnet.contains(address)) else {
            return Err(format!("invalid address {address}: It does not belong to any of this network's subnets"));
        };
        let bits = to_bits(address);
        let edge = bits == to_bits(config.subnet.network()) || bits == to_bits(config.subnet.broadcast());
        let is_edge = edge && config.subnet.is_ipv4();
        let given = self.given.get(&network.id).is_some_and(|g| g.contains(&address));
        let held = self.state.address_holder(&network.id, address).is_some();
        if is_edge || given || held || is_reserved(config, address) {
            return Err(format!("Address already in use: {address} on network {}", network.spec.annotations.name));
        }
        IpNetwork::new(address, config.subnet.prefix()).map_err(|error| error.to_string())
    }

    fn next_in(&self, network: &Network, ipam: &IpamConfig) -> Option<IpNetwork> {
        let v6 = ipam.subnet.is_ipv6();
        let (first, last) = usable(ipam);
        if first > last {
            return None;
        }
        let key = (network.id.clone(), v6);
        let cursor = self.cursors.get(&key).copied().or_else(|| self.state.address_cursor(&network.id, v6));
        let behind = cursor.map(|c| to_bits(c).saturating_add(1)).filter(|at| (first..=last).contains(at));
        let start = behind.unwrap_or(first);
        let is_free = |bits: &u128| {
            let address = from_bits(*bits, v6);
            let given = self.given.get(&network.id).is_some_and(|g| g.contains(&address));
            !is_reserved(ipam, address) && !given && self.state.address_holder(&network.id, address).is_none()
        };
        let found = (start..=last).chain(first..start).find(is_free)?;
        IpNetwork::new(from_bits(found, v6), ipam.subnet.prefix()).ok()
    }
}

/// The gateway's, or somebody else's.
pub(crate) fn is_reserved(ipam: &IpamConfig, address: IpAddr) -> bool {
    ipam.gateway == Some(address) || ipam.aux.values().any(|aux| *aux == address)
}

/// The first and last address that may be handed out.
fn usable(ipam: &IpamConfig) -> (u128, u128) {
    let (net, end) = (to_bits(ipam.subnet.network()), to_bits(ipam.subnet.broadcast()));
    // IPv6 has no broadcast address; its first address means any router.
    let last = if ipam.subnet.is_ipv4() { end.saturating_sub(1) } else { end };
    let (first, last) = (net.saturating_add(1), last);
    match ipam.range {
        Some(range) => (first.max(to_bits(range.network())), last.min(to_bits(range.broadcast()))),
        None => (first, last),
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

fn from_bits(bits: u128, v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    } else {
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)))
    }
}
