//! A container's root: an overlay of its image's layers with a folder of its own on top.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
    },
};

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
    pub root: PathBuf,
    written: Written,
}

impl Rootfs {
    /// Inside a container's folder; touches nothing.
    pub(crate) fn inside(dir: &Path) -> Self {
        Self { upper: dir.join("upper"), work: dir.join("work"), root: dir.join("rootfs"), written: Written::Kept }
    }

    /// Mounts the layers (bottom first) with an empty folder on top. An old mount of the same container is replaced.
    pub(crate) fn mount(&self, layers: &[PathBuf]) -> Result<(), RootfsError> {
        self.delete()?;
        Self { written: Written::Lost, ..self.clone() }.mount_again(layers)
    }

    /// As [`Rootfs::mount`], with what an earlier container wrote.
    pub(crate) fn mount_again(&self, layers: &[PathBuf]) -> Result<(), RootfsError> {
        self.unmount()?;
        for dir in [&self.upper, &self.work, &self.root] {
            fs::create_dir_all(dir).map_err(failed("create", dir))?;
        }
        match self.mount_by_parts(layers) {
            // Before Linux 6.8 there is no `lowerdir+`.
            Err(Errno::INVAL) => self.mount_by_text(layers),
            mounted => mounted,
        }
        .map_err(|e| failed("mount the container's root on", &self.root)(e.into()))
    }

    /// Unmounts the root and keeps what the container wrote.
    pub(crate) fn unmount(&self) -> Result<(), RootfsError> {
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
        for (dir, deep) in [(&self.root, false), (&self.upper, true), (&self.work, true)] {
            let deleted = if deep { fs::remove_dir_all(dir) } else { fs::remove_dir(dir) };
            match deleted {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("delete", dir)(e)),
                _ => {}
            }
        }
        Ok(())
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

    fn mount_by_text(&self, layers: &[PathBuf]) -> Result<(), Errno> {
        let lower: Vec<String> = layers.iter().rev().map(|layer| layer.display().to_string()).collect();
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), self.upper.display(), self.work.display());
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        mount("overlay", &self.root, "overlay", MountFlags::empty(), options.as_c_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        rootfs.mount(&layers).unwrap();
        assert_eq!(fs::read_to_string(rootfs.root.join("both")).unwrap(), "above");
        assert!(rootfs.root.join("below").exists());
        fs::write(rootfs.root.join("both"), "mine").unwrap();
        assert_eq!(fs::read_to_string(layers[1].join("both")).unwrap(), "above");
        rootfs.delete().unwrap();
        rootfs.delete().unwrap();
        assert_eq!(fs::read_dir(&container).unwrap().count(), 0);
    }
}
