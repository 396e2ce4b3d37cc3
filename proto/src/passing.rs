//! Texts and descriptors over a unix socket, for both ends.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Descriptors that come with a text at most: a program's standard streams.
const MAX_FDS: usize = 3;

/// Reads what is there, with the descriptors that came along. `WouldBlock` when nothing is there on a socket in
/// non-blocking mode; no bytes at its end.
///
/// # Errors
/// Those of the socket.
#[allow(unsafe_code)]
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

/// Sends a text at once or fails, with descriptors attached to its first byte. Texts are far smaller than a socket's
/// buffer, so that a peer that does not read loses its connection rather than holding up the sender.
///
/// # Errors
/// Those of the socket; `WouldBlock` when the peer has not read what was sent before.
pub fn send(socket: &impl AsFd, text: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let attached = if fds.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(text)], attached, flags, None)?)
}
