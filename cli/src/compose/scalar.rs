//! What an unquoted word of YAML is. Docker's client has rules of its own for it, neither YAML 1.1's nor 1.2's.

/// What kind of value a scalar is; its text is in the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ScalarKind {
    #[default]
    Text,
    Whole,
    Real,
    Bool,
    /// A text that variables were put into: it may stand for a number.
    Filled,
}

/// The kind, and the text of the value: `0x10` is the whole number `16`. `None` for null.
pub(super) fn resolve(plain: &str) -> Option<(ScalarKind, String)> {
    match plain {
        "" | "~" | "null" | "Null" | "NULL" => return None,
        "true" | "True" | "TRUE" => return Some((ScalarKind::Bool, "true".into())),
        "false" | "False" | "FALSE" => return Some((ScalarKind::Bool, "false".into())),
        _ => {}
    }
    let numeric = plain.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    let number = if numeric { number(&plain.replace('_', "")) } else { None };
    Some(number.unwrap_or_else(|| (ScalarKind::Text, plain.to_owned())))
}

fn number(text: &str) -> Option<(ScalarKind, String)> {
    if let Some(whole) = whole(text) {
        return Some((ScalarKind::Whole, whole));
    }
    if is_real(text) {
        let value: f64 = text.parse().ok()?;
        return value.is_finite().then(|| (ScalarKind::Real, shown(value)));
    }
    None
}

fn whole(text: &str) -> Option<String> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let prefixed = |prefix: &str| digits.get(..2).filter(|p| p.eq_ignore_ascii_case(prefix)).map(|_| &digits[2..]);
    let (digits, radix) = if let Some(hex) = prefixed("0x") {
        (hex, 16)
    } else if let Some(binary) = prefixed("0b") {
        (binary, 2)
    } else if let Some(octal) = prefixed("0o") {
        (octal, 8)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (&digits[1..], 8)
    } else {
        (digits, 10)
    };
    // from_str_radix would take a second sign.
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    let fits = sign.is_empty() || value <= i64::MIN.unsigned_abs();
    fits.then(|| if value == 0 { "0".to_owned() } else { format!("{sign}{value}") })
}

/// `1.`, `.5`, `1e3`.
fn is_real(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let has_digits = !before.is_empty() || !after.is_empty();
    has_digits && digits(before) && digits(after) && exponent.is_none_or(|e| !e.is_empty() && digits(e))
}

/// As Go prints it, which is what Docker's client makes of a number where a text is meant: `0.10` is `0.1`.
fn shown(value: f64) -> String {
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    if (-4..6).contains(&exponent.parse::<i32>().unwrap_or(0)) {
        return value.to_string();
    }
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |exponent| ("-", exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `docker stack config` (28.2) made of each as the value of an environment variable.
    #[test]
    fn words_mean_what_docker_says() {
        for (plain, expected) in [
            ("0755", "493"),
            ("0o755", "493"),
            ("0X1F", "31"),
            ("1_000", "1000"),
            ("1e3", "1000"),
            (".5", "0.5"),
            ("1.0", "1"),
            ("12345678901234567890", "12345678901234567890"),
            ("123456789012345678901", "1.2345678901234568e+20"),
            ("0b11", "3"),
            ("-0", "0"),
            ("+5", "5"),
            ("1:30", "1:30"),
            ("08", "8"),
            ("0o8", "0o8"),
            ("0.10", "0.1"),
            ("1e21", "1e+21"),
            ("1e-7", "1e-07"),
            ("3.14159265358979", "3.14159265358979"),
            ("1000000.0", "1e+06"),
            ("-0755", "-493"),
            ("1.", "1"),
            ("1e400", "1e400"),
            ("0x", "0x"),
            ("_1", "_1"),
            ("12e03", "12000"),
            ("+.5", "0.5"),
            ("-.5", "-0.5"),
            ("0.0", "0"),
            ("-0.0", "-0"),
            ("1_000.5", "1000.5"),
            ("00", "0"),
            ("TRUE", "true"),
            ("yes", "yes"),
            ("--5", "--5"),
            ("0x-5", "0x-5"),
        ] {
            assert_eq!(resolve(plain).map(|(_, text)| text).as_deref(), Some(expected), "{plain}");
        }
        assert_eq!(resolve("~"), None);
        assert_eq!(resolve("3.5").unwrap().0, ScalarKind::Real);
        assert_eq!(resolve("35").unwrap().0, ScalarKind::Whole);
    }
}
