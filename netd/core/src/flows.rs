//! Which remembered connections must be forgotten when backends go away.
//!
//! A flow keeps going to the backend that it was given first for as long as the kernel remembers it. When that backend
//! is gone, the entry is deleted, and the client's next packet is balanced anew.
//!
//! And which changes of backends may wait for each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use orch_model::NetworkId;

/// How much of an address's flows to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// It takes no new flows: those that know no end (UDP). It still answers who has just knocked: a connection that is being
    /// made must not be forgotten, as its answer may come between the look and the deletion.
    Endless,
    /// It answers nobody, as far as one can tell: those that have had no answer, too. Established TCP lives on.
    Unanswered,
    /// It is gone: all of them.
    All,
}

/// What an address is to its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Serving,
    /// Takes no new connections; those that exist live on.
    Draining,
    /// Its node is taken for dead.
    Suspect,
}

/// Every address that may have flows, by network.
pub type Standings = BTreeMap<NetworkId, BTreeMap<IpAddr, Standing>>;

/// What to forget, by network.
pub type Cuts = BTreeMap<NetworkId, BTreeMap<IpAddr, Cut>>;

/// What to forget after `before` became `after`.
#[must_use]
pub fn cuts(before: &Standings, after: &Standings) -> Cuts {
    let mut cuts = Cuts::new();
    for (network, addrs) in before {
        for (addr, old) in addrs {
            let new = after.get(network).and_then(|addrs| addrs.get(addr));
            let cut = match (old, new) {
                (_, None) => Cut::All,
                (Standing::Serving | Standing::Draining, Some(Standing::Suspect)) => Cut::Unanswered,
                (Standing::Serving, Some(Standing::Draining)) => Cut::Endless,
                (Standing::Draining | Standing::Suspect, Some(Standing::Draining))
                | (Standing::Suspect, Some(Standing::Suspect))
                | (_, Some(Standing::Serving)) => continue,
            };
            cuts.entry(network.clone()).or_default().insert(*addr, cut);
        }
    }
    cuts
}

/// Adds `cuts` to those that nobody has got to yet, where the larger counts. Whoever serves again by now is left alone: a
/// connection that is being made there must not be forgotten.
pub fn gather(gathered: &mut Cuts, cuts: Cuts, now: &Standings) {
    let serves = |network: &NetworkId, addr: &IpAddr| {
        now.get(network).and_then(|addrs| addrs.get(addr)) == Some(&Standing::Serving)
    };
    gathered.retain(|network, addrs| {
        addrs.retain(|addr, _| !serves(network, addr));
        !addrs.is_empty()
    });
    for (network, addrs) in cuts {
        let waiting = gathered.entry(network).or_default();
        for (addr, cut) in addrs {
            waiting.entry(addr).and_modify(|known| *known = cut.max(*known)).or_insert(cut);
        }
    }
}

/// Where datagrams for published ports are led, by port and the one address that it answers on.
pub type Doors = BTreeMap<(u16, Option<IpAddr>), SocketAddr>;

/// Ports that lead elsewhere now.
#[must_use]
pub fn redirected(before: &Doors, after: &Doors) -> BTreeSet<u16> {
    let changed = |door: &&(u16, Option<IpAddr>)| before.get(door) != after.get(door);
    before.keys().chain(after.keys()).filter(changed).map(|(port, _)| *port).collect()
}

/// Where a datagram to `to` is led; `None`: nowhere. The node remembers where it led each sender, or that there was nobody, for
/// as long as the sender goes on: what differs from this must be forgotten.
#[must_use]
pub fn led_to(doors: &Doors, to: SocketAddr) -> Option<SocketAddr> {
    [Some(to.ip()), None].into_iter().find_map(|addr| doors.get(&(to.port(), addr)).copied())
}

/// Who has turns behind each virtual address.
pub type Backends = BTreeMap<(NetworkId, IpAddr), BTreeSet<IpAddr>>;

