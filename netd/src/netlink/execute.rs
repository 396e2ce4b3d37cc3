//! Carrying out steps.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt as _;
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use orch_netd_core::{
    names::HOST_PREFIX,
    ns::{FdbEntry, Link, LinkKind, MARK_MASK, Neighbour, NsName, PolicyRule, Route, Selector, Target, Vxlan},
    ops::{LinkChange, NetOp},
};
use orch_proto::silence;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, LinkWireguard, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags},
        link::{InfoBridge, InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{
    Namespaces, Session, connected, io_error,
    observe::{has_nothing_to_set, setting},
    protocol,
};
use crate::{netns::NetNs, nfnetlink::Socket, nft, wireguard::Device};

/// Entries of the forwarding database that neither age nor are the bridge's own address (NUD_NOARP | NUD_REACHABLE).
const FDB_STATIC: u16 = 0x40 | 0x02;

/// The group of links that are about to go; an arbitrary number.
const GROUP_TO_DELETE: u32 = 0x6f72_6368;

fn deleted_link(op: &NetOp) -> Option<&str> {
    match op {
        NetOp::DeleteLink(name) => Some(name),
        _ => None,
    }
}

impl Session {
    /// Carries out `ops` in order. A step that fails does not stop the others; the first failure is reported.
    pub(crate) fn execute(&self, ops: &[NetOp], peers: &Namespaces, netfilter: &Socket) -> io::Result<()> {
        let mut first_error = None;
        let mut indexes = Indexes { handle: &self.here, known: BTreeMap::new() };
        crate::metrics::OPERATIONS.inc_by(ops.len() as u64);
        // Not when its turn comes but together: the kernel waits for a grace period per call, not per link.
        let deleted: Vec<&str> = ops.iter().filter_map(deleted_link).collect();
        let together = deleted.len() > 1 && self.runtime.block_on(self.delete_together(&deleted)).is_ok();
        for op in ops.iter().filter(|op| !(together && deleted_link(op).is_some())) {
            let result = match op {
                NetOp::LoadRuleset { known, wanted } => nft::load(netfilter, known.as_ref(), wanted),
                NetOp::SetSysctl { path, value } => set_sysctl(path, value),
                NetOp::MakeKey(link) => Device::open(link).and_then(|device| device.make_key()),
                NetOp::SetPort { link, port } => Device::open(link).and_then(|device| device.set_port(*port)),
                NetOp::SetCorrespondent { link, key, correspondent } => {
                    Device::open(link).and_then(|device| device.set_correspondent(key, correspondent))
                }
                NetOp::ForgetCorrespondent { link, key } => {
                    Device::open(link).and_then(|device| device.forget_correspondent(key))
                }
                _ => self.runtime.block_on(self.netlink(op, peers, &mut indexes)),
            };
            if let Err(error) = result {
                crate::metrics::FAILED_OPERATIONS.inc();
                tracing::debug!(?op, %error, "a step failed");
                let described = io::Error::new(error.kind(), format!("{}: {error}", describe(op)));
                first_error.get_or_insert(described);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn netlink(&self, op: &NetOp, peers: &Namespaces, indexes: &mut Indexes<'_>) -> io::Result<()> {
        let here = &self.here;
        match op {
            NetOp::LoadRuleset { .. }
            | NetOp::SetSysctl { .. }
            | NetOp::MakeKey(_)
            | NetOp::SetPort { .. }
            | NetOp::SetCorrespondent { .. }
            | NetOp::ForgetCorrespondent { .. } => Ok(()),
            NetOp::CreateLink { name, link } => self.create(name, link, peers).await,
            NetOp::SetLink { name, change } => set_link(here, name, change, indexes).await,
            NetOp::SetUp { name, up } => {
                let message = LinkUnspec::new_with_index(indexes.get(name).await?);
                let message = if *up { message.up() } else { message.down() };
                here.link().set(message.build()).execute().await.map_err(io_error)
            }
            NetOp::DeleteLink(name) => {
                let index = indexes.get(name).await?;
                indexes.known.remove(name);
                gone(here.link().del(index).execute().await)
            }
            NetOp::AddAddress(link, addr) => {
                let mut add = here.address().add(indexes.get(link).await?, addr.ip(), addr.prefix());
                if addr.is_ipv6() {
                    // Nobody else has it, as managers give each once: without asking around for a second or two the
                    // container can use it from its start.
                    add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                }
                exists(add.execute().await)
            }
            NetOp::DeleteAddress(link, addr) => {
                let mut add = here.address().add(indexes.get(link).await?, addr.ip(), addr.prefix());
                gone(here.address().del(add.message_mut().clone()).execute().await)
            }
            NetOp::AddRoute(route) => {
                let message = route_message(route, indexes).await?;
                here.route().add(message).replace().execute().await.map_err(io_error)
            }
            NetOp::DeleteRoute(route) => gone(here.route().del(route_message(route, indexes).await?).execute().await),
            NetOp::AddRule(rule) => {
                let mut add = here.rule().add();
                *add.message_mut() = rule_message(rule);
                exists(add.execute().await)
            }
            NetOp::DeleteRule(rule) => gone(here.rule().del(rule_message(rule)).execute().await),
            NetOp::SetNeighbour(n) => {
                let add = here.neighbours().add(indexes.get(&n.link).await?, n.addr);
                add.link_layer_address(&n.mac.0).replace().execute().await.map_err(io_error)
            }
            NetOp::DeleteNeighbour(n) => {
                let message = neighbour_message(n, indexes.get(&n.link).await?);
                gone(here.neighbours().del(message).execute().await)
            }
            NetOp::SetFdb(entry) => set_fdb(here, entry, indexes.get(&entry.link).await?).await,
            NetOp::DeleteFdb(entry) => {
                let message = fdb_message(entry, indexes.get(&entry.link).await?);
                gone(here.neighbours().del(message).execute().await)
            }
        }
    }

    /// Those of one group go at once. A link that is gone already is fine; so is one left in the group by a daemon that died
    /// in between.
    async fn delete_together(&self, names: &[&str]) -> io::Result<()> {
        for name in names {
            let message = LinkUnspec::new_with_name(name).append_extra_attribute(LinkAttribute::Group(GROUP_TO_DELETE));
            gone(self.here.link().set(message.build()).execute().await)?;
        }
        let mut delete = self.here.link().del(0);
        delete.message_mut().attributes.push(LinkAttribute::Group(GROUP_TO_DELETE));
        gone(delete.execute().await)
    }

    async fn create(&self, name: &str, link: &Link, peers: &Namespaces) -> io::Result<()> {
        let (handle, message) = match &link.kind {
            LinkKind::Loopback | LinkKind::VethPeer => return Ok(()),
            LinkKind::Bridge => (&self.here, bridge(name, link)),
            LinkKind::Vxlan { tunnel, outside } => {
                let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{outside} has no namespace"));
                let from = match outside {
                    NsName::Host => Some(&self.host),
                    NsName::Crypt => self.crypt.as_ref(),
                    NsName::Sandbox(_) | NsName::Task(_) => None,
                };
                (from.ok_or_else(missing)?, vxlan(name, link, tunnel, self.here_fd))
            }
            LinkKind::WireGuard => (&self.host, wireguard(name, link, self.here_fd)),
            LinkKind::Veth { peer_ns, peer_name } => {
                let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{peer_ns} has no namespace"));
                let fd = peers.get(peer_ns).ok_or_else(missing)?.raw_fd();
                (&self.here, pair(name, link, peer_name, fd))
            }
        };
        handle.link().add(message).execute().await.map_err(io_error)
    }
}

fn set_sysctl(path: &str, value: &str) -> io::Result<()> {
    match fs::write(setting(path), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && has_nothing_to_set(path) => Ok(()),
        result => result,
    }
}

/// Link indexes, asked for once each.
struct Indexes<'a> {
    handle: &'a Handle,
    known: BTreeMap<String, u32>,
}

impl Indexes<'_> {
    async fn get(&mut self, name: &str) -> io::Result<u32> {
        if let Some(index) = self.known.get(name) {
            return Ok(*index);
        }
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let message = found.try_next().await.map_err(io_error)?;
        let index = message.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.header.index;
        self.known.insert(name.to_owned(), index);
        Ok(index)
    }
}

fn sized<T>(builder: LinkMessageBuilder<T>, link: &Link) -> LinkMessage {
    let builder = match link.mtu {
        Some(mtu) => builder.mtu(mtu),
        None => builder,
    };
    let builder = match link.mac {
        Some(mac) => builder.address(mac.0.to_vec()),
        None => builder,
    };
    let mut message = builder.build();
    // Links come up by a step of their own, when they are complete.
    message.header.flags.remove(LinkFlags::Up);
    message
}

/// Without snooping: multicast groups are none of a bridge's business whose neighbours are all known.
fn bridge(name: &str, link: &Link) -> LinkMessage {
    sized(LinkBridge::new(name).append_info_data(InfoBridge::MulticastSnooping(false)), link)
}

fn wireguard(name: &str, link: &Link, target_fd: i32) -> LinkMessage {
    sized(LinkWireguard::new(name).setns_by_fd(target_fd), link)
}

fn vxlan(name: &str, link: &Link, vxlan: &Vxlan, target_fd: i32) -> LinkMessage {
    let builder = LinkVxlan::new(name, vxlan.vni).port(vxlan.port).learning(false).proxy(true);
    let builder = match vxlan.local {
        IpAddr::V4(addr) => builder.local(addr),
        IpAddr::V6(addr) => builder.local6(addr),
    };
    sized(builder.setns_by_fd(target_fd), link)
}

fn pair(name: &str, link: &Link, peer_name: &str, peer_fd: i32) -> LinkMessage {
    let mut peer = LinkUnspec::new_with_name(peer_name).setns_by_fd(peer_fd);
    if let Some(mtu) = link.mtu {
        peer = peer.mtu(mtu);
    }
    let builder = LinkVeth::new(name, peer_name).set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
    sized(builder, link)
}

async fn set_link(handle: &Handle, name: &str, change: &LinkChange, indexes: &mut Indexes<'_>) -> io::Result<()> {
    let index = indexes.get(name).await?;
    let mut message = LinkUnspec::new_with_index(index);
    if let Some(mac) = change.mac {
        message = message.address(mac.0.to_vec());
    }
    if let Some(mtu) = change.mtu {
        message = message.mtu(mtu);
    }
    if let Some(master) = &change.master {
        message = message.append_extra_attribute(LinkAttribute::Controller(indexes.get(master).await?));
    }
    handle.link().set(message.build()).execute().await.map_err(io_error)
}

async fn route_message(route: &Route, indexes: &mut Indexes<'_>) -> io::Result<RouteMessage> {
    let mut message = match route.destination {
        IpNetwork::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().table_id(route.table).build(),
        IpNetwork::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().table_id(route.table).build(),
    };
    message.header.protocol = protocol();
    message.header.destination_prefix_length = route.destination.prefix();
    if route.destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination.network())));
    }
    match &route.target {
        Target::Blackhole => message.header.kind = RouteType::BlackHole,
        Target::Link(link) => {
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(indexes.get(link).await?));
        }
        Target::Via(via, link) => {
            message.header.flags |= RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(*via)));
            message.attributes.push(RouteAttribute::Oif(indexes.get(link).await?));
        }
    }
    Ok(message)
}

