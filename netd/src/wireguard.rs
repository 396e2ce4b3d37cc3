//! WireGuard's side of generic netlink: what a device knows, and telling it.
//!
//! A private key goes into the kernel once and is not kept here. The kernel tells it again with all else of a device, and
//! cannot be asked for less: that is passed over, and the request wipes what it received.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use orch_model::node::TunnelKey;
use orch_netd_core::ns::{Correspondent, ObservedWireGuard, WireGuard};
use rand::TryRngCore as _;
use zeroize::Zeroizing;

use crate::nfnetlink::{Mode, Socket, attribute, attributes, push};

/// Of the family that knows the others.
const CONTROLLER: u16 = 0x10;
const CONTROLLER_GET_FAMILY: u8 = 3;
const CONTROLLER_FAMILY_ID: u16 = 1;
const CONTROLLER_FAMILY_NAME: u16 = 2;

const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_NAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_ALLOWED: u16 = 9;
const PEER_REMOVE: u32 = 1;
const PEER_REPLACE_ALLOWED: u32 = 2;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDR: u16 = 2;
const ALLOWED_PREFIX: u16 = 3;
const NESTED: u16 = 0x8000;

const FAMILY_V4: u16 = 2;
const FAMILY_V6: u16 = 10;
/// With one, the device greets a node as soon as it knows it: what that one could not read before, because it knew this
/// node later, is sent again at once and not after WireGuard's five seconds. Then it keeps firewalls' memory fresh.
const KEEPALIVE_S: u16 = 25;

/// The device `link` of the calling thread's namespace.
pub(crate) struct Device<'a> {
    socket: Socket,
    family: u16,
    link: &'a str,
}

impl<'a> Device<'a> {
    pub(crate) fn open(link: &'a str) -> io::Result<Self> {
        let socket = Socket::generic()?;
        let mut name = Vec::new();
        push(&mut name, CONTROLLER_FAMILY_NAME, b"wireguard\0");
        let mut family = None;
        socket.request(CONTROLLER, Mode::Get, CONTROLLER_GET_FAMILY, &name, |answer| {
            family = attribute(answer, CONTROLLER_FAMILY_ID).and_then(number);
        })?;
        let family = family.ok_or_else(|| io::Error::other("the kernel did not say how to talk to WireGuard"))?;
        Ok(Self { socket, family, link })
    }

    pub(crate) fn read(&self) -> io::Result<ObservedWireGuard> {
        let mut seen = ObservedWireGuard::default();
        let name = self.name();
        self.socket.request(self.family, Mode::Dump, GET_DEVICE, &name, |part| take_part(part, &mut seen))?;
        Ok(seen)
    }

    /// Gives the device a key of its own, which is nowhere else.
    pub(crate) fn make_key(&self) -> io::Result<()> {
        let mut key = Zeroizing::new([0_u8; 32]);
        rand::rngs::OsRng.try_fill_bytes(&mut *key).map_err(io::Error::other)?;
        // Room for all of it, or growing would leave copies.
        let mut message = Zeroizing::new(Vec::with_capacity(256));
        message.extend(self.name());
        push(&mut message, DEVICE_PRIVATE_KEY, &*key);
        self.set(&message)
    }

    pub(crate) fn set_port(&self, port: u16) -> io::Result<()> {
        let mut message = self.name();
        push(&mut message, DEVICE_PORT, &port.to_ne_bytes());
        self.set(&message)
    }

    pub(crate) fn set_correspondent(&self, key: &TunnelKey, correspondent: &Correspondent) -> io::Result<()> {
        let mut allowed = Vec::new();
        push(&mut allowed, ALLOWED_FAMILY, &FAMILY_V4.to_ne_bytes());
        push(&mut allowed, ALLOWED_ADDR, &correspondent.inner.octets());
        push(&mut allowed, ALLOWED_PREFIX, &[32]);
        let mut peer = Vec::new();
        push(&mut peer, PEER_PUBLIC_KEY, &key.0);
        push(&mut peer, PEER_FLAGS, &PEER_REPLACE_ALLOWED.to_ne_bytes());
        push(&mut peer, PEER_ENDPOINT, &socket_address(correspondent.endpoint));
        push(&mut peer, PEER_KEEPALIVE, &KEEPALIVE_S.to_ne_bytes());
        push(&mut peer, PEER_ALLOWED | NESTED, &list_of_one(&allowed));
        self.set_peer(&peer)
    }

    pub(crate) fn forget_correspondent(&self, key: &TunnelKey) -> io::Result<()> {
        let mut peer = Vec::new();
        push(&mut peer, PEER_PUBLIC_KEY, &key.0);
        push(&mut peer, PEER_FLAGS, &PEER_REMOVE.to_ne_bytes());
        self.set_peer(&peer)
    }

    fn set_peer(&self, peer: &[u8]) -> io::Result<()> {
        let mut message = self.name();
        push(&mut message, DEVICE_PEERS | NESTED, &list_of_one(peer));
        self.set(&message)
    }

    fn set(&self, message: &[u8]) -> io::Result<()> {
        self.socket.request(self.family, Mode::Act, SET_DEVICE, message, |_| ())
    }

    fn name(&self) -> Vec<u8> {
        let mut name = Vec::new();
        push(&mut name, DEVICE_NAME, &[self.link.as_bytes(), &[0]].concat());
        name
    }
}

fn list_of_one(item: &[u8]) -> Vec<u8> {
    let mut list = Vec::new();
    push(&mut list, NESTED, item);
    list
}

