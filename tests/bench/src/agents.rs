//! Nodes without a worker: they take assignments and say at once that every task runs.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context;
use futures::{SinkExt, channel::mpsc, future::try_join_all};
use orch_model::node::NodeRole;
use orch_proto::{
    pings::until_ping,
    tls::Identity,
    transport,
    wire::{self, dispatcher_client::DispatcherClient},
};
use rand::Rng;
use tokio::{task::JoinSet, time::sleep};
use tonic::transport::Channel;

use crate::managers::Managers;

/// Status updates of one call.
const UPDATES: usize = 200;
/// Nodes that ask for a certificate at the same time.
const JOIN_TOGETHER: usize = 16;
const RETRY: Duration = Duration::from_millis(200);
const MESSAGE_BYTES: usize = 64 << 20;

/// So many nodes, as long as this lives.
pub(crate) struct Agents {
    tasks: JoinSet<()>,
    running: Arc<AtomicUsize>,
}

impl Agents {
    pub(crate) async fn start(managers: &Managers, count: usize) -> anyhow::Result<Self> {
        let running = Arc::new(AtomicUsize::new(0));
        let addrs: Vec<String> = managers.members.iter().map(|m| m.addr.clone()).collect();
        let mut tasks = JoinSet::new();
        let numbers: Vec<usize> = (0..count).collect();
        for some in numbers.chunks(JOIN_TOGETHER) {
            let identities = some.iter().map(|number| async move { managers.join_worker(&format!("w{number}")).await });
            for (number, identity) in some.iter().zip(try_join_all(identities).await?) {
                tasks.spawn(live(identity, addrs.clone(), format!("w{number}"), Arc::clone(&running)));
            }
        }
        Ok(Self { tasks, running })
    }

    /// Tasks that were reported as running.
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) -> usize {
        self.tasks.len()
    }
}

/// Sessions one after the other, with whichever manager leads.
async fn live(identity: Identity, addrs: Vec<String>, hostname: String, running: Arc<AtomicUsize>) {
    let mut reported = BTreeSet::new();
    loop {
        for addr in &addrs {
            // A manager that is down or does not lead: the next one, soon.
            let _ = session(&identity, addr, &hostname, &mut reported, &running).await;
            sleep(RETRY).await;
        }
    }
}

async fn session(
    identity: &Identity,
    addr: &str,
    hostname: &str,
    reported: &mut BTreeSet<String>,
    running: &AtomicUsize,
) -> anyhow::Result<()> {
    let channel = transport::tls_channel(addr, identity, NodeRole::Manager).await?;
    let mut client = DispatcherClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    let description = wire::NodeDescription {
        hostname: hostname.to_owned(),
        platform: Some(wire::Platform { os: "linux".to_owned(), arch: "x86_64".to_owned() }),
        resources: Some(wire::Resources { nano_cpus: 64_000_000_000, memory_bytes: 1 << 40 }),
        engine_version: "bench".to_owned(),
        ..wire::NodeDescription::default()
    };
    let request = wire::SessionRequest { description: Some(description), ..wire::SessionRequest::default() };
    let mut messages = client.session(request).await?.into_inner();
    let first = messages.message().await?.context("no session")?;
    let session_id = first.session_id;
    let mut beats = JoinSet::new();
    beats.spawn(ping(client.clone(), session_id.clone()));
    let mut sets = client.assignments(wire::AssignmentsRequest { session_id: session_id.clone() }).await?.into_inner();
    loop {
        let message = tokio::select! {
            message = sets.message() => message?.context("the assignments ended")?,
            // It only has to be read.
            other = messages.message() => {
                other?.context("the session ended")?;
                continue;
            }
        };
        let task = |assignment: wire::Assignment| match assignment.assignment {
            Some(wire::assignment::Assignment::Task(task)) => task.task.map(|task| task.id),
            _ => None,
        };
        let new: Vec<_> = message.put.into_iter().filter_map(task).filter(|id| !reported.contains(id)).collect();
        for part in new.chunks(UPDATES) {
            report_running(&mut client, &session_id, part).await?;
            running.fetch_add(part.len(), Ordering::Relaxed);
            reported.extend(part.iter().cloned());
        }
        if !message.more {
            let sequence = message.results_in;
            client.ack(wire::AckRequest { session_id: session_id.clone(), sequence }).await?;
        }
    }
}

/// Signs of life as a worker gives them: as often as the leader wants.
async fn ping(mut client: DispatcherClient<Channel>, mut session_id: String) -> anyhow::Result<()> {
    let (mut pings, waiting) = mpsc::channel(1);
    let mut pongs = client.pings(waiting).await?.into_inner();
    loop {
        let view = Some(wire::GossipView::default());
        pings.send(wire::Ping { session_id: std::mem::take(&mut session_id), view }).await?;
        let pong = pongs.message().await?.context("the pings ended")?;
        let jitter = rand::rng().random_range(0.9..1.0);
        let after = Duration::from_millis(pong.period_ms).mul_f64(jitter);
        sleep(until_ping(SystemTime::now(), after)).await;
    }
}

async fn report_running(
    client: &mut DispatcherClient<Channel>,
    session_id: &str,
    tasks: &[String],
) -> anyhow::Result<()> {
    let status = |pid: i64| wire::TaskStatus {
        state: wire::TaskState::Running.into(),
        at: 1,
        message: "started".to_owned(),
        container: Some(wire::ContainerStatus {
            pid: pid.try_into().unwrap_or_default(),
            ..wire::ContainerStatus::default()
        }),
        ..wire::TaskStatus::default()
    };
    let update =
        |(pid, task): (i64, &String)| wire::TaskStatusUpdate { task_id: task.clone(), status: Some(status(pid)) };
    let updates = (1..).zip(tasks).map(update).collect();
    client.update_task_status(wire::UpdateTaskStatusRequest { session_id: session_id.to_owned(), updates }).await?;
    Ok(())
}
