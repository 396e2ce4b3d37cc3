//! The state file: which cluster this node is in, under which name.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use orch_proto::{format, paths::Paths};
use serde::{Deserialize, Serialize};

use super::files;

/// Layout of `/var/lib/orch/node`; a higher number belongs to a newer orch.
const FORMAT: u32 = 1;
const STATE_FILE: &str = "state.json";
/// The same once more, for when the state file is lost or damaged.
const COPY_FILE: &str = "state-copy.json";
/// What a state file that cannot be read is renamed to.
const DAMAGED_FILE: &str = "state-damaged.json";
/// What the state file becomes by a leave, until all that the membership made is gone.
const LEAVING_FILE: &str = "state-leaving.json";
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
    /// There while the node is in a cluster.
    certificate: PathBuf,
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
        Ok(Self { dir, certificate: paths.worker_dir().join("tls/node.crt"), _lock: lock })
    }

    /// A state file that is lost or damaged is made again from its copy: a manager that took itself for a new node would
    /// be told to make or join a cluster, and would give up what may be all that is left of its own.
    pub(super) fn load(&self) -> Result<Option<Member>> {
        let found = read(&self.state_file());
        let copy = read(&self.copy_file()).ok().flatten();
        let (found, copy) = match (found, copy) {
            (Ok(Some(member)), copy) => (member, copy),
            // `orch leave` takes the certificate; versions without a copy do not take the copy.
            (lost, Some(copy)) if self.certificate.exists() => {
                tracing::warn!(
                    reason = lost.err().map(|error| format!("{error:#}")),
                    "{} is lost or damaged: made again from its copy",
                    self.state_file().display()
                );
                self.put_damaged_aside();
                if let Err(error) = self.write(&self.state_file(), &copy) {
                    tracing::warn!("{error:#}");
                }
                (copy.clone(), Some(copy))
            }
            (lost, _) => {
                return lost.with_context(|| {
                    format!(
                        "this node does not know which cluster it is in: restore {} from a backup. Without one, move it \
                         away and let the node join anew; what a manager has here is kept then",
                        self.state_file().display()
                    )
                });
            }
        };
        if copy.as_ref() != Some(&found)
            && let Err(error) = self.write(&self.copy_file(), &found)
        {
            tracing::warn!("cannot keep a copy of the state file: {error:#}");
        }
        let chosen = self.is_chosen(&found);
        Ok(Some(Member { chosen, ..found }))
    }

    /// For whoever wants to look at it. A file cannot take a folder's place, nor a folder a file's.
    fn put_damaged_aside(&self) {
        let aside = self.dir.join(DAMAGED_FILE);
        let _ = fs::remove_file(&aside).or_else(|_| fs::remove_dir_all(&aside));
        let _ = fs::rename(self.state_file(), &aside);
    }

    fn write(&self, path: &Path, member: &Member) -> Result<()> {
        let text = serde_json::to_vec_pretty(member).context("cannot encode the state file")?;
        files::write_atomically(path, &text, 0o600)
    }

    /// From here on the node is in the cluster, also after a restart of the machine.
    pub(super) fn save(&self, member: &Member) -> Result<()> {
        if !member.chosen {
            files::remove_file(&self.chosen_file())?;
        }
        self.write(&self.state_file(), member)?;
        self.write(&self.copy_file(), member)?;
        if member.chosen && !self.is_chosen(member) {
            files::write_atomically(&self.chosen_file(), member.node_id.as_bytes(), 0o600)?;
        }
        self.have_left()
    }

    /// Where that is not known, it was given.
    fn is_chosen(&self, member: &Member) -> bool {
        fs::read_to_string(self.chosen_file()).is_ok_and(|node| node == member.node_id)
    }

    /// From here on the node is in no cluster.
    pub(super) fn forget(&self) -> Result<()> {
        files::remove_file(&self.chosen_file())?;
        files::remove_file(&self.copy_file())?;
        files::remove_file(&self.state_file())
    }

    /// As [`NodeDir::forget`], with a mark that something is left to be removed: the last file that says otherwise, which
    /// needs no room on the disk. The state file may be lost since it was read.
    pub(super) fn leave(&self) -> Result<()> {
        let (state, copy, leaving) = (self.state_file(), self.copy_file(), self.leaving_file());
        files::remove_file(&self.chosen_file())?;
        if state.exists() {
            files::remove_file(&copy)?;
            return files::rename(&state, &leaving);
        }
        if copy.exists() { files::rename(&copy, &leaving) } else { files::write_atomically(&leaving, b"", 0o600) }
    }

    /// Nobody has removed yet what the former membership made.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving_file().exists()
    }

    pub(super) fn have_left(&self) -> Result<()> {
        files::remove_file(&self.leaving_file())
    }

    fn leaving_file(&self) -> PathBuf {
        self.dir.join(LEAVING_FILE)
    }

    fn copy_file(&self) -> PathBuf {
        self.dir.join(COPY_FILE)
    }

    fn chosen_file(&self) -> PathBuf {
        self.dir.join(CHOSEN_FILE)
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join(STATE_FILE)
    }
}

