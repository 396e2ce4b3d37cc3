//! Carrying out the steps leads to what was planned, from wherever one starts, and touches nothing of others.

use std::collections::BTreeMap;

use orch_model::{assignment::Assignment, node::TunnelKey};
use orch_netd_core::{
    names::Mac,
    ns::{FdbEntry, LinkKind, Neighbour, NsName, Observed, ObservedLink, ObservedWireGuard, Target},
    ops::{NetOp, steps},
    plan::Plan,
};

use crate::{random::seeded, scenario::Scenario};

const SEEDS: u64 = 300;

type End = (NsName, String);

/// All namespaces of a node, and which links are two ends of one pair.
#[derive(Default)]
struct World {
    namespaces: BTreeMap<NsName, Observed>,
    pairs: BTreeMap<End, End>,
}

impl World {
    fn of(&mut self, ns: &NsName) -> &mut Observed {
        self.namespaces.entry(ns.clone()).or_default()
    }

    /// With all that belongs to it.
    fn lose_link(&mut self, ns: &NsName, name: &str) {
        let observed = self.of(ns);
        observed.links.remove(name);
        forget_routes(observed, name);
        observed.addresses.retain(|(link, _)| link != name);
        observed.neighbours.retain(|n| n.link != name);
        observed.fdb.retain(|f| f.link != name);
        observed.sysctls.retain(|path, _| !path.contains(&format!("/{name}/")));
    }

    /// With its other end.
    fn delete_link(&mut self, ns: &NsName, name: &str) {
        if let Some((peer_ns, peer_name)) = self.pairs.remove(&(ns.clone(), name.to_owned())) {
            self.pairs.remove(&(peer_ns.clone(), peer_name.clone()));
            self.lose_link(&peer_ns, &peer_name);
        }
        self.lose_link(ns, name);
    }
}

/// What others have on the node.
fn foreign() -> Observed {
    let mut host = Observed::default();
    host.links.insert("eth0".to_owned(), ObservedLink { up: true, mtu: 1500, ..made() });
    host.links.insert("docker0".to_owned(), made());
    host.addresses.insert(("eth0".to_owned(), "192.168.9.1/24".parse().unwrap()));
    host.links.insert("flannel.1".to_owned(), ObservedLink { up: true, ..made() });
    let (mac, vtep) = (Mac([2, 0, 0, 0, 0, 7]), "192.168.9.7".parse().unwrap());
    host.fdb.insert(FdbEntry { link: "flannel.1".to_owned(), mac, vtep, bridged: false });
    host.neighbours.insert(Neighbour { link: "flannel.1".to_owned(), addr: "10.244.1.0".parse().unwrap(), mac });
    host.neighbours.insert(Neighbour { link: "eth0".to_owned(), addr: vtep, mac });
    host
}

fn made() -> ObservedLink {
    ObservedLink { vxlan: None, mac: None, mtu: 1500, master: None, up: false, ended: false }
}

