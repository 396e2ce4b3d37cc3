//! Rulesets as the kernel's messages (linux/netfilter/nf_tables.h), statement by statement what the `nft` program makes of
//! the same text.

use std::net::IpAddr;

use orch_model::service::Protocol;
use orch_netd_core::{
    names::Mac,
    ruleset::{
        Chain, Destination, Direction, Element, Expr, Family, Field, HASH_SEED, Is, Key, Point, Rule, RuleOp, Set,
        SetKind, Side, Table, Turn, Version, Way,
    },
};

use super::attrs::Attrs;

/// Message types of the subsystem.
const NEW_TABLE: u8 = 0;
const DEL_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const DEL_CHAIN: u8 = 5;
const NEW_RULE: u8 = 6;
const DEL_RULE: u8 = 8;
const NEW_SET: u8 = 9;
const NEW_ELEMENTS: u8 = 12;
const DEL_ELEMENTS: u8 = 14;

/// NFT_REG_1, and the first of the registers that its parts are.
const REG: u32 = 1;
const REG32: u32 = 8;
/// NFT_REG_2.
const SECOND_REG: u32 = 2;
const VERDICT_REG: u32 = 0;

/// Types that `nft` shows elements by.
const TYPE_INTEGER: u32 = 4;
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_MAC: u32 = 9;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_MARK: u32 = 19;
const TYPE_LINK: u32 = 41;
const TYPE_VERDICT: u32 = 0xffff_ff00;
/// Bits of each part in the type of several parts.
const TYPE_BITS: u32 = 6;

const SET_ANONYMOUS: u32 = 1;
const SET_CONSTANT: u32 = 2;
const SET_MAP: u32 = 8;
const SET_TIMEOUT: u32 = 0x10;
const SET_DYNAMIC: u32 = 0x20;
/// What the kernel makes a name of.
const ANONYMOUS_NAME: &str = "__map%d";
/// Clients remembered at most, and for how long.
const MAX_CLIENTS: u32 = 65_535;
const CLIENT_TIMEOUT_MS: u64 = 180_000;
/// Elements of one message: an attribute cannot be longer than 64 KiB, and an element is some 100 bytes.
const MAX_ELEMENTS: usize = 400;

const META_ETHERTYPE: u32 = 1;
const META_MARK: u32 = 3;
const META_LINK_IN: u32 = 6;
const META_LINK_OUT: u32 = 7;
const META_LINK_TYPE: u32 = 8;
const META_PROTOCOL: u32 = 16;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const CT_PORT_TO: u32 = 12;
const CT_ZONE: u32 = 17;
const CT_STATE_NEW: u32 = 8;
const CT_STATUS_DNAT: u32 = 1 << 5;
const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const LINK_NAME_LEN: u32 = 16;
const ARPHRD_ETHER: u16 = 1;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// Ethernet with addresses of 6 bytes, IPv4 with addresses of 4.
const ARP_KINDS: [u8; 4] = [0, 1, 8, 0];
const ARP_LENGTHS: [u8; 2] = [6, 4];
const RTN_LOCAL: u32 = 2;
const JUMP: u32 = -3_i32 as u32;
const RETURN: u32 = -5_i32 as u32;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// One message: its type, whether it makes something, the table's family and its attributes.
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) family: u8,
    pub(super) attrs: Attrs,
    /// What it is about, for the operator.
    pub(super) about: String,
}

