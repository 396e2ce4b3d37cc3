//! Where shims come from: a process that does nothing but fork them, one for each request of the worker.
//!
//! A request is the shim's folder, with its listening socket and its message file; the answer is the shim's number. The
//! nursery ends with the worker that started it; its shims stay. An upgraded worker starts a nursery of its own version.

#![allow(unsafe_code)]

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::{
        signal::{SigHandler, Signal, signal},
        socket::{getsockopt, sockopt},
        stat::{Mode, umask},
    },
    unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, fork, setsid},
};

use super::wire;
use crate::runtime::cgroup::Layout;

/// Longest path of a shim's folder.
const MAX_FOLDER_BYTES: usize = 4096;

/// How shims are listed, as the program's name may be a path.
const PROCESS_NAME: &[u8] = b"orch\0shim\0";

pub(super) struct Nursery {
    worker: OwnedFd,
    layout: Layout,
}

/// What a new shim starts with.
pub(super) struct Birth {
    pub(super) folder: PathBuf,
    pub(super) listener: UnixListener,
    pub(super) layout: Layout,
}

impl Nursery {
    pub(super) fn open() -> io::Result<Self> {
        let worker = io::stdin().as_fd().try_clone_to_owned()?;
        getsockopt(&worker, sockopt::SockType)
            .map_err(|err| io::Error::other(format!("standard input is no socket: {}", err.desc())))?;
        dup2_stdin(File::open("/dev/null")?)?;
        chdir("/")?;
        umask(Mode::from_bits_truncate(0o022));
        // SAFETY: no handler is installed: shims that end while this process lives are not waited for.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
        Ok(Self { worker, layout: Layout::detect()? })
    }

    /// Nothing in the nursery, once the worker is gone; a birth in each shim.
    pub(super) fn run(self) -> io::Result<Option<Birth>> {
        let mut buffer = [0; MAX_FOLDER_BYTES];
        loop {
            let (len, fds) = match wire::receive(&self.worker, &mut buffer) {
                Ok((0, _)) => return Ok(None),
                Ok(received) => received,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => return Err(err),
            };
            let folder = Path::new(OsStr::from_bytes(&buffer[..len]));
            let [listener, messages] = <[OwnedFd; 2]>::try_from(fds)
                .map_err(|_| io::Error::other("the request came without socket and message file"))?;
            // SAFETY: there is one thread, so the child's memory is whole.
            match unsafe { fork() }? {
                ForkResult::Child => {
                    let birth = Birth { folder: folder.to_owned(), listener: listener.into(), layout: self.layout };
                    drop(self.worker);
                    leave_home(&birth.folder, messages)?;
                    return Ok(Some(birth));
                }
                ForkResult::Parent { child } => {
                    wire::send(&self.worker, &child.as_raw().to_ne_bytes(), &[])?;
                }
            }
        }
    }
}

/// In a new shim: nothing of the nursery's concerns it any more.
fn leave_home(folder: &Path, messages: OwnedFd) -> io::Result<()> {
    setsid()?;
    dup2_stderr(&messages)?;
    // SAFETY: no handler is installed: ends of children are to be told.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    // The container's first process is made by a child that ends, and must be ours then.
    nix::sys::prctl::set_child_subreaper(true)?;
    // What enters a container is in its hands the sooner the less it is protected; this one keeps others' hands off.
    nix::sys::prctl::set_dumpable(false)?;
    rename_process(folder);
    Ok(())
}

/// For whoever lists processes; that it cannot be done harms nobody.
fn rename_process(folder: &Path) {
    let mut name = PROCESS_NAME.to_vec();
    name.extend_from_slice(folder.as_os_str().as_bytes());
    name.push(0);
    // For the life of the process: the kernel reads it there.
    let name: &'static [u8] = name.leak();
    let range = name.as_ptr_range();
    // SAFETY: numbers and addresses of memory that stays; the kernel only ever reads there, for /proc/PID/cmdline.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"orch".as_ptr());
        // In this order: the kernel wants the start before the end at any time, and the heap lies below the stack.
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_ARG_START, range.start, 0, 0);
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_ARG_END, range.end, 0, 0);
    }
}
