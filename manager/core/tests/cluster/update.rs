//! Rolling updates and rollbacks.

use orch_manager_core::control;
use orch_model::{
    Annotations, Duration, ObjectId, SecretId,
    change::Change,
    node::Availability,
    service::{
        FailureAction, FileRef, PublishMode, RestartCondition, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder,
        UpdateState,
    },
    task::{TaskState, TaskStatus},
};

use crate::sim::{STEP, Sim, node_id, port, secs, web};

fn with_update(replicas: u64, config: UpdateConfig) -> ServiceSpec {
    ServiceSpec { update: Some(config), ..web("web", "v1", replicas) }
}

fn update_state(sim: &Sim) -> Option<UpdateState> {
    sim.service("web").update_status.as_ref().map(|s| s.state)
}

fn images(sim: &Sim) -> Vec<String> {
    let id = sim.service("web").id.clone();
    let mut tasks: Vec<_> = sim.state.tasks_of(&id).filter(|t| t.is_wanted()).collect();
    tasks.sort_by_key(|t| t.slot);
    tasks.into_iter().map(|t| t.spec.container.image.clone()).collect()
}

#[test]
fn one_task_at_a_time_by_default() {
    let mut sim = Sim::new(3);
    sim.create(with_update(4, UpdateConfig { delay: secs(1), ..UpdateConfig::default() })).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
    let mut least = 4;
    for _ in 0..70 {
        sim.step();
        least = least.min(sim.running("web").values().sum::<usize>());
    }
    assert_eq!(least, 3);
    assert_eq!(update_state(&sim), Some(UpdateState::Updating), "it is watched for the monitored time");
    assert_eq!(images(&sim), ["v2"; 4]);
    sim.run(secs(6));
    assert_eq!(update_state(&sim), Some(UpdateState::Completed));
}

#[test]
fn a_failing_update_pauses_and_leaves_the_rest_running() {
    let mut sim = Sim::new(2);
    sim.create(with_update(3, UpdateConfig::default())).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "crash".into()).expect("accepted");
    sim.run(secs(30));
    let status = sim.service("web").update_status.clone().expect("an update");
    assert_eq!(status.state, UpdateState::Paused);
    assert!(status.message.starts_with("update paused due to failure or early termination of task"), "{status:?}");
    assert!(status.message.contains(" (web.") && status.message.contains("`orch service rollback web`"), "{status:?}");
    assert_eq!(images(&sim), ["crash", "v1", "v1"]);
    sim.update("web", |s| s.task.container.image = "v3".into()).expect("accepted");
    sim.run(secs(30));
    assert_eq!((update_state(&sim), images(&sim)), (Some(UpdateState::Completed), vec!["v3".to_owned(); 3]));
}

#[test]
fn a_task_that_ends_at_once_without_an_error_has_failed_unless_it_may_end() {
    for (condition, expected, images_then) in [
        // The first one ran, if only for a moment, so the second was begun.
        (RestartCondition::Any, UpdateState::Paused, &["once", "once", "v1"][..]),
        (RestartCondition::OnFailure, UpdateState::Completed, &[]),
        (RestartCondition::None, UpdateState::Completed, &[]),
    ] {
        let mut sim = Sim::new(2);
        let mut spec = with_update(3, UpdateConfig::default());
        spec.task.restart.condition = condition;
        sim.create(spec).expect("accepted");
        sim.run(secs(1));
        sim.update("web", |s| s.task.container.image = "once".into()).expect("accepted");
        sim.run(secs(30));
        let status = sim.service("web").update_status.clone().expect("an update");
        assert_eq!((status.state, images(&sim)), (expected, images_then.iter().map(|i| (*i).to_owned()).collect()));
        let said = status.message.starts_with("update paused due to failure or early termination of task");
        assert_eq!(said, expected == UpdateState::Paused, "{status:?}");
    }
}

