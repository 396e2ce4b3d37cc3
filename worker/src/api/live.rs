//! What containers do and use: pause, limits, counters, processes, events; the disk's use.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use orch_proto::wire::{
    ContainerEvent, ContainerStats, ContainerStatsList, ContainerUsage, DiskUsageReport, EventsRequest, ImageUsage,
    Process, ProcessList, UpdateContainerRequest, VolumeUsage,
};
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::{local::find, local::status, tasks, wire_volume};
use crate::{
    agent::{Agent, container_id},
    contents,
    image::chain,
    local::{LocalError, list_entry},
    runtime::{Container, ProcessInfo},
};

pub(super) async fn set_paused(agent: &Agent, reference: &str, paused: bool) -> Result<(), Status> {
    let one = find(agent, reference)?;
    agent.locals.set_paused(&one, paused).await.map_err(|error| status(&error))
}

pub(super) async fn update(agent: &Agent, request: UpdateContainerRequest) -> Result<(), Status> {
    let one = find(agent, &request.reference)?;
    agent.locals.update(&one, request).await.map_err(|error| status(&error))
}

/// A container by any of its names: its id, its name, and itself while it runs.
pub(super) fn any(agent: &Agent, reference: &str) -> Result<(String, String, Option<Container>), Status> {
    match agent.locals.find(reference) {
        Ok(one) => Ok((one.container_id(), one.name(), one.container())),
        Err(LocalError::NotFound(_)) => {
            let task = tasks::find(&agent.host, reference)?;
            let gone = || Status::not_found(format!("No such container: {reference}"));
            let entry = agent.host.book.entry(&task).ok_or_else(gone)?;
            Ok((container_id(&entry.task), entry.task.container_name(), entry.container))
        }
        Err(error) => Err(status(&error)),
    }
}

pub(super) fn stats(agent: &Agent, references: &[String]) -> Result<ContainerStatsList, Status> {
    let all: Vec<(String, String, Option<Container>)> = if references.is_empty() {
        let ones = agent.locals.all().into_iter().map(|one| (one.container_id(), one.name(), one.container()));
        let entries = agent.host.entries().into_iter();
        let tasks = entries.map(|entry| (container_id(&entry.task), entry.task.container_name(), entry.container));
        ones.chain(tasks).filter(|(_, _, container)| container.is_some()).collect()
    } else {
        references.iter().map(|reference| any(agent, reference)).collect::<Result<_, _>>()?
    };
    let containers = all.into_iter().map(|(container_id, name, container)| {
        let usage = container.map(|container| container.usage()).unwrap_or_default();
        ContainerStats {
            container_id,
            name,
            at_ns: usage.at_ns,
            cpu_ns: usage.cpu_ns,
            memory_bytes: usage.memory_bytes,
            memory_limit_bytes: usage.memory_limit_bytes,
            pids: usage.pids,
            net_rx_bytes: usage.net_rx_bytes,
            net_tx_bytes: usage.net_tx_bytes,
            block_read_bytes: usage.block_read_bytes,
            block_write_bytes: usage.block_write_bytes,
        }
    });
    Ok(ContainerStatsList { containers: containers.collect() })
}

pub(super) fn processes(agent: &Agent, reference: &str) -> Result<ProcessList, Status> {
    let (id, _, container) = any(agent, reference)?;
    let container = container.ok_or_else(|| Status::failed_precondition(format!("Container {id} is not running")))?;
    let wire = |process: ProcessInfo| Process {
        pid: process.pid.unsigned_abs(),
        parent: process.parent.unsigned_abs(),
        uid: process.uid,
        start_ms: process.started_ms,
        cpu_ms: process.cpu_ms,
        tty: process.tty,
        command: process.command,
    };
    Ok(ProcessList { processes: container.processes().into_iter().map(wire).collect() })
}

/// Who uses a volume, by container: mounted by name, or made for that container.
pub(super) fn volume_users(agent: &Agent) -> BTreeMap<String, BTreeSet<String>> {
    let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut owners = BTreeMap::new();
    let of_tasks = agent.host.entries().into_iter().map(|entry| (container_id(&entry.task), entry.task));
    let of_ones = agent.locals.all().into_iter().map(|one| (one.container_id(), one.task.clone()));
    for (id, task) in of_tasks.chain(of_ones) {
        owners.insert(task.id.to_string(), id.clone());
        for mount in task.spec.container.mounts.iter().filter(|mount| !mount.source.is_empty()) {
            if mount.kind == orch_model::service::MountKind::Volume {
                users.entry(mount.source.clone()).or_default().insert(id.clone());
            }
        }
    }
    for volume in agent.host.volumes.list().unwrap_or_default() {
        if let Some(owner) = volume.task.as_ref().and_then(|task| owners.get(task)) {
            users.entry(volume.name).or_default().insert(owner.clone());
        }
    }
    users
}

