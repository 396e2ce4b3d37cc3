//! Sockets that outlive the process that serves them: its supervisor holds a copy of each and hands them to the next one.
//!
//! The line between the two is the daemon's standard input. The supervisor says first what it holds, then that this was
//! all; from then on the daemon says what is to be held, and what no more.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair, sockopt},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::passing;

/// Longest name.
pub const MAX_NAME_BYTES: usize = 128;
/// Sockets under one name at most.
pub const MAX_SOCKETS: usize = 2;

/// What one says to the other.
#[derive(Debug)]
pub enum Word {
    /// These sockets, under this name; in place of others of that name.
    Hold(String, Vec<OwnedFd>),
    LetGo(String),
    /// There are no more.
    All,
}

/// One end of the line.
#[derive(Debug)]
pub struct Line(AsyncFd<OwnedFd>);

/// A new line: the supervisor's end, and what becomes the daemon's standard input.
///
/// # Errors
/// When no descriptors are left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

impl Line {
    /// # Errors
    /// When the descriptor cannot be waited for.
    #[allow(unsafe_code)]
    pub fn of(end: OwnedFd) -> io::Result<Self> {
        fcntl(&end, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        // SAFETY: an owned descriptor stays the same and open until it is dropped, which the line does with the wait for it.
        let waited = unsafe { AsyncFd::register(end) };
        waited.map(Self).map_err(|error| error.into_parts().1)
    }

    /// The daemon's end, if a supervisor started this process.
    ///
    /// # Errors
    /// When the descriptor cannot be waited for.
    pub fn of_standard_input() -> io::Result<Option<Self>> {
        let end = io::stdin().as_fd().try_clone_to_owned()?;
        match getsockopt(&end, sockopt::SockType) {
            Ok(SockType::SeqPacket) => Self::of(end).map(Some),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// The next word; `None` when the other is gone.
    ///
    /// # Errors
    /// When that is no word, and those of the socket.
    pub async fn hear(&self) -> io::Result<Option<Word>> {
        let mut buffer = [0; MAX_NAME_BYTES + 1];
        let heard = self.0.async_io(Interest::READABLE, |end| passing::receive(end, &mut buffer)).await;
        let (len, sockets) = heard?;
        let name = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| no_word());
        Ok(Some(match buffer.get(..len).unwrap_or_default() {
            [] => return Ok(None),
            [b'+', rest @ ..] => Word::Hold(name(rest)?, sockets),
            [b'-', rest @ ..] => Word::LetGo(name(rest)?),
            b"." => Word::All,
            _ => return Err(no_word()),
        }))
    }

    /// Says that these sockets are, or are to be, held under the name.
    ///
    /// # Errors
    /// Those of the socket, and when the name is too long.
    pub async fn hold(&self, name: &str, sockets: &[RawFd]) -> io::Result<()> {
        self.say(b'+', name, sockets).await
    }

    /// Says that what has the name is of no use any more.
    ///
    /// # Errors
    /// As of [`Self::hold`].
    pub async fn let_go(&self, name: &str) -> io::Result<()> {
        self.say(b'-', name, &[]).await
    }

    /// Says that everything has been named.
    ///
    /// # Errors
    /// As of [`Self::hold`].
    pub async fn all(&self) -> io::Result<()> {
        self.say(b'.', "", &[]).await
    }

    async fn say(&self, kind: u8, name: &str, sockets: &[RawFd]) -> io::Result<()> {
        if name.len() > MAX_NAME_BYTES || sockets.len() > MAX_SOCKETS {
            return Err(no_word());
        }
        let text = [&[kind], name.as_bytes()].concat();
        self.0.async_io(Interest::WRITABLE, |end| passing::send(end, &text, sockets)).await.map(drop)
    }
}

fn no_word() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message of the line between supervisor and daemon makes no sense")
}

/// The descriptors' numbers, which are good as long as their owners live.
#[must_use]
pub fn numbers(sockets: &[OwnedFd]) -> Vec<RawFd> {
    sockets.iter().map(AsRawFd::as_raw_fd).collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[tokio::test]
    async fn sockets_reach_the_other_end_with_their_names() {
        let (ours, theirs) = pair().unwrap();
        let (ours, theirs) = (Line::of(ours).unwrap(), Line::of(theirs).unwrap());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        ours.hold("a", &[socket.as_raw_fd()]).await.unwrap();
        drop(socket);
        ours.let_go("b").await.unwrap();
        ours.all().await.unwrap();
        let Some(Word::Hold(name, mut sockets)) = theirs.hear().await.unwrap() else { panic!("nothing to hold") };
        assert_eq!(name, "a");
        let socket = UdpSocket::from(sockets.pop().unwrap());
        assert_eq!(socket.local_addr().unwrap().port(), port);
        assert!(matches!(theirs.hear().await.unwrap(), Some(Word::LetGo(name)) if name == "b"));
        assert!(matches!(theirs.hear().await.unwrap(), Some(Word::All)));
        assert!(ours.hold(&"x".repeat(MAX_NAME_BYTES + 1), &[]).await.is_err());
        drop(ours);
        assert!(theirs.hear().await.unwrap().is_none());
    }
}
