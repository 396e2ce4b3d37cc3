//! Managers on loopback: real TLS, real raft, real sled.
#![allow(clippy::unwrap_used)]

#[path = "cluster/flood.rs"]
mod flood;
#[path = "cluster/hostile.rs"]
mod hostile;
#[path = "cluster/lab.rs"]
mod lab;
#[path = "cluster/members.rs"]
mod members;
#[path = "cluster/raw.rs"]
mod raw;
#[path = "cluster/recovery.rs"]
mod recovery;
#[path = "cluster/watching.rs"]
mod watching;

use std::time::{Duration, Instant};

use lab::{Lab, LabManager, service};
use orch_model::node::NodeState;
use orch_proto::{
    transport,
    wire::{self, Kind},
};
use tokio::time::timeout;
use tonic::Code;

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn one_manager_keeps_its_state_over_a_crash_and_a_stop() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let mut control = manager.control().await;
        let created = control.create(service("web", 3)).await.unwrap().into_inner();
        let id = lab::id_of(&created.object.unwrap());
        lab::eventually("three tasks", LIMIT, async || manager.list(Kind::Task).await.len() == 3).await;
        let before = manager.objects().await;
        let tokens = manager.info().await;
        assert!(tokens.worker_token.starts_with("ORCHTKN-1-") && tokens.managers == 1);

        // No farewell: what was acknowledged is on the disk.
        manager.crash().await;
        let manager = lab.start(0).await;
        assert_eq!(manager.objects().await, before);
        assert_eq!(manager.info().await.worker_token, tokens.worker_token);
        manager.stop().await;
        let manager = lab.start(0).await;
        assert_eq!(manager.objects().await, before);

        let error = manager.control().await.create(service("web", 1)).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        assert!(error.metadata().contains_key("orch-code"));
        let remove = wire::RemoveRequest {
            kind: Kind::Service.into(),
            reference: "web".to_owned(),
            force: false,
            when_free: false,
        };
        manager.control().await.remove(remove).await.unwrap();
        lab::eventually("no tasks", LIMIT, async || manager.list(Kind::Task).await.is_empty()).await;
        let gone = manager.get(Kind::Service, &id).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound);
        manager.stop().await;
    });
}

#[test]
fn the_first_start_leaves_no_key_on_the_disk() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        manager.info().await;
        let dir = lab.dir(0);
        lab::eventually("the material is deleted", LIMIT, async || !lab::contains(&dir, b"PRIVATE KEY", &["node.key"]))
            .await;
        assert!(!lab::contains(&dir, b"ORCHTKN", &[]), "a join token lies on the disk in clear text");
        manager.stop().await;
    });
}

#[test]
fn secrets_keys_and_tokens_do_not_come_back_out() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let spec = wire::SecretSpec {
            annotations: Some(wire::Annotations { name: "db".to_owned(), ..wire::Annotations::default() }),
            data: bytes::Bytes::from_static(b"hunter2"),
            template: None,
        };
        let spec = Some(wire::Spec { spec: Some(wire::spec::Spec::Secret(spec)) });
        let created = manager.control().await.create(wire::CreateRequest { spec }).await.unwrap().into_inner();
        let shown = [
            vec![created.object.unwrap()],
            manager.list(Kind::Secret).await,
            vec![manager.get(Kind::Secret, "db").await.unwrap(), manager.get(Kind::Cluster, "").await.unwrap()],
        ];
        let request = wire::WatchRequest {
            kinds: vec![Kind::Secret.into(), Kind::Cluster.into()],
            ..wire::WatchRequest::default()
        };
        let mut watch = manager.control().await.watch(request).await.unwrap().into_inner();
        let initial = watch.message().await.unwrap().unwrap();
        assert_eq!(initial.events.len(), 2);
        use prost::Message;
        let mut bytes = initial.encode_to_vec();
        shown.iter().flatten().for_each(|object| bytes.extend(object.encode_to_vec()));
        for hidden in [&b"hunter2"[..], b"PRIVATE KEY", b"ORCHTKN"] {
            assert!(!bytes.windows(hidden.len()).any(|w| w == hidden), "{}", String::from_utf8_lossy(hidden));
        }
        manager.stop().await;
    });
}

