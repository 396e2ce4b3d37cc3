//! resolv.conf: reading the node's, writing a container's.

use std::net::{IpAddr, Ipv4Addr};

/// Where the container's DNS server answers.
pub const DNS_ADDR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Servers asked for names from outside, at most; further ones are ignored, as resolvers do.
pub const MAX_SERVERS: usize = 3;

/// The parts of a resolv.conf that matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    pub nameservers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads what it can; a line that makes no sense is skipped, as resolvers do.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().and_then(server)),
                Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf.nameservers.truncate(MAX_SERVERS);
        conf
    }
}

/// A scoped IPv6 address (`fe80::1%eth0`) needs its scope, which `IpAddr` cannot hold: skipped.
fn server(word: &str) -> Option<IpAddr> {
    word.parse().ok()
}

/// A container's file: its own search domains and options, else the node's; `ndots:0` unless someone chose otherwise, so
/// that `web` is asked for as it is.
#[must_use]
pub fn render(search: &[String], options: &[String], node: &ResolvConf) -> String {
    let search = if search.is_empty() { &node.search } else { search };
    let options = if options.is_empty() { &node.options } else { options };
    let mut text = format!("nameserver {DNS_ADDR}\n");
    // A search of "." means: none.
    let search: Vec<_> = words(search).filter(|domain| *domain != ".").collect();
    if !search.is_empty() {
        text += &format!("search {}\n", search.join(" "));
    }
    let mut options: Vec<_> = words(options).collect();
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0");
    }
    text += &format!("options {}\n", options.join(" "));
    text
}

/// Without those that would begin a line of their own.
fn words(given: &[String]) -> impl Iterator<Item = &str> {
    given.iter().map(String::as_str).filter(|word| !word.is_empty() && !word.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_file_is_read_leniently() {
        let text = "# c\nnameserver 10.0.0.1 ; x\nnameserver fe80::1%eth0\nnameserver\nnameserver ::1\nsearch a.org b.org\n\
                    options timeout:1\nbogus\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.nameservers, ["10.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert_eq!(conf.search, ["a.org", "b.org"]);
        assert_eq!(conf.options, ["timeout:1"]);
    }

    #[test]
    fn a_container_gets_its_own_settings_else_the_nodes() {
        let node = ResolvConf { nameservers: vec![], search: vec!["corp".into()], options: vec!["rotate".into()] };
        assert_eq!(render(&[], &[], &node), "nameserver 127.0.0.11\nsearch corp\noptions rotate ndots:0\n");
        let own = render(&["x.y".into()], &["ndots:2".into()], &node);
        assert_eq!(own, "nameserver 127.0.0.11\nsearch x.y\noptions ndots:2\n");
        let torn = render(&["a\nnameserver 192.0.2.1".into(), "b".into()], &["\u{85}c".into()], &node);
        assert_eq!(torn, "nameserver 127.0.0.11\nsearch b\noptions ndots:0\n");
        assert_eq!(render(&[".".into()], &[], &ResolvConf::default()), "nameserver 127.0.0.11\noptions ndots:0\n");
    }
}
