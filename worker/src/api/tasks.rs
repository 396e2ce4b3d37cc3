//! Containers for the command line, also while no manager can be reached: list, logs, exec.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use orch_model::{
    TaskId,
    service::{PortConfig, Protocol},
    task::TaskState,
};
use orch_proto::{
    conv::ToProto,
    wire::{
        Container, ContainerDetails, ContainerNetwork, ExecInput, ExecOutput, LogLine, LogsRequest, exec_input::Input,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    agent::{self, Agent, Entry, Host, Target, container_id},
    events::task_labels,
    local,
};

const BUFFERED_MESSAGES: usize = 64;
/// Shortest prefix of a container id that is looked up.
const MIN_ID_PREFIX: usize = 3;

pub(super) fn container(host: &Host, entry: &Entry) -> Container {
    let spec = &entry.task.spec.container;
    let image = entry.image.as_deref().and_then(|digest| host.images.store.config_of(digest));
    let mut labels = image.unwrap_or_default().config.labels;
    labels.extend(task_labels(&entry.task));
    let pid = entry.container.as_ref().map_or(0, |container| container.pid());
    let status = &entry.status;
    let own = entry.task.spec.node_network.map(|network| network.name().to_owned()).into_iter();
    // What managers take for starting until it answers is a running container.
    let end = entry.end.clone().unwrap_or_default();
    let had_container = entry.end.is_some() || status.container.is_some();
    let state = container_state(status.state, had_container, pid);
    Container {
        container_id: container_id(&entry.task),
        name: entry.task.container_name(),
        task_id: entry.task.id.to_string(),
        service_id: entry.task.service.to_string(),
        image: spec.image.clone(),
        command: entry.command.clone(),
        created_at_ms: entry.created_at_ms,
        status: Some(status.to_proto()),
        pid,
        labels,
        ports: host.netd.answered(&entry.task.host_ports).iter().map(port_words).collect(),
        shim_pid: 0,
        health: entry.health.map(|health| health.to_proto()),
        state: state.to_owned(),
        started_at_ms: if state == "running" { status.at.unix_ms } else { end.started_at_ms },
        finished_at_ms: match state {
            "exited" if end.finished_at_ms > 0 => end.finished_at_ms,
            "exited" => status.at.unix_ms,
            _ => 0,
        },
        exit_code: status.container.as_ref().and_then(|c| c.exit_code).unwrap_or_default(),
        one_off: false,
        image_digest: entry.image.clone().unwrap_or_default(),
        mounts: spec.mounts.iter().map(|mount| mount.source.clone()).filter(|source| !source.is_empty()).collect(),
        networks: own.chain(attachments(host, entry).map(|network| network.network)).collect(),
    }
}

/// To networks of the cluster.
fn attachments(host: &Host, entry: &Entry) -> impl Iterator<Item = ContainerNetwork> {
    entry.task.networks.iter().map(|attachment| ContainerNetwork {
        network: host.netd.network_name(&attachment.network),
        network_id: attachment.network.to_string(),
        aliases: attachment.aliases.clone(),
        given: attachment.addresses.iter().map(ToString::to_string).collect(),
        ..ContainerNetwork::default()
    })
}

/// Docker's word for a task's container.
fn container_state(state: TaskState, had_container: bool, pid: u32) -> &'static str {
    match state {
        // Refused, or no longer wanted, before it got one.
        state if state.is_terminal() && !had_container => "created",
        state if state.is_terminal() => "exited",
        _ if pid > 0 => "running",
        _ => "created",
    }
}

pub(crate) fn count(host: &Host) -> (u64, u64) {
    let entries = host.entries();
    let running = entries.iter().filter(|entry| entry.status.state == TaskState::Running).count();
    (running as u64, (entries.len() - running) as u64)
}

pub(super) fn logs(agent: &Agent, request: LogsRequest) -> Result<BoxStream<'static, Result<LogLine, Status>>, Status> {
    let options = request.options.unwrap_or_default();
    let mut streams = Vec::new();
    for reference in &request.tasks {
        let target = target(agent, reference)?;
        streams.push(agent::logs(&target, &options).map_err(Status::not_found)?);
    }
    Ok(stream::select_all(streams).map(|line| line.map_err(Status::internal)).boxed())
}

