//! Makes the kernel forget connections to backends that went away.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
};

use orch_netd_core::flows::{Cut, Doors, led_to};

use crate::nfnetlink::{Mode, Socket, attribute, push};

const CT_GET: u16 = (1 << 8) | 1;
const CT_DELETE: u16 = (1 << 8) | 2;
const CT_GET_STATS: u16 = (1 << 8) | 5;
const STATS_ENTRIES: u16 = 1;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTO_INFO: u16 = 4;
const PROTO_INFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const NESTED: u16 = 0x8000;
const STATUS_SEEN_REPLY: u32 = 1 << 1;
const STATUS_DST_NAT: u32 = 1 << 5;
const ANY_FAMILY: u8 = 0;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// TIME_WAIT and CLOSE.
const TCP_OVER: [u8; 2] = [7, 8];

/// Deletes what `cuts` says and tells how many entries that were. Only connections that were balanced are touched: what
/// was addressed to the backend itself is its own affair.
pub(crate) fn forget(socket: &Socket, cuts: &BTreeMap<IpAddr, Cut>) -> io::Result<usize> {
    // Listing goes through the table of the whole machine, milliseconds for each namespace; most have nothing to forget.
    if remembered(socket)? == Some(0) {
        return Ok(0);
    }
    forget_if(socket, |entry| doom(entry, cuts))
}

/// Deletes where the node led those who send datagrams to its published `ports`, as far as `doors` say otherwise, and tells how
/// many entries that were.
pub(crate) fn forget_senders(socket: &Socket, ports: &BTreeSet<u16>, doors: &Doors) -> io::Result<usize> {
    forget_if(socket, |entry| doom_sender(entry, ports, doors))
}

