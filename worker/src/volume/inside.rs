//! What a container has of a volume by `volume-subpath`: one folder or file in it, and never what is outside of it.
//!
//! The path is opened beneath the volume and pinned: mounted on a place of the worker's own. Containers that write to the
//! volume may put a link into the path between the look and the mount; the pin shows what was looked at.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, OFlags, ResolveFlags, fstat},
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount},
};

/// Pins of one container at most: each is a mount of it.
const MAX_PINS: usize = 1024;

/// Pins what is at `inside` in the folder `volume`; the place is below `pins`, one container's.
pub(super) fn pin(volume: &Path, inside: &str, pins: &Path) -> io::Result<PathBuf> {
    let found = open(volume, inside)?;
    let is_folder = FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Directory;
    DirBuilder::new().recursive(true).mode(0o755).create(pins)?;
    fs::set_permissions(pins, Permissions::from_mode(0o755))?;
    for at in (0..MAX_PINS).map(|n| pins.join(n.to_string())) {
        let made = if is_folder { fs::create_dir(&at) } else { File::create_new(&at).map(drop) };
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                made?;
                let mounted = mount_bind_recursive(format!("/proc/self/fd/{}", found.as_raw_fd()), &at);
                if let Err(error) = mounted.and_then(|()| cut(&at)) {
                    let _ = unpin_one(&at);
                    return Err(error.into());
                }
                return Ok(at);
            }
        }
    }
    Err(io::Error::other("a container has too many mounts"))
}

/// What is unmounted in the pin stays where it comes from, also on a node whose mounts are shared, as systemd has them.
fn cut(at: &Path) -> Result<(), Errno> {
    mount_change(at, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

fn open(volume: &Path, inside: &str) -> io::Result<OwnedFd> {
    let volume = File::open(volume)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(crate::within::open(&volume, inside, OFlags::PATH, resolve)?)
}

/// Whether the kernel has refused to leave the volume.
pub(super) fn is_escape(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::XDEV.raw_os_error())
}

/// Takes one container's pins away; fine when there are none. Goes on after a failure.
pub(crate) fn unpin(pins: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(pins) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut outcome = Ok(());
    for entry in entries {
        outcome = entry.and_then(|entry| unpin_one(&entry.path())).and(outcome);
    }
    outcome.and_then(|()| fs::remove_dir(pins))
}

fn unpin_one(at: &Path) -> io::Result<()> {
    // A worker may have ended before it did.
    let cut = cut(at);
    match cut.and_then(|()| unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)) {
        // A worker that ended between making the place and mounting on it.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    // Never what is in it, should it be mounted still.
    if at.is_dir() { fs::remove_dir(at) } else { fs::remove_file(at) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sched::{CloneFlags, unshare};
    use rustix::mount::{MountFlags, mount};

    use super::*;

    /// Needs root.
    #[test]
    fn what_is_inside_is_pinned_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, pins) = (dir.path().join("volume"), dir.path().join("pins/task"));
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(volume.join("a/b/file"), "inside").unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        for (name, target) in
            [("within", "a/b"), ("out", ".."), ("far", "/etc"), ("a/up", "../.."), ("proc", "/proc/self/root")]
        {
            symlink(target, volume.join(name)).unwrap();
        }
        for (inside, refused) in [
            ("../secret", true),
            ("a/../../secret", true),
            ("/etc", true),
            ("out/secret", true),
            ("far/passwd", true),
            ("a/up/secret", true),
            ("proc/etc", true),
            ("a/c", false),
            ("a/b/file/x", false),
        ] {
            let error = pin(&volume, inside, &pins).unwrap_err();
            assert_eq!(is_escape(&error), refused, "{inside}: {error}");
        }
        assert!(!pins.exists(), "a refusal left something");

        let folders = ["a/b", "within", "a/../a/b"].map(|inside| pin(&volume, inside, &pins).unwrap());
        let file = pin(&volume, "a/b/file", &pins).unwrap();
        for folder in &folders {
            assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "inside");
        }
        // What the path means later is another matter.
        fs::rename(volume.join("a"), volume.join("moved")).unwrap();
        symlink("/etc", volume.join("a")).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "inside");
        assert_eq!(fs::read_to_string(folders[0].join("file")).unwrap(), "inside");

        // As a worker leaves it that ends at once.
        fs::create_dir(pins.join("9")).unwrap();
        unpin(&pins).unwrap();
        unpin(&pins).unwrap();
        assert!(!pins.exists() && volume.join("moved/b/file").exists());
    }

    /// Needs root. Mount namespaces are a thread's own, so the other tests do not notice.
    #[test]
    fn what_is_mounted_in_the_volume_stays_when_its_pin_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, pins) = (dir.path().join("volume"), dir.path().join("pins"));
        let node = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let tmpfs = |at: &Path| {
                fs::create_dir_all(at).unwrap();
                mount("none", at, "tmpfs", MountFlags::empty(), None).unwrap();
            };
            tmpfs(&volume);
            mount_change(&volume, MountPropagationFlags::SHARED).unwrap();
            tmpfs(&volume.join("a/below"));
            fs::write(volume.join("a/below/file"), "").unwrap();
            let place = pin(&volume, "a", &pins).unwrap();
            assert!(place.join("below/file").exists());
            // As a worker leaves it that ends before the pin is cut off.
            let early = pins.join("9");
            fs::create_dir(&early).unwrap();
            mount_bind_recursive(volume.join("a"), &early).unwrap();
            unpin(&pins).unwrap();
            assert!(volume.join("a/below/file").exists(), "the volume lost what is mounted in it");
        });
        node.join().unwrap();
    }
}
