//! `ports:` of a service, in both forms.

use orch_model::service::{PortConfig, Protocol, PublishMode};

use super::yaml::Node;
use crate::flags::port;

pub(super) struct Parsed {
    pub(super) ports: Vec<PortConfig>,
    pub(super) warning: Option<String>,
}

/// A port as the short form says it; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Short {
    pub(super) published: u16,
    pub(super) target: u16,
    pub(super) protocol: Protocol,
}

pub(super) fn parse(item: &Node) -> Result<Parsed, String> {
    let Some(text) = item.text() else { return long(item) };
    let (address, ports) = short(text)?;
    let warning = address.filter(|address| *address != "0.0.0.0").map(|_| {
        let shown = if text.contains('/') { text.to_owned() } else { format!("{text}/tcp") };
        format!("ignoring IP-address ({shown}) service will listen on '0.0.0.0'")
    });
    let config = |port: Short| match port.target {
        0 => Err(format!("{text:?}: the container's port is missing: write PUBLISHED:TARGET, such as 8080:80")),
        target_port => Ok(PortConfig::new(port.protocol, port.published, target_port, PublishMode::Ingress)),
    };
    Ok(Parsed { ports: ports.into_iter().map(config).collect::<Result<_, _>>()?, warning })
}

/// The address of the host, which means nothing in a cluster as every node answers, and the ports.
pub(super) fn short(text: &str) -> Result<(Option<&str>, Vec<Short>), String> {
    const FORMS: &str = "expected [PUBLISHED:]TARGET[/PROTOCOL], such as 8080:80, 53:53/udp or 9000-9002:90-92";
    let refused = || FORMS.to_owned();
    let (before, container) = text.rsplit_once(':').map_or((None, text), |(before, last)| (Some(before), last));
    let (address, host) = match before.map(|before| before.rsplit_once(':').unwrap_or(("", before))) {
        Some((address, host)) => (Some(address.trim_matches(['[', ']'])).filter(|a| !a.is_empty()), host),
        None => (None, ""),
    };
    if address.is_some_and(|address| address.parse::<std::net::IpAddr>().is_err()) {
        return Err(format!("{:?} is not an address; {FORMS}", address.unwrap_or_default()));
    }
    let (container, protocol) = container.split_once('/').unwrap_or((container, ""));
    let protocol = match protocol.split('/').next().unwrap_or_default() {
        "" => Protocol::Tcp,
        word => port::protocol(word)?,
    };
    let (first, last) = range(container).ok_or_else(refused)?;
    let published = if host.is_empty() { None } else { Some(range(host).ok_or_else(refused)?) };
    let steps = match published {
        None => last - first,
        Some((from, to)) if first == last || to - from == last - first => to - from,
        Some(_) => return Err(format!("both ranges must have the same length; {FORMS}")),
    };
    let step = |n: u16| Short {
        published: published.map_or(0, |(from, _)| from + n),
        target: if first == last { first } else { first + n },
        protocol,
    };
    Ok((address, (0..=steps).map(step).collect()))
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

fn long(item: &Node) -> Result<Parsed, String> {
    let mut long = Vec::new();
    for (key, value) in item.entries() {
        let name = match key.text.as_str() {
            "x-host-ip" => "host_ip",
            "x-source" => "source",
            text if text.starts_with("x-") || text == "app_protocol" => continue,
            text => text,
        };
        // `host_ip: ${ADDRESS:-}` of a file that wants none.
        if name == "host_ip" && value.text().is_none_or(str::is_empty) {
            continue;
        }
        let text = value.text().ok_or_else(|| format!("{} of a port must be a text or a number", key.text))?;
        long.push(format!("{name}={text}"));
    }
    Ok(Parsed { ports: port::parse(&long.join(","))?, warning: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_dockers() {
        let shown = |text: &str| {
            short(text).map(|(address, ports)| {
                let ports: Vec<String> = ports.iter().map(|p| format!("{}:{}", p.published, p.target)).collect();
                format!("{} {}", address.unwrap_or("-"), ports.join(" "))
            })
        };
        for (text, expected) in [
            ("80", "- 0:80"),
            ("8080:80", "- 8080:80"),
            (":80", "- 0:80"),
            ("80:0", "- 80:0"),
            ("80/", "- 0:80"),
            ("80-81", "- 0:80 0:81"),
            ("80-82:90", "- 80:90 81:90 82:90"),
            ("80-81:90-91/udp", "- 80:90 81:91"),
            ("127.0.0.1:8080:80/udp", "127.0.0.1 8080:80"),
            ("127.0.0.1::80", "127.0.0.1 0:80"),
            ("[::1]:8080:80", "::1 8080:80"),
            ("::1:80:80", "::1 80:80"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(expected), "{text}");
        }
        for text in
            ["", "x", "80:x", "80:", "1.2.3.4:80", "80:90-92", "65536:80", "+80:80", "-80", "80-:90", "a:80:80", "80/x"]
        {
            assert!(short(text).is_err(), "{text}");
        }
    }
}
