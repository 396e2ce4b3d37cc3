//! `HEALTHCHECK` of `image import --change`.

use orch_model::nanos;

use super::{ChangeError, command, json_list};
use crate::image::config::Healthcheck;

const MILLISECOND: u64 = 1_000_000;

/// `NONE`, or `CMD` and a command, with options before it.
pub(super) fn check(value: &str) -> Result<Healthcheck, ChangeError> {
    let mut check = Healthcheck::default();
    let mut rest = value;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = first_word(option);
        let (name, amount) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "interval" => check.interval = nanos(name, amount)?,
            "timeout" => check.timeout = nanos(name, amount)?,
            "start-period" => check.start_period = nanos(name, amount)?,
            "start-interval" => check.start_interval = nanos(name, amount)?,
            "retries" => check.retries = retries(amount)?,
            _ => return Err(health(format!("unknown flag: {name}"))),
        }
        rest = after;
    }
    let (kind, rest) = first_word(rest);
    check.test = match (kind.to_ascii_uppercase().as_str(), rest) {
        ("", _) => return Err(health("it requires at least one argument: NONE, or CMD and a command".into())),
        ("NONE", "") => vec!["NONE".to_owned()],
        ("NONE", _) => return Err(health("NONE takes no arguments".into())),
        ("CMD", "") => return Err(health("missing command after CMD".into())),
        ("CMD", words) => match json_list(words) {
            Some(words) => [vec!["CMD".to_owned()], words].concat(),
            // The shell is the image's own.
            None => ["CMD-SHELL".to_owned()].into_iter().chain(command(words).pop()).collect(),
        },
        _ => return Err(health(format!("unknown type {kind:?} (try CMD)"))),
    };
    Ok(check)
}

fn health(why: String) -> ChangeError {
    ChangeError::Health(why)
}

fn first_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

fn retries(text: &str) -> Result<u32, ChangeError> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| health(format!("--retries must be a number, at least 1 (not {text:?})")))
}

/// A duration as Go writes it, at least a millisecond.
fn nanos(name: &str, text: &str) -> Result<u64, ChangeError> {
    let length = nanos::parse(text).ok().and_then(|length| u64::try_from(length).ok());
    length
        .filter(|length| *length >= MILLISECOND)
        .ok_or_else(|| health(format!("--{name} must be a duration such as 10s or 1m30s, at least 1ms (not {text:?})")))
}
