//! Where daemons keep their files and find each other on a machine.
//!
//! Every daemon and the CLI ask here, so that tests can move all of it with three environment variables.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use orch_model::TaskId;

/// Moves what outlives a restart of the machine; default `/var/lib/orch`.
pub const ROOT_DIR_VAR: &str = "ORCH_ROOT_DIR";
/// Moves sockets and what a restart of the machine forgets; default `/run/orch`.
pub const RUN_DIR_VAR: &str = "ORCH_RUN_DIR";
/// Moves the operator's configuration; default `/etc/orch`.
pub const ETC_DIR_VAR: &str = "ORCH_ETC_DIR";

/// What a damaged file is put aside as: its name, this, and the time.
pub const ASIDE: &str = ".broken-";

/// In the manager's folder from just before its log says that it is alone until the cluster's state says so, too.
pub const ALONE_MARK: &str = "raft/alone";

/// The three folders that everything else is under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    pub root: PathBuf,
    pub run: PathBuf,
    pub etc: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { root: "/var/lib/orch".into(), run: "/run/orch".into(), etc: "/etc/orch".into() }
    }
}

impl Paths {
    /// The folders that the environment names, else the default ones.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_vars(|name| env::var_os(name))
    }

    /// All three folders inside `dir`, for tests.
    #[must_use]
    pub fn under(dir: &Path) -> Self {
        Self { root: dir.join("root"), run: dir.join("run"), etc: dir.join("etc") }
    }

    /// The supervisor's data.
    #[must_use]
    pub fn node_dir(&self) -> PathBuf {
        self.root.join("node")
    }

    /// The manager's data: raft log, snapshots, `tls/`.
    #[must_use]
    pub fn manager_dir(&self) -> PathBuf {
        self.root.join("manager")
    }

    /// The worker's data: images, volumes, containers, `tls/`.
    #[must_use]
    pub fn worker_dir(&self) -> PathBuf {
        self.root.join("worker")
    }

    /// One folder per container: what it writes, and where its root is mounted.
    #[must_use]
    pub fn containers_dir(&self) -> PathBuf {
        self.worker_dir().join("containers")
    }

    /// One folder per volume of the `local` driver.
    #[must_use]
    pub fn volumes_dir(&self) -> PathBuf {
        self.worker_dir().join("volumes")
    }

    /// Who uses which volume that is a mount.
    #[must_use]
    pub fn volume_users_dir(&self) -> PathBuf {
        self.run.join("volumes")
    }

    /// What containers have of volumes by a subpath: a folder of mounts for each.
    #[must_use]
    pub fn volume_pins_dir(&self) -> PathBuf {
        self.run.join("subpaths")
    }

    /// The network daemon's data.
    #[must_use]
    pub fn netd_dir(&self) -> PathBuf {
        self.root.join("netd")
    }

    /// Where the supervisor answers `NodeControl`.
    #[must_use]
    pub fn node_sock(&self) -> PathBuf {
        self.run.join("node.sock")
    }

    /// Where the manager answers `Control`.
    #[must_use]
    pub fn manager_sock(&self) -> PathBuf {
        self.run.join("manager.sock")
    }

    /// Where the worker answers `WorkerLocal`.
    #[must_use]
    pub fn worker_sock(&self) -> PathBuf {
        self.run.join("worker.sock")
    }

    /// Where the network daemon answers `Netd`.
    #[must_use]
    pub fn netd_sock(&self) -> PathBuf {
        self.run.join("netd.sock")
    }

    /// The folder of [`Paths::netns`].
    #[must_use]
    pub fn netns_dir(&self) -> PathBuf {
        self.run.join("netns")
    }

    /// A task's network namespace, bind-mounted by the network daemon.
    #[must_use]
    pub fn netns(&self, task: &TaskId) -> PathBuf {
        self.netns_dir().join(task.as_str())
    }

    /// The folder of [`Paths::shim_dir`]: one entry per container that has a shim.
    #[must_use]
    pub fn shims_dir(&self) -> PathBuf {
        self.run.join("shim")
    }

    /// Socket and exit file of a task's shim.
    #[must_use]
    pub fn shim_dir(&self, task: &TaskId) -> PathBuf {
        self.shims_dir().join(task.as_str())
    }

    /// The operator's configuration; need not exist.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.etc.join("orch.toml")
    }

    /// An empty variable counts as unset: a relative or root-level data folder is never what someone meant.
    fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let dir = |name, default| var(name).filter(|dir| !dir.is_empty()).map_or(default, PathBuf::from);
        let default = Self::default();
        Self {
            root: dir(ROOT_DIR_VAR, default.root),
            run: dir(RUN_DIR_VAR, default.run),
            etc: dir(ETC_DIR_VAR, default.etc),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_moves_each_folder() {
        let vars = |name: &str| match name {
            ROOT_DIR_VAR => Some("/a".into()),
            RUN_DIR_VAR => Some("".into()),
            _ => None,
        };
        let paths = Paths::from_vars(vars);
        let task = TaskId::from_random(7);
        assert_eq!(paths.manager_dir(), Path::new("/a/manager"));
        assert_eq!(paths.netd_sock(), Path::new("/run/orch/netd.sock"));
        assert_eq!(paths.netns(&task), Path::new("/run/orch/netns/0000000000000000000000007"));
        assert_eq!(paths.shim_dir(&task), Path::new("/run/orch/shim/0000000000000000000000007"));
        assert_eq!(paths.config_file(), Path::new("/etc/orch/orch.toml"));
    }
}
