//! What should be in every namespace of this node, from what managers want and what tasks are here.
//!
//! The whole plan is made anew each time: it is cheap, and nothing can drift.

mod crypt;
pub mod guard;
mod host;
mod ingress;
mod overlay;
mod task;
mod way_out_v6;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use orch_model::{
    NetworkId, NodeId, TaskId,
    assignment::{EndpointItem, NetworkItem, Peer, ServiceEndpointItem},
    service::Protocol,
};

use crate::{
    desired::{Desired, LocalTask, Out},
    dns::{self, NetworkNames},
    flows::{Backends, Doors, Standing, Standings},
    gateway::{Gateway, GatewayV6},
    ns::{NsName, NsPlan},
    ruleset::word,
};

/// Outer headers of a tunnelled packet over IPv4: Ethernet 14, IP 20, UDP 8, VXLAN 8.
const TUNNEL_OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
const TUNNEL_OVERHEAD_V6: u32 = 70;

/// Docker's option of a network: a smaller MTU than the underlay has room for.
pub const MTU_OPTION: &str = "com.docker.network.driver.mtu";
/// The least that IPv4 must carry.
pub const MIN_MTU: u32 = 576;

/// The kernel's main routing table.
const MAIN_TABLE: u32 = 254;

/// What the node has, as far as plans depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeFacts {
    pub gateway: Gateway,
    /// MTU of the link that has the tunnel endpoint's address.
    pub underlay_mtu: u32,
    /// Whether the kernel has rules for what passes a bridge.
    pub filters_bridges: bool,
    /// Whether the kernel has WireGuard, and the daemon a namespace with such a device.
    pub encrypts: bool,
}

/// How the node goes out by IPv6, and its tasks with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayOutV6 {
    pub gateway: GatewayV6,
    /// Links that learn routes from router advertisements, as long as the node does not forward or they are told to go on.
    pub learning: BTreeSet<String>,
}

/// Everything that the plan follows from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub desired: &'a Desired,
    pub tasks: &'a BTreeMap<TaskId, LocalTask>,
    /// Nodes that gossip takes for dead.
    pub suspects: &'a BTreeSet<NodeId>,
    pub facts: NodeFacts,
    /// `None`: the node itself has none.
    pub way_out_v6: Option<&'a WayOutV6>,
}

#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub namespaces: BTreeMap<NsName, NsPlan>,
    /// What each task may ask its DNS server.
    pub views: BTreeMap<TaskId, dns::View>,
    /// Which addresses take part in balancing, for [`crate::flows::cuts`].
    pub standings: Standings,
    /// What the rules of tasks say of them, for [`crate::flows::only_more`].
    pub backends: Backends,
    /// Where IPv6 clients come in, and what they are passed on to; `None`: the same port of the node, where the rules are.
    pub entries: BTreeMap<Entry, Option<SocketAddr>>,
    /// Where datagrams for published ports of this node are led, for [`crate::flows::redirected`].
    pub doors: Doors,
    /// What could not be planned, for the operator.
    pub problems: Vec<String>,
}

/// A port that IPv6 clients may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub protocol: Protocol,
    /// `::`: published on all of the node's addresses.
    pub addr: Ipv6Addr,
    pub port: u16,
}

/// Makes the plan.
#[must_use]
pub fn plan(inputs: Inputs<'_>) -> Plan {
    let context = Context::new(inputs);
    let mut plan = Plan {
        standings: context.standings(),
        backends: context.backends(),
        problems: context.problems(),
        ..Plan::default()
    };
    plan.namespaces.insert(NsName::Host, host::plan(&context));
    plan.namespaces.extend(crypt::plan(&context).map(|ns| (NsName::Crypt, ns)));
    plan.entries = host::entries(&context);
    plan.doors = host::doors(&context);
    for network in inputs.desired.networks.values() {
        let sandbox = if network.ingress { ingress::plan(&context, network) } else { overlay::plan(&context, network) };
        plan.namespaces.extend(sandbox.map(|ns| (NsName::Sandbox(network.id.clone()), ns)));
    }
    let names = context.names();
    for (id, task) in inputs.tasks {
        plan.namespaces.insert(NsName::Task(id.clone()), task::plan(&context, task));
        plan.views.insert(id.clone(), task::view(&context, task, &names));
    }
    plan
}

/// The inputs, and what several parts of the plan derive from them.
struct Context<'a> {
    inputs: Inputs<'a>,
    desired: &'a Desired,
    out: Out,
    /// Of the networks that tasks ask on: their services, and where this node sends who asks for each.
    balanced: BTreeMap<&'a NetworkId, Vec<(&'a ServiceEndpointItem, Vec<IpAddr>)>>,
}

impl<'a> Context<'a> {
    fn new(inputs: Inputs<'a>) -> Self {
        let tasks = inputs.tasks.values().filter(|task| task.down).map(|task| task.id.clone()).collect();
        let desired = inputs.desired;
        let out = Out { tasks, nodes: desired.withdrawn(inputs.suspects) };
        let with_targets = |service| (service, desired.targets(service, &out));
        let user = desired.networks.values().filter(|network| !network.ingress);
        let of_network = |id| (id, desired.services_of(id).map(with_targets).collect());
        let balanced = user.map(|network| of_network(&network.id)).collect();
        Self { inputs, desired, out, balanced }
    }

