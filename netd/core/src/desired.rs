//! What managers want of this node's networks, sorted out of an assignment set, and what the worker asked for locally.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use orch_model::{
    NetworkId, NodeId, ServiceId, TaskId,
    assignment::{Assignment, EndpointItem, NetworkItem, Peer, ServiceEndpointItem},
    service::{Balance, MAX_WEIGHT, PortConfig},
    task::TaskAttachment,
};

use crate::names;

/// Nodes have their index there, in a namespace that has no other addresses: it meets nobody's.
pub const INNER_NETWORK: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 0);
pub const INNER_PREFIX: u8 = 16;

/// The network items of an assignment set, by what they are about.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Desired {
    /// This node; `None` until the first set.
    pub node: Option<NodeId>,
    pub peers: BTreeMap<NodeId, Peer>,
    pub networks: BTreeMap<NetworkId, NetworkItem>,
    pub endpoints: BTreeMap<NetworkId, BTreeMap<TaskId, EndpointItem>>,
    pub services: BTreeMap<NetworkId, BTreeMap<ServiceId, ServiceEndpointItem>>,
}

impl Desired {
    /// Sorts `items`; those that are not about networks are ignored.
    #[must_use]
    pub fn new(node: Option<NodeId>, items: impl IntoIterator<Item = Assignment>) -> Self {
        let mut desired = Self { node, ..Self::default() };
        for item in items {
            match item {
                Assignment::Peer(peer) => drop(desired.peers.insert(peer.node.clone(), peer)),
                Assignment::Network(network) => drop(desired.networks.insert(network.id.clone(), network)),
                Assignment::Endpoint(endpoint) => {
                    let tasks = desired.endpoints.entry(endpoint.network.clone()).or_default();
                    tasks.insert(endpoint.task.clone(), endpoint);
                }
                Assignment::ServiceEndpoint(service) => {
                    let services = desired.services.entry(service.network.clone()).or_default();
                    services.insert(service.service.clone(), service);
                }
                Assignment::Task(_) | Assignment::Secret(_) | Assignment::Config(_) | Assignment::Image(_) => {}
            }
        }
        desired
    }

    /// This node, as the other nodes see it.
    #[must_use]
    pub fn own_peer(&self) -> Option<&Peer> {
        self.peers.get(self.node.as_ref()?)
    }

    /// Every peer but this node.
    pub fn other_peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values().filter(|peer| Some(&peer.node) != self.node.as_ref())
    }

    pub fn endpoints_of(&self, network: &NetworkId) -> impl Iterator<Item = &EndpointItem> {
        self.endpoints.get(network).into_iter().flat_map(BTreeMap::values)
    }

    pub fn services_of(&self, network: &NetworkId) -> impl Iterator<Item = &ServiceEndpointItem> {
        self.services.get(network).into_iter().flat_map(BTreeMap::values)
    }

    /// The network that published ports arrive on, once this node has an address there.
    #[must_use]
    pub fn ingress(&self) -> Option<(&NetworkItem, &Peer, Ipv4Addr)> {
        let own = self.own_peer()?;
        let IpAddr::V4(addr) = own.ingress_addr? else { return None };
        let network = self.networks.values().find(|network| network.ingress)?;
        Some((network, own, addr))
    }

    /// Who this node is inside the tunnels of encrypted networks.
    #[must_use]
    pub fn inner_addr(peer: &Peer) -> Ipv4Addr {
        let [a, b] = peer.index.to_be_bytes();
        let [first, second, ..] = INNER_NETWORK.octets();
        Ipv4Addr::new(first, second, a, b)
    }

    /// Whether this node can attach tasks to `network`: it is known, and so is this node's own address for it.
    #[must_use]
    pub fn can_attach(&self, network: &NetworkId) -> bool {
        match self.networks.get(network) {
            Some(item) if item.is_local() => true,
            Some(item) if item.ingress => self.ingress().is_some_and(|(ingress, ..)| ingress.id == *network),
            Some(_) => self.own_peer().is_some(),
            None => false,
        }
    }

    /// Addresses that answer for `service` on `network` now, in order, without those `out` of balancing.
    #[must_use]
    pub fn backends(&self, network: &NetworkId, service: &ServiceId, out: &Out) -> Vec<IpAddr> {
        let mut addrs: Vec<_> =
            self.answering(network, service, out).into_iter().flat_map(|e| e.addresses.iter().copied()).collect();
        addrs.sort_unstable();
        addrs
    }

    fn answering(&self, network: &NetworkId, service: &ServiceId, out: &Out) -> Vec<&EndpointItem> {
        let serving = |e: &&EndpointItem| e.serving && e.service == *service && !out.tasks.contains(&e.task);
        let serving: Vec<_> = self.endpoints_of(network).filter(serving).collect();
        let trusted: Vec<_> = serving.iter().filter(|e| !out.nodes.contains(&e.node)).copied().collect();
        // Suspicion may be wrong; an empty service certainly is.
        if trusted.is_empty() { serving } else { trusted }
    }

    /// Where this node sends connections to a service: its backends or, as the service wishes, only those on this node
    /// while there are any, and each as often as its node's weight says.
    #[must_use]
    pub fn targets(&self, service: &ServiceEndpointItem, out: &Out) -> Vec<IpAddr> {
        let mut answering = self.answering(&service.network, &service.service, out);
        let is_local = |e: &&EndpointItem| Some(&e.node) == self.node.as_ref();
        if service.prefer_local && answering.iter().any(is_local) {
            answering.retain(is_local);
        }
        if service.balance != Some(Balance::Weighted) {
            let mut addrs: Vec<_> = answering.into_iter().flat_map(|e| e.addresses.iter().copied()).collect();
            addrs.sort_unstable();
            return addrs;
        }
        answering.sort_unstable_by(|a, b| a.addresses.cmp(&b.addresses));
        // As many turns as the weights add up to: a number that no manager says must not become a rule without end.
        let weight = |e: &EndpointItem| {
            self.peers.get(&e.node).and_then(|peer| peer.weight).map_or(1, |weight| weight.min(MAX_WEIGHT))
        };
        let weights: Vec<_> = answering.iter().map(|e| weight(e)).collect();
        turns(&weights).into_iter().flat_map(|turn| answering[turn].addresses.iter().copied()).collect()
    }

    /// Those of `suspects` whose tasks are no backends: nobody's when they are more than half of the other nodes, because
    /// then it is this node that is cut off.
    #[must_use]
    pub fn withdrawn(&self, suspects: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let others: BTreeSet<_> = self.other_peers().map(|peer| &peer.node).collect();
        let known: BTreeSet<_> = suspects.iter().filter(|node| others.contains(node)).cloned().collect();
        if known.len() * 2 > others.len() { BTreeSet::new() } else { known }
    }
}

