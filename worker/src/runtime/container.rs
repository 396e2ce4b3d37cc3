//! A container and what can be done with it, over its shim's socket.
//!
//! The shim's exit file is the truth about the end. A shim that is gone without one was killed; then this module kills
//! what is left of the container and writes the file itself, so that every container ends exactly once.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, SystemTime},
};

use orch_model::TaskId;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::{
    apparmor,
    caps::CapSet,
    cgroup::Layout,
    client::{Connection, ask, is_listening},
    error::RuntimeError,
    exec::{Attachment, Exec, Pipes, attach_terminal},
    health::{HealthState, HealthWatch},
    logs::{LogOptions, LogStream},
    loopback,
    plan::{ExecRequest, Exit, LogFiles},
    spec::{capabilities, merge_env, user_value},
    usage::{self, NewLimits, ProcessInfo, Usage},
    user,
};
use crate::shim::protocol::{ExecOrder, ExitRecord, Files, Reply, Request, ShimConfig, VERSION, to_ns};

/// What a container whose shim was killed returns: its processes got SIGKILL.
const CODE_KILLED: i32 = 137;

/// A container on this node. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Container(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    task_id: TaskId,
    folder: PathBuf,
    config: ShimConfig,
    layout: Layout,
    log: LogFiles,
    pid: AtomicI32,
}

/// What a shim says about its container, if there is a shim.
pub(super) enum Found {
    Created,
    Running,
    Ended(Exit),
}

/// A busy node's shims take their time; one that has not answered by then stands still.
const SILENT_SHIM: Duration = Duration::from_secs(10);
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// A shim that was killed may be found listening for a moment: so often it is looked again, and so long apart.
const LAST_MOMENTS: u32 = 20;
const MOMENT: Duration = Duration::from_millis(50);
/// How much of what a dead shim said is told.
const LAST_WORDS_BYTES: u64 = 4096;

impl Container {
    pub(super) fn new(task_id: TaskId, folder: PathBuf, config: ShimConfig, layout: Layout) -> Self {
        let log = config.log.clone().into();
        Self(Arc::new(Inner { task_id, folder, config, layout, log, pid: AtomicI32::new(0) }))
    }

    #[must_use]
    pub fn task_id(&self) -> &TaskId {
        &self.0.task_id
    }

