//! Log drivers and their options: what a service says about its log, as files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use orch_model::{
    logging::{self, Limits, LogDriverError},
    service::LogDriver,
    task::Task,
};

use super::executor::container_id;
use crate::{
    runtime::{DEFAULT_LOG_FILES, DEFAULT_LOG_SIZE_BYTES, LogFiles},
    shim::journal::JOURNAL_SOCKET,
};

/// Where output goes that nobody wants.
const NOWHERE: &str = "/dev/null";
const SHORT_ID_LEN: usize = 12;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoggingError {
    #[error(transparent)]
    Driver(#[from] LogDriverError),
    #[error(
        "logging driver \"journald\": this node has no systemd journal ({JOURNAL_SOCKET} is not there): use json-file, or \
         keep the service on nodes that have one with a constraint"
    )]
    NoJournal,
}

/// Whether this node can log so.
pub(crate) fn check(driver: Option<&LogDriver>) -> Result<(), LoggingError> {
    let Some(driver) = driver else { return Ok(()) };
    limits(driver)?;
    match driver.name.as_str() {
        "journald" if !Path::new(JOURNAL_SOCKET).exists() => Err(LoggingError::NoJournal),
        _ => Ok(()),
    }
}

/// A driver that [`check`] refuses has no container; its files are the default ones.
pub(crate) fn files(path: PathBuf, task: &Task) -> LogFiles {
    let Some(driver) = &task.spec.log_driver else { return LogFiles::at(path) };
    if driver.name == "none" {
        return LogFiles { max_size_bytes: 0, max_files: 1, ..LogFiles::at(NOWHERE.into()) };
    }
    let (max_size_bytes, max_files) = limits(driver)
        .map_or((DEFAULT_LOG_SIZE_BYTES, DEFAULT_LOG_FILES), |limits| (limits.max_size_bytes, limits.max_files));
    let mut details = chosen(driver, task);
    let tag = driver.options.get("tag").map(|tag| filled_in(tag, task));
    if driver.name == "journald" {
        let journal = Some(journal_fields(task, &details, tag));
        return LogFiles { journal, details, ..LogFiles::at(path) };
    }
    details.extend(tag.map(|tag| ("tag".to_owned(), tag)));
    LogFiles { max_size_bytes, max_files, details, ..LogFiles::at(path) }
}

/// The labels and variables that the options name.
fn chosen(driver: &LogDriver, task: &Task) -> BTreeMap<String, String> {
    let container = &task.spec.container;
    let listed = |option: &str| -> Vec<&str> {
        let names = driver.options.get(option).map_or("", String::as_str);
        names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect()
    };
    let labels = listed("labels").into_iter().filter_map(|name| Some((name, container.labels.get(name)?.as_str())));
    let variables = listed("env").into_iter().filter_map(|name| {
        let pair = container.env.iter().rev().filter_map(|entry| entry.split_once('='));
        pair.into_iter().find(|(key, _)| *key == name)
    });
    labels.chain(variables).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Docker's own placeholders of tags.
fn filled_in(tag: &str, task: &Task) -> String {
    let id = container_id(task);
    let short = &id[..SHORT_ID_LEN.min(id.len())];
    let name = task.container_name();
    let image = task.spec.container.image_digest.as_deref().unwrap_or_default();
    let short_image = image.strip_prefix("sha256:").unwrap_or(image);
    let short_image = &short_image[..SHORT_ID_LEN.min(short_image.len())];
    let filled = logging::tag(tag, |placeholder| match placeholder {
        "ID" => Some(short),
        "FullID" | "ContainerID" => Some(&id),
        "Name" | "ContainerName" => Some(&name),
        "ImageName" => Some(&task.spec.container.image),
        "ImageFullID" => Some(image),
        "ImageID" => Some(short_image),
        "DaemonName" => Some("orch"),
        _ => None,
    });
    // One from before tags were looked at.
    filled.unwrap_or_else(|| tag.to_owned())
}

/// The fields that Docker's driver gives.
fn journal_fields(task: &Task, details: &BTreeMap<String, String>, tag: Option<String>) -> BTreeMap<String, String> {
    let id = container_id(task);
    let short = id[..SHORT_ID_LEN.min(id.len())].to_owned();
    let tag = tag.unwrap_or_else(|| short.clone());
    // As systemd wants names: what is not a letter or digit becomes `_`.
    let name = |text: &String| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
    };
    let own = [
        ("CONTAINER_ID", short),
        ("CONTAINER_ID_FULL", id),
        ("CONTAINER_NAME", task.container_name()),
        ("CONTAINER_TAG", tag.clone()),
        ("SYSLOG_IDENTIFIER", tag),
        ("IMAGE_NAME", task.spec.container.image.clone()),
    ];
    let details = details.iter().map(|(key, value)| (name(key), value.clone()));
    // Names that begin with `_` are the journal's own.
    let details = details.filter(|(name, _)| !name.starts_with('_'));
    details.chain(own.map(|(name, value)| (name.to_owned(), value))).collect()
}

