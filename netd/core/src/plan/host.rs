//! The daemon's own namespace: the tasks' way out, and published ports on the node's addresses.
//!
//! Each task has a link of its own to the node, and the node routes: on a bridge, a kernel with br_netfilter (which is
//! the node's choice, not ours) would carry out DNAT inside the bridge and drop what goes back to the same port, so that
//! a task could not reach a port published by itself or its neighbour.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use orch_model::service::{Protocol, PublishMode};

use super::{Context, MAIN_TABLE, ingress};
use crate::{
    desired::LocalTask,
    names::{self, GATEWAY_PREFIX, INGRESS_HOST_LINK, Mac},
    ns::{Link, LinkKind, Neighbour, NsName, NsPlan, Route, Target},
    ruleset::{Chain, Family, Ruleset, Set, Table},
};

/// nft's name of a protocol.
pub(super) fn nft_protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

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
    ns
}

fn add_gateway_link(task: &LocalTask, router: IpAddr, ns: &mut NsPlan) {
    let (name, addr) = (names::gateway_port(&task.id), IpAddr::V4(task.gateway_addr));
    let kind =
        LinkKind::Veth { peer_ns: NsName::Task(task.id.clone()), peer_name: names::task_link(task.attachments.len()) };
    ns.links.insert(name.clone(), Link { up: !task.down, ..Link::up(kind) });
    ns.addresses.insert((name.clone(), router.into()));
    ns.routes.insert(Route { table: MAIN_TABLE, destination: addr.into(), target: Target::Link(name.clone()) });
    if !task.down {
        ns.neighbours.insert(Neighbour { link: name.clone(), addr, mac: Mac::of(addr) });
    }
    // Ports published on this node answer on 127.0.0.1 too.
    ns.sysctls.insert(format!("net/ipv4/conf/{name}/route_localnet"), "1".to_owned());
}

fn ruleset(context: &Context<'_>) -> Ruleset {
    let gateway = context.inputs.facts.gateway;
    let (vmap, mut chains) = host_ports(context);
    let sandbox = gateway.ingress_sandbox().ip();
    let to_host_port = "fib daddr type local meta l4proto . th dport vmap @host_ports".to_owned();
    let to_ingress = format!("fib daddr type local meta l4proto . th dport @ingress_ports dnat to {sandbox}");
    let dnat = vec![to_host_port, to_ingress];
    chains.push(Chain::new("prerouting", "type nat hook prerouting priority -100", dnat.clone()));
    chains.push(Chain::new("output", "type nat hook output priority -100", dnat));
    let (subnet, to_task) = (gateway.router(), format!("oifname \"{GATEWAY_PREFIX}*\""));
    let tasks = format!("{}/{}", subnet.network(), subnet.prefix());
    chains.push(Chain::new(
        "postrouting",
        "type nat hook postrouting priority 100",
        vec![
            format!("ip saddr {tasks} oifname != \"{GATEWAY_PREFIX}*\" masquerade"),
            format!("ip saddr {tasks} {to_task} ct status dnat masquerade"),
            format!("ip saddr 127.0.0.0/8 {to_task} masquerade"),
            format!("ip saddr 127.0.0.0/8 oifname \"{INGRESS_HOST_LINK}\" masquerade"),
        ],
    ));
    // The gateway network must not be a way around the isolation of networks.
    let between_tasks = format!("iifname \"{GATEWAY_PREFIX}*\" {to_task}");
    chains.push(Chain::new(
        "forward",
        "type filter hook forward priority 0",
        vec![format!("{between_tasks} ct status dnat accept"), format!("{between_tasks} drop")],
    ));
    let key = "inet_proto . inet_service";
    let sets = vec![
        Set { keyword: "map", name: "host_ports", ty: format!("{key} : verdict"), elements: vmap },
        Set { keyword: "set", name: "ingress_ports", ty: key.to_owned(), elements: ingress_ports(context) },
    ];
    Ruleset { tables: vec![Table { family: Family::V4, name: "orch_host", sets, chains }] }
}

fn ingress_ports(context: &Context<'_>) -> Vec<String> {
    let Some((network, ..)) = context.desired.ingress() else { return Vec::new() };
    ingress::ports(context, network)
        .iter()
        .map(|(_, port)| format!("{} . {}", nft_protocol(port.protocol), port.published_port))
        .collect()
}

/// Ports published on this node only. A dead task's are free for its replacement.
fn host_ports(context: &Context<'_>) -> (Vec<String>, Vec<Chain>) {
    let (mut vmap, mut chains) = (Vec::new(), Vec::new());
    let mut seen = std::collections::BTreeSet::new();
    for task in context.inputs.tasks.values().filter(|task| !task.down) {
        for port in task.host_ports.iter().filter(|p| p.publish_mode == PublishMode::Host && p.published_port != 0) {
            if !seen.insert((port.protocol, port.published_port)) {
                continue;
            }
            let protocol = nft_protocol(port.protocol);
            let name = format!("h_{protocol}_{}", port.published_port);
            vmap.push(format!("{protocol} . {} : jump {name}", port.published_port));
            let rule = format!("meta l4proto {protocol} dnat to {}:{}", task.gateway_addr, port.target_port);
            chains.push(Chain::new(name, "", vec![rule]));
        }
    }
    (vmap, chains)
}
