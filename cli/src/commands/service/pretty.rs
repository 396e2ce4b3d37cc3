//! `orch service inspect --pretty`.

use std::fmt::Write as _;

use orch_model::service::{Service, ServiceMode, UpdateConfig, UpdateOrder};

use super::list::mode_word;
use crate::{
    flags::{duration, quantity},
    inspect,
    render::ports,
};

pub(super) fn service(service: &Service) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, service);
    out
}

fn write(out: &mut String, service: &Service) -> std::fmt::Result {
    let spec = &service.spec;
    let container = &spec.task.container;
    writeln!(out, "\nID:\t\t{}\nName:\t\t{}", service.id, spec.annotations.name)?;
    if !spec.annotations.labels.is_empty() {
        writeln!(out, "Labels:")?;
        for (key, value) in &spec.annotations.labels {
            writeln!(out, " {key}={value}")?;
        }
    }
    let mode = mode_word(spec.mode);
    writeln!(out, "Service Mode:\t{}{}", mode[..1].to_uppercase(), &mode[1..])?;
    if let ServiceMode::Replicated { replicas } = spec.mode {
        writeln!(out, " Replicas:\t{replicas}")?;
    }
    if let Some(status) = &service.update_status {
        writeln!(out, "UpdateStatus:\n State:\t\t{}", inspect::update_state_word(status.state))?;
        writeln!(out, " Message:\t{}", status.message)?;
    }
    writeln!(out, "Placement:")?;
    if !spec.task.placement.constraints.is_empty() {
        writeln!(out, " Constraints:\t{}", spec.task.placement.constraints.join(", "))?;
    }
    update_config(out, "UpdateConfig", spec.update.as_ref())?;
    update_config(out, "RollbackConfig", spec.rollback.as_ref())?;
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
    for mount in &container.mounts {
        writeln!(
            out,
            "Mounts:\n Target:\t{}\n  Source:\t{}\n  ReadOnly:\t{}",
            mount.target, mount.source, mount.read_only
        )?;
    }
    resources(out, service)?;
    writeln!(out, "Endpoint Mode:\t{}", inspect::endpoint_mode(spec.endpoint.mode))?;
    let published = if service.endpoint.ports.is_empty() { &spec.endpoint.ports } else { &service.endpoint.ports };
    for port in published {
        writeln!(
            out,
            "Ports:\n PublishedPort = {}\n  Protocol = {}\n  TargetPort = {}\n  PublishMode = {}",
            port.published_port,
            ports::protocol_word(port.protocol),
            port.target_port,
            ports::mode_word(port.publish_mode)
        )?;
    }
    if let Some(problem) = &service.endpoint.problem {
        writeln!(out, "Problem:\t{problem}")?;
    }
    Ok(())
}

fn update_config(out: &mut String, heading: &str, config: Option<&UpdateConfig>) -> std::fmt::Result {
    let default = UpdateConfig::default();
    let config = config.unwrap_or(&default);
    writeln!(out, "{heading}:\n Parallelism:\t{}", config.parallelism)?;
    if !config.delay.is_zero() {
        writeln!(out, " Delay:\t\t{}", duration::show(config.delay))?;
    }
    let action = format!("{:?}", config.failure_action).to_lowercase();
    let order = match config.order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    };
    writeln!(out, " On failure:\t{action}\n Monitoring Period: {}", duration::show(config.monitor))?;
    writeln!(out, " Max failure ratio: {}\n Update order:      {order}", config.max_failure_ratio)
}

#[allow(clippy::cast_precision_loss)] // shown with three decimals at most
fn resources(out: &mut String, service: &Service) -> std::fmt::Result {
    let (limits, reserved) = (service.spec.task.limits, service.spec.task.reservations);
    writeln!(out, "Resources:")?;
    let rows = [
        ("Reservations", reserved.nano_cpus, reserved.memory_bytes),
        ("Limits", limits.nano_cpus, limits.memory_bytes),
    ];
    for (heading, nano_cpus, memory) in rows {
        if nano_cpus > 0 || memory > 0 {
            writeln!(out, " {heading}:")?;
        }
        if nano_cpus > 0 {
            writeln!(out, "  CPU:\t\t{}", nano_cpus as f64 / 1e9)?;
        }
        if memory > 0 {
            writeln!(out, "  Memory:\t{}", quantity::human_binary(memory))?;
        }
    }
    Ok(())
}
