//! Services and the task template.

use orch_model::service::{
    Balance, Endpoint, EndpointMode, EndpointSpec, FailureAction, LogDriver, Placement, PlacementStrategy,
    ResourceLimits, RestartCondition, RestartPolicy, Service, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
    UpdateOrder, UpdateState, UpdateStatus,
};
use orch_model::{
    Timestamp,
    network::predefined_id,
    node::{GenericResources, Resources},
};
use orch_template::native::Zero;
use serde_json::{Value, json};

use super::{Fields, container::container_spec, head, nanos, port_list};
use crate::render::time;

/// How long a container gets to stop unless the spec says so.
const DEFAULT_GRACE: std::time::Duration = std::time::Duration::from_secs(10);

/// With what a spec leaves open as the daemons take it, as Docker's client asks for it.
pub(crate) fn service(service: &Service) -> Value {
    let mut spec = service.spec.clone();
    spec.task.container.stop_grace_period.get_or_insert(DEFAULT_GRACE);
    spec.update.get_or_insert_default();
    spec.rollback.get_or_insert_default();
    head(service.id.as_str(), &service.meta)
        .always("Spec", service_spec(&spec))
        .some("PreviousSpec", service.previous_spec.as_deref().map(service_spec))
        .always("Endpoint", endpoint(&service.endpoint, &service.spec.endpoint))
        .some("UpdateStatus", service.update_status.as_ref().map(update_status))
        .unset("ServiceStatus", Zero::Pointer)
        .unset("JobStatus", Zero::Pointer)
        .done()
}

fn service_spec(spec: &ServiceSpec) -> Value {
    Fields::default()
        .always("Name", spec.annotations.name.as_str())
        .always("Labels", json!(spec.annotations.labels))
        .always("TaskTemplate", task_spec(&spec.task))
        .always("Mode", mode(spec.mode))
        .some("UpdateConfig", spec.update.as_ref().map(update_config))
        .some("RollbackConfig", spec.rollback.as_ref().map(update_config))
        .unset("Networks", Zero::List)
        .always("EndpointSpec", endpoint_spec(&spec.endpoint))
        .done()
}

fn mode(mode: ServiceMode) -> Value {
    match mode {
        ServiceMode::Replicated { replicas } => json!({"Replicated": {"Replicas": replicas}}),
        ServiceMode::Global => json!({"Global": {}}),
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            json!({"ReplicatedJob": {"MaxConcurrent": max_concurrent, "TotalCompletions": total_completions}})
        }
        ServiceMode::GlobalJob => json!({"GlobalJob": {}}),
    }
}

pub(crate) fn task_spec(spec: &TaskSpec) -> Value {
    let network = |n: &orch_model::service::NetworkAttachmentSpec| {
        Fields::default()
            .always("Target", n.network.as_str())
            .some("Aliases", json!(n.aliases))
            .some("DriverOpts", json!(n.driver_options))
            .done()
    };
    let of_node = spec.node_network.map(|network| json!({"Target": predefined_id(network.name())}));
    Fields::default()
        .always("ContainerSpec", container_spec(&spec.container))
        .always("Resources", resources(spec.limits, spec.reservations, &asked(spec)))
        .always("RestartPolicy", restart(&spec.restart))
        .always("Placement", placement(&spec.placement))
        .some("Networks", spec.networks.iter().map(network).chain(of_node).collect::<Value>())
        .some("LogDriver", spec.log_driver.as_ref().map(log_driver))
        .unset("PluginSpec", Zero::Pointer)
        .unset("NetworkAttachmentSpec", Zero::Pointer)
        .always("ForceUpdate", spec.force_update)
        .always("Runtime", "container")
        .done()
}

fn log_driver(driver: &LogDriver) -> Value {
    Fields::default().some("Name", driver.name.as_str()).some("Options", json!(driver.options)).done()
}

/// What a task asks for is always so many.
fn asked(spec: &TaskSpec) -> GenericResources {
    GenericResources { counted: spec.generic.clone(), ..GenericResources::default() }
}

fn resources(limits: ResourceLimits, reservations: Resources, asked: &GenericResources) -> Value {
    let limits = Fields::default()
        .some("NanoCPUs", limits.nano_cpus)
        .some("MemoryBytes", limits.memory_bytes)
        .some("Pids", limits.pids)
        .done();
    Fields::default().always("Limits", limits).always("Reservations", reserved(reservations, asked)).done()
}

