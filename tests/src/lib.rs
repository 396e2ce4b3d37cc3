//! Scenarios on a real cluster: three nodes in namespaces of this machine, real containers, real packets.
//!
//! Tests talk to the `orch` binary only, as a user would. They need root and the images of `deploy/images/build`; a
//! missing one is a failure, never a silent skip. Waiting is polling a condition with a deadline.

mod dice;
mod lab;
mod load;
mod wait;

pub use dice::Dice;
pub use lab::{Lab, Outcome, RESTART_LIMIT, image, orch_binary};
pub use load::{Load, failures};
pub use wait::{eventually, within};

use std::{path::PathBuf, time::Duration};

/// How long anything may take on a busy two-core machine before the test says that it did not happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A file of `tests/fixtures`.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}
