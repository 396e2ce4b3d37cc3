//! Go's durations to the nanosecond, signs included, such as `1m30s`: what Docker's client and images read and print.
//!
//! Orch itself keeps whole milliseconds from 0 up.

use std::fmt::Write as _;

const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", 3600 * SECOND),
];
const SECOND: i128 = 1_000_000_000;

/// Why a text could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It has not the form of a duration.
    Form,
    /// More than 292 years, which Go does not take either.
    TooLong,
}

/// # Errors
/// Where it is no duration, or one that is too long.
pub fn parse(text: &str) -> Result<i64, Unreadable> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(Unreadable::Form);
    }
    // None: too long.
    let mut total: Option<i128> = Some(0);
    while !rest.is_empty() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let whole = digits(rest);
        let (number, mut tail) = rest.split_at(whole);
        let mut fraction = "";
        if let Some(after) = tail.strip_prefix('.') {
            (fraction, tail) = after.split_at(digits(after));
        }
        if number.is_empty() && fraction.is_empty() {
            return Err(Unreadable::Form);
        }
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (_, unit) = *UNITS.iter().find(|(name, _)| *name == &tail[..unit_len]).ok_or(Unreadable::Form)?;
        let number = if number.is_empty() { Some(0) } else { number.parse::<i128>().ok() };
        let more = number.and_then(|number| number.checked_mul(unit)?.checked_add(part(fraction, unit)));
        total = total.zip(more).and_then(|(total, more)| total.checked_add(more));
        rest = &tail[unit_len..];
    }
    let total = total.ok_or(Unreadable::TooLong)?;
    i64::try_from(sign * total).map_err(|_| Unreadable::TooLong)
}

/// Digits after the point of one unit.
fn part(fraction: &str, unit: i128) -> i128 {
    let (mut sum, mut worth) = (0, unit);
    for digit in fraction.bytes() {
        worth /= 10;
        sum += worth * i128::from(digit - b'0');
    }
    sum
}

/// As Go prints it.
#[must_use]
pub fn show(nanos: i64) -> String {
    let mut out = if nanos < 0 { "-".to_owned() } else { String::new() };
    let nanos = nanos.unsigned_abs();
    let decimals = |value: u64, unit: u64| {
        let text = format!("{}.{:0width$}", value / unit, value % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let small = match nanos {
        0 => Some("0s".to_owned()),
        1..1_000 => Some(format!("{nanos}ns")),
        1_000..1_000_000 => Some(format!("{}µs", decimals(nanos, 1_000))),
        1_000_000..1_000_000_000 => Some(format!("{}ms", decimals(nanos, 1_000_000))),
        _ => None,
    };
    if let Some(small) = small {
        return out + &small;
    }
    let seconds = nanos / 1_000_000_000;
    if seconds >= 3600 {
        let _ = write!(out, "{}h", seconds / 3600);
    }
    if seconds >= 60 {
        let _ = write!(out, "{}m", seconds / 60 % 60);
    }
    out + &decimals(nanos % 60_000_000_000, 1_000_000_000) + "s"
}

/// What Go says of a text that is no duration.
#[must_use]
pub fn complaint(text: &str) -> String {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    while !rest.is_empty() {
        let unit = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        if unit.len() == rest.len() {
            break;
        }
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        match &unit[..end] {
            "" => return format!("time: missing unit in duration {text:?}"),
            "ns" | "us" | "µs" | "μs" | "ms" | "s" | "m" | "h" => rest = &unit[end..],
            unknown => return format!("time: unknown unit {unknown:?} in duration {text:?}"),
        }
    }
    format!("time: invalid duration {text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, expected) in [
            ("1m30s", Ok("1m30s")),
            ("90s", Ok("1m30s")),
            ("1500ms", Ok("1.5s")),
            ("100us", Ok("100µs")),
            ("1.5h", Ok("1h30m0s")),
            ("-5s", Ok("-5s")),
            ("+.5s", Ok("500ms")),
            ("1.s", Ok("1s")),
            ("1h1h", Ok("2h0m0s")),
            ("1ns", Ok("1ns")),
            ("0", Ok("0s")),
            ("0s", Ok("0s")),
            ("1.0005ms", Ok("1.0005ms")),
            ("", Err(Unreadable::Form)),
            ("-", Err(Unreadable::Form)),
            ("5", Err(Unreadable::Form)),
            (".s", Err(Unreadable::Form)),
            ("1d", Err(Unreadable::Form)),
            ("s", Err(Unreadable::Form)),
            ("2562047h", Ok("2562047h0m0s")),
            ("2562048h", Err(Unreadable::TooLong)),
            ("99999999999h", Err(Unreadable::TooLong)),
            ("99999999999999999999999999999999999999999s", Err(Unreadable::TooLong)),
            ("9999999999999999999999999999999999999999x", Err(Unreadable::Form)),
            ("99999999999h1", Err(Unreadable::Form)),
        ] {
            assert_eq!(parse(text).map(show), expected.map(str::to_owned), "{text}");
        }
    }
}
