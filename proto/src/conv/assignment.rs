//! What a manager sends to a node.

use orch_model::{
    assignment::{
        Assignment, AssignmentKey, EndpointItem, ImageSource, NetworkItem, Peer, ServiceEndpointItem, TaskAssignment,
    },
    network::ENCRYPTED_OPTION,
};

use super::{DecodeError, FromProto, ToProto, field, present, record::record};
use crate::wire;

record!(TaskAssignment { values: desired_state; parts: task; });
record!(ImageSource { values: task, name, digest, holders; blobs: grant; });
record!(Peer as PeerItem { values: node, index, data_addr, ingress_addr, weight, tunnel_key; });
record!(EndpointItem { values: network, task, service, node, addresses, names, serving; });
record!(ServiceEndpointItem { values: network, service, names, vips, ports, declared, balance, prefer_local; });

impl ToProto for NetworkItem {
    type Proto = wire::NetworkItem;

    fn to_proto(&self) -> Self::Proto {
        let Self { id, name, vni, subnets, gateways, internal, ingress, driver_options, data_path_port } = self;
        let (vni, encrypted_vni) = if self.is_encrypted() { (0, *vni) } else { (*vni, 0) };
        wire::NetworkItem {
            id: id.to_proto(),
            name: name.to_proto(),
            vni,
            subnets: subnets.to_proto(),
            gateways: gateways.to_proto(),
            internal: *internal,
            ingress: *ingress,
            driver_options: driver_options.to_proto(),
            data_path_port: data_path_port.to_proto(),
            encrypted_vni,
        }
    }
}

impl FromProto for NetworkItem {
    type Proto = wire::NetworkItem;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        const NAME: &str = "NetworkItem";
        // A tunnel that should be encrypted is none without the option: it would be made in clear text.
        let encrypted = proto.vni == 0 && proto.driver_options.contains_key(ENCRYPTED_OPTION);
        Ok(Self {
            id: field(proto.id, NAME, "id")?,
            name: proto.name,
            vni: if encrypted { proto.encrypted_vni } else { proto.vni },
            subnets: field(proto.subnets, NAME, "subnets")?,
            gateways: field(proto.gateways, NAME, "gateways")?,
            internal: proto.internal,
            ingress: proto.ingress,
            driver_options: field(proto.driver_options, NAME, "driver_options")?,
            data_path_port: field(proto.data_path_port, NAME, "data_path_port")?,
        })
    }
}

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
