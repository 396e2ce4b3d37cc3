//! Which keys a file may have, by its version.

use super::{
    error::{ComposeError, Place, Source},
    yaml::{Node, Yaml},
};

/// The minor number: `3.7` is 7.
pub(super) type Version = u8;

const NEWEST: Version = 13;

/// A key and the minor version that brought it.
pub(super) type Known = (&'static str, Version);

pub(super) const ROOT: &[Known] =
    &[("version", 0), ("name", 0), ("services", 0), ("networks", 0), ("volumes", 0), ("secrets", 1), ("configs", 3)];

#[rustfmt::skip]
pub(super) const SERVICE: &[Known] = &[
    ("build", 0), ("cap_add", 0), ("cap_drop", 0), ("cgroup_parent", 0), ("cgroupns_mode", 9), ("command", 0),
    ("configs", 3), ("container_name", 0), ("credential_spec", 3), ("depends_on", 0), ("deploy", 0), ("devices", 0),
    ("dns", 0), ("dns_search", 0), ("domainname", 0), ("entrypoint", 0), ("env_file", 0), ("environment", 0),
    ("expose", 0), ("external_links", 0), ("extra_hosts", 0), ("healthcheck", 0), ("hostname", 0), ("image", 0),
    ("init", 7), ("ipc", 0), ("isolation", 5), ("labels", 0), ("links", 0), ("logging", 0), ("mac_address", 0),
    ("network_mode", 0), ("networks", 0), ("oom_score_adj", 13), ("pid", 0), ("ports", 0), ("privileged", 0),
    ("read_only", 0), ("restart", 0), ("secrets", 1), ("security_opt", 0), ("shm_size", 0), ("stdin_open", 0),
    ("stop_grace_period", 0), ("stop_signal", 0), ("sysctls", 0), ("tmpfs", 0), ("tty", 0), ("ulimits", 0),
    ("user", 0), ("userns_mode", 0), ("volumes", 0), ("working_dir", 0),
];

/// Understood by Compose on one machine, without meaning in a cluster.
#[rustfmt::skip]
pub(super) const UNSUPPORTED: &[&str] = &[
    "build", "cgroup_parent", "cgroupns_mode", "credential_spec", "domainname", "external_links", "ipc", "isolation",
    "links", "mac_address", "network_mode", "oom_score_adj", "pid", "restart", "security_opt", "shm_size",
    "userns_mode",
];

pub(super) const DEPRECATED: &[(&str, &str)] = &[
    ("container_name", "Setting the container name is not supported."),
    (
        "expose",
        "Exposing ports is unnecessary - services on the same network can access each other's containers on any port.",
    ),
];

/// Refuses what `known` does not have in this version. `x-…` is the user's own, everywhere.
pub(super) fn check(
    node: &Node,
    path: &str,
    known: &[Known],
    version: Version,
    source: &Source,
) -> Result<(), ComposeError> {
    let Yaml::Map(entries) = &node.value else {
        if matches!(node.value, Yaml::Null) {
            return Ok(());
        }
        let what = if path.is_empty() { "the file" } else { path };
        return Err(source.error(node.place, format!("{what} must be a mapping")));
    };
    for (key, _) in entries {
        let name = key.text.as_str();
        let help = match known.iter().find(|(known, _)| *known == name) {
            _ if name.starts_with("x-") => continue,
            Some((_, since)) if *since <= version => continue,
            Some((_, since)) => Some(format!("{name} exists from version 3.{since} on: write version: \"3.{since}\"")),
            None => nearest(name, known).map(|near| format!("did you mean {near}?")),
        };
        let path = if path.is_empty() { "(root)" } else { path };
        let message = format!("{path} Additional property {name} is not allowed");
        return Err(source.error_with_help(key.place, message, help));
    }
    Ok(())
}

fn nearest(name: &str, known: &[Known]) -> Option<&'static str> {
    let shared = |other: &str| {
        let same = name.chars().zip(other.chars()).filter(|(a, b)| a == b).count();
        (same * 2 >= name.len().max(other.len()) && same > 1).then_some(same)
    };
    known.iter().filter_map(|(other, _)| Some((shared(other)?, *other))).max().map(|(_, other)| other)
}

pub(super) fn version(root: &Node, source: &Source) -> Result<Version, ComposeError> {
    let Yaml::Map(entries) = &root.value else {
        let message = "this is not a stack file: expected a mapping with `services:`";
        return Err(source.error(root.place, message));
    };
    let Some(node) = root.get("version") else {
        if root.get("services").is_none()
            && let Some((key, _)) = entries.iter().find(|(_, v)| v.get("image").or(v.get("build")).is_some())
        {
            return Err(too_old(source, key.place, "1", "it has no `services:`"));
        }
        return Ok(NEWEST);
    };
    let text = node.text().unwrap_or_default();
    let (major, minor) = text.split_once('.').unwrap_or((text, ""));
    match (major, minor.parse::<Version>()) {
        ("3", _) if minor.is_empty() => Ok(NEWEST),
        ("3", Ok(minor)) if minor <= NEWEST => Ok(minor),
        ("1" | "2", _) => Err(too_old(source, node.place, major, &format!("it says version {text:?}"))),
        _ => Err(source.error_with_help(
            node.place,
            format!("unsupported Compose file version: {text:?}"),
            Some(format!("write version: \"3\" (the newest, 3.{NEWEST}), or leave the key out")),
        )),
    }
}

fn too_old(source: &Source, place: Place, major: &str, why: &str) -> ComposeError {
    source.error_with_help(
        place,
        format!("unsupported Compose file: this is the version {major} format ({why}); stacks need version 3"),
        Some(
            "write `version: \"3\"` at the top, put every service under `services:`, replace `links` by networks, and \
             `extends` by a YAML anchor"
                .into(),
        ),
    )
}
