//! Published ports in lists: `*:8080->80/tcp`.

use orch_model::service::{PortConfig, Protocol, PublishMode};

pub(crate) fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

pub(crate) fn mode_word(mode: PublishMode) -> &'static str {
    match mode {
        PublishMode::Ingress => "ingress",
        PublishMode::Host => "host",
    }
}

/// Ports that every node answers on, sorted; runs of neighbours as one range.
pub(crate) fn ingress(ports: &[PortConfig]) -> String {
    let mut ports: Vec<_> = ports.iter().filter(|p| p.publish_mode == PublishMode::Ingress).collect();
    ports.sort_by_key(|p| (p.protocol, p.published_port, p.target_port));
    let mut runs: Vec<(&PortConfig, u16)> = Vec::new();
    for port in ports {
        match runs.last_mut() {
            Some((first, more))
                if first.protocol == port.protocol
                    && first.host_ip == port.host_ip
                    && port.published_port != 0
                    && first.published_port.checked_add(*more + 1) == Some(port.published_port)
                    && first.target_port.checked_add(*more + 1) == Some(port.target_port) =>
            {
                *more += 1;
            }
            _ => runs.push((port, 0)),
        }
    }
    let show = |(first, more): &(&PortConfig, u16)| {
        format!(
            "{}:{}->{}/{}",
            addr(first),
            range(first.published_port, *more),
            range(first.target_port, *more),
            protocol_word(first.protocol)
        )
    };
    runs.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// Ports of one task on its own node.
pub(crate) fn host(ports: &[PortConfig]) -> String {
    let show =
        |p: &PortConfig| format!("{}:{}->{}/{}", addr(p), p.published_port, p.target_port, protocol_word(p.protocol));
    let shown: Vec<_> = ports.iter().filter(|p| p.publish_mode == PublishMode::Host).map(show).collect();
    shown.join(",")
}

fn addr(port: &PortConfig) -> String {
    port.host_ip.map_or_else(|| "*".to_owned(), |addr| addr.to_string())
}

fn range(first: u16, more: u16) -> String {
    if more == 0 { first.to_string() } else { format!("{first}-{}", first + more) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_a_range() {
        let ports: Vec<_> = ["8080:80", "9000-9002:1000-1002", "53:53/udp", "127.0.0.1:9003:1003"]
            .iter()
            .flat_map(|text| crate::flags::port::parse(text).unwrap())
            .collect();
        assert_eq!(
            ingress(&ports),
            "*:8080->80/tcp, *:9000-9002->1000-1002/tcp, 127.0.0.1:9003->1003/tcp, *:53->53/udp"
        );
        assert_eq!(host(&ports), "");
    }
}