    /// 64 hex digits.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.0.config.container_id
    }

    /// The first process on the host; 0 when the container had ended before this handle was made.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid.load(Ordering::Relaxed).unsigned_abs()
    }

    #[must_use]
    pub fn rootfs(&self) -> &Path {
        &self.0.config.rootfs
    }

    /// Its cgroup, relative to each hierarchy's mount.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.0.config.cgroup
    }

    #[must_use]
    pub fn log_files(&self) -> &LogFiles {
        &self.0.log
    }

    /// Folders and files of the node that it was given.
    pub(crate) fn sources(&self) -> Result<Vec<PathBuf>, RuntimeError> {
        let spec = self.spec()?;
        let mounts = spec["mounts"].as_array().into_iter().flatten();
        Ok(mounts.filter_map(|mount| mount["source"].as_str().map(PathBuf::from)).collect())
    }

    /// Runs the program. An error with an exit code says why it cannot be executed; the container has ended then.
    pub async fn start(&self) -> Result<(), RuntimeError> {
        crate::metrics::CONTAINERS_STARTED.inc();
        match ask(&self.0.folder, Request::Start).await? {
            Some(Reply::Done) => Ok(()),
            Some(Reply::Failed(failure)) => Err(RuntimeError::Start { message: failure.message, code: failure.code }),
            Some(other) => Err(unexpected(&other)),
            None => {
                let exit = self.settle().await?;
                let message = exit.error.unwrap_or_else(|| "the container ended before it was started".to_owned());
                Err(RuntimeError::Start { message, code: Some(exit.code) })
            }
        }
    }

    /// Signals the first process. Fine when the container has ended. A container that was only created takes SIGKILL
    /// alone: nothing in it listens yet.
    ///
    /// A shim that stands still (stopped, frozen) is passed over after a while, and ends with what is killed.
    pub async fn kill(&self, signal: i32) -> Result<(), RuntimeError> {
        let asked = ask(&self.0.folder, Request::Kill { signal });
        let answer = match tokio::time::timeout(SILENT_SHIM, asked).await {
            Err(_) if self.pid() > 0 => return self.kill_past_shim(signal),
            Err(_) => return Err(RuntimeError::Silent),
            Ok(answer) => answer?,
        };
        match answer {
            Some(Reply::Done) => Ok(()),
            Some(Reply::Failed(failure)) => Err(RuntimeError::Start { message: failure.message, code: None }),
            Some(other) => Err(unexpected(&other)),
            None => match self.is_crowded().await? {
                true if self.pid() > 0 => self.kill_past_shim(signal),
                true => Err(RuntimeError::Crowded),
                false => Ok(()),
            },
        }
    }

    /// After a shim that hung up: whether it is there all the same.
    async fn is_crowded(&self) -> Result<bool, RuntimeError> {
        let inner = Arc::clone(&self.0);
        blocking(move || Ok(inner.is_crowded())).await
    }

    async fn no_answer(&self) -> RuntimeError {
        match self.is_crowded().await {
            Ok(true) => RuntimeError::Crowded,
            Ok(false) => RuntimeError::Ended,
            Err(error) => error,
        }
    }

    fn kill_past_shim(&self, signal: i32) -> Result<(), RuntimeError> {
        let pid = self.0.pid.load(Ordering::Relaxed);
        tracing::warn!(task = %self.0.task_id, pid, signal, "the container's shim stands still: signalled without it");
        let failed = |err: nix::errno::Errno| io_error("cannot signal", format!("/proc/{pid}"), err.into());
        let number = nix::sys::signal::Signal::try_from(signal).map_err(failed)?;
        let shim = shim_of(pid);
        let send = |pid: i32| match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), number) {
            Err(nix::errno::Errno::ESRCH) => Ok(()),
            sent => sent.map_err(failed),
        };
        send(pid)?;
        match shim {
            Some(shim) if signal == libc::SIGKILL => send(shim),
            _ => Ok(()),
        }
    }

    /// Until it has ended; at once when it has. Any number of callers.
    pub async fn wait(&self) -> Result<Exit, RuntimeError> {
        match ask(&self.0.folder, Request::Wait).await? {
            Some(Reply::Exit(record)) => Ok(record.into()),
            Some(other) => Err(unexpected(&other)),
            None => self.settle().await,
        }
    }

    /// Runs a command inside.
    pub async fn exec(&self, request: &ExecRequest) -> Result<Exec, RuntimeError> {
        let order = self.exec_order(request)?;
        let profile = order.process["apparmorProfile"].as_str();
        if profile.is_some_and(apparmor::is_gone_default) {
            blocking(|| Ok(apparmor::load_default()?)).await?;
        }
        let io_error = |source| RuntimeError::Io { what: "cannot make the streams of", path: "exec".into(), source };
        let open = || if request.detach { Pipes::nowhere() } else { Pipes::open(request.stdin) };
        let pipes = (!request.tty).then(open).transpose().map_err(io_error)?;
        let mut connection = Connection::open(&self.0.folder).await?.ok_or(RuntimeError::Ended)?;
        let theirs = pipes.as_ref().map_or(&[][..], Pipes::theirs);
        let sent = connection.send(Request::Exec(Box::new(order)), theirs).await;
        let pid = match if sent { connection.receive().await? } else { None } {
            Some(Reply::Running { pid }) => pid.unsigned_abs(),
            Some(Reply::Failed(failure)) => {
                return Err(RuntimeError::Start { message: failure.message, code: failure.code });
            }
            Some(other) => return Err(unexpected(&other)),
            None => return Err(self.no_answer().await),
        };
        match pipes {
            Some(pipes) => Ok(pipes.attach(pid, connection)),
            None => {
                let master = connection.take_fd().ok_or_else(|| RuntimeError::Protocol("no terminal".to_owned()))?;
                attach_terminal(pid, connection, master, request.size).map_err(io_error)
            }
        }
    }

    /// The streams of its program, from now on.
    pub async fn attach(&self, stdin: bool) -> Result<Attachment, RuntimeError> {
        let io_error = |source| RuntimeError::Io { what: "cannot make the streams of", path: "attach".into(), source };
        let pipes = Pipes::open(stdin).map_err(io_error)?;
        let mut connection = Connection::open(&self.0.folder).await?.ok_or(RuntimeError::Ended)?;
        let sent = connection.send(Request::Attach { stdin }, pipes.theirs()).await;
        match if sent { connection.receive().await? } else { None } {
            Some(Reply::Done) => Ok(pipes.into_attachment()),
            Some(Reply::Failed(failure)) => Err(RuntimeError::Start { message: failure.message, code: failure.code }),
            Some(other) => Err(unexpected(&other)),
            None => Err(self.no_answer().await),
        }
    }

    /// What it uses at the moment.
    #[must_use]
    pub fn usage(&self) -> Usage {
        usage::usage(&self.0.layout, &self.0.config.cgroup, self.pid())
    }

    /// Whether the kernel has killed something in it for want of memory, and it went on.
    #[must_use]
    pub fn has_oom_killed(&self) -> bool {
        self.0.layout.oom_killed(&self.0.config.cgroup)
    }

    /// Everything that runs in it.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessInfo> {
        usage::processes(&self.0.layout, &self.0.config.cgroup)
    }

    /// Makes all of it stand still, or go on.
    pub async fn set_frozen(&self, frozen: bool) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.0);
        blocking(move || {
            let cgroup = inner.config.cgroup.as_str();
            usage::set_frozen(&inner.layout, cgroup, frozen)
                .map_err(|err| io_error("cannot freeze or thaw", cgroup, err))
        })
        .await
    }

    /// Changes the limits of a running container.
    pub async fn set_limits(&self, new: NewLimits) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.0);
        blocking(move || {
            let cgroup = inner.config.cgroup.as_str();
            usage::set_limits(&inner.layout, cgroup, &new).map_err(|err| io_error("cannot limit", cgroup, err))
        })
        .await
    }

    /// For a container without a network.
    pub(super) async fn raise_loopback(&self) -> Result<(), RuntimeError> {
        let pid = self.pid();
        let failed = move |err| io_error("cannot bring up the loopback of", format!("/proc/{pid}/ns/net"), err);
        blocking(move || loopback::raise(pid).map_err(failed)).await
    }

    /// Of its terminal; fine when it has none or has ended.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), RuntimeError> {
        ask(&self.0.folder, Request::Resize { rows, columns }).await.map(drop)
    }

    /// Whether its health is checked.
    #[must_use]
    pub fn is_checked(&self) -> bool {
        self.0.config.health.is_some()
    }

    /// What its health checks said last; `None` when it has none, or has ended. Whoever looks does not wait for long.
    pub async fn health(&self) -> Result<Option<HealthState>, RuntimeError> {
        let asked = tokio::time::timeout(LOOK_LIMIT, ask(&self.0.folder, Request::Health)).await;
        match asked.unwrap_or(Err(RuntimeError::Silent))? {
            Some(Reply::Health(record)) => Ok(Some(record.into())),
            Some(Reply::Done) | None => Ok(None),
            Some(other) => Err(unexpected(&other)),
        }
    }

    /// Follows its health; `None` when it has ended.
    pub async fn watch_health(&self) -> Result<Option<HealthWatch>, RuntimeError> {
        let Some(mut connection) = Connection::open(&self.0.folder).await? else { return Ok(None) };
        Ok(connection.send(Request::WatchHealth, &[]).await.then_some(HealthWatch(connection)))
    }

    /// Kills what still runs and removes cgroups and the shim's folder; may be repeated. The log stays: it is the caller's.
    pub async fn delete(&self) -> Result<(), RuntimeError> {
        self.kill(libc::SIGKILL).await?;
        // Before its end is waited for: on version 1 what is frozen does not end. Refused where nothing is left.
        let _ = self.set_frozen(false).await;
        if let Some(mut connection) = Connection::open(&self.0.folder).await? {
            connection.send(Request::Wait, &[]).await;
            // After the answer the shim still tidies up; its end closes the connection.
            while connection.receive().await?.is_some() {}
        }
        let inner = Arc::clone(&self.0);
        blocking(move || {
            inner
                .layout
                .destroy(&inner.config.cgroup)
                .map_err(|source| io_error("cannot remove the cgroup", inner.config.cgroup.as_str(), source))?;
            match fs::remove_dir_all(&inner.folder) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => Err(io_error("cannot remove", &inner.folder, err)),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Lines of its log; following ends when the container has ended.
    #[must_use]
    pub fn logs(&self, options: LogOptions) -> LogStream {
        let container = self.clone();
        let ended = async move { drop(container.wait().await) };
        LogStream::open(self.0.log.clone(), options, ended)
    }

    /// Asks the shim; the first question to a new one is answered when it has created the container.
    pub(super) async fn look(&self) -> Result<Found, RuntimeError> {
        match ask(&self.0.folder, Request::State).await? {
            Some(Reply::State { pid, started }) => {
                self.0.pid.store(pid, Ordering::Relaxed);
                Ok(if started { Found::Running } else { Found::Created })
            }
            Some(other) => Err(unexpected(&other)),
            None => self.settle().await.map(Found::Ended),
        }
    }

    /// As [`Container::look`], but not for long.
    pub(super) async fn look_briefly(&self) -> Result<Found, RuntimeError> {
        tokio::time::timeout(SILENT_SHIM, self.look()).await.unwrap_or(Err(RuntimeError::Silent))
    }

    /// For one whose shim does not answer: its first process is found without it, so that it can be killed. Should the shim
    /// answer one day that it was never started, nobody is going to start it, and it ends.
    pub(super) async fn go_on_unanswered(&self) {
        let inner = Arc::clone(&self.0);
        let first = blocking(move || Ok(usage::first_process(&inner.layout, &inner.config.cgroup))).await;
        if let Ok(Some(pid)) = first {
            self.0.pid.store(pid, Ordering::Relaxed);
        }
        let container = self.clone();
        tokio::spawn(async move {
            if let Ok(Some(Reply::State { pid, started })) = ask(&container.0.folder, Request::State).await {
                container.0.pid.store(pid, Ordering::Relaxed);
                if !started && let Err(error) = container.kill(libc::SIGKILL).await {
                    let error = crate::image::chain(&error);
                    tracing::warn!(task = %container.0.task_id, error, "a container that was never started stays");
                }
            }
        });
    }

    /// How it ended, once there is no shim.
    async fn settle(&self) -> Result<Exit, RuntimeError> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.settle()).await
    }

    /// What it was made with.
    fn spec(&self) -> Result<Value, RuntimeError> {
        let path = Files(&self.0.folder).bundle().join("config.json");
        let spec = fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(Into::into));
        spec.map_err(|err| io_error("cannot read", &path, err))
    }

    /// What confines it, in Docker's words: a profile of AppArmor, or `unconfined` where the host has AppArmor.
    pub(crate) fn apparmor_profile(&self) -> Result<String, RuntimeError> {
        let spec = self.spec()?;
        let none = if apparmor::is_enabled() { apparmor::UNCONFINED } else { "" };
        Ok(spec["process"]["apparmorProfile"].as_str().unwrap_or(none).to_owned())
    }

    fn exec_order(&self, request: &ExecRequest) -> Result<ExecOrder, RuntimeError> {
        let config = &self.0.config;
        let mut process = self.spec()?["process"].take();
        let caps = if request.privileged { CapSet::ALL.grantable() } else { CapSet(config.caps) };
        process["terminal"] = json!(request.tty);
        process["args"] = json!(request.args);
        process["capabilities"] = capabilities(caps);
        let env: Vec<String> = serde_json::from_value(process["env"].take()).unwrap_or_default();
        let mut home = None;
        if !request.user.is_empty() {
            let user = user::lookup(&config.rootfs, &request.user, &[])?;
            process["user"] = user_value(&user);
            home = Some(user.home);
        }
        process["env"] = json!(exec_env(env, home, config.home_is_given, request));
        if !request.cwd.is_empty() {
            process["cwd"] = json!(request.cwd);
        }
        Ok(ExecOrder { process, tty: request.tty, caps: caps.0, seccomp: !request.privileged })
    }
}

