//! A container's root: an overlay of its image's layers with a folder of its own on top.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fmt::Write as _,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::chown,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{CWD, Mode, OFlags, open},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
    },
};

use orch_proto::wire;

use crate::users::{Remap, Shifted};

/// Before Linux 6.8 there is no `lowerdir+`, and each try would leave a line in the kernel's log.
static NO_PARTS: AtomicBool = AtomicBool::new(false);

/// Before Linux 6.15 an overlay takes only folders of the node's own mounts: layers with other users have to be mounted.
static NO_DETACHED: AtomicBool = AtomicBool::new(false);

/// More than an image has.
const MAX_LAYERS: usize = 128;

#[derive(Debug, thiserror::Error)]
#[error("{action} {path:?}")]
pub(crate) struct RootfsError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootfsError {
    move |source| RootfsError { action, path: path.to_owned(), source }
}

/// What becomes of what a container writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Kept,
    /// It goes with the container, which is never started again, so that none of it need reach the disk. Otherwise unmounting
    /// writes out the whole file system below, and a service that is removed keeps the disk busy for seconds.
    Lost,
}

/// Folders of one container: `upper` and `work` belong to the overlay, which is mounted on `rootfs`.
#[derive(Debug, Clone)]
pub(crate) struct Rootfs {
    upper: PathBuf,
    work: PathBuf,
    /// Where layers with other users are mounted, read-only, for as long as the overlay is made.
    shifted: PathBuf,
    /// Stands for the layers of an image that has none.
    empty: PathBuf,
    pub root: PathBuf,
    written: Written,
}

impl Rootfs {
    /// Inside a container's folder; touches nothing.
    pub(crate) fn inside(dir: &Path) -> Self {
        Self {
            upper: dir.join("upper"),
            work: dir.join("work"),
            shifted: dir.join("layers"),
            empty: dir.join("empty"),
            root: dir.join("rootfs"),
            written: Written::Kept,
        }
    }

    /// For whom wants to look at them.
    pub(crate) fn dirs(&self, layers: &[PathBuf]) -> wire::RootDirs {
        let text = |path: &PathBuf| path.display().to_string();
        wire::RootDirs {
            lower: layers.iter().rev().map(text).collect(),
            upper: text(&self.upper),
            work: text(&self.work),
            merged: text(&self.root),
        }
    }

    /// Mounts the layers (bottom first) with an empty folder on top. An old mount of the same container is replaced.
    pub(crate) fn mount(&self, layers: &[PathBuf], remap: Option<Remap>) -> Result<(), RootfsError> {
        self.delete()?;
        Self { written: Written::Lost, ..self.clone() }.mount_again(layers, remap)
    }

    /// As [`Rootfs::mount`], with what an earlier container wrote.
    pub(crate) fn mount_again(&self, layers: &[PathBuf], remap: Option<Remap>) -> Result<(), RootfsError> {
        self.unmount()?;
        for dir in [&self.upper, &self.work, &self.root] {
            fs::create_dir_all(dir).map_err(failed("create", dir))?;
        }
        let mut layers = each_once(layers);
        if layers.is_empty() {
            // An overlay is over something.
            fs::create_dir_all(&self.empty).map_err(failed("create", &self.empty))?;
            layers.push(self.empty.clone());
        }
        let Some(remap) = remap else { return self.mount_layers(&layers) };
        let shifted = Shifted::of(remap, layers.iter().map(PathBuf::as_path));
        let shifted = shifted.map_err(failed("mount the image with the users of containers for", &self.root))?;
        chown(&self.upper, Some(remap.uid), Some(remap.gid)).map_err(failed("change the owner of", &self.upper))?;
        let mounted = match NO_DETACHED.load(Ordering::Relaxed) {
            true => Err(Errno::INVAL),
            false => self.mount_either_way(&shifted.paths()),
        };
        match mounted {
            Err(Errno::INVAL) => self.mount_attached(&shifted),
            mounted => mounted.map_err(|e| failed("mount the container's root on", &self.root)(e.into())),
        }
    }

    fn mount_attached(&self, shifted: &Shifted) -> Result<(), RootfsError> {
        fs::create_dir_all(&self.shifted).map_err(failed("create", &self.shifted))?;
        let attached = shifted.attach(&self.shifted).map_err(failed("mount layers on", &self.shifted));
        let mounted = attached.and_then(|()| self.mount_layers(&shifted.paths()));
        // The overlay has its own.
        self.unmount_shifted();
        mounted.inspect(|()| NO_DETACHED.store(true, Ordering::Relaxed))
    }

    fn unmount_shifted(&self) {
        let _ = (0..MAX_LAYERS).try_for_each(|_| unmount(&self.shifted, UnmountFlags::DETACH));
    }

    fn mount_layers(&self, layers: &[PathBuf]) -> Result<(), RootfsError> {
        self.mount_either_way(layers).map_err(|e| failed("mount the container's root on", &self.root)(e.into()))
    }

    /// Unmounts the root and keeps what the container wrote.
    pub(crate) fn unmount(&self) -> Result<(), RootfsError> {
        self.unmount_shifted();
        match unmount(&self.root, UnmountFlags::DETACH) {
            // Not mounted, or not there.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(e) => Err(failed("unmount", &self.root)(e.into())),
        }
    }

