//! A lab cluster for the length of a test, driven through `orch lab`.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{PATIENCE, within};

/// The binary under test: `ORCH_TEST_BINARY`, or the one built beside the tests.
#[must_use]
pub fn orch_binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("ORCH_TEST_BINARY") {
        return binary.into();
    }
    let binary = profile_folder().join("orch");
    assert!(binary.exists(), "{} is missing: run `cargo build --workspace` first", binary.display());
    binary
}

/// `target/<profile>`, from `target/<profile>/deps/<test>`.
fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    test.ancestors().nth(2).expect("a profile folder above the test").to_path_buf()
}

/// A root filesystem made by `deploy/images/build`.
#[must_use]
pub fn image(name: &str) -> PathBuf {
    let cache = std::env::var("ORCH_IMAGE_CACHE").unwrap_or_else(|_| "/var/cache/orch/images".into());
    let tar = Path::new(&cache).join(format!("{name}.tar"));
    assert!(tar.exists(), "{} is missing: run `deploy/images/build {name}` first", tar.display());
    tar
}

/// What a command said.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Standard output of a command that must succeed.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "exit code {}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr);
        self.stdout
    }

    /// Standard error of a command that must fail, and says nothing on standard output.
    #[track_caller]
    #[must_use]
    pub fn refused(self) -> String {
        assert!(self.code != 0, "succeeded, but should be refused\nstdout: {}", self.stdout);
        self.stderr
    }

    /// Both, for polling.
    ///
    /// # Errors
    /// When the exit code is not 0.
    pub fn result(self) -> Result<String, String> {
        if self.code == 0 { Ok(self.stdout) } else { Err(format!("exit code {}: {}", self.code, self.stderr)) }
    }
}

