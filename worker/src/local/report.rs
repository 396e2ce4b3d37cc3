//! Containers as the command line shows them: `orch ps`, `orch inspect`.

use orch_model::{
    service::{MountKind, PortConfig},
    task::Task,
};
use orch_proto::{
    conv::{FromProto, ToProto},
    wire::{self, Container, ContainerDetails, LocalContainer, LocalState, MountPoint},
};

use super::{One, attachment::network_names};
use crate::{
    agent::{Host, prepare},
    api::port_words,
    image::rootfs::Rootfs,
    runtime::HealthState,
};

/// A line of `orch ps`.
pub(crate) fn list_entry(host: &Host, one: &One) -> Container {
    let now = one.now();
    let record = &now.record;
    let spec = &one.task.spec.container;
    let running = now.container.is_some();
    Container {
        container_id: one.container_id(),
        name: record.name.clone(),
        task_id: record.task_id.clone(),
        service_id: String::new(),
        image: spec.image.clone(),
        command: record.command.clone(),
        created_at_ms: record.created_at_ms,
        status: None,
        pid: now.container.as_ref().map_or(0, |container| container.pid()),
        labels: spec.labels.clone(),
        ports: answered(host, record).iter().filter(|_| running).map(port_words).collect(),
        shim_pid: 0,
        health: now.health.map(|health| health.to_proto()),
        state: if record.paused && running { "paused" } else { state_word(record.state()) }.to_owned(),
        started_at_ms: record.started_at_ms,
        finished_at_ms: record.finished_at_ms,
        exit_code: record.exit_code,
        one_off: true,
        image_digest: record.image_digest.clone(),
        mounts: spec.mounts.iter().map(|mount| mount.source.clone()).filter(|source| !source.is_empty()).collect(),
        networks: network_names(record),
    }
}

fn answered(host: &Host, record: &LocalContainer) -> Vec<PortConfig> {
    host.netd.answered(&Vec::from_proto(record.ports.clone()).unwrap_or_default())
}

/// All that is known of a one-off container.
pub(crate) async fn details(host: &Host, one: &One, log_path: String) -> ContainerDetails {
    let container = list_entry(host, one);
    let health = match one.container() {
        Some(container) => container.health().await.ok().flatten(),
        None => None,
    };
    let now = one.now();
    let record = now.record.clone();
    // Containers that an older worker started have it in their own configuration only.
    let running = now.container.as_ref().and_then(|container| container.apparmor_profile().ok());
    ContainerDetails {
        health: health.as_ref().map(health_report).or_else(|| record.health.clone()),
        log_path,
        address: now.address.clone(),
        hostname: crate::agent::prepare::hostname(&one.task),
        ports: answered(host, &record).to_proto(),
        error: record.error.clone(),
        oom_killed: record.oom_killed || now.container.as_ref().is_some_and(|running| running.has_oom_killed()),
        local: Some(record.clone()),
        container: Some(container),
        spec: record.spec.clone(),
        apparmor_profile: running.unwrap_or(record.apparmor_profile),
        ..of_task(host, &one.task, &record.image_digest)
    }
}

/// What a task's specification and its image say.
pub(crate) fn of_task(host: &Host, task: &Task, image_digest: &str) -> ContainerDetails {
    let store = &host.images.store;
    let image = store.by_digest(image_digest);
    let config = image.as_ref().and_then(|image| store.config(&image.record.config).ok()).unwrap_or_default();
    let mut mounts: Vec<MountPoint> = task.spec.container.mounts.iter().map(|mount| mount_point(host, mount)).collect();
    let volumes = host.volumes.of_task(&task.id);
    for (name, target, source) in volumes {
        match mounts.iter_mut().find(|mount| mount.target == target) {
            Some(mount) => (mount.name, mount.source) = (name, source),
            None => {
                mounts.push(MountPoint { kind: "volume".to_owned(), name, source, target, ..MountPoint::default() })
            }
        }
    }
    let said = config.config.clone();
    let words = wire::ImageWords {
        env: said.env,
        entrypoint: said.entrypoint,
        cmd: said.cmd,
        user: said.user,
        working_dir: said.working_dir,
        labels: said.labels.into_iter().collect(),
        stop_signal: said.stop_signal,
        volumes: said.volumes.into_keys().collect(),
        health: said.healthcheck.map(|check| prepare::health_config(check).to_proto()),
    };
    let layers = image.as_ref().and_then(|image| host.images.parts(image).ok()).map(|(_, layers)| layers);
    let rootfs = Rootfs::inside(&host.store.container_dir(&task.id));
    ContainerDetails {
        spec: Some(task.spec.to_proto()),
        files_dir: prepare::network_files_dir(host, &task.id).display().to_string(),
        root: layers.map(|layers| rootfs.dirs(&layers)),
        mounts,
        image: Some(words),
        exposed: config.config.exposed_ports.into_keys().collect(),
        config_digest: image.map(|image| image.record.config).unwrap_or_default(),
        ..ContainerDetails::default()
    }
}

pub(crate) fn health_report(state: &HealthState) -> wire::HealthReport {
    let results = state.results.iter().map(|result| wire::HealthResult {
        start_ns: result.start_ns,
        end_ns: result.end_ns,
        exit_code: result.exit_code,
        output: result.output.clone(),
    });
    wire::HealthReport {
        health: state.health.to_proto(),
        failing_streak: state.failing_streak,
        results: results.collect(),
    }
}

fn mount_point(host: &Host, mount: &orch_model::service::Mount) -> MountPoint {
    let (kind, name, source) = match mount.kind {
        MountKind::Bind => ("bind", String::new(), mount.source.clone()),
        MountKind::Tmpfs => ("tmpfs", String::new(), String::new()),
        MountKind::Volume => ("volume", mount.source.clone(), host.volumes.mountpoint(&mount.source)),
    };
    MountPoint {
        kind: kind.to_owned(),
        name,
        source,
        target: mount.target.clone(),
        read_only: mount.read_only,
        propagation: mount.propagation.clone(),
    }
}

/// Docker's words.
pub(crate) fn state_word(state: LocalState) -> &'static str {
    match state {
        LocalState::Unspecified | LocalState::Created => "created",
        LocalState::Running => "running",
        LocalState::Restarting => "restarting",
        LocalState::Exited => "exited",
        LocalState::Removing => "removing",
    }
}
