//! Creating, scaling, removing; nodes that go down, drain, come back.

use orch_manager_core::control::{self, Registration};
use orch_model::{
    Duration,
    assignment::Assignment,
    change::Change,
    node::Availability,
    service::ServiceMode,
    task::{TaskState, TaskStatus},
};

use crate::{
    network::{network, on},
    sim::{STEP, Sim, check, node_id, secs, web},
};

#[test]
fn a_service_is_spread_and_runs() {
    let mut sim = Sim::new(3);
    sim.create(web("web", "nginx", 5)).expect("accepted");
    sim.run(secs(1));
    check(
        &sim.ps("web"),
        "1 n1 Running Running
         2 n2 Running Running
         3 n3 Running Running
         4 n1 Running Running
         5 n2 Running Running",
    );
}

#[test]
fn scaling_down_keeps_what_runs_and_the_spread() {
    let mut sim = Sim::new(3);
    sim.create(web("web", "nginx", 6)).expect("accepted");
    sim.run(secs(1));
    sim.fail("web.1");
    sim.scale("web", 3);
    sim.run(secs(2));
    assert_eq!(sim.running("web").values().copied().collect::<Vec<_>>(), [1, 1, 1]);
    assert!(!sim.ps("web").contains("1 n1"), "the failed slot goes first:\n{}", sim.ps("web"));
    sim.scale("web", 4);
    sim.run(secs(1));
    assert_eq!(sim.running("web").values().sum::<usize>(), 4);
}

#[test]
fn six_hundred_replicas_come_and_go_in_small_transactions() {
    let mut sim = Sim::new(3);
    sim.create(web("web", "nginx", 600)).expect("accepted");
    sim.run(secs(1));
    assert_eq!(sim.running("web").values().copied().collect::<Vec<_>>(), [200, 200, 200]);
    sim.scale("web", 0);
    sim.run(secs(2));
    assert_eq!(sim.ps("web"), "");
}

#[test]
fn a_removed_service_goes_with_its_last_task_and_gives_its_name_back_at_once() {
    let mut sim = Sim::new(2);
    sim.stop_takes = secs(3);
    let id = sim.create(web("web", "nginx", 2)).expect("accepted");
    sim.run(secs(1));
    let removal = control::remove_service(&sim.state, sim.now, &id).expect("accepted");
    sim.accept(&removal);
    sim.run(secs(1));
    assert!(sim.state.service(&id).is_some(), "its tasks still stop");
    let again = sim.create(web("web", "nginx", 1)).expect("the name is free");
    sim.run(secs(4));
    assert!(sim.state.service(&id).is_none());
    assert!(sim.state.service(&again).is_some());
    assert_eq!(sim.state.task_count(), 1);
}

#[test]
fn tasks_of_a_down_node_are_replaced_without_the_delay_of_those_that_fail() {
    let mut sim = Sim::new(3);
    sim.create(web("web", "nginx", 3)).expect("accepted");
    sim.run(secs(1));
    sim.down(2);
    sim.run(secs(1));
    check(
        &sim.ps("web"),
        "1 n1 Running Running
         2 n2 Shutdown Running
         2 n1 Running Running
         3 n3 Running Running",
    );
    sim.up(2);
    sim.run(secs(1));
    assert!(sim.ps("web").contains("2 n2 Shutdown Shutdown"));
}

#[test]
fn a_day_after_its_node_went_down_a_task_is_orphaned() {
    let mut sim = Sim::new(2);
    sim.create(web("web", "nginx", 2)).expect("accepted");
    sim.run(secs(1));
    sim.down(2);
    sim.run(secs(10));
    assert!(sim.ps("web").contains("n2 Shutdown Running"));
    sim.now = sim.now + Duration::from_secs(24 * 3600);
    sim.run(STEP);
    assert!(sim.ps("web").contains("n2 Shutdown Orphaned"), "{}", sim.ps("web"));
}

