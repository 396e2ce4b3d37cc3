//! What the worker and a shim say to each other: the shim's configuration, one JSON object per line on its socket, and
//! the file in which it leaves how the container ended.
//!
//! A shim may be older than the worker that talks to it: fields are only ever added, with defaults.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::runtime::{Exit, LogFiles};

/// Raised when an older worker or shim could no longer understand the other.
pub(crate) const VERSION: u32 = 1;

/// Longest line either side accepts: an exec request carries a whole environment.
pub(crate) const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Descriptors that come with an exec request: standard input, output and error.
pub(crate) const STDIO_FDS: usize = 3;

/// The files in a shim's folder.
pub(crate) struct Files<'a>(pub(crate) &'a Path);

impl Files<'_> {
    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// The folder with the OCI specification, `config.json`.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.0.join("bundle")
    }

    /// libcontainer's own files.
    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// Where the container's maker alone sees another container's /dev/shm.
    pub(crate) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("shim.sock")
    }

    /// What the shim had to say to the operator; usually nothing.
    pub(crate) fn messages(&self) -> PathBuf {
        self.0.join("shim.log")
    }

    pub(crate) fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }
}

/// `config.json`: all that a shim needs besides the OCI specification; also what a new worker learns from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimConfig {
    pub(crate) version: u32,
    pub(crate) task_id: String,
    pub(crate) container_id: String,
    pub(crate) rootfs: PathBuf,
    /// The cgroup that shims live in.
    pub(crate) shim_cgroup: String,
    pub(crate) cgroup: String,
    pub(crate) log: LogConfig,
    pub(crate) tty: bool,
    /// Standard input stays open, with nothing to read; otherwise it is /dev/null.
    pub(crate) open_stdin: bool,
    /// It ends with the input of whoever was attached; older configurations do not say, and it did always.
    #[serde(default = "yes")]
    pub(crate) stdin_once: bool,
    /// Owner of the pipes: programs that are not root reopen /dev/stdout.
    pub(crate) uid: u32,
    /// Capabilities as bits.
    pub(crate) caps: u64,
    /// The compiled system call filter.
    pub(crate) seccomp: Option<PathBuf>,
    /// The network namespace, to be silenced when the container is killed; older configurations have none.
    #[serde(default)]
    pub(crate) netns: Option<PathBuf>,
    /// Folders whose mounts the container's maker must not see, but for the container's own.
    #[serde(default)]
    pub(crate) hidden: Vec<PathBuf>,
    /// The mount namespace of the container whose /dev/shm it shares.
    #[serde(default)]
    pub(crate) shm_of: Option<PathBuf>,
    /// Image or service say where HOME is; older configurations do not know, and mostly it is the user's own.
    #[serde(default)]
    pub(crate) home_is_given: bool,
    #[serde(default)]
    pub(crate) health: Option<HealthPlan>,
}

fn yes() -> bool {
    true
}

/// How a container's health is checked: nothing left to default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HealthPlan {
    /// Program and arguments.
    pub(crate) test: Vec<String>,
    pub(crate) interval_ms: u64,
    pub(crate) timeout_ms: u64,
    pub(crate) start_period_ms: u64,
    pub(crate) start_interval_ms: u64,
    pub(crate) retries: u32,
    /// What the checks of the container's last run said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) earlier: Vec<HealthResult>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HealthWord {
    Starting,
    Healthy,
    Unhealthy,
}

/// What the checks say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HealthRecord {
    pub(crate) health: HealthWord,
    pub(crate) failing_streak: u32,
    /// The last ones, oldest first.
    pub(crate) results: Vec<HealthResult>,
}

/// One check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HealthResult {
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) exit_code: i32,
    pub(crate) output: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogConfig {
    pub(crate) path: PathBuf,
    pub(crate) max_size_bytes: u64,
    pub(crate) max_files: u32,
    /// Added to each line.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) details: BTreeMap<String, String>,
    /// To systemd's journal instead of files, with these fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) journal: Option<BTreeMap<String, String>>,
}

