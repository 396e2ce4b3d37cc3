//! nftables rulesets as data, and their text.
//!
//! Loading a ruleset replaces its tables as a whole, in one transaction: there is no moment without rules, and no state
//! in the kernel that a ruleset would have to know. Connections that exist keep going where they went.

use std::fmt::{self, Write as _};

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

impl Family {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// nft's name for an address of this family.
    #[must_use]
    pub fn addr_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
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

/// A set, or a map when `ty` names both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub keyword: &'static str,
    pub name: &'static str,
    pub ty: String,
    pub elements: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// `type nat hook output priority -100`; empty for a chain that others jump to.
    pub hook: &'static str,
    pub rules: Vec<String>,
}

impl Chain {
    #[must_use]
    pub fn new(name: impl Into<String>, hook: &'static str, rules: Vec<String>) -> Self {
        Self { name: name.into(), hook, rules }
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tables.iter().try_for_each(|table| table.fmt(f))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, name) = (self.family.word(), self.name);
        // Named once so that there is something to delete, then made anew.
        writeln!(f, "table {family} {name}\ndelete table {family} {name}\ntable {family} {name} {{")?;
        // Chains that others jump to come before those that jump.
        for chain in self.chains.iter().filter(|c| c.hook.is_empty()) {
            chain.fmt(f)?;
        }
        for set in &self.sets {
            set.fmt(f)?;
        }
        for chain in self.chains.iter().filter(|c| !c.hook.is_empty()) {
            chain.fmt(f)?;
        }
        f.write_str("}\n")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keyword, name, ty, elements } = self;
        write!(f, "  {keyword} {name} {{ type {ty};")?;
        if !elements.is_empty() {
            write!(f, " elements = {{ {} }}", elements.join(", "))?;
        }
        f.write_str(" }\n")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  chain {} {{", self.name)?;
        if !self.hook.is_empty() {
            writeln!(f, "    {};", self.hook)?;
        }
        for rule in &self.rules {
            writeln!(f, "    {rule}")?;
        }
        f.write_str("  }\n")
    }
}

/// `dnat to` one of `targets` in turn, starting at number `start`: clients that make few connections each should not all
/// begin with the same backend.
#[must_use]
pub fn dnat_in_turn(targets: &[String], start: usize) -> String {
    match targets {
        [] => "drop".to_owned(),
        [only] => format!("dnat to {}", only.replace(" . ", ":")),
        _ => {
            let mut map = String::new();
            for slot in 0..targets.len() {
                let target = &targets[(slot + start) % targets.len()];
                let separator = if slot == 0 { "" } else { ", " };
                // Writing to a string cannot fail.
                let _ = write!(map, "{separator}{slot} : {target}");
            }
            format!("dnat to numgen inc mod {} map {{ {map} }}", targets.len())
        }
    }
}
