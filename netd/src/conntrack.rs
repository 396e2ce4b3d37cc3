//! Makes the kernel forget connections to backends that went away.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use orch_netd_core::flows::Cut;

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
const IP_V6_SRC: u16 = 3;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;
const NESTED: u16 = 0x8000;
const STATUS_SEEN_REPLY: u32 = 1 << 1;
const STATUS_DST_NAT: u32 = 1 << 5;
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
    let mut forgotten = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        if cuts.keys().any(|addr| addr.is_ipv4() == (family == libc::AF_INET)) {
            forgotten += forget_if(socket, family, |entry| doom(entry, cuts))?;
        }
    }
    Ok(forgotten)
}

/// Deletes where the node leads those who send datagrams to its published `ports`, and tells how many entries that were.
pub(crate) fn forget_senders(socket: &Socket, ports: &BTreeSet<u16>) -> io::Result<usize> {
    forget_if(socket, libc::AF_INET, |entry| doom_sender(entry, ports))
}

fn forget_if(socket: &Socket, family: i32, mut doom: impl FnMut(&[u8]) -> Option<Vec<u8>>) -> io::Result<usize> {
    let family = u8::try_from(family).map_err(io::Error::other)?;
    let (mut doomed, mut forgotten) = (Vec::new(), 0);
    socket.request(CT_GET, Mode::Dump, family, &[], |entry| doomed.extend(doom(entry)))?;
    for entry in doomed {
        match socket.request(CT_DELETE, Mode::Act, family, &entry, |_| {}) {
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

/// What names the entry in a delete request, if it is to go.
fn doom(entry: &[u8], cuts: &BTreeMap<IpAddr, Cut>) -> Option<Vec<u8>> {
    let status = u32::from_be_bytes(*attribute(entry, STATUS)?.first_chunk()?);
    let reply = attribute(entry, TUPLE_REPLY)?;
    let cut = cuts.get(&source(attribute(reply, TUPLE_IP)?)?)?;
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
fn doom_sender(entry: &[u8], ports: &BTreeSet<u16>) -> Option<Vec<u8>> {
    let proto = attribute(attribute(entry, TUPLE_ORIG)?, TUPLE_PROTO)?;
    let port = u16::from_be_bytes(*attribute(proto, PROTO_DST_PORT)?.first_chunk()?);
    let status = u32::from_be_bytes(*attribute(entry, STATUS)?.first_chunk()?);
    let is_udp = attribute(proto, PROTO_NUM)?.first() == Some(&IPPROTO_UDP);
    let is_ours = status & STATUS_DST_NAT != 0 || status & STATUS_SEEN_REPLY == 0;
    if is_udp && is_ours && ports.contains(&port) { named(entry) } else { None }
}

fn named(entry: &[u8]) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    push(&mut request, TUPLE_ORIG | NESTED, attribute(entry, TUPLE_ORIG)?);
    for kind in [ID, ZONE] {
        if let Some(value) = attribute(entry, kind) {
            push(&mut request, kind, value);
        }
    }
    Some(request)
}

fn tcp_state(entry: &[u8]) -> Option<u8> {
    let tcp = attribute(attribute(entry, PROTO_INFO)?, PROTO_INFO_TCP)?;
    attribute(tcp, TCP_STATE)?.first().copied()
}

fn source(tuple_ip: &[u8]) -> Option<IpAddr> {
    let v4 = attribute(tuple_ip, IP_V4_SRC).and_then(|v| v.first_chunk::<4>()).map(|v| IpAddr::from(*v));
    v4.or_else(|| attribute(tuple_ip, IP_V6_SRC).and_then(|v| v.first_chunk::<16>()).map(|v| IpAddr::from(*v)))
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
        push(&mut entry, TUPLE_ORIG | NESTED, &[1; 8]);
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
        let sent = |protocol: u8, port: u16, status: u32| {
            let proto = nested(TUPLE_PROTO, &[(PROTO_NUM, &[protocol]), (PROTO_DST_PORT, &port.to_be_bytes())]);
            let mut entry = Vec::new();
            push(&mut entry, TUPLE_ORIG | NESTED, &proto);
            push(&mut entry, STATUS, &status.to_be_bytes());
            entry
        };
        let ports = BTreeSet::from([514]);
        for (entry, gone) in [
            (sent(IPPROTO_UDP, 514, STATUS_DST_NAT | STATUS_SEEN_REPLY), true),
            (sent(IPPROTO_UDP, 514, STATUS_DST_NAT), true),
            (sent(IPPROTO_UDP, 514, 0), true),
            (sent(IPPROTO_UDP, 514, STATUS_SEEN_REPLY), false),
            (sent(IPPROTO_UDP, 515, STATUS_DST_NAT), false),
            (sent(IPPROTO_TCP, 514, STATUS_DST_NAT), false),
        ] {
            assert_eq!(doom_sender(&entry, &ports).is_some(), gone);
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