/// The messages of `ops`, to be carried out together.
pub(super) fn encode(ops: &[RuleOp<'_>]) -> Vec<Message> {
    let mut encoder = Encoder { messages: Vec::new(), sets: 0 };
    ops.iter().for_each(|op| encoder.op(op));
    encoder.messages
}

struct Encoder {
    messages: Vec<Message>,
    /// Sets are numbered within a batch.
    sets: u32,
}

pub(super) fn family_number(family: Family) -> u8 {
    let number = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
        Family::Bridge => libc::AF_BRIDGE,
    };
    u8::try_from(number).unwrap_or_default()
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

impl Encoder {
    fn push(&mut self, kind: u8, family: Family, attrs: Attrs, about: impl FnOnce() -> String) {
        self.messages.push(Message { kind, family: family_number(family), attrs, about: about() });
    }

    fn op(&mut self, op: &RuleOp<'_>) {
        match op {
            RuleOp::AddTable(table) => {
                let attrs = Attrs::new().text(1, table.name).be32(2, 0);
                self.push(NEW_TABLE, table.family, attrs, || format!("table {}", table.name));
            }
            RuleOp::DeleteTable(family, name) => {
                self.push(DEL_TABLE, *family, Attrs::new().text(1, name), || format!("deleting table {name}"));
            }
            RuleOp::AddChain(table, chain) => self.add_chain(table, chain),
            RuleOp::AddSet(table, set) => self.add_set(table, set),
            RuleOp::AddElements(table, set, elements) => {
                let encoded: Vec<_> = elements.iter().map(element).collect();
                self.add_elements(table, set.name, None, &encoded);
            }
            RuleOp::AddElement(table, set, one) => self.add_elements(table, set.name, None, &[element(one)]),
            RuleOp::DeleteElement(table, set, one) => {
                let key = Attrs::new().nested(1, data(&key_bytes(&one.key)));
                let attrs = Attrs::new().text(1, table.name).text(2, set.name).nested(3, Attrs::new().nested(1, key));
                self.push(DEL_ELEMENTS, table.family, attrs, || format!("deleting {one} from {}", set.name));
            }
            RuleOp::AddRule(table, chain, rule) => self.add_rule(table, chain, rule),
            RuleOp::Flush(table, chain) => {
                let attrs = Attrs::new().text(1, table.name).text(2, &chain.name);
                self.push(DEL_RULE, table.family, attrs, || format!("flushing chain {}", chain.name));
            }
            RuleOp::DeleteChain(table, chain) => {
                let attrs = Attrs::new().text(1, table.name).text(3, &chain.name);
                self.push(DEL_CHAIN, table.family, attrs, || format!("deleting chain {}", chain.name));
            }
        }
    }

    fn add_chain(&mut self, table: &Table, chain: &Chain) {
        let mut attrs = Attrs::new().text(1, table.name).text(3, &chain.name);
        if let Some(hook) = chain.hook {
            let point = match hook.point {
                Point::Prerouting => 0,
                Point::Input => 1,
                Point::Forward => 2,
                Point::Output => 3,
                Point::Postrouting => 4,
            };
            let place = Attrs::new().be32(1, point).be32(2, hook.priority.cast_unsigned());
            attrs = attrs.text(7, hook.kind.word()).nested(4, place);
        }
        self.push(NEW_CHAIN, table.family, attrs, || format!("chain {}", chain.name));
    }

    fn next_set(&mut self) -> u32 {
        self.sets += 1;
        self.sets
    }

    fn add_set(&mut self, table: &Table, set: &Set) {
        let addr = addr_type(table.family);
        let map_flag = if set.kind.is_map() { SET_MAP } else { 0 };
        let (flags, key) = match set.kind {
            SetKind::Ports | SetKind::PortChains => (map_flag, Type::several(&[(TYPE_PROTOCOL, 1), (TYPE_PORT, 2)])),
            SetKind::AddrPorts | SetKind::AddrPortChains => {
                (map_flag, Type::several(&[(addr.number, addr.length), (TYPE_PROTOCOL, 1), (TYPE_PORT, 2)]))
            }
            SetKind::Addrs | SetKind::AddrChains => (map_flag, addr),
            SetKind::Clients => {
                let port = (TYPE_PORT, 2);
                (SET_TIMEOUT | SET_DYNAMIC, Type::several(&[(addr.number, addr.length), port, port]))
            }
            SetKind::Links => (0, Type { number: TYPE_LINK, length: LINK_NAME_LEN, order: Order::Host }),
            SetKind::LinkMacs => (0, Type::several(&[LINK_PART, MAC_PART])),
            SetKind::LinkAddrs(version) => (0, Type::several(&[LINK_PART, addr_part(version)])),
            SetKind::LinkMacAddrs(version) => (0, Type::several(&[LINK_PART, MAC_PART, addr_part(version)])),
        };
        let mut attrs = Attrs::new().text(1, table.name).text(2, set.name).be32(3, flags);
        attrs = attrs.be32(4, key.number).be32(5, key.length);
        if set.kind.is_map() {
            attrs = attrs.be32(6, TYPE_VERDICT).be32(7, 0);
        }
        attrs = attrs.be32(10, self.next_set());
        if set.kind == SetKind::Clients {
            attrs = attrs.nested(9, Attrs::new().be32(1, MAX_CLIENTS)).be64(11, CLIENT_TIMEOUT_MS);
        }
        attrs = attrs.bytes(13, &byte_orders(key.order, None));
        if set.counted {
            attrs = attrs.nested(17, counter());
        }
        self.push(NEW_SET, table.family, attrs, || format!("set {}", set.name));
    }

    fn add_elements(&mut self, table: &Table, set: &str, id: Option<u32>, elements: &[Attrs]) {
        for some in elements.chunks(MAX_ELEMENTS) {
            let list = some.iter().fold(Attrs::new(), |list, element| list.nested(1, element.clone()));
            let mut attrs = Attrs::new().text(1, table.name).text(2, set);
            if let Some(id) = id {
                attrs = attrs.be32(4, id);
            }
            let count = some.len();
            self.push(NEW_ELEMENTS, table.family, attrs.nested(3, list), || format!("{count} elements of {set}"));
        }
    }

    /// A map that belongs to one rule; its number in the batch.
    fn add_map(&mut self, table: &Table, key: Type, value: Type, entries: &[(Vec<u8>, Vec<u8>)]) -> u32 {
        let id = self.next_set();
        let size = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let attrs = Attrs::new()
            .text(1, table.name)
            .text(2, ANONYMOUS_NAME)
            .be32(3, SET_ANONYMOUS | SET_CONSTANT | SET_MAP)
            .be32(4, key.number)
            .be32(5, key.length)
            .be32(6, value.number)
            .be32(7, value.length)
            .be32(10, id)
            .nested(9, Attrs::new().be32(1, size))
            .bytes(13, &byte_orders(key.order, Some(value.order)));
        self.push(NEW_SET, table.family, attrs, || "a rule's map".to_owned());
        let elements: Vec<_> =
            entries.iter().map(|(key, value)| Attrs::new().nested(1, data(key)).nested(2, data(value))).collect();
        self.add_elements(table, ANONYMOUS_NAME, Some(id), &elements);
        id
    }

    fn add_rule(&mut self, table: &Table, chain: &Chain, rule: &Rule) {
        let mut writer = RuleWriter { list: Attrs::new(), protocol: None, family: table.family };
        for expr in &rule.0 {
            match expr {
                Expr::SendTo(turn, targets) => self.send_to(table, *turn, targets, &mut writer),
                Expr::ZoneOf(entries) => {
                    let value = |index: u16| index.to_ne_bytes().to_vec();
                    let kind = Type { number: TYPE_INTEGER, length: 2, order: Order::Host };
                    self.by_mac(table, kind, entries, value, &mut writer);
                    writer.expr("ct", Attrs::new().be32(2, CT_ZONE).u8(3, 0).be32(4, REG));
                }
                Expr::MarkOf(entries) => {
                    let value = |index: u16| u32::from(index).to_ne_bytes().to_vec();
                    let kind = Type { number: TYPE_MARK, length: 4, order: Order::Host };
                    self.by_mac(table, kind, entries, value, &mut writer);
                    writer.expr("ct", Attrs::new().be32(2, CT_MARK).be32(4, REG));
                }
                _ => writer.simple(expr),
            }
        }
        let attrs = Attrs::new().text(1, table.name).text(2, &chain.name).nested(4, writer.list);
        self.push(NEW_RULE, table.family, attrs, || {
            format!("rule `{}` of chain {}", rule.text(table.family), chain.name)
        });
    }

    fn by_mac(
        &mut self,
        table: &Table,
        value: Type,
        entries: &[(Mac, u16)],
        bytes: impl Fn(u16) -> Vec<u8>,
        writer: &mut RuleWriter,
    ) {
        let entries: Vec<_> = entries.iter().map(|(mac, index)| (mac.0.to_vec(), bytes(*index))).collect();
        let id = self.add_map(table, Type { number: TYPE_MAC, length: 6, order: Order::Big }, value, &entries);
        writer.meta(META_LINK_TYPE);
        writer.compare(EQUAL, &ARPHRD_ETHER.to_ne_bytes());
        writer.payload(LINK_HEADER, 6, 6, REG);
        writer.look_up(id);
    }

    fn send_to(&mut self, table: &Table, turn: Turn, targets: &[Destination], writer: &mut RuleWriter) {
        let nat = Attrs::new().be32(1, 1).be32(2, family_number(table.family).into()).be32(3, REG);
        if let [Destination { addr, port }] = targets {
            writer.immediate(REG, &addr_bytes(addr));
            let Some(port) = port else { return writer.expr("nat", nat) };
            writer.immediate(SECOND_REG, &port.to_be_bytes());
            // NF_NAT_RANGE_PROTO_SPECIFIED
            return writer.expr("nat", nat.be32(5, SECOND_REG).be32(7, 2));
        }
        let addr = addr_type(table.family);
        let with_port = targets.iter().any(|target| target.port.is_some());
        let value = if with_port { Type::several(&[(addr.number, addr.length), (TYPE_PORT, 2)]) } else { addr };
        let entries: Vec<_> =
            (0_u32..).zip(targets).map(|(turn, t)| (turn.to_ne_bytes().to_vec(), target(t))).collect();
        let number = Type { number: TYPE_INTEGER, length: 4, order: Order::Host };
        let id = self.add_map(table, number, value, &entries);
        let modulus = u32::try_from(targets.len()).unwrap_or(u32::MAX);
        writer.choose(turn, modulus);
        writer.look_up(id);
        let nat = if with_port { nat.be32(5, REG32 + addr.length / 4) } else { nat };
        writer.expr("nat", nat);
    }
}

/// What is written of one rule.
struct RuleWriter {
    list: Attrs,
    /// The protocol that packets are known to have: its header may be looked at.
    protocol: Option<Protocol>,
    family: Family,
}

impl RuleWriter {
    fn expr(&mut self, name: &str, attrs: Attrs) {
        let list = std::mem::take(&mut self.list);
        self.list = list.nested(1, Attrs::new().text(1, name).nested(2, attrs));
    }

    /// A number below `modulus`.
    fn choose(&mut self, turn: Turn, modulus: u32) {
        let counter = |kind| Attrs::new().be32(1, REG).be32(2, modulus).be32(3, kind).be32(4, 0);
        match turn {
            Turn::Each => self.expr("numgen", counter(0)),
            Turn::Random => self.expr("numgen", counter(1)),
            Turn::OfSource => {
                self.load_addr(version_of(self.family), Side::Source, SECOND_REG);
                let length = addr_type(self.family).length;
                let hash = Attrs::new().be32(1, SECOND_REG).be32(2, REG).be32(3, length).be32(4, modulus);
                // NFT_HASH_JENKINS
                self.expr("hash", hash.be32(5, HASH_SEED).be32(6, 0).be32(7, 0));
            }
        }
    }

    fn meta(&mut self, key: u32) {
        self.expr("meta", Attrs::new().be32(2, key).be32(1, REG));
    }

    fn ct(&mut self, key: u32) {
        self.expr("ct", Attrs::new().be32(2, key).be32(1, REG));
    }

    fn compare(&mut self, how: u32, value: &[u8]) {
        self.expr("cmp", Attrs::new().be32(1, REG).be32(2, how).nested(3, data(value)));
    }

    /// Keeps the bits of `mask`.
    fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        let attrs = Attrs::new().be32(1, REG).be32(2, REG).be32(3, length);
        self.expr("bitwise", attrs.nested(4, data(mask)).nested(5, data(&vec![0; mask.len()])));
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        self.expr("payload", Attrs::new().be32(1, register).be32(2, base).be32(3, offset).be32(4, length));
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expr("immediate", Attrs::new().be32(1, register).nested(2, data(value)));
    }

    fn verdict(&mut self, code: u32) {
        let verdict = Attrs::new().nested(2, Attrs::new().be32(1, code));
        self.expr("immediate", Attrs::new().be32(1, VERDICT_REG).nested(2, verdict));
    }

    /// In the rule's own map.
    fn look_up(&mut self, id: u32) {
        self.expr("lookup", Attrs::new().be32(2, REG).be32(3, REG).text(1, ANONYMOUS_NAME).be32(4, id));
    }

    fn require(&mut self, protocol: Protocol) {
        if self.protocol != Some(protocol) {
            self.meta(META_PROTOCOL);
            self.compare(EQUAL, &[protocol_number(protocol)]);
            self.protocol = Some(protocol);
        }
    }

    fn load(&mut self, key: &[Field]) {
        if key.iter().any(|field| matches!(field, Field::UdpPort(_))) {
            self.require(Protocol::Udp);
        }
        let mut offset = 0;
        for field in key {
            let register = if offset == 0 { REG } else { REG32 + offset / 4 };
            match field {
                Field::Protocol => self.expr("meta", Attrs::new().be32(2, META_PROTOCOL).be32(1, register)),
                Field::Port | Field::UdpPort(Side::Destination) => self.payload(TRANSPORT_HEADER, 2, 2, register),
                Field::UdpPort(Side::Source) => self.payload(TRANSPORT_HEADER, 0, 2, register),
                Field::Addr(side) => self.load_addr(version_of(self.family), *side, register),
                Field::LinkIn => self.expr("meta", Attrs::new().be32(2, META_LINK_IN).be32(1, register)),
                Field::SourceMac => self.payload(LINK_HEADER, 6, MAC_LEN, register),
                Field::Source(version) => self.load_addr(*version, Side::Source, register),
                Field::ArpMac => self.payload(NETWORK_HEADER, 8, MAC_LEN, register),
                Field::ArpAddr => self.payload(NETWORK_HEADER, 14, 4, register),
            }
            offset += match field {
                Field::Addr(_) => addr_type(self.family).length,
                Field::Source(version) => addr_part(*version).1,
                Field::Protocol | Field::Port | Field::UdpPort(_) | Field::ArpAddr => 4,
                Field::LinkIn => LINK_PART.1,
                Field::SourceMac | Field::ArpMac => MAC_LEN.next_multiple_of(4),
            };
        }
    }

    fn load_addr(&mut self, version: Version, side: Side, register: u32) {
        let offset = match (version, side) {
            (Version::V4, Side::Source) => 12,
            (Version::V4, Side::Destination) => 16,
            (Version::V6, Side::Source) => 8,
            (Version::V6, Side::Destination) => 24,
        };
        self.payload(NETWORK_HEADER, offset, addr_part(version).1, register);
    }

    fn ethertype(&mut self, wanted: u16) {
        self.meta(META_ETHERTYPE);
        self.compare(EQUAL, &wanted.to_be_bytes());
    }

    fn simple(&mut self, expr: &Expr) {
        match expr {
            Expr::ToHere => {
                // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR
                self.expr("fib", Attrs::new().be32(3, 2).be32(2, 3).be32(1, REG));
                self.compare(EQUAL, &RTN_LOCAL.to_ne_bytes());
            }
            Expr::Protocol(protocol) => self.require(*protocol),
            Expr::ToPort(protocol, port) => {
                self.require(*protocol);
                self.payload(TRANSPORT_HEADER, 2, 2, REG);
                self.compare(EQUAL, &port.to_be_bytes());
            }
            Expr::FirstPort(port) => {
                self.expr("ct", Attrs::new().be32(2, CT_PORT_TO).be32(1, REG).u8(3, 0));
                self.compare(EQUAL, &port.to_be_bytes());
            }
            Expr::Link(way, is, name) => {
                self.meta(if *way == Way::In { META_LINK_IN } else { META_LINK_OUT });
                self.compare(how(*is), &link_name(name));
            }
            Expr::Addr(side, is, net) => {
                self.load_addr(Version::of(net.ip()), *side, REG);
                let mask = addr_bytes(&net.mask());
                if mask.iter().any(|byte| *byte != 0xff) {
                    self.mask(&mask);
                }
                self.compare(how(*is), &addr_bytes(&net.network()));
            }
            Expr::Ip(Version::V4) => self.ethertype(ETHERTYPE_IPV4),
            Expr::Ip(Version::V6) => self.ethertype(ETHERTYPE_IPV6),
            Expr::Arp => {
                self.ethertype(ETHERTYPE_ARP);
                self.payload(NETWORK_HEADER, 0, 4, REG);
                self.compare(EQUAL, &ARP_KINDS);
                self.payload(NETWORK_HEADER, 4, 2, REG);
                self.compare(EQUAL, &ARP_LENGTHS);
            }
            Expr::Icmp(kind) => {
                self.meta(META_PROTOCOL);
                self.compare(EQUAL, &[ICMP]);
                self.payload(TRANSPORT_HEADER, 0, 1, REG);
                self.compare(EQUAL, &[*kind]);
            }
            Expr::Icmp6(kind) => {
                if self.family == Family::Bridge {
                    self.payload(LINK_HEADER, 12, 2, REG);
                    self.compare(EQUAL, &ETHERTYPE_IPV6.to_be_bytes());
                }
                self.meta(META_PROTOCOL);
                self.compare(EQUAL, &[ICMP6]);
                self.payload(TRANSPORT_HEADER, 0, 1, REG);
                self.compare(EQUAL, &[*kind]);
            }
            Expr::Advertises(addr) => {
                self.payload(TRANSPORT_HEADER, 8, 16, REG);
                self.compare(EQUAL, &addr.octets());
            }
            Expr::Vni(vni) => {
                self.payload(TRANSPORT_HEADER, 12, 3, REG);
                self.compare(EQUAL, &vni.to_be_bytes()[1..]);
            }
            Expr::NewFlow => self.has_bits(CT_STATE, CT_STATE_NEW),
            Expr::Translated => self.has_bits(CT_STATUS, CT_STATUS_DNAT),
            Expr::Direction(direction) => {
                self.ct(CT_DIRECTION);
                self.compare(EQUAL, &[u8::from(*direction == Direction::Reply)]);
            }
            Expr::Marked => {
                self.ct(CT_MARK);
                self.compare(NOT_EQUAL, &[0; 4]);
            }
            Expr::In(key, set) => {
                self.load(key);
                self.expr("lookup", Attrs::new().be32(2, REG).text(1, set));
            }
            Expr::Jump(key, map) => {
                self.load(key);
                self.expr("lookup", Attrs::new().be32(2, REG).be32(3, VERDICT_REG).text(1, map));
            }
            Expr::JumpTo(chain) => {
                let verdict = Attrs::new().nested(2, Attrs::new().be32(1, JUMP).text(2, chain));
                self.expr("immediate", Attrs::new().be32(1, VERDICT_REG).nested(2, verdict));
            }
            Expr::Remember(set, key) => {
                self.load(key);
                // NFT_DYNSET_OP_UPDATE
                self.expr("dynset", Attrs::new().be32(4, REG).be32(3, 1).text(1, set));
            }
            Expr::RestoreMark => {
                self.ct(CT_MARK);
                self.expr("meta", Attrs::new().be32(2, META_MARK).be32(3, REG));
            }
            Expr::SetSource(addr) => {
                self.immediate(REG, &addr.octets());
                // With the header's checksum at 10, and the transport header's, which covers addresses.
                let place = Attrs::new().be32(5, REG).be32(2, NETWORK_HEADER).be32(3, 12).be32(4, 4);
                self.expr("payload", place.be32(6, 1).be32(7, 10).be32(8, 1));
            }
            Expr::Masquerade => self.expr("masq", Attrs::new()),
            Expr::SendFrom(addr) => {
                self.immediate(REG, &addr.octets());
                // NFT_NAT_SNAT
                let family = family_number(self.family).into();
                self.expr("nat", Attrs::new().be32(1, 0).be32(2, family).be32(3, REG));
            }
            Expr::Accept => self.verdict(NF_ACCEPT),
            Expr::Return => self.verdict(RETURN),
            Expr::Drop => self.verdict(NF_DROP),
            Expr::Reset => self.expr("reject", Attrs::new().be32(1, 1).u8(2, 0)),
            Expr::Reject => {
                // Port unreachable.
                let code = if self.family == Family::V4 { 3 } else { 4 };
                self.expr("reject", Attrs::new().be32(1, 0).u8(2, code));
            }
            // These need a map of their own.
            Expr::SendTo(..) | Expr::ZoneOf(_) | Expr::MarkOf(_) => {}
        }
    }

    fn has_bits(&mut self, key: u32, bits: u32) {
        self.ct(key);
        self.mask(&bits.to_ne_bytes());
        self.compare(NOT_EQUAL, &[0; 4]);
    }
}

