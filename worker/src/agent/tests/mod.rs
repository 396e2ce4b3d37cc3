//! The whole worker against a manager and a netd of the test's own. Needs root, busybox and the shim example (`cargo
//! test` builds it).

mod node;
mod one_off;

use std::fs;

use orch_model::{
    Annotations, Meta, SecretId,
    node::{Encryption, TunnelKey},
    secret::Secret,
    service::{FileRef, Mount, MountKind},
};
use orch_proto::wire::{ExecStart, LocalState, LogOptions, StreamAnnouncement, stream_announcement};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    time::Instant,
};

use self::node::alive;
pub(crate) use self::node::{Node, import_box, task, task_with, wait_until};
use super::*;
use crate::runtime::{ContainerPlan, HostOptions, ImageDefaults, LogFiles};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_is_watched_and_stops() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let script = "cat /etc/hosts /etc/resolv.conf /data/seed; echo started; sleep 1000";
    let mut spec = task(1, "box", &["sh", "-c", script]).spec.container.clone();
    spec.mounts = vec![Mount {
        kind: MountKind::Volume,
        source: "seeded".to_owned(),
        target: "/data".to_owned(),
        ..Mount::default()
    }];
    let web = task_with(1, spec);
    node.assign(&[(&web, TaskState::Ready)]);
    node.wait(&web, TaskState::Ready).await;
    assert!(!node.heard.has(&format!("{} Starting", web.id)));
    node.heard.wait("ack 2").await;
    node.assign(&[(&web, TaskState::Running)]);
    node.wait(&web, TaskState::Running).await;
    node.heard.wait("heartbeat").await;

    let announce =
        |id: &str, what| StreamAnnouncement { stream_id: id.to_owned(), task_id: web.id.to_string(), what: Some(what) };
    let logs = LogOptions { follow: true, stdout: true, stderr: true, ..Default::default() };
    node.streams.send_replace(vec![announce("l", stream_announcement::What::Logs(logs))]);
    node.heard.wait("log started").await;
    for line in ["hello l", "log 10.9.0.7\t", "log nameserver 127.0.0.11", "log from the image"] {
        assert!(node.heard.has(line), "{line}");
    }
    let exec = ExecStart { argv: ["sh", "-c", "echo inside; exit 3"].map(str::to_owned).into(), ..Default::default() };
    node.streams.send_replace(vec![announce("e", stream_announcement::What::Exec(exec))]);
    node.heard.wait("exit 3").await;
    assert!(node.heard.has("stdout inside"));

    // Whoever asked is gone before the command ends.
    let (events, target) = (&worker.agent.host.events, Target::of_task(&worker.agent.host, &web.id).unwrap());
    let argv = ["sh", "-c", "trap '' HUP; echo set; sleep 1; exit 4"].map(str::to_owned);
    let start = ExecStart { argv: argv.into(), ..Default::default() };
    let (outputs, mut printed) = tokio::sync::mpsc::channel(1);
    let listens_once = async {
        printed.recv().await.unwrap();
        drop(printed);
    };
    let left = super::exec(events, target, &start, futures::stream::pending(), outputs);
    tokio::join!(left, listens_once).0.unwrap();
    let deaths = || events.listen(1).0.iter().filter(|event| event.action == "exec_die").count();
    assert_eq!(deaths(), 1);
    wait_until(|| deaths() == 2).await;

    node.assign(&[(&web, TaskState::Shutdown)]);
    node.wait(&web, TaskState::Shutdown).await;
    let down = node.heard.position(&format!("down {}", web.id)).unwrap();
    assert!(down < node.heard.position(&format!("{} Shutdown", web.id)).unwrap());
    node.heard.wait(&format!("detach {}", web.id)).await;
    node.assign(&[]);
    let gone = || !node.paths.worker_dir().join("containers").join(web.id.as_str()).exists();
    wait_until(gone).await;
    wait_until(|| worker.agent.host.entries().is_empty()).await;

    let told = worker.agent.host.events.listen(1).0;
    let actions: Vec<_> = told.iter().map(|event| event.action.as_str()).collect();
    let command = "sh -c echo inside; exit 3";
    let (made, ran) = (format!("exec_create: {command}"), format!("exec_start: {command}"));
    let left = "sh -c trap '' HUP; echo set; sleep 1; exit 4";
    let (made_left, ran_left) = (format!("exec_create: {left}"), format!("exec_start: {left}"));
    let commands = [made.as_str(), &ran, "exec_die", &made_left, &ran_left, "exec_die"];
    let all = [&["create", "start"][..], &commands, &["kill", "kill", "die", "stop", "destroy"]].concat();
    assert_eq!(actions, all);
    for (event, key, value) in [
        (0, "name", web.container_name().as_str()),
        (1, "image", "box"),
        (1, "com.docker.swarm.service.name", web.service_annotations.name.as_str()),
        (1, "com.docker.swarm.task.id", web.id.as_str()),
        (4, "exitCode", "3"),
        (7, "exitCode", "4"),
        (8, "signal", "15"),
        (9, "signal", "9"),
        (10, "exitCode", "137"),
    ] {
        assert_eq!(told[event].attributes[key], value, "{event} {key}");
    }
    assert!(told.iter().all(|event| event.kind == "container" && event.id == container_id(&web)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tasks_volume_stays_while_a_one_off_container_has_it() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let volume = |source: &str| Mount {
        kind: MountKind::Volume,
        source: source.to_owned(),
        target: "/data".to_owned(),
        ..Mount::default()
    };
    let mut spec = task(1, "box", &["sleep", "1000"]).spec.container.clone();
    spec.mounts = vec![volume("")];
    let web = task_with(1, spec);
    node.assign(&[(&web, TaskState::Running)]);
    node.wait(&web, TaskState::Running).await;
    let (name, ..) = worker.agent.host.volumes.of_task(&web.id).remove(0);
    let mut own = task(2, "box", &["sleep", "1000"]).spec.as_ref().clone();
    own.container.mounts = vec![volume(&name)];
    let request = wire::CreateContainerRequest { spec: Some(own.to_proto()), ..Default::default() };
    let one = worker.agent.locals.create(request).await.unwrap();

    node.assign(&[]);
    wait_until(|| worker.agent.host.entries().is_empty()).await;
    let names =
        || -> Vec<String> { worker.agent.host.volumes.list().unwrap().into_iter().map(|volume| volume.name).collect() };
    assert_eq!(names(), [name]);
    worker.agent.locals.remove(&one, true, true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_netd_does_not_take_away_goes_later() {
    let node = Node::new().await;
    let worker = node.worker().await;
    let (host, locals) = (&worker.agent.host, &worker.agent.locals);
    import_box(&host.images.store);
    let web = task(1, "box", &["sleep", "1000"]);
    node.assign(&[(&web, TaskState::Running)]);
    node.wait(&web, TaskState::Running).await;
    let create = async |n, command: &[&str]| {
        let spec = Some(task(n, "box", command).spec.as_ref().to_proto());
        locals.create(wire::CreateContainerRequest { spec, ..Default::default() }).await.unwrap()
    };
    let (ends, again) = (create(2, &["sh", "-c", "sleep 1; exit 5"]).await, create(3, &["sleep", "1000"]).await);

    // Nobody waits for netd, and nobody else would take the namespaces away.
    *node.refusals.lock().unwrap() = u32::MAX;
    locals.start(&ends, None).await.unwrap();
    assert_eq!(locals.wait(&ends).await.code, 5);
    let codes: Vec<i32> = host.store.locals().unwrap().into_iter().map(|record| record.exit_code).collect();
    assert!(codes.contains(&5), "{codes:?}");
    locals.start(&again, None).await.unwrap();
    locals.stop(&again, "KILL", None).await.unwrap();
    node.assign(&[(&web, TaskState::Shutdown)]);
    node.wait(&web, TaskState::Shutdown).await;
    node.assign(&[]);
    wait_until(|| host.entries().is_empty()).await;
    assert!(!node.heard.has("detach"));

    *node.refusals.lock().unwrap() = 1;
    // Who is attached again has a namespace of its own, which does not go.
    locals.start(&again, None).await.unwrap();
    for id in [&web.id, &ends.id, &again.id] {
        node.heard.wait(&format!("detach {id}")).await;
    }
    let log = node.heard.log.lock().unwrap().clone();
    let last = |line: String| log.iter().rposition(|heard| *heard == line);
    assert!(last(format!("detach {}", again.id)) < last(format!("attach {}", again.id)), "{log:#?}");
    let detached = log.iter().filter(|line| line.starts_with("detach")).count();
    assert_eq!(detached, 3, "{log:#?}");
    locals.remove(&again, true, true).await.unwrap();
}

/// What a worker did not get rid of before it ended, the next one does not know; it goes all the same, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_nobody_knows_any_more_goes() {
    let node = Node::new().await;
    let (web, other) = (task(1, "box", &["sleep", "1000"]), task(2, "box", &["sleep", "1000"]));
    {
        let worker = node.worker().await;
        import_box(&worker.agent.host.images.store);
        node.assign(&[(&web, TaskState::Running), (&other, TaskState::Running)]);
        node.wait(&web, TaskState::Running).await;
        node.wait(&other, TaskState::Running).await;
        *node.refusals.lock().unwrap() = u32::MAX;
        node.assign(&[(&web, TaskState::Shutdown), (&other, TaskState::Running)]);
        node.wait(&web, TaskState::Shutdown).await;
        node.assign(&[(&other, TaskState::Running)]);
        wait_until(|| worker.agent.host.entries().len() == 1).await;
    }
    assert!(!node.heard.has("detach"));
    *node.refusals.lock().unwrap() = 0;
    let _worker = node.worker().await;
    node.heard.wait(&format!("detach {}", web.id)).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let log = node.heard.log.lock().unwrap().clone();
    assert_eq!(log.iter().filter(|line| line.starts_with("detach")).count(), 1, "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_reported_in_words() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let no_image = task(1, "127.0.0.1:1/nosuch", &[]);
    let exits = task(2, "box", &["sh", "-c", "exit 3"]);
    let no_command = task(3, "box", &["nosuch"]);
    let done = task(4, "box", &["echo", "done"]);
    node.assign(&[&no_image, &exits, &no_command, &done].map(|task| (task, TaskState::Running)));
    for (task, expected) in [
        (&no_image, "Rejected No such image: 127.0.0.1:1/nosuch:latest (no route to registry 127.0.0.1:1"),
        (&exits, "Failed task: non-zero exit (3)"),
        (&no_command, "Failed starting container failed: "),
        (&done, "Complete "),
    ] {
        node.heard.wait(&format!("{} {expected}", task.id)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_process() {
    node::work_in_this_process().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_finds_its_containers_again() {
    let node = Node::new().await;
    import_box(&node.store());
    let worker = node.worker_process();
    let (stays, ends) = (task(1, "box", &["sleep", "1000"]), task(2, "box", &["sh", "-c", "sleep 1; exit 5"]));
    node.assign(&[(&stays, TaskState::Running), (&ends, TaskState::Running)]);
    node.wait(&stays, TaskState::Running).await;
    node.wait(&ends, TaskState::Running).await;
    let (pid, ended) = (node.pid(&stays), node.pid(&ends));
    drop(worker);
    wait_until(|| !alive(ended)).await;
    node.heard.log.lock().unwrap().clear();

    let worker = node.worker_process();
    node.heard.wait(&format!("{} Failed task: non-zero exit (5)", ends.id)).await;
    node.heard.wait(&format!("attach {}", stays.id)).await;
    assert!(alive(pid));
    assert!(!node.heard.has(&format!("{} Starting", stays.id)));
    drop(worker);
    // The next one hears of the stop before it has anything else to do.
    node.assign(&[(&stays, TaskState::Shutdown)]);
    let _worker = node.worker_process();
    node.wait(&stays, TaskState::Shutdown).await;
    wait_until(|| !alive(pid)).await;
}

/// What a worker leaves that dies between making a one-off container and starting it.
async fn leave_unstarted(node: &Node, mut record: wire::LocalContainer, state: LocalState) {
    record.state = state.into();
    make_unstarted(node, &record.task_id.parse().unwrap()).await;
    node.records().save_local(&record).unwrap();
}

async fn make_unstarted(node: &Node, id: &TaskId) {
    let rootfs = node.paths.run.join("root").join(id.as_str());
    for folder in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    let plan = ContainerPlan {
        container_id: container_id_of(id),
        rootfs,
        image: ImageDefaults::default(),
        spec: &task(1, "box", &["/bin/busybox", "sleep", "1000"]).spec,
        netns: None,
        host_network: false,
        binds: Vec::new(),
        log: LogFiles::at(node.paths.run.join("log")),
        options: HostOptions::default(),
        users: None,
        task_id: id.clone(),
    };
    node.runtime().create(&plan).await.unwrap();
}

/// From now on its shim says how it is and does nothing: so it is with what the kernel does not let end.
fn make_endless(node: &Node, id: &TaskId) {
    let socket = node.paths.shim_dir(id).join("shim.sock");
    fs::remove_file(&socket).unwrap();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = BufReader::new(connection);
                let mut asked = String::new();
                while connection.read_line(&mut asked).await.is_ok_and(|len| len > 0) {
                    if std::mem::take(&mut asked).contains("state") {
                        let answer = b"{\"is\":\"state\",\"pid\":0,\"started\":false}\n";
                        connection.write_all(answer).await.unwrap();
                    }
                }
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_go_and_does_not_end_keeps_no_worker_from_its_managers() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let request = wire::CreateContainerRequest {
        spec: Some(task(1, "box", &["sleep", "1000"]).spec.to_proto()),
        network: "none".to_owned(),
        ..Default::default()
    };
    let one = worker.agent.locals.create(request).await.unwrap();
    drop(worker);
    let (one, record) = (one.id.clone(), one.now().record.clone());
    leave_unstarted(&node, record, LocalState::Created).await;
    let web = task(2, "box", &["sleep", "1000"]);
    leave_assigned(&node, &web);
    let nobodys = TaskId::from_random(77);
    for id in [&web.id, &nobodys] {
        make_unstarted(&node, id).await;
    }
    for id in [&web.id, &nobodys, &one] {
        make_endless(&node, id);
    }
    let before = Instant::now();
    let worker = node.worker().await;
    let took = before.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(worker.agent.knows(&web.id) && worker.agent.knows(&one));
    // Nothing is made in its place before it is given up.
    let one = worker.agent.locals.find(&container_id_of(&one)).unwrap();
    assert!(timeout(Duration::from_millis(200), worker.agent.locals.start(&one, None)).await.is_err());
    assert!(!node.heard.has(&format!("attach {}", web.id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_died_between_making_and_starting_a_one_off_container_is_made_good() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let mut records = Vec::new();
    for n in [1, 2] {
        let spec = task(n, "box", &["sleep", "1000"]).spec.to_proto();
        let restart = Some(wire::LocalRestart { condition: "always".to_owned(), max_retries: 0 });
        let network = "none".to_owned();
        let request = wire::CreateContainerRequest { spec: Some(spec), restart, network, ..Default::default() };
        records.push(worker.agent.locals.create(request).await.unwrap().now().record.clone());
    }
    drop(worker);
    let [again, never] = [0, 1].map(|n: usize| records[n].task_id.parse::<TaskId>().unwrap());
    leave_unstarted(&node, records.remove(0), LocalState::Restarting).await;
    leave_unstarted(&node, records.remove(0), LocalState::Created).await;

    let worker = node.worker().await;
    let find = |id: &TaskId| worker.agent.locals.find(&container_id_of(id)).unwrap();
    let (again, never) = (find(&again), find(&never));
    wait_until(|| again.state() == LocalState::Running && again.container().is_some_and(|one| alive(one.pid()))).await;
    assert_eq!(again.now().record.restart_count, 1);
    assert!(never.state() == LocalState::Created && never.container().is_none());
    // What was left does not stand in the way of a start either.
    worker.agent.locals.start(&never, None).await.unwrap();
    for one in [again, never] {
        worker.agent.locals.remove(&one, true, true).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_tasks_that_ran_have_failed() {
    let node = Node::new().await;
    import_box(&node.store());
    let worker = node.worker_process();
    let web = task(1, "box", &["sleep", "1000"]);
    node.assign(&[(&web, TaskState::Running)]);
    node.wait(&web, TaskState::Running).await;
    drop(worker);
    // The container, its shim and all of /run are gone.
    for found in node.runtime().recover().await.unwrap() {
        delete_container(found).await;
    }
    fs::remove_dir_all(node.paths.shims_dir()).unwrap();
    let _worker = node.worker_process();
    node.heard.wait(&format!("{} Failed node restarted", web.id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_netd_is_told_everything_again() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let web = task(1, "box", &["sleep", "1000"]);
    node.assign(&[(&web, TaskState::Running)]);
    node.wait(&web, TaskState::Running).await;
    node.heard.log.lock().unwrap().clear();
    node.restart_netd();
    node.heard.wait(&format!("attach {}", web.id)).await;
    assert!(node.heard.position("desired") < node.heard.position("attach"));
    assert!(!node.heard.has(&format!("{} ", web.id)), "the task itself is not touched");
}

/// A key that was made anew, or the first word of a daemon that was late.
#[tokio::test(flavor = "multi_thread")]
async fn managers_are_told_when_the_node_encrypts_otherwise() {
    let node = Node::new().await;
    let _worker = node.worker().await;
    node.heard.wait("encryption Unavailable(\"for a test\")").await;
    *node.encryption.lock().unwrap() = Encryption::Key(TunnelKey([7; 32]));
    node.heard.wait("encryption Key(TunnelKey([7, 7,").await;
}

/// A secret, and a task that prints it.
fn with_secret() -> (Secret, Arc<Task>) {
    let id = SecretId::from_random(5);
    let secret = Secret {
        id: id.clone(),
        meta: Meta::default(),
        annotations: Annotations { name: "key".to_owned(), ..Default::default() },
        data: b"hush-hush".to_vec(),
        template: None,
        removing: false,
    };
    let mut spec = task(1, "box", &["sh", "-c", "cat /run/secrets/key; echo; sleep 1000"]).spec.container.clone();
    let file = FileRef {
        id,
        name: "key".to_owned(),
        target: String::new(),
        uid: "0".to_owned(),
        gid: "0".to_owned(),
        mode: 0o444,
    };
    spec.secrets = vec![file];
    (secret, task_with(1, spec))
}

/// The record of a task for which nothing has been done.
fn leave_assigned(node: &Node, task: &Arc<Task>) {
    let assigned = TaskAssignment { task: task.clone(), desired_state: TaskState::Running };
    let record = wire::WorkerTaskRecord {
        assignment: Some(Assignment::Task(assigned).to_proto()),
        status: Some(task.status.to_proto()),
        ..Default::default()
    };
    node.records().save_task(&task.id, &record, false).unwrap();
}

/// Its secret is nowhere until managers have told of it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_worker_was_preparing_waits_for_managers() {
    let node = Node::new().await;
    import_box(&node.store());
    let (secret, web) = with_secret();
    leave_assigned(&node, &web);
    node.assign_with_secret(secret, &web);
    let _worker = node.worker().await;
    node.wait(&web, TaskState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_files_in_memory_and_go_with_the_container() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let (secret, web) = with_secret();
    node.assign_with_secret(secret, &web);
    node.wait(&web, TaskState::Running).await;
    let dir = node.paths.run.join("secrets").join(web.id.as_str());
    assert_eq!(fs::read(dir.join("secret-0")).unwrap(), b"hush-hush");
    let log = node.paths.worker_dir().join("containers").join(web.id.as_str()).join("container.log");
    wait_until(|| fs::read_to_string(&log).is_ok_and(|text| text.contains("hush-hush"))).await;
    let record = node.paths.worker_dir().join("tasks").join(format!("{}.pb", web.id));
    assert!(!fs::read(record).unwrap().windows(9).any(|bytes| bytes == b"hush-hush"));
    node.assign(&[(&web, TaskState::Shutdown)]);
    node.wait(&web, TaskState::Shutdown).await;
    wait_until(|| !dir.exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cleaning_up_leaves_images_and_volumes_only() {
    let node = Node::new().await;
    import_box(&node.store());
    let worker = node.worker_process();
    let web = task(1, "box", &["sleep", "1000"]);
    node.assign(&[(&web, TaskState::Running)]);
    node.wait(&web, TaskState::Running).await;
    let pid = node.pid(&web);
    drop(worker);
    assert!(alive(pid));
    // One that cannot be asked anything, and is found first.
    let shims = node.paths.shims_dir();
    let (stuck, root) = (shims.join("0"), node.paths.containers_dir().join("0"));
    for folder in [&stuck, &root] {
        fs::create_dir(folder).unwrap();
    }
    let config = fs::read_to_string(node.paths.shim_dir(&web.id).join("config.json")).unwrap();
    let of_none = TaskId::from_random(77);
    fs::write(stuck.join("config.json"), config.replace(web.id.as_str(), of_none.as_str())).unwrap();
    std::os::unix::fs::symlink("shim.sock", stuck.join("shim.sock")).unwrap();
    let clean_up = || {
        let paths = node.paths.clone();
        tokio::task::spawn_blocking(move || crate::cleanup(&paths))
    };
    let failed = clean_up().await.unwrap().unwrap_err();
    assert!(format!("{failed:#}").contains(&format!("delete the container of task {of_none}")), "{failed:#}");
    assert!(!alive(pid) && !node.paths.shim_dir(&web.id).exists(), "the others go all the same");
    assert!(stuck.exists() && root.exists(), "and it is not forgotten");
    fs::remove_file(stuck.join("shim.sock")).unwrap();
    clean_up().await.unwrap().unwrap();
    for gone in
        [node.paths.worker_dir().join("containers"), node.paths.worker_dir().join("tasks"), node.paths.shims_dir()]
    {
        assert!(!gone.exists(), "{}", gone.display());
    }
    assert!(node.store().find("box").is_some());
}
