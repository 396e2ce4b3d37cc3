//! Makes the kernel forget connections to backends that went away.

use std::{collections::BTreeMap, io, net::IpAddr};

use orch_netd_core::flows::Cut;

use crate::nfnetlink::{Mode, Socket, attribute, push};

const CT_GET: u16 = (1 << 8) | 1;
const CT_DELETE: u16 = (1 << 8) | 2;
const CT_GET_STATS: u16 = (1 << 8) | 5;
const STATS_ENTRIES: u16 = 1;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V6_SRC: u16 = 3;
const PROTO_NUM: u16 = 1;
const NESTED: u16 = 0x8000;
const STATUS_SEEN_REPLY: u32 = 1 << 1;
const STATUS_DST_NAT: u32 = 1 << 5;
const IPPROTO_TCP: u8 = 6;

/// Deletes what `cuts` says and tells how many entries that were. Only connections that were balanced are touched: what
/// was addressed to the backend itself is its own affair.
pub(crate) fn forget(socket: &Socket, cuts: &BTreeMap<IpAddr, Cut>) -> io::Result<usize> {
    // Listing goes through the table of the whole machine, milliseconds for each namespace; most have nothing to forget.
    if remembered(socket)? == Some(0) {
        return Ok(0);
    }
    let mut forgotten = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(io::Error::other)?;
        if !cuts.keys().any(|addr| addr.is_ipv4() == (i32::from(family) == libc::AF_INET)) {
            continue;
        }
        let mut doomed = Vec::new();
        socket.request(CT_GET, Mode::Dump, family, &[], |entry| doomed.extend(doom(entry, cuts)))?;
        for entry in doomed {
            match socket.request(CT_DELETE, Mode::Act, family, &entry, |_| {}) {
                Ok(()) => forgotten += 1,
                // It ended by itself meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
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
    let established = protocol == IPPROTO_TCP && status & STATUS_SEEN_REPLY != 0;
    if status & STATUS_DST_NAT == 0 || (*cut == Cut::Unanswered && established) {
        return None;
    }
    let mut request = Vec::new();
    push(&mut request, TUPLE_ORIG | NESTED, attribute(entry, TUPLE_ORIG)?);
    for kind in [ID, ZONE] {
        if let Some(value) = attribute(entry, kind) {
            push(&mut request, kind, value);
        }
    }
    Some(request)
}

fn source(tuple_ip: &[u8]) -> Option<IpAddr> {
    let v4 = attribute(tuple_ip, IP_V4_SRC).and_then(|v| v.first_chunk::<4>()).map(|v| IpAddr::from(*v));
    v4.or_else(|| attribute(tuple_ip, IP_V6_SRC).and_then(|v| v.first_chunk::<16>()).map(|v| IpAddr::from(*v)))
}
