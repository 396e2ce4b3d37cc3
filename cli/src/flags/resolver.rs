//! What a container's /etc/hosts and /etc/resolv.conf are to say.

use std::net::IpAddr;

use orch_model::resolver;

use super::Refusal;

/// `host:ip` as the user writes it; `ip host` as /etc/hosts has it. The node where the container is says what
/// `host-gateway` is.
pub(crate) fn host_entry(text: &str) -> Result<String, Refusal> {
    let form = "expected HOST:IP, such as db:10.1.2.3";
    let (host, ip) = text.split_once([':', '=']).ok_or(form)?;
    let ip = host_address(ip).ok_or(form)?;
    if resolver::is_host(host) { Ok(format!("{ip} {host}")) } else { Err(form.into()) }
}

/// An address, in brackets or not, or the word for the node's.
pub(crate) fn host_address(text: &str) -> Option<String> {
    if text == resolver::HOST_GATEWAY {
        return Some(text.to_owned());
    }
    text.trim_matches(['[', ']']).parse().ok().map(|ip: IpAddr| ip.to_string())
}

/// What `--host-rm` names: one mapping, or a host with all its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostRemoval {
    Entry(String),
    Host(String),
}

impl HostRemoval {
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        match host_entry(text) {
            Ok(entry) => Ok(Self::Entry(entry)),
            Err(_) if !text.contains([':', '=']) && resolver::is_host(text) => Ok(Self::Host(text.to_owned())),
            Err(form) => Err(format!("{form}, or HOST alone")),
        }
    }

    /// Whether a line of the spec is meant.
    pub(crate) fn names(&self, line: &str) -> bool {
        match self {
            Self::Entry(entry) => line == entry,
            Self::Host(host) => line.split_whitespace().nth(1) == Some(host.as_str()),
        }
    }
}

/// A container's own name; empty: its id.
pub(crate) fn hostname(text: &str) -> Result<String, Refusal> {
    let is_name = text.is_empty() || (text.len() <= 63 && resolver::is_host(text));
    if is_name { Ok(text.to_owned()) } else { Err("expected a name without spaces, of at most 63 letters".into()) }
}

pub(crate) fn address(text: &str) -> Result<IpAddr, Refusal> {
    text.trim().parse().map_err(|_| "expected an address such as 10.1.2.3 or fd00::53".to_owned())
}

pub(crate) fn search_domain(text: &str) -> Result<String, Refusal> {
    let domain = text.trim_matches(' ');
    if resolver::is_search_domain(domain) {
        return Ok(domain.to_owned());
    }
    Err(format!("{text} is not a valid domain: expected one such as example.org, or . for none"))
}

pub(crate) fn option(text: &str) -> Result<String, Refusal> {
    if resolver::is_option(text) { Ok(text.to_owned()) } else { Err("expected one word, such as ndots:2".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(host_entry("db:10.1.2.3"), Ok("10.1.2.3 db".into()));
        assert_eq!(host_entry("db:::1"), Ok("::1 db".into()));
        assert_eq!(host_entry("db=[::1]"), Ok("::1 db".into()));
        for text in ["db", "db:x", ":1.2.3.4", "a b:1.2.3.4", "a\nb:1.2.3.4", "a#b:1.2.3.4", "db:1.2.3.4:5"] {
            assert!(host_entry(text).unwrap_err().contains("db:10.1.2.3"), "{text:?}");
        }
        assert_eq!(host_entry("db:host-gateway"), Ok("host-gateway db".into()));
        for (removal, line, names) in [
            ("db:10.1.2.3", "10.1.2.3 db", true),
            ("db:10.1.2.4", "10.1.2.3 db", false),
            ("db", "10.1.2.3 db", true),
            ("db:host-gateway", "host-gateway db", true),
            ("db:host-gateway", "10.1.2.3 db", false),
            ("d", "10.1.2.3 db", false),
        ] {
            assert_eq!(HostRemoval::parse(removal).unwrap().names(line), names, "{removal}");
        }
        assert!(HostRemoval::parse("a b").is_err() && HostRemoval::parse("db:x").is_err());
        assert_eq!(search_domain(" example.org"), Ok("example.org".into()));
        assert!(search_domain("a\nnameserver 6.6.6.6").is_err() && option("a\nnameserver 6.6.6.6").is_err());
    }
}