/// The kernel's `sockaddr_in` or `sockaddr_in6`.
fn socket_address(addr: SocketAddr) -> Vec<u8> {
    let port = addr.port().to_be_bytes();
    match addr.ip() {
        IpAddr::V4(ip) => [&FAMILY_V4.to_ne_bytes()[..], &port, &ip.octets(), &[0; 8]].concat(),
        IpAddr::V6(ip) => [&FAMILY_V6.to_ne_bytes()[..], &port, &[0; 4], &ip.octets(), &[0; 4]].concat(),
    }
}

/// What one message says; of a device with many peers there are several.
fn take_part(part: &[u8], seen: &mut ObservedWireGuard) {
    for (kind, value) in attributes(part) {
        match kind {
            DEVICE_PUBLIC_KEY => seen.key = key(value),
            DEVICE_PORT => seen.knows.port = number(value).unwrap_or_default(),
            DEVICE_PEERS => take_peers(value, &mut seen.knows),
            _ => {}
        }
    }
}

fn take_peers(list: &[u8], knows: &mut WireGuard) {
    for (_, peer) in attributes(list) {
        let Some(key) = attribute(peer, PEER_PUBLIC_KEY).and_then(key) else { continue };
        let endpoint = attribute(peer, PEER_ENDPOINT).and_then(read_socket_address);
        let allowed = attribute(peer, PEER_ALLOWED).map(allowed).unwrap_or_default();
        // One that may do anything else than the daemon lets it is not as it should be, which shows as an address of nobody.
        let inner = if let [inner] = allowed[..] { inner } else { Ipv4Addr::UNSPECIFIED };
        let endpoint = endpoint.unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
        knows.peers.insert(key, Correspondent { endpoint, inner });
    }
}

/// Single addresses; a wider range counts as the address of nobody.
fn allowed(list: &[u8]) -> Vec<Ipv4Addr> {
    let address = |item: &[u8]| {
        let addr = attribute(item, ALLOWED_ADDR).and_then(|addr| <[u8; 4]>::try_from(addr).ok());
        let whole = attribute(item, ALLOWED_PREFIX) == Some(&[32]);
        addr.filter(|_| whole).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from)
    };
    attributes(list).map(|(_, item)| address(item)).collect()
}

fn read_socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let ip: IpAddr = match number(bytes)? {
        FAMILY_V4 => bytes.get(4..)?.first_chunk::<4>().copied()?.into(),
        FAMILY_V6 => bytes.get(8..)?.first_chunk::<16>().copied()?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Without a private key the device has no public one, or one of zeros.
fn key(bytes: &[u8]) -> Option<TunnelKey> {
    <[u8; 32]>::try_from(bytes).ok().filter(|key| *key != [0; 32]).map(TunnelKey)
}

fn number(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().copied().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A device as the kernel describes it, in two parts.
    #[test]
    fn a_device_in_parts_is_read() {
        let peer = |n: u8, endpoint: &str, allowed: &[([u8; 4], u8)]| {
            let mut ips = Vec::new();
            for (addr, prefix) in allowed {
                let mut item = Vec::new();
                push(&mut item, ALLOWED_FAMILY, &FAMILY_V4.to_ne_bytes());
                push(&mut item, ALLOWED_ADDR, addr);
                push(&mut item, ALLOWED_PREFIX, &[*prefix]);
                push(&mut ips, NESTED, &item);
            }
            let mut peer = Vec::new();
            push(&mut peer, PEER_PUBLIC_KEY, &[n; 32]);
            push(&mut peer, PEER_ENDPOINT, &socket_address(endpoint.parse().unwrap()));
            push(&mut peer, PEER_ALLOWED | NESTED, &ips);
            peer
        };
        let (mut first, mut second) = (Vec::new(), Vec::new());
        push(&mut first, DEVICE_PRIVATE_KEY, &[1; 32]);
        push(&mut first, DEVICE_PUBLIC_KEY, &[2; 32]);
        push(&mut first, DEVICE_PORT, &7947_u16.to_ne_bytes());
        let ok = peer(3, "192.168.0.3:7947", &[([169, 254, 0, 3], 32)]);
        push(&mut first, DEVICE_PEERS | NESTED, &list_of_one(&ok));
        let mut peers = list_of_one(&peer(4, "[fd00::4]:7947", &[([169, 254, 0, 4], 32)]));
        push(&mut peers, NESTED, &peer(5, "192.168.0.5:7947", &[([169, 254, 0, 0], 16)]));
        push(&mut peers, NESTED, &peer(6, "192.168.0.6:7947", &[([169, 254, 0, 6], 32), ([169, 254, 0, 7], 32)]));
        push(&mut second, DEVICE_PEERS | NESTED, &peers);

        let mut seen = ObservedWireGuard::default();
        take_part(&first, &mut seen);
        take_part(&second, &mut seen);
        let expected = [
            (3, "192.168.0.3:7947", "169.254.0.3"),
            (4, "[fd00::4]:7947", "169.254.0.4"),
            (5, "192.168.0.5:7947", "0.0.0.0"),
            (6, "192.168.0.6:7947", "0.0.0.0"),
        ];
        let correspondent = |(n, endpoint, inner): (u8, &str, &str)| {
            let (endpoint, inner) = (endpoint.parse().unwrap(), inner.parse().unwrap());
            (TunnelKey([n; 32]), Correspondent { endpoint, inner })
        };
        let peers: BTreeMap<_, _> = expected.into_iter().map(correspondent).collect();
        assert_eq!(seen, ObservedWireGuard { key: Some(TunnelKey([2; 32])), knows: WireGuard { port: 7947, peers } });
    }

    #[test]
    fn a_device_without_a_key_has_none() {
        assert_eq!((key(&[0; 32]), key(&[7; 31]), key(&[7; 32])), (None, None, Some(TunnelKey([7; 32]))));
    }
}
