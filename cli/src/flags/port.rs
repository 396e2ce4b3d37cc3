//! `--publish 8080:80/tcp` and `--publish published=8080,target=80,mode=host`.

use std::net::IpAddr;

use orch_model::service::{PortConfig, Protocol, PublishMode};

use super::{Refusal, long_form_once};

const FORMS: &str = "expected [[ADDRESS:]PUBLISHED:]TARGET[/PROTOCOL], such as 8080:80 or 53:53/udp, or \
                     published=8080,target=80[,protocol=tcp|udp|sctp][,mode=ingress|host][,host_ip=ADDRESS]\
                     [,source=keep|masquerade]";

/// One flag may stand for several ports: `8000-8002:80-82`.
pub(crate) fn parse(text: &str) -> Result<Vec<PortConfig>, Refusal> {
    if text.contains('=') { long(text).map(|port| vec![port]) } else { short(text) }
}

/// The same of one container, which is published at one port of the node: of `8000-8010:80`, at the first that is free.
pub(crate) fn parse_of_container(text: &str) -> Result<ContainerPorts, Refusal> {
    let choice = if text.contains('=') { None } else { Short::parse(text)?.choice() };
    match choice {
        Some((first, last)) => Ok(ContainerPorts { ports: vec![first], last: Some(last) }),
        None => Ok(ContainerPorts { ports: parse(text)?, last: None }),
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ContainerPorts {
    pub(crate) ports: Vec<PortConfig>,
    /// Of the range that the one port begins.
    pub(crate) last: Option<u16>,
}

/// clap wants one value per flag.
pub(crate) fn parse_flag(text: &str) -> Result<PortList, Refusal> {
    parse(text).map(PortList)
}

/// `80`, `53/udp`, `8000-8010`: ports of the container alone.
pub(crate) fn parse_exposed(text: &str) -> Result<PortList, Refusal> {
    if text.contains([':', '=']) {
        return Err("expected PORT[-PORT][/PROTOCOL], such as 80 or 53/udp; --publish says where it is reached".into());
    }
    short(text).map(PortList).map_err(|_| "expected PORT[-PORT][/PROTOCOL], such as 80 or 53/udp".into())
}

#[derive(Debug, Clone)]
pub(crate) struct PortList(pub(crate) Vec<PortConfig>);

/// What `--publish-rm` names: target ports, in any form of `--publish`. As with Docker, the protocol and the mode must be
/// the same, and the published port is left aside.
#[derive(Debug, Clone)]
pub(crate) struct PortRemoval {
    pub(crate) text: String,
    ports: Vec<PortConfig>,
}

impl PortRemoval {
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        Ok(Self { text: text.to_owned(), ports: parse(text)? })
    }

    pub(crate) fn names(&self, port: &PortConfig) -> bool {
        self.ports.iter().any(|gone| same_target(gone, port) && gone.publish_mode == port.publish_mode)
    }

    /// Whether it would name the port if the mode were the other.
    pub(crate) fn names_but_for_the_mode(&self, port: &PortConfig) -> bool {
        self.ports.iter().any(|gone| same_target(gone, port) && gone.publish_mode != port.publish_mode)
    }
}

fn same_target(one: &PortConfig, other: &PortConfig) -> bool {
    (one.target_port, one.protocol) == (other.target_port, other.protocol)
}

pub(crate) fn protocol(text: &str) -> Result<Protocol, Refusal> {
    match text.to_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        other => Err(format!("{other:?} is not a protocol: tcp, udp or sctp")),
    }
}

pub(crate) fn publish_mode(text: &str) -> Result<PublishMode, Refusal> {
    match text.to_lowercase().as_str() {
        "ingress" => Ok(PublishMode::Ingress),
        "host" => Ok(PublishMode::Host),
        other => Err(format!("{other:?} is not a publish mode: ingress or host")),
    }
}

fn long(text: &str) -> Result<PortConfig, Refusal> {
    let mut port = PortConfig::new(Protocol::Tcp, 0, 0, PublishMode::Ingress);
    for (key, value) in long_form_once(text, &[])? {
        let value = value.ok_or_else(|| format!("{key:?} has no value; {FORMS}"))?;
        match key.as_str() {
            "target" => port.target_port = number(&value)?,
            "published" => port.published_port = number(&value)?,
            "protocol" => port.protocol = protocol(&value)?,
            "mode" => port.publish_mode = publish_mode(&value)?,
            "name" => port.name = value,
            "host_ip" | "host-ip" => port.host_ip = address(&value)?,
            "source" => port.masquerade = masquerade(&value)?,
            _ => return Err(format!("unknown key {key:?}; {FORMS}")),
        }
    }
    if port.target_port == 0 { Err(format!("target is missing; {FORMS}")) } else { Ok(port) }
}

