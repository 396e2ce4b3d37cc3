//! What init, join, leave and the start of the supervisor share: the membership and the running daemons.

use std::{
    path::PathBuf,
    sync::PoisonError,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use orch_proto::{paths::Paths, wire};
use prost::Message as _;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};

use super::{
    apart,
    daemon::{Daemon, Role},
    error::{NodeError, Result as NodeResult},
    files,
    keeper::FileLimit,
    member::{Member, NodeDir},
    owner,
};

const DAEMON_CONFIG: &str = "daemon.pb";
/// How long a person's init, join or leave waits for what is under way.
const TURN_LIMIT: Duration = Duration::from_secs(20);

/// This machine's part in a cluster.
#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) paths: Paths,
    pub(super) node_dir: NodeDir,
    member: std::sync::Mutex<Option<Member>>,
    daemons: std::sync::Mutex<Vec<Daemon>>,
    /// What this process might open before it raised its limit.
    files: Option<FileLimit>,
    /// Held by whoever changes the membership.
    operation: Mutex<()>,
}

impl Supervisor {
    pub(super) fn open(paths: Paths) -> Result<Self> {
        let node_dir = NodeDir::open(&paths)?;
        let member = node_dir.load()?;
        owner::prepare_run_dir(&paths.run)?;
        Ok(Self {
            paths,
            node_dir,
            member: std::sync::Mutex::new(member),
            daemons: std::sync::Mutex::default(),
            files: FileLimit::raise()
                .inspect_err(|error| tracing::warn!(%error, "cannot raise the limit of open files"))
                .ok(),
            operation: Mutex::default(),
        })
    }