fn run(command: &mut Command, stdin: Option<&[u8]>) -> Outcome {
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    if let (Some(bytes), Some(mut pipe)) = (stdin, child.stdin.take()) {
        match pipe.write_all(bytes) {
            // A command that ends before it reads says why by its exit code: its node may have lost its power.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.expect("writing standard input"),
        }
    }
    let output = child.wait_with_output().expect("waiting for the command");
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A running lab; taken down when dropped. A failing test keeps every node's logs.
pub struct Lab {
    name: String,
    orch: PathBuf,
    variables: Vec<(String, String)>,
}

impl Lab {
    /// Brings up `nodes` nodes, the first `managers` of them managers.
    #[track_caller]
    #[must_use]
    pub fn up(name: &str, nodes: usize, managers: usize) -> Self {
        Self::up_with(name, nodes, managers, &[])
    }

    /// As [`Lab::up`], with these environment variables for all daemons and commands.
    #[track_caller]
    #[must_use]
    pub fn up_with(name: &str, nodes: usize, managers: usize, variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self { name: name.into(), orch: orch_binary(), variables }.build(nodes, managers)
    }

    /// As [`Lab::up`], with a binary of its own.
    #[track_caller]
    #[must_use]
    pub fn of_binary(orch: PathBuf, name: &str, nodes: usize, managers: usize) -> Self {
        Self { name: name.into(), orch, variables: Vec::new() }.build(nodes, managers)
    }

    #[track_caller]
    fn build(self, nodes: usize, managers: usize) -> Self {
        let lab = self;
        // What an earlier run left behind after a crash.
        let _ = lab.command("down", &[] as &[&str]);
        let counts = ["--nodes".into(), nodes.to_string(), "--managers".into(), managers.to_string()];
        let _ = lab.command("up", &counts).ok();
        lab
    }

    /// `orch lab VERB --name … ARGS`.
    pub fn command(&self, verb: &str, args: &[impl AsRef<OsStr>]) -> Outcome {
        run(self.orch_command().args(["lab", verb, "--name", &self.name]).args(args), None)
    }

    fn orch_command(&self) -> Command {
        let mut command = Command::new(&self.orch);
        command.envs(self.variables.iter().map(|(key, value)| (key, value)));
        command
    }

    pub(crate) fn exec_command(&self, node: &str, args: &[&str]) -> Command {
        let mut command = self.orch_command();
        command.args(["lab", "exec", "--name", &self.name, node, "--"]).args(args);
        command
    }

    /// Runs a command on a node (`n1`…) or on `client`.
    #[must_use]
    pub fn exec(&self, node: &str, args: &[&str]) -> Outcome {
        run(&mut self.exec_command(node, args), None)
    }

    /// As [`Lab::exec`], with standard input.
    #[must_use]
    pub fn exec_with_input(&self, node: &str, args: &[&str], stdin: &[u8]) -> Outcome {
        run(&mut self.exec_command(node, args), Some(stdin))
    }

    /// Starts a command on a node in the background.
    #[must_use]
    pub fn spawn(&self, node: &str, args: &[&str]) -> Child {
        self.exec_command(node, args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting a command in the lab")
    }

    /// `orch ARGS` on n1.
    #[must_use]
    pub fn orch(&self, args: &[&str]) -> Outcome {
        self.orch_on("n1", args)
    }

    /// `orch ARGS` on a node.
    #[must_use]
    pub fn orch_on(&self, node: &str, args: &[&str]) -> Outcome {
        let mut all = vec!["orch"];
        all.extend(args);
        self.exec(node, &all)
    }

    /// The lab's hosts, as `orch lab ls --format json` lists them.
    #[must_use]
    pub fn hosts(&self) -> Vec<Value> {
        let text = self.command("ls", &["--format", "json"]).ok();
        match serde_json::from_str(&text) {
            Ok(Value::Array(hosts)) => hosts,
            other => panic!("`lab ls --format json` is not a list: {other:?} in {text}"),
        }
    }

    /// A host's address on the underlay.
    #[must_use]
    pub fn address(&self, node: &str) -> String {
        let hosts = self.hosts();
        let host = hosts.iter().find(|host| host["name"] == node).unwrap_or_else(|| panic!("no {node} in {hosts:?}"));
        host["address"].as_str().expect("address is text").to_owned()
    }

    /// Imports `deploy/images` image `name` as `reference` on n1.
    pub fn import(&self, reference: &str, name: &str, changes: &[&str]) {
        let mut args = vec!["image", "import"];
        for change in changes {
            args.extend(["--change", change]);
        }
        let tar = image(name);
        args.extend([reference, tar.to_str().expect("utf-8 path")]);
        let _ = self.orch(&args).ok();
    }

    /// `--format '{{json .}}'` of a list command, one object per line.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub fn list(&self, args: &[&str]) -> Result<Vec<Value>, String> {
        let mut all = args.to_vec();
        all.extend(["--format", "{{json .}}"]);
        let text = self.orch(&all).result()?;
        text.lines().map(|line| serde_json::from_str(line).map_err(|e| format!("{e} in {line}"))).collect()
    }

    /// The process of a node's daemon: `manager`, `worker`, `netd`.
    #[must_use]
    pub fn daemon_pid(&self, node: &str, daemon: &str) -> String {
        let info = self.orch_on(node, &["info"]).ok();
        let said = format!("Daemon {daemon}: pid ");
        let rest = info.split_once(&said).unwrap_or_else(|| panic!("no {said:?} in {info}")).1;
        rest.chars().take_while(char::is_ascii_digit).collect()
    }

    /// Waits until the service has this many running tasks and as many are wanted; `n/n` in `service ls`.
    #[track_caller]
    pub fn wait_replicas(&self, service: &str, replicas: &str) {
        within(PATIENCE * 2, &format!("{service} has {replicas} replicas"), || {
            let services = self.list(&["service", "ls"])?;
            let found =
                services.iter().find(|s| s["Name"] == service).ok_or(format!("no {service} in {services:?}"))?;
            // More may follow, which a test may leave out or ask for: "2/2 (max 1 per node)", "0/2 (5/5 completed)".
            let now = found["Replicas"].as_str().unwrap_or_default();
            if now == replicas || now.split(' ').next() == Some(replicas) {
                return Ok(());
            }
            let tasks = self.orch(&["service", "ps", "--no-trunc", service]);
            Err(format!("{found}\n{}{}", tasks.stdout, tasks.stderr))
        });
    }

    /// Asks `url` once from `node`; the body.
    ///
    /// # Errors
    /// When there is no answer with status 200 within 5 s.
    pub fn get(&self, node: &str, url: &str) -> Result<String, String> {
        self.exec(node, &["curl", "-sS", "-f", "--max-time", "5", url]).result()
    }

    /// The different answers to `count` requests, each passed through `part` (e.g. the line with the hostname).
    ///
    /// # Errors
    /// When one of the requests fails.
    pub fn answers(
        &self,
        node: &str,
        url: &str,
        count: usize,
        part: impl Fn(&str) -> String,
    ) -> Result<BTreeSet<String>, String> {
        (0..count)
            .map(|n| self.get(node, url).map(|body| part(&body)).map_err(|e| format!("request {n} of {count}: {e}")))
            .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
        let down = self.command("down", &[] as &[&str]);
        if down.code != 0 && !std::thread::panicking() {
            panic!("lab down: {}{}", down.stdout, down.stderr);
        }
    }
}

impl Lab {
    /// Copies what the nodes logged to `target/<profile>/lab-logs/<lab>`, and prints the end of it.
    fn keep_logs(&self) {
        let kept = profile_folder().join("lab-logs").join(&self.name);
        let _ = fs::remove_dir_all(&kept);
        let _ = fs::create_dir_all(&kept);
        let listed = self.command("ls", &["--format", "json"]);
        let hosts: Value = serde_json::from_str(&listed.stdout).unwrap_or_default();
        for host in hosts.as_array().into_iter().flatten() {
            let (Some(name), Some(data)) = (host["name"].as_str(), host["data_dir"].as_str()) else { continue };
            let logs = Path::new(data).join("node/log");
            let copied = Command::new("cp").arg("-r").arg(&logs).arg(kept.join(name)).output();
            if copied.is_ok_and(|output| output.status.success()) {
                eprintln!("logs of {name} are in {}", kept.join(name).display());
            }
        }
        for args in [["node", "ls"], ["service", "ls"], ["network", "ls"]] {
            let seen = self.orch(&args);
            eprintln!("orch {}:\n{}{}", args.join(" "), seen.stdout, seen.stderr);
        }
    }
}

/// How long a lab command may take that brings nodes back.
pub const RESTART_LIMIT: Duration = Duration::from_secs(30);
