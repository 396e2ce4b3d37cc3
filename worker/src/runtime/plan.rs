//! What the runtime needs to know to make a container: plain values, resolved by the caller.
//!
//! Nothing here touches the machine; [`super::spec`] turns a plan into an OCI specification.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use orch_model::{
    TaskId,
    service::{HealthConfig, MountKind, TaskSpec},
};

/// Log lines are cut to new files at this size unless the service says otherwise.
pub const DEFAULT_LOG_SIZE_BYTES: u64 = 10 * 1024 * 1024;
/// How many log files are kept, the current one included.
pub const DEFAULT_LOG_FILES: u32 = 3;

/// Everything that makes one container.
#[derive(Debug, Clone)]
pub struct ContainerPlan<'a> {
    pub task_id: TaskId,
    /// 64 hex digits; its first 12 are the default hostname.
    pub container_id: String,
    /// The mounted root filesystem (the caller mounts and unmounts it).
    pub rootfs: PathBuf,
    pub image: ImageDefaults,
    pub spec: &'a TaskSpec,
    /// Where the task's network namespace is bind-mounted; `None`: one of its own with nothing but a loopback that is down.
    pub netns: Option<PathBuf>,
    /// The node's own network; then there is no `netns`.
    pub host_network: bool,
    /// Volumes, secrets, configs, and /etc/{resolv.conf,hosts,hostname}. The bind and tmpfs mounts of `spec` are not
    /// repeated here: the runtime does these itself.
    pub binds: Vec<BindMount>,
    pub log: LogFiles,
    /// What services do not have.
    pub options: HostOptions,
    /// `None`: the node's own users.
    pub users: Option<UserNamespace>,
}

impl ContainerPlan<'_> {
    /// What it is given of the node, each with its propagation.
    pub(super) fn given(&self) -> impl Iterator<Item = (&Path, &str)> {
        let own = self.spec.container.mounts.iter().filter(|mount| mount.kind == MountKind::Bind);
        let own = own.map(|mount| (Path::new(&mount.source), mount.propagation.as_str()));
        own.chain(self.binds.iter().map(|bind| (bind.source.as_path(), bind.propagation.as_str())))
    }

    /// Whether image or service say where HOME is; else it is the user's own.
    pub(super) fn gives_home(&self) -> bool {
        self.image.env.iter().chain(&self.spec.container.env).any(|var| var.starts_with("HOME="))
    }

    /// Where what it mounts is to appear on the node, too.
    pub(super) fn shared(&self) -> impl Iterator<Item = &Path> {
        let shared = self.given().filter(|(_, propagation)| matches!(*propagation, "shared" | "rshared"));
        shared.map(|(source, _)| source)
    }

    pub(super) fn shares_mounts(&self) -> bool {
        self.shared().next().is_some()
    }
}

/// Whose users a container's are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNamespace {
    /// Where the namespace is pinned.
    pub path: PathBuf,
    /// The node's numbers of the container's user and group 0.
    pub uid: u32,
    pub gid: u32,
}

/// What only one-off containers ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// Of /dev/shm; 0: 64 MiB.
    pub shm_bytes: u64,
    pub no_new_privileges: bool,
    /// Without a system call filter.
    pub seccomp_off: bool,
    /// Instead of the default profile: `unconfined`, or one that the host has loaded.
    pub apparmor: Option<String>,
    /// Neither masked nor read-only paths.
    pub paths_shown: bool,
    pub pid: Sharing,
    pub ipc: Sharing,
    pub uts: Sharing,
    /// The network namespace of another container, by its file; then it has neither one of netd's nor the node's.
    pub joined: Option<PathBuf>,
    /// Mount options of tmpfs mounts by target, instead of the mount's own.
    pub tmpfs: BTreeMap<String, Vec<String>>,
    pub limits: MoreLimits,
    /// Its standard input ends with the input of whoever was attached.
    pub stdin_once: bool,
    /// What the health checks of its last run said.
    pub earlier_checks: Vec<super::HealthCheck>,
}

/// Whose namespace of a kind a container has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sharing {
    #[default]
    Own,
    Host,
    /// Another container's, by its file.
    Other(PathBuf),
}

/// Limits that services do not have; 0 or empty: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MoreLimits {
    pub cpu_shares: u64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// Memory and swap together; -1: no limit. 0 with a memory limit: twice that, as Docker has it.
    pub memory_swap_bytes: i64,
    pub memory_reservation_bytes: u64,
}

/// A file or folder of the host that appears in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: String,
    pub read_only: bool,
    /// `rprivate` when empty.
    pub propagation: String,
}

/// What the image says about running it; the service's spec goes before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub health: Option<HealthConfig>,
}

impl From<&oci_spec::image::ImageConfiguration> for ImageDefaults {
    fn from(image: &oci_spec::image::ImageConfiguration) -> Self {
        let Some(config) = image.config() else { return Self::default() };
        Self {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            health: None,
        }
    }
}

/// Where the container's output goes, as Docker's json-file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFiles {
    /// Current file; older ones are `PATH.1`, `PATH.2`, … The folder must exist.
    pub path: PathBuf,
    pub max_size_bytes: u64,
    pub max_files: u32,
    /// What the log's options `labels`, `env` and `tag` add to each line.
    pub details: BTreeMap<String, String>,
    /// Lines go to systemd's journal instead of files, with these fields.
    pub journal: Option<BTreeMap<String, String>>,
}

impl LogFiles {
    /// Default limits.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            max_size_bytes: DEFAULT_LOG_SIZE_BYTES,
            max_files: DEFAULT_LOG_FILES,
            details: BTreeMap::new(),
            journal: None,
        }
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The process's code; 128 + n when signal n ended it; 126 or 127 when it could not be started.
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    /// For the operator: why it was never started, or that its shim died.
    pub error: Option<String>,
    /// `None` when it never ran.
    pub started_at: Option<SystemTime>,
    pub finished_at: SystemTime,
    /// What its health checks said last, when it had any.
    pub health: Option<super::HealthState>,
}

impl Exit {
    /// How long it ran.
    #[must_use]
    pub fn ran(&self) -> Duration {
        self.started_at.and_then(|at| self.finished_at.duration_since(at).ok()).unwrap_or_default()
    }
}

/// A command to run in a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    pub args: Vec<String>,
    /// On top of the container's own.
    pub env: Vec<String>,
    /// Empty: the container's.
    pub cwd: String,
    /// Empty: the container's.
    pub user: String,
    pub tty: bool,
    pub stdin: bool,
    pub privileged: bool,
    /// Without a terminal, what it prints goes nowhere: it outlives whoever asked for it.
    pub detach: bool,
    /// Size of the terminal when `tty`: rows, columns.
    pub size: Option<(u16, u16)>,
}
