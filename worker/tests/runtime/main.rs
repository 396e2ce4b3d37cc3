//! Containers for real: namespaces, cgroups, seccomp, streams. Needs root and busybox (`apt-get install busybox-static`);
//! fails without either, because a test that is skipped in silence proves nothing.

// The helpers of tests are not seen as tests themselves.
#![allow(clippy::unwrap_used)]

mod checks;
mod commands;
mod inside;
mod shims;

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
    LogFiles, LogOptions, LogSource, Recovered, Runtime, RuntimeError, Sharing,
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
    let shim = shims::shim_of(&container);
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
