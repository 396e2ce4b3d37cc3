//! Nobody sends in another's name: what a task sends must come from the addresses that it was given, as links, ARP and
//! IP have them, and no packet of a task or a stranger is taken for another node's tunnel.
//!
//! Looked at where a task's link ends, outside its namespace: what a task may change of its own makes no difference.
//! What is refused is counted, by the link that it came from.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use orch_model::{assignment::NetworkItem, service::Protocol};

use super::Context;
use crate::{
    names::{self, GATEWAY_PREFIX, Mac, PORT_PREFIX},
    ruleset::{
        Chain, Element, Expr, Family, Field, Hook, HookKind, Is, Key, Point, Rule, Ruleset, Set, SetKind, Side, Table,
        Version, Way,
    },
};

/// The set whose elements count what was refused from each link.
pub const OFFENDERS: &str = "offenders";
/// The set whose elements count what came to a tunnel from no node of the cluster.
pub const STRANGERS: &str = "strangers";

/// Before anything else is done with a packet.
const FIRST: i32 = -310;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Of a bridge between tasks.
pub(super) fn bridge(context: &Context<'_>, network: &NetworkItem) -> Ruleset {
    let mut owned = Vec::new();
    for (task, _) in context.local_ports(&network.id) {
        let Some(attachment) = task.attachments.iter().find(|a| a.network == network.id) else { continue };
        let Some(mac) = Mac::of_all(attachment.addresses.iter().map(IpNetwork::ip)) else { continue };
        let link = names::task_port(&task.id);
        let addrs = attachment.addresses.iter().map(IpNetwork::ip).chain([link_local(mac).into()]).collect();
        owned.push(Owned { link, mac, addrs });
    }
    Ruleset {
        tables: vec![Table {
            family: Family::Bridge,
            name: "orch_guard",
            sets: bridge_sets(&owned),
            chains: vec![adverts(&owned), Chain::at("guard", before_all(), bridge_rules())],
        }],
    }
}

/// A port of a bridge, and what the task behind it may call its own.
struct Owned {
    link: String,
    mac: Mac,
    addrs: Vec<IpAddr>,
}

/// What the kernel makes of a link's address.
pub(super) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

fn before_all() -> Hook {
    Hook::new(HookKind::Filter, Point::Prerouting, FIRST)
}

fn bridge_sets(owned: &[Owned]) -> Vec<Set> {
    let senders = |version| {
        let of = |o: &Owned| {
            let (link, mac) = (o.link.clone(), o.mac);
            let own = o.addrs.iter().filter(|addr| Version::of(**addr) == version);
            own.map(|addr| Element::of(Key::LinkMacAddr(link.clone(), mac, *addr))).collect::<Vec<_>>()
        };
        owned.iter().flat_map(of).collect()
    };
    let macs = owned.iter().map(|o| Element::of(Key::LinkMac(o.link.clone(), o.mac))).collect();
    vec![
        Set::new("senders", SetKind::LinkMacAddrs(Version::V4), senders(Version::V4)),
        Set::new("senders6", SetKind::LinkMacAddrs(Version::V6), senders(Version::V6)),
        Set::new("macs", SetKind::LinkMacs, macs),
        offenders(owned.iter().map(|o| o.link.clone())),
    ]
}

fn offenders(links: impl Iterator<Item = String>) -> Set {
    Set::new(OFFENDERS, SetKind::Links, links.map(|link| Element::of(Key::Link(link))).collect()).counted()
}

fn bridge_rules() -> Vec<Rule> {
    let link_has = |rest: &[Field]| [&[Field::LinkIn], rest].concat();
    let sent_by = |version| Expr::In(link_has(&[Field::SourceMac, Field::Source(version)]), senders_of(version));
    let own_mac = || Expr::In(link_has(&[Field::SourceMac]), "macs");
    let told = Expr::In(link_has(&[Field::ArpMac, Field::ArpAddr]), senders_of(Version::V4));
    // Nobody has it yet: who looks whether an address is free.
    let unspecified = Expr::Addr(Side::Source, Is::Yes, IpAddr::V6(Ipv6Addr::UNSPECIFIED).into());
    let mut rules = vec![
        Rule(vec![Expr::Link(Way::In, Is::No, format!("{PORT_PREFIX}*")), Expr::Accept]),
        Rule(vec![Expr::Ip(Version::V4), sent_by(Version::V4), Expr::Accept]),
        Rule(vec![Expr::Arp, told, own_mac(), Expr::Accept]),
    ];
    // A task is nobody's router.
    rules.extend([ROUTER_ADVERTISEMENT, REDIRECT].map(|kind| refuse(vec![Expr::Icmp6(kind)])));
    rules.extend([
        Rule(vec![Expr::Icmp6(NEIGHBOUR_ADVERTISEMENT), Expr::JumpTo("adverts")]),
        Rule(vec![Expr::Ip(Version::V6), sent_by(Version::V6), Expr::Accept]),
        Rule(vec![Expr::Ip(Version::V6), unspecified, own_mac(), Expr::Accept]),
    ]);
    rules.extend(refuse_rest());
    rules
}

fn senders_of(version: Version) -> &'static str {
    match version {
        Version::V4 => "senders",
        Version::V6 => "senders6",
    }
}

/// Dropped and counted, if it is `what`.
fn refuse(mut what: Vec<Expr>) -> Rule {
    what.extend([Expr::In(vec![Field::LinkIn], OFFENDERS), Expr::Drop]);
    Rule(what)
}