/// Anonymous volumes are mounts too.
pub(super) fn name_volumes(agent: &Agent, containers: &mut [orch_proto::wire::Container]) {
    for (volume, users) in volume_users(agent) {
        let uses = |container: &&mut orch_proto::wire::Container| {
            users.contains(&container.container_id) && !container.mounts.contains(&volume)
        };
        containers.iter_mut().filter(uses).for_each(|container| container.mounts.push(volume.clone()));
    }
}

pub(super) async fn disk_usage(agent: &Agent) -> Result<DiskUsageReport, Status> {
    let images = super::images::list(agent);
    let mut of_blob: BTreeMap<String, usize> = BTreeMap::new();
    let store = &agent.host.images.store;
    let stored = store.list();
    for image in &stored {
        for layer in image.record.diff_ids.iter().collect::<BTreeSet<_>>() {
            *of_blob.entry(layer.clone()).or_default() += 1;
        }
    }
    let layers: Vec<Vec<std::path::PathBuf>> = stored
        .iter()
        .map(|image| {
            let own = image.record.diff_ids.iter().filter(|layer| of_blob.get(*layer) == Some(&1));
            own.filter_map(|layer| store.layer_path(layer).ok()).collect()
        })
        .collect();
    let users = volume_users(agent);
    let volumes = agent.host.volumes.list().map_err(|error| Status::internal(chain(&error)))?;
    let mut containers: Vec<_> = agent
        .locals
        .all()
        .iter()
        .map(|one| (list_entry(&agent.host, one), agent.host.store.container_dir(&one.id)))
        .collect();
    for entry in agent.host.entries() {
        containers.push((tasks::container(&agent.host, &entry), agent.host.store.container_dir(&entry.task.id)));
    }
    let host = agent.host.clone();
    let measured = tokio::task::spawn_blocking(move || DiskUsageReport {
        images: images
            .into_iter()
            .zip(layers)
            .map(|(image, own)| ImageUsage {
                image: Some(image),
                unique_bytes: own.iter().map(|layer| contents::disk_bytes(layer)).sum(),
            })
            .collect(),
        containers: containers
            .into_iter()
            .map(|(container, dir)| ContainerUsage {
                container: Some(container),
                size_bytes: contents::disk_bytes(&dir.join("upper")),
            })
            .collect(),
        volumes: volumes
            .into_iter()
            .map(|volume| {
                let size_bytes = host.volumes.size_bytes(&volume.name);
                VolumeUsage { size_bytes, volume: Some(wire_volume(volume, &users)) }
            })
            .collect(),
    });
    measured.await.map_err(|error| Status::internal(error.to_string()))
}

/// What happened, and what happens until then; without an end when there is none.
pub(super) fn events(agent: &Agent, request: EventsRequest) -> BoxStream<'static, Result<ContainerEvent, Status>> {
    let (past, receiver) = agent.host.events.listen(request.since_ms);
    let now_ms = crate::agent::unix_ms(std::time::SystemTime::now());
    let until = request.until_ms;
    let past = futures::stream::iter(
        past.into_iter()
            .filter(move |event| until == 0 || event.at_ns / 1_000_000 <= until)
            .map(|event| Ok(Arc::unwrap_or_clone(event))),
    );
    if until > 0 && until <= now_ms {
        return past.boxed();
    }
    let coming = futures::stream::unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Ok(event) => Some((Ok(Arc::unwrap_or_clone(event)), receiver)),
            Err(RecvError::Lagged(missed)) => Some((
                Err(Status::data_loss(format!("{missed} events were missed: they came faster than they were read"))),
                receiver,
            )),
            Err(RecvError::Closed) => None,
        }
    });
    if until == 0 {
        return past.chain(coming).boxed();
    }
    let end = tokio::time::sleep(std::time::Duration::from_millis(until - now_ms));
    past.chain(coming.take_until(end)).boxed()
}
