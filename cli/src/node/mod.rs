//! The node supervisor, `orch node`: this machine's membership in a cluster, and the daemons that act on it.
//!
//! It must not touch containers, networks or the cluster's state: it makes or joins a cluster, keeps certificates fresh,
//! and starts the manager, the worker and the network daemon again when they die.
//!
//! Invariants: a machine is in a cluster exactly when the state file says so, and that file is written last and removed
//! first, so that an init or join that was cut short never happened; daemons die with the supervisor, containers do not.

mod address;
mod apart;
mod broken;
mod credentials;
mod daemon;
mod error;
mod files;
mod force;
mod gossip;
mod init;
mod join;
mod keeper;
mod leave;
mod managers;
mod member;
mod moved;
mod owner;
mod ports;
mod rejoin;
mod renew;
mod reset;
mod role;
mod server;
mod start;
mod supervisor;
mod wait;

pub(crate) use member::state_file;
pub(crate) use start::ensure_running;

use anyhow::Context as _;
use orch_proto::paths::Paths;

/// Arguments of `orch node`: there are none, everything is in `/var/lib/orch` and `/etc/orch/orch.toml`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct NodeArgs {}

/// Runs the supervisor until SIGTERM or SIGINT.
pub(crate) fn run(_args: NodeArgs) -> anyhow::Result<()> {
    orch_proto::tls::install_crypto_provider();
    // One thread: a child's parent-death signal follows the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the supervisor's runtime")?;
    runtime.block_on(server::serve(Paths::from_env()))
}
