//! rtnetlink: seeing what is in a namespace, carrying out steps there.
//!
//! Runs on a thread inside the namespace. What the daemon makes carries its own protocol number ([`PROTOCOL`]), so that it
//! never takes a route or rule for its own that is not.

mod execute;
mod observe;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Mutex, PoisonError},
};

use netlink_packet_core::{DecodeError, NetlinkDeserializable as _, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, route::RouteProtocol};
use orch_netd_core::ns::{LinkKind, NsName, NsPlan};

use crate::{
    netns::NetNs,
    nfnetlink::{Mode, Socket},
};

pub(crate) use execute::{cut_off, delete_all_links, delete_own_links, make_wireguard, raise_loopback};
pub(crate) use observe::{host_networks, links_out_v6, links_with_v6, mtu_of, read_setting, setting};

/// Marks routes and rules as the daemon's.
const PROTOCOL: u8 = 79;

/// The kernel fills parts of a dump as far as they are asked for, up to this much.
const RECEIVE_LEN: usize = 32 * 1024;

fn protocol() -> RouteProtocol {
    RouteProtocol::Other(PROTOCOL)
}

/// The namespaces that a pair of links may lead to.
pub(crate) type Namespaces = BTreeMap<NsName, NetNs>;

/// A connection to the namespace of the thread that opened it.
pub(crate) struct Connection {
    socket: Socket,
    buffer: RefCell<Vec<u8>>,
}

impl Connection {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::route()?, buffer: RefCell::new(vec![0; RECEIVE_LEN]) })
    }

    /// With `flags` besides those that every request has.
    fn act(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, Mode::Act, flags, |_| ())
    }

    /// All that come back and can be read: what a newer kernel tells besides is nobody's business here.
    fn ask(&self, message: RouteNetlinkMessage, mode: Mode) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        self.exchange(message, mode, 0, |answer| answers.push(answer))?;
        Ok(answers)
    }

    fn exchange(
        &self,
        message: RouteNetlinkMessage,
        mode: Mode,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = mode.flags() | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.exchange(&mut bytes, mode, &mut self.buffer.borrow_mut(), |kind, body| {
            let mut header = NetlinkHeader::default();
            header.message_type = kind;
            match RouteNetlinkMessage::deserialize(&header, body) {
                Ok(answer) => each(answer),
                Err(error) => pass_over(kind, &error),
            }
        })
    }
}

/// Told once for each kind of message: it would come again with every look.
fn pass_over(kind: u16, error: &DecodeError) {
    static TOLD: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(kind) {
        tracing::warn!(kind, %error, "passing over what the kernel told and cannot be read here");
    }
}

/// An open connection to a namespace, with one to each from which links there are made: a tunnel's socket stays where it
/// was made from.
pub(crate) struct Session {
    here: Connection,
    host: Option<Connection>,
    crypt: Option<Connection>,
    here_fd: i32,
}

impl Session {
    /// Moves the calling thread into `ns`, where `plan` is to be. It must be in the daemon's own namespace.
    pub(crate) fn enter(ns: &NetNs, plan: &NsPlan, namespaces: &Namespaces) -> io::Result<Self> {
        let host = leads_to(plan, &NsName::Host).then(Connection::open).transpose()?;
        let crypt = namespaces.get(&NsName::Crypt).filter(|_| leads_to(plan, &NsName::Crypt));
        let connected = |crypt: &NetNs| {
            crypt.enter()?;
            Connection::open()
        };
        let crypt = crypt.map(connected).transpose()?;
        ns.enter()?;
        Ok(Self { here: Connection::open()?, host, crypt, here_fd: ns.raw_fd() })
    }
}

/// Whether a link of the plan is made from there.
fn leads_to(plan: &NsPlan, there: &NsName) -> bool {
    plan.links.values().any(|link| match &link.kind {
        LinkKind::Vxlan { outside, .. } => outside == there,
        LinkKind::WireGuard => *there == NsName::Host,
        LinkKind::Loopback | LinkKind::Bridge | LinkKind::Veth { .. } | LinkKind::VethPeer => false,
    })
}