/// In which order whoever has a weight has its turns, spread as evenly as they can be: each time the turn goes to the
/// one that has waited most for its share. All have one where none has any weight: a service that works is never emptied.
fn turns(weights: &[u16]) -> Vec<usize> {
    let divisor = weights.iter().fold(0, |a, b| gcd(a, u32::from(*b)));
    let Some(total) = weights.iter().map(|w| u32::from(*w)).sum::<u32>().checked_div(divisor) else {
        return (0..weights.len()).collect();
    };
    let shares: Vec<i64> = weights.iter().map(|w| i64::from(u32::from(*w) / divisor)).collect();
    let mut waited = vec![0_i64; weights.len()];
    let turn = |_| {
        waited.iter_mut().zip(&shares).for_each(|(waited, share)| *waited += share);
        // The first of those that have waited most.
        let next = (0..waited.len()).rev().max_by_key(|n| waited[*n]).unwrap_or_default();
        waited[next] -= i64::from(total);
        next
    };
    (0..total).map(turn).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What this node takes out of balancing on its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Out {
    /// Tasks of this node that are known to be dead.
    pub tasks: BTreeSet<TaskId>,
    /// Nodes that gossip takes for dead.
    pub nodes: BTreeSet<NodeId>,
}

/// Which interface (`eth0`, `eth1`, …) leads where. A network keeps its own for as long as the task is on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkNumbers {
    pub networks: BTreeMap<NetworkId, usize>,
    pub gateway: usize,
}

impl LinkNumbers {
    /// Of a new task: its networks in their order, then the way out.
    #[must_use]
    pub fn first(attachments: &[TaskAttachment]) -> Self {
        let networks = attachments.iter().enumerate().map(|(number, a)| (a.network.clone(), number)).collect();
        Self { networks, gateway: attachments.len() }
    }

    /// After the task was put on other networks.
    #[must_use]
    pub fn followed_by(&self, attachments: &[TaskAttachment]) -> Self {
        let stays = |network: &&NetworkId| attachments.iter().any(|a| a.network == **network);
        let kept = self.networks.iter().filter(|(network, _)| stays(network));
        let mut next =
            Self { networks: kept.map(|(id, number)| (id.clone(), *number)).collect(), gateway: self.gateway };
        for attachment in attachments {
            if !next.networks.contains_key(&attachment.network) {
                let free = |number: &usize| *number != next.gateway && !next.networks.values().any(|n| n == number);
                let number = (0..).find(free).unwrap_or_default();
                next.networks.insert(attachment.network.clone(), number);
            }
        }
        next
    }
}

