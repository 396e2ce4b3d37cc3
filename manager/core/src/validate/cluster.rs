//! Cluster settings.

use orch_model::{
    Duration,
    cluster::{ClusterSpec, MAX_CERT_EXPIRY, MAX_HEARTBEAT_PERIOD, MIN_HEARTBEAT_PERIOD},
};

use super::{SpecError, field, labels};
use crate::allocator::ipam::overlaps;

const MAX_SUBNET_PREFIX_LEN: u8 = 29;

/// Checks cluster settings. Certificates live at least `min_cert_expiry`.
///
/// # Errors
/// See [`SpecError`].
pub fn cluster_spec(spec: &ClusterSpec, min_cert_expiry: Duration) -> Result<(), SpecError> {
    labels(&spec.annotations)?;
    if spec.cert_expiry < min_cert_expiry {
        return Err(field("certificate expiry", format!("{:?}", spec.cert_expiry), "it must be at least 1h0m0s"));
    }
    if spec.cert_expiry > MAX_CERT_EXPIRY {
        return Err(field("certificate expiry", format!("{:?}", spec.cert_expiry), "it must be at most 876000h0m0s"));
    }
    if spec.heartbeat_period < MIN_HEARTBEAT_PERIOD {
        return Err(field("heartbeat period", format!("{:?}", spec.heartbeat_period), "it must be at least 1s"));
    }
    if spec.heartbeat_period > MAX_HEARTBEAT_PERIOD {
        return Err(field("heartbeat period", format!("{:?}", spec.heartbeat_period), "it must be at most 24h0m0s"));
    }
    if spec.data_path_port < 1024 {
        return Err(field("data path port", spec.data_path_port, "it must be a port from 1024 to 49151, usually 4789"));
    }
    for (i, pool) in spec.address_pools.iter().enumerate() {
        if pool.network() != pool.ip() {
            return Err(field(
                "address pool",
                pool,
                format!("host bits are set, write {}/{}", pool.network(), pool.prefix()),
            ));
        }
        if let Some(other) = spec.address_pools[..i].iter().find(|other| overlaps(**other, *pool)) {
            return Err(field("address pool", pool, format!("it overlaps the pool {other}")));
        }
        if pool.is_ipv4() && (spec.subnet_prefix_len < pool.prefix() || spec.subnet_prefix_len > MAX_SUBNET_PREFIX_LEN)
        {
            return Err(field(
                "address pool mask length",
                spec.subnet_prefix_len,
                format!("subnets of pool {pool} can be /{} to /{MAX_SUBNET_PREFIX_LEN}", pool.prefix()),
            ));
        }
    }
    Ok(())
}
