//! One request to a shim: a connection, a line there, lines back.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, socket},
};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::UnixStream,
};

use super::error::RuntimeError;
use crate::shim::{
    protocol::{Files, MAX_LINE_BYTES, Message, Reply, Request, VERSION},
    wire,
};

const READ_BYTES: usize = 16 * 1024;

/// A connection to a shim.
pub(super) struct Connection {
    stream: UnixStream,
    text: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Connection {
    /// `None`: there is no shim (any more).
    pub(super) async fn open(folder: &Path) -> Result<Option<Self>, RuntimeError> {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
        let path = Files(folder).socket();
        match UnixStream::connect(&path).await {
            Ok(stream) => Ok(Some(Self { stream, text: Vec::new(), fds: Vec::new() })),
            // Reset: it ended before it took the connection.
            Err(err) if matches!(err.kind(), NotFound | ConnectionRefused | ConnectionReset) => Ok(None),
            Err(source) => Err(RuntimeError::Io { what: "cannot connect to the shim at", path, source }),
        }
    }

    /// Sends a request, with descriptors of ours that the shim gets copies of. `false`: the shim is gone.
    pub(super) async fn send(&mut self, request: Request, fds: &[OwnedFd]) -> bool {
        let mut line = serde_json::to_vec(&Message { v: VERSION, request }).unwrap_or_default();
        line.push(b'\n');
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let stream = &self.stream;
        let sent = stream.async_io(Interest::WRITABLE, || wire::send(stream, &line, &fds)).await;
        match sent {
            Ok(len) => self.stream.write_all(&line[len..]).await.is_ok(),
            Err(_) => false,
        }
    }

    /// The next line. `None`: the shim is gone.
    pub(super) async fn receive(&mut self) -> Result<Option<Reply>, RuntimeError> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Some(end) = self.text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                let unknown = || RuntimeError::Protocol(String::from_utf8_lossy(&line).into_owned());
                return serde_json::from_slice(&line).map(Some).map_err(|_| unknown());
            }
            let stream = &self.stream;
            let received = stream.async_io(Interest::READABLE, || wire::receive(stream, &mut buffer)).await;
            match received {
                Ok((len, fds)) if len > 0 && self.text.len() <= MAX_LINE_BYTES => {
                    self.text.extend_from_slice(&buffer[..len]);
                    self.fds.extend(fds);
                }
                // The kernel closes a dead shim's connections, sometimes with an error.
                _ => return Ok(None),
            }
        }
    }

    /// A descriptor that came with the last line.
    pub(super) fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop()
    }
}

/// Whether a shim listens there. One that hangs up without an answer and listens has too many connections, or is about to
/// end.
pub(super) fn is_listening(folder: &Path) -> bool {
    let connect = || {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        match socket::connect(fd.as_raw_fd(), &UnixAddr::new(&Files(folder).socket())?) {
            // Too many wait for it to take them.
            Err(Errno::EAGAIN) => Ok(()),
            connected => connected,
        }
    };
    connect().is_ok()
}

/// One question, one answer. `None`: the shim is gone.
pub(super) async fn ask(folder: &Path, request: Request) -> Result<Option<Reply>, RuntimeError> {
    let Some(mut connection) = Connection::open(folder).await? else { return Ok(None) };
    if connection.send(request, &[]).await { connection.receive().await } else { Ok(None) }
}