#[test]
fn a_failing_update_rolls_back_if_asked_to_and_keeps_the_scale() {
    let mut sim = Sim::new(2);
    let config = UpdateConfig { failure_action: FailureAction::Rollback, ..UpdateConfig::default() };
    sim.create(with_update(3, config)).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "crash".into()).expect("accepted");
    sim.scale("web", 4);
    sim.run(secs(40));
    assert_eq!(update_state(&sim), Some(UpdateState::RollbackCompleted), "{}", sim.ps("web"));
    assert_eq!(images(&sim), ["v1"; 4]);
}

#[test]
fn an_update_that_cannot_be_rolled_back_pauses_and_says_why() {
    let mut sim = Sim::new(2);
    let annotations = Annotations { name: "key".into(), ..Annotations::default() };
    let now = sim.now;
    let made = sim.with_ids(|s, ids| control::create_secret(s, now, ids, annotations, b"x".to_vec(), None));
    let made = made.expect("accepted");
    sim.accept(&made);
    let ObjectId::Secret(key) = made.id else { panic!("not a secret") };
    let mut spec = with_update(2, UpdateConfig { failure_action: FailureAction::Rollback, ..UpdateConfig::default() });
    let file = |id: &SecretId| FileRef {
        id: id.clone(),
        name: "key".into(),
        target: "key".into(),
        uid: "0".into(),
        gid: "0".into(),
        mode: 0o444,
    };
    spec.task.container.secrets = vec![file(&key)];
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    let update = |s: &mut ServiceSpec| {
        s.task.container.image = "crash".into();
        s.task.container.secrets.clear();
    };
    sim.update("web", update).expect("accepted");
    let id = ObjectId::Secret(key.clone());
    let gone = control::remove_when_free(&sim.state, sim.now, &id, false).expect("no service has it now");
    sim.accept(&gone);
    sim.run(secs(30));
    let status = sim.service("web").update_status.clone().expect("an update");
    assert_eq!(status.state, UpdateState::Paused, "{status:?}");
    assert!(status.message.starts_with("update (which cannot be rolled back: "), "{status:?}");
    assert!(status.message.contains(&format!("secret {key}, which does not exist")), "{status:?}");
    assert!(status.message.ends_with("correct it with `orch service update web`"), "{status:?}");
    let web = sim.service("web");
    let refused =
        control::rollback_service(&sim.state, sim.now, &web.id, web.meta.version).expect_err("by hand neither");
    assert_eq!(refused.text, format!("no such secret: key ({key})"));
}

#[test]
fn failures_up_to_the_ratio_are_tolerated() {
    let mut sim = Sim::new(2);
    let config = UpdateConfig { max_failure_ratio: 0.5, parallelism: 0, ..UpdateConfig::default() };
    sim.create(with_update(2, config)).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
    sim.run(secs(1));
    sim.fail("web.1");
    sim.run(secs(20));
    assert_eq!(update_state(&sim), Some(UpdateState::Completed));
}

#[test]
fn an_update_that_may_fail_ends_though_tasks_fail_for_ever() {
    let config = |failure_action, max_failure_ratio| UpdateConfig {
        failure_action,
        max_failure_ratio,
        parallelism: 0,
        ..UpdateConfig::default()
    };
    // A task in each of four places; how many of them crash, and what becomes of the update.
    for (config, crashing, expected) in [
        (config(FailureAction::Continue, 0.0), 4, UpdateState::Completed),
        (config(FailureAction::Pause, 0.5), 1, UpdateState::Completed),
        (config(FailureAction::Pause, 0.5), 2, UpdateState::Completed),
        (config(FailureAction::Pause, 0.5), 3, UpdateState::Paused),
    ] {
        let mut sim = Sim::new(2);
        sim.create(with_update(4, config)).expect("accepted");
        sim.run(secs(1));
        sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
        for _ in 0..600 {
            sim.step();
            for slot in 1..=crashing {
                let name = format!("web.{slot}");
                let is_new = |t: &&std::sync::Arc<orch_model::task::Task>| {
                    t.name() == name && t.spec.container.image == "v2" && t.status.state == TaskState::Running
                };
                let id = sim.service("web").id.clone();
                let task = sim.state.tasks_of(&id).find(is_new).map(|t| t.id.to_string());
                task.iter().for_each(|task| sim.fail(task));
            }
        }
        assert_eq!(update_state(&sim), Some(expected), "{crashing}: {:?}", sim.service("web").update_status);
    }
}

