//! The daemon's own namespace: the tasks' way out, and published ports on the node's addresses.
//!
//! Each task has a link of its own to the node, and the node routes: on a bridge, a kernel with br_netfilter (which is
//! the node's choice, not ours) would carry out DNAT inside the bridge and drop what goes back to the same port, so that
//! a task could not reach a port published by itself or its neighbour.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnetwork::{IpNetwork, Ipv4Network};
use orch_model::service::{PortConfig, Protocol, PublishMode};

use super::{Context, Entry, MAIN_TABLE, guard, ingress, way_out_v6};
use crate::{
    desired::LocalTask,
    flows::Doors,
    gateway::Gateway,
    names::{self, GATEWAY_PREFIX, INGRESS_HOST_LINK, Mac},
    ns::{Link, LinkKind, Neighbour, NsName, NsPlan, Route, Target},
    ruleset::{
        Chain, Destination, Direction, Element, Expr, Family, Field, Hook, HookKind, Is, Key, Point, Rule, Ruleset,
        Set, SetKind, Side, Table, Version, Way, send_to_one, word,
    },
    settings::disable_ipv6,
};

pub(super) fn plan(context: &Context<'_>) -> NsPlan {
    let gateway = context.inputs.facts.gateway;
    let mut ns = NsPlan::default();
    for task in context.inputs.tasks.values().filter(|task| task.has_gateway_link(context.desired)) {
        add_gateway_link(task, gateway.router().ip().into(), &mut ns);
    }
    if let Some((network, ..)) = context.desired.ingress() {
        let kind = LinkKind::Veth {
            peer_ns: NsName::Sandbox(network.id.clone()),
            peer_name: names::INGRESS_SANDBOX_LINK.to_owned(),
        };
        ns.links.insert(INGRESS_HOST_LINK.to_owned(), Link::up(kind));
        ns.addresses.insert((INGRESS_HOST_LINK.to_owned(), IpNetwork::V4(gateway.ingress_host())));
        ns.sysctls.insert(format!("net/ipv4/conf/{INGRESS_HOST_LINK}/rp_filter"), "0".to_owned());
        // A port published on the node answers on 127.0.0.1 too.
        ns.sysctls.insert(format!("net/ipv4/conf/{INGRESS_HOST_LINK}/route_localnet"), "1".to_owned());
    }
    ns.sysctls.insert("net/ipv4/ip_forward".to_owned(), "1".to_owned());
    ns.ruleset = ruleset(context);
    way_out_v6::add_to_host(context, &mut ns);
    ns
}

fn add_gateway_link(task: &LocalTask, router: IpAddr, ns: &mut NsPlan) {
    let (name, addr) = (names::gateway_port(&task.id), IpAddr::V4(task.gateway_addr));
    let kind = LinkKind::Veth { peer_ns: NsName::Task(task.id.clone()), peer_name: task.gateway_link() };
    ns.links.insert(name.clone(), Link { up: !task.down, ..Link::up(kind) });
    ns.addresses.insert((name.clone(), router.into()));
    ns.routes.insert(Route { table: MAIN_TABLE, destination: addr.into(), target: Target::Link(name.clone()) });
    if !task.down {
        ns.neighbours.insert(Neighbour { link: name.clone(), addr, mac: Mac::of(addr) });
    }
    // Ports published on this node answer on 127.0.0.1 too.
    ns.sysctls.insert(format!("net/ipv4/conf/{name}/route_localnet"), "1".to_owned());
    // Else a task could advertise itself to the node as a router.
    ns.sysctls.insert(disable_ipv6(&name), "1".to_owned());
}

