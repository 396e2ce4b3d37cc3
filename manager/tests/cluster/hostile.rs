//! Who tries what and gets what. Every row of the table in `docs/security.md` names its test here or elsewhere.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use orch_model::{ClusterId, NodeId, cluster::RootCa, node::NodeRole};
use orch_proto::{
    ca, code,
    tls::Identity,
    transport,
    wire::{
        self, Kind, ca_client::CaClient, control_client::ControlClient, dispatcher_client::DispatcherClient,
        streams_client::StreamsClient,
    },
};
use tokio::{io::AsyncWriteExt, time::timeout};
use tonic::{Code, transport::Channel};

use crate::{
    lab::{self, Agent, Lab, LabManager, service},
    raw::{self, Forgery, Hello},
};

const LIMIT: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3600);

/// The cluster's CA, as only a manager has it.
fn root_of(manager: &LabManager) -> RootCa {
    manager.consensus().store().view().state.cluster().unwrap().root_ca.clone()
}

fn cluster_of(manager: &LabManager) -> ClusterId {
    manager.consensus().cluster().clone()
}

async fn agent_channel(lab: &Lab, agent: &Agent) -> Channel {
    transport::tls_channel(&lab.addr(0), &agent.identity, NodeRole::Manager).await.unwrap()
}

/// Every call of every service in the `.proto` files: its path.
fn every_call() -> Vec<String> {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let mut files: Vec<_> = std::fs::read_dir(protos.join("orch/v1")).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    let compiled = protox::compile(files, [protos]).unwrap();
    let mut calls = Vec::new();
    for file in &compiled.file {
        for service in &file.service {
            calls.extend(service.method.iter().map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name())));
        }
    }
    calls
}

/// What nodes may call. Whoever adds a call for nodes adds it here, too.
const FOR_NODES: &[&str] = &[
    "/orch.v1.Dispatcher/SetContainerNetworks",
    "/orch.v1.Dispatcher/KeepContainers",
    "/orch.v1.Ca/Renew",
    "/orch.v1.Ca/Report",
    "/orch.v1.Ca/Leave",
    "/orch.v1.Dispatcher/Session",
    "/orch.v1.Dispatcher/Heartbeat",
    "/orch.v1.Dispatcher/Pings",
    "/orch.v1.Dispatcher/Assignments",
    "/orch.v1.Dispatcher/Ack",
    "/orch.v1.Dispatcher/UpdateTaskStatus",
    "/orch.v1.Dispatcher/RegisterImage",
    "/orch.v1.Dispatcher/ForgetImage",
    "/orch.v1.Streams/Attach",
];
/// What anybody may call.
const FOR_ANYONE: &[&str] = &["/orch.v1.Ca/Join"];
/// Services of other daemons, on other sockets.
const ELSEWHERE: &[&str] = &["/orch.v1.NodeControl/", "/orch.v1.WorkerLocal/", "/orch.v1.Netd/", "/orch.v1.Peer/"];

#[test]
fn no_call_is_open_to_whom_it_is_not_for() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let worker = Agent::join(&manager, &lab.addr(0)).await;
        let (worker, stranger) = (agent_channel(&lab, &worker).await, lab::stranger(&manager, &lab.addr(0)).await);
        let calls = every_call();
        assert!(calls.len() > 40, "{calls:?}");
        // Leaving comes last: it works.
        let mut calls = calls;
        calls.sort_by_key(|path| path.ends_with("/Leave"));
        // A certificate of a worker does not become a manager's by saying so.
        let lies: [&[(&str, &str)]; 2] = [&[], &[("orch-caller", "local"), ("orch-via", "x")]];
        for path in calls {
            for lie in lies {
                let call = async |channel: &Channel| raw::call(channel.clone(), &path, raw::nothing(), lie).await;
                let (as_worker, said) = call(&worker).await;
                let (as_stranger, told) = call(&stranger).await;
                let expected = if ELSEWHERE.iter().any(|service| path.starts_with(service)) {
                    [Code::Unimplemented; 2]
                } else {
                    [Code::PermissionDenied, Code::Unauthenticated]
                };
                if FOR_ANYONE.contains(&path.as_str()) {
                    assert_eq!([as_worker, as_stranger], [Code::InvalidArgument; 2], "{path}: {said} / {told}");
                } else if FOR_NODES.contains(&path.as_str()) {
                    assert_eq!(as_stranger, Code::Unauthenticated, "{path}: {told}");
                    assert!(!said.contains("not%20for") && as_worker != Code::Unauthenticated, "{path}: {said}");
                } else {
                    assert_eq!([as_worker, as_stranger], expected, "{path}: {said} / {told}");
                }
            }
        }
        assert_eq!(manager.list(Kind::Node).await.len(), 1, "the worker left when it was asked, and that is all");
        manager.stop().await;
    });
}

