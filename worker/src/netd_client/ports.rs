//! Published ports as clients of either family find them.

use std::net::Ipv6Addr;

use orch_model::service::{PortConfig, Protocol};
use orch_proto::{conv::ToProto as _, wire::RefusedPort};

/// A port on all of the node's addresses comes twice where IPv6 clients are answered too, the second time on `::`.
pub(super) fn answered(ports: &[PortConfig], has_v6: bool, refused: &[RefusedPort]) -> Vec<PortConfig> {
    let all = Ipv6Addr::UNSPECIFIED;
    let is_refused = |port: &PortConfig| {
        let same = |other: &RefusedPort| {
            (other.protocol, other.port) == (port.protocol.to_proto(), port.published_port.into())
                && other.address == all.to_string()
        };
        refused.iter().any(same)
    };
    let of_v6 = |port: &PortConfig| {
        let answers = has_v6 && port.host_ip.is_none() && port.protocol != Protocol::Sctp && !is_refused(port);
        answers.then(|| PortConfig { host_ip: Some(all.into()), ..port.clone() })
    };
    ports.iter().flat_map(|port| [port.clone()].into_iter().chain(of_v6(port))).collect()
}

#[cfg(test)]
mod tests {
    use orch_model::service::PublishMode;

    use super::*;
    use crate::api::port_words;

    #[test]
    fn all_addresses_are_those_of_ipv6_too_where_they_answer() {
        let refused =
            |address: &str| RefusedPort { protocol: Protocol::Tcp.to_proto(), port: 80, address: address.into() };
        for (host_ip, protocol, has_v6, refused, want) in [
            (None, Protocol::Tcp, true, vec![], "0.0.0.0:80->81/tcp [::]:80->81/tcp"),
            (None, Protocol::Udp, true, vec![refused("::")], "0.0.0.0:80->81/udp [::]:80->81/udp"),
            (None, Protocol::Tcp, true, vec![refused("::1")], "0.0.0.0:80->81/tcp [::]:80->81/tcp"),
            (None, Protocol::Tcp, true, vec![refused("::")], "0.0.0.0:80->81/tcp"),
            (None, Protocol::Tcp, false, vec![], "0.0.0.0:80->81/tcp"),
            (None, Protocol::Sctp, true, vec![], "0.0.0.0:80->81/sctp"),
            (Some("127.0.0.1"), Protocol::Tcp, true, vec![], "127.0.0.1:80->81/tcp"),
            (Some("::1"), Protocol::Tcp, true, vec![], "[::1]:80->81/tcp"),
        ] {
            let host_ip = host_ip.map(|addr| addr.parse().unwrap());
            let port = PortConfig { host_ip, ..PortConfig::new(protocol, 80, 81, PublishMode::Host) };
            let seen: Vec<_> = answered(&[port], has_v6, &refused).iter().map(port_words).collect();
            assert_eq!(seen.join(" "), want, "{protocol:?} {host_ip:?} {refused:?}");
        }
    }
}
