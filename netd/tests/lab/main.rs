//! The daemon on real kernels' namespaces: three nodes on a switch, a client beside them, real sockets in the tasks.
//!
//! Needs root, `ip` and `nft`. All namespaces are made here, named `orchnt-*`, and removed at the end.

#![allow(clippy::unwrap_used)]

mod dns;
mod nodes;
mod sockets;
mod spoof;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use nodes::{INGRESS, Lab, Sent, USER_A, USER_B, endpoint, ingress_service, network, service, task_id};
use orch_model::{
    assignment::{Assignment, ServiceEndpointItem},
    service::{PortConfig, Protocol, PublishMode},
};

const VIP_WEB: [u8; 4] = [10, 0, 1, 2];
const VIP_IDLE: [u8; 4] = [10, 0, 1, 3];

/// The daemon process of the other tests.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn daemon() {
    if std::env::var_os("ORCH_NETD_TEST").is_none() {
        return;
    }
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    orch_netd::run(orch_netd::Config { paths: orch_proto::paths::Paths::from_env() }).unwrap();
}

/// web: tasks 1 (n1), 2 (n2) on network A and ingress; 3 (n1) on network A only, asks; 4 (n2) on network B.
fn items(serving: &[u32]) -> Vec<Assignment> {
    let mut items = vec![
        network(USER_A, "net_a", "10.0.1.0/24", false),
        network(USER_B, "net_b", "10.0.2.0/24", false),
        network(INGRESS, "ingress", "10.0.0.0/24", true),
        service(USER_A, 1, "web", &[VIP_WEB]),
        service(USER_A, 2, "idle", &[VIP_IDLE]),
        service(USER_A, 3, "asker", &[]),
        service(USER_B, 4, "other", &[]),
        ingress_service(1, &[(Protocol::Tcp, 8080, 80), (Protocol::Udp, 5353, 5000)]),
        ingress_service(2, &[(Protocol::Tcp, 8081, 81)]),
        endpoint(USER_A, 3, 3, 1, [10, 0, 1, 13], true),
        endpoint(USER_B, 4, 4, 2, [10, 0, 2, 14], true),
    ];
    for (task, node) in [(1, 1), (2, 2)] {
        let is_serving = serving.contains(&task);
        let last = 10 + u8::try_from(task).unwrap();
        items.push(endpoint(USER_A, task, 1, node, [10, 0, 1, last], is_serving));
        items.push(endpoint(INGRESS, task, 1, node, [10, 0, 0, 10 + last], is_serving));
    }
    items
}

fn started() -> Lab {
    let mut lab = Lab::up(3);
    lab.set_all(&items(&[1, 2]));
    lab.attach(1, 1, &[(INGRESS, "10.0.0.21/24"), (USER_A, "10.0.1.11/24")]);
    lab.attach(2, 2, &[(INGRESS, "10.0.0.22/24"), (USER_A, "10.0.1.12/24")]);
    lab.attach(1, 3, &[(USER_A, "10.0.1.13/24")]);
    lab.attach(2, 4, &[(USER_B, "10.0.2.14/24")]);
    for task in [1, 2] {
        let node = u8::try_from(task).unwrap();
        lab.serve(node, task, 80);
        lab.serve_udp(node, task, 5000);
    }
    lab
}