impl From<&LogFiles> for LogConfig {
    fn from(log: &LogFiles) -> Self {
        let LogFiles { path, max_size_bytes, max_files, details, journal } = log.clone();
        Self { path, max_size_bytes, max_files, details, journal }
    }
}

impl From<LogConfig> for LogFiles {
    fn from(log: LogConfig) -> Self {
        let LogConfig { path, max_size_bytes, max_files, details, journal } = log;
        Self { path, max_size_bytes, max_files, details, journal }
    }
}

/// A line to the shim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) v: u32,
    #[serde(flatten)]
    pub(crate) request: Request,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    State,
    Start,
    Kill {
        signal: i32,
    },
    /// Answered when the container has ended.
    Wait,
    /// Answered twice: when the process runs, and when it has ended.
    Exec(Box<ExecOrder>),
    /// What the health checks said last.
    Health,
    /// Answered at once and with every change.
    WatchHealth,
    /// Comes with three descriptors: one to read the container's input from, two to copy its output to from now on
    /// (with a terminal only the first of them is used). Answered when it is so.
    Attach {
        stdin: bool,
    },
    /// Of the container's terminal.
    Resize {
        rows: u16,
        columns: u16,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExecOrder {
    /// The OCI `process` object.
    pub(crate) process: serde_json::Value,
    pub(crate) tty: bool,
    pub(crate) caps: u64,
    pub(crate) seccomp: bool,
}

/// A line from the shim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(crate) enum Reply {
    State {
        pid: i32,
        started: bool,
    },
    Done,
    Failed(Failure),
    /// With a terminal, its master side comes along.
    Running {
        pid: i32,
    },
    /// Of a process that was executed in the container.
    Ended {
        code: i32,
    },
    /// Of the container.
    Exit(ExitRecord),
    Health(HealthRecord),
    HealthIs {
        health: HealthWord,
    },
}

/// Why something could not be done; `code` when a program could not be started, as a shell would return it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) code: Option<i32>,
}

/// `exit.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub(crate) version: u32,
    pub(crate) code: i32,
    #[serde(default)]
    pub(crate) signal: Option<i32>,
    #[serde(default)]
    pub(crate) oom_killed: bool,
    #[serde(default)]
    pub(crate) error: Option<String>,
    #[serde(default)]
    pub(crate) started_at_ns: Option<u64>,
    pub(crate) finished_at_ns: u64,
    /// What the health checks said last.
    #[serde(default)]
    pub(crate) health: Option<HealthRecord>,
}

impl From<ExitRecord> for Exit {
    fn from(record: ExitRecord) -> Self {
        Self {
            code: record.code,
            signal: record.signal,
            oom_killed: record.oom_killed,
            error: record.error,
            started_at: record.started_at_ns.map(from_ns),
            finished_at: from_ns(record.finished_at_ns),
            health: record.health.map(Into::into),
        }
    }
}

/// Nanoseconds since 1970.
pub(crate) fn to_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn from_ns(ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_kept() {
        let check = |request: Request, want: &str| {
            let message = Message { v: VERSION, request };
            assert_eq!(serde_json::to_string(&message).unwrap(), want);
            assert_eq!(serde_json::from_str::<Message>(want).unwrap(), message);
        };
        check(Request::State, r#"{"v":1,"op":"state"}"#);
        check(Request::Kill { signal: 15 }, r#"{"v":1,"op":"kill","signal":15}"#);
        let reply = |reply: Reply, want: &str| {
            assert_eq!(serde_json::to_string(&reply).unwrap(), want);
            assert_eq!(serde_json::from_str::<Reply>(want).unwrap(), reply);
        };
        reply(Reply::Running { pid: 7 }, r#"{"is":"running","pid":7}"#);
        let failure = Failure { message: "no".to_owned(), code: Some(127) };
        reply(Reply::Failed(failure), r#"{"is":"failed","message":"no","code":127}"#);
    }

    #[test]
    fn an_exit_file_of_the_first_version_reads() {
        let record: ExitRecord = serde_json::from_str(r#"{"version":1,"code":3,"finished_at_ns":5}"#).unwrap();
        let exit = Exit::from(record);
        assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.started_at), (3, None, false, None));
    }
}