/// Of both families: each look costs the same.
fn forget_if(socket: &Socket, mut doom: impl FnMut(&[u8]) -> Option<Doomed>) -> io::Result<usize> {
    let (mut doomed, mut forgotten) = (Vec::new(), 0);
    socket.request(CT_GET, Mode::Dump, ANY_FAMILY, &[], |entry| doomed.extend(doom(entry)))?;
    for entry in doomed {
        match socket.request(CT_DELETE, Mode::Act, entry.family, &entry.name, |_| {}) {
            Ok(()) => forgotten += 1,
            // It ended by itself meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

/// How many connections are remembered in the namespace; `None` when the kernel does not tell.
fn remembered(socket: &Socket) -> io::Result<Option<u32>> {
    let mut count = None;
    socket.request(CT_GET_STATS, Mode::Get, 0, &[], |reply| {
        count = attribute(reply, STATS_ENTRIES).and_then(|v| v.first_chunk()).map(|v| u32::from_be_bytes(*v));
    })?;
    Ok(count)
}

/// An entry that is to go.
#[derive(Debug, PartialEq, Eq)]
struct Doomed {
    family: u8,
    /// As a delete request has it.
    name: Vec<u8>,
}

/// The entry, if it is to go.
fn doom(entry: &[u8], cuts: &BTreeMap<IpAddr, Cut>) -> Option<Doomed> {
    let status = u32::from_be_bytes(*attribute(entry, STATUS)?.first_chunk()?);
    let reply = attribute(entry, TUPLE_REPLY)?;
    let cut = cuts.get(&addr(reply, IP_V4_SRC, IP_V6_SRC)?)?;
    let protocol = *attribute(attribute(reply, TUPLE_PROTO)?, PROTO_NUM)?.first()?;
    let lives_on = protocol == IPPROTO_TCP
        && match cut {
            Cut::Endless => true,
            Cut::Unanswered => status & STATUS_SEEN_REPLY != 0,
            // Whoever uses the port again makes a new entry in its place, which may even get the id of this one: it must not
            // be deleted for it.
            Cut::All => tcp_state(entry).is_some_and(|state| TCP_OVER.contains(&state)),
        };
    if status & STATUS_DST_NAT == 0 || lives_on {
        return None;
    }
    named(entry)
}

/// As [`doom`], of datagrams to a port of this node. One that nobody has answered may have gone to the node itself; what
/// passes through to such a port of somebody else is answered, or begins anew without harm.
fn doom_sender(entry: &[u8], ports: &BTreeSet<u16>, doors: &Doors) -> Option<Doomed> {
    let (sent, reply) = (attribute(entry, TUPLE_ORIG)?, attribute(entry, TUPLE_REPLY)?);
    let to = SocketAddr::new(addr(sent, IP_V4_DST, IP_V6_DST)?, port(sent, PROTO_DST_PORT)?);
    let is_udp = attribute(attribute(sent, TUPLE_PROTO)?, PROTO_NUM)?.first() == Some(&IPPROTO_UDP);
    if !is_udp || !ports.contains(&to.port()) {
        return None;
    }
    let status = u32::from_be_bytes(*attribute(entry, STATUS)?.first_chunk()?);
    let led = match status & STATUS_DST_NAT != 0 {
        true => Some(SocketAddr::new(addr(reply, IP_V4_SRC, IP_V6_SRC)?, port(reply, PROTO_SRC_PORT)?)),
        false if status & STATUS_SEEN_REPLY == 0 => None,
        false => return None,
    };
    if led == led_to(doors, to) { None } else { named(entry) }
}

fn named(entry: &[u8]) -> Option<Doomed> {
    let sent = attribute(entry, TUPLE_ORIG)?;
    let family = if addr(sent, IP_V4_DST, IP_V6_DST)?.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut name = Vec::new();
    push(&mut name, TUPLE_ORIG | NESTED, sent);
    for kind in [ID, ZONE] {
        if let Some(value) = attribute(entry, kind) {
            push(&mut name, kind, value);
        }
    }
    Some(Doomed { family: u8::try_from(family).ok()?, name })
}

fn tcp_state(entry: &[u8]) -> Option<u8> {
    let tcp = attribute(attribute(entry, PROTO_INFO)?, PROTO_INFO_TCP)?;
    attribute(tcp, TCP_STATE)?.first().copied()
}

/// One of a tuple's addresses, of whichever family.
fn addr(tuple: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    let ip = attribute(tuple, TUPLE_IP)?;
    let of_v4 = attribute(ip, v4).and_then(|v| v.first_chunk::<4>()).map(|v| IpAddr::from(*v));
    of_v4.or_else(|| attribute(ip, v6).and_then(|v| v.first_chunk::<16>()).map(|v| IpAddr::from(*v)))
}

fn port(tuple: &[u8], which: u16) -> Option<u16> {
    Some(u16::from_be_bytes(*attribute(attribute(tuple, TUPLE_PROTO)?, which)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 30);
    const ESTABLISHED: u8 = 3;
    const SYN_SENT: u8 = 1;
    const TIME_WAIT: u8 = 7;

    fn nested(kind: u16, parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut inside = Vec::new();
        parts.iter().for_each(|(kind, value)| push(&mut inside, *kind, value));
        let mut whole = Vec::new();
        push(&mut whole, kind | NESTED, &inside);
        whole
    }

    /// A connection that `BACKEND` answers, as the kernel lists it.
    fn entry(protocol: u8, state: Option<u8>, status: u32) -> Vec<u8> {
        let ip = nested(TUPLE_IP, &[(IP_V4_SRC, &BACKEND.octets())]);
        let proto = nested(TUPLE_PROTO, &[(PROTO_NUM, &[protocol])]);
        let mut entry = Vec::new();
        push(&mut entry, TUPLE_ORIG | NESTED, &nested(TUPLE_IP, &[(IP_V4_DST, &[10, 0, 0, 2])]));
        push(&mut entry, TUPLE_REPLY | NESTED, &[ip, proto].concat());
        push(&mut entry, STATUS, &status.to_be_bytes());
        push(&mut entry, ID, &[9; 4]);
        if let Some(state) = state {
            let tcp = nested(PROTO_INFO_TCP, &[(TCP_STATE, &[state])]);
            push(&mut entry, PROTO_INFO | NESTED, &tcp);
        }
        entry
    }

    #[test]
    fn which_senders_are_forgotten() {
        let answered = STATUS_DST_NAT | STATUS_SEEN_REPLY;
        // To a port of 10.0.0.5, and where the node led it.
        let sent = |protocol: u8, port: u16, led: (Ipv4Addr, u16), status: u32| {
            let tuple = |(of_ip, addr): (u16, Ipv4Addr), (of_port, port): (u16, u16)| {
                let proto = nested(TUPLE_PROTO, &[(PROTO_NUM, &[protocol]), (of_port, &port.to_be_bytes())]);
                [nested(TUPLE_IP, &[(of_ip, &addr.octets())]), proto].concat()
            };
            let mut entry = Vec::new();
            let node = Ipv4Addr::new(10, 0, 0, 5);
            push(&mut entry, TUPLE_ORIG | NESTED, &tuple((IP_V4_DST, node), (PROTO_DST_PORT, port)));
            push(&mut entry, TUPLE_REPLY | NESTED, &tuple((IP_V4_SRC, led.0), (PROTO_SRC_PORT, led.1)));
            push(&mut entry, STATUS, &status.to_be_bytes());
            entry
        };
        let (task, other, node) = ((BACKEND, 5140), (BACKEND, 5141), (Ipv4Addr::new(10, 0, 0, 5), 514));
        let doors = Doors::from([((514, None), task.into()), ((515, None), task.into())]);
        let ports = BTreeSet::from([514, 516]);
        for (entry, gone) in [
            (sent(IPPROTO_UDP, 514, other, answered), true),
            (sent(IPPROTO_UDP, 514, other, STATUS_DST_NAT), true),
            (sent(IPPROTO_UDP, 514, task, answered), false),
            (sent(IPPROTO_UDP, 514, node, 0), true),
            (sent(IPPROTO_UDP, 514, node, STATUS_SEEN_REPLY), false),
            // A port that has not changed, and one that nobody serves any more.
            (sent(IPPROTO_UDP, 515, other, STATUS_DST_NAT), false),
            (sent(IPPROTO_UDP, 516, other, answered), true),
            (sent(IPPROTO_UDP, 516, node, 0), false),
            (sent(IPPROTO_TCP, 514, other, STATUS_DST_NAT), false),
        ] {
            assert_eq!(doom_sender(&entry, &ports, &doors).is_some(), gone);
        }
    }

    #[test]
    fn what_a_cut_takes_and_what_it_leaves() {
        let answered = STATUS_DST_NAT | STATUS_SEEN_REPLY;
        for (protocol, state, status, gone) in [
            // In the order of: endless, unanswered, all.
            (IPPROTO_UDP, None, answered, [true, true, true]),
            (IPPROTO_UDP, None, STATUS_DST_NAT, [true, true, true]),
            (IPPROTO_UDP, None, STATUS_SEEN_REPLY, [false, false, false]),
            (IPPROTO_TCP, Some(SYN_SENT), STATUS_DST_NAT, [false, true, true]),
            (IPPROTO_TCP, Some(ESTABLISHED), answered, [false, false, true]),
            (IPPROTO_TCP, Some(TIME_WAIT), answered, [false, false, false]),
            (IPPROTO_TCP, Some(ESTABLISHED), STATUS_SEEN_REPLY, [false, false, false]),
            // A kernel that does not tell the state.
            (IPPROTO_TCP, None, answered, [false, false, true]),
        ] {
            let entry = entry(protocol, state, status);
            let doomed = [Cut::Endless, Cut::Unanswered, Cut::All].map(|cut| {
                let cuts = BTreeMap::from([(IpAddr::V4(BACKEND), cut)]);
                doom(&entry, &cuts).is_some()
            });
            assert_eq!(doomed, gone, "protocol {protocol}, state {state:?}, status {status:#x}");
        }
        let others = BTreeMap::from([(IpAddr::from([10, 0, 0, 31]), Cut::All)]);
        assert_eq!(doom(&entry(IPPROTO_UDP, None, answered), &others), None);
    }
}
