//! Whatever happens to a cluster, it settles, and its rules hold at every step on the way.
//!
//! [`Sim::step`] checks the rules (no address twice, no slot twice, small transactions, a fixed point after each round);
//! here random histories are run through it.

use orch_manager_core::control;
use orch_model::{
    node::{Availability, NamedResource},
    service::{
        FailureAction, PublishMode, RestartCondition, RestartPolicy, ServiceMode, UpdateConfig, UpdateOrder,
        UpdateState,
    },
};
use proptest::prelude::*;

use crate::{
    network::{network, on},
    sim::{STEP, Sim, port, secs, web},
};

#[derive(Debug, Clone)]
enum Step {
    Scale(u64),
    Image(&'static str),
    Fail(u64),
    Down(u8),
    Up(u8),
    Availability(u8, Availability),
    Constraint(Option<&'static str>),
    Order(UpdateOrder),
    Wait(u64),
    Snapshot,
}

/// What happens where nodes do not come back.
#[derive(Debug, Clone)]
enum Loss {
    Step(Step),
    /// One of the workers is removed, and another joins.
    Node(usize),
    Rebalance,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let availability = prop_oneof![Just(Availability::Active), Just(Availability::Pause), Just(Availability::Drain)];
    let constraint = prop_oneof![Just(None), Just(Some("node.hostname != n2")), Just(Some("node.role == worker"))];
    let image = prop_oneof![Just("nginx"), Just("crash"), Just("flaky"), Just("missing"), Just("once"), Just("v2")];
    let step = prop_oneof![
        (0u64..8).prop_map(Step::Scale),
        image.prop_map(Step::Image),
        (1u64..8).prop_map(Step::Fail),
        (2u8..=4).prop_map(Step::Down),
        (2u8..=4).prop_map(Step::Up),
        ((1u8..=4), availability).prop_map(|(n, a)| Step::Availability(n, a)),
        constraint.prop_map(Step::Constraint),
        prop_oneof![Just(UpdateOrder::StopFirst), Just(UpdateOrder::StartFirst)].prop_map(Step::Order),
        (1u64..40).prop_map(Step::Wait),
        Just(Step::Snapshot),
    ];
    prop::collection::vec(step, 1..16)
}

fn act(sim: &mut Sim, step: &Step) {
    match step {
        Step::Scale(replicas) => sim.scale("web", *replicas),
        Step::Image(image) => {
            sim.update("web", |s| s.task.container.image = (*image).into()).expect("accepted");
        }
        Step::Fail(slot) => {
            let name = format!("web.{slot}");
            let running = orch_manager_core::resolve::task(&sim.state, &name);
            if running.is_ok_and(|t| t.node.is_some()) {
                sim.fail(&name);
            }
        }
        Step::Down(node) => sim.down(*node),
        Step::Up(node) => sim.up(*node),
        Step::Availability(node, availability) => sim.availability(*node, *availability),
        Step::Constraint(constraint) => {
            let constraints = constraint.map(str::to_owned).into_iter().collect();
            sim.update("web", |s| s.task.placement.constraints = constraints).expect("accepted");
        }
        Step::Order(order) => {
            sim.update("web", |s| s.update.get_or_insert_default().order = *order).expect("accepted");
        }
        Step::Wait(steps) => (0..*steps).for_each(|_| sim.step()),
        Step::Snapshot => {
            let objects = sim.state.objects().collect();
            sim.state = orch_manager_core::State::from_objects(objects, sim.state.last_stamp());
        }
    }
}

/// Few by default; `PROPTEST_CASES=2000` looks harder.
#[allow(clippy::disallowed_methods)] // A test may look at its environment.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_settles_on_what_was_asked_for(history in steps()) {
        let mut sim = Sim::new(4);
        sim.stop_takes = STEP * 3;
        sim.create(web("web", "nginx", 3)).expect("accepted");
        let mut global = web("agent", "nginx", 0);
        global.mode = ServiceMode::Global;
        sim.create(global).expect("accepted");
        for step in &history {
            act(&mut sim, step);
            sim.step();
        }
        // Peace returns: every node is up, the image is good.
        for node in 1..=4 {
            sim.up(node);
            sim.availability(node, Availability::Active);
        }
        sim.update("web", |s| {
            s.task.container.image = "peace".into();
            s.task.placement.constraints.clear();
            s.mode = ServiceMode::Replicated { replicas: 5 };
        }).expect("accepted");
        sim.run(secs(180));
        prop_assert_eq!(sim.running("web").values().sum::<usize>(), 5, "{}", sim.ps("web"));
        prop_assert_eq!(sim.running("agent").len(), 4, "{}", sim.ps("agent"));
        let strays = sim.state.tasks().filter(|t| !t.is_wanted() && !t.status.state.is_terminal()).count();
        prop_assert_eq!(strays, 0);
        sim.events.clear();
        sim.run(secs(30));
        prop_assert!(sim.events.is_empty(), "it has not settled: {:?}", sim.events);
    }

