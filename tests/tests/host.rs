//! Services on the network that every node has of its own.

use std::collections::BTreeSet;

use orch_tests::{Lab, eventually};

const SLEEP: &[&str] = &["CMD [\"sh\", \"-c\", \"trap exit TERM; while :; do sleep 1; done\"]"];
/// Says on a port, given as `$0`, which node it is.
const AGENT: &str = "trap exit TERM; mkdir -p /w; hostname > /w/index.html; httpd -p $0 -h /w; echo serving; \
                     while :; do sleep 1; done";
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const STACK: &str = "
services:
  agent:
    image: idle
    command: [sh, -c, 'trap exit TERM; mkdir -p /w; hostname > /w/index.html; httpd -p 9200 -h /w; while :; do sleep 1; done']
    networks: [x]
    deploy: {mode: global}
networks:
  x: {external: true, name: host}
";

#[test]
fn services_have_the_nodes_own_network() {
    let lab = Lab::up("host", 3, 1);
    lab.import("idle", "busybox", SLEEP);
    what_makes_no_sense_is_refused(&lab);
    an_agent_on_every_node(&lab);
    it_outlives_the_daemons(&lab);
    two_tasks_share_a_node(&lab);
    it_leaves_the_network_and_comes_back(&lab);
    a_stack_file_names_it(&lab);
    the_bridge_is_a_way_out(&lab);
}

fn what_makes_no_sense_is_refused(lab: &Lab) {
    let _ = lab.orch(&["network", "create", "back"]).ok();
    for (flags, reason) in [
        (&["--network", "host", "-p", "80:80"][..], "it publishes no ports"),
        (&["--network", "host", "-p", "mode=host,published=80,target=80"], "it publishes no ports"),
        (&["--network", "host", "--network", "back"], "it cannot be on any other network"),
        (&["--network", "host", "--network", "bridge"], "on one network of its nodes at most"),
        (&["--network", "host", "--network", "host"], "is named twice"),
        (&["--network", "host", "--sysctl", "net.core.somaxconn=9"], "sysctl net.core.somaxconn would change the node"),
        (&["--network", "name=host,alias=www"], "knows neither aliases nor driver options"),
        (&["--network", "none"], "a service cannot be on the network none"),
    ] {
        let said = lab.orch(&[&["service", "create", "-d"][..], flags, &["idle"]].concat()).refused();
        assert!(said.contains(reason), "{flags:?}: {said}");
    }
    for name in ["host", "bridge", "none"] {
        let said = lab.orch(&["network", "create", "-d", "overlay", name]).refused();
        assert!(said.contains("already exists on this node"), "{name}: {said}");
    }
}

fn an_agent_on_every_node(lab: &Lab) {
    let checked = ["--health-cmd", "wget -qO- http://127.0.0.1:9100/", "--health-interval", "1s"];
    let create = ["service", "create", "-d", "--name", "agent", "--mode", "global", "--network", "host"];
    let _ = lab.orch(&[&create[..], &checked, &["idle", "sh", "-c", AGENT, "9100"]].concat()).ok();
    lab.wait_replicas("agent", "3/3");
    let hosts = lab.exec("n1", &["cat", "/etc/hosts"]).ok();
    for node in NODES {
        let name = lab.exec(node, &["hostname"]).ok();
        let at = format!("http://{}:9100/", lab.address(node));
        let answer = eventually("the node's own address answers", || lab.get("client", &at));
        assert_eq!(answer.trim(), name.trim());
        let task = on(lab, "agent", node);
        let inside = |script: &str| lab.orch(&["exec", &task, "sh", "-c", script]).ok();
        assert_eq!(inside("readlink /proc/self/ns/net"), own_namespace(lab, node));
        assert_eq!(inside("cat /etc/hostname; hostname"), format!("{0}\n{0}\n", name.trim()));
        assert!(inside("ip address show eth0").contains(&format!("inet {}/", lab.address(node))));
        assert_eq!(inside("cat /etc/hosts"), hosts);
        assert_eq!(inside("cat /etc/resolv.conf"), lab.exec(node, &["cat", "/etc/resolv.conf"]).ok());
    }
    assert_eq!(lab.orch(&["service", "logs", "--raw", "agent"]).ok().matches("serving").count(), 3);
    let stats = lab.orch(&["stats", "--no-stream", "--format", "{{.Name}}"]).ok();
    assert!(stats.contains("agent."), "{stats}");

    let inspect = |format: &str| lab.orch(&["service", "inspect", "--format", format, "agent"]).ok();
    let id = lab.orch(&["network", "inspect", "--format", "{{.Id}}", "host"]).ok();
    assert_eq!(inspect("{{(index .Spec.TaskTemplate.Networks 0).Target}}"), id);
    assert!(!inspect("{{json .Endpoint}}").contains("VirtualIPs"));
    assert!(lab.orch(&["service", "inspect", "--pretty", "agent"]).ok().contains("\nNetworks: host\n"));
    let networks = ["container", "inspect", "--format", "{{range $n, $_ := .NetworkSettings.Networks}}{{$n}}{{end}}"];
    assert_eq!(lab.orch(&[&networks[..], &[&on(lab, "agent", "n1")]].concat()).ok(), "host\n");
}

