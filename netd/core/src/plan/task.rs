//! A task's namespace: its interfaces, the balancing of what it asks for, and its DNS view.
//!
//! Balancing happens where a connection begins, in the namespace of the task that opens it: the source address stays, a
//! task reaches itself, and a packet costs nothing on the way.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use orch_model::{NetworkId, service::Protocol, task::TaskAttachment};

use super::{Context, MAIN_TABLE, ingress::any_v4, way_out_v6};
use crate::{
    desired::LocalTask,
    dns::{NetworkNames, View},
    names::Mac,
    ns::{Link, LinkKind, NsPlan, PolicyRule, Route, Selector, Target},
    resolv::DNS_ADDR,
    ruleset::{
        Chain, Destination, Element, Expr, Family, Field, Hook, HookKind, Is, Key, Point, Rule, Ruleset, Set, SetKind,
        Side, Table, Turn, Way, send_in_turn, send_to_one,
    },
    settings::disable_ipv6,
};

/// Routing table of what answers clients of published ports.
const INGRESS_TABLE: u32 = 100;
const INGRESS_PRIORITY: u32 = 1_000;
/// The ICMP message for a port without a listener.
const UNREACHABLE: u8 = 3;
/// Where resolvers ask.
const DNS_PORT: u16 = 53;

pub(super) fn plan(context: &Context<'_>, task: &LocalTask) -> NsPlan {
    let mut ns = NsPlan::default();
    ns.links.insert("lo".to_owned(), Link::up(LinkKind::Loopback));
    // A network that this node no longer takes part in has no sandbox to be linked with.
    let linked = |a: &&TaskAttachment| context.desired.can_attach(&a.network);
    for attachment in task.attachments.iter().filter(linked) {
        let Some(name) = task.link_to(&attachment.network) else { continue };
        let mtu = context.desired.networks.get(&attachment.network).map(|network| context.mtu_of(network));
        let mac = Mac::of_all(attachment.addresses.iter().map(IpNetwork::ip));
        let link = Link { mac, mtu, up: !task.down, ..Link::up(LinkKind::VethPeer) };
        ns.links.insert(name.clone(), link);
        ns.sysctls.extend([speaks_v6(&name, attachment.addresses.iter().any(IpNetwork::is_ipv6))]);
        ns.addresses.extend(attachment.addresses.iter().map(|addr| (name.clone(), *addr)));
    }
    if let Some((network, _, own_addr)) = context.desired.ingress() {
        answer_through_ingress(task, &network.id, &network.gateways, own_addr.into(), &mut ns);
    }
    if task.has_gateway_link(context.desired) {
        add_gateway(context, task, &mut ns);
        way_out_v6::add_to_task(context, task, &mut ns);
    }
    ns.ruleset = ruleset(context, task);
    ns
}

/// What the task sends from its ingress address answers a client: it goes back through the sandbox, not the way out.
fn answer_through_ingress(
    task: &LocalTask,
    network: &NetworkId,
    gateways: &[IpAddr],
    own_addr: IpAddr,
    ns: &mut NsPlan,
) {
    let (Some(link), Some(addr)) = (task.link_to(network), task.addr_on(network)) else { return };
    let gateway = gateways.iter().copied().find(IpAddr::is_ipv4).unwrap_or(own_addr);
    let selector = Selector::From(addr.into());
    ns.rules.insert(PolicyRule { priority: INGRESS_PRIORITY, selector, table: INGRESS_TABLE });
    let target = Target::Via(gateway, link.clone());
    ns.routes.insert(Route { table: INGRESS_TABLE, destination: any_v4(), target });
    // Clients come from anywhere, whatever the main table says about them.
    ns.sysctls.insert("net/ipv4/conf/all/rp_filter".to_owned(), "0".to_owned());
    ns.sysctls.insert(format!("net/ipv4/conf/{link}/rp_filter"), "0".to_owned());
}

fn add_gateway(context: &Context<'_>, task: &LocalTask, ns: &mut NsPlan) {
    let link = task.gateway_link();
    let router = context.inputs.facts.gateway.router();
    let mac = Some(Mac::of(task.gateway_addr.into()));
    ns.links.insert(link.clone(), Link { mac, up: !task.down, ..Link::up(LinkKind::VethPeer) });
    ns.sysctls.extend([speaks_v6(&link, way_out_v6::is_for(context, task))]);
    if let Ok(addr) = IpNetwork::new(task.gateway_addr.into(), router.prefix()) {
        ns.addresses.insert((link.clone(), addr));
    }
    if task.has_way_out(context.desired) {
        let target = Target::Via(router.ip().into(), link);
        ns.routes.insert(Route { table: MAIN_TABLE, destination: any_v4(), target });
    }
}

/// Where a task has no address of IPv6 on a link, it has no address of the kernel's making either: nobody there would hear
/// it, and that each of many asks all others whether its address is free costs the square of their number.
fn speaks_v6(link: &str, does: bool) -> (String, String) {
    (disable_ipv6(link), if does { "0" } else { "1" }.to_owned())
}

/// The networks' names that the task may know, in the order of its attachments.
pub(super) fn view(context: &Context<'_>, task: &LocalTask, names: &BTreeMap<NetworkId, Arc<NetworkNames>>) -> View {
    View {
        networks: task.attachments.iter().filter_map(|a| names.get(&a.network)).cloned().collect(),
        forward: task.has_way_out(context.desired),
    }
}

/// A virtual address and what stands behind it.
struct Balanced {
    vip: IpAddr,
    chain: String,
    backends: Vec<IpAddr>,
    turn: Turn,
}