    /// Unmounts the root and deletes what the container wrote.
    pub(crate) fn delete(&self) -> Result<(), RootfsError> {
        self.unmount()?;
        // An empty folder unless something is still mounted there: never delete through a mount.
        for (dir, deep) in [(&self.root, false), (&self.empty, false), (&self.upper, true), (&self.work, true)] {
            let deleted = if deep { fs::remove_dir_all(dir) } else { fs::remove_dir(dir) };
            match deleted {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("delete", dir)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn mount_either_way(&self, layers: &[PathBuf]) -> Result<(), Errno> {
        if NO_PARTS.load(Ordering::Relaxed) {
            return self.mount_by_text(layers);
        }
        match self.mount_by_parts(layers) {
            // It may also mean that something else is wrong, which the other way then finds too.
            Err(Errno::INVAL) => self.mount_by_text(layers).inspect(|()| NO_PARTS.store(true, Ordering::Relaxed)),
            mounted => mounted,
        }
    }

    fn mount_by_parts(&self, layers: &[PathBuf]) -> Result<(), Errno> {
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for layer in layers.iter().rev() {
            fsconfig_set_string(&overlay, "lowerdir+", layer)?;
        }
        fsconfig_set_string(&overlay, "upperdir", &self.upper)?;
        fsconfig_set_string(&overlay, "workdir", &self.work)?;
        if self.written == Written::Lost {
            fsconfig_set_flag(&overlay, "volatile")?;
        }
        fsconfig_set_string(&overlay, "source", "overlay")?;
        fsconfig_create(&overlay)?;
        let mounted = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        move_mount(&mounted, "", CWD, &self.root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }

    /// The options of mount(2) must fit into one page, which forty folders by their full names do not. Descriptors do.
    fn mount_by_text(&self, layers: &[PathBuf]) -> Result<(), Errno> {
        let opened = layers.iter().rev().map(|layer| folder(layer)).collect::<Result<Vec<_>, _>>()?;
        let (upper, work) = (folder(&self.upper)?, folder(&self.work)?);
        let mut options = String::from("lowerdir=");
        for (i, layer) in opened.iter().enumerate() {
            let _ = write!(options, "{}{}", if i == 0 { "" } else { ":" }, by_descriptor(layer));
        }
        let _ = write!(options, ",upperdir={},workdir={}", by_descriptor(&upper), by_descriptor(&work));
        let options = CString::new(options).map_err(|_| Errno::INVAL)?;
        mount("overlay", &self.root, "overlay", MountFlags::empty(), options.as_c_str())
    }
}

/// Without what is there again further up: an overlay takes a folder once, and the upper one hides all of the lower.
/// Dockerfiles whose steps change nothing leave the same empty layer several times.
fn each_once(layers: &[PathBuf]) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let mut kept: Vec<PathBuf> = layers.iter().rev().filter(|layer| seen.insert(*layer)).cloned().collect();
    kept.reverse();
    kept
}

fn folder(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn by_descriptor(folder: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root. Images have at most 127 layers.
    #[test]
    fn many_layers_are_mounted_either_way() {
        let dir = tempfile::Builder::new().prefix(&"long".repeat(20)).tempdir().unwrap();
        let layers: Vec<PathBuf> = (0..127).map(|i| dir.path().join(format!("layer-{i:064}"))).collect();
        for (i, layer) in layers.iter().enumerate() {
            fs::create_dir(layer).unwrap();
            fs::write(layer.join("which"), i.to_string()).unwrap();
        }
        let rootfs = Rootfs::inside(&dir.path().join("c"));
        for folder in [&rootfs.upper, &rootfs.work, &rootfs.root] {
            fs::create_dir_all(folder).unwrap();
        }
        for mount in [Rootfs::mount_by_parts, Rootfs::mount_by_text] {
            mount(&rootfs, &layers).unwrap();
            assert_eq!(fs::read_to_string(rootfs.root.join("which")).unwrap(), "126");
            rootfs.unmount().unwrap();
        }
    }

    /// Needs root.
    #[test]
    fn upper_layers_hide_lower_ones_and_deleting_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let layers = [dir.path().join("a"), dir.path().join("b")];
        for (layer, content) in layers.iter().zip(["below", "above"]) {
            fs::create_dir(layer).unwrap();
            fs::write(layer.join("both"), content).unwrap();
            fs::write(layer.join(content), "").unwrap();
        }
        let container = dir.path().join("c");
        let rootfs = Rootfs::inside(&container);
        rootfs.mount(&layers, None).unwrap();
        assert_eq!(fs::read_to_string(rootfs.root.join("both")).unwrap(), "above");
        assert!(rootfs.root.join("below").exists());
        fs::write(rootfs.root.join("both"), "mine").unwrap();
        assert_eq!(fs::read_to_string(layers[1].join("both")).unwrap(), "above");
        rootfs.delete().unwrap();
        rootfs.delete().unwrap();
        assert_eq!(fs::read_dir(&container).unwrap().count(), 0);
    }

    /// Needs root.
    #[test]
    fn layers_may_be_there_again_and_there_may_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str| dir.path().join(name);
        for (name, content) in [("a", "below"), ("b", "between"), ("none", "")] {
            fs::create_dir(layer(name)).unwrap();
            if !content.is_empty() {
                fs::write(layer(name).join("which"), content).unwrap();
            }
        }
        let container = dir.path().join("c");
        let rootfs = Rootfs::inside(&container);
        for (names, expected) in [
            (&["a", "none", "none"][..], Some("below")),
            (&["none", "a", "none", "b"], Some("between")),
            (&["a", "b", "a"], Some("below")),
            (&["none"], None),
            (&[], None),
        ] {
            let layers: Vec<PathBuf> = names.iter().map(|name| layer(name)).collect();
            rootfs.mount(&layers, None).unwrap();
            assert_eq!(fs::read_to_string(rootfs.root.join("which")).ok().as_deref(), expected, "{names:?}");
            fs::write(rootfs.root.join("mine"), "").unwrap();
            rootfs.delete().unwrap();
            assert_eq!(fs::read_dir(&container).unwrap().count(), 0);
        }
    }
}