#[test]
fn tokens_decide_who_joins() {
    let lab = Lab::new(2);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let other = lab::LoneCluster::token();
        let info = manager.info().await;
        let addr = lab.addr(0);
        let join = async |token: &str| lab::join(&addr, &info.root_cert_pem, token).await;

        let foreign = join(&other).await.unwrap_err();
        assert!(foreign.message().contains("another cluster"), "{foreign}");
        let mut mistyped = info.worker_token.clone();
        let last = if mistyped.pop() == Some('0') { '1' } else { '0' };
        mistyped.push(last);
        let wrong = join(&mistyped).await.unwrap_err();
        assert_eq!(wrong.code(), Code::PermissionDenied);
        assert!(wrong.message().contains("rotated"), "{wrong}");
        assert_eq!(join("nonsense").await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(manager.list(Kind::Node).await.len(), 1, "a refused join leaves nothing behind");

        let joined = join(&info.worker_token).await.unwrap();
        assert!(joined.manager_cert_pem.is_empty() && !joined.worker_cert_pem.is_empty());
        assert_eq!(joined.managers, vec![addr.clone()]);
        let rotate = wire::RotateJoinTokenRequest { worker: true, manager: false };
        let rotated = manager.control().await.rotate_join_token(rotate).await.unwrap().into_inner();
        assert_ne!(rotated.worker_token, info.worker_token);
        assert_eq!(rotated.manager_token, info.manager_token);
        assert!(join(&info.worker_token).await.unwrap_err().message().contains("rotated"));
        join(&rotated.worker_token).await.unwrap();
        assert_eq!(manager.list(Kind::Node).await.len(), 3);

        // One that gives up before it ever worked is not shown as a dead node for ever.
        let agent = lab::Agent::join(&manager, &addr).await;
        assert_eq!(manager.list(Kind::Node).await.len(), 4);
        agent.leave().await;
        assert_eq!(manager.list(Kind::Node).await.len(), 3);
        manager.stop().await;
    });
}

#[test]
fn a_worker_gets_no_more_than_its_due() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let worker = lab::Agent::join(&manager, &lab.addr(0)).await;
        let refused = worker.control().await.list(wire::ListRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        let refused = worker.raft().await.vote(wire::VoteRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        let stranger = lab::stranger(&manager, &lab.addr(0)).await;
        let mut dispatcher = wire::dispatcher_client::DispatcherClient::new(stranger);
        let refused = dispatcher.session(wire::SessionRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        manager.stop().await;
    });
}

#[test]
fn an_agent_gets_its_tasks_and_its_silence_is_noticed() {
    let lab = Lab::with_heartbeat(1, Duration::from_millis(400));
    lab.block_on(async {
        let manager = lab.start(0).await;
        let agent = lab::Agent::join(&manager, &lab.addr(0)).await;
        let mut session = agent.session().await;
        assert_eq!(manager.node_state(&agent.id).await, NodeState::Ready);
        manager.control().await.create(service("web", 2)).await.unwrap();
        let mut tasks = std::collections::BTreeSet::new();
        while tasks.len() < 2 {
            tasks.extend(session.next_tasks().await);
            session.heartbeat().await.unwrap();
        }
        for task in &tasks {
            session.report(task, wire::TaskState::Running).await.unwrap();
        }
        lab::eventually("both run", LIMIT, async || {
            session.heartbeat().await.unwrap();
            manager.running().await == 2
        })
        .await;

        // The stream breaks and the agent is back in time: never down.
        let mut session = agent.session().await;
        assert_eq!(manager.node_state(&agent.id).await, NodeState::Ready);
        session.heartbeat().await.unwrap();
        let silent_since = Instant::now();
        lab::eventually("down", LIMIT, async || manager.node_state(&agent.id).await == NodeState::Down).await;
        assert!(silent_since.elapsed() >= Duration::from_millis(1200), "{:?}", silent_since.elapsed());
        assert_eq!(session.heartbeat().await.unwrap_err().code(), Code::FailedPrecondition);
        manager.stop().await;
    });
}

