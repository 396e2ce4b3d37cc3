//! Placement constraints: `key == value` and `key != value` about a node.
//!
//! Values compare without regard to case; what a node lacks equals the empty text. An unknown key is an error when the
//! service is submitted, because a constraint that can never match would leave its tasks pending without a reason.

use ipnetwork::IpNetwork;
use orch_model::node::{Node, NodeRole};

/// A text that is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    #[error("constraint {0:?} has no operator: expected \"KEY == VALUE\" or \"KEY != VALUE\"")]
    NoOperator(String),
    #[error(
        "constraint {text:?}: unknown key {key:?}: expected node.id, node.hostname, node.ip, node.role, \
         node.platform.os, node.platform.arch, node.labels.NAME or engine.labels.NAME"
    )]
    UnknownKey { text: String, key: String },
    #[error("constraint {text:?}: key '{key}' is invalid: expected letters, digits, '-', '_' and '.'")]
    KeyForm { text: String, key: String },
    #[error(
        "constraint {text:?}: value '{value}' is invalid: expected ASCII letters, digits, spaces and any of :-_.*()?+[]\\^$|/"
    )]
    ValueForm { text: String, value: String },
    #[error("constraint {text:?}: {value:?} is not an address or a network like 10.1.0.0/16")]
    NotAnAddress { text: String, value: String },
    #[error("constraint {text:?}: the role is manager or worker, not {value:?}")]
    NotARole { text: String, value: String },
}

/// One parsed constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: Key,
    equal: bool,
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Id,
    Hostname,
    Ip(IpNetwork),
    Role,
    Os,
    Arch,
    NodeLabel(String),
    EngineLabel(String),
}

impl Constraint {
    /// Reads a constraint as the user wrote it.
    ///
    /// # Errors
    /// When it is not one: see [`ConstraintError`].
    pub fn parse(text: &str) -> Result<Self, ConstraintError> {
        let (key, equal, value) = match (text.split_once("!="), text.split_once("==")) {
            (Some((key, value)), _) => (key, false, value),
            (None, Some((key, value))) => (key, true, value),
            (None, None) => return Err(ConstraintError::NoOperator(text.to_owned())),
        };
        let (key, value) = (key.trim(), value.trim());
        let key = parse_key(text, key, value)?;
        Ok(Self { key, equal, value: value.to_owned() })
    }

    /// Reads a constraint that is submitted: Docker's form of names and values is asked of new ones only.
    ///
    /// # Errors
    /// As [`Self::parse`], and when the form is another one.
    pub fn submitted(text: &str) -> Result<Self, ConstraintError> {
        let (key, value) = text.split_once("!=").or_else(|| text.split_once("==")).unwrap_or((text, ""));
        let (key, value) = (key.trim(), value.trim());
        let constraint = Self::parse(text)?;
        // Docker's two forms; here a value may be empty, too.
        if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(ConstraintError::KeyForm { text: text.to_owned(), key: key.to_owned() });
        }
        if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b" :-_.*()?+[]\\^$|/".contains(&b)) {
            return Err(ConstraintError::ValueForm { text: text.to_owned(), value: value.to_owned() });
        }
        Ok(constraint)
    }

    /// Whether `node` is one that the constraint asks for.
    #[must_use]
    pub fn matches(&self, node: &Node) -> bool {
        let same = |found: &str| found.to_lowercase() == self.value.to_lowercase();
        let found = match &self.key {
            Key::Id => same(node.id.as_str()),
            Key::Hostname => same(&node.description.hostname),
            Key::Ip(network) => node.status.addr.is_some_and(|addr| network.contains(addr)),
            Key::Role => same(role_word(node.role)),
            Key::Os => same(&node.description.platform.os),
            Key::Arch => same_arch(&node.description.platform.arch, &self.value),
            Key::NodeLabel(name) => same(node.spec.annotations.labels.get(name).map_or("", String::as_str)),
            Key::EngineLabel(name) => same(node.description.engine_labels.get(name).map_or("", String::as_str)),
        };
        found == self.equal
    }
}

/// Whether a node fits all constraints. What does not parse fits nothing (it was refused when submitted).
#[must_use]
pub fn all_match(constraints: &[String], node: &Node) -> bool {
    constraints.iter().all(|text| Constraint::parse(text).is_ok_and(|c| c.matches(node)))
}