/// Who answered, over several connections.
fn who(from: &std::path::Path, to: impl Into<SocketAddr>, times: usize) -> Vec<String> {
    let to = to.into();
    let mut names: Vec<_> = (0..times).map(|_| sockets::ask(from, to).unwrap().name).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn virtual_addresses_and_names_reach_across_nodes_and_no_further() {
    let lab = started();
    let asker = lab.netns(1, 3);

    assert_eq!(who(&asker, (VIP_WEB, 80), 6), ["t1", "t2"], "the VIP reaches tasks on both nodes");
    let links = sockets::command(&asker, "ip", &["-d", "-o", "link", "show", "type", "veth"]);
    assert!(
        links.lines().count() == 2 && links.lines().all(|link| link.contains("numtxqueues 1 numrxqueues 1 ")),
        "{links}"
    );
    assert_eq!(who(&lab.netns(1, 1), (VIP_WEB, 80), 6), ["t1", "t2"], "a task reaches itself by its VIP");
    assert!(sockets::ping(&asker, VIP_WEB.into()), "the VIP answers a ping");
    let start = Instant::now();
    let refused = sockets::ask(&asker, (VIP_IDLE, 80).into()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "a service without tasks refuses at once");
    assert!(start.elapsed() < Duration::from_millis(500));

    let ask = |name| dns::ask(&asker, name);
    let addr = |last| IpAddr::from([10, 0, 1, last]);
    assert_eq!(ask("WEB"), Some(vec![VIP_WEB.into()]));
    assert_eq!(ask("tasks.web"), Some(vec![addr(11), addr(12)]));
    assert_eq!(ask("web.1"), Some(vec![addr(11)]));
    assert_eq!(ask("asker.net_a"), Some(vec![addr(13)]));
    assert_eq!(ask("idle"), Some(vec![VIP_IDLE.into()]));
    assert_eq!(dns::ask_tcp(&asker, "tasks.web"), Some(vec![addr(11), addr(12)]));
    // The nodes' resolver in this test knows one name.
    assert_eq!(ask("outside.example"), Some(vec![IpAddr::from([192, 0, 2, 7])]));
    assert_eq!(ask("other"), None, "names of another network are not known");

    let stranger = lab.netns(2, 4);
    assert_eq!(dns::ask(&stranger, "web"), None);
    assert!(sockets::ask(&stranger, (VIP_WEB, 80).into()).is_err(), "another network reaches no VIP");
    assert!(sockets::ask(&stranger, ([10, 0, 1, 12], 80).into()).is_err(), "nor a task beside it");
    assert!(sockets::ask(&stranger, ([10, 0, 0, 22], 80).into()).is_err(), "nor by the ingress network");
    assert_eq!(sockets::ask_plain(&asker, (lab.client_addr(), 7777).into()).unwrap(), "outside", "a way out");
}

#[test]
fn a_published_port_answers_on_every_node_and_keeps_the_clients_address() {
    let mut lab = started();
    let client = lab.client();
    for node in 1..=3 {
        let to = SocketAddr::from((lab.addr(node), 8080));
        assert_eq!(who(&client, to, 6), ["t1", "t2"], "node {node}");
        for _ in 0..4 {
            assert_eq!(
                sockets::ask(&client, to).unwrap().peer,
                lab.client_addr(),
                "client address through node {node}"
            );
        }
        let own = lab.host(node);
        assert_eq!(who(&own, ([127, 0, 0, 1], 8080), 6), ["t1", "t2"], "127.0.0.1 of node {node}");
        assert_eq!(who(&own, to, 6), ["t1", "t2"], "its own address from node {node}");
        let refused = sockets::ask(&client, (lab.addr(node), 8081).into()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "no backends on node {node}");
    }
    assert_eq!(who(&lab.netns(1, 3), (lab.addr(3), 8080), 6), ["t1", "t2"], "from a task by a node's address");

    // The same client by the same port through every node to the same task: each reply goes back by its own node.
    lab.set_all(&items(&[2]));
    let mut same: Vec<_> = (1..=3).map(|n| sockets::open_from(&client, 45_678, (lab.addr(n), 8080).into())).collect();
    assert_eq!(same.iter_mut().map(sockets::name).collect::<Vec<_>>(), ["t2", "t2", "t2"]);
    lab.set_all(&items(&[1, 2]));

    // Datagrams of one flow stay together.
    let flows =
        [sockets::udp(&client, (lab.addr(3), 5353).into()), sockets::udp(&lab.netns(1, 3), (VIP_WEB, 5000).into())];
    let served_by = flows.each_ref().map(sockets::ask_udp);
    assert_eq!(flows.each_ref().map(sockets::ask_udp), served_by);

    // Drained: connections that exist live on, new ones go elsewhere.
    let mut open = sockets::open(&client, (lab.addr(3), 8080).into());
    let name = sockets::name(&mut open);
    let other = if name == "t1" { 2 } else { 1 };
    lab.set_all(&items(&[other]));
    assert_eq!(who(&client, (lab.addr(3), 8080), 6), [format!("t{other}")]);
    // UDP moves on.
    flows.iter().for_each(|flow| sockets::hears_udp(flow, &format!("t{other}")));
    open.write_all(b"still there?\n").unwrap();
    let mut echoed = [0; 13];
    open.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"still there?\n");
    // Nobody serves for a while: who goes on sending is heard again.
    lab.set_all(&items(&[]));
    sockets::is_refused_udp(&flows[0]);
    lab.set_all(&items(&[1, 2]));
    assert!(["t1", "t2"].contains(&sockets::ask_udp(&flows[0]).as_str()));
}

