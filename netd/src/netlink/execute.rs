//! Carrying out steps.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{InfoBridge, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use nix::errno::Errno;
use orch_netd_core::{
    names::HOST_PREFIX,
    ns::{FdbEntry, Link, LinkKind, MARK_MASK, Neighbour, NsName, PolicyRule, Route, Selector, Target, Vxlan},
    ops::{LinkChange, NetOp},
};
use orch_proto::silence;

use super::{
    Connection, Namespaces, Session,
    observe::{has_nothing_to_set, name_of, setting},
    protocol,
};
use crate::{
    netns::NetNs,
    nfnetlink::{Mode, Socket},
    nft,
    wireguard::Device,
};

/// Only what is not there yet.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Instead of what may be there.
const INSTEAD: u16 = NLM_F_CREATE | NLM_F_REPLACE;

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
        let mut indexes = Indexes { connection: &self.here, known: BTreeMap::new() };
        crate::metrics::OPERATIONS.inc_by(ops.len() as u64);
        // Not when its turn comes but together: the kernel waits for a grace period per call, not per link.
        let deleted: Vec<&str> = ops.iter().filter_map(deleted_link).collect();
        let together = deleted.len() > 1 && self.delete_together(&deleted).is_ok();
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
                _ => self.netlink(op, peers, &mut indexes),
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

    fn netlink(&self, op: &NetOp, peers: &Namespaces, indexes: &mut Indexes<'_>) -> io::Result<()> {
        let here = &self.here;
        match op {
            NetOp::LoadRuleset { .. }
            | NetOp::SetSysctl { .. }
            | NetOp::MakeKey(_)
            | NetOp::SetPort { .. }
            | NetOp::SetCorrespondent { .. }
            | NetOp::ForgetCorrespondent { .. } => Ok(()),
            NetOp::CreateLink { name, link } => self.create(name, link, peers),
            NetOp::SetLink { name, change } => set_link(here, name, change, indexes),
            NetOp::SetUp { name, up } => {
                let mut message = link_at(indexes.get(name)?);
                set_state(&mut message, *up);
                here.act(Message::SetLink(message), 0)
            }
            NetOp::DeleteLink(name) => {
                let index = indexes.get(name)?;
                indexes.known.remove(name);
                gone(here.act(Message::DelLink(link_at(index)), 0))
            }
            NetOp::AddAddress(link, addr) => {
                let mut message = address_message(*addr, indexes.get(link)?);
                if addr.is_ipv6() {
                    // Nobody else has it, as managers give each once: without asking around for a second or two the
                    // container can use it from its start.
                    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                }
                exists(here.act(Message::NewAddress(message), NEW))
            }
            NetOp::DeleteAddress(link, addr) => {
                gone(here.act(Message::DelAddress(address_message(*addr, indexes.get(link)?)), 0))
            }
            NetOp::AddRoute(route) => here.act(Message::NewRoute(route_message(route, indexes)?), INSTEAD),
            NetOp::DeleteRoute(route) => gone(here.act(Message::DelRoute(route_message(route, indexes)?), 0)),
            NetOp::AddRule(rule) => exists(here.act(Message::NewRule(rule_message(rule)), NEW)),
            NetOp::DeleteRule(rule) => gone(here.act(Message::DelRule(rule_message(rule)), 0)),
            NetOp::SetNeighbour(n) => {
                let mut message = neighbour_message(n, indexes.get(&n.link)?);
                message.header.state = NeighbourState::Permanent;
                message.attributes.push(NeighbourAttribute::LinkLayerAddress(n.mac.0.to_vec()));
                here.act(Message::NewNeighbour(message), INSTEAD)
            }
            NetOp::DeleteNeighbour(n) => {
                gone(here.act(Message::DelNeighbour(neighbour_message(n, indexes.get(&n.link)?)), 0))
            }
            NetOp::SetFdb(entry) => {
                let mut message = fdb_message(entry, indexes.get(&entry.link)?);
                message.header.state = NeighbourState::Other(FDB_STATIC);
                message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(entry.vtep)));
                here.act(Message::NewNeighbour(message), INSTEAD)
            }
            NetOp::DeleteFdb(entry) => {
                gone(here.act(Message::DelNeighbour(fdb_message(entry, indexes.get(&entry.link)?)), 0))
            }
        }
    }

    /// Those of one group go at once. A link that is gone already is fine; so is one left in the group by a daemon that died
    /// in between.
    fn delete_together(&self, names: &[&str]) -> io::Result<()> {
        for name in names {
            let mut message = link_named(name);
            message.attributes.push(LinkAttribute::Group(GROUP_TO_DELETE));
            gone(self.here.act(Message::SetLink(message), 0))?;
        }
        let mut group = LinkMessage::default();
        group.attributes.push(LinkAttribute::Group(GROUP_TO_DELETE));
        gone(self.here.act(Message::DelLink(group), 0))
    }

    fn create(&self, name: &str, link: &Link, peers: &Namespaces) -> io::Result<()> {
        let missing = |ns: &NsName| io::Error::new(io::ErrorKind::NotFound, format!("{ns} has no namespace"));
        let (connection, message) = match &link.kind {
            LinkKind::Loopback | LinkKind::VethPeer => return Ok(()),
            LinkKind::Bridge => (&self.here, bridge(name, link)),
            LinkKind::Vxlan { tunnel, outside } => {
                let from = match outside {
                    NsName::Host => self.host.as_ref(),
                    NsName::Crypt => self.crypt.as_ref(),
                    NsName::Sandbox(_) | NsName::Task(_) => None,
                };
                (from.ok_or_else(|| missing(outside))?, vxlan(name, link, tunnel, self.here_fd))
            }
            LinkKind::WireGuard => {
                let host = self.host.as_ref().ok_or_else(|| missing(&NsName::Host))?;
                (host, wireguard(name, link, self.here_fd))
            }
            LinkKind::Veth { peer_ns, peer_name } => {
                let fd = peers.get(peer_ns).ok_or_else(|| missing(peer_ns))?.raw_fd();
                (&self.here, pair(name, link, peer_name, fd))
            }
        };
        connection.act(Message::NewLink(message), NEW)
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
    connection: &'a Connection,
    known: BTreeMap<String, u32>,
}

