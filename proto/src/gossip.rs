//! The keys under which nodes gossip.
//!
//! Managers derive them from the root's private key and the time, so that every leader hands out the same ones and
//! nothing has to be stored. Each is in use for an epoch; the one before and the one after are accepted too, because nodes
//! do not hear of a new epoch all at once. A node that was removed is shut out two epochs later at the latest; until then
//! its packets say nothing that counts with managers, who hear their nodes over mutual TLS only.

use std::time::Duration;

use orch_model::{ClusterId, Timestamp, cluster::RootCa};
use ring::hkdf;

use crate::wire::GossipKey;

/// UDP port of gossip on every node.
pub const GOSSIP_PORT: u16 = 7946;
/// How long a key is the one to seal with.
pub const KEY_EPOCH: Duration = Duration::from_secs(3600);
pub const KEY_BYTES: usize = 32;

const SALT: &[u8] = b"orch gossip key 1";

/// The keys of `now`: the one to seal with first, then those of the epochs before and after.
#[must_use]
pub fn keys(root: &RootCa, cluster: &ClusterId, now: Timestamp) -> Vec<GossipKey> {
    let epoch = epoch(now);
    [epoch, epoch.saturating_sub(1), epoch + 1].into_iter().filter_map(|id| key(root, cluster, id)).collect()
}

/// Keys change when this does.
#[must_use]
pub fn epoch(now: Timestamp) -> u64 {
    now.unix_ms / 1_000 / KEY_EPOCH.as_secs()
}

fn key(root: &RootCa, cluster: &ClusterId, id: u64) -> Option<GossipKey> {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(root.key_pem.as_bytes());
    let number = id.to_be_bytes();
    let info = [cluster.as_str().as_bytes(), &number];
    let mut bytes = [0; KEY_BYTES];
    // Neither fails for a length that the algorithm gives.
    secret.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut bytes)).ok()?;
    Some(GossipKey { id, key: bytes.to_vec().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(key: &str) -> RootCa {
        RootCa { cert_pem: String::new(), key_pem: key.to_owned() }
    }

    #[test]
    fn keys_overlap_from_epoch_to_epoch_and_differ_between_clusters_and_roots() {
        let (cluster, other) = (ClusterId::from_random(1), ClusterId::from_random(2));
        let now = Timestamp::from_unix_ms(1_800_000_000_000);
        let ids = |now| keys(&root("a"), &cluster, now).into_iter().map(|key| key.id).collect::<Vec<_>>();
        let e = epoch(now);
        assert_eq!(ids(now), [e, e - 1, e + 1]);
        // Whoever is an epoch ahead seals with a key that is known here, and the other way round.
        assert_eq!(ids(now + KEY_EPOCH), [e + 1, e, e + 2]);
        let first = |root: &RootCa, cluster| keys(root, cluster, now)[0].key.clone();
        assert_eq!(first(&root("a"), &cluster), first(&root("a"), &cluster));
        assert_ne!(first(&root("a"), &cluster), first(&root("b"), &cluster));
        assert_ne!(first(&root("a"), &cluster), first(&root("a"), &other));
        assert_eq!(first(&root("a"), &cluster).len(), KEY_BYTES);
    }
}
