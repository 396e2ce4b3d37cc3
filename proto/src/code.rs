//! The stable code of a refusal, for programs: in the metadata of a status, beside the sentence for people.

use tonic::Status;

/// Part of the API.
pub const KEY: &str = "orch-code";

/// A manager's certificate was asked for by a worker's key alone, of a manager whose keys are locked while it is off.
pub const NEEDS_MANAGER_KEY: &str = "needs-manager-key";

/// Who asks was a node of the cluster once.
pub const NODE_REMOVED: &str = "node-removed";

/// The code of a refusal; `None` for what does not come from a daemon of ours.
#[must_use]
pub fn of(status: &Status) -> Option<&str> {
    status.metadata().get(KEY)?.to_str().ok()
}

/// Whether a code says that nothing was done because it was not for this manager to do, or not at this moment.
#[must_use]
pub fn is_leaderless(code: &str) -> bool {
    matches!(code, "not-leader" | "no-leader")
}