/// A command's variables: the container's, and what comes of the command's user (its `home`, when it has a user of its own)
/// and of its terminal. What image or service say of these goes before, as with Docker.
fn exec_env(env: Vec<String>, home: Option<String>, home_is_given: bool, request: &ExecRequest) -> Vec<String> {
    let has = |name: &str| env.iter().any(|var| var.split('=').next() == Some(name));
    let home = home.filter(|_| !home_is_given || !has("HOME")).map(|home| format!("HOME={home}"));
    let term = (request.tty && !has("TERM")).then(|| "TERM=xterm".to_owned());
    let known: Vec<String> = home.into_iter().chain(term).collect();
    merge_env(merge_env(env, &known), &request.env)
}

/// The parent of a container's first process, if it is a shim.
fn shim_of(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{parent}/cmdline")).ok()?;
    command.split(|&byte| byte == 0).nth(1).filter(|word| *word == b"shim").map(|_| parent)
}

impl Inner {
    /// Whether a shim that hung up listens, and goes on doing so. One that ends does for a moment.
    fn is_crowded(&self) -> bool {
        for _ in 0..LAST_MOMENTS {
            if Files(&self.folder).exit().exists() || !is_listening(&self.folder) {
                return false;
            }
            std::thread::sleep(MOMENT);
        }
        true
    }

