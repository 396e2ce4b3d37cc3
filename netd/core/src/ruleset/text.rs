//! Rulesets in nft's language.

use std::fmt::{self, Display, Formatter};

use orch_model::service::Protocol;

use super::{
    Chain, Destination, Direction, Element, Expr, Family, Field, HASH_SEED, Hook, Is, Key, Point, Rule, Ruleset, Set,
    SetKind, Side, Table, Turn, Version, Way,
};
use crate::names::Mac;

impl Family {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
            Self::Bridge => "bridge",
        }
    }
}

impl Version {
    fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn addr_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }
}

/// nft's name of a protocol.
#[must_use]
pub fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.tables.iter().try_for_each(|table| table.fmt(f))
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (family, name) = (self.family, self.name);
        // Named once so that there is something to delete, then made anew.
        let ip = family.word();
        writeln!(f, "table {ip} {name}\ndelete table {ip} {name}\ntable {ip} {name} {{")?;
        // Chains that others jump to come before those that jump.
        for chain in self.chains.iter().filter(|c| c.hook.is_none()) {
            write_chain(f, chain, family)?;
        }
        for set in &self.sets {
            write_set(f, set, family)?;
        }
        for chain in self.chains.iter().filter(|c| c.hook.is_some()) {
            write_chain(f, chain, family)?;
        }
        f.write_str("}\n")
    }
}

fn write_set(f: &mut Formatter<'_>, set: &Set, family: Family) -> fmt::Result {
    let keyword = if set.kind.is_map() { "map" } else { "set" };
    let addr = match family {
        Family::V4 | Family::Bridge => Version::V4.addr_type(),
        Family::V6 => Version::V6.addr_type(),
    };
    write!(f, "  {keyword} {} {{ type ", set.name)?;
    match set.kind {
        SetKind::Ports => f.write_str("inet_proto . inet_service;")?,
        SetKind::PortChains => f.write_str("inet_proto . inet_service : verdict;")?,
        SetKind::AddrPorts => write!(f, "{addr} . inet_proto . inet_service;")?,
        SetKind::AddrPortChains => write!(f, "{addr} . inet_proto . inet_service : verdict;")?,
        SetKind::Addrs => write!(f, "{addr};")?,
        SetKind::AddrChains => write!(f, "{addr} : verdict;")?,
        SetKind::Clients => {
            write!(f, "{addr} . inet_service . inet_service; size 65535; flags dynamic,timeout; timeout 3m;")?;
        }
        SetKind::Links => f.write_str("ifname;")?,
        SetKind::LinkMacs => f.write_str("ifname . ether_addr;")?,
        SetKind::LinkAddrs(version) => write!(f, "ifname . {};", version.addr_type())?,
        SetKind::LinkMacAddrs(version) => write!(f, "ifname . ether_addr . {};", version.addr_type())?,
    }
    if set.counted {
        f.write_str(" counter;")?;
    }
    if !set.elements.is_empty() {
        write!(f, " elements = {{ {} }}", joined(&set.elements, ", "))?;
    }
    f.write_str(" }\n")
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.key {
            Key::Addr(addr) => write!(f, "{addr}")?,
            Key::Port(protocol, port) => write!(f, "{} . {port}", word(*protocol))?,
            Key::AddrPort(addr, protocol, port) => write!(f, "{addr} . {} . {port}", word(*protocol))?,
            Key::Link(link) => write!(f, "\"{link}\"")?,
            Key::LinkMac(link, mac) => write!(f, "\"{link}\" . {mac}")?,
            Key::LinkAddr(link, addr) => write!(f, "\"{link}\" . {addr}")?,
            Key::LinkMacAddr(link, mac, addr) => write!(f, "\"{link}\" . {mac} . {addr}")?,
        }
        self.chain.iter().try_for_each(|chain| write!(f, " : jump {chain}"))
    }
}

fn write_chain(f: &mut Formatter<'_>, chain: &Chain, family: Family) -> fmt::Result {
    writeln!(f, "  chain {} {{", chain.name)?;
    if let Some(Hook { kind, point, priority }) = chain.hook {
        let point = match point {
            Point::Prerouting => "prerouting",
            Point::Input => "input",
            Point::Forward => "forward",
            Point::Output => "output",
            Point::Postrouting => "postrouting",
        };
        writeln!(f, "    type {} hook {point} priority {priority};", kind.word())?;
    }
    for rule in &chain.rules {
        writeln!(f, "    {}", rule.text(family))?;
    }
    f.write_str("  }\n")
}

impl Rule {
    /// In nft's language, in a table of `family`.
    #[must_use]
    pub fn text(&self, family: Family) -> String {
        self.0.iter().map(|expr| expr_text(expr, family)).collect::<Vec<_>>().join(" ")
    }
}

