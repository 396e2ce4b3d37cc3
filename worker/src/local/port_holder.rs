//! Which program of this node has a port, for the message that says it cannot be published.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use orch_model::service::{PortConfig, Protocol};

/// Processes that are looked through at most.
const MAX_PROCESSES: usize = 20_000;
/// In /proc/net/tcp: waits for connections.
const LISTENS: &str = "0A";
/// In /proc/net/udp: hears everybody; what is connected hears one.
const UNCONNECTED: &str = "07";
/// Behind the path of a program that has been replaced since it was started.
const DELETED: &str = " (deleted)";

/// `nginx (pid 123)`; `None` when nobody is found: it may be another user's, or be gone by now. To be asked when the kernel
/// has refused the port.
pub(super) fn holder(port: &PortConfig) -> Option<String> {
    let tables: &[&str] = match port.protocol {
        Protocol::Tcp => &["tcp", "tcp6"],
        Protocol::Udp => &["udp", "udp6"],
        Protocol::Sctp => return None,
    };
    let texts = tables.iter().filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok());
    let inodes: Vec<String> = texts.flat_map(|text| sockets_on(&text, port)).collect();
    if inodes.is_empty() { None } else { program_with(&inodes) }
}

/// Inodes of the sockets that are in the way of `port`, from a table of the kernel.
fn sockets_on(table: &str, port: &PortConfig) -> Vec<String> {
    let state = if port.protocol == Protocol::Udp { UNCONNECTED } else { LISTENS };
    let wanted = port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (addr, number) = fields.get(1)?.rsplit_once(':')?;
        let holds = *fields.get(3)? == state
            && u16::from_str_radix(number, 16) == Ok(port.published_port)
            && overlap(address(addr)?, wanted);
        holds.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// As the kernel prints them: words of 32 bits, each as this machine reads it.
fn address(hex: &str) -> Option<IpAddr> {
    let words = hex.as_bytes().chunks(8).map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<_>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        _ => <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).to_canonical()),
    }
}

/// Whether who listens on one is in the other's way. `::` may hear IPv4 too: no table says.
fn overlap(theirs: IpAddr, wanted: IpAddr) -> bool {
    match (theirs, wanted) {
        (IpAddr::V6(theirs), IpAddr::V4(_)) => theirs.is_unspecified(),
        (IpAddr::V4(_), IpAddr::V6(wanted)) => wanted.is_unspecified(),
        _ => theirs == wanted || theirs.is_unspecified() || wanted.is_unspecified(),
    }
}

fn program_with(inodes: &[String]) -> Option<String> {
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let is_process = |path: &std::path::PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    };
    let mut processes = processes.filter(is_process).take(MAX_PROCESSES);
    let process = processes.find(|process| has_one_of(process, &links) && !is_own_netd(process))?;
    let name = fs::read_to_string(process.join("comm")).ok()?;
    let pid = process.file_name()?.to_string_lossy().into_owned();
    Some(format!("{} (pid {pid})", name.trim()))
}

fn has_one_of(process: &Path, links: &[String]) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.into_iter().any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
}

/// It listens for IPv6 clients of published ports, which may be those that are asked about, and is in nobody's way.
fn is_own_netd(process: &Path) -> bool {
    let program = |process: &Path| fs::read_link(process.join("exe")).unwrap_or_default().into_os_string();
    let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
    is_netd(&program(process), &program(Path::new("/proc/self")), &arguments)
}

fn is_netd(program: &OsStr, own: &OsStr, arguments: &[u8]) -> bool {
    let path = |program: &OsStr| {
        let program = program.to_string_lossy().into_owned();
        program.strip_suffix(DELETED).map(str::to_owned).unwrap_or(program)
    };
    path(program) == path(own) && arguments.split(|byte| *byte == 0).nth(1) == Some(b"netd".as_slice())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use orch_model::service::PublishMode;

    use super::*;

    fn wanted(protocol: Protocol, number: u16, host_ip: Option<&str>) -> PortConfig {
        let host_ip = host_ip.map(|addr| addr.parse().unwrap());
        PortConfig { host_ip, ..PortConfig::new(protocol, number, 80, PublishMode::Host) }
    }

    #[test]
    fn a_program_is_named_by_its_port() {
        let own = format!("(pid {})", std::process::id());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = wanted(Protocol::Tcp, tcp.local_addr().unwrap().port(), None);
        let seen = holder(&port).unwrap();
        assert!(seen.ends_with(&own), "{seen}");
        let udp = UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("127.0.0.1:0")).unwrap();
        let seen = holder(&wanted(Protocol::Udp, udp.local_addr().unwrap().port(), None)).unwrap();
        assert!(seen.ends_with(&own), "{seen}");
        drop(tcp);
        assert_eq!(holder(&port), None);
    }

    #[test]
    fn only_who_hears_what_comes_for_a_port_holds_it() {
        const V4: &str = "head
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
            1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 2 1
            2: 0500000A:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1
            3: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1
            4: 0100007F:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 5 1";
        const V6: &str = "head
            0: 00000000000000000000000000000000:1F90 0:0 0A 0:0 00:0 0     0        0 1 1
            1: 0000000000000000FFFF00000500000A:1F90 0:0 0A 0:0 00:0 0     0        0 2 1
            2: 00000000000000000000000001000000:1F90 0:0 0A 0:0 00:0 0     0        0 3 1";
        use Protocol::{Tcp, Udp};
        for (table, protocol, number, host_ip, want) in [
            (V4, Tcp, 8080, None, &["1", "3"][..]),
            (V4, Tcp, 8080, Some("127.0.0.1"), &["1"]),
            (V4, Tcp, 8080, Some("10.0.0.5"), &["3"]),
            (V4, Tcp, 8080, Some("10.0.0.6"), &[]),
            (V4, Tcp, 8081, Some("10.0.0.6"), &["4"]),
            (V4, Tcp, 8082, None, &[]),
            // Connected ones hear only whom they asked.
            (V4, Udp, 8080, None, &["5"]),
            (V6, Tcp, 8080, None, &["1", "2"]),
            (V6, Tcp, 8080, Some("10.0.0.5"), &["1", "2"]),
            (V6, Tcp, 8080, Some("127.0.0.1"), &["1"]),
            (V6, Tcp, 8080, Some("::1"), &["1", "3"]),
        ] {
            let seen = sockets_on(table, &wanted(protocol, number, host_ip));
            assert_eq!(seen, want, "{protocol:?} {host_ip:?}:{number}");
        }
    }

    #[test]
    fn netd_is_known_by_its_program_and_its_name() {
        for (program, arguments, want) in [
            ("/usr/bin/orch", "/usr/bin/orch\0netd\0", true),
            ("/usr/bin/orch (deleted)", "orch\0netd\0", true),
            ("/usr/bin/orch", "orch\0manager\0", false),
            ("/usr/bin/orch", "orch\0", false),
            ("/usr/bin/nginx", "nginx\0netd\0", false),
        ] {
            let seen = is_netd(program.as_ref(), "/usr/bin/orch".as_ref(), arguments.as_bytes());
            assert_eq!(seen, want, "{program} {arguments:?}");
        }
    }
}
