//! Stacks that go while their tasks still stop, and come back meanwhile.

use orch_manager_core::{
    State,
    control::{self, Code, ControlError},
    resolve::{self, STACK_LABEL},
};
use orch_model::{
    Annotations, ConfigId, Kind, NetworkId, Object, ObjectId, SecretId,
    service::{FileRef, PublishMode, ServiceSpec, UpdateConfig},
};

use crate::{
    network::{network, on},
    sim::{Sim, port, secs, web},
};

const STOP_SECS: u64 = 8;

fn slow(nodes: u8) -> Sim {
    let mut sim = Sim::new(nodes);
    sim.stop_takes = secs(STOP_SECS);
    sim
}

/// One of a stack's services.
fn of_stack(mut spec: ServiceSpec, stack: &str) -> ServiceSpec {
    spec.annotations.labels.insert(STACK_LABEL.into(), stack.into());
    spec
}

fn data(sim: &mut Sim, kind: Kind, name: &str) -> Result<ObjectId, ControlError> {
    let annotations = Annotations { name: name.into(), ..Annotations::default() };
    let now = sim.now;
    let proposal = sim.with_ids(|state, ids| match kind {
        Kind::Secret => control::create_secret(state, now, ids, annotations, b"x".to_vec(), None),
        _ => control::create_config(state, now, ids, annotations, b"x".to_vec(), None),
    })?;
    sim.accept(&proposal);
    Ok(proposal.id)
}

fn file<Id>(id: Id, name: &str) -> FileRef<Id> {
    FileRef { id, name: name.into(), target: name.into(), uid: "0".into(), gid: "0".into(), mode: 0o444 }
}

fn remove(sim: &mut Sim, id: &ObjectId) {
    let proposal = control::remove_when_free(&sim.state, sim.now, id, false).expect("accepted");
    sim.accept(&proposal);
}

/// A stack of one service with a network, a secret and a config; their ids, in the order in which they are removed.
fn deploy(sim: &mut Sim, subnet: Option<&str>) -> Vec<ObjectId> {
    let network = network(sim, "shop_net", subnet).expect("accepted");
    let secret = data(sim, Kind::Secret, "shop_key").expect("accepted");
    let config = data(sim, Kind::Config, "shop_site").expect("accepted");
    let mut spec = of_stack(on("shop_db", 2, &network), "shop");
    spec.task.container.secrets = vec![file(secret.as_str().parse::<SecretId>().expect("an id"), "shop_key")];
    spec.task.container.configs = vec![file(config.as_str().parse::<ConfigId>().expect("an id"), "shop_site")];
    spec.endpoint.ports = vec![port(8080, 80, PublishMode::Ingress)];
    let service = sim.create(spec).expect("accepted");
    vec![ObjectId::Service(service), secret, config, ObjectId::Network(network)]
}

fn left(state: &State, ids: &[ObjectId]) -> usize {
    ids.iter().filter(|id| state.get(id).is_some()).count()
}

#[test]
fn what_a_stack_had_goes_after_its_last_task_and_its_names_at_once() {
    let mut sim = slow(2);
    let first = deploy(&mut sim, None);
    sim.run(secs(3));
    first.iter().for_each(|id| remove(&mut sim, id));
    for (kind, name) in [(Kind::Service, "shop_db"), (Kind::Network, "shop_net"), (Kind::Secret, "shop_key")] {
        assert!(resolve::id(&sim.state, kind, name).is_err(), "the {kind} is not found any more");
    }
    sim.run(secs(2));
    assert_eq!(left(&sim.state, &first), 4, "its tasks still stop");
    assert_eq!(sim.state.removing().count(), 4);
    // All names, and the published port, are taken by its successor, on a network of its own.
    let second = deploy(&mut sim, None);
    sim.run(secs(2 * STOP_SECS));
    assert_eq!((left(&sim.state, &first), left(&sim.state, &second)), (0, 4));
    assert_eq!(sim.state.removing().count(), 0);
    assert_eq!(sim.running("shop_db").values().sum::<usize>(), 2);
    assert_eq!(resolve::id(&sim.state, Kind::Network, "shop_net").ok().as_ref(), second.last());
}

#[test]
fn a_removal_is_part_of_the_state() {
    let mut sim = slow(2);
    let ids = deploy(&mut sim, None);
    sim.run(secs(3));
    ids.iter().for_each(|id| remove(&mut sim, id));
    sim.run(secs(1));
    // What another manager makes of a snapshot.
    sim.state = State::from_objects(sim.state.objects().collect(), sim.state.last_stamp());
    assert_eq!((left(&sim.state, &ids), sim.state.removing().count()), (4, 4));
    assert!(sim.state.named(Kind::Network, "shop_net").is_none());
    sim.run(secs(STOP_SECS + 2));
    assert_eq!(left(&sim.state, &ids), 0);
}

