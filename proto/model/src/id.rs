//! Identifiers: 25 characters of base36, as Docker's users know them, one newtype per kind.
//!
//! This module must not generate randomness: the caller passes 128 random bits.

use std::{cmp::Ordering, fmt, str::FromStr};

/// Length of an identifier in characters: 128 bits in base36, left-padded.
pub const ID_LEN: usize = 25;

/// A text that is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: expected {ID_LEN} characters of 0-9 and a-z")]
pub struct ParseIdError(pub String);

/// Renders `value` in base36, left-padded with zeros to `width` characters.
#[must_use]
pub fn base36(value: u128, width: usize) -> String {
    let mut out = vec![0; width];
    fill_base36(value, &mut out);
    out.into_iter().map(char::from).collect()
}

fn fill_base36(mut value: u128, out: &mut [u8]) {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    // As many digits as 64 bits hold: dividing 128 is slow.
    const TOGETHER: usize = 12;
    const GROUP: u128 = 36u128.pow(12);
    for group in out.rchunks_mut(TOGETHER) {
        #[allow(clippy::cast_possible_truncation)] // 36^12 is less than 2^64.
        let mut rest = (value % GROUP) as u64;
        value /= GROUP;
        for slot in group.iter_mut().rev() {
            #[allow(clippy::cast_possible_truncation)] // Less than 36.
            let digit = (rest % 36) as usize;
            *slot = DIGITS[digit];
            rest /= 36;
        }
    }
}

/// The characters of an identifier, in place: they are the keys of most maps, and comparing two follows no pointers.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Text([u8; ID_LEN]);

impl Text {
    fn as_str(&self) -> &str {
        // Both ways to make one give ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Ord for Text {
    /// The order of the text, word by word.
    fn cmp(&self, other: &Self) -> Ordering {
        let word = |bytes: &[u8; 8]| u64::from_be_bytes(*bytes);
        let ((words, rest), (others, others_rest)) = (self.0.as_chunks(), other.0.as_chunks());
        words.iter().map(word).cmp(others.iter().map(word)).then_with(|| rest.cmp(others_rest))
    }
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Text);

        impl $name {
            /// The identifier made of 128 random bits.
            #[must_use]
            pub fn from_random(bits: u128) -> Self {
                let mut text = [0; ID_LEN];
                fill_base36(bits, &mut text);
                Self(Text(text))
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let bytes: Option<[u8; ID_LEN]> = text.as_bytes().try_into().ok();
                let valid = |bytes: &[u8; ID_LEN]| {
                    bytes.iter().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
                };
                bytes.filter(valid).map(|bytes| Self(Text(bytes))).ok_or_else(|| ParseIdError(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.as_str())
            }
        }
    )+};
}

ids! {
    /// Identifies a cluster; checked in every handshake, join and restore.
    ClusterId,
    /// Identifies a node; the common name of its certificates.
    NodeId,
    /// Identifies a service.
    ServiceId,
    /// Identifies a task, for ever: a task is never re-run and never moved.
    TaskId,
    /// Identifies a network.
    NetworkId,
    /// Identifies a secret.
    SecretId,
    /// Identifies a config.
    ConfigId,
    /// Identifies an image name that the cluster knows (not the image's content: that is a digest).
    ImageId,
    /// Identifies one agent session with the dispatcher.
    SessionId,
}

impl ServiceId {
    /// No service's: carried by one-off containers, which have the form of tasks. Nobody draws 128 zero bits.
    #[must_use]
    pub fn nobody() -> Self {
        Self(Text([b'0'; ID_LEN]))
    }

    #[must_use]
    pub fn is_nobody(&self) -> bool {
        *self == Self::nobody()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_25_characters_and_parse_back() {
        for bits in [0, 1, 35, 36, u128::MAX] {
            let id = TaskId::from_random(bits);
            assert_eq!(id.as_str().len(), ID_LEN);
            assert_eq!(id.as_str().parse(), Ok(id.clone()));
        }
        assert_eq!(TaskId::from_random(36).as_str(), "0000000000000000000000010");
        assert_eq!(TaskId::from_random(u128::MAX).as_str(), "f5lxx1zz5pnorynqglhzmsp33");
    }

    #[test]
    fn ids_are_in_the_order_of_their_texts() {
        let mut texts: Vec<String> =
            (0..200u32).map(|i| base36(u128::MAX / 200 * u128::from(i) + u128::from(i % 7), ID_LEN)).collect();
        texts.extend(["0".repeat(25), "z".repeat(25), format!("{}1", "0".repeat(24)), format!("{}2", "0".repeat(24))]);
        let mut ids: Vec<TaskId> = texts.iter().map(|text| text.parse().unwrap()).collect();
        texts.sort();
        ids.sort();
        assert_eq!(ids.iter().map(TaskId::as_str).collect::<Vec<_>>(), texts);
    }

    #[test]
    fn nobody_has_an_id_of_zeros() {
        assert_eq!(ServiceId::nobody(), ServiceId::from_random(0));
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in ["", "short", "0000000000000000000000 10", "000000000000000000000001Z"] {
            assert_eq!(text.parse::<NodeId>(), Err(ParseIdError(text.to_owned())));
        }
    }
}
