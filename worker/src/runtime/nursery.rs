//! The worker's side of the process that shims are born from ([`crate::shim`]): started when first needed, and again
//! when it is gone.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt},
    time::{TimeVal, TimeValLike},
};

use crate::shim::{ROOM, wire};

/// A birth takes less than a millisecond; a nursery that takes this long is given up.
const ANSWER_LIMIT_S: i64 = 20;

#[derive(Debug)]
pub(super) struct Nursery {
    program: PathBuf,
    args: Vec<OsString>,
    /// One birth at a time.
    socket: Mutex<Option<OwnedFd>>,
}

impl Nursery {
    /// Of `program args…`; nothing is started yet.
    pub(super) fn new(program: PathBuf, args: Vec<OsString>) -> Self {
        Self { program, args, socket: Mutex::new(None) }
    }

    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Starts it ahead of the first birth, which then need not wait.
    pub(super) fn warm_up(&self) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if socket.is_none() {
            *socket = Some(self.start()?);
        }
        Ok(())
    }

    /// A new shim for the container of that folder, in that control group, with its listening socket and the file of its
    /// messages.
    pub(super) fn bear(&self, folder: &Path, cgroup: &str, listener: &OwnedFd, messages: &OwnedFd) -> io::Result<()> {
        let request = [folder.as_os_str().as_bytes(), cgroup.as_bytes()].join(&0);
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let fds = [listener.as_raw_fd(), messages.as_raw_fd()];
        let ask = |nursery: &OwnedFd| wire::send(nursery, &request, &fds).map(drop);
        let nursery = match socket.take() {
            Some(nursery) if ask(&nursery).is_ok() => nursery,
            // None yet, or it has been killed.
            _ => {
                let nursery = self.start()?;
                ask(&nursery)?;
                nursery
            }
        };
        let mut pid = [0; size_of::<i32>()];
        match wire::receive(&nursery, &mut pid)? {
            (0, _) => Err(io::Error::other("the process that shims are born from has ended")),
            (_, _) => {
                *socket = Some(nursery);
                Ok(())
            }
        }
    }

    fn start(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&ours, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_LIMIT_S))?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg(" ".repeat(ROOM)).arg0("orch").env_clear();
        command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::inherit());
        let mut child = command.spawn()?;
        // It ends with the socket, or is killed; either way somebody has to collect it.
        thread::Builder::new().name("nursery".to_owned()).spawn(move || drop(child.wait()))?;
        Ok(ours)
    }
}
