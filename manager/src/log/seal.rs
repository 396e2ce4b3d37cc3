//! The seal on everything that a manager writes: XChaCha20-Poly1305 with a random nonce.
//!
//! A sealed record is `version | key id | nonce | ciphertext | tag` and is bound to its place (cluster, node, kind,
//! index, term): a record that was moved, or taken from another node, does not open. Old keys stay in the ring until the
//! last record under them is gone.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use chacha20poly1305::{
    Key, KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use orch_model::{ClusterId, NodeId};
use orch_proto::tls::UnlockKey;
use rand::RngCore;
use zeroize::{Zeroize, Zeroizing};

const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const HEADER_BYTES: usize = 1 + 4 + NONCE_BYTES;
/// A key file that was wrapped with the unlock key: this, then nonce and sealed text in hexadecimal.
const LOCKED_HEADING: &str = "orch locked data keys 1\n";
const KEY_FILE_HEADING: &str = "orch data keys 1";

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

/// The data keys of this manager; the last is used for writing.
pub struct KeyRing {
    ciphers: BTreeMap<u32, XChaCha20Poly1305>,
    current: u32,
    /// As they are written.
    text: Zeroizing<String>,
}

impl KeyRing {
    /// Reads the keys in `path`, or makes the first one.
    pub fn load_or_create(path: &Path, unlock: Option<&UnlockKey>) -> Result<Self, SealError> {
        match fs::read_to_string(path) {
            Ok(text) => match (text.strip_prefix(LOCKED_HEADING), unlock) {
                (None, _) => Self::parse(Zeroizing::new(text), path),
                (Some(_), None) => Err(SealError::Locked { path: path.into() }),
                (Some(locked), Some(key)) => {
                    let text =
                        unwrap_text(locked, key).ok_or_else(|| SealError::WrongUnlockKey { path: path.into() })?;
                    Self::parse(text, path)
                }
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::create(path),
            Err(source) => Err(SealError::KeyFile { what: "read", path: path.into(), source }),
        }
    }

    fn create(path: &Path) -> Result<Self, SealError> {
        let mut key = [0; KEY_BYTES];
        rand::rng().fill_bytes(&mut key);
        let mut text = Zeroizing::new(format!("{KEY_FILE_HEADING}\n1 "));
        for byte in key {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        write_private(path, &text)?;
        let ring = Self { ciphers: BTreeMap::from([(1, cipher(&key))]), current: 1, text };
        key.zeroize();
        Ok(ring)
    }

    /// Brings the file to how it should be: locked with this key, or open. Says whether anything was done.
    pub fn keep_locked(&self, path: &Path, unlock: Option<&UnlockKey>) -> Result<bool, SealError> {
        let read = fs::read_to_string(path).map(Zeroizing::new);
        let now = read.map_err(|source| SealError::KeyFile { what: "read", path: path.into(), source })?;
        let locked = now.strip_prefix(LOCKED_HEADING);
        let wanted = match (locked, unlock) {
            (None, None) => return Ok(false),
            (Some(_), None) => self.text.clone(),
            (Some(locked), Some(key)) if unwrap_text(locked, key).is_some() => return Ok(false),
            (_, Some(key)) => Zeroizing::new(wrap_text(&self.text, key)?),
        };
        write_private(path, &wanted).map(|()| true)
    }

    fn parse(text: Zeroizing<String>, path: &Path) -> Result<Self, SealError> {
        let malformed = |line| SealError::KeyFileFormat { path: path.into(), line };
        let mut lines = text.lines().enumerate();
        if lines.next().map(|(_, line)| line) != Some(KEY_FILE_HEADING) {
            return Err(malformed(1));
        }
        let mut ciphers = BTreeMap::new();
        for (number, line) in lines {
            let (id, key) = parse_key(line).ok_or_else(|| malformed(number + 1))?;
            ciphers.insert(id, cipher(&key));
        }
        let current = *ciphers.keys().next_back().ok_or_else(|| malformed(2))?;
        Ok(Self { ciphers, current, text })
    }
}

/// Seals and opens the records of one manager of one cluster.
pub struct Sealer {
    ring: KeyRing,
    cluster: ClusterId,
    node: NodeId,
}

impl Sealer {
    #[must_use]
    pub fn new(ring: KeyRing, cluster: ClusterId, node: NodeId) -> Self {
        Self { ring, cluster, node }
    }

    /// Keeps the data keys locked, or open.
    pub fn keep_locked(&self, path: &Path, unlock: Option<&UnlockKey>) -> Result<bool, SealError> {
        self.ring.keep_locked(path, unlock)
    }

    pub fn seal(&self, place: Aad, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        rand::rng().fill_bytes(&mut nonce);
        let cipher = self.ring.ciphers.get(&self.ring.current).ok_or(SealError::UnknownKey(self.ring.current))?;
        let aad = self.aad(place);
        let sealed = cipher
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: plain, aad: &aad })
            .map_err(|_| SealError::Refused)?;
        let mut record = Vec::with_capacity(HEADER_BYTES + sealed.len());
        record.push(VERSION);
        record.extend_from_slice(&self.ring.current.to_be_bytes());
        record.extend_from_slice(&nonce);
        record.extend_from_slice(&sealed);
        Ok(record)
    }

