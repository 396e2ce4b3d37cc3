//! Replacing the cluster's root certificate: how far it is, whom it waits for, and when it is done.
//!
//! While a rotation is under way every certificate is signed by the target, which the present root vouches for, and
//! nodes trust both. Once every node has reported that its certificates are the target's and that it trusts it, nothing
//! needs the present root any more. Nodes that are down are waited for as well: without the present root they could not
//! come back. Nothing is remembered between steps, so whichever manager leads next carries on.

use orch_model::node::{Node, NodeState};

use crate::state::State;

/// How far the cluster's nodes are with its root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    pub nodes: usize,
    /// Their certificates are of the desired root.
    pub rotated_certificates: usize,
    /// They trust the desired root and no other.
    pub rotated_roots: usize,
    /// Those whose certificates are still of another root: hostname, and the state when that is not ready.
    pub awaited: Vec<String>,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The target becomes the root.
    Finish,
}

/// How far the nodes are with the root of this digest.
#[must_use]
pub fn progress(state: &State, desired: &str) -> Progress {
    let mut progress = Progress::default();
    for node in state.nodes() {
        progress.nodes += 1;
        if has_certificates_of(node, desired) {
            progress.rotated_certificates += 1;
        } else {
            progress.awaited.push(named(node));
        }
        let trusted = node.certificates.iter().flat_map(|c| &c.trusted);
        progress.rotated_roots += usize::from(trusted.eq([desired]));
    }
    progress.awaited.sort();
    progress
}

/// The next step of the rotation that is under way; `None` while nodes are awaited, or when there is none.
#[must_use]
pub fn next_step(state: &State) -> Option<Step> {
    let target = &state.cluster()?.root_rotation.as_ref()?.digest;
    let is_ready = |node: &Node| {
        let trusts = node.certificates.as_ref().is_some_and(|c| c.trusted.contains(target));
        trusts && has_certificates_of(node, target)
    };
    state.nodes().all(|node| is_ready(node)).then_some(Step::Finish)
}

fn has_certificates_of(node: &Node, root: &str) -> bool {
    node.certificates.as_ref().is_some_and(|certificates| certificates.issuer == root)
}

fn named(node: &Node) -> String {
    let name = if node.description.hostname.is_empty() { node.id.as_str() } else { &node.description.hostname };
    match node.status.state {
        NodeState::Ready => name.to_owned(),
        NodeState::Down => format!("{name} (down)"),
        NodeState::Unknown | NodeState::Disconnected => format!("{name} (not connected)"),
    }
}
