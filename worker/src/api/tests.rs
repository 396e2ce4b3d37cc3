//! The local socket, as the command line uses it.

use std::sync::atomic::Ordering;

use orch_proto::{
    transport::unix_channel,
    wire::{ImportImageStart, import_image_request::Message, pull_progress, worker_local_client::WorkerLocalClient},
};
use tonic::{Code, transport::Channel};

use super::*;
use crate::agent::tests::{Node, import_box};

async fn client(node: &Node, agent: &Arc<Agent>) -> WorkerLocalClient<Channel> {
    let (socket, agent) = (node.paths.worker_sock(), agent.clone());
    let incoming = unix_incoming(&socket, SOCKET_MODE).unwrap();
    tokio::spawn(serve_incoming(incoming, agent));
    WorkerLocalClient::new(unix_channel(&socket).await.unwrap())
}

fn import_messages(name: &str, changes: &[&str], tar: &[u8]) -> Vec<ImportImageRequest> {
    let start = ImportImageStart {
        name: name.to_owned(),
        changes: changes.iter().map(|&change| change.to_owned()).collect(),
        ..Default::default()
    };
    let data = tar.chunks(100).map(|chunk| Message::Data(bytes::Bytes::copy_from_slice(chunk)));
    std::iter::once(Message::Start(start)).chain(data).map(|m| ImportImageRequest { message: Some(m) }).collect()
}

fn tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "x", &b"x"[..]).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_imported_listed_and_removed() {
    let node = Node::new().await;
    let worker = node.worker().await;
    let mut client = client(&node, &worker.agent).await;
    node.heard.wait("session").await;

    node.heard.leaderless.store(3, Ordering::Relaxed);
    let messages = import_messages("web:1", &["CMD [\"/x\"]"], &tar());
    let image = client.import_image(futures::stream::iter(messages)).await.unwrap().into_inner();
    assert_eq!(image.names, ["docker.io/library/web:1"]);
    assert!(image.config_json.contains("\"Cmd\":[\"/x\"]"), "{}", image.config_json);
    assert!(node.heard.has("image docker.io/library/web:1 holder_only=false"));
    let listed = client.list_images(Empty {}).await.unwrap().into_inner().images;
    assert_eq!(listed, std::slice::from_ref(&image));

    for (name, changes, content, code) in [
        ("Web", vec![], tar(), Code::InvalidArgument),
        ("web", vec!["RUN x"], tar(), Code::InvalidArgument),
        ("web", vec![], b"this is no tar".repeat(100), Code::InvalidArgument),
        ("web", vec![], Vec::new(), Code::InvalidArgument),
    ] {
        let messages = import_messages(name, &changes, &content);
        let refused = client.import_image(futures::stream::iter(messages)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert_eq!(client.list_images(Empty {}).await.unwrap().into_inner().images.len(), 1, "{name} {changes:?}");
    }

    let remove = |reference: &str| RemoveImageRequest { reference: reference.to_owned(), force: false };
    let missing = client.remove_image(remove("nosuch")).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::NotFound, "No such image: nosuch:latest"));
    let comes_back = async {
        node.heard.wait("forget ").await;
        node.heard.log.lock().unwrap().clear();
        let messages = import_messages("web:2", &["CMD [\"/x\"]"], &tar());
        client.clone().import_image(futures::stream::iter(messages)).await.unwrap()
    };
    let mut removing = client.clone();
    let (removed, _) = tokio::join!(removing.remove_image(remove("web:1")), comes_back);
    assert_eq!(removed.unwrap().into_inner().untagged, ["docker.io/library/web:1"]);
    let heard = node.heard.log.lock().unwrap().clone();
    let forgotten = heard.iter().rposition(|line| line.starts_with("forget"));
    assert!(forgotten < node.heard.position("image docker.io/library/web:2"), "{heard:#?}");
    let _ = client.remove_image(remove("web:2")).await.unwrap();
    assert!(client.list_images(Empty {}).await.unwrap().into_inner().images.is_empty());

    let mut pull = client
        .pull_image(PullImageRequest { reference: "127.0.0.1:1/x".to_owned(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    let status = pull.message().await.unwrap().unwrap().progress.unwrap();
    assert!(matches!(status, pull_progress::Progress::Status(_)));
    let ended = loop {
        match pull.message().await {
            Ok(Some(message)) => assert!(matches!(message.progress, Some(pull_progress::Progress::Asking(_)))),
            Ok(None) => panic!("a pull from nowhere has come to a good end"),
            Err(refused) => break refused,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_listed_and_entered_and_keep_their_image_and_volume() {
    let node = Node::new().await;
    let worker = node.worker().await;
    import_box(&worker.agent.host.images.store);
    let mut client = client(&node, &worker.agent).await;
    let web = crate::agent::tests::task(1, "box", &["sh", "-c", "echo said; sleep 1000"]);
    node.assign(&[(&web, orch_model::task::TaskState::Running)]);
    node.wait(&web, orch_model::task::TaskState::Running).await;

    let containers = client.list_containers(Empty {}).await.unwrap().into_inner().containers;
    let [container] = containers.as_slice() else { panic!("{containers:?}") };
    assert_eq!((container.name.as_str(), container.pid), (web.container_name().as_str(), node.pid(&web)));
    assert_eq!(container.command, ["sh", "-c", "echo said; sleep 1000"]);

    let conflict = RemoveImageRequest { reference: "box".to_owned(), force: false };
    let conflict = client.remove_image(conflict).await.unwrap_err();
    assert!(conflict.message().starts_with("conflict: unable to remove repository reference \"box\""), "{conflict:?}");

    for reference in ["web.1", &web.container_name(), &container.container_id[..12], web.id.as_str()] {
        let start = orch_proto::wire::ExecStart {
            task: (*reference).to_owned(),
            argv: vec!["echo".to_owned(), "in".to_owned()],
            ..Default::default()
        };
        let start = ExecInput { input: Some(orch_proto::wire::exec_input::Input::Start(start)) };
        let outputs = client.exec(futures::stream::iter([start])).await.unwrap().into_inner();
        let outputs: Vec<_> = outputs.map(|output| output.unwrap().output.unwrap()).collect().await;
        use orch_proto::wire::exec_output::Output;
        assert_eq!(outputs, [Output::Stdout("in\n".into()), Output::ExitCode(0)], "{reference}");
    }
    let request = LogsRequest { tasks: vec!["web.1".to_owned()], ..Default::default() };
    let lines: Vec<_> = client.logs(request).await.unwrap().into_inner().map(|line| line.unwrap().data).collect().await;
    assert_eq!(lines, ["said\n"]);
    let info = client.info(Empty {}).await.unwrap().into_inner();
    assert_eq!((info.containers_running, info.images, info.description.unwrap().hostname.as_str()), (1, 1, "n1"));
}