/// A service with a secret, on one node only.
async fn secret_service(manager: &LabManager, node: &str, content: &'static [u8]) -> String {
    let annotations = Some(wire::Annotations { name: "marker".to_owned(), ..wire::Annotations::default() });
    let secret = wire::SecretSpec { annotations, data: content.into(), template: None };
    let spec = Some(wire::Spec { spec: Some(wire::spec::Spec::Secret(secret)) });
    let created = manager.control().await.create(wire::CreateRequest { spec }).await.unwrap().into_inner();
    let secret = lab::id_of(&created.object.unwrap());
    let mut wanted = service("hidden", 1);
    let Some(wire::spec::Spec::Service(spec)) = wanted.spec.as_mut().and_then(|spec| spec.spec.as_mut()) else {
        panic!("not a service")
    };
    let task = spec.task.as_mut().unwrap();
    task.placement.get_or_insert_default().constraints.push(format!("node.id == {node}"));
    let reference = wire::FileRef {
        id: secret.clone(),
        name: "marker".to_owned(),
        target: "/run/secrets/marker".to_owned(),
        uid: "0".to_owned(),
        gid: "0".to_owned(),
        mode: 0o444,
    };
    task.container.get_or_insert_default().secrets.push(reference);
    manager.control().await.create(wanted).await.unwrap();
    secret
}

#[test]
fn one_node_gets_nothing_of_anothers() {
    const CONTENT: &[u8] = b"only the first node may have this";
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let addr = lab.addr(0);
        let (a, b) = (Agent::join(&manager, &addr).await, Agent::join(&manager, &addr).await);
        let mut session_a = a.session().await;
        let mut session_b = b.session().await;
        secret_service(&manager, &a.id, CONTENT).await;
        let mut task = Vec::new();
        let mut of_b = Vec::new();
        while task.is_empty() {
            task.extend(session_a.next_tasks().await);
            of_b.extend(session_b.next_raw().await);
        }
        session_a.report(&task[0], wire::TaskState::Running).await.unwrap();
        lab::eventually("it runs", LIMIT, async || manager.running().await == 1).await;
        of_b.extend(session_b.next_raw().await);
        assert!(!of_b.is_empty(), "the other node hears nothing at all");
        for hidden in [CONTENT, task[0].as_bytes()] {
            assert!(!of_b.windows(hidden.len()).any(|w| w == hidden), "{}", String::from_utf8_lossy(hidden));
        }

        // Its session, its assignments, its acknowledgements, its statuses.
        let no_session = |status: tonic::Status| {
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            assert_eq!(status.metadata().get("orch-code").unwrap(), "no-session");
        };
        let mut client = DispatcherClient::new(agent_channel(&lab, &b).await);
        let session_id = session_a.id.clone();
        no_session(client.heartbeat(wire::HeartbeatRequest { session_id: session_id.clone() }).await.unwrap_err());
        let request = wire::AssignmentsRequest { session_id: session_id.clone() };
        no_session(client.assignments(request).await.unwrap_err());
        no_session(client.ack(wire::AckRequest { session_id: session_id.clone(), sequence: 99 }).await.unwrap_err());
        let update = wire::UpdateTaskStatusRequest { session_id, updates: Vec::new() };
        no_session(client.update_task_status(update).await.unwrap_err());

        // With a session of its own, a task of the other's does not change.
        let _ = session_b.report(&task[0], wire::TaskState::Failed).await;
        session_b.heartbeat().await.unwrap();
        assert_eq!(manager.running().await, 1, "one node has ended another's task");

        // A stream that the other was asked for.
        let mut control = manager.control().await;
        let logs = wire::LogsRequest { tasks: vec![task[0].clone()], services: Vec::new(), options: None };
        let logs = tokio::spawn(async move { control.logs(logs).await });
        let stream_id = session_a.announced().await;
        let hello = wire::StreamHello { stream_id };
        let hello = wire::FromNode { message: Some(wire::from_node::Message::Hello(hello)) };
        let mut streams = StreamsClient::new(agent_channel(&lab, &b).await);
        let refused = streams.attach(tokio_stream::once(hello)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        logs.abort();

        // Leaving and renewing are about whoever calls.
        let request = wire::RenewRequest {
            worker_csr_pem: raw::greedy_csr(&a.id, &cluster_of(&manager)).0,
            manager_csr_pem: String::new(),
        };
        let renewed = CaClient::new(agent_channel(&lab, &b).await).renew(request).await.unwrap().into_inner();
        assert_eq!(raw::subject(&renewed.worker_cert_pem).node_id.as_str(), b.id);
        manager.stop().await;
    });
}

