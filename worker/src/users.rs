//! User namespaces: with `userns-remap` in the node's configuration, root of a container is nobody on the node.
//!
//! Every container has a namespace of its own over the same range of numbers. Its network belongs to it, because the
//! kernel shows /sys only to who owns the network. Images are mounted shifted (idmapped mounts), so their content
//! stays as it is and is shared; what a container writes carries the node's numbers.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::wait::waitpid,
    unistd::{Pid, pipe2},
};

const SUBORDINATE_USERS: &str = "/etc/subuid";
const SUBORDINATE_GROUPS: &str = "/etc/subgid";
/// Who `default` means, as Docker's `dockremap`.
const DEFAULT_USER: &str = "orchremap";
/// When that user has no range of its own.
const DEFAULT_RANGE: (u32, u32) = (1_000_000, 65536);

/// What EINVAL means there.
const NOT_SHIFTABLE: &str = "its file system cannot be mounted with other users on this kernel: put the node's data on ext4, xfs or btrfs, \
     or leave userns-remap out";

/// Which numbers of the node stand for a container's users and groups 0 and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remap {
    pub uid: u32,
    pub gid: u32,
    uids: u32,
    gids: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RemapError {
    #[error("userns-remap: {user} has no range in {file}: add a line {user}:100000:65536, or write \"default\"")]
    NoRange { user: String, file: &'static str },
    #[error("privileged mode is incompatible with user namespaces (userns-remap): {0}")]
    Privileged(&'static str),
    #[error("cannot share the host's {0} namespace when user namespaces are enabled (userns-remap): {1}")]
    Shared(&'static str, &'static str),
    #[error(
        "cannot share another container's {0} namespace when user namespaces are enabled (userns-remap): add --userns host"
    )]
    Joined(&'static str),
}

impl Remap {
    /// `default`, `USER` or `USER:GROUP`; nothing when it is empty.
    pub(crate) fn read(setting: &str) -> Result<Option<Self>, RemapError> {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::parse(setting, &text(SUBORDINATE_USERS), &text(SUBORDINATE_GROUPS))
    }

    fn parse(setting: &str, users: &str, groups: &str) -> Result<Option<Self>, RemapError> {
        let (user, group) = setting.split_once(':').unwrap_or((setting, setting));
        if user.is_empty() {
            return Ok(None);
        }
        let range = |text: &str, name: &str, file: &'static str| {
            let named = if name == "default" { DEFAULT_USER } else { name };
            let found = text.lines().find_map(|line| {
                let mut fields = line.trim().split(':');
                let is_it = fields.next()? == named;
                let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
                is_it.then_some(range)
            });
            let fallback = (name == "default").then_some(DEFAULT_RANGE);
            found.or(fallback).ok_or_else(|| RemapError::NoRange { user: named.to_owned(), file })
        };
        let (uid, uids) = range(users, user, SUBORDINATE_USERS)?;
        let (gid, gids) = range(groups, group, SUBORDINATE_GROUPS)?;
        Ok(Some(Self { uid, gid, uids, gids }))
    }

    /// Gives a file, which has a container's numbers, the node's.
    pub(crate) fn shift(self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::{MetadataExt, lchown};
        let metadata = fs::symlink_metadata(path)?;
        lchown(path, Some(self.uid + metadata.uid()), Some(self.gid + metadata.gid()))
    }

    /// Makes a file the container's root's.
    pub(crate) fn own(self, path: &Path) -> io::Result<()> {
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
    }

    /// A folder that containers' roots are reached through: open to them, and closed to all others.
    pub(crate) fn open_folder(self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::{PermissionsExt, chown};
        chown(path, None, Some(self.gid))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o710))
    }
}

/// Makes a user namespace, mounted on the file `users`, and one for the network that belongs to it, on `network`.
pub(crate) fn make(remap: Remap, users: &Path, network: Option<&Path>) -> io::Result<()> {
    remove(users)?;
    let holder = Holder::start(remap, network.is_some())?;
    let pin = |kind: &str, path: &Path| -> io::Result<()> {
        File::options().create(true).append(true).open(path)?;
        let namespace = format!("/proc/{}/ns/{kind}", holder.pid);
        Ok(mount(Some(namespace.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    };
    pin("user", users)?;
    if let Some(network) = network {
        remove(network)?;
        pin("net", network)?;
    }
    Ok(())
}

/// Takes the mount of a namespace away; fine when there is none.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Folders as containers are to see them: with their numbers.
pub(crate) struct Shifted(Vec<OwnedFd>);

impl Shifted {
    pub(crate) fn of<'a>(remap: Remap, folders: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        let holder = Holder::start(remap, false)?;
        let users = File::open(format!("/proc/{}/ns/user", holder.pid))?;
        folders.map(|folder| shifted(folder, &users)).collect::<io::Result<_>>().map(Self)
    }

    /// Makes them mounts of this node, each over the one before.
    pub(crate) fn attach(&self, at: &Path) -> io::Result<()> {
        use rustix::{fs::CWD, mount::MoveMountFlags};
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(self.0.iter().try_for_each(|tree| rustix::mount::move_mount(tree, "", CWD, at, flags))?)
    }

    /// Their names for as long as this lives.
    pub(crate) fn paths(&self) -> Vec<std::path::PathBuf> {
        self.0.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()).into()).collect()
    }
}

