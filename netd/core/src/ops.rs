//! The steps from what was observed in a namespace to what should be in it.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use orch_model::node::TunnelKey;

use crate::{
    names::{Mac, WIREGUARD},
    ns::{
        Correspondent, FdbEntry, Link, LinkKind, Neighbour, NsName, NsPlan, Observed, ObservedLink, ObservedWireGuard,
        PolicyRule, Route, Target,
    },
    ruleset::Ruleset,
    settings,
};

/// One step inside one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetOp {
    DeleteRule(PolicyRule),
    DeleteRoute(Route),
    DeleteFdb(FdbEntry),
    DeleteNeighbour(Neighbour),
    DeleteAddress(String, IpNetwork),
    DeleteLink(String),
    SetSysctl {
        path: String,
        value: String,
    },
    CreateLink {
        name: String,
        link: Link,
    },
    SetLink {
        name: String,
        change: LinkChange,
    },
    AddAddress(String, IpNetwork),
    SetUp {
        name: String,
        up: bool,
    },
    AddRoute(Route),
    AddRule(PolicyRule),
    SetNeighbour(Neighbour),
    SetFdb(FdbEntry),
    /// Gives the WireGuard device a private key that nobody else has.
    MakeKey(String),
    SetPort {
        link: String,
        port: u16,
    },
    SetCorrespondent {
        link: String,
        key: TunnelKey,
        correspondent: Correspondent,
    },
    ForgetCorrespondent {
        link: String,
        key: TunnelKey,
    },
    LoadRuleset {
        /// What is there, where that is known.
        known: Option<Ruleset>,
        wanted: Ruleset,
    },
}

/// What is to be changed of a link; `None`: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkChange {
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub master: Option<String>,
}

/// The steps, in an order in which each finds what it needs: what is in the way goes first; links go down before anything
/// else is done (a dead task must not be reached a moment longer) and up only when they are complete.
#[must_use]
pub fn steps(ns: &NsName, plan: &NsPlan, observed: &Observed) -> Vec<NetOp> {
    let remade = remade_links(ns, plan, observed);
    let kept = |link: &str| observed.links.contains_key(link) && !remade.contains(link);
    let mut ops = Vec::new();
    ops.extend(downs(plan, observed));
    ops.extend(removals(ns, plan, observed, &remade));
    let (early, late) = sysctls(plan, observed, &kept);
    ops.extend(early);
    for (name, link) in &plan.links {
        if !kept(name) && !matches!(link.kind, LinkKind::Loopback | LinkKind::VethPeer) {
            ops.push(NetOp::CreateLink { name: name.clone(), link: link.clone() });
        }
    }
    for (name, link) in &plan.links {
        let seen = observed.links.get(name).filter(|_| kept(name));
        let change = change(link, seen);
        if change != LinkChange::default() {
            ops.push(NetOp::SetLink { name: name.clone(), change });
        }
    }
    ops.extend(late);
    let lost = |link: &str| remade.contains(link);
    ops.extend(
        plan.addresses
            .iter()
            .filter(|a| lost(&a.0) || !observed.addresses.contains(*a))
            .map(|(link, addr)| NetOp::AddAddress(link.clone(), *addr)),
    );
    ops.extend(wireguard(plan, observed));
    ops.extend(ups(plan, observed, &remade));
    ops.extend(additions(plan, observed, &remade));
    ops
}

/// Links that are there and cannot stay as they are.
fn remade_links(ns: &NsName, plan: &NsPlan, observed: &Observed) -> BTreeSet<String> {
    let wrong = |name: &String, seen: &ObservedLink| match plan.links.get(name).map(|link| &link.kind) {
        Some(LinkKind::Vxlan { tunnel, .. }) => seen.vxlan != Some(*tunnel),
        Some(
            LinkKind::Loopback | LinkKind::Bridge | LinkKind::WireGuard | LinkKind::Veth { .. } | LinkKind::VethPeer,
        ) => false,
        None => ns.may_remove(name),
    };
    observed.links.iter().filter(|(name, seen)| wrong(name, seen)).map(|(name, _)| name.clone()).collect()
}

