//! `--health-*`: the same for services and one-off containers.

use clap::Args;
use orch_model::{Duration, service::HealthConfig};

use crate::flags::{duration, quantity};

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HealthFlags {
    /// Command to run to check health
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between running the check (ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = duration::of_health)]
    health_interval: Option<Duration>,
    /// Consecutive failures needed to report unhealthy
    #[arg(long, value_name = "N", value_parser = quantity::small_count)]
    health_retries: Option<u32>,
    /// Time between running the check during the start period (ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = duration::of_health)]
    health_start_interval: Option<Duration>,
    /// Start period for the container to initialize before counting retries towards unstable (ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = duration::of_health)]
    health_start_period: Option<Duration>,
    /// Maximum time to allow one check to run (ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = duration::of_health)]
    health_timeout: Option<Duration>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long, conflicts_with = "health_cmd")]
    no_healthcheck: bool,
}

impl HealthFlags {
    /// Writes what was given and leaves the rest.
    pub(crate) fn apply(&self, health: &mut Option<HealthConfig>) -> Result<(), String> {
        let given = self.health_cmd.is_some()
            || self.health_interval.is_some()
            || self.health_retries.is_some()
            || self.health_start_interval.is_some()
            || self.health_start_period.is_some()
            || self.health_timeout.is_some();
        if self.no_healthcheck {
            if given {
                return Err(
                    "--no-healthcheck conflicts with the other --health-* options: leave one of them out".into()
                );
            }
            *health = Some(HealthConfig { test: vec!["NONE".into()], ..no_health() });
        } else if given {
            let health = health.get_or_insert_with(no_health);
            if let Some(command) = &self.health_cmd {
                health.test = vec!["CMD-SHELL".into(), command.clone()];
            }
            health.interval = self.health_interval.or(health.interval);
            health.timeout = self.health_timeout.or(health.timeout);
            health.start_period = self.health_start_period.or(health.start_period);
            health.start_interval = self.health_start_interval.or(health.start_interval);
            health.retries = self.health_retries.unwrap_or(health.retries);
        }
        Ok(())
    }
}

pub(crate) fn no_health() -> HealthConfig {
    HealthConfig {
        test: Vec::new(),
        interval: None,
        timeout: None,
        retries: 0,
        start_period: None,
        start_interval: None,
    }
}
