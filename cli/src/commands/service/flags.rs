//! The flags that `service create` and `service update` share, and what they do to a spec.

use clap::{Args, ValueEnum};
use orch_model::{
    Duration,
    service::{
        Balance, EndpointMode, FailureAction, LogDriver, PlacementStrategy, RestartCondition, ServiceSpec,
        UpdateConfig, UpdateOrder,
    },
};

use super::{capabilities, registry::Wanted};
use crate::{
    commands::health::HealthFlags,
    flags::{duration, key_value, linux, quantity, words},
};

#[derive(Debug, Clone, Default, Args)]
pub(super) struct SpecFlags {
    /// Add Linux capabilities (of update also RESET: nothing that was added until now)
    #[arg(long, value_name = "CAPABILITY", value_parser = capabilities::named)]
    pub(super) cap_add: Vec<String>,
    /// Drop Linux capabilities (of update also RESET: nothing that was dropped until now)
    #[arg(long, value_name = "CAPABILITY", value_parser = capabilities::named)]
    pub(super) cap_drop: Vec<String>,
    /// Endpoint mode
    #[arg(long, value_enum, value_name = "MODE")]
    endpoint_mode: Option<EndpointModeFlag>,
    /// Which task a new connection goes to: each in turn, any, the same for all of one client, or by the nodes' weights
    #[arg(long, value_enum, value_name = "HOW")]
    endpoint_balance: Option<BalanceFlag>,
    /// Tasks on the node where a connection begins or comes in serve before those on others
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    endpoint_prefer_local: Option<bool>,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long, value_name = "COMMAND", value_parser = command_words)]
    entrypoint: Option<Words>,
    #[command(flatten)]
    health: HealthFlags,
    /// Container hostname
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Use an init inside each service container to forward signals and reap processes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    init: Option<bool>,
    /// Limit CPUs
    #[arg(long, value_name = "CPUS", value_parser = quantity::nano_cpus)]
    limit_cpu: Option<u64>,
    /// Limit memory
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes)]
    limit_memory: Option<u64>,
    /// Limit maximum number of processes (0 or -1: unlimited)
    #[arg(long, value_name = "N", value_parser = quantity::processes, allow_hyphen_values = true)]
    limit_pids: Option<u64>,
    /// Logging driver for service
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Logging driver options
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    log_opt: Vec<(String, String)>,
    /// Mount the container's root filesystem as read only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    read_only: Option<bool>,
    /// Number of tasks
    #[arg(long, value_name = "N", value_parser = quantity::count)]
    pub(super) replicas: Option<u64>,
    /// Maximum number of tasks per node (0: unlimited)
    #[arg(long, value_name = "N", value_parser = quantity::count)]
    replicas_max_per_node: Option<u64>,
    /// Which of the nodes that fit: the one with the fewest tasks, or the fullest (default spread)
    #[arg(long, value_enum, value_name = "STRATEGY")]
    placement_strategy: Option<StrategyFlag>,
    /// Number of job tasks to run concurrently (default equal to --replicas)
    #[arg(long, value_name = "N", value_parser = quantity::count)]
    pub(super) max_concurrent: Option<u64>,
    /// Reserve CPUs
    #[arg(long, value_name = "CPUS", value_parser = quantity::nano_cpus)]
    reserve_cpu: Option<u64>,
    /// Reserve memory
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes)]
    reserve_memory: Option<u64>,
    /// Restart when condition is met (default any)
    #[arg(long, value_enum, value_name = "CONDITION")]
    restart_condition: Option<RestartFlag>,
    /// Delay between restart attempts (ns|us|ms|s|m|h) (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    restart_delay: Option<Duration>,
    /// Maximum number of restarts before giving up
    #[arg(long, value_name = "N", value_parser = quantity::count)]
    restart_max_attempts: Option<u64>,
    /// Window used to evaluate the restart policy (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    restart_window: Option<Duration>,
    /// Delay between task rollbacks (ns|us|ms|s|m|h) (default 0s)
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    rollback_delay: Option<Duration>,
    /// Action on rollback failure (pause, continue) (default pause)
    #[arg(long, value_name = "ACTION", value_parser = rollback_action)]
    rollback_failure_action: Option<FailureAction>,
    /// Failure rate to tolerate during a rollback (default 0)
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    rollback_max_failure_ratio: Option<f32>,
    /// Duration after each task rollback to monitor for failure (ns|us|ms|s|m|h) (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    rollback_monitor: Option<Duration>,
    /// Rollback order (default stop-first)
    #[arg(long, value_enum, value_name = "ORDER")]
    rollback_order: Option<OrderFlag>,
    /// Maximum number of tasks rolled back simultaneously (0 to roll back all at once) (default 1)
    #[arg(long, value_name = "N", value_parser = quantity::count)]
    rollback_parallelism: Option<u64>,
    /// Time to wait before force killing a container (ns|us|ms|s|m|h) (default 10s)
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    stop_grace_period: Option<Duration>,
    /// Signal to stop the container
    #[arg(long, value_name = "SIGNAL", value_parser = linux::signal)]
    stop_signal: Option<String>,
    /// Allocate a pseudo-TTY
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    tty: Option<bool>,
    /// Delay between updates (ns|us|ms|s|m|h) (default 0s)
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    update_delay: Option<Duration>,
    /// Action on update failure (pause, continue, rollback) (default pause)
    #[arg(long, value_name = "ACTION", value_parser = failure_action)]
    update_failure_action: Option<FailureAction>,
    /// Failure rate to tolerate during an update (default 0)
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    update_max_failure_ratio: Option<f32>,
    /// Duration after each task update to monitor for failure (ns|us|ms|s|m|h) (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    update_monitor: Option<Duration>,
    /// Update order (default stop-first)
    #[arg(long, value_enum, value_name = "ORDER")]
    update_order: Option<OrderFlag>,
    /// Maximum number of tasks updated simultaneously (0 to update all at once) (default 1)
    #[arg(long, value_name = "N", value_parser = quantity::count)]
    update_parallelism: Option<u64>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long, value_name = "USER", value_parser = linux::user)]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR", value_parser = linux::working_dir)]
    workdir: Option<String>,
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    detach: Option<bool>,
    /// Suppress progress output
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Do not query the registry: nothing does here, managers know which content a name means
    #[arg(long)]
    no_resolve_image: bool,
    /// Send registry authentication details to the nodes that run the service
    #[arg(long)]
    with_registry_auth: bool,
    /// Credential spec for managed service account (Windows only: refused)
    #[arg(long, value_name = "SPEC", value_parser = linux::credential_spec)]
    credential_spec: Option<String>,
    /// Service container isolation mode (default is the only one)
    #[arg(long, value_name = "MODE", value_parser = linux::isolation)]
    isolation: Option<String>,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, value_name = "SCORE", value_parser = linux::oom_score, allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
}

