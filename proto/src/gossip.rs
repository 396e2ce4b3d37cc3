//! The keys under which nodes gossip.
//!
//! Managers derive them from the root's private key and the time, so that every leader hands out the same ones and
//! nothing has to be stored. Each is in use for an epoch; the one before and the one after are accepted too, because nodes
//! do not hear of a new epoch all at once; while the root is being replaced, those of the next root are accepted as well,
//! and nodes go on accepting for a while what they had before any change. A node that was removed is shut out two epochs later at the latest; until then
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

/// How long a node accepts keys that it was told to replace: by then every node has heard of the new ones.
pub const KEY_OVERLAP: Duration = Duration::from_secs(60);

/// The keys of `now`: the one to seal with first, then those of the epochs before and after, then those of the root that
/// is to replace this one.
#[must_use]
pub fn keys(root: &RootCa, next: Option<&RootCa>, cluster: &ClusterId, now: Timestamp) -> Vec<GossipKey> {
    let epoch = epoch(now);
    let ids = [epoch, epoch.saturating_sub(1), epoch + 1];
    std::iter::once(root).chain(next).flat_map(|root| ids.map(|id| key(root, cluster, id))).flatten().collect()
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
        let ids = |now| keys(&root("a"), None, &cluster, now).into_iter().map(|key| key.id).collect::<Vec<_>>();
        let e = epoch(now);
        assert_eq!(ids(now), [e, e - 1, e + 1]);
        // Whoever is an epoch ahead seals with a key that is known here, and the other way round.
        assert_eq!(ids(now + KEY_EPOCH), [e + 1, e, e + 2]);
        let first = |root: &RootCa, cluster| keys(root, None, cluster, now)[0].key.clone();
        assert_eq!(first(&root("a"), &cluster), first(&root("a"), &cluster));
        assert_ne!(first(&root("a"), &cluster), first(&root("b"), &cluster));
        assert_ne!(first(&root("a"), &cluster), first(&root("a"), &other));
        assert_eq!(first(&root("a"), &cluster).len(), KEY_BYTES);
    }

    #[test]
    fn the_keys_of_the_next_root_are_known_before_it_is_the_root() {
        let (cluster, now) = (ClusterId::from_random(1), Timestamp::from_unix_ms(1_800_000_000_000));
        let (old, new) = (root("a"), root("b"));
        let before = keys(&old, None, &cluster, now);
        let meanwhile = keys(&old, Some(&new), &cluster, now);
        let after = keys(&new, None, &cluster, now);
        assert_eq!(meanwhile, [before, after.clone()].concat());
        assert_ne!(meanwhile[0], after[0], "sealed with the present root's until the end");
    }
}
