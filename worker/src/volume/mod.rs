//! Volumes of the `local` driver: folders of this node that outlive the tasks which use them.
//!
//! A new volume is filled with what the image has at the place where it is mounted, as Docker does. An anonymous one
//! belongs to its task and goes with it. One that is a mount is mounted for as long as somebody uses it: who does, is noted
//! in files that a reboot clears, as it does the mounts.

mod bounded;
mod fill;
mod inside;
mod mounts;
pub(crate) mod propagation;

pub(crate) use inside::unpin;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt, lchown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use orch_model::TaskId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    store::{self, aside},
    users::Remap,
};

/// In the folder of each volume.
const DESCRIPTION: &str = "volume.json";

#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("{action} {path:?}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "volume name {0:?} is not valid: letters, digits, `_`, `.` and `-`, at least two, the first a letter or digit"
    )]
    Name(String),
    #[error(
        "cannot access path {inside:?} of volume {name:?}: it leads out of the volume, by .. or a link: name a path that \
         stays in it"
    )]
    Escape { name: String, inside: String },
    #[error("cannot access path {inside:?} of volume {name:?}: a subpath has to be there before it is mounted")]
    Inside {
        name: String,
        inside: String,
        #[source]
        source: io::Error,
    },
    #[error("get {0}: no such volume")]
    NotFound(String),
    #[error(
        "{path:?} is damaged, so it is not known what is to be mounted at volume {name}: bring the file back from a copy; of a \
         volume without options, delete it"
    )]
    Damaged {
        name: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("volume {0} is there already, with other options: remove it, or choose another name")]
    Differs(String),
    #[error("invalid option {0:?} of a local volume: type, device and o are known")]
    Option(String),
    #[error("missing required option {0:?}: a volume with options needs type and device")]
    OptionMissing(&'static str),
    #[error("error while mounting volume {name:?}: mount {device} on {at}")]
    Mount {
        name: String,
        device: String,
        at: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Nearly Docker's words.
    #[error("error while mounting volume {name:?}: error resolving passed in network volume address {server:?}")]
    Address {
        name: String,
        server: String,
        #[source]
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    move |source| VolumeError::Io { action, path: path.to_owned(), source }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Description {
    labels: BTreeMap<String, String>,
    created_at_ms: u64,
    /// The task that an anonymous volume belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// Where that task has it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    target: String,
    /// What is mounted there when the volume is used: `type`, `device`, `o`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    options: BTreeMap<String, String>,
    /// Made without a name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    anonymous: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub name: String,
    pub mountpoint: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
    pub created_at_ms: u64,
    pub anonymous: bool,
    /// Of an anonymous one.
    pub task: Option<String>,
}

/// Whose volume it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    Named {
        name: &'a str,
        labels: &'a BTreeMap<String, String>,
        options: &'a BTreeMap<String, String>,
    },
    /// Made for one place in one task's container.
    Anonymous {
        task: &'a TaskId,
        target: &'a str,
        labels: &'a BTreeMap<String, String>,
        options: &'a BTreeMap<String, String>,
    },
}

/// Clones share the locks.
#[derive(Clone)]
pub(crate) struct Volumes {
    dir: PathBuf,
    /// Of volumes that are mounts: a folder for each, with a file for each task that uses it.
    users: PathBuf,
    /// What containers have of volumes by a subpath: a folder for each.
    pins: PathBuf,
    /// One lock for each volume that somebody changes, fills or mounts: one whose server is away holds up no other.
    changing: Arc<Mutex<BTreeMap<String, Arc<Mutex<()>>>>>,
    /// Whose new volumes are.
    owner: Option<Remap>,
}

impl Volumes {
    pub(crate) fn open(dir: &Path, users: &Path, pins: &Path) -> Result<Self, VolumeError> {
        for dir in [dir, users] {
            fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        }
        // Its content is nobody's on the node.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(pins).map_err(io_error("create", pins))?;
        let [dir, users, pins] = [dir, users, pins].map(Path::to_owned);
        Ok(Self { dir, users, pins, changing: Arc::default(), owner: None })
    }

    /// New volumes are of containers' root.
    pub(crate) fn owned_by(self, owner: Option<Remap>) -> Self {
        Self { owner, ..self }
    }

    /// Makes the volume when it is not there, fills it when it is empty, and returns its folder. `fill_from` is the
    /// container's root and the place in it. To be given back with [`Self::release`], also after a failure.
    pub(crate) fn prepare(
        &self,
        wanted: Wanted<'_>,
        user: &TaskId,
        fill_from: Option<(&Path, &str)>,
        now: SystemTime,
    ) -> Result<PathBuf, VolumeError> {
        let (name, description) = wanted.describe(now);
        check_name(&name)?;
        let turn = self.turn(&name);
        let _changing = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let data = self.dir.join(&name).join("_data");
        let options = match self.options(&name)? {
            Some(options) => options,
            None => {
                mounts::check(&description.options)?;
                self.describe_new(&name, &description)?;
                description.options
            }
        };
        if options.is_empty() {
            fs::create_dir_all(&data).map_err(io_error("create", &data))?;
            fill::finish(&data, &self.dir.join(&name)).map_err(io_error("fill the volume", &data))?;
        } else {
            self.mount_for(user, &name, &options, &data)?;
        }
        if let Some((root, target)) = fill_from
            && is_empty(&data).map_err(io_error("list", &data))?
        {
            // Beside what is mounted is another disk.
            let aside = options.is_empty().then(|| self.dir.join(&name));
            fill::fill(&data, root, target, aside.as_deref()).map_err(io_error("fill the volume", &data))?;
        }
        Ok(data)
    }

    /// The same of a folder or file in it, which has to be there.
    pub(crate) fn prepare_inside(
        &self,
        wanted: Wanted<'_>,
        inside: &str,
        user: &TaskId,
        fill_from: Option<(&Path, &str)>,
        now: SystemTime,
    ) -> Result<PathBuf, VolumeError> {
        let data = self.prepare(wanted, user, None, now)?;
        let (name, _) = wanted.describe(now);
        let turn = self.turn(&name);
        let _changing = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let pin = self.pin(&name, &data, inside, user)?;
        if let Some((root, target)) = fill_from
            && pin.is_dir()
            && is_empty(&pin).map_err(io_error("list", &pin))?
        {
            fill::fill(&pin, root, target, None).map_err(io_error("fill the volume", &pin))?;
        }
        Ok(pin)
    }

    fn pin(&self, name: &str, data: &Path, inside: &str, user: &TaskId) -> Result<PathBuf, VolumeError> {
        inside::pin(data, inside, &self.pins.join(user.as_str())).map_err(|source| {
            let (name, inside) = (name.to_owned(), inside.to_owned());
            if inside::is_escape(&source) {
                VolumeError::Escape { name, inside }
            } else {
                VolumeError::Inside { name, inside, source }
            }
        })
    }

    /// The same of a folder or file in it.
    pub(crate) fn borrow_inside(&self, name: &str, inside: &str, user: &TaskId) -> Result<PathBuf, VolumeError> {
        let data = self.borrow(name, user)?;
        if inside.is_empty() { Ok(data) } else { self.pin(name, &data, inside, user) }
    }

    /// The folder of a volume that is there, for as long as `user` has it.
    pub(crate) fn borrow(&self, name: &str, user: &TaskId) -> Result<PathBuf, VolumeError> {
        check_name(name)?;
        let turn = self.turn(name);
        let _changing = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let data = self.dir.join(name).join("_data");
        let options = self.options(name)?.unwrap_or_default();
        if !options.is_empty() {
            self.mount_for(user, name, &options, &data)?;
        }
        Ok(data)
    }

    /// What is mounted at a volume that is there. A damaged description is made again from its copy. Without one nothing is
    /// guessed: an empty folder of this node in the place of a server's would be filled with what nobody looks for there.
    fn options(&self, name: &str) -> Result<Option<BTreeMap<String, String>>, VolumeError> {
        let path = self.dir.join(name).join(DESCRIPTION);
        let copy = store::copy_of(&path);
        let keep_copy = || fs::read(&path).into_iter().for_each(|text| store::keep_copy(&path, &text));
        let error = match read_description(&path) {
            Ok(description) => {
                if read_description(&copy).is_err() {
                    // Of an earlier version, which made none, or damaged.
                    keep_copy();
                }
                return Ok(Some(description.options));
            }
            Err(error) => error,
        };
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        if !is_missing && !aside::is_damage(&error) {
            return Err(io_error("read", &path)(error));
        }
        match read_description(&copy) {
            Ok(description) => {
                if !is_missing {
                    aside::put_aside(&path, &error).map_err(io_error("put aside", &path))?;
                }
                store::put_in_place(&copy, &path).map_err(io_error("write", &path))?;
                keep_copy();
                Ok(Some(description.options))
            }
            Err(_) if is_missing => Ok(None),
            Err(_) => Err(VolumeError::Damaged { name: name.to_owned(), path, source: error }),
        }
    }

    /// Unmounts what nobody else uses. Goes on after a failure.
    pub(crate) fn release(&self, user: &TaskId) -> Result<(), VolumeError> {
        let pins = self.pins.join(user.as_str());
        let mut outcome = unpin(&pins).map_err(io_error("unmount", &pins));
        for entry in fs::read_dir(&self.users).map_err(io_error("list", &self.users))? {
            let entry = entry.map_err(io_error("list", &self.users));
            outcome = entry.and_then(|entry| self.release_one(user, &entry.path())).and(outcome);
        }
        outcome
    }

    fn release_one(&self, user: &TaskId, folder: &Path) -> Result<(), VolumeError> {
        let note = folder.join(user.as_str());
        let Some(name) = folder.file_name().and_then(|name| name.to_str()).filter(|_| note.exists()) else {
            return Ok(());
        };
        let turn = self.turn(name);
        let _changing = turn.lock().unwrap_or_else(PoisonError::into_inner);
        fs::remove_file(&note).map_err(io_error("delete", &note))?;
        if is_empty(folder).map_err(io_error("list", folder))? {
            mounts::unmount(&self.dir.join(name).join("_data"))?;
            fs::remove_dir(folder).map_err(io_error("delete", folder))?;
        }
        Ok(())
    }

    /// Notes that `user` has these folders, which a worker that wrote no notes may have mounted.
    pub(crate) fn note(&self, user: &TaskId, folders: &[PathBuf]) -> Result<(), VolumeError> {
        let below = folders.iter().filter_map(|folder| folder.strip_prefix(&self.dir).ok()?.iter().next()?.to_str());
        for name in below {
            let turn = self.turn(name);
            let _changing = turn.lock().unwrap_or_else(PoisonError::into_inner);
            if !describe(&self.dir.join(name)).options.is_empty() {
                self.note_one(user, name)?;
            }
        }
        Ok(())
    }

    fn note_one(&self, user: &TaskId, name: &str) -> Result<(), VolumeError> {
        let folder = self.users.join(name);
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let note = folder.join(user.as_str());
        fs::write(&note, "").map_err(io_error("write", &note))
    }

    /// Noted first: a worker that ends in between leaves nothing mounted that nobody knows of.
    fn mount_for(
        &self,
        user: &TaskId,
        name: &str,
        options: &BTreeMap<String, String>,
        data: &Path,
    ) -> Result<(), VolumeError> {
        self.note_one(user, name)?;
        mounts::mount(name, options, data)
    }

    fn turn(&self, name: &str) -> Arc<Mutex<()>> {
        let mut turns = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(name.to_owned()).or_default().clone()
    }

    pub(crate) fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let mut volumes = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))? {
            let path = entry.map_err(io_error("list", &self.dir))?.path();
            // A disk of its own for volumes has a `lost+found`.
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|name| check_name(name).is_ok()) {
                volumes.push(volume(name, &path));
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Fine when it is there already, as with Docker. An empty name: one is made up.
    pub(crate) fn create(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        options: &BTreeMap<String, String>,
        now: SystemTime,
    ) -> Result<Volume, VolumeError> {
        let made_up = hex::encode(rand::random::<[u8; 32]>());
        let anonymous = name.is_empty();
        let name = if anonymous { made_up.as_str() } else { name };
        check_name(name)?;
        mounts::check(options)?;
        let path = self.dir.join(name);
        let turn = self.turn(name);
        let _changing = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if path.exists() {
            let found = volume(name, &path);
            // The same again is fine; another one of that name is not.
            return if options.is_empty() || found.options == *options {
                Ok(found)
            } else {
                Err(VolumeError::Differs(name.to_owned()))
            };
        }
        let (_, description) = Wanted::Named { name, labels, options }.describe(now);
        self.describe_new(name, &Description { anonymous, ..description })?;
        Ok(volume(name, &path))
    }

    /// Bytes that the volume's files take. As with Docker none of one that is a mount: its files may be far away.
    pub(crate) fn size_bytes(&self, name: &str) -> u64 {
        if !describe(&self.dir.join(name)).options.is_empty() {
            return 0;
        }
        crate::contents::disk_bytes(&self.dir.join(name).join("_data"))
    }

    fn describe_new(&self, name: &str, description: &Description) -> Result<(), VolumeError> {
        let data = self.dir.join(name).join("_data");
        fs::create_dir_all(&data).map_err(io_error("create", &data))?;
        if let Some(owner) = self.owner {
            lchown(&data, Some(owner.uid), Some(owner.gid)).map_err(io_error("change the owner of", &data))?;
        }
        let path = self.dir.join(name).join(DESCRIPTION);
        let text = serde_json::to_vec(description).unwrap_or_default();
        store::write_atomically(&path, &text).map_err(io_error("write", &path))?;
        store::keep_copy(&path, &text);
        Ok(())
    }

    /// The caller has made sure that no container uses it.
    pub(crate) fn remove(&self, name: &str) -> Result<(), VolumeError> {
        check_name(name)?;
        let turn = self.turn(name);
        let _changing = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.join(name);
        // Never through a mount: what is mounted there is not the volume's own.
        mounts::unmount(&path.join("_data"))?;
        let users = self.users.join(name);
        match fs::remove_dir_all(&users) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("delete", &users)(e)),
            _ => {}
        }
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(VolumeError::NotFound(name.to_owned())),
            removed => removed.map_err(io_error("delete", &path)),
        }
    }

    /// Where a volume's content is.
    pub(crate) fn mountpoint(&self, name: &str) -> String {
        self.dir.join(name).join("_data").display().to_string()
    }

    /// The anonymous volumes of a task: name, place in the container, folder.
    pub(crate) fn of_task(&self, task: &TaskId) -> Vec<(String, String, String)> {
        let all = self.list().unwrap_or_default();
        let own = all.into_iter().filter_map(|volume| {
            let description = describe(&self.dir.join(&volume.name));
            (description.task.as_deref() == Some(task.as_str())).then(|| {
                let folder = volume.mountpoint.display().to_string();
                (volume.name, description.target, folder)
            })
        });
        own.collect()
    }

    /// Deletes the anonymous volumes of a task that is gone, except those that others have mounted by now.
    pub(crate) fn remove_of_task(&self, task: &TaskId, in_use: &BTreeSet<String>) -> Result<(), VolumeError> {
        for volume in self.list()? {
            let is_own = describe(&self.dir.join(&volume.name)).task.as_deref() == Some(task.as_str());
            if is_own && !in_use.contains(&volume.name) {
                self.remove(&volume.name)?;
            }
        }
        Ok(())
    }
}

