//! Identifiers: 25 characters of base36, as Docker's users know them, one newtype per kind.
//!
//! This module must not generate randomness: the caller passes 128 random bits.

use std::{fmt, str::FromStr};

/// Length of an identifier in characters: 128 bits in base36, left-padded.
pub const ID_LEN: usize = 25;

/// A text that is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: expected {ID_LEN} characters of 0-9 and a-z")]
pub struct ParseIdError(pub String);

/// Renders `value` in base36, left-padded with zeros to `width` characters.
#[must_use]
pub fn base36(mut value: u128, width: usize) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut out = vec![b'0'; width];
    for slot in out.iter_mut().rev() {
        // The remainder of a division by 36 always fits.
        #[allow(clippy::cast_possible_truncation)]
        let digit = (value % 36) as usize;
        *slot = DIGITS[digit];
        value /= 36;
    }
    out.into_iter().map(char::from).collect()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The identifier made of 128 random bits.
            #[must_use]
            pub fn from_random(bits: u128) -> Self {
                Self(base36(bits, ID_LEN).into())
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let valid = text.len() == ID_LEN
                    && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
                if valid { Ok(Self(text.into())) } else { Err(ParseIdError(text.to_owned())) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
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
        Self::from_random(0)
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
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in ["", "short", "0000000000000000000000 10", "000000000000000000000001Z"] {
            assert_eq!(text.parse::<NodeId>(), Err(ParseIdError(text.to_owned())));
        }
    }
}
