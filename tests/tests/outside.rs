//! The way out of the cluster, as a server outside sees it: containers and tasks come with their node's address, by IPv4 and by
//! IPv6, and who is on internal networks only does not come at all.

use std::{collections::BTreeSet, process::Child};

use orch_tests::{Lab, eventually};

/// Answers on port 7000, by TCP and UDP, who it thinks has asked; on 7001 only once two have asked, both at once; on 7002
/// by TCP who has sent it pings. `VERSION`: of IP, `4` or `6`.
const SERVER: &str = r#"
import socket, struct, sys, threading
v6 = sys.argv[1] == "6"
family, any = (socket.AF_INET6, "::") if v6 else (socket.AF_INET, "0.0.0.0")
def opened(kind, port):
    s = socket.socket(family, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((any, port))
    if kind == socket.SOCK_STREAM:
        s.listen()
    return s
def said(peer, data):
    return f"{peer[0]} {peer[1]} {data.decode()}".encode()
def tcp(s, at_once):
    while True:
        met = [s.accept() for _ in range(at_once)]
        for peer, address in met:
            peer.settimeout(10)
            try:
                peer.sendall(said(address, peer.recv(99)))
            except OSError:
                pass
            peer.close()
def udp(s, at_once):
    met = {}
    while True:
        data, address = s.recvfrom(99)
        met[address] = data
        if len(met) == at_once:
            for address, data in met.items():
                s.sendto(said(address, data), address)
            met = {}
pings = set()
def echoes(s):
    while True:
        packet, peer = s.recvfrom(2048)
        kind = packet[0] if v6 else packet[(packet[0] & 15) * 4]
        if kind == (128 if v6 else 8):
            pings.add(peer[0])
def tell(s):
    while True:
        peer, _ = s.accept()
        peer.sendall(" ".join(sorted(pings)).encode())
        peer.close()
work = [(tcp, opened(socket.SOCK_STREAM, 7000), 1), (udp, opened(socket.SOCK_DGRAM, 7000), 1),
        (tcp, opened(socket.SOCK_STREAM, 7001), 2), (udp, opened(socket.SOCK_DGRAM, 7001), 2),
        (echoes, socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP)),
        (tell, opened(socket.SOCK_STREAM, 7002))]
threads = [threading.Thread(target=w[0], args=w[1:]) for w in work]
for thread in threads:
    thread.start()
"#;
/// `KIND HOST PORT OWN-PORT TEXT`: the answer, and behind it its own address.
const ASK: &str = r#"
import socket, sys
kind, host, port, own, text = sys.argv[1:6]
family, any = (socket.AF_INET6, "::") if ":" in host else (socket.AF_INET, "0.0.0.0")
s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.settimeout(10 if port == "7001" else 2)
s.bind((any, int(own)))
s.connect((host, int(port)))
s.send(text.encode())
print(s.recv(99).decode(), s.getsockname()[0])
"#;
/// Tells the neighbours every second that routes lead here, and the prefix that they make addresses of.
const ROUTER: &str = r#"
import socket, struct, sys, time
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
advert = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xc0, 3600, 3600, 0) + socket.inet_pton(socket.AF_INET6, sys.argv[1])
while True:
    s.sendto(advert + prefix, ("ff02::1", 0))
    time.sleep(1)
"#;
/// What the node makes its IPv6 address of.
const PREFIX: &str = "fd99:1::";
/// Where the server is by IPv6: behind the router.
const OUTSIDE_V6: &str = "2001:db8:99::1";
const SLEEP: &[&str] = &["sh", "-c", "trap exit TERM; while :; do sleep 1; done"];
/// From which two containers ask at the same time.
const OWN_PORT: &str = "4000";

/// A server on the lab's client, which is no node, for as long as the test takes.
struct Outside<'a> {
    lab: &'a Lab,
    server: Child,
    address: String,
}

impl<'a> Outside<'a> {
    fn serve(lab: &'a Lab) -> Self {
        Self::serve_at(lab, "4", lab.address("client"))
    }

    fn serve_v6(lab: &'a Lab) -> Self {
        let _ = lab.exec("client", &["ip", "address", "add", &format!("{OUTSIDE_V6}/128"), "dev", "lo"]).ok();
        // Who forwards says so when its neighbours look for it; a router that does not is forgotten.
        let forward = "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
        let _ = lab.exec("client", &["sh", "-c", forward]).ok();
        Self::serve_at(lab, "6", OUTSIDE_V6.to_owned())
    }

    fn serve_at(lab: &'a Lab, version: &str, address: String) -> Self {
        let outside = Self { lab, server: lab.spawn("client", &["python3", "-c", SERVER, version]), address };
        eventually("the server answers on its own machine", || outside.pings_from());
        outside
    }

