//! Local volumes hold their slot to a node.

use std::collections::BTreeSet;

use orch_manager_core::{control, volume::PIN_LABEL};
use orch_model::{
    node::{Availability, NodeRole, NodeSpec},
    service::{LogDriver, Mount, MountKind, RestartCondition, ServiceSpec},
};

use crate::sim::{Sim, node_id, secs, web};

fn with_volume(replicas: u64, edit: impl FnOnce(&mut ServiceSpec)) -> ServiceSpec {
    let mut spec = web("db", "postgres", replicas);
    spec.task.container.mounts =
        vec![Mount { kind: MountKind::Volume, source: "data".into(), target: "/data".into(), ..Mount::default() }];
    edit(&mut spec);
    spec
}

fn node_of(sim: &Sim, slot: u64) -> u8 {
    let id = sim.service("db").id.clone();
    let task = sim.state.tasks_in(&id, slot).find(|t| t.is_wanted()).expect("a task");
    (1..=9).find(|n| task.node == Some(node_id(*n))).expect("it has a node")
}

#[test]
fn a_slot_comes_back_to_its_volume() {
    let mut sim = Sim::new(3);
    sim.create(with_volume(3, |_| {})).expect("accepted");
    sim.run(secs(1));
    let home = node_of(&sim, 2);
    // Neither an update nor a failure moves it, though other nodes have fewer tasks.
    sim.update("db", |s| s.task.container.image = "postgres:2".into()).expect("accepted");
    sim.run(secs(60));
    assert_eq!(node_of(&sim, 2), home);
    sim.fail("db.2");
    sim.run(secs(10));
    assert_eq!(node_of(&sim, 2), home);
    // While its node is away it waits, and says so.
    sim.down(home);
    sim.run(secs(60));
    let text = sim.ps("db");
    let advice =
        format!("its volume is on node n{home}: bring that back, or give the data up with `orch service unpin db.2`");
    assert!(text.contains("no suitable node (1 node not available for new tasks)") && text.contains(&advice), "{text}");
    assert_eq!(sim.running("db").values().sum::<usize>(), 2);
    sim.up(home);
    sim.run(secs(10));
    assert_eq!((node_of(&sim, 2), sim.running("db").values().sum::<usize>()), (home, 3));
}

#[test]
fn what_is_given_up_starts_elsewhere() {
    let mut sim = Sim::new(3);
    sim.create(with_volume(3, |_| {})).expect("accepted");
    sim.run(secs(1));
    let home = node_of(&sim, 2);
    let id = sim.service("db").id.clone();
    let unpin = |sim: &Sim, slots: &[u64]| {
        let slots: BTreeSet<u64> = slots.iter().copied().collect();
        control::unpin_service(&sim.state, sim.now, &id, &slots).expect("accepted")
    };
    assert_eq!(unpin(&sim, &[2]).warnings, ["db.2 runs where its volume is: nothing was given up"]);
    assert_eq!(unpin(&sim, &[9]).warnings, ["db.9: no volume holds it to a node"]);
    sim.down(home);
    sim.run(secs(10));
    let given_up = unpin(&sim, &[2]);
    assert_eq!(given_up.warnings, [format!("db.2 gives its volume on node n{home} up")]);
    sim.accept(&given_up);
    sim.run(secs(10));
    let new_home = node_of(&sim, 2);
    assert_ne!(new_home, home);
    assert_eq!(sim.running("db").values().sum::<usize>(), 3);
    // There it stays, also when the first node is back.
    sim.up(home);
    sim.run(secs(5));
    sim.fail("db.2");
    sim.run(secs(10));
    assert_eq!(node_of(&sim, 2), new_home);
}

#[test]
fn no_more_is_given_up_at_once_than_a_transaction_takes() {
    let mut sim = Sim::new(2);
    let long = format!("A={}", "x".repeat(100_000));
    let id = sim.create(with_volume(100, |s| s.task.container.env = vec![long])).expect("accepted");
    sim.run(secs(1));
    sim.down(2);
    sim.run(secs(10));
    for expected in [41, 9, 0] {
        let given_up = control::unpin_service(&sim.state, sim.now, &id, &BTreeSet::new()).expect("accepted");
        assert_eq!(given_up.transaction.changes.len(), expected);
        let asks_again = |note: &String| note.ends_with("keep their volumes for now: ask again for them");
        assert_eq!(given_up.warnings.last().is_some_and(asks_again), expected == 41, "{:?}", given_up.warnings);
        sim.accept(&given_up);
        sim.run(secs(10));
    }
    assert_eq!(sim.running("db"), [("n1".to_owned(), 100)].into());
}

