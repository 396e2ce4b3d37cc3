//! Loading rulesets, and noticing when someone else changed them.

mod attrs;
mod encode;
#[cfg(test)]
pub(crate) mod tests;

use std::io;

use orch_netd_core::ruleset::{Family, Key, RuleOp, Ruleset, Set, Table, changes};

use crate::nfnetlink::{Batched, Mode, Socket, attribute, attributes};

const SUBSYSTEM: u8 = 10;
const NFT_MSG_GETGEN: u16 = ((SUBSYSTEM as u16) << 8) | 16;
const NFTA_GEN_ID: u16 = 1;
const NFT_MSG_GETSETELEM: u16 = ((SUBSYSTEM as u16) << 8) | 13;
/// Of a message about elements.
const ELEMENTS: u16 = 3;
/// Of an element.
const ELEMENT_KEY: u16 = 1;
const ELEMENT_EXPRESSION: u16 = 7;
const DATA_VALUE: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const COUNTER_PACKETS: u16 = 2;

/// Makes what is loaded in the socket's namespace `wanted`, where `known` is what is there (`None`: anything may be). All
/// of it or nothing: there is no moment without rules.
pub(crate) fn load(socket: &Socket, known: Option<&Ruleset>, wanted: &Ruleset) -> io::Result<()> {
    carry_out(socket, None, &changes(known, wanted))
}

/// The same where `known` was loaded as `generation`: fails if somebody else has changed rules since. Returns what the
/// generation is then.
pub(crate) fn reload(socket: &Socket, generation: u32, known: &Ruleset, wanted: &Ruleset) -> io::Result<u32> {
    let ops = changes(Some(known), wanted);
    if ops.is_empty() {
        return Ok(generation);
    }
    carry_out(socket, Some(generation), &ops)?;
    // The kernel counts batches, and leaves out 0.
    Ok(generation.checked_add(1).unwrap_or(1))
}

/// Whether the kernel has rules for what passes a bridge. Without them (`CONFIG_NF_TABLES_BRIDGE`) networks work, and
/// tasks can send in each other's names.
pub(crate) fn filters_bridges() -> io::Result<bool> {
    match delete_tables(&Socket::open()?, &[(Family::Bridge, "orch_probe")]) {
        Ok(()) => Ok(true),
        // Only that: whatever else goes wrong must not leave tasks without the guard.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            tracing::warn!(
                %error,
                "the kernel does not filter bridges (nf_tables bridge family): a task of a network can send in the name of \
                 another one there"
            );
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Deletes tables, those that are there.
pub(crate) fn delete_tables(socket: &Socket, tables: &[(Family, &'static str)]) -> io::Result<()> {
    let tables = tables.iter().map(|(family, name)| orch_netd_core::ruleset::Table {
        family: *family,
        name,
        sets: Vec::new(),
        chains: Vec::new(),
    });
    let tables: Vec<_> = tables.collect();
    let ops: Vec<_> =
        tables.iter().flat_map(|t| [RuleOp::AddTable(t), RuleOp::DeleteTable(t.family, t.name)]).collect();
    carry_out(socket, None, &ops)
}

fn carry_out(socket: &Socket, generation: Option<u32>, ops: &[RuleOp<'_>]) -> io::Result<()> {
    let messages = encode::encode(ops);
    if messages.is_empty() {
        return Ok(());
    }
    let batched = messages.iter().map(|message| Batched {
        kind: message.kind,
        family: message.family,
        attributes: message.attrs.as_bytes(),
    });
    socket.batch(SUBSYSTEM, generation, batched).map_err(|refusal| {
        let about = refusal.message.and_then(|index| messages.get(index)).map_or("all", |message| &message.about);
        io::Error::new(refusal.error.kind(), format!("the kernel refused {about}: {}", refusal.error))
    })
}

/// How often each element of a counted set was found.
pub(crate) fn counters(socket: &Socket, table: &Table, set: &Set) -> io::Result<Vec<(Key, u64)>> {
    let mut wanted = Vec::new();
    for (kind, name) in [(1, table.name), (2, set.name)] {
        crate::nfnetlink::push(&mut wanted, kind, format!("{name}\0").as_bytes());
    }
    let mut seen = Vec::new();
    let family = encode::family_number(table.family);
    socket.request(NFT_MSG_GETSETELEM, Mode::Dump, family, &wanted, |reply| {
        let elements = attribute(reply, ELEMENTS).unwrap_or_default();
        seen.extend(attributes(elements).filter_map(|(_, element)| counter(element)));
    })?;
    let keys: std::collections::BTreeMap<_, _> =
        set.elements.iter().map(|element| (encode::key_bytes(&element.key), &element.key)).collect();
    Ok(seen.into_iter().filter_map(|(key, packets)| Some(((*keys.get(&key)?).clone(), packets))).collect())
}

fn counter(element: &[u8]) -> Option<(Vec<u8>, u64)> {
    let key = attribute(attribute(element, ELEMENT_KEY)?, DATA_VALUE)?;
    let counter = attribute(attribute(element, ELEMENT_EXPRESSION)?, EXPRESSION_DATA)?;
    let packets = attribute(counter, COUNTER_PACKETS)?.first_chunk()?;
    Some((key.to_vec(), u64::from_be_bytes(*packets)))
}

/// The number of the last change to any ruleset of the socket's namespace, whoever made it.
pub(crate) fn generation(socket: &Socket) -> io::Result<u32> {
    let mut generation = None;
    socket.request(NFT_MSG_GETGEN, Mode::Get, 0, &[], |reply| {
        generation = attribute(reply, NFTA_GEN_ID).and_then(|v| v.first_chunk()).map(|v| u32::from_be_bytes(*v));
    })?;
    generation.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel told no ruleset generation"))
}
