//! The manager's source of identifiers: the core takes random bits as an argument.

use rand::Rng;

/// 128 random bits, for one identifier.
pub(crate) fn bits() -> u128 {
    rand::rng().random()
}
