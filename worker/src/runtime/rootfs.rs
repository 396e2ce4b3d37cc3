//! Looking into a container's root filesystem from outside: links in it are resolved as if it were `/`, so that an image
//! cannot point at the host's files.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Component, Path},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open},
    sys::stat::{Mode, mkdirat},
    unistd::{Gid, Uid, fchownat},
};
use rustix::fs::{OFlags, ResolveFlags};

use crate::within;

/// Larger files than this are not read from an image: they are no user databases.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The text of a file inside `rootfs`; empty when it is not there.
pub(crate) fn read(rootfs: &Path, path: &str) -> io::Result<String> {
    let root = open_root(rootfs)?;
    match open_in(&root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Ok(file) => {
            let mut bytes = Vec::new();
            File::from(file).take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(String::new()),
        Err(err) => Err(err.into()),
    }
}

/// Makes `path` and what is missing above it, as folders of the container's root.
pub(crate) fn make_folders(rootfs: &Path, path: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut at = open_root(rootfs)?;
    let root = open_root(rootfs)?;
    let mut walked = String::new();
    for component in Path::new(path).components() {
        let Component::Normal(name) = component else { continue };
        walked = format!("{walked}/{}", name.to_string_lossy());
        let folder = OFlag::O_PATH | OFlag::O_DIRECTORY;
        at = match open_in(&root, &walked, folder) {
            Ok(next) => next,
            Err(Errno::ENOENT) => {
                mkdirat(&at, name, Mode::from_bits_truncate(0o755))?;
                if let Some((uid, gid)) = owner {
                    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                    fchownat(&at, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                }
                open_in(&root, &walked, folder)?
            }
            Err(err) => return Err(err.into()),
        };
    }
    Ok(())
}

fn open_root(rootfs: &Path) -> io::Result<OwnedFd> {
    Ok(open(rootfs, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn open_in(root: &OwnedFd, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let flags = OFlags::from_bits_retain(flags.bits().cast_unsigned());
    let opened = within::open(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS);
    opened.map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("/etc/hostname", dir.path().join("etc/passwd")).unwrap();
        symlink("../../../../../../etc/hostname", dir.path().join("etc/group")).unwrap();
        assert_eq!(read(dir.path(), "/etc/passwd").unwrap(), "");
        fs::write(dir.path().join("etc/hostname"), "inside").unwrap();
        assert_eq!(read(dir.path(), "/etc/passwd").unwrap(), "inside");
        assert_eq!(read(dir.path(), "/etc/group").unwrap(), "inside");
    }

    #[test]
    fn folders_are_made_behind_links_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("/real", dir.path().join("app")).unwrap();
        make_folders(dir.path(), "/app/a/b", None).unwrap();
        make_folders(dir.path(), "/app/a/b", None).unwrap();
        assert!(dir.path().join("real/a/b").is_dir());
    }
}