#[test]
fn a_late_failure_is_not_the_updates() {
    let mut sim = Sim::new(2);
    sim.create(with_update(2, UpdateConfig { delay: secs(20), ..UpdateConfig::default() })).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
    sim.run(secs(10));
    sim.fail("web.1");
    sim.run(secs(40));
    assert_eq!(update_state(&sim), Some(UpdateState::Completed), "{}", sim.ps("web"));
}

#[test]
fn start_first_never_has_fewer() {
    let mut sim = Sim::new(2);
    let config = UpdateConfig { order: UpdateOrder::StartFirst, ..UpdateConfig::default() };
    sim.create(with_update(3, config)).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
    for _ in 0..100 {
        sim.step();
        assert!(sim.running("web").values().sum::<usize>() >= 3, "{}", sim.ps("web"));
    }
    assert_eq!((update_state(&sim), images(&sim)), (Some(UpdateState::Completed), vec!["v2".to_owned(); 3]));
}

#[test]
fn a_start_first_update_that_cannot_start_leaves_the_old_tasks_alone() {
    let mut sim = Sim::new(2);
    let config = UpdateConfig { order: UpdateOrder::StartFirst, ..UpdateConfig::default() };
    sim.create(with_update(2, config)).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "missing".into()).expect("accepted");
    sim.run(secs(60));
    assert_eq!(update_state(&sim), Some(UpdateState::Paused));
    assert_eq!(sim.running("web").values().sum::<usize>(), 2, "{}", sim.ps("web"));
}

#[test]
fn what_changes_nothing_for_tasks_restarts_none() {
    let mut sim = Sim::new(3);
    sim.create(with_update(3, UpdateConfig::default())).expect("accepted");
    sim.run(secs(1));
    let before: Vec<_> = sim.state.tasks().map(|t| t.id.clone()).collect();
    sim.update("web", |_| {}).expect("accepted");
    sim.update("web", |s| s.task.placement.constraints = vec!["node.platform.os == linux".into()]).expect("accepted");
    sim.update("web", |s| drop(s.annotations.labels.insert("a".into(), "b".into()))).expect("accepted");
    sim.run(secs(10));
    assert_eq!(sim.state.tasks().map(|t| t.id.clone()).collect::<Vec<_>>(), before);
    // Those that do not fit any more do move.
    sim.update("web", |s| s.task.placement.constraints = vec!["node.hostname != n3".into()]).expect("accepted");
    sim.run(secs(10));
    assert!(!sim.running("web").contains_key("n3"), "{}", sim.ps("web"));
    assert_eq!(sim.running("web").values().sum::<usize>(), 3);
}

#[test]
fn a_rollback_by_hand_returns_to_the_previous_spec() {
    let mut sim = Sim::new(2);
    sim.create(with_update(2, UpdateConfig::default())).expect("accepted");
    sim.run(secs(1));
    let service = sim.service("web");
    let refused = control::rollback_service(&sim.state, sim.now, &service.id, service.meta.version);
    assert!(refused.expect_err("nothing to go back to").text.contains("does not have a previous spec"));
    sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
    sim.run(secs(10));
    let service = sim.service("web");
    let back = control::rollback_service(&sim.state, sim.now, &service.id, service.meta.version).expect("accepted");
    sim.accept(&back);
    sim.run(secs(10));
    assert_eq!((update_state(&sim), images(&sim)), (Some(UpdateState::RollbackCompleted), vec!["v1".to_owned(); 2]));
}

