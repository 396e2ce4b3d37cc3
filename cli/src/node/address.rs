//! Which address other nodes reach this one by.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};

use super::error::{NodeError, Result};

pub(super) const DEFAULT_PORT: u16 = 2377;
/// Interfaces that container software makes; nobody reaches this machine through them.
const NOT_OURS: [&str; 5] = ["orch", "docker", "br-", "veth", "lxc"];

/// An address of this machine and its interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) interface: String,
    pub(super) ip: IpAddr,
}

/// This machine's addresses that others may be able to reach, in the kernel's order.
pub(super) fn local_addresses() -> Result<Vec<Local>> {
    let all = getifaddrs().map_err(|error| NodeError::Failed(error.into()))?;
    let reachable = InterfaceFlags::IFF_UP;
    Ok(all
        .filter(|entry| entry.flags.contains(reachable) && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|entry| Some(Local { ip: ip_of(entry.address?)?, interface: entry.interface_name }))
        .filter(|local| !is_link_local(local.ip))
        .collect())
}

/// All of this machine's addresses, also those that nobody else reaches and those of interfaces that are down.
pub(super) fn all_addresses() -> Result<Vec<IpAddr>> {
    let all = getifaddrs().map_err(|error| NodeError::Failed(error.into()))?;
    Ok(all.filter_map(|entry| ip_of(entry.address?)).collect())
}

/// `ADDR|IFACE[:PORT]` as `address:port`; empty means the only address there is. Without a port it is the one that is
/// listened on.
pub(super) fn advertised(wanted: &str, listened: &str, locals: &[Local]) -> Result<SocketAddr> {
    let default_port = split_port(listened)?.1.unwrap_or(DEFAULT_PORT);
    if wanted.is_empty() {
        return Ok(SocketAddr::new(the_only(locals)?, default_port));
    }
    let (host, port) = split_port(wanted)?;
    let ip = match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => {
            return Err(NodeError::Invalid(format!(
                "{ip} cannot be advertised: --advertise-addr must be an address that other nodes can reach"
            )));
        }
        Ok(ip) => ip,
        Err(_) => address_of_interface(host, locals)?,
    };
    Ok(SocketAddr::new(ip, port.unwrap_or(default_port)))
}

/// `ADDR|IFACE[:PORT]` to listen on; empty means every address.
pub(super) fn listened(wanted: &str, advertised: SocketAddr, locals: &[Local]) -> Result<SocketAddr> {
    if wanted.is_empty() {
        return Ok(SocketAddr::from(([0, 0, 0, 0], advertised.port())));
    }
    let (host, port) = split_port(wanted)?;
    let ip = match host.parse::<IpAddr>() {
        Ok(ip) => ip,
        Err(_) => address_of_interface(host, locals)?,
    };
    Ok(SocketAddr::new(ip, port.unwrap_or(advertised.port())))
}

/// `ADDR|IFACE` for the tunnels between nodes; empty means the advertised address.
pub(super) fn data_path(wanted: &str, advertised: SocketAddr, locals: &[Local]) -> Result<IpAddr> {
    if wanted.is_empty() {
        return Ok(advertised.ip());
    }
    wanted.parse().or_else(|_| address_of_interface(wanted, locals))
}

/// The local address that packets to `remote` leave from; sends nothing.
pub(super) fn towards(remote: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if remote.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// `HOST` or `HOST:PORT` of a manager, with the default port filled in.
pub(super) fn remote(text: &str) -> Result<String> {
    let bad =
        || NodeError::Invalid(format!("{text:?} is not an address: expected HOST:PORT, such as 192.168.1.5:2377"));
    if text.is_empty() {
        return Err(NodeError::Invalid(
            "the address of a manager is missing: orch join --token TOKEN HOST:2377".to_owned(),
        ));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, DEFAULT_PORT).to_string());
    }
    match text.rsplit_once(':') {
        None => Ok(format!("{text}:{DEFAULT_PORT}")),
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(text.to_owned()),
        Some(_) => Err(bad()),
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>)> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, None));
    }
    match text.rsplit_once(':') {
        None => Ok((text, None)),
        Some((host, port)) => {
            let port = port.parse().ok().filter(|port| *port > 0);
            let port = port.ok_or_else(|| NodeError::Invalid(format!("{text:?}: the port is not a number")))?;
            Ok((host.trim_start_matches('[').trim_end_matches(']'), Some(port)))
        }
    }
}

fn address_of_interface(name: &str, locals: &[Local]) -> Result<IpAddr> {
    let mine: Vec<Local> = locals.iter().filter(|local| local.interface == name).cloned().collect();
    let preferred = preferred_family(&mine);
    match preferred[..] {
        [] => Err(NodeError::Invalid(format!(
            "{name:?} is neither an IP address nor an interface of this machine with one; `ip address` lists them"
        ))),
        [only] => Ok(only.ip),
        [..] => Err(several(&preferred)),
    }
}