#[derive(Debug, Clone)]
pub(super) struct Words(pub(super) Vec<String>);

pub(super) fn command_words(text: &str) -> Result<Words, String> {
    words::split(text).map(Words)
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EndpointModeFlag {
    Vip,
    Dnsrr,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BalanceFlag {
    RoundRobin,
    Random,
    SourceHash,
    Weighted,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StrategyFlag {
    Spread,
    Pack,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RestartFlag {
    None,
    OnFailure,
    Any,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OrderFlag {
    StartFirst,
    StopFirst,
}

impl SpecFlags {
    /// What to find out about the image; `named`: the command names one.
    pub(super) fn image_wanted(&self, named: bool) -> Wanted {
        Wanted { resolve: named && !self.no_resolve_image, login: self.with_registry_auth }
    }

    pub(super) fn detached(&self) -> bool {
        self.detach.unwrap_or(false)
    }

    /// Writes what was given into the spec and leaves the rest.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), String> {
        self.apply_container(spec);
        self.health.apply(&mut spec.task.container.health)?;
        self.apply_task(spec);
        self.apply_updates(spec);
        Ok(())
    }

    fn apply_container(&self, spec: &mut ServiceSpec) {
        let container = &mut spec.task.container;
        capabilities::change(container, &self.cap_add, &self.cap_drop);
        if let Some(Words(words)) = &self.entrypoint {
            container.command = words.clone();
        }
        set(&mut container.hostname, &self.hostname);
        set(&mut container.user, &self.user);
        set(&mut container.dir, &self.workdir);
        set(&mut container.stop_signal, &self.stop_signal);
        set(&mut container.oom_score_adj, &self.oom_score_adj);
        set(&mut container.tty, &self.tty);
        set(&mut container.read_only, &self.read_only);
        container.init = self.init.or(container.init);
        container.stop_grace_period = self.stop_grace_period.or(container.stop_grace_period);
    }

    fn apply_task(&self, spec: &mut ServiceSpec) {
        let task = &mut spec.task;
        set(&mut task.limits.nano_cpus, &self.limit_cpu);
        set(&mut task.limits.memory_bytes, &self.limit_memory);
        set(&mut task.limits.pids, &self.limit_pids);
        set(&mut task.reservations.nano_cpus, &self.reserve_cpu);
        set(&mut task.reservations.memory_bytes, &self.reserve_memory);
        set(&mut task.placement.max_replicas_per_node, &self.replicas_max_per_node);
        match self.placement_strategy {
            Some(StrategyFlag::Spread) => task.placement.strategy = PlacementStrategy::Spread,
            Some(StrategyFlag::Pack) => task.placement.strategy = PlacementStrategy::Pack,
            None => {}
        }
        set(&mut task.restart.delay, &self.restart_delay);
        set(&mut task.restart.max_attempts, &self.restart_max_attempts);
        set(&mut task.restart.window, &self.restart_window);
        match self.restart_condition {
            Some(RestartFlag::None) => task.restart.condition = RestartCondition::None,
            Some(RestartFlag::OnFailure) => task.restart.condition = RestartCondition::OnFailure,
            Some(RestartFlag::Any) => task.restart.condition = RestartCondition::Any,
            None => {}
        }
        if self.log_driver.is_some() || !self.log_opt.is_empty() {
            let driver = task.log_driver.get_or_insert_with(LogDriver::default);
            if let Some(name) = &self.log_driver {
                // As with Docker: what an option means is the driver's.
                *driver = LogDriver { name: name.clone(), ..LogDriver::default() };
            }
            driver.options.extend(self.log_opt.iter().cloned());
        }
        match self.endpoint_mode {
            Some(EndpointModeFlag::Vip) => spec.endpoint.mode = EndpointMode::Vip,
            Some(EndpointModeFlag::Dnsrr) => spec.endpoint.mode = EndpointMode::DnsRoundRobin,
            None => {}
        }
        if let Some(balance) = self.endpoint_balance {
            spec.endpoint.balance = Some(match balance {
                BalanceFlag::RoundRobin => Balance::RoundRobin,
                BalanceFlag::Random => Balance::Random,
                BalanceFlag::SourceHash => Balance::SourceHash,
                BalanceFlag::Weighted => Balance::Weighted,
            });
        }
        set(&mut spec.endpoint.prefer_local, &self.endpoint_prefer_local);
    }

    fn apply_updates(&self, spec: &mut ServiceSpec) {
        let update = Pace {
            parallelism: self.update_parallelism,
            delay: self.update_delay,
            failure_action: self.update_failure_action,
            monitor: self.update_monitor,
            ratio: self.update_max_failure_ratio,
            order: self.update_order,
        };
        update.apply(&mut spec.update);
        let rollback = Pace {
            parallelism: self.rollback_parallelism,
            delay: self.rollback_delay,
            failure_action: self.rollback_failure_action,
            monitor: self.rollback_monitor,
            ratio: self.rollback_max_failure_ratio,
            order: self.rollback_order,
        };
        rollback.apply(&mut spec.rollback);
    }
}

/// `--update-*` or `--rollback-*`.
struct Pace {
    parallelism: Option<u64>,
    delay: Option<Duration>,
    failure_action: Option<FailureAction>,
    monitor: Option<Duration>,
    ratio: Option<f32>,
    order: Option<OrderFlag>,
}

impl Pace {
    fn apply(self, config: &mut Option<UpdateConfig>) {
        let given = self.parallelism.is_some()
            || self.delay.is_some()
            || self.failure_action.is_some()
            || self.monitor.is_some()
            || self.ratio.is_some()
            || self.order.is_some();
        if !given {
            return;
        }
        let config = config.get_or_insert_default();
        set(&mut config.parallelism, &self.parallelism);
        set(&mut config.delay, &self.delay);
        set(&mut config.failure_action, &self.failure_action);
        set(&mut config.monitor, &self.monitor);
        set(&mut config.max_failure_ratio, &self.ratio);
        match self.order {
            Some(OrderFlag::StartFirst) => config.order = UpdateOrder::StartFirst,
            Some(OrderFlag::StopFirst) => config.order = UpdateOrder::StopFirst,
            None => {}
        }
    }
}

fn set<T: Clone>(slot: &mut T, given: &Option<T>) {
    if let Some(value) = given {
        *slot = value.clone();
    }
}

fn failure_action(text: &str) -> Result<FailureAction, String> {
    match text {
        "pause" => Ok(FailureAction::Pause),
        "continue" => Ok(FailureAction::Continue),
        "rollback" => Ok(FailureAction::Rollback),
        _ => Err("expected pause, continue or rollback".into()),
    }
}

fn rollback_action(text: &str) -> Result<FailureAction, String> {
    match failure_action(text) {
        Ok(action @ (FailureAction::Pause | FailureAction::Continue)) => Ok(action),
        _ => Err("expected pause or continue: a rollback is never rolled back".into()),
    }
}

fn ratio(text: &str) -> Result<f32, String> {
    let ratio = text.parse().ok().filter(|r| (0.0..=1.0).contains(r));
    ratio.ok_or_else(|| "expected a ratio from 0 to 1, such as 0.2".into())
}