#[test]
fn three_managers_go_on_without_their_leader() {
    let lab = Lab::new(3);
    lab.block_on(async {
        let first = lab.start(0).await;
        let mut managers: Vec<LabManager> = vec![first];
        for number in 1..3 {
            lab.join_manager(number, &managers[0]).await;
            managers.push(lab.start(number).await);
        }
        lab::eventually("three managers", LIMIT, async || {
            let info = managers[0].info().await;
            info.reachability.iter().filter(|m| m.reachable).count() == 3
        })
        .await;

        // A write at a manager that does not lead.
        managers[2].control().await.create(service("web", 2)).await.unwrap();
        assert_eq!(managers[1].list(Kind::Service).await.len(), 1);
        let info = managers[2].info().await;
        assert_eq!((info.managers, info.node_id), (3, lab.node_id(2)));
        lab::eventually("everyone has it", LIMIT, async || managers.iter().all(|m| m.local_services() == 1)).await;

        managers.remove(0).crash().await;
        let killed = Instant::now();
        managers[0].control().await.create(service("api", 1)).await.unwrap();
        let waited = killed.elapsed();
        assert!(waited < Duration::from_secs(8), "{waited:?} without a leader");
        lab::eventually("both have it", LIMIT, async || managers.iter().all(|m| m.local_services() == 2)).await;

        // The old leader comes back and catches up.
        let back = lab.start(0).await;
        lab::eventually("it caught up", LIMIT, async || back.local_services() == 2).await;

        // Without a quorum: a clear refusal, not silence.
        managers.remove(0).crash().await;
        managers.remove(0).crash().await;
        let error = back.control().await.create(service("late", 1)).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains("quorum"), "{error}");
        assert_eq!(back.info().await.node_id, lab.node_id(0), "info works without a leader");
        back.crash().await;
    });
}

#[test]
fn a_taken_port_is_a_sentence() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let _holder = tokio::net::TcpListener::bind(lab.addr(0)).await.unwrap();
        let error = lab.open(0).await.err().unwrap();
        assert!(error.to_string().contains("another program"), "{error}");
        assert!(transport::unix_channel(&lab.paths(0).manager_sock()).await.is_err());
    });
}

/// Not a test: the manager's process of the test below.
#[test]
fn manager_process() {
    if std::env::var_os(lab::PROCESS_VAR).is_some() {
        orch_manager::run(orch_manager::Config { paths: orch_proto::paths::Paths::from_env() }).unwrap();
    }
}

#[test]
fn a_killed_process_has_every_write_that_it_acknowledged() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let mut acknowledged = std::collections::BTreeSet::new();
        for round in 0..4_u64 {
            let mut process = lab::Process::start(&lab);
            let mut control = process.control().await;
            let deadline = Instant::now() + Duration::from_millis(150 + 130 * round);
            for number in 0.. {
                let name = format!("s{round}-{number}");
                tokio::select! {
                    created = control.create(service(&name, 1)) => acknowledged.insert(lab::id_of(&created.unwrap().into_inner().object.unwrap())),
                    () = tokio::time::sleep_until(deadline.into()) => break,
                };
            }
            process.kill();
            let process = lab::Process::start(&lab);
            let mut control = process.control().await;
            let request = wire::ListRequest { kind: Kind::Service.into(), filters: None };
            let listed = control.list(request).await.unwrap().into_inner().objects;
            let found: std::collections::BTreeSet<_> = listed.iter().map(lab::id_of).collect();
            assert!(acknowledged.is_subset(&found), "round {round}: {} of {}", found.len(), acknowledged.len());
        }
        assert!(acknowledged.len() > 10, "only {} writes", acknowledged.len());
    });
}