/// The daemons of n2 start anew and take the task for what it is.
fn it_outlives_the_daemons(lab: &Lab) {
    let task = on(lab, "agent", "n2");
    for daemon in ["netd", "worker", "netd"] {
        let before = lab.daemon_pid("n2", daemon);
        let _ = lab.exec("n2", &["kill", "-9", &before]).ok();
        eventually("the daemon is back", || {
            let info = lab.orch_on("n2", &["info"]).result()?;
            let line = info.lines().find(|line| line.contains(&format!("Daemon {daemon}: pid "))).unwrap_or_default();
            if line.is_empty() || line.contains(&format!("pid {before}")) { Err(info) } else { Ok(()) }
        });
    }
    eventually("a command runs in it", || match lab.orch(&["exec", &task, "cat", "/etc/hostname"]).result()? {
        name if name == lab.exec("n2", &["hostname"]).ok() => Ok(()),
        other => Err(other),
    });
    assert_eq!(on(lab, "agent", "n2"), task, "it was not replaced");
    let _ = lab.get("client", &format!("http://{}:9100/", lab.address("n2"))).expect("it still answers");
    let made = lab.exec("n2", &["test", "-e", &format!("/run/orch/netns/{task}")]);
    assert_ne!(made.code, 0, "a network was made for it");
}

fn two_tasks_share_a_node(lab: &Lab) {
    let create = ["service", "create", "-d", "--name", "pair", "--replicas", "2", "--constraint", "node.hostname==n1"];
    let own = ["--network", "host", "--hostname", "own", "--dns", "9.9.9.9"];
    let _ = lab.orch(&[&create[..], &own, &["idle"]].concat()).ok();
    lab.wait_replicas("pair", "2/2");
    let script = "hostname; grep nameserver /etc/resolv.conf";
    let said: Vec<String> =
        tasks(lab, "pair", "n1").iter().map(|task| lab.orch(&["exec", task, "sh", "-c", script]).ok()).collect();
    assert_eq!(said, ["own\nnameserver 9.9.9.9\n"; 2]);
    let _ = lab.orch(&["service", "rm", "pair"]).ok();
}

