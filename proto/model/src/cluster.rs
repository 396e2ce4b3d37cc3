//! The cluster object: settings, certificate authority and join tokens. There is exactly one.

use ipnetwork::IpNetwork;

use crate::{Annotations, ClusterId, Duration, Meta, NetworkId};

/// Where overlay networks get their subnets when the user names none.
pub const DEFAULT_ADDRESS_POOL: &str = "10.0.0.0/8";
/// Prefix length of a subnet cut from the pool.
pub const DEFAULT_SUBNET_PREFIX_LEN: u8 = 24;
/// Stopped tasks kept per slot.
pub const DEFAULT_TASK_HISTORY_LIMIT: u64 = 5;
/// Every ended task of a place is kept: Docker's -1.
pub const UNLIMITED_TASK_HISTORY: u64 = u64::MAX;
pub const DEFAULT_HEARTBEAT_PERIOD: Duration = Duration::from_secs(5);
pub const DEFAULT_CERT_EXPIRY: Duration = Duration::from_secs(90 * 24 * 3600);
pub const MIN_CERT_EXPIRY: Duration = Duration::from_secs(3600);
/// A hundred years. No certificate outlives the root that signed it, whatever is asked for.
pub const MAX_CERT_EXPIRY: Duration = Duration::from_secs(876_000 * 3600);
pub const MIN_HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
pub const MAX_HEARTBEAT_PERIOD: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    pub root_ca: RootCa,
    pub join_tokens: JoinTokens,
    /// Raised once every manager knows the change kinds of that level.
    pub feature_level: u32,
    /// The ingress network; made by `init`.
    pub ingress_network: Option<NetworkId>,
    /// What managers wrap their keys with on their disks; only with autolock.
    pub unlock_key: Option<UnlockKeyText>,
    /// A new root is on its way to every node; `root_ca` is still the one that all of them trust.
    pub root_rotation: Option<RootRotation>,
    /// How often a rotation of the root was asked for.
    pub root_rotations: u64,
}

/// A rotation of the root that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootRotation {
    pub target: RootCa,
    /// SHA-256 of the target's certificate (DER), in hexadecimal.
    pub digest: String,
    /// The target's key in a certificate that the current root signed: whoever knows only the current root believes it.
    pub cross_signed_pem: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ClusterSpec {
    pub annotations: Annotations,
    /// [`UNLIMITED_TASK_HISTORY`]: nothing is forgotten.
    pub task_history_limit: u64,
    pub heartbeat_period: Duration,
    pub cert_expiry: Duration,
    pub address_pools: Vec<IpNetwork>,
    pub subnet_prefix_len: u8,
    /// VXLAN UDP port.
    pub data_path_port: u16,
    /// Managers that were stopped start only when somebody gives them the unlock key.
    pub autolock: bool,
}

/// The certificate authority that signs every node's certificates.
#[derive(Clone, PartialEq, Eq)]
pub struct RootCa {
    pub cert_pem: String,
    /// PKCS#8 PEM. Never leaves the managers.
    pub key_pem: String,
}

impl std::fmt::Debug for RootCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootCa").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// `ORCHKEY-1-<key>`.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKeyText(pub String);

impl std::fmt::Debug for UnlockKeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UnlockKeyText(..)")
    }
}

/// `ORCHTKN-1-<root digest>-<secret>`, one per role.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinTokens {
    pub worker: String,
    pub manager: String,
}

impl std::fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinTokens(..)")
    }
}
