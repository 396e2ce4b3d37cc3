//! Nodes.

use orch_model::node::{
    Availability, GenericResources, ManagerStatus, NamedResource, Node, NodeCertificates, NodeDescription, NodeRole,
    NodeSpec, NodeState, NodeStatus, Platform, Resources,
};

use super::{
    DecodeError, FromProto, ToProto, field,
    record::{choice, record},
};
use crate::wire;

choice!(NodeRole { Worker, Manager });
choice!(Availability { Active, Pause, Drain });
choice!(NodeState { Unknown, Down, Ready, Disconnected });

record!(Node { values: id, role, manager, index, attachments, certificates; parts: meta, spec, description, status; });
record!(NodeCertificates { values: issuer, trusted, expires_at; });
record!(NodeSpec { values: role, availability; parts: annotations; });
record!(NodeDescription {
    values: hostname, engine_version, engine_labels, features, underlay, data_addr, generic;
    parts: platform, resources;
});
record!(Platform { values: os, arch; });
record!(Resources { values: nano_cpus, memory_bytes; });
record!(NodeStatus { values: state, message, addr, since; });
record!(ManagerStatus { values: raft_id, addr; });
record!(NamedResource { values: kind, name; });

/// Nothing is an absent message: most nodes and tasks have none.
impl ToProto for GenericResources {
    type Proto = Option<wire::GenericResources>;

    fn to_proto(&self) -> Self::Proto {
        let Self { counted, named } = self;
        (!self.is_empty()).then(|| wire::GenericResources { counted: counted.to_proto(), named: named.to_proto() })
    }
}

impl FromProto for GenericResources {
    type Proto = Option<wire::GenericResources>;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        let wire::GenericResources { counted, named } = proto.unwrap_or_default();
        Ok(Self {
            counted: field(counted, "GenericResources", "counted")?,
            named: field(named, "GenericResources", "named")?,
        })
    }
}
