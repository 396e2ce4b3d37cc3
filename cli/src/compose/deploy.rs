//! `deploy:` of a service.

use std::collections::BTreeMap;

use orch_model::service::{
    EndpointMode, FailureAction, RestartCondition, RestartPolicy, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder,
};

use super::{convert::Reader, error::ComposeError, yaml::Node};
use crate::flags::{duration, quantity};

pub(super) fn apply(reader: &Reader<'_>, node: &Node, path: &str, spec: &mut ServiceSpec) -> Result<(), ComposeError> {
    if node.get("mode").or(node.get("replicas")).is_some() {
        spec.mode = mode(reader, node, path, &spec.mode)?;
    }
    spec.update = node.get("update_config").map(|n| pace(reader, n, &format!("{path}.update_config"))).transpose()?;
    spec.rollback =
        node.get("rollback_config").map(|n| pace(reader, n, &format!("{path}.rollback_config"))).transpose()?;
    if let Some(endpoint) = node.get("endpoint_mode") {
        spec.endpoint.mode = reader.parsed(endpoint, &format!("{path}.endpoint_mode"), |text| match text {
            "vip" => Ok(EndpointMode::Vip),
            "dnsrr" => Ok(EndpointMode::DnsRoundRobin),
            _ => Err("expected vip or dnsrr".into()),
        })?;
    }
    if let Some(resources) = node.get("resources") {
        apply_resources(reader, resources, &format!("{path}.resources"), spec)?;
    }
    if let Some(policy) = node.get("restart_policy") {
        spec.task.restart = RestartPolicy::default();
        apply_restart(reader, policy, &format!("{path}.restart_policy"), spec)?;
    }
    if let Some(placement) = node.get("placement") {
        apply_placement(reader, placement, &format!("{path}.placement"), spec)?;
    }
    Ok(())
}

/// `scaled` is what `scale:` outside `deploy:` made; its number stays where `deploy:` has none.
fn mode(reader: &Reader<'_>, node: &Node, path: &str, scaled: &ServiceMode) -> Result<ServiceMode, ComposeError> {
    let replicas = node.get("replicas").map(|n| reader.number(n, &format!("{path}.replicas"))).transpose()?;
    let count = match (replicas, scaled) {
        (Some(count), _) | (None, &ServiceMode::Replicated { replicas: count }) => count,
        (None, ServiceMode::Global | ServiceMode::GlobalJob | ServiceMode::ReplicatedJob { .. }) => 1,
    };
    let Some(mode) = node.get("mode") else { return Ok(ServiceMode::Replicated { replicas: count }) };
    let mode_path = format!("{path}.mode");
    let made = reader.parsed(mode, &mode_path, |text| match text {
        "replicated" => Ok(ServiceMode::Replicated { replicas: count }),
        "global" => Ok(ServiceMode::Global),
        "replicated-job" => Ok(ServiceMode::ReplicatedJob { max_concurrent: count, total_completions: count }),
        "global-job" => Ok(ServiceMode::GlobalJob),
        _ => Err("expected replicated, global, replicated-job or global-job".into()),
    })?;
    if replicas.is_some() && matches!(made, ServiceMode::Global | ServiceMode::GlobalJob) {
        return Err(reader
            .error(mode, format!("{mode_path}: replicas can only be used with replicated or replicated-job mode")));
    }
    Ok(made)
}

fn pace(reader: &Reader<'_>, node: &Node, path: &str) -> Result<UpdateConfig, ComposeError> {
    let mut config = UpdateConfig::default();
    if let Some(n) = node.get("parallelism") {
        config.parallelism = reader.number(n, &format!("{path}.parallelism"))?;
    }
    if let Some(n) = node.get("delay") {
        config.delay = reader.parsed(n, &format!("{path}.delay"), duration::parse)?;
    }
    if let Some(n) = node.get("monitor") {
        config.monitor = reader.parsed(n, &format!("{path}.monitor"), duration::parse)?;
    }
    if let Some(n) = node.get("max_failure_ratio") {
        config.max_failure_ratio = reader.parsed(n, &format!("{path}.max_failure_ratio"), |text| {
            text.parse().ok().filter(|r| (0.0..=1.0).contains(r)).ok_or_else(|| "expected a ratio from 0 to 1".into())
        })?;
    }
    if let Some(n) = node.get("failure_action") {
        config.failure_action = reader.parsed(n, &format!("{path}.failure_action"), |text| match text {
            "pause" => Ok(FailureAction::Pause),
            "continue" => Ok(FailureAction::Continue),
            "rollback" if path.ends_with("update_config") => Ok(FailureAction::Rollback),
            _ => Err("expected pause, continue or (for updates) rollback".into()),
        })?;
    }
    if let Some(n) = node.get("order") {
        config.order = reader.parsed(n, &format!("{path}.order"), |text| match text {
            "stop-first" => Ok(UpdateOrder::StopFirst),
            "start-first" => Ok(UpdateOrder::StartFirst),
            _ => Err("expected stop-first or start-first".into()),
        })?;
    }
    Ok(config)
}

