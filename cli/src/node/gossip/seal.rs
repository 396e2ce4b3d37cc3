//! The seal on every packet: XChaCha20-Poly1305 under a key that managers handed out, bound to the cluster.
//!
//! `version | key id | nonce | ciphertext | tag`. Nothing is said about a packet that does not open.

use std::time::Duration;

use chacha20poly1305::{
    Key, KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use orch_proto::{
    gossip::{KEY_BYTES, KEY_OVERLAP},
    wire,
};
use prost::Message;

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;

/// The keys that were handed out last, and for a while those before: other nodes hear of new ones sooner or later.
pub(super) struct Handed {
    keys: Vec<wire::GossipKey>,
    former: Vec<wire::GossipKey>,
    former_until: Duration,
}

impl Handed {
    pub(super) fn new(keys: &[wire::GossipKey]) -> Self {
        Self { keys: keys.to_vec(), former: Vec::new(), former_until: Duration::ZERO }
    }

    pub(super) fn are(&self, keys: &[wire::GossipKey]) -> bool {
        self.keys == keys
    }

    pub(super) fn replace(&mut self, keys: &[wire::GossipKey], now: Duration) {
        if self.keys == keys {
            return;
        }
        self.former = std::mem::replace(&mut self.keys, keys.to_vec());
        self.former_until = now + KEY_OVERLAP;
    }

    /// Forgets the former keys when their time is over; tells whether there were any.
    pub(super) fn forget_former(&mut self, now: Duration) -> bool {
        let is_over = !self.former.is_empty() && now >= self.former_until;
        if is_over {
            self.former.clear();
        }
        is_over
    }

    pub(super) fn keyring(&self, cluster: &str) -> Keyring {
        Keyring::new(cluster, &[self.keys.as_slice(), &self.former].concat())
    }
}

/// The keys of one cluster.
pub(super) struct Keyring {
    cluster: String,
    keys: Vec<(u64, XChaCha20Poly1305)>,
}

impl Keyring {
    /// The first key is the one to seal with. One of a wrong length is left out.
    pub(super) fn new(cluster: &str, keys: &[wire::GossipKey]) -> Self {
        let usable = keys.iter().filter(|key| key.key.len() == KEY_BYTES);
        let keys = usable.map(|key| (key.id, XChaCha20Poly1305::new(Key::from_slice(&key.key)))).collect();
        Self { cluster: cluster.to_owned(), keys }
    }

    /// `None` without a key.
    pub(super) fn seal(&self, packet: &wire::GossipPacket, nonce: [u8; NONCE_BYTES]) -> Option<Vec<u8>> {
        let (id, key) = self.keys.first()?;
        let mut sealed = vec![VERSION];
        sealed.extend(id.to_be_bytes());
        sealed.extend(nonce);
        let aad = self.aad(&sealed);
        let text = packet.encode_to_vec();
        sealed.extend(key.encrypt(XNonce::from_slice(&nonce), Payload { msg: &text, aad: &aad }).ok()?);
        Some(sealed)
    }

    pub(super) fn open(&self, bytes: &[u8]) -> Option<wire::GossipPacket> {
        let (header, text) = bytes.split_at_checked(HEADER_BYTES)?;
        let (&version, rest) = header.split_first()?;
        let (id, nonce) = rest.split_at_checked(KEY_ID_BYTES)?;
        let id = u64::from_be_bytes(id.try_into().ok()?);
        let aad = self.aad(header);
        // The keys of two roots have the same numbers.
        let named = self.keys.iter().filter(|(known, _)| version == VERSION && *known == id);
        let mut opened =
            named.filter_map(|(_, key)| key.decrypt(XNonce::from_slice(nonce), Payload { msg: text, aad: &aad }).ok());
        wire::GossipPacket::decode(&opened.next()?[..]).ok()
    }

    fn aad(&self, header: &[u8]) -> Vec<u8> {
        [header, self.cluster.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u64, byte: u8) -> wire::GossipKey {
        wire::GossipKey { id, key: vec![byte; KEY_BYTES].into() }
    }

    fn packet() -> wire::GossipPacket {
        let what = Some(wire::gossip_packet::What::Probe(7));
        wire::GossipPacket { from: "a".into(), to: "b".into(), sequence: 1, what }
    }

    #[test]
    fn a_packet_opens_under_any_known_key_of_its_cluster_and_nowhere_else() {
        let sealed = Keyring::new("c", &[key(2, 2), key(1, 1), key(3, 3)]).seal(&packet(), [5; 24]).unwrap();
        let opens = |cluster: &str, keys: &[wire::GossipKey]| Keyring::new(cluster, keys).open(&sealed);
        assert_eq!(opens("c", &[key(3, 3), key(2, 2), key(4, 4)]), Some(packet()), "a node one epoch ahead");
        assert_eq!(opens("c", &[key(1, 1), key(0, 0), key(2, 2)]), Some(packet()), "a node one epoch behind");
        assert_eq!(opens("d", &[key(2, 2)]), None, "another cluster");
        assert_eq!(opens("c", &[key(2, 9)]), None, "another key");
        assert_eq!(opens("c", &[key(4, 4)]), None, "an epoch that is over");
        assert!(Keyring::new("c", &[]).seal(&packet(), [0; 24]).is_none());
        assert!(Keyring::new("c", &[wire::GossipKey { id: 1, key: vec![1; 5].into() }]).keys.is_empty());
    }

    /// Two nodes hear of the end of a root's rotation one after the other, in either order.
    #[test]
    fn nodes_understand_each_other_while_keys_are_replaced() {
        let (before, meanwhile, after) = ([key(7, 1)], [key(7, 1), key(7, 2)], [key(7, 2)]);
        let (mut early, mut late) = (Handed::new(&before), Handed::new(&before));
        let second = |n| Duration::from_secs(n);
        let hear_each_other = |a: &Handed, b: &Handed| {
            let one_way = |from: &Handed, to: &Handed| {
                let sealed = from.keyring("c").seal(&packet(), [5; 24]).unwrap();
                to.keyring("c").open(&sealed).is_some()
            };
            (one_way(a, b), one_way(b, a))
        };
        early.replace(&meanwhile, second(0));
        assert_eq!(hear_each_other(&early, &late), (true, true));
        late.replace(&meanwhile, second(10));
        early.replace(&after, second(20));
        assert_eq!(hear_each_other(&early, &late), (true, true));
        assert!(!early.forget_former(second(79)));
        late.replace(&after, second(30));
        assert_eq!(hear_each_other(&early, &late), (true, true));
        assert!(early.forget_former(second(80)) && late.forget_former(second(90)));
        let old = Handed::new(&before);
        assert_eq!(hear_each_other(&early, &old), (false, false), "the old root's key is worth nothing any more");
    }

    #[test]
    fn no_changed_byte_and_no_part_of_a_packet_opens() {
        let ring = Keyring::new("c", &[key(1, 1)]);
        let sealed = ring.seal(&packet(), [5; 24]).unwrap();
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(ring.open(&changed), None, "byte {place}");
            assert_eq!(ring.open(&sealed[..place]), None, "{place} bytes");
        }
        assert_eq!(ring.open(&sealed), Some(packet()));
    }
}
