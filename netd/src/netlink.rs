//! rtnetlink: seeing what is in a namespace, carrying out steps there.
//!
//! Runs on a thread inside the namespace, with a runtime of its own that ends with it. What the daemon makes carries its
//! own protocol number ([`PROTOCOL`]), so that it never takes a route or rule for its own that is not.

mod execute;
mod observe;

use std::{collections::BTreeMap, future::Future, io};

use nix::errno::Errno;
use orch_netd_core::ns::NsName;
use rtnetlink::{Handle, packet_route::route::RouteProtocol};

use crate::netns::NetNs;

pub(crate) use execute::{cut_off, delete_all_links, delete_own_links, make_wireguard};
pub(crate) use observe::{host_networks, links_out_v6, links_with_v6, mtu_of, read_setting, setting};

/// Marks routes and rules as the daemon's.
const PROTOCOL: u8 = 79;

fn protocol() -> RouteProtocol {
    RouteProtocol::Other(PROTOCOL)
}

/// The namespaces that a pair of links may lead to.
pub(crate) type Namespaces = BTreeMap<NsName, NetNs>;

/// Runs `work` with a connection to the calling thread's namespace.
pub(crate) fn connected<T, F: Future<Output = T>>(work: impl FnOnce(Handle) -> F) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(work(handle).await)
    })
}

/// An open connection to a namespace, with one to each from which links there are made: a tunnel's socket stays where it
/// was made from.
pub(crate) struct Session {
    runtime: tokio::runtime::Runtime,
    here: Handle,
    host: Handle,
    crypt: Option<Handle>,
    here_fd: i32,
}

impl Session {
    /// Moves the calling thread into `ns`. It must be in the daemon's own namespace. With `crypt`, tunnels can be made that
    /// lead out there.
    pub(crate) fn enter(ns: &NetNs, crypt: Option<&NetNs>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let host = runtime.block_on(connect())?;
        let connected = |crypt: &NetNs| {
            crypt.enter()?;
            runtime.block_on(connect())
        };
        let crypt = crypt.map(connected).transpose()?;
        ns.enter()?;
        let here = runtime.block_on(connect())?;
        Ok(Self { runtime, here, host, crypt, here_fd: ns.raw_fd() })
    }
}

async fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The kernel's error number, or a general error.
fn io_error(error: rtnetlink::Error) -> io::Error {
    match &error {
        rtnetlink::Error::NetlinkError(message) => {
            message.code.map_or_else(|| io::Error::other(error.to_string()), |code| Errno::from_raw(-code.get()).into())
        }
        _ => io::Error::other(error.to_string()),
    }
}