/// A kernel, as far as the steps concern it.
fn carry_out(ns: &NsName, op: NetOp, world: &mut World) {
    if let NetOp::DeleteLink(name) = &op {
        assert!(world.of(ns).links.contains_key(name));
        return world.delete_link(ns, name);
    }
    if let NetOp::CreateLink { name, link } = &op
        && let LinkKind::Veth { peer_ns, peer_name } = &link.kind
    {
        let previous = world.of(peer_ns).links.insert(peer_name.clone(), made());
        assert_eq!(previous, None, "{peer_name} of {peer_ns} was there already");
        let (here, there) = ((ns.clone(), name.clone()), (peer_ns.clone(), peer_name.clone()));
        world.pairs.insert(here.clone(), there.clone());
        world.pairs.insert(there, here);
    }
    let observed = world.of(ns);
    match op {
        NetOp::CreateLink { name, link } => {
            let vxlan = if let LinkKind::Vxlan { tunnel, .. } = link.kind { Some(tunnel) } else { None };
            if link.kind == LinkKind::WireGuard {
                observed.wireguard = Some(ObservedWireGuard::default());
            }
            let mtu = link.mtu.unwrap_or(1500);
            let previous = observed.links.insert(name, ObservedLink { vxlan, mac: link.mac, mtu, ..made() });
            assert_eq!(previous, None, "made twice");
        }
        NetOp::DeleteLink(_) => {}
        NetOp::SetLink { name, change } => {
            let link = observed.links.get_mut(&name).unwrap();
            link.mac = change.mac.or(link.mac);
            link.mtu = change.mtu.unwrap_or(link.mtu);
            link.master = change.master.or(link.master.take());
        }
        NetOp::SetUp { name, up } => {
            observed.links.get_mut(&name).unwrap().up = up;
            if !up {
                forget_routes(observed, &name);
            }
        }
        NetOp::AddAddress(link, addr) => assert!(observed.addresses.insert((link, addr))),
        NetOp::DeleteAddress(link, addr) => assert!(observed.addresses.remove(&(link, addr))),
        NetOp::AddRoute(route) => {
            if let Target::Link(link) | Target::Via(_, link) = &route.target {
                assert!(observed.links[link].up, "a route out of {link}, which is down");
            }
            // As `replace` does.
            observed.routes.retain(|r| (r.table, r.destination) != (route.table, route.destination));
            observed.routes.insert(route);
        }
        NetOp::DeleteRoute(route) => assert!(observed.routes.remove(&route)),
        NetOp::AddRule(rule) => assert!(observed.rules.insert(rule)),
        NetOp::DeleteRule(rule) => assert!(observed.rules.remove(&rule)),
        NetOp::SetNeighbour(n) => drop(observed.neighbours.insert(n)),
        NetOp::DeleteNeighbour(n) => assert!(observed.neighbours.remove(&n)),
        NetOp::SetFdb(entry) => drop(observed.fdb.insert(entry)),
        NetOp::DeleteFdb(entry) => assert!(observed.fdb.remove(&entry)),
        NetOp::SetSysctl { path, value } => drop(observed.sysctls.insert(path, value)),
        NetOp::LoadRuleset { wanted, .. } => observed.ruleset = Some(wanted),
        NetOp::MakeKey(_) => {
            let key = observed.wireguard.as_mut().unwrap().key.replace(TunnelKey([7; 32]));
            assert_eq!(key, None, "others would have to learn another key");
        }
        NetOp::SetPort { port, .. } => observed.wireguard.as_mut().unwrap().knows.port = port,
        NetOp::SetCorrespondent { key, correspondent, .. } => {
            let peers = &mut observed.wireguard.as_mut().unwrap().knows.peers;
            assert!(!peers.iter().any(|(k, c)| *k != key && c.inner == correspondent.inner), "one address, two keys");
            peers.insert(key, correspondent);
        }
        NetOp::ForgetCorrespondent { key, .. } => {
            assert!(observed.wireguard.as_mut().unwrap().knows.peers.remove(&key).is_some());
        }
    }
}

fn forget_routes(observed: &mut Observed, link: &str) {
    let other = |target: &Target| !matches!(target, Target::Link(l) | Target::Via(_, l) if l == link);
    observed.routes.retain(|route| other(&route.target));
}

/// What the daemon does in a pass.
fn pass(plan: &Plan, world: &mut World) {
    for (name, wanted) in &plan.namespaces {
        let lo = ObservedLink { up: true, ..made() };
        world.of(name).links.entry("lo".to_owned()).or_insert(lo);
        for op in steps(name, wanted, &world.of(name).clone()) {
            carry_out(name, op, world);
        }
    }
    let unwanted: Vec<_> = world.namespaces.keys().filter(|ns| !plan.namespaces.contains_key(ns)).cloned().collect();
    for ns in unwanted {
        let links: Vec<_> = world.of(&ns).links.keys().cloned().collect();
        links.iter().for_each(|link| world.delete_link(&ns, link));
        world.namespaces.remove(&ns);
    }
}

fn assert_nothing_to_do(plan: &Plan, world: &World, when: &str) {
    for (name, wanted) in &plan.namespaces {
        assert_eq!(steps(name, wanted, &world.namespaces[name]), vec![], "{when}, {name}");
    }
}

fn empty_world() -> World {
    World { namespaces: BTreeMap::from([(NsName::Host, foreign())]), ..World::default() }
}