#[test]
fn a_token_with_one_character_changed_opens_nothing() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let info = manager.info().await;
        let mut client = CaClient::new(lab::stranger(&manager, &lab.addr(0)).await);
        let csr = ca::new_key_and_csr().unwrap().csr_pem;
        let mut refused = 0;
        for token in [&info.worker_token, &info.manager_token] {
            for place in 0..token.len() {
                let mut changed = token.clone().into_bytes();
                changed[place] = match changed[place] {
                    b'z' => b'0',
                    b'9' => b'a',
                    other => other + 1,
                };
                let request = wire::JoinRequest {
                    token: String::from_utf8(changed).unwrap(),
                    worker_csr_pem: csr.clone(),
                    manager_csr_pem: csr.clone(),
                    hostname: "x".to_owned(),
                    ..wire::JoinRequest::default()
                };
                let answer = client.join(request).await.unwrap_err();
                let expected = [Code::PermissionDenied, Code::InvalidArgument];
                assert!(expected.contains(&answer.code()), "character {place}: {answer}");
                refused += 1;
            }
        }
        assert!(refused > 150, "{refused}");
        assert_eq!(manager.list(Kind::Node).await.len(), 1);
        manager.stop().await;
    });
}

/// What comes of a join with this token and these requests.
async fn joined(manager: &LabManager, addr: &str, token: String, csr: &str) -> wire::JoinResponse {
    let request = wire::JoinRequest {
        token,
        worker_csr_pem: csr.to_owned(),
        manager_csr_pem: csr.to_owned(),
        hostname: "x".to_owned(),
        ..wire::JoinRequest::default()
    };
    CaClient::new(lab::stranger(manager, addr).await).join(request).await.unwrap().into_inner()
}

#[test]
fn a_request_for_another_role_or_name_gets_a_certificate_of_ones_own() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let (addr, cluster) = (lab.addr(0), cluster_of(&manager));
        let (csr, key) = raw::greedy_csr(&lab.node_id(0), &cluster);
        let answer = joined(&manager, &addr, manager.info().await.worker_token, &csr).await;
        assert!(answer.manager_cert_pem.is_empty(), "a worker's token made a manager");
        let subject = raw::subject(&answer.worker_cert_pem);
        assert_eq!((subject.node_id.as_str(), subject.role), (answer.node_id.as_str(), NodeRole::Worker));
        assert_ne!(answer.node_id, lab.node_id(0));
        let cert = raw::der(&answer.worker_cert_pem);
        for stolen in [format!("manager.{cluster}.orch"), lab.node_id(0), "orch-manager".to_owned()] {
            let found = cert.windows(stolen.len()).any(|w| w == stolen.as_bytes());
            assert!(!found, "the certificate says {stolen}");
        }
        // It can sign nothing, either: what it signs is nobody's.
        let as_ca = RootCa { cert_pem: answer.worker_cert_pem.clone(), key_pem: key };
        let node = NodeId::from_random(7);
        let csr = ca::new_key_and_csr().unwrap();
        let signed = ca::sign_csr(&as_ca, &csr.csr_pem, &node, &cluster, NodeRole::Manager, HOUR, SystemTime::now());
        if let Ok(signed) = signed {
            let key = rustls::pki_types::pem::PemObject::from_pem_slice(csr.key_pem.as_bytes()).unwrap();
            let chain = vec![raw::der(&signed), raw::der(&answer.worker_cert_pem)];
            let root = root_of(&manager);
            let stream = Hello::with((chain, key)).connect(&addr, &root.cert_pem, &cluster).await;
            assert!(!served(stream).await, "a worker's certificate was taken for a CA's");
        }
        // And a worker stays one.
        let list = ControlClient::new(
            transport::tls_channel(
                &addr,
                &Identity::from_pem(answer.root_cert_pem, answer.worker_cert_pem, as_ca.key_pem).unwrap(),
                NodeRole::Manager,
            )
            .await
            .unwrap(),
        )
        .list(wire::ListRequest::default())
        .await;
        assert_eq!(list.unwrap_err().code(), Code::PermissionDenied);
        manager.stop().await;
    });
}

