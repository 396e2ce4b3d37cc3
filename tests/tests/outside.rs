//! The way out of the cluster, as a server outside sees it: containers and tasks come with their node's address, and who is
//! on internal networks only does not come at all.

use std::{collections::BTreeSet, process::Child};

use orch_tests::{Lab, eventually};

/// Answers on port 7000, by TCP and UDP, who it thinks has asked; on 7001 only once two have asked, both at once; on 7002
/// by TCP who has sent it pings.
const SERVER: &str = r#"
import socket, struct, threading
def opened(kind, port):
    s = socket.socket(socket.AF_INET, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("0.0.0.0", port))
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
        packet, (address, _) = s.recvfrom(2048)
        if packet[(packet[0] & 15) * 4] == 8:
            pings.add(address)
def tell(s):
    while True:
        peer, _ = s.accept()
        peer.sendall(" ".join(sorted(pings)).encode())
        peer.close()
work = [(tcp, opened(socket.SOCK_STREAM, 7000), 1), (udp, opened(socket.SOCK_DGRAM, 7000), 1),
        (tcp, opened(socket.SOCK_STREAM, 7001), 2), (udp, opened(socket.SOCK_DGRAM, 7001), 2),
        (echoes, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)),
        (tell, opened(socket.SOCK_STREAM, 7002))]
threads = [threading.Thread(target=w[0], args=w[1:]) for w in work]
for thread in threads:
    thread.start()
"#;
/// `KIND HOST PORT OWN-PORT TEXT`: the answer, and behind it its own address.
const ASK: &str = r#"
import socket, sys
kind, host, port, own, text = sys.argv[1:6]
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.settimeout(10 if port == "7001" else 2)
s.bind(("0.0.0.0", int(own)))
s.connect((host, int(port)))
s.send(text.encode())
print(s.recv(99).decode(), s.getsockname()[0])
"#;
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
        let outside =
            Self { lab, server: lab.spawn("client", &["python3", "-c", SERVER]), address: lab.address("client") };
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
        let ask = "import socket\ns = socket.create_connection(('127.0.0.1', 7002), 2)\nprint(s.recv(999).decode())";
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
    let run = |name: &str, network: &str| {
        let _ = lab.orch(&[&["run", "-d", "--name", name, "--network", network, "hits"][..], SLEEP].concat()).ok();
        name.to_owned()
    };
    for create in
        [&["-d", "bridge", "mine"][..], &["-d", "bridge", "--internal", "shut"], &["over"], &["--internal", "in"]]
    {
        let _ = lab.orch(&[&["network", "create"][..], create].concat()).ok();
    }
    let service = |name: &str, network: &str| {
        let create = ["service", "create", "-d", "--name", name, "--network", network, "hits"];
        let _ = lab.orch(&[&create[..], SLEEP].concat()).ok();
        lab.wait_replicas(name, "1/1");
        let task = ["service", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", name];
        lab.orch(&task).ok().trim().to_owned()
    };
    let going = [run("plain", "bridge"), run("on-mine", "mine"), service("task", "over")];
    let staying = [run("on-shut", "shut"), service("inner", "in")];
    let outside = Outside::serve(&lab);
    let node = lab.address("n1");
    for container in &going {
        they_are_seen_as_their_node(&outside, container, &node);
    }
    two_from_one_port_at_once(&outside, &going, &node);
    they_can_be_pinged_for(&outside, &going, &node);
    internal_networks_have_no_way_out(&outside, &staying);
    a_firewall_with_the_documented_exception_lets_them_out(&outside, &going);
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

fn internal_networks_have_no_way_out(outside: &Outside<'_>, containers: &[String]) {
    for container in containers {
        for kind in ["tcp", "udp"] {
            let said = outside.asked(container, kind, "7000").expect_err("it has a way out");
            assert!(said.contains("Network is unreachable"), "{container}, {kind}: {said}");
        }
    }
}

/// As README.md and the node's log have it.
fn a_firewall_with_the_documented_exception_lets_them_out(outside: &Outside<'_>, containers: &[String]) {
    let nft = |words: &[&str]| outside.lab.exec("n1", &[&["nft"], words].concat()).ok();
    let _ = nft(&["add table ip filter"]);
    let _ = nft(&["add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"]);
    let asked = |container: &str| ["tcp", "udp"].map(|kind| outside.asked(container, kind, "7000"));
    assert!(asked(&containers[0]).iter().all(Result::is_err), "a firewall that drops all lets them out");
    for way in ["iifname", "oifname"] {
        let _ = nft(&[&format!("insert rule ip filter FORWARD {way} \"orch*\" accept")]);
    }
    for container in containers {
        let answers = asked(container);
        assert!(answers.iter().all(Result::is_ok), "{container}: {answers:?}");
    }
}
