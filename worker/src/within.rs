//! Opening and changing what is below a folder, by a path that cannot lead out of it, whatever links are in it.
//!
//! Where the path goes up again (`..`) the kernel cannot be sure of that while something is renamed or mounted anywhere on
//! the machine, and says EAGAIN; then it is asked again.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, chmodat, fstat, openat, openat2},
    io::Errno,
    path::Arg,
};

/// Each takes microseconds; a machine on which none of so many succeeds does nothing but rename.
const TRIES: usize = 1000;

pub(crate) fn open(
    root: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    for _ in 0..TRIES {
        match openat2(&root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// Changes the mode of what has this name, never of what a link in its place leads to: a container may put one there
/// meanwhile. Links have no mode of their own.
pub(crate) fn chmod(parent: impl AsFd, name: impl Arg, mode: Mode) -> Result<(), Errno> {
    let node = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&node)?.st_mode) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    chmodat(CWD, format!("/proc/self/fd/{}", node.as_raw_fd()), mode, AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{PermissionsExt, symlink},
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[test]
    fn a_link_does_not_give_its_target_another_mode() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "").unwrap();
        symlink(&target, dir.path().join("link")).unwrap();
        let parent = File::open(dir.path()).unwrap();
        let mode = || fs::metadata(&target).unwrap().permissions().mode() & 0o7777;
        let before = mode();
        assert_eq!(chmod(&parent, "link", Mode::from_raw_mode(0o4751)), Err(Errno::LOOP));
        assert_eq!(mode(), before);
        chmod(&parent, "target", Mode::from_raw_mode(0o4751)).unwrap();
        assert_eq!(mode(), 0o4751);
    }

    #[test]
    fn a_machine_that_renames_refuses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let root = File::open(dir.path()).unwrap();
        let over = AtomicBool::new(false);
        let up = "a/../".repeat(100);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (dir.path().join("one"), dir.path().join("other"));
                fs::write(&one, "").unwrap();
                while !over.load(Ordering::Relaxed) {
                    fs::rename(&one, &other).unwrap();
                    fs::rename(&other, &one).unwrap();
                }
            });
            for resolve in [ResolveFlags::BENEATH, ResolveFlags::IN_ROOT] {
                let refused = (0..3000).find_map(|_| open(&root, up.as_str(), OFlags::PATH, resolve).err());
                if refused.is_some() {
                    over.store(true, Ordering::Relaxed);
                }
                assert_eq!(refused, None);
            }
            over.store(true, Ordering::Relaxed);
        });
    }
}
