//! Drivers of containers' logs: which there are, and what their options may be.
//!
//! Managers refuse with it what no node could do; nodes read the limits with it.

use crate::service::LogDriver;

/// How much of a log is kept in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// 0: no limit.
    pub max_size_bytes: u64,
    pub max_files: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogDriverError {
    #[error("logging driver {0:?} is not known: json-file, local, journald and none are")]
    Driver(String),
    #[error("unknown log opt {option:?} for the {driver} log driver: {known} are known")]
    Option { driver: &'static str, option: String, known: &'static str },
    #[error("log opt {name}: {value:?} is not {form}")]
    Value { name: &'static str, value: String, form: &'static str },
}

/// What a driver's options say; `default` is for what they leave open.
///
/// # Errors
/// When the driver, an option or its value is not one of those there are.
pub fn limits(driver: &LogDriver, default: Limits) -> Result<Limits, LogDriverError> {
    let (is_file, name) = match driver.name.as_str() {
        "" | "json-file" => (true, "json-file"),
        "local" => (true, "local"),
        "journald" => (false, "journald"),
        // Its options are nobody's either.
        "none" => return Ok(Limits { max_size_bytes: 0, max_files: 1 }),
        other => return Err(LogDriverError::Driver(other.to_owned())),
    };
    let mut limits = default;
    for (option, value) in &driver.options {
        let refused = |name, form| LogDriverError::Value { name, value: value.clone(), form };
        match option.as_str() {
            "max-size" if is_file => {
                limits.max_size_bytes = bytes(value).ok_or_else(|| refused("max-size", "a size such as 10m"))?;
            }
            "max-file" if is_file => {
                let number = value.parse().ok().filter(|&number| number > 0);
                limits.max_files = number.ok_or_else(|| refused("max-file", "a number of at least 1"))?;
            }
            // Our files are never compressed; programs never wait for their log.
            "compress" if is_file => {
                if !["true", "false", "1", "0"].contains(&value.as_str()) {
                    return Err(refused("compress", "true or false"));
                }
            }
            "mode" if !["blocking", "non-blocking"].contains(&value.as_str()) => {
                return Err(refused("mode", "blocking or non-blocking"));
            }
            "max-buffer-size" if bytes(value).is_none() => return Err(refused("max-buffer-size", "a size such as 4m")),
            "labels" | "env" | "tag" | "mode" | "max-buffer-size" => {}
            other => {
                let known = if is_file { "max-size, max-file, labels, env and tag" } else { "labels, env and tag" };
                return Err(LogDriverError::Option { driver: name, option: other.to_owned(), known });
            }
        }
    }
    Ok(limits)
}

/// What a log's tag can have of its container, as with Docker: `{{.Name}}`.
pub const TAG_NAMES: [&str; 9] =
    ["ID", "FullID", "ContainerID", "Name", "ContainerName", "ImageID", "ImageFullID", "ImageName", "DaemonName"];

/// Whether somebody may ask for this. What runs already with a tag that nobody can fill in goes on with its text as it is.
///
/// # Errors
/// As [`limits`], and for such a tag.
pub fn check(driver: &LogDriver) -> Result<(), LogDriverError> {
    limits(driver, Limits { max_size_bytes: 0, max_files: 1 })?;
    match driver.options.get("tag") {
        Some(value) if tag(value, |name| TAG_NAMES.contains(&name).then_some("")).is_none() => {
            let form = "a text with {{.ID}}, {{.FullID}}, {{.Name}}, {{.ImageID}}, {{.ImageFullID}}, {{.ImageName}} or \
                        {{.DaemonName}} in it";
            Err(LogDriverError::Value { name: "tag", value: value.clone(), form })
        }
        _ => Ok(()),
    }
}

/// A tag with its placeholders filled in; nothing when one of them has no end, or no value.
#[must_use]
pub fn tag<'a>(text: &str, value: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (placeholder, after) = after.split_once("}}")?;
        filled.push_str(before);
        filled.push_str(value(placeholder.trim().strip_prefix('.')?)?);
        rest = after;
    }
    Some(filled + rest)
}