#[test]
fn logs_and_exec_reach_the_node_of_the_task() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let agent = lab::Agent::join(&manager, &lab.addr(0)).await;
        let mut session = agent.session().await;
        manager.control().await.create(service("web", 1)).await.unwrap();
        let task = loop {
            if let Some(task) = session.next_tasks().await.pop() {
                break task;
            }
        };
        session.report(&task, wire::TaskState::Running).await.unwrap();
        lab::eventually("it runs", LIMIT, async || manager.running().await == 1).await;

        let options = wire::LogOptions { stdout: true, ..wire::LogOptions::default() };
        let request = wire::LogsRequest { tasks: Vec::new(), services: vec!["web".to_owned()], options: Some(options) };
        let mut logs = manager.control().await.logs(request).await.unwrap().into_inner();
        let node = session.answer_stream(&agent).await;
        node.say(lab::log_line("hello\n")).await;
        node.finish().await;
        let line = logs.message().await.unwrap().unwrap();
        assert_eq!((line.task_id.as_str(), &line.data[..]), (task.as_str(), &b"hello\n"[..]));
        assert!(logs.message().await.unwrap().is_none());

        let (input, stdin) = tokio::sync::mpsc::channel(4);
        input.send(lab::exec_start("web.1")).await.unwrap();
        let mut control = manager.control().await;
        let stdin = tokio_stream::wrappers::ReceiverStream::new(stdin);
        let (output, node) = tokio::join!(control.exec(stdin), session.answer_stream(&agent));
        let (mut output, mut node) = (output.unwrap().into_inner(), node);
        input.send(lab::stdin(b"ping")).await.unwrap();
        assert_eq!(node.hear().await, Some(b"ping".to_vec()));
        node.say(lab::stdout(b"pong")).await;
        node.say(lab::exit(3)).await;
        use wire::exec_output::Output;
        assert_eq!(output.message().await.unwrap().unwrap().output, Some(Output::Stdout(b"pong"[..].into())));
        assert_eq!(output.message().await.unwrap().unwrap().output, Some(Output::ExitCode(3)));
        assert!(output.message().await.unwrap().is_none());

        // The client goes away: the node is told.
        let (input, stdin) = tokio::sync::mpsc::channel(4);
        input.send(lab::exec_start(&task)).await.unwrap();
        let stdin = tokio_stream::wrappers::ReceiverStream::new(stdin);
        let (output, mut node) = tokio::join!(control.exec(stdin), session.answer_stream(&agent));
        drop((output, input));
        assert_eq!(node.hear().await, None, "cancelled");
        manager.stop().await;
    });
}

/// The tasks of a new service, running on the session's node.
async fn running_tasks(manager: &LabManager, session: &mut lab::Session, count: usize) -> Vec<String> {
    manager.control().await.create(service("web", count as u64)).await.unwrap();
    let mut tasks = Vec::new();
    while tasks.len() < count {
        tasks.extend(session.next_tasks().await);
    }
    for task in &tasks {
        session.report(task, wire::TaskState::Running).await.unwrap();
    }
    lab::eventually("they run", LIMIT, async || manager.running().await == count).await;
    tasks
}

fn followed() -> wire::LogsRequest {
    let options = wire::LogOptions { stdout: true, follow: true, ..wire::LogOptions::default() };
    wire::LogsRequest { tasks: Vec::new(), services: vec!["web".to_owned()], options: Some(options) }
}

#[test]
fn logs_of_a_crowd_leave_the_session_of_its_node_alone() {
    const CROWD: usize = 130;
    const OF_ONE_COMMAND: usize = 72;
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let agent = lab::Agent::join(&manager, &lab.addr(0)).await;
        let mut session = agent.session().await;
        let tasks = running_tasks(&manager, &mut session, CROWD).await;
        let mut logs = manager.control().await.logs(followed()).await.unwrap().into_inner();
        let mut nodes = Vec::new();
        while let Ok(node) = timeout(Duration::from_secs(3), session.answer_stream(&agent)).await {
            nodes.push(node);
        }
        assert_eq!(nodes.len(), OF_ONE_COMMAND);
        let told = logs.message().await.unwrap().unwrap().notice;
        assert!(
            told.ends_with("96 logs that are followed at once, 72 for one command; waiting for one of them to end"),
            "{told}"
        );
        session.heartbeat().await.unwrap();
        session.report(&tasks[0], wire::TaskState::Failed).await.unwrap();

        // There is room for a command, and for the next log when one ends.
        let (input, stdin) = tokio::sync::mpsc::channel(4);
        input.send(lab::exec_start(&tasks[1])).await.unwrap();
        let mut control = manager.control().await;
        let stdin = tokio_stream::wrappers::ReceiverStream::new(stdin);
        let (output, command) = tokio::join!(control.exec(stdin), session.answer_stream(&agent));
        command.say(lab::exit(0)).await;
        assert!(output.unwrap().into_inner().message().await.unwrap().is_some());
        nodes.remove(0).finish().await;
        timeout(LIMIT, session.answer_stream(&agent)).await.unwrap();
        manager.stop().await;
    });
}

