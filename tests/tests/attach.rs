//! One-off containers on networks: of the cluster, and of one node.

use std::time::Duration;

use orch_tests::{Lab, eventually, within};

const HITS: &[&str] = &["CMD [\"python3\", \"/app/hits.py\"]", "EXPOSE 80"];
const SLEEP: &[&str] = &["sh", "-c", "trap exit TERM; while :; do sleep 1; done"];
/// A name follows a change within this.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn one_off_containers_are_on_networks() {
    let lab = Lab::up("attach", 2, 1);
    lab.import("hits", "hits", HITS);
    lab.import("busybox", "busybox", &[]);
    let shared = ["network", "create", "-d", "overlay", "--attachable", "--subnet", "10.60.0.0/24"];
    let _ = lab.orch(&[&shared[..], &["--aux-address", "router=10.60.0.2", "shared"]].concat()).ok();
    let _ = lab.orch(&["network", "create", "closed"]).ok();
    let _ = lab.orch(&["service", "create", "-d", "--name", "web", "--network", "shared", "hits"]).ok();
    containers_of_two_nodes_find_each_other(&lab);
    what_cannot_be_is_refused(&lab);
    networks_change_while_a_container_runs(&lab);
    daemons_come_and_go(&lab);
    what_ends_gives_its_place_back(&lab);
    networks_of_one_node(&lab);
    networks_are_listed_and_pruned(&lab);
}

/// Each node runs what it imported itself, under a name of its own: a name means one content in the whole cluster.
fn image_on(node: &str) -> &'static str {
    if node == "n1" { "busybox" } else { "busybox-too" }
}

fn run(lab: &Lab, node: &str, name: &str, flags: &[&str]) {
    let all = [&["run", "-d", "--name", name][..], flags, &[image_on(node)], SLEEP].concat();
    let _ = lab.orch_on(node, &all).ok();
}

/// The address that a name has inside a container.
fn lookup(lab: &Lab, node: &str, container: &str, name: &str) -> Result<String, String> {
    let text = lab.orch_on(node, &["exec", container, "nslookup", name]).result()?;
    let answers = text.lines().skip_while(|line| !line.starts_with("Name:"));
    let address = answers.filter_map(|line| line.strip_prefix("Address")).next();
    let address = address.and_then(|rest| rest.split_whitespace().last()).map(str::to_owned);
    address.ok_or_else(|| format!("{name} in {container}: {text}"))
}

fn ping(lab: &Lab, node: &str, container: &str, host: &str) -> Result<String, String> {
    lab.orch_on(node, &["exec", container, "ping", "-c", "1", "-W", "2", host]).result()
}

fn gone(lab: &Lab, node: &str, container: &str, name: &str) -> Result<(), String> {
    match lookup(lab, node, container, name) {
        Err(_) => Ok(()),
        Ok(address) => Err(format!("{name} is still {address}")),
    }
}

fn containers_of_two_nodes_find_each_other(lab: &Lab) {
    run(lab, "n1", "probe", &["--network", "shared", "--network-alias", "p", "--ip", "10.60.0.77"]);
    let _ = eventually("n2 has the image", || import_on(lab, "n2"));
    run(lab, "n2", "other", &["--network", "shared"]);
    for name in ["probe", "p"] {
        let seen = eventually("the name is found on the other node", || lookup(lab, "n2", "other", name));
        assert_eq!(seen, "10.60.0.77", "{name}");
    }
    eventually("packets reach the other node", || ping(lab, "n2", "other", "probe"));
    eventually("and back", || ping(lab, "n1", "probe", "other"));
    lab.wait_replicas("web", "1/1");
    eventually("a container reaches a service", || {
        lab.orch_on("n2", &["exec", "other", "timeout", "3", "wget", "-q", "-O", "-", "http://web/"]).result()
    });
    let task = lab.orch(&["service", "ps", "-q", "web"]).ok();
    let ask = "import socket; print(socket.gethostbyname('probe'))";
    let seen =
        eventually("a task finds the container", || lab.orch(&["exec", task.trim(), "python3", "-c", ask]).result());
    assert_eq!(seen, "10.60.0.77\n");
    let format = "{{(index .NetworkSettings.Networks \"shared\").IPAddress}}";
    assert_eq!(lab.orch(&["inspect", "-f", format, "probe"]).ok(), "10.60.0.77\n");
    let of_tasks = ["ps", "-f", "is-task=true", "--format", "{{.Networks}}"];
    assert_eq!(["n1", "n2"].map(|node| lab.orch_on(node, &of_tasks).ok()).concat(), "shared\n");
    // Those of this node alone, each with its container's id.
    let format = "{{range $id, $one := .Containers}}{{$one.Name}} {{$one.IPv4Address}} {{len $id}}\n{{end}}";
    let here = lab.orch(&["network", "inspect", "-f", format, "shared"]).ok();
    assert!(here.contains("probe 10.60.0.77/24 64\n") && !here.contains("other"), "{here}");
    // Whoever watches a service's tasks does not see it.
    let tasks = lab.orch(&["node", "ps", "n1", "--format", "{{.Name}}"]).ok();
    assert!(!tasks.contains("probe"), "{tasks}");
}

