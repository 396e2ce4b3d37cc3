//! Jobs: how many run at once, what counts as done, what makes them run anew.

use orch_model::{
    node::Availability,
    service::{RestartCondition, ServiceMode, ServiceSpec, UpdateConfig},
    task::TaskState,
};

use crate::sim::{Sim, check, secs, web};

fn job(image: &str, max_concurrent: u64, total_completions: u64) -> ServiceSpec {
    ServiceSpec { mode: ServiceMode::ReplicatedJob { max_concurrent, total_completions }, ..web("job", image, 0) }
}

fn global_job(image: &str) -> ServiceSpec {
    ServiceSpec { mode: ServiceMode::GlobalJob, ..web("job", image, 0) }
}

fn count(sim: &Sim, state: TaskState) -> usize {
    sim.state.tasks().filter(|t| t.status.state == state).count()
}

#[test]
fn a_replicated_job_completes_so_often_and_runs_so_many_at_once() {
    let mut sim = Sim::new(2);
    sim.create(job("work", 2, 5)).expect("accepted");
    for _ in 0..200 {
        sim.step();
        let live = sim.state.tasks().filter(|t| !t.status.state.is_terminal()).count();
        assert!(live <= 2, "{live} tasks at once");
    }
    assert_eq!((count(&sim, TaskState::Complete), sim.state.tasks().count()), (5, 5));
    assert!(sim.ps("job").lines().all(|line| line.ends_with("Complete Complete")), "{}", sim.ps("job"));
    sim.events.clear();
    sim.run(secs(600));
    assert_eq!(sim.events, [], "a finished job is left alone");
}

#[test]
fn a_global_job_runs_once_on_every_node_also_on_a_later_one() {
    let mut sim = Sim::new(2);
    sim.availability(2, Availability::Drain);
    sim.create(global_job("once")).expect("accepted");
    sim.run(secs(2));
    assert_eq!(count(&sim, TaskState::Complete), 1, "not on the drained node");
    sim.availability(2, Availability::Active);
    sim.join(3);
    sim.run(secs(2));
    assert_eq!(count(&sim, TaskState::Complete), 3);
    sim.down(3);
    sim.run(secs(1));
    sim.up(3);
    sim.run(secs(10));
    assert_eq!(count(&sim, TaskState::Complete), 3, "what is done is not done again");
}

#[test]
fn a_job_runs_anew_by_force_or_when_its_work_changes_and_not_for_a_label() {
    let mut sim = Sim::new(2);
    sim.create(job("once", 1, 2)).expect("accepted");
    sim.run(secs(2));
    sim.update("job", |s| drop(s.annotations.labels.insert("team".into(), "a".into()))).expect("accepted");
    sim.run(secs(2));
    assert_eq!(count(&sim, TaskState::Complete), 2);
    sim.update("job", |s| s.task.force_update += 1).expect("accepted");
    sim.run(secs(2));
    assert_eq!(count(&sim, TaskState::Complete), 4);
    sim.update("job", |s| s.task.container.args = vec!["other".into()]).expect("accepted");
    sim.run(secs(2));
    assert_eq!(count(&sim, TaskState::Complete), 6);
    assert!(sim.service("job").update_status.is_none(), "a job has no rolling update");
    sim.update("job", |s| s.mode = ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 3 })
        .expect("accepted");
    sim.run(secs(2));
    assert_eq!(count(&sim, TaskState::Complete), 7, "more completions are only added");
    sim.update("job", |s| s.mode = ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 1 })
        .expect("accepted");
    sim.run(secs(2));
    assert_eq!(sim.state.tasks().filter(|t| t.slot > 1).count(), 0, "what is too many is forgotten");
}

#[test]
fn a_new_run_waits_until_the_old_one_is_gone() {
    let mut sim = Sim::new(1);
    sim.stop_takes = secs(4);
    sim.create(job("nginx", 1, 1)).expect("accepted");
    sim.run(secs(1));
    sim.update("job", |s| s.task.force_update += 1).expect("accepted");
    for _ in 0..60 {
        sim.step();
        let live = sim.state.tasks().filter(|t| t.status.state >= TaskState::Assigned && !t.status.state.is_terminal());
        assert!(live.count() <= 1, "{}", sim.ps("job"));
    }
    check(
        &sim.ps("job"),
        "1 n1 Shutdown Shutdown
         1 n1 Running Running",
    );
}

#[test]
fn a_failed_task_of_a_job_is_tried_again_as_often_as_the_policy_allows() {
    for (condition, attempts, expected) in
        [(RestartCondition::Any, 2, 3), (RestartCondition::OnFailure, 1, 2), (RestartCondition::None, 0, 1)]
    {
        let mut sim = Sim::new(1);
        let mut spec = job("crash", 1, 2);
        spec.task.restart.condition = condition;
        spec.task.restart.max_attempts = attempts;
        sim.create(spec).expect("accepted");
        sim.run(secs(300));
        let of_first = sim.state.tasks().filter(|t| t.slot == 1).count();
        assert_eq!(of_first, expected, "{condition:?} {attempts}\n{}", sim.ps("job"));
        assert!(sim.state.tasks().any(|t| t.slot == 2), "a completion that cannot be had does not hold up the others");
        sim.events.clear();
        sim.run(secs(600));
        assert_eq!(sim.events, []);
    }
}

#[test]
fn a_job_whose_node_is_lost_runs_elsewhere_and_one_without_history_stays_done() {
    let mut cluster = orch_manager_core::bootstrap::default_cluster_spec();
    cluster.task_history_limit = 0;
    let mut sim = Sim::with_spec(2, cluster);
    let mut spec = job("work", 1, 1);
    spec.task.placement.constraints = vec!["node.role == worker".into()];
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    sim.down(2);
    sim.run(secs(1));
    assert_eq!(count(&sim, TaskState::Complete), 0);
    sim.update("job", |s| s.task.placement.constraints.clear()).expect("accepted");
    sim.run(secs(60));
    assert_eq!(count(&sim, TaskState::Complete), 1, "{}", sim.ps("job"));
    assert_eq!(
        sim.state.tasks().filter(|t| t.status.state == TaskState::Running).count(),
        1,
        "the lost one is unknown"
    );
}

#[test]
fn jobs_take_no_update_settings_and_need_some_concurrency() {
    let mut sim = Sim::new(1);
    let with_update = ServiceSpec { update: Some(UpdateConfig::default()), ..job("once", 1, 1) };
    let refused = sim.create(with_update).expect_err("refused").to_string();
    assert!(refused.contains("Jobs may not have an update config"), "{refused}");
    let refused = sim.create(job("once", 0, 1)).expect_err("refused").to_string();
    assert!(refused.contains("max-concurrent"), "{refused}");
    sim.create(job("once", 1, 1)).expect("accepted");
    sim.run(secs(1));
    let service = sim.service("job");
    sim.update("job", |s| s.task.container.args = vec!["x".into()]).expect("accepted");
    sim.run(secs(1));
    let back =
        orch_manager_core::control::rollback_service(&sim.state, sim.now, &service.id, sim.service("job").meta.version);
    sim.accept(&back.expect("there is a previous spec"));
    sim.run(secs(1));
    assert!(sim.service("job").spec.task.container.args.is_empty());
    assert_eq!(count(&sim, TaskState::Complete), 3, "going back runs it anew too");
}