/// What the program in the container sees as its client.
pub(crate) fn masquerade(text: &str) -> Result<bool, Refusal> {
    match text {
        "keep" => Ok(false),
        "masquerade" => Ok(true),
        other => Err(format!("{other:?} is not a source: keep (the client's address) or masquerade (the node's)")),
    }
}

/// The one address that answers; `None`: it stands for all.
pub(crate) fn address(text: &str) -> Result<Option<IpAddr>, Refusal> {
    let addr: IpAddr = text
        .trim_matches(['[', ']'])
        .parse()
        .map_err(|_| format!("{text:?} is not an address of a node, such as 127.0.0.1; {FORMS}"))?;
    Ok(Some(addr).filter(|addr| !addr.is_unspecified()))
}

fn short(text: &str) -> Result<Vec<PortConfig>, Refusal> {
    Short::parse(text).map(|short| short.ports())
}

/// `[[ADDRESS:]PUBLISHED:]TARGET[/PROTOCOL]`, with ranges of ports.
struct Short {
    host_ip: Option<IpAddr>,
    protocol: Protocol,
    published: Option<(u16, u16)>,
    target: (u16, u16),
}

impl Short {
    fn parse(text: &str) -> Result<Self, Refusal> {
        let (ports, proto) = text.split_once('/').unwrap_or((text, ""));
        let protocol = if proto.is_empty() { Protocol::Tcp } else { protocol(proto)? };
        let (before, target) = ports.rsplit_once(':').map_or((None, ports), |(before, target)| (Some(before), target));
        let (host, published) = match before.map(|before| before.rsplit_once(':').ok_or(before)) {
            Some(Ok((host, published))) => (Some(host), Some(published).filter(|text| !text.is_empty())),
            Some(Err(published)) => (None, Some(published).filter(|text| !text.is_empty())),
            None => (None, None),
        };
        // `-p $ADDRESS:80:80` of a script that wants none.
        let host_ip = host.filter(|host| !host.is_empty()).map(address).transpose()?.flatten();
        let (published, target) = (published.filter(|text| *text != "0").map(range).transpose()?, range(target)?);
        let count = target.1 - target.0;
        if published.is_some_and(|p| p.1 - p.0 != count && count != 0) {
            return Err(format!("both ranges must have the same length; {FORMS}"));
        }
        Ok(Self { host_ip, protocol, published, target })
    }

    /// One published port for each step of a range.
    fn ports(&self) -> Vec<PortConfig> {
        let count = self.target.1 - self.target.0;
        let total = self.published.map_or(count, |p| p.1 - p.0);
        let port = |step| {
            let target = if count == 0 { self.target.0 } else { self.target.0 + step };
            self.port(self.published.map_or(0, |p| p.0 + step), target)
        };
        (0..=total).map(port).collect()
    }

    /// A single target port with a range to choose from: its first port, and the last published one.
    fn choice(&self) -> Option<(PortConfig, u16)> {
        let (first, last) = self.published.filter(|(first, last)| first < last)?;
        (self.target.0 == self.target.1).then(|| (self.port(first, self.target.0), last))
    }

    fn port(&self, published: u16, target: u16) -> PortConfig {
        let port = PortConfig::new(self.protocol, published, target, PublishMode::Ingress);
        PortConfig { host_ip: self.host_ip, ..port }
    }
}

fn range(text: &str) -> Result<(u16, u16), Refusal> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first == 0 || last < first { Err(FORMS.into()) } else { Ok((first, last)) }
}

