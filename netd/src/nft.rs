//! Loading rulesets, and noticing when someone else changed them.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

use orch_netd_core::ruleset::Ruleset;

use crate::nfnetlink::{Mode, Socket, attribute};

const NFT_MSG_GETGEN: u16 = (10 << 8) | 16;
const NFTA_GEN_ID: u16 = 1;

/// Puts a ruleset into the kernel, in the namespace of the calling thread.
pub(crate) trait RuleSink: Send + Sync {
    fn load(&self, ruleset: &Ruleset) -> io::Result<()>;
}

/// By the `nft` program: 5-15 ms each.
#[derive(Debug)]
pub(crate) struct NftProgram;

impl RuleSink for NftProgram {
    fn load(&self, ruleset: &Ruleset) -> io::Result<()> {
        run(&ruleset.to_string())
    }
}

/// The number of the last change to any ruleset of the calling thread's namespace, whoever made it.
pub(crate) fn generation() -> io::Result<u32> {
    let mut generation = None;
    Socket::open()?.request(NFT_MSG_GETGEN, Mode::Get, 0, &[], |reply| {
        generation = attribute(reply, NFTA_GEN_ID).and_then(|v| v.first_chunk()).map(|v| u32::from_be_bytes(*v));
    })?;
    generation.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel told no ruleset generation"))
}

/// Deletes the daemon's tables.
pub(crate) fn delete_tables(names: &[(&str, &str)]) -> io::Result<()> {
    names.iter().try_for_each(|(family, name)| run(&format!("table {family} {name}\ndelete table {family} {name}\n")))
}

fn run(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot start `nft` (package nftables): {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A broken pipe means that nft ended early: its message says why.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("nft refused a ruleset: {}", said.lines().next().unwrap_or("(no message)"))))
}
