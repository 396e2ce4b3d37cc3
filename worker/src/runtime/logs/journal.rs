//! Reading a container's log back from systemd's journal, through `journalctl`, which knows its files.

use std::{
    collections::BTreeMap,
    future::Future,
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

use super::{Lines, LogLine, LogOptions, LogSource};
use crate::runtime::{container::io_error, error::RuntimeError};

const JOURNALCTL: &str = "journalctl";
/// By this field a container's entries are found.
const ID_FIELD: &str = "CONTAINER_ID_FULL";
/// After the container's end: without an entry for so long, nothing more comes.
const LAST_ENTRIES: Duration = Duration::from_millis(500);
/// Of standard error, in syslog's words.
const ERROR_PRIORITY: &str = "3";

/// What `journalctl -o json` prints of an entry.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    at_us: String,
    /// Text, or a list of bytes where it is not text.
    #[serde(rename = "MESSAGE", default)]
    message: Value,
    #[serde(rename = "PRIORITY", default)]
    priority: String,
    #[serde(rename = "CONTAINER_PARTIAL_MESSAGE", default)]
    partial: String,
}

pub(super) async fn copy(
    fields: &BTreeMap<String, String>,
    details: &BTreeMap<String, String>,
    options: &LogOptions,
    ended: impl Future<Output = ()>,
    lines: &Lines,
) -> Result<(), RuntimeError> {
    let failed = |source| io_error("cannot read the journal with", JOURNALCTL, source);
    let mut child = Command::new(JOURNALCTL)
        .args(arguments(fields, options))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let Some(stdout) = child.stdout.take() else { return Ok(()) };
    let mut entries = BufReader::new(stdout).lines();
    tokio::pin!(ended);
    let mut over = false;
    loop {
        let next = async {
            match over {
                true => timeout(LAST_ENTRIES, entries.next_line()).await.unwrap_or(Ok(None)),
                false => entries.next_line().await,
            }
        };
        tokio::select! {
            entry = next => match entry.map_err(failed)? {
                Some(entry) => {
                    if let Some(line) = parse(&entry, details)
                        && lines.send(Ok(line)).await.is_err()
                    {
                        return Ok(());
                    }
                }
                None => return Ok(()),
            },
            () = &mut ended, if options.follow && !over => over = true,
            () = lines.closed() => return Ok(()),
        }
    }
}

fn arguments(fields: &BTreeMap<String, String>, options: &LogOptions) -> Vec<String> {
    let id = fields.get(ID_FIELD).map_or("", String::as_str);
    let tail = options.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let mut arguments: Vec<String> = ["--output=json", "--quiet", "--no-pager", "--all"].map(str::to_owned).to_vec();
    arguments.push(format!("--lines={tail}"));
    arguments.extend(options.follow.then(|| "--follow".to_owned()));
    arguments.extend(options.since.map(|at| format!("--since=@{}", seconds(at))));
    arguments.extend(options.until.map(|at| format!("--until=@{}", seconds(at))));
    arguments.push(format!("{ID_FIELD}={id}"));
    arguments
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn parse(entry: &str, details: &BTreeMap<String, String>) -> Option<LogLine> {
    let entry: Entry = serde_json::from_str(entry).ok()?;
    let mut line = match entry.message {
        Value::String(text) => text,
        Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => String::new(),
    };
    if entry.partial.is_empty() {
        line.push('\n');
    }
    let stream = if entry.priority == ERROR_PRIORITY { LogSource::Stderr } else { LogSource::Stdout };
    let time = UNIX_EPOCH + Duration::from_micros(entry.at_us.parse().ok()?);
    Some(LogLine { stream, time, line, details: details.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_become_lines() {
        let check = |entry: &str, stream, line: &str| {
            let parsed = parse(entry, &BTreeMap::new()).unwrap();
            assert_eq!((parsed.stream, parsed.line.as_str()), (stream, line));
            assert_eq!(parsed.time, UNIX_EPOCH + Duration::from_micros(5));
        };
        check(r#"{"__REALTIME_TIMESTAMP":"5","MESSAGE":"a","PRIORITY":"6"}"#, LogSource::Stdout, "a\n");
        check(r#"{"__REALTIME_TIMESTAMP":"5","MESSAGE":[97,255],"PRIORITY":"3"}"#, LogSource::Stderr, "a\u{fffd}\n");
        check(
            r#"{"__REALTIME_TIMESTAMP":"5","MESSAGE":"a","PRIORITY":"6","CONTAINER_PARTIAL_MESSAGE":"true"}"#,
            LogSource::Stdout,
            "a",
        );
        assert!(parse("{}", &BTreeMap::new()).is_none());
    }

    #[test]
    fn options_are_journalctls() {
        let fields = BTreeMap::from([(ID_FIELD.to_owned(), "ab".to_owned())]);
        let options = LogOptions {
            follow: true,
            tail: Some(3),
            since: Some(UNIX_EPOCH + Duration::from_millis(1500)),
            until: None,
        };
        assert_eq!(
            arguments(&fields, &options)[4..],
            ["--lines=3", "--follow", "--since=@1.5", "CONTAINER_ID_FULL=ab"]
        );
    }
}