fn how(is: Is) -> u32 {
    if is == Is::Yes { EQUAL } else { NOT_EQUAL }
}

/// The beginning of a name, or all of it with what follows it.
fn link_name(name: &str) -> Vec<u8> {
    match name.strip_suffix('*') {
        Some(beginning) => beginning.as_bytes().to_vec(),
        None => {
            let mut whole = name.as_bytes().to_vec();
            whole.resize(LINK_NAME_LEN as usize, 0);
            whole
        }
    }
}

/// In which order the bytes of a value are; `nft` shows values by it.
#[derive(Clone, Copy)]
enum Order {
    /// Several values.
    Mixed = 0,
    Host = 1,
    Big = 2,
}

#[derive(Clone, Copy)]
struct Type {
    number: u32,
    length: u32,
    order: Order,
}

impl Type {
    /// Several parts, each filled up to four bytes.
    fn several(parts: &[(u32, u32)]) -> Self {
        let number = parts.iter().fold(0, |number, (part, _)| (number << TYPE_BITS) | part);
        let length = parts.iter().map(|(_, length)| length.next_multiple_of(4)).sum();
        Self { number, length, order: Order::Mixed }
    }
}

const MAC_LEN: u32 = 6;
/// The type and the length of a part of a key.
const LINK_PART: (u32, u32) = (TYPE_LINK, LINK_NAME_LEN);
const MAC_PART: (u32, u32) = (TYPE_MAC, MAC_LEN);

