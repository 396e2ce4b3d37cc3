//! What a manager sends to a node.

use orch_model::assignment::{
    Assignment, AssignmentKey, EndpointItem, ImageSource, NetworkItem, Peer, ServiceEndpointItem, TaskAssignment,
};

use super::{DecodeError, FromProto, ToProto, field, present, record::record};
use crate::wire;

record!(TaskAssignment { values: desired_state; parts: task; });
record!(ImageSource { values: task, name, digest, holders; blobs: grant; });
record!(Peer as PeerItem { values: node, index, data_addr, ingress_addr, weight, tunnel_key; });
record!(NetworkItem {
    values: id, name, vni, subnets, gateways, internal, ingress, driver_options, data_path_port;
});
record!(EndpointItem { values: network, task, service, node, addresses, names, serving; });
record!(ServiceEndpointItem { values: network, service, names, vips, ports, declared, balance, prefer_local; });

impl ToProto for Assignment {
    type Proto = wire::Assignment;

    fn to_proto(&self) -> Self::Proto {
        use wire::assignment::Assignment as Wire;
        let assignment = match self {
            Self::Task(item) => Wire::Task(item.to_proto()),
            Self::Secret(item) => Wire::Secret(item.to_proto()),
            Self::Config(item) => Wire::Config(item.to_proto()),
            Self::Image(item) => Wire::Image(item.to_proto()),
            Self::Peer(item) => Wire::Peer(item.to_proto()),
            Self::Network(item) => Wire::Network(item.to_proto()),
            Self::Endpoint(item) => Wire::Endpoint(item.to_proto()),
            Self::ServiceEndpoint(item) => Wire::ServiceEndpoint(item.to_proto()),
        };
        wire::Assignment { assignment: Some(assignment) }
    }
}

impl FromProto for Assignment {
    type Proto = wire::Assignment;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        use wire::assignment::Assignment as Wire;
        match present(proto.assignment, "Assignment", "assignment")? {
            Wire::Task(item) => FromProto::from_proto(item).map(Self::Task),
            Wire::Secret(item) => FromProto::from_proto(item).map(Self::Secret),
            Wire::Config(item) => FromProto::from_proto(item).map(Self::Config),
            Wire::Image(item) => FromProto::from_proto(item).map(Self::Image),
            Wire::Peer(item) => FromProto::from_proto(item).map(Self::Peer),
            Wire::Network(item) => FromProto::from_proto(item).map(Self::Network),
            Wire::Endpoint(item) => FromProto::from_proto(item).map(Self::Endpoint),
            Wire::ServiceEndpoint(item) => FromProto::from_proto(item).map(Self::ServiceEndpoint),
        }
    }
}

impl ToProto for AssignmentKey {
    type Proto = wire::AssignmentKey;

    fn to_proto(&self) -> Self::Proto {
        use wire::assignment_key::Key as Wire;
        let key = match self {
            Self::Task(id) => Wire::Task(id.to_proto()),
            Self::Secret(id) => Wire::Secret(id.to_proto()),
            Self::Config(id) => Wire::Config(id.to_proto()),
            Self::Image(id) => Wire::Image(id.to_proto()),
            Self::Peer(id) => Wire::Peer(id.to_proto()),
            Self::Network(id) => Wire::Network(id.to_proto()),
            Self::Endpoint(network, task) => {
                Wire::Endpoint(wire::EndpointKey { network: network.to_proto(), task: task.to_proto() })
            }
            Self::ServiceEndpoint(network, service) => Wire::ServiceEndpoint(wire::ServiceEndpointKey {
                network: network.to_proto(),
                service: service.to_proto(),
            }),
        };
        wire::AssignmentKey { key: Some(key) }
    }
}

impl FromProto for AssignmentKey {
    type Proto = wire::AssignmentKey;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        use wire::assignment_key::Key as Wire;
        const NAME: &str = "AssignmentKey";
        Ok(match present(proto.key, NAME, "key")? {
            Wire::Task(id) => Self::Task(field(id, NAME, "task")?),
            Wire::Secret(id) => Self::Secret(field(id, NAME, "secret")?),
            Wire::Config(id) => Self::Config(field(id, NAME, "config")?),
            Wire::Image(id) => Self::Image(field(id, NAME, "image")?),
            Wire::Peer(id) => Self::Peer(field(id, NAME, "peer")?),
            Wire::Network(id) => Self::Network(field(id, NAME, "network")?),
            Wire::Endpoint(wire::EndpointKey { network, task }) => {
                Self::Endpoint(field(network, "EndpointKey", "network")?, field(task, "EndpointKey", "task")?)
            }
            Wire::ServiceEndpoint(wire::ServiceEndpointKey { network, service }) => Self::ServiceEndpoint(
                field(network, "ServiceEndpointKey", "network")?,
                field(service, "ServiceEndpointKey", "service")?,
            ),
        })
    }
}
