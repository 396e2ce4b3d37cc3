//! A user network on this node: a bridge between its tasks here and the tunnel to the others.
//!
//! Nothing is learned from traffic: who is where comes from managers, so that a lost packet cannot lose a neighbour.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use orch_model::assignment::{NetworkItem, Peer};

use super::{Context, guard};
use crate::{
    desired::Desired,
    names::{self, Mac},
    ns::{FdbEntry, Link, LinkKind, Neighbour, NsName, NsPlan, Vxlan},
    settings::disable_ipv6,
};

/// Where the kernel can hand what a bridge passes on to the rules of IP (it does so unasked once Docker has loaded that), a
/// sandbox has no such rules, and the way there costs a tenth of the requests a second.
const RULES_OF_IP: [&str; 3] = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"];

/// `None` while no task here is on the network, or while this node has no tunnel address and the network needs one.
pub(super) fn plan(context: &Context<'_>, network: &NetworkItem) -> Option<NsPlan> {
    context.local_ports(&network.id).next()?;
    let mtu = Some(context.mtu_of(network));
    let mut ns = NsPlan::default();
    if context.inputs.facts.filters_bridges {
        ns.ruleset = guard::bridge(context, network);
    }
    ns.sysctls.extend(RULES_OF_IP.map(|key| (format!("net/bridge/{key}"), "0".to_owned())));
    // It passes on what tasks send, and has nothing to say itself. Of neighbours by IPv6 the kernel hears only with it.
    if network.subnets.iter().all(IpNetwork::is_ipv4) {
        ns.sysctls.insert(disable_ipv6("all"), "1".to_owned());
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
    // Without the device that encrypts there is no way to other nodes: never in clear text.
    let Some((outside, local)) = way_out(context, network, own) else { return Some(ns) };
    let tunnel = Vxlan { vni: network.vni, port: network.data_path_port, local };
    ns.links.insert(names::VXLAN.to_owned(), port(Link { mtu, ..Link::up(LinkKind::Vxlan { tunnel, outside }) }));
    for endpoint in context.remote_endpoints(&network.id, own) {
        let Some(peer) = context.desired.peers.get(&endpoint.node) else { continue };
        let vtep = if network.is_encrypted() { Desired::inner_addr(peer).into() } else { peer.data_addr };
        let Some(mac) = Mac::of_all(endpoint.addresses.iter().copied()) else { continue };
        let link = || names::VXLAN.to_owned();
        let neighbour = |addr: &IpAddr| Neighbour { link: link(), addr: *addr, mac };
        ns.neighbours.extend(endpoint.addresses.iter().map(neighbour));
        ns.fdb.insert(FdbEntry { link: link(), mac, vtep, bridged: true });
    }
    Some(ns)
}

/// From which namespace the tunnel leads, and its address there.
fn way_out(context: &Context<'_>, network: &NetworkItem, own: &Peer) -> Option<(NsName, IpAddr)> {
    match (network.is_encrypted(), context.inputs.facts.encrypts) {
        (false, _) => Some((NsName::Host, own.data_addr)),
        (true, true) => Some((NsName::Crypt, Desired::inner_addr(own).into())),
        (true, false) => None,
    }
}

fn port(link: Link) -> Link {
    Link { master: Some(names::BRIDGE.to_owned()), ..link }
}
