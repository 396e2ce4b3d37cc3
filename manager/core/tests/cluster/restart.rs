//! The restart policy: delay, attempts, window, condition, back-off.

use orch_model::{
    Duration, Timestamp,
    cluster::UNLIMITED_TASK_HISTORY,
    service::{RestartCondition, RestartPolicy, ServiceSpec},
    task::TaskState,
};

use crate::sim::{Sim, check, secs, web};

fn with_policy(image: &str, policy: RestartPolicy) -> ServiceSpec {
    let mut spec = web("web", image, 1);
    spec.task.restart = policy;
    spec
}

/// The times between the ends of the service's tasks that are over.
fn pauses(sim: &Sim) -> Vec<Duration> {
    let id = sim.service("web").id.clone();
    let over = sim.state.tasks_of(&id).filter(|t| t.status.state.is_terminal());
    let mut times: Vec<Timestamp> = over.map(|t| t.status.at).collect();
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1].since(pair[0])).collect()
}

#[test]
fn a_failed_task_is_replaced_after_its_delay() {
    let mut sim = Sim::new(1);
    sim.create(web("web", "nginx", 1)).expect("accepted");
    sim.run(secs(1));
    sim.fail("web.1");
    sim.run(secs(4));
    check(
        &sim.ps("web"),
        "1 n1 Shutdown Failed: task: non-zero exit (1)
         1 n1 Ready Ready",
    );
    sim.run(secs(2));
    check(
        &sim.ps("web"),
        "1 n1 Shutdown Failed: task: non-zero exit (1)
         1 n1 Running Running",
    );
}

#[test]
fn after_max_attempts_the_slot_stays_as_it_is() {
    let mut sim = Sim::new(1);
    let policy = RestartPolicy { delay: secs(1), max_attempts: 2, ..RestartPolicy::default() };
    sim.create(with_policy("crash", policy)).expect("accepted");
    sim.run(secs(60));
    check(
        &sim.ps("web"),
        "1 n1 Shutdown Failed: exit 1
         1 n1 Shutdown Failed: exit 1
         1 n1 Shutdown Failed: exit 1",
    );
    // A changed spec clears the history.
    sim.update("web", |s| s.task.container.image = "nginx".into()).expect("accepted");
    sim.run(secs(2));
    assert_eq!(sim.running("web")["n1"], 1);
}

#[test]
fn attempts_outside_the_window_do_not_count() {
    let mut sim = Sim::new(1);
    let policy = RestartPolicy { delay: secs(1), max_attempts: 1, window: secs(3), ..RestartPolicy::default() };
    sim.create(with_policy("nginx", policy)).expect("accepted");
    for _ in 0..3 {
        sim.run(secs(5));
        assert_eq!(sim.running("web").get("n1"), Some(&1), "{}", sim.ps("web"));
        sim.fail("web.1");
    }
    sim.run(secs(2));
    sim.fail("web.1");
    sim.run(secs(10));
    assert!(sim.running("web").is_empty(), "two failures within the window:\n{}", sim.ps("web"));
}

#[test]
fn the_condition_is_kept() {
    for (image, condition, ends) in [
        ("once", RestartCondition::None, "1 n1 Shutdown Complete"),
        ("once", RestartCondition::OnFailure, "1 n1 Shutdown Complete"),
        ("crash", RestartCondition::None, "1 n1 Shutdown Failed: exit 1"),
    ] {
        let mut sim = Sim::new(1);
        sim.create(with_policy(image, RestartPolicy { condition, ..RestartPolicy::default() })).expect("accepted");
        sim.run(secs(20));
        check(&sim.ps("web"), ends);
    }
}

#[test]
fn a_place_that_fails_again_and_again_is_restarted_less_often() {
    let mut sim = Sim::new(1);
    let policy = RestartPolicy { delay: secs(1), ..RestartPolicy::default() };
    sim.create(with_policy("crash", policy)).expect("accepted");
    sim.run(secs(5));
    let early = pauses(&sim);
    assert!(early.iter().all(|d| *d < secs(2)), "{early:?}");
    sim.run(secs(600));
    let late = pauses(&sim);
    assert!(late.iter().all(|d| *d > secs(30) && *d <= secs(301)), "{late:?}");
    assert!(late.windows(2).all(|pair| pair[1] >= pair[0]), "{late:?}");
}

#[test]
fn no_more_than_the_history_is_kept() {
    let over = |limit| {
        let mut cluster = orch_manager_core::bootstrap::default_cluster_spec();
        cluster.task_history_limit = limit;
        let mut sim = Sim::with_spec(1, cluster);
        let policy = RestartPolicy { delay: Duration::from_millis(100), ..RestartPolicy::default() };
        sim.create(with_policy("crash", policy)).expect("accepted");
        sim.run(secs(120));
        sim.state.tasks().filter(|t| t.status.state == TaskState::Failed).count()
    };
    assert_eq!((over(5), over(7)), (5, 7));
    assert!(over(UNLIMITED_TASK_HISTORY) > 7);
}

#[test]
fn a_missing_image_is_said_and_tried_again_at_the_pace_of_the_delay() {
    let mut sim = Sim::new(1);
    sim.create(web("web", "missing", 1)).expect("accepted");
    sim.run(secs(21));
    check(
        &sim.ps("web"),
        "1 n1 Shutdown Rejected: No such image: missing
         1 n1 Shutdown Rejected: No such image: missing
         1 n1 Shutdown Rejected: No such image: missing
         1 n1 Shutdown Rejected: No such image: missing
         1 n1 Shutdown Rejected: No such image: missing
         1 n1 Ready Rejected: No such image: missing",
    );
    // The first replacement comes at once, to have its image there in time, but has its turn only after the delay.
    assert!(pauses(&sim)[1..].iter().all(|d| *d >= Duration::from_millis(4900)), "{:?}", pauses(&sim));
}

#[test]
fn a_replacement_waits_for_its_predecessor_for_a_minute_at_most() {
    let mut sim = Sim::new(1);
    sim.stop_takes = secs(90);
    sim.create(web("web", "nginx", 1)).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.task.force_update += 1).expect("accepted");
    sim.run(secs(58));
    check(
        &sim.ps("web"),
        "1 n1 Shutdown Running
         1 n1 Ready Ready",
    );
    sim.run(secs(4));
    check(
        &sim.ps("web"),
        "1 n1 Shutdown Running
         1 n1 Running Running",
    );
}

#[test]
fn a_changed_spec_does_not_inherit_the_long_delay() {
    let mut sim = Sim::new(1);
    let policy = RestartPolicy { delay: secs(1), ..RestartPolicy::default() };
    sim.create(with_policy("missing", policy)).expect("accepted");
    sim.run(secs(100));
    sim.update("web", |s| s.task.container.image = "nginx".into()).expect("accepted");
    sim.run(secs(3));
    assert_eq!(sim.running("web").get("n1"), Some(&1), "{}", sim.ps("web"));
}