fn addr_part(version: Version) -> (u32, u32) {
    match version {
        Version::V4 => (TYPE_IPV4, 4),
        Version::V6 => (TYPE_IPV6, 16),
    }
}

/// Of the addresses that a table's sets have and its rules look at by default.
fn version_of(family: Family) -> Version {
    match family {
        Family::V4 | Family::Bridge => Version::V4,
        Family::V6 => Version::V6,
    }
}

fn addr_type(family: Family) -> Type {
    let (number, length) = addr_part(version_of(family));
    Type { number, length, order: Order::Big }
}

/// A counter of each element's own.
fn counter() -> Attrs {
    Attrs::new().text(1, "counter").nested(2, Attrs::new())
}

/// For `nft list`: the kernel stores it and does not look at it.
fn byte_orders(key: Order, value: Option<Order>) -> Vec<u8> {
    let mut bytes = vec![0, 4];
    bytes.extend((key as u32).to_ne_bytes());
    if let Some(value) = value {
        bytes.extend([1, 4]);
        bytes.extend((value as u32).to_ne_bytes());
    }
    bytes
}

fn data(value: &[u8]) -> Attrs {
    Attrs::new().bytes(1, value)
}

fn element(element: &Element) -> Attrs {
    let attrs = Attrs::new().nested(1, data(&key_bytes(&element.key)));
    match &element.chain {
        Some(chain) => attrs.nested(2, Attrs::new().nested(2, Attrs::new().be32(1, JUMP).text(2, chain))),
        None => attrs,
    }
}

