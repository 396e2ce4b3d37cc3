//! Where shims come from: a process that does nothing but fork them, one for each request of the worker.
//!
//! A request is the shim's folder and, after a zero byte, its control group, with its listening socket and its message file;
//! the answer is the shim's number. The nursery ends with the worker that started it; its shims stay. An upgraded worker
//! starts a nursery of its own version.
//!
//! It moves to the shims' control group itself: what it forks is there from the start. To move each shim would take the
//! kernel's lock on all groups once per hierarchy, which everything that forks on the machine waits for.

#![allow(unsafe_code)]

use std::{
    ffi::OsStr,
    fs::{self, File},
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

/// Longest request.
const MAX_REQUEST_BYTES: usize = 8192;

/// The worker's last argument: room for the folder's name in the list of processes.
pub(crate) const ROOM: usize = 256;

pub(super) struct Nursery {
    worker: OwnedFd,
    layout: Layout,
    /// Where it is, once it has moved.
    cgroup: Option<String>,
    arguments: Arguments,
}

/// What a new shim starts with.
pub(super) struct Birth {
    pub(super) folder: PathBuf,
    pub(super) listener: UnixListener,
    pub(super) layout: Layout,
    /// Whether it is in its control group already.
    pub(super) is_home: bool,
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
        let arguments = Arguments::find();
        arguments.rename(&[b"orch", b"shims"]);
        Ok(Self { worker, layout: Layout::detect()?, cgroup: None, arguments })
    }

    /// Nothing in the nursery, once the worker is gone; a birth in each shim.
    pub(super) fn run(mut self) -> io::Result<Option<Birth>> {
        let mut buffer = [0; MAX_REQUEST_BYTES];
        loop {
            let (len, fds) = match wire::receive(&self.worker, &mut buffer) {
                Ok((0, _)) => return Ok(None),
                Ok(received) => received,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => return Err(err),
            };
            let (folder, cgroup) = parse(&buffer[..len])?;
            let [listener, messages] = <[OwnedFd; 2]>::try_from(fds)
                .map_err(|_| io::Error::other("the request came without socket and message file"))?;
            let is_home = self.move_to(cgroup);
            // SAFETY: there is one thread, so the child's memory is whole.
            match unsafe { fork() }? {
                ForkResult::Child => {
                    let (folder, listener) = (folder.to_owned(), listener.into());
                    let birth = Birth { folder, listener, layout: self.layout, is_home };
                    drop(self.worker);
                    leave_home(messages)?;
                    self.arguments.rename(&[b"orch", b"shim", birth.folder.as_os_str().as_bytes()]);
                    return Ok(Some(birth));
                }
                ForkResult::Parent { child } => {
                    wire::send(&self.worker, &child.as_raw().to_ne_bytes(), &[])?;
                }
            }
        }
    }

    /// Whether it is there. Where it is not, a shim tries for itself and says why that fails.
    fn move_to(&mut self, cgroup: &str) -> bool {
        if self.cgroup.as_deref() != Some(cgroup) {
            self.cgroup = self.layout.enter(cgroup).is_ok().then(|| cgroup.to_owned());
        }
        self.cgroup.is_some()
    }
}

fn parse(request: &[u8]) -> io::Result<(&Path, &str)> {
    let incomplete = || io::Error::other("the request has no folder and control group");
    let end = request.iter().position(|&byte| byte == 0).ok_or_else(incomplete)?;
    let cgroup = str::from_utf8(&request[end + 1..]).map_err(io::Error::other)?;
    Ok((Path::new(OsStr::from_bytes(&request[..end])), cgroup))
}

/// In a new shim: nothing of the nursery's concerns it any more.
fn leave_home(messages: OwnedFd) -> io::Result<()> {
    setsid()?;
    dup2_stderr(&messages)?;
    // SAFETY: no handler is installed: ends of children are to be told.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    // The container's first process is made by a child that ends, and must be ours then.
    nix::sys::prctl::set_child_subreaper(true)?;
    // What enters a container is in its hands the sooner the less it is protected; this one keeps others' hands off.
    nix::sys::prctl::set_dumpable(false)?;
    Ok(())
}

/// The memory of the process's arguments, which is what lists of processes show.
#[derive(Clone, Copy)]
pub(super) struct Arguments {
    start: usize,
    len: usize,
}

impl Arguments {
    /// Nothing where it cannot be found: names are for humans.
    pub(super) fn find() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name in parentheses may have spaces; start and end are the 48th and 49th field, and it is the second.
        let mut after_name = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(45).map(str::parse);
        match (after_name.next(), after_name.next()) {
            (Some(Ok(start)), Some(Ok(end))) if start < end => Self { start, len: end - start },
            _ => Self { start: 0, len: 0 },
        }
    }

    /// What does not fit is cut off; the worker leaves room ([`ROOM`]).
    pub(super) fn rename(self, words: &[&[u8]]) {
        let mut name = words.join(&0);
        name.resize(self.len, 0);
        if let Some(last) = name.last_mut() {
            *last = 0;
            // SAFETY: the kernel has put the arguments there, on this process's stack; nothing of this program reads them
            // any more, and the texts end where they ended before.
            unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), self.start as *mut u8, self.len) };
        }
    }
}