pub(super) async fn exec(
    agent: Arc<Agent>,
    mut inputs: Streaming<ExecInput>,
) -> Result<impl Stream<Item = Result<ExecOutput, Status>>, Status> {
    let Some(Input::Start(start)) = inputs.message().await?.and_then(|first| first.input) else {
        return Err(Status::invalid_argument("the first message must say what to run"));
    };
    if agent.locals.find(&start.task).is_ok_and(|one| one.now().record.paused) {
        let said = format!("Container {} is paused, unpause the container before exec", start.task);
        return Err(Status::failed_precondition(said));
    }
    let target = target(&agent, &start.task)?;
    let (outputs, from_command) = mpsc::channel(BUFFERED_MESSAGES);
    let (failed, failure) = mpsc::channel(1);
    tokio::spawn(async move {
        let rest = inputs.filter_map(|input| std::future::ready(input.ok().and_then(|input| input.input)));
        if let Err(error) = agent::exec(&agent.host.events, target, &start, rest, outputs).await {
            // The caller may be gone.
            let _ = failed.send(Err(Status::failed_precondition(error))).await;
        }
    });
    let outputs = ReceiverStream::new(from_command).map(|output| Ok(ExecOutput { output: Some(output) }));
    Ok(outputs.chain(ReceiverStream::new(failure)))
}

/// A one-off container or a task's.
fn target(agent: &Agent, reference: &str) -> Result<Target, Status> {
    if let Ok(one) = agent.locals.find(reference) {
        return Ok(Target {
            id: one.id.clone(),
            subject: one.subject(),
            container: one.container(),
            log: agent.locals.log_files(&one),
        });
    }
    let task = find(&agent.host, reference)?;
    Target::of_task(&agent.host, &task).map_err(Status::not_found)
}

/// All that is known of a task's container.
pub(super) async fn details(host: &Host, reference: &str) -> Result<ContainerDetails, Status> {
    let task = find(host, reference)?;
    let entry = host.book.entry(&task).ok_or_else(|| Status::not_found(format!("No such container: {reference}")))?;
    let health = match &entry.container {
        Some(container) => container.health().await.ok().flatten(),
        None => None,
    };
    let end = entry.end.clone().unwrap_or_default();
    let address = entry.task.networks.first().and_then(|network| network.addresses.first());
    Ok(ContainerDetails {
        container: Some(container(host, &entry)),
        health: health.as_ref().map(local::health_report).or(end.health),
        oom_killed: end.oom_killed || entry.container.as_ref().is_some_and(|running| running.has_oom_killed()),
        log_path: agent::log_files(host, &entry.task).path.display().to_string(),
        address: address.map(|address| address.ip().to_string()).unwrap_or_default(),
        hostname: agent::prepare::hostname_here(host, &entry.task),
        ports: host.netd.answered(&entry.task.host_ports).to_proto(),
        networks: attachments(host, &entry).collect(),
        error: entry.status.error.clone().unwrap_or_default(),
        apparmor_profile: entry.container.as_ref().and_then(|c| c.apparmor_profile().ok()).unwrap_or_default(),
        ..local::of_task(host, &entry.task, entry.image.as_deref().unwrap_or_default())
    })
}

/// Task id, its unique prefix, task name (`web.5`: as managers have it, the newest that is wanted, else the newest), container
/// name, or a prefix of the container id.
pub(crate) fn find(host: &Host, reference: &str) -> Result<TaskId, Status> {
    let entries = host.entries();
    let exact = |entry: &&Entry| entry.task.id.as_str() == reference || entry.task.container_name() == reference;
    let is_wanted = |entry: &Entry| entry.desired.max(entry.status.state) <= TaskState::Running;
    let newest = |entry: &&Entry| (is_wanted(entry), entry.task.meta.created_at);
    let in_slot = || entries.iter().filter(|entry| entry.task.name() == reference).max_by_key(newest);
    if let Some(entry) = entries.iter().find(exact).or_else(in_slot) {
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

pub(crate) fn port_words(port: &PortConfig) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("{}->{}/{protocol}", port.bound_to(), port.target_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_never_got_a_container_has_not_ended() {
        for (state, had_container, pid, want) in [
            (TaskState::Rejected, false, 0, "created"),
            (TaskState::Failed, false, 0, "created"),
            (TaskState::Shutdown, false, 0, "created"),
            (TaskState::Failed, true, 0, "exited"),
            (TaskState::Complete, true, 0, "exited"),
            (TaskState::Starting, true, 7, "running"),
            (TaskState::Running, true, 7, "running"),
            (TaskState::Preparing, false, 0, "created"),
        ] {
            assert_eq!(container_state(state, had_container, pid), want, "{state:?} {had_container} {pid}");
        }
    }
}