/// Whether backends came to those that there were, and that is all. Who hears of it later refuses nobody and leads nobody
/// astray meanwhile.
#[must_use]
pub fn only_more(before: &Backends, after: &Backends) -> bool {
    let grew = |old: &BTreeSet<_>, new: &BTreeSet<_>| old == new || (!old.is_empty() && old.is_subset(new));
    before.len() == after.len() && before.iter().all(|(vip, old)| after.get(vip).is_some_and(|new| grew(old, new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_are_looked_at_where_a_port_leads_elsewhere() {
        let to = |last: u8| SocketAddr::from(([172, 18, 0, last], 53));
        let doors = |of: &[(u16, SocketAddr)]| -> Doors { of.iter().map(|(p, to)| ((*p, None), *to)).collect() };
        let before = doors(&[(53, to(2)), (514, to(3)), (8125, to(9))]);
        for (after, expected) in [
            (before.clone(), &[][..]),
            (doors(&[(53, to(4)), (514, to(3)), (8125, to(9))]), &[53]),
            (doors(&[(514, to(3)), (8125, to(3))]), &[53, 8125]),
            (doors(&[(53, to(2)), (514, to(3)), (8125, to(9)), (9000, to(9))]), &[9000]),
        ] {
            assert_eq!(redirected(&before, &after), expected.iter().copied().collect(), "{after:?}");
        }
    }

    #[test]
    fn a_door_of_one_address_comes_before_that_of_all() {
        let (node, lo) = (IpAddr::from([10, 0, 0, 5]), IpAddr::from([127, 0, 0, 1]));
        let to = |last: u8| SocketAddr::from(([172, 18, 0, last], 53));
        let doors = Doors::from([((53, Some(lo)), to(2)), ((53, None), to(3)), ((514, Some(lo)), to(4))]);
        for (asked, expected) in [
            ((lo, 53), Some(to(2))),
            ((node, 53), Some(to(3))),
            ((lo, 514), Some(to(4))),
            ((node, 514), None),
            ((node, 8125), None),
        ] {
            assert_eq!(led_to(&doors, asked.into()), expected, "{asked:?}");
        }
    }

    #[test]
    fn more_backends_of_those_that_have_some_may_wait() {
        let backends = |of: &[(u8, &[u8])]| -> Backends {
            let addr = |last: u8| IpAddr::from([10, 0, 1, last]);
            let key = |vip| (NetworkId::from_random(1), addr(vip));
            of.iter().map(|(vip, each)| (key(*vip), each.iter().copied().map(addr).collect())).collect()
        };
        let before: &[(u8, &[u8])] = &[(100, &[1, 2]), (101, &[])];
        for (after, expected) in [
            (&[(100, &[1, 2][..]), (101, &[])][..], true),
            (&[(100, &[1, 2, 3]), (101, &[])], true),
            (&[(100, &[1, 3]), (101, &[])], false),
            (&[(100, &[1]), (101, &[])], false),
            (&[(100, &[1, 2]), (101, &[4])], false),
            (&[(100, &[1, 2])], false),
            (&[(100, &[1, 2]), (102, &[])], false),
            (&[(100, &[1, 2]), (101, &[]), (102, &[])], false),
        ] {
            assert_eq!(only_more(&backends(before), &backends(after)), expected, "{after:?}");
        }
    }

    #[test]
    fn what_is_forgotten_follows_from_the_change() {
        use Standing::{Draining, Serving, Suspect};
        let network = NetworkId::from_random(1);
        let addr = IpAddr::from([10, 0, 1, 2]);
        let standings = |standing: Option<Standing>| {
            Standings::from([(network.clone(), standing.map(|s| (addr, s)).into_iter().collect())])
        };
        for (before, after, expected) in [
            (Some(Serving), Some(Serving), None),
            (Some(Serving), Some(Draining), Some(Cut::Endless)),
            (Some(Serving), Some(Suspect), Some(Cut::Unanswered)),
            (Some(Draining), Some(Suspect), Some(Cut::Unanswered)),
            (Some(Suspect), Some(Suspect), None),
            (Some(Suspect), Some(Draining), None),
            (Some(Suspect), Some(Serving), None),
            (Some(Suspect), None, Some(Cut::All)),
            (Some(Serving), None, Some(Cut::All)),
            (Some(Draining), Some(Draining), None),
            (Some(Draining), Some(Serving), None),
            (Some(Draining), None, Some(Cut::All)),
            (None, Some(Serving), None),
        ] {
            let cuts = cuts(&standings(before), &standings(after));
            let cut = cuts.get(&network).and_then(|addrs| addrs.get(&addr)).copied();
            assert_eq!(cut, expected, "{before:?} -> {after:?}");
        }
    }

    #[test]
    fn what_waits_to_be_forgotten_is_gathered() {
        use Standing::{Draining, Serving, Suspect};
        let network = NetworkId::from_random(1);
        let addr = |last: u8| IpAddr::from([10, 0, 1, last]);
        let standings = |of: &[(u8, Standing)]| {
            Standings::from([(network.clone(), of.iter().map(|(last, standing)| (addr(*last), *standing)).collect())])
        };
        let serving = standings(&[(2, Serving), (3, Serving), (4, Serving)]);
        let mut gathered = Cuts::new();
        let mut before = serving.clone();
        for (after, expected) in [
            (standings(&[(2, Draining), (3, Suspect), (4, Serving)]), &[(2, Cut::Endless), (3, Cut::Unanswered)][..]),
            (standings(&[(2, Suspect), (3, Suspect)]), &[(2, Cut::Unanswered), (3, Cut::Unanswered), (4, Cut::All)]),
            (standings(&[(2, Draining), (3, Serving)]), &[(2, Cut::Unanswered), (4, Cut::All)]),
            (standings(&[(3, Serving)]), &[(2, Cut::All), (4, Cut::All)]),
            (serving, &[]),
        ] {
            gather(&mut gathered, cuts(&before, &after), &after);
            let seen: Vec<_> = gathered.values().flatten().map(|(addr, cut)| (*addr, *cut)).collect();
            assert_eq!(seen, expected.iter().map(|(last, cut)| (addr(*last), *cut)).collect::<Vec<_>>(), "{after:?}");
            before = after;
        }
    }
}
