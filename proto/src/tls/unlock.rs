//! The key that locked managers are opened with: `ORCHKEY-1-<16 bytes, base36, 25 characters>`.

use std::fmt;

use orch_model::{cluster::UnlockKeyText, id::base36};
use sha2::{Digest, Sha256};

const PREFIX: &str = "ORCHKEY-1-";
const KEY_CHARS: usize = 25;
/// Keeps the key that is derived apart from anything else that is ever derived from the same text.
const DOMAIN: &[u8] = b"orch unlock key 1\0";

/// What is wrong with the text of an unlock key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not an unlock key: expected {PREFIX} and {KEY_CHARS} more characters, as \"orch unlock-key\" prints it"
)]
pub struct UnlockKeyError;

/// An unlock key that was read or made.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey(String);

impl UnlockKey {
    /// The key of these 128 random bits.
    #[must_use]
    pub fn generate(bits: u128) -> Self {
        Self(format!("{PREFIX}{}", base36(bits, KEY_CHARS)))
    }

    pub fn parse(text: &str) -> Result<Self, UnlockKeyError> {
        let text = text.trim();
        let key = text.strip_prefix(PREFIX).ok_or(UnlockKeyError)?;
        let is_digit = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
        if key.len() == KEY_CHARS && key.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(UnlockKeyError)
        }
    }

    #[must_use]
    pub fn text(&self) -> UnlockKeyText {
        UnlockKeyText(self.0.clone())
    }

    /// The key to wrap with.
    #[must_use]
    pub fn wrapping_key(&self) -> [u8; 32] {
        Sha256::new().chain_update(DOMAIN).chain_update(self.0.as_bytes()).finalize().into()
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_printed() {
        let key = UnlockKey::generate(u128::MAX);
        let text = key.text().0;
        assert_eq!(UnlockKey::parse(&format!(" {text}\n")), Ok(key.clone()));
        assert_ne!(key.wrapping_key(), UnlockKey::generate(1).wrapping_key());
        for wrong in ["", "ORCHKEY-1-", &text[1..], &text[..text.len() - 1], &text.to_uppercase(), "ORCHTKN-1-a-b"] {
            assert_eq!(UnlockKey::parse(wrong), Err(UnlockKeyError), "{wrong}");
        }
    }
}
