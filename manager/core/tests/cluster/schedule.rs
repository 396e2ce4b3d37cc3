//! Where tasks go, and what is said when they cannot go anywhere.

use orch_manager_core::control;
use orch_model::service::{PublishMode, ServiceSpec, UpdateConfig, UpdateOrder, UpdateState};

use crate::sim::{Sim, check, port, secs, web};

fn placed(edit: impl FnOnce(&mut ServiceSpec)) -> ServiceSpec {
    let mut spec = web("web", "nginx", 1);
    edit(&mut spec);
    spec
}

#[test]
fn what_cannot_be_placed_says_why() {
    type Case = (&'static str, fn(&mut ServiceSpec));
    let cases: [Case; 4] = [
        ("scheduling constraints not satisfied on 3 nodes", |s| {
            s.task.placement.constraints = vec!["node.labels.disk == ssd".into()];
        }),
        ("insufficient resources on 3 nodes", |s| s.task.reservations.memory_bytes = 1 << 40),
        ("scheduling constraints not satisfied on 2 nodes; insufficient resources on 1 node", |s| {
            s.task.reservations.nano_cpus = 2_500_000_000;
            s.task.placement.constraints = vec!["node.role == manager".into()];
        }),
        ("max replicas per node limit exceeded on 3 nodes", |s| {
            s.task.placement.max_replicas_per_node = 1;
            s.mode = orch_model::service::ServiceMode::Replicated { replicas: 4 };
        }),
    ];
    for (why, edit) in cases {
        let mut sim = Sim::new(3);
        sim.create(placed(|s| {
            s.annotations.name = "first".into();
            s.task.placement.constraints = vec!["node.role == manager".into()];
            s.task.reservations.nano_cpus = 2_000_000_000;
        }))
        .expect("accepted");
        sim.run(secs(1));
        sim.create(placed(edit)).expect("accepted");
        sim.run(secs(1));
        let text = sim.ps("web");
        let pending = text.lines().last().expect("a task");
        assert!(pending.contains(&format!("- Running Pending: no suitable node ({why})")), "{text}");
        sim.events.clear();
        sim.run(secs(1));
        assert_eq!(sim.events, [], "the same explanation is written once");
    }
}

#[test]
fn a_pending_task_is_placed_once_a_node_fits() {
    let mut sim = Sim::new(2);
    sim.create(placed(|s| s.task.placement.constraints = vec!["node.labels.disk==SSD".into()])).expect("accepted");
    sim.run(secs(1));
    sim.edit_node(2, |n| drop(n.spec.annotations.labels.insert("disk".into(), "ssd".into())));
    sim.run(secs(1));
    check(&sim.ps("web"), "1 n2 Running Running");
    sim.edit_node(2, |n| drop(n.spec.annotations.labels.remove("disk")));
    sim.run(secs(1));
    assert!(sim.ps("web").contains("1 n2 Shutdown Shutdown"), "{}", sim.ps("web"));
}

#[test]
fn a_host_port_is_used_once_per_node() {
    let mut sim = Sim::new(2);
    sim.create(placed(|s| {
        s.endpoint.ports = vec![port(8080, 80, PublishMode::Host)];
        s.mode = orch_model::service::ServiceMode::Replicated { replicas: 3 };
    }))
    .expect("accepted");
    sim.run(secs(1));
    assert_eq!(sim.running("web").values().copied().collect::<Vec<_>>(), [1, 1]);
    assert!(sim.ps("web").contains("host-mode port already in use on 2 nodes"), "{}", sim.ps("web"));
}

/// A program of the node may have the number, of which managers know nothing.
#[test]
fn an_automatic_host_port_that_a_task_failed_with_is_not_given_again() {
    use orch_model::service::ServiceMode::{Global, Replicated};
    for mode in [Replicated { replicas: 1 }, Global] {
        let mut sim = Sim::new(1);
        sim.create(placed(|s| {
            s.endpoint.ports = vec![port(0, 80, PublishMode::Host), port(0, 81, PublishMode::Host)];
            s.mode = mode;
        }))
        .expect("accepted");
        for want in [[32767, 32766], [32765, 32764], [32763, 32762]] {
            sim.run(secs(10));
            let service = sim.service("web").id.clone();
            let task = sim.state.tasks_of(&service).find(|task| !task.status.state.is_terminal()).expect("a task");
            let ports: Vec<_> = task.host_ports.iter().map(|port| port.published_port).collect();
            assert_eq!(ports, want, "{mode:?}: {}", sim.ps("web"));
            let failed = task.id.to_string();
            sim.fail(&failed);
        }
    }
}

#[test]
fn spread_preferences_are_hierarchical() {
    let mut sim = Sim::new(5);
    for (node, zone, rack) in [(1, "a", "1"), (2, "a", "1"), (3, "a", "2"), (4, "b", "1"), (5, "b", "1")] {
        sim.edit_node(node, |n| {
            n.spec.annotations.labels.insert("zone".into(), zone.into());
            n.spec.annotations.labels.insert("rack".into(), rack.into());
        });
    }
    sim.create(placed(|s| {
        s.task.placement.spread = vec!["node.labels.zone".into(), "node.labels.rack".into()];
        s.mode = orch_model::service::ServiceMode::Replicated { replicas: 8 };
    }))
    .expect("accepted");
    sim.run(secs(1));
    let on = sim.running("web");
    assert_eq!(on["n1"] + on["n2"] + on["n3"], 4, "{on:?}");
    assert_eq!((on["n3"], on["n4"], on["n5"]), (2, 2, 2), "{on:?}");
}

#[test]
fn a_node_where_a_service_keeps_failing_is_avoided() {
    let mut sim = Sim::new(2);
    sim.create(placed(|s| s.task.restart.delay = orch_model::Duration::from_millis(100))).expect("accepted");
    for _ in 0..5 {
        sim.run(secs(3));
        assert_eq!(sim.running("web").get("n1"), Some(&1), "{}", sim.ps("web"));
        sim.fail("web.1");
    }
    sim.run(secs(6));
    assert_eq!(sim.running("web").get("n2"), Some(&1), "{}", sim.ps("web"));
}

#[test]
fn a_packed_service_fills_the_fullest_node_that_still_fits() {
    let mut sim = Sim::new(3);
    sim.create(placed(|s| {
        s.annotations.name = "first".into();
        s.task.placement.constraints = vec!["node.hostname == n2".into()];
        s.task.reservations.memory_bytes = 2 << 30;
    }))
    .expect("accepted");
    sim.run(secs(1));
    sim.create(placed(|s| {
        s.task.placement.strategy = orch_model::service::PlacementStrategy::Pack;
        s.task.reservations.memory_bytes = 1 << 30;
        s.mode = orch_model::service::ServiceMode::Replicated { replicas: 8 };
    }))
    .expect("accepted");
    sim.run(secs(1));
    // Eight GiB each: six more fit on n2, and the rest stays together.
    assert_eq!(sim.running("web"), [("n1".into(), 2), ("n2".into(), 6)].into());
}

#[test]
fn rebalancing_moves_as_few_tasks_as_needed_and_a_few_at_a_time() {
    rebalanced(UpdateOrder::StopFirst);
}

/// A task and its successor of the same spec cannot both run in a slot.
#[test]
fn rebalancing_stops_first_also_where_updates_start_first() {
    rebalanced(UpdateOrder::StartFirst);
}

fn rebalanced(order: UpdateOrder) {
    let mut sim = Sim::new(2);
    sim.create(placed(|s| {
        s.mode = orch_model::service::ServiceMode::Replicated { replicas: 7 };
        s.update = Some(UpdateConfig { order, ..UpdateConfig::default() });
    }))
    .expect("accepted");
    sim.run(secs(1));
    // What has failed once may move like others.
    for slot in 1..=7 {
        sim.fail(&format!("web.{slot}"));
        sim.run(secs(10));
    }
    sim.join(3);
    sim.run(secs(30));
    assert_eq!(sim.running("web").get("n3"), None, "nothing moves unasked");
    let id = sim.service("web").id.clone();
    let proposal = control::rebalance_service(&sim.state, sim.now, &id).expect("accepted");
    assert_eq!(proposal.warnings, ["2 tasks move"]);
    sim.accept(&proposal);
    for _ in 0..600 {
        sim.step();
        assert!(sim.running("web").values().sum::<usize>() >= 6, "more than one at a time: {}", sim.ps("web"));
    }
    let on: Vec<_> = sim.running("web").into_values().collect();
    assert_eq!(on, [3, 2, 2], "{}", sim.ps("web"));
    assert_eq!(sim.service("web").update_status.as_ref().map(|s| s.state), Some(UpdateState::Completed));
    let again = control::rebalance_service(&sim.state, sim.now, &id).expect("accepted");
    assert_eq!(again.warnings, ["it is balanced: nothing moves"]);
    assert!(again.transaction.changes.is_empty());
}

/// Each change carries the task's spec; all of them together would be refused, whatever is asked for.
#[test]
fn rebalancing_moves_no_more_than_a_transaction_takes() {
    let mut sim = Sim::new(2);
    sim.create(placed(|s| {
        s.mode = orch_model::service::ServiceMode::Replicated { replicas: 150 };
        s.task.container.env = vec![format!("A={}", "x".repeat(100_000))];
    }))
    .expect("accepted");
    sim.run(secs(1));
    sim.join(3);
    sim.run(secs(1));
    let id = sim.service("web").id.clone();
    let proposal = control::rebalance_service(&sim.state, sim.now, &id).expect("accepted");
    assert_eq!(proposal.warnings, ["50 tasks are to move, 41 of them now: ask again afterwards"]);
    assert_eq!(proposal.transaction.changes.len(), 41);
}

#[test]
fn rebalancing_moves_nothing_to_where_it_does_not_fit() {
    let mut sim = Sim::new(2);
    sim.create(placed(|s| {
        s.mode = orch_model::service::ServiceMode::Replicated { replicas: 6 };
        s.task.reservations.memory_bytes = 1 << 30;
    }))
    .expect("accepted");
    sim.run(secs(1));
    sim.join(3);
    sim.edit_node(3, |n| n.description.resources.memory_bytes = 1 << 30);
    sim.run(secs(1));
    let id = sim.service("web").id.clone();
    let proposal = control::rebalance_service(&sim.state, sim.now, &id).expect("accepted");
    assert_eq!(proposal.warnings, ["1 task moves"]);
    let global = ServiceSpec { mode: orch_model::service::ServiceMode::Global, ..web("everywhere", "nginx", 1) };
    let id = sim.create(global).expect("accepted");
    let refused = control::rebalance_service(&sim.state, sim.now, &id).expect_err("refused").to_string();
    assert!(refused.contains("only replicated services"), "{refused}");
}

#[test]
fn generic_resources_are_given_out_one_by_one() {
    use orch_model::node::{GenericResources, NamedResource};
    let gpu = |name: &str| NamedResource { kind: "gpu".into(), name: name.into() };
    let mut sim = Sim::new(2);
    sim.edit_node(1, |n| {
        n.description.generic =
            GenericResources { counted: [("ssd".to_owned(), 3)].into(), named: [gpu("a"), gpu("b"), gpu("c")].into() };
    });
    sim.create(placed(|s| {
        s.mode = orch_model::service::ServiceMode::Replicated { replicas: 2 };
        s.task.generic = [("gpu".to_owned(), 1), ("ssd".to_owned(), 2)].into();
    }))
    .expect("accepted");
    sim.run(secs(1));
    assert_eq!(sim.running("web"), [("n1".to_owned(), 1)].into());
    assert!(sim.ps("web").contains("no suitable node (insufficient resources on 2 nodes)"), "{}", sim.ps("web"));
    let held = |sim: &Sim| -> Vec<GenericResources> {
        let id = sim.service("web").id.clone();
        let mut tasks: Vec<_> = sim.state.tasks_of(&id).filter(|t| t.node.is_some() && t.is_wanted()).collect();
        tasks.sort_by_key(|t| t.slot);
        tasks.into_iter().map(|t| t.generic.clone()).collect()
    };
    assert_eq!(held(&sim), [GenericResources { counted: [("ssd".to_owned(), 2)].into(), named: [gpu("a")].into() }]);
    // The operator adds a disk: what waited is placed, with another one of the named.
    sim.edit_node(1, |n| {
        n.description.generic.counted.insert("ssd".into(), 4);
    });
    sim.run(secs(1));
    let named: Vec<_> = held(&sim).into_iter().flat_map(|g| g.named).collect();
    assert_eq!(named, [gpu("a"), gpu("b")]);
    // What a task held is free again once it has stopped.
    sim.fail("web.1");
    sim.run(secs(10));
    assert_eq!(sim.running("web"), [("n1".to_owned(), 2)].into());
}

#[test]
fn an_image_runs_where_its_platform_is() {
    use orch_model::node::Platform;
    let mut sim = Sim::new(3);
    sim.edit_node(3, |n| n.description.platform.arch = "aarch64".into());
    let register = |sim: &mut Sim, arch: &str| {
        let request = control::Registration {
            node: crate::sim::node_id(1),
            name: "nginx".into(),
            digest: format!("sha256:{}", if arch == "arm64" { "a" } else { "b" }.repeat(64)),
            size_bytes: 1,
            platform: Some(Platform { os: "linux".into(), arch: arch.into() }),
            replace: true,
            holder_only: false,
        };
        let now = sim.now;
        let tx = sim.with_ids(|state, ids| control::register_image(state, now, ids, &request)).expect("accepted");
        sim.commit(&tx);
    };
    register(&mut sim, "arm64");
    sim.create(placed(|s| s.mode = orch_model::service::ServiceMode::Replicated { replicas: 3 })).expect("accepted");
    sim.run(secs(1));
    assert_eq!(sim.running("web"), [("n3".to_owned(), 3)].into());
    register(&mut sim, "s390x");
    sim.create(placed(|s| s.annotations.name = "other".into())).expect("accepted");
    sim.run(secs(1));
    assert!(sim.ps("other").contains("no suitable node (unsupported platform on 3 nodes)"), "{}", sim.ps("other"));
    // A service is stored with the content that its image's name meant; under a tag of its own it follows the name.
    sim.update("other", |s| s.task.container.image = "nginx:late".into()).expect("accepted");
    sim.run(secs(10));
    assert_eq!(sim.running("other").values().sum::<usize>(), 1, "nothing is known of that image");
}

#[test]
fn what_the_kernel_lacks_is_said() {
    let mut sim = Sim::new(2);
    let id = crate::network::network(&mut sim, "six", None).expect("accepted");
    let network = sim.state.network(&id).expect("a network").clone();
    let mut six = orch_model::network::Network::clone(&network);
    six.spec.ipv6 = true;
    sim.commit_changes(vec![orch_model::change::Change::Update(orch_model::Object::Network(std::sync::Arc::new(six)))]);
    sim.create(crate::network::on("web", 1, &id)).expect("accepted");
    sim.run(secs(1));
    assert!(sim.ps("web").contains("missing feature of the kernel on 2 nodes"), "{}", sim.ps("web"));
    sim.edit_node(2, |n| n.description.features = vec!["ipv6".into()]);
    sim.run(secs(1));
    assert_eq!(sim.running("web"), [("n2".to_owned(), 1)].into());
}
