//! Whole plans as text. `UPDATE_GOLDEN=1 cargo test` writes them anew; read the difference before you commit it.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use orch_model::{
    assignment::Assignment,
    service::{Balance, PortConfig, PublishMode},
};
use orch_netd_core::{
    ns::{LinkKind, NsName, NsPlan, Target},
    plan::Plan,
    ruleset::{Family, word},
};

use crate::scenario::{INGRESS, Scenario, net_id, port};

fn check(name: &str, scenario: &Scenario) {
    let text = render(&scenario.plan());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/core/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == golden, "{} is not what is planned now:\n{text}", path.display());
}

fn render(plan: &Plan) -> String {
    let mut text = String::new();
    for (name, ns) in &plan.namespaces {
        writeln!(text, "== {name}").unwrap();
        render_ns(ns, &mut text);
    }
    for (entry, to) in &plan.entries {
        let at = if entry.addr.is_unspecified() { String::new() } else { format!(" of {}", entry.addr) };
        let to = to.map_or_else(String::new, |to| format!(" to {to}"));
        writeln!(text, "IPv6 clients: {} {}{at}{to}", word(entry.protocol), entry.port).unwrap();
    }
    for problem in &plan.problems {
        writeln!(text, "problem: {problem}").unwrap();
    }
    text
}

fn render_ns(ns: &NsPlan, text: &mut String) {
    for (name, link) in &ns.links {
        let kind = match &link.kind {
            LinkKind::Loopback => "loopback".to_owned(),
            LinkKind::Bridge => "bridge".to_owned(),
            LinkKind::Vxlan { tunnel: v, outside } => {
                let way = if *outside == NsName::Host { String::new() } else { format!(" out through {outside}") };
                format!("vxlan {} port {} local {}{way}", v.vni, v.port, v.local)
            }
            LinkKind::WireGuard => "wireguard".to_owned(),
            LinkKind::Veth { peer_ns, peer_name } => format!("pair with {peer_name} of {peer_ns}"),
            LinkKind::VethPeer => "end of a pair".to_owned(),
        };
        write!(text, "link {name}: {kind}").unwrap();
        link.mac.iter().for_each(|mac| write!(text, ", mac {mac}").unwrap());
        link.mtu.iter().for_each(|mtu| write!(text, ", mtu {mtu}").unwrap());
        link.master.iter().for_each(|master| write!(text, ", port of {master}").unwrap());
        text.push_str(if link.up { "\n" } else { ", down\n" });
    }
    ns.addresses.iter().for_each(|(link, addr)| writeln!(text, "address {addr} on {link}").unwrap());
    for route in &ns.routes {
        let target = match &route.target {
            Target::Link(link) => format!("dev {link}"),
            Target::Via(via, link) => format!("via {via} dev {link}"),
            Target::Blackhole => "dropped".to_owned(),
        };
        writeln!(text, "route {} table {}: {target}", route.destination, route.table).unwrap();
    }
    ns.rules.iter().for_each(|r| writeln!(text, "rule {} {:?} table {}", r.priority, r.selector, r.table).unwrap());
    ns.neighbours.iter().for_each(|n| writeln!(text, "neighbour {} {} on {}", n.addr, n.mac, n.link).unwrap());
    for entry in &ns.fdb {
        let bridged = if entry.bridged { ", bridge too" } else { "" };
        writeln!(text, "forward {} to {} on {}{bridged}", entry.mac, entry.vtep, entry.link).unwrap();
    }
    ns.sysctls.iter().for_each(|(path, value)| writeln!(text, "sysctl {path} = {value}").unwrap());
    for (key, correspondent) in ns.wireguard.iter().flat_map(|device| &device.peers) {
        let (node, inner, endpoint) = (key.0[0], correspondent.inner, correspondent.endpoint);
        writeln!(text, "corresponds with key {node}: {inner} at {endpoint}").unwrap();
    }
    ns.wireguard.iter().for_each(|device| writeln!(text, "listens on {}", device.port).unwrap());
    write!(text, "{}", ns.ruleset).unwrap();
}

