//! What is in a namespace, read from the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    rule::{RuleAttribute, RuleMessage},
};
use orch_netd_core::{
    names::{HOST_PREFIX, Mac, WIREGUARD},
    ns::{FdbEntry, Neighbour, NsPlan, Observed, ObservedLink, PolicyRule, Route, Selector, Target, Vxlan},
    settings::{accept_ra_of, forwarding_of},
};
use orch_proto::silence;

use super::{Connection, Session, protocol};
use crate::{nfnetlink::Mode, wireguard::Device};

const SETTINGS: &str = "/proc/sys";

/// Link names by index.
pub(super) type LinkNames = BTreeMap<u32, String>;

impl Session {
    /// Everything that `plan` may be compared with, but the ruleset.
    pub(crate) fn observe(&self, plan: &NsPlan) -> io::Result<Observed> {
        let mut observed = self.with_settings(self.here.observe()?, plan);
        if plan.wireguard.is_some() && observed.links.contains_key(WIREGUARD) {
            observed.wireguard = Some(Device::open(WIREGUARD)?.read()?);
        }
        Ok(observed)
    }

    /// As [`Self::observe`], of a task's namespace that was made in this pass: of what is compared, only links that were
    /// made from elsewhere and what the kernel sets by itself are there yet.
    pub(crate) fn observe_new(&self, plan: &NsPlan) -> io::Result<Observed> {
        let (links, _) = self.here.observe_links()?;
        Ok(self.with_settings(Observed { links, ..Observed::default() }, plan))
    }

    #[expect(clippy::unused_self, reason = "the thread is in the session's namespace, of which the settings are")]
    fn with_settings(&self, mut observed: Observed, plan: &NsPlan) -> Observed {
        for (path, wanted) in &plan.sysctls {
            if let Ok(value) = fs::read_to_string(setting(path)) {
                observed.sysctls.insert(path.clone(), value.trim().to_owned());
            } else if has_nothing_to_set(path) {
                observed.sysctls.insert(path.clone(), wanted.clone());
            }
        }
        observed
    }
}

/// The file of a setting.
pub(crate) fn setting(path: &str) -> PathBuf {
    Path::new(SETTINGS).join(path)
}

/// Of a part of the kernel that is not there: IPv6, rules of IP for bridges.
pub(super) fn has_nothing_to_set(path: &str) -> bool {
    let part = path.split('/').take(2);
    !Path::new(SETTINGS).join(part.collect::<PathBuf>()).exists()
}

impl Connection {
    fn observe(&self) -> io::Result<Observed> {
        let (links, names) = self.observe_links()?;
        let mut routes = self.routes(AddressFamily::Inet)?;
        routes.extend(self.routes(AddressFamily::Inet6)?);
        let mut neighbours = self.neighbours(AddressFamily::Inet)?;
        neighbours.extend(self.neighbours(AddressFamily::Inet6)?);
        Ok(Observed {
            links,
            addresses: self.addresses()?.iter().filter_map(|m| address(m, &names)).collect(),
            routes: routes.iter().filter_map(|m| route(m, &names)).collect(),
            rules: self.rules(AddressFamily::Inet)?.iter().filter_map(rule).collect(),
            neighbours: neighbours.iter().filter_map(|m| neighbour(m, &names)).collect(),
            fdb: fdb(&self.neighbours(AddressFamily::Bridge)?, &names),
            ..Observed::default()
        })
    }

    fn observe_links(&self) -> io::Result<(BTreeMap<String, ObservedLink>, LinkNames)> {
        let messages = self.links()?;
        let names: LinkNames = messages.iter().filter_map(|m| Some((m.header.index, name_of(m)?.to_owned()))).collect();
        let links = messages.iter().filter_map(|m| Some((name_of(m)?.to_owned(), link(m, &names)))).collect();
        Ok((links, names))
    }

    fn all<T>(&self, request: Message, wanted: impl Fn(Message) -> Option<T>) -> io::Result<Vec<T>> {
        Ok(self.ask(request, Mode::Dump)?.into_iter().filter_map(wanted).collect())
    }

    pub(super) fn links(&self) -> io::Result<Vec<LinkMessage>> {
        let request = Message::GetLink(LinkMessage::default());
        self.all(request, |answer| if let Message::NewLink(link) = answer { Some(link) } else { None })
    }

    fn addresses(&self) -> io::Result<Vec<AddressMessage>> {
        let request = Message::GetAddress(AddressMessage::default());
        self.all(request, |answer| if let Message::NewAddress(addr) = answer { Some(addr) } else { None })
    }

    /// A kernel without the family tells those of IPv4.
    fn routes(&self, family: AddressFamily) -> io::Result<Vec<RouteMessage>> {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let route = |answer| if let Message::NewRoute(route) = answer { Some(route) } else { None };
        self.all(Message::GetRoute(request), route)
    }

