//! Drain before stop: whether clients are still connected to a container.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// Clients that keep connections open do not hold up a stop for longer.
const LIMIT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// States in which a client still waits for something: established; the handshake done, but no room yet for the program
/// to take it; ended by the program, with its last words perhaps still on their way.
const HAS_CLIENT: [&str; 4] = [ESTABLISHED, SYN_RECEIVED, FIN_WAIT_1, LAST_ACK];
const ESTABLISHED: &str = "01";
const SYN_RECEIVED: &str = "03";
const FIN_WAIT_1: &str = "04";
const LAST_ACK: &str = "09";
const LISTEN: &str = "0A";

/// Waits until nobody is connected to a port that the container listens on.
pub(crate) async fn await_quiet(pid: u32) {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline && has_clients(pid) {
        sleep(POLL_INTERVAL).await;
    }
}

fn has_clients(pid: u32) -> bool {
    own_tables(pid).is_some_and(|tables| inbound(&tables) > 0)
}

/// The text of the process' /proc/net/tcp and tcp6; `None` with the node's own network, where other programs' sockets
/// would be taken for the task's.
pub(super) fn own_tables(pid: u32) -> Option<String> {
    let netns = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    if pid == 0 || netns(&pid.to_string()) == netns("self") {
        return None;
    }
    let read = |file| fs::read_to_string(format!("/proc/{pid}/net/{file}"));
    let shown = tables_with_sockets(read("sockstat").ok().as_deref(), read("sockstat6").ok().as_deref());
    Some(shown.iter().map(|table| read(table).unwrap_or_default() + "\n").collect())
}

/// Which tables are worth reading, by the namespace's counters of sockets. To read one the kernel walks through the connections
/// of the whole machine: milliseconds, for each of many containers that stop together.
fn tables_with_sockets(counters: Option<&str>, counters6: Option<&str>) -> &'static [&'static str] {
    let used = |text: &str, family: &str| {
        let words = text.lines().find_map(|line| line.strip_prefix(family)).map(str::split_whitespace);
        words.is_none_or(|mut words| words.nth(1) != Some("0"))
    };
    let v4 = counters.is_none_or(|text| used(text, "TCP:"));
    // Not there: a kernel without IPv6.
    let v6 = counters6.is_some_and(|text| used(text, "TCP6:"));
    match (v4, v6) {
        (false, false) => &[],
        (true, false) => &["tcp"],
        // Half-open connections of IPv4 clients to a listener of IPv6 are in the first and not counted.
        (_, true) => &["tcp", "tcp6"],
    }
}

/// The ports that something listens on.
pub(super) fn listening_ports(tables: &str) -> BTreeSet<u16> {
    let listening = sockets(tables).filter(|(_, _, state)| *state == LISTEN);
    listening.filter_map(|(port, _, _)| u16::from_str_radix(port, 16).ok()).collect()
}

/// Local port, remote address and state of each socket.
fn sockets(tables: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    tables.lines().filter_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let (local, remote, state) = (columns.next()?, columns.next()?, columns.next()?);
        Some((local.rsplit_once(':')?.1, remote.rsplit_once(':')?.0, state))
    })
}

/// Counts the connections of clients to listening ports in the text of /proc/net/tcp and tcp6.
fn inbound(tables: &str) -> usize {
    let sockets: Vec<(&str, &str, &str)> = sockets(tables).collect();
    let listening: HashSet<&str> =
        sockets.iter().filter(|(_, _, state)| *state == LISTEN).map(|(port, _, _)| *port).collect();
    let from_outside = |remote: &str| !is_loopback(remote);
    sockets
        .iter()
        .filter(|(port, remote, state)| HAS_CLIENT.contains(state) && listening.contains(port) && from_outside(remote))
        .count()
}

/// Addresses are in the machine's byte order, hexadecimal.
fn is_loopback(address: &str) -> bool {
    match address.len() {
        8 => address.ends_with("7F"),
        _ => {
            address == "00000000000000000000000001000000"
                || (address.starts_with("0000000000000000FFFF0000") && address.ends_with("7F"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_without_sockets_are_not_read() {
        let check = |v4: u32, v6: u32, want: &[&str]| {
            let counters =
                format!("sockets: used 9\nTCP: inuse {v4} orphan 0 tw 3 alloc 8 mem 0\nUDP: inuse 1 mem 0\n");
            let counters6 = format!("TCP6: inuse {v6}\nUDP6: inuse 1\n");
            assert_eq!(tables_with_sockets(Some(&counters), Some(&counters6)), want, "{v4} {v6}");
        };
        check(0, 0, &[]);
        check(1, 0, &["tcp"]);
        check(0, 10, &["tcp", "tcp6"]);
        check(10, 1, &["tcp", "tcp6"]);
        assert_eq!(tables_with_sockets(None, None), ["tcp"]);
        assert_eq!(tables_with_sockets(Some("TCP: inuse 0"), None), [""; 0]);
    }

    #[test]
    fn only_clients_from_outside_count() {
        let table = "  sl  local_address rem_address   st\n\
            0: 00000000:0050 00000000:0000 0A 0\n\
            1: 0100000A:0050 0500000A:C001 01 0\n\
            2: 0100007F:0050 0100007F:C002 01 0\n\
            3: 0100000A:C003 0900000A:0050 01 0\n\
            4: 0100000A:0050 0500000A:C004 06 0\n\
            5: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0\n\
            6: 0000000000000000FFFF00000100000A:1F90 0000000000000000FFFF00000500000A:C005 01 0\n\
            7: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000100007F:C005 01 0\n\
            8: 0100000A:0050 0500000A:C006 03 0\n\
            9: 0100000A:0050 0500000A:C007 04 0\n";
        assert_eq!(inbound(table), 4);
        assert_eq!(listening_ports(table), BTreeSet::from([0x50, 0x1F90]));
        assert_eq!(inbound(""), 0);
    }
}
