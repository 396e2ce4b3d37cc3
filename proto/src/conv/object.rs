//! What every object has, and any object.

use std::str::FromStr;

use orch_model::{
    Annotations, Kind, Meta, Object, ObjectId, ParseIdError,
    image::Image,
    secret::{Config, Secret, TemplateDriver},
};

use super::{
    DecodeError, FromProto, Problem, ToProto, field, present,
    record::{choice, record},
};
use crate::wire;

choice!(Kind { Cluster, Node, Service, Task, Network, Secret, Config, Image });

choice!(TemplateDriver { Golang });

record!(Meta { values: version, created_at, updated_at; });
record!(Annotations { values: name, labels; });
record!(Secret { values: id, template, removing; parts: meta, annotations; blobs: data; });
record!(Config { values: id, template, removing; parts: meta, annotations; blobs: data; });
record!(Image { values: id, name, digest, size_bytes, holders, platform; parts: meta; });

impl ToProto for Object {
    type Proto = wire::Object;

    fn to_proto(&self) -> Self::Proto {
        use wire::object::Object as Wire;
        let object = match self {
            Self::Cluster(o) => Wire::Cluster(o.to_proto()),
            Self::Node(o) => Wire::Node(o.to_proto()),
            Self::Service(o) => Wire::Service(o.to_proto()),
            Self::Task(o) => Wire::Task(o.to_proto()),
            Self::Network(o) => Wire::Network(o.to_proto()),
            Self::Secret(o) => Wire::Secret(o.to_proto()),
            Self::Config(o) => Wire::Config(o.to_proto()),
            Self::Image(o) => Wire::Image(o.to_proto()),
        };
        wire::Object { object: Some(object) }
    }
}

impl FromProto for Object {
    type Proto = wire::Object;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        use wire::object::Object as Wire;
        match present(proto.object, "Object", "object")? {
            Wire::Cluster(o) => FromProto::from_proto(o).map(Self::Cluster),
            Wire::Node(o) => FromProto::from_proto(o).map(Self::Node),
            Wire::Service(o) => FromProto::from_proto(o).map(Self::Service),
            Wire::Task(o) => FromProto::from_proto(o).map(Self::Task),
            Wire::Network(o) => FromProto::from_proto(o).map(Self::Network),
            Wire::Secret(o) => FromProto::from_proto(o).map(Self::Secret),
            Wire::Config(o) => FromProto::from_proto(o).map(Self::Config),
            Wire::Image(o) => FromProto::from_proto(o).map(Self::Image),
        }
    }
}

impl ToProto for ObjectId {
    type Proto = wire::ObjectId;

    fn to_proto(&self) -> Self::Proto {
        wire::ObjectId { kind: self.kind().to_proto(), id: self.as_str().to_owned() }
    }
}

impl FromProto for ObjectId {
    type Proto = wire::ObjectId;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        let wire::ObjectId { kind, id } = proto;
        match field(kind, "ObjectId", "kind")? {
            Kind::Cluster => parse(&id).map(Self::Cluster),
            Kind::Node => parse(&id).map(Self::Node),
            Kind::Service => parse(&id).map(Self::Service),
            Kind::Task => parse(&id).map(Self::Task),
            Kind::Network => parse(&id).map(Self::Network),
            Kind::Secret => parse(&id).map(Self::Secret),
            Kind::Config => parse(&id).map(Self::Config),
            Kind::Image => parse(&id).map(Self::Image),
        }
    }
}

fn parse<Id: FromStr<Err = ParseIdError>>(id: &str) -> Result<Id, DecodeError> {
    id.parse().map_err(|error| DecodeError::new(Problem::Id(error)).in_field("ObjectId", "id"))
}
