//! The shape of what is proposed: one change per object, small transactions, what belongs together stays together.

use std::fmt::Write;

use orch_manager_core::plan;
use orch_model::{Object, change::Change, service::PublishMode};

use crate::sim::{Sim, check, port, secs, web};

/// What would be committed now, one line per change.
fn proposed(sim: &mut Sim) -> String {
    let now = sim.now;
    let plan = sim.with_ids(|state, ids| plan::decide(state, now, ids));
    let mut text = String::new();
    for tx in &plan.transactions {
        let _ = writeln!(text, "transaction");
        for change in &tx.changes {
            let _ = match change {
                Change::Create(object) => writeln!(text, "create {}", shown(sim, object)),
                Change::Update(object) => writeln!(text, "update {}", shown(sim, object)),
                Change::Remove { id, .. } => writeln!(text, "remove {}", id.kind()),
                Change::TaskStatus { .. } => writeln!(text, "a status is not the managers' to propose"),
            };
        }
    }
    if let Some(wake) = plan.wake {
        let _ = writeln!(text, "wake in {} ms", wake.since(now).as_millis());
    }
    text
}

fn shown(sim: &Sim, object: &Object) -> String {
    match object {
        Object::Task(t) => {
            let node = t.node.as_ref().and_then(|n| sim.state.node(n));
            let node = node.map_or("-", |n| n.description.hostname.as_str());
            let addresses: Vec<_> = t.networks.iter().flat_map(|n| &n.addresses).map(ToString::to_string).collect();
            format!("{} {node} {} {} {}", t.name(), t.desired_state, t.status.state, addresses.join(","))
                .trim_end()
                .to_owned()
        }
        Object::Service(s) => {
            let vips: Vec<_> = s.endpoint.vips.iter().map(|v| v.addr.to_string()).collect();
            let update = s.update_status.as_ref().map_or("", |u| u.message.as_str());
            format!("service {} {} {update}", s.spec.annotations.name, vips.join(",")).trim_end().to_owned()
        }
        other => other.kind().to_string(),
    }
}

#[test]
fn a_new_service_is_one_transaction_and_each_task_one_change_node_by_node() {
    let mut sim = Sim::new(2);
    let mut spec = web("web", "nginx", 3);
    spec.endpoint.ports = vec![port(80, 80, PublishMode::Ingress)];
    sim.create(spec).expect("accepted");
    check(
        &proposed(&mut sim),
        "transaction
         update service web 10.0.0.4/24
         create web.1 n1 Running Assigned 10.0.0.5/24
         create web.3 n1 Running Assigned 10.0.0.7/24
         create web.2 n2 Running Assigned 10.0.0.6/24",
    );
}

#[test]
fn a_failure_is_answered_in_one_transaction_with_a_wake_up() {
    let mut sim = Sim::new(1);
    sim.create(web("web", "nginx", 1)).expect("accepted");
    sim.run(secs(1));
    sim.fail("web.1");
    check(
        &proposed(&mut sim),
        "transaction
         update web.1 n1 Shutdown Failed
         create web.1 n1 Ready Assigned
         wake in 5000 ms",
    );
}

#[test]
fn an_update_prepares_the_successor_and_touches_nothing_else() {
    let mut sim = Sim::new(2);
    sim.create(web("web", "nginx", 2)).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.force_update = 1).expect("accepted");
    check(
        &proposed(&mut sim),
        "transaction
         update service web  update in progress
         create web.1 n1 Ready Assigned
         wake in 600000 ms",
    );
}

#[test]
fn a_settled_cluster_proposes_nothing() {
    let mut sim = Sim::new(3);
    sim.create(web("web", "nginx", 5)).expect("accepted");
    sim.run(secs(10));
    check(&proposed(&mut sim), "");
}