fn ruleset(context: &Context<'_>) -> Ruleset {
    let gateway = context.inputs.facts.gateway;
    let (host_ports, mut chains) = host_ports(context);
    let port = || vec![Field::Protocol, Field::Port];
    let at = || vec![Field::Addr(Side::Destination), Field::Protocol, Field::Port];
    let sandbox = Destination { addr: gateway.ingress_sandbox().ip().into(), port: None };
    let dnat = |bound: &[Expr]| {
        let to_bound = |rest: &[Expr]| Rule([&[Expr::ToHere], bound, rest].concat());
        vec![
            to_bound(&[Expr::Jump(at(), "bound_host_ports")]),
            Rule(vec![Expr::ToHere, Expr::Jump(port(), "host_ports")]),
            to_bound(&[Expr::In(at(), "bound_ingress_ports"), send_to_one(sandbox)]),
            Rule(vec![Expr::ToHere, Expr::In(port(), "ingress_ports"), send_to_one(sandbox)]),
        ]
    };
    // What comes from outside for 127.0.0.1 is dropped by routing, but this comes before: a port that is bound to it must
    // not be opened to the node's neighbours.
    let not_loopback = Expr::Addr(Side::Destination, Is::No, loopback());
    let hook = |point| Hook::new(HookKind::Nat, point, -100);
    chains.push(Chain::at("prerouting", hook(Point::Prerouting), dnat(&[not_loopback])));
    chains.push(Chain::at("output", hook(Point::Output), dnat(&[])));
    chains.push(Chain::at(
        "postrouting",
        Hook::new(HookKind::Nat, Point::Postrouting, 100),
        masquerade(context, gateway),
    ));
    // The gateway network must not be a way around the isolation of networks, nor a way in beside published ports.
    let to_task =
        |rest: Vec<Expr>| Rule([vec![Expr::Link(Way::Out, Is::Yes, format!("{GATEWAY_PREFIX}*"))], rest].concat());
    let forward = vec![
        to_task(vec![Expr::Translated, Expr::Accept]),
        to_task(vec![Expr::Direction(Direction::Reply), Expr::Accept]),
        to_task(vec![Expr::Drop]),
    ];
    chains.push(Chain::at("forward", Hook::new(HookKind::Filter, Point::Forward, 0), forward));
    let tasks = context.inputs.tasks.values().filter(|task| task.has_gateway_link(context.desired));
    let owned: Vec<_> = tasks.map(|task| (names::gateway_port(&task.id), task.gateway_addr.into())).collect();
    let (guards, guard) = guard::host(context, Version::V4, &owned);
    let ingress_ports = ingress_ports(context);
    chains.push(guard);
    let mut sets = vec![
        Set::new("host_ports", SetKind::PortChains, host_ports.anywhere).counted(),
        Set::new("bound_host_ports", SetKind::AddrPortChains, host_ports.bound).counted(),
        Set::new("ingress_ports", SetKind::Ports, ingress_ports.anywhere),
        Set::new("bound_ingress_ports", SetKind::AddrPorts, ingress_ports.bound),
    ];
    sets.extend(guards);
    Ruleset { tables: vec![Table { family: Family::V4, name: "orch_host", sets, chains }] }
}

pub(super) fn loopback() -> IpNetwork {
    // Prefix 8 is valid for every address.
    Ipv4Network::new(Ipv4Addr::new(127, 0, 0, 0), 8).unwrap_or(Ipv4Addr::LOCALHOST.into()).into()
}

fn masquerade(context: &Context<'_>, gateway: Gateway) -> Vec<Rule> {
    let subnet = gateway.router();
    let from = |net: IpNetwork| Expr::Addr(Side::Source, Is::Yes, net);
    let tasks = || from(Ipv4Network::new(subnet.network(), subnet.prefix()).unwrap_or(subnet).into());
    let to_task = |is| Expr::Link(Way::Out, is, format!("{GATEWAY_PREFIX}*"));
    let itself = || from(loopback());
    let to_sandbox = Expr::Link(Way::Out, Is::Yes, INGRESS_HOST_LINK.to_owned());
    let mut rules = vec![
        Rule(vec![tasks(), to_task(Is::No), Expr::Masquerade]),
        Rule(vec![tasks(), to_task(Is::Yes), Expr::Translated, Expr::Masquerade]),
        Rule(vec![itself(), to_task(Is::Yes), Expr::Masquerade]),
        Rule(vec![itself(), to_sandbox, Expr::Masquerade]),
    ];
    let as_node = match context.desired.own_peer().map(|peer| peer.data_addr) {
        Some(IpAddr::V4(addr)) => Expr::SendFrom(addr),
        Some(IpAddr::V6(_)) | None => Expr::Masquerade,
    };
    for (_, port) in by_rules(context).filter(|(_, port)| port.masquerade) {
        let came_by = [Expr::Protocol(port.protocol), Expr::FirstPort(port.published_port)];
        let to_task = [to_task(Is::Yes), Expr::Translated].into_iter();
        rules.push(Rule(to_task.chain(came_by).chain([as_node.clone()]).collect()));
    }
    rules
}

/// Elements by what they are looked up by.
#[derive(Default)]
struct Ports {
    anywhere: Vec<Element>,
    /// Of ports that answer on one address only.
    bound: Vec<Element>,
}