/// A task of this node: what the worker asked for, and what the daemon gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalTask {
    pub id: TaskId,
    pub service: Option<ServiceId>,
    pub hostname: String,
    pub attachments: Vec<TaskAttachment>,
    pub links: LinkNumbers,
    /// Without a way out, whatever its networks are.
    pub no_way_out: bool,
    pub host_ports: Vec<PortConfig>,
    /// Where names from outside are asked; empty: the node's resolvers.
    pub nameservers: Vec<IpAddr>,
    /// Its address on the node-local gateway network.
    pub gateway_addr: Ipv4Addr,
    /// Where its DNS server listens on 127.0.0.11; 0 until it does.
    pub dns_port: u16,
    /// Its process is gone: nothing may be sent to it.
    pub down: bool,
}

impl LocalTask {
    /// Whether it has a way out of the cluster: unless all its networks are internal.
    #[must_use]
    pub fn has_way_out(&self, desired: &Desired) -> bool {
        let internal = |a: &TaskAttachment| desired.networks.get(&a.network).is_some_and(|n| n.internal);
        !self.no_way_out && (self.attachments.is_empty() || !self.attachments.iter().all(internal))
    }

    /// Whether it wants one by IPv6 too: as one of its networks that are not internal has it.
    #[must_use]
    pub fn wants_way_out_v6(&self, desired: &Desired) -> bool {
        let internal = |a: &TaskAttachment| desired.networks.get(&a.network).is_some_and(|n| n.internal);
        let has_v6 = |a: &TaskAttachment| a.addresses.iter().any(ipnetwork::IpNetwork::is_ipv6);
        !self.no_way_out && self.attachments.iter().any(|a| has_v6(a) && !internal(a))
    }

    /// Its interface on `network`.
    #[must_use]
    pub fn link_to(&self, network: &NetworkId) -> Option<String> {
        self.links.networks.get(network).map(|number| names::task_link(*number))
    }

    /// Its interface on the gateway network.
    #[must_use]
    pub fn gateway_link(&self) -> String {
        names::task_link(self.links.gateway)
    }

    /// Whether it has an interface on the gateway network: for the way out, or for ports published on this node.
    #[must_use]
    pub fn has_gateway_link(&self, desired: &Desired) -> bool {
        self.has_way_out(desired) || !self.host_ports.is_empty()
    }

    /// Its first IPv4 address on `network`.
    #[must_use]
    pub fn addr_on(&self, network: &NetworkId) -> Option<Ipv4Addr> {
        let attachment = self.attachments.iter().find(|a| a.network == *network)?;
        attachment.addresses.iter().find_map(|a| match a.ip() {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
    }

    /// What stands beside its hostname in /etc/hosts: the first user network's address, else the gateway network's.
    #[must_use]
    pub fn primary_addr(&self, desired: &Desired) -> IpAddr {
        let ingress = |a: &&TaskAttachment| desired.networks.get(&a.network).is_some_and(|n| n.ingress);
        let user = self.attachments.iter().find(|a| !ingress(a)).or(self.attachments.first());
        user.and_then(|a| a.addresses.first()).map_or(IpAddr::V4(self.gateway_addr), ipnetwork::IpNetwork::ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(networks: &[u128]) -> Vec<TaskAttachment> {
        let attachment = |n: &u128| TaskAttachment {
            network: NetworkId::from_random(*n),
            addresses: Vec::new(),
            aliases: Vec::new(),
        };
        networks.iter().map(attachment).collect()
    }

    #[test]
    fn turns_are_spread_by_weight() {
        for (weights, expected) in [
            (&[][..], &[][..]),
            (&[1], &[0]),
            (&[4, 4], &[0, 1]),
            (&[3, 1], &[0, 0, 1, 0]),
            (&[5, 1, 1], &[0, 0, 1, 0, 2, 0, 0]),
            (&[0, 2], &[1]),
            (&[0, 0], &[0, 1]),
        ] {
            assert_eq!(turns(weights), expected, "{weights:?}");
        }
    }

    #[test]
    fn a_network_keeps_its_interface() {
        let numbers = |links: &LinkNumbers| -> Vec<usize> { links.networks.values().copied().collect() };
        let first = LinkNumbers::first(&on(&[1, 2]));
        assert_eq!((numbers(&first), first.gateway), (vec![0, 1], 2));
        let more = first.followed_by(&on(&[1, 2, 3]));
        assert_eq!((numbers(&more), more.gateway), (vec![0, 1, 3], 2));
        let other = more.followed_by(&on(&[3, 4]));
        assert_eq!((numbers(&other), other.gateway), (vec![3, 0], 2));
    }
}