/// For a node whose containers are gone: unmounts all volumes, and goes on after a failure.
pub(crate) fn unmount_all(dir: &Path) -> Result<(), VolumeError> {
    let volumes = fs::read_dir(dir).into_iter().flatten().flatten();
    let failures = volumes.filter_map(|volume| mounts::unmount(&volume.path().join("_data")).err());
    failures.last().map_or(Ok(()), Err)
}

impl Wanted<'_> {
    fn describe(self, now: SystemTime) -> (String, Description) {
        let created_at_ms = crate::agent::unix_ms(now);
        match self {
            Self::Named { name, labels, options } => {
                let (labels, options) = (labels.clone(), options.clone());
                (name.to_owned(), Description { labels, options, created_at_ms, ..Default::default() })
            }
            Self::Anonymous { task, target, labels, options } => (
                hex::encode(Sha256::digest(format!("{task}\0{target}"))),
                Description {
                    labels: labels.clone(),
                    options: options.clone(),
                    created_at_ms,
                    task: Some(task.to_string()),
                    target: target.to_owned(),
                    anonymous: true,
                },
            ),
        }
    }
}

fn volume(name: &str, path: &Path) -> Volume {
    let Description { labels, created_at_ms, options, anonymous, task, .. } = describe(path);
    // Older descriptions of anonymous ones only name the task.
    let anonymous = anonymous || task.is_some();
    Volume { name: name.to_owned(), mountpoint: path.join("_data"), labels, options, created_at_ms, anonymous, task }
}

/// For those who look: an unreadable description without a copy costs a volume its labels. Who mounts asks for its
/// [options](Volumes::options).
fn describe(volume: &Path) -> Description {
    let path = volume.join(DESCRIPTION);
    read_description(&path).or_else(|_| read_description(&store::copy_of(&path))).unwrap_or_default()
}

fn read_description(path: &Path) -> io::Result<Description> {
    let text = aside::read(path)?;
    serde_json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn check_name(name: &str) -> Result<(), VolumeError> {
    let bytes = name.as_bytes();
    let valid = bytes.len() >= 2
        && bytes.len() <= 255
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if valid { Ok(()) } else { Err(VolumeError::Name(name.to_owned())) }
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(dir)?.next().is_none())
}

#[cfg(test)]
mod tests;
