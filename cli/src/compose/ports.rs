//! `ports:` of a service, in both forms.

use orch_model::service::PortConfig;

use super::yaml::Node;
use crate::flags::port;

pub(super) struct Parsed {
    pub(super) ports: Vec<PortConfig>,
    pub(super) warning: Option<String>,
}

pub(super) fn parse(item: &Node) -> Result<Parsed, String> {
    let Some(text) = item.text() else { return long(item) };
    let (address, rest) = host_address(text);
    let warning = address.filter(|address| !["", "0.0.0.0"].contains(address)).map(|_| {
        let shown = if text.contains('/') { text.to_owned() } else { format!("{text}/tcp") };
        format!("ignoring IP-address ({shown}) service will listen on '0.0.0.0'")
    });
    Ok(Parsed { ports: port::parse(rest)?, warning })
}

/// An address of the host in front of the ports: every node answers on a published port, so it means nothing.
fn host_address(text: &str) -> (Option<&str>, &str) {
    let ports = text.rsplit_once(':').and_then(|(before, _)| before.rsplit_once(':'));
    match ports {
        Some((address, _)) => {
            let rest = text[address.len() + 1..].trim_start_matches(':');
            (Some(address.trim_matches(['[', ']'])), rest)
        }
        None => (None, text),
    }
}

fn long(item: &Node) -> Result<Parsed, String> {
    let mut long = Vec::new();
    for (key, value) in item.entries() {
        // The last two say nothing that a cluster's port could keep.
        if key.text.starts_with("x-") || ["host_ip", "app_protocol"].contains(&key.text.as_str()) {
            continue;
        }
        let text = value.text().ok_or_else(|| format!("{} of a port must be a text or a number", key.text))?;
        long.push(format!("{}={text}", key.text));
    }
    Ok(Parsed { ports: port::parse(&long.join(","))?, warning: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_host_are_left_out() {
        for (text, address, rest) in [
            ("80", None, "80"),
            ("8080:80", None, "8080:80"),
            ("127.0.0.1:8080:80/udp", Some("127.0.0.1"), "8080:80/udp"),
            ("127.0.0.1::80", Some("127.0.0.1"), "80"),
            ("[::1]:8080:80", Some("::1"), "8080:80"),
        ] {
            assert_eq!(host_address(text), (address, rest), "{text}");
        }
    }
}