/// Whether nothing of the log is kept.
pub(crate) fn is_none(files: &LogFiles) -> bool {
    files.path == Path::new(NOWHERE)
}

/// What [`check`] refuses has no container; the error is for who asks before.
fn limits(driver: &LogDriver) -> Result<Limits, LogDriverError> {
    logging::limits(driver, Limits { max_size_bytes: DEFAULT_LOG_SIZE_BYTES, max_files: DEFAULT_LOG_FILES })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(name: &str, options: &[(&str, &str)]) -> LogDriver {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        LogDriver { name: name.to_owned(), options }
    }

    fn task(driver: LogDriver) -> Task {
        let mut task = Task::clone(&crate::agent::tests::task(1, "web:1", &[]));
        let spec = std::sync::Arc::make_mut(&mut task.spec);
        spec.log_driver = Some(driver);
        spec.container.labels = BTreeMap::from([("team".into(), "a".into()), ("x".into(), "y".into())]);
        spec.container.env = vec!["B=1".into(), "B=2".into(), "C=3".into()];
        task
    }

    #[test]
    fn options_become_limits() {
        let check = |options: &[(&str, &str)], want| {
            let files = files("/log".into(), &task(driver("json-file", options)));
            assert_eq!((files.max_size_bytes, files.max_files), want);
        };
        check(&[], (DEFAULT_LOG_SIZE_BYTES, DEFAULT_LOG_FILES));
        check(&[("max-size", "10k"), ("max-file", "2")], (10 << 10, 2));
        check(&[("max-size", "3mb")], (3 << 20, DEFAULT_LOG_FILES));
        check(&[("max-size", "-1")], (0, DEFAULT_LOG_FILES));
        assert!(is_none(&files("/log".into(), &task(driver("none", &[])))));
    }

    #[test]
    fn labels_variables_and_tags_become_details() {
        let options = [("labels", "team,nosuch"), ("env", "B"), ("tag", "{{ .ImageName }}!")];
        let text = |files: &BTreeMap<String, String>| {
            files.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        let file = files("/log".into(), &task(driver("json-file", &options)));
        assert_eq!(text(&file.details), "B=2 tag=web:1! team=a");
        let journal = files("/log".into(), &task(driver("journald", &options))).journal.unwrap();
        assert_eq!(
            (journal["TEAM"].as_str(), journal["B"].as_str(), journal["CONTAINER_TAG"].as_str()),
            ("a", "2", "web:1!")
        );
        assert_eq!(journal["CONTAINER_ID_FULL"].len(), 64);
    }

    #[test]
    fn whatever_a_tag_may_name_is_filled_in() {
        let task = task(driver("json-file", &[]));
        for name in logging::TAG_NAMES {
            let tag = format!("<{{{{.{name}}}}}>");
            assert_ne!(filled_in(&tag, &task), tag);
        }
        assert_eq!(filled_in("{{.Nope}}", &task), "{{.Nope}}", "one that was taken before tags were looked at");
    }

    #[test]
    fn what_is_not_known_is_said() {
        let say = |driver: LogDriver| check(Some(&driver)).unwrap_err().to_string();
        assert_eq!(
            say(driver("syslog", &[])),
            "logging driver \"syslog\" is not known: json-file, local, journald and none are"
        );
        assert_eq!(say(driver("", &[("max-file", "0")])), "log opt max-file: \"0\" is not a number of at least 1");
        assert!(say(driver("", &[("size", "1")])).starts_with("unknown log opt \"size\" for the json-file"));
        assert!(say(driver("journald", &[("max-size", "1m")])).starts_with("unknown log opt \"max-size\""));
    }
}
