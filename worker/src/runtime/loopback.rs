//! The loopback of a container that has no network: `--network none` means no network but oneself.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// Brings up `lo` in the network namespace of a process. On a thread of its own, which ends there.
pub(super) fn raise(pid: u32) -> io::Result<()> {
    let work = move || -> io::Result<()> {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        up(&socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
    };
    let thread = thread::Builder::new().name("loopback".to_owned()).spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the container's network died")))
}

#[allow(unsafe_code)]
fn up(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: all zeros is a valid request: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
