//! Containers for the command line, also while no manager can be reached: list, logs, exec.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use orch_model::{
    TaskId,
    service::{MountKind, PortConfig, Protocol},
    task::TaskState,
};
use orch_proto::{
    conv::ToProto,
    wire::{Container, ExecInput, ExecOutput, LogLine, LogsRequest, exec_input::Input},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::agent::{self, Entry, Host, container_id};

const BUFFERED_MESSAGES: usize = 64;
/// Shortest prefix of a container id that is looked up.
const MIN_ID_PREFIX: usize = 3;

pub(super) fn container(entry: &Entry) -> Container {
    let spec = &entry.task.spec.container;
    Container {
        container_id: container_id(&entry.task),
        name: entry.task.container_name(),
        task_id: entry.task.id.to_string(),
        service_id: entry.task.service.to_string(),
        image: spec.image.clone(),
        command: entry.command.clone(),
        created_at_ms: entry.created_at_ms,
        status: Some(entry.status.to_proto()),
        pid: entry.container.as_ref().map_or(0, |container| container.pid()),
        labels: spec.labels.clone(),
        ports: entry.task.host_ports.iter().map(port).collect(),
        health: entry.health.map(|health| health.to_proto()),
        ..Container::default()
    }
}

pub(super) fn count(host: &Host) -> (u64, u64) {
    let entries = host.entries();
    let running = entries.iter().filter(|entry| entry.status.state == TaskState::Running).count();
    (running as u64, (entries.len() - running) as u64)
}

/// The container id of a task that mounts the volume and has not been forgotten.
pub(super) fn user_of_volume(host: &Host, name: &str) -> Option<String> {
    let uses = |entry: &Entry| {
        let mut mounts = entry.task.spec.container.mounts.iter();
        mounts.any(|mount| mount.kind == MountKind::Volume && mount.source == name)
    };
    host.entries().iter().find(|entry| uses(entry)).map(|entry| container_id(&entry.task))
}

pub(super) fn logs(host: &Host, request: LogsRequest) -> Result<BoxStream<'static, Result<LogLine, Status>>, Status> {
    let options = request.options.unwrap_or_default();
    let mut streams = Vec::new();
    for reference in &request.tasks {
        let task = find(host, reference)?;
        streams.push(agent::logs(host, &task, &options).map_err(Status::not_found)?);
    }
    Ok(stream::select_all(streams).map(|line| line.map_err(Status::internal)).boxed())
}

pub(super) async fn exec(
    host: Arc<Host>,
    mut inputs: Streaming<ExecInput>,
) -> Result<impl Stream<Item = Result<ExecOutput, Status>>, Status> {
    let Some(Input::Start(start)) = inputs.message().await?.and_then(|first| first.input) else {
        return Err(Status::invalid_argument("the first message must say what to run"));
    };
    let task = find(&host, &start.task)?;
    let (outputs, from_command) = mpsc::channel(BUFFERED_MESSAGES);
    let (failed, failure) = mpsc::channel(1);
    tokio::spawn(async move {
        let rest = inputs.filter_map(|input| std::future::ready(input.ok().and_then(|input| input.input)));
        if let Err(error) = agent::exec(&host, &task, &start, rest, outputs).await {
            // The caller may be gone.
            let _ = failed.send(Err(Status::failed_precondition(error))).await;
        }
    });
    let outputs = ReceiverStream::new(from_command).map(|output| Ok(ExecOutput { output: Some(output) }));
    Ok(outputs.chain(ReceiverStream::new(failure)))
}

/// Task id, its unique prefix, task name (`web.5`), container name, or a prefix of the container id.
fn find(host: &Host, reference: &str) -> Result<TaskId, Status> {
    let entries = host.entries();
    let exact = |entry: &&Entry| {
        entry.task.id.as_str() == reference
            || entry.task.container_name() == reference
            || (entry.task.name() == reference && entry.status.state <= TaskState::Running)
    };
    if let Some(entry) = entries.iter().find(exact) {
        return Ok(entry.task.id.clone());
    }
    let by_prefix = |entry: &&Entry| {
        reference.len() >= MIN_ID_PREFIX
            && (entry.task.id.as_str().starts_with(reference) || container_id(&entry.task).starts_with(reference))
    };
    let mut matches = entries.iter().filter(by_prefix);
    match (matches.next(), matches.next()) {
        (Some(entry), None) => Ok(entry.task.id.clone()),
        (None, _) => Err(Status::not_found(format!("No such container: {reference}"))),
        (Some(_), Some(_)) => {
            Err(Status::invalid_argument(format!("{reference} is the start of several ids: give more of it")))
        }
    }
}

fn port(port: &PortConfig) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("0.0.0.0:{}->{}/{protocol}", port.published_port, port.target_port)
}
