//! The seal on everything that a manager writes: XChaCha20-Poly1305 with a random nonce.
//!
//! A sealed record is `version | key id | nonce | ciphertext | tag` and is bound to its place (cluster, node, kind,
//! index, term): a record that was moved, or taken from another node, does not open. Old keys stay in the ring until the
//! last record under them is gone.

mod keys;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use chacha20poly1305::{
    XNonce,
    aead::{Aead, Payload},
};
use orch_model::{ClusterId, NodeId};
use orch_proto::tls::UnlockKey;
use rand::RngCore;

pub use self::keys::KeyRing;
use self::keys::{Wrapping, wrapping};

const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
const HEADER_BYTES: usize = 1 + 4 + NONCE_BYTES;

/// What a sealed record is, as far as its seal is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Entry = 1,
    Vote = 2,
    Committed = 3,
    Purged = 4,
    /// A chunk of a snapshot that is followed by another.
    Snapshot = 5,
    /// The last chunk of a snapshot: a file that was cut short does not end with it.
    SnapshotEnd = 6,
    Member = 7,
    /// The manager's private key, while autolock is on.
    TlsKey = 8,
}

/// Where a record belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aad {
    pub kind: Kind,
    pub index: u64,
    pub term: u64,
}

impl Aad {
    /// A record of which there is only one.
    #[must_use]
    pub fn single(kind: Kind) -> Self {
        Self { kind, index: 0, term: 0 }
    }
}

/// Why a record could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("cannot {what} the data keys in {path}", path = path.display())]
    KeyFile {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the data keys in {path} cannot be read: line {line} is not `NUMBER HEX`", path = path.display())]
    KeyFileFormat { path: PathBuf, line: usize },
    #[error(
        "the data keys in {path} are gone, and nothing else opens the raft log in {log}: bring that file back from a copy, \
         or, if other managers are alive, let this one begin anew with \"orch node reset-manager\"",
        path = path.display(),
        log = log.display()
    )]
    Missing { path: PathBuf, log: PathBuf },
    #[error("the data keys in {path} are locked: unlock this manager with \"orch unlock\"", path = path.display())]
    Locked { path: PathBuf },
    #[error("this unlock key does not open the data keys in {path}", path = path.display())]
    WrongUnlockKey { path: PathBuf },
    #[error("a sealed record is too short or of another version")]
    Malformed,
    #[error("a record is sealed with data key {0}, which this manager does not have")]
    UnknownKey(u32),
    #[error("a sealed record does not open: it was changed, moved, or belongs to another node")]
    Refused,
}

/// Seals and opens the records of one manager of one cluster.
pub struct Sealer {
    ring: ArcSwap<KeyRing>,
    /// Keys that somebody may still be writing with, and how many do.
    leased: Mutex<BTreeMap<u32, usize>>,
    cluster: ClusterId,
    node: NodeId,
}

/// What became of the key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It lay as it should.
    AsItWas,
    Opened,
    /// Wrapped with the unlock key, and with a new data key: what was readable under the old one is not worth less now.
    Locked,
}

impl Sealer {
    #[must_use]
    pub fn new(ring: KeyRing, cluster: ClusterId, node: NodeId) -> Self {
        Self { ring: ArcSwap::from_pointee(ring), leased: Mutex::default(), cluster, node }
    }

    /// Keeps the data keys locked, or open. Whoever saw the file before it was locked has seen the data key in it, so
    /// that another takes its place.
    pub fn keep_locked(&self, path: &Path, unlock: Option<&UnlockKey>) -> Result<Kept, SealError> {
        match wrapping(path, unlock)? {
            Wrapping::AsWanted => Ok(Kept::AsItWas),
            Wrapping::Surplus => self.ring.load().write(path, None).map(|()| Kept::Opened),
            Wrapping::Missing => self.rotate(path, unlock).map(|()| Kept::Locked),
        }
    }

    /// Writes with a new data key from now on.
    pub fn rotate(&self, path: &Path, unlock: Option<&UnlockKey>) -> Result<(), SealError> {
        // On the disk before it is used.
        let next = self.ring.load().with_new_key();
        next.write(path, unlock)?;
        self.ring.store(Arc::new(next));
        Ok(())
    }

