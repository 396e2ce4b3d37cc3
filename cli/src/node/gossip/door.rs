//! What may come in: packets that open, are for this node, and were not seen before. Others are counted and dropped.

use std::collections::BTreeMap;

use orch_model::NodeId;
use orch_proto::wire;

use super::{prober::Message, seal::Keyring, wire as convert};

/// Packets of one sender may overtake each other by this many.
const WINDOW: u64 = 64;
/// Senders whose packets are remembered.
const MAX_SENDERS: usize = 16_384;

/// What came, by what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) taken: u64,
    /// Not sealed under a key of this cluster, or damaged, or senseless.
    pub(super) foreign: u64,
    /// For another node.
    pub(super) astray: u64,
    pub(super) replayed: u64,
}

impl Counts {
    pub(super) fn dropped(self) -> u64 {
        self.foreign + self.astray + self.replayed
    }
}

pub(super) struct Door {
    own: NodeId,
    keyring: Keyring,
    senders: BTreeMap<NodeId, Seen>,
    pub(super) counts: Counts,
}

/// The highest number so far, and which of those before it were seen.
#[derive(Debug, Clone, Copy)]
struct Seen {
    highest: u64,
    before: u64,
}

impl Door {
    pub(super) fn new(own: NodeId, keyring: Keyring) -> Self {
        Self { own, keyring, senders: BTreeMap::new(), counts: Counts::default() }
    }

    pub(super) fn set_keyring(&mut self, keyring: Keyring) {
        self.keyring = keyring;
    }

    pub(super) fn seal(&self, packet: &wire::GossipPacket, nonce: [u8; 24]) -> Option<Vec<u8>> {
        self.keyring.seal(packet, nonce)
    }

    pub(super) fn admit(&mut self, bytes: &[u8]) -> Option<(NodeId, Message)> {
        let opened = self.keyring.open(bytes).and_then(|packet| {
            let from: NodeId = packet.from.parse().ok()?;
            Some((from, packet.to, packet.sequence, convert::message(packet.what?)?))
        });
        let Some((from, to, sequence, message)) = opened else {
            self.counts.foreign += 1;
            return None;
        };
        if to != self.own.as_str() || from == self.own {
            self.counts.astray += 1;
            return None;
        }
        if !self.is_new(&from, sequence) {
            self.counts.replayed += 1;
            return None;
        }
        self.counts.taken += 1;
        Some((from, message))
    }

    fn is_new(&mut self, from: &NodeId, sequence: u64) -> bool {
        if let Some(seen) = self.senders.get_mut(from) {
            return seen.note(sequence);
        }
        if self.senders.len() >= MAX_SENDERS {
            // Only members have the key, so these were members once; the watched are heard again at once.
            self.senders.clear();
        }
        self.senders.insert(from.clone(), Seen { highest: sequence, before: 0 });
        true
    }
}

impl Seen {
    fn note(&mut self, sequence: u64) -> bool {
        if sequence > self.highest {
            let ahead = sequence - self.highest;
            self.before = if ahead > WINDOW {
                0
            } else {
                self.before.checked_shl(u32::try_from(ahead).unwrap_or(64)).unwrap_or(0) | 1 << (ahead - 1)
            };
            self.highest = sequence;
            return true;
        }
        let behind = self.highest - sequence;
        if behind == 0 || behind > WINDOW {
            return false;
        }
        let bit = 1 << (behind - 1);
        let is_new = self.before & bit == 0;
        self.before |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests;
