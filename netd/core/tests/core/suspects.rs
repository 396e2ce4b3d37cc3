//! What gossip's suspicion takes out of balancing, and what it must not.

use std::collections::BTreeSet;

use orch_model::service::PublishMode;
use orch_netd_core::{flows::Standing, plan::Plan};

use crate::scenario::{INGRESS, Scenario, addr, net_id, port};

/// This is node 1 of `nodes`; service 1 has task n on node n, and task 9 of service 2 is on node 3 alone.
fn cluster(nodes: u8) -> Scenario {
    let mut scenario = Scenario::new(nodes)
        .network(INGRESS, false)
        .network(1, false)
        .service(1, 1, vec![])
        .service(1, 2, vec![])
        .service(INGRESS, 1, vec![port(8080, 80, PublishMode::Ingress)])
        .task(1, &[1, INGRESS], vec![], false);
    for node in 1..=nodes {
        scenario = scenario.endpoint(1, node, 1, node, true).endpoint(INGRESS, node, 1, node, true);
    }
    scenario.endpoint(1, 9, 2, 3, true)
}

/// Tasks of `network` that new connections go to, as rules of all namespaces have it.
fn balanced(plan: &Plan, network: u8, tasks: u8) -> BTreeSet<u8> {
    let rules: String = plan.namespaces.values().map(|ns| ns.ruleset.to_string()).collect();
    let is_target = |task: &u8| {
        let addr = addr(network, *task).to_string();
        rules.lines().any(|line| line.contains("dnat") && mentions(line, &addr))
    };
    (1..=tasks).filter(is_target).collect()
}

fn mentions(line: &str, addr: &str) -> bool {
    line.split(|c: char| !c.is_ascii_digit() && c != '.').any(|word| word == addr)
}

#[test]
fn a_dead_nodes_tasks_are_no_backends_but_no_service_is_emptied() {
    let check = |nodes: u8, suspects: &[u8], on_overlay: &[u8], through_ingress: &[u8]| {
        let plan = cluster(nodes).suspects(suspects).plan();
        let set = |tasks: &[u8]| tasks.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(balanced(&plan, 1, 9), set(on_overlay), "{suspects:?} of {nodes}");
        assert_eq!(balanced(&plan, INGRESS, 9), set(through_ingress), "{suspects:?} of {nodes}");
    };
    check(3, &[], &[1, 2, 3, 9], &[1, 2, 3]);
    // Service 2 has nobody but task 9: it stays.
    check(3, &[3], &[1, 2, 9], &[1, 2]);
    check(3, &[2], &[1, 3, 9], &[1, 3]);
    // More than half of the others: it is this node that is cut off.
    check(3, &[2, 3], &[1, 2, 3, 9], &[1, 2, 3]);
    check(5, &[2, 3], &[1, 4, 5, 9], &[1, 4, 5]);
    check(5, &[2, 3, 4], &[1, 2, 3, 4, 5, 9], &[1, 2, 3, 4, 5]);
    // Itself, and nodes that it does not know, count for nothing.
    check(3, &[1, 7, 8], &[1, 2, 3, 9], &[1, 2, 3]);
    check(2, &[2], &[1, 2, 9], &[1, 2]);
}

#[test]
fn flows_that_know_no_end_leave_a_dead_nodes_tasks() {
    let standing = |suspects: &[u8], task| cluster(3).suspects(suspects).plan().standings[&net_id(1)][&addr(1, task)];
    assert_eq!(standing(&[], 3), Standing::Serving);
    assert_eq!(standing(&[3], 3), Standing::Suspect);
    assert_eq!(standing(&[3], 2), Standing::Serving);
}
