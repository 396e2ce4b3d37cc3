//! Network namespaces: made, found, entered and removed.
//!
//! Invariant: only threads made for it ever leave the daemon's own namespace, and they end there. Where a runtime's
//! thread is does therefore never matter.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd as _, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, fstatfs},
};
use tokio::sync::oneshot;

use crate::nfnetlink::Socket;

/// Asks a socket for its namespace.
const SIOCGSKNS: libc::Ioctl = 0x894c;
/// Asks a namespace for that of the users it belongs to.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
/// What a file must be on to be a namespace.
const NSFS_MAGIC: FsType = FsType(libc::NSFS_MAGIC);

/// A network namespace, held open.
#[derive(Debug, Clone)]
pub(crate) struct NetNs {
    file: Arc<File>,
    /// Kept open: closing one makes the kernel wait until all that was deleted of rulesets is gone.
    netfilter: Arc<Mutex<Option<Arc<Socket>>>>,
}

impl NetNs {
    /// The namespace that the daemon was started in.
    pub(crate) fn host() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self::from)
    }

    /// The namespace mounted at `path`; `None` when there is a file but no namespace (left from before a reboot).
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let is_ns = fstatfs(&file)?.filesystem_type() == NSFS_MAGIC;
        Ok(is_ns.then(|| Self::from(file)))
    }

    /// Makes a namespace and mounts it at `path`.
    pub(crate) async fn create(path: &Path) -> io::Result<Self> {
        Self::create_and(path, || Ok(())).await.map(|(ns, ())| ns)
    }

    /// As [`NetNs::create`], and runs `work` inside.
    pub(crate) async fn create_and<T: Send + 'static>(
        path: &Path,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<(Self, T)> {
        let path = path.to_owned();
        aside(move || {
            File::options().create(true).append(true).open(&path)?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            let ns = Self::open(&path)?;
            let ns = ns.ok_or_else(|| io::Error::other("the namespace is not there after it was mounted"))?;
            Ok((ns, work()?))
        })
        .await
    }

    /// Moves the calling thread there, for good.
    pub(crate) fn enter(&self) -> io::Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    /// The socket that [`Self::netfilter`] opened earlier, which works from any thread.
    pub(crate) fn opened_netfilter(&self) -> Option<Arc<Socket>> {
        self.netfilter.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For a thread that has entered the namespace.
    pub(crate) fn netfilter(&self) -> io::Result<Arc<Socket>> {
        let mut kept = self.netfilter.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(socket) => Ok(socket.clone()),
            None => {
                let socket = Arc::new(Socket::open()?);
                *kept = Some(socket.clone());
                Ok(socket)
            }
        }
    }

    /// Whether the socket was made in this namespace.
    pub(crate) fn has(&self, socket: &impl AsFd) -> io::Result<bool> {
        is_same(&ask(socket, SIOCGSKNS)?, &self.file)
    }

    /// Whether it belongs to other users than the daemon's: then the worker has made it, for a container whose users are remapped.
    pub(crate) fn is_of_other_users(&self) -> io::Result<bool> {
        Ok(!is_same(&ask(&self.file, NS_GET_USERNS)?, &File::open("/proc/self/ns/user")?)?)
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a thread of its own inside the namespace.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let ns = self.clone();
        aside(move || ns.enter().and_then(|()| work())).await
    }
}

/// What the kernel answers with a descriptor.
#[allow(unsafe_code)]
fn ask(whom: &impl AsFd, what: libc::Ioctl) -> io::Result<File> {
    // SAFETY: takes no argument; what it returns is a descriptor that nobody else knows, or an error.
    unsafe {
        match libc::ioctl(whom.as_fd().as_raw_fd(), what) {
            fd @ 0.. => Ok(File::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

impl From<File> for NetNs {
    fn from(file: File) -> Self {
        Self { file: Arc::new(file), netfilter: Arc::default() }
    }
}

/// Takes the mount at `path` away. The namespace goes with its last user.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not mounted, or not there: fine.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs `work` on a thread that ends with it.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (send, receive) = oneshot::channel();
    spawn(move || drop(send.send(work())))?;
    receive.await.unwrap_or_else(|_| Err(thread_died()))
}

/// As [`aside`], for who may block.
pub(crate) fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn(work)?.join().unwrap_or_else(|_| Err(thread_died()))
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<thread::JoinHandle<T>> {
    thread::Builder::new().name("netns".to_owned()).spawn(work)
}

fn thread_died() -> io::Error {
    io::Error::other("a thread that worked in a network namespace panicked")
}