    /// Forgets every data key but the current one. Nothing may be sealed with the others any more.
    pub fn drop_old_keys(&self, path: &Path, unlock: Option<&UnlockKey>) -> Result<(), SealError> {
        let next = self.ring.load().without_old_keys();
        next.write(path, unlock)?;
        self.ring.store(Arc::new(next));
        Ok(())
    }

    #[must_use]
    pub fn current_key(&self) -> u32 {
        self.ring.load().current
    }

    #[must_use]
    pub fn has_old_keys(&self) -> bool {
        self.ring.load().ids().nth(1).is_some()
    }

    /// Keeps the current key from being taken for unused while somebody writes what is not yet to be seen.
    #[must_use]
    pub fn lease(self: &Arc<Self>) -> Lease {
        let mut leased = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
        // Inside the lock: whoever looks at the leases after a rotation sees this one, or it has the new key.
        let key = self.current_key();
        *leased.entry(key).or_default() += 1;
        Lease { sealer: Arc::clone(self), key }
    }

    #[must_use]
    pub fn leased_keys(&self) -> BTreeSet<u32> {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    pub fn seal(&self, place: Aad, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        rand::rng().fill_bytes(&mut nonce);
        let ring = self.ring.load();
        let aad = self.aad(place);
        let sealed = ring
            .cipher(ring.current)?
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: plain, aad: &aad })
            .map_err(|_| SealError::Refused)?;
        let mut record = Vec::with_capacity(HEADER_BYTES + sealed.len());
        record.push(VERSION);
        record.extend_from_slice(&ring.current.to_be_bytes());
        record.extend_from_slice(&nonce);
        record.extend_from_slice(&sealed);
        Ok(record)
    }

    pub fn open(&self, place: Aad, record: &[u8]) -> Result<Vec<u8>, SealError> {
        let key_id = key_of(record)?;
        let (header, sealed) = record.split_at_checked(HEADER_BYTES).ok_or(SealError::Malformed)?;
        let aad = self.aad(place);
        self.ring
            .load()
            .cipher(key_id)?
            .decrypt(XNonce::from_slice(&header[5..]), Payload { msg: sealed, aad: &aad })
            .map_err(|_| SealError::Refused)
    }

    fn aad(&self, place: Aad) -> Vec<u8> {
        let mut aad = Vec::with_capacity(80);
        aad.extend_from_slice(self.cluster.as_str().as_bytes());
        aad.push(b'/');
        aad.extend_from_slice(self.node.as_str().as_bytes());
        aad.push(b'/');
        aad.push(place.kind as u8);
        aad.extend_from_slice(&place.index.to_be_bytes());
        aad.extend_from_slice(&place.term.to_be_bytes());
        aad
    }
}

/// See [`Sealer::lease`].
pub struct Lease {
    sealer: Arc<Sealer>,
    key: u32,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leased = self.sealer.leased.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = leased.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                leased.remove(&self.key);
            }
        }
    }
}

