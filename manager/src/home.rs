//! The manager's folder: format number, lock, configuration and what raft calls itself.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::fcntl::{Flock, FlockArg};
use orch_model::Timestamp;
use orch_proto::{
    format::{self, FormatError},
    paths::{ALONE_MARK, Paths},
    wire::{self, DaemonConfig, daemon_config::FirstStart},
};
use prost::Message;

use crate::random;

/// Raised when the folder's content changes so that an older version cannot read it.
const FORMAT: u32 = 1;

/// What is wrong with the folder.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another manager already uses {path}", path = path.display())]
    InUse { path: PathBuf },
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("{path} does not exist: this node is not a manager; run \"orch init\" or \"orch join\"", path = path.display())]
    NotConfigured { path: PathBuf },
    #[error("{path} cannot be read as the manager's configuration: {detail}", path = path.display())]
    Config { path: PathBuf, detail: String },
}

/// The open folder; the lock is held while this lives.
pub struct Home {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Home {
    pub fn open(paths: &Paths) -> Result<Self, HomeError> {
        let dir = paths.manager_dir();
        fs::create_dir_all(&dir).map_err(error("create", &dir))?;
        let lock_path = dir.join("lock");
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(error("open", &lock_path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, _)| HomeError::InUse { path: dir.clone() })?;
        let home = Self { dir, _lock: lock };
        home.check_format()?;
        Ok(home)
    }

    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.dir.join("keys")
    }

    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.dir.join("tls")
    }

    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.raft().join("log")
    }

    /// Whether there is anything in it, sealed with the [keys](Self::keys).
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.log().join("db").exists()
    }

    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.raft().join("snapshots")
    }

    /// What began to go on alone ends it, whatever was written since.
    pub fn config(&self) -> Result<DaemonConfig, HomeError> {
        let path = self.dir.join("daemon.pb");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(HomeError::NotConfigured { path }),
            Err(source) => return Err(HomeError::Io { what: "read", path, source }),
        };
        let mut config =
            DaemonConfig::decode(bytes.as_slice()).map_err(|e| HomeError::Config { path, detail: e.to_string() })?;
        if self.dir.join(ALONE_MARK).exists() {
            config.first_start = Some(FirstStart::ForceNewCluster(wire::Empty {}));
        }
        Ok(config)
    }

    /// From here on the log may say that this manager is alone: there is no way back.
    pub fn note_alone(&self) -> Result<(), HomeError> {
        self.write(ALONE_MARK, b"")
    }

    /// Deletes the material of the first start: the CA's key and the tokens are in the sealed log now.
    pub fn forget_first_start(&self) -> Result<(), HomeError> {
        let config = DaemonConfig { first_start: None, ..self.config()? };
        self.write("daemon.pb", &config.encode_to_vec())?;
        let alone = self.dir.join(ALONE_MARK);
        match fs::remove_file(&alone) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("delete", &alone)(source)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// This manager's number in raft. A number whose log is gone is never used again: whoever forgot what it voted for
    /// must not vote under the same name. What is left of it is put aside, and the manager joins anew. A log whose number is
    /// gone gets it back from a copy: a cluster of one manager would be without a member that is there.
    pub fn raft_id(&self) -> Result<u64, HomeError> {
        let raft = self.raft();
        fs::create_dir_all(&raft).map_err(error("create", &raft))?;
        let known = number_in(&raft.join("id"))?;
        let copied = number_in(&raft.join("id-copy"))?;
        match known.or(copied) {
            Some(id) if self.has_log() => {
                if known.is_none() {
                    tracing::error!(raft_id = id, "raft/id is lost or damaged: made again from its copy");
                    self.write_number("raft/id", id)?;
                }
                if copied != Some(id) {
                    self.write_number("raft/id-copy", id)?;
                }
                return Ok(id);
            }
            Some(id) => self.put_aside(id)?,
            None if self.has_log() => {
                tracing::error!("raft/id and its copy are lost: joining anew under another number");
            }
            None => {}
        }
        // 64 of 128 random bits.
        #[allow(clippy::cast_possible_truncation)]
        let id = (random::bits() as u64).max(1);
        fs::create_dir_all(&raft).map_err(error("create", &raft))?;
        self.write_number("raft/id", id)?;
        self.write_number("raft/id-copy", id)?;
        Ok(id)
    }

    fn write_number(&self, name: &str, id: u64) -> Result<(), HomeError> {
        let path = self.dir.join(name);
        // A file does not take a folder's place.
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(error("delete", &path))?;
        }
        self.write(name, format!("{id}\n").as_bytes())
    }

    /// Whether this manager is known to be a member of raft.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.raft().join("member").exists()
    }

    pub fn note_member(&self) -> Result<(), HomeError> {
        self.write("raft/member", b"")
    }

    /// Managers' certificates that are older than this belong to managers that were lost: this one went on without them.
    pub fn fence(&self) -> Result<Option<Timestamp>, HomeError> {
        let path = self.raft().join("fence");
        match fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map(|ms| Some(Timestamp::from_unix_ms(ms)))
                .map_err(|_| HomeError::Config { path, detail: "expected a number of milliseconds".to_owned() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HomeError::Io { what: "read", path, source }),
        }
    }

    pub fn set_fence(&self, at: Timestamp) -> Result<(), HomeError> {
        self.write("raft/fence", format!("{}\n", at.unix_ms).as_bytes())
    }

    fn put_aside(&self, id: u64) -> Result<(), HomeError> {
        let raft = self.raft();
        let stamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let aside = self.dir.join(format!("raft.lost-{stamp}"));
        tracing::error!(raft_id = id, kept = %aside.display(), "the raft log of this manager is gone; joining anew under another number");
        fs::rename(&raft, &aside).map_err(error("rename", &raft))
    }

    fn check_format(&self) -> Result<(), HomeError> {
        if format::is_known(&self.dir.join("format"), FORMAT)? {
            return Ok(());
        }
        self.write("format", format!("{FORMAT}\n").as_bytes())
    }

    fn raft(&self) -> PathBuf {
        self.dir.join("raft")
    }

    /// The whole file or the old one, also after a power cut.
    fn write(&self, name: &str, content: &[u8]) -> Result<(), HomeError> {
        let path = self.dir.join(name);
        let fresh = path.with_extension("new");
        let write = || {
            let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
        };
        write().map_err(error("write", &path))
    }
}

