//! Containers for real: namespaces, cgroups, seccomp, streams. Needs root and busybox (`apt-get install busybox-static`);
//! fails without either, because a test that is skipped in silence proves nothing.

// The helpers of tests are not seen as tests themselves.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use futures::StreamExt;
use orch_model::{
    TaskId,
    service::{ContainerSpec, HealthConfig, Mount, MountKind, TaskSpec, Ulimit},
};
use orch_proto::paths::Paths;
use orch_worker::runtime::{
    BindMount, Container, ContainerPlan, Exec, ExecRequest, HealthCheck, HealthState, HostOptions, ImageDefaults,
    LogFiles, LogOptions, LogSource, Recovered, Runtime, RuntimeError,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// Nothing here takes long; what does is stuck.
const LIMIT: Duration = Duration::from_secs(30);

/// A machine of its own: folders, a busybox root filesystem per container, a cgroup parent.
struct Node {
    dir: tempfile::TempDir,
    runtime: Runtime,
    cgroup: String,
}

impl Node {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "these tests make containers: run them as root");
        let dir = tempfile::Builder::new().prefix("orch-rt-").tempdir().unwrap();
        let cgroup = format!("/orch-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let runtime = runtime(dir.path(), &cgroup);
        Self { dir, runtime, cgroup }
    }

    fn rootfs(&self, name: &str) -> PathBuf {
        let busybox = Path::new("/bin/busybox");
        assert!(busybox.exists(), "these tests need busybox: apt-get install busybox-static");
        let root = self.dir.path().join(name);
        for folder in ["bin", "etc", "tmp", "proc", "sys", "dev", "root"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for program in [
            "sh", "echo", "sleep", "cat", "id", "grep", "env", "pwd", "hostname", "ls", "su", "true", "dd", "touch",
            "mount", "head", "tail", "stty", "yes", "kill", "unshare", "tty", "seq",
        ] {
            symlink("busybox", root.join("bin").join(program)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/srv:/bin/sh\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nweb:x:33:\nlogs:x:40:web\n").unwrap();
        root
    }

    async fn create(
        &self,
        args: &[&str],
        change: impl FnOnce(&mut ContainerSpec, &mut TaskSpec),
    ) -> Result<Container, RuntimeError> {
        self.create_with(args, change, |_| {}).await
    }

    async fn create_with(
        &self,
        args: &[&str],
        change: impl FnOnce(&mut ContainerSpec, &mut TaskSpec),
        plan: impl FnOnce(&mut ContainerPlan<'_>),
    ) -> Result<Container, RuntimeError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = u128::from(COUNT.fetch_add(1, Ordering::Relaxed));
        let task_id = TaskId::from_random((u128::from(std::process::id()) << 64) + number);
        let mut container =
            ContainerSpec { args: args.iter().map(|&arg| arg.to_owned()).collect(), ..Default::default() };
        let mut spec = TaskSpec::default();
        change(&mut container, &mut spec);
        spec.container = container;
        let mut wanted = ContainerPlan {
            container_id: format!("{:0>64}", format!("{:x}{number:04x}", std::process::id())),
            rootfs: self.rootfs(task_id.as_str()),
            image: ImageDefaults::default(),
            spec: &spec,
            netns: None,
            host_network: false,
            binds: Vec::new(),
            log: LogFiles::at(self.dir.path().join(format!("{task_id}.log"))),
            options: HostOptions::default(),
            users: None,
            task_id,
        };
        plan(&mut wanted);
        timeout(LIMIT, self.runtime.create(&wanted)).await.expect("creation is stuck")
    }

    async fn start(&self, args: &[&str]) -> Container {
        let container = self.create(args, |_, _| {}).await.unwrap();
        container.start().await.unwrap();
        container
    }

    /// Runs to the end: code and output.
    async fn run(&self, args: &[&str], change: impl FnOnce(&mut ContainerSpec, &mut TaskSpec)) -> (i32, String) {
        let container = self.create(args, change).await.unwrap();
        container.start().await.unwrap();
        finish(&container).await
    }

    fn cgroup_file(&self, container: &Container, controller: &str, v1: &str, v2: &str) -> String {
        let v1_path = Path::new("/sys/fs/cgroup").join(controller).join(&container.cgroup()[1..]).join(v1);
        let v2_path = Path::new("/sys/fs/cgroup").join(&container.cgroup()[1..]).join(v2);
        let path = if v1_path.exists() { v1_path } else { v2_path };
        fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display())).trim().to_owned()
    }
}

impl Drop for Node {
    /// Whatever a failed test left: processes and cgroups.
    fn drop(&mut self) {
        let found = |path: &Path| -> Vec<PathBuf> {
            fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect()
        };
        let mounts: Vec<PathBuf> = [vec![PathBuf::from("/sys/fs/cgroup")], found(Path::new("/sys/fs/cgroup"))].concat();
        for parent in mounts.iter().map(|mount| mount.join(&self.cgroup[1..])).filter(|parent| parent.exists()) {
            for child in found(&parent) {
                let pids = fs::read_to_string(child.join("cgroup.procs")).unwrap_or_default();
                for pid in pids.lines().filter_map(|line| line.parse().ok()) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
                for _ in 0..200 {
                    if fs::remove_dir(&child).is_ok() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            let _ = fs::remove_dir(parent);
        }
    }
}

fn runtime(dir: &Path, cgroup: &str) -> Runtime {
    Runtime::with_shim_command(&Paths::under(dir), cgroup, shim_program(), Vec::new()).unwrap()
}

fn shim_program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let shim = test.parent().and_then(Path::parent).unwrap().join("examples/shim");
    assert!(shim.exists(), "{} is missing: cargo build -p orch-worker --example shim", shim.display());
    shim
}

async fn finish(container: &Container) -> (i32, String) {
    let exit = timeout(LIMIT, container.wait()).await.expect("the container does not end").unwrap();
    let output = text(container).await;
    container.delete().await.unwrap();
    (exit.code, output)
}

async fn text(container: &Container) -> String {
    let lines = Runtime::logs(container.log_files(), LogOptions::default());
    lines.map(|line| line.unwrap().line).collect().await
}

fn command(args: &[&str]) -> ExecRequest {
    ExecRequest { args: args.iter().map(|&arg| arg.to_owned()).collect(), ..Default::default() }
}

async fn output(exec: Exec) -> (i32, String, String) {
    let Exec { mut stdout, stderr, exit, stdin, .. } = exec;
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).await.unwrap();
    if let Some(mut stderr) = stderr {
        stderr.read_to_string(&mut err).await.unwrap();
    }
    (timeout(LIMIT, exit.wait()).await.expect("the process does not end").unwrap(), out, err)
}

fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}

