//! The DNS server's answers: names of the networks that a task is on; everything else is for the node's resolvers.
//!
//! Answers live 0 seconds ([`TTL_S`]): the server is on the same machine, so that asking again costs microseconds, and a
//! cached answer would be the only one that can be stale.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SRV},
    },
};

/// See the module's documentation.
pub const TTL_S: u32 = 0;
/// What a client without EDNS takes over UDP.
const PLAIN_UDP_LEN: u16 = 512;
/// Never send more than this over UDP, whatever the client says: it must fit the tunnel's MTU unfragmented.
const MAX_UDP_LEN: u16 = 1232;

/// The names of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkNames {
    network: String,
    forward: BTreeMap<String, Vec<IpAddr>>,
    reverse: BTreeMap<IpAddr, String>,
    /// `_port._proto.service` to the tasks that serve it.
    located: BTreeMap<String, Vec<Located>>,
}

/// Where a port of a service is: on a task that has a name of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Located {
    task: String,
    port: u16,
}

/// A service's tasks that serve, as SRV answers need them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports {
    /// The port's name (empty: none), the protocol's word, the port in the tasks.
    pub declared: Vec<(String, &'static str, u16)>,
    /// The first name of each serving task.
    pub tasks: Vec<String>,
}

impl NetworkNames {
    #[must_use]
    pub fn new(network: &str) -> Self {
        Self { network: network.to_lowercase(), ..Self::default() }
    }

    /// A service's names lead to its virtual addresses, or to its tasks when it has none; `tasks.NAME` always to tasks.
    /// A service that has no tasks now is known all the same.
    pub fn add_service(&mut self, names: &[String], vips: &[IpAddr], backends: &[IpAddr]) {
        let addrs = if vips.is_empty() { backends } else { vips };
        for name in names {
            self.add(name, addrs);
            self.add(&format!("tasks.{name}"), backends);
        }
        for (vip, name) in vips.iter().zip(names.iter().cycle()) {
            self.reverse.entry(*vip).or_insert_with(|| name.to_lowercase());
        }
    }

    /// `_http._tcp.web`, or `_80._tcp.web`, leads to each serving task and its port.
    pub fn add_ports(&mut self, names: &[String], ports: &Ports) {
        for (port_name, protocol, port) in &ports.declared {
            let numbered = port.to_string();
            let of_port = [port_name, &numbered].into_iter().filter(|name| !name.is_empty());
            for key in of_port.flat_map(|port| names.iter().map(move |name| (port, name))) {
                let name = format!("_{}._{protocol}.{}", key.0, key.1).to_lowercase();
                for name in [format!("{name}.{}", self.network), name] {
                    let located = self.located.entry(name).or_default();
                    let tasks = ports.tasks.iter().map(|task| Located { task: task.to_lowercase(), port: *port });
                    located.extend(tasks.filter(|task| !located.contains(task)).collect::<Vec<_>>());
                }
            }
        }
    }

    /// A task's names lead to it, serving or not.
    pub fn add_task(&mut self, names: &[String], addrs: &[IpAddr]) {
        for name in names {
            self.add(name, addrs);
        }
        for (addr, name) in addrs.iter().zip(names.iter().cycle()) {
            self.reverse.entry(*addr).or_insert_with(|| name.to_lowercase());
        }
    }

    /// Two services may share an alias: then it leads to both.
    fn add(&mut self, name: &str, addrs: &[IpAddr]) {
        let name = name.to_lowercase();
        let qualified = format!("{name}.{}", self.network);
        for name in [name, qualified] {
            let known = self.forward.entry(name).or_default();
            known.extend(addrs.iter().filter(|a| !known.contains(a)).copied().collect::<Vec<_>>());
        }
    }
}

/// What one task may ask.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// In the order of its attachments: the first network that knows a name answers.
    pub networks: Vec<Arc<NetworkNames>>,
    /// Whether names from outside are asked for it.
    pub forward: bool,
}

/// How a query came, which limits the length of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What to do with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Reply(Vec<u8>),
    /// The node's resolvers know.
    Forward,
    /// Not a query: dropped, counted.
    Malformed,
}

/// Answers `query`; `turn` rotates addresses, so that clients that take the first spread.
#[must_use]
pub fn answer(query: &[u8], view: &View, turn: usize, transport: Transport) -> Answer {
    let Ok(request) = Message::from_vec(query) else { return Answer::Malformed };
    if request.metadata.message_type != MessageType::Query {
        return Answer::Malformed;
    }
    if request.metadata.op_code != OpCode::Query {
        return reply(&request, vec![], ResponseCode::NotImp, transport);
    }
    let [question] = &request.queries[..] else {
        return reply(&request, vec![], ResponseCode::FormErr, transport);
    };
    if question.query_class() == DNSClass::IN {
        let known = match question.query_type() {
            RecordType::PTR => pointer(question.name(), view),
            RecordType::SRV => services(question.name(), view, turn),
            wanted => addresses(question.name(), wanted, view, turn),
        };
        if let Some(records) = known {
            let more = records.iter().flat_map(|record| located_at(record, view)).collect();
            return reply_with(&request, records, more, ResponseCode::NoError, transport);
        }
    }
    if view.forward { Answer::Forward } else { reply(&request, vec![], ResponseCode::ServFail, transport) }
}

