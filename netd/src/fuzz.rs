//! What nobody would tell the daemon: desired networks and attachments with values that do not belong, made from usual ones.
//!
//! Whatever it is told, it is refused in words or planned: nothing panics, takes long, or names anything outside the
//! daemon's own. A failure names its seed; `ORCH_FUZZ_INPUTS` says how many are tried.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message as DnsMessage, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use orch_model::{
    TaskId,
    assignment::{Assignment, Peer, ServiceEndpointItem},
    service::Balance,
};
use orch_netd_core::{
    counts,
    desired::{Desired, LocalTask},
    dns::{Answer, Transport, answer},
    flows,
    gateway::Gateway,
    ns::{NsName, Observed},
    ops::{NetOp, steps},
    plan::{Inputs, NodeFacts, Plan, plan},
    resolv, trace,
};
use orch_proto::{
    conv::ToProto as _,
    wire::{AttachTaskRequest, DesiredNetworks, DnsConfig},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    engine::decode,
    nft::tests::{random::seeded, scenario::Scenario},
    store::local_task,
};

const INPUTS: u64 = 2_000;
/// No small input may take longer, however slow the machine.
const SLOWEST: Duration = Duration::from_secs(5);
/// Bends of one input at most.
const MAX_BENDS: u64 = 4;
/// The rules of a few services and tasks.
const MAX_RULES_LEN: usize = 64 * 1024;
/// What a link's name has room for.
const MAX_LINK_LEN: usize = 15;

/// Texts that programs stumble over, and some that belong elsewhere.
const TEXTS: &[&[u8]] = &[
    b"",
    b"..",
    b"../../../etc/passwd",
    b"\0",
    b"a\nnameserver 192.0.2.1",
    b"\"; flush ruleset; #",
    b"\xff\xfe",
    b"\xe2\x80\xae.example",
    b"xn--",
    b"-1",
    b"0.0.0.0",
    b"255.255.255.255",
    b"127.0.0.1",
    b"0.0.0.0/0",
    b"10.0.1.0/33",
    b"172.18.0.0/16",
    b"::",
    b"::1",
    b"::/0",
    b"fe80::1",
    b"ff02::1/128",
    b"::ffff:10.0.1.11",
    b"10.0.1.11/32",
    b"99999999999999999999",
    b"000000000000000000000000a",
    b"zzzzzzzzzzzzzzzzzzzzzzzzz",
    b"a.very.long.name.of.many.labels.that.goes.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.\
      and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on.and.on",
];
const NUMBERS: &[u64] = &[0, 1, 2, 10, 255, 4_096, 65_535, 65_536, 0xff_ffff, 0x100_0000, u32::MAX as u64, u64::MAX];

/// A message as the wire has it, without knowing what it says.
#[derive(Clone)]
enum Value {
    Number(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}

/// `None` for what is no message.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let mut take = |length: usize| -> Option<Vec<u8>> {
            let (taken, rest) = bytes.split_at_checked(length)?;
            bytes = rest;
            Some(taken.to_vec())
        };
        let value = match tag & 7 {
            1 => Value::Fixed(take(8)?),
            5 => Value::Fixed(take(4)?),
            0 => Value::Number(varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (taken, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Value::Bytes(taken.to_vec())
            }
            _ => return None,
        };
        fields.push((tag, value));
    }
    Some(fields)
}

fn encoded(fields: &[(u64, Value)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, value) in fields {
        prost::encoding::encode_varint(*tag, &mut bytes);
        match value {
            Value::Number(number) => prost::encoding::encode_varint(*number, &mut bytes),
            Value::Fixed(fixed) => bytes.extend(fixed),
            Value::Bytes(inner) => {
                prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
                bytes.extend(inner);
            }
        }
    }
    bytes
}