#[test]
fn after_the_steps_there_is_nothing_left_to_do() {
    for seed in 0..SEEDS {
        let (first, second) = seeded(seed);
        let mut world = empty_world();
        for (number, plan) in [first.plan(), second.plan(), first.plan()].iter().enumerate() {
            pass(plan, &mut world);
            assert_nothing_to_do(plan, &world, &format!("seed {seed}, plan {number}"));
            let host = &world.namespaces[&NsName::Host];
            for (link, seen) in foreign().links {
                assert_eq!(host.links[&link], seen, "seed {seed}: {link} is someone else's");
            }
            assert!(host.addresses.is_superset(&foreign().addresses), "seed {seed}");
            assert!(host.fdb.is_superset(&foreign().fdb), "seed {seed}");
            assert!(host.neighbours.is_superset(&foreign().neighbours), "seed {seed}");
        }
    }
}

/// To forward makes the kernel forget what links have learnt that are not told to go on.
#[test]
fn links_go_on_learning_before_the_node_forwards() {
    let plan = Scenario::new(1).network(1, false).task(1, &[1], vec![], false).dual_stack(1).way_out_v6().plan();
    let ops = steps(&NsName::Host, &plan.namespaces[&NsName::Host], &foreign());
    let place = |wanted: &str| ops.iter().position(|op| matches!(op, NetOp::SetSysctl { path, .. } if path == wanted));
    let (learns, forwards) = (place("net/ipv6/conf/eth0/accept_ra"), place("net/ipv6/conf/all/forwarding"));
    assert!(learns.is_some() && learns < forwards, "{ops:?}");
}

/// A node that was started anew has another key: whoever had its address inside loses it first.
#[test]
fn a_node_with_a_new_key_is_told_apart_from_itself() {
    let scenario = || Scenario::new(2).network(1, false).endpoint(1, 2, 1, 2, true).task(1, &[1], vec![], false);
    let before = scenario().encrypted(1, &[]);
    let mut after = scenario().encrypted(1, &[]);
    if let Some(Assignment::Peer(peer)) = after.items.get_mut(1) {
        peer.tunnel_key = Some(TunnelKey([99; 32]));
    }
    let mut world = empty_world();
    pass(&before.plan(), &mut world);
    let ops = steps(&NsName::Crypt, &after.plan().namespaces[&NsName::Crypt], &world.namespaces[&NsName::Crypt]);
    let keys: Vec<_> = ops
        .iter()
        .map(|op| match op {
            NetOp::ForgetCorrespondent { key, .. } => ("forget", key.0[0]),
            NetOp::SetCorrespondent { key, .. } => ("set", key.0[0]),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(keys, [("forget", 2), ("set", 99)]);
}

#[test]
fn a_dead_tasks_link_goes_down_before_anything_else() {
    let task = |down| Scenario::new(1).network(1, false).task(1, &[1], vec![], down).plan();
    let alive = task(false);
    let mut world = empty_world();
    pass(&alive, &mut world);
    let dead = task(true);
    let name = NsName::Sandbox(crate::scenario::net_id(1));
    let ops = steps(&name, &dead.namespaces[&name], &world.namespaces[&name]);
    assert_eq!(ops, [NetOp::SetUp { name: "t-0000000001".to_owned(), up: false }]);
}

#[test]
fn links_taken_down_for_good_are_told_from_links_that_somebody_took_down() {
    let plan = |down| Scenario::new(1).network(1, false).network(2, false).task(1, &[1, 2], vec![], down).plan();
    let alive = plan(false);
    let mut world = empty_world();
    pass(&alive, &mut world);
    let (name, wanted) = alive.namespaces.iter().find(|(name, _)| matches!(name, NsName::Task(_))).unwrap();
    let links: Vec<&String> = wanted.links.keys().filter(|link| *link != "lo").collect();
    let seen = |ended: &[bool]| {
        let mut observed = world.namespaces[name].clone();
        for (link, ended) in links.iter().zip(ended) {
            let link = observed.links.get_mut(*link).unwrap();
            (link.up, link.ended) = (false, *ended);
        }
        observed
    };
    assert_eq!(links.len(), 3, "two networks and the way out");
    for (ended, expected) in [
        (&[true, true, true][..], true),
        (&[false, true, false], true),
        (&[true], true),
        (&[false, false, false], false),
        (&[], false),
    ] {
        assert_eq!(seen(ended).has_ended(wanted), expected, "{ended:?}");
    }
    assert!(!Observed::default().has_ended(wanted), "where nothing is, nothing has ended");
    let dead = plan(true);
    assert!(!seen(&[true; 3]).has_ended(&dead.namespaces[name]), "known already");
}
