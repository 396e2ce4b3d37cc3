//! The data keys of one manager: in memory, and in a file that may be wrapped with the cluster's unlock key.
//!
//! Invariants: a key is in the file before anything is sealed with it, and goes only after nothing is sealed with it any
//! more; whenever this process ends, the file opens everything that lies on the disk.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use chacha20poly1305::{
    Key, KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use orch_proto::tls::UnlockKey;
use rand::RngCore;
use zeroize::Zeroizing;

use super::{NONCE_BYTES, SealError, from_hex, to_hex};

const KEY_BYTES: usize = 32;
/// A key file that was wrapped with the unlock key: this, then nonce and sealed text in hexadecimal.
const LOCKED_HEADING: &str = "orch locked data keys 1\n";
const KEY_FILE_HEADING: &str = "orch data keys 1";

/// The data keys of this manager; the last is used for writing.
#[derive(Clone)]
pub struct KeyRing {
    ciphers: BTreeMap<u32, XChaCha20Poly1305>,
    pub(super) current: u32,
    /// As they are written.
    text: Zeroizing<String>,
}

/// How the key file lies on the disk, compared with how it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapping {
    AsWanted,
    /// It should be open.
    Surplus,
    /// It should be wrapped with the unlock key, and is open or wrapped with another.
    Missing,
}

impl KeyRing {
    /// Reads the keys in `path`, or makes the first one.
    pub fn load_or_create(path: &Path, unlock: Option<&UnlockKey>) -> Result<Self, SealError> {
        match Self::load(path, unlock)? {
            Some(ring) => Ok(ring),
            None => {
                let first = Self {
                    ciphers: BTreeMap::new(),
                    current: 0,
                    text: Zeroizing::new(format!("{KEY_FILE_HEADING}\n")),
                };
                let first = first.with_new_key();
                first.write(path, None)?;
                Ok(first)
            }
        }
    }

    /// Of a log that is sealed already: another key would open none of it, and would take the place of the one that is
    /// missed.
    pub fn load_for(log: &Path, path: &Path, unlock: Option<&UnlockKey>) -> Result<Self, SealError> {
        Self::load(path, unlock)?.ok_or_else(|| SealError::Missing { path: path.into(), log: log.into() })
    }

    fn load(path: &Path, unlock: Option<&UnlockKey>) -> Result<Option<Self>, SealError> {
        match fs::read_to_string(path) {
            Ok(text) => match (text.strip_prefix(LOCKED_HEADING), unlock) {
                (None, _) => Self::parse(Zeroizing::new(text), path).map(Some),
                (Some(_), None) => Err(SealError::Locked { path: path.into() }),
                (Some(locked), Some(key)) => {
                    let text =
                        unwrap_text(locked, key).ok_or_else(|| SealError::WrongUnlockKey { path: path.into() })?;
                    Self::parse(text, path).map(Some)
                }
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SealError::KeyFile { what: "read", path: path.into(), source }),
        }
    }

    /// These keys and a new one, which is used from then on.
    pub(super) fn with_new_key(&self) -> Self {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        rand::rng().fill_bytes(&mut *key);
        let mut next = self.clone();
        next.current = self.current + 1;
        next.ciphers.insert(next.current, cipher(&key));
        // Writing to a string cannot fail.
        let _ = write!(next.text, "{} ", next.current);
        for byte in key.iter() {
            let _ = write!(next.text, "{byte:02x}");
        }
        next.text.push('\n');
        next
    }

    /// The current key alone.
    pub(super) fn without_old_keys(&self) -> Self {
        let is_current = |line: &&str| line.split_once(' ').is_some_and(|(id, _)| id == self.current.to_string());
        let mut text = Zeroizing::new(format!("{KEY_FILE_HEADING}\n"));
        for line in self.text.lines().skip(1).filter(is_current) {
            text.push_str(line);
            text.push('\n');
        }
        let ciphers = self.ciphers.iter().filter(|(id, _)| **id == self.current).map(|(id, c)| (*id, c.clone()));
        Self { ciphers: ciphers.collect(), current: self.current, text }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.ciphers.keys().copied()
    }

    pub(super) fn cipher(&self, id: u32) -> Result<&XChaCha20Poly1305, SealError> {
        self.ciphers.get(&id).ok_or(SealError::UnknownKey(id))
    }

    /// Writes the keys, wrapped or open; the whole file or nothing.
    pub(super) fn write(&self, path: &Path, unlock: Option<&UnlockKey>) -> Result<(), SealError> {
        match unlock {
            None => write_private(path, &self.text),
            Some(key) => write_private(path, &wrap_text(&self.text, key)?),
        }
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

/// Compares the file with how it should lie on the disk.
pub(super) fn wrapping(path: &Path, unlock: Option<&UnlockKey>) -> Result<Wrapping, SealError> {
    let read = fs::read_to_string(path).map(Zeroizing::new);
    let now = read.map_err(|source| SealError::KeyFile { what: "read", path: path.into(), source })?;
    Ok(match (now.strip_prefix(LOCKED_HEADING), unlock) {
        (None, None) => Wrapping::AsWanted,
        (Some(_), None) => Wrapping::Surplus,
        (Some(locked), Some(key)) if unwrap_text(locked, key).is_some() => Wrapping::AsWanted,
        (_, Some(_)) => Wrapping::Missing,
    })
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
    crate::log::snapshot_file::sync_parent(path).map_err(error("write"))
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
