//! Nodes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use orch_model::node::{Availability, Encryption, Node, NodeRole, NodeState};
use orch_template::native::Zero;
use serde_json::{Value, json};

use super::{Fields, head, service::reserved};
use crate::render::time;

pub(crate) fn role_word(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

pub(crate) fn availability_word(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

pub(crate) fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    }
}

/// `reachability` is `None` for workers; else whether the manager answers, and whether it leads.
pub(crate) fn node(node: &Node, reachability: Option<(bool, bool)>) -> Value {
    let addr = node.status.addr.map(|a| a.to_string()).unwrap_or_default();
    let manager = node.manager.as_ref().map(|manager| {
        let (leader, reachable) = reachability.unwrap_or_default();
        Fields::default()
            .always("Leader", leader)
            .always("Reachability", if reachable { "reachable" } else { "unreachable" })
            .always("Addr", manager.addr.as_str())
            .done()
    });
    head(node.id.as_str(), &node.meta)
        .always(
            "Spec",
            Fields::default()
                .some("Name", node.spec.annotations.name.as_str())
                .always("Labels", json!(node.spec.annotations.labels))
                .always("Role", role_word(node.spec.role))
                .always("Availability", availability_word(node.spec.availability))
                .done(),
        )
        .always("Description", description(node))
        .always(
            "Status",
            Fields::default()
                .always("State", state_word(node.status.state))
                .some("Message", node.status.message.as_str())
                .always("Addr", addr)
                .done(),
        )
        .some("ManagerStatus", manager)
        .done()
}

fn description(node: &Node) -> Value {
    let description = &node.description;
    let engine = Fields::default()
        .always("EngineVersion", description.engine_version.as_str())
        .some("Labels", json!(description.engine_labels))
        .unset("Plugins", Zero::List)
        .done();
    Fields::default()
        .always("Hostname", description.hostname.as_str())
        .always("Platform", json!({"Architecture": description.platform.arch, "OS": description.platform.os}))
        .always("Resources", reserved(description.resources, &description.generic))
        .always("Engine", engine)
        .some("Features", json!(description.features))
        .some("DataPathAddr", description.data_addr.map(|a| a.to_string()).unwrap_or_default())
        .some("Encryption", description.encryption.as_ref().map(encryption))
        .some("TLSInfo", tls_info(node))
        .unset("CSIInfo", Zero::List)
        .done()
}

/// The key as WireGuard's own tools write it.
fn encryption(encryption: &Encryption) -> Value {
    match encryption {
        Encryption::Key(key) => json!({"PublicKey": STANDARD.encode(key.0)}),
        Encryption::Unavailable(why) => json!({"Unavailable": why}),
    }
}

/// Roots by their digests; `orch ca` prints the certificate itself.
fn tls_info(node: &Node) -> Option<Value> {
    let certificates = node.certificates.as_ref()?;
    let digest = |digest: &String| format!("sha256:{digest}");
    Some(json!({
        "CertIssuer": digest(&certificates.issuer),
        "TrustedRoots": certificates.trusted.iter().map(digest).collect::<Vec<_>>(),
        "CertExpiresAt": time::rfc3339(certificates.expires_at),
    }))
}