pub(super) fn reserved(resources: Resources, others: &GenericResources) -> Value {
    Fields::default()
        .some("NanoCPUs", resources.nano_cpus)
        .some("MemoryBytes", resources.memory_bytes)
        .some("GenericResources", generic(others))
        .done()
}

/// Docker's two kinds: so many alike, or one by its name.
pub(super) fn generic(resources: &GenericResources) -> Value {
    let counted = resources.counted.iter();
    let counted = counted.map(|(kind, value)| json!({"DiscreteResourceSpec": {"Kind": kind, "Value": value}}));
    let named = resources.named.iter();
    let named = named.map(|one| json!({"NamedResourceSpec": {"Kind": one.kind, "Value": one.name}}));
    counted.chain(named).collect()
}

fn restart(policy: &RestartPolicy) -> Value {
    let condition = match policy.condition {
        RestartCondition::None => "none",
        RestartCondition::OnFailure => "on-failure",
        RestartCondition::Any => "any",
    };
    Fields::default()
        .always("Condition", condition)
        .always("Delay", nanos(policy.delay))
        .always("MaxAttempts", policy.max_attempts)
        .some("Window", nanos(policy.window))
        .done()
}

fn placement(placement: &Placement) -> Value {
    let spread = |s: &String| json!({"Spread": {"SpreadDescriptor": s}});
    Fields::default()
        .some("Constraints", json!(placement.constraints))
        .some("Preferences", placement.spread.iter().map(spread).collect::<Value>())
        .unset("Platforms", Zero::List)
        .some("MaxReplicas", placement.max_replicas_per_node)
        .some("Strategy", if placement.strategy == PlacementStrategy::Pack { "pack" } else { "" })
        .done()
}

/// As Go writes a `float32`: 0, 0.1; not 0.0, 0.10000000149011612.
fn ratio(ratio: f32) -> Value {
    ratio.to_string().parse().map_or(Value::Null, Value::Number)
}

fn update_config(config: &UpdateConfig) -> Value {
    let action = match config.failure_action {
        FailureAction::Pause => "pause",
        FailureAction::Continue => "continue",
        FailureAction::Rollback => "rollback",
    };
    let order = match config.order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    };
    Fields::default()
        .always("Parallelism", config.parallelism)
        .some("Delay", nanos(config.delay))
        .always("FailureAction", action)
        .always("Monitor", nanos(config.monitor))
        .always("MaxFailureRatio", ratio(config.max_failure_ratio))
        .always("Order", order)
        .done()
}

fn endpoint_spec(spec: &EndpointSpec) -> Value {
    Fields::default()
        .always("Mode", endpoint_mode(spec.mode))
        .some("Balance", spec.balance.map(balance).unwrap_or_default())
        .some("PreferLocal", spec.prefer_local)
        .some("Ports", port_list(&spec.ports))
        .done()
}

pub(crate) fn balance(balance: Balance) -> &'static str {
    match balance {
        Balance::RoundRobin => "round-robin",
        Balance::Random => "random",
        Balance::SourceHash => "source-hash",
        Balance::Weighted => "weighted",
    }
}

pub(crate) fn endpoint_mode(mode: EndpointMode) -> &'static str {
    match mode {
        EndpointMode::Vip => "vip",
        EndpointMode::DnsRoundRobin => "dnsrr",
    }
}

fn endpoint(endpoint: &Endpoint, spec: &EndpointSpec) -> Value {
    let vips = endpoint.vips.iter().map(|v| json!({"NetworkID": v.network.as_str(), "Addr": v.addr.to_string()}));
    Fields::default()
        .always("Spec", endpoint_spec(spec))
        .some("Ports", port_list(&endpoint.ports))
        .some("VirtualIPs", vips.collect::<Value>())
        .some("Problem", endpoint.problem.clone().unwrap_or_default())
        .done()
}

pub(crate) fn update_state_word(state: UpdateState) -> &'static str {
    match state {
        UpdateState::Updating => "updating",
        UpdateState::Paused => "paused",
        UpdateState::Completed => "completed",
        UpdateState::RollbackStarted => "rollback_started",
        UpdateState::RollbackPaused => "rollback_paused",
        UpdateState::RollbackCompleted => "rollback_completed",
    }
}

fn update_status(status: &UpdateStatus) -> Value {
    let completed = status.completed_at.map(time::rfc3339);
    let started: Timestamp = status.started_at;
    Fields::default()
        .always("State", update_state_word(status.state))
        .always("StartedAt", time::rfc3339(started))
        .some("CompletedAt", completed)
        .always("Message", status.message.as_str())
        .done()
}