impl Indexes<'_> {
    fn get(&mut self, name: &str) -> io::Result<u32> {
        if let Some(index) = self.known.get(name) {
            return Ok(*index);
        }
        let found = self.connection.ask(Message::GetLink(link_named(name)), Mode::Get)?;
        let index = found.iter().find_map(|answer| match answer {
            Message::NewLink(link) => Some(link.header.index),
            _ => None,
        });
        let index = index.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.known.insert(name.to_owned(), index);
        Ok(index)
    }
}

fn link_at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn link_named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn set_state(message: &mut LinkMessage, up: bool) {
    message.header.flags.set(LinkFlags::Up, up);
    message.header.change_mask |= LinkFlags::Up;
}

/// A new link. It comes up by a step of its own, when it is complete.
fn made(name: &str, link: &Link, infos: Vec<LinkInfo>) -> LinkMessage {
    let mut message = link_named(name);
    message.attributes.extend(link.mtu.map(LinkAttribute::Mtu));
    message.attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.push(LinkAttribute::LinkInfo(infos));
    message
}

/// As [`made`], in another namespace than that of who asks.
fn made_in(target_fd: i32, name: &str, link: &Link, infos: Vec<LinkInfo>) -> LinkMessage {
    let mut message = made(name, link, infos);
    message.attributes.push(LinkAttribute::NetNsFd(target_fd));
    message
}

/// Without snooping: multicast groups are none of a bridge's business whose neighbours are all known.
fn bridge(name: &str, link: &Link) -> LinkMessage {
    let data = InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]);
    made(name, link, vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)])
}

fn wireguard(name: &str, link: &Link, target_fd: i32) -> LinkMessage {
    made_in(target_fd, name, link, vec![LinkInfo::Kind(InfoKind::Wireguard)])
}

fn vxlan(name: &str, link: &Link, vxlan: &Vxlan, target_fd: i32) -> LinkMessage {
    let local = match vxlan.local {
        IpAddr::V4(addr) => InfoVxlan::Local(addr),
        IpAddr::V6(addr) => InfoVxlan::Local6(addr),
    };
    let data = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Learning(false),
        InfoVxlan::Proxy(true),
        local,
    ];
    made_in(target_fd, name, link, vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))])
}

