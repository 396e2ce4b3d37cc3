//! A user network on this node: a bridge between its tasks here and the tunnel to the others.
//!
//! Nothing is learned from traffic: who is where comes from managers, so that a lost packet cannot lose a neighbour.

use std::net::IpAddr;

use orch_model::assignment::NetworkItem;

use super::{Context, guard};
use crate::{
    names::{self, Mac},
    ns::{FdbEntry, Link, LinkKind, Neighbour, NsName, NsPlan, Vxlan},
};

/// `None` while no task here is on the network, or while this node has no tunnel address and the network needs one.
pub(super) fn plan(context: &Context<'_>, network: &NetworkItem) -> Option<NsPlan> {
    context.local_ports(&network.id).next()?;
    let mtu = Some(context.mtu_of(network));
    let mut ns = NsPlan::default();
    if context.inputs.facts.filters_bridges {
        ns.ruleset = guard::bridge(context, network);
    }
    ns.links.insert("lo".to_owned(), Link::up(LinkKind::Loopback));
    ns.links.insert(names::BRIDGE.to_owned(), Link { mtu, ..Link::up(LinkKind::Bridge) });
    for (task, peer_name) in context.local_ports(&network.id) {
        let kind = LinkKind::Veth { peer_ns: NsName::Task(task.id.clone()), peer_name };
        ns.links.insert(names::task_port(&task.id), port(Link { mtu, up: !task.down, ..Link::up(kind) }));
    }
    if network.is_local() {
        return Some(ns);
    }
    let own = context.desired.own_peer()?;
    let tunnel = Vxlan { vni: network.vni, port: network.data_path_port, local: own.data_addr };
    ns.links.insert(names::VXLAN.to_owned(), port(Link { mtu, ..Link::up(LinkKind::Vxlan(tunnel)) }));
    for endpoint in context.remote_endpoints(&network.id, own) {
        let Some(peer) = context.desired.peers.get(&endpoint.node) else { continue };
        let Some(mac) = Mac::of_all(endpoint.addresses.iter().copied()) else { continue };
        let link = || names::VXLAN.to_owned();
        let neighbour = |addr: &IpAddr| Neighbour { link: link(), addr: *addr, mac };
        ns.neighbours.extend(endpoint.addresses.iter().map(neighbour));
        ns.fdb.insert(FdbEntry { link: link(), mac, vtep: peer.data_addr, bridged: true });
    }
    Some(ns)
}

fn port(link: Link) -> Link {
    Link { master: Some(names::BRIDGE.to_owned()), ..link }
}