#[test]
fn what_has_run_once_is_not_run_again_for_giving_its_volume_up() {
    let mut sim = Sim::new(2);
    let once = |s: &mut ServiceSpec| {
        s.task.container.image = "once".into();
        s.task.restart.condition = RestartCondition::None;
    };
    let id = sim.create(with_volume(1, once)).expect("accepted");
    sim.run(secs(10));
    let given_up = control::unpin_service(&sim.state, sim.now, &id, &BTreeSet::new()).expect("accepted");
    assert!(given_up.warnings[0].starts_with("db.1 gives its volume"), "{given_up:?}");
    sim.accept(&given_up);
    sim.run(secs(60));
    assert_eq!(sim.state.tasks_of(&id).count(), 1, "{}", sim.ps("db"));
}

#[test]
fn draining_says_what_will_wait() {
    let mut sim = Sim::new(2);
    sim.create(with_volume(2, |_| {})).expect("accepted");
    sim.run(secs(1));
    let node = sim.state.node(&node_id(2)).expect("a node").clone();
    let spec = NodeSpec { availability: Availability::Drain, role: NodeRole::Worker, ..node.spec.clone() };
    let seats = orch_manager_core::roles::Seats { all: Vec::new(), ..Default::default() };
    let drained =
        control::update_node(&sim.state, sim.now, &node.id, node.meta.version, spec, &seats).expect("accepted");
    assert_eq!(drained.warnings.len(), 1);
    assert!(drained.warnings[0].starts_with("db.2 will stay pending while this node is drained"), "{drained:?}");
    sim.accept(&drained);
    sim.run(secs(10));
    assert_eq!(sim.running("db"), [("n1".to_owned(), 1)].into());
    let id = sim.service("db").id.clone();
    let refused = control::rebalance_service(&sim.state, sim.now, &id).expect_err("it would lose data");
    assert!(refused.text.contains("its volumes hold it"), "{refused}");
}

#[test]
fn what_is_no_local_volume_holds_nobody() {
    let nfs = LogDriver { name: "local".into(), options: [("type".to_owned(), "nfs".to_owned())].into() };
    type Edit<'a> = &'a dyn Fn(&mut ServiceSpec);
    let cases: [(&str, Edit<'_>); 4] = [
        ("an option of the driver", &|s| s.task.container.mounts[0].volume_driver = Some(nfs.clone())),
        ("anonymous", &|s| s.task.container.mounts[0].source = String::new()),
        ("a folder of the host", &|s| {
            s.task.container.mounts[0].kind = MountKind::Bind;
            s.task.container.mounts[0].source = "/srv".into();
        }),
        ("a label", &|s| drop(s.annotations.labels.insert(PIN_LABEL.into(), "false".into()))),
    ];
    for (what, edit) in cases {
        let mut sim = Sim::new(2);
        sim.create(with_volume(1, edit)).expect("accepted");
        sim.run(secs(1));
        let home = node_of(&sim, 1);
        sim.down(home);
        sim.run(secs(10));
        assert_ne!(node_of(&sim, 1), home, "{what}");
    }
    // Nor does one that the service no longer mounts.
    let mut sim = Sim::new(2);
    sim.create(with_volume(1, |_| {})).expect("accepted");
    sim.run(secs(1));
    let home = node_of(&sim, 1);
    sim.down(home);
    sim.run(secs(1));
    sim.update("db", |s| s.task.container.mounts[0].source = "other".into()).expect("accepted");
    sim.run(secs(30));
    assert_ne!(node_of(&sim, 1), home);
}

#[test]
fn a_node_that_is_removed_takes_its_volumes_along() {
    let mut sim = Sim::new(2);
    sim.create(with_volume(1, |_| {})).expect("accepted");
    sim.run(secs(1));
    let spare = if node_of(&sim, 1) == 1 { 1 } else { 2 };
    if spare == 1 {
        // The manager cannot be removed: let the slot live on the other.
        sim.availability(1, Availability::Drain);
        sim.run(secs(1));
        let id = sim.service("db").id.clone();
        let given_up = control::unpin_service(&sim.state, sim.now, &id, &BTreeSet::new()).expect("accepted");
        sim.accept(&given_up);
        sim.run(secs(10));
        sim.availability(1, Availability::Active);
    }
    assert_eq!(node_of(&sim, 1), 2);
    sim.down(2);
    sim.run(secs(5));
    let removal = control::remove_node(&sim.state, sim.now, &node_id(2), false).expect("accepted");
    sim.accept(&removal);
    sim.run(secs(10));
    assert_eq!(node_of(&sim, 1), 1);
}
