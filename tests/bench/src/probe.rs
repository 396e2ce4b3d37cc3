//! A client that writes without a pause and says what became of each write: the eyes of the script `failover`.
//!
//! Writes begin at fixed times, whether or not earlier ones were answered, so that one that hangs hides nothing.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use orch_proto::transport;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tonic::transport::Channel;

use crate::raft::create_config;

const EVERY: Duration = Duration::from_millis(25);
const PATIENCE: Duration = Duration::from_secs(8);
const VALUE_BYTES: usize = 512;

#[derive(Args)]
pub(crate) struct Options {
    /// A manager's local socket
    #[arg(long)]
    socket: PathBuf,
}

/// Runs until it is killed. A line per write: when it began and ended (milliseconds since 1970), `ok` or the refusal.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let channel = transport::unix_channel(&options.socket).await?;
    let (mut ticks, mut writes) = (interval(EVERY), JoinSet::new());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => drop(writes.spawn(write(channel.clone()))),
            Some(line) = writes.join_next() => println!("{}", line?),
        }
    }
}

async fn write(channel: Channel) -> String {
    let began = unix_ms();
    let name = format!("probe-{}", rand::random::<u64>());
    let outcome = match timeout(PATIENCE, create_config(channel, name, VALUE_BYTES)).await {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(error)) => error.to_string().replace('\n', " "),
        Err(_) => "no answer".to_owned(),
    };
    format!("{began} {} {outcome}", unix_ms())
}

fn unix_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}