fn read(path: &Path) -> Result<Option<Member>> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| format!("{} is damaged", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// It is there while the node is in a cluster, whether or not anything runs.
pub(crate) fn state_file(paths: &Paths) -> PathBuf {
    paths.node_dir().join(STATE_FILE)
}

fn check_format(path: &Path) -> Result<()> {
    if format::is_known(path, FORMAT)? {
        return Ok(());
    }
    files::write_atomically(path, format!("{FORMAT}\n").as_bytes(), 0o600)
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
    fn a_leave_is_remembered_until_it_is_done_or_another_membership_begins() {
        let root = tempfile::tempdir().unwrap();
        let dir = NodeDir::open(&Paths::under(root.path())).unwrap();
        let ends: [&dyn Fn() -> Result<()>; 2] = [&|| dir.have_left(), &|| dir.save(&member())];
        let lost = [vec![], vec![dir.state_file()], vec![dir.copy_file()], vec![dir.state_file(), dir.copy_file()]];
        for (end, lost) in ends.iter().flat_map(|end| lost.iter().map(move |lost| (end, lost))) {
            dir.save(&member()).unwrap();
            assert!(!dir.is_leaving());
            lost.iter().for_each(|path| fs::remove_file(path).unwrap());
            dir.leave().unwrap();
            assert_eq!((dir.load().unwrap(), dir.is_leaving()), (None, true));
            end().unwrap();
            assert!(!dir.is_leaving());
        }
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
    fn a_lost_or_damaged_state_file_is_made_again_from_its_copy() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let dir = NodeDir::open(&paths).unwrap();
        let certificate = paths.worker_dir().join("tls/node.crt");
        fs::create_dir_all(certificate.parent().unwrap()).unwrap();
        fs::write(&certificate, "").unwrap();
        let given = Member { chosen: true, ..member() };
        dir.save(&given).unwrap();
        let whole = fs::read_to_string(dir.state_file()).unwrap();
        let damages: [&dyn Fn(&Path); 4] = [
            &|path| fs::remove_file(path).unwrap(),
            &|path| fs::write(path, "").unwrap(),
            &|path| fs::write(path, &whole[..whole.len() / 2]).unwrap(),
            &|path| fs::remove_file(path).and_then(|()| fs::create_dir(path)).unwrap(),
        ];
        for damage in damages {
            for path in [dir.state_file(), dir.copy_file()] {
                damage(&path);
                assert_eq!(dir.load().unwrap(), Some(given.clone()), "{path:?}");
                assert_eq!(fs::read_to_string(dir.state_file()).unwrap(), whole);
                let _ = fs::remove_dir(dir.copy_file());
            }
        }
        // A change made by a version without a copy counts, and what that version left stays left.
        let changed = Member { manager: false, ..given };
        let text = serde_json::to_string(&changed).unwrap();
        fs::write(dir.state_file(), text).unwrap();
        assert_eq!(dir.load().unwrap(), Some(changed.clone()));
        fs::remove_file(dir.state_file()).unwrap();
        assert_eq!(dir.load().unwrap(), Some(changed));
        fs::remove_file(dir.state_file()).unwrap();
        fs::remove_file(&certificate).unwrap();
        assert_eq!(dir.load().unwrap(), None);
        dir.forget().unwrap();
        fs::write(&certificate, "").unwrap();
        assert_eq!(dir.load().unwrap(), None);
    }

    #[test]
    fn damage_is_never_taken_for_a_new_node() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let dir = NodeDir::open(&paths).unwrap();
        fs::write(dir.state_file(), "{").unwrap();
        let error = format!("{:#}", dir.load().unwrap_err());
        assert!(error.contains("restore") && error.contains("state.json is damaged"), "{error}");
        drop(dir);
        fs::write(paths.node_dir().join("format"), "2\n").unwrap();
        assert!(NodeDir::open(&paths).unwrap_err().to_string().contains("says format 2"));
    }
}