#[tokio::test]
async fn output_and_exit_codes_arrive() {
    let node = Node::new();
    assert_eq!(node.run(&["echo", "hello"], |_, _| {}).await, (0, "hello\n".to_owned()));
    assert_eq!(node.run(&["sh", "-c", "exit 42"], |_, _| {}).await.0, 42);
    assert_eq!(node.run(&["sh", "-c", "printf partial"], |_, _| {}).await, (0, "partial".to_owned()));

    let container = node.start(&["sh", "-c", "echo out; echo err >&2"]).await;
    container.wait().await.unwrap();
    let mut lines: Vec<_> = container.logs(LogOptions::default()).map(|line| line.unwrap()).collect().await;
    lines.sort_by_key(|line| line.line.clone());
    let got: Vec<_> = lines.iter().map(|line| (line.stream, line.line.as_str())).collect();
    assert_eq!(got, [(LogSource::Stderr, "err\n"), (LogSource::Stdout, "out\n")]);
    assert!(lines[0].time <= SystemTime::now());
    let raw = fs::read_to_string(&container.log_files().path).unwrap();
    assert!(raw.contains(r#"{"log":"out\n","stream":"stdout","time":"20"#), "{raw}");
    container.delete().await.unwrap();
}

#[tokio::test]
async fn who_reads_after_the_end_misses_nothing() {
    let node = Node::new();
    // A pipe holds 64 KiB: the reader's is full when the last words come, or the rest is on its way all along.
    for (script, expected) in
        [("head -c 65536 /dev/zero; sleep 0.3; echo end", 65_540), ("head -c 120000 /dev/zero", 120_000)]
    {
        let container = node.create(&["sh", "-c", script], |_, _| {}).await.unwrap();
        let mut attachment = container.attach(false).await.unwrap();
        container.start().await.unwrap();
        timeout(LIMIT, container.wait()).await.expect("who does not read holds up the end").unwrap();
        let mut read = Vec::new();
        attachment.stdout.read_to_end(&mut read).await.unwrap();
        assert_eq!(read.len(), expected, "{script}");
        container.delete().await.unwrap();
    }
}

#[tokio::test]
async fn who_goes_is_forgotten_though_nothing_is_printed() {
    let node = Node::new();
    let container = node.start(&["sleep", "1000"]).await;
    let shim = shim_of(&container);
    let files = || fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    let before = files();
    for stdin in [false, true] {
        let attachments = [container.attach(stdin).await.unwrap(), container.attach(stdin).await.unwrap()];
        assert!(files() > before);
        drop(attachments);
        timeout(LIMIT, async {
            while files() > before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the shim keeps what it had for them");
    }
    container.kill(libc::SIGKILL).await.unwrap();
    container.wait().await.unwrap();
    container.delete().await.unwrap();
}

#[tokio::test]
async fn signals_end_it() {
    let node = Node::new();
    let container = node.start(&["sleep", "1000"]).await;
    container.kill(libc::SIGKILL).await.unwrap();
    let exit = container.wait().await.unwrap();
    assert_eq!((exit.code, exit.signal, exit.error), (137, Some(9), None));
    assert!(exit.started_at.unwrap() <= exit.finished_at);
    container.kill(libc::SIGTERM).await.unwrap();
    assert_eq!(container.wait().await.unwrap().code, 137, "an end can be asked for again");
    container.delete().await.unwrap();
    container.delete().await.unwrap();

    // Real-time ones have numbers, and names in the C library alone; process 1 must have asked for it to be ended by one.
    for (signal, traps, code) in [(37, false, 137), (37, true, 7), (64, true, 7)] {
        let trap = if traps { format!("trap 'exit 7' {signal}; ") } else { String::new() };
        let container = node.start(&["sh", "-c", &format!("{trap}echo ready; while :; do sleep 0.01; done")]).await;
        let mut lines = container.logs(LogOptions { follow: true, ..Default::default() });
        assert_eq!(timeout(LIMIT, lines.next()).await.unwrap().unwrap().unwrap().line, "ready\n");
        container.kill(signal).await.unwrap();
        if !traps {
            container.kill(libc::SIGKILL).await.unwrap();
        }
        assert_eq!(finish(&container).await.0, code, "{signal}");
    }
    let container = node.start(&["sleep", "1000"]).await;
    assert_eq!(output(container.exec(&command(&["sh", "-c", "kill -37 $$"])).await.unwrap()).await.0, 128 + 37);
    assert!(container.kill(65).await.unwrap_err().to_string().contains("cannot send signal 65"));
    container.delete().await.unwrap();

    let container = node.start(&["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done"]).await;
    let mut lines = container.logs(LogOptions { follow: true, ..Default::default() });
    assert_eq!(timeout(LIMIT, lines.next()).await.unwrap().unwrap().unwrap().line, "ready\n");
    container.kill(libc::SIGTERM).await.unwrap();
    assert_eq!(finish(&container).await.0, 7);
    assert!(timeout(LIMIT, lines.next()).await.unwrap().is_none(), "following ends with the container");
}

#[tokio::test]
async fn a_missing_program_is_said_clearly() {
    let node = Node::new();
    let check = async |args: &[&str], message: &str, code: i32| {
        let err = node.create(args, |_, _| {}).await.unwrap_err();
        assert_eq!((err.to_string().as_str(), err.exit_code()), (message, Some(code)));
    };
    check(&["nosuch"], "exec: \"nosuch\": executable file not found in $PATH", 127).await;
    check(&["/bin/nosuch"], "exec: \"/bin/nosuch\": stat /bin/nosuch: no such file or directory", 127).await;
    check(&["/etc/passwd"], "exec: \"/etc/passwd\": permission denied", 126).await;
    let err = node.create(&[], |_, _| {}).await.unwrap_err();
    assert_eq!(err.to_string(), "no command specified: neither the service nor the image names one");
    let err = node.create(&["true"], |c, _| c.user = "nobody".to_owned()).await.unwrap_err();
    assert_eq!(err.to_string(), "unable to find user nobody: no matching entries in the image's /etc/passwd");

    let text_file = node.create_with(
        &["/bin/script"],
        |_, _| {},
        |plan| {
            let script = plan.rootfs.join("bin/script");
            fs::write(&script, "echo no interpreter").unwrap();
            fs::set_permissions(script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        },
    );
    let container = text_file.await.unwrap();
    let err = container.start().await.unwrap_err();
    assert!(err.to_string().starts_with("exec: \"/bin/script\": exec format error"), "{err}");
    assert_eq!(container.wait().await.unwrap().code, 126);
    container.delete().await.unwrap();
    let left: Vec<_> = fs::read_dir(node.dir.path().join("run/shim")).unwrap().collect();
    assert!(left.is_empty(), "failed creations leave {left:?}");
}

#[tokio::test]
async fn limits_are_in_the_cgroups() {
    let node = Node::new();
    let container = node.create(&["sleep", "1000"], |_, task| {
        task.limits.memory_bytes = 64 << 20;
        task.limits.nano_cpus = 500_000_000;
        task.limits.pids = 20;
    });
    let container = container.await.unwrap();
    container.start().await.unwrap();
    assert_eq!(node.cgroup_file(&container, "memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(node.cgroup_file(&container, "pids", "pids.max", "pids.max"), "20");
    let cpu = node.cgroup_file(&container, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(["50000", "50000 100000"].contains(&cpu.as_str()), "{cpu}");
    let inside = output(
        container
            .exec(&command(&[
                "sh",
                "-c",
                "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null",
            ]))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(inside.1.trim(), (64 << 20).to_string(), "a program sees its limit");
    let write = output(
        container
            .exec(&command(&[
                "sh",
                "-c",
                "echo 1 > $(ls -d /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null)",
            ]))
            .await
            .unwrap(),
    )
    .await;
    assert_ne!(write.0, 0, "and cannot change it");
    let path = container.cgroup().to_owned();
    container.delete().await.unwrap();
    let left: Vec<_> = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|e| e.path().join(&path[1..]))
        .filter(|p| p.exists())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_container_that_wants_too_much_memory_is_killed_and_says_so() {
    let node = Node::new();
    let container =
        node.create(&["sh", "-c", "yes | head -c 200m | tail -c 200m > /dev/null; echo survived"], |_, task| {
            task.limits.memory_bytes = 16 << 20;
        });
    let container = container.await.unwrap();
    container.start().await.unwrap();
    let exit = timeout(LIMIT, container.wait()).await.unwrap().unwrap();
    assert!(exit.oom_killed, "{exit:?}");
    container.delete().await.unwrap();
}

#[tokio::test]
async fn privileges_are_dockers() {
    let node = Node::new();
    let container = node.start(&["sleep", "1000"]).await;
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let caps = if v2 { "00000000a00425fb" } else { "00000000a80425fb" };
    let exec = container.exec(&command(&["sleep", "1000"])).await.unwrap();
    for pid in [container.pid(), exec.pid] {
        assert_eq!(status(pid, "Seccomp"), "2");
        assert_eq!(status(pid, "NoNewPrivs"), "0");
        for (set, want) in [
            ("CapEff", caps),
            ("CapPrm", caps),
            ("CapBnd", caps),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
        ] {
            assert_eq!(status(pid, set), want, "{set} of {pid}");
        }
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "0");
        for set in ["SigBlk", "SigIgn"] {
            assert_eq!(status(pid, set), "0000000000000000", "{set} of {pid}");
        }
        assert_eq!(status(pid, "Groups"), "0");
    }
    let (code, _, err) = output(container.exec(&command(&["unshare", "-m", "true"])).await.unwrap()).await;
    assert_eq!((code, err.contains("Operation not permitted")), (1, true), "{err}");

    let mut privileged = command(&["sleep", "1000"]);
    privileged.privileged = true;
    let exec = container.exec(&privileged).await.unwrap();
    assert_eq!(status(exec.pid, "Seccomp"), "0");
    assert_ne!(status(exec.pid, "CapEff"), caps);
    container.delete().await.unwrap();

    let adjusted = node.create(&["sleep", "1000"], |c, _| {
        c.cap_drop = vec!["ALL".to_owned()];
        c.cap_add = vec!["NET_ADMIN".to_owned()];
    });
    let adjusted = adjusted.await.unwrap();
    adjusted.start().await.unwrap();
    assert_eq!(status(adjusted.pid(), "CapBnd"), "0000000000001000");
    adjusted.delete().await.unwrap();
}

#[tokio::test]
async fn users_other_than_root_own_their_output() {
    let node = Node::new();
    let script = "id; echo again > /dev/stdout; grep CapEff /proc/self/status; pwd; echo $HOME";
    let (_, out) = node
        .run(&["sh", "-c", script], |c, _| {
            c.user = "web".to_owned();
            c.dir = "/srv/new".to_owned();
        })
        .await;
    let want =
        ["uid=33(web) gid=33(web) groups=33(web),40(logs)", "again", "CapEff:\t0000000000000000", "/srv/new", "/srv"];
    assert_eq!(out.lines().collect::<Vec<_>>(), want);
}

#[tokio::test]
async fn setuid_programs_work() {
    let node = Node::new();
    let container = node.create_with(
        &["/suid/su", "root"],
        |c, _| {
            c.user = "web".to_owned();
            // It waits there for a password.
            c.open_stdin = true;
        },
        |plan| {
            let program = plan.rootfs.join("suid/su");
            fs::create_dir(plan.rootfs.join("suid")).unwrap();
            fs::copy("/bin/busybox", &program).unwrap();
            fs::set_permissions(program, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
        },
    );
    let container = container.await.unwrap();
    container.start().await.unwrap();
    let uids: Vec<String> = status(container.pid(), "Uid").split_whitespace().map(str::to_owned).collect();
    assert_eq!(uids[..2], ["33", "0"], "real and effective");
    container.delete().await.unwrap();
}

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
    let mut request = command(&["sh", "-c", "tty; stty size; read line; stty size; echo got $line; exit 5"]);
    request.tty = true;
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

#[tokio::test]
async fn the_inside_looks_as_it_should() {
    let node = Node::new();
    let file = node.dir.path().join("hosts");
    fs::write(&file, "10.0.0.9 me\n").unwrap();
    let script = "hostname; cat /etc/hosts; touch /x 2>/dev/null && echo writable; touch /data/f && echo data; \
                  touch /ro/f 2>/dev/null || echo readonly; grep -c ' /scratch ' /proc/mounts; cat /proc/1/comm; \
                  touch /proc/sys/kernel/hostname 2>/dev/null || echo protected; \
                  grep 'open files' /proc/self/limits; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /dev";
    let data = node.dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let mount = |kind, source: &Path, target: &str, read_only| Mount {
        kind,
        source: source.to_str().unwrap().to_owned(),
        target: target.to_owned(),
        read_only,
        tmpfs_size_bytes: 1 << 20,
        ..Mount::default()
    };
    let args = ["sh", "-c", script];
    let container = node.create_with(
        &args,
        |c, _| {
            c.read_only = true;
            c.hostname = "box".to_owned();
            c.mounts = vec![
                mount(MountKind::Bind, &data, "/data", false),
                mount(MountKind::Bind, &data, "/ro", true),
                mount(MountKind::Tmpfs, Path::new(""), "/scratch", false),
            ];
            c.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 100, hard: 200 }];
        },
        |plan| {
            fs::create_dir(plan.rootfs.join("data")).unwrap();
            fs::create_dir(plan.rootfs.join("ro")).unwrap();
            plan.binds = vec![BindMount {
                source: file,
                target: "/etc/hosts".to_owned(),
                read_only: false,
                propagation: String::new(),
            }];
        },
    );
    let container = container.await.unwrap();
    container.start().await.unwrap();
    let (_, out) = finish(&container).await;
    let (words, devices) = out.split_once("Max open files").unwrap();
    assert_eq!(words, "box\n10.0.0.9 me\ndata\nreadonly\n1\nsh\nprotected\n");
    let fields: Vec<&str> = devices.split_whitespace().collect();
    assert_eq!(fields[..4], ["100", "200", "files", "0"]);
    for device in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdout"] {
        assert!(fields.contains(&device), "/dev/{device} is missing: {fields:?}");
    }
    assert!(!fields.contains(&"mem") && !fields.contains(&"kmsg"), "{fields:?}");
}

#[tokio::test]
async fn another_worker_finds_what_the_first_one_left() {
    let node = Node::new();
    let created = node.create(&["sleep", "1000"], |_, _| {}).await.unwrap();
    let running = node.start(&["sleep", "1000"]).await;
    let ended = node.start(&["sh", "-c", "exit 9"]).await;
    ended.wait().await.unwrap();
    let second = runtime(node.dir.path(), &node.cgroup);
    let mut seen = 0;
    for found in second.recover().await.unwrap() {
        seen += 1;
        match found {
            Recovered::Created(container) => {
                assert_eq!(container.container_id(), created.container_id());
                container.delete().await.unwrap();
            }
            Recovered::Running(container) => {
                assert_eq!((container.task_id(), container.pid()), (running.task_id(), running.pid()));
                assert_eq!(output(container.exec(&command(&["echo", "still"])).await.unwrap()).await.1, "still\n");
                container.delete().await.unwrap();
            }
            Recovered::Ended(container, exit) => {
                assert_eq!((container.task_id(), exit.code), (ended.task_id(), 9));
                container.delete().await.unwrap();
            }
        }
    }
    assert_eq!(seen, 3);
    assert!(second.recover().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_killed_shim_takes_its_container_along() {
    let node = Node::new();
    let container = node.start(&["sh", "-c", "sleep 1000 & sleep 1000"]).await;
    let waiting = tokio::spawn({
        let container = container.clone();
        async move { container.wait().await }
    });
    kill(shim_of(&container));
    let exit = timeout(LIMIT, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(exit.error.unwrap().contains("shim was killed"));
    // Its control group is empty, but the kernel may still be taking the process apart.
    poll("the container's process is gone", || is_gone(container.pid())).await;
    assert!(matches!(node.runtime.recover().await.unwrap().as_slice(), [Recovered::Ended(..)]));
    container.delete().await.unwrap();
    assert!(node.runtime.recover().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_container_whose_shim_is_killed_ends_without_a_worker_too() {
    let node = Node::new();
    let container = node.start(&["sleep", "1000"]).await;
    let user = node.create(&["sleep", "1000"], |spec, _| spec.user = "web".to_owned()).await.unwrap();
    user.start().await.unwrap();
    for container in [&container, &user] {
        kill(shim_of(container));
        poll("the container's process is gone", || is_gone(container.pid())).await;
    }
    assert_eq!(node.runtime.recover().await.unwrap().len(), 2);
    container.delete().await.unwrap();
    user.delete().await.unwrap();
}

#[tokio::test]
async fn a_shim_that_is_killed_before_the_start_is_noticed() {
    let node = Node::new();
    let container = node.create(&["sleep", "1000"], |_, _| {}).await.unwrap();
    let first = container.pid();
    kill(shim_of(&container));
    // The container's first process holds what it was born with; the shim's socket must not be among it.
    let refused = timeout(LIMIT, container.start()).await.expect("the start is stuck").unwrap_err();
    assert!(refused.to_string().contains("shim was killed"), "{refused}");
    assert!(is_gone(first), "the container's first process is still there");
    container.delete().await.unwrap();
}

#[tokio::test]
async fn shims_do_without_the_process_that_they_are_born_from() {
    let node = Node::new();
    let before = node.start(&["sleep", "1000"]).await;
    let nursery = parent_of(shim_of(&before));
    assert_eq!(parent_of(nursery), nix::unistd::getpid().as_raw(), "the nursery is the worker's child");
    kill(nursery);
    poll("the killed nursery is collected", || !Path::new(&format!("/proc/{nursery}")).exists()).await;
    let after = node.start(&["sleep", "1000"]).await;
    assert_ne!(parent_of(shim_of(&after)), nursery);
    for container in [before, after] {
        let (code, ..) = output(container.exec(&command(&["true"])).await.unwrap()).await;
        assert_eq!(code, 0);
        container.kill(libc::SIGKILL).await.unwrap();
        assert_eq!(finish(&container).await.0, 137);
    }
}

/// 0.3 MB is what a container may cost in memory of its own. A shim of tests is made as one of the product is.
#[tokio::test]
async fn shims_share_nearly_all_of_their_memory() {
    const LIMIT_KB: u64 = 300;
    let node = Node::new();
    // Pages of a program that was just built are dirty until they are on the disk, whoever has them.
    fs::File::open(shim_program()).unwrap().sync_all().unwrap();
    let mut containers = Vec::new();
    for _ in 0..3 {
        let container = node.start(&["sh", "-c", "seq 1000; sleep 1000"]).await;
        let (code, out, _) = output(container.exec(&command(&["seq", "100"])).await.unwrap()).await;
        assert_eq!((code, out.lines().count()), (0, 100));
        containers.push(container);
    }
    for container in containers {
        let shim = shim_of(&container);
        let rollup = fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        let kb = |name: &str| -> u64 {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
        };
        // Clean pages are the program's file, whoever has touched them first.
        let private = kb("Private_Dirty");
        assert!(private <= LIMIT_KB, "{private} kB of a shim's memory are its own:\n{rollup}");
        let name = fs::read_to_string(format!("/proc/{shim}/cmdline")).unwrap();
        assert!(name.starts_with("orch\0shim\0/"), "{name:?}");
        container.kill(libc::SIGKILL).await.unwrap();
        finish(&container).await;
    }
}

fn shim_of(container: &Container) -> i32 {
    parent_of(i32::try_from(container.pid()).unwrap())
}

fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Or a zombie of whoever adopts orphans here.
fn is_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

async fn poll(what: &str, mut probe: impl FnMut() -> bool) {
    let polling = async {
        while !probe() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, polling).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn following_goes_on_over_rotations() {
    let node = Node::new();
    let container = node.create_with(
        &["sh", "-c", "sleep 0.2; seq 1 2000; sleep 0.2; seq 2001 2010"],
        |_, _| {},
        |plan| {
            plan.log.max_size_bytes = 1 << 20;
            plan.log.max_files = 2;
        },
    );
    let container = container.await.unwrap();
    container.start().await.unwrap();
    let lines = container.logs(LogOptions { follow: true, ..Default::default() });
    let got: Vec<String> = timeout(LIMIT, lines.map(|line| line.unwrap().line).collect()).await.unwrap();
    let want: Vec<String> = (1..=2010).map(|n| format!("{n}\n")).collect();
    assert_eq!(got, want);
    let tail: Vec<String> = container
        .logs(LogOptions { tail: Some(2), ..Default::default() })
        .map(|line| line.unwrap().line)
        .collect()
        .await;
    assert_eq!(tail, ["2009\n", "2010\n"]);
    container.delete().await.unwrap();
}

#[tokio::test]
async fn a_privileged_container_has_devices_and_no_filter() {
    let node = Node::new();
    let container = node.create(&["sleep", "1000"], |c, _| c.privileged = true).await.unwrap();
    container.start().await.unwrap();
    assert_eq!(status(container.pid(), "Seccomp"), "0");
    assert_eq!(status(container.pid(), "CapEff"), status(std::process::id(), "CapEff"));
    let mount = ["sh", "-c", "mount -t tmpfs none /tmp && echo mounted"];
    let mut request = command(&mount);
    request.privileged = true;
    assert_eq!(output(container.exec(&request).await.unwrap()).await.1, "mounted\n");
    container.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once() {
    let node = Node::new();
    let begin = std::time::Instant::now();
    let created = futures::future::join_all((0..50).map(|_| async {
        let container = node.create(&["sleep", "1000"], |_, _| {}).await.unwrap();
        container.start().await.unwrap();
        container
    }));
    let containers = created.await;
    println!("50 started in {:?}", begin.elapsed());
    let begin = std::time::Instant::now();
    let one_more = node.start(&["sleep", "1000"]).await;
    println!("one more made and started in {:?}", begin.elapsed());
    one_more.delete().await.unwrap();
    let begin = std::time::Instant::now();
    futures::future::join_all(containers.iter().map(|container| async { container.delete().await.unwrap() })).await;
    println!("50 deleted in {:?}", begin.elapsed());
    assert!(node.runtime.recover().await.unwrap().is_empty());
}

fn checked(script: &str) -> impl FnOnce(&mut ContainerSpec, &mut TaskSpec) {
    let test = ["CMD-SHELL", script].map(str::to_owned).to_vec();
    move |container, _| {
        container.health = Some(HealthConfig {
            test,
            interval: Some(Duration::from_millis(200)),
            timeout: Some(Duration::from_millis(1500)),
            retries: 1,
            start_period: None,
            start_interval: None,
        });
    }
}

/// What the checks say once there are so many.
async fn checks(container: &Container, at_least: usize) -> HealthState {
    let said = async {
        loop {
            let health = container.health().await.unwrap().unwrap();
            if health.results.len() >= at_least {
                return health;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, said).await.expect("it is not checked")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_is_over_when_nobody_can_print_for_it_any_more() {
    let node = Node::new();
    for (script, want) in [
        ("echo ok", (0, "ok\n")),
        ("sleep 1000 & echo ok; exit 0", (-1, "Health check exceeded timeout (1.5s): ok\n")),
        ("sleep 1000 >/dev/null 2>&1 & echo ok", (0, "ok\n")),
        ("sh -c 'sleep 0.2; echo late' & echo soon; exit 3", (3, "soon\nlate\n")),
        ("exec >/dev/null 2>&1; sleep 0.2; exit 4", (4, "")),
        ("yes", (-1, "")),
    ] {
        let container = node.create(&["sleep", "1000"], checked(script)).await.unwrap();
        container.start().await.unwrap();
        for result in &checks(&container, 2).await.results[..2] {
            assert_eq!(result.exit_code, want.0, "{script}: {result:?}");
            assert!(script == "yes" || result.output == want.1, "{script}: {result:?}");
        }
        container.delete().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_a_check_that_was_cut_says_so() {
    let node = Node::new();
    for (bytes, want) in [(4096, "x"), (4097, "x...")] {
        let script = format!("yes '' | head -n {bytes} | while read l; do echo -n x; done");
        let container = node.create(&["sleep", "1000"], checked(&script)).await.unwrap();
        container.start().await.unwrap();
        let output = checks(&container, 1).await.results[0].output.clone();
        assert_eq!((output.trim_end_matches('.').len(), &output[4095..]), (4096, want), "{bytes}");
        container.delete().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_stands_still_is_not_checked() {
    let node = Node::new();
    // The second is under way when it is frozen.
    let script = "test ! -e /tmp/slow || sleep 0.3; touch /tmp/slow";
    let container = node.create(&["sleep", "1000"], checked(script)).await.unwrap();
    container.start().await.unwrap();
    checks(&container, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    container.set_frozen(true).await.unwrap();
    let before = checks(&container, 1).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(checks(&container, 1).await, before);
    container.set_frozen(false).await.unwrap();
    let after = checks(&container, before.results.len() + 1).await;
    assert!(after.results.iter().all(|result| result.exit_code == 0), "{after:?}");
    container.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_checks_goes_on_in_the_next_run() {
    let node = Node::new();
    let earlier = HealthCheck { start_ns: 1, end_ns: 2, exit_code: 7, output: "before".to_owned() };
    let given = earlier.clone();
    let container =
        node.create_with(&["sleep", "1000"], checked("echo now"), |plan| plan.options.earlier_checks = vec![given]);
    let container = container.await.unwrap();
    container.start().await.unwrap();
    let health = checks(&container, 2).await;
    assert_eq!((&health.results[0], health.results[1].output.as_str(), health.failing_streak), (&earlier, "now\n", 0));
    container.delete().await.unwrap();
}