    /// The same with everything that a service can hold: addresses of a small network, ports, memory, an update order.
    #[test]
    fn scarce_things_are_given_back(
        history in steps(),
        start_first in any::<bool>(),
        parallelism in 0u64..3,
        host_port in any::<bool>(),
        action in prop_oneof![
            Just(FailureAction::Pause), Just(FailureAction::Continue), Just(FailureAction::Rollback)
        ],
    ) {
        let mut sim = Sim::new(4);
        sim.stop_takes = STEP * 4;
        // Room for a virtual address and 13 tasks: 5 running, as many stopping.
        let id = network(&mut sim, "small", Some("10.9.0.0/28")).expect("accepted");
        let mut spec = on("web", 3, &id);
        let mode = if host_port { PublishMode::Host } else { PublishMode::Ingress };
        spec.endpoint.ports = vec![port(8080, 80, mode)];
        spec.task.reservations.memory_bytes = 1 << 30;
        spec.task.placement.max_replicas_per_node = 2;
        spec.task.generic = [("gpu".to_owned(), 1)].into();
        for node in 1..=4 {
            sim.edit_node(node, |n| {
                let gpu = |name: &str| NamedResource { kind: "gpu".into(), name: name.into() };
                n.description.generic.named = [gpu("a"), gpu("b"), gpu("c")].into();
            });
        }
        spec.task.restart.delay = STEP * 5;
        let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let config = UpdateConfig { parallelism, order, failure_action: action, ..UpdateConfig::default() };
        spec.update = Some(config);
        sim.create(spec).expect("accepted");
        for step in &history {
            act(&mut sim, step);
            sim.step();
        }
        for node in 1..=4 {
            sim.up(node);
            sim.availability(node, Availability::Active);
        }
        sim.update("web", |s| {
            s.task.container.image = "peace".into();
            s.task.placement.constraints.clear();
            s.mode = ServiceMode::Replicated { replicas: 4 };
            // A host port that every node has in use leaves no room for a second task beside the first.
            s.update = None;
        }).expect("accepted");
        sim.run(secs(300));
        prop_assert_eq!(sim.running("web").values().sum::<usize>(), 4, "{}", sim.ps("web"));
        let service = sim.service("web");
        let old = sim.state.tasks_of(&service.id).filter(|t| t.is_wanted() && t.spec.container.image != "peace");
        prop_assert_eq!(old.count(), 0, "{}", sim.ps("web"));
        let removal = control::remove_service(&sim.state, sim.now, &service.id).expect("accepted");
        sim.accept(&removal);
        sim.run(secs(10));
        prop_assert_eq!(sim.state.task_count(), 0);
        prop_assert!(control::remove_network(&sim.state, sim.now, &id).is_ok());
    }

    /// Nodes go for good while others wait for what their tasks had.
    #[test]
    fn what_orphans_had_goes_to_others(
        history in prop::collection::vec(prop_oneof![
            4 => steps().prop_map(|mut steps| Loss::Step(steps.remove(0))),
            2 => (0usize..3).prop_map(Loss::Node),
            1 => Just(Loss::Rebalance),
        ], 1..24),
        start_first in any::<bool>(),
        ids_fall in any::<bool>(),
    ) {
        let mut sim = Sim::new(4);
        sim.stop_takes = STEP * 2;
        sim.ids_fall = ids_fall;
        // Room for two virtual addresses and 11 tasks.
        let id = network(&mut sim, "small", Some("10.9.0.0/28")).expect("accepted");
        let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        for (name, replicas) in [("web", 5), ("api", 4)] {
            let mut spec = on(name, replicas, &id);
            spec.update = Some(UpdateConfig { order, parallelism: 2, ..UpdateConfig::default() });
            sim.create(spec).expect("accepted");
        }
        sim.run(secs(1));
        let mut workers = vec![2, 3, 4];
        for loss in &history {
            match loss {
                Loss::Step(Step::Down(n) | Step::Up(n) | Step::Availability(n, _)) if !workers.contains(n) => {}
                Loss::Step(step) => act(&mut sim, step),
                Loss::Node(which) => {
                    let next = workers.iter().max().copied().unwrap_or_default() + 1;
                    sim.remove(std::mem::replace(&mut workers[*which], next));
                    sim.join(next);
                }
                Loss::Rebalance => {
                    let service = sim.service("web");
                    let rebalance = control::rebalance_service(&sim.state, sim.now, &service.id).expect("accepted");
                    sim.accept(&rebalance);
                }
            }
            sim.step();
        }
        for node in workers {
            sim.up(node);
            sim.availability(node, Availability::Active);
        }
        sim.availability(1, Availability::Active);
        sim.update("web", |s| {
            s.task.container.image = "peace".into();
            s.task.placement.constraints.clear();
            s.mode = ServiceMode::Replicated { replicas: 4 };
            s.update = None;
        }).expect("accepted");
        sim.run(secs(300));
        prop_assert_eq!(sim.running("web").values().sum::<usize>(), 4, "{}", sim.ps("web"));
        prop_assert_eq!(sim.running("api").values().sum::<usize>(), 4, "{}", sim.ps("api"));
    }