    /// Only one change of the membership at a time. For what this node does by itself: it tries again later.
    pub(super) fn begin(&self) -> NodeResult<MutexGuard<'_, ()>> {
        self.operation.try_lock().map_err(|_| under_way())
    }

    /// As [`Supervisor::begin`], for what a person asked for: a renewal or a change of the role takes seconds at most.
    pub(super) async fn turn(&self) -> NodeResult<MutexGuard<'_, ()>> {
        timeout(TURN_LIMIT, self.operation.lock()).await.map_err(|_| under_way())
    }

    pub(super) fn member(&self) -> Option<Member> {
        self.member.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn refuse_member(&self) -> NodeResult<()> {
        match self.member() {
            None => Ok(()),
            Some(_) => Err(NodeError::Refused(
                "This node is already part of a cluster. Use \"orch leave\" to leave this cluster and join another one."
                    .to_owned(),
            )),
        }
    }

    /// The last step of init and join.
    pub(super) fn become_member(&self, member: Member) -> Result<()> {
        self.node_dir.save(&member)?;
        self.set_member(Some(member));
        Ok(())
    }

    /// The first step of leave that cannot be undone.
    pub(super) fn forget_membership(&self) -> Result<()> {
        self.node_dir.leave()?;
        self.set_member(None);
        Ok(())
    }

    fn set_member(&self, member: Option<Member>) {
        *self.member.lock().unwrap_or_else(PoisonError::into_inner) = member;
    }

    pub(super) fn start_daemon(&self, role: Role) -> Result<()> {
        let mut daemons = self.daemons();
        if daemons.iter().all(|daemon| daemon.role() != role) {
            if matches!(role, Role::Worker | Role::Netd) {
                apart::mount(self.mounts_dirs());
            }
            daemons.push(Daemon::start(role, &self.paths, self.files)?);
        }
        Ok(())
    }

    /// Where daemons mount what is a container's.
    fn mounts_dirs(&self) -> [PathBuf; 2] {
        [self.paths.containers_dir(), self.paths.netns_dir()]
    }

    /// Worker first, so that it reports no tasks as lost because the network daemon went away before it.
    pub(super) async fn stop_daemons(&self) {
        let mut daemons = std::mem::take(&mut *self.daemons());
        daemons.sort_by_key(|daemon| std::cmp::Reverse(daemon.role()));
        for daemon in daemons {
            daemon.stop().await;
        }
    }

    pub(super) async fn stop_daemon(&self, role: Role) {
        let found = {
            let mut daemons = self.daemons();
            daemons.iter().position(|daemon| daemon.role() == role).map(|place| daemons.remove(place))
        };
        if let Some(daemon) = found {
            daemon.stop().await;
        }
    }

    pub(super) fn restarts(&self, role: Role) -> u64 {
        self.daemons().iter().find(|daemon| daemon.role() == role).map_or(0, Daemon::restarts)
    }

    pub(super) fn daemon_infos(&self) -> Vec<wire::DaemonInfo> {
        self.daemons().iter().map(|daemon| daemon.info(&self.paths)).collect()
    }

    /// Writes what the manager (or the worker) starts from.
    pub(super) fn write_config(&self, role: Role, config: &wire::DaemonConfig) -> Result<()> {
        let dir = self.dir_of(role);
        files::private_dir(&dir)?;
        files::write_atomically(&dir.join(DAEMON_CONFIG), &config.encode_to_vec(), 0o600)
    }

    /// As [`Supervisor::write_config`], when something else lies there.
    pub(super) fn restore_config(&self, role: Role, config: &wire::DaemonConfig) -> Result<()> {
        let found = std::fs::read(self.dir_of(role).join(DAEMON_CONFIG)).ok();
        if found.as_deref() == Some(&config.encode_to_vec()[..]) { Ok(()) } else { self.write_config(role, config) }
    }

    /// Gives the manager's files to the user that it runs as.
    pub(super) fn hand_over(&self, role: Role) -> Result<()> {
        match role {
            Role::Manager => owner::hand_over(&self.paths),
            Role::Netd | Role::Worker => Ok(()),
        }
    }

    fn dir_of(&self, role: Role) -> std::path::PathBuf {
        match role {
            Role::Manager => self.paths.manager_dir(),
            Role::Netd => self.paths.netd_dir(),
            Role::Worker => self.paths.worker_dir(),
        }
    }

    /// Before init and join: removes what one that was cut short left behind. The state of a manager is kept beside: with its
    /// state file lost, a manager looks just the same, and what it has may be all that is left of its cluster.
    pub(super) fn make_room(&self) -> Result<()> {
        self.node_dir.forget()?;
        if self.paths.manager_dir().join("raft").exists() {
            self.put_manager_aside()?;
        }
        self.wipe()
    }

    /// What a manager had, for whoever wants to look at it.
    pub(super) fn put_manager_aside(&self) -> Result<Option<PathBuf>> {
        let dir = self.paths.manager_dir();
        let stamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let aside = dir.with_file_name(format!("manager.lost-{stamp}"));
        match std::fs::rename(&dir, &aside) {
            Ok(()) => {
                tracing::warn!(kept = %aside.display(), "the manager's former files are kept; delete them when nobody needs them");
                Ok(Some(aside))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot rename {}", dir.display())),
        }
    }

    /// Removes what belongs to a membership. Images and volumes stay: they are the machine's, not the cluster's.
    pub(super) fn wipe(&self) -> Result<()> {
        self.wipe_manager()?;
        files::remove_dir(&self.paths.netd_dir())?;
        apart::unmount(self.mounts_dirs());
        let worker = self.paths.worker_dir();
        files::remove_dir(&worker.join("tls"))?;
        files::remove_file(&worker.join(DAEMON_CONFIG))?;
        for socket in [self.paths.worker_sock(), self.paths.netd_sock()] {
            files::remove_file(&socket)?;
        }
        Ok(())
    }

    /// Removes what a manager keeps, secrets and keys with it.
    pub(super) fn wipe_manager(&self) -> Result<()> {
        files::remove_dir(&self.paths.manager_dir())?;
        files::remove_file(&self.paths.manager_sock())
    }

    fn daemons(&self) -> std::sync::MutexGuard<'_, Vec<Daemon>> {
        self.daemons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn under_way() -> NodeError {
    NodeError::Refused("another init, join or leave is under way on this node; try again later".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_starts_from_is_put_right() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::open(Paths::under(dir.path())).unwrap();
        let file = supervisor.paths.worker_dir().join(DAEMON_CONFIG);
        let config = wire::DaemonConfig { node_id: "n".into(), ..wire::DaemonConfig::default() };
        for (before, is_kept) in [(None, false), (Some(vec![]), false), (Some(config.encode_to_vec()), true)] {
            let _ = std::fs::remove_file(&file);
            if let Some(before) = &before {
                std::fs::write(&file, before).unwrap();
            }
            let inode = |path| std::fs::metadata(path).map(|found| std::os::unix::fs::MetadataExt::ino(&found)).ok();
            let was = inode(&file);
            supervisor.restore_config(Role::Worker, &config).unwrap();
            assert_eq!(std::fs::read(&file).unwrap(), config.encode_to_vec(), "{before:?}");
            assert_eq!(inode(&file) == was, is_kept, "{before:?}");
        }
    }

    #[tokio::test]
    async fn a_person_waits_for_a_renewal_and_a_renewal_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::open(Paths::under(dir.path())).unwrap();
        let renewing = supervisor.begin().unwrap();
        assert!(supervisor.begin().is_err());
        let (turn, ()) = tokio::join!(supervisor.turn(), async {
            tokio::task::yield_now().await;
            drop(renewing);
        });
        drop(turn.unwrap());
        drop(supervisor.begin().unwrap());
    }
}