#[allow(unsafe_code)]
fn shifted(folder: &Path, users: &File) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const MOUNT_ATTR_RDONLY: u64 = 1;
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        users: u64,
    }
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.unsigned_abs();
    // SAFETY: the path lives until the call returns; the descriptor that it returns is ours alone.
    let tree = unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        let fd = nix::errno::Errno::result(fd)?;
        OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)
    };
    let users = u64::from(users.as_raw_fd().unsigned_abs());
    let attributes = Attributes { set: MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, users };
    let size = size_of::<Attributes>();
    // SAFETY: the kernel reads `size` bytes of attributes; the empty path means the tree itself.
    let done = unsafe {
        let empty = c"".as_ptr();
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty,
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        )
    };
    match nix::errno::Errno::result(done) {
        Ok(_) => Ok(tree),
        Err(nix::Error::EINVAL) => Err(io::Error::new(io::ErrorKind::Unsupported, NOT_SHIFTABLE)),
        Err(error) => Err(error.into()),
    }
}

/// A process that does nothing but have namespaces of its own, until this is dropped.
struct Holder {
    pid: i32,
    _alive: OwnedFd,
}

impl Holder {
    #[allow(unsafe_code)]
    fn start(remap: Remap, network: bool) -> io::Result<Self> {
        let (ours, theirs) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (wait, alive) = (ours.as_raw_fd(), theirs.as_raw_fd());
        let network = if network { libc::CLONE_NEWNET } else { 0 };
        let flags = libc::c_ulong::from((libc::CLONE_NEWUSER | network | libc::SIGCHLD).unsigned_abs());
        // SAFETY: this process has threads, so the child does nothing but system calls until it ends: no allocation, no
        // lock, no destructor.
        let pid = unsafe {
            let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
            if pid == 0 {
                libc::close(alive);
                let mut byte = 0_u8;
                // Ends when the other end is closed, whoever closes it.
                libc::read(wait, (&raw mut byte).cast(), 1);
                libc::_exit(0);
            }
            pid
        };
        let pid = i32::try_from(nix::errno::Errno::result(pid)?).map_err(io::Error::other)?;
        let holder = Self { pid, _alive: theirs };
        drop(ours);
        fs::write(format!("/proc/{pid}/uid_map"), format!("0 {} {}\n", remap.uid, remap.uids))?;
        fs::write(format!("/proc/{pid}/gid_map"), format!("0 {} {}\n", remap.gid, remap.gids))?;
        Ok(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may wait for a pipe whose other end another child holds for a moment.
        let _ = nix::sys::signal::kill(Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL);
        let _ = waitpid(Pid::from_raw(self.pid), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_dockers() {
        let users = "alice:100000:65536\norchremap:200000:1000\n";
        let check = |setting: &str, users: &str| Remap::parse(setting, users, users);
        let remap = |id, count| Ok(Some(Remap { uid: id, gid: id, uids: count, gids: count }));
        assert_eq!(check("", users), Ok(None));
        assert_eq!(check("default", users), remap(200_000, 1000));
        assert_eq!(check("default", ""), remap(1_000_000, 65536));
        assert_eq!(check("alice", users), remap(100_000, 65536));
        assert_eq!(check("alice:orchremap", users).unwrap().unwrap().gid, 200_000);
        assert!(check("bob", users).unwrap_err().to_string().contains("add a line bob:100000:65536"));
    }

    /// Needs root, and a file system that can be mounted shifted.
    #[test]
    fn folders_are_shifted_and_namespaces_pinned() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let remap = Remap::parse("default", "", "").unwrap().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let shifted = Shifted::of(remap, [dir.path()].into_iter()).unwrap();
        let seen = fs::metadata(shifted.paths()[0].join("file")).unwrap();
        assert_eq!((seen.uid(), seen.gid()), (1_000_000, 1_000_000));
        let (users, network) = (dir.path().join("users"), dir.path().join("network"));
        make(remap, &users, Some(&network)).unwrap();
        assert_ne!(fs::metadata(&users).unwrap().ino(), fs::metadata("/proc/self/ns/user").unwrap().ino());
        assert_ne!(fs::metadata(&network).unwrap().ino(), fs::metadata("/proc/self/ns/net").unwrap().ino());
        for path in [&users, &network] {
            remove(path).unwrap();
            remove(path).unwrap();
        }
    }
}