/// Who may no longer write goes before who may: an address inside is one node's at a time.
fn wireguard(plan: &NsPlan, observed: &Observed) -> Vec<NetOp> {
    let Some(wanted) = &plan.wireguard else { return Vec::new() };
    let new = ObservedWireGuard::default();
    let seen = observed.wireguard.as_ref().unwrap_or(&new);
    let link = || WIREGUARD.to_owned();
    let mut ops = Vec::new();
    if seen.key.is_none() {
        ops.push(NetOp::MakeKey(link()));
    }
    if seen.knows.port != wanted.port {
        ops.push(NetOp::SetPort { link: link(), port: wanted.port });
    }
    let gone = seen.knows.peers.keys().filter(|key| !wanted.peers.contains_key(key));
    ops.extend(gone.map(|key| NetOp::ForgetCorrespondent { link: link(), key: *key }));
    let changed = wanted.peers.iter().filter(|(key, wanted)| seen.knows.peers.get(key) != Some(wanted));
    ops.extend(changed.map(|(key, c)| NetOp::SetCorrespondent { link: link(), key: *key, correspondent: *c }));
    ops
}

fn downs(plan: &NsPlan, observed: &Observed) -> Vec<NetOp> {
    let is_up = |name: &String| observed.links.get(name).is_some_and(|seen| seen.up);
    plan.links
        .iter()
        .filter(|(name, link)| !link.up && is_up(name))
        .map(|(name, _)| NetOp::SetUp { name: name.clone(), up: false })
        .collect()
}

fn ups(plan: &NsPlan, observed: &Observed, remade: &BTreeSet<String>) -> Vec<NetOp> {
    let is_up = |name: &String| !remade.contains(name) && observed.links.get(name).is_some_and(|seen| seen.up);
    plan.links
        .iter()
        .filter(|(name, link)| link.up && !is_up(name))
        .map(|(name, _)| NetOp::SetUp { name: name.clone(), up: true })
        .collect()
}

/// What is there, not wanted and the daemon's own. What belongs to a link that goes, and routes out
/// of one that goes down, need no step of their own.
fn removals(ns: &NsName, plan: &NsPlan, observed: &Observed, remade: &BTreeSet<String>) -> Vec<NetOp> {
    let stays = |link: &str| !remade.contains(link);
    let mut ops = Vec::new();
    ops.extend(observed.rules.difference(&plan.rules).cloned().map(NetOp::DeleteRule));
    let goes_down = |link: &str| plan.links.get(link).is_some_and(|link| !link.up);
    let route_stays = |route: &&Route| match &route.target {
        Target::Link(link) | Target::Via(_, link) => stays(link) && !goes_down(link),
        Target::Blackhole => true,
    };
    ops.extend(observed.routes.difference(&plan.routes).filter(route_stays).cloned().map(NetOp::DeleteRoute));
    // On the node others have entries of their own, at their own links.
    let of_ours = |link: &str| stays(link) && (*ns != NsName::Host || ns.may_remove(link));
    ops.extend(observed.fdb.difference(&plan.fdb).filter(|f| of_ours(&f.link)).cloned().map(NetOp::DeleteFdb));
    let neighbours = observed.neighbours.difference(&plan.neighbours).filter(|n| of_ours(&n.link));
    ops.extend(neighbours.cloned().map(NetOp::DeleteNeighbour));
    for (link, addr) in observed.addresses.difference(&plan.addresses) {
        if stays(link) && plan.links.contains_key(link) && is_ours(ns, link, *addr) {
            ops.push(NetOp::DeleteAddress(link.clone(), *addr));
        }
    }
    ops.extend(remade.iter().cloned().map(NetOp::DeleteLink));
    ops
}

/// The kernel gives links addresses too, and loopback has its own.
fn is_ours(ns: &NsName, link: &str, addr: IpNetwork) -> bool {
    let kernels = match addr {
        IpNetwork::V4(v4) => v4.ip().is_loopback(),
        IpNetwork::V6(v6) => v6.ip().is_loopback() || v6.ip().is_unicast_link_local(),
    };
    !kernels && (*ns != NsName::Host || ns.may_remove(link))
}

