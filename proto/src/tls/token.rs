//! Join tokens: `ORCHTKN-1-<digest of the root certificate>-<secret>`.
//!
//! The digest lets the joiner check the cluster before it says anything; the secret lets the cluster check the joiner.

use std::{fmt, str::FromStr};

use orch_model::id::base36;
use sha2::{Digest, Sha256};

use super::{TlsError, identity::certificate};

const PREFIX: &str = "ORCHTKN";
const VERSION: &str = "1";
/// 32 bytes in base36.
const DIGEST_CHARS: usize = 50;
/// 16 bytes in base36.
const SECRET_CHARS: usize = 25;

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error(
        "invalid join token: it must look like {PREFIX}-{VERSION}-<{DIGEST_CHARS} characters>-<{SECRET_CHARS} \
         characters>; copy it in full from \"orch join-token worker\" on a manager"
    )]
    Malformed,
    #[error("this is a join token of Docker Swarm, not of orch; get one with \"orch join-token worker\" on a manager")]
    Swarm,
    #[error("this join token has format {0:?}, which this version of orch does not know; upgrade orch on this machine")]
    UnknownVersion(String),
}

/// A parsed join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the root certificate (DER).
    pub digest: [u8; 32],
    /// What the manager compares.
    pub secret: String,
}

impl JoinToken {
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        let (version, digest, secret) = match parts[..] {
            ["SWMTKN", ..] => return Err(TokenError::Swarm),
            [PREFIX, version, digest, secret] => (version, digest, secret),
            _ => return Err(TokenError::Malformed),
        };
        if version != VERSION {
            return Err(TokenError::UnknownVersion(version.to_owned()));
        }
        let is_secret = secret.len() == SECRET_CHARS && secret.bytes().all(|b| digit_value(b).is_some());
        let digest = digest_from_base36(digest).filter(|_| is_secret).ok_or(TokenError::Malformed)?;
        Ok(Self { digest, secret: secret.to_owned() })
    }

    /// The token of the cluster with this root certificate and 128 random bits.
    pub fn generate(root_pem: &str, secret_bits: u128) -> Result<String, TlsError> {
        let root = certificate(root_pem, "the root certificate")?;
        let token = Self { digest: Sha256::digest(&root).into(), secret: base36(secret_bits, SECRET_CHARS) };
        Ok(token.to_string())
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::parse(text)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{VERSION}-{}-{}", digest_to_base36(self.digest), self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("digest", &digest_to_base36(self.digest)).finish_non_exhaustive()
    }
}

/// Long division of the big-endian number by 36, one digit per round.
fn digest_to_base36(mut number: [u8; 32]) -> String {
    let mut digits = [0_u8; DIGEST_CHARS];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in &mut number {
            let dividend = remainder * 256 + u32::from(*byte);
            remainder = dividend % 36;
            *byte = u8::try_from(dividend / 36).unwrap_or(u8::MAX);
        }
        *digit = u8::try_from(remainder).unwrap_or(u8::MAX);
    }
    digits.iter().map(|digit| char::from_digit(u32::from(*digit), 36).unwrap_or('?')).collect()
}

fn digest_from_base36(text: &str) -> Option<[u8; 32]> {
    if text.len() != DIGEST_CHARS {
        return None;
    }
    let mut number = [0_u8; 32];
    for byte in text.bytes() {
        let mut carry = digit_value(byte)?;
        for place in number.iter_mut().rev() {
            let value = u32::from(*place) * 36 + carry;
            let [.., high, low] = value.to_be_bytes();
            *place = low;
            carry = u32::from(high);
        }
        // More than 256 bits.
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

fn digit_value(byte: u8) -> Option<u32> {
    if byte.is_ascii_uppercase() { None } else { char::from(byte).to_digit(36) }
}