fn apply_resources(reader: &Reader<'_>, node: &Node, path: &str, spec: &mut ServiceSpec) -> Result<(), ComposeError> {
    for section in ["limits", "reservations"] {
        let Some(inner) = node.get(section) else { continue };
        let path = format!("{path}.{section}");
        let cpus = inner.get("cpus").map(|n| reader.parsed(n, &format!("{path}.cpus"), quantity::nano_cpus));
        let memory = inner.get("memory").map(|n| reader.parsed(n, &format!("{path}.memory"), quantity::bytes));
        let (cpus, memory) = (cpus.transpose()?, memory.transpose()?);
        if section == "limits" {
            let limits = &mut spec.task.limits;
            limits.nano_cpus = cpus.unwrap_or(limits.nano_cpus);
            limits.memory_bytes = memory.unwrap_or(limits.memory_bytes);
            limits.pids = inner.get("pids").map(|n| reader.number(n, &path)).transpose()?.unwrap_or(limits.pids);
        } else {
            let reservations = &mut spec.task.reservations;
            reservations.nano_cpus = cpus.unwrap_or(reservations.nano_cpus);
            reservations.memory_bytes = memory.unwrap_or(reservations.memory_bytes);
            spec.task.generic.extend(generic_resources(reader, inner, &path)?);
        }
    }
    Ok(())
}

/// How many of each kind a task is to have to itself.
fn generic_resources(
    reader: &Reader<'_>,
    reservations: &Node,
    path: &str,
) -> Result<BTreeMap<String, u64>, ComposeError> {
    let path = format!("{path}.generic_resources");
    let mut found = BTreeMap::new();
    for item in reservations.get("generic_resources").map(Node::items).unwrap_or_default() {
        let Some(discrete) = item.get("discrete_resource_spec") else { continue };
        let (Some(kind), Some(value)) = (discrete.get("kind"), discrete.get("value")) else {
            let message = format!("{path}: write both `kind` and `value`, such as kind: GPU, value: 2");
            return Err(reader.error(discrete, message));
        };
        found.insert(reader.text(kind, &path)?, reader.number(value, &path)?);
    }
    Ok(found)
}

/// Limits and a number of replicas outside `deploy:`, which goes before them.
pub(super) fn older_limits(
    reader: &Reader<'_>,
    node: &Node,
    path: &str,
    spec: &mut ServiceSpec,
) -> Result<(), ComposeError> {
    let (limits, reservations) = (&mut spec.task.limits, &mut spec.task.reservations);
    if let Some(n) = node.get("cpus") {
        limits.nano_cpus = reader.parsed(n, &format!("{path}.cpus"), quantity::nano_cpus)?;
    }
    if let Some(n) = node.get("mem_limit") {
        limits.memory_bytes = reader.parsed(n, &format!("{path}.mem_limit"), quantity::bytes)?;
    }
    if let Some(n) = node.get("mem_reservation") {
        reservations.memory_bytes = reader.parsed(n, &format!("{path}.mem_reservation"), quantity::bytes)?;
    }
    if let Some(n) = node.get("pids_limit").filter(|n| n.text() != Some("-1")) {
        limits.pids = reader.number(n, &format!("{path}.pids_limit"))?;
    }
    if let Some(n) = node.get("scale") {
        spec.mode = ServiceMode::Replicated { replicas: reader.number(n, &format!("{path}.scale"))? };
    }
    Ok(())
}

/// The older `restart:`; `deploy.restart_policy` goes before it.
pub(super) fn restart(
    reader: &Reader<'_>,
    node: &Node,
    path: &str,
    spec: &mut ServiceSpec,
) -> Result<(), ComposeError> {
    let (condition, attempts) = reader.parsed(node, path, |text| {
        let (word, attempts) = text.split_once(':').map_or((text, None), |(word, n)| (word, Some(n)));
        let attempts =
            attempts.map_or(Ok(0), str::parse::<u64>).map_err(|_| "expected on-failure:NUMBER".to_owned())?;
        match word {
            "always" | "unless-stopped" => Ok((Some(RestartCondition::Any), attempts)),
            "on-failure" => Ok((Some(RestartCondition::OnFailure), attempts)),
            "no" | "" | "false" => Ok((None, 0)),
            _ => Err("expected no, always, unless-stopped or on-failure[:NUMBER]".to_owned()),
        }
    })?;
    if let Some(condition) = condition {
        spec.task.restart.condition = condition;
        spec.task.restart.max_attempts = attempts;
    }
    Ok(())
}

fn apply_restart(reader: &Reader<'_>, node: &Node, path: &str, spec: &mut ServiceSpec) -> Result<(), ComposeError> {
    let policy = &mut spec.task.restart;
    if let Some(n) = node.get("condition") {
        policy.condition = reader.parsed(n, &format!("{path}.condition"), |text| match text {
            "none" => Ok(RestartCondition::None),
            "on-failure" => Ok(RestartCondition::OnFailure),
            "any" => Ok(RestartCondition::Any),
            _ => Err("expected none, on-failure or any".into()),
        })?;
    }
    if let Some(n) = node.get("delay") {
        policy.delay = reader.parsed(n, &format!("{path}.delay"), duration::parse)?;
    }
    if let Some(n) = node.get("max_attempts") {
        policy.max_attempts = reader.number(n, &format!("{path}.max_attempts"))?;
    }
    if let Some(n) = node.get("window") {
        policy.window = reader.parsed(n, &format!("{path}.window"), duration::parse)?;
    }
    Ok(())
}

fn apply_placement(reader: &Reader<'_>, node: &Node, path: &str, spec: &mut ServiceSpec) -> Result<(), ComposeError> {
    let placement = &mut spec.task.placement;
    for constraint in node.get("constraints").map(Node::items).unwrap_or_default() {
        let path = format!("{path}.constraints");
        placement.constraints.push(reader.parsed(constraint, &path, crate::commands::service::constraint)?);
    }
    for preference in node.get("preferences").map(Node::items).unwrap_or_default() {
        let path = format!("{path}.preferences");
        if let Some(spread) = preference.get("spread") {
            placement.spread.push(reader.text(spread, &path)?);
        }
    }
    if let Some(n) = node.get("max_replicas_per_node") {
        placement.max_replicas_per_node = reader.number(n, &format!("{path}.max_replicas_per_node"))?;
    }
    Ok(())
}
