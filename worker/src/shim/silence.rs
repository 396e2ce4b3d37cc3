//! Silences a killed container's network at once.
//!
//! From the moment that a killed program's sockets are gone, the kernel refuses its clients. Refusing is wrong: other
//! tasks of the service could have answered. With its links down the attempts get no answer at all, so that clients
//! repeat them, and by then every node balances to the others. The worker and netd learn of the end later, over sockets.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use nix::sched::{CloneFlags, setns};
use orch_proto::silence;

/// A namespace whose links can be taken down.
pub(super) struct Network(File);

impl Network {
    pub(super) fn open(netns: &Path) -> io::Result<Self> {
        File::open(netns).map(Self)
    }

    /// Takes all links but the loopback down. The shim stays in that namespace: it needs no network of its own.
    pub(super) fn silence(&self) -> io::Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET)?;
        // SAFETY: socket() takes no pointers; the result is checked before it is owned.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        for link in nix::net::if_::if_nameindex()?.iter() {
            let name = link.name().to_bytes();
            if name != b"lo" {
                take_down(&socket, name)?;
            }
        }
        Ok(())
    }
}

fn take_down(socket: &OwnedFd, name: &[u8]) -> io::Result<()> {
    // SAFETY: ifreq is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: the request lives through the call, has a terminated name (zip leaves the last byte of a valid name zero),
    // and this call takes and fills an ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just filled the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    // The flag is 1; it fits.
    #[allow(clippy::cast_possible_truncation)]
    let up = libc::IFF_UP as libc::c_short;
    request.ifr_ifru.ifru_flags = flags & !up | libc::c_short::from(silence::ENDED);
    // SAFETY: as above; this call takes an ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
