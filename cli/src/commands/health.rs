//! `--health-*`: the same for services and one-off containers.

use clap::Args;
use orch_model::{Duration, service::HealthConfig};

use crate::flags::{duration, quantity};

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HealthFlags {
    /// Command to run to check health ("" for the image's own)
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
    /// Writes what was given and leaves the rest, by Docker's rules.
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
            match self.health_cmd.as_deref() {
                // The image's own.
                Some("") => health.test = Vec::new(),
                Some(command) => health.test = vec!["CMD-SHELL".into(), command.to_owned()],
                // Settings are for a check: there is one again.
                None if health.test.first().is_some_and(|kind| kind == "NONE") => health.test = Vec::new(),
                None => {}
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        health: HealthFlags,
    }

    /// The check that there is, what is given, and the check afterwards.
    #[test]
    fn the_images_check_comes_back_as_with_docker() {
        for (before, line, after) in [
            (&["CMD-SHELL", "true"][..], &["--health-cmd", ""][..], &[][..]),
            (&["NONE"], &["--health-cmd", ""], &[]),
            (&["NONE"], &["--health-interval", "5s"], &[]),
            (&["NONE"], &["--health-cmd", "true"], &["CMD-SHELL", "true"]),
            (&["CMD-SHELL", "true"], &["--health-interval", "5s"], &["CMD-SHELL", "true"]),
            (&["CMD-SHELL", "true"], &["--no-healthcheck"], &["NONE"]),
        ] {
            let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            let mut health = Some(HealthConfig { test: words(before), ..no_health() });
            let given = Line::try_parse_from([&["x"], line].concat()).unwrap();
            given.health.apply(&mut health).unwrap();
            assert_eq!(health.unwrap().test, words(after), "{before:?} {line:?}");
        }
    }
}
