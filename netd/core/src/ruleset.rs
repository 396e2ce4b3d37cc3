//! nftables rulesets as data, and their text in nft's language.
//!
//! The text describes a ruleset to people and to golden tests; the daemon hands the data to the kernel itself. What is
//! here is what the daemon needs and no more: every statement has a text and an encoding that are tested to mean the same.

mod change;
mod text;

pub use change::{RuleOp, changes};
pub use text::word;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use orch_model::service::{Balance, Protocol};

use crate::names::Mac;

/// The tables that a namespace should have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    pub tables: Vec<Table>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
    /// What passes a bridge, before it is anybody's IP packet.
    Bridge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V4,
    V6,
}

impl Version {
    #[must_use]
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    /// Starts with `orch_`.
    pub name: &'static str,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub name: &'static str,
    pub kind: SetKind,
    /// Whether the kernel counts what each element is found for.
    pub counted: bool,
    pub elements: Vec<Element>,
}

impl Set {
    #[must_use]
    pub fn new(name: &'static str, kind: SetKind, elements: Vec<Element>) -> Self {
        Self { name, kind, counted: false, elements }
    }

    #[must_use]
    pub fn counted(self) -> Self {
        Self { counted: true, ..self }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// Protocol and port.
    Ports,
    /// Protocol and port to the chain that is jumped to.
    PortChains,
    /// Address, protocol and port.
    AddrPorts,
    /// Address, protocol and port to the chain that is jumped to.
    AddrPortChains,
    /// Addresses of the table's family.
    Addrs,
    /// Addresses to the chain that is jumped to.
    AddrChains,
    /// Address, port there and port here of who sent a datagram lately; filled by rules.
    Clients,
    /// Links.
    Links,
    /// Link and link address.
    LinkMacs,
    /// Link and address.
    LinkAddrs(Version),
    /// Link, link address and address.
    LinkMacAddrs(Version),
}

impl SetKind {
    #[must_use]
    pub fn is_map(self) -> bool {
        matches!(self, Self::PortChains | Self::AddrPortChains | Self::AddrChains)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub key: Key,
    /// In a map, the chain that is jumped to.
    pub chain: Option<String>,
}

impl Element {
    /// One of a set.
    #[must_use]
    pub fn of(key: Key) -> Self {
        Self { key, chain: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Addr(IpAddr),
    Port(Protocol, u16),
    AddrPort(IpAddr, Protocol, u16),
    Link(String),
    LinkMac(String, Mac),
    LinkAddr(String, IpAddr),
    LinkMacAddr(String, Mac, IpAddr),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// Where packets come from; `None` for a chain that others jump to.
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

impl Chain {
    #[must_use]
    pub fn at(name: &str, hook: Hook, rules: Vec<Rule>) -> Self {
        Self { name: name.to_owned(), hook: Some(hook), rules }
    }

    /// One that others jump to.
    #[must_use]
    pub fn jumped_to(name: String, rule: Rule) -> Self {
        Self { name, hook: None, rules: vec![rule] }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    pub kind: HookKind,
    pub point: Point,
    pub priority: i32,
}

impl Hook {
    #[must_use]
    pub fn new(kind: HookKind, point: Point, priority: i32) -> Self {
        Self { kind, point, priority }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    Filter,
    Nat,
    Route,
}

impl HookKind {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// What is done, in order, until one does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule(pub Vec<Expr>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    Yes,
    No,
}

/// A part of the packet that sets are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Protocol,
    /// The destination port of whatever protocol it is.
    Port,
    /// An address of the table's family.
    Addr(Side),
    UdpPort(Side),
    /// The name of the link that it came by.
    LinkIn,
    /// The link address that it comes from.
    SourceMac,
    /// The address that it comes from, of one version whatever the table's family is.
    Source(Version),
    /// The link address that an ARP packet tells.
    ArpMac,
    /// The address that an ARP packet tells.
    ArpAddr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Its destination is an address of this namespace.
    ToHere,
    Protocol(Protocol),
    /// The port that it is for, of one protocol.
    ToPort(Protocol, u16),
    /// The destination port that its connection began with; of a known protocol only.
    FirstPort(u16),
    /// The link that it came or goes by; a name that ends with `*` stands for all that start so.
    Link(Way, Is, String),
    Addr(Side, Is, IpNetwork),
    /// It is an IP packet of this version, as its Ethernet header says.
    Ip(Version),
    /// It is a well-formed ARP packet about IPv4 on Ethernet.
    Arp,
    /// It is an ICMP message of this type; in a table of IPv4.
    Icmp(u8),
    /// It is an ICMPv6 message of this type.
    Icmp6(u8),
    /// The address that a neighbour advertisement is about.
    Advertises(Ipv6Addr),
    /// The number of the tunnel that it is in; of a datagram only.
    Vni(u32),
    /// It begins a connection.
    NewFlow,
    /// It belongs to a connection that was given another destination.
    Translated,
    Direction(Direction),
    /// Its connection has a mark.
    Marked,
    In(Vec<Field>, &'static str),
    /// Jumps to where a map says.
    Jump(Vec<Field>, &'static str),
    /// Jumps to a chain.
    JumpTo(&'static str),
    /// Puts it into a set, or renews it there.
    Remember(&'static str, Vec<Field>),
    /// By the sender's link address.
    ZoneOf(Vec<(Mac, u16)>),
    /// By the sender's link address.
    MarkOf(Vec<(Mac, u16)>),
    /// Gives the packet its connection's mark.
    RestoreMark,
    SetSource(Ipv4Addr),
    /// Gives the connection another destination: one of these.
    SendTo(Turn, Vec<Destination>),
    Masquerade,
    /// Gives the connection another source.
    SendFrom(Ipv4Addr),
    Accept,
    /// Goes on where the chain was jumped to from.
    Return,
    Drop,
    /// An ICMP error.
    Reject,
    /// A TCP reset.
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Original,
    Reply,
}

/// Which of several destinations a connection is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// One after the other.
    Each,
    Random,
    /// By the client's address.
    OfSource,
}

impl Turn {
    #[must_use]
    pub fn of(balance: Option<Balance>) -> Self {
        match balance {
            None | Some(Balance::RoundRobin) => Self::Each,
            Some(Balance::Random) => Self::Random,
            Some(Balance::SourceHash) => Self::OfSource,
            // Weights are in how often each destination has its turn.
            Some(Balance::Weighted) => Self::Each,
        }
    }
}

/// Makes every node choose the same for a client, and the same again when rules are loaded anew.
pub const HASH_SEED: u32 = 0x6f72_6368;

/// Where connections are sent; all of one rule have a port or none has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    pub addr: IpAddr,
    pub port: Option<u16>,
}

/// To one of `targets`. In turn it begins with number `start`: clients that make few connections each should not all begin
/// with the same backend.
#[must_use]
pub fn send_in_turn(turn: Turn, mut targets: Vec<Destination>, start: usize) -> Expr {
    if targets.is_empty() {
        return Expr::Drop;
    }
    if turn == Turn::Each {
        let start = start % targets.len();
        targets.rotate_left(start);
    }
    Expr::SendTo(turn, targets)
}

/// To the only one.
#[must_use]
pub fn send_to_one(target: Destination) -> Expr {
    Expr::SendTo(Turn::Each, vec![target])
}