    /// What a container is told, or why it is told nothing.
    fn asked(&self, container: &str, kind: &str, port: &str) -> Result<Answer, String> {
        let asked = ["exec", container, "python3", "-c", ASK, kind, &self.address, port, OWN_PORT, container]
            .map(str::to_owned);
        let text = self.lab.orch(&asked.each_ref().map(String::as_str)).result()?;
        match text.split_whitespace().collect::<Vec<_>>()[..] {
            [seen, port, name, own] => {
                Ok(Answer { seen: seen.into(), port: port.into(), name: name.into(), own: own.into() })
            }
            _ => Err(format!("an odd answer: {text}")),
        }
    }

    /// Whose pings the server has seen.
    fn pings_from(&self) -> Result<BTreeSet<String>, String> {
        let ask = "import socket\ns = socket.create_connection(('localhost', 7002), 2)\nprint(s.recv(999).decode())";
        let text = self.lab.exec("client", &["python3", "-c", ask]).result()?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// Whom the server saw, and its port.
    seen: String,
    port: String,
    /// What it was sent.
    name: String,
    /// Who the container is for itself.
    own: String,
}

#[test]
fn containers_go_out_behind_their_nodes_address() {
    let lab = Lab::up("outside", 1, 1);
    lab.import("hits", "hits", &[]);
    for create in
        [&["-d", "bridge", "mine"][..], &["-d", "bridge", "--internal", "shut"], &["over"], &["--internal", "in"]]
    {
        let _ = lab.orch(&[&["network", "create"][..], create].concat()).ok();
    }
    let going = [run(&lab, "plain", "bridge"), run(&lab, "on-mine", "mine"), service(&lab, "task", "over")];
    let staying = [run(&lab, "on-shut", "shut"), service(&lab, "inner", "in")];
    let outside = Outside::serve(&lab);
    let node = lab.address("n1");
    for container in &going {
        they_are_seen_as_their_node(&outside, container, &node);
    }
    two_from_one_port_at_once(&outside, &going, &node);
    they_can_be_pinged_for(&outside, &going, &node);
    they_have_no_way_out(&outside, &staying);
    a_firewall_with_the_documented_exception_lets_them_out(&outside, "ip", &going);
}

#[test]
fn containers_with_an_ipv6_address_go_out_by_it_too() {
    let lab = Lab::up("outside6", 1, 1);
    lab.import("hits", "hits", &[]);
    for create in [
        &["-d", "bridge", "--ipv6", "mine"][..],
        &["-d", "bridge", "--ipv6", "--internal", "shut"],
        &["--ipv6", "--subnet", "fd00:7::/64", "over"],
        &["--ipv6", "--subnet", "fd00:8::/64", "--internal", "in"],
    ] {
        let _ = lab.orch(&[&["network", "create"][..], create].concat()).ok();
    }
    let going = [run(&lab, "on-mine", "mine"), run(&lab, "another", "mine"), service(&lab, "task", "over")];
    let staying = [run(&lab, "plain", "bridge"), run(&lab, "on-shut", "shut"), service(&lab, "inner", "in")];
    let before = settings_v6(&lab);
    let outside = Outside::serve_v6(&lab);
    // The node itself has no way there.
    they_have_no_way_out(&outside, &going);
    assert_eq!(settings_v6(&lab), before, "changed for nothing");

    let mut router = lab.spawn("client", &["python3", "-c", ROUTER, PREFIX]);
    let node = eventually("the node has an address", || address_v6(&lab));
    let _ = lab.exec("client", &["ip", "route", "add", &format!("{PREFIX}/64"), "dev", "eth0"]).ok();
    for container in &going {
        they_are_seen_as_their_node(&outside, container, &node);
    }
    two_from_one_port_at_once(&outside, &going, &node);
    they_can_be_pinged_for(&outside, &going, &node);
    they_have_no_way_out(&outside, &staying);
    nobody_comes_in(&outside, &going, &node);
    a_firewall_with_the_documented_exception_lets_them_out(&outside, "ip6", &going);

    assert_ne!(settings_v6(&lab), before);
    let others = || lab.exec("n1", &["nft", "list", "table", "ip6", "filter"]).ok();
    let (rules, route) = (others(), route_v6(&lab));
    let _ = lab.orch(&["leave", "--force"]).ok();
    assert_eq!(settings_v6(&lab), before);
    assert_eq!((others(), route_v6(&lab)), (rules, route));
    assert_eq!(lab.exec("n1", &["nft", "list", "tables"]).ok().matches("orch").count(), 0);
    let _ = router.kill();
    let _ = router.wait();
}

/// A container of the node.
fn run(lab: &Lab, name: &str, network: &str) -> String {
    let _ = lab.orch(&[&["run", "-d", "--name", name, "--network", network, "hits"][..], SLEEP].concat()).ok();
    name.to_owned()
}

/// A service; its only task.
fn service(lab: &Lab, name: &str, network: &str) -> String {
    let create = ["service", "create", "-d", "--name", name, "--network", network, "hits"];
    let _ = lab.orch(&[&create[..], SLEEP].concat()).ok();
    lab.wait_replicas(name, "1/1");
    let task = ["service", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", name];
    lab.orch(&task).ok().trim().to_owned()
}

fn settings_v6(lab: &Lab) -> String {
    let settings = ["all/forwarding", "default/forwarding", "eth0/forwarding", "eth0/accept_ra", "lo/accept_ra"];
    let files = settings.map(|setting| format!("/proc/sys/net/ipv6/conf/{setting}"));
    lab.exec("n1", &[&["grep", "."][..], &files.each_ref().map(String::as_str)].concat()).ok()
}

/// What the node has made of the router's prefix.
fn address_v6(lab: &Lab) -> Result<String, String> {
    let text = lab
        .exec("n1", &["ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "global", "-tentative"])
        .result()?;
    let address = text.split_whitespace().find(|word| word.starts_with(PREFIX)).ok_or(format!("none yet: {text}"))?;
    Ok(address.trim_end_matches("/64").to_owned())
}

/// By whom the node goes out; without what changes by the second.
fn route_v6(lab: &Lab) -> String {
    let text = lab.exec("n1", &["ip", "-6", "route", "show", "default"]).ok();
    assert!(text.contains("proto ra"), "the node has forgotten its router: {text}");
    text.split(" expires").next().unwrap_or_default().to_owned()
}

fn they_are_seen_as_their_node(outside: &Outside<'_>, container: &str, node: &str) {
    for kind in ["tcp", "udp"] {
        let answer = eventually("the server answers", || outside.asked(container, kind, "7000"));
        assert_eq!((answer.seen.as_str(), answer.name.as_str()), (node, container), "{kind}: {answer:?}");
        assert_ne!(answer.own, node, "{kind}: it has an address of its own");
    }
}

/// The server answers neither before both have asked. One keeps its port outside, the other is given another.
fn two_from_one_port_at_once(outside: &Outside<'_>, containers: &[String], node: &str) {
    let [one, _, other] = containers else { panic!("{containers:?}") };
    for kind in ["tcp", "udp"] {
        let answers = std::thread::scope(|scope| {
            let ask = |container| scope.spawn(move || outside.asked(container, kind, "7001"));
            [ask(one), ask(other)].map(|asking| asking.join().expect("the thread that asks"))
        });
        let [first, second] = answers.map(|answer| answer.unwrap_or_else(|error| panic!("{kind}: {error}")));
        assert_eq!([&*first.seen, &*second.seen], [node, node], "{kind}");
        assert_eq!([&first.name, &second.name], [one, other], "{kind}: each has its own answer");
        assert_ne!(first.port, second.port, "{kind}");
        assert!([&*first.port, &*second.port].contains(&OWN_PORT), "{kind}: {} and {}", first.port, second.port);
    }
}

fn they_can_be_pinged_for(outside: &Outside<'_>, containers: &[String], node: &str) {
    assert_eq!(outside.pings_from(), Ok(BTreeSet::new()), "before anybody pings");
    for container in containers {
        let ping = ["exec", container, "ping", "-c", "1", "-W", "2", &outside.address];
        eventually("an echo comes back", || outside.lab.orch(&ping).result());
    }
    assert_eq!(outside.pings_from(), Ok([node.to_owned()].into()));
}

fn they_have_no_way_out(outside: &Outside<'_>, containers: &[String]) {
    for container in containers {
        for kind in ["tcp", "udp"] {
            let said = outside.asked(container, kind, "7000").expect_err("it has a way out");
            assert!(said.contains("Network is unreachable"), "{container}, {kind}: {said}");
        }
    }
}

/// Who knows a container's address on its way out, and sends there by the node, does not reach it.
fn nobody_comes_in(outside: &Outside<'_>, containers: &[String], node: &str) {
    for container in containers {
        let own = outside.asked(container, "tcp", "7000").expect("a way out").own;
        let client = |words: &[&str]| outside.lab.exec("client", words);
        let _ = client(&["ip", "route", "add", &format!("{own}/128"), "via", node]).ok();
        // Nothing listens there: whoever is reached refuses.
        let connect = "import socket, sys; socket.create_connection((sys.argv[1], 9), 1)";
        let said = client(&["python3", "-c", connect, &own]).refused();
        assert!(said.contains("timed out"), "{container}: {said}");
    }
}

/// As README.md and the node's log have it.
fn a_firewall_with_the_documented_exception_lets_them_out(outside: &Outside<'_>, family: &str, containers: &[String]) {
    let nft = |words: &[&str]| outside.lab.exec("n1", &[&["nft"], words].concat()).ok();
    let _ = nft(&[&format!("add table {family} filter")]);
    let _ =
        nft(&[&format!("add chain {family} filter FORWARD {{ type filter hook forward priority 0; policy drop; }}")]);
    let asked = |container: &str| ["tcp", "udp"].map(|kind| outside.asked(container, kind, "7000"));
    assert!(asked(&containers[0]).iter().all(Result::is_err), "a firewall that drops all lets them out");
    for way in ["iifname", "oifname"] {
        let _ = nft(&[&format!("insert rule {family} filter FORWARD {way} \"orch*\" accept")]);
    }
    for container in containers {
        let answers = asked(container);
        assert!(answers.iter().all(Result::is_ok), "{container}: {answers:?}");
    }
}