fn rule_message(rule: &PolicyRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Protocol(protocol()));
    match rule.selector {
        Selector::From(addr) => {
            message.header.src_len = if addr.is_ipv4() { 32 } else { 128 };
            message.attributes.push(RuleAttribute::Source(addr));
        }
        Selector::Mark(mark) => {
            message.attributes.push(RuleAttribute::FwMark(mark));
            message.attributes.push(RuleAttribute::FwMask(MARK_MASK));
        }
    }
    message
}

fn neighbour_message(neighbour: &Neighbour, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if neighbour.addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = index;
    message.header.kind = RouteType::Unspec;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(neighbour.addr)));
    message
}

async fn set_fdb(handle: &Handle, entry: &FdbEntry, index: u32) -> io::Result<()> {
    let add = handle.neighbours().add_bridge(index, &entry.mac.0).destination(entry.vtep);
    let add = add.state(NeighbourState::Other(FDB_STATIC)).flags(fdb_flags(entry));
    add.replace().execute().await.map_err(io_error)
}

fn fdb_message(entry: &FdbEntry, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.kind = RouteType::Unspec;
    message.header.flags = fdb_flags(entry);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    message
}

/// Without `Own` the kernel would look for a bridge above the tunnel and nothing else.
fn fdb_flags(entry: &FdbEntry) -> NeighbourFlags {
    if entry.bridged { NeighbourFlags::Own | NeighbourFlags::Controller } else { NeighbourFlags::Own }
}

