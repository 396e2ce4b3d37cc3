//! Services: mode, resources, restart and update policies, placement, ports.

use orch_model::{
    Duration, logging,
    network::{NodeNetwork, is_host_name},
    service::{
        EndpointMode, EndpointSpec, FailureAction, Placement, PublishMode, ResourceLimits, ServiceMode, ServiceSpec,
        TaskSpec, UpdateConfig,
    },
};

use super::{SpecError, container::container_spec, field, labels, service_name};
use crate::{
    constraint::Constraint,
    orchestrator::update::{STEP_LIMIT_LABEL, step_limit},
    scheduler::spread,
};

/// One service may have this many tasks.
const MAX_REPLICAS: u64 = 100_000;
/// 0.001 CPUs.
const MIN_NANO_CPUS: u64 = 1_000_000;
/// Docker's minimum.
const MIN_MEMORY_BYTES: u64 = 4 * 1024 * 1024;
/// What fits into Docker's signed numbers.
const MAX_SIGNED: u64 = i64::MAX.unsigned_abs();
/// Delays and periods beyond a year are mistakes.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// Checks a service.
///
/// # Errors
/// See [`SpecError`].
pub fn service_spec(spec: &ServiceSpec) -> Result<(), SpecError> {
    service_name(&spec.annotations.name)?;
    labels(&spec.annotations)?;
    if let Some(text) = spec.annotations.labels.get(STEP_LIMIT_LABEL).filter(|text| step_limit(text).is_none()) {
        return Err(field(
            "label orch.update.step-limit",
            text,
            "expected a time like 90s, 30m or 2h, or 0 for no limit",
        ));
    }
    mode(spec.mode)?;
    task_spec(&spec.task)?;
    if is_job(spec.mode) && (spec.update.is_some() || spec.rollback.is_some()) {
        return Err(SpecError::Rule(
            "Jobs may not have an update config: a job's tasks run to their end, and a changed job runs anew"
                .to_owned(),
        ));
    }
    for (which, config) in [("update", &spec.update), ("rollback", &spec.rollback)] {
        if let Some(config) = config {
            update_config(which, config)?;
        }
    }
    if spec.task.node_network == Some(NodeNetwork::Host) {
        on_the_host(spec)?;
    }
    endpoint(&spec.endpoint)
}

/// What has no meaning where tasks have the node's own network.
fn on_the_host(spec: &ServiceSpec) -> Result<(), SpecError> {
    let refused = |what: String| {
        Err(SpecError::Rule(format!("a service on the network host has each node's own network for its tasks: {what}")))
    };
    if !spec.task.networks.is_empty() {
        return refused("it cannot be on any other network; name host alone, or leave it out".to_owned());
    }
    if let Some(port) = spec.endpoint.ports.first() {
        return refused(format!(
            "it publishes no ports, what its tasks listen on is on the nodes' addresses already; leave the port {} out",
            port.target_port
        ));
    }
    match spec.task.container.sysctls.keys().find(|key| key.starts_with("net.")) {
        Some(key) => refused(format!("sysctl {key} would change the node; leave it out, or set it on the nodes")),
        None => Ok(()),
    }
}

fn mode(mode: ServiceMode) -> Result<(), SpecError> {
    match mode {
        ServiceMode::Replicated { replicas } if replicas > MAX_REPLICAS => {
            Err(field("replicas", replicas, format!("at most {MAX_REPLICAS}")))
        }
        ServiceMode::Replicated { .. } | ServiceMode::Global => Ok(()),
        ServiceMode::ReplicatedJob { total_completions, .. } if total_completions > MAX_REPLICAS => {
            Err(field("replicas", total_completions, format!("at most {MAX_REPLICAS}")))
        }
        ServiceMode::ReplicatedJob { max_concurrent: 0, total_completions } if total_completions > 0 => {
            Err(field("max-concurrent", 0, "at least 1: with none at once, no task of the job would ever start"))
        }
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => Ok(()),
    }
}

fn is_job(mode: ServiceMode) -> bool {
    matches!(mode, ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob)
}

fn task_spec(task: &TaskSpec) -> Result<(), SpecError> {
    container_spec(&task.container)?;
    limits(&task.limits, task.reservations.nano_cpus, task.reservations.memory_bytes)?;
    let is_kind = |kind: &str| !kind.is_empty() && !kind.contains(|c: char| c.is_whitespace() || c.is_control());
    let is_generic = |kind: &str, count: u64| is_kind(kind) && (1..=MAX_SIGNED).contains(&count);
    if let Some((kind, count)) = task.generic.iter().find(|(kind, count)| !is_generic(kind, **count)) {
        return Err(field("generic resource", format!("{kind}={count}"), "expected KIND=NUMBER, such as GPU=2"));
    }
    if let Some(driver) = &task.log_driver {
        logging::check(driver).map_err(|error| SpecError::Rule(error.to_string()))?;
    }
    duration("restart delay", task.restart.delay)?;
    duration("restart window", task.restart.window)?;
    placement(&task.placement)?;
    for (i, network) in task.networks.iter().enumerate() {
        if task.networks[..i].iter().any(|other| other.network == network.network) {
            return Err(field("network", &network.network, "the service is attached to it twice: name it once"));
        }
        if let Some(alias) = network.aliases.iter().find(|a| !is_host_name(a)) {
            return Err(field("network alias", alias, "it must be a host name"));
        }
    }
    Ok(())
}