/// The message with one thing in it, at whatever depth, that is something else, missing, or there twice.
fn bent(numbers: &mut StdRng, message: &[u8]) -> Vec<u8> {
    let Some(mut fields) = fields(message).filter(|fields| !fields.is_empty()) else { return message.to_vec() };
    let at = numbers.random_range(0..fields.len());
    match numbers.random_range(0..12) {
        0 => drop(fields.remove(at)),
        1 => fields.insert(at, fields[at].clone()),
        // Somebody else's value.
        2 => fields[at].1 = fields[numbers.random_range(0..fields.len())].1.clone(),
        _ => match &mut fields[at].1 {
            Value::Number(number) => *number = NUMBERS[numbers.random_range(0..NUMBERS.len())],
            Value::Fixed(fixed) => fixed.reverse(),
            Value::Bytes(inner)
                if self::fields(inner).is_some_and(|f| !f.is_empty()) && numbers.random_range(0..8) > 0 =>
            {
                *inner = bent(numbers, inner);
            }
            Value::Bytes(inner) => *inner = TEXTS[numbers.random_range(0..TEXTS.len())].to_vec(),
        },
    }
    encoded(&fields)
}

fn bent_message<M: prost::Message + Default>(numbers: &mut StdRng, message: &M) -> Option<M> {
    let mut bytes = message.encode_to_vec();
    for _ in 0..numbers.random_range(0..=MAX_BENDS) {
        bytes = bent(numbers, &bytes);
    }
    M::decode(&bytes[..]).ok()
}

fn told(scenario: &Scenario) -> (DesiredNetworks, Vec<AttachTaskRequest>) {
    let weighted = |item: &Assignment| match item.clone() {
        Assignment::Peer(peer) => Assignment::Peer(Peer { weight: Some(peer.index), ..peer }),
        Assignment::ServiceEndpoint(service) => {
            Assignment::ServiceEndpoint(ServiceEndpointItem { balance: Some(Balance::Weighted), ..service })
        }
        other => other,
    };
    let desired = DesiredNetworks {
        sequence: 1,
        node_id: scenario.desired().node.unwrap().to_string(),
        items: scenario.items.iter().map(|item| weighted(item).to_proto()).collect(),
    };
    let request = |task: &LocalTask| AttachTaskRequest {
        task_id: task.id.to_string(),
        service_id: String::new(),
        hostname: task.hostname.clone(),
        attachments: task.attachments.to_proto(),
        host_ports: task.host_ports.to_proto(),
        dns: Some(DnsConfig {
            nameservers: vec!["192.0.2.1".to_owned()],
            search: vec!["example.org".to_owned()],
            options: vec!["ndots:2".to_owned()],
        }),
        no_way_out: false,
    };
    (desired, scenario.tasks.values().map(request).collect())
}