#[test]
fn a_dead_task_is_dropped_at_once_and_its_clients_go_elsewhere() {
    let mut lab = started();
    let asker = lab.netns(1, 3);
    let start = Instant::now();
    lab.down(2, 2);
    println!("down: {:?}", start.elapsed());
    // Node 1 does not know yet: an attempt that meets the dead task hangs, and is balanced anew when it is told.
    let attempts: Vec<_> = (0..4)
        .map(|_| {
            let asker = asker.clone();
            std::thread::spawn(move || sockets::ask_within(&asker, (VIP_WEB, 80).into(), Duration::from_secs(8)))
        })
        .collect();
    // Taken in turn, half of them meet the living task and are done.
    let deadline = Instant::now() + Duration::from_secs(5);
    while attempts.iter().filter(|attempt| attempt.is_finished()).count() < 2 {
        assert!(Instant::now() < deadline, "the living task answers");
        std::thread::sleep(Duration::from_millis(10));
    }
    let hanging = attempts.iter().filter(|attempt| !attempt.is_finished()).count();
    assert!(hanging > 0, "some attempts meet the dead task and get no answer");
    let mut without = items(&[1]);
    let dead = |item: &Assignment| matches!(item, Assignment::Endpoint(endpoint) if endpoint.task == task_id(2));
    without.retain(|item| !dead(item));
    lab.set_all(&without);
    for attempt in attempts {
        assert_eq!(attempt.join().unwrap().unwrap().name, "t1", "no attempt was refused");
    }
    // On its own node it is out of balancing without any manager.
    lab.set_all(&items(&[1, 2]));
    assert_eq!(who(&lab.host(2), ([127, 0, 0, 1], 8080), 6), ["t1"]);
    lab.detach(2, 2);
    assert!(!lab.netns(2, 2).exists());
}

#[test]
fn connections_outlive_the_daemon_and_flushed_rules_come_back() {
    let mut lab = started();
    lab.attach_host_port(1, 6, 8088, 5001);
    let asker = lab.netns(1, 3);
    let mut vip = sockets::open(&asker, (VIP_WEB, 80).into());
    let mut port = sockets::open(&lab.client(), (lab.addr(1), 8080).into());
    sockets::name(&mut vip);
    sockets::name(&mut port);
    let to = SocketAddr::from((lab.addr(1), 8088));
    let flow = sockets::UdpFlow::open(&lab.netns(1, 6), 5001, &lab.client(), to);
    lab.kill(1);
    let check = |stream: &mut std::net::TcpStream| {
        stream.write_all(b"hello\n").unwrap();
        let mut echoed = [0; 6];
        stream.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"hello\n");
    };
    check(&mut vip);
    check(&mut port);
    assert_eq!(who(&asker, (VIP_WEB, 80), 6), ["t1", "t2"], "balancing needs no daemon");
    let asked = dns::Asked::send(&asker, "web");
    assert!(asked.is_silent(), "a client that asks meanwhile is not refused");
    lab.start(1);
    flow.server_speaks();
    assert_eq!(asked.again(), Some(vec![VIP_WEB.into()]), "it asks again");
    check(&mut vip);
    check(&mut port);
    assert_eq!(dns::ask(&asker, "web"), Some(vec![VIP_WEB.into()]), "it serves before anyone tells it anything");
    let status = lab.status(1);
    assert_eq!(status.tasks.len(), 3);
    assert_eq!(status.problems, Vec::<String>::new());

    for ns in [&asker, &lab.host(1)] {
        sockets::command(ns, "nft", &["flush", "ruleset"]);
    }
    sockets::command(&lab.host(1), "ip", &["link", "del", "orchg0000000003"]);
    let deadline = Instant::now() + Duration::from_secs(12);
    let repaired = || {
        sockets::ask(&asker, (VIP_WEB, 80).into()).is_ok()
            && sockets::ask(&lab.client(), (lab.addr(1), 8080).into()).is_ok()
            && sockets::ask_plain(&asker, (lab.client_addr(), 7777).into()).is_ok()
    };
    while !repaired() {
        assert!(Instant::now() < deadline, "what was flushed does not come back");
    }

    for (node, task) in [(1, 1), (1, 3), (1, 6), (2, 2), (2, 4)] {
        lab.detach(node, task);
    }
    assert_eq!(lab.status(2).networks, [INGRESS.to_string()], "sandboxes go with the last task");
    lab.assert_nothing_left_after_cleanup();
}

