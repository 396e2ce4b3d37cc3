//! Which nodes can take part in encrypted networks, and what to say where they cannot.

use std::collections::BTreeMap;

use orch_model::{
    NetworkId, NodeId,
    network::{ENCRYPTED_PORT, Network},
    node::{Encryption, Node, NodeDescription, TunnelKey, features::ENCRYPTED_NETWORKS},
};

use crate::state::State;

/// Nodes named per reason at most.
const MAX_NAMED: usize = 3;

/// Why the cluster can have no encrypted network, for the operator; `None`: it can.
#[must_use]
pub fn refusal(state: &State) -> Option<String> {
    occupied(state).or_else(|| older(state)).or_else(|| nowhere(state))
}

/// Why `node` cannot take part in `network`; `None`: it can.
#[must_use]
pub fn refusal_on(node: &Node, network: &Network) -> Option<String> {
    let why = node.description.cannot_encrypt().filter(|_| network.spec.is_encrypted())?;
    Some(format!(
        "network {} is encrypted, and node {} cannot encrypt: {why}; run the container on a node that can",
        network.spec.annotations.name, node.description.hostname
    ))
}

/// Whether `node` can take part in all of `networks`. Nothing of an encrypted one is told to a node that cannot: one that
/// went back to an older version would carry it in clear text.
#[must_use]
pub fn allows<'a>(state: &State, node: &Node, networks: impl IntoIterator<Item = &'a NetworkId>) -> bool {
    let is_encrypted = |id: &NetworkId| state.network(id).is_some_and(|network| network.spec.is_encrypted());
    node.description.can_encrypt() || !networks.into_iter().any(is_encrypted)
}

/// What managers believe of what `node` says: a key is whose it was first, or a node could cut another one off by its key.
/// What it said before holds while it waits for its network daemon.
#[must_use]
pub fn believed(state: &State, node: &NodeId, description: &NodeDescription) -> Option<Encryption> {
    let said = description.encryption.clone();
    if said.is_none() && description.features.iter().any(|known| known == ENCRYPTED_NETWORKS) {
        let before = state.node(node).and_then(|node| node.description.encryption.clone());
        let unknown = || Encryption::Unavailable("its network daemon has not answered yet".to_owned());
        return Some(before.unwrap_or_else(unknown));
    }
    let owner = |key: TunnelKey| state.nodes().find(|n| n.id != *node && n.description.tunnel_key() == Some(key));
    let Some(Encryption::Key(key)) = said else { return said };
    match owner(key) {
        Some(owner) => Some(Encryption::Unavailable(format!("its key is that of node {}", owner.id))),
        None => said,
    }
}

/// Nodes cannot listen twice on one port.
fn occupied(state: &State) -> Option<String> {
    state.cluster().filter(|cluster| cluster.spec.data_path_port == ENCRYPTED_PORT).map(|_| {
        format!(
            "option \"encrypted\" needs port {ENCRYPTED_PORT}/udp, and this cluster was made with it as its data path port: \
             leave the option out, or make a cluster with another data path port"
        )
    })
}

/// A node, or a manager that leads later, of a version that would carry the network in clear text.
fn older(state: &State) -> Option<String> {
    // A node that has only just joined has said nothing of itself yet.
    let told = state.nodes().filter(|node| !node.description.engine_version.is_empty());
    let ignorant = told.filter(|node| node.description.encryption.is_none());
    let nodes: Vec<&str> = ignorant.map(|node| node.description.hostname.as_str()).collect();
    (!nodes.is_empty()).then(|| {
        format!(
            "option \"encrypted\" needs every node to run a version that knows it, and {} would ignore it: upgrade or remove \
             these nodes first, or leave the option out",
            named(&nodes)
        )
    })
}

fn nowhere(state: &State) -> Option<String> {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in state.nodes() {
        let why = node.description.cannot_encrypt()?;
        reasons.entry(why).or_default().push(&node.description.hostname);
    }
    let reasons: Vec<_> = reasons.iter().map(|(why, nodes)| format!("{}: {why}", named(nodes))).collect();
    Some(format!(
        "option \"encrypted\" needs nodes with WireGuard, and no node of the cluster can encrypt ({}); leave the option out if \
         clear text between nodes is acceptable",
        reasons.join("; ")
    ))
}

fn named(nodes: &[&str]) -> String {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    match nodes.len().checked_sub(MAX_NAMED) {
        None | Some(0) => nodes.join(", "),
        Some(more) => format!("{} and {more} more", nodes[..MAX_NAMED].join(", ")),
    }
}
