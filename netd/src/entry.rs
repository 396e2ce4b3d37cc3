//! Where IPv6 clients of published ports come in.
//!
//! Rules cannot turn one family's packets into the other's, so the daemon itself listens on the node's IPv6 addresses and
//! passes what comes on to the same port of the node's IPv4 address, where the rules take over. Tasks therefore need no
//! IPv6 and no other rules; they see the node's address instead of the client's.
//!
//! Invariants: only published ports are listened on, and only by IPv6, so that nobody's IPv4 sockets are in the way; a kernel
//! without IPv6 has no such sockets, and nothing is said of it; a port that is full keeps others waiting (TCP) or unheard
//! (UDP) and takes nothing from other ports. What is passed on ends with the daemon: it is no part of the kernel's state.

mod datagrams;
mod streams;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, listen, setsockopt, socket,
        sockopt,
    },
};
use orch_model::service::Protocol;
use orch_netd_core::plan::Entry;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::JoinHandle,
};

/// Connections that wait to be taken.
const BACKLOG: i32 = 1_024;

/// The ports that are listened on; dropping it ends them.
pub(crate) struct Entries {
    open: BTreeMap<Entry, JoinHandle<()>>,
    /// What the kernel refused, and whether the operator was told.
    refused: BTreeMap<Entry, bool>,
    /// The node's IPv4 address, where the rules are.
    node: watch::Sender<IpAddr>,
}

impl Default for Entries {
    fn default() -> Self {
        let node = watch::Sender::new(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Self { open: BTreeMap::new(), refused: BTreeMap::new(), node }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        self.open.values().for_each(JoinHandle::abort);
    }
}

impl Entries {
    /// Listens on what is `wanted` and nothing else. What was refused is tried again with `again` only.
    pub(crate) fn set(&mut self, wanted: &BTreeSet<Entry>, node: Option<IpAddr>, again: bool) {
        // The underlay may be IPv6; by 127.0.0.1 every port answers too.
        let node = node.filter(IpAddr::is_ipv4).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        self.node.send_if_modified(|current| std::mem::replace(current, node) != node);
        self.refused.retain(|entry, _| wanted.contains(entry));
        self.open.retain(|entry, server| {
            let stays = wanted.contains(entry);
            if !stays {
                server.abort();
            }
            stays
        });
        for entry in wanted {
            if !self.open.contains_key(entry) && (again || !self.refused.contains_key(entry)) {
                match self.listen(*entry) {
                    Ok(server) => self.opened(*entry, server),
                    Err(error) => self.refused(*entry, &error, again),
                }
            }
        }
    }

    fn opened(&mut self, entry: Entry, server: JoinHandle<()>) {
        if self.refused.remove(&entry) == Some(true) {
            tracing::info!(port = entry.port, "the published port answers IPv6 clients too by now");
        }
        self.open.insert(entry, server);
    }

    /// Told once, and not at the first try: who had the port may be a socket of our own that is about to end.
    fn refused(&mut self, entry: Entry, error: &io::Error, again: bool) {
        let told = self.refused.entry(entry).or_default();
        let without_v6 = matches!(error.raw_os_error(), Some(code) if code == Errno::EAFNOSUPPORT as i32);
        if again && !without_v6 && !std::mem::replace(told, true) {
            let protocol = orch_netd_core::ruleset::word(entry.protocol);
            tracing::warn!(
                "published port {}/{protocol} does not answer IPv6 clients of this node: {error}; if another program has \
                 it ([::]:{} in `ss -lnp`), stop that one or publish another port",
                entry.port,
                entry.port
            );
        }
    }

    fn listen(&self, entry: Entry) -> io::Result<JoinHandle<()>> {
        let (node, port) = (self.node.subscribe(), entry.port);
        let to = move || SocketAddr::new(*node.borrow(), port);
        match entry.protocol {
            Protocol::Tcp => {
                let listener = TcpListener::from_std(bound(SockType::Stream, SockProtocol::Tcp, port)?.into())?;
                Ok(tokio::spawn(streams::serve(listener, to)))
            }
            Protocol::Udp => {
                let front = UdpSocket::from_std(bound(SockType::Datagram, SockProtocol::Udp, port)?.into())?;
                Ok(tokio::spawn(datagrams::serve(front, to)))
            }
            // The plan has none.
            Protocol::Sctp => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }
}

/// On all IPv6 addresses of the node and no IPv4 address.
fn bound(kind: SockType, protocol: SockProtocol, port: u16) -> io::Result<std::os::fd::OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet6, kind, flags, protocol)?;
    setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    if kind == SockType::Stream {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    } else {
        // A client must be answered from the address that it asked.
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    let any = SockaddrIn6::from(std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &any)?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::new(BACKLOG)?)?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests;
