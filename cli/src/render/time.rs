//! Points in time as people and as Docker's JSON write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orch_model::Timestamp;

/// The wall clock, read once per command.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `5 seconds`, `About a minute`, `3 weeks`: Docker's steps.
pub(crate) fn human(length: Duration) -> String {
    let seconds = length.as_secs();
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".into(),
        (1, ..) => "1 second".into(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".into(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (.., 0 | 1) => "About an hour".into(),
        (.., 2..48) => format!("{hours} hours"),
        (.., 48..336) => format!("{} days", hours / 24),
        (.., 336..1440) => format!("{} weeks", hours / 24 / 7),
        (.., 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// `5 seconds ago`.
pub(crate) fn ago(at: Timestamp, now: Timestamp) -> String {
    format!("{} ago", human(now.since(at)))
}

/// `2026-01-02T03:04:05.678Z`.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    instant(at).map(|t| t.to_string()).unwrap_or_default()
}

/// `2026-01-02 03:04:05 +0000 UTC`, Go's default, in lists and `--pretty`.
pub(crate) fn go_style(at: Timestamp) -> String {
    instant(at).map(|t| t.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()).unwrap_or_default()
}

/// Nine decimals, as log lines carry them.
pub(crate) fn rfc3339_nanos(unix_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(unix_ns)).map(|t| format!("{t:.9}")).unwrap_or_default()
}

/// `14:02`, in the machine's own time zone.
pub(crate) fn clock(unix_ms: u64) -> String {
    let at = jiff::Timestamp::from_millisecond(i64::try_from(unix_ms).unwrap_or(i64::MAX)).unwrap_or_default();
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M").to_string()
}

pub(crate) const NANOS_PER_MILLI: u64 = 1_000_000;

/// [`parse_since_ns`] in whole milliseconds.
pub(crate) fn parse_since(text: &str, now: Timestamp) -> Result<u64, String> {
    Ok(parse_since_ns(text, now)? / NANOS_PER_MILLI)
}

/// What `--since` takes: `42m` back from now, an RFC 3339 time, a date, or seconds since 1970; in nanoseconds since 1970,
/// for that is what log lines carry, and people copy a line's time.
pub(crate) fn parse_since_ns(text: &str, now: Timestamp) -> Result<u64, String> {
    let too_far = || format!("{text:?} is too far away");
    if let Ok(length) = crate::flags::duration::parse(text) {
        return (now - length).unix_ms.checked_mul(NANOS_PER_MILLI).ok_or_else(too_far);
    }
    if text.starts_with(|first: char| first.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return nanos_of_seconds(text).ok_or_else(too_far);
    }
    let full = text.parse::<jiff::Timestamp>().ok();
    let civil = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::system()).ok();
    let at = full.or_else(|| civil().map(|zoned| zoned.timestamp()));
    let at = at.ok_or_else(|| {
        format!("{text:?} is not a time: expected 42m, 2026-01-02T13:23:37Z, 2026-01-02 or seconds since 1970")
    })?;
    if at < jiff::Timestamp::UNIX_EPOCH {
        return Err(format!("{text:?} is before 1970"));
    }
    u64::try_from(at.as_nanosecond()).map_err(|_| too_far())
}

/// Of `1136073600.000000001`: a float would lose the last digits.
fn nanos_of_seconds(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: u64 = format!("{:0<9.9}", fraction).parse().ok()?;
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)
}

fn instant(at: Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_millisecond(i64::try_from(at.unix_ms).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_in_dockers_words() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (3600 * 2, "2 hours"),
            (3600 * 47, "47 hours"),
            (3600 * 48, "2 days"),
            (86400 * 20, "2 weeks"),
            (86400 * 90, "3 months"),
            (86400 * 800, "2 years"),
        ] {
            assert_eq!(human(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn points_in_time() {
        let at = Timestamp::from_unix_ms(1_700_000_000_500);
        assert_eq!(rfc3339(at), "2023-11-14T22:13:20.5Z");
        assert_eq!(go_style(at), "2023-11-14 22:13:20 +0000 UTC");
        assert_eq!(rfc3339_nanos(1_700_000_000_000_000_001), "2023-11-14T22:13:20.000000001Z");
        assert_eq!(parse_since("1m", at), Ok(1_699_999_940_500));
        assert_eq!(parse_since("2023-11-14T22:13:20Z", at), Ok(1_700_000_000_000));
        assert_eq!(parse_since("1700000000", at), Ok(1_700_000_000_000));
        assert_eq!(parse_since_ns("1700000000.000000001", at), Ok(1_700_000_000_000_000_001));
        assert_eq!(parse_since_ns("1700000000.5", at), Ok(1_700_000_000_500_000_000));
        assert_eq!(parse_since_ns("2023-11-14T22:13:20.123456789Z", at), Ok(1_700_000_000_123_456_789));
        for wrong in
            ["yesterday", "-5", "inf", "1e5", "1.2.3", "99999999999999999999", "1969-12-31T00:00:00Z", "9999-01-01"]
        {
            assert!(parse_since_ns(wrong, at).is_err(), "{wrong}");
        }
    }
}
