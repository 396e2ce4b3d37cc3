//! What a spec asks of the versions that nodes run. A node (or a manager, which is one) that is older would carry out the
//! spec without what it does not know: a port that should answer on 127.0.0.1 only would answer everywhere. So such a
//! spec is refused until every node says that it knows.

use orch_model::{
    network::NodeNetwork,
    node::{
        NodeDescription,
        features::{HOST_GATEWAY, MOUNT_OPTIONS, NODE_NETWORKS, PUBLISH_OPTIONS, VOLUME_SUBPATH},
    },
    resolver,
    service::{Balance, ServiceSpec, TaskSpec},
};

use crate::state::State;

/// Nodes named in a refusal at most.
const MAX_NAMED: usize = 3;

/// Why `spec` cannot be carried out by all nodes yet, for the operator; `None`: it can.
#[must_use]
pub fn missing(state: &State, spec: &ServiceSpec) -> Option<String> {
    needed(spec).find_map(|(feature, what)| refusal(state, feature, what))
}

/// Whether a task may run on this node. One that joined since the spec was accepted, or went back to an older version,
/// would start it in a network of its own, or with all of a volume.
#[must_use]
pub fn allows(node: &NodeDescription, task: &TaskSpec) -> bool {
    required(task).iter().all(|feature| knows(node, feature))
}

/// What a node's version must know for the task to do no harm there.
#[must_use]
pub fn required(task: &TaskSpec) -> Vec<&'static str> {
    let is_inside = task.container.mounts.iter().any(|mount| !mount.volume_subpath.is_empty());
    let asked = [(task.node_network == Some(NodeNetwork::Host), NODE_NETWORKS), (is_inside, VOLUME_SUBPATH)];
    asked.into_iter().filter_map(|(is_asked, feature)| is_asked.then_some(feature)).collect()
}

/// Whether the node says that its version knows it.
#[must_use]
pub fn knows(node: &NodeDescription, feature: &str) -> bool {
    node.features.iter().any(|known| known == feature)
}

fn refusal(state: &State, feature: &str, what: &str) -> Option<String> {
    // A node that has only just joined has said nothing of itself yet.
    let told = state.nodes().filter(|node| !node.description.engine_version.is_empty());
    let older: Vec<&str> =
        told.filter(|n| !knows(&n.description, feature)).map(|n| n.description.hostname.as_str()).collect();
    let more = match older.len() {
        0 => return None,
        count if count > MAX_NAMED => format!(" and {} more", count - MAX_NAMED),
        _ => String::new(),
    };
    let named = older.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
    Some(format!(
        "{what} needs every node to run a version that knows it, and {named}{more} would ignore it: upgrade or remove \
         these nodes first, or leave the option out"
    ))
}

/// Each feature that the spec needs, and what of the spec needs it.
fn needed(spec: &ServiceSpec) -> impl Iterator<Item = (&'static str, &'static str)> {
    let (endpoint, mounts) = (&spec.endpoint, &spec.task.container.mounts);
    let node_network = spec.task.node_network;
    let hosts = &spec.task.container.hosts;
    let asked = [
        (
            endpoint.ports.iter().any(|port| port.host_ip.is_some()),
            (PUBLISH_OPTIONS, "a port that answers on one address only"),
        ),
        (endpoint.ports.iter().any(|port| port.masquerade), (PUBLISH_OPTIONS, "a port with source=masquerade")),
        (endpoint.prefer_local, (PUBLISH_OPTIONS, "to prefer local tasks")),
        (endpoint.balance == Some(Balance::Weighted), (PUBLISH_OPTIONS, "endpoint balance weighted")),
        (mounts.iter().any(|mount| mount.bind_recursive.is_some()), (MOUNT_OPTIONS, "a bind with bind-recursive")),
        (node_network == Some(NodeNetwork::Host), (NODE_NETWORKS, "a service on the network host")),
        (node_network == Some(NodeNetwork::Bridge), (NODE_NETWORKS, "a service on the network bridge")),
        (mounts.iter().any(|mount| !mount.volume_subpath.is_empty()), (VOLUME_SUBPATH, "a mount with volume-subpath")),
        (hosts.iter().any(|line| resolver::is_of_node(line)), (HOST_GATEWAY, "a host with host-gateway")),
    ];
    asked.into_iter().filter_map(|(is_asked, need)| is_asked.then_some(need))
}