fn import_on(lab: &Lab, node: &str) -> Result<String, String> {
    let tar = orch_tests::image("busybox");
    lab.orch_on(node, &["image", "import", image_on(node), tar.to_str().ok_or("utf-8")?]).result()
}

fn what_cannot_be_is_refused(lab: &Lab) {
    for (network, flags, said) in [
        ("closed", &[][..], "network closed not manually attachable"),
        ("ingress", &[], "not manually attachable"),
        ("nowhere", &[], "network nowhere not found"),
        ("shared", &["--ip", "10.60.0.77"], "Address already in use"),
        ("shared", &["--ip", "10.60.0.2"], "Address already in use"),
        ("shared", &["--ip", "10.61.0.9"], "does not belong to any of this network's subnets"),
        ("host", &["--network", "shared"], "cannot be connected to any other network"),
    ] {
        let refused = lab.orch(&[&["run", "--rm", "--network", network][..], flags, &["busybox", "true"]].concat());
        assert_eq!(refused.code, 125, "{network} {flags:?}: {}", refused.stdout);
        assert!(refused.stderr.contains(said), "{network} {flags:?}: {}", refused.stderr);
    }
    let said = lab.orch(&["network", "rm", "shared"]).refused();
    assert!(said.contains("in use by"), "{said}");
    for (flags, said) in [
        (&["--config-only", "x"][..], "differ from node to node"),
        (&["--scope", "local", "x"], "have the scope swarm"),
        (&["-d", "macvlan", "x"], "no driver of Orch's networks"),
        (&["--ipam-driver", "mine", "x"], "the only one is"),
        (&["-d", "bridge", "--ingress", "x"], "for networks of the driver overlay"),
        (&["-d", "bridge", "host"], "predefined host network"),
        (&["-d", "bridge", "shared"], "already exists in the cluster"),
        (&["-o", "com.docker.network.driver.mtu=9", "x"], "expected a number of bytes"),
    ] {
        let refused = lab.orch(&[&["network", "create"][..], flags].concat()).refused();
        assert!(refused.contains(said), "{flags:?}: {refused}");
    }
}

fn networks_change_while_a_container_runs(lab: &Lab) {
    run(lab, "n1", "plain", &[]);
    let _ = lab.orch(&["network", "connect", "--alias", "changed", "shared", "plain"]).ok();
    let own = eventually("it has an address there", || lookup(lab, "n2", "other", "changed"));
    let said = lab.orch(&["network", "connect", "--alias", "a b", "away", "plain"]).refused();
    assert!(said.contains("invalid network alias: \"a b\""), "{said}");
    assert_eq!(lookup(lab, "n2", "other", "plain"), Ok(own));
    eventually("it reaches the service", || {
        lab.orch(&["exec", "plain", "timeout", "3", "wget", "-q", "-O", "-", "http://web/"]).result()
    });
    let said = lab.orch(&["network", "connect", "shared", "plain"]).refused();
    assert!(said.contains("endpoint with name plain already exists in network shared"), "{said}");
    let said = lab.orch(&["network", "connect", "closed", "plain"]).refused();
    assert!(said.contains("not manually attachable"), "{said}");
    let _ = lab.orch(&["rename", "plain", "renamed"]).ok();
    eventually("its new name is found", || lookup(lab, "n2", "other", "renamed"));
    let _ = lab.orch(&["network", "disconnect", "shared", "renamed"]).ok();
    within(SOON, "its name is gone", || gone(lab, "n2", "other", "renamed"));
    assert!(ping(lab, "n1", "renamed", "10.60.0.77").is_err(), "it still reaches the network");
    let said = lab.orch(&["network", "disconnect", "shared", "renamed"]).refused();
    assert!(said.contains("is not connected to network shared"), "{said}");
    let _ = lab.orch(&["rm", "-f", "renamed"]).ok();
}

