//! Names and addresses that follow from identifiers: link names, MAC addresses.
//!
//! Nothing is stored that can be derived: after a restart the same names come out.

use std::{fmt, net::IpAddr};

use orch_model::TaskId;

/// Host end of the pair that leads to the ingress sandbox.
pub const INGRESS_HOST_LINK: &str = "orch_in";
/// Sandbox end of that pair.
pub const INGRESS_SANDBOX_LINK: &str = "host0";
/// The VXLAN device of a sandbox.
pub const VXLAN: &str = "vx0";
/// The device that encrypts, in the namespace of that. It is made from the node's own, where no other may have its name.
pub const WIREGUARD: &str = "orch_wg0";
/// The bridge of a user network's sandbox.
pub const BRIDGE: &str = "br0";
/// Host links that start so are the daemon's own.
pub const HOST_PREFIX: &str = "orch";
/// Host ends of tasks' gateway links start so.
pub const GATEWAY_PREFIX: &str = "orchg";
/// Links of a sandbox that lead to tasks start so.
pub const PORT_PREFIX: &str = "t-";

/// How many of a task id's characters fit in a link name beside a prefix (15 characters in all).
const ID_TAIL_LEN: usize = 10;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of the interface that has `addr`: `02:42` and the four bytes of an IPv4 address, or the last four
    /// bytes of an IPv6 address under `02:43`. Derived, so that no node has to tell another.
    #[must_use]
    pub fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                Self([0x02, 0x42, a, b, c, d])
            }
            IpAddr::V6(v6) => {
                let [.., a, b, c, d] = v6.octets();
                Self([0x02, 0x43, a, b, c, d])
            }
        }
    }

    /// The address of an interface that has all of `addrs`: that of its first IPv4 address, whatever comes before it.
    #[must_use]
    pub fn of_all(addrs: impl Iterator<Item = IpAddr> + Clone) -> Option<Self> {
        addrs.clone().find(IpAddr::is_ipv4).or_else(|| addrs.clone().next()).map(Self::of)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The sandbox's link to a task.
#[must_use]
pub fn task_port(task: &TaskId) -> String {
    format!("{PORT_PREFIX}{}", tail(task))
}

/// The host's link to a task: the task's way out.
#[must_use]
pub fn gateway_port(task: &TaskId) -> String {
    format!("{GATEWAY_PREFIX}{}", tail(task))
}

/// The task's interface number `index`.
#[must_use]
pub fn task_link(index: usize) -> String {
    format!("eth{index}")
}

/// Identifiers are random in all positions, and the last ones differ even where tests count up.
fn tail(task: &TaskId) -> &str {
    let id = task.as_str();
    &id[id.len().saturating_sub(ID_TAIL_LEN)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_the_kernels_limit() {
        let task = TaskId::from_random(u128::MAX);
        assert!(task_port(&task).len() <= 15 && gateway_port(&task).len() <= 15);
    }

    #[test]
    fn a_mac_follows_from_the_address() {
        let mac = Mac::of(IpAddr::from([10, 0, 1, 255]));
        assert_eq!(mac.to_string(), "02:42:0a:00:01:ff");
        let v6: IpAddr = "fd00:7::8".parse().unwrap();
        let both = [v6, IpAddr::from([10, 0, 1, 255])];
        assert_eq!(Mac::of_all(both.into_iter()), Some(mac), "one interface, one address, in whatever order");
        assert_eq!(Mac::of_all(both.into_iter().rev()), Some(mac));
        assert_eq!(Mac::of_all([v6].into_iter()).map(|mac| mac.to_string()).as_deref(), Some("02:43:00:00:00:08"));
        assert_eq!(Mac::of_all(std::iter::empty()), None);
    }
}