impl Ports {
    fn push(&mut self, port: &PortConfig, chain: Option<String>) {
        let (protocol, number) = (port.protocol, port.published_port);
        match port.host_ip {
            Some(addr) => self.bound.push(Element { key: Key::AddrPort(addr, protocol, number), chain }),
            None => self.anywhere.push(Element { key: Key::Port(protocol, number), chain }),
        }
    }
}

fn ingress_ports(context: &Context<'_>) -> Ports {
    let mut ports = Ports::default();
    if let Some((network, ..)) = context.desired.ingress() {
        ingress::ports(context, network).iter().for_each(|(_, port)| ports.push(port, None));
    }
    ports
}

/// Ports published on this node only, with the task that has each. A dead task's are free for its replacement.
fn on_this_node<'a>(context: &Context<'a>) -> impl Iterator<Item = (&'a LocalTask, &'a PortConfig)> {
    let tasks = context.inputs.tasks.values().filter(|task| !task.down);
    let ports = tasks.flat_map(|task| task.host_ports.iter().map(move |port| (task, port)));
    let is_here = |port: &PortConfig| port.publish_mode == PublishMode::Host && port.published_port != 0;
    let mut seen = BTreeSet::new();
    ports.filter(move |(_, p)| is_here(p) && seen.insert((p.protocol, p.published_port, p.host_ip)))
}

/// Those that rules lead to. An address of IPv6 has no place in them, and one that the kernel refuses would hold up all others.
fn by_rules<'a>(context: &Context<'a>) -> impl Iterator<Item = (&'a LocalTask, &'a PortConfig)> {
    on_this_node(context).filter(|(_, port)| port.host_ip.is_none_or(|addr| addr.is_ipv4()))
}

/// Ports that answer on all addresses, and those of this node on one address of IPv6, which go to their task directly.
/// SCTP is the kernel's alone to pass on, and only within one family.
pub(super) fn entries(context: &Context<'_>) -> BTreeMap<Entry, Option<SocketAddr>> {
    let ingress = context.desired.ingress().into_iter();
    let published = ingress.flat_map(|(network, ..)| ingress::ports(context, network)).map(|(_, port)| (None, port));
    let here = on_this_node(context).map(|(task, port)| (Some(task), port));
    let ports = published.chain(here).filter(|(_, port)| port.protocol != Protocol::Sctp);
    let entry = |addr, port: &PortConfig| Entry { protocol: port.protocol, addr, port: port.published_port };
    ports
        .filter_map(|(task, port)| match (port.host_ip, task) {
            (None, _) => Some((entry(Ipv6Addr::UNSPECIFIED, port), None)),
            (Some(IpAddr::V6(addr)), Some(task)) => {
                Some((entry(addr, port), Some(SocketAddr::from((task.gateway_addr, port.target_port)))))
            }
            (Some(_), _) => None,
        })
        .collect()
}

/// Of datagrams: connections of TCP begin anew by themselves. As in the rules, a port of this node comes before the same port
/// of the ingress network.
pub(super) fn doors(context: &Context<'_>) -> Doors {
    let is_udp = |port: &PortConfig| port.protocol == Protocol::Udp;
    let here = by_rules(context).filter(|(_, port)| is_udp(port));
    let to_task = |(task, port): (&LocalTask, &PortConfig)| {
        ((port.published_port, port.host_ip), SocketAddr::from((task.gateway_addr, port.target_port)))
    };
    let mut doors: Doors = here.map(to_task).collect();
    let sandbox = context.inputs.facts.gateway.ingress_sandbox().ip();
    let ingress = context.desired.ingress().into_iter().flat_map(|(network, ..)| ingress::ports(context, network));
    for (_, port) in ingress.filter(|(_, port)| is_udp(port)) {
        if !doors.contains_key(&(port.published_port, None)) {
            let to_sandbox = SocketAddr::from((sandbox, port.published_port));
            doors.entry((port.published_port, port.host_ip)).or_insert(to_sandbox);
        }
    }
    doors
}

fn host_ports(context: &Context<'_>) -> (Ports, Vec<Chain>) {
    let (mut ports, mut chains) = (Ports::default(), Vec::new());
    for (task, port) in by_rules(context) {
        let at = port.host_ip.map_or_else(String::new, |addr| format!("_{addr}"));
        let name = format!("h_{}_{}{at}", word(port.protocol), port.published_port);
        ports.push(port, Some(name.clone()));
        let to = Destination { addr: task.gateway_addr.into(), port: Some(port.target_port) };
        let rule = Rule(vec![Expr::Protocol(port.protocol), send_to_one(to)]);
        chains.push(Chain::jumped_to(name, rule));
    }
    (ports, chains)
}
