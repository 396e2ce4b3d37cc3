//! The daemons' hidden subcommands: each hands over to its crate.

use std::{ffi::OsStr, io::IsTerminal as _, process::ExitCode};

use clap::{Args, Subcommand};
use orch_proto::paths::Paths;
use tracing_subscriber::EnvFilter;

/// Sets how much the daemons log: `info`, `debug`, `orch_manager=trace`.
const LOG_VAR: &str = "ORCH_LOG";

/// Libraries speak when something is wrong; raft repeats itself at every heartbeat while a manager is down.
const DEFAULT_LOG: &str = "info,openraft=error,sled=warn,h2=warn,hyper=warn";

#[derive(Debug, Subcommand)]
pub(crate) enum Daemon {
    /// The manager
    #[command(hide = true)]
    Manager,
    /// The worker
    #[command(hide = true)]
    Worker(CleanupArgs),
    /// The network daemon
    #[command(hide = true)]
    Netd(CleanupArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// Remove everything that this daemon left on the machine, and end
    #[arg(long)]
    pub(crate) cleanup: bool,
}

/// `orch shim`, before anything else: it must stay single-threaded.
pub(crate) fn shim() -> Option<ExitCode> {
    if std::env::args_os().nth(1).as_deref() != Some(OsStr::new("shim")) {
        return None;
    }
    Some(ExitCode::from(u8::try_from(orch_worker::shim::main() & 0xff).unwrap_or(1)))
}

pub(crate) fn run(daemon: Daemon) -> anyhow::Result<()> {
    log_to_stderr();
    let paths = Paths::from_env();
    match daemon {
        Daemon::Manager => orch_manager::run(orch_manager::Config { paths }),
        Daemon::Worker(CleanupArgs { cleanup: true }) => orch_worker::cleanup(&paths),
        Daemon::Worker(_) => orch_worker::run(orch_worker::Config { paths }),
        Daemon::Netd(CleanupArgs { cleanup: true }) => orch_netd::cleanup(&paths),
        Daemon::Netd(_) => orch_netd::run(orch_netd::Config { paths }),
    }
}

/// `orch node` without a subcommand.
pub(crate) fn supervise() -> anyhow::Result<()> {
    log_to_stderr();
    crate::node::run(crate::node::NodeArgs {})
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env(LOG_VAR).unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would panic where what it writes to is on a disk that is full.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
