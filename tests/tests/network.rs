//! Networks from their users' side: refusals, full pools, services on two networks, datagrams, ports of one node.

use std::{collections::BTreeSet, time::Duration};

use orch_tests::{Lab, eventually, within};

const HITS: &[&str] = &["CMD [\"python3\", \"/app/hits.py\"]", "EXPOSE 80"];
const SLEEP: &[&str] = &["CMD [\"sh\", \"-c\", \"trap exit TERM; while :; do sleep 1; done\"]"];
/// Says who answers whom.
const UDP_SERVER: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 5000))
while True:
    data, peer = s.recvfrom(999)
    s.sendto((socket.gethostname() + ' ' + peer[0]).encode(), peer)";
const UDP_CLIENT: &str = "import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
s.sendto(b'x', (sys.argv[1], int(sys.argv[2])))
print(s.recvfrom(99)[0].decode())";
const RESOLVE: &str = "import socket, sys
try:
    found = {a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET)}
except socket.gaierror:
    found = set()
print(' '.join(sorted(found)))";
/// Which of the daemons' sockets are reached: by their files, by the process that the node would be, by any name without a file.
const REACH: &str = "import socket
paths = [root + '/run/orch/' + name + '.sock' for root in ('', '/proc/1/root', '/proc/self/root')
         for name in ('netd', 'worker', 'manager', 'node')]
listed = [line.split()[-1] for line in open('/proc/net/unix') if len(line.split()) > 7]
paths += [name for name in listed if 'orch' in name] + ['\\0' + name[1:] for name in listed if name[0] == '@']
reached = []
for path in paths:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        reached.append(path)
    except OSError:
        pass
print(len(paths) >= 12, reached)";
/// How many SRV records a name has, and the port in the first.
const LOCATE: &str = "import socket, struct, sys
name = b''.join(bytes([len(p)]) + p.encode() for p in sys.argv[1].split('.')) + b'\\0'
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
s.sendto(b'\\x12\\x34\\x01\\x00\\x00\\x01\\0\\0\\0\\0\\0\\0' + name + b'\\x00\\x21\\x00\\x01', ('127.0.0.11', 53))
reply = s.recvfrom(4096)[0]
count = struct.unpack('>H', reply[6:8])[0]
at = 12 + len(name) + 4 + 2 + 10
print(count, struct.unpack('>H', reply[at + 4:at + 6])[0] if count else 0)";
/// A name follows a change within this.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn networks_do_what_their_flags_say_and_refuse_what_makes_no_sense() {
    let lab = Lab::up("network", 2, 1);
    lab.import("hits", "hits", HITS);
    lab.import("idle", "busybox", SLEEP);
    refusals(&lab);
    encrypted_networks_work_or_are_refused(&lab);
    names_follow_the_tasks(&lab);
    names_are_known_while_the_network_daemon_is_gone(&lab);
    a_service_on_two_networks(&lab);
    the_way_to_a_service_is_shown(&lab);
    clients_are_spread_as_the_service_says(&lab);
    what_others_change_is_put_back(&lab);
    datagrams_and_ports_of_one_node(&lab);
    published_ports_answer_ipv6_clients(&lab);
    no_container_reaches_a_daemons_socket(&lab);
    an_internal_network_has_no_way_out(&lab);
    a_network_of_both_families(&lab);
    a_full_pool_is_told_and_heals(&lab);
}

fn create(lab: &Lab, name: &str, args: &[&str]) {
    let mut all = vec!["service", "create", "-d", "--name", name];
    all.extend(args);
    let _ = lab.orch(&all).ok();
}

