//! A process on its way into the container: until it has executed its program or said why it cannot, on a socket that
//! executing closes. The shim does not wait for it: what it executes may lie on a volume that does not answer.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use super::{protocol::Failure, wire};

/// Longer reasons are cut off.
const MAX_REASON_BYTES: usize = 16 * 1024;

pub(super) struct Starting {
    pid: i32,
    socket: UnixStream,
    reason: Vec<u8>,
    terminal: Option<OwnedFd>,
}

/// How it came out.
pub(super) enum Started {
    /// With the master side of its terminal, when it has one.
    Running {
        pid: i32,
        terminal: Option<OwnedFd>,
    },
    Failed(Failure),
}

impl Starting {
    /// `socket` does not block.
    pub(super) fn new(pid: i32, socket: UnixStream) -> Self {
        Self { pid, socket, reason: Vec::new(), terminal: None }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what is there; how it came out, once that is known.
    pub(super) fn hear(&mut self) -> Option<Started> {
        let mut buffer = [0; 1024];
        loop {
            match wire::receive(&self.socket, &mut buffer) {
                Ok((len @ 1.., fds)) => {
                    let room = MAX_REASON_BYTES.saturating_sub(self.reason.len());
                    self.reason.extend_from_slice(&buffer[..len.min(room)]);
                    self.terminal = fds.into_iter().next().or(self.terminal.take());
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return None,
                Ok(_) | Err(_) => return Some(self.outcome()),
            }
        }
    }

    fn outcome(&mut self) -> Started {
        let text = self.reason.trim_ascii();
        if text.is_empty() {
            return Started::Running { pid: self.pid, terminal: self.terminal.take() };
        }
        let unclear = || Failure { message: String::from_utf8_lossy(text).into_owned(), code: None };
        Started::Failed(serde_json::from_slice(text).unwrap_or_else(|_| unclear()))
    }
}
