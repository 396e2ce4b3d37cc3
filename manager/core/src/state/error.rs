//! Why a transaction was refused. Each text is a sentence that a user may read.

use std::net::IpAddr;

use orch_model::{Kind, NetworkId, NodeId, ObjectId, ServiceId, TaskId, Version};

/// Why [`super::State::apply`] refused a transaction. Nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error("{0} does not exist")]
    Missing(ObjectId),
    #[error("{0} exists already")]
    Exists(ObjectId),
    #[error("update out of sequence: {id} is at version {} and not at {}: it was changed since, try again", .found.0, .expected.0)]
    Stale { id: ObjectId, expected: Version, found: Version },
    #[error(
        "name conflicts with an existing object: {kind} {name} already exists; choose another name, or update or remove that one"
    )]
    NameTaken { kind: Kind, name: String },
    #[error("a cluster object exists already: this state belongs to another cluster")]
    AnotherCluster,
    #[error("{what} refers to {missing}, which does not exist")]
    Dangling { what: ObjectId, missing: ObjectId },
    #[error("{kind} {name} is in use by {user}: remove that first")]
    InUse { kind: Kind, name: String, user: String },
    #[error("port {port}/{protocol} is already published by service {holder}")]
    PortTaken { port: u16, protocol: &'static str, holder: ServiceId },
    #[error("VXLAN identifier {vni} belongs to network {holder}")]
    VniTaken { vni: u32, holder: NetworkId },
    #[error("address {address} of network {network} is held by {holder}")]
    AddressTaken { network: NetworkId, address: IpAddr, holder: String },
    #[error("node index {index} belongs to node {holder}")]
    IndexTaken { index: u16, holder: NodeId },
    #[error("slot {slot} of service {service} already has task {holder}, made from the same spec")]
    SlotTaken { service: ServiceId, slot: u64, holder: TaskId },
    #[error("{0} cannot be removed by a transaction")]
    Permanent(ObjectId),
    #[error("the cluster has {limit} {kind}s and can hold no more: remove what is not needed")]
    TooMany { kind: Kind, limit: usize },
    #[error("this node has {limit} tasks and containers and can report no more: remove what is not needed")]
    TooManyOnNode { limit: usize },
    #[error("all services together would want {wanted} tasks: a cluster can hold {limit}")]
    TooManyTasks { wanted: u64, limit: u64 },
    #[error(
        "secrets, configs and the texts of services would have {bytes} bytes together: a cluster can hold {limit}; remove \
         what is not needed"
    )]
    TooMuchContent { bytes: u64, limit: u64 },
    #[error("task {task} cannot go from {from} back to {to}")]
    Backwards { task: TaskId, from: &'static str, to: &'static str },
}