/// Settings of the namespace come before links are made (they take them over), settings of a link after. To forward comes
/// last: the kernel forgets routes that others told then, unless it has been told before to go on learning.
fn sysctls(plan: &NsPlan, observed: &Observed, kept: &dyn Fn(&str) -> bool) -> (Vec<NetOp>, Vec<NetOp>) {
    let link_of = |path: &str| path.split('/').nth(3).filter(|part| plan.links.contains_key(*part)).map(str::to_owned);
    let wrong = |path: &str, value: &String| {
        let lost = link_of(path).is_some_and(|link| !kept(&link));
        lost || observed.sysctls.get(path) != Some(value)
    };
    let (mut early, late): (Vec<_>, Vec<_>) = plan
        .sysctls
        .iter()
        .filter(|(path, value)| wrong(path, value))
        .map(|(path, value)| (link_of(path), NetOp::SetSysctl { path: path.clone(), value: value.clone() }))
        .partition(|(link, _)| link.is_none());
    early.sort_by_key(|(_, op)| matches!(op, NetOp::SetSysctl { path, .. } if settings::forwards(path)));
    let ops = |settings: Vec<_>| settings.into_iter().map(|(_, op)| op).collect();
    (ops(early), ops(late))
}

fn change(link: &Link, seen: Option<&ObservedLink>) -> LinkChange {
    // A new link is made with its MAC and MTU; the other end of a pair is not.
    let made_complete = seen.is_none() && link.kind != LinkKind::VethPeer;
    LinkChange {
        mac: link.mac.filter(|mac| !made_complete && seen.and_then(|s| s.mac) != Some(*mac)),
        mtu: link.mtu.filter(|mtu| !made_complete && seen.map(|s| s.mtu) != Some(*mtu)),
        master: link.master.clone().filter(|master| seen.and_then(|s| s.master.as_ref()) != Some(master)),
    }
}

fn additions(plan: &NsPlan, observed: &Observed, remade: &BTreeSet<String>) -> Vec<NetOp> {
    let lost = |link: &str| remade.contains(link);
    let route_lost = |route: &Route| match &route.target {
        Target::Link(link) | Target::Via(_, link) => lost(link),
        Target::Blackhole => false,
    };
    // Routes out of a link that is down do not exist, and cannot be made.
    let possible = |route: &Route| match &route.target {
        Target::Link(link) | Target::Via(_, link) => plan.links.get(link).is_none_or(|l| l.up),
        Target::Blackhole => true,
    };
    // Neighbours in a subnet come first among routes: `Target::Link` sorts before `Target::Via` only within one
    // destination, so two passes.
    let (direct, via): (Vec<_>, Vec<_>) = plan
        .routes
        .iter()
        .filter(|r| possible(r) && (route_lost(r) || !observed.routes.contains(*r)))
        .cloned()
        .partition(|r| !matches!(r.target, Target::Via(..)));
    let mut ops: Vec<_> = direct.into_iter().chain(via).map(NetOp::AddRoute).collect();
    ops.extend(plan.rules.difference(&observed.rules).cloned().map(NetOp::AddRule));
    ops.extend(
        plan.neighbours
            .iter()
            .filter(|n| lost(&n.link) || !observed.neighbours.contains(*n))
            .cloned()
            .map(NetOp::SetNeighbour),
    );
    ops.extend(plan.fdb.iter().filter(|f| lost(&f.link) || !observed.fdb.contains(*f)).cloned().map(NetOp::SetFdb));
    // A namespace that wants rules never stops wanting some.
    if !plan.ruleset.tables.is_empty() && observed.ruleset.as_ref() != Some(&plan.ruleset) {
        ops.push(NetOp::LoadRuleset { known: observed.ruleset.clone(), wanted: plan.ruleset.clone() });
    }
    ops
}
