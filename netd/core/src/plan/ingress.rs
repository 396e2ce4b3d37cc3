//! Where published ports arrive: a routed sandbox between the host, the local tasks and the other nodes' sandboxes.
//!
//! The client's address is kept. A connection that entered at node A and was sent to a task on node B is known on B by a
//! conntrack zone and mark, both A's index; the replies of the task follow the mark back through A, never the
//! destination address (two nodes may pass on the same client, and a client may be inside the pool's range).
//!
//! The rest of the subnet is a black hole, not `unreachable`: a connection attempt to a task that just died must hang
//! until it is balanced anew, and an ICMP error would end it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use orch_model::{
    assignment::{NetworkItem, Peer, ServiceEndpointItem},
    service::{PortConfig, Protocol, PublishMode},
};

use super::{Context, MAIN_TABLE, guard};
use crate::{
    names::{self, Mac},
    ns::{FdbEntry, Link, LinkKind, Neighbour, NsName, NsPlan, PolicyRule, Route, Selector, Target, Vxlan},
    ruleset::{
        Chain, Destination, Direction, Element, Expr, Family, Field, Hook, HookKind, Is, Key, Point, Rule, Ruleset,
        Set, SetKind, Side, Table, Turn, Version, Way, send_in_turn, word,
    },
    settings::disable_ipv6,
};

/// Routing table of the way back through the node with index `i`: this + `i`.
const RETURN_TABLE_BASE: u32 = 10_000;
/// Before the kernel's own rules (main is 32766).
const RETURN_PRIORITY: u32 = 1_000;

pub(super) fn any_v4() -> IpNetwork {
    // Prefix 0 is valid for every address.
    IpNetwork::V4(Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).unwrap_or_else(|_| Ipv4Addr::UNSPECIFIED.into()))
}

pub(super) fn any_v6() -> IpNetwork {
    IpNetwork::V6(Ipv6Network::new(Ipv6Addr::UNSPECIFIED, 0).unwrap_or_else(|_| Ipv6Addr::UNSPECIFIED.into()))
}

/// `None` while this node has no address on the ingress network.
pub(super) fn plan(context: &Context<'_>, network: &NetworkItem) -> Option<NsPlan> {
    let (ingress, own, own_addr) = context.desired.ingress()?;
    if ingress.id != network.id {
        return None;
    }
    let mut ns = NsPlan::default();
    base(context, network, own, own_addr, &mut ns);
    let peers: Vec<_> = context.desired.other_peers().filter_map(|peer| Some((peer, ingress_v4(peer)?))).collect();
    for (peer, addr) in &peers {
        add_peer(peer, *addr, &mut ns);
    }
    add_tasks(context, network, own, &mut ns);
    ns.ruleset = ruleset(context, network, (own, own_addr), &peers);
    Some(ns)
}

fn ingress_v4(peer: &Peer) -> Option<Ipv4Addr> {
    match peer.ingress_addr? {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(_) => None,
    }
}

/// What is there without any peer or task.
fn base(context: &Context<'_>, network: &NetworkItem, own: &Peer, own_addr: Ipv4Addr, ns: &mut NsPlan) {
    let gateway = context.inputs.facts.gateway;
    let mtu = Some(context.mtu_of(network));
    let tunnel = Vxlan { vni: network.vni, port: network.data_path_port, local: own.data_addr };
    let vxlan = LinkKind::Vxlan { tunnel, outside: NsName::Host };
    let mac = Some(Mac::of(IpAddr::V4(own_addr)));
    ns.links.insert("lo".to_owned(), Link::up(LinkKind::Loopback));
    ns.links.insert(names::VXLAN.to_owned(), Link { mtu, mac, ..Link::up(vxlan) });
    ns.links.insert(names::INGRESS_SANDBOX_LINK.to_owned(), Link::up(LinkKind::VethPeer));
    let lo = |addr: IpAddr| ("lo".to_owned(), IpNetwork::from(addr));
    ns.addresses.insert(lo(IpAddr::V4(own_addr)));
    ns.addresses.extend(network.gateways.iter().filter(|g| g.is_ipv4()).map(|g| lo(*g)));
    ns.addresses.insert((names::INGRESS_SANDBOX_LINK.to_owned(), gateway.ingress_sandbox().into()));
    let host = IpAddr::V4(gateway.ingress_host().ip());
    ns.routes.insert(Route {
        table: MAIN_TABLE,
        destination: any_v4(),
        target: Target::Via(host, names::INGRESS_SANDBOX_LINK.to_owned()),
    });
    for subnet in network.subnets.iter().filter(|s| s.is_ipv4()) {
        ns.routes.insert(Route { table: MAIN_TABLE, destination: *subnet, target: Target::Blackhole });
    }
    for (key, value) in [
        ("ip_forward", "1"),
        // The way out and the way back differ on purpose.
        ("conf/all/rp_filter", "0"),
        ("conf/default/rp_filter", "0"),
        ("conf/vx0/rp_filter", "0"),
        ("conf/host0/rp_filter", "0"),
        ("conf/all/send_redirects", "0"),
        ("conf/default/send_redirects", "0"),
        ("conf/vx0/send_redirects", "0"),
    ] {
        ns.sysctls.insert(format!("net/ipv4/{key}"), value.to_owned());
    }
    // Nothing here speaks it, and a task could tell the sandbox routes.
    ns.sysctls.insert(disable_ipv6("all"), "1".to_owned());
}

