//! Versions of the format, and keys that mean nothing in a cluster.

use super::{
    error::{ComposeError, Place, Source},
    scalar::ScalarKind,
    yaml::{Key, Node, Yaml},
};

/// The minor number: `3.7` is 7.
pub(super) type Version = u8;

const NEWEST: Version = 13;

/// Of keys that only files without `version:` have: the Compose specification as it goes on.
pub(super) const MODERN: Version = 100;

/// Understood by Compose on one machine, without meaning in a cluster.
#[rustfmt::skip]
pub(super) const UNSUPPORTED: &[&str] = &[
    "build", "cgroup_parent", "cgroupns_mode", "devices", "domainname", "external_links", "ipc", "links",
    "mac_address", "network_mode", "pid", "privileged", "restart", "security_opt", "shm_size", "userns_mode",
];

/// Of these, what a file without `version:` gets nevertheless.
pub(super) const SUPPORTED_WITHOUT_VERSION: &[&str] = &["devices", "privileged", "restart"];

pub(super) const DEPRECATED: &[(&str, &str)] = &[
    ("container_name", "Setting the container name is not supported."),
    (
        "expose",
        "Exposing ports is unnecessary - services on the same network can access each other's containers on any port.",
    ),
];

pub(super) fn version(root: &Node, strict: bool, source: &Source) -> Result<Version, ComposeError> {
    let Yaml::Map(entries) = &root.value else {
        let message = "this is not a stack file: top-level object must be a mapping with `services:`";
        return Err(source.error(root.place, message));
    };
    let Some(node) = root.get("version") else {
        if root.get("services").is_none()
            && let Some((key, _)) = entries.iter().find(|(_, v)| v.get("image").or(v.get("build")).is_some())
        {
            let why = format!("it has no `services:`, so that (root) Additional property {} is not allowed", key.text);
            return Err(too_old(source, key.place, "1", "1", &why));
        }
        if let Some((_, nothing)) = entries.iter().find(|(key, _)| strict && key.text == "version") {
            return Err(source.error(nothing.place, "unsupported Compose file version: <nil>"));
        }
        return Ok(if strict { NEWEST } else { MODERN });
    };
    // As written: the number 3.10 would be 3.1.
    let text = source.written(node.place).or(node.text()).unwrap_or_default();
    let is_number = matches!(node.kind, ScalarKind::Whole | ScalarKind::Real);
    let (major, minor) = text.split_once('.').unwrap_or((text, ""));
    match (major, minor.parse::<Version>()) {
        ("", _) => Ok(NEWEST),
        ("3", _) if strict && is_number => Err(source.error(node.place, "version must be a string")),
        ("3", _) if !text.contains('.') => Ok(NEWEST),
        ("3", Ok(known)) if known <= NEWEST && known.to_string() == minor => Ok(known),
        ("1" | "2", _) => Err(too_old(source, node.place, text, major, "it says so")),
        _ => Err(source.error_with_help(
            node.place,
            format!("unsupported Compose file version: {}", in_go(node, text)),
            Some(format!("write version: \"3\" (the newest, 3.{NEWEST}), or leave the key out")),
        )),
    }
}

fn too_old(source: &Source, place: Place, text: &str, major: &str, why: &str) -> ComposeError {
    source.error_with_help(
        place,
        format!("unsupported Compose file version: {text}: this is the version {major} format ({why}); stacks need version 3"),
        Some(
            "write `version: \"3\"` at the top, put every service under `services:`, replace `links` by networks, and \
             `extends` by a YAML anchor"
                .into(),
        ),
    )
}

/// As Docker's client prints what is no text.
fn in_go(node: &Node, text: &str) -> String {
    match &node.value {
        Yaml::Null => "<nil>".into(),
        Yaml::Scalar(_) if node.kind == ScalarKind::Text => text.to_owned(),
        Yaml::Scalar(value) => value.clone(),
        Yaml::List(items) => {
            let items: Vec<String> = items.iter().map(|item| in_go(item, item.text().unwrap_or_default())).collect();
            format!("[{}]", items.join(" "))
        }
        Yaml::Map(entries) => {
            let entry =
                |(key, value): &(Key, Node)| format!("{}:{}", key.text, in_go(value, value.text().unwrap_or_default()));
            format!("map[{}]", entries.iter().map(entry).collect::<Vec<_>>().join(" "))
        }
    }
}

pub(super) fn shown(version: Version) -> String {
    if version == MODERN { "none".into() } else { format!("3.{version}") }
}

/// As a file says it. One that says nothing goes on doing so: with a version, less of it would be acted on.
pub(super) fn written(version: Version) -> Option<String> {
    (version != MODERN).then(|| format!("3.{version}"))
}