fn limits(limits: &ResourceLimits, reserved_cpus: u64, reserved_memory: u64) -> Result<(), SpecError> {
    for (nano_cpus, what) in [(limits.nano_cpus, "limit"), (reserved_cpus, "reservation")] {
        if nano_cpus != 0 && nano_cpus < MIN_NANO_CPUS {
            #[allow(clippy::cast_precision_loss)] // For show.
            let cpus = nano_cpus as f64 / 1e9;
            return Err(SpecError::Rule(format!("invalid cpu value {cpus} as {what}: Must be at least 0.001")));
        }
    }
    for (bytes, what) in [(limits.memory_bytes, "limit"), (reserved_memory, "reservation")] {
        if bytes != 0 && bytes < MIN_MEMORY_BYTES {
            return Err(SpecError::Rule(format!("invalid memory value {bytes} as {what}: Must be at least 4MiB")));
        }
    }
    if limits.pids > MAX_SIGNED {
        return Err(field("limit of processes", limits.pids, format!("at most {MAX_SIGNED}; 0 is without limit")));
    }
    let above = |reserved: u64, limit: u64| limit != 0 && reserved > limit;
    if above(reserved_cpus, limits.nano_cpus) {
        #[allow(clippy::cast_precision_loss)] // For show.
        let [reserved, limit] = [reserved_cpus, limits.nano_cpus].map(|nano_cpus| nano_cpus as f64 / 1e9);
        return Err(above_limit("CPUs", reserved, limit));
    }
    if above(reserved_memory, limits.memory_bytes) {
        return Err(above_limit("bytes of memory", reserved_memory, limits.memory_bytes));
    }
    Ok(())
}

fn above_limit(what: &str, reserved: impl std::fmt::Display, limit: impl std::fmt::Display) -> SpecError {
    SpecError::Rule(format!(
        "a reservation is larger than its limit: {reserved} {what} are reserved and {limit} allowed: lower the \
         reservation or raise the limit"
    ))
}

fn placement(placement: &Placement) -> Result<(), SpecError> {
    for text in &placement.constraints {
        Constraint::submitted(text)?;
    }
    match placement.spread.iter().find(|d| !spread::is_descriptor(d)) {
        Some(text) => Err(field("placement preference", text, "expected node.labels.NAME or engine.labels.NAME")),
        None => Ok(()),
    }
}

fn update_config(which: &str, config: &UpdateConfig) -> Result<(), SpecError> {
    duration("update delay", config.delay)?;
    duration("update monitor period", config.monitor)?;
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(field("update maximum failure ratio", config.max_failure_ratio, "expected a number from 0 to 1"));
    }
    if which == "rollback" && config.failure_action == FailureAction::Rollback {
        return Err(SpecError::Rule(
            "a rollback cannot be rolled back: its failure action must be pause or continue".to_owned(),
        ));
    }
    Ok(())
}

fn endpoint(endpoint: &EndpointSpec) -> Result<(), SpecError> {
    if endpoint.mode == EndpointMode::DnsRoundRobin && endpoint.balance.is_some() {
        return Err(SpecError::Rule(
            "endpoint balance needs endpoint mode vip: with dnsrr a client chooses among the tasks' addresses itself"
                .to_owned(),
        ));
    }
    if endpoint.mode == EndpointMode::DnsRoundRobin && endpoint.prefer_local {
        return Err(SpecError::Rule(
            "to prefer local tasks needs endpoint mode vip: with dnsrr a client chooses among the tasks' addresses itself"
                .to_owned(),
        ));
    }
    for (i, port) in endpoint.ports.iter().enumerate() {
        if port.target_port == 0 {
            return Err(field("target port", port.target_port, "it must be from 1 to 65535"));
        }
        if let Some(addr) = port.host_ip.filter(|addr| !addr.is_ipv4() || addr.is_unspecified() || addr.is_multicast())
        {
            return Err(field(
                "address of a published port",
                addr,
                "expected an IPv4 address of a node, such as 127.0.0.1",
            ));
        }
        if endpoint.mode == EndpointMode::DnsRoundRobin && port.publish_mode == PublishMode::Ingress {
            return Err(SpecError::Rule(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode: publish it in mode \
                 host, or use endpoint mode vip"
                    .to_owned(),
            ));
        }
        let clash = endpoint.ports[..i].iter().any(|other| {
            port.published_port != 0 && other.published_port == port.published_port && other.protocol == port.protocol
        });
        if clash {
            return Err(SpecError::Rule(format!(
                "EndpointSpec: duplicate published ports provided: {} is published twice",
                port.published_port
            )));
        }
    }
    Ok(())
}

fn duration(what: &'static str, value: Duration) -> Result<(), SpecError> {
    if value > MAX_DURATION { Err(field(what, format!("{value:?}"), "at most a year")) } else { Ok(()) }
}