#[test]
fn whatever_the_daemon_is_told_is_refused_or_planned() {
    let inputs = std::env::var("ORCH_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(INPUTS);
    let (mut planned, mut refused) = (0_u64, 0_u64);
    for seed in 0..inputs {
        let input = std::panic::catch_unwind(|| {
            let start = Instant::now();
            let is_planned = one(seed);
            assert!(start.elapsed() < SLOWEST, "it took {:?}", start.elapsed());
            is_planned
        });
        match input.unwrap_or_else(|_| panic!("seed {seed}")) {
            true => planned += 1,
            false => refused += 1,
        }
    }
    // Else nothing of it was tried.
    assert!(planned > inputs / 5 && refused > inputs / 50, "{planned} planned, {refused} refused");
}

/// Whether it was planned.
fn one(seed: u64) -> bool {
    let mut numbers = StdRng::seed_from_u64(seed);
    let (before, after) = seeded(seed);
    let before = before.plan();
    let (desired, requests) = told(&after);
    let Some(desired) = bent_message(&mut numbers, &desired) else { return false };
    let desired = match decode(desired) {
        Ok(desired) => desired,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let tasks = attached(&mut numbers, &desired, requests);
    let facts =
        NodeFacts { gateway: Gateway::choose(&[]).unwrap(), underlay_mtu: 1500, filters_bridges: true, encrypts: true };
    let suspects = BTreeSet::new();
    let inputs =
        Inputs { desired: &desired, tasks: &tasks, suspects: &suspects, facts, way_out_v6: after.way_out_v6.as_ref() };
    let plan = plan(inputs);
    let _ = flows::cuts(&before.standings, &plan.standings);
    look_at_steps(&plan, &desired);
    ask(&plan, &desired);
    for (task, name) in tasks.values().flat_map(|task| names(&desired).into_iter().map(move |name| (task, name))) {
        let _ = trace::trace(&inputs, task, &name);
    }
    true
}

fn attached(numbers: &mut StdRng, desired: &Desired, requests: Vec<AttachTaskRequest>) -> BTreeMap<TaskId, LocalTask> {
    let mut tasks = BTreeMap::new();
    for (number, request) in requests.iter().enumerate() {
        let Some(request) = bent_message(numbers, request) else { continue };
        let dns = request.dns.clone().unwrap_or_default();
        let Ok(task) = local_task(request, Ipv4Addr::new(172, 18, 0, 2 + u8::try_from(number).unwrap())) else {
            continue;
        };
        let conf = resolv::render(&dns.search, &dns.options, &resolv::ResolvConf::default());
        for line in conf.lines() {
            let word = line.split(' ').next().unwrap_or_default();
            assert!(matches!(word, "nameserver" | "search" | "options"), "{line:?} in a container's resolv.conf");
            assert!(word != "nameserver" || line == "nameserver 127.0.0.11", "{line:?}");
        }
        let _ = task.primary_addr(desired);
        if task.attachments.iter().all(|a| desired.can_attach(&a.network)) {
            tasks.insert(task.id.clone(), task);
        }
    }
    tasks
}

fn look_at_steps(plan: &Plan, desired: &Desired) {
    for (name, ns) in &plan.namespaces {
        for op in steps(name, ns, &Observed::default()) {
            match &op {
                NetOp::CreateLink { name: link, .. } => {
                    assert!(
                        link.len() <= MAX_LINK_LEN
                            && link.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
                    );
                    assert!(*name != NsName::Host || name.may_remove(link), "{link} is not the daemon's own");
                }
                NetOp::SetSysctl { path, value } => {
                    let is_known = path.starts_with("net/ipv")
                        || (*name != NsName::Host && path.starts_with("net/bridge/bridge-nf-call-"));
                    assert!(is_known && !path.contains("..") && value.parse::<u32>().is_ok(), "{path}");
                }
                _ => {}
            }
        }
        // Weights multiply what is sent to; nothing else does.
        let text = ns.ruleset.to_string();
        assert!(text.len() < MAX_RULES_LEN && !text.contains("flush ruleset"), "{} bytes of rules", text.len());
        for table in &ns.ruleset.tables {
            assert!(table.name.starts_with("orch_"), "{}", table.name);
            for element in table.sets.iter().flat_map(|set| set.elements.iter().map(move |e| (set.name, &e.key))) {
                let _ = counts::meaning(desired, name, element.0, element.1);
            }
        }
    }
}

/// All that anybody may ask for, with what nobody made sure of.
fn names(desired: &Desired) -> BTreeSet<String> {
    let services = desired.services.values().flat_map(BTreeMap::values).flat_map(|service| service.names.clone());
    let tasks = desired.endpoints.values().flat_map(BTreeMap::values).flat_map(|endpoint| endpoint.names.clone());
    services.chain(tasks).collect()
}

fn ask(plan: &Plan, desired: &Desired) {
    for name in names(desired) {
        for (prefix, kind) in [("", RecordType::ANY), ("tasks.", RecordType::AAAA), ("_80._tcp.", RecordType::SRV)] {
            let Ok(name) = Name::from_ascii(format!("{prefix}{name}.")) else { continue };
            let mut query = DnsMessage::new(7, MessageType::Query, OpCode::Query);
            query.add_query(Query::query(name, kind));
            let query = query.to_vec().unwrap();
            for view in plan.views.values() {
                if let Answer::Reply(reply) = answer(&query, view, 0, Transport::Udp) {
                    assert!(DnsMessage::from_vec(&reply).is_ok(), "an answer that nobody can read");
                }
            }
        }
    }
}
