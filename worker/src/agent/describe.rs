//! What this node says of itself when its session starts.

use std::{fs, net::IpAddr, path::Path};

use ipnetwork::IpNetwork;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};
use orch_model::node::{Encryption, NodeDescription, Platform, Resources, features};
use orch_proto::wire::DaemonConfig;

use crate::config::Offer;

pub(crate) const NANOS_PER_CPU: u64 = 1_000_000_000;

pub(crate) fn describe(daemon: &DaemonConfig, offer: Offer, encryption: Option<Encryption>) -> NodeDescription {
    NodeDescription {
        hostname: hostname(daemon),
        platform: platform(),
        resources: Resources { nano_cpus: cpus() * NANOS_PER_CPU, memory_bytes: memory_bytes() },
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        engine_labels: offer.labels,
        features: known_features(),
        underlay: host_networks(),
        data_addr: daemon.data_addr.parse().ok(),
        generic: offer.generic,
        encryption,
    }
}

/// `1` or `2`: which cgroup hierarchy has the controllers.
pub(crate) fn cgroup_version() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" }
}

pub(crate) fn platform() -> Platform {
    Platform { os: "linux".to_owned(), arch: std::env::consts::ARCH.to_owned() }
}

pub(crate) fn hostname(daemon: &DaemonConfig) -> String {
    if !daemon.hostname.is_empty() {
        return daemon.hostname.clone();
    }
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".to_owned())
}

pub(crate) fn cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u64)
}

fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0_u64) * 1024
}

/// Whether the kernel has it. Whether the host's own addresses use it says nothing about the namespaces of containers.
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

fn known_features() -> Vec<String> {
    let seccomp = Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    let found = [("seccomp", seccomp), ("ipv6", has_ipv6())];
    let mut known: Vec<String> = found.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_owned()).collect();
    known.push(format!("cgroup-v{}", cgroup_version()));
    let own = [
        features::PUBLISH_OPTIONS,
        features::ENCRYPTED_NETWORKS,
        features::MOUNT_OPTIONS,
        features::VOLUME_SUBPATH,
        features::HOST_GATEWAY,
        features::NODE_NETWORKS,
    ];
    known.extend(own.map(str::to_owned));
    known
}

/// Networks of the node's own interfaces: overlays must keep out of them.
pub(crate) fn host_networks() -> Vec<IpNetwork> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let mut networks: Vec<IpNetwork> = interfaces
        .filter(|interface| {
            interface.flags.contains(InterfaceFlags::IFF_UP) && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
        })
        .filter_map(|interface| {
            let addr = ip_of(interface.address.as_ref()?)?;
            let mask = ip_of(interface.netmask.as_ref()?)?;
            let network = IpNetwork::with_netmask(addr, mask).ok()?;
            IpNetwork::new(network.network(), network.prefix()).ok()
        })
        .filter(|network| !is_link_local(network.ip()))
        .collect();
    networks.sort();
    networks.dedup();
    networks
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