/// Names and packets outlive the daemons; a worker that comes back knows what is on which network.
fn daemons_come_and_go(lab: &Lab) {
    for daemon in ["worker", "netd"] {
        let _ = lab.command("kill", &["n1", daemon]).ok();
        assert!(ping(lab, "n2", "other", "probe").is_ok(), "without the {daemon} of n1");
        eventually("the worker answers", || lab.orch(&["ps", "-q"]).result());
        eventually("it asks names again", || lookup(lab, "n1", "probe", "other"));
        // The new worker has told its managers what it has by then.
        run(lab, "n1", "later", &["--network", "shared"]);
        let _ = lab.orch(&["rm", "-f", "later"]).ok();
        assert_eq!(lookup(lab, "n2", "other", "probe"), Ok("10.60.0.77".to_owned()));
    }
}

fn what_ends_gives_its_place_back(lab: &Lab) {
    let _ = lab.orch(&["stop", "-t", "1", "probe"]).ok();
    within(SOON, "its name is gone", || gone(lab, "n2", "other", "probe"));
    let _ = lab.orch(&["start", "probe"]).ok();
    let seen = eventually("it is back", || lookup(lab, "n2", "other", "probe"));
    assert_eq!(seen, "10.60.0.77", "what the user asked for it keeps");
    let _ = lab.orch(&["rm", "-f", "probe"]).ok();
    run(lab, "n1", "heir", &["--network", "shared", "--ip", "10.60.0.77", "--rm"]);
    eventually("its address is another's", || match lookup(lab, "n2", "other", "heir")? {
        address if address == "10.60.0.77" => Ok(()),
        address => Err(address),
    });
    let _ = lab.orch(&["rm", "-f", "heir"]).ok();
    let _ = lab.orch_on("n2", &["rm", "-f", "other"]).ok();
    let _ = lab.orch(&["service", "rm", "web"]).ok();
    eventually("nobody is on the network", || lab.orch(&["network", "rm", "shared"]).result());
}

fn networks_of_one_node(lab: &Lab) {
    let both = ["--subnet", "192.168.40.0/24", "--ipv6", "--subnet", "fd00:40::/64"];
    let _ = lab.orch(&[&["network", "create", "-d", "bridge"][..], &both, &["mine"]].concat()).ok();
    let _ = lab.orch(&["network", "create", "-d", "bridge", "apart"]).ok();
    let serve = "echo mine > /index.html; exec httpd -f -p [::]:80 -h /";
    let site = ["run", "-d", "--name", "site", "--network", "mine", "--network-alias", "www", "-p", "18090:80"];
    let _ = lab.orch(&[&site[..], &["busybox", "sh", "-c", serve]].concat()).ok();
    run(lab, "n1", "visitor", &["--network", "mine", "--ip", "192.168.40.9"]);
    run(lab, "n1", "stranger", &["--network", "apart"]);
    for name in ["site", "www"] {
        let url = format!("http://{name}/");
        let page = eventually("found by name", || {
            lab.orch(&["exec", "visitor", "timeout", "3", "wget", "-q", "-O", "-", &url]).result()
        });
        assert_eq!(page, "mine\n");
    }
    let format = "{{(index .NetworkSettings.Networks \"mine\").GlobalIPv6Address}}";
    let site6 = lab.orch(&["inspect", "-f", format, "site"]).ok().trim().to_owned();
    assert!(site6.starts_with("fd00:40::"), "{site6}");
    let by_v6 = lab.orch(&["exec", "visitor", "timeout", "3", "wget", "-q", "-O", "-", &format!("http://[{site6}]/")]);
    assert_eq!(by_v6.ok(), "mine\n");
    let node = lab.address("n1");
    let published = format!("http://{node}:18090/");
    assert_eq!(eventually("published", || lab.get("client", &published)), "mine\n");
    let client = lab.address("client");
    eventually("the way out", || ping(lab, "n1", "visitor", &client));
    let site = lookup(lab, "n1", "visitor", "site").expect("it was found");
    assert!(gone(lab, "n1", "stranger", "site").is_ok());
    for site in [&site, &site6] {
        assert!(ping(lab, "n1", "stranger", site).is_err(), "another network is reached at {site}");
    }
    let _ = lab.orch(&["network", "connect", "mine", "stranger"]).ok();
    eventually("now it is on both", || ping(lab, "n1", "stranger", "site"));
    let _ = lab.command("kill", &["n1", "worker"]).ok();
    eventually("names live on without the worker", || lookup(lab, "n1", "stranger", "site"));
    eventually("the worker answers", || lab.orch(&["ps", "-q"]).result());
    let said = lab.orch(&["network", "rm", "mine"]).refused();
    assert!(said.contains("has active endpoints"), "{said}");
    let members = lab.orch(&["network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", "mine"]).ok();
    for name in ["site", "visitor", "stranger"] {
        assert!(members.contains(name), "{members}");
    }
    let _ = lab.orch(&["rm", "-f", "site", "visitor", "stranger"]).ok();
}