/// The reply when no resolver answered; `None` for what is not a query.
#[must_use]
pub fn servfail(query: &[u8]) -> Option<Vec<u8>> {
    let request = Message::from_vec(query).ok()?;
    match reply(&request, vec![], ResponseCode::ServFail, Transport::Udp) {
        Answer::Reply(bytes) => Some(bytes),
        Answer::Forward | Answer::Malformed => None,
    }
}

/// The records of a name that a network knows; empty when it has none of the wanted type.
fn addresses(name: &Name, wanted: RecordType, view: &View, turn: usize) -> Option<Vec<Record>> {
    let key = name.to_ascii().to_lowercase();
    let key = key.trim_end_matches('.');
    let addrs = view.networks.iter().find_map(|network| network.forward.get(key))?;
    let of_type: Vec<_> = addrs.iter().filter_map(|addr| rdata(*addr, wanted)).collect();
    let start = turn.checked_rem(of_type.len()).unwrap_or_default();
    let (tail, head) = of_type.split_at(start);
    Some(head.iter().chain(tail).map(|data| Record::from_rdata(name.clone(), TTL_S, data.clone())).collect())
}

fn rdata(addr: IpAddr, wanted: RecordType) -> Option<RData> {
    match addr {
        IpAddr::V4(v4) => matches!(wanted, RecordType::A | RecordType::ANY).then_some(RData::A(A(v4))),
        IpAddr::V6(v6) => matches!(wanted, RecordType::AAAA | RecordType::ANY).then_some(RData::AAAA(AAAA(v6))),
    }
}

fn pointer(name: &Name, view: &View) -> Option<Vec<Record>> {
    let addr = name.parse_arpa_name().ok()?.addr();
    let known = view
        .networks
        .iter()
        .find_map(|network| network.reverse.get(&addr).map(|name| format!("{name}.{}.", network.network)))?;
    let target = Name::from_ascii(known).ok()?;
    Some(vec![Record::from_rdata(name.clone(), TTL_S, RData::PTR(PTR(target)))])
}

/// The tasks that serve a port; `None` when it is no such name, or nobody's.
fn services(name: &Name, view: &View, turn: usize) -> Option<Vec<Record>> {
    let key = name.to_ascii().to_lowercase();
    let key = key.trim_end_matches('.');
    let Some((network, located)) = view.networks.iter().find_map(|n| Some((n, n.located.get(key)?))) else {
        // A name that is known has no such records, which is an answer too.
        return addresses(name, RecordType::SRV, view, turn);
    };
    let start = turn.checked_rem(located.len()).unwrap_or_default();
    let (tail, head) = located.split_at(start);
    let record = |at: &Located| {
        let target = Name::from_ascii(format!("{}.{}.", at.task, network.network)).ok()?;
        Some(Record::from_rdata(name.clone(), TTL_S, RData::SRV(SRV::new(0, 1, at.port, target))))
    };
    Some(head.iter().chain(tail).filter_map(record).collect())
}

/// Addresses of what an SRV record names, so that nobody has to ask for them too.
fn located_at(record: &Record, view: &View) -> Vec<Record> {
    let RData::SRV(located) = &record.data else { return Vec::new() };
    addresses(&located.target, RecordType::ANY, view, 0).unwrap_or_default()
}

fn reply(request: &Message, answers: Vec<Record>, code: ResponseCode, transport: Transport) -> Answer {
    reply_with(request, answers, Vec::new(), code, transport)
}

fn reply_with(
    request: &Message,
    answers: Vec<Record>,
    additionals: Vec<Record>,
    code: ResponseCode,
    transport: Transport,
) -> Answer {
    let mut message = Message::response(request.metadata.id, request.metadata.op_code);
    message.metadata = Metadata::response_from_request(&request.metadata);
    message.metadata.recursion_available = true;
    message.metadata.authoritative = code == ResponseCode::NoError;
    message.metadata.response_code = code;
    message.add_queries(request.queries.iter().cloned());
    message.add_answers(answers);
    message.add_additionals(additionals);
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_LEN);
        message.set_edns(edns);
    }
    match (message.to_vec(), transport) {
        (Ok(bytes), Transport::Udp) if bytes.len() > usize::from(udp_limit(request)) => {
            shortened(message, udp_limit(request).into()).map_or(Answer::Malformed, Answer::Reply)
        }
        (Ok(bytes), _) => Answer::Reply(bytes),
        // What was parsed can be written again; should it not, saying nothing is right.
        (Err(_), _) => Answer::Malformed,
    }
}

/// With as many answers as fit: some clients never ask again by TCP, and one address is as good as another.
fn shortened(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let answers = std::mem::take(&mut message.answers);
    message.additionals.clear();
    let mut of = |count: usize| {
        message.answers = answers[..count].to_vec();
        message.metadata.truncation = count < answers.len();
        message.to_vec().ok()
    };
    let (mut fits, mut too_many) = (0, answers.len() + 1);
    while too_many - fits > 1 {
        let middle = fits.midpoint(too_many);
        let is_short = of(middle).is_some_and(|bytes| bytes.len() <= limit);
        *(if is_short { &mut fits } else { &mut too_many }) = middle;
    }
    of(fits)
}

fn udp_limit(request: &Message) -> u16 {
    request.edns.as_ref().map_or(PLAIN_UDP_LEN, |edns| edns.max_payload().clamp(PLAIN_UDP_LEN, MAX_UDP_LEN))
}
