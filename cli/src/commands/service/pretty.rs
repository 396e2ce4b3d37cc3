//! `orch service inspect --pretty`.

use std::fmt::Write as _;

use orch_model::{
    Timestamp,
    service::{
        ContainerSpec, FailureAction, HealthConfig, MountKind, Service, ServiceMode, TaskSpec, UpdateConfig,
        UpdateOrder, UpdateState,
    },
    size,
};

use super::list::mode_word;
use crate::{
    flags::duration,
    inspect,
    render::{ports, time},
};

/// `network` names a network by its id, as far as it is known.
pub(super) fn service(service: &Service, now: Timestamp, network: &dyn Fn(&str) -> String) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, service, now, network);
    out
}

fn write(out: &mut String, service: &Service, now: Timestamp, network: &dyn Fn(&str) -> String) -> std::fmt::Result {
    let spec = &service.spec;
    writeln!(out, "\nID:\t\t{}\nName:\t\t{}", service.id, spec.annotations.name)?;
    if !spec.annotations.labels.is_empty() {
        writeln!(out, "Labels:")?;
        for (key, value) in &spec.annotations.labels {
            writeln!(out, " {key}{}{value}", if value.is_empty() { "" } else { "=" })?;
        }
    }
    mode(out, spec.mode)?;
    update_status(out, service, now)?;
    placement(out, &spec.task)?;
    update_config(out, "Update", spec.update.as_ref())?;
    update_config(out, "Rollback", spec.rollback.as_ref())?;
    container(out, &spec.task.container)?;
    files(out, &spec.task.container)?;
    if let Some(driver) = &spec.task.log_driver {
        writeln!(out, "Log Driver:\n Name:\t\t{}", driver.name)?;
        if !driver.options.is_empty() {
            writeln!(out, " LogOpts:")?;
            driver.options.iter().try_for_each(|(key, value)| writeln!(out, "  {key}:\t{value}"))?;
        }
    }
    resources(out, &spec.task)?;
    let of_node = spec.task.node_network.map(|network| network.to_string());
    let names: Vec<_> = spec.task.networks.iter().map(|n| network(n.network.as_str())).chain(of_node).collect();
    if !names.is_empty() {
        writeln!(out, "Networks: {}", names.join(" "))?;
    }
    writeln!(out, "Endpoint Mode:\t{}", inspect::endpoint_mode(spec.endpoint.mode))?;
    let published = if service.endpoint.ports.is_empty() { &spec.endpoint.ports } else { &service.endpoint.ports };
    if !published.is_empty() {
        writeln!(out, "Ports:")?;
    }
    for port in published {
        writeln!(
            out,
            " PublishedPort = {}\n  Protocol = {}\n  TargetPort = {}\n  PublishMode = {}",
            port.published_port,
            ports::protocol_word(port.protocol),
            port.target_port,
            ports::mode_word(port.publish_mode)
        )?;
        if let Some(addr) = port.host_ip {
            writeln!(out, "  HostIP = {addr}")?;
        }
        if port.masquerade {
            writeln!(out, "  Source = masquerade")?;
        }
    }
    if let Some(problem) = &service.endpoint.problem {
        writeln!(out, "Problem:\t{problem}")?;
    }
    spec.task.container.health.as_ref().map_or(Ok(()), |check| health(out, check))
}

fn mode(out: &mut String, mode: ServiceMode) -> std::fmt::Result {
    let word = mode_word(mode);
    writeln!(out, "Service Mode:\t{}{}", word[..1].to_uppercase(), &word[1..])?;
    match mode {
        ServiceMode::Replicated { replicas } => writeln!(out, " Replicas:\t{replicas}"),
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            writeln!(out, " Max Concurrent:\t{max_concurrent}\n Total Completions:\t{total_completions}")
        }
        ServiceMode::Global | ServiceMode::GlobalJob => Ok(()),
    }
}

fn update_status(out: &mut String, service: &Service, now: Timestamp) -> std::fmt::Result {
    let Some(status) = &service.update_status else { return Ok(()) };
    writeln!(out, "UpdateStatus:\n State:\t\t{}", inspect::update_state_word(status.state))?;
    writeln!(out, " Started:\t{}", time::ago(status.started_at, now))?;
    let is_completed = matches!(status.state, UpdateState::Completed | UpdateState::RollbackCompleted);
    if let Some(at) = status.completed_at.filter(|_| is_completed) {
        writeln!(out, " Completed:\t{}", time::ago(at, now))?;
    }
    writeln!(out, " Message:\t{}", status.message)
}

fn placement(out: &mut String, task: &TaskSpec) -> std::fmt::Result {
    let placement = &task.placement;
    writeln!(out, "Placement:")?;
    if !placement.constraints.is_empty() {
        writeln!(out, " Constraints:\t{}", placement.constraints.join(", "))?;
    }
    if !placement.spread.is_empty() {
        let preferences: Vec<_> = placement.spread.iter().map(|over| format!("spread={over}")).collect();
        writeln!(out, " Preferences:   {}", preferences.join(", "))?;
    }
    if placement.max_replicas_per_node > 0 {
        writeln!(out, " Max Replicas Per Node:   {}", placement.max_replicas_per_node)?;
    }
    Ok(())
}

