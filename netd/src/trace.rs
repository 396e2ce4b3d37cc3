//! Tries whether packets take the way that [`orch_netd_core::trace`] says they should.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use orch_netd_core::trace::{Probe, Stage, Step, Trace};
use orch_proto::wire::{TraceResponse, TraceStep};
use tokio::task::JoinSet;

use crate::netns::NetNs;

/// Who does not answer in this time is out of reach.
const PATIENCE: Duration = Duration::from_secs(2);
/// Addresses that are tried at most; a service may have thousands of tasks.
const MAX_PROBES: usize = 32;
/// Where hardly anybody listens: the refusal of a connection says that the task is reached.
const DISCARD: u16 = 9;

/// What the engine knows of the way, and where to try it.
pub(crate) struct Traced {
    pub(crate) trace: Trace,
    pub(crate) ns: NetNs,
}

/// `port` 0: what the service says, or any.
pub(crate) async fn walk(traced: Traced, port: u16) -> TraceResponse {
    let Traced { mut trace, ns } = traced;
    let known = if port == 0 { trace.port } else { Some(port) };
    let mut tries = JoinSet::new();
    let left_out = trace.probes.len().saturating_sub(MAX_PROBES);
    for (number, probe) in trace.probes.drain(..).take(MAX_PROBES).enumerate() {
        let ns = ns.clone();
        tries.spawn(async move { (number, reach(&ns, probe, known).await) });
    }
    let mut reached: Vec<_> = tries.join_all().await;
    reached.sort_by_key(|(number, _)| *number);
    trace.steps.extend(reached.into_iter().map(|(_, step)| step));
    if left_out > 0 {
        trace.steps.push(Step::fine(Stage::Reach, format!("{left_out} more addresses were not tried")));
    }
    TraceResponse { steps: trace.steps.iter().map(wire).collect() }
}

async fn reach(ns: &NetNs, probe: Probe, port: Option<u16>) -> Step {
    let addr = SocketAddr::new(probe.addr, port.unwrap_or(DISCARD));
    let start = Instant::now();
    let connected = ns.run(move || TcpStream::connect_timeout(&addr, PATIENCE).map(drop)).await;
    let took = format!("{:.1} ms", start.elapsed().as_secs_f64() * 1000.0);
    let Probe { what, addr: ip } = probe;
    match (connected, port) {
        (Ok(()), _) => Step::fine(Stage::Reach, format!("{what}: {addr} answers after {took}")),
        (Err(error), None) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Step::fine(Stage::Reach, format!("{what}: {ip} is reached, {took}; give a port to see who listens"))
        }
        (Err(error), Some(port)) if error.kind() == io::ErrorKind::ConnectionRefused => Step::broken(
            Stage::Reach,
            format!(
                "{what}: {addr} refuses connections: the task is reached, but nothing listens on port {port} there"
            ),
        ),
        (Err(error), _) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => Step::broken(
            Stage::Reach,
            format!(
                "{what}: {addr} does not answer within {} s: its node may be cut off, or a firewall on the way drops the \
                 tunnel's packets (UDP, port 4789 unless the cluster says another)",
                PATIENCE.as_secs()
            ),
        ),
        (Err(error), _) => Step::broken(Stage::Reach, format!("{what}: {addr} cannot be reached: {error}")),
    }
}

fn wire(step: &Step) -> TraceStep {
    TraceStep { stage: step.stage.word().to_owned(), text: step.text.clone(), broken: step.broken }
}
