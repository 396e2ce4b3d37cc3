//! Spread preferences: first even between the values of the first label, within one value between those of the second,
//! and so on.

use orch_model::node::Node;

/// Whether a text names something that nodes can differ in.
#[must_use]
pub fn is_descriptor(text: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control());
    ["node.labels.", "engine.labels."].iter().any(|prefix| text.strip_prefix(prefix).is_some_and(is_name))
}

/// What a node has for a descriptor. Nodes without the label are a branch of their own.
pub(crate) fn value<'a>(node: &'a Node, descriptor: &str) -> &'a str {
    let label = match (descriptor.strip_prefix("node.labels."), descriptor.strip_prefix("engine.labels.")) {
        (Some(name), _) => node.spec.annotations.labels.get(name),
        (None, Some(name)) => node.description.engine_labels.get(name),
        (None, None) => None,
    };
    label.map_or("", String::as_str)
}
