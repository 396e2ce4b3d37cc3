//! The control API's decisions: what a user's request changes, or why it is refused.
//!
//! Each function takes a state and a request and returns a transaction that was tried on that state; the shell commits
//! it. When the commit is refused because the state has moved on, [`ControlError::from`] gives the same words.

mod cluster;
mod container;
mod error;
mod image;
mod network;
mod node;
mod secret;
mod service;
mod version;

use std::sync::Arc;

use orch_model::{
    Object, ObjectId, Timestamp,
    change::{Change, Transaction},
    network::Network,
    secret::{Config, Secret},
};

pub use cluster::{NewRoot, finish_rotation, rotate_root, set_join_tokens, set_unlock_key, update_cluster};
pub use container::{ContainerNetworks, WantedNetwork, keep_containers, set_container_networks};
pub use error::{Code, ControlError};
pub use image::{Registration, forget_image, register_image};
pub use network::{create_network, remove_network};
pub use node::{remove_node, update_node};
pub use secret::{
    create_config, create_secret, remove_config, remove_secret, replace_config, replace_secret, update_config,
    update_secret,
};
pub use service::{create_service, rebalance_service, remove_service, rollback_service, unpin_service, update_service};

use crate::state::State;

/// A transaction that fits the state it was made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The object that the request is about.
    pub id: ObjectId,
    /// Empty when the request changes nothing.
    pub transaction: Transaction,
    /// What the user should know although the request is accepted.
    pub warnings: Vec<String>,
}

/// Removes any object that users may remove.
///
/// # Errors
/// See [`ControlError`].
pub fn remove(state: &State, now: Timestamp, id: &ObjectId, force: bool) -> Result<Proposal, ControlError> {
    match id {
        ObjectId::Service(id) => remove_service(state, now, id),
        ObjectId::Network(id) => remove_network(state, now, id),
        ObjectId::Secret(id) => remove_secret(state, now, id),
        ObjectId::Config(id) => remove_config(state, now, id),
        ObjectId::Node(id) => remove_node(state, now, id, force),
        ObjectId::Image(_) | ObjectId::Task(_) | ObjectId::Cluster(_) => {
            Err(ControlError::invalid(format!("a {} cannot be removed by a request", id.kind())))
        }
    }
}

/// As [`remove`], but tasks that stop may still have the object: the managers remove it after the last of them, and its
/// name is free at once.
///
/// # Errors
/// See [`ControlError`].
pub fn remove_when_free(state: &State, now: Timestamp, id: &ObjectId, force: bool) -> Result<Proposal, ControlError> {
    let refused = match remove(state, now, id, force) {
        Err(refused) if refused.code == Code::FailedPrecondition => refused,
        outcome => return outcome,
    };
    let marked = match state.get(id) {
        Some(Object::Network(network)) if !network.spec.ingress => {
            Object::Network(Arc::new(Network { removing: true, ..Network::clone(&network) }))
        }
        Some(Object::Secret(secret)) => Object::Secret(Arc::new(Secret { removing: true, ..Secret::clone(&secret) })),
        Some(Object::Config(config)) => Object::Config(Arc::new(Config { removing: true, ..Config::clone(&config) })),
        _ => return Err(refused),
    };
    propose(state, now, id.clone(), vec![Change::Update(marked)])
}

/// Tries the changes on the state, so that the user hears of a broken rule at once.
fn propose(state: &State, now: Timestamp, id: ObjectId, changes: Vec<Change>) -> Result<Proposal, ControlError> {
    let transaction = Transaction { at: now.max(state.last_stamp()), changes };
    state.may_apply(state.last_index() + 1, &transaction)?;
    Ok(Proposal { id, transaction, warnings: Vec::new() })
}

fn removal(object: &Object) -> Change {
    Change::Remove { id: object.id(), version: object.meta().version }
}

fn missing(id: impl Into<ObjectIdText>) -> ControlError {
    let ObjectIdText(kind, id) = id.into();
    ControlError::not_found(format!("no such {kind}: {id}"))
}

/// An id with its kind, as text for a message.
struct ObjectIdText(orch_model::Kind, String);

macro_rules! id_texts {
    ($($id:ident => $kind:ident),+) => {$(
        impl From<&orch_model::$id> for ObjectIdText {
            fn from(id: &orch_model::$id) -> Self {
                Self(orch_model::Kind::$kind, id.to_string())
            }
        }
    )+};
}
id_texts!(ServiceId => Service, NetworkId => Network, SecretId => Secret, ConfigId => Config, NodeId => Node);