    /// Attachments of tasks here to `network`: the task, and its interface there.
    fn local_ports(&self, network: &NetworkId) -> impl Iterator<Item = (&'a LocalTask, String)> {
        let network = network.clone();
        self.inputs.tasks.values().filter_map(move |task| task.link_to(&network).map(|link| (task, link)))
    }

    /// Tasks on other nodes. A task that is here is here, whatever an item that is late says.
    fn remote_endpoints(&self, network: &NetworkId, own: &Peer) -> impl Iterator<Item = &'a EndpointItem> {
        let (own, tasks) = (own.node.clone(), self.inputs.tasks);
        self.desired.endpoints_of(network).filter(move |e| e.node != own && !tasks.contains_key(&e.task))
    }

    fn mtu_of(&self, network: &NetworkItem) -> u32 {
        let most = match network.is_local() {
            true => self.inputs.facts.underlay_mtu,
            // The way inside is always IPv4.
            false if network.is_encrypted() => crypt::mtu(self).saturating_sub(TUNNEL_OVERHEAD_V4),
            false => self.mtu(),
        };
        match network.driver_options.get(MTU_OPTION).and_then(|mtu| mtu.parse::<u32>().ok()) {
            Some(wanted) => wanted.clamp(MIN_MTU, most.max(MIN_MTU)),
            None => most,
        }
    }

    /// What fits through the tunnel.
    fn mtu(&self) -> u32 {
        let overhead = match self.desired.own_peer().map(|peer| peer.data_addr) {
            Some(IpAddr::V6(_)) => TUNNEL_OVERHEAD_V6,
            Some(IpAddr::V4(_)) | None => TUNNEL_OVERHEAD_V4,
        };
        self.inputs.facts.underlay_mtu.saturating_sub(overhead)
    }

    fn names(&self) -> BTreeMap<NetworkId, Arc<NetworkNames>> {
        let user = self.desired.networks.values().filter(|network| !network.ingress);
        user.map(|network| (network.id.clone(), Arc::new(self.names_of(network)))).collect()
    }

    fn names_of(&self, network: &NetworkItem) -> NetworkNames {
        let mut names = NetworkNames::new(&network.name);
        for service in self.desired.services_of(&network.id) {
            let backends = self.desired.backends(&network.id, &service.service, &self.out);
            names.add_service(&service.names, &service.vips, &backends);
            names.add_ports(&service.names, &self.ports_of(network, service, &backends));
        }
        for endpoint in self.desired.endpoints_of(&network.id) {
            if !self.out.tasks.contains(&endpoint.task) {
                names.add_task(&endpoint.names, &endpoint.addresses);
            }
        }
        names
    }

    fn ports_of(&self, network: &NetworkItem, service: &ServiceEndpointItem, backends: &[IpAddr]) -> dns::Ports {
        if service.declared.is_empty() {
            return dns::Ports::default();
        }
        let serves = |e: &&EndpointItem| e.addresses.iter().any(|addr| backends.contains(addr));
        let of_service = self.desired.endpoints_of(&network.id).filter(|e| e.service == service.service);
        dns::Ports {
            declared: service.declared.iter().map(|p| (p.name.clone(), word(p.protocol), p.target_port)).collect(),
            tasks: of_service.filter(serves).filter_map(|e| e.names.first().cloned()).collect(),
        }
    }

    fn backends(&self) -> Backends {
        let mut backends = Backends::new();
        for (network, services) in &self.balanced {
            for (service, targets) in services {
                let of_vip =
                    |vip: &IpAddr| targets.iter().copied().filter(|addr| addr.is_ipv4() == vip.is_ipv4()).collect();
                backends.extend(service.vips.iter().map(|vip| (((*network).clone(), *vip), of_vip(vip))));
            }
        }
        backends
    }

    fn standings(&self) -> Standings {
        let mut standings = Standings::new();
        for (network, endpoints) in &self.desired.endpoints {
            let of_network = standings.entry(network.clone()).or_default();
            for endpoint in endpoints.values().filter(|e| !self.out.tasks.contains(&e.task)) {
                let standing = match (endpoint.serving, self.out.nodes.contains(&endpoint.node)) {
                    (_, true) => Standing::Suspect,
                    (true, false) => Standing::Serving,
                    (false, false) => Standing::Draining,
                };
                of_network.extend(endpoint.addresses.iter().map(|addr| (*addr, standing)));
            }
        }
        standings
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let is_shared = self.desired.networks.values().any(|network| !network.is_local());
        if self.desired.node.is_some() && self.desired.own_peer().is_none() && is_shared {
            problems.push(
                "this node has no tunnel address yet, so its overlay networks reach no other node: check that its \
                 session with the managers is up"
                    .to_owned(),
            );
        }
        problems.extend(crypt::problems(self));
        let overlaps = |network: &&NetworkItem| self.inputs.facts.gateway.overlaps(&network.subnets);
        for network in self.desired.networks.values().filter(overlaps) {
            problems.push(format!(
                "network {} overlaps this node's gateway network {}: tasks on it may not reach the outside; recreate \
                 the network with another subnet",
                network.name,
                self.inputs.facts.gateway.subnet()
            ));
        }
        problems
    }
}