/// Each end with one queue each way, which is all that it would use: unless told, the kernel makes one for each processor,
/// puts all but one out of use, and waits for every processor to have noticed.
fn pair(name: &str, link: &Link, peer_name: &str, peer_fd: i32) -> LinkMessage {
    let one_queue = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
    let mut peer = link_named(peer_name);
    peer.attributes.push(LinkAttribute::NetNsFd(peer_fd));
    peer.attributes.extend(link.mtu.map(LinkAttribute::Mtu));
    peer.attributes.extend(one_queue.clone());
    let data = InfoData::Veth(InfoVeth::Peer(peer));
    let mut message = made(name, link, vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]);
    message.attributes.extend(one_queue);
    message
}

fn set_link(here: &Connection, name: &str, change: &LinkChange, indexes: &mut Indexes<'_>) -> io::Result<()> {
    let mut message = link_at(indexes.get(name)?);
    message.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    if let Some(master) = &change.master {
        message.attributes.push(LinkAttribute::Controller(indexes.get(master)?));
    }
    here.act(Message::SetLink(message), 0)
}

fn address_message(addr: IpNetwork, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(addr.ip());
    message.header.index = index;
    message.header.prefix_len = addr.prefix();
    message.attributes.extend([AddressAttribute::Address(addr.ip()), AddressAttribute::Local(addr.ip())]);
    if let IpNetwork::V4(v4) = addr
        && u32::from(v4.prefix()) < Ipv4Addr::BITS - 1
    {
        message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
    }
    message
}

fn family_of(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route_message(route: &Route, indexes: &mut Indexes<'_>) -> io::Result<RouteMessage> {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(route.destination.ip());
    match u8::try_from(route.table) {
        Ok(table) => message.header.table = table,
        Err(_) => message.attributes.push(RouteAttribute::Table(route.table)),
    }
    message.header.kind = RouteType::Unicast;
    message.header.protocol = protocol();
    message.header.destination_prefix_length = route.destination.prefix();
    if route.destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination.network())));
    }
    match &route.target {
        Target::Blackhole => message.header.kind = RouteType::BlackHole,
        Target::Link(link) => {
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(indexes.get(link)?));
        }
        Target::Via(via, link) => {
            message.header.flags |= RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(*via)));
            message.attributes.push(RouteAttribute::Oif(indexes.get(link)?));
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
    message.header.family = family_of(neighbour.addr);
    message.header.ifindex = index;
    message.header.kind = RouteType::Unspec;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(neighbour.addr)));
    message
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
    exists(Connection::open()?.act(Message::NewLink(message), NEW))
}

/// In the calling thread's namespace.
pub(crate) fn raise_loopback() -> io::Result<()> {
    let mut message = link_named("lo");
    set_state(&mut message, true);
    Connection::open()?.act(Message::SetLink(message), 0)
}

/// Removes the daemon's links from the node's own namespace, which the calling thread is in.
pub(crate) fn delete_own_links() -> io::Result<()> {
    delete_links(|name| name.starts_with(HOST_PREFIX))
}

/// Removes every link of a sandbox, which the calling thread is in.
pub(crate) fn delete_all_links() -> io::Result<()> {
    delete_links(|name| name != "lo")
}

/// Takes every link but loopback of the calling thread's namespace down, for good: nothing more leaves or reaches it.
pub(crate) fn cut_off() -> io::Result<()> {
    let here = Connection::open()?;
    for message in here.links()?.iter().filter(|m| !m.header.flags.contains(LinkFlags::Loopback)) {
        let mut down = link_at(message.header.index);
        set_state(&mut down, false);
        let ended = LinkFlags::from_bits_retain(silence::ENDED.into());
        down.header.flags |= ended;
        down.header.change_mask |= ended;
        gone(here.act(Message::SetLink(down), 0))?;
    }
    Ok(())
}

fn delete_links(doomed: impl Fn(&str) -> bool) -> io::Result<()> {
    let here = Connection::open()?;
    for message in here.links()?.iter().filter(|message| name_of(message).is_some_and(&doomed)) {
        match gone(here.act(Message::DelLink(link_at(message.header.index)), 0)) {
            // Tunnels that every namespace has from the start cannot be removed.
            Err(error) if is(&error, &[Errno::EOPNOTSUPP, Errno::EINVAL]) => {}
            result => result?,
        }
    }
    Ok(())
}

/// What is to go and is not there has gone.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is(&error, &[Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL]) => Ok(()),
        result => result,
    }
}

/// What is to be there and is there already is fine.
fn exists(result: io::Result<()>) -> io::Result<()> {
    match result {
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
