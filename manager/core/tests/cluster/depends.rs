//! Services that wait for others.

use orch_model::service::{Dependency, DependencyCondition, ServiceMode, ServiceSpec};

use crate::sim::{Sim, secs, web};

fn after(name: &str, other: &str, condition: DependencyCondition, required: bool) -> ServiceSpec {
    ServiceSpec { depends_on: vec![Dependency { service: other.into(), condition, required }], ..web(name, "nginx", 1) }
}

#[test]
fn first_tasks_wait_until_the_other_service_runs() {
    let mut sim = Sim::new(2);
    sim.create(after("web", "db", DependencyCondition::Healthy, true)).expect("accepted");
    sim.run(secs(2));
    assert!(sim.ps("web").contains("Pending: waiting for service db, which does not exist"), "{}", sim.ps("web"));
    let mut db = web("db", "nginx", 2);
    db.task.placement.constraints = vec!["node.labels.disk == ssd".into()];
    sim.create(db).expect("accepted");
    sim.run(secs(2));
    let text = sim.ps("web");
    assert!(text.contains("waiting for service db: 0 of 2 tasks running and healthy"), "{text}");
    sim.edit_node(2, |n| drop(n.spec.annotations.labels.insert("disk".into(), "ssd".into())));
    sim.run(secs(5));
    assert!(sim.ps("web").contains("Running Running"), "{}", sim.ps("web"));
    // What runs once waits no more, whatever becomes of the other.
    sim.scale("db", 5);
    sim.down(2);
    sim.run(secs(1));
    sim.fail("web.1");
    sim.run(secs(30));
    assert!(sim.ps("web").contains("Running Running"), "{}", sim.ps("web"));
}

#[test]
fn a_job_is_waited_for_until_it_is_complete() {
    let mut sim = Sim::new(2);
    sim.create(ServiceSpec {
        mode: ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 2 },
        ..web("migrate", "once", 0)
    })
    .expect("accepted");
    sim.create(after("web", "migrate", DependencyCondition::Completed, true)).expect("accepted");
    sim.create(after("eager", "migrate", DependencyCondition::Started, true)).expect("accepted");
    sim.create(after("free", "nobody", DependencyCondition::Healthy, false)).expect("accepted");
    let mut waited = false;
    for _ in 0..200 {
        sim.step();
        let done = sim.ps("migrate").matches("Complete Complete").count();
        let web = sim.ps("web");
        waited |= web.contains("of 2 tasks completed");
        assert!(done == 2 || !web.contains("Running Running"), "{done} done, yet {web}");
    }
    assert!(waited, "web had to wait");
    for name in ["web", "eager", "free"] {
        assert!(sim.ps(name).contains("Running Running"), "{}", sim.ps(name));
    }
}