    pub fn open(&self, place: Aad, record: &[u8]) -> Result<Vec<u8>, SealError> {
        let (header, sealed) = record.split_at_checked(HEADER_BYTES).ok_or(SealError::Malformed)?;
        let key_id = header[1..5].try_into().map(u32::from_be_bytes).map_err(|_| SealError::Malformed)?;
        if header[0] != VERSION {
            return Err(SealError::Malformed);
        }
        let cipher = self.ring.ciphers.get(&key_id).ok_or(SealError::UnknownKey(key_id))?;
        let aad = self.aad(place);
        cipher
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

/// The whole file or the old one, for the manager alone.
fn write_private(path: &Path, text: &str) -> Result<(), SealError> {
    let error = |what| move |source| SealError::KeyFile { what, path: path.into(), source };
    let fresh = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(error("write"))?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(error("protect"))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(error("write"))?;
    fs::rename(&fresh, path).map_err(error("write"))?;
    super::snapshot_file::sync_parent(path).map_err(error("write"))
}

fn wrap_text(text: &str, key: &UnlockKey) -> Result<String, SealError> {
    let mut nonce = [0; NONCE_BYTES];
    rand::rng().fill_bytes(&mut nonce);
    let payload = Payload { msg: text.as_bytes(), aad: LOCKED_HEADING.as_bytes() };
    let sealed = cipher(&key.wrapping_key()).encrypt(XNonce::from_slice(&nonce), payload);
    let sealed = sealed.map_err(|_| SealError::Refused)?;
    Ok(format!("{LOCKED_HEADING}{}{}\n", to_hex(&nonce), to_hex(&sealed)))
}

/// `None` when the key is another one, or the text was changed.
fn unwrap_text(locked: &str, key: &UnlockKey) -> Option<Zeroizing<String>> {
    let bytes = from_hex(locked.trim_end())?;
    let (nonce, sealed) = bytes.split_at_checked(NONCE_BYTES)?;
    let payload = Payload { msg: sealed, aad: LOCKED_HEADING.as_bytes() };
    let plain = cipher(&key.wrapping_key()).decrypt(XNonce::from_slice(nonce), payload).ok()?;
    String::from_utf8(plain).ok().map(Zeroizing::new)
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

fn cipher(key: &[u8; KEY_BYTES]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(Key::from_slice(key))
}

fn parse_key(line: &str) -> Option<(u32, Zeroizing<[u8; KEY_BYTES]>)> {
    let (id, digits) = line.split_once(' ')?;
    if digits.len() != 2 * KEY_BYTES || !digits.is_ascii() {
        return None;
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    for (position, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * position..2 * position + 2], 16).ok()?;
    }
    Some((id.parse().ok()?, key))
}

#[cfg(test)]
mod tests {
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
        assert!(!running.keep_locked(&path, None).unwrap());
        assert!(running.keep_locked(&path, Some(&old)).unwrap());
        assert!(!running.keep_locked(&path, Some(&old)).unwrap(), "it is locked already");
        let digits = clear.split(' ').next_back().unwrap().trim();
        assert!(!fs::read_to_string(&path).unwrap().contains(digits));
        assert!(matches!(KeyRing::load_or_create(&path, None), Err(SealError::Locked { .. })));
        assert!(matches!(KeyRing::load_or_create(&path, Some(&new)), Err(SealError::WrongUnlockKey { .. })));
        let ring = KeyRing::load_or_create(&path, Some(&old)).unwrap();
        let opened = Sealer::new(ring, ClusterId::from_random(1), NodeId::from_random(1));
        assert_eq!(opened.open(place, &record).unwrap(), b"vote");
        // Rotated, then turned off.
        assert!(opened.keep_locked(&path, Some(&new)).unwrap());
        assert!(matches!(KeyRing::load_or_create(&path, Some(&old)), Err(SealError::WrongUnlockKey { .. })));
        assert!(opened.keep_locked(&path, None).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), clear);
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
