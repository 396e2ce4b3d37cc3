//! When a one-off container runs again by itself: pure, as Docker's `--restart` has it.

use std::time::Duration;

use orch_proto::wire::LocalRestart;

/// The pause before the first restart; it doubles while the container does not stay up.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Who ran for so long has its next restart at once.
const STABLE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restart {
    No,
    Always,
    UnlessStopped,
    /// 0: without limit.
    OnFailure {
        max_retries: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error(
        "invalid restart policy: unknown policy '{0}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
    )]
    Unknown(String),
    #[error("invalid restart policy: maximum retry count can only be used with 'on-failure'")]
    Retries,
}

impl Restart {
    pub(crate) fn parse(wire: Option<&LocalRestart>) -> Result<Self, PolicyError> {
        let Some(wire) = wire else { return Ok(Self::No) };
        let policy = match wire.condition.as_str() {
            "" | "no" => Self::No,
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            "on-failure" => return Ok(Self::OnFailure { max_retries: wire.max_retries }),
            other => return Err(PolicyError::Unknown(other.to_owned())),
        };
        if wire.max_retries > 0 { Err(PolicyError::Retries) } else { Ok(policy) }
    }

    /// After it ended by itself; `restarts` is how often that has restarted it since the user started it, however long it
    /// ran in between.
    pub(crate) fn after_exit(self, exit_code: i32, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure { max_retries } => exit_code != 0 && (max_retries == 0 || restarts < max_retries),
        }
    }

    /// Whether a signal that the user sends counts as a stop, whenever it ends then. `own_stop`: the stop signal that the
    /// container or its image names; other signals are then messages to it, which only `unless-stopped` heeds.
    pub(crate) fn is_ended_by(self, signal: i32, own_stop: Option<i32>) -> bool {
        self == Self::UnlessStopped || own_stop.is_none_or(|stop| stop == signal)
    }

    /// When the worker starts and it does not run. `was_running`: nobody saw it end; `restarts` as after an end.
    pub(crate) fn at_start(self, was_running: bool, stopped: bool, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always => true,
            Self::UnlessStopped => !stopped,
            Self::OnFailure { max_retries } => was_running && !stopped && (max_retries == 0 || restarts < max_retries),
        }
    }
}

/// How long to wait before the restart after `restarts` others in a row.
pub(crate) fn pause(restarts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << restarts.min(16)).min(LONGEST_PAUSE)
}

/// Whether it stayed up long enough for the pauses to begin anew.
pub(crate) fn is_stable(ran: Duration) -> bool {
    ran >= STABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(condition: &str, max_retries: u32) -> Result<Restart, PolicyError> {
        Restart::parse(Some(&LocalRestart { condition: condition.to_owned(), max_retries }))
    }

    #[test]
    fn policies_act_as_dockers_do() {
        // After: clean exit, failure, third failure with two retries; at start: was running, the same after two restarts,
        // stopped by the user, ended.
        for (condition, retries, want) in [
            ("no", 0, [false, false, false, false, false, false, false]),
            ("always", 0, [true, true, true, true, true, true, true]),
            ("unless-stopped", 0, [true, true, true, true, true, false, true]),
            ("on-failure", 0, [false, true, true, true, true, false, false]),
            ("on-failure", 2, [false, true, false, true, false, false, false]),
        ] {
            let restart = policy(condition, retries).unwrap();
            let got = [
                restart.after_exit(0, 0),
                restart.after_exit(1, 0),
                restart.after_exit(1, 2),
                restart.at_start(true, false, 0),
                restart.at_start(true, false, 2),
                restart.at_start(false, true, 0),
                restart.at_start(false, false, 0),
            ];
            assert_eq!(got, want, "{condition}:{retries}");
        }
        assert_eq!(Restart::parse(None), Ok(Restart::No));
        assert_eq!(policy("sometimes", 0), Err(PolicyError::Unknown("sometimes".to_owned())));
        assert_eq!(policy("always", 3), Err(PolicyError::Retries));
    }

    #[test]
    fn signals_count_as_stops_as_with_docker() {
        const HUP: i32 = 1;
        const TERM: i32 = 15;
        // Signal HUP to a container without an own stop signal, with HUP, and with TERM.
        for (condition, want) in [
            ("always", [true, true, false]),
            ("unless-stopped", [true, true, true]),
            ("on-failure", [true, true, false]),
        ] {
            let restart = policy(condition, 0).unwrap();
            let got = [None, Some(HUP), Some(TERM)].map(|own| restart.is_ended_by(HUP, own));
            assert_eq!(got, want, "{condition}");
        }
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        let pauses: Vec<u128> = [0, 1, 2, 9, 10, 40].map(|n| pause(n).as_millis()).to_vec();
        assert_eq!(pauses, [100, 200, 400, 51_200, 60_000, 60_000]);
    }
}
