//! One-off containers of a whole worker.

use std::time::Duration;

use orch_proto::wire::{ContainerNetwork, CreateContainerRequest, LocalNetwork, LocalRestart};
use tokio::{sync::oneshot, time::timeout};

use super::{
    node::{Worker, alive},
    *,
};
use crate::local::{LocalError, One};

/// For what needs no network.
const NO_NETWORK: &str = "none";

fn request(command: &[&str], restart: &str) -> CreateContainerRequest {
    let restart = Some(LocalRestart { condition: restart.to_owned(), max_retries: 0 });
    CreateContainerRequest { spec: Some(task(1, "box", command).spec.to_proto()), restart, ..Default::default() }
}

async fn started(worker: &Worker, request: CreateContainerRequest) -> Arc<One> {
    let locals = worker.agent.locals.clone();
    let work = async move {
        let one = locals.create(request).await.unwrap();
        locals.start(&one, None).await.unwrap();
        one
    };
    worker.run(work).await
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_no_end_for_rm() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let locals = &worker.agent.locals;
    let request =
        CreateContainerRequest { auto_remove: true, network: NO_NETWORK.to_owned(), ..request(&["sleep", "1000"], "") };
    let unused = locals.create(request.clone()).await.unwrap();
    assert!(matches!(locals.restart(&unused, "NOSUCH", None).await, Err(LocalError::Signal(_))));
    assert!(locals.knows(&unused.id), "nothing was done");
    let one = started(&worker, request).await;
    let before = one.container().unwrap().pid();
    locals.restart(&one, "KILL", None).await.unwrap();
    assert!(!alive(before) && alive(one.container().unwrap().pid()));
    locals.stop(&one, "KILL", None).await.unwrap();
    wait_until(|| !locals.knows(&one.id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_worker_finishes_a_removal_as_it_was_asked_for() {
    let node = Node::new().await;
    let mut worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    // What was noted, whether it has `--rm`, and whether its volumes go: with that they do also when nothing was noted.
    for (volumes_go, auto_remove, want) in [(true, false, true), (false, false, false), (false, true, true)] {
        let mut spec = task(1, "box", &["sleep", "1000"]).spec.as_ref().clone();
        spec.container.mounts = vec![Mount { kind: MountKind::Volume, target: "/data".to_owned(), ..Mount::default() }];
        let request = CreateContainerRequest {
            spec: Some(spec.to_proto()),
            network: NO_NETWORK.to_owned(),
            ..CreateContainerRequest::default()
        };
        let one = started(&worker, request).await;
        worker.agent.locals.stop(&one, "KILL", None).await.unwrap();
        let before = worker.agent.host.volumes.list().unwrap().len();
        let state = LocalState::Removing.into();
        let record = wire::LocalContainer { state, volumes_go, auto_remove, ..one.now().record.clone() };
        drop(worker);
        node.records().save_local(&record).unwrap();
        worker = node.worker().await;
        wait_until(|| !worker.agent.locals.knows(&one.id)).await;
        let gone = before - worker.agent.host.volumes.list().unwrap().len();
        assert_eq!(gone == 1, want, "{volumes_go} {auto_remove}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_hears_that_it_is_not_restarted() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let locals = &worker.agent.locals;
    for removed in [false, true] {
        let request =
            CreateContainerRequest { network: NO_NETWORK.to_owned(), ..request(&["sh", "-c", "exit 3"], "always") };
        let one = started(&worker, request).await;
        // The pause after this one is long.
        wait_until(|| one.now().record.restart_count == 4).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(one.state(), LocalState::Restarting);
        let waits = timeout(Duration::from_secs(10), locals.wait(&one));
        let ends = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if removed {
                locals.remove(&one, true, true).await.unwrap();
            } else {
                locals.stop(&one, "", None).await.unwrap();
            }
        };
        assert_eq!(tokio::join!(waits, ends).0.expect("it waits for ever").code, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_a_network_is_looked_for_stays_so() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let locals = &worker.agent.locals;
    let one = started(&worker, request(&["sleep", "1000"], "always")).await;
    let before = one.container().unwrap().pid();
    let network = ContainerNetwork { network: "nosuch".to_owned(), ..ContainerNetwork::default() };
    let dies = async {
        node.heard.wait("networks ").await;
        kill(before);
        wait_until(|| one.state() == LocalState::Restarting).await;
    };
    let (connected, ()) = tokio::join!(locals.connect(&one, network), dies);
    assert!(connected.is_err());
    wait_until(|| one.container().is_some_and(|container| container.pid() != before)).await;
    assert!(one.now().record.networks.is_empty());
    locals.remove(&one, true, true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_others_cannot_find_is_not_given() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let locals = &worker.agent.locals;
    locals.create_network(LocalNetwork { name: "own".to_owned(), ..LocalNetwork::default() }).await.unwrap();
    let network = ContainerNetwork { network: "own".to_owned(), ..ContainerNetwork::default() };
    let request = CreateContainerRequest {
        name: "before".to_owned(),
        networks: vec![network],
        ..request(&["sleep", "1000"], "")
    };
    let one = started(&worker, request).await;
    *node.held.lock().unwrap() = Some(oneshot::channel().1);
    assert!(locals.rename(&one, "after").await.is_err());
    assert_eq!(one.name(), "before");
    locals.rename(&one, "after").await.unwrap();
    assert_eq!(one.name(), "after");
    locals.remove(&one, true, true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_stopped_whatever_else_is_done_to_it() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let locals = &worker.agent.locals;
    locals.create_network(LocalNetwork { name: "own".to_owned(), ..LocalNetwork::default() }).await.unwrap();
    let network = ContainerNetwork { network: "own".to_owned(), ..ContainerNetwork::default() };
    for killed in [false, true] {
        let request =
            CreateContainerRequest { networks: vec![network.clone()], ..request(&["sleep", "1000"], "always") };
        let one = started(&worker, request).await;
        let (attaches, held) = oneshot::channel();
        *node.held.lock().unwrap() = Some(held);
        node.heard.log.lock().unwrap().clear();
        let stops = async {
            node.heard.wait(&format!("attach {}", one.id)).await;
            let stopped = async {
                if killed {
                    locals.kill(&one, "").await
                } else {
                    locals.stop(&one, "", Some(Duration::from_millis(200))).await
                }
            };
            timeout(Duration::from_secs(10), stopped).await.expect("it waits for netd").unwrap();
            assert!(one.now().record.stopped);
            attaches.send(()).unwrap();
        };
        let (renamed, ()) = tokio::join!(locals.rename(&one, "after"), stops);
        renamed.unwrap();
        wait_until(|| one.state() == LocalState::Exited).await;
        assert!(!node.paths.netns(&one.id).exists());
        locals.remove(&one, true, true).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_before_it_is_attached_again_leaves_no_namespace() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let one = started(&worker, request(&["sleep", "1000"], "")).await;
    let (pid, id) = (one.container().unwrap().pid(), one.id.clone());
    drop(worker);
    node.heard.log.lock().unwrap().clear();
    let (attaches, held) = oneshot::channel();
    *node.held.lock().unwrap() = Some(held);
    let worker = node.worker().await;
    node.heard.wait(&format!("attach {id}")).await;
    kill(pid);
    let one = worker.agent.locals.find(&container_id_of(&id)).unwrap();
    wait_until(|| one.container().is_none()).await;
    attaches.send(()).unwrap();
    let detached = || node.heard.log.lock().unwrap().iter().filter(|line| line.starts_with("detach ")).count() == 2;
    wait_until(detached).await;
    assert!(!node.paths.netns(&id).exists());
}
