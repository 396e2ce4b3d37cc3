//! Signed permissions for a node to fetch an image from another.
//!
//! A grant is asked for again with every assignment set and must then be the same, or sets would never settle; it is
//! replaced in the middle of its life.

use std::{collections::HashMap, time::Duration};

use orch_model::{NodeId, Timestamp, cluster::RootCa};
use orch_proto::{ca, wire};
use prost::Message;

const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Beyond this many the old ones are forgotten.
const LIMIT: usize = 100_000;

#[derive(Default)]
pub(super) struct Grants {
    /// Certificate of the root that signed them.
    signer: String,
    known: HashMap<(NodeId, String), Grant>,
}

struct Grant {
    renew_at: Timestamp,
    signed: Vec<u8>,
}

impl Grants {
    /// The node's grant for the image with this manifest digest; empty when signing fails (the node then pulls).
    pub(super) fn get(&mut self, root: &RootCa, node: &NodeId, digest: &str, now: Timestamp) -> Vec<u8> {
        if self.signer != root.cert_pem {
            self.signer.clone_from(&root.cert_pem);
            self.known.clear();
        }
        let key = (node.clone(), digest.to_owned());
        if let Some(grant) = self.known.get(&key).filter(|grant| now < grant.renew_at) {
            return grant.signed.clone();
        }
        let expires = now + LIFETIME;
        let grant = wire::FetchGrant {
            node_id: node.to_string(),
            image_digest: digest.to_owned(),
            expires_at_ms: expires.unix_ms,
        };
        let grant = grant.encode_to_vec();
        let signature = match ca::sign_blob(root, &grant) {
            Ok(signature) => signature,
            Err(error) => {
                tracing::error!(%error, "cannot sign a grant to fetch an image");
                return Vec::new();
            }
        };
        let signed = wire::SignedGrant { grant: grant.into(), signature: signature.into() }.encode_to_vec();
        if self.known.len() >= LIMIT {
            self.known.clear();
        }
        self.known.insert(key, Grant { renew_at: now + LIFETIME / 2, signed: signed.clone() });
        signed
    }
}
