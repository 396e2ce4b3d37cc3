//! The first objects of a cluster: what `orch init` commits.

use std::{collections::BTreeMap, sync::Arc};

use ipnetwork::IpNetwork;
use orch_model::{
    Annotations, ClusterId, Meta, NetworkId, Object, Timestamp,
    change::{Change, Transaction},
    cluster::{
        Cluster, ClusterSpec, DEFAULT_ADDRESS_POOL, DEFAULT_CERT_EXPIRY, DEFAULT_HEARTBEAT_PERIOD,
        DEFAULT_SUBNET_PREFIX_LEN, DEFAULT_TASK_HISTORY_LIMIT, JoinTokens, RootCa, UnlockKeyText,
    },
    network::{DRIVER_OVERLAY, IpamConfig, Network, NetworkSpec},
    node::Node,
};

use crate::allocator::ipam::{first_address, overlaps};

/// The name of the network that published ports arrive on.
pub const INGRESS_NETWORK_NAME: &str = "ingress";
/// Its subnet, unless that overlaps a network of the first node.
const INGRESS_SUBNET: &str = "10.0.0.0/24";
/// The level of features of a cluster that starts with this version.
pub const FEATURE_LEVEL: u32 = 1;
/// VXLAN's registered port.
const DATA_PATH_PORT: u16 = 4789;

/// What `init` has made: identity and secrets need randomness and cryptography, which the caller has.
pub struct Bootstrap {
    pub cluster_id: ClusterId,
    pub spec: ClusterSpec,
    pub root_ca: RootCa,
    pub join_tokens: JoinTokens,
    /// The node that runs `init`, as a manager.
    pub node: Node,
    /// With autolock.
    pub unlock_key: Option<UnlockKeyText>,
}

/// The settings of a cluster whose user gave none.
#[must_use]
pub fn default_cluster_spec() -> ClusterSpec {
    ClusterSpec {
        annotations: Annotations { name: "default".to_owned(), labels: BTreeMap::new() },
        task_history_limit: DEFAULT_TASK_HISTORY_LIMIT,
        heartbeat_period: DEFAULT_HEARTBEAT_PERIOD,
        cert_expiry: DEFAULT_CERT_EXPIRY,
        address_pools: DEFAULT_ADDRESS_POOL.parse().into_iter().collect(),
        subnet_prefix_len: DEFAULT_SUBNET_PREFIX_LEN,
        data_path_port: DATA_PATH_PORT,
        autolock: false,
    }
}

/// The transaction that makes an empty state a cluster.
#[must_use]
pub fn transaction(init: Bootstrap, now: Timestamp, ids: crate::Ids<'_>) -> Transaction {
    let ingress = ingress_network(NetworkId::from_random(ids()), &init.spec, &init.node.description.underlay);
    let cluster = Cluster {
        id: init.cluster_id,
        meta: Meta::default(),
        spec: init.spec,
        root_ca: init.root_ca,
        join_tokens: init.join_tokens,
        feature_level: FEATURE_LEVEL,
        ingress_network: Some(ingress.id.clone()),
        unlock_key: init.unlock_key,
        root_rotation: None,
        root_rotations: 0,
    };
    let objects =
        [Object::Cluster(Arc::new(cluster)), Object::Node(Arc::new(init.node)), Object::Network(Arc::new(ingress))];
    Transaction { at: now, changes: objects.into_iter().map(Change::Create).collect() }
}

fn ingress_network(id: NetworkId, spec: &ClusterSpec, underlay: &[IpNetwork]) -> Network {
    let usual: Option<IpNetwork> = INGRESS_SUBNET.parse().ok();
    // With pools of the user's own, the subnet is cut from those: their reason is often to keep out of 10.0.0.0/8.
    let in_pools = |subnet: &IpNetwork| spec.address_pools.iter().any(|pool| overlaps(*pool, *subnet));
    let usual = usual.filter(in_pools).filter(|subnet| !underlay.iter().any(|own| overlaps(*own, *subnet)));
    let ipam = usual.map(|subnet| IpamConfig {
        subnet,
        range: None,
        gateway: Some(first_address(subnet)),
        aux: BTreeMap::new(),
    });
    Network {
        id,
        meta: Meta::default(),
        spec: NetworkSpec {
            annotations: Annotations { name: INGRESS_NETWORK_NAME.to_owned(), labels: BTreeMap::new() },
            driver: DRIVER_OVERLAY.to_owned(),
            ipam: ipam.into_iter().collect(),
            ingress: true,
            ..NetworkSpec::default()
        },
        allocation: None,
        problem: None,
        removing: false,
    }
}