#[test]
fn a_service_of_a_stack_waits_for_its_namesake_to_stop() {
    // The earlier service; whether the later one has to wait.
    type Case = (&'static str, fn() -> ServiceSpec, bool);
    let cases: [Case; 4] = [
        ("the same", || of_stack(web("shop_db", "nginx", 2), "shop"), true),
        ("another one of the stack", || of_stack(web("shop_old", "nginx", 2), "shop"), false),
        ("of another stack", || of_stack(web("shop_db", "nginx", 2), "other"), false),
        ("of no stack", || web("shop_db", "nginx", 2), false),
    ];
    for (what, earlier, waits) in cases {
        let mut sim = slow(1);
        let id = sim.create(earlier()).expect("accepted");
        sim.run(secs(3));
        remove(&mut sim, &ObjectId::Service(id));
        sim.create(of_stack(web("shop_db", "nginx", 1), "shop")).expect("accepted");
        sim.run(secs(2));
        let tasks = sim.ps("shop_db");
        let said = "waiting for the removal of the earlier shop_db: 2 of its tasks still to stop on n1";
        assert_eq!(tasks.contains(said), waits, "{what}: {tasks}");
        assert_eq!(sim.running("shop_db").is_empty(), waits, "{what}");
        sim.run(secs(STOP_SECS + 2));
        assert_eq!(sim.running("shop_db").values().sum::<usize>(), 1, "{what}: {}", sim.ps("shop_db"));
    }
}

#[test]
fn a_node_that_is_down_holds_nobody_up() {
    let mut sim = slow(2);
    let ids = deploy(&mut sim, None);
    sim.run(secs(3));
    ids.iter().for_each(|id| remove(&mut sim, id));
    let _ = deploy(&mut sim, None);
    sim.run(secs(1));
    sim.down(2);
    sim.run(secs(STOP_SECS + 2));
    assert_eq!(sim.running("shop_db").values().sum::<usize>(), 2, "{}", sim.ps("shop_db"));
    assert_eq!(left(&sim.state, &ids), 4, "nobody knows what the tasks of n2 do");
    sim.up(2);
    sim.run(secs(STOP_SECS + 2));
    assert_eq!(left(&sim.state, &ids), 0);
}

#[test]
fn a_subnet_is_given_out_again_when_its_network_is_gone() {
    const SUBNET: &str = "10.90.0.0/24";
    let mut sim = slow(1);
    let first = deploy(&mut sim, Some(SUBNET));
    sim.run(secs(3));
    first.iter().for_each(|id| remove(&mut sim, id));
    let second = deploy(&mut sim, Some(SUBNET));
    let id: NetworkId = second[3].as_str().parse().expect("an id");
    let problem = sim.state.network(&id).and_then(|n| n.problem.clone()).unwrap_or_default();
    assert!(
        problem.contains("of network shop_net, which is being removed: this network gets it when that"),
        "{problem}"
    );
    sim.run(secs(STOP_SECS + 4));
    assert_eq!(left(&sim.state, &first), 0);
    assert!(sim.state.network(&id).is_some_and(|n| n.allocation.is_some() && n.problem.is_none()));
    assert_eq!(sim.running("shop_db").values().sum::<usize>(), 2);
}

#[test]
fn who_stays_keeps_what_it_uses() {
    let mut sim = slow(1);
    let mut ids = deploy(&mut sim, None);
    sim.run(secs(3));
    let service = ids.remove(0);
    for id in &ids {
        let refused = control::remove_when_free(&sim.state, sim.now, id, false).expect_err("in use");
        assert_eq!(refused.code, Code::FailedPrecondition);
        assert!(refused.text.contains("is in use by service shop_db"), "{refused}");
    }
    remove(&mut sim, &service);
    ids.iter().for_each(|id| remove(&mut sim, id));
    // Nobody comes to use what goes, whoever still knows its id; nor is it given up twice.
    let network: NetworkId = ids[2].as_str().parse().expect("an id");
    let refused = sim.create(on("late", 1, &network)).expect_err("the network goes");
    assert_eq!(refused.code, Code::NotFound);
    let Some(Object::Secret(secret)) = sim.state.get(&ids[0]) else { panic!("not a secret") };
    let mut late = web("late", "nginx", 1);
    late.task.container.secrets = vec![file(secret.id.clone(), "shop_key")];
    assert_eq!(sim.create(late).expect_err("the secret goes").code, Code::NotFound);
    sim.run(secs(STOP_SECS + 2));
    assert_eq!(left(&sim.state, &ids), 0);
}

#[test]
fn what_nobody_has_is_removed_at_once() {
    let mut sim = slow(1);
    let ids =
        [data(&mut sim, Kind::Secret, "s").expect("accepted"), data(&mut sim, Kind::Config, "c").expect("accepted")];
    ids.iter().for_each(|id| remove(&mut sim, id));
    assert_eq!((left(&sim.state, &ids), sim.state.removing().count()), (0, 0));
}

/// Only when the update is over does `--force` replace anything that it did not.
#[test]
fn what_an_update_has_yet_to_replace_is_left_to_it() {
    let mut sim = Sim::new(2);
    let secret = data(&mut sim, Kind::Secret, "key").expect("accepted");
    let id = secret.as_str().parse::<SecretId>().expect("an id");
    let mut spec = web("web", "nginx", 3);
    spec.task.container.secrets = vec![file(id.clone(), "key")];
    spec.update = Some(UpdateConfig { delay: secs(5), ..UpdateConfig::default() });
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |spec| spec.task.container.secrets.clear()).expect("accepted");
    sim.run(secs(2));
    let refused = control::remove_secret(&sim.state, sim.now, &id).expect_err("in use").text;
    assert!(refused.contains("(which the update of service web has yet to replace)"), "{refused}");
    sim.run(secs(30));
    control::remove_secret(&sim.state, sim.now, &id).expect("free now");
}
