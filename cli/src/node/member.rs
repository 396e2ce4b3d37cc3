//! The state file: which cluster this node is in, under which name.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use orch_proto::paths::Paths;
use serde::{Deserialize, Serialize};

use super::files;

/// Layout of `/var/lib/orch/node`; a higher number belongs to a newer orch.
const FORMAT: u32 = 1;
const STATE_FILE: &str = "state.json";
/// Names the node whose address orch chose: a file of its own, because older versions refuse a state file with more in it.
const CHOSEN_FILE: &str = "address-chosen";

/// This node's membership in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Member {
    pub(super) cluster_id: String,
    pub(super) node_id: String,
    pub(super) manager: bool,
    pub(super) hostname: String,
    /// `host:port` of this node's manager; on a worker, where it would be.
    pub(super) advertise_addr: String,
    pub(super) listen_addr: String,
    /// VXLAN tunnel endpoint.
    pub(super) data_addr: String,
    /// `host:port` of the managers known when this was written.
    pub(super) managers: Vec<String>,
    /// `orch join` chose the address of this worker by itself. Never so after the node was a manager.
    #[serde(skip)]
    pub(super) chosen: bool,
}

/// The supervisor's data folder, held by this process alone.
#[derive(Debug)]
pub(super) struct NodeDir {
    dir: PathBuf,
    _lock: Flock<fs::File>,
}

impl NodeDir {
    /// Opens the folder, makes it when it is new, and refuses one that a newer orch wrote or that is in use.
    pub(super) fn open(paths: &Paths) -> Result<Self> {
        let dir = paths.node_dir();
        files::private_dir(&dir)?;
        let path = dir.join("lock");
        let file = fs::File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                bail!("orch already runs on this machine (another process holds {})", path.display())
            }
            Err((_, errno)) => return Err(errno).with_context(|| format!("cannot lock {}", path.display())),
        };
        check_format(&dir.join("format"))?;
        Ok(Self { dir, _lock: lock })
    }

    pub(super) fn load(&self) -> Result<Option<Member>> {
        let path = self.state_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut member: Member =
            serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
        member.chosen = self.is_chosen(&member);
        Ok(Some(member))
    }

    /// From here on the node is in the cluster, also after a restart of the machine.
    pub(super) fn save(&self, member: &Member) -> Result<()> {
        let text = serde_json::to_vec_pretty(member).context("cannot encode the state file")?;
        if !member.chosen {
            files::remove_file(&self.chosen_file())?;
        }
        files::write_atomically(&self.state_file(), &text, 0o600)?;
        if member.chosen && !self.is_chosen(member) {
            files::write_atomically(&self.chosen_file(), member.node_id.as_bytes(), 0o600)?;
        }
        Ok(())
    }

    /// Where that is not known, it was given.
    fn is_chosen(&self, member: &Member) -> bool {
        fs::read_to_string(self.chosen_file()).is_ok_and(|node| node == member.node_id)
    }

    /// From here on the node is in no cluster.
    pub(super) fn forget(&self) -> Result<()> {
        files::remove_file(&self.chosen_file())?;
        files::remove_file(&self.state_file())
    }

    fn chosen_file(&self) -> PathBuf {
        self.dir.join(CHOSEN_FILE)
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join(STATE_FILE)
    }
}

/// It is there while the node is in a cluster, whether or not anything runs.
pub(crate) fn state_file(paths: &Paths) -> PathBuf {
    paths.node_dir().join(STATE_FILE)
}

fn check_format(path: &Path) -> Result<()> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return files::write_atomically(path, format!("{FORMAT}\n").as_bytes(), 0o600);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    match text.trim().parse::<u32>() {
        Ok(FORMAT) => Ok(()),
        Ok(other) => bail!(
            "{} says format {other} and this orch knows {FORMAT}: install the orch version that wrote it",
            path.display()
        ),
        Err(_) => bail!("{} is damaged: expected a number", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        Member {
            cluster_id: "c".into(),
            node_id: "n".into(),
            manager: true,
            hostname: "h".into(),
            advertise_addr: "192.0.2.1:2377".into(),
            listen_addr: "0.0.0.0:2377".into(),
            data_addr: "192.0.2.1".into(),
            managers: vec!["192.0.2.1:2377".into()],
            chosen: false,
        }
    }

    #[test]
    fn membership_is_remembered_until_it_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let dir = NodeDir::open(&paths).unwrap();
        assert_eq!(dir.load().unwrap(), None);
        dir.save(&member()).unwrap();
        let error = NodeDir::open(&paths).unwrap_err().to_string();
        assert!(error.starts_with("orch already runs on this machine"), "{error}");
        drop(dir);
        let dir = NodeDir::open(&paths).unwrap();
        assert_eq!(dir.load().unwrap(), Some(member()));
        dir.forget().unwrap();
        assert_eq!(dir.load().unwrap(), None);
    }

    #[test]
    fn whether_the_address_was_chosen_is_remembered_beside_a_state_file_that_older_versions_read() {
        let root = tempfile::tempdir().unwrap();
        let dir = NodeDir::open(&Paths::under(root.path())).unwrap();
        let member = |node: &str, chosen| Member { node_id: node.into(), chosen, ..member() };
        dir.save(&member("n", false)).unwrap();
        let older = fs::read_to_string(dir.state_file()).unwrap();
        for (node, chosen) in [("n", true), ("n", false), ("n", true), ("n", true), ("m", true), ("n", false)] {
            dir.save(&member(node, chosen)).unwrap();
            assert_eq!(dir.load().unwrap(), Some(member(node, chosen)), "{node} {chosen}");
        }
        assert_eq!(fs::read_to_string(dir.state_file()).unwrap(), older);
        // What another membership left behind says nothing of this one.
        dir.save(&member("m", true)).unwrap();
        fs::write(dir.state_file(), older).unwrap();
        assert_eq!(dir.load().unwrap(), Some(member("n", false)));
        dir.forget().unwrap();
        assert!(!dir.chosen_file().exists());
    }

    #[test]
    fn damage_is_never_taken_for_a_new_node() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let dir = NodeDir::open(&paths).unwrap();
        fs::write(dir.state_file(), "{").unwrap();
        assert!(dir.load().unwrap_err().to_string().ends_with("is damaged"));
        drop(dir);
        fs::write(paths.node_dir().join("format"), "2\n").unwrap();
        assert!(NodeDir::open(&paths).unwrap_err().to_string().contains("says format 2"));
    }
}
