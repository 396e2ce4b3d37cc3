//! The node-local network behind which tasks reach the outside: which subnet it has, who has which address.
//!
//! One /16 per node, the same on many nodes since it never leaves them: its lower half is the tasks, the first
//! addresses of its upper half are the pair that leads to the ingress sandbox.
//!
//! By IPv6 a random /64 per node stands beside it, where everyone's address ends with the one of the /16.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// The subnet chosen for this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    base: [u8; 2],
}

impl Gateway {
    /// The first /16 of 172.18-172.31 (then 192.168) that overlaps nothing in `taken`.
    #[must_use]
    pub fn choose(taken: &[IpNetwork]) -> Option<Self> {
        let candidates = (18..=31).map(|second| [172, second]).chain([[192, 168]]);
        candidates.map(|base| Self { base }).find(|gateway| !gateway.overlaps(taken))
    }

    /// Reads what [`Gateway::subnet`] printed.
    #[must_use]
    pub fn from_subnet(subnet: Ipv4Network) -> Option<Self> {
        let [a, b, 0, 0] = subnet.network().octets() else { return None };
        (subnet.prefix() == 16).then_some(Self { base: [a, b] })
    }

    #[must_use]
    pub fn overlaps(&self, taken: &[IpNetwork]) -> bool {
        let own = self.subnet();
        taken.iter().any(|net| match net {
            // A default route is in nobody's way.
            IpNetwork::V4(net) => net.prefix() > 0 && own.overlaps(*net),
            IpNetwork::V6(_) => false,
        })
    }

    #[must_use]
    pub fn subnet(&self) -> Ipv4Network {
        self.net(0, 0, 16)
    }

    /// The node's address towards its tasks, with the prefix that they use too: their default gateway.
    #[must_use]
    pub fn router(&self) -> Ipv4Network {
        self.net(0, 1, 17)
    }

    /// Host end of the pair to the ingress sandbox.
    #[must_use]
    pub fn ingress_host(&self) -> Ipv4Network {
        self.net(128, 1, 30)
    }

    /// Sandbox end of that pair.
    #[must_use]
    pub fn ingress_sandbox(&self) -> Ipv4Network {
        self.net(128, 2, 30)
    }

    /// The next free task address after `last`, so that an address rests before it is used again.
    #[must_use]
    pub fn allocate(&self, last: Option<Ipv4Addr>, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let first = u32::from(self.net(0, 2, 17).ip());
        let end = u32::from(self.net(127, 255, 17).ip());
        let last = last.map_or(first - 1, u32::from).clamp(first - 1, end - 1);
        let after = (last + 1..end).chain(first..=last);
        after.map(Ipv4Addr::from).find(|addr| !used.contains(addr) && *addr >= Ipv4Addr::from(first))
    }

    fn net(&self, third: u8, fourth: u8, prefix: u8) -> Ipv4Network {
        let [a, b] = self.base;
        // The prefixes above are constants below 32, so the fallback is never taken.
        Ipv4Network::new(Ipv4Addr::new(a, b, third, fourth), prefix)
            .unwrap_or_else(|_| Ipv4Network::from(Ipv4Addr::new(a, b, third, fourth)))
    }
}

/// The same network by IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayV6 {
    base: Ipv6Addr,
}

impl GatewayV6 {
    /// `bits`: at random, so that it is nobody else's.
    #[must_use]
    pub fn choose(bits: u64) -> Self {
        let prefix = 0xfd << 56 | bits >> 8;
        Self { base: Ipv6Addr::from_bits(u128::from(prefix) << 64) }
    }

    /// Reads what [`GatewayV6::subnet`] printed.
    #[must_use]
    pub fn from_subnet(subnet: Ipv6Network) -> Option<Self> {
        let base = subnet.ip();
        (subnet.prefix() == 64 && subnet.network() == base && base.is_unique_local()).then_some(Self { base })
    }

    #[must_use]
    pub fn subnet(&self) -> Ipv6Network {
        // 64 is below 128, so the fallback is never taken.
        Ipv6Network::new(self.base, 64).unwrap_or_else(|_| Ipv6Network::from(self.base))
    }

    /// The address of who has `addr` by IPv4.
    #[must_use]
    pub fn beside(&self, addr: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.base.to_bits() | u128::from(addr.to_bits()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_subnet_that_is_free() {
        for (taken, expected) in [
            (&[][..], Some("172.18.0.0/16")),
            (&["0.0.0.0/0", "10.0.0.0/8", "fd00::/8"][..], Some("172.18.0.0/16")),
            (&["172.18.4.0/24", "172.19.0.0/16"][..], Some("172.20.0.0/16")),
            (&["172.16.0.0/12"][..], Some("192.168.0.0/16")),
            (&["172.16.0.0/12", "192.168.9.0/24"][..], None),
        ] {
            let chosen = Gateway::choose(&nets(taken)).map(|g| g.subnet().to_string());
            assert_eq!(chosen.as_deref(), expected, "taken: {taken:?}");
        }
    }

    #[test]
    fn addresses_rest_before_they_are_used_again() {
        let gateway = Gateway::choose(&[]).unwrap();
        let first = gateway.allocate(None, &BTreeSet::new()).unwrap();
        assert_eq!(first, Ipv4Addr::new(172, 18, 0, 2));
        assert_eq!(gateway.allocate(Some(first), &BTreeSet::new()), Some(Ipv4Addr::new(172, 18, 0, 3)));
        let last = Ipv4Addr::new(172, 18, 127, 254);
        assert_eq!(gateway.allocate(Some(last), &[first].into()), Some(Ipv4Addr::new(172, 18, 0, 3)));
    }

    #[test]
    fn by_ipv6_it_is_a_random_subnet() {
        let gateway = GatewayV6::choose(0x0123_4567_89ab_cdef);
        assert_eq!(gateway.subnet().to_string(), "fd01:2345:6789:abcd::/64");
        assert_eq!(gateway.beside(Ipv4Addr::new(172, 18, 0, 1)).to_string(), "fd01:2345:6789:abcd::ac12:1");
        for (text, is_one) in [
            ("fd01:2345:6789:abcd::/64", true),
            ("fd01:2345:6789:abcd::1/64", false),
            ("fd01:2345:6789::/48", false),
            ("2001:db8::/64", false),
        ] {
            let read = GatewayV6::from_subnet(text.parse().unwrap());
            assert_eq!(read, is_one.then_some(gateway), "{text}");
        }
    }

    #[test]
    fn a_full_network_has_no_address() {
        let gateway = Gateway::choose(&[]).unwrap();
        let used = (2..0x7fff_u32).map(|n| Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 18, 0, 0)) + n)).collect();
        assert_eq!(gateway.allocate(None, &used), None);
    }
}
