//! Objects on their way out of the API: what is secret stays in.

use std::sync::Arc;

use orch_model::{Object, cluster::Cluster, secret::Secret};
use orch_proto::{conv::ToProto, wire};

/// The object's wire form without secret content, the CA's key, the unlock key and the join tokens (for those there are calls).
pub(super) fn object(object: &Object) -> wire::Object {
    match object {
        Object::Secret(secret) => {
            let blank = Secret {
                id: secret.id.clone(),
                meta: secret.meta.clone(),
                annotations: secret.annotations.clone(),
                data: Vec::new(),
                template: secret.template,
                removing: secret.removing,
            };
            Object::Secret(Arc::new(blank)).to_proto()
        }
        Object::Cluster(cluster) => {
            let mut blank = Cluster::clone(cluster);
            blank.unlock_key = None;
            blank.root_ca.key_pem = String::new();
            if let Some(rotation) = &mut blank.root_rotation {
                rotation.target.key_pem = String::new();
            }
            blank.join_tokens.worker = String::new();
            blank.join_tokens.manager = String::new();
            Object::Cluster(Arc::new(blank)).to_proto()
        }
        Object::Node(_)
        | Object::Service(_)
        | Object::Task(_)
        | Object::Network(_)
        | Object::Config(_)
        | Object::Image(_) => object.to_proto(),
    }
}
