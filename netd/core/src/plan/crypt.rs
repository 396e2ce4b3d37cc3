//! Where the tunnels of encrypted networks lead out: a namespace with a WireGuard device and no other link.
//!
//! Their VXLAN devices are made in it, so that their packets have no way but through WireGuard: rules that were flushed, a
//! key that is not known or a daemon that is dead can lose packets, and never send them in clear text. What WireGuard has
//! encrypted leaves from the node's own namespace, where the device was made.
//!
//! A node corresponds with those that have tasks on an encrypted network that it has tasks on too, and with nobody else.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnetwork::{IpNetwork, Ipv4Network};
use orch_model::{assignment::NetworkItem, network::ENCRYPTED_PORT, node::TunnelKey};

use super::{Context, MAIN_TABLE};
use crate::{
    desired::{Desired, INNER_NETWORK, INNER_PREFIX},
    names,
    ns::{Correspondent, Link, LinkKind, NsPlan, Route, Target, WireGuard},
    settings::disable_ipv6,
};

/// Outer headers of an encrypted packet over IPv4: IP 20, UDP 8, WireGuard 32.
const OVERHEAD_V4: u32 = 60;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 80;

/// `None`: this kernel cannot encrypt. The device is there from the start, because what others must know of it is its key,
/// and comes up with the first encrypted network: until then nothing listens.
pub(super) fn plan(context: &Context<'_>) -> Option<NsPlan> {
    context.inputs.facts.encrypts.then_some(())?;
    let own = context.desired.own_peer();
    let up = own.is_some() && networks(context).next().is_some();
    let mtu = own.map(|_| mtu(context));
    let link = || names::WIREGUARD.to_owned();
    let mut ns = NsPlan::default();
    ns.links.insert("lo".to_owned(), Link::up(LinkKind::Loopback));
    ns.links.insert(link(), Link { mtu, up, ..Link::up(LinkKind::WireGuard) });
    if let Some(own) = own {
        ns.addresses.insert((link(), IpAddr::V4(Desired::inner_addr(own)).into()));
    }
    if up {
        let inside = Ipv4Network::new(INNER_NETWORK, INNER_PREFIX).unwrap_or_else(|_| INNER_NETWORK.into());
        let destination = IpNetwork::V4(inside);
        ns.routes.insert(Route { table: MAIN_TABLE, destination, target: Target::Link(link()) });
    }
    // Nobody passes through to a third node.
    ns.sysctls.insert("net/ipv4/ip_forward".to_owned(), "0".to_owned());
    ns.sysctls.insert(disable_ipv6("all"), "1".to_owned());
    ns.wireguard = Some(WireGuard { port: ENCRYPTED_PORT, peers: correspondents(context) });
    Some(ns)
}

/// What fits through the device.
pub(super) fn mtu(context: &Context<'_>) -> u32 {
    let overhead = match context.desired.own_peer().map(|peer| peer.data_addr) {
        Some(IpAddr::V6(_)) => OVERHEAD_V6,
        Some(IpAddr::V4(_)) | None => OVERHEAD_V4,
    };
    context.inputs.facts.underlay_mtu.saturating_sub(overhead)
}

/// What is wrong with encrypted networks that tasks here are on.
pub(super) fn problems(context: &Context<'_>) -> Vec<String> {
    let encrypts = context.inputs.facts.encrypts;
    let cut_off = |network: &NetworkItem| {
        format!(
            "network {} is encrypted and this node's kernel has no WireGuard: containers here reach those of other \
             nodes on it no more; load the module and start orch again on this node (it looks for WireGuard when it \
             starts), or move them",
            network.name
        )
    };
    networks(context).filter(|_| !encrypts).map(cut_off).collect()
}

/// Encrypted networks that tasks here are on.
fn networks<'a>(context: &'a Context<'_>) -> impl Iterator<Item = &'a NetworkItem> {
    let encrypted = context.desired.networks.values().filter(|network| network.is_encrypted());
    encrypted.filter(|network| context.local_ports(&network.id).next().is_some())
}

fn correspondents(context: &Context<'_>) -> BTreeMap<TunnelKey, Correspondent> {
    let Some(own) = context.desired.own_peer() else { return BTreeMap::new() };
    let endpoints = networks(context).flat_map(|network| context.remote_endpoints(&network.id, own));
    let peers = endpoints.filter_map(|endpoint| context.desired.peers.get(&endpoint.node));
    peers
        .filter_map(|peer| {
            let endpoint = SocketAddr::new(peer.data_addr, ENCRYPTED_PORT);
            Some((peer.tunnel_key?, Correspondent { endpoint, inner: Desired::inner_addr(peer) }))
        })
        .collect()
}
