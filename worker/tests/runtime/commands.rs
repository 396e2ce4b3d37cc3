//! Commands executed in a running container.

use super::*;

#[tokio::test]
async fn exec_has_streams_environment_and_exit_codes() {
    let node = Node::new();
    let container = node.create(&["sleep", "1000"], |c, _| c.env = vec!["BASE=1".to_owned()]).await.unwrap();
    container.start().await.unwrap();
    let mut request = command(&["sh", "-c", "cat; echo $BASE $MORE; pwd; id -un; echo oops >&2; exit 3"]);
    request.stdin = true;
    request.env = vec!["MORE=2".to_owned()];
    request.cwd = "/tmp".to_owned();
    request.user = "web".to_owned();
    let mut exec = container.exec(&request).await.unwrap();
    let mut stdin = exec.stdin.take().unwrap();
    stdin.write_all(b"typed\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(output(exec).await, (3, "typed\n1 2\n/tmp\nweb\n".to_owned(), "oops\n".to_owned()));

    let err = container.exec(&command(&["nosuch"])).await.map(drop).unwrap_err();
    assert_eq!(
        (err.to_string().as_str(), err.exit_code()),
        ("exec: \"nosuch\": executable file not found in $PATH", Some(127))
    );
    assert_eq!(output(container.exec(&command(&["sh", "-c", "kill -9 $$"])).await.unwrap()).await.0, 137);

    let running = container.exec(&command(&["sleep", "1000"])).await.unwrap();
    let state = node
        .dir
        .path()
        .join("run/shim")
        .join(container.task_id().as_str())
        .join("state")
        .join(container.container_id());
    let left: Vec<_> = fs::read_dir(state)
        .unwrap()
        .flatten()
        .map(|e| e.file_name().into_string().unwrap())
        .filter(|n| n.starts_with("tenant"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    container.kill(libc::SIGKILL).await.unwrap();
    assert_eq!(output(running).await.0, 137, "executed processes end with their container");
    container.delete().await.unwrap();
    assert!(matches!(container.exec(&command(&["true"])).await, Err(RuntimeError::Ended | RuntimeError::Io { .. })));
}

#[tokio::test]
async fn home_is_the_commands_users_own_unless_one_is_given() {
    let node = Node::new();
    for (given, want) in [(None, "/srv\n"), (Some("HOME=/root"), "/root\n")] {
        let env = given.map(str::to_owned).into_iter().collect();
        let container = node.create(&["sleep", "1000"], |c, _| c.env = env).await.unwrap();
        container.start().await.unwrap();
        // Whatever has become of the container's own user meanwhile.
        let passwd = "root:x:0:0:root:/opt:/bin/sh\nweb:x:33:33:web:/srv:/bin/sh\n";
        fs::write(container.rootfs().join("etc/passwd"), passwd).unwrap();
        let mut request = command(&["sh", "-c", "echo $HOME"]);
        request.user = "web".to_owned();
        assert_eq!(output(container.exec(&request).await.unwrap()).await.1, want);
        container.delete().await.unwrap();
    }
}

/// Whoever asks the shim next may take one that hangs up for dead, and what is left of a dead one's container is killed.
#[tokio::test]
async fn a_crowd_of_commands_leaves_room_for_others() {
    let node = Node::new();
    let container = node.start(&["sleep", "1000"]).await;
    let sleep = command(&["sleep", "1000"]);
    let execs: Vec<Exec> = futures::stream::iter(0..300)
        .map(|_| container.exec(&sleep))
        .buffer_unordered(8)
        .map(|exec| exec.unwrap())
        .collect()
        .await;
    assert_eq!(output(container.exec(&command(&["echo", "one more"])).await.unwrap()).await.1, "one more\n");
    let waits = timeout(Duration::from_millis(300), container.wait()).await;
    assert!(waits.is_err(), "it goes on: {waits:?}");
    container.kill(libc::SIGKILL).await.unwrap();
    let exit = timeout(LIMIT, container.wait()).await.expect("it ends").unwrap();
    assert_eq!((exit.code, exit.error), (137, None));
    drop(execs);
    container.delete().await.unwrap();
}

#[tokio::test]
async fn exec_on_a_terminal() {
    let node = Node::new();
    let container = node.start(&["sleep", "1000"]).await;
    let script = "tty; stty size; read line; stty size; echo got $line >/dev/stdout; exit 5";
    let mut request = command(&["sh", "-c", script]);
    request.tty = true;
    request.user = "web".to_owned();
    request.size = Some((30, 100));
    let mut exec = container.exec(&request).await.unwrap();
    assert!(exec.stderr.is_none());
    exec.resizer().unwrap().resize(40, 120).unwrap();
    let mut stdin = exec.stdin.take().unwrap();
    stdin.write_all(b"word\n").await.unwrap();
    let (code, out, _) = output(exec).await;
    assert_eq!(code, 5);
    assert!(out.contains("/dev/pts/") && out.contains("40 120") && out.contains("got word"), "{out:?}");
    container.delete().await.unwrap();
}

#[tokio::test]
async fn a_container_with_a_terminal_logs_it() {
    let node = Node::new();
    let (code, out) = node.run(&["sh", "-c", "tty; echo $TERM"], |c, _| c.tty = true).await;
    assert_eq!(code, 0);
    assert!(out.contains("/dev/pts/0") && out.contains("xterm"), "{out:?}");
}