    /// What is left of a container is killed here, so the shim has to be gone.
    fn settle(&self) -> Result<Exit, RuntimeError> {
        if self.is_crowded() {
            return Err(RuntimeError::Crowded);
        }
        let files = Files(&self.folder);
        match fs::read(files.exit()) {
            Ok(text) => {
                let record: ExitRecord = serde_json::from_slice(&text)
                    .map_err(|err| io_error("cannot understand", files.exit(), err.into()))?;
                return Ok(record.into());
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(io_error("cannot read", files.exit(), err)),
        }
        self.layout
            .destroy(&self.config.cgroup)
            .map_err(|source| io_error("cannot empty the cgroup", self.config.cgroup.as_str(), source))?;
        let record = ExitRecord {
            version: VERSION,
            code: CODE_KILLED,
            signal: Some(libc::SIGKILL),
            oom_killed: false,
            error: Some(self.shim_died()),
            started_at_ns: None,
            finished_at_ns: to_ns(SystemTime::now()),
            health: None,
        };
        if self.folder.exists() {
            let text = serde_json::to_vec(&record).unwrap_or_default();
            let temporary = files.exit().with_extension("lost");
            let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, files.exit()));
            written.map_err(|err| io_error("cannot write", files.exit(), err))?;
        }
        Ok(record.into())
    }
}

