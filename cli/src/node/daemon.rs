//! One supervised daemon: started again whenever it ends, until it is told to stop.
//!
//! Invariants: at most one process per daemon; it dies with the supervisor; its log never grows without bound.

use std::{
    fs,
    io::{self, Read as _, Seek as _},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getpid, getppid},
};
use orch_proto::{keeper, paths::Paths, wire};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

use super::{
    keeper::{FileLimit, Kept},
    owner,
};

/// Pauses before the first, second, … restart; the last one repeats.
const RESTART_DELAYS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// A daemon that ran this long starts from the first pause again.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// From SIGTERM to SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How much the daemons log; `log-level` in orch.toml sets it for those that the supervisor starts.
const LOG_VAR: &str = "ORCH_LOG";
const LOG_LIMIT_BYTES: u64 = 16 << 20;
const LOG_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Where the last lines of a log are looked for.
const LOG_END_BYTES: u64 = 64 << 10;
/// How much of a daemon's log an error message shows.
pub(super) const LAST_LINES: usize = 5;

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Manager,
    Netd,
    Worker,
}

impl Role {
    /// The hidden subcommand, which is also the daemon's name everywhere else.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Netd => "netd",
            Self::Worker => "worker",
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Facts {
    pid: u32,
    /// Why it cannot even be started, as on a disk that has become read-only.
    trouble: String,
    starts: u64,
    started_at_ms: u64,
}

/// A running supervision; dropping it without [`Daemon::stop`] leaves the process to the runtime's end.
#[derive(Debug)]
pub(super) struct Daemon {
    role: Role,
    facts: Arc<Mutex<Facts>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Daemon {
    pub(super) fn start(role: Role, paths: &Paths, files: Option<FileLimit>) -> Result<Self> {
        let log = log_file(paths, role.word());
        if let Some(dir) = log.parent() {
            super::files::private_dir(dir)?;
        }
        let (stop, stopping) = watch::channel(false);
        let facts = Arc::default();
        let log_level = log_level(&paths.config_file());
        let supervision = Supervision {
            role,
            paths: paths.clone(),
            log,
            log_level,
            files,
            kept: Kept::default(),
            stopping,
            facts: Arc::clone(&facts),
        };
        Ok(Self { role, facts, stop, task: tokio::spawn(supervision.run()) })
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// How often it was started again.
    pub(super) fn restarts(&self) -> u64 {
        self.lock().starts.saturating_sub(1)
    }

    pub(super) fn info(&self, paths: &Paths) -> wire::DaemonInfo {
        let (facts, name) = (self.lock().clone(), self.role.word());
        let log = || log_file(paths, name).display().to_string();
        let (last_words, log) = match facts.pid {
            0 if facts.trouble.is_empty() => (log_tail(paths, name, 1), log()),
            0 => (facts.trouble, log()),
            _ => Default::default(),
        };
        wire::DaemonInfo {
            name: name.to_owned(),
            pid: facts.pid,
            restarts: facts.starts.saturating_sub(1),
            started_at_ms: facts.started_at_ms,
            last_words,
            log,
        }
    }

    /// Ends the process, by force when it takes too long, and waits for that.
    pub(super) async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(daemon = self.role.word(), %error, "the supervision ended badly");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a daemon's output goes.
pub(super) fn log_file(paths: &Paths, daemon: &str) -> PathBuf {
    paths.node_dir().join("log").join(format!("{daemon}.log"))
}

/// The last lines of a daemon's log, for an error message.
pub(super) fn log_tail(paths: &Paths, daemon: &str, lines: usize) -> String {
    let text = read_end(&log_file(paths, daemon)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(lines).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn read_end(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(log)?;
    let skipped = file.metadata()?.len().saturating_sub(LOG_END_BYTES);
    file.seek(io::SeekFrom::Start(skipped))?;
    let mut end = Vec::new();
    file.take(LOG_END_BYTES).read_to_end(&mut end)?;
    Ok(end)
}

/// This program, also after it was replaced on disk by a newer one.
pub(super) fn own_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("cannot find this program's own file")?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or(path.clone(), PathBuf::from))
}

/// `log-level` of orch.toml. A file that cannot be read is the worker's to complain about.
fn log_level(config: &Path) -> Option<String> {
    let config: toml::Table = toml::from_str(&fs::read_to_string(config).ok()?).ok()?;
    config.get("log-level")?.as_str().map(str::to_owned)
}

struct Supervision {
    role: Role,
    paths: Paths,
    log: PathBuf,
    log_level: Option<String>,
    /// What the daemon may open, when the supervisor may open more.
    files: Option<FileLimit>,
    /// The network daemon's sockets. They go with its supervision.
    kept: Kept,
    stopping: watch::Receiver<bool>,
    facts: Arc<Mutex<Facts>>,
}

impl Supervision {
    async fn run(mut self) {
        let name = self.role.word();
        let mut quick_ends = 0_usize;
        loop {
            let started = Instant::now();
            match self.spawn() {
                Ok(mut child) => {
                    let Some(status) = self.watch(&mut child).await else { return };
                    tracing::warn!(daemon = name, end = %describe(status), "ended by itself, starting it again");
                }
                Err(error) => {
                    tracing::error!(daemon = name, "cannot start: {error:#}");
                    self.set_facts(|facts| facts.trouble = format!("it cannot be started: {error:#}"));
                }
            }
            quick_ends = if started.elapsed() >= HEALTHY_AFTER { 0 } else { quick_ends + 1 };
            let delay = RESTART_DELAYS[quick_ends.saturating_sub(1).min(RESTART_DELAYS.len() - 1)];
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                _ = self.stopping.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// The exit status, or `None` when it ended because it was told to.
    async fn watch(&mut self, child: &mut Child) -> Option<ExitStatus> {
        loop {
            let status = tokio::select! {
                status = child.wait() => Some(status),
                _ = self.stopping.wait_for(|stop| *stop) => None,
                () = tokio::time::sleep(LOG_CHECK_INTERVAL) => {
                    bound_log(&self.log);
                    continue;
                }
            };
            self.set_facts(|facts| facts.pid = 0);
            return match status {
                Some(Ok(status)) => Some(status),
                Some(Err(error)) => {
                    tracing::error!(daemon = self.role.word(), %error, "cannot wait for it");
                    Some(ExitStatus::from_raw(0))
                }
                None => {
                    end(self.role, child).await;
                    None
                }
            };
        }
    }

    fn spawn(&self) -> Result<Child> {
        bound_log(&self.log);
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot open {}", self.log.display()))?;
        let mut command = Command::new(own_program()?);
        let (ours, theirs) = match self.role {
            Role::Netd => keeper::pair()
                .map(|(ours, theirs)| (Some(ours), Stdio::from(theirs)))
                .context("cannot make a socket")?,
            Role::Manager | Role::Worker => (None, Stdio::null()),
        };
        command
            .arg(self.role.word())
            .stdin(theirs)
            .stdout(log.try_clone().context("cannot duplicate the log's descriptor")?)
            .stderr(log)
            .kill_on_drop(true);
        if let Some(level) = &self.log_level
            && std::env::var_os(LOG_VAR).is_none()
        {
            command.env(LOG_VAR, level);
        }
        if let (Role::Manager, Some((uid, gid))) = (self.role, owner::manager_user()) {
            if let Err(error) = owner::hand_over(&self.paths) {
                tracing::warn!("the manager may be unable to use its files: {error:#}");
            }
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        die_with_parent(&mut command, self.files);
        let child = command.spawn().context("cannot start the process")?;
        // The command has the other end until then; with it open, the daemon's end would not be heard.
        drop(command);
        if let Some(ours) = ours {
            tokio::spawn(self.kept.clone().serve(ours));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.set_facts(|facts| {
            facts.pid = child.id().unwrap_or(0);
            facts.starts += 1;
            facts.trouble.clear();
            facts.started_at_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        });
        tracing::info!(daemon = self.role.word(), pid = child.id(), "started");
        Ok(child)
    }

    fn set_facts(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The kernel ends the child when this thread ends, however that happens.
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command, files: Option<FileLimit>) {
    let parent = getpid();
    let in_child = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        files.map_or(Ok(()), FileLimit::restore)?;
        // The parent may have gone before the line above.
        if getppid() == parent { Ok(()) } else { Err(io::Error::other("the supervisor has ended")) }
    };
    // SAFETY: between fork and exec the closure makes three system calls and allocates nothing on its normal path; the
    // error is built only when the child gives up anyway.
    unsafe { command.pre_exec(in_child) };
}

async fn end(role: Role, child: &mut Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid
        && let Err(error) = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM)
    {
        tracing::debug!(daemon = role.word(), %error, "it has ended already");
    }
    if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
        tracing::warn!(daemon = role.word(), "did not stop within {} s, killing it", STOP_LIMIT.as_secs());
        if let Err(error) = child.kill().await {
            tracing::error!(daemon = role.word(), %error, "cannot kill it");
        }
    }
}

/// Keeps the supervisor's own log short. It has none under systemd, where all that it says is in the journal.
pub(super) async fn bound_own_log(log: PathBuf) {
    loop {
        bound_log(&log);
        tokio::time::sleep(LOG_CHECK_INTERVAL).await;
    }
}

/// Keeps the newest and the one before. The daemon appends, so it carries on at the start of the emptied file.
fn bound_log(log: &Path) {
    let too_long = fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_LIMIT_BYTES);
    if !too_long {
        return;
    }
    let emptied = fs::copy(log, log.with_extension("log.1"))
        .and_then(|_| fs::OpenOptions::new().write(true).open(log)?.set_len(0));
    if let Err(error) = emptied {
        tracing::warn!(log = %log.display(), %error, "cannot shorten this log");
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The program is this test binary, which takes the daemon's name for a filter that nothing matches, and ends.
    #[tokio::test]
    async fn a_daemon_that_ends_is_started_again_until_it_is_stopped() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let daemon = Daemon::start(Role::Netd, &paths, None).unwrap();
        let dead = async {
            loop {
                let info = daemon.info(&paths);
                if info.restarts >= 2 && info.pid == 0 {
                    return info;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let info = tokio::time::timeout(Duration::from_secs(20), dead).await.unwrap();
        assert!(info.last_words.contains("test result"), "{info:?}");
        assert!(info.log.ends_with("/log/netd.log"), "{info:?}");
        daemon.stop().await;
    }

    #[test]
    fn the_last_lines_of_a_log_are_found_at_its_end() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let log = log_file(&paths, "x");
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        assert_eq!(log_tail(&paths, "x", 2), "");
        let long = "é".repeat(usize::try_from(LOG_END_BYTES).unwrap());
        for (text, expected) in [("", ""), ("a\nb\n\nc\n", "b\nc"), (&format!("{long}\nb\nc\n"), "b\nc")] {
            fs::write(&log, text).unwrap();
            assert_eq!(log_tail(&paths, "x", 2), expected);
        }
    }

    #[test]
    fn a_log_is_cut_when_it_has_grown_too_long() {
        let root = tempfile::tempdir().unwrap();
        let log = root.path().join("x.log");
        fs::write(&log, "short").unwrap();
        bound_log(&log);
        assert_eq!(fs::read_to_string(&log).unwrap(), "short");
        fs::File::create(&log).unwrap().set_len(LOG_LIMIT_BYTES + 1).unwrap();
        bound_log(&log);
        assert_eq!(fs::metadata(&log).unwrap().len(), 0);
        assert_eq!(fs::metadata(log.with_extension("log.1")).unwrap().len(), LOG_LIMIT_BYTES + 1);
    }

    #[tokio::test]
    async fn the_supervisors_own_log_is_cut_when_it_has_grown_too_long() {
        let root = tempfile::tempdir().unwrap();
        let log = root.path().join("node.log");
        fs::File::create(&log).unwrap().set_len(LOG_LIMIT_BYTES + 1).unwrap();
        let bounding = tokio::time::timeout(Duration::from_millis(50), bound_own_log(log.clone()));
        assert!(bounding.await.is_err(), "it goes on");
        assert_eq!(fs::metadata(&log).unwrap().len(), 0);
    }

    #[test]
    fn the_log_level_comes_from_the_configuration() {
        let root = tempfile::tempdir().unwrap();
        let config = root.path().join("orch.toml");
        assert_eq!(log_level(&config), None);
        fs::write(&config, "log-level = \"debug\"\n").unwrap();
        assert_eq!(log_level(&config).as_deref(), Some("debug"));
    }
}