async fn served(stream: std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>) -> bool {
    match stream {
        Ok(stream) => raw::is_served(stream).await,
        Err(_) => false,
    }
}

#[test]
fn certificates_that_are_expired_foreign_or_self_made_end_the_handshake() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let (addr, cluster, root) = (lab.addr(0), cluster_of(&manager), root_of(&manager));
        let node: NodeId = lab.node_id(0).parse().unwrap();
        let now = SystemTime::now();
        let forgery = |root, cluster: &ClusterId, now| Forgery {
            root,
            cluster: cluster.clone(),
            node: node.clone(),
            role: NodeRole::Manager,
            now,
            lifetime: HOUR,
        };
        let connect = async |hello: Hello| served(hello.connect(&addr, &root.cert_pem, &cluster).await).await;
        // What is right is served, so the others are refused for what they are.
        assert!(connect(Hello::with(forgery(&root, &cluster, now).identity())).await);
        assert!(connect(Hello::stranger()).await);

        let long_ago = now - 48 * HOUR;
        let some_day = now + 48 * HOUR;
        let same_name = ca::generate_root(&cluster, now).unwrap();
        let other = ClusterId::from_random(rand::random());
        let other_root = ca::generate_root(&other, now).unwrap();
        let key = ca::new_key_and_csr().unwrap().key_pem;
        let self_signed = {
            let key = rcgen::KeyPair::from_pem(&key).unwrap();
            let names = vec![format!("manager.{cluster}.orch"), node.to_string()];
            rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem()
        };
        let private = rustls::pki_types::pem::PemObject::from_pem_slice(key.as_bytes()).unwrap();
        for (what, shown) in [
            ("expired", forgery(&root, &cluster, long_ago).identity()),
            ("not yet valid", forgery(&root, &cluster, some_day).identity()),
            ("made by a root of the same name", forgery(&same_name, &cluster, now).identity()),
            ("another cluster's", forgery(&other_root, &other, now).identity()),
            ("self-signed", (vec![raw::der(&self_signed)], private)),
        ] {
            assert!(!connect(Hello::with(shown)).await, "a certificate that is {what} was accepted");
        }
        // Made by the right root for another cluster: no CA does that, and it is refused all the same.
        let odd = forgery(&root, &other, now).identity();
        let stream = Hello::with(odd).connect(&addr, &root.cert_pem, &cluster).await.unwrap();
        let code = raw_status(stream, "/orch.v1.Raft/Vote").await;
        assert_eq!(code, Some(Code::PermissionDenied));
        manager.stop().await;
    });
}

/// The gRPC code of one empty call, over a connection that is there already.
async fn raw_status(stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>, path: &str) -> Option<Code> {
    let channel = raw::channel_over(stream).await?;
    Some(raw::call(channel, path, raw::nothing(), &[]).await.0)
}

#[test]
fn raft_hears_nobody_from_another_cluster() {
    let (lab, other_lab) = (Lab::new(1), Lab::new(1));
    let other = other_lab.block_on(async { other_lab.start(0).await });
    lab.block_on(async {
        let manager = lab.start(0).await;
        let term = manager.consensus().leadership().borrow().term;
        let identity = Identity::load(&other_lab.paths(0).manager_dir().join("tls")).unwrap();
        let refused = transport::tls_channel(&lab.addr(0), &identity, NodeRole::Manager).await.unwrap_err();
        assert!(refused.to_string().contains("belongs to another cluster"), "{refused}");
        // Also when it trusts whom it talks to: then this side hangs up.
        let root = root_of(&manager);
        let shown = raw::of_identity(&identity);
        let stream = Hello::with(shown).connect(&lab.addr(0), &root.cert_pem, &cluster_of(&manager)).await;
        assert!(!served(stream).await);
        assert_eq!(manager.consensus().leadership().borrow().term, term);
        manager.stop().await;
    });
    other_lab.block_on(other.stop());
}