#[test]
fn another_manager_carries_an_update_on() {
    let mut sim = Sim::new(2);
    sim.create(with_update(3, UpdateConfig { delay: secs(1), ..UpdateConfig::default() })).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
    for _ in 0..120 {
        sim.run(STEP);
        // A state rebuilt from a snapshot knows nothing else.
        sim.state = orch_manager_core::State::from_objects(sim.state.objects().collect(), sim.state.last_stamp());
    }
    assert_eq!((update_state(&sim), images(&sim)), (Some(UpdateState::Completed), vec!["v2".to_owned(); 3]));
    let shut = sim.state.tasks().filter(|t| t.status.state == TaskState::Shutdown).count();
    assert_eq!(shut, 3, "each slot was replaced once");
    assert!(sim.now.since(sim.service("web").meta.created_at) > Duration::from_secs(10));
}

#[test]
fn an_image_that_cannot_be_had_stops_nothing() {
    let mut sim = Sim::new(2);
    sim.create(with_update(2, UpdateConfig::default())).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "missing".into()).expect("accepted");
    sim.run(secs(60));
    assert_eq!(update_state(&sim), Some(UpdateState::Paused));
    assert_eq!(sim.running("web").values().sum::<usize>(), 2, "{}", sim.ps("web"));
    let service = sim.service("web");
    let back = control::rollback_service(&sim.state, sim.now, &service.id, service.meta.version).expect("accepted");
    let before: Vec<_> = sim.state.tasks().filter(|t| t.status.state == TaskState::Running).cloned().collect();
    sim.accept(&back);
    sim.run(secs(20));
    let after: Vec<_> = sim.state.tasks().filter(|t| t.is_wanted()).map(|t| t.id.clone()).collect();
    assert_eq!(after, before.iter().map(|t| t.id.clone()).collect::<Vec<_>>(), "{}", sim.ps("web"));
    assert_eq!(update_state(&sim), Some(UpdateState::RollbackCompleted));
}

#[test]
fn an_update_proceeds_where_old_and_new_cannot_be_side_by_side() {
    let mut sim = Sim::new(1);
    let mut spec = with_update(1, UpdateConfig::default());
    spec.endpoint.ports = vec![port(8080, 80, PublishMode::Host)];
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
    sim.run(secs(10));
    assert_eq!((update_state(&sim), images(&sim)), (Some(UpdateState::Completed), vec!["v2".to_owned()]));
}

/// A service that has all of its nodes' port 8080, replicated or on each node.
fn with_host_port(replicas: u64, global: bool, config: UpdateConfig) -> ServiceSpec {
    let mut spec = with_update(replicas, config);
    spec.endpoint.ports = vec![port(8080, 80, PublishMode::Host)];
    if global {
        spec.mode = ServiceMode::Global;
    }
    spec
}

fn config(order: UpdateOrder, parallelism: u64) -> UpdateConfig {
    UpdateConfig { order, parallelism, ..UpdateConfig::default() }
}

/// Runs, and says how few tasks ran at once.
fn least_running(sim: &mut Sim, steps: usize) -> usize {
    let mut least = usize::MAX;
    for _ in 0..steps {
        sim.step();
        least = least.min(sim.running("web").values().sum());
    }
    least
}

#[test]
fn another_order_frees_an_update_that_waits_for_its_predecessors() {
    use UpdateOrder::{StartFirst, StopFirst};
    for (nodes, global, parallelism, parallelism_then, least) in [
        (1, false, 1, 1, 0),
        (3, false, 1, 1, 2),
        // All new tasks wait; they take their turns nevertheless.
        (3, false, 0, 1, 2),
        (3, false, 3, 2, 1),
        (3, true, 0, 1, 2),
        (3, true, 1, 1, 2),
        (3, false, 1, 0, 0),
    ] {
        let case = format!("{nodes} nodes, global {global}, parallelism {parallelism}, then {parallelism_then}");
        let mut sim = Sim::new(nodes);
        sim.stop_takes = STEP * 5;
        let replicas = u64::from(nodes);
        sim.create(with_host_port(replicas, global, config(StartFirst, parallelism))).expect("accepted");
        sim.run(secs(1));
        sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
        assert_eq!(least_running(&mut sim, 30), usize::from(nodes), "{case}: start-first stops nothing");
        assert_eq!(update_state(&sim), Some(UpdateState::Updating), "{case}");
        sim.update("web", |s| s.update = Some(config(StopFirst, parallelism_then))).expect("accepted");
        assert_eq!(least_running(&mut sim, 400), least, "{case}: {}", sim.ps("web"));
        assert_eq!(update_state(&sim), Some(UpdateState::Completed), "{case}: {}", sim.ps("web"));
        assert_eq!(images(&sim), vec!["v2"; nodes.into()], "{case}");
    }
}