    fn rules(&self, family: AddressFamily) -> io::Result<Vec<RuleMessage>> {
        let mut request = RuleMessage::default();
        request.header.family = family;
        self.all(
            Message::GetRule(request),
            |answer| if let Message::NewRule(rule) = answer { Some(rule) } else { None },
        )
    }

    /// Of a bridge's family: what is behind which of its ports.
    fn neighbours(&self, family: AddressFamily) -> io::Result<Vec<NeighbourMessage>> {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let neighbour = |answer| if let Message::NewNeighbour(n) = answer { Some(n) } else { None };
        self.all(Message::GetNeighbour(request), neighbour)
    }
}

fn address(message: &AddressMessage, names: &LinkNames) -> Option<(String, IpNetwork)> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    let plain = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(addr) => Some(*addr),
        _ => None,
    });
    let addr = IpNetwork::new(local.or(plain)?, message.header.prefix_len).ok()?;
    Some((names.get(&message.header.index)?.clone(), addr))
}

pub(super) fn name_of(message: &LinkMessage) -> Option<&str> {
    message.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn link(message: &LinkMessage, names: &LinkNames) -> ObservedLink {
    let up = message.header.flags.contains(LinkFlags::Up);
    let ended = !up && message.header.flags.contains(LinkFlags::from_bits_retain(silence::ENDED.into()));
    let mut link = ObservedLink { vxlan: None, mac: None, mtu: 0, master: None, up, ended };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => link.mac = bytes.first_chunk().copied().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = names.get(index).cloned(),
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link_info(info, &mut link)),
            _ => {}
        }
    }
    link
}

fn link_info(info: &LinkInfo, link: &mut ObservedLink) {
    if let LinkInfo::Data(InfoData::Vxlan(infos)) = info {
        link.vxlan = vxlan(infos);
    }
}

fn vxlan(infos: &[InfoVxlan]) -> Option<Vxlan> {
    let vni = infos.iter().find_map(|i| if let InfoVxlan::Id(vni) = i { Some(*vni) } else { None })?;
    let port = infos.iter().find_map(|i| if let InfoVxlan::Port(port) = i { Some(*port) } else { None })?;
    let local = infos.iter().find_map(|i| match i {
        InfoVxlan::Local(addr) => Some(IpAddr::V4(*addr)),
        InfoVxlan::Local6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    })?;
    Some(Vxlan { vni, port, local })
}

fn route(message: &RouteMessage, names: &LinkNames) -> Option<Route> {
    if message.header.protocol != protocol() {
        return None;
    }
    let mut table = u32::from(message.header.table);
    let any = match message.header.address_family {
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let (mut destination, mut via, mut link) = (any, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(addr) => destination = ip_of(addr)?,
            RouteAttribute::Gateway(addr) => via = Some(ip_of(addr)?),
            RouteAttribute::Oif(index) => link = Some(names.get(index)?.clone()),
            _ => {}
        }
    }
    let target = match (message.header.kind, via, link) {
        (RouteType::BlackHole, ..) => Target::Blackhole,
        (_, Some(via), Some(link)) => Target::Via(via, link),
        (_, None, Some(link)) => Target::Link(link),
        (_, _, None) => return None,
    };
    let destination = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { table, destination, target })
}

fn ip_of(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(addr) => Some(IpAddr::V4(*addr)),
        RouteAddress::Inet6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

fn rule(message: &RuleMessage) -> Option<PolicyRule> {
    let mut table = u32::from(message.header.table);
    let (mut priority, mut selector, mut ours) = (0, None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Source(addr) => selector = Some(Selector::From(*addr)),
            RuleAttribute::FwMark(mark) => selector = Some(Selector::Mark(*mark)),
            RuleAttribute::Protocol(by) => ours = *by == protocol(),
            _ => {}
        }
    }
    ours.then_some(())?;
    Some(PolicyRule { priority, selector: selector?, table })
}

fn neighbour(message: &NeighbourMessage, names: &LinkNames) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let addr = destination(message)?;
    Some(Neighbour { link: names.get(&message.header.ifindex)?.clone(), addr, mac: mac(message)? })
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => Some(IpAddr::V4(*addr)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        // Of the bridge family the address comes as bytes.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
            16 => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
            _ => None,
        },
        _ => None,
    })
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.first_chunk().copied().map(Mac),
        _ => None,
    })
}