#[test]
fn only_tls_1_3_with_http_2_is_spoken() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let (addr, cluster, root) = (lab.addr(0), cluster_of(&manager), root_of(&manager));
        let old = Hello { version: &rustls::version::TLS12, ..Hello::stranger() };
        let error = old.connect(&addr, &root.cert_pem, &cluster).await.unwrap_err();
        assert!(error.to_string().contains("ProtocolVersion"), "TLS 1.2: {error}");
        let web = Hello { alpn: b"http/1.1", ..Hello::stranger() };
        let error = web.connect(&addr, &root.cert_pem, &cluster).await.unwrap_err();
        assert!(error.to_string().contains("NoApplicationProtocol"), "HTTP/1.1: {error}");
        for plain in [&b"GET / HTTP/1.1\r\nHost: m\r\n\r\n"[..], raw::PREFACE, b"\0\0\0\0\0\0\0\0", &[0xff; 4096]] {
            let mut tcp = tokio::net::TcpStream::connect(&addr).await.unwrap();
            tcp.write_all(plain).await.unwrap();
            let said = raw::until_hung_up(tcp).await.expect("the manager hangs up");
            // A TLS alert at most.
            assert!(said.is_empty() || said[0] == 21, "{said:?}");
        }
        manager.info().await;
        manager.stop().await;
    });
}

#[test]
fn messages_beyond_the_limit_are_refused_before_they_are_read() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let worker = Agent::join(&manager, &lab.addr(0)).await;
        let worker = agent_channel(&lab, &worker).await;
        let stranger = lab::stranger(&manager, &lab.addr(0)).await;
        // A length of 1 GB, of which nothing follows; and 17 MB that do.
        let mut gigabyte = vec![0];
        gigabyte.extend((1_u32 << 30).to_be_bytes());
        let huge: Vec<bytes::Bytes> = std::iter::once(raw::message(&vec![0; 17 << 20]).into()).collect();
        let calls = [(&worker, "/orch.v1.Dispatcher/UpdateTaskStatus"), (&stranger, "/orch.v1.Ca/Join")];
        for (channel, path) in calls {
            for pieces in [vec![gigabyte.clone().into()], huge.clone()] {
                let (code, said) = raw::call(channel.clone(), path, raw::body(pieces), &[]).await;
                assert!([Code::OutOfRange, Code::ResourceExhausted].contains(&code), "{path}: {code:?} {said}");
            }
        }
        // A stranger may not send what a node may.
        let text = raw::message(&vec![b'x'; 1 << 20]);
        let (code, said) = raw::call(stranger, "/orch.v1.Ca/Join", raw::body(vec![text.into()]), &[]).await;
        assert_eq!(code, Code::ResourceExhausted, "{said}");
        manager.info().await;
        manager.stop().await;
    });
}

