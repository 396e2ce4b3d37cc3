//! A *Change* is proposed; once committed it is an event. The raft log is a list of transactions of changes.

use crate::{NodeId, Object, ObjectId, TaskId, Timestamp, Version, task::TaskStatus};

/// One change of one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Adds an object that is not there yet. Its `meta` is ignored: `apply` writes it.
    Create(Object),
    /// Replaces an object. `meta.version` of the new value is the version that the writer saw; `apply` refuses the
    /// transaction when the object has changed since.
    Update(Object),
    /// Removes an object that still has this version.
    Remove { id: ObjectId, version: Version },
    /// What a node's agent saw of a task. Carries no version: states only go up, so `apply` ignores what is older.
    TaskStatus { task: TaskId, node: NodeId, status: TaskStatus },
}

/// Changes that are committed all or not at all, with a result of their own.
#[derive(Debug, Clone, PartialEq)]
pub struct Transaction {
    /// The leader's stamp: `max(last stamp, wall clock)`.
    pub at: Timestamp,
    pub changes: Vec<Change>,
}
