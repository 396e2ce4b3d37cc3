//! Networks: driver, subnets, gateways.

use ipnetwork::IpNetwork;
use orch_model::network::{DRIVER_OVERLAY, IpamConfig, NetworkSpec, is_predefined};

use super::{SpecError, field, labels, object_name};
use crate::allocator::ipam::overlaps;

/// Docker's option: packets of the network are no longer than this. netd keeps them within what the underlay carries.
const MTU_OPTION: &str = "com.docker.network.driver.mtu";
const MIN_MTU: u32 = 576;
const MAX_MTU: u32 = 65_535;
/// The smallest IPv4 subnet has room for a gateway, a virtual address and a few tasks.
const MAX_PREFIX_V4: u8 = 29;
const MAX_PREFIX_V6: u8 = 120;

/// Checks a network.
///
/// # Errors
/// See [`SpecError`].
pub fn network_spec(spec: &NetworkSpec) -> Result<(), SpecError> {
    object_name("network name", &spec.annotations.name)?;
    if is_predefined(&spec.annotations.name) {
        let name = &spec.annotations.name;
        return Err(field("network name", name, "every node has a predefined network of this name: choose another"));
    }
    labels(&spec.annotations)?;
    if spec.driver != DRIVER_OVERLAY {
        return Err(field("network driver", &spec.driver, "networks of a cluster use the driver \"overlay\""));
    }
    if spec.is_encrypted() && spec.ingress {
        return Err(SpecError::Rule(
            "an ingress network cannot be encrypted: every node takes part in it, also those that cannot encrypt; leave \
             out the option \"encrypted\", and encrypt what arrives at published ports by TLS"
                .to_owned(),
        ));
    }
    if let Some(mtu) = spec.driver_options.get(MTU_OPTION)
        && !mtu.parse::<u32>().is_ok_and(|mtu| (MIN_MTU..=MAX_MTU).contains(&mtu))
    {
        return Err(field(MTU_OPTION, mtu, format!("expected a number of bytes from {MIN_MTU} to {MAX_MTU}")));
    }
    if spec.ingress && (spec.internal || spec.attachable) {
        return Err(SpecError::Rule("an ingress network cannot be internal or attachable".to_owned()));
    }
    for (i, ipam) in spec.ipam.iter().enumerate() {
        check_ipam(ipam)?;
        if let Some(other) = spec.ipam[..i].iter().find(|other| overlaps(other.subnet, ipam.subnet)) {
            return Err(field("subnet", ipam.subnet, format!("it overlaps the subnet {}", other.subnet)));
        }
    }
    Ok(())
}

fn check_ipam(ipam: &IpamConfig) -> Result<(), SpecError> {
    let subnet = ipam.subnet;
    if subnet.network() != subnet.ip() {
        let expected = format!("host bits are set, write {}/{}", subnet.network(), subnet.prefix());
        return Err(field("subnet", subnet, expected));
    }
    let max = if subnet.is_ipv4() { MAX_PREFIX_V4 } else { MAX_PREFIX_V6 };
    if subnet.prefix() > max {
        return Err(field("subnet", subnet, format!("it is too small for a network: use /{max} or larger")));
    }
    if !is_unicast(subnet) {
        return Err(field("subnet", subnet, "it is not a range of ordinary addresses, like 10.1.0.0/24"));
    }
    let contains = |range: &IpNetwork| subnet.contains(range.network()) && subnet.contains(range.broadcast());
    if let Some(range) = ipam.range.filter(|range| !contains(range)) {
        return Err(field("ip range", range, format!("it must be inside the subnet {subnet}")));
    }
    if let Some((name, aux)) = ipam.aux.iter().find(|(_, aux)| !subnet.contains(**aux)) {
        return Err(field("aux-address", format!("{name}={aux}"), format!("it must be inside the subnet {subnet}")));
    }
    let edge = |a| subnet.is_ipv4() && (a == subnet.network() || a == subnet.broadcast());
    if let Some(gateway) = ipam.gateway.filter(|g| !subnet.contains(*g) || edge(*g)) {
        return Err(field("gateway", gateway, format!("it must be a host address inside the subnet {subnet}")));
    }
    Ok(())
}

fn is_unicast(subnet: IpNetwork) -> bool {
    let ip = subnet.network();
    !ip.is_multicast() && !ip.is_loopback() && !ip.is_unspecified()
}