fn expr_text(expr: &Expr, family: Family) -> String {
    match expr {
        Expr::ToHere => "fib daddr type local".to_owned(),
        Expr::Protocol(protocol) => format!("meta l4proto {}", word(*protocol)),
        Expr::ToPort(protocol, port) => format!("{} dport {port}", word(*protocol)),
        Expr::FirstPort(port) => format!("ct original proto-dst {port}"),
        Expr::Link(way, is, name) => {
            let field = match way {
                Way::In => "iifname",
                Way::Out => "oifname",
            };
            format!("{field} {}\"{name}\"", not(*is))
        }
        Expr::Addr(side, is, net) => {
            let version = Version::of(net.ip()).word();
            let whole = net.prefix() == if net.is_ipv4() { 32 } else { 128 };
            let net = if whole { net.ip().to_string() } else { net.to_string() };
            let side = match side {
                Side::Source => "saddr",
                Side::Destination => "daddr",
            };
            format!("{version} {side} {}{net}", not(*is))
        }
        Expr::Ip(version) => format!("meta protocol {}", version.word()),
        Expr::Arp => "meta protocol arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4".to_owned(),
        Expr::Icmp(kind) => format!("icmp type {kind}"),
        Expr::Icmp6(kind) => format!("icmpv6 type {kind}"),
        Expr::Advertises(addr) => format!("@th,64,128 {:#x}", addr.to_bits()),
        Expr::Vni(vni) => format!("@th,96,24 {vni:#x}"),
        Expr::NewFlow => "ct state new".to_owned(),
        Expr::Translated => "ct status dnat".to_owned(),
        Expr::Direction(Direction::Original) => "ct direction original".to_owned(),
        Expr::Direction(Direction::Reply) => "ct direction reply".to_owned(),
        Expr::Marked => "ct mark != 0".to_owned(),
        Expr::In(key, set) => format!("{} @{set}", fields(key, family)),
        Expr::Jump(key, map) => format!("{} vmap @{map}", fields(key, family)),
        Expr::JumpTo(chain) => format!("jump {chain}"),
        Expr::Remember(set, key) => format!("update @{set} {{ {} }}", fields(key, family)),
        Expr::ZoneOf(entries) => format!("ct original zone set ether saddr map {{ {} }}", by_mac(entries)),
        Expr::MarkOf(entries) => format!("ct mark set ether saddr map {{ {} }}", by_mac(entries)),
        Expr::RestoreMark => "meta mark set ct mark".to_owned(),
        Expr::SetSource(addr) => format!("ip saddr set {addr}"),
        Expr::SendTo(turn, targets) => send_to(*turn, targets, family),
        Expr::Masquerade => "masquerade".to_owned(),
        Expr::SendFrom(addr) => format!("snat to {addr}"),
        Expr::Accept => "accept".to_owned(),
        Expr::Return => "return".to_owned(),
        Expr::Drop => "drop".to_owned(),
        Expr::Reject => "reject".to_owned(),
        Expr::Reset => "reject with tcp reset".to_owned(),
    }
}

fn not(is: Is) -> &'static str {
    match is {
        Is::Yes => "",
        Is::No => "!= ",
    }
}

fn fields(key: &[Field], family: Family) -> String {
    key.iter().map(|part| field(*part, family)).collect::<Vec<_>>().join(" . ")
}

fn field(field: Field, family: Family) -> &'static str {
    match (field, family) {
        (Field::Protocol, _) => "meta l4proto",
        (Field::Port, _) => "th dport",
        (Field::Addr(Side::Source), Family::V4 | Family::Bridge) | (Field::Source(Version::V4), _) => "ip saddr",
        (Field::Addr(Side::Destination), Family::V4 | Family::Bridge) => "ip daddr",
        (Field::Addr(Side::Source), Family::V6) | (Field::Source(Version::V6), _) => "ip6 saddr",
        (Field::Addr(Side::Destination), Family::V6) => "ip6 daddr",
        (Field::UdpPort(Side::Source), _) => "udp sport",
        (Field::UdpPort(Side::Destination), _) => "udp dport",
        (Field::LinkIn, _) => "iifname",
        (Field::SourceMac, _) => "ether saddr",
        (Field::ArpMac, _) => "arp saddr ether",
        (Field::ArpAddr, _) => "arp saddr ip",
    }
}

fn by_mac(entries: &[(Mac, u16)]) -> String {
    entries.iter().map(|(mac, index)| format!("{mac} : {index}")).collect::<Vec<_>>().join(", ")
}

fn send_to(turn: Turn, targets: &[Destination], family: Family) -> String {
    let target = |Destination { addr, port }: &Destination, separator| match port {
        Some(port) => format!("{addr}{separator}{port}"),
        None => addr.to_string(),
    };
    match targets {
        [only] => format!("dnat to {}", target(only, ":")),
        _ => {
            let entries: Vec<_> =
                targets.iter().enumerate().map(|(turn, t)| format!("{turn} : {}", target(t, " . "))).collect();
            let (count, entries) = (targets.len(), entries.join(", "));
            match turn {
                Turn::Each => format!("dnat to numgen inc mod {count} map {{ {entries} }}"),
                Turn::Random => format!("dnat to numgen random mod {count} map {{ {entries} }}"),
                Turn::OfSource => {
                    let source = field(Field::Addr(Side::Source), family);
                    format!("dnat to jhash {source} mod {count} seed {HASH_SEED:#x} map {{ {entries} }}")
                }
            }
        }
    }
}

fn joined<T: Display>(items: &[T], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}