fn parse_key(text: &str, key: &str, value: &str) -> Result<Key, ConstraintError> {
    let lower = key.to_lowercase();
    Ok(match lower.as_str() {
        "node.id" => Key::Id,
        "node.hostname" => Key::Hostname,
        "node.ip" => Key::Ip(
            value
                .parse()
                .map_err(|_| ConstraintError::NotAnAddress { text: text.to_owned(), value: value.to_owned() })?,
        ),
        "node.role" if ["manager", "worker"].contains(&value.to_lowercase().as_str()) => Key::Role,
        "node.role" => {
            return Err(ConstraintError::NotARole { text: text.to_owned(), value: value.to_owned() });
        }
        "node.platform.os" => Key::Os,
        "node.platform.arch" => Key::Arch,
        _ => return label_key(text, key, &lower),
    })
}

fn label_key(text: &str, key: &str, lower: &str) -> Result<Key, ConstraintError> {
    // The prefix is recognised in any case; the label's own name is taken as written.
    for (prefix, make) in [
        ("node.labels.", Key::NodeLabel as fn(String) -> Key),
        ("engine.labels.", Key::EngineLabel as fn(String) -> Key),
    ] {
        if lower.starts_with(prefix) && key.len() > prefix.len() {
            return Ok(make(key[prefix.len()..].to_owned()));
        }
    }
    Err(ConstraintError::UnknownKey { text: text.to_owned(), key: key.to_owned() })
}

/// Docker's word for a role.
#[must_use]
pub fn role_word(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

/// The same machine has two names: `amd64` in images, `x86_64` in `uname`.
pub(crate) fn same_arch(found: &str, wanted: &str) -> bool {
    let plain = |arch: &str| match arch.to_lowercase().as_str() {
        "amd64" => "x86_64".to_owned(),
        "arm64" => "aarch64".to_owned(),
        other => other.to_owned(),
    };
    plain(found) == plain(wanted)
}

#[cfg(test)]
mod tests {
    use orch_model::{
        Annotations, Meta, NodeId, Timestamp,
        node::{Availability, NodeDescription, NodeSpec, NodeState, NodeStatus, Platform},
    };

    use super::*;

    fn node() -> Node {
        let labels = [("disk".to_owned(), "SSD".to_owned())].into();
        Node {
            id: NodeId::from_random(36),
            meta: Meta::default(),
            spec: NodeSpec {
                annotations: Annotations { name: String::new(), labels },
                role: NodeRole::Worker,
                availability: Availability::Active,
            },
            role: NodeRole::Worker,
            description: NodeDescription {
                hostname: "N1".to_owned(),
                platform: Platform { os: "linux".to_owned(), arch: "x86_64".to_owned() },
                engine_labels: [("Rack".to_owned(), "7".to_owned())].into(),
                ..NodeDescription::default()
            },
            status: NodeStatus {
                state: NodeState::Ready,
                message: String::new(),
                addr: "10.1.2.3".parse().ok(),
                since: Timestamp::default(),
            },
            manager: None,
            index: 1,
            attachments: [].into(),
            certificates: None,
        }
    }

    fn check(text: &str, expected: Result<bool, &str>) {
        match (Constraint::submitted(text).map(|c| c.matches(&node())), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{text}: {error}"),
            (found, expected) => panic!("{text}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn constraints_match_nodes() {
        check("node.id == 0000000000000000000000010", Ok(true));
        check("node.id==0000000000000000000000011", Ok(false));
        check("node.hostname == n1", Ok(true));
        check("node.hostname != n1", Ok(false));
        check("node.ip == 10.1.2.3", Ok(true));
        check("node.ip == 10.1.0.0/16", Ok(true));
        check("node.ip != 10.1.0.0/16", Ok(false));
        check("node.role == WORKER", Ok(true));
        check("node.role != manager", Ok(true));
        check("node.platform.os == linux", Ok(true));
        check("node.platform.arch == amd64", Ok(true));
        check("node.platform.arch == arm64", Ok(false));
        check("node.labels.disk == ssd", Ok(true));
        check("Node.Labels.disk == ssd", Ok(true));
        check("node.labels.Disk == ssd", Ok(false));
        check("node.labels.none == ", Ok(true));
        check("node.labels.none != x", Ok(true));
        check("engine.labels.Rack == 7", Ok(true));
    }

    #[test]
    fn what_is_no_constraint_is_refused() {
        check("node.role = manager", Err("has no operator"));
        check("node.role == boss", Err("manager or worker"));
        check("node.ip == home", Err("not an address"));
        check("node.labels. == x", Err("unknown key"));
        check("role == manager", Err("unknown key \"role\""));
        check("node.labels.a b == x", Err("key 'node.labels.a b' is invalid"));
        check("node.labels.a === x", Err("value '= x' is invalid"));
        check("node.labels.a == x\ny", Err("is invalid"));
        check("node.labels.a != ä", Err("value 'ä' is invalid"));
    }
}
