//! Which program of this node has a port, for the message that says it cannot be published.

use std::{fs, path::Path};

use orch_model::service::Protocol;

/// Processes that are looked through at most.
const MAX_PROCESSES: usize = 20_000;
/// In /proc/net/tcp: waits for connections.
const LISTENS: &str = "0A";

/// `nginx (pid 123)`; `None` when nobody is found: it may be another user's, or be gone by now.
pub(super) fn holder(protocol: Protocol, port: u16) -> Option<String> {
    let tables: &[&str] = match protocol {
        Protocol::Tcp => &["tcp", "tcp6"],
        Protocol::Udp => &["udp", "udp6"],
        Protocol::Sctp => return None,
    };
    let texts = tables.iter().filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok());
    let inodes: Vec<String> = texts.flat_map(|text| sockets_on(&text, protocol, port)).collect();
    if inodes.is_empty() { None } else { program_with(&inodes) }
}

/// Inodes of the sockets that hold `port`, from a table of the kernel.
fn sockets_on(table: &str, protocol: Protocol, port: u16) -> Vec<String> {
    let wanted = format!("{port:04X}");
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let holds = protocol == Protocol::Udp || *fields.get(3)? == LISTENS;
        (holds && local == wanted).then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    };
    table.lines().skip(1).filter_map(socket).collect()
}

fn program_with(inodes: &[String]) -> Option<String> {
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let is_process = |path: &std::path::PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    };
    let mut processes = processes.filter(is_process).take(MAX_PROCESSES);
    let process = processes.find(|process| has_one_of(process, &links))?;
    let name = fs::read_to_string(process.join("comm")).ok()?;
    let pid = process.file_name()?.to_string_lossy().into_owned();
    Some(format!("{} (pid {pid})", name.trim()))
}

fn has_one_of(process: &Path, links: &[String]) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.into_iter().any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_program_is_named_by_its_port() {
        let own = format!("(pid {})", std::process::id());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let seen = holder(Protocol::Tcp, tcp.local_addr().unwrap().port()).unwrap();
        assert!(seen.ends_with(&own), "{seen}");
        let udp = UdpSocket::bind("[::1]:0").or_else(|_| UdpSocket::bind("127.0.0.1:0")).unwrap();
        let seen = holder(Protocol::Udp, udp.local_addr().unwrap().port()).unwrap();
        assert!(seen.ends_with(&own), "{seen}");
        let port = tcp.local_addr().unwrap().port();
        drop(tcp);
        assert_eq!(holder(Protocol::Tcp, port), None);
    }

    #[test]
    fn only_who_listens_holds_a_tcp_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1\n\
                     1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 1002 1\n";
        assert_eq!(sockets_on(table, Protocol::Tcp, 8080), ["1001"]);
        assert_eq!(sockets_on(table, Protocol::Tcp, 8081), [""; 0]);
    }
}
