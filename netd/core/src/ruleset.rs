//! nftables rulesets as data, and their text in nft's language.
//!
//! The text describes a ruleset to people and to golden tests; the daemon hands the data to the kernel itself. What is
//! here is what the daemon needs and no more: every statement has a text and an encoding that are tested to mean the same.

mod change;
mod text;

pub use change::{RuleOp, changes};
pub use text::word;

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use orch_model::service::{Balance, Protocol};

use crate::names::Mac;

/// The tables that a namespace should have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    pub tables: Vec<Table>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
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
    pub elements: Vec<Element>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// Protocol and port.
    Ports,
    /// Protocol and port to the chain that is jumped to.
    PortChains,
    /// Addresses of the table's family.
    Addrs,
    /// Addresses to the chain that is jumped to.
    AddrChains,
    /// Address, port there and port here of who sent a datagram lately; filled by rules.
    Clients,
}

impl SetKind {
    #[must_use]
    pub fn is_map(self) -> bool {
        matches!(self, Self::PortChains | Self::AddrChains)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: Key,
    /// In a map, the chain that is jumped to.
    pub chain: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Addr(IpAddr),
    Port(Protocol, u16),
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
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Its destination is an address of this namespace.
    ToHere,
    Protocol(Protocol),
    /// The port that it is for, of one protocol.
    ToPort(Protocol, u16),
    /// The link that it came or goes by; a name that ends with `*` stands for all that start so.
    Link(Way, Is, String),
    Addr(Side, Is, IpNetwork),
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
    Accept,
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
