//! What the worker remembers between its runs: its data folder's format and lock, a record per task, the managers that
//! it knows and the last networks that it was told of. Never secrets.
//!
//! One file per task, written aside, synced and renamed: after a crash or a power cut each record is the old or the
//! new one.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use orch_model::{NetworkId, TaskId};
use orch_proto::wire;
use prost::Message;
use rustix::fs::{FlockOperation, flock};

/// Raised when the layout of the folder changes.
const FORMAT: &str = "1";

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{action} {path:?}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0:?} is in use by another worker: only one may run on a data folder")]
    Locked(PathBuf),
    #[error("{path:?} has format {found:?}, this version reads {FORMAT}: install the version that wrote it")]
    Format { path: PathBuf, found: String },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

/// Writes a file so that a killed process leaves the old content or the new one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(content)?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Writes a file so that a crash leaves the old content or the new one.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    File::open(dir)?.sync_all()
}

/// The worker's data folder, locked for as long as this lives.
pub(crate) struct Store {
    dir: PathBuf,
    _lock: File,
}

impl Store {
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        for folder in
            [dir.to_owned(), dir.join("tasks"), dir.join("containers"), dir.join("local"), dir.join("networks")]
        {
            fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        }
        // Images bring set-id programs: no user of this machine may reach them.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io_error("change the mode of", dir))?;
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).map_err(io_error("create", &lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| StoreError::Locked(dir.to_owned()))?;
        let format_path = dir.join("format");
        match fs::read_to_string(&format_path) {
            Ok(found) if found.trim() == FORMAT => {}
            Ok(found) => return Err(StoreError::Format { path: dir.to_owned(), found: found.trim().to_owned() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                write_atomically(&format_path, FORMAT.as_bytes()).map_err(io_error("write", &format_path))?;
            }
            Err(e) => return Err(io_error("read", &format_path)(e)),
        }
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Records of all tasks that this node was given and has not been told to forget. Unreadable ones are set aside.
    pub(crate) fn tasks(&self) -> Result<Vec<wire::WorkerTaskRecord>, StoreError> {
        self.records("tasks")
    }

    /// Records of one-off containers.
    pub(crate) fn locals(&self) -> Result<Vec<wire::LocalContainer>, StoreError> {
        self.records("local")
    }

    /// Always durable: nobody else knows of the container.
    pub(crate) fn save_local(&self, record: &wire::LocalContainer) -> Result<(), StoreError> {
        let path = self.local_path(&record.task_id);
        write_atomically(&path, &record.encode_to_vec()).map_err(io_error("write", &path))
    }

    pub(crate) fn forget_local(&self, task: &TaskId) -> Result<(), StoreError> {
        forget(&self.local_path(task.as_str()))
    }

    fn local_path(&self, task: &str) -> PathBuf {
        self.dir.join("local").join(format!("{task}.pb"))
    }

    /// Networks of this node alone.
    pub(crate) fn user_networks(&self) -> Result<Vec<wire::LocalNetwork>, StoreError> {
        self.records("networks")
    }

    pub(crate) fn save_user_network(&self, network: &wire::LocalNetwork) -> Result<(), StoreError> {
        let path = self.user_network_path(&network.id);
        write_atomically(&path, &network.encode_to_vec()).map_err(io_error("write", &path))
    }

    pub(crate) fn forget_user_network(&self, network: &NetworkId) -> Result<(), StoreError> {
        forget(&self.user_network_path(network.as_str()))
    }

    fn user_network_path(&self, network: &str) -> PathBuf {
        self.dir.join("networks").join(format!("{network}.pb"))
    }

    fn records<M: Message + Default>(&self, folder: &str) -> Result<Vec<M>, StoreError> {
        let dir = self.dir.join(folder);
        let mut records = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            let path = entry.map_err(io_error("list", &dir))?.path();
            if path.extension().is_none_or(|extension| extension != "pb") {
                continue;
            }
            let bytes = fs::read(&path).map_err(io_error("read", &path))?;
            match M::decode(bytes.as_slice()) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::error!(?path, %error, "unreadable record; what it is of is forgotten");
                    fs::rename(&path, path.with_extension("unreadable")).map_err(io_error("set aside", &path))?;
                }
            }
        }
        Ok(records)
    }

    /// With `durable`, the record outlives a power cut too: that costs two waits for the disk.
    pub(crate) fn save_task(
        &self,
        task: &TaskId,
        record: &wire::WorkerTaskRecord,
        durable: bool,
    ) -> Result<(), StoreError> {
        let path = self.task_path(task);
        let write = if durable { write_atomically } else { replace };
        write(&path, &record.encode_to_vec()).map_err(io_error("write", &path))
    }

    pub(crate) fn forget_task(&self, task: &TaskId) -> Result<(), StoreError> {
        forget(&self.task_path(task))
    }

    /// `host:port` of each manager that a session named last.
    pub(crate) fn managers(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("managers")).unwrap_or_default();
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    pub(crate) fn save_managers(&self, managers: &[String]) -> Result<(), StoreError> {
        let path = self.dir.join("managers");
        write_atomically(&path, managers.join("\n").as_bytes()).map_err(io_error("write", &path))
    }

    /// The network items of the last assignment set: while no manager answers, a restarted netd needs them. They change with
    /// every endpoint, and no tasks outlive a power cut that would need them before a manager answers: not synced.
    pub(crate) fn networks(&self) -> Vec<wire::Assignment> {
        let read = fs::read(self.dir.join("networks.pb")).ok();
        let decoded = read.and_then(|bytes| wire::DesiredNetworks::decode(bytes.as_slice()).ok());
        decoded.map(|networks| networks.items).unwrap_or_default()
    }

    pub(crate) fn save_networks(&self, items: &[wire::Assignment]) -> Result<(), StoreError> {
        let path = self.dir.join("networks.pb");
        let message = wire::DesiredNetworks { items: items.to_vec(), ..Default::default() };
        replace(&path, &message.encode_to_vec()).map_err(io_error("write", &path))
    }

    /// The folder of a task's container.
    pub(crate) fn container_dir(&self, task: &TaskId) -> PathBuf {
        self.dir.join("containers").join(task.as_str())
    }

    fn task_path(&self, task: &TaskId) -> PathBuf {
        self.dir.join("tasks").join(format!("{task}.pb"))
    }
}

fn forget(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("delete", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_a_second_worker_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let task = TaskId::from_random(1);
        let record = wire::WorkerTaskRecord { image_digest: "sha256:1".to_owned(), ..Default::default() };
        let store = Store::open(dir.path()).unwrap();
        store.save_task(&task, &record, true).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked(_))));
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.tasks().unwrap(), [record]);
        store.forget_task(&task).unwrap();
        store.forget_task(&task).unwrap();
        assert_eq!(store.tasks().unwrap(), []);
    }

    #[test]
    fn a_newer_format_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), "2\n").unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Format { .. })));
    }
}
