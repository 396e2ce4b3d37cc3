//! Image names: which content a name means, and which nodes have it.

use std::{collections::BTreeSet, sync::Arc};

use orch_model::{
    ImageId, Kind, Meta, NodeId, Object, ObjectId, Timestamp,
    change::{Change, Transaction},
    image::Image,
    node::Platform,
};

use super::{ControlError, removal};
use crate::{
    decision::Ids,
    image_name::{is_digest, normalise_image_name},
    state::State,
};

/// A node says that it holds an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    pub node: NodeId,
    pub name: String,
    pub digest: String,
    pub size_bytes: u64,
    pub platform: Option<Platform>,
    /// The name may change its content.
    pub replace: bool,
    /// Only say that this node holds the content; never make or change a name.
    pub holder_only: bool,
}

/// Registers a name, or adds a holder. The transaction is empty when nothing changes.
///
/// # Errors
/// When the name means another content, which some node has, and `replace` is not set; when it is no name, or the content
/// is no digest.
pub fn register_image(
    state: &State,
    now: Timestamp,
    ids: Ids<'_>,
    request: &Registration,
) -> Result<Transaction, ControlError> {
    if state.node(&request.node).is_none() {
        return Err(ControlError::not_found(format!("no such node: {}", request.node)));
    }
    if !is_digest(&request.digest) {
        return Err(ControlError::invalid(format!(
            "{:?} is not a digest (sha256: and 64 hexadecimal digits)",
            request.digest
        )));
    }
    let mut changes = Vec::new();
    // Whatever name has this content: this node can serve it.
    for image in state.images().filter(|i| i.digest == request.digest && !i.holders.contains(&request.node)) {
        let mut next = Image::clone(image);
        next.holders.insert(request.node.clone());
        changes.push(Change::Update(Object::Image(Arc::new(next))));
    }
    if !request.holder_only {
        changes.extend(name_change(state, ids, request)?);
    }
    let transaction = Transaction { at: now.max(state.last_stamp()), changes };
    state.clone().apply(state.last_index() + 1, &transaction)?;
    Ok(transaction)
}

fn name_change(state: &State, ids: Ids<'_>, request: &Registration) -> Result<Option<Change>, ControlError> {
    let name = normalise_image_name(&request.name).map_err(|e| ControlError::invalid(e.to_string()))?;
    let known = match state.named(Kind::Image, &name) {
        Some(ObjectId::Image(id)) => state.image(&id),
        _ => None,
    };
    let holders = BTreeSet::from([request.node.clone()]);
    match known {
        None => Ok(Some(Change::Create(Object::Image(Arc::new(Image {
            id: ImageId::from_random(ids()),
            meta: Meta::default(),
            name,
            digest: request.digest.clone(),
            size_bytes: request.size_bytes,
            platform: request.platform.clone(),
            holders,
        }))))),
        Some(image) if image.digest == request.digest => Ok(None),
        Some(image) if request.replace || image.holders.is_empty() => {
            let mut next = Image::clone(image);
            next.digest.clone_from(&request.digest);
            next.size_bytes = request.size_bytes;
            next.platform.clone_from(&request.platform);
            next.holders = holders;
            Ok(Some(Change::Update(Object::Image(Arc::new(next)))))
        }
        Some(image) => Err(ControlError::exists(format!(
            "image name {name} already means another content in this cluster ({}): pass --replace to let it mean {}, \
             or choose another tag",
            image.digest, request.digest
        ))),
    }
}

/// The name is gone from a node, or without a name the content, whatever it is called; a name without a holder is gone from
/// the cluster.
///
/// # Errors
/// See [`ControlError`].
pub fn forget_image(
    state: &State,
    now: Timestamp,
    node: &NodeId,
    name: &str,
    digest: &str,
) -> Result<Transaction, ControlError> {
    let is_held = |image: &&Arc<Image>| image.digest == digest && image.holders.contains(node);
    let held: Vec<&Arc<Image>> = if name.is_empty() {
        state.images().filter(is_held).collect()
    } else {
        let name = normalise_image_name(name).map_err(|e| ControlError::invalid(e.to_string()))?;
        match state.named(Kind::Image, &name) {
            Some(ObjectId::Image(id)) => state.image(&id).filter(is_held).into_iter().collect(),
            _ => Vec::new(),
        }
    };
    let without = |image: &Arc<Image>| {
        let mut next = Image::clone(image);
        next.holders.remove(node);
        match next.holders.is_empty() {
            true => removal(&Object::Image(image.clone())),
            false => Change::Update(Object::Image(Arc::new(next))),
        }
    };
    let changes = held.into_iter().map(without).collect();
    let transaction = Transaction { at: now.max(state.last_stamp()), changes };
    state.may_apply(state.last_index() + 1, &transaction)?;
    Ok(transaction)
}