impl Inner {
    /// With what it said, should it have failed rather than been killed.
    fn shim_died(&self) -> String {
        let said = last_words(&Files(&self.folder).messages()).unwrap_or_default();
        let base = "the container's shim was killed; what was left of the container has been killed too";
        if said.is_empty() { base.to_owned() } else { format!("{base} (its last words: {said})") }
    }
}

/// The end of a file: all of it may be more than anybody wants to read.
fn last_words(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES)))?;
    let mut words = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut words)?;
    Ok(String::from_utf8_lossy(&words).trim().to_owned())
}

fn unexpected(reply: &Reply) -> RuntimeError {
    RuntimeError::Protocol(format!("{reply:?}"))
}

pub(super) fn io_error(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> RuntimeError {
    RuntimeError::Io { what, path: path.into(), source }
}

/// Files and processes are waited for outside the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(err) => Err(io_error("a task of the runtime failed in", "worker", io::Error::other(err))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_image_and_service_say_goes_before_what_a_commands_user_and_terminal_are_known_by() {
        for (env, home, is_given, tty, more, want) in [
            ("HOME=/root", None, false, false, "", "HOME=/root"),
            ("HOME=/root A=1", Some("/srv"), false, false, "", "HOME=/srv A=1"),
            ("HOME=/root A=1", Some("/srv"), true, false, "", "HOME=/root A=1"),
            ("A=1", Some("/srv"), false, false, "", "A=1 HOME=/srv"),
            ("HOME=/root", None, false, true, "", "HOME=/root TERM=xterm"),
            ("TERM=xterm-256color", None, false, true, "", "TERM=xterm-256color"),
            ("HOME=/data TERM=vt100", Some("/srv"), true, true, "HOME=/own TERM=dumb", "HOME=/own TERM=dumb"),
        ] {
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let request = ExecRequest { tty, env: words(more), ..Default::default() };
            let home = home.map(str::to_owned);
            assert_eq!(exec_env(words(env), home, is_given, &request), words(want), "{env}");
        }
    }

    #[test]
    fn of_many_words_the_last_are_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (said, told) in [("", 0), ("short\n", 5), (&"é".repeat(5000), 2048)] {
            fs::write(file.path(), said).unwrap();
            let words = last_words(file.path()).unwrap();
            assert!(words.chars().count() == told && said.contains(&words), "{words}");
        }
        assert!(last_words(Path::new("/nowhere")).is_err());
    }
}