fn add_peer(peer: &Peer, addr: Ipv4Addr, ns: &mut NsPlan) {
    let (link, addr) = (names::VXLAN.to_owned(), IpAddr::V4(addr));
    let mac = Mac::of(addr);
    let table = RETURN_TABLE_BASE + u32::from(peer.index);
    ns.neighbours.insert(Neighbour { link: link.clone(), addr, mac });
    ns.fdb.insert(FdbEntry { link: link.clone(), mac, vtep: peer.data_addr, bridged: false });
    ns.routes.insert(Route { table: MAIN_TABLE, destination: addr.into(), target: Target::Link(link.clone()) });
    ns.routes.insert(Route { table, destination: any_v4(), target: Target::Via(addr, link) });
    let selector = Selector::Mark(u32::from(peer.index));
    ns.rules.insert(PolicyRule { priority: RETURN_PRIORITY, selector, table });
}

fn add_tasks(context: &Context<'_>, network: &NetworkItem, own: &Peer, ns: &mut NsPlan) {
    for (task, peer_name) in context.local_ports(&network.id) {
        let port = names::task_port(&task.id);
        let kind = LinkKind::Veth { peer_ns: NsName::Task(task.id.clone()), peer_name };
        ns.links.insert(port.clone(), Link { mtu: Some(context.mtu_of(network)), up: !task.down, ..Link::up(kind) });
        let Some(addr) = task.addr_on(&network.id).map(IpAddr::V4) else { continue };
        if !task.down {
            ns.routes.insert(Route { table: MAIN_TABLE, destination: addr.into(), target: Target::Link(port.clone()) });
            ns.neighbours.insert(Neighbour { link: port, addr, mac: Mac::of(addr) });
        }
    }
    for endpoint in context.remote_endpoints(&network.id, own) {
        let Some(via) = context.desired.peers.get(&endpoint.node).and_then(|peer| peer.ingress_addr) else { continue };
        for addr in endpoint.addresses.iter().filter(|a| a.is_ipv4()) {
            let target = Target::Via(via, names::VXLAN.to_owned());
            ns.routes.insert(Route { table: MAIN_TABLE, destination: (*addr).into(), target });
        }
    }
}

fn ruleset(
    context: &Context<'_>,
    network: &NetworkItem,
    (own, own_addr): (&Peer, Ipv4Addr),
    peers: &[(&Peer, Ipv4Addr)],
) -> Ruleset {
    let entries: Vec<_> = peers.iter().map(|(peer, addr)| (Mac::of(IpAddr::V4(*addr)), peer.index)).collect();
    let local = context.local_ports(&network.id);
    let local: Vec<_> =
        local.filter_map(|(task, _)| Some((names::task_port(&task.id), task.addr_on(&network.id)?.into()))).collect();
    let (guards, guard) = guard::routed(Version::V4, names::PORT_PREFIX, &local, Vec::new());
    let (elements, mut chains) = published(context, network, own);
    chains.push(guard);
    chains.extend(keep_entry(&entries));
    let from_host = Rule(vec![
        Expr::Link(Way::In, Is::Yes, names::INGRESS_SANDBOX_LINK.to_owned()),
        Expr::Jump(vec![Field::Protocol, Field::Port], "ports"),
    ]);
    chains.push(Chain::at("prerouting", Hook::new(HookKind::Nat, Point::Prerouting, -100), vec![from_host]));
    // A datagram for a port that nobody serves is not taken note of: its sender would stay with nobody when somebody does.
    let nobody = Rule(vec![
        Expr::Link(Way::In, Is::Yes, names::INGRESS_SANDBOX_LINK.to_owned()),
        Expr::Protocol(Protocol::Udp),
        Expr::Reject,
    ]);
    chains.push(Chain::at("input", Hook::new(HookKind::Filter, Point::Input, 0), vec![nobody]));
    // Also without a port that wants it the chain makes the kernel choose another source port when two nodes pass on the
    // same one.
    // Not the address here: a datagram's answer would look for it on the task's own link.
    let node_addr = match own.data_addr {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(_) => own_addr,
    };
    let as_node = |(_, port): (&ServiceEndpointItem, &PortConfig)| {
        let came_by = [Expr::Translated, Expr::Protocol(port.protocol), Expr::FirstPort(port.published_port)];
        port.masquerade.then(|| Rule(came_by.into_iter().chain([Expr::SendFrom(node_addr)]).collect()))
    };
    let hidden = ports(context, network).into_iter().filter_map(as_node).collect();
    chains.push(Chain::at("postrouting", Hook::new(HookKind::Nat, Point::Postrouting, 100), hidden));
    // Tasks answer here and ask nothing: the ingress network is no way around the isolation of networks.
    let isolate = Rule(vec![from_a_task(), Expr::Direction(Direction::Original), Expr::Drop]);
    chains.push(Chain::at("forward", Hook::new(HookKind::Filter, Point::Forward, 0), vec![isolate]));
    let local = local.iter().map(|(_, addr)| Element::of(Key::Addr(*addr))).collect();
    let mut sets = vec![
        Set::new("ports", SetKind::PortChains, elements).counted(),
        Set::new("local_tasks", SetKind::Addrs, local),
    ];
    sets.extend(guards);
    Ruleset { tables: vec![Table { family: Family::V4, name: "orch_ingress", sets, chains }] }
}

