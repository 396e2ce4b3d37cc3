//! Nodes.

use orch_model::node::{
    Availability, Encryption, GenericResources, ManagerStatus, NamedResource, Node, NodeCertificates, NodeDescription,
    NodeRole, NodeSpec, NodeState, NodeStatus, Platform, Resources, TunnelKey,
};

use super::{
    DecodeError, FromProto, Problem, ToProto, field, present,
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
    values: hostname, engine_version, engine_labels, features, underlay, data_addr, generic, encryption;
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

impl ToProto for Encryption {
    type Proto = wire::Encryption;

    fn to_proto(&self) -> Self::Proto {
        use wire::encryption::Encryption as Wire;
        let encryption = match self {
            Self::Key(key) => Wire::PublicKey(key.to_proto()),
            Self::Unavailable(why) => Wire::Unavailable(why.clone()),
        };
        wire::Encryption { encryption: Some(encryption) }
    }
}

impl FromProto for Encryption {
    type Proto = wire::Encryption;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        use wire::encryption::Encryption as Wire;
        Ok(match present(proto.encryption, "Encryption", "encryption")? {
            Wire::PublicKey(key) => Self::Key(field(key, "Encryption", "public_key")?),
            Wire::Unavailable(why) => Self::Unavailable(why),
        })
    }
}

impl ToProto for TunnelKey {
    type Proto = bytes::Bytes;

    fn to_proto(&self) -> Self::Proto {
        bytes::Bytes::copy_from_slice(&self.0)
    }
}

impl FromProto for TunnelKey {
    type Proto = bytes::Bytes;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        let wrong = |_| DecodeError::new(Problem::KeyLength(proto.len()));
        <[u8; 32]>::try_from(proto.as_ref()).map(Self).map_err(wrong)
    }
}