#[test]
fn a_namespace_that_the_worker_made_waits_for_its_task() {
    let mut lab = Lab::up(1);
    lab.set_all(&items(&[]));
    lab.kill(1);
    let [made, given_up, nobodys] = [7, 8, 9].map(|task| lab.netns(1, task));
    let number = sockets::make_netns(&made, true);
    sockets::make_netns(&given_up, true);
    sockets::make_netns(&nobodys, false);
    lab.start(1);
    assert!(!nobodys.exists(), "no remapped users: the daemon's own, left behind");
    assert_eq!(lab.status(1).tasks, [7, 8].map(|task| task_id(task).to_string()), "the worker is told of both");
    lab.detach(1, 8);
    assert!(!given_up.exists());
    lab.set_all(&items(&[]));
    lab.attach(1, 7, &[(USER_A, "10.0.1.17/24")]);
    assert_eq!(sockets::netns_number(&made), number, "the task has the namespace that was made for it");
    assert_eq!(lab.status(1).tasks, [task_id(7).to_string()]);
    lab.detach(1, 7);
    assert!(!made.exists());
}

#[test]
fn a_port_published_on_its_node_answers_there_only() {
    let mut lab = Lab::up(2);
    lab.set_all(&items(&[]));
    // One socket all the time: the node remembers where it led its datagrams.
    let sender = sockets::udp(&lab.client(), (lab.addr(1), 8088).into());
    let nobody = |sender: &std::net::UdpSocket| {
        sender.send(b"anyone?").unwrap();
        assert_eq!(sender.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    };
    nobody(&sender);
    lab.attach_host_port(1, 5, 8088, 80);
    lab.serve(1, 5, 80);
    lab.serve_udp(1, 5, 80);
    sockets::hears_udp(&sender, "t5");
    let inside = sockets::way_out_of(&lab.netns(1, 5));
    sockets::command(&lab.client(), "ip", &["route", "add", "172.18.0.0/17", "via", &lab.addr(1).to_string()]);
    let around = sockets::ask_within(&lab.client(), (inside, 80).into(), Duration::from_millis(500)).unwrap_err();
    assert_eq!(around.kind(), std::io::ErrorKind::TimedOut, "beside the port that is published");
    let said = sockets::ask(&lab.client(), (lab.addr(1), 8088).into()).unwrap();
    assert_eq!((said.name.as_str(), said.peer), ("t5", lab.client_addr()));
    assert_eq!(who(&lab.host(1), ([127, 0, 0, 1], 8088), 2), ["t5"]);
    assert_eq!(who(&lab.netns(1, 5), (lab.addr(1), 8088), 2), ["t5"], "the task itself, by its node's address");
    let elsewhere = sockets::ask(&lab.client(), (lab.addr(2), 8088).into()).unwrap_err();
    assert_eq!(elsewhere.kind(), std::io::ErrorKind::ConnectionRefused);
    // Its replacement has the port as soon as it is dead.
    lab.down(1, 5);
    lab.attach_host_port(1, 6, 8088, 80);
    lab.serve(1, 6, 80);
    assert_eq!(who(&lab.client(), (lab.addr(1), 8088), 2), ["t6"]);
    lab.serve_udp(1, 6, 80);
    sockets::hears_udp(&sender, "t6");
    lab.detach(1, 6);
    nobody(&sender);
}

#[test]
fn a_firewall_in_the_way_is_reported_until_it_lets_packets_through() {
    let mut lab = Lab::up(1);
    let host = lab.host(1);
    let nft = |words: &[&str]| sockets::command(&host, "nft", words);
    nft(&["add", "table", "ip", "filter"]);
    nft(&["add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"]);
    let mut problems = |wanted: usize| {
        let deadline = Instant::now() + Duration::from_secs(12);
        loop {
            let problems = lab.status(1).problems;
            if problems.len() == wanted {
                return problems;
            }
            assert!(Instant::now() < deadline, "{problems:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    assert!(problems(1)[0].contains("policy of chain FORWARD in table ip filter"));
    nft(&["insert rule ip filter FORWARD iifname \"orch*\" accept"]);
    problems(0);
}

/// Attaching and changing is quick enough to be in the way of nothing; the figures are printed, the limits only catch
/// disasters.
#[test]
fn many_tasks_attach_together_and_hear_of_a_change() {
    let mut lab = Lab::up(1);
    lab.set_all(&items(&[1, 2]));
    let attach = |lab: &Lab, tasks: std::ops::Range<u32>| {
        let start = Instant::now();
        let addresses: Vec<_> = tasks.map(|n| (n, format!("10.0.1.{n}/24"))).collect();
        let sent: Vec<Sent> = addresses.iter().map(|(n, a)| lab.send_attach(1, *n, &[(USER_A, a.as_str())])).collect();
        sent.into_iter().for_each(|sent| lab.wait(sent));
        start.elapsed()
    };
    let [first, one, twenty] = [100..101, 101..102, 102..122].map(|tasks| attach(&lab, tasks));
    let fifty = attach(&lab, 122..150) + twenty;
    let start = Instant::now();
    lab.set_all(&items(&[1]));
    let change = start.elapsed();
    println!(
        "attach: first {first:?}, one more {one:?}, twenty at once {twenty:?}, fifty {fifty:?}; change {change:?}"
    );
    assert!(one < Duration::from_secs(1) && twenty < Duration::from_secs(5) && change < Duration::from_secs(5));
    assert!(lab.netns(1, 121).exists() && task_id(121).as_str().len() == 25);
    let rules = sockets::command(&lab.netns(1, 121), "nft", &["list", "chain", "ip", "orch_task", "output"]);
    assert!(rules.contains("vmap @vips"), "{rules}");
}

#[test]
fn ports_of_one_address_hidden_clients_and_local_tasks_first() {
    let mut lab = started();
    let mut items = items(&[1, 2]);
    let change = |items: &mut Vec<Assignment>, change: &dyn Fn(&mut ServiceEndpointItem)| {
        for item in items {
            if let Assignment::ServiceEndpoint(service) = item {
                change(service);
            }
        }
    };
    let lo = IpAddr::from([127, 0, 0, 1]);
    change(&mut items, &|service| {
        for port in &mut service.ports {
            port.host_ip = (port.protocol == Protocol::Tcp && port.published_port == 8080).then_some(lo);
        }
        if service.ports.len() == 2 {
            let hidden = PortConfig::new(Protocol::Tcp, 8082, 80, PublishMode::Ingress);
            service.ports.push(PortConfig { masquerade: true, ..hidden });
            let hidden = PortConfig::new(Protocol::Udp, 5354, 5000, PublishMode::Ingress);
            service.ports.push(PortConfig { masquerade: true, ..hidden });
        }
    });
    lab.set_all(&items);
    for node in 1..=3 {
        assert_eq!(who(&lab.host(node), (lo, 8080), 6), ["t1", "t2"], "127.0.0.1 of node {node}");
        let refused = sockets::ask(&lab.client(), (lab.addr(node), 8080).into()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "node {node} answers on 127.0.0.1 only");
        for _ in 0..4 {
            let said = sockets::ask(&lab.client(), (lab.addr(node), 8082).into()).unwrap();
            assert_eq!(said.peer, lab.addr(node), "{} sees node {node}", said.name);
            let answered = sockets::ask_udp(&sockets::udp(&lab.client(), (lab.addr(node), 5354).into()));
            assert!(["t1", "t2"].contains(&answered.as_str()), "{answered}");
        }
    }
    change(&mut items, &|service| service.prefer_local = true);
    lab.set_all(&items);
    assert_eq!(who(&lab.netns(1, 3), (VIP_WEB, 80), 6), ["t1"], "the task beside it");
    assert_eq!(who(&lab.client(), (lab.addr(2), 8082), 6), ["t2"], "the task of the node that was asked");
    assert_eq!(who(&lab.client(), (lab.addr(3), 8082), 6), ["t1", "t2"], "a node without tasks asks the others");
    for item in &mut items {
        match item {
            Assignment::Endpoint(endpoint) if endpoint.task == task_id(1) => endpoint.serving = false,
            _ => {}
        }
    }
    lab.set_all(&items);
    assert_eq!(who(&lab.netns(1, 3), (VIP_WEB, 80), 6), ["t2"], "no task here serves");
}