/// The tunnel's entries, with whether the bridge has each too.
fn fdb(messages: &[NeighbourMessage], names: &LinkNames) -> BTreeSet<FdbEntry> {
    let tunnels = messages.iter().filter(|m| m.header.flags.contains(NeighbourFlags::Own));
    let bridged: BTreeSet<_> = messages
        .iter()
        .filter(|m| !m.header.flags.contains(NeighbourFlags::Own))
        .filter_map(|m| Some((m.header.ifindex, mac(m)?)))
        .collect();
    tunnels
        .filter_map(|m| {
            let (index, mac) = (m.header.ifindex, mac(m)?);
            let link = names.get(&index)?.clone();
            Some(FdbEntry { link, mac, vtep: destination(m)?, bridged: bridged.contains(&(index, mac)) })
        })
        .collect()
}

/// The networks that the node itself has: addresses of its links and routes that are not the daemon's. Of the calling
/// thread's namespace, as below.
pub(crate) fn host_networks() -> io::Result<Vec<IpNetwork>> {
    let here = Connection::open()?;
    let links = here.links()?;
    let names: LinkNames = links.iter().filter_map(|m| Some((m.header.index, name_of(m)?.to_owned()))).collect();
    let is_ours = |index: &u32| names.get(index).is_some_and(|name| name.starts_with(HOST_PREFIX));
    let addresses = here.addresses()?;
    let of_others = addresses.iter().filter(|m| !is_ours(&m.header.index));
    let mut networks: Vec<_> = of_others.filter_map(|m| address(m, &names)).map(|(_, addr)| addr).collect();
    for message in here.routes(AddressFamily::Inet)? {
        let destination = message.attributes.iter().find_map(|a| match a {
            RouteAttribute::Destination(addr) => ip_of(addr),
            _ => None,
        });
        let link = message.attributes.iter().find_map(|a| match a {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        if let Some(addr) = destination.filter(|_| !link.is_some_and(|index| is_ours(&index))) {
            networks.extend(IpNetwork::new(addr, message.header.destination_prefix_length));
        }
    }
    Ok(networks)
}

/// The links of others by which the node sends IPv6 further than to its neighbours' link-local addresses.
pub(crate) fn links_out_v6() -> io::Result<BTreeSet<String>> {
    let here = Connection::open()?;
    let links = here.links()?;
    let is_others = |m: &&LinkMessage| {
        let is_own = name_of(m).is_none_or(|name| name.starts_with(HOST_PREFIX));
        !is_own && !m.header.flags.contains(LinkFlags::Loopback)
    };
    let names: LinkNames =
        links.iter().filter(is_others).filter_map(|m| Some((m.header.index, name_of(m)?.to_owned()))).collect();
    let routes = here.routes(AddressFamily::Inet6)?;
    let links = routes.iter().filter(|route| leads_out_v6(route)).flat_map(links_of);
    Ok(links.filter_map(|index| names.get(&index).cloned()).collect())
}

/// What a link that has IPv6 does with it.
pub(crate) struct LinkV6 {
    pub(crate) name: String,
    pub(crate) accept_ra: String,
    pub(crate) forwarding: String,
}

/// What it is set to in the thread's namespace.
pub(crate) fn read_setting(path: &str) -> io::Result<String> {
    fs::read_to_string(setting(path)).map(|value| value.trim().to_owned())
}

/// The links of others that have IPv6.
pub(crate) fn links_with_v6() -> io::Result<Vec<LinkV6>> {
    let mut links = Vec::new();
    for entry in fs::read_dir(setting("net/ipv6/conf"))? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if ["all", "default", "lo"].contains(&name.as_str()) || name.starts_with(HOST_PREFIX) {
            continue;
        }
        // One that goes meanwhile is no longer of interest.
        if let (Ok(accept_ra), Ok(forwarding)) =
            (read_setting(&accept_ra_of(&name)), read_setting(&forwarding_of(&name)))
        {
            links.push(LinkV6 { name, accept_ra, forwarding });
        }
    }
    Ok(links)
}

fn leads_out_v6(message: &RouteMessage) -> bool {
    let destination = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet6(addr)) => Some(*addr),
        _ => None,
    });
    let is_near = destination.is_some_and(|addr| addr.is_unicast_link_local() || addr.is_multicast());
    message.header.address_family == AddressFamily::Inet6 && message.header.kind == RouteType::Unicast && !is_near
}

fn links_of(message: &RouteMessage) -> Vec<u32> {
    let of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    message.attributes.iter().flat_map(of).collect()
}

/// MTU of the link that has `addr`; `None` when none has.
pub(crate) fn mtu_of(addr: IpAddr) -> io::Result<Option<u32>> {
    let observed = Connection::open()?.observe()?;
    let link = observed.addresses.iter().find(|(_, network)| network.ip() == addr).map(|(link, _)| link);
    Ok(link.and_then(|link| observed.links.get(link)).map(|link| link.mtu))
}
