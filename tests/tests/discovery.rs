//! Names and virtual addresses, seen from inside tasks.

use std::collections::BTreeSet;

use orch_tests::{Lab, eventually};

const HITS: &[&str] = &["CMD [\"python3\", \"/app/hits.py\"]", "EXPOSE 80"];
const REDIS: &[&str] = &["CMD [\"redis-server\", \"--bind\", \"0.0.0.0\", \"--protected-mode\", \"no\"]"];

fn first_task(lab: &Lab, service: &str) -> String {
    let ids = lab.orch(&["service", "ps", "-q", "--filter", "desired-state=running", service]).ok();
    ids.lines().next().unwrap_or_else(|| panic!("no task of {service}")).to_owned()
}

/// Addresses that a name has inside a task, by the C library.
fn resolve(lab: &Lab, task: &str, name: &str) -> Result<BTreeSet<String>, String> {
    let code =
        "import socket,sys\nprint('\\n'.join({a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET)}))";
    let text = lab.orch(&["exec", task, "python3", "-c", code, name]).result()?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn fetch(lab: &Lab, task: &str, host: &str) -> Result<String, String> {
    lab.orch(&["exec", task, "timeout", "3", "wget", "-q", "-O", "-", &format!("http://{host}/")]).result()
}

#[test]
fn a_task_finds_services_by_name_and_only_those_of_its_networks() {
    let lab = Lab::up("discovery", 3, 1);
    lab.import("hits", "hits", HITS);
    lab.import("redis", "redis", REDIS);
    for network in ["inner", "other"] {
        let _ = lab.orch(&["network", "create", "-d", "overlay", network]).ok();
    }
    let _ = lab.orch(&["service", "create", "--name", "redis", "--network", "inner", "redis"]).ok();
    let _ = lab.orch(&["service", "create", "--name", "web", "--replicas", "3", "--network", "inner", "hits"]).ok();
    let _ = lab.orch(&["service", "create", "--name", "apart", "--network", "other", "hits"]).ok();
    let task = first_task(&lab, "web");

    let vip = eventually("the service's name is one address", || match resolve(&lab, &task, "web")? {
        addresses if addresses.len() == 1 => Ok(addresses),
        addresses => Err(format!("{addresses:?}")),
    });
    let inspected = lab.orch(&["service", "inspect", "web", "--format", "{{json .Endpoint.VirtualIPs}}"]).ok();
    assert!(inspected.contains(vip.first().expect("one address")), "{vip:?} in {inspected}");

    let tasks = eventually("tasks.web is every task's address", || match resolve(&lab, &task, "tasks.web")? {
        addresses if addresses.len() == 3 => Ok(addresses),
        addresses => Err(format!("{addresses:?}")),
    });
    assert!(tasks.is_disjoint(&vip), "{tasks:?} and {vip:?}");

    // The VIP reaches tasks on other nodes too: three tasks on three nodes, three names.
    eventually("the VIP balances over all nodes", || {
        let mut names = BTreeSet::new();
        for _ in 0..12 {
            let page = fetch(&lab, &task, "web")?;
            names.insert(page.split(':').next().unwrap_or_default().to_owned());
        }
        if names.len() == 3 { Ok(()) } else { Err(format!("{names:?}")) }
    });

    isolation(&lab, &task);
    outside_names_go_to_the_nodes_resolver(&lab, &task);
}

fn isolation(lab: &Lab, task: &str) {
    let apart = first_task(lab, "apart");
    let own = eventually("the other network's service knows itself", || resolve(lab, &apart, "tasks.apart"));
    let address = own.first().expect("an address").clone();
    assert!(fetch(lab, &apart, &address).is_ok(), "it answers on its own network");
    assert!(resolve(lab, task, "apart").is_err(), "a name of another network resolved");
    assert!(fetch(lab, task, &address).is_err(), "a task of another network was reached at {address}");
}

/// A resolver on the client host, which the lab's nodes name in their resolv.conf.
fn outside_names_go_to_the_nodes_resolver(lab: &Lab, task: &str) {
    let script = orch_tests::fixture("resolver.py");
    let client = lab.address("client");
    let mut resolver = lab.spawn("client", &["python3", script.to_str().expect("utf-8"), &client, "192.0.2.77"]);
    let seen = eventually("a name outside is answered by the node's resolver", || {
        let addresses = resolve(lab, task, "somewhere.example.org")?;
        if addresses.len() == 1 { Ok(addresses) } else { Err(format!("{addresses:?}")) }
    });
    resolver.kill().expect("stopping the resolver");
    let _ = resolver.wait();
    assert_eq!(seen.first().map(String::as_str), Some("192.0.2.77"));
}