#[test]
fn logs_that_nobody_reads_hold_up_nothing_else_through_a_manager_that_does_not_lead() {
    const LINE: [u8; 16 << 10] = [b'x'; 16 << 10];
    let lab = Lab::new(2);
    lab.block_on(async {
        let first = lab.start(0).await;
        let agent = lab::Agent::join(&first, &lab.addr(0)).await;
        let mut session = agent.session().await;
        running_tasks(&first, &mut session, 1).await;
        lab.join_manager(1, &first).await;
        let second = lab.start(1).await;
        let line = std::str::from_utf8(&LINE).unwrap();
        let mut unread = Vec::new();
        for _ in 0..4 {
            let logs = second.control().await.logs(followed()).await.unwrap().into_inner();
            let node = session.answer_stream(&agent).await;
            while timeout(Duration::from_millis(300), node.say(lab::log_line(line))).await.is_ok() {}
            unread.push((logs, node));
        }
        let mut control = second.control().await;
        let created = timeout(Duration::from_secs(5), control.create(service("later", 0)));
        created.await.expect("it is not held up").unwrap();
        // Nor are other logs.
        let mut logs = second.control().await.logs(followed()).await.unwrap().into_inner();
        let node = session.answer_stream(&agent).await;
        node.say(lab::log_line("hello\n")).await;
        let line = timeout(Duration::from_secs(5), logs.message()).await.expect("it is not held up");
        assert_eq!(&line.unwrap().unwrap().data[..], b"hello\n");
        drop(unread);
        second.stop().await;
        first.stop().await;
    });
}

#[test]
fn a_manager_leaves_and_the_others_go_on() {
    let lab = Lab::new(2);
    lab.block_on(async {
        let first = lab.start(0).await;
        lab.join_manager(1, &first).await;
        let second = lab.start(1).await;
        lab::eventually("two managers", LIMIT, async || {
            first.info().await.reachability.iter().filter(|m| m.reachable).count() == 2
        })
        .await;
        lab.leave(1, 0).await.unwrap();
        second.crash().await;
        // A quorum of one again.
        first.control().await.create(service("web", 1)).await.unwrap();
        assert_eq!(first.list(Kind::Node).await.len(), 1, "it had no worker, so nothing is left to show");
        assert_eq!(first.info().await.managers, 1);
        let last = lab.leave(0, 0).await.unwrap_err();
        assert!(last.message().contains("last manager"), "{last}");
        first.stop().await;
    });
}

#[test]
fn a_new_manager_gets_a_snapshot_where_the_log_is_gone() {
    let lab = Lab::new(2);
    lab.block_on(async {
        let first = lab.start(0).await;
        for number in 0..20 {
            first.control().await.create(service(&format!("s{number}"), 1)).await.unwrap();
        }
        first.consensus().compact().await.unwrap();
        // The snapshot and the rest of the log give the same state again.
        let before = first.objects().await;
        first.crash().await;
        let first = lab.start(0).await;
        assert_eq!(first.objects().await, before);

        lab.join_manager(1, &first).await;
        let second = lab.start(1).await;
        lab::eventually("it has the snapshot", LIMIT, async || second.local_services() == 20).await;
        second.crash().await;
        let second = lab.start(1).await;
        lab::eventually("it has it still", LIMIT, async || second.local_services() == 20).await;
        second.stop().await;
        first.crash().await;
    });
}