#[test]
fn garbage_and_floods_of_frames_end_their_own_connection_only() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let worker = Agent::join(&manager, &lab.addr(0)).await;
        let (addr, cluster, root) = (lab.addr(0), cluster_of(&manager), root_of(&manager));
        let headers = raw::call_headers("/orch.v1.Dispatcher/Heartbeat");
        let repeat = |count: u32, one: &dyn Fn(u32) -> Vec<u8>| (0..count).flat_map(one).collect::<Vec<u8>>();
        let reset = |n: u32| {
            let stream = 2 * n + 1;
            let mut frames = raw::frame(raw::HEADERS, raw::END_HEADERS, stream, &headers);
            frames.extend(raw::frame(raw::RST_STREAM, 0, stream, &[0, 0, 0, 8]));
            frames
        };
        let attacks: Vec<(&str, Vec<u8>, bool)> = vec![
            ("bytes without meaning", vec![0xa5; 64 * 1024], true),
            ("a frame of 16 MB", [&[0xff, 0xff, 0xff, raw::DATA, 0, 0, 0, 0, 1][..], &[0; 70_000]].concat(), true),
            ("data for a stream that is not there", raw::frame(raw::DATA, 0, 99, &[0; 100]), true),
            ("headers that are no headers", raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &[0xff; 200]), true),
            (
                "headers without an end",
                {
                    let mut frames = raw::frame(raw::HEADERS, 0, 1, &headers);
                    frames.extend(repeat(2000, &|_| raw::frame(raw::CONTINUATION, 0, 1, &[0x40; 8000])));
                    frames
                },
                true,
            ),
            ("20,000 calls, each taken back at once", repeat(20_000, &reset), true),
            ("100,000 pings", repeat(100_000, &|n| raw::frame(raw::PING, 0, 0, &u64::from(n).to_be_bytes())), false),
            ("50,000 settings", repeat(50_000, &|_| raw::frame(raw::SETTINGS, 0, 0, &[])), false),
        ];
        for (what, bytes, must_end) in attacks {
            let hello = Hello::with(raw::of_identity(&worker.identity));
            let mut stream = hello.connect(&addr, &root.cert_pem, &cluster).await.unwrap();
            stream.write_all(raw::PREFACE).await.unwrap();
            stream.write_all(&raw::frame(raw::SETTINGS, 0, 0, &[])).await.unwrap();
            let (reader, mut writer) = tokio::io::split(stream);
            // It may hang up while this still writes.
            let writing = async { timeout(LIMIT, writer.write_all(&bytes)).await };
            if must_end {
                let (_, said) = tokio::join!(writing, raw::until_hung_up(reader));
                assert!(said.is_some(), "{what}: the connection goes on");
            } else {
                let _ = writing.await;
            }
            manager.info().await;
        }
        worker.session().await.heartbeat().await.unwrap();
        manager.stop().await;
    });
}

#[test]
fn a_node_that_has_too_much_under_way_is_refused_more_and_others_are_not() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let (greedy, modest) = (Agent::join(&manager, &lab.addr(0)).await, Agent::join(&manager, &lab.addr(0)).await);
        // More than one connection carries.
        let channels = [agent_channel(&lab, &greedy).await, agent_channel(&lab, &greedy).await];
        // Calls that are begun and never finished.
        let mut begun = Vec::new();
        for number in 0..300 {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let mut client = StreamsClient::new(channels[number % 2].clone());
            let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
            begun.push((sender, tokio::spawn(async move { client.attach(stream).await.map(drop) })));
        }
        let heartbeat = wire::HeartbeatRequest { session_id: "x".to_owned() };
        let [channel, _] = channels;
        let mut client = DispatcherClient::new(channel);
        lab::eventually("the greedy one is refused", LIMIT, async || {
            let refused = client.heartbeat(heartbeat.clone()).await.unwrap_err();
            refused.code() == Code::ResourceExhausted && refused.metadata().get("orch-code").unwrap() == "too-much"
        })
        .await;
        modest.session().await.heartbeat().await.unwrap();
        drop(begun);
        lab::eventually("it may go on afterwards", LIMIT, async || {
            client.heartbeat(heartbeat.clone()).await.unwrap_err().code() == Code::FailedPrecondition
        })
        .await;
        manager.stop().await;
    });
}

#[test]
fn strangers_share_a_few_connections_and_the_newest_gets_in() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let (addr, cluster, root) = (lab.addr(0), cluster_of(&manager), root_of(&manager));
        let mut open = Vec::new();
        for _ in 0..100 {
            open.push(Hello::stranger().connect(&addr, &root.cert_pem, &cluster).await.unwrap());
        }
        let newest = open.pop().unwrap();
        assert!(raw::is_served(newest).await);
        assert!(raw::until_hung_up(open.remove(0)).await.is_some(), "the oldest of 100 is still open");
        let joined = lab::join(&addr, &root.cert_pem, &manager.info().await.worker_token).await;
        assert!(joined.is_ok(), "{joined:?}");
        manager.stop().await;
    });
}

#[test]
fn a_worker_token_does_not_come_back_as_a_managers() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        let csr = ca::new_key_and_csr().unwrap();
        let answer = joined(&manager, &lab.addr(0), manager.info().await.worker_token, &csr.csr_pem).await;
        assert!(answer.manager_cert_pem.is_empty());
        // Renewing does not raise it, either.
        let identity = Identity::from_pem(answer.root_cert_pem, answer.worker_cert_pem, csr.key_pem).unwrap();
        let channel = transport::tls_channel(&lab.addr(0), &identity, NodeRole::Manager).await.unwrap();
        let again = ca::new_key_and_csr().unwrap().csr_pem;
        let request = wire::RenewRequest { worker_csr_pem: again.clone(), manager_csr_pem: again };
        let renewed = CaClient::new(channel).renew(request).await.unwrap().into_inner();
        assert!(renewed.manager_cert_pem.is_empty());
        manager.stop().await;
    });
}

