//! From what the service and the image say about health to a complete plan, and what a shim says came of it.

use std::time::Duration;

use orch_model::{service::HealthConfig, task::Health};

use super::{client::Connection, error::RuntimeError};
use crate::shim::protocol::{HealthPlan, HealthRecord, HealthResult, HealthWord, Reply};

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

/// The service's check, completed from the image's and from the defaults. `None`: health is not checked.
pub(super) fn plan(own: Option<&HealthConfig>, image: Option<&HealthConfig>) -> Option<HealthPlan> {
    let test = [own, image].into_iter().flatten().map(|health| &health.test).find(|test| !test.is_empty())?;
    let given = |length: Option<Duration>| length.filter(|length| !length.is_zero());
    let pick = |field: fn(&HealthConfig) -> Option<Duration>, default: Duration| {
        let chosen = own.and_then(field).filter(|length| !length.is_zero()).or(given(image.and_then(field)));
        millis(chosen.unwrap_or(default))
    };
    let retries = [own, image].into_iter().flatten().map(|health| health.retries).find(|&retries| retries > 0);
    Some(HealthPlan {
        test: command(test)?,
        interval_ms: pick(|health| health.interval, INTERVAL),
        timeout_ms: pick(|health| health.timeout, TIMEOUT),
        start_period_ms: pick(|health| health.start_period, Duration::ZERO),
        start_interval_ms: pick(|health| health.start_interval, START_INTERVAL),
        retries: retries.unwrap_or(RETRIES),
        earlier: Vec::new(),
    })
}

fn command(test: &[String]) -> Option<Vec<String>> {
    match test {
        [kind, command @ ..] if kind == "CMD" && !command.is_empty() => Some(command.to_vec()),
        [kind, script] if kind == "CMD-SHELL" => Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), script.clone()]),
        // `NONE`, and what older versions have stored unchecked.
        _ => None,
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// Follows a container's health.
pub struct HealthWatch(pub(super) Connection);

impl HealthWatch {
    /// What it is (the first time) or has become. `None`: the container has ended.
    pub async fn next(&mut self) -> Result<Option<Health>, RuntimeError> {
        match self.0.receive().await? {
            Some(Reply::HealthIs { health }) => Ok(Some(health.into())),
            Some(other) => Err(RuntimeError::Protocol(format!("{other:?}"))),
            None => Ok(None),
        }
    }
}

/// What the checks of a container said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthState {
    pub health: Health,
    pub failing_streak: u32,
    /// The last ones, oldest first.
    pub results: Vec<HealthCheck>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Since 1970.
    pub start_ns: u64,
    pub end_ns: u64,
    pub exit_code: i32,
    pub output: String,
}

impl From<&HealthCheck> for HealthResult {
    fn from(check: &HealthCheck) -> Self {
        let HealthCheck { start_ns, end_ns, exit_code, output } = check.clone();
        Self { start_ns, end_ns, exit_code, output }
    }
}

impl From<HealthWord> for Health {
    fn from(word: HealthWord) -> Self {
        match word {
            HealthWord::Starting => Self::Starting,
            HealthWord::Healthy => Self::Healthy,
            HealthWord::Unhealthy => Self::Unhealthy,
        }
    }
}

impl From<HealthRecord> for HealthState {
    fn from(record: HealthRecord) -> Self {
        let results = record.results.into_iter().map(|result| HealthCheck {
            start_ns: result.start_ns,
            end_ns: result.end_ns,
            exit_code: result.exit_code,
            output: result.output,
        });
        Self { health: record.health.into(), failing_streak: record.failing_streak, results: results.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(test: &[&str], interval_s: u64, retries: u32) -> HealthConfig {
        HealthConfig {
            test: test.iter().map(|&word| word.to_owned()).collect(),
            interval: (interval_s > 0).then(|| Duration::from_secs(interval_s)),
            timeout: None,
            retries,
            start_period: None,
            start_interval: None,
        }
    }

    fn check(own: Option<HealthConfig>, image: Option<HealthConfig>, want: Option<(&[&str], u64, u32)>) {
        let got = plan(own.as_ref(), image.as_ref());
        let got = got.as_ref().map(|plan| {
            assert_eq!((plan.timeout_ms, plan.start_period_ms, plan.start_interval_ms), (30_000, 0, 5000));
            (plan.test.iter().map(String::as_str).collect::<Vec<_>>(), plan.interval_ms, plan.retries)
        });
        assert_eq!(got, want.map(|(test, interval, retries)| (test.to_vec(), interval, retries)));
    }

    #[test]
    fn the_service_goes_before_the_image() {
        let image = || Some(config(&["CMD", "probe", "-x"], 7, 5));
        check(None, None, None);
        check(None, image(), Some((&["probe", "-x"], 7000, 5)));
        check(Some(config(&["CMD-SHELL", "a && b"], 0, 0)), None, Some((&["/bin/sh", "-c", "a && b"], 30_000, 3)));
        check(Some(config(&[], 2, 0)), image(), Some((&["probe", "-x"], 2000, 5)));
        check(Some(config(&["CMD", "own"], 0, 1)), image(), Some((&["own"], 7000, 1)));
        check(Some(config(&["NONE"], 0, 0)), image(), None);
        check(Some(config(&[], 2, 1)), None, None);
    }
}
