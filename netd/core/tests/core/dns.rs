//! DNS answers, one row each.

use std::{net::IpAddr, sync::Arc};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use orch_netd_core::dns::{Answer, NetworkNames, Ports, Transport, View, answer, servfail};

fn v4(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, last])
}

fn view() -> View {
    let texts = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let v6 = "fd00::1".parse().unwrap();
    let mut first = NetworkNames::new("Shop_Default");
    first.add_service(&texts(&["shop_web", "web"]), &[v4(2), v6], &[v4(11), v4(12), v4(13)]);
    first.add_service(&texts(&["rr"]), &[], &[v4(21), v4(22)]);
    first.add_service(&texts(&["empty"]), &[], &[]);
    first.add_task(&texts(&["shop_web.1", "shop_web.1.abc"]), &[v4(11)]);
    let declared = vec![("http".to_owned(), "tcp", 8080), (String::new(), "udp", 53)];
    first.add_ports(&texts(&["shop_web", "web"]), &Ports { declared, tasks: texts(&["shop_web.1", "shop_web.2"]) });
    let mut second = NetworkNames::new("other");
    second.add_service(&texts(&["web", "db"]), &[IpAddr::from([10, 0, 2, 2])], &[]);
    View { networks: vec![Arc::new(first), Arc::new(second)], forward: true }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// The reply in words: its code, then its records in order.
fn said(answer: Answer) -> String {
    match answer {
        Answer::Forward => "forward".to_owned(),
        Answer::Malformed => "malformed".to_owned(),
        Answer::Reply(bytes) => {
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!((message.metadata.id, message.metadata.message_type), (77, MessageType::Response));
            assert!(message.answers.iter().all(|record| record.ttl == 0));
            let records = message.answers.iter().map(|record| format!(" {}", record.data)).collect::<String>();
            let truncated = if message.metadata.truncation { " truncated" } else { "" };
            format!("{:?}{truncated}{records}", message.metadata.response_code)
        }
    }
}

#[test]
fn ports_are_located() {
    for (name, turn, expected) in [
        ("_http._tcp.web.", 0, "NoError 0 1 8080 shop_web.1.shop_default. 0 1 8080 shop_web.2.shop_default."),
        ("_8080._TCP.shop_web.", 1, "NoError 0 1 8080 shop_web.2.shop_default. 0 1 8080 shop_web.1.shop_default."),
        (
            "_http._tcp.web.shop_default.",
            2,
            "NoError 0 1 8080 shop_web.1.shop_default. 0 1 8080 shop_web.2.shop_default.",
        ),
        ("_53._udp.web.", 0, "NoError 0 1 53 shop_web.1.shop_default. 0 1 53 shop_web.2.shop_default."),
        ("web.", 0, "NoError"),
        ("_http._udp.web.", 0, "forward"),
        ("_ldap._tcp.example.org.", 0, "forward"),
    ] {
        let query = query(name, RecordType::SRV).to_vec().unwrap();
        assert_eq!(said(answer(&query, &view(), turn, Transport::Udp)), expected, "{name}");
    }
    let query = query("_http._tcp.web.", RecordType::SRV).to_vec().unwrap();
    let Answer::Reply(bytes) = answer(&query, &view(), 0, Transport::Udp) else { panic!("no reply") };
    let more: Vec<_> = Message::from_vec(&bytes).unwrap().additionals.iter().map(|r| r.data.to_string()).collect();
    assert_eq!(more, ["10.0.1.11"], "the address of the task that has one");
}

#[test]
fn names_are_answered() {
    use RecordType::{A, AAAA, MX, PTR};
    for (name, kind, turn, expected) in [
        ("web.", A, 0, "NoError 10.0.1.2"),
        ("WeB.", A, 7, "NoError 10.0.1.2"),
        ("web.", AAAA, 0, "NoError fd00::1"),
        ("shop_web.", A, 0, "NoError 10.0.1.2"),
        ("web.shop_default.", A, 0, "NoError 10.0.1.2"),
        ("web.other.", A, 0, "NoError 10.0.2.2"),
        ("tasks.web.", A, 0, "NoError 10.0.1.11 10.0.1.12 10.0.1.13"),
        ("tasks.web.", A, 1, "NoError 10.0.1.12 10.0.1.13 10.0.1.11"),
        ("tasks.web.", A, 5, "NoError 10.0.1.13 10.0.1.11 10.0.1.12"),
        ("rr.", A, 1, "NoError 10.0.1.22 10.0.1.21"),
        ("rr.", AAAA, 0, "NoError"),
        ("web.", MX, 0, "NoError"),
        ("empty.", A, 0, "NoError"),
        ("tasks.empty.", A, 3, "NoError"),
        ("shop_web.1.", A, 0, "NoError 10.0.1.11"),
        ("shop_web.1.ABC.", A, 0, "NoError 10.0.1.11"),
        ("db.", A, 0, "NoError 10.0.2.2"),
        ("example.org.", A, 0, "forward"),
        ("example.org.", AAAA, 0, "forward"),
        ("tasks.nobody.", A, 0, "forward"),
        (".", A, 0, "forward"),
        ("11.1.0.10.in-addr.arpa.", PTR, 0, "NoError shop_web.1.shop_default."),
        ("2.1.0.10.in-addr.arpa.", PTR, 0, "NoError shop_web.shop_default."),
        ("9.9.9.9.in-addr.arpa.", PTR, 0, "forward"),
    ] {
        let bytes = query(name, kind).to_vec().unwrap();
        assert_eq!(said(answer(&bytes, &view(), turn, Transport::Udp)), expected, "{name} {kind} turn {turn}");
    }
}

#[test]
fn without_a_way_out_nothing_is_forwarded() {
    let view = View { forward: false, ..view() };
    let bytes = query("example.org.", RecordType::A).to_vec().unwrap();
    assert_eq!(said(answer(&bytes, &view, 0, Transport::Udp)), "ServFail");
    assert_eq!(said(Answer::Reply(servfail(&bytes).unwrap())), "ServFail");
}

#[test]
fn what_is_no_question_is_refused_or_dropped() {
    let said_of = |message: &Message| said(answer(&message.to_vec().unwrap(), &view(), 0, Transport::Udp));
    let mut none = query("web.", RecordType::A);
    none.queries.clear();
    assert_eq!(said_of(&none), "FormErr");
    let mut two = query("web.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(said_of(&two), "FormErr");
    let mut update = query("web.", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(said_of(&update), "NotImp");
    let reply = query("web.", RecordType::A).into_response();
    assert_eq!(said_of(&reply), "Malformed".to_lowercase());
}

/// Any bytes at all: no panic, and never a reply to what is not a query.
#[test]
fn damaged_messages_are_harmless() {
    let good = query("tasks.web.", RecordType::A).to_vec().unwrap();
    for length in 0..good.len() {
        assert_eq!(answer(&good[..length], &view(), 0, Transport::Udp), Answer::Malformed, "cut to {length}");
    }
    for position in 0..good.len() {
        for value in [0, 0x3f, 0x40, 0xc0, 0xff] {
            let mut bytes = good.clone();
            bytes[position] = value;
            let _ = answer(&bytes, &view(), 0, Transport::Udp);
        }
    }
}

#[test]
fn what_does_not_fit_is_truncated_for_udp_only() {
    let mut names = NetworkNames::new("n");
    names.add_service(&["many".to_owned()], &[], &(1..=200).map(v4).collect::<Vec<_>>());
    let view = View { networks: vec![Arc::new(names)], forward: true };
    let mut message = query("many.", RecordType::A);
    let plain = message.to_vec().unwrap();
    let length = |bytes: &[u8], transport| match answer(bytes, &view, 0, transport) {
        Answer::Reply(reply) => (reply.len(), Message::from_vec(&reply).unwrap()),
        other => panic!("{other:?}"),
    };
    let (short, truncated) = length(&plain, Transport::Udp);
    assert!(short <= 512 && truncated.metadata.truncation);
    // Who never asks by TCP finds some: as many as fit.
    assert_eq!(truncated.answers.len(), (512 - 12 - 10) / 16);
    let (_, whole) = length(&plain, Transport::Tcp);
    assert_eq!((whole.answers.len(), whole.metadata.response_code), (200, ResponseCode::NoError));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    let (longer, _) = length(&message.to_vec().unwrap(), Transport::Udp);
    assert!(longer <= 1232, "never more than fits a tunnel unfragmented");
}