/// Whoever has a manager's disk has its worker's key, which lies open there, and should get no further with autolock.
#[test]
fn a_worker_key_gets_no_certificate_of_a_manager_that_locks_its_keys() {
    let lab = Lab::new(2);
    lab.block_on(async {
        let first = lab.start(0).await;
        lab.join_manager(1, &first).await;
        let second = lab.start(1).await;
        let key = ca::new_key_and_csr().unwrap();
        let (root, node) = (root_of(&first), lab.node_id(1).parse().unwrap());
        let signed =
            ca::sign_csr(&root, &key.csr_pem, &node, &cluster_of(&first), NodeRole::Worker, HOUR, SystemTime::now());
        let stolen = Identity::from_pem(root.cert_pem, signed.unwrap(), key.key_pem).unwrap();
        let own = Identity::load(&lab.paths(1).manager_dir().join("tls")).unwrap();
        let csr = || ca::new_key_and_csr().unwrap().csr_pem;
        let renew = async |channel: Channel, manager_csr_pem: String| {
            let request = wire::RenewRequest { worker_csr_pem: csr(), manager_csr_pem };
            CaClient::new(channel).renew(request).await.map(tonic::Response::into_inner)
        };
        let by = async |identity: &Identity, at: usize| {
            transport::tls_channel(&lab.addr(at), identity, NodeRole::Manager).await.unwrap()
        };
        // Without autolock, the manager's key lies open as well, and a manager that lost its files comes back by itself.
        assert!(!renew(by(&stolen, 0).await, csr()).await.unwrap().manager_cert_pem.is_empty());

        let cluster = first.list(Kind::Cluster).await.remove(0);
        let Some(wire::object::Object::Cluster(cluster)) = cluster.object else { panic!("not a cluster") };
        let spec = wire::ClusterSpec { autolock: true, ..cluster.spec.unwrap() };
        let request = wire::UpdateRequest {
            kind: Kind::Cluster.into(),
            id: cluster.id,
            version: cluster.meta.unwrap().version,
            spec: Some(wire::Spec { spec: Some(wire::spec::Spec::Cluster(spec)) }),
            ..wire::UpdateRequest::default()
        };
        first.control().await.update(request).await.unwrap();

        for at in [0, 1] {
            let refused = renew(by(&stolen, at).await, csr()).await.unwrap_err();
            assert_eq!(
                (refused.code(), code::of(&refused)),
                (Code::PermissionDenied, Some(code::NEEDS_MANAGER_KEY)),
                "manager {at}: {refused}"
            );
            // Its own can still be had: a manager may wait for its key for long.
            let alone = renew(by(&stolen, at).await, String::new()).await.unwrap();
            assert_eq!((alone.manager_cert_pem.as_str(), alone.node_id), ("", lab.node_id(1)));
            assert_eq!(raw::subject(&alone.worker_cert_pem).role, NodeRole::Worker);
            let whole = renew(by(&own, at).await, csr()).await.unwrap();
            assert_eq!(raw::subject(&whole.manager_cert_pem).role, NodeRole::Manager);
        }
        // Its own socket is served by a manager that has its keys.
        let socket = transport::unix_channel(&lab.paths(1).manager_sock()).await.unwrap();
        let whole = renew(socket, csr()).await.unwrap();
        assert_eq!(raw::subject(&whole.manager_cert_pem).node_id.as_str(), lab.node_id(1));
        second.stop().await;
        first.stop().await;
    });
}

#[test]
fn raft_is_not_spoken_on_a_local_socket() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        for path in every_call().iter().filter(|path| path.starts_with("/orch.v1.Raft/")) {
            let socket = transport::unix_channel(&lab.paths(0).manager_sock()).await.unwrap();
            let (refused, said) = raw::call(socket, path, raw::nothing(), &[]).await;
            assert_eq!(refused, Code::Unauthenticated, "{path}: {said}");
        }
        manager.stop().await;
    });
}
