//! Whether somebody else's rules on the node are in the way of forwarding.
//!
//! What one base chain drops, no other can let through again: the daemon cannot help it from its own table, and it does
//! not write into others'. So it says what is wrong and what to do.

use std::io;

use crate::nfnetlink::{Mode, Socket, attribute};

const GET_CHAIN: u16 = (10 << 8) | 4;
const GET_RULE: u16 = (10 << 8) | 7;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;
/// Families whose rules see IPv4 and, the last one, IPv6: number, nft's word, the program that other packet filters are
/// set with.
const FAMILIES: [(u8, &str, &str); 3] = [(1, "inet", "iptables"), (2, "ip", "iptables"), (10, "ip6", "ip6tables")];
/// A rule that names the daemon's links is taken to let their packets through.
const OWN_LINKS: &[u8] = orch_netd_core::names::HOST_PREFIX.as_bytes();

/// What drops forwarded packets by its policy, in the operator's words; `None` when nothing does.
pub(crate) fn obstacle(socket: &Socket, forwards_v6: bool) -> io::Result<Option<String>> {
    let families = if forwards_v6 { &FAMILIES[..] } else { &FAMILIES[..2] };
    for (family, word, tables) in families.iter().copied() {
        let mut dropping = Vec::new();
        socket.request(GET_CHAIN, Mode::Dump, family, &[], |chain| dropping.extend(drops_forwarded(chain)))?;
        for (table, chain) in dropping {
            if !has_exception(socket, family, &table, &chain)? {
                return Ok(Some(format!(
                    "this node's firewall drops what it forwards (policy of chain {chain} in table {word} {table}; \
                     Docker sets it so): published ports and the tasks' way out do not work here. Let them through: \
                     `nft insert rule {word} {table} {chain} iifname \"orch*\" accept` and the same with oifname, or \
                     `{tables} -I FORWARD -i orch+ -j ACCEPT; {tables} -I FORWARD -o orch+ -j ACCEPT`"
                )));
            }
        }
    }
    Ok(None)
}

fn drops_forwarded(chain: &[u8]) -> Option<(String, String)> {
    let number = |value: &[u8]| value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let hook = number(attribute(attribute(chain, CHAIN_HOOK)?, HOOK_NUMBER)?)?;
    let policy = number(attribute(chain, CHAIN_POLICY)?)?;
    let text = |kind| Some(String::from_utf8_lossy(attribute(chain, kind)?).trim_end_matches('\0').to_owned());
    (hook == NF_INET_FORWARD && policy == NF_DROP).then_some((text(CHAIN_TABLE)?, text(CHAIN_NAME)?))
}

fn has_exception(socket: &Socket, family: u8, table: &str, chain: &str) -> io::Result<bool> {
    let mut wanted = Vec::new();
    for (kind, name) in [(RULE_TABLE, table), (RULE_CHAIN, chain)] {
        crate::nfnetlink::push(&mut wanted, kind, format!("{name}\0").as_bytes());
    }
    let mut found = false;
    socket.request(GET_RULE, Mode::Dump, family, &wanted, |rule| {
        found |= rule.windows(OWN_LINKS.len()).any(|part| part == OWN_LINKS);
    })?;
    Ok(found)
}