#[test]
fn nothing_yet() {
    check("nothing_yet", &Scenario { items: vec![], ..Scenario::new(0) });
}

#[test]
fn a_service_on_two_nodes_with_a_published_port() {
    let web = || vec![port(8080, 80, PublishMode::Ingress), port(8081, 81, PublishMode::Ingress)];
    check(
        "service_on_two_nodes",
        &Scenario::new(2)
            .network(INGRESS, false)
            .network(1, false)
            .service(1, 1, vec![])
            .service(1, 2, vec![])
            .service(INGRESS, 1, web())
            .service(INGRESS, 2, vec![port(9090, 90, PublishMode::Ingress)])
            .endpoint(1, 1, 1, 1, true)
            .endpoint(1, 2, 1, 2, true)
            .endpoint(INGRESS, 1, 1, 1, true)
            .endpoint(INGRESS, 2, 1, 2, true)
            .task(1, &[INGRESS, 1], vec![], false),
    );
}

/// Service 1 here and on node 2, service 2 without tasks: balanced and refused alike in both families; one link address per
/// task, whatever addresses it has.
#[test]
fn a_network_of_both_families() {
    check(
        "dual_stack",
        &Scenario::new(2)
            .network(1, false)
            .service(1, 1, vec![])
            .service(1, 2, vec![])
            .endpoint(1, 1, 1, 1, true)
            .endpoint(1, 2, 1, 2, true)
            .task(1, &[1], vec![], false)
            .dual_stack(1),
    );
}

/// Task 1 on two networks of both families, task 2 on an internal one of them alone, task 3 on one of IPv4, task 4 dead, on a
/// bridge of the node.
#[test]
fn the_way_out_by_ipv6() {
    let scenario = || {
        Scenario::new(2)
            .network(1, false)
            .network(2, true)
            .network(3, false)
            .local_network(4)
            .task(1, &[1, 2], vec![], false)
            .task(2, &[2], vec![], false)
            .task(3, &[3], vec![], false)
            .task(4, &[4], vec![], true)
            .dual_stack(1)
            .dual_stack(2)
            .dual_stack(4)
    };
    check("way_out_v6", &scenario().way_out_v6());
    let without = scenario().plan();
    let host = &without.namespaces[&NsName::Host];
    assert!(!host.ruleset.tables.iter().any(|table| table.family == Family::V6), "the node has none");
    assert!(host.sysctls.iter().all(|(path, value)| !path.contains("ipv6") || value == "1"), "{:?}", host.sysctls);
    let routes = without.namespaces.values().flat_map(|ns| &ns.routes);
    assert_eq!(routes.filter(|route| route.destination.is_ipv6()).count(), 0, "who asks is told at once");
}

/// Node 2 has a task on the encrypted network 1, node 3 one on the open network 2 alone; node 4 has one on network 1 and
/// cannot encrypt (any more).
fn encrypted(unable: &[u8]) -> Scenario {
    Scenario::new(4)
        .network(1, false)
        .network(2, false)
        .endpoint(1, 2, 1, 2, true)
        .endpoint(1, 4, 1, 4, true)
        .endpoint(2, 3, 1, 3, true)
        .task(1, &[1, 2], vec![], false)
        .encrypted(1, unable)
}

#[test]
fn an_encrypted_network() {
    check("encrypted", &encrypted(&[4]));
}

