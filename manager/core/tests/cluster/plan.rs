//! The shape of what is proposed: one change per object, small transactions, what belongs together stays together.

use std::{collections::BTreeSet, fmt::Write, sync::Arc};

use orch_manager_core::{State, plan};
use orch_model::{
    Annotations, Object,
    change::Change,
    service::{FailureAction, HealthConfig, Mount, PublishMode, TaskSpec, UpdateConfig},
    task::Task,
};

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

/// Each task carries its spec: 200 such would be more than raft takes at once, and the leader would try for ever.
#[test]
fn tasks_with_long_texts_are_fewer_in_a_transaction() {
    let long = || "x".repeat(100_000);
    type Edit<'a> = &'a dyn Fn(&mut TaskSpec);
    let cases: [(&str, Edit<'_>); 4] = [
        ("environment", &|task| task.container.env = vec![format!("A={}", long())]),
        ("health check", &|task| {
            let test = vec!["CMD-SHELL".to_owned(), long()];
            let (interval, timeout, start_period, start_interval) = (None, None, None, None);
            task.container.health =
                Some(HealthConfig { test, interval, timeout, retries: 0, start_period, start_interval });
        }),
        ("hosts", &|task| task.container.hosts = vec!["10.0.0.1 a-host".to_owned(); 100_000 / 15]),
        ("mounts", &|task| {
            let mount = |n| Mount { target: format!("/{n:0999}"), ..Mount::default() };
            task.container.mounts = (0..100).map(mount).collect();
        }),
    ];
    for (what, edit) in cases {
        let mut sim = Sim::new(2);
        let mut spec = web("web", "nginx", 150);
        edit(&mut spec.task);
        sim.create(spec).expect("accepted");
        let now = sim.now;
        let plan = sim.with_ids(|state, ids| plan::decide(state, now, ids));
        let sizes: Vec<usize> = plan.transactions.iter().map(|tx| tx.changes.len()).collect();
        assert_eq!(sizes, [41, 41, 41, 27], "{what}");
    }
}

#[test]
fn a_transaction_that_is_taken_apart_keeps_the_changes_of_a_slot_together() {
    let mut sim = Sim::new(1);
    for name in ["app", "web"] {
        sim.create(web(name, "nginx", 2)).expect("accepted");
    }
    sim.run(secs(1));
    sim.fail("web.1");
    sim.fail("web.2");
    sim.update("app", |s| s.task.force_update = 1).expect("accepted");
    let now = sim.now;
    let plan = sim.with_ids(|state, ids| plan::decide(state, now, ids));
    let [transaction] = &plan.transactions[..] else { panic!("not one transaction: {plan:?}") };
    let sizes: Vec<usize> = plan::parts(&transaction.changes).iter().map(Vec::len).collect();
    // The update's status, each slot's failed task and its successor, the update's first task.
    assert_eq!(sizes, [1, 2, 2, 1], "{transaction:?}");
}

/// A rollback is committed before anything else is asked about a service: who was due is so still when it is refused.
#[test]
fn who_is_due_stays_due_until_everything_was_asked() {
    let mut sim = Sim::new(2);
    let mut spec = web("app", "nginx", 1);
    spec.update = Some(UpdateConfig { failure_action: FailureAction::Rollback, ..UpdateConfig::default() });
    sim.create(spec).expect("accepted");
    sim.create(web("web", "nginx", 1)).expect("accepted");
    sim.run(secs(1));
    sim.update("app", |s| s.task.container.image = "stuck".into()).expect("accepted");
    sim.run(secs(1));
    sim.fail("web.1");
    sim.run(secs(1));
    sim.now = sim.now + secs(5);
    sim.fail("app.1");
    sim.decide_in_vain();
    sim.run(secs(5));
    assert_eq!(sim.running("web").values().sum::<usize>(), 1, "{}", sim.ps("web"));
    assert_eq!(sim.service("app").spec.task.container.image, "nginx");
}

/// A committed change carries a copy of the spec; so does a snapshot.
#[test]
fn tasks_of_an_earlier_spec_share_it() {
    let mut sim = Sim::new(1);
    sim.create(web("web", "nginx", 3)).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
    let copied = |task: &Task| {
        let (spec, names) = (TaskSpec::clone(&task.spec), Annotations::clone(&task.service_annotations));
        Object::Task(Arc::new(Task { spec: Arc::new(spec), service_annotations: Arc::new(names), ..task.clone() }))
    };
    let specs = |state: &State| state.tasks().map(|t| Arc::as_ptr(&t.spec)).collect::<BTreeSet<_>>().len();
    let changes = sim.state.tasks().map(|task| Change::Update(copied(task))).collect();
    sim.commit_changes(changes);
    assert_eq!((sim.state.task_count(), specs(&sim.state)), (3, 1));
    let objects = sim.state.objects().map(|object| match object {
        Object::Task(task) => copied(&task),
        other => other,
    });
    assert_eq!(specs(&State::from_objects(objects.collect(), sim.state.last_stamp())), 1);
}

#[test]
fn a_settled_cluster_proposes_nothing() {
    let mut sim = Sim::new(3);
    sim.create(web("web", "nginx", 5)).expect("accepted");
    sim.run(secs(10));
    check(&proposed(&mut sim), "");
}
