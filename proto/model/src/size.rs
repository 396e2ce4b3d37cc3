//! Amounts of bytes, as Docker shows them.

/// `1.2MB`: decimal, three significant digits, as `image ls` shows it.
#[allow(clippy::cast_precision_loss)] // three digits are shown
#[must_use]
pub fn human(bytes: u64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// `50MiB`: binary, as `service inspect --pretty` and `info` show it.
#[allow(clippy::cast_precision_loss)] // four digits are shown
#[must_use]
pub fn human_binary(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

fn scaled(mut amount: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while amount >= base && unit + 1 < units.len() {
        amount /= base;
        unit += 1;
    }
    let before = if amount < 10.0 { 1 } else { amount.log10().floor().to_string().parse::<usize>().unwrap_or(0) + 1 };
    let text = format!("{amount:.*}", digits.saturating_sub(before));
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!([human(0), human(999), human(225_300_000), human(1_240_000)], ["0B", "999B", "225MB", "1.24MB"]);
        assert_eq!([human_binary(50 << 20), human_binary(1536)], ["50MiB", "1.5KiB"]);
    }
}