#[test]
fn a_task_that_waited_for_its_predecessor_starts_beside_it_once_it_may() {
    let mut sim = Sim::new(2);
    sim.create(with_update(3, config(UpdateOrder::StopFirst, 1))).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "slow".into()).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.update = Some(config(UpdateOrder::StartFirst, 1))).expect("accepted");
    assert_eq!(least_running(&mut sim, 200), 3, "{}", sim.ps("web"));
    assert_eq!((update_state(&sim), images(&sim)), (Some(UpdateState::Completed), vec!["slow".to_owned(); 3]));
}

#[test]
fn a_paused_update_goes_on_in_another_order() {
    for global in [false, true] {
        let mut sim = Sim::new(3);
        sim.create(with_host_port(3, global, config(UpdateOrder::StartFirst, 1))).expect("accepted");
        sim.run(secs(1));
        sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
        sim.run(secs(700));
        assert_eq!(update_state(&sim), Some(UpdateState::Paused));
        sim.update("web", |s| s.update = Some(config(UpdateOrder::StopFirst, 1))).expect("accepted");
        assert_eq!(least_running(&mut sim, 400), 2, "{}", sim.ps("web"));
        assert_eq!((update_state(&sim), images(&sim)), (Some(UpdateState::Completed), vec!["v2".to_owned(); 3]));
    }
}

#[test]
fn a_paused_update_begins_anew_with_the_same_command_and_not_with_another_scale() {
    for (order, condition) in
        [(UpdateOrder::StopFirst, RestartCondition::Any), (UpdateOrder::StartFirst, RestartCondition::None)]
    {
        let mut sim = Sim::new(3);
        let mut spec = with_update(3, config(order, 1));
        spec.task.restart.condition = condition;
        sim.create(spec).expect("accepted");
        sim.run(secs(1));
        sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
        sim.step();
        let task = sim.state.tasks().find(|t| t.is_wanted() && t.spec.container.image == "v2").expect("an attempt");
        let (task, node) = (task.id.clone(), task.node.clone().expect("a node"));
        let (at, message, container) = (sim.now, "agent".to_owned(), None);
        let status = TaskStatus { state: TaskState::Failed, at, message, error: Some("no image".into()), container };
        sim.commit_changes(vec![Change::TaskStatus { task, node, status }]);
        sim.run(secs(60));
        assert_eq!(update_state(&sim), Some(UpdateState::Paused), "{}", sim.ps("web"));
        sim.scale("web", 4);
        sim.run(secs(60));
        assert_eq!(update_state(&sim), Some(UpdateState::Paused), "{}", sim.ps("web"));
        sim.update("web", |_| {}).expect("accepted");
        sim.run(secs(120));
        assert_eq!(images(&sim), ["v2"; 4], "{}", sim.ps("web"));
        assert_eq!(update_state(&sim), Some(UpdateState::Completed));
    }
}