fn running(lab: &Lab, service: &str) -> String {
    let ids = lab.orch(&["service", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", service]).ok();
    ids.lines().next().unwrap_or_else(|| panic!("no task of {service}")).to_owned()
}

fn resolve(lab: &Lab, task: &str, name: &str) -> Result<BTreeSet<String>, String> {
    let text = lab.orch(&["exec", task, "python3", "-c", RESOLVE, name]).result()?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn addresses(lab: &Lab, task: &str, name: &str, wanted: usize) -> Result<BTreeSet<String>, String> {
    match resolve(lab, task, name)? {
        found if found.len() == wanted => Ok(found),
        found => Err(format!("{name}: {found:?}")),
    }
}

fn refusals(lab: &Lab) {
    let inner = ["network", "create", "-d", "overlay", "--subnet", "10.50.0.0/24", "--gateway", "10.50.0.1", "inner"];
    let _ = lab.orch(&inner).ok();
    for (args, reason) in [
        (&["--subnet", "10.50.0.128/25", "other"][..], "overlaps 10.50.0.0/24"),
        (&["--subnet", "10.51.0.0/24", "--gateway", "10.52.0.1", "other"], "10.52.0.1"),
        (&["--subnet", "10.51.0.0/33", "other"], "10.51.0.0/33"),
        (&["inner"], "inner already exists"),
        (&["-d", "macvlan", "other"], "overlay"),
    ] {
        let mut all = vec!["network", "create"];
        all.extend(args);
        let said = lab.orch(&all).refused();
        assert!(said.contains(reason), "{args:?}: {said}");
    }
    create(lab, "web", &["--replicas", "2", "--network", "inner", "hits"]);
    lab.wait_replicas("web", "2/2");
    let said = lab.orch(&["network", "rm", "inner"]).refused();
    assert!(said.contains("in use by service web"), "{said}");
}

/// As this machine's kernel allows; `tests/qemu/encrypted.sh` looks at the packets.
fn encrypted_networks_work_or_are_refused(lab: &Lab) {
    let told =
        eventually("both nodes say whether they can", || match lab.orch(&["node", "inspect", "n1", "n2"]).ok() {
            told if told.matches("\"Encryption\"").count() == 2 && !told.contains("has not answered yet") => Ok(told),
            told => Err(told),
        });
    let made = lab.orch(&["network", "create", "--opt", "encrypted", "sealed"]);
    if told.contains("\"Unavailable\"") {
        let said = made.refused();
        assert!(said.contains("no node of the cluster can encrypt (n1, n2: "), "{said}");
        let _ = lab.orch(&["network", "inspect", "sealed"]).refused();
        return;
    }
    let _ = made.ok();
    let serve = "trap exit TERM; mkdir /w; hostname > /w/index.html; httpd -h /w; while :; do sleep 1; done";
    create(lab, "sealed", &["--mode", "global", "--network", "sealed", "idle", "sh", "-c", serve]);
    lab.wait_replicas("sealed", "2/2");
    let task = lab.orch(&["service", "ps", "-q", "--no-trunc", "--filter", "node=n1", "sealed"]).ok();
    let fetch = || lab.orch(&["exec", task.trim(), "timeout", "3", "wget", "-q", "-O", "-", "http://sealed/"]).result();
    eventually("both tasks answer the one on n1", || {
        let pages = (0..4).map(|_| fetch()).collect::<Result<BTreeSet<_>, _>>()?;
        if pages.len() == 2 { Ok(()) } else { Err(format!("{pages:?}")) }
    });
    let _ = lab.orch(&["service", "rm", "sealed"]).ok();
}

fn names_follow_the_tasks(lab: &Lab) {
    create(lab, "ask", &["--network", "inner", "hits"]);
    lab.wait_replicas("ask", "1/1");
    let ask = running(lab, "ask");
    eventually("two addresses", || addresses(lab, &ask, "tasks.web", 2));
    let vip = resolve(lab, &ask, "web").expect("web");
    let _ = lab.orch(&["service", "scale", "web=3"]).ok();
    within(SOON, "a third address", || addresses(lab, &ask, "tasks.web", 3));
    let _ = lab.orch(&["service", "scale", "-d", "web=1"]).ok();
    within(SOON, "one address, while the others still stop", || addresses(lab, &ask, "tasks.web", 1));
    assert_eq!(resolve(lab, &ask, "web"), Ok(vip), "the virtual address stays");
    create(lab, "gone", &["--network", "name=inner,alias=also-gone", "hits"]);
    eventually("the alias is known", || addresses(lab, &ask, "also-gone", 1));
    let _ = lab.orch(&["service", "rm", "gone"]).ok();
    eventually("the name is gone", || addresses(lab, &ask, "gone", 0));
    eventually("the alias is gone", || addresses(lab, &ask, "also-gone", 0));
}

/// Asks until it is told to stop, each question once and without waiting for the answer to the one before; says how many
/// got none.
const ASK_ON: &str = r#"
import os, socket, struct, time
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asker.connect(("127.0.0.11", 53))
asker.setblocking(False)
asked, waiting, refused = 0, set(), 0
def hear():
    global refused
    while True:
        try:
            waiting.discard(struct.unpack("!H", asker.recv(512)[:2])[0])
        except BlockingIOError:
            return
        except OSError:
            refused += 1
end = time.monotonic() + 300
while not os.path.exists("/tmp/enough") and time.monotonic() < end:
    asked += 1
    question = struct.pack("!6H", asked, 0x100, 1, 0, 0, 0) + b"\x03web\0" + struct.pack("!2H", 1, 1)
    try:
        asker.send(question)
        waiting.add(asked)
    except OSError:
        refused += 1
    time.sleep(0.02)
    hear()
    open("/tmp/answered", "w").write(str(asked - len(waiting) - refused))
end = time.monotonic() + 20
while waiting and time.monotonic() < end:
    time.sleep(0.05)
    hear()
print(len(waiting) + refused, asked)
"#;
/// What a daemon had taken in when it was killed is gone with it.
const LOST_PER_KILL: u64 = 1;

fn names_are_known_while_the_network_daemon_is_gone(lab: &Lab) {
    let (ask, node) = (running(lab, "ask"), node_of(lab, "ask"));
    const KILLS: u64 = 3;
    let answered = || -> Result<u64, String> {
        let text = lab.orch(&["exec", &ask, "cat", "/tmp/answered"]).result()?;
        text.trim().parse().map_err(|_| format!("{text:?}"))
    };
    let said = std::thread::scope(|scope| {
        let asking = scope.spawn(|| lab.orch(&["exec", &ask, "python3", "-c", ASK_ON]).result());
        for _ in 0..KILLS {
            let before = eventually("questions are answered", answered);
            let _ = lab.command("kill", &[&node, "netd"]).ok();
            eventually("questions are answered again", || match answered()? {
                now if now > before + 20 => Ok(()),
                now => Err(format!("{now} after {before}")),
            });
        }
        let _ = lab.orch(&["exec", &ask, "touch", "/tmp/enough"]).ok();
        asking.join().expect("the thread that asks")
    });
    let said = said.expect("the questions");
    println!("{said}");
    let lost: u64 = said.split(' ').next().and_then(|text| text.parse().ok()).expect("a number");
    assert!(lost <= KILLS * LOST_PER_KILL, "{said}");
}

fn a_service_on_two_networks(lab: &Lab) {
    let _ = lab.orch(&["network", "create", "outer"]).ok();
    create(lab, "apart", &["--network", "outer", "hits"]);
    create(lab, "both", &["--network", "inner", "--network", "outer", "hits"]);
    lab.wait_replicas("both", "1/1");
    lab.wait_replicas("apart", "1/1");
    let [both, apart, ask] = ["both", "apart", "ask"].map(|service| running(lab, service));
    eventually("it knows a name of each", || {
        Ok((addresses(lab, &both, "web", 1)?, addresses(lab, &both, "apart", 1)?))
    });
    let seen = [&apart, &ask].map(|task| eventually("each side knows it", || addresses(lab, task, "both", 1)));
    assert_ne!(seen[0], seen[1], "by the address of its own network");
    for name in ["web", "ask"] {
        assert_eq!(resolve(lab, &apart, name), Ok(BTreeSet::new()), "{name} from the other network");
    }
}

fn node_of(lab: &Lab, service: &str) -> String {
    let nodes =
        lab.orch(&["service", "ps", "--format", "{{.Node}}", "--filter", "desired-state=running", service]).ok();
    nodes.lines().next().unwrap_or_else(|| panic!("no node of {service}")).to_owned()
}

fn the_way_to_a_service_is_shown(lab: &Lab) {
    let (ask, node) = (running(lab, "ask"), node_of(lab, "ask"));
    let traced =
        eventually("all is well", || lab.orch_on(&node, &["network", "trace", "--from", &ask, "web:80"]).result());
    for stage in ["from", "name", "vip", "rules", "backend", "route", "reach"] {
        let is_fine = |line: &str| line.starts_with(&format!("ok      {stage} "));
        assert!(traced.lines().any(is_fine), "{stage} in {traced}");
    }
    for (target, breaks) in [("web:81", "breaks at reach"), ("apart", "breaks at name"), ("nobody", "breaks at name")] {
        let traced = lab.orch_on(&node, &["network", "trace", "--from", &ask, target]);
        assert!(traced.code != 0 && traced.stderr.contains(breaks), "{target}: {}{}", traced.stdout, traced.stderr);
    }
    let _ = lab.orch(&["service", "scale", "-d", "web=0"]).ok();
    eventually("without tasks it breaks at the backends", || {
        let traced = lab.orch_on(&node, &["network", "trace", "--from", &ask, "web"]);
        if traced.stderr.contains("breaks at backend") { Ok(()) } else { Err(traced.stderr) }
    });
    let _ = lab.orch(&["service", "scale", "web=2"]).ok();

    let text = lab.orch(&["network", "inspect", "--verbose", "-f", "json", "inner"]).ok();
    let seen: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let web = &seen["Services"]["web"];
    assert_eq!(web["Tasks"].as_array().map(Vec::len), Some(2), "{text}");
    assert_eq!(
        resolve(lab, &ask, "web").map(|vip| vip.contains(web["VIP"].as_str().unwrap_or("?"))),
        Ok(true),
        "{text}"
    );
    let backends: u64 = web["BackendsPerNode"].as_object().expect("nodes").values().filter_map(|n| n.as_u64()).sum();
    assert_eq!(backends, 2, "{text}");
    assert!(!seen["Peers"].as_array().expect("peers").is_empty(), "{text}");
    // Two of web, one of ask, one of both, and a virtual address for each of the three.
    assert_eq!(seen["Addresses"][0]["Used"], 7, "{text}");
    assert_eq!(seen["Addresses"][0]["Free"], 246, "{text}");
}

fn clients_are_spread_as_the_service_says(lab: &Lab) {
    let ask = running(lab, "ask");
    let spread = |requests: usize| {
        let fetch = ["exec", &ask, "timeout", "3", "wget", "-q", "-O", "-", "http://web/"];
        let page = |_| lab.orch(&fetch).result().map(|page| page.split(':').next().unwrap_or_default().to_owned());
        (0..requests).map(page).collect::<Result<BTreeSet<_>, _>>()
    };
    for (balance, requests, tasks) in [("source-hash", 6, 1), ("random", 24, 2), ("round-robin", 4, 2)] {
        let _ = lab.orch(&["service", "update", "-d", "--endpoint-balance", balance, "web"]).ok();
        eventually(balance, || match spread(requests)? {
            seen if seen.len() == tasks => Ok(()),
            seen => Err(format!("{seen:?}")),
        });
    }
    let seen = |what: &str, tasks: usize| {
        eventually(what, || match spread(6)? {
            seen if seen.len() == tasks => Ok(()),
            seen => Err(format!("{seen:?}")),
        });
    };
    let update = |flag: &str| lab.orch(&["service", "update", "-d", flag, "web"]).ok();
    let _ = update("--endpoint-prefer-local");
    seen("only the task beside it", 1);
    let _ = update("--endpoint-prefer-local=false");
    seen("both tasks", 2);
    let _ = lab.orch(&["node", "update", "--label-add", "orch.balance.weight=0", "n1"]).ok();
    let _ = update("--endpoint-balance=weighted");
    seen("none on a node without weight", 1);
    let _ = lab.orch(&["node", "update", "--label-add", "orch.balance.weight=2", "n1"]).ok();
    seen("both have a weight", 2);
    let refused = lab.orch(&["node", "update", "--label-add", "orch.balance.weight=11", "n1"]).refused();
    assert!(refused.contains("from 0 to 10"), "{refused}");
    let _ = update("--endpoint-balance=round-robin");
    let shown = lab.orch(&["service", "inspect", "-f", "{{.Spec.EndpointSpec.Balance}}", "web"]).ok();
    assert_eq!(shown, "round-robin\n");
    let refused = lab.orch(&["service", "update", "--endpoint-mode", "dnsrr", "web"]).refused();
    assert!(refused.contains("endpoint balance needs endpoint mode vip"), "{refused}");
    // Both tasks, each with the port that the service says it has.
    let _ = lab.orch(&["service", "update", "-d", "--publish-add", "published=8077,target=80,mode=host", "web"]).ok();
    eventually("a port is located", || {
        let seen = lab.orch(&["exec", &ask, "python3", "-c", LOCATE, "_80._tcp.web"]).result()?;
        if seen == "2 80\n" { Ok(()) } else { Err(seen) }
    });
}

/// Links, routes, neighbours and rules that somebody takes away are back within 5 s, and the log says so.
fn what_others_change_is_put_back(lab: &Lab) {
    let node = node_of(lab, "ask");
    let ask = running(lab, "ask");
    let network = lab.orch(&["network", "inspect", "-f", "{{.Id}}", "inner"]).ok();
    let (task, sandbox) =
        (format!("--net=/run/orch/netns/{ask}"), format!("--net=/run/orch/netns/net-{}", network.trim()));
    let fetch = || lab.orch(&["exec", &ask, "timeout", "1", "wget", "-q", "-O", "-", "http://web/"]).result();
    for (what, damage) in [
        ("address", vec!["nsenter", &task, "ip", "address", "flush", "dev", "eth0"]),
        ("way out", vec!["nsenter", &task, "ip", "route", "flush", "default"]),
        ("rules", vec!["nsenter", &task, "nft", "flush", "ruleset"]),
        ("tunnel", vec!["nsenter", &sandbox, "ip", "link", "delete", "vx0"]),
        ("bridge", vec!["nsenter", &sandbox, "ip", "link", "delete", "br0"]),
        ("neighbours", vec!["nsenter", &sandbox, "ip", "neighbour", "flush", "dev", "vx0", "nud", "permanent"]),
        ("tunnel's state", vec!["nsenter", &sandbox, "ip", "link", "set", "vx0", "down"]),
    ] {
        eventually("it works before", fetch);
        let _ = lab.exec(&node, &damage).ok();
        // netd looks every 4 s; the rest is what a busy machine takes.
        within(Duration::from_secs(15), &format!("the {what} is back"), || (0..4).try_for_each(|_| fetch().map(drop)));
    }
    let log = lab.exec(&node, &["sh", "-c", "cat /var/lib/orch/node/log/*"]).ok();
    for put_back in ["address 10.50.0.", "route to 0.0.0.0/0", "nftables rules", "link vx0", "link br0"] {
        let told = |line: &str| line.contains("someone else changed the network here") && line.contains(put_back);
        assert!(log.lines().any(told), "{put_back} is not in the log");
    }
}

fn datagrams_and_ports_of_one_node(lab: &Lab) {
    let port = "published=5353,target=5000,protocol=udp";
    create(lab, "echo", &["--replicas", "2", "--publish", port, "hits", "python3", "-c", UDP_SERVER]);
    let only = "mode=host,published=8088,target=80";
    create(lab, "only", &["--publish", only, "--constraint", "node.hostname==n2", "hits"]);
    lab.wait_replicas("echo", "2/2");
    lab.wait_replicas("only", "1/1");
    for node in ["n1", "n2"] {
        let address = lab.address(node);
        let answer = eventually("datagrams are answered", || {
            lab.exec("client", &["python3", "-c", UDP_CLIENT, &address, "5353"]).result()
        });
        assert!(answer.trim_end().ends_with(&format!(" {}", lab.address("client"))), "{answer}: the client's address");
        eventually("on 127.0.0.1 too", || lab.exec(node, &["python3", "-c", UDP_CLIENT, "127.0.0.1", "5353"]).result());
    }
    eventually("n2 answers", || lab.get("client", &format!("http://{}:8088/", lab.address("n2"))));
    eventually("n2 itself", || lab.get("n2", "http://127.0.0.1:8088/"));
    let hidden = "published=5354,target=5000,protocol=udp,source=masquerade";
    let bound = "127.0.0.1:5355:5000/udp";
    create(lab, "shy", &["--publish", hidden, "--publish", bound, "hits", "python3", "-c", UDP_SERVER]);
    lab.wait_replicas("shy", "1/1");
    for node in ["n1", "n2"] {
        let ask = |from: &str, address: &str, port: &str| {
            lab.exec(from, &["python3", "-c", UDP_CLIENT, address, port]).result()
        };
        let address = lab.address(node);
        let answer = eventually("the node asks for its client", || ask("client", &address, "5354"));
        assert!(answer.trim_end().ends_with(&format!(" {address}")), "{answer}: the node's address");
        eventually("127.0.0.1 answers", || ask(node, "127.0.0.1", "5355"));
        assert!(ask("client", &address, "5355").is_err(), "{node} answers on 127.0.0.1 only");
    }
    let elsewhere = lab.get("client", &format!("http://{}:8088/", lab.address("n1")));
    assert!(elsewhere.is_err(), "n1 answers for a port of n2: {elsewhere:?}");
}

/// Of one task on n2, and of one whose port is n2's alone; `echo` has a task on each node.
fn published_ports_answer_ipv6_clients(lab: &Lab) {
    create(lab, "one", &["--publish", "8086:80", "--constraint", "node.hostname==n2", "hits"]);
    lab.wait_replicas("one", "1/1");
    let address = |host: &str| format!("fd00:99::{}", host.strip_prefix('n').unwrap_or("99"));
    for host in ["client", "n1", "n2"] {
        let with_prefix = format!("{}/64", address(host));
        let _ = lab.exec(host, &["ip", "address", "add", &with_prefix, "dev", "eth0", "nodad"]).ok();
    }
    for node in ["n1", "n2"] {
        for (from, to) in [(node, "::1".to_owned()), (node, address(node)), ("client", address(node))] {
            eventually("a node with the task or without", || lab.get(from, &format!("http://[{to}]:8086/")));
            let answer = eventually("datagrams are answered", || {
                lab.exec(from, &["python3", "-c", UDP_CLIENT, &to, "5353"]).result()
            });
            assert!(answer.trim_end().ends_with(&format!(" {}", lab.address(node))), "{answer}: the node's address");
        }
        let bound = lab.exec(node, &["python3", "-c", UDP_CLIENT, "::1", "5355"]);
        assert_ne!(bound.code, 0, "what is published on one address only answers on ::1");
    }
    eventually("the node's own port", || lab.get("client", &format!("http://[{}]:8088/", address("n2"))));
    assert!(lab.get("n1", "http://[::1]:8088/").is_err(), "n1 answers for a port of n2");
    let _ = lab.orch(&["service", "rm", "one"]).ok();
    eventually("nobody listens any more", || match lab.get("n1", "http://[::1]:8086/") {
        Err(error) if error.starts_with("exit code 7:") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Not by any network, and not with the node's own.
fn no_container_reaches_a_daemons_socket(lab: &Lab) {
    for network in ["bridge", "host"] {
        let said = lab.orch(&["run", "--rm", "--network", network, "hits", "python3", "-c", REACH]).ok();
        assert_eq!(said, "True []\n", "with the network {network}");
    }
    let said = lab.orch(&["exec", &running(lab, "echo"), "python3", "-c", REACH]).ok();
    assert_eq!(said, "True []\n", "a task of a service");
}

fn an_internal_network_has_no_way_out(lab: &Lab) {
    let _ = lab.orch(&["network", "create", "--internal", "shut"]).ok();
    create(lab, "shut-in", &["--network", "shut", "hits"]);
    lab.wait_replicas("shut-in", "1/1");
    let node = lab.address("n2");
    let fetch = |service: &str| {
        let url = format!("http://{node}:8088/");
        lab.orch(&["exec", &running(lab, service), "timeout", "3", "wget", "-q", "-O", "-", &url]).result()
    };
    eventually("a task reaches a node's address", || fetch("ask"));
    assert!(fetch("shut-in").is_err(), "one of an internal network reaches it too");
}

/// Of an answer of `nslookup`; behind the server's address is a tab.
fn line_address(line: &str) -> Option<String> {
    line.strip_prefix("Address: ").map(str::to_owned)
}

/// A task on each node, asked from the one on n1 by IPv6: by name, by the virtual address, by address, by the name of an
/// address; and not from another network.
fn a_network_of_both_families(lab: &Lab) {
    let _ = lab.orch(&["network", "create", "--ipv6", "--subnet", "fd00:7::/64", "both"]).ok();
    let _ = lab.orch(&["network", "create", "--ipv6", "--subnet", "fd00:8::/64", "beside"]).ok();
    let serve = "trap exit TERM; mkdir /w; hostname > /w/index.html; httpd -p [::]:80 -h /w; while :; do sleep 1; done";
    for (name, network) in [("six", "both"), ("seven", "beside")] {
        create(lab, name, &["--mode", "global", "--network", network, "idle", "sh", "-c", serve]);
        lab.wait_replicas(name, "2/2");
    }
    let on_n1 = |service: &str| {
        let filters = ["--filter", "node=n1", "--filter", "desired-state=running"];
        let all = [&["service", "ps", "-q", "--no-trunc"][..], &filters, &[service]].concat();
        lab.orch(&all).ok().trim().to_owned()
    };
    let six = on_n1("six");
    let lookup = |args: &[&str]| -> Result<BTreeSet<String>, String> {
        let text = lab.orch(&[&["exec", &six, "nslookup"][..], args].concat()).result()?;
        let name = |line: &'_ str| line.split_once("name = ").map(|(_, name)| name.to_owned());
        let answer = |line| line_address(line).or_else(|| name(line));
        Ok(text.lines().filter_map(answer).collect())
    };
    let asked = |name: &str| lookup(&["-type=aaaa", name]);
    let fetch = |task: &str, host: &str| {
        lab.orch(&["exec", task, "timeout", "3", "wget", "-q", "-O", "-", &format!("http://[{host}]/")]).result()
    };
    let tasks = eventually("tasks.six is an address of each task", || match asked("tasks.six")? {
        tasks if tasks.len() == 2 && tasks.iter().all(|task| task.starts_with("fd00:7::")) => Ok(tasks),
        tasks => Err(format!("{tasks:?}")),
    });
    let pages: BTreeSet<_> = tasks.iter().map(|task| eventually("each answers", || fetch(&six, task))).collect();
    assert_eq!(pages.len(), 2, "{pages:?}");
    let vip = asked("six").expect("the service's name");
    let vip = vip.first().expect("its virtual address");
    eventually("the virtual address leads to both", || {
        let seen = (0..4).map(|_| fetch(&six, vip)).collect::<Result<BTreeSet<_>, _>>()?;
        if seen == pages { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    for (address, name) in [(vip, "six.both"), (tasks.first().expect("a task"), "six.")] {
        let names = lookup(&[address]).expect("the address's name");
        assert!(names.iter().any(|known| known.starts_with(name)), "{address}: {names:?}");
    }
    let seven = on_n1("seven");
    assert!(
        eventually("it knows itself", || lab.orch(&["exec", &seven, "nslookup", "seven"]).result())
            .contains("fd00:8::")
    );
    assert!(
        fetch(&seven, vip).is_err() && fetch(&seven, tasks.first().expect("a task")).is_err(),
        "from another network"
    );
    let _ = lab.orch(&["service", "rm", "six", "seven"]).ok();
}

/// Of a /29, the gateway and the virtual address leave room for four tasks.
fn a_full_pool_is_told_and_heals(lab: &Lab) {
    let _ = lab.orch(&["network", "create", "--subnet", "10.80.0.0/29", "tiny"]).ok();
    create(lab, "small", &["--replicas", "6", "--network", "tiny", "idle"]);
    lab.wait_replicas("small", "4/6");
    let tasks = || lab.list(&["service", "ps", "--no-trunc", "--filter", "desired-state=running", "small"]);
    eventually("two tasks say what is missing", || {
        let tasks = tasks()?;
        let told = |task: &serde_json::Value| task["Error"].as_str().is_some_and(|e| e.contains("no free address"));
        if tasks.iter().filter(|task| told(task)).count() == 2 { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    create(lab, "late", &["--network", "tiny", "idle"]);
    let _ = lab.orch(&["service", "scale", "-d", "small=2"]).ok();
    lab.wait_replicas("small", "2/2");
    lab.wait_replicas("late", "1/1");
}
