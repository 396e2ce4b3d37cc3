//! Memory sizes and CPU shares.

use super::Refusal;

/// `50M` is 50 · 1024²: Docker's memory units are binary, with or without `i` and `b`.
pub(crate) fn bytes(text: &str) -> Result<u64, Refusal> {
    const FORMS: &str = "expected a size such as 512k, 50M or 1.5g (units b, k, m, g, t)";
    let refusal = || format!("invalid size: '{text}': {FORMS}");
    let digits = text.rfind(|c: char| c.is_ascii_digit() || ". ".contains(c)).map_or(0, |at| at + 1);
    if digits == 0 {
        return Err(refusal());
    }
    let number = text[..digits].strip_suffix(' ').unwrap_or(&text[..digits]);
    let no_number = || format!("strconv.ParseFloat: parsing {number:?}: invalid syntax: {FORMS}");
    let amount: f64 = without_separators(number).and_then(|n| n.parse().ok()).ok_or_else(no_number)?;
    let shift = match text[digits..].to_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        suffix => return Err(format!("invalid suffix: '{suffix}': {FORMS}")),
    };
    to_whole(amount * f64::from(2_u32).powi(shift)).ok_or_else(refusal)
}

/// How many of something.
pub(crate) fn count(text: &str) -> Result<u64, Refusal> {
    // `parse` would take a sign.
    let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| "expected a whole number from 0, such as 3".to_owned())
}

/// How many processes; -1 is Docker's word for no limit, which is 0 here.
pub(crate) fn processes(text: &str) -> Result<u64, Refusal> {
    if text == "-1" {
        return Ok(0);
    }
    let form = "expected a whole number, such as 100, or 0 or -1 for no limit";
    count(text).ok().filter(|count| *count <= i64::MAX.unsigned_abs()).ok_or_else(|| form.to_owned())
}

/// The same for what has a small limit.
pub(crate) fn small_count(text: &str) -> Result<u32, Refusal> {
    let number = count(text)?;
    number.try_into().map_err(|_| format!("expected a whole number from 0 to {}, such as 3", u32::MAX))
}

/// `0.5` CPUs in billionths.
pub(crate) fn nano_cpus(text: &str) -> Result<u64, Refusal> {
    let refusal = || "expected a number of CPUs such as 0.5 or 2, with at most 9 decimals".to_owned();
    if text.rsplit_once('.').is_some_and(|(_, decimals)| decimals.len() > 9) {
        return Err(refusal());
    }
    let cpus: f64 = text.parse().map_err(|_| refusal())?;
    to_whole((cpus * 1e9).round()).ok_or_else(refusal)
}

/// What does not fit into Docker's signed numbers.
const TOO_MANY: f64 = 9_223_372_036_854_775_808.0;

/// `1_000` is 1000.
fn without_separators(number: &str) -> Option<String> {
    let is_digit = |c: char| c.is_ascii_digit();
    let well_placed = number.split('_').skip(1).all(|part| part.starts_with(is_digit))
        && number.rsplit('_').skip(1).all(|part| part.ends_with(is_digit));
    well_placed.then(|| number.replace('_', ""))
}

fn to_whole(amount: f64) -> Option<u64> {
    // Bounds are checked first, so that the cast is exact.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (amount.is_finite() && (0.0..TOO_MANY).contains(&amount)).then_some(amount as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in
            [("50M", 50 << 20), ("1.5g", 3 << 29), ("128", 128), ("64kb", 65536), ("1GiB", 1 << 30), ("1_000", 1000)]
        {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "M", "5x", "-1", "1..2", "_1", "1_", "1__0", "9223372036854775808"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn counts() {
        assert_eq!((count("0"), count("18446744073709551615")), (Ok(0), Ok(u64::MAX)));
        assert_eq!((processes("-1"), processes("9")), (Ok(0), Ok(9)));
        for text in ["", " 1", "+1", "-1", "1e3", "0x1", "18446744073709551616"] {
            assert!(count(text).is_err() && small_count(text).is_err(), "{text}");
        }
        assert!(small_count("4294967296").is_err() && processes("9223372036854775808").is_err());
    }

    #[test]
    fn cpus() {
        assert_eq!(nano_cpus("0.1"), Ok(100_000_000));
        assert_eq!(nano_cpus("2"), Ok(2_000_000_000));
        for text in ["-1", "x", "", "0.1234567891", "inf"] {
            assert!(nano_cpus(text).is_err(), "{text}");
        }
    }
}
