//! The tasks' way out by IPv6, where the node itself has one: beside that by IPv4, on the same links.
//!
//! What begins outside does not come in by it: published ports are passed on by the daemon's own sockets.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Context, MAIN_TABLE, WayOutV6, guard, ingress::any_v6};
use crate::{
    desired::LocalTask,
    names::{self, GATEWAY_PREFIX, Mac},
    ns::{Neighbour, NsPlan, Route, Target},
    ruleset::{Chain, Direction, Expr, Family, Hook, HookKind, Is, Point, Rule, Side, Table, Version, Way},
    settings::{FORWARD_ALL, LEARNS_AND_FORWARDS, accept_ra_of, disable_ipv6},
};

/// `None`: `task` has none.
fn of_task<'a>(context: &Context<'a>, task: &LocalTask) -> Option<&'a WayOutV6> {
    context.inputs.way_out_v6.filter(|_| task.wants_way_out_v6(context.desired))
}

pub(super) fn is_for(context: &Context<'_>, task: &LocalTask) -> bool {
    of_task(context, task).is_some()
}

pub(super) fn add_to_task(context: &Context<'_>, task: &LocalTask, ns: &mut NsPlan) {
    // The kernel takes addresses of IPv6 from a link that goes down.
    let Some(way_out) = of_task(context, task).filter(|_| !task.down) else { return };
    let link = task.gateway_link();
    ns.addresses.insert((link.clone(), IpNetwork::from(address(way_out, task))));
    let target = Target::Via(router(context, way_out).ip(), link);
    ns.routes.insert(Route { table: MAIN_TABLE, destination: any_v6(), target });
}

pub(super) fn add_to_host(context: &Context<'_>, ns: &mut NsPlan) {
    let tasks: Vec<_> = context.inputs.tasks.values().filter(|task| of_task(context, task).is_some()).collect();
    let Some(way_out) = context.inputs.way_out_v6.filter(|_| !tasks.is_empty()) else {
        ns.ruleset.tables.extend(underlay_guard(context));
        return;
    };
    for task in &tasks {
        add_link(context, way_out, task, ns);
    }
    let learning = way_out.learning.iter().map(|link| (accept_ra_of(link), LEARNS_AND_FORWARDS.to_owned()));
    ns.sysctls.extend(learning);
    ns.sysctls.insert(FORWARD_ALL.to_owned(), "1".to_owned());
    ns.ruleset.tables.push(table(context, way_out, &tasks));
}

fn add_link(context: &Context<'_>, way_out: &WayOutV6, task: &LocalTask, ns: &mut NsPlan) {
    let (name, addr) = (names::gateway_port(&task.id), address(way_out, task));
    ns.sysctls.insert(disable_ipv6(&name), "0".to_owned());
    ns.sysctls.insert(accept_ra_of(&name), "0".to_owned());
    if task.down {
        return;
    }
    ns.addresses.insert((name.clone(), router(context, way_out)));
    ns.routes.insert(Route { table: MAIN_TABLE, destination: addr.into(), target: Target::Link(name.clone()) });
    ns.neighbours.insert(Neighbour { link: name, addr, mac: mac(task) });
}

fn router(context: &Context<'_>, way_out: &WayOutV6) -> IpNetwork {
    IpNetwork::from(IpAddr::V6(way_out.gateway.beside(context.inputs.facts.gateway.router().ip())))
}

fn address(way_out: &WayOutV6, task: &LocalTask) -> IpAddr {
    way_out.gateway.beside(task.gateway_addr).into()
}

fn mac(task: &LocalTask) -> Mac {
    Mac::of(task.gateway_addr.into())
}

/// Where tunnels go by IPv6, strangers are kept from them also without a task that goes out by it.
fn underlay_guard(context: &Context<'_>) -> Option<Table> {
    context.desired.peers.values().any(|peer| peer.data_addr.is_ipv6()).then(|| {
        let (sets, guard) = guard::host(context, Version::V6, &[]);
        Table { family: Family::V6, name: "orch_host", sets, chains: vec![guard] }
    })
}

fn table(context: &Context<'_>, way_out: &WayOutV6, tasks: &[&LocalTask]) -> Table {
    let to_task = |is| Expr::Link(Way::Out, is, format!("{GATEWAY_PREFIX}*"));
    let from_tasks = Expr::Addr(Side::Source, Is::Yes, way_out.gateway.subnet().into());
    let masquerade = Rule(vec![from_tasks, to_task(Is::No), Expr::Masquerade]);
    let forward = vec![
        Rule(vec![to_task(Is::Yes), Expr::Direction(Direction::Reply), Expr::Accept]),
        Rule(vec![to_task(Is::Yes), Expr::Drop]),
    ];
    // By its address on the link a task asks for the node's.
    let addrs = |task: &&LocalTask| [address(way_out, task), guard::link_local(mac(task)).into()];
    let owned: Vec<_> =
        tasks.iter().flat_map(|task| addrs(task).map(|addr| (names::gateway_port(&task.id), addr))).collect();
    let (sets, guard) = guard::host(context, Version::V6, &owned);
    let chains = vec![
        Chain::at("postrouting", Hook::new(HookKind::Nat, Point::Postrouting, 100), vec![masquerade]),
        Chain::at("forward", Hook::new(HookKind::Filter, Point::Forward, 0), forward),
        guard,
    ];
    Table { family: Family::V6, name: "orch_host", sets, chains }
}