fn networks_are_listed_and_pruned(lab: &Lab) {
    let listed = lab.orch(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]).ok();
    for line in
        ["bridge bridge local", "host host local", "none null local", "ingress overlay swarm", "mine bridge local"]
    {
        assert!(listed.lines().any(|listed| listed == line), "{line} in {listed}");
    }
    let on_worker = lab.orch_on("n2", &["network", "ls", "--format", "{{.Name}}"]).ok();
    assert_eq!(on_worker, "bridge\nhost\nnone\n");
    assert!(lab.orch(&["network", "rm", "bridge"]).refused().contains("is a pre-defined network"));
    let _ = lab.orch(&["network", "rm", "-f", "nowhere"]).ok();
    let names = |filter: &str| lab.orch(&["network", "ls", "-f", filter, "--format", "{{.Name}}"]).ok();
    assert_eq!(names("name=gress"), "", "of the cluster's networks the beginning counts");
    assert_eq!(names("type=builtin"), "bridge\nhost\nnone\n");
    assert!(names("dangling=true").contains("mine") && !names("dangling=false").contains("mine"));
    let unasked = lab.orch(&["network", "rm", "ingress"]);
    assert!(unasked.code != 0 && unasked.stderr.contains("nobody said yes"), "{unasked:?}");
    let _ = lab.exec_with_input("n1", &["orch", "network", "rm", "ingress"], b"n\n").ok();
    assert_eq!(lab.orch(&["network", "prune", "-f", "--filter", "label!=x", "--filter", "until=1h"]).ok(), "");
    let pruned = lab.orch(&["network", "prune", "-f"]).ok();
    for name in ["mine", "apart", "closed"] {
        assert!(pruned.lines().any(|line| line == name), "{name} in {pruned}");
    }
    let left = lab.orch(&["network", "ls", "--format", "{{.Name}}"]).ok();
    assert_eq!(left, "bridge\nhost\ningress\nnone\n");
}

#[test]
fn a_container_shares_anothers_network() {
    let lab = Lab::up("joined", 1, 1);
    lab.import("hits", "hits", HITS);
    lab.import("busybox", "busybox", &[]);
    let serve = "echo shared > /index.html; httpd -p 80 -h /; trap exit TERM; while :; do sleep 1; done";
    let web = ["run", "-d", "--name", "web", "-h", "box", "-p", "18095:80", "busybox", "sh", "-c", serve];
    let web = lab.orch(&web).ok().trim().to_owned();
    let published = format!("http://{}:18095/", lab.address("n1"));
    assert_eq!(eventually("published", || lab.get("client", &published)), "shared\n");
    one_network_for_two(&lab, &web, &published);
    the_network_ends_with_its_owner(&lab);
    networks_of_all_kinds_are_shared(&lab);
}

/// What a container prints that shares another's network.
fn beside(lab: &Lab, other: &str, command: &[&str]) -> Result<String, String> {
    lab.orch(&[&["run", "--rm", "--network", &format!("container:{other}"), "busybox"], command].concat()).result()
}

