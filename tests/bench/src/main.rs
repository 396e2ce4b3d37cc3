//! Benchmarks of the managers and of the network daemon: real processes on one side, clients over gRPC and TLS on the other.
//!
//! Run by the scripts `raft`, `store` and `failover` beside this crate; not part of what is shipped.

mod agents;
mod attach;
mod etcd;
mod load;
mod managers;
mod plane;
mod probe;
mod process;
mod raft;
mod store;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Benchmarks of Orch's managers and network daemon")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes per second of three managers and of three etcd members, in turn
    Raft(raft::Options),
    /// A large state: memory, lists, snapshots, restart
    Store(store::Options),
    /// Thousands of nodes without containers, and a service of a hundred thousand tasks
    Plane(plane::Options),
    /// Attaching tasks to a network, and changes of backends, in the network daemon alone
    Attach(attach::Options),
    /// Writes through one local socket without a pause, and prints when each began and ended (milliseconds)
    Probe(probe::Options),
}

fn main() -> anyhow::Result<()> {
    orch_proto::tls::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match Cli::parse().command {
            Command::Raft(options) => raft::run(&options).await,
            Command::Store(options) => store::run(&options).await,
            Command::Plane(options) => plane::run(&options).await,
            Command::Attach(options) => attach::run(&options).await,
            Command::Probe(options) => probe::run(&options).await,
        }
    })
}