fn it_leaves_the_network_and_comes_back(lab: &Lab) {
    let at = format!("http://{}:9100/", lab.address("n3"));
    let update = ["service", "update", "-d=false", "-q"];
    let _ = lab.orch(&[&update[..], &["--network-rm", "host", "--network-add", "back", "agent"]].concat()).ok();
    let inside = |task: &str| lab.orch(&["exec", task, "readlink", "/proc/self/ns/net"]).ok();
    for node in NODES {
        assert_ne!(inside(&on(lab, "agent", node)), own_namespace(lab, node));
    }
    eventually("nobody listens on the node", || match lab.get("client", &at) {
        Err(error) if error.starts_with("exit code 7:") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let said = lab.orch(&["service", "update", "-d", "--network-add", "host", "agent"]).refused();
    assert!(said.contains("it cannot be on any other network"), "{said}");
    let said = lab.orch(&["service", "update", "-d", "--network-rm", "host", "agent"]).ok();
    assert_eq!(said, "agent\n");
    let _ = lab.orch(&[&update[..], &["--network-rm", "back", "--network-add", "host", "agent"]].concat()).ok();
    eventually("it answers again", || lab.get("client", &at));
    assert_eq!(inside(&on(lab, "agent", "n3")), own_namespace(lab, "n3"));
    let said = lab.orch(&["service", "update", "-d", "--publish-add", "80:80", "agent"]).refused();
    assert!(said.contains("it publishes no ports"), "{said}");
    let _ = lab.orch(&["service", "rm", "agent"]).ok();
    eventually("its tasks have stopped", || match lab.get("client", &at) {
        Err(error) if error.starts_with("exit code 7:") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn a_stack_file_names_it(lab: &Lab) {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("write a file");
        path.to_str().expect("utf-8").to_owned()
    };
    let file = write("mon.yml", STACK);
    let _ = lab.orch(&["stack", "deploy", "-d=false", "-q", "-c", &file, "mon"]).ok();
    for node in NODES {
        let at = format!("http://{}:9200/", lab.address(node));
        eventually("the stack's agent answers", || lab.get("client", &at));
    }
    let networks = lab.orch(&["network", "ls", "--filter", "scope=swarm", "--format", "{{.Name}}"]).ok();
    assert_eq!(networks.lines().collect::<BTreeSet<_>>(), ["back", "ingress"].into(), "none was made");
    let same = lab.orch(&["stack", "plan", "--exit-code", "-c", &file, "mon"]);
    assert_eq!(same.code, 0, "{}{}", same.stdout, same.stderr);
    assert_eq!(lab.orch(&["stack", "diff", "-c", &file, "mon"]).ok(), "");
    let task = on(lab, "mon_agent", "n1");
    let exported = write("exported.yml", &lab.orch(&["stack", "export", "mon"]).ok());
    let _ = lab.orch(&["stack", "deploy", "-d=false", "-q", "-c", &exported, "mon"]).ok();
    assert_eq!(on(lab, "mon_agent", "n1"), task, "the export means the same");
    let away = write("away.yml", &STACK.replace("name: host", "name: back"));
    let plan = lab.orch(&["stack", "plan", "-c", &away, "mon"]).ok();
    assert!(plan.contains("networks.host: {} -> (nothing)") && plan.contains("tasks are replaced"), "{plan}");
    let none = write("none.yml", &STACK.replace("name: host", "name: none"));
    let said = lab.orch(&["stack", "deploy", "-c", &none, "mon"]).refused();
    assert!(said.contains("a service cannot be on the network none"), "{said}");
    let _ = lab.orch(&["stack", "rm", "--wait", "mon"]).ok();
}

fn the_bridge_is_a_way_out(lab: &Lab) {
    let create = ["service", "create", "-d", "--name", "site", "--network", "bridge", "-p", "8090:9300"];
    let _ = lab.orch(&[&create[..], &["idle", "sh", "-c", AGENT, "9300"]].concat()).ok();
    lab.wait_replicas("site", "1/1");
    for node in NODES {
        eventually("every node answers for it", || lab.get("client", &format!("http://{}:8090/", lab.address(node))));
    }
    assert!(lab.orch(&["service", "inspect", "--pretty", "site"]).ok().contains("\nNetworks: bridge\n"));
}

fn own_namespace(lab: &Lab, node: &str) -> String {
    lab.exec(node, &["readlink", "/proc/self/ns/net"]).ok()
}

/// The service's one task on a node.
fn on(lab: &Lab, service: &str, node: &str) -> String {
    eventually("a task on the node", || tasks(lab, service, node).pop().ok_or_else(|| format!("{service} on {node}")))
}

fn tasks(lab: &Lab, service: &str, node: &str) -> Vec<String> {
    let node = format!("node={node}");
    let filters = ["--filter", &node, "--filter", "desired-state=running"];
    let ids = lab.orch(&[&["service", "ps", "-q", "--no-trunc"][..], &filters, &[service]].concat()).ok();
    ids.lines().map(str::to_owned).collect()
}
