//! Patience with a registry that is busy: what is asked again, and when.
//!
//! A registry's mirrors are not waited for: the next one is asked, and the registry itself in the end.

use std::time::Duration;

use super::{Progress, PullError, trouble};
use crate::image::{reference::Reference, registry::Endpoint};

/// How often in all something is asked for, and how often a download that breaks off is gone on with.
pub(in crate::image) const ATTEMPTS: u32 = 5;
/// Before the second attempt, when the registry names no time; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 1000 });
/// A registry that wants to be left alone for longer is not waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The answers that another attempt may change.
pub(in crate::image) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// How long to wait after the attempt with this number; `None`: longer than makes sense.
fn pause_after(attempt: u32, wanted: Option<Duration>) -> Option<Duration> {
    match wanted {
        Some(wanted) => (wanted <= LONGEST_PAUSE).then_some(wanted.max(PAUSE)),
        None => Some(PAUSE.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(LONGEST_PAUSE)),
    }
}

/// Of one question.
pub(in crate::image) struct Patience<'a> {
    is_mirror: bool,
    progress: Option<&'a Progress>,
    attempt: u32,
}

impl<'a> Patience<'a> {
    pub(in crate::image) fn new(endpoint: &Endpoint, reference: &Reference, progress: Option<&'a Progress>) -> Self {
        Self { is_mirror: endpoint.host != reference.registry, progress, attempt: 1 }
    }

    /// Returns when it is time to ask again, which is after a registry was busy, or gave no answer; else gives the error back.
    pub(in crate::image) async fn wait(&mut self, error: PullError) -> Result<(), PullError> {
        let is_passing = matches!(error, PullError::Busy { .. } | PullError::Cut { .. });
        if !is_passing || self.is_mirror || self.attempt == ATTEMPTS {
            return Err(error);
        }
        wait(error, self.attempt, self.progress).await?;
        self.attempt += 1;
        Ok(())
    }
}

/// Waits as long as a busy registry wants it, and says so; gives the error back where waiting is no use.
async fn wait(error: PullError, attempt: u32, progress: Option<&Progress>) -> Result<(), PullError> {
    let (what, registry, reason, wanted) = match error {
        PullError::Busy { registry, reason, wanted } => ("is busy", registry, reason, wanted),
        PullError::Cut { registry, reason } => ("gives no answer", registry, reason, None),
        error => return Err(error),
    };
    let Some(pause) = pause_after(attempt, wanted) else {
        let seconds = wanted.unwrap_or_default().as_secs();
        let reason = format!("{reason}; it wants to be left alone for {seconds} s: try again then");
        return Err(PullError::Busy { registry, reason, wanted });
    };
    let text = format!("registry {registry} {what}: asking again in {} s", pause.as_secs_f32().ceil());
    tracing::info!(registry, reason, attempt, pause_ms = pause.as_millis(), "a registry is asked again: it {what}");
    if let Some(progress) = progress {
        trouble(progress, text);
    }
    tokio::time::sleep(pause).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_or_are_the_registrys() {
        let seconds = Duration::from_secs;
        for (attempt, wanted, want) in [
            (1, None, Some(PAUSE)),
            (2, None, Some(PAUSE * 2)),
            (4, None, Some(PAUSE * 8)),
            (99, None, Some(LONGEST_PAUSE)),
            (1, Some(seconds(3)), Some(seconds(3))),
            (4, Some(seconds(60)), Some(seconds(60))),
            (1, Some(seconds(61)), None),
            (1, Some(seconds(0)), Some(PAUSE)),
        ] {
            assert_eq!(pause_after(attempt, wanted), want, "{attempt} {wanted:?}");
        }
        assert!([429, 500, 503].into_iter().all(is_passing) && ![200, 401, 404, 501].into_iter().any(is_passing));
    }
}