/// `None` when it is lost or damaged.
fn number_in(path: &Path) -> Result<Option<u64>, HomeError> {
    use io::ErrorKind::{InvalidData, IsADirectory, NotFound};
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().parse().ok().filter(|id| *id != 0)),
        Err(e) if matches!(e.kind(), NotFound | IsADirectory | InvalidData) => Ok(None),
        Err(source) => Err(error("read", path)(source)),
    }
}

fn error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HomeError {
    let path = path.to_owned();
    move |source| HomeError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_manager_and_one_format() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let home = Home::open(&paths).unwrap();
        assert!(matches!(Home::open(&paths), Err(HomeError::InUse { .. })));
        assert!(matches!(home.config(), Err(HomeError::NotConfigured { .. })));
        drop(home);
        fs::write(paths.manager_dir().join("format"), "9\n").unwrap();
        assert!(matches!(Home::open(&paths), Err(HomeError::Format(FormatError::Other { .. }))));
    }

    #[test]
    fn a_lost_raft_number_of_a_log_comes_from_its_copy() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&Paths::under(dir.path())).unwrap();
        let first = home.raft_id().unwrap();
        fs::create_dir_all(home.log()).unwrap();
        fs::write(home.log().join("db"), b"x").unwrap();
        home.note_member().unwrap();
        for name in ["id", "id-copy"] {
            let path = home.raft().join(name);
            let damages: [&dyn Fn(); 4] = [
                &|| fs::remove_file(&path).unwrap(),
                &|| fs::write(&path, "").unwrap(),
                &|| fs::write(&path, "\0\0").unwrap(),
                &|| fs::remove_file(&path).and_then(|()| fs::create_dir(&path)).unwrap(),
            ];
            for damage in damages {
                damage();
                assert_eq!(home.raft_id().unwrap(), first);
                assert_eq!(number_in(&path).unwrap(), Some(first), "{name}");
            }
        }
        assert!(home.is_member());
    }

    #[test]
    fn a_raft_number_without_its_log_is_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&Paths::under(dir.path())).unwrap();
        let first = home.raft_id().unwrap();
        fs::create_dir_all(home.log()).unwrap();
        fs::write(home.log().join("db"), b"x").unwrap();
        home.note_member().unwrap();
        assert_eq!(home.raft_id().unwrap(), first);
        fs::remove_dir_all(home.log()).unwrap();
        assert_ne!(home.raft_id().unwrap(), first);
        assert!(!home.is_member(), "the new number is not a member yet");
    }
}