pub(super) fn key_bytes(key: &Key) -> Vec<u8> {
    match key {
        Key::Addr(addr) => addr_bytes(addr),
        Key::Port(protocol, port) => {
            let [high, low] = port.to_be_bytes();
            vec![protocol_number(*protocol), 0, 0, 0, high, low, 0, 0]
        }
        Key::AddrPort(addr, protocol, port) => [addr_bytes(addr), key_bytes(&Key::Port(*protocol, *port))].concat(),
        Key::Link(link) => link_name(link),
        Key::LinkMac(link, mac) => [link_name(link), mac_bytes(mac)].concat(),
        Key::LinkAddr(link, addr) => [link_name(link), addr_bytes(addr)].concat(),
        Key::LinkMacAddr(link, mac, addr) => [link_name(link), mac_bytes(mac), addr_bytes(addr)].concat(),
    }
}

/// Filled up to a multiple of four.
fn mac_bytes(mac: &Mac) -> Vec<u8> {
    let mut bytes = mac.0.to_vec();
    bytes.extend([0; 2]);
    bytes
}

fn target(target: &Destination) -> Vec<u8> {
    let mut bytes = addr_bytes(&target.addr);
    if let Some(port) = target.port {
        bytes.extend(port.to_be_bytes());
        bytes.extend([0; 2]);
    }
    bytes
}

fn addr_bytes(addr: &IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}