/// Makes a WireGuard device inside `ns` from the calling thread's namespace, where what it encrypts leaves; one that is
/// there stays.
pub(crate) fn make_wireguard(ns: &NetNs, name: &str) -> io::Result<()> {
    let message = wireguard(name, &Link { up: false, ..Link::up(LinkKind::WireGuard) }, ns.raw_fd());
    connected(|handle| async move { exists(handle.link().add(message).execute().await) })?
}

/// Removes the daemon's links from the node's own namespace.
pub(crate) async fn delete_own_links(handle: Handle) -> io::Result<()> {
    delete_links(&handle, |name| name.starts_with(HOST_PREFIX)).await
}

/// Removes every link of a sandbox.
pub(crate) async fn delete_all_links(handle: Handle) -> io::Result<()> {
    delete_links(&handle, |name| name != "lo").await
}

/// Takes every link but loopback down, for good: nothing more leaves or reaches the namespace.
pub(crate) async fn cut_off(handle: Handle) -> io::Result<()> {
    let messages: Vec<_> = handle.link().get().execute().try_collect().await.map_err(io_error)?;
    for message in messages.iter().filter(|m| !m.header.flags.contains(LinkFlags::Loopback)) {
        let mut down = LinkUnspec::new_with_index(message.header.index).down().build();
        let ended = LinkFlags::from_bits_retain(silence::ENDED.into());
        down.header.flags |= ended;
        down.header.change_mask |= ended;
        gone(handle.link().set(down).execute().await)?;
    }
    Ok(())
}

