//! Go's durations: `1h2m3.5s`, `100ms`.

use std::time::Duration;

use orch_model::nanos;

use super::Refusal;

const FORM: &str = "expected a duration such as 10s, 1m30s or 500ms (units ns, us, ms, s, m, h)";

pub(crate) fn parse(text: &str) -> Result<Duration, Refusal> {
    whole_millis(seconds(text)?)
}

/// Of a health check: as with Docker, 0 or no less than a millisecond.
pub(crate) fn of_health(text: &str) -> Result<Duration, Refusal> {
    let seconds = seconds(text)?;
    if seconds > 0.0 && seconds < 0.001 {
        return Err(format!("cannot be less than 1ms: {FORM}"));
    }
    whole_millis(seconds)
}

#[allow(clippy::cast_precision_loss)] // Whole milliseconds are kept.
fn seconds(text: &str) -> Result<f64, Refusal> {
    match nanos::parse(text) {
        Ok(length @ 0..) => Ok(length as f64 / 1e9),
        Err(nanos::Unreadable::TooLong) => Err(format!("longer than 292 years: {FORM}")),
        Ok(_) | Err(nanos::Unreadable::Form) => Err(FORM.to_owned()),
    }
}

/// Model and wire hold whole milliseconds. A little is not nothing, which often stands for the default.
fn whole_millis(seconds: f64) -> Result<Duration, Refusal> {
    let least = if seconds > 0.0 { 1.0 } else { 0.0 };
    let millis = (seconds * 1000.0).round().max(least);
    Duration::try_from_secs_f64(millis / 1000.0).map_err(|_| FORM.to_owned())
}

/// As Go prints it: `1m30s`, `2160h0m0s`, `500ms`.
pub(crate) fn show(length: Duration) -> String {
    let seconds = length.as_secs();
    let millis = length.subsec_millis();
    if seconds == 0 {
        return if millis == 0 { "0s".into() } else { format!("{millis}ms") };
    }
    let fraction = if millis == 0 { String::new() } else { format!(".{millis:03}").trim_end_matches('0').to_owned() };
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}{fraction}s"),
        (0, _) => format!("{minutes}m{rest}{fraction}s"),
        _ => format!("{hours}h{minutes}m{rest}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis, shown) in [
            ("10s", 10_000, "10s"),
            ("1m30s", 90_000, "1m30s"),
            ("90s", 90_000, "1m30s"),
            ("500ms", 500, "500ms"),
            ("1.5s", 1500, "1.5s"),
            ("2160h", 7_776_000_000, "2160h0m0s"),
            ("0", 0, "0s"),
            ("+5s", 5000, "5s"),
            ("1ns", 1, "1ms"),
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!(parsed, Duration::from_millis(millis), "{text}");
            assert_eq!(show(parsed), shown);
        }
        for text in ["", "+", "10", "s", "1d", "-5s", "ten", " 5s", "5 s", "1e9s", "NaNs", "99999999999999999999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("2562048h").unwrap_err().contains("longer than 292 years"));
        for text in ["1us", "1ns", "999us"] {
            assert!(of_health(text).unwrap_err().contains("less than 1ms"), "{text}");
        }
        assert_eq!((of_health("0"), of_health("1ms")), (Ok(Duration::ZERO), Ok(Duration::from_millis(1))));
    }
}