fn number(text: &str) -> Result<u16, Refusal> {
    text.parse().map_err(|_| format!("{text:?} is not a port (1-65535); {FORMS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        match parse(text) {
            Ok(ports) => ports
                .iter()
                .map(|p| {
                    let addr = p.host_ip.map_or_else(String::new, |addr| format!("{addr} "));
                    let source = if p.masquerade { "/masquerade" } else { "" };
                    let (protocol, mode) = (p.protocol, p.publish_mode);
                    format!("{addr}{}:{}/{protocol:?}/{mode:?}{source}", p.published_port, p.target_port).to_lowercase()
                })
                .collect::<Vec<_>>()
                .join(" "),
            Err(refusal) => format!("refused: {refusal}"),
        }
    }

    #[test]
    fn a_removal_names_target_ports_of_one_protocol_and_mode() {
        let there = ["8081:80", "published=8083,target=80,mode=host", "8080:80/udp", "9000-9002:9000-9002"];
        let there: Vec<PortConfig> = there.iter().flat_map(|text| parse(text).unwrap()).collect();
        for (text, expected) in [
            ("80", "8081"),
            ("80/tcp", "8081"),
            ("1:80", "8081"),
            ("80/udp", "8080"),
            ("target=80", "8081"),
            ("target=80,mode=host", "8083"),
            ("published=8083,target=80,mode=host", "8083"),
            ("published=1,target=80,mode=host", "8083"),
            ("target=80,mode=host,protocol=udp", ""),
            ("9000", "9000"),
            ("9000-9002", "9000 9001 9002"),
            ("8999-9001", "9000 9001"),
            ("8081", ""),
        ] {
            let gone = PortRemoval::parse(text).unwrap();
            let named = there.iter().filter(|port| gone.names(port)).map(|port| port.published_port.to_string());
            assert_eq!(named.collect::<Vec<_>>().join(" "), expected, "{text}");
        }
    }

    #[test]
    fn short_and_long_forms() {
        for (text, expected) in [
            ("8080:80", "8080:80/tcp/ingress"),
            ("80", "0:80/tcp/ingress"),
            (":80", "0:80/tcp/ingress"),
            ("::80", "0:80/tcp/ingress"),
            (":8080:80", "8080:80/tcp/ingress"),
            ("[::1]:8080:80", "::1 8080:80/tcp/ingress"),
            ("0:80", "0:80/tcp/ingress"),
            ("80/", "0:80/tcp/ingress"),
            ("53:53/udp", "53:53/udp/ingress"),
            ("8000-8001:80-81", "8000:80/tcp/ingress 8001:81/tcp/ingress"),
            ("8000-8001:80", "8000:80/tcp/ingress 8001:80/tcp/ingress"),
            ("published=8080,target=80,mode=host,protocol=udp", "8080:80/udp/host"),
            ("target=80", "0:80/tcp/ingress"),
            ("127.0.0.1:8080:80", "127.0.0.1 8080:80/tcp/ingress"),
            ("10.0.0.5:8000-8001:80-81", "10.0.0.5 8000:80/tcp/ingress 10.0.0.5 8001:81/tcp/ingress"),
            ("127.0.0.1::80/udp", "127.0.0.1 0:80/udp/ingress"),
            ("0.0.0.0:8080:80", "8080:80/tcp/ingress"),
            ("[::]:53:53/udp", "53:53/udp/ingress"),
            ("target=80,host_ip=10.0.0.5,source=masquerade", "10.0.0.5 0:80/tcp/ingress/masquerade"),
            ("target=80,source=keep", "0:80/tcp/ingress"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        for text in [
            "",
            "x:80",
            "80:0",
            "1:2/icmp",
            "127.0.0.1:80",
            "a:80:80",
            "target=80,mode=x",
            "target=80,source=x",
            "target=80,host_ip=x",
            "published=1",
            "target=80,target=81",
            "80-70",
            "65536",
            "-1",
            "1-3:5-6",
            "99999:1",
        ] {
            assert!(shown(text).starts_with("refused"), "{text}: {}", shown(text));
        }
    }

    #[test]
    fn a_container_takes_one_port_of_a_range() {
        for (text, count, last) in [
            ("8000-8010:80", 1, Some(8010)),
            ("127.0.0.1:8000-8010:80/udp", 1, Some(8010)),
            ("8000-8010:80-90", 11, None),
            ("8000-8000:80", 1, None),
            ("8000:80", 1, None),
            ("8000-8010", 11, None),
            ("published=8000,target=80", 1, None),
        ] {
            let given = parse_of_container(text).unwrap();
            assert_eq!((given.ports.len(), given.last), (count, last), "{text}");
        }
        assert!(parse_of_container("8000-8010:80-81").is_err());
    }
}