    /// While nothing fails, an update has at most so many slots without a running task, or so many tasks more.
    #[test]
    fn updates_keep_to_their_parallelism(
        replicas in 1u64..9,
        parallelism in 1u64..4,
        delay in 0u64..3,
        start_first in any::<bool>(),
        force in any::<bool>(),
        turns_at in prop::option::of(0usize..60),
    ) {
        let mut sim = Sim::new(3);
        sim.stop_takes = STEP * 2;
        let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let config = UpdateConfig { parallelism, delay: secs(delay), order, ..UpdateConfig::default() };
        let mut spec = web("web", "v1", replicas);
        spec.update = Some(config);
        sim.create(spec).expect("accepted");
        sim.run(secs(2));
        sim.update("web", |s| if force { s.task.force_update = 1 } else { s.task.container.image = "v2".into() })
            .expect("accepted");
        for step in 0..1500 {
            // On its way the order becomes the other one.
            if turns_at == Some(step) {
                let order = if start_first { UpdateOrder::StopFirst } else { UpdateOrder::StartFirst };
                sim.update("web", |s| s.update.get_or_insert_default().order = order).expect("accepted");
            }
            sim.step();
            let running = sim.running("web").values().sum::<usize>() as u64;
            let id = sim.service("web").id.clone();
            let wanted = sim.state.tasks_of(&id).filter(|t| t.is_wanted()).count() as u64;
            prop_assert!(wanted <= replicas + parallelism, "{wanted} tasks: {}", sim.ps("web"));
            let least = if start_first && turns_at.is_none_or(|at| step < at) { replicas } else { replicas.saturating_sub(parallelism) };
            prop_assert!(running >= least, "{running} run: {}", sim.ps("web"));
            if sim.service("web").update_status.as_ref().is_some_and(|s| s.state == UpdateState::Completed) {
                break;
            }
        }
        let service = sim.service("web");
        prop_assert_eq!(service.update_status.as_ref().map(|s| s.state), Some(UpdateState::Completed));
        let old = sim.state.tasks_of(&service.id).filter(|t| t.is_wanted() && t.spec_version != service.spec_version);
        prop_assert_eq!(old.count(), 0);
    }

    /// A slot is tried so many times and once more, whatever the delays, also when another manager takes over.
    #[test]
    fn attempts_are_counted(
        max_attempts in 0u64..5,
        delay_ms in prop_oneof![Just(0u64), Just(100), Just(3000)],
        image in prop_oneof![Just("crash"), Just("flaky"), Just("missing")],
        condition in prop_oneof![
            Just(RestartCondition::None), Just(RestartCondition::OnFailure), Just(RestartCondition::Any)
        ],
        takeover in 1u64..20,
    ) {
        let mut sim = Sim::new(2);
        let mut spec = web("web", image, 2);
        // 0 is without a limit: that is not what this is about.
        let attempts = max_attempts + 1;
        spec.task.restart = RestartPolicy {
            condition, delay: orch_model::Duration::from_millis(delay_ms), max_attempts: attempts, window: secs(0),
        };
        sim.create(spec).expect("accepted");
        let end = sim.now + secs(300);
        for step in 0.. {
            if sim.now >= end {
                break;
            }
            // While nothing happens, one moment is as good as another for a new manager.
            sim.leap(end);
            if step % takeover == 0 {
                act(&mut sim, &Step::Snapshot);
            }
        }
        let allowed = if condition == RestartCondition::None { 1 } else { attempts + 1 };
        let id = sim.service("web").id.clone();
        for slot in 1..=2 {
            let tasks = sim.state.tasks_in(&id, slot).count() as u64;
            prop_assert_eq!(tasks, allowed, "{}", sim.ps("web"));
        }
    }
}