#[test]
fn a_paused_update_that_begins_anew_watches_the_attempt_that_it_finds() {
    let asked = |image: &str, memory_bytes: u64| {
        let mut spec = with_update(1, UpdateConfig::default());
        spec.task.container.image = image.to_owned();
        spec.task.reservations.memory_bytes = memory_bytes;
        spec
    };
    // What is asked for, how long it has at least until it has failed, and what is said then.
    for (asked, least, said) in [
        (asked("crash", 0), 0, "due to failure or early termination of task"),
        (asked("v2", 1 << 50), 599, "not running within 600 s: no suitable node"),
    ] {
        let mut sim = Sim::new(2);
        sim.create(with_update(1, UpdateConfig::default())).expect("accepted");
        sim.run(secs(1));
        sim.update("web", |spec| *spec = asked.clone()).expect("accepted");
        sim.step();
        for round in 1..=3 {
            let begun = sim.now;
            assert_eq!(update_state(&sim), Some(UpdateState::Updating), "{round}: {}", sim.ps("web"));
            while update_state(&sim) == Some(UpdateState::Updating) && sim.now.since(begun) < secs(1000) {
                sim.run(secs(1));
            }
            let status = sim.service("web").update_status.clone().expect("an update");
            assert_eq!(status.state, UpdateState::Paused, "{round}: {status:?} {}", sim.ps("web"));
            assert!(status.message.contains(said) && sim.now.since(begun) >= secs(least), "{round}: {status:?}");
            sim.update("web", |_| {}).expect("accepted");
        }
    }
}

#[test]
fn another_order_frees_a_rollback_too() {
    let mut sim = Sim::new(2);
    let mut spec = with_host_port(2, false, config(UpdateOrder::StopFirst, 0));
    spec.rollback = Some(config(UpdateOrder::StartFirst, 0));
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
    sim.run(secs(20));
    let service = sim.service("web");
    let back = control::rollback_service(&sim.state, sim.now, &service.id, service.meta.version).expect("accepted");
    sim.accept(&back);
    assert_eq!(least_running(&mut sim, 50), 2, "{}", sim.ps("web"));
    assert_eq!(update_state(&sim), Some(UpdateState::RollbackStarted));
    sim.update("web", |s| s.rollback = Some(config(UpdateOrder::StopFirst, 1))).expect("accepted");
    assert_eq!(least_running(&mut sim, 200), 1, "{}", sim.ps("web"));
    assert_eq!((update_state(&sim), images(&sim)), (Some(UpdateState::RollbackCompleted), vec!["v1".to_owned(); 2]));
}

#[test]
fn an_update_does_not_wait_for_a_node_that_went_before_its_task_ran() {
    for drained in [false, true] {
        let mut sim = Sim::new(3);
        let spec = ServiceSpec { mode: ServiceMode::Global, ..with_update(0, UpdateConfig::default()) };
        sim.create(spec).expect("accepted");
        sim.run(secs(1));
        sim.update("web", |s| s.task.container.image = "slow".into()).expect("accepted");
        let on_its_way = |sim: &Sim| sim.state.tasks().find(|t| t.spec.container.image == "slow").cloned();
        let task = loop {
            sim.step();
            if let Some(task) = on_its_way(&sim) {
                break task;
            }
        };
        let node = (1..=3).find(|n| task.node == Some(node_id(*n))).expect("a node of the test");
        match drained {
            true => sim.availability(node, Availability::Drain),
            false => sim.down(node),
        }
        sim.run(secs(60));
        assert_eq!(update_state(&sim), Some(UpdateState::Completed), "{}", sim.ps("web"));
    }
}

#[test]
fn an_update_says_which_task_waits_for_what() {
    let mut sim = Sim::new(2);
    sim.create(with_update(2, UpdateConfig::default())).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| {
        s.task.container.image = "v2".into();
        s.task.reservations.memory_bytes = 1 << 40;
    })
    .expect("accepted");
    sim.run(secs(10));
    let message = |sim: &Sim| sim.service("web").update_status.clone().expect("an update").message;
    let waits = "update in progress; task web.1 waits: no suitable node (insufficient resources on 2 nodes); \
                 lower what its tasks reserve, or add a node";
    assert_eq!(message(&sim), waits);
    sim.events.clear();
    sim.run(secs(60));
    assert_eq!(sim.events, [], "it is said once");
    sim.update("web", |s| s.task.reservations.memory_bytes = 0).expect("accepted");
    sim.run(secs(30));
    assert_eq!(message(&sim), "update completed");
}

