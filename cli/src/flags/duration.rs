//! Go's durations: `1h2m3.5s`, `100ms`.

use std::time::Duration;

use orch_model::nanos;

use super::Refusal;

const FORM: &str = "expected a duration such as 10s, 1m30s or 500ms (units ns, us, ms, s, m, h)";
const MILLISECOND: u64 = 1_000_000;

pub(crate) fn parse(text: &str) -> Result<Duration, Refusal> {
    length(text).map(whole_millis)
}

/// Of a health check: as with Docker, 0 or no less than a millisecond.
pub(crate) fn of_health(text: &str) -> Result<Duration, Refusal> {
    match length(text)? {
        1..MILLISECOND => Err(format!("cannot be less than 1ms: {FORM}")),
        nanos => Ok(whole_millis(nanos)),
    }
}

/// In nanoseconds.
fn length(text: &str) -> Result<u64, Refusal> {
    match nanos::parse(text) {
        Ok(length) => u64::try_from(length).map_err(|_| FORM.to_owned()),
        Err(nanos::Unreadable::TooLong) => Err(format!("longer than 292 years: {FORM}")),
        Err(nanos::Unreadable::Form) => Err(FORM.to_owned()),
    }
}

/// Model and wire hold whole milliseconds. A little is not nothing, which often stands for the default.
fn whole_millis(nanos: u64) -> Duration {
    let least = u64::from(nanos > 0);
    Duration::from_millis(((nanos + MILLISECOND / 2) / MILLISECOND).max(least))
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
            ("1499us", 1, "1ms"),
            ("1500us", 2, "2ms"),
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
