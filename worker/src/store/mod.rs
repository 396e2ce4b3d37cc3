//! What the worker remembers between its runs: its data folder's format and lock, a record per task, the managers that
//! it knows and the last networks that it was told of. Never secrets.
//!
//! One file per task, written aside, synced and renamed: after a crash or a power cut each record is the old or the
//! new one. Of what nobody else knows, one-off containers and networks of this node, a copy lies beside each record: a
//! damaged one is made again from it. What is damaged is [put aside](aside) and stops nothing else.

pub(crate) mod aside;

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use orch_model::{NetworkId, TaskId};
use orch_proto::{
    format::{self, FormatError},
    wire,
};
use prost::Message;
use rustix::fs::{FlockOperation, flock};

/// Raised when the layout of the folder changes.
const FORMAT: u32 = 1;

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
    #[error(transparent)]
    Format(#[from] FormatError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

/// Writes a file so that a killed process leaves the old content or the new one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(content)?;
    aside::persist(file, path)
}

/// Writes a file so that a crash leaves the old content or the new one.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    aside::persist(file, path)?;
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
            aside::make_folder(&folder).map_err(io_error("create", &folder))?;
        }
        // Images bring set-id programs: no user of this machine may reach them.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io_error("change the mode of", dir))?;
        let lock_path = dir.join("lock");
        if lock_path.is_dir() {
            aside::put_aside(&lock_path, &"it should be a file").map_err(io_error("put aside", &lock_path))?;
        }
        let lock = File::create(&lock_path).map_err(io_error("create", &lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| StoreError::Locked(dir.to_owned()))?;
        let format_path = dir.join("format");
        if !format::is_known(&format_path, FORMAT)? {
            write_atomically(&format_path, FORMAT.to_string().as_bytes()).map_err(io_error("write", &format_path))?;
        }
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Records of all tasks that this node was given and has not been told to forget.
    pub(crate) fn tasks(&self) -> Result<Vec<wire::WorkerTaskRecord>, StoreError> {
        Ok(self.records("tasks", |_, _| true)?.into_iter().map(|(_, record)| record).collect())
    }

    /// Records of one-off containers.
    pub(crate) fn locals(&self) -> Result<Vec<wire::LocalContainer>, StoreError> {
        self.records_with_copies("local", |record: &wire::LocalContainer| &record.task_id)
    }

    /// Always durable: nobody else knows of the container.
    pub(crate) fn save_local(&self, record: &wire::LocalContainer) -> Result<(), StoreError> {
        save_with_copy(&self.local_path(&record.task_id), &record.encode_to_vec())
    }

    pub(crate) fn forget_local(&self, task: &TaskId) -> Result<(), StoreError> {
        forget_with_copy(&self.local_path(task.as_str()))
    }

    fn local_path(&self, task: &str) -> PathBuf {
        self.dir.join("local").join(format!("{task}.pb"))
    }

    /// Networks of this node alone.
    pub(crate) fn user_networks(&self) -> Result<Vec<wire::LocalNetwork>, StoreError> {
        self.records_with_copies("networks", |record: &wire::LocalNetwork| &record.id)
    }

    pub(crate) fn save_user_network(&self, network: &wire::LocalNetwork) -> Result<(), StoreError> {
        save_with_copy(&self.user_network_path(&network.id), &network.encode_to_vec())
    }

    pub(crate) fn forget_user_network(&self, network: &NetworkId) -> Result<(), StoreError> {
        forget_with_copy(&self.user_network_path(network.as_str()))
    }

    fn user_network_path(&self, network: &str) -> PathBuf {
        self.dir.join("networks").join(format!("{network}.pb"))
    }

    fn records_with_copies<M: Message + Default>(
        &self,
        folder: &str,
        id: fn(&M) -> &String,
    ) -> Result<Vec<M>, StoreError> {
        let records =
            self.records(folder, |path, record| path.file_stem().is_some_and(|name| name == id(record).as_str()))?;
        for (path, record) in &records {
            // Of an earlier version, which made none, or lost in a power cut.
            let bytes = M::encode_to_vec(record);
            if fs::read(copy_of(path)).ok().as_deref() != Some(&bytes) {
                keep_copy(path, &bytes);
            }
        }
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// `is_own`: whether it is the record that the file should have. One that was cut may still read.
    fn records<M: Message + Default>(
        &self,
        folder: &str,
        is_own: impl Fn(&Path, &M) -> bool,
    ) -> Result<Vec<(PathBuf, M)>, StoreError> {
        let dir = self.dir.join(folder);
        let mut records = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            let path = entry.map_err(io_error("list", &dir))?.path();
            if path.extension().is_none_or(|extension| extension != "pb") {
                continue;
            }
            let why = match read_record(&path) {
                Ok(record) if !is_own(&path, &record) => io::Error::other("it says of itself that it is another"),
                Ok(record) => {
                    records.push((path, record));
                    continue;
                }
                Err(error) if aside::is_damage(&error) || error.kind() == io::ErrorKind::NotFound => error,
                Err(error) => return Err(io_error("read", &path)(error)),
            };
            aside::put_aside(&path, &why).map_err(io_error("put aside", &path))?;
            match read_record(&copy_of(&path)) {
                Ok(record) if is_own(&path, &record) => {
                    tracing::warn!(path = %path.display(), "the record is made again from its copy");
                    put_in_place(&copy_of(&path), &path).map_err(io_error("write", &path))?;
                    records.push((path, record));
                }
                _ => tracing::error!(path = %path.display(), "what the record is of is forgotten"),
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

/// An empty file is one whose content never reached the disk: no record is empty.
fn read_record<M: Message + Default>(path: &Path) -> io::Result<M> {
    let bytes = aside::read(path)?;
    if bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    M::decode(bytes.as_slice()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

pub(crate) fn copy_of(path: &Path) -> PathBuf {
    path.with_extension("copy")
}

/// Without it a damaged record is lost, and nothing else is. Not synced: the record is.
pub(crate) fn keep_copy(path: &Path, content: &[u8]) {
    let copy = copy_of(path);
    if let Err(error) = replace(&copy, content) {
        tracing::warn!(copy = %copy.display(), %error, "a copy is not kept");
    }
}

/// Needs no room: the disk may be full.
pub(crate) fn put_in_place(copy: &Path, path: &Path) -> io::Result<()> {
    File::open(copy)?.sync_all()?;
    fs::rename(copy, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn save_with_copy(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    write_atomically(path, content).map_err(io_error("write", path))?;
    keep_copy(path, content);
    Ok(())
}

/// The record last: with it, the copy would come back.
fn forget_with_copy(path: &Path) -> Result<(), StoreError> {
    forget(&copy_of(path))?;
    forget(path)
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

    fn local(task: &str, name: &str) -> wire::LocalContainer {
        wire::LocalContainer { task_id: task.to_owned(), name: name.to_owned(), ..Default::default() }
    }

    #[test]
    fn a_damaged_record_is_put_aside_and_made_again_from_its_copy() {
        let damages: [&dyn Fn(&Path); 5] = [
            &|path| fs::write(path, "").unwrap(),
            &|path| fs::write(path, [0xff; 9]).unwrap(),
            &|path| {
                let whole = fs::read(path).unwrap();
                fs::write(path, &whole[..whole.len() - 1]).unwrap();
            },
            &|path| fs::remove_file(path).and_then(|()| fs::create_dir(path)).unwrap(),
            &|path| fs::remove_file(path).and_then(|()| std::os::unix::fs::symlink("/nowhere", path)).unwrap(),
        ];
        for (n, damage) in damages.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            let network = wire::LocalNetwork { id: "n".to_owned(), name: "net".to_owned(), ..Default::default() };
            store.save_user_network(&network).unwrap();
            store.save_local(&local("one", "a")).unwrap();
            store.save_local(&local("two", "b")).unwrap();
            let task = TaskId::from_random(1);
            let record = wire::WorkerTaskRecord { image_digest: "sha256:1".to_owned(), ..Default::default() };
            store.save_task(&task, &record, true).unwrap();
            for path in [store.local_path("one"), store.user_network_path("n"), store.task_path(&task)] {
                damage(&path);
            }
            for again in 0..2 {
                let mut locals = store.locals().unwrap();
                locals.sort_by(|a, b| a.name.cmp(&b.name));
                assert_eq!(locals, [local("one", "a"), local("two", "b")], "{n} {again}");
                assert_eq!(store.user_networks().unwrap(), std::slice::from_ref(&network), "{n} {again}");
                // Managers know it, and give the task another container.
                assert_eq!(store.tasks().unwrap(), [], "{n} {again}");
            }
            for folder in ["local", "networks", "tasks"] {
                let names = fs::read_dir(dir.path().join(folder)).unwrap();
                let aside =
                    names.filter(|name| name.as_ref().unwrap().path().to_string_lossy().contains(".pb.broken-"));
                assert_eq!(aside.count(), 1, "{n} {folder}");
            }
        }
    }

    #[test]
    fn a_copy_is_made_for_records_of_earlier_versions_and_goes_with_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let task = TaskId::from_random(1);
        let record = local(task.as_str(), "a");
        fs::write(store.local_path(task.as_str()), record.encode_to_vec()).unwrap();
        assert_eq!(store.locals().unwrap(), std::slice::from_ref(&record));
        fs::write(store.local_path(task.as_str()), "").unwrap();
        assert_eq!(store.locals().unwrap(), [record]);
        store.forget_local(&task).unwrap();
        assert!(!copy_of(&store.local_path(task.as_str())).exists());
        assert_eq!(store.locals().unwrap(), []);
        // A copy alone is of a record that an earlier version has deleted.
        fs::write(dir.path().join("local/left.copy"), "x").unwrap();
        assert_eq!(store.locals().unwrap(), []);
    }

    #[test]
    fn what_stands_in_the_place_of_a_folder_or_the_lock_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("local"), "").unwrap();
        fs::create_dir(dir.path().join("lock")).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.locals().unwrap(), []);
        assert_eq!(
            fs::read_dir(dir.path())
                .unwrap()
                .filter(|e| e.as_ref().unwrap().path().to_string_lossy().contains(".broken-"))
                .count(),
            2
        );
    }

    #[test]
    fn a_newer_format_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), "2\n").unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Format(FormatError::Other { .. }))));
    }
}