#[test]
fn scale_is_not_what_rollback_reverts() {
    let mut sim = Sim::new(2);
    sim.create(with_update(2, UpdateConfig::default())).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "v2".into()).expect("accepted");
    sim.run(secs(20));
    sim.scale("web", 4);
    sim.run(secs(2));
    let service = sim.service("web");
    let back = control::rollback_service(&sim.state, sim.now, &service.id, service.meta.version).expect("accepted");
    sim.accept(&back);
    sim.run(secs(40));
    assert_eq!((update_state(&sim), images(&sim)), (Some(UpdateState::RollbackCompleted), vec!["v1".to_owned(); 4]));
}

#[test]
fn an_update_that_another_overtook_changes_nothing() {
    let mut sim = Sim::new(1);
    sim.create(with_update(1, UpdateConfig::default())).expect("accepted");
    sim.run(secs(1));
    let seen = sim.service("web");
    sim.update("web", |s| s.task.container.env = vec!["A=1".into()]).expect("accepted");
    let mut spec = seen.spec.clone();
    spec.task.container.env = vec!["B=2".into()];
    let refused = control::update_service(&sim.state, sim.now, &seen.id, seen.meta.version, spec).expect_err("stale");
    assert_eq!(refused.code, control::Code::Aborted);
    assert!(refused.text.contains("it was changed since, try again"), "{refused}");
    assert_eq!(sim.service("web").spec.task.container.env, ["A=1"]);
}

#[test]
fn a_step_that_takes_too_long_counts_as_failed_and_says_what_it_waits_for() {
    for (label, limit) in [(None, 600), (Some("90s"), 90)] {
        let mut sim = Sim::new(2);
        let mut spec = with_update(2, UpdateConfig::default());
        spec.annotations.labels.extend(label.map(|text| ("orch.update.step-limit".to_owned(), text.to_owned())));
        sim.create(spec).expect("accepted");
        sim.run(secs(1));
        let change = |spec: &mut ServiceSpec| {
            spec.task.container.image = "v2".into();
            spec.task.reservations.memory_bytes = 1 << 50;
        };
        sim.update("web", change).expect("accepted");
        sim.run(secs(limit - 5));
        assert_eq!(update_state(&sim), Some(UpdateState::Updating), "{label:?}");
        sim.run(secs(15));
        let status = sim.service("web").update_status.clone().expect("an update");
        assert_eq!(status.state, UpdateState::Paused, "{label:?}");
        let expected = format!("not running within {limit} s: no suitable node");
        assert!(status.message.contains(&expected), "{status:?}");
    }
}

#[test]
fn a_step_without_a_limit_may_take_for_ever() {
    let mut sim = Sim::new(2);
    let mut spec = with_update(2, UpdateConfig::default());
    spec.annotations.labels.insert("orch.update.step-limit".into(), "0".into());
    sim.create(spec.clone()).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.container.image = "stuck".into()).expect("accepted");
    sim.run(secs(2000));
    assert_eq!(update_state(&sim), Some(UpdateState::Updating));
    for wrong in ["", "soon", "-1s", "5", "1d", "99999999999999999999h", "18446744073709551615s"] {
        spec.annotations.name = "other".into();
        spec.annotations.labels.insert("orch.update.step-limit".into(), wrong.into());
        let refused = sim.create(spec.clone()).expect_err(wrong).to_string();
        assert!(refused.contains("orch.update.step-limit") && refused.contains("90s"), "{refused}");
    }
}

#[test]
fn an_update_that_may_fail_goes_on_past_a_step_that_takes_too_long() {
    let mut sim = Sim::new(2);
    let config = UpdateConfig { failure_action: FailureAction::Continue, ..UpdateConfig::default() };
    sim.create(with_update(2, config)).expect("accepted");
    sim.run(secs(1));
    let change = |spec: &mut ServiceSpec| {
        spec.task.container.image = "v2".into();
        spec.task.reservations.memory_bytes = 1 << 50;
    };
    sim.update("web", change).expect("accepted");
    sim.run(secs(300));
    assert_eq!(update_state(&sim), Some(UpdateState::Updating));
    sim.run(secs(1000));
    assert_eq!(update_state(&sim), Some(UpdateState::Completed), "{:?}", sim.service("web").update_status);
    assert_eq!(images(&sim), ["v2"; 2]);
}
