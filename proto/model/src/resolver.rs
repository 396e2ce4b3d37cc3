//! What goes into a container's /etc/hosts and /etc/resolv.conf: both are lists of lines, so whatever could begin another
//! line or word is no name.

const MAX_NAME_LEN: usize = 253;
const MAX_LABEL_LEN: usize = 63;

/// A name in /etc/hosts.
#[must_use]
pub fn is_host(name: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&name.len())
        && !name.contains(|c: char| c == '#' || c.is_whitespace() || c.is_control())
}

/// In the place of an address: that of the node where the container is.
pub const HOST_GATEWAY: &str = "host-gateway";

/// Whether a line's address is the node's.
#[must_use]
pub fn is_of_node(line: &str) -> bool {
    line.split_whitespace().next() == Some(HOST_GATEWAY)
}

/// A line of /etc/hosts as specs have it: `10.1.2.3 db database`, `host-gateway node`.
#[must_use]
pub fn is_host_line(line: &str) -> bool {
    if line.contains(char::is_control) {
        return false;
    }
    let mut words = line.split_whitespace();
    let is_addr = words.next().is_some_and(|addr| addr == HOST_GATEWAY || addr.parse::<std::net::IpAddr>().is_ok());
    let mut names = words.peekable();
    is_addr && names.peek().is_some() && names.all(is_host)
}

/// A domain behind `search`, or `.` for none.
#[must_use]
pub fn is_search_domain(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let label = |label: &str| {
        let bytes = label.as_bytes();
        label.len() <= MAX_LABEL_LEN
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b))
    };
    let has_letter = name.bytes().any(|b| b.is_ascii_alphabetic());
    text == "." || (has_letter && name.len() <= MAX_NAME_LEN && name.split('.').all(label))
}

/// A word behind `options`, such as `ndots:2`.
#[must_use]
pub fn is_option(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c == '#' || c == ';' || c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_begins_another_line_or_word() {
        for (line, of_node) in [("10.1.2.3 db", false), ("fd00::1 host-gateway", false), ("host-gateway db", true)] {
            assert!(is_host_line(line) && is_of_node(line) == of_node, "{line}");
        }
        for line in ["", "db", "1.2.3.4", "db 1.2.3.4", "1.2.3.4 a\n6.6.6.6 b", "1.2.3.4 a#b", "1.2.3.4 a\u{0}"] {
            assert!(!is_host_line(line), "{line:?}");
        }
        for domain in [".", "example.org", "example.org.", "a-b.c", "_tcp.example.org", "corp"] {
            assert!(is_search_domain(domain), "{domain}");
        }
        for domain in ["", "..", "a b", "ä.org", "-a", "a-", "a..b", "1.2", "a\nnameserver 6.6.6.6", &"a".repeat(64)] {
            assert!(!is_search_domain(domain), "{domain:?}");
        }
        assert!(is_option("ndots:2") && is_option("use-vc"));
        for option in ["", "a b", "ndots:1\nnameserver 6.6.6.6", "#"] {
            assert!(!is_option(option), "{option:?}");
        }
    }
}
