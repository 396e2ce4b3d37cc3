//! Changes and transactions: what the raft log is made of.

use orch_model::change::{Change, Transaction};

use super::{DecodeError, FromProto, ToProto, field, present, record::record, required};
use crate::wire;

record!(Transaction { values: at, changes; });

impl ToProto for Change {
    type Proto = wire::Change;

    fn to_proto(&self) -> Self::Proto {
        use wire::change::Change as Wire;
        let change = match self {
            Self::Create(object) => Wire::Create(object.to_proto()),
            Self::Update(object) => Wire::Update(object.to_proto()),
            Self::Remove { id, version } => {
                Wire::Remove(wire::Remove { id: Some(id.to_proto()), version: version.to_proto() })
            }
            Self::TaskStatus { task, node, status } => Wire::TaskStatus(wire::TaskStatusChange {
                task: task.to_proto(),
                node: node.to_proto(),
                status: Some(status.to_proto()),
            }),
        };
        wire::Change { change: Some(change) }
    }
}

impl FromProto for Change {
    type Proto = wire::Change;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        use wire::change::Change as Wire;
        Ok(match present(proto.change, "Change", "change")? {
            Wire::Create(object) => Self::Create(field(object, "Change", "create")?),
            Wire::Update(object) => Self::Update(field(object, "Change", "update")?),
            Wire::Remove(wire::Remove { id, version }) => {
                Self::Remove { id: required(id, "Remove", "id")?, version: field(version, "Remove", "version")? }
            }
            Wire::TaskStatus(wire::TaskStatusChange { task, node, status }) => Self::TaskStatus {
                task: field(task, "TaskStatusChange", "task")?,
                node: field(node, "TaskStatusChange", "node")?,
                status: required(status, "TaskStatusChange", "status")?,
            },
        })
    }
}
