//! `orch ca`: the cluster's root certificate, and its rotation.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use orch_proto::{paths::Paths, wire};
use tokio::time::{Instant, sleep};

use super::cluster::{cert_expiry, millis};
use crate::api::{Api, explain};

const LOOK: Duration = Duration::from_millis(200);
/// How long the managers may have no leader before the display gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Once the rotation is done, nodes hear of it within seconds; one that has just gone away is not waited for.
const LAST_ROOTS_LIMIT: Duration = Duration::from_secs(20);
const BAR_CHARS: u64 = 50;

#[derive(Debug, Clone, Args)]
pub(crate) struct CaArgs {
    /// Rotate the cluster's root certificate: if no certificate or key is given, new ones are made
    #[arg(long)]
    rotate: bool,
    /// Path to the PEM-formatted root certificate to use for the new cluster
    #[arg(long, value_name = "FILE", requires = "rotate")]
    ca_cert: Option<PathBuf>,
    /// Path to the PEM-formatted root key (PKCS#8, ECDSA P-256) to use for the new cluster
    #[arg(long, value_name = "FILE", requires = "rotate")]
    ca_key: Option<PathBuf>,
    /// Validity period for node certificates (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = cert_expiry, requires = "rotate")]
    cert_expiry: Option<orch_model::Duration>,
    /// Not supported: managers sign certificates themselves
    #[arg(long, value_name = "EXTERNAL-CA", hide = true)]
    external_ca: Vec<String>,
    /// Exit immediately instead of waiting for the root rotation to converge
    #[arg(short, long)]
    detach: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn ca(args: &CaArgs, paths: &Paths) -> anyhow::Result<()> {
    if !args.external_ca.is_empty() {
        bail!(
            "--external-ca is not supported: managers sign certificates themselves. To have a root of your own, give its \
             certificate and key with --ca-cert and --ca-key"
        );
    }
    let mut api = Api::connect(paths).await?;
    if !args.rotate {
        print!("{}", api.info().await?.root_cert_pem);
        return Ok(());
    }
    let request = wire::RotateRootRequest {
        ca_cert_pem: read(args.ca_cert.as_ref())?,
        ca_key_pem: read(args.ca_key.as_ref())?,
        cert_expiry_ms: args.cert_expiry.map_or(0, millis),
    };
    api.control.rotate_root(request).await.map_err(explain)?;
    if args.detach {
        return Ok(());
    }
    let done = tokio::select! {
        done = follow(paths, args.quiet) => done?,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            println!("Operation continuing in background.\nUse `orch ca --rotate` to replace it, `orch info` to check progress.");
            return Ok(());
        }
    };
    if !args.quiet {
        print!("{}", done.root_cert_pem);
    }
    Ok(())
}

fn read(path: Option<&PathBuf>) -> anyhow::Result<String> {
    let Some(path) = path else { return Ok(String::new()) };
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Shows how far the rotation is until it is done, also through changes of leader.
async fn follow(paths: &Paths, quiet: bool) -> anyhow::Result<wire::ClusterInfo> {
    let mut display = Display::new(quiet);
    let (mut last_answer, mut done_at) = (Instant::now(), None);
    loop {
        let info = async { Api::connect(paths).await?.info().await };
        match info.await {
            Ok(info) => {
                last_answer = Instant::now();
                let root = info.root.clone().unwrap_or_default();
                display.show(&root);
                let is_over = !root.rotating && root.rotated_certificates == root.nodes;
                let since = *done_at.get_or_insert_with(Instant::now);
                if !is_over {
                    done_at = None;
                } else if root.rotated_roots == root.nodes || since.elapsed() >= LAST_ROOTS_LIMIT {
                    display.finish();
                    return Ok(info);
                }
            }
            Err(error) if last_answer.elapsed() >= PATIENCE => {
                display.finish();
                return Err(error.context("lost the managers while waiting; the rotation goes on when they are back"));
            }
            Err(_) => {}
        }
        sleep(LOOK).await;
    }
}

/// Redrawn lines on a terminal, plain lines in a pipe.
struct Display {
    quiet: bool,
    on_terminal: bool,
    shown: Option<wire::RootStatus>,
    lines: usize,
}

impl Display {
    fn new(quiet: bool) -> Self {
        Self { quiet, on_terminal: std::io::stdout().is_terminal(), shown: None, lines: 0 }
    }

    fn show(&mut self, now: &wire::RootStatus) {
        if self.quiet || self.shown.as_ref() == Some(now) {
            return;
        }
        let is_new = self.shown.as_ref().is_none_or(|shown| shown.desired_digest != now.desired_digest);
        let mut lines = Vec::new();
        if self.on_terminal || is_new {
            lines.push(format!("desired root digest: sha256:{}", now.desired_digest));
        }
        let bar = |done| if self.on_terminal { format!("{} ", bar(done, now.nodes)) } else { String::new() };
        let nodes = now.nodes;
        let (certificates, roots) = (now.rotated_certificates, now.rotated_roots);
        lines.push(format!("  rotated TLS certificates:  {}{certificates}/{nodes} nodes", bar(certificates)));
        lines.push(format!("  rotated CA certificates:   {}{roots}/{nodes} nodes", bar(roots)));
        if now.rotating && !now.awaited.is_empty() {
            lines.push(format!("  waiting for: {}", now.awaited.join(", ")));
        }
        let mut out = std::io::stdout().lock();
        if self.on_terminal && self.lines > 0 {
            // Up to the first line of what is shown, and clear from there.
            let _ = write!(out, "\x1b[{}A\x1b[J", self.lines);
        }
        for line in &lines {
            let _ = writeln!(out, "{line}");
        }
        let _ = out.flush();
        (self.lines, self.shown) = (lines.len(), Some(now.clone()));
    }

    fn finish(&self) {
        if !self.quiet {
            println!();
        }
    }
}

fn bar(done: u64, of: u64) -> String {
    let filled = (done * BAR_CHARS).checked_div(of).unwrap_or_default().min(BAR_CHARS);
    let head = if filled < BAR_CHARS { ">" } else { "" };
    let rest = (BAR_CHARS - filled).saturating_sub(1);
    let spaces = " ".repeat(usize::try_from(rest).unwrap_or_default());
    format!("[{}{head}{spaces}]", "=".repeat(usize::try_from(filled).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_when_it_is_empty_as_when_it_is_full() {
        for (done, of, begins) in [(0, 3, "[> "), (1, 3, "[================> "), (3, 3, "[=="), (0, 0, "[> ")] {
            let bar = bar(done, of);
            assert_eq!((bar.len(), bar.starts_with(begins)), (52, true), "{bar}");
        }
    }
}