#[test]
fn draining_moves_tasks_without_delay_and_pause_keeps_them() {
    let mut sim = Sim::new(3);
    sim.create(web("web", "nginx", 3)).expect("accepted");
    sim.run(secs(1));
    sim.availability(2, Availability::Pause);
    sim.availability(3, Availability::Drain);
    sim.run(secs(1));
    let nodes = sim.running("web");
    assert_eq!((nodes["n1"], nodes["n2"]), (2, 1), "{}", sim.ps("web"));
    assert!(!nodes.contains_key("n3"));
}

#[test]
fn a_global_service_follows_the_nodes() {
    let mut sim = Sim::new(3);
    let mut spec = web("agent", "nginx", 0);
    spec.mode = ServiceMode::Global;
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    assert_eq!(sim.running("agent").len(), 3);
    sim.availability(2, Availability::Drain);
    sim.availability(3, Availability::Pause);
    sim.join(4);
    sim.run(secs(1));
    assert_eq!(sim.running("agent").keys().cloned().collect::<Vec<_>>(), ["n1", "n3", "n4"]);
    sim.availability(2, Availability::Active);
    sim.down(4);
    sim.run(secs(1));
    assert_eq!(sim.running("agent").keys().cloned().collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    sim.up(4);
    sim.run(secs(1));
    assert_eq!(sim.running("agent").len(), 4, "{}", sim.ps("agent"));
}

#[test]
fn a_removed_nodes_tasks_are_orphaned_at_once() {
    let mut sim = Sim::new(2);
    sim.create(web("web", "nginx", 2)).expect("accepted");
    sim.run(secs(1));
    let refused = control::remove_node(&sim.state, sim.now, &node_id(2), false).expect_err("it is up");
    assert!(refused.text.contains("node n2 is not down and can't be removed"), "{refused}");
    sim.down(2);
    let removal = control::remove_node(&sim.state, sim.now, &node_id(2), false).expect("accepted");
    sim.accept(&removal);
    sim.run(secs(7));
    assert_eq!(sim.running("web")["n1"], 2, "{}", sim.ps("web"));
    let orphans = sim.state.tasks().filter(|t| t.status.state == TaskState::Orphaned).count();
    assert_eq!(orphans, 1);
}

/// Commits in the simulation fail when changes come in an order in which they do not fit.
#[test]
fn an_orphans_address_is_free_before_another_task_takes_it() {
    for ids_fall in [false, true] {
        let mut sim = Sim::new(2);
        sim.ids_fall = ids_fall;
        // Room for a virtual address and four tasks.
        let id = network(&mut sim, "small", Some("10.9.0.0/29")).expect("accepted");
        sim.create(on("web", 4, &id)).expect("accepted");
        sim.run(secs(1));
        sim.down(2);
        sim.run(secs(30));
        assert!(sim.ps("web").contains("no free address left"), "{}", sim.ps("web"));
        sim.remove(2);
        sim.run(secs(10));
        assert_eq!(sim.running("web")["n1"], 4, "{}", sim.ps("web"));
    }
}

#[test]
fn a_virtual_address_is_free_before_a_service_takes_it() {
    let mut sim = Sim::new(2);
    let id = network(&mut sim, "small", Some("10.9.0.0/29")).expect("accepted");
    let mut spec = on("web", 4, &id);
    spec.task.placement.constraints = vec!["node.hostname == n2".into()];
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    sim.create(on("api", 1, &id)).expect("accepted");
    sim.run(secs(1));
    assert!(sim.service("api").endpoint.vips.is_empty());
    sim.remove(2);
    sim.run(secs(1));
    assert!(!sim.service("api").endpoint.vips.is_empty());
}

#[test]
fn a_task_that_was_to_move_stops_before_its_successor_runs() {
    let mut sim = Sim::new(2);
    sim.ids_fall = true;
    sim.create(web("web", "slow", 5)).expect("accepted");
    sim.run(secs(5));
    sim.join(3);
    sim.run(secs(1));
    let id = sim.service("web").id.clone();
    let rebalance = control::rebalance_service(&sim.state, sim.now, &id).expect("accepted");
    sim.accept(&rebalance);
    sim.step();
    let moves = sim.state.tasks().find(|t| t.displaced).cloned().expect("a task is to move");
    let next = sim.state.tasks().find(|t| t.status.state == TaskState::Assigned).cloned().expect("its successor");
    assert_eq!((moves.slot, moves.spec_version), (next.slot, next.spec_version));
    // At once: the successor is ready, and the node of the other is lost.
    let (task, node) = (next.id.clone(), next.node.clone().expect("a node"));
    let status = TaskStatus { state: TaskState::Ready, at: sim.now, ..next.status.clone() };
    sim.commit_changes(vec![Change::TaskStatus { task, node, status }]);
    sim.down((1..=2).find(|n| moves.node == Some(node_id(*n))).expect("a node of the test"));
    sim.run(secs(60));
    assert_eq!(sim.running("web").values().sum::<usize>(), 5, "{}", sim.ps("web"));
}

#[test]
fn a_node_is_told_who_holds_the_image_of_its_task() {
    // A name may be known before the service is stored, or be given a meaning only afterwards.
    for imported_first in [true, false] {
        let mut sim = Sim::new(2);
        let digest = format!("sha256:{}", "a".repeat(64));
        if imported_first {
            import(&mut sim, &digest);
        }
        sim.create(web("web", "web", 2)).expect("accepted");
        sim.run(secs(1));
        if !imported_first {
            assert_eq!(sources(&sim, 1), []);
            import(&mut sim, &digest);
            sim.run(secs(1));
        }
        assert_eq!(sources(&sim, 1), [(digest, vec!["192.168.7.2:7946".to_owned()])]);
        assert_eq!(sources(&sim, 2), [], "it holds the image itself");
    }
}

#[test]
fn an_image_name_that_no_node_has_means_nothing_until_one_has_it_again() {
    let mut sim = Sim::new(2);
    let digest = format!("sha256:{}", "a".repeat(64));
    let pinned = format!("web@{digest}");
    import(&mut sim, &digest);
    register(&mut sim, Registration { name: pinned.clone(), ..registration(2, &digest) });
    sim.create(web("old", "web", 1)).expect("accepted");
    let resolved = |sim: &Sim, name: &str| sim.service(name).spec.task.container.image_digest.clone();
    assert_eq!(resolved(&sim, "old").as_ref(), Some(&digest));
    sim.remove(2);
    assert!(sim.state.image_named(&pinned).is_none() && sim.state.images().count() == 1);
    // By now a registry may have another.
    sim.create(web("new", "web", 1)).expect("accepted");
    assert_eq!(resolved(&sim, "new"), None);
    sim.run(secs(1));
    // The machine joins anew: it says which content it has, and gives no name.
    sim.join(3);
    register(&mut sim, Registration { holder_only: true, ..registration(3, &digest) });
    sim.run(secs(1));
    let held = (digest.clone(), vec!["192.168.7.3:7946".to_owned()]);
    assert_eq!(sources(&sim, 1), [held.clone(), held]);
    sim.create(web("newer", "web", 1)).expect("accepted");
    assert_eq!(resolved(&sim, "newer"), Some(digest));
}

#[test]
fn an_image_name_that_no_node_has_may_mean_another_content() {
    let mut sim = Sim::new(2);
    let [digest, other] = ["a", "b"].map(|c| format!("sha256:{}", c.repeat(64)));
    import(&mut sim, &digest);
    sim.remove(2);
    register(&mut sim, registration(1, &other));
    assert_eq!(sim.state.image_named("web").map(|image| &image.digest), Some(&other));
}

fn import(sim: &mut Sim, digest: &str) {
    register(sim, registration(2, digest));
}

fn registration(node: u8, digest: &str) -> Registration {
    Registration {
        node: node_id(node),
        name: "web".into(),
        digest: digest.to_owned(),
        size_bytes: 1,
        platform: None,
        replace: false,
        holder_only: false,
    }
}

fn register(sim: &mut Sim, request: Registration) {
    let now = sim.now;
    let tx = sim.with_ids(|state, ids| control::register_image(state, now, ids, &request)).expect("accepted");
    sim.commit(&tx);
}

fn sources(sim: &Sim, node: u8) -> Vec<(String, Vec<String>)> {
    let set = sim.set_of(node);
    let images = set.values().filter_map(|item| match item {
        Assignment::Image(image) => Some((image.digest.clone(), image.holders.clone())),
        _ => None,
    });
    images.collect()
}