/// The number of the key that a record is sealed with.
pub(crate) fn key_of(record: &[u8]) -> Result<u32, SealError> {
    match record.split_at_checked(5) {
        Some(([VERSION, id @ ..], _)) => id.try_into().map(u32::from_be_bytes).map_err(|_| SealError::Malformed),
        Some(_) | None => Err(SealError::Malformed),
    }
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

pub(crate) fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn sealer(path: &Path, node: u128) -> Sealer {
        let ring = KeyRing::load_or_create(path, None).unwrap();
        Sealer::new(ring, ClusterId::from_random(1), NodeId::from_random(node))
    }

    #[test]
    fn a_record_opens_only_where_it_was_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let place = Aad { kind: Kind::Entry, index: 7, term: 3 };
        let mut record = sealer(&path, 1).seal(place, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!record.windows(6).any(|w| w == b"secret"));

        // The same keys, read again.
        let again = sealer(&path, 1);
        assert_eq!(again.open(place, &record).unwrap(), b"secret");
        for moved in [Aad { kind: Kind::Vote, ..place }, Aad { index: 8, ..place }, Aad { term: 4, ..place }] {
            assert!(matches!(again.open(moved, &record), Err(SealError::Refused)), "{moved:?}");
        }
        assert!(matches!(sealer(&path, 2).open(place, &record), Err(SealError::Refused)));
        let last = record.len() - 1;
        record[last] ^= 1;
        assert!(matches!(again.open(place, &record), Err(SealError::Refused)));
        assert!(matches!(again.open(place, &record[..20]), Err(SealError::Malformed)));
        record[4] = 9;
        assert!(matches!(again.open(place, &record), Err(SealError::UnknownKey(9))));
    }

    #[test]
    fn locked_keys_open_with_their_unlock_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let (old, new) = (UnlockKey::generate(1), UnlockKey::generate(2));
        let place = Aad::single(Kind::Vote);
        let running = sealer(&path, 1);
        let clear = fs::read_to_string(&path).unwrap();
        let record = running.seal(place, b"vote").unwrap();
        assert_eq!(running.keep_locked(&path, None).unwrap(), Kept::AsItWas);
        assert_eq!(running.keep_locked(&path, Some(&old)).unwrap(), Kept::Locked);
        assert_eq!(running.keep_locked(&path, Some(&old)).unwrap(), Kept::AsItWas);
        assert_eq!(running.current_key(), 2, "the first one lay open");
        let digits = clear.split(' ').next_back().unwrap().trim();
        assert!(!fs::read_to_string(&path).unwrap().contains(digits));
        assert!(matches!(KeyRing::load_or_create(&path, None), Err(SealError::Locked { .. })));
        assert!(matches!(KeyRing::load_or_create(&path, Some(&new)), Err(SealError::WrongUnlockKey { .. })));
        let ring = KeyRing::load_or_create(&path, Some(&old)).unwrap();
        let opened = Sealer::new(ring, ClusterId::from_random(1), NodeId::from_random(1));
        assert_eq!(opened.open(place, &record).unwrap(), b"vote");
        // Rotated, then turned off.
        assert_eq!(opened.keep_locked(&path, Some(&new)).unwrap(), Kept::Locked);
        assert!(matches!(KeyRing::load_or_create(&path, Some(&old)), Err(SealError::WrongUnlockKey { .. })));
        assert_eq!(opened.keep_locked(&path, None).unwrap(), Kept::Opened);
        assert!(fs::read_to_string(&path).unwrap().starts_with(&clear), "older records need the older keys");
    }

    #[test]
    fn keys_that_a_log_needs_are_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, log) = (dir.path().join("keys"), dir.path().join("raft/log"));
        let error = KeyRing::load_for(&log, &path, None).map(drop).unwrap_err().to_string();
        assert!(error.contains("/keys are gone") && error.contains("reset-manager"), "{error}");
        assert!(!path.exists());
        drop(sealer(&path, 1));
        KeyRing::load_for(&log, &path, None).unwrap();
    }

    #[test]
    fn old_keys_open_until_they_are_dropped_and_a_lease_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let place = Aad::single(Kind::Vote);
        let running = Arc::new(sealer(&path, 1));
        let old = running.seal(place, b"vote").unwrap();
        let lease = running.lease();
        running.rotate(&path, None).unwrap();
        let new = running.seal(place, b"vote").unwrap();
        assert_eq!((key_of(&old).unwrap(), key_of(&new).unwrap()), (1, 2));
        assert_eq!(running.leased_keys(), [1].into());
        drop(lease);
        let _newer = running.lease();
        assert_eq!(running.leased_keys(), [2].into());
        // Whoever starts now knows both.
        let again = sealer(&path, 1);
        for record in [&old, &new] {
            assert_eq!(
                (running.open(place, record).unwrap(), again.open(place, record).unwrap()),
                (b"vote".into(), b"vote".into())
            );
        }
        assert!(running.has_old_keys() && again.has_old_keys());
        again.drop_old_keys(&path, None).unwrap();
        for after in [again, sealer(&path, 1)] {
            assert!(!after.has_old_keys());
            assert_eq!(after.open(place, &new).unwrap(), b"vote");
            assert!(matches!(after.open(place, &old), Err(SealError::UnknownKey(1))));
            assert_eq!(key_of(&after.seal(place, b"x").unwrap()).unwrap(), 2);
        }
    }

    #[test]
    fn a_damaged_key_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        for text in ["", "orch data keys 1\n", "orch data keys 1\n1 zz\n", "other\n1 00\n"] {
            fs::write(&path, text).unwrap();
            let error = KeyRing::load_or_create(&path, None).err().unwrap();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}
