//! The way to a name in words, and networks of one node beside those of the cluster.

use orch_netd_core::{
    ns::{LinkKind, NsName},
    trace::{asker, trace},
};

use crate::scenario::{Scenario, net_id, task_id};

/// This is node 1 of 2. Task 1 is here on network 1; service 1 has tasks 2 (on node 2) and 3 (not serving).
fn cluster() -> Scenario {
    Scenario::new(2)
        .network(1, false)
        .service(1, 1, vec![])
        .service(1, 2, vec![])
        .endpoint(1, 2, 1, 2, true)
        .endpoint(1, 3, 1, 2, false)
        .task(1, &[1], vec![], false)
}

fn said(scenario: &Scenario, name: &str) -> Vec<String> {
    let desired = scenario.desired();
    let inputs = scenario.inputs(&desired);
    let traced = trace(&inputs, &scenario.tasks[&task_id(1)], name);
    let steps = traced.steps.iter().map(|step| {
        let verdict = if step.broken { "broken " } else { "" };
        format!("{verdict}{}: {}", step.stage.word(), step.text)
    });
    let probes = traced.probes.iter().map(|probe| format!("try {} {}", probe.what, probe.addr));
    steps.chain(probes).collect()
}

#[test]
fn the_way_is_told_up_to_where_it_breaks() {
    let scenario = cluster();
    assert_eq!(
        said(&scenario, "svc1"),
        [
            "from: t1 on net1",
            "name: svc1 is a service of network net1",
            "vip: 10.0.1.101",
            "backend: svc1.3 10.0.1.13 (elsewhere): takes no connections: it is starting, unhealthy or about to stop",
            "backend: svc1.2 10.0.1.12 (elsewhere): takes connections",
            "route: to svc1.2: through the tunnel 4097 to 192.168.9.2",
            "try the virtual address 10.0.1.101",
            "try svc1.2 10.0.1.12",
        ]
    );
    assert_eq!(
        said(&scenario, "svc1.2")[1..3],
        ["name: svc1.2 is a container of network net1", "route: to svc1.2: through the tunnel 4097 to 192.168.9.2"]
    );
    assert_eq!(said(&scenario, "tasks.svc1.net1")[2], "vip: none: the name leads to the tasks themselves");
    let idle = said(&scenario, "svc2");
    assert!(idle[3].starts_with("broken backend: the service has no task that is ready"), "{idle:?}");
    let unknown = said(&scenario, "nobody");
    assert!(unknown[1].starts_with("broken name: no network of this container knows nobody"), "{unknown:?}");
}

#[test]
fn the_way_says_that_it_is_encrypted_or_why_there_is_none() {
    let route = |unable: &[u8]| said(&cluster().encrypted(1, unable), "svc1.2")[2].clone();
    assert_eq!(route(&[]), "route: to svc1.2: through the tunnel 4097, encrypted, to 192.168.9.2");
    assert!(
        route(&[1]).starts_with("broken route: to svc1.2: network net1 is encrypted, and this node's kernel has no")
    );
    assert!(
        route(&[2]).starts_with("broken route: to svc1.2: network net1 is encrypted, and its node has told no key")
    );
}

#[test]
fn who_can_ask_is_found() {
    let scenario = cluster();
    let desired = scenario.desired();
    let inputs = scenario.inputs(&desired);
    assert_eq!(asker(&inputs, "SVC1"), Some(&task_id(1)));
    assert_eq!(asker(&inputs, "nobody"), None);
}

#[test]
fn a_network_of_one_node_needs_no_tunnel() {
    let scenario = Scenario::new(0).local_network(5).task(1, &[5], vec![], false);
    let plan = scenario.plan();
    let links: Vec<_> = plan.namespaces[&NsName::Sandbox(net_id(5))]
        .links
        .iter()
        .map(|(name, link)| {
            assert!(!matches!(link.kind, LinkKind::Vxlan { .. }), "{name}");
            (name.as_str(), link.mtu)
        })
        .collect();
    assert_eq!(
        links,
        [("br0", Some(1_400)), ("lo", None), (orch_netd_core::names::task_port(&task_id(1)).as_str(), Some(1_400))]
    );
    assert_eq!(plan.namespaces[&NsName::Task(task_id(1))].links["eth0"].mtu, Some(1_400), "the option's");
}