/// Of a size; so many that nothing overflows with the largest unit.
const MOST_DECIMALS: u32 = 9;

/// `10m`, `1.5m`, `512k`, `1g`, `1000`; -1 is without limit.
fn bytes(text: &str) -> Option<u64> {
    if text == "-1" {
        return Some(0);
    }
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix('b').unwrap_or(&text);
    let (number, factor) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1 << 10),
        b'm' => (&text[..text.len() - 1], 1 << 20),
        b'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = u32::try_from(part.len()).ok().filter(|&digits| digits <= MOST_DECIMALS)?;
    let part = if part.is_empty() { 0 } else { part.parse::<u64>().ok()? * factor / 10_u64.pow(digits) };
    whole.parse::<u64>().ok()?.checked_mul(factor)?.checked_add(part).filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Limits = Limits { max_size_bytes: 7, max_files: 3 };

    fn driver(name: &str, options: &[(&str, &str)]) -> LogDriver {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        LogDriver { name: name.to_owned(), options }
    }

    fn read(name: &str, options: &[(&str, &str)]) -> Result<(u64, u32), String> {
        let limits = limits(&driver(name, options), DEFAULT);
        limits.map(|limits| (limits.max_size_bytes, limits.max_files)).map_err(|error| error.to_string())
    }

    #[test]
    fn tags_are_looked_at_when_they_are_asked_for() {
        for (tag, is_known) in [
            ("{{.Name}}/{{ .ID }}}}", true),
            ("{{.ImageID}} {{.ImageFullID}} {{.DaemonName}}", true),
            ("plain", true),
            ("{{", false),
            ("a{{.Nope}}", false),
            ("{{Name}}", false),
        ] {
            for name in ["json-file", "journald"] {
                let with_tag = driver(name, &[("tag", tag)]);
                assert_eq!(check(&with_tag).is_ok(), is_known, "{tag}");
                assert_eq!(limits(&with_tag, DEFAULT), Ok(DEFAULT), "what runs with {tag} goes on");
            }
        }
        let refused = check(&driver("", &[("tag", "{{")])).unwrap_err().to_string();
        assert!(refused.starts_with("log opt tag: \"{{\" is not a text with {{.ID}}, "), "{refused}");
        assert!(check(&driver("none", &[("tag", "{{")])).is_err() && check(&driver("syslog", &[])).is_err());
    }

    #[test]
    fn options_are_limits_or_refused() {
        assert_eq!(read("", &[]), Ok((7, 3)));
        assert_eq!(read("json-file", &[("max-size", "2k"), ("max-file", "5")]), Ok((2048, 5)));
        assert_eq!(read("local", &[("max-size", "-1")]), Ok((0, 3)));
        assert_eq!(read("local", &[("max-size", "1.5m")]), Ok((3 << 19, 3)));
        for (driver, option, value, words) in [
            ("syslog", "", "", "logging driver \"syslog\" is not known: json-file, local, journald and none are"),
            ("json-file", "size", "1", "unknown log opt \"size\" for the json-file log driver"),
            ("json-file", "max-size", "lots", "log opt max-size: \"lots\" is not a size such as 10m"),
            ("json-file", "max-size", "99999999999999999g", "is not a size"),
            ("json-file", "max-size", "1.0000000001m", "is not a size"),
            ("json-file", "max-size", "0.0m", "is not a size"),
            ("json-file", "max-file", "0", "log opt max-file: \"0\" is not a number of at least 1"),
            ("json-file", "compress", "maybe", "log opt compress: \"maybe\" is not true or false"),
            ("journald", "mode", "x", "log opt mode: \"x\" is not blocking or non-blocking"),
            ("journald", "max-size", "1m", "unknown log opt \"max-size\" for the journald log driver"),
        ] {
            let options = if option.is_empty() { vec![] } else { vec![(option, value)] };
            let refused = read(driver, &options).unwrap_err();
            assert!(refused.contains(words), "{driver} {option}={value}: {refused}");
        }
    }
}