fn update_config(out: &mut String, which: &str, config: Option<&UpdateConfig>) -> std::fmt::Result {
    let default = UpdateConfig::default();
    let config = config.unwrap_or(&default);
    writeln!(out, "{which}Config:\n Parallelism:\t{}", config.parallelism)?;
    if !config.delay.is_zero() {
        writeln!(out, " Delay:\t\t{}", duration::show(config.delay))?;
    }
    let action = match config.failure_action {
        FailureAction::Pause => "pause",
        FailureAction::Continue => "continue",
        FailureAction::Rollback => "rollback",
    };
    let order = match config.order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    };
    writeln!(out, " On failure:\t{action}\n Monitoring Period: {}", duration::show(config.monitor))?;
    writeln!(out, " Max failure ratio: {}\n {which} order:      {order}", config.max_failure_ratio)
}

fn container(out: &mut String, container: &ContainerSpec) -> std::fmt::Result {
    writeln!(out, "ContainerSpec:\n Image:\t\t{}", container.image)?;
    for (heading, words) in [("Command", &container.command), ("Args", &container.args), ("Env", &container.env)] {
        if !words.is_empty() {
            writeln!(out, " {heading}:\t\t{}", words.join(" "))?;
        }
    }
    for (heading, text) in [("Dir", &container.dir), ("User", &container.user), ("Hostname", &container.hostname)] {
        if !text.is_empty() {
            writeln!(out, " {heading}:\t\t{text}")?;
        }
    }
    if let Some(init) = container.init {
        writeln!(out, " Init:\t\t{init}")?;
    }
    if !container.cap_add.is_empty() || !container.cap_drop.is_empty() {
        writeln!(out, "Capabilities:")?;
    }
    for (heading, names) in [("Add", &container.cap_add), ("Drop", &container.cap_drop)] {
        if !names.is_empty() {
            writeln!(out, " {heading}: {}", names.join(", "))?;
        }
    }
    if !container.sysctls.is_empty() {
        writeln!(out, "SysCtls:")?;
        container.sysctls.iter().try_for_each(|(key, value)| writeln!(out, " {key}: {value}"))?;
    }
    if !container.ulimits.is_empty() {
        writeln!(out, "Ulimits:")?;
        let mut show = |l: &orch_model::service::Ulimit| writeln!(out, " {}: {}:{}", l.name, l.soft, l.hard);
        container.ulimits.iter().try_for_each(&mut show)?;
    }
    if container.oom_score_adj != 0 {
        writeln!(out, "OomScoreAdj: {}", container.oom_score_adj)?;
    }
    Ok(())
}

fn files(out: &mut String, container: &ContainerSpec) -> std::fmt::Result {
    if !container.mounts.is_empty() {
        writeln!(out, "Mounts:")?;
    }
    for mount in &container.mounts {
        let kind = match mount.kind {
            MountKind::Volume => "volume",
            MountKind::Bind => "bind",
            MountKind::Tmpfs => "tmpfs",
        };
        writeln!(
            out,
            " Target:\t{}\n  Source:\t{}\n  ReadOnly:\t{}\n  Type:\t\t{kind}",
            mount.target, mount.source, mount.read_only
        )?;
    }
    let configs = container.configs.iter().map(|file| (&file.target, &file.name)).collect();
    let secrets = container.secrets.iter().map(|file| (&file.target, &file.name)).collect();
    for (heading, files) in [("Configs", configs), ("Secrets", secrets)] {
        let files: Vec<(&String, &String)> = files;
        if !files.is_empty() {
            writeln!(out, "{heading}:")?;
        }
        for (target, source) in files {
            let target = if target.is_empty() { source } else { target };
            writeln!(out, " Target:\t{target}\n  Source:\t{source}")?;
        }
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // shown with three decimals at most
fn resources(out: &mut String, task: &TaskSpec) -> std::fmt::Result {
    let (limits, reserved) = (task.limits, task.reservations);
    writeln!(out, "Resources:")?;
    let rows = [
        ("Reservations", reserved.nano_cpus, reserved.memory_bytes, 0),
        ("Limits", limits.nano_cpus, limits.memory_bytes, limits.pids),
    ];
    for (heading, nano_cpus, memory, pids) in rows {
        let generic = (heading == "Reservations").then_some(&task.generic).filter(|generic| !generic.is_empty());
        if nano_cpus > 0 || memory > 0 || pids > 0 || generic.is_some() {
            writeln!(out, " {heading}:")?;
        }
        if nano_cpus > 0 {
            writeln!(out, "  CPU:\t\t{}", nano_cpus as f64 / 1e9)?;
        }
        if memory > 0 {
            writeln!(out, "  Memory:\t{}", size::human_binary(memory))?;
        }
        if pids > 0 {
            writeln!(out, "  PIDs:\t\t{pids}")?;
        }
        for (kind, count) in generic.into_iter().flatten() {
            writeln!(out, "  {kind}:\t\t{count}")?;
        }
    }
    Ok(())
}

fn health(out: &mut String, check: &HealthConfig) -> std::fmt::Result {
    writeln!(out, "Healthcheck:")?;
    let times = [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ];
    for (heading, time) in times {
        if let Some(time) = time {
            writeln!(out, " {heading}:\t{}", duration::show(time))?;
        }
    }
    if check.retries > 0 {
        writeln!(out, " Retries:\t{}", check.retries)?;
    }
    writeln!(out, " Tests:\n\tTest:\t{}", check.test.join(" "))
}