#[test]
fn a_node_that_cannot_encrypt_has_no_way_out_of_an_encrypted_network() {
    let plan = encrypted(&[1, 4]).plan();
    assert!(!plan.namespaces.contains_key(&NsName::Crypt));
    let sandbox = &plan.namespaces[&NsName::Sandbox(net_id(1))];
    assert!(!sandbox.links.contains_key("vx0") && sandbox.fdb.is_empty(), "{sandbox:?}");
    assert!(plan.namespaces[&NsName::Sandbox(net_id(2))].links.contains_key("vx0"), "the open one is as it was");
    assert!(
        plan.problems[0].contains("net1 is encrypted and this node's kernel has no WireGuard"),
        "{:?}",
        plan.problems
    );
}

/// The device is there, for its key, and nothing listens.
#[test]
fn without_an_encrypted_network_the_device_is_down() {
    let scenario = encrypted(&[4]);
    let without = Scenario { tasks: Default::default(), ..scenario }.plan();
    let crypt = &without.namespaces[&NsName::Crypt];
    assert!(!crypt.links["orch_wg0"].up && crypt.routes.is_empty(), "{crypt:?}");
    assert_eq!(crypt.wireguard.as_ref().map(|device| device.peers.len()), Some(0));
}

#[test]
fn a_dead_task_an_internal_network_and_host_ports() {
    let host_port = |published| vec![port(published, 80, PublishMode::Host)];
    check(
        "dead_internal_host_ports",
        &Scenario::new(1)
            .network(1, false)
            .network(2, true)
            .service(1, 1, vec![])
            .endpoint(1, 1, 1, 1, true)
            .endpoint(1, 2, 1, 1, true)
            .task(1, &[1], host_port(8000), true)
            .task(2, &[1], host_port(8000), false)
            .task(3, &[2], vec![], false)
            .task(4, &[2], host_port(8001), false)
            .task(5, &[], vec![], false),
    );
}

/// Task 1 here, tasks 2 and 3 elsewhere; node 3 takes three times as much.
#[test]
fn local_tasks_first_weights_and_ports_of_one_address() {
    let bound = |port: PortConfig| PortConfig { host_ip: Some(IpAddr::from([127, 0, 0, 1])), ..port };
    let hidden = |port: PortConfig| PortConfig { masquerade: true, ..port };
    let mut scenario = Scenario::new(3)
        .network(INGRESS, false)
        .network(1, false)
        .service(1, 1, vec![])
        .service(1, 3, vec![])
        .service(INGRESS, 1, vec![bound(port(8080, 80, PublishMode::Ingress))])
        .service(INGRESS, 3, vec![hidden(port(9090, 90, PublishMode::Ingress))]);
    for (task, service) in [(1, 1), (2, 1), (2, 3), (3, 3)] {
        let number = 10 * service + task;
        scenario = scenario.endpoint(1, number, service, task, true).endpoint(INGRESS, number, service, task, true);
    }
    for item in &mut scenario.items {
        match item {
            Assignment::Peer(peer) => peer.weight = (peer.index == 3).then_some(3),
            Assignment::ServiceEndpoint(service) if service.names == ["svc1"] => service.prefer_local = true,
            Assignment::ServiceEndpoint(service) => service.balance = Some(Balance::Weighted),
            _ => {}
        }
    }
    // Left out of the rules, which are of IPv4: one element that the kernel refuses costs all others.
    let of_v6 = PortConfig { host_ip: Some(Ipv6Addr::LOCALHOST.into()), ..port(8002, 82, PublishMode::Host) };
    let on_node = vec![bound(port(8000, 80, PublishMode::Host)), hidden(port(8001, 81, PublishMode::Host)), of_v6];
    check("local_first_and_weights", &scenario.task(11, &[INGRESS, 1], on_node, false));
}

#[test]
fn a_network_in_the_way_of_the_gateway_is_a_problem() {
    let mut scenario = Scenario::new(1).network(1, false);
    if let Assignment::Network(network) = &mut scenario.items[1] {
        network.subnets = vec!["172.18.3.0/24".parse().unwrap()];
    }
    let problems = scenario.plan().problems;
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("net1 overlaps this node's gateway network 172.18.0.0/16"), "{problems:?}");
}
