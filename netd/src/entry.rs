//! Where IPv6 clients of published ports come in.
//!
//! Rules cannot turn one family's packets into the other's, so the daemon itself listens on the node's IPv6 addresses and
//! passes what comes on to the same port of the node's IPv4 address, where the rules take over, or to the task itself where
//! a port answers on one IPv6 address alone. Tasks therefore need no IPv6 and no other rules; they see the node's
//! address instead of the client's.
//!
//! Invariants: only published ports are listened on, and only by IPv6, so that nobody's IPv4 sockets are in the way; a kernel
//! without IPv6 has no such sockets, and nothing is said of it; a port that is full keeps others waiting (TCP) or unheard
//! (UDP) and takes nothing from other ports. What is passed on ends with the daemon: it is no part of the kernel's state.

mod datagrams;
mod streams;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
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
    open: BTreeMap<Entry, Server>,
    /// What the kernel refused, and whether the operator was told.
    refused: BTreeMap<Entry, bool>,
    /// The node's IPv4 address, where the rules are.
    node: watch::Sender<IpAddr>,
}

struct Server {
    handle: JoinHandle<()>,
    /// Instead of the node's port.
    to: watch::Sender<Option<SocketAddr>>,
}

impl Default for Entries {
    fn default() -> Self {
        let node = watch::Sender::new(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Self { open: BTreeMap::new(), refused: BTreeMap::new(), node }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        self.open.values().for_each(|server| server.handle.abort());
    }
}

impl Entries {
    /// Listens on what is `wanted` and nothing else. What was refused is tried again with `again` only.
    pub(crate) fn set(&mut self, wanted: &BTreeMap<Entry, Option<SocketAddr>>, node: Option<IpAddr>, again: bool) {
        // The underlay may be IPv6; by 127.0.0.1 every port answers too.
        let node = node.filter(IpAddr::is_ipv4).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        self.node.send_if_modified(|current| std::mem::replace(current, node) != node);
        self.refused.retain(|entry, _| wanted.contains_key(entry));
        self.open.retain(|entry, server| {
            match wanted.get(entry) {
                Some(to) => drop(server.to.send_replace(*to)),
                None => server.handle.abort(),
            }
            wanted.contains_key(entry)
        });
        for (entry, to) in wanted {
            if !self.open.contains_key(entry) && (again || !self.refused.contains_key(entry)) {
                match self.listen(*entry, *to) {
                    Ok(server) => self.opened(*entry, server),
                    Err(error) => self.refused(*entry, &error, again),
                }
            }
        }
    }

    /// What IPv6 clients cannot ask by now.
    pub(crate) fn refused_now(&self) -> impl Iterator<Item = Entry> {
        self.refused.keys().copied()
    }

    fn opened(&mut self, entry: Entry, server: Server) {
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
                 it ({} in `ss -lnp`), stop that one or publish another port",
                entry.port,
                SocketAddr::from((entry.addr, entry.port))
            );
        }
    }

    fn listen(&self, entry: Entry, to: Option<SocketAddr>) -> io::Result<Server> {
        let (node, port) = (self.node.subscribe(), entry.port);
        let directly = watch::Sender::new(to);
        let task = directly.subscribe();
        let to = move || task.borrow().unwrap_or_else(|| SocketAddr::new(*node.borrow(), port));
        let handle = match entry.protocol {
            Protocol::Tcp => {
                let listener = TcpListener::from_std(bound(SockType::Stream, SockProtocol::Tcp, entry)?.into())?;
                tokio::spawn(streams::serve(listener, to))
            }
            Protocol::Udp => {
                let front = UdpSocket::from_std(bound(SockType::Datagram, SockProtocol::Udp, entry)?.into())?;
                tokio::spawn(datagrams::serve(front, to))
            }
            // The plan has none.
            Protocol::Sctp => return Err(io::Error::from(io::ErrorKind::Unsupported)),
        };
        Ok(Server { handle, to: directly })
    }
}

/// On one IPv6 address of the node or all, and no IPv4 address.
fn bound(kind: SockType, protocol: SockProtocol, entry: Entry) -> io::Result<std::os::fd::OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet6, kind, flags, protocol)?;
    setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    if kind == SockType::Stream {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    } else {
        // A client must be answered from the address that it asked.
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    let addr = SockaddrIn6::from(std::net::SocketAddrV6::new(entry.addr, entry.port, 0, 0));
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &addr)?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::new(BACKLOG)?)?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests;