fn ruleset(context: &Context<'_>, task: &LocalTask) -> Ruleset {
    let balanced = balanced(context, task);
    let has_v6 = task.attachments.iter().flat_map(|a| &a.addresses).any(IpNetwork::is_ipv6);
    let mut tables = vec![table(Family::V4, task, &balanced)];
    tables.extend(ingress_answers(context, task));
    if has_v6 {
        tables.push(table(Family::V6, task, &balanced));
    }
    Ruleset { tables }
}

fn balanced(context: &Context<'_>, task: &LocalTask) -> Vec<Balanced> {
    let mut all = Vec::new();
    for (index, attachment) in task.attachments.iter().enumerate() {
        for (service, backends) in context.balanced.get(&attachment.network).into_iter().flatten() {
            for (number, vip) in service.vips.iter().enumerate() {
                all.push(Balanced {
                    vip: *vip,
                    chain: format!("s{index}_{}_{number}", service.service),
                    backends: backends.iter().copied().filter(|b| b.is_ipv4() == vip.is_ipv4()).collect(),
                    turn: Turn::of(service.balance),
                });
            }
        }
    }
    all
}

fn table(family: Family, task: &LocalTask, balanced: &[Balanced]) -> Table {
    let of_family = || balanced.iter().filter(|b| b.vip.is_ipv4() == (family == Family::V4));
    let (busy, idle): (Vec<_>, Vec<_>) = of_family().partition(|b| !b.backends.is_empty());
    let chain_of = |b: &&Balanced| Element { key: Key::Addr(b.vip), chain: Some(b.chain.clone()) };
    let sets = vec![
        Set::new("vips", SetKind::AddrChains, busy.iter().map(chain_of).collect()).counted(),
        Set::new("idle_vips", SetKind::Addrs, idle.iter().map(|b| Element::of(Key::Addr(b.vip))).collect()),
    ];
    let mut chains: Vec<_> =
        busy.iter().map(|b| Chain::jumped_to(b.chain.clone(), Rule(vec![to_backends(b, task)]))).collect();
    let destination = || vec![Field::Addr(Side::Destination)];
    // A service without backends says so at once; connections that exist (to a draining task) are none of its business.
    let idle = || [Expr::NewFlow, Expr::In(destination(), "idle_vips")].into_iter();
    let mut refuse = vec![
        Rule(idle().chain([Expr::Protocol(Protocol::Tcp), Expr::Reset]).collect()),
        Rule(idle().chain([Expr::Reject]).collect()),
    ];
    if family == Family::V4 {
        // While the daemon is started again nobody listens there. A client that is told so fails at once; one that is
        // not asks again, and is answered.
        let silent = Expr::Addr(Side::Source, Is::Yes, IpAddr::V4(DNS_ADDR).into());
        refuse.push(Rule(vec![silent, Expr::Icmp(UNREACHABLE), Expr::Drop]));
    }
    chains.push(Chain::at("refuse", Hook::new(HookKind::Filter, Point::Output, -150), refuse));
    let mut rules = Vec::new();
    if family == Family::V4 && task.dns_port != 0 {
        rules.extend([Protocol::Udp, Protocol::Tcp].map(|protocol| to_dns_server(protocol, task.dns_port)));
    }
    rules.push(Rule(vec![Expr::Jump(destination(), "vips")]));
    chains.push(Chain::at("output", Hook::new(HookKind::Nat, Point::Output, -100), rules));
    Table { family, name: "orch_task", sets, chains }
}

fn to_dns_server(protocol: Protocol, port: u16) -> Rule {
    let server = Destination { addr: DNS_ADDR.into(), port: Some(port) };
    let to = Expr::Addr(Side::Destination, Is::Yes, IpAddr::V4(DNS_ADDR).into());
    Rule(vec![to, Expr::ToPort(protocol, DNS_PORT), send_to_one(server)])
}

/// Datagrams that answer a client of a published port must come from the ingress address. A UDP server that is bound to
/// all addresses leaves the choice of the source to the routes, which know the way out only: so what came in by the
/// ingress interface is remembered for a while, and what answers it is given the right source before the kernel looks
/// for its connection (and for its route again, which the source rule then leads back to the sandbox).
fn ingress_answers(context: &Context<'_>, task: &LocalTask) -> Option<Table> {
    let (network, ..) = context.desired.ingress()?;
    let (link, addr) = (task.link_to(&network.id)?, task.addr_on(&network.id)?);
    let flow = |there, here| vec![Field::Addr(there), Field::UdpPort(there), Field::UdpPort(here)];
    let remember = Rule(vec![
        Expr::Link(Way::In, Is::Yes, link),
        Expr::Protocol(Protocol::Udp),
        Expr::Remember("clients", flow(Side::Source, Side::Destination)),
    ]);
    let answer = Rule(vec![
        Expr::Addr(Side::Source, Is::No, IpAddr::V4(addr).into()),
        Expr::In(flow(Side::Destination, Side::Source), "clients"),
        Expr::SetSource(addr),
    ]);
    let clients = Set::new("clients", SetKind::Clients, vec![]);
    let chains = vec![
        Chain::at("remember", Hook::new(HookKind::Filter, Point::Prerouting, -300), vec![remember]),
        Chain::at("answer", Hook::new(HookKind::Route, Point::Output, -300), vec![answer]),
    ];
    Some(Table { family: Family::V4, name: "orch_ingress", sets: vec![clients], chains })
}

fn to_backends(balanced: &Balanced, task: &LocalTask) -> Expr {
    let targets = balanced.backends.iter().map(|addr| Destination { addr: *addr, port: None }).collect();
    let start = task.id.as_str().bytes().map(usize::from).sum();
    send_in_turn(balanced.turn, targets, start)
}