fn from_a_task() -> Expr {
    Expr::Link(Way::In, Is::Yes, format!("{}*", names::PORT_PREFIX))
}

/// Remembers at which node a connection entered, and sends its replies back there.
fn keep_entry(entries: &[(Mac, u16)]) -> Vec<Chain> {
    if entries.is_empty() {
        return Vec::new();
    }
    let arriving = |rest: &[Expr]| {
        let link = Expr::Link(Way::In, Is::Yes, names::VXLAN.to_owned());
        let to_a_task = Expr::In(vec![Field::Addr(Side::Destination)], "local_tasks");
        Rule([link, to_a_task].into_iter().chain(rest.iter().cloned()).collect())
    };
    let zone = arriving(&[Expr::ZoneOf(entries.to_vec())]);
    let mark = arriving(&[Expr::NewFlow, Expr::MarkOf(entries.to_vec())]);
    let reply = Rule(vec![from_a_task(), Expr::Direction(Direction::Reply), Expr::Marked, Expr::RestoreMark]);
    let before = |priority| Hook::new(HookKind::Filter, Point::Prerouting, priority);
    vec![Chain::at("entry_zone", before(-300), vec![zone]), Chain::at("entry_mark", before(-150), vec![mark, reply])]
}

/// The published ports: what to jump to, and the chains. A port without backends is in neither: the sandbox itself then
/// answers with a reset at once.
fn published(context: &Context<'_>, network: &NetworkItem, own: &Peer) -> (Vec<Element>, Vec<Chain>) {
    let (mut elements, mut chains) = (Vec::new(), Vec::new());
    for (service, port) in ports(context, network) {
        let backends = context.desired.targets(service, &context.out);
        let target = |addr| Destination { addr, port: Some(port.target_port) };
        let targets: Vec<_> = backends.into_iter().filter(IpAddr::is_ipv4).map(target).collect();
        if targets.is_empty() {
            continue;
        }
        let name = format!("p_{}_{}", word(port.protocol), port.published_port);
        let key = Key::Port(port.protocol, port.published_port);
        elements.push(Element { key, chain: Some(name.clone()) });
        let to = send_in_turn(Turn::of(service.balance), targets, usize::from(own.index));
        let rule = Rule(vec![Expr::Protocol(port.protocol), to]);
        chains.push(Chain::jumped_to(name, rule));
    }
    (elements, chains)
}

/// Every port published on the ingress network, once each: of two services that claim one, the first has it.
pub(super) fn ports<'a>(
    context: &Context<'a>,
    network: &NetworkItem,
) -> Vec<(&'a ServiceEndpointItem, &'a PortConfig)> {
    let mut seen = std::collections::BTreeSet::new();
    let of = |service: &'a ServiceEndpointItem| service.ports.iter().map(move |port| (service, port));
    context
        .desired
        .services_of(&network.id)
        .flat_map(of)
        .filter(|(_, port)| port.publish_mode == PublishMode::Ingress && port.published_port != 0)
        .filter(|(_, port)| seen.insert((port.protocol, port.published_port)))
        .collect()
}