fn the_only(locals: &[Local]) -> Result<IpAddr> {
    let ours: Vec<Local> = locals
        .iter()
        .filter(|local| !NOT_OURS.iter().any(|prefix| local.interface.starts_with(prefix)))
        .cloned()
        .collect();
    let preferred = preferred_family(&ours);
    match preferred[..] {
        [] => Err(NodeError::Refused(
            "could not find an IP address of this machine to advertise - specify one with --advertise-addr".to_owned(),
        )),
        [only] => Ok(only.ip),
        [..] => Err(several(&preferred)),
    }
}

/// The IPv4 addresses; without any, the IPv6 ones.
fn preferred_family(locals: &[Local]) -> Vec<&Local> {
    let v4: Vec<&Local> = locals.iter().filter(|local| local.ip.is_ipv4()).collect();
    if v4.is_empty() { locals.iter().collect() } else { v4 }
}

/// Docker's words, which people search for.
fn several(locals: &[&Local]) -> NodeError {
    let same = locals.iter().all(|local| local.interface == locals[0].interface);
    let (place, listed): (String, Vec<String>) = if same {
        (format!("on interface {}", locals[0].interface), locals.iter().map(|local| local.ip.to_string()).collect())
    } else {
        let named = locals.iter().map(|local| format!("{} on {}", local.ip, local.interface)).collect();
        ("on different interfaces".to_owned(), named)
    };
    NodeError::Refused(format!(
        "could not choose an IP address to advertise since this system has multiple addresses {place} ({}) - specify \
         one with --advertise-addr",
        listed.join(" and ")
    ))
}

fn ip_of(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locals(list: &[(&str, &str)]) -> Vec<Local> {
        list.iter().map(|(name, ip)| Local { interface: (*name).into(), ip: ip.parse().unwrap() }).collect()
    }

    fn check(wanted: &str, list: &[(&str, &str)], expected: &str) {
        let found = match advertised(wanted, "0.0.0.0:2377", &locals(list)) {
            Ok(addr) => addr.to_string(),
            Err(error) => error.to_string(),
        };
        assert!(found.starts_with(expected), "{wanted:?}: {found}");
    }

    #[test]
    fn the_loopback_is_here_and_reached_by_nobody() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let (all, others) = (all_addresses().unwrap(), local_addresses().unwrap());
        assert!(all.contains(&loopback) && others.iter().all(|local| local.ip != loopback), "{all:?} {others:?}");
        assert!(others.iter().all(|local| all.contains(&local.ip)), "{all:?} {others:?}");
    }

    #[test]
    fn the_advertised_address_is_the_wanted_one_or_the_only_one() {
        let one = [("eth0", "192.0.2.1"), ("docker0", "172.17.0.1"), ("eth0", "2001:db8::1")];
        let two = [("eth0", "192.0.2.1"), ("eth1", "198.51.100.1"), ("eth2", "203.0.113.1"), ("eth2", "203.0.113.2")];
        check("", &one, "192.0.2.1:2377");
        check("", &one[2..], "[2001:db8::1]:2377");
        check("", &[], "could not find an IP address");
        check(
            "",
            &two[..2],
            "could not choose an IP address to advertise since this system has multiple addresses on \
            different interfaces (192.0.2.1 on eth0 and 198.51.100.1 on eth1) - specify one with --advertise-addr",
        );
        check(
            "eth2",
            &two,
            "could not choose an IP address to advertise since this system has multiple addresses on \
            interface eth2 (203.0.113.1 and 203.0.113.2)",
        );
        check("eth1", &two, "198.51.100.1:2377");
        check("eth1:7000", &two, "198.51.100.1:7000");
        check("192.0.2.9", &two, "192.0.2.9:2377");
        check("192.0.2.9:7000", &two, "192.0.2.9:7000");
        check("[2001:db8::2]:7000", &two, "[2001:db8::2]:7000");
        check("2001:db8::2", &two, "[2001:db8::2]:2377");
        check("eth9", &two, "\"eth9\" is neither an IP address nor an interface");
        check("0.0.0.0", &two, "0.0.0.0 cannot be advertised");
        check("eth1:x", &two, "\"eth1:x\": the port is not a number");
    }

    #[test]
    fn the_advertised_port_is_the_one_listened_on() {
        let one = locals(&[("eth0", "192.0.2.1")]);
        for (wanted, listen, expected) in [
            ("eth0", "eth0:2400", "192.0.2.1:2400"),
            ("", "0.0.0.0:2400", "192.0.2.1:2400"),
            ("eth0:2500", "0.0.0.0:2400", "192.0.2.1:2500"),
            ("eth0", "eth0", "192.0.2.1:2377"),
            ("eth0", "", "192.0.2.1:2377"),
        ] {
            assert_eq!(advertised(wanted, listen, &one).unwrap().to_string(), expected, "{wanted:?} {listen:?}");
        }
    }

    #[test]
    fn a_managers_address_gets_the_default_port() {
        for (text, expected) in [
            ("192.0.2.1", Some("192.0.2.1:2377")),
            ("host", Some("host:2377")),
            ("host:1", Some("host:1")),
            ("2001:db8::1", Some("[2001:db8::1]:2377")),
            ("", None),
            ("host:", None),
            ("host:0", None),
        ] {
            assert_eq!(remote(text).ok().as_deref(), expected, "{text:?}");
        }
    }
}
