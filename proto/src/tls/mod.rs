//! Mutual TLS between nodes: identities, configurations, join tokens, and who is at the other end.
//!
//! This module must not open connections (that is [`crate::transport`]) nor sign certificates (that is [`crate::ca`]).
//!
//! Invariants: TLS 1.3 only; a certificate is worth something only inside the cluster that its organisation names; a
//! server is accepted for the role that the caller asked for and no other; no private key is ever printed.

mod config;
mod identity;
mod peer;
mod token;
mod unlock;

pub(crate) use config::{RAFT_ALPN, WrongRoot, client_verifier, raft_client_config, verify_chain, verify_server};
pub use config::{client_config, server_config, server_name, token_client_config};
pub(crate) use identity::not_after;
pub use identity::{FOLLOW_INTERVAL, Identity, SharedIdentity};
pub use peer::{ConnectionInfo, PeerIdentity, peer_identity, remote_addr, require_role};
pub use token::{JoinToken, TokenError};
pub use unlock::{UnlockKey, UnlockKeyError};

use std::{io, path::PathBuf, time::SystemTime};

use orch_model::{ClusterId, node::NodeRole};

/// Why an identity cannot be used, or the other end was refused.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path:?}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{what} is not valid PEM: {reason}")]
    Pem { what: &'static str, reason: String },
    #[error("the certificate is not one of an orch node: {reason}")]
    NotANode { reason: String },
    #[error("the private key in {dir:?} does not belong to the certificate beside it")]
    KeyMismatch { dir: PathBuf },
    #[error(
        "this node's certificate expired ({}); get a new one with \"orch join --token TOKEN MANAGER\" on this node, with a \
         token of its role: it comes back under its old name",
        ago(*.not_after)
    )]
    OwnCertificateExpired { not_after: SystemTime },
    #[error("TLS cannot be set up from this identity")]
    Config(#[from] rustls::Error),
    #[error("the cluster's root certificate cannot be used to check other nodes: {0}")]
    Verifier(String),
}

/// Must be called once per process before anything here; calling it again does nothing.
pub fn install_crypto_provider() {
    // An error means that a provider is installed already, which is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The word for a role in certificates' DNS names.
#[must_use]
pub fn role_word(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

/// The organisational unit of a role's certificates.
#[must_use]
pub fn role_unit(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "orch-worker",
        NodeRole::Manager => "orch-manager",
    }
}

/// The DNS name that every certificate of this role and cluster carries.
#[must_use]
pub fn role_dns_name(role: NodeRole, cluster: &ClusterId) -> String {
    format!("{}.{cluster}.orch", role_word(role))
}

fn role_of_unit(unit: &str) -> Option<NodeRole> {
    [NodeRole::Worker, NodeRole::Manager].into_iter().find(|role| role_unit(*role) == unit)
}

fn ago(when: SystemTime) -> String {
    const HOUR_SECS: u64 = 3600;
    match SystemTime::now().duration_since(when) {
        Ok(age) if age.as_secs() < 2 * HOUR_SECS => format!("{} minutes ago", age.as_secs() / 60),
        Ok(age) => format!("{} hours ago", age.as_secs() / HOUR_SECS),
        Err(_) => "just now".to_owned(),
    }
}

#[cfg(test)]
mod tests;
