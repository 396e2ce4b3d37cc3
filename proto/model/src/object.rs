//! What every object of the cluster's state has in common.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    ClusterId, ConfigId, ImageId, NetworkId, NodeId, SecretId, ServiceId, TaskId, Timestamp,
    cluster::Cluster,
    image::Image,
    network::Network,
    node::Node,
    secret::{Config, Secret},
    service::Service,
    task::Task,
};

/// The raft log index at which an object was last changed; 0 before it was ever committed.
///
/// An update names the version that it saw and is refused when the object has changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(pub u64);

/// Bookkeeping that `apply` maintains; nobody else writes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    pub version: Version,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// The user's name and labels for an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotations {
    pub name: String,
    pub labels: BTreeMap<String, String>,
}

/// The kinds of objects in the cluster's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Cluster,
    Node,
    Service,
    Task,
    Network,
    Secret,
    Config,
    Image,
}

impl Kind {
    /// The word used in messages to people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Service => "service",
            Self::Task => "task",
            Self::Network => "network",
            Self::Secret => "secret",
            Self::Config => "config",
            Self::Image => "image",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Any object of the cluster's state.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    Cluster(Arc<Cluster>),
    Node(Arc<Node>),
    Service(Arc<Service>),
    Task(Arc<Task>),
    Network(Arc<Network>),
    Secret(Arc<Secret>),
    Config(Arc<Config>),
    Image(Arc<Image>),
}

impl Object {
    #[must_use]
    pub fn id(&self) -> ObjectId {
        match self {
            Self::Cluster(o) => ObjectId::Cluster(o.id.clone()),
            Self::Node(o) => ObjectId::Node(o.id.clone()),
            Self::Service(o) => ObjectId::Service(o.id.clone()),
            Self::Task(o) => ObjectId::Task(o.id.clone()),
            Self::Network(o) => ObjectId::Network(o.id.clone()),
            Self::Secret(o) => ObjectId::Secret(o.id.clone()),
            Self::Config(o) => ObjectId::Config(o.id.clone()),
            Self::Image(o) => ObjectId::Image(o.id.clone()),
        }
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.id().kind()
    }

    #[must_use]
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Cluster(o) => &o.meta,
            Self::Node(o) => &o.meta,
            Self::Service(o) => &o.meta,
            Self::Task(o) => &o.meta,
            Self::Network(o) => &o.meta,
            Self::Secret(o) => &o.meta,
            Self::Config(o) => &o.meta,
            Self::Image(o) => &o.meta,
        }
    }
}

/// The identifier of any object, with its kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    Cluster(ClusterId),
    Node(NodeId),
    Service(ServiceId),
    Task(TaskId),
    Network(NetworkId),
    Secret(SecretId),
    Config(ConfigId),
    Image(ImageId),
}

impl ObjectId {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Cluster(_) => Kind::Cluster,
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::Task(_) => Kind::Task,
            Self::Network(_) => Kind::Network,
            Self::Secret(_) => Kind::Secret,
            Self::Config(_) => Kind::Config,
            Self::Image(_) => Kind::Image,
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Cluster(id) => id.as_str(),
            Self::Node(id) => id.as_str(),
            Self::Service(id) => id.as_str(),
            Self::Task(id) => id.as_str(),
            Self::Network(id) => id.as_str(),
            Self::Secret(id) => id.as_str(),
            Self::Config(id) => id.as_str(),
            Self::Image(id) => id.as_str(),
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.as_str())
    }
}