async fn delete_links(handle: &Handle, doomed: impl Fn(&str) -> bool) -> io::Result<()> {
    let messages: Vec<_> = handle.link().get().execute().try_collect().await.map_err(io_error)?;
    for message in messages {
        let name = message.attributes.iter().find_map(|a| match a {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        });
        if name.is_some_and(&doomed) {
            match gone(handle.link().del(message.header.index).execute().await) {
                // Tunnels that every namespace has from the start cannot be removed.
                Err(error) if is(&error, &[Errno::EOPNOTSUPP, Errno::EINVAL]) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

/// What is to go and is not there has gone.
fn gone(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match result.map_err(io_error) {
        Err(error) if is(&error, &[Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL]) => Ok(()),
        result => result,
    }
}

/// What is to be there and is there already is fine.
fn exists(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match result.map_err(io_error) {
        Err(error) if is(&error, &[Errno::EEXIST]) => Ok(()),
        result => result,
    }
}

fn is(error: &io::Error, codes: &[Errno]) -> bool {
    codes.iter().any(|code| error.raw_os_error() == Some(*code as i32))
}

/// The step in an operator's words.
fn describe(op: &NetOp) -> String {
    match op {
        NetOp::DeleteRule(_) | NetOp::AddRule(_) => "routing rule".to_owned(),
        NetOp::DeleteRoute(route) | NetOp::AddRoute(route) => format!("route to {}", route.destination),
        NetOp::DeleteFdb(entry) | NetOp::SetFdb(entry) => format!("forwarding entry for {}", entry.mac),
        NetOp::DeleteNeighbour(n) | NetOp::SetNeighbour(n) => format!("neighbour {}", n.addr),
        NetOp::DeleteAddress(link, addr) | NetOp::AddAddress(link, addr) => format!("address {addr} of {link}"),
        NetOp::DeleteLink(name) => format!("removing link {name}"),
        NetOp::CreateLink { name, .. } => format!("making link {name}"),
        NetOp::SetLink { name, .. } | NetOp::SetUp { name, .. } => format!("setting up link {name}"),
        NetOp::SetSysctl { path, value } => format!("setting {path} to {value}"),
        NetOp::LoadRuleset { .. } => "loading rules".to_owned(),
        NetOp::MakeKey(link) => format!("giving {link} a key"),
        NetOp::SetPort { link, port } => format!("setting {link} to port {port}"),
        NetOp::SetCorrespondent { correspondent, .. } => format!("telling WireGuard of {}", correspondent.endpoint),
        NetOp::ForgetCorrespondent { .. } => "making WireGuard forget a node".to_owned(),
    }
}
