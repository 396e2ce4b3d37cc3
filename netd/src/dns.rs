//! The DNS servers: one per task, on sockets inside the task's namespace, answering from the task's view.
//!
//! The sockets are on a high port of 127.0.0.11 that the task's rules lead port 53 to: a program that binds port 53 of
//! all addresses still can.

mod forward;
mod server;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    os::fd::OwnedFd,
};

pub(crate) use forward::Resolvers;
pub(crate) use server::{Server, TaskView};

use crate::netlink;

const ADDR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// A port that is free for UDP may be taken for TCP; then another is tried.
const BIND_ATTEMPTS: usize = 8;

/// A task's sockets.
pub(crate) struct Sockets {
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
    pub(crate) port: u16,
}

/// Opens the sockets of the task whose namespace the calling thread is in, on `port` if that is not 0 and free: then its
/// rules need no change.
pub(crate) fn open(port: u16) -> io::Result<Sockets> {
    // 127.0.0.11 exists once loopback is up.
    netlink::raise_loopback().map_err(|error| io::Error::new(error.kind(), format!("bringing lo up: {error}")))?;
    bind(port).or_else(|_| (0..BIND_ATTEMPTS).find_map(|_| bind(0).ok()).ok_or_else(no_port))
}

impl Sockets {
    /// Those that an earlier daemon served.
    pub(crate) fn of(kept: Vec<OwnedFd>) -> Option<Self> {
        let [udp, tcp] = <[OwnedFd; 2]>::try_from(kept).ok()?;
        let (udp, tcp) = (UdpSocket::from(udp), TcpListener::from(tcp));
        let port = udp.local_addr().ok()?.port();
        Some(Self { udp, tcp, port })
    }
}

fn bind(port: u16) -> io::Result<Sockets> {
    let udp = UdpSocket::bind(SocketAddrV4::new(ADDR, port))?;
    let port = udp.local_addr()?.port();
    let tcp = TcpListener::bind(SocketAddr::from((ADDR, port)))?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok(Sockets { udp, tcp, port })
}

fn no_port() -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, "no port of 127.0.0.11 is free for UDP and TCP")
}
