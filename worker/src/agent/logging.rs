//! Log drivers and their options: what a service says about its log, as files.

use std::path::{Path, PathBuf};

use orch_model::service::LogDriver;

use crate::runtime::{DEFAULT_LOG_FILES, DEFAULT_LOG_SIZE_BYTES, LogFiles};

/// Where output goes that nobody wants.
const NOWHERE: &str = "/dev/null";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoggingError {
    #[error("logging driver {0:?} is not known: json-file and none are")]
    Driver(String),
    #[error("unknown log opt {0:?} for the json-file log driver: max-size and max-file are known")]
    Option(String),
    #[error("log opt {name}: {value:?} is not {form}")]
    Value { name: &'static str, value: String, form: &'static str },
}

/// Whether this node can log so.
pub(crate) fn check(driver: Option<&LogDriver>) -> Result<(), LoggingError> {
    let Some(driver) = driver else { return Ok(()) };
    limits(driver).map(drop)
}

/// A driver that [`check`] refuses has no container; its files are the default ones.
pub(crate) fn files(path: PathBuf, driver: Option<&LogDriver>) -> LogFiles {
    match driver {
        Some(driver) if driver.name == "none" => LogFiles { path: NOWHERE.into(), max_size_bytes: 0, max_files: 1 },
        Some(driver) => {
            let (max_size_bytes, max_files) = limits(driver).unwrap_or((DEFAULT_LOG_SIZE_BYTES, DEFAULT_LOG_FILES));
            LogFiles { path, max_size_bytes, max_files }
        }
        None => LogFiles::at(path),
    }
}

/// Whether nothing of the log is kept.
pub(crate) fn is_none(files: &LogFiles) -> bool {
    files.path == Path::new(NOWHERE)
}

fn limits(driver: &LogDriver) -> Result<(u64, u32), LoggingError> {
    match driver.name.as_str() {
        "" | "json-file" | "local" => {}
        // Its options are nobody's either.
        "none" => return Ok((0, 1)),
        other => return Err(LoggingError::Driver(other.to_owned())),
    }
    let (mut size, mut files) = (DEFAULT_LOG_SIZE_BYTES, DEFAULT_LOG_FILES);
    for (name, value) in &driver.options {
        let refused = |name, form| LoggingError::Value { name, value: value.clone(), form };
        match name.as_str() {
            "max-size" => size = bytes(value).ok_or_else(|| refused("max-size", "a size such as 10m"))?,
            "max-file" => {
                let number = value.parse().ok().filter(|&number| number > 0);
                files = number.ok_or_else(|| refused("max-file", "a number of at least 1"))?;
            }
            // What Docker adds to each line of such logs; nothing here reads it.
            "compress" | "labels" | "labels-regex" | "env" | "env-regex" | "tag" | "mode" | "max-buffer-size" => {}
            other => return Err(LoggingError::Option(other.to_owned())),
        }
    }
    Ok((size, files))
}

/// `10m`, `512k`, `1g`, `1000`; -1 is without limit.
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
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(name: &str, options: &[(&str, &str)]) -> LogDriver {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        LogDriver { name: name.to_owned(), options }
    }

    #[test]
    fn options_become_limits() {
        let check = |options: &[(&str, &str)], want| {
            let files = files("/log".into(), Some(&driver("json-file", options)));
            assert_eq!((files.max_size_bytes, files.max_files), want);
        };
        check(&[], (DEFAULT_LOG_SIZE_BYTES, DEFAULT_LOG_FILES));
        check(&[("max-size", "10k"), ("max-file", "2")], (10 << 10, 2));
        check(&[("max-size", "3mb")], (3 << 20, DEFAULT_LOG_FILES));
        check(&[("max-size", "-1")], (0, DEFAULT_LOG_FILES));
        assert!(is_none(&files("/log".into(), Some(&driver("none", &[])))));
    }

    #[test]
    fn what_is_not_known_is_said() {
        let say = |driver: LogDriver| check(Some(&driver)).unwrap_err().to_string();
        assert_eq!(say(driver("syslog", &[])), "logging driver \"syslog\" is not known: json-file and none are");
        assert_eq!(say(driver("", &[("max-file", "0")])), "log opt max-file: \"0\" is not a number of at least 1");
        assert!(say(driver("json-file", &[("size", "1")])).starts_with("unknown log opt \"size\""));
    }
}