/// The second one is for a link that nobody has counted yet.
fn refuse_rest() -> [Rule; 2] {
    [refuse(vec![]), Rule(vec![Expr::Drop])]
}

/// A task tells others about its own addresses only; who it is that tells is looked at with all other packets.
fn adverts(owned: &[Owned]) -> Chain {
    let own = |o: &Owned| {
        let link = Expr::Link(Way::In, Is::Yes, o.link.clone());
        let v6 = o.addrs.iter().filter_map(|addr| match addr {
            IpAddr::V6(addr) => Some(*addr),
            IpAddr::V4(_) => None,
        });
        v6.map(|addr| Rule(vec![link.clone(), Expr::Advertises(addr), Expr::Return])).collect::<Vec<_>>()
    };
    let rules = owned.iter().flat_map(own).chain(refuse_rest()).collect();
    Chain { name: "adverts".to_owned(), hook: None, rules }
}

/// What a namespace that routes has against its tasks: of links that begin with `prefix`, each may send from its address.
pub(super) fn routed(
    version: Version,
    prefix: &str,
    owned: &[(String, IpAddr)],
    first: Vec<Rule>,
) -> (Vec<Set>, Chain) {
    let from_a_task = || Expr::Link(Way::In, Is::Yes, format!("{prefix}*"));
    let own = Expr::In(vec![Field::LinkIn, Field::Addr(Side::Source)], "senders");
    let mut rules = vec![];
    rules.extend(first);
    rules.push(Rule(vec![from_a_task(), own, Expr::Accept]));
    rules.extend(refuse_rest().map(|Rule(rest)| Rule([vec![from_a_task()], rest].concat())));
    let elements = owned.iter().map(|(link, addr)| Element::of(Key::LinkAddr(link.clone(), *addr))).collect();
    let sets = vec![
        Set::new("senders", SetKind::LinkAddrs(version), elements),
        offenders(owned.iter().map(|(link, _)| link.clone()).collect::<BTreeSet<_>>().into_iter()),
    ];
    (sets, Chain::at("guard", before_all(), rules))
}

/// Of the node itself: a task that sends what looks like a tunnel's packet to a node could speak on any network; so could
/// whoever reaches the node without being one of the cluster's.
pub(super) fn host(context: &Context<'_>, version: Version, owned: &[(String, IpAddr)]) -> (Vec<Set>, Chain) {
    let addrs = context.desired.peers.values().map(|peer| peer.data_addr);
    let nodes: BTreeSet<_> = addrs.filter(|addr| Version::of(*addr) == version).collect();
    let tunnels = || context.desired.networks.values().filter(|network| !network.is_local());
    let ports: BTreeSet<_> = tunnels().map(|network| network.data_path_port).collect();
    let of_node = |side| Expr::In(vec![Field::Addr(side)], "nodes");
    // Wherever it goes: the kernel takes a tunnel's packets at every address of a node, also at those that nobody knows.
    let to_tunnel = |port: &u16| refuse(vec![from_a_task(), Expr::ToPort(Protocol::Udp, *port)]);
    let mut first = match version {
        // Published ports answer on 127.0.0.1 too, for which routing lets packets for it in by these links.
        Version::V4 => {
            vec![refuse(vec![from_a_task(), Expr::Addr(Side::Destination, Is::Yes, super::host::loopback())])]
        }
        Version::V6 => no_router(),
    };
    first.extend(ports.iter().map(to_tunnel));
    let (mut sets, mut chain) = routed(version, GATEWAY_PREFIX, owned, first);
    // Until this node is told of the others, it does not know who a stranger is.
    if context.desired.own_peer().is_some() {
        let known = |port: &u16| Rule(vec![Expr::ToPort(Protocol::Udp, *port), of_node(Side::Source), Expr::Accept]);
        chain.rules.extend(ports.iter().map(known));
        let stranger = |network: &NetworkItem| {
            let (to, counted) =
                (Expr::ToPort(Protocol::Udp, network.data_path_port), vec![Field::Protocol, Field::Port]);
            Rule(vec![to, Expr::Vni(network.vni), Expr::In(counted, STRANGERS), Expr::Drop])
        };
        chain.rules.extend(tunnels().map(stranger));
    }
    let to_node = nodes.into_iter().map(|addr| Element::of(Key::Addr(addr))).collect();
    let to_port = ports.into_iter().map(|port| Element::of(Key::Port(Protocol::Udp, port))).collect();
    sets.push(Set::new("nodes", SetKind::Addrs, to_node));
    sets.push(Set::new(STRANGERS, SetKind::Ports, to_port).counted());
    (sets, chain)
}

fn from_a_task() -> Expr {
    Expr::Link(Way::In, Is::Yes, format!("{GATEWAY_PREFIX}*"))
}

/// A task tells the node no routes; whether its address is free it may ask, and nobody answers.
fn no_router() -> Vec<Rule> {
    let unspecified = Expr::Addr(Side::Source, Is::Yes, IpAddr::V6(Ipv6Addr::UNSPECIFIED).into());
    let told = [ROUTER_ADVERTISEMENT, REDIRECT].map(|kind| refuse(vec![from_a_task(), Expr::Icmp6(kind)]));
    told.into_iter().chain([Rule(vec![from_a_task(), unspecified, Expr::Drop])]).collect()
}
