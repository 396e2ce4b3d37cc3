//! Loading rulesets, and noticing when someone else changed them.

mod attrs;
mod encode;
#[cfg(test)]
mod tests;

use std::io;

use orch_netd_core::ruleset::{Family, RuleOp, Ruleset, changes};

use crate::nfnetlink::{Batched, Mode, Socket, attribute};

const SUBSYSTEM: u8 = 10;
const NFT_MSG_GETGEN: u16 = ((SUBSYSTEM as u16) << 8) | 16;
const NFTA_GEN_ID: u16 = 1;

/// Makes what is loaded in the socket's namespace `wanted`, where `known` is what is there (`None`: anything may be). All
/// of it or nothing: there is no moment without rules.
pub(crate) fn load(socket: &Socket, known: Option<&Ruleset>, wanted: &Ruleset) -> io::Result<()> {
    carry_out(socket, &changes(known, wanted))
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
    carry_out(socket, &ops)
}

fn carry_out(socket: &Socket, ops: &[RuleOp<'_>]) -> io::Result<()> {
    let messages = encode::encode(ops);
    if messages.is_empty() {
        return Ok(());
    }
    let batched = messages.iter().map(|message| Batched {
        kind: message.kind,
        family: message.family,
        attributes: message.attrs.as_bytes(),
    });
    socket.batch(SUBSYSTEM, batched).map_err(|refusal| {
        let about = refusal.message.and_then(|index| messages.get(index)).map_or("all", |message| &message.about);
        io::Error::new(refusal.error.kind(), format!("the kernel refused {about}: {}", refusal.error))
    })
}

/// The number of the last change to any ruleset of the socket's namespace, whoever made it.
pub(crate) fn generation(socket: &Socket) -> io::Result<u32> {
    let mut generation = None;
    socket.request(NFT_MSG_GETGEN, Mode::Get, 0, &[], |reply| {
        generation = attribute(reply, NFTA_GEN_ID).and_then(|v| v.first_chunk()).map(|v| u32::from_be_bytes(*v));
    })?;
    generation.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel told no ruleset generation"))
}
