//! Networks.

use orch_model::network::{IpamConfig, Network, NetworkAllocation, NetworkSpec};

use super::record::record;

record!(Network { values: id, allocation, problem, removing; parts: meta, spec; });
record!(NetworkSpec {
    values: driver, driver_options, ipam, internal, attachable, ingress, ipv6;
    parts: annotations;
});
record!(IpamConfig { values: subnet, range, gateway, aux; });
record!(NetworkAllocation { values: vni, ipam; });