fn one_network_for_two(lab: &Lab, web: &str, published: &str) {
    assert_eq!(beside(lab, "web", &["wget", "-qO-", "http://127.0.0.1/"]).as_deref(), Ok("shared\n"));
    let said = "hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf";
    let own = lab.orch(&["exec", "web", "sh", "-c", said]).ok();
    assert!(own.starts_with("box\nbox\n"), "{own}");
    assert_eq!(beside(lab, web, &["sh", "-c", said]), Ok(own));
    run(lab, "n1", "side", &["--network", "container:web"]);
    let _ = lab.orch(&["exec", "side", "sh", "-c", "echo 1.2.3.4 later >> /etc/hosts"]).ok();
    assert!(lab.orch(&["exec", "web", "cat", "/etc/hosts"]).ok().contains("1.2.3.4 later"), "the file is the same");
    let _ = lab.orch(&["rename", "web", "renamed"]).ok();
    let format = "{{.HostConfig.NetworkMode}} {{.Config.Hostname}} {{.NetworkSettings.Networks}}";
    assert_eq!(lab.orch(&["inspect", "-f", format, "side"]).ok(), format!("container:{web} box map[]\n"));
    let _ = lab.orch(&["rename", "renamed", "web"]).ok();
    // A killed container's network is silenced, but this one is not its own.
    let _ = lab.orch(&["kill", "side"]).ok();
    assert_eq!(lab.get("client", published).as_deref(), Ok("shared\n"));
    let _ = lab.orch(&["start", "side"]).ok();
    let _ = lab.command("kill", &["n1", "worker"]).ok();
    eventually("the worker answers", || lab.orch(&["ps", "-q"]).result());
    let page = ["exec", "side", "wget", "-qO-", "http://127.0.0.1/"];
    assert_eq!(eventually("it is shared still", || lab.orch(&page).result()), "shared\n");
    // Through one that shares it itself: the network and the files are those of the first.
    assert_eq!(
        beside(lab, "side", &["sh", "-c", "wget -qO- http://127.0.0.1/; hostname"]).as_deref(),
        Ok("shared\nbox\n")
    );
    let _ = lab.orch(&["network", "create", "-d", "bridge", "more"]).ok();
    for (args, said) in [
        (&["network", "connect", "more", "side"][..], "container sharing network namespace with another container"),
        (&["network", "disconnect", "bridge", "side"], "container sharing network namespace with another container"),
        (&["create", "--network", "container:nosuch", "busybox"], "No such container: nosuch"),
        (&["create", "--network", "container:", "busybox"], "invalid container format container:<name|id>"),
        (&["create", "--network", "container:web", "-p", "80", "busybox"], "conflicting options: port publishing"),
    ] {
        let refused = lab.orch(args).refused();
        assert!(refused.contains(said), "{args:?}: {refused}");
    }
}

fn the_network_ends_with_its_owner(lab: &Lab) {
    run(lab, "n1", "again", &["--network", "container:web", "--restart", "always"]);
    let _ = lab.orch(&["stop", "web"]).ok();
    let links = || lab.orch(&["exec", "side", "ls", "/sys/class/net"]).result();
    eventually("the links are gone", || match links()?.as_str() {
        "lo\n" => Ok(()),
        others => Err(others.to_owned()),
    });
    let _ = lab.orch(&["stop", "side"]).ok();
    let refused = lab.orch(&["start", "side"]).refused();
    assert!(refused.contains("cannot join network of a non running container"), "{refused}");
    let _ = lab.orch(&["exec", "again", "kill", "1"]);
    let state = || lab.orch(&["inspect", "-f", "{{.State.Status}}", "again"]).result();
    let is = |wanted: &str| match state()?.trim() {
        now if now == wanted => Ok(()),
        now => Err(now.to_owned()),
    };
    eventually("it is tried again", || is("restarting"));
    let _ = lab.orch(&["start", "web", "side"]).ok();
    eventually("it runs with the other", || is("running"));
    for name in ["side", "again"] {
        let page = ["exec", name, "wget", "-qO-", "http://127.0.0.1/"];
        assert_eq!(eventually("it is shared again", || lab.orch(&page).result()), "shared\n", "{name}");
    }
    let _ = lab.orch(&["rm", "-f", "web", "side", "again"]).ok();
}

fn networks_of_all_kinds_are_shared(lab: &Lab) {
    for network in ["none", "host"] {
        run(lab, "n1", network, &["--network", network]);
        let names = ["ls", "/sys/class/net"];
        let own = lab.orch(&[&["exec", network], &names[..]].concat()).ok();
        assert_eq!(beside(lab, network, &names), Ok(own), "{network}");
    }
    // Defaults of a network of one's own would be the node's.
    let port_start = ["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"];
    let before = lab.exec("n1", &port_start).ok();
    assert_eq!(beside(lab, "host", &port_start), Ok(before.clone()));
    assert_eq!(lab.exec("n1", &port_start).ok(), before);
    let _ = lab.orch(&["rm", "-f", "none", "host"]).ok();
    let _ = lab.orch(&["service", "create", "-d", "--name", "hits", "--hostname", "{{.Task.Name}}", "hits"]).ok();
    lab.wait_replicas("hits", "1/1");
    let task = lab.orch(&["service", "ps", "-q", "hits"]).ok();
    let ask = ["timeout", "3", "wget", "-q", "-O", "-", "http://127.0.0.1/"];
    let _ = eventually("a task is asked from beside", || beside(lab, task.trim(), &ask));
    let hostname = lab.orch(&["exec", task.trim(), "hostname"]).ok();
    assert_eq!(beside(lab, task.trim(), &["hostname"]), Ok(hostname));
}
