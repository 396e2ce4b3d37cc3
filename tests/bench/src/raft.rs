//! Writes per second: three managers beside three members of etcd, in turn, on the same disk.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::Args;
use orch_proto::wire::{self, control_client::ControlClient};
use tonic::transport::Channel;

use crate::{
    etcd::{self, Etcd},
    load::{self, Outcome, median},
    managers::Managers,
};

const VALUE_BYTES: usize = 512;
/// Clients share connections beyond this number, on both sides.
const CONNECTIONS: usize = 32;
const HEARTBEAT: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long, default_value = "target/release/orch")]
    orch: PathBuf,
    #[arg(long, default_value = "/usr/bin/etcd")]
    etcd: PathBuf,
    /// Leave etcd out
    #[arg(long)]
    no_peer: bool,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per number of clients and round
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    #[arg(long, value_delimiter = ',', default_value = "1,16,256")]
    clients: Vec<usize>,
    /// Where the data folders are made: both peers' on the same disk
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

/// The outcomes of one number of clients, a pair per round.
struct Row {
    clients: usize,
    orch: Vec<Outcome>,
    etcd: Vec<Outcome>,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let row = |clients: &usize| Row { clients: *clients, orch: Vec::new(), etcd: Vec::new() };
    let mut rows: Vec<Row> = options.clients.iter().map(row).collect();
    for round in 0..options.rounds {
        // Who goes first changes, so that neither always meets the warmer machine.
        for turn in 0..2 {
            let dir = tempfile::Builder::new().prefix("orch-bench").tempdir_in(&options.dir)?;
            if (round + turn) % 2 == 0 {
                let managers = Managers::start(&options.orch, dir.path(), 3, HEARTBEAT).await?;
                for row in &mut rows {
                    row.orch.push(orch_writes(&managers, row.clients, options).await?);
                    report(round, "orch", row.clients, row.orch.last());
                }
            } else if !options.no_peer {
                let members = Etcd::start(&options.etcd, dir.path()).await?;
                for row in &mut rows {
                    row.etcd.push(etcd_writes(&members, row.clients, options).await?);
                    report(round, "etcd", row.clients, row.etcd.last());
                }
            }
        }
    }
    print_table(&rows);
    Ok(())
}

async fn orch_writes(managers: &Managers, clients: usize, options: &Options) -> anyhow::Result<Outcome> {
    let leader = managers.leader().await?;
    let channels = channels(clients, async || managers.connect(leader).await).await?;
    let before: Vec<f64> = managers.members.iter().map(|m| m.process()?.cpu_seconds()).collect::<Result<_, _>>()?;
    let writer = |number: usize| {
        let channel = channels[number % channels.len()].clone();
        move |unique: u64| create_config(channel.clone(), format!("bench-{unique}"), VALUE_BYTES)
    };
    let outcome = load::run((0..clients).map(writer).collect(), Duration::from_secs(options.seconds)).await?;
    let used = managers.members.iter().zip(before).map(|(m, was)| anyhow::Ok(m.process()?.cpu_seconds()? - was));
    let used: Vec<String> = used.map(|s| Ok(format!("{:.1}", s?))).collect::<anyhow::Result<_>>()?;
    eprintln!("  processor seconds of the managers: {} (leader: {leader})", used.join(" "));
    Ok(outcome)
}

async fn etcd_writes(members: &Etcd, clients: usize, options: &Options) -> anyhow::Result<Outcome> {
    let leader = members.leader().await?;
    let channels = channels(clients, async || members.connect(leader).await).await?;
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let writer = |number: usize| {
        let (channel, value) = (channels[number % channels.len()].clone(), value.clone());
        move |unique: u64| etcd::put(channel.clone(), format!("bench-{unique}"), value.clone())
    };
    load::run((0..clients).map(writer).collect(), Duration::from_secs(options.seconds)).await
}

async fn channels(clients: usize, connect: impl AsyncFn() -> anyhow::Result<Channel>) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for _ in 0..clients.min(CONNECTIONS) {
        channels.push(connect().await?);
    }
    Ok(channels)
}

/// Stores one value through the control API.
pub(crate) async fn create_config(channel: Channel, name: String, bytes: usize) -> anyhow::Result<()> {
    let annotations = Some(wire::Annotations { name, ..wire::Annotations::default() });
    let config = wire::ConfigSpec { annotations, data: vec![b'v'; bytes].into(), template: None };
    let spec = Some(wire::Spec { spec: Some(wire::spec::Spec::Config(config)) });
    ControlClient::new(channel).create(wire::CreateRequest { spec }).await?;
    Ok(())
}

fn report(round: usize, who: &str, clients: usize, outcome: Option<&Outcome>) {
    let Some(Outcome { per_second, p50, p99, max }) = outcome else { return };
    eprintln!("round {round} {who}: {clients} clients: {per_second:.0}/s, p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}");
}

fn print_table(rows: &[Row]) {
    println!("| clients | Orch: writes/s (range) | etcd: writes/s (range) | ratio | Orch: p50, p99 | etcd: p50, p99 |");
    println!("|---|---|---|---|---|---|");
    for Row { clients, orch, etcd } in rows {
        let rate = |outcomes: &[Outcome]| median(outcomes.iter().map(|o| o.per_second));
        let rates = |outcomes: &[Outcome]| {
            let all = outcomes.iter().map(|o| o.per_second);
            let (low, high) = (all.clone().fold(f64::INFINITY, f64::min), all.fold(0.0, f64::max));
            format!("{:.0} ({low:.0}-{high:.0})", rate(outcomes))
        };
        let millis = |outcomes: &[Outcome], pick: fn(&Outcome) -> Duration| {
            format!("{:.1} ms", median(outcomes.iter().map(|o| pick(o).as_secs_f64() * 1000.0)))
        };
        let times = |outcomes: &[Outcome]| format!("{}, {}", millis(outcomes, |o| o.p50), millis(outcomes, |o| o.p99));
        println!(
            "| {clients} | {} | {} | {:.2}x | {} | {} |",
            rates(orch),
            rates(etcd),
            rate(orch) / rate(etcd),
            times(orch),
            times(etcd)
        );
    }
}
