//! Spread preferences: first even between the values of the first label, within one value between those of the second,
//! and so on.

use std::collections::BTreeMap;

use orch_model::{ServiceId, node::Node};

use super::filter::NodeInfo;

/// Keeps the nodes of the branch that has the fewest tasks of the service, level by level.
#[must_use]
pub fn narrow<'a>(nodes: Vec<&'a NodeInfo>, descriptors: &[String], service: &ServiceId) -> Vec<&'a NodeInfo> {
    let mut nodes = nodes;
    for descriptor in descriptors {
        let mut branches: BTreeMap<String, (u64, Vec<&NodeInfo>)> = BTreeMap::new();
        for info in nodes {
            let branch = branches.entry(value(&info.node, descriptor)).or_default();
            branch.0 += info.tasks_by_service.get(service).copied().unwrap_or(0);
            branch.1.push(info);
        }
        let emptiest = branches.into_values().min_by_key(|(tasks, _)| *tasks);
        nodes = emptiest.map(|(_, nodes)| nodes).unwrap_or_default();
    }
    nodes
}

/// Whether a text names something that nodes can differ in.
#[must_use]
pub fn is_descriptor(text: &str) -> bool {
    ["node.labels.", "engine.labels."].iter().any(|p| text.len() > p.len() && text.starts_with(p))
}

/// Nodes without the label are a branch of their own.
fn value(node: &Node, descriptor: &str) -> String {
    let label = match (descriptor.strip_prefix("node.labels."), descriptor.strip_prefix("engine.labels.")) {
        (Some(name), _) => node.spec.annotations.labels.get(name),
        (None, Some(name)) => node.description.engine_labels.get(name),
        (None, None) => None,
    };
    label.cloned().unwrap_or_default()
}
