//! Ten nodes (in `--full`): names and addresses across all of them, a rolling update under load, churn beside clients.

use std::{collections::BTreeSet, time::Duration};

use orch_tests::{Lab, Load, PATIENCE, eventually, failures, within};

const NODES: usize = 10;
/// Tells its task's host name. With room for those that wait: ten nodes on one machine let it stand still for half a second, in
/// which more come than busybox' web server has room for, and whom the kernel does not let in thrice has waited for 5 s.
const CONFIG: &[u8] = b"daemon off; pid /tmp/pid; error_log stderr; worker_processes 1;
    events { worker_connections 1024; }
    http {
        access_log off; client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
        uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
        server { listen 80 backlog=1024; location / { return 200 $hostname; } }
    }";
const SERVER: &[&str] = &["--config", "source=server,target=/server.conf", "nginx", "nginx", "-c", "/server.conf"];

fn create(lab: &Lab, name: &str, args: &[&str]) {
    let hostname = ["--hostname", "{{.Service.Name}}-{{.Task.Slot}}"];
    let _ = lab.orch(&[&["service", "create", "-d", "--name", name][..], &hostname, args, SERVER].concat()).ok();
}

/// The node and the container of each running task.
fn tasks(lab: &Lab, service: &str) -> Vec<(String, String)> {
    let format = ["--filter", "desired-state=running", "--format", "{{.Node}} {{.ID}}", "--no-trunc", service];
    let text = lab.orch(&[&["service", "ps"][..], &format].concat()).ok();
    text.lines().filter_map(|line| line.split_once(' ')).map(|(node, task)| (node.into(), task.into())).collect()
}

#[test]
fn ten_nodes_are_one_network() {
    let lab = Lab::up("ten", NODES, 3);
    lab.import("nginx", "nginx", &[]);
    let _ = lab.exec_with_input("n1", &["orch", "config", "create", "server", "-"], CONFIG).ok();
    let _ = lab.orch(&["network", "create", "-d", "overlay", "net"]).ok();
    create(&lab, "web", &["--network", "net", "--replicas", "10", "--replicas-max-per-node", "1", "-p", "8000:80"]);
    within(PATIENCE * 4, "a task on each node", || {
        let services = lab.list(&["service", "ls"])?;
        let all = services.iter().any(|s| s["Replicas"].as_str().is_some_and(|text| text.starts_with("10/10")));
        if all { Ok(()) } else { Err(format!("{services:?}")) }
    });
    everyone_finds_everyone(&lab);
    for order in ["start-first", "stop-first"] {
        a_rolling_update_loses_no_request(&lab, order);
    }
    churn_gives_nobody_a_wrong_answer(&lab);
}

/// The tutorial's walk, from a task on each node: ping, the virtual address, the addresses of all tasks.
fn everyone_finds_everyone(lab: &Lab) {
    let tasks = tasks(lab, "web");
    let nodes: BTreeSet<&String> = tasks.iter().map(|(node, _)| node).collect();
    assert_eq!(nodes.len(), NODES, "{tasks:?}");
    for (node, task) in &tasks {
        let ask = |args: &[&str]| lab.orch(&[&["exec", task][..], args].concat()).result();
        eventually(&format!("{node} resolves all tasks and reaches each"), || {
            let text = ask(&["nslookup", "tasks.web"])?;
            // The server's own address has its port.
            let addresses = text.lines().filter_map(|line| line.strip_prefix("Address:").map(str::trim));
            let found: BTreeSet<&str> = addresses.filter(|address| !address.contains(':')).collect();
            if found.len() != NODES {
                return Err(text);
            }
            found.iter().try_for_each(|address| ask(&["ping", "-c", "1", "-W", "5", address]).map(drop))?;
            ask(&["ping", "-c", "1", "-W", "5", "web"]).map(drop)
        });
    }
}

/// 500 requests a second through the ports of all nodes.
fn a_rolling_update_loses_no_request(lab: &Lab, order: &str) {
    let loads: Vec<Load> = (1..=5)
        .map(|node| {
            let url = format!("http://{}:8000/hostname", lab.address(&format!("n{node}")));
            eventually("the port answers", || lab.get("client", &url));
            Load::start(lab, "client", &url, Duration::from_millis(10), Duration::from_secs(240))
        })
        .collect();
    eventually("the loads run", || if loads.iter().all(|l| l.so_far() > 50) { Ok(()) } else { Err(String::new()) });
    // Start-first needs room for one more on some node.
    let room = if order == "start-first" { "2" } else { "1" };
    let update = ["service", "update", "--detach=false", "--update-order", order, "--replicas-max-per-node", room];
    let _ = lab.orch(&[&update[..], &["--update-parallelism", "2", "--force", "web"]].concat()).ok();
    let (mut sent, mut lost) = (0, Vec::new());
    for load in loads {
        let answers = load.stop();
        sent += answers.len();
        lost.extend(failures(&answers).into_iter().map(ToString::to_string));
    }
    println!("{order}: {sent} requests");
    assert_eq!(lost, Vec::<String>::new(), "{} of {sent} requests failed ({order})", lost.len());
}

/// Two services come and go, some 200 tasks; whoever asks for one is never answered by the other.
fn churn_gives_nobody_a_wrong_answer(lab: &Lab) {
    const ROUNDS: usize = 13;
    let services = ["red", "blue"];
    for (service, port) in services.iter().zip(["8001:80", "8002:80"]) {
        create(lab, service, &["--network", "net", "--replicas", "2", "-p", port]);
        lab.wait_replicas(service, "2/2");
    }
    let loads: Vec<(&str, Load)> = services
        .iter()
        .zip(["8001", "8002"])
        .flat_map(|(service, port)| [(*service, port, "n3"), (*service, port, "n9")])
        .map(|(service, port, node)| {
            let url = format!("http://{}:{port}/hostname", lab.address(node));
            eventually("the port answers", || lab.get("client", &url));
            (service, Load::start(lab, "client", &url, Duration::from_millis(20), Duration::from_secs(600)))
        })
        .collect();
    for _ in 0..ROUNDS {
        for replicas in ["10", "2"] {
            let scale = services.map(|service| format!("{service}={replicas}"));
            let _ = lab.orch(&["service", "scale", "-d", &scale[0], &scale[1]]).ok();
            for service in services {
                lab.wait_replicas(service, &format!("{replicas}/{replicas}"));
            }
        }
    }
    for (service, load) in loads {
        let answers = load.stop();
        let lost = failures(&answers);
        let is_wrong = |answer: &&serde_json::Value| {
            answer["body"].as_str().is_some_and(|body| !body.starts_with(&format!("{service}-")))
        };
        let wrong: Vec<_> = answers.iter().filter(is_wrong).collect();
        println!("{service}: {} requests", answers.len());
        assert!(wrong.is_empty(), "answers of another service to who asked {service}: {wrong:?}");
        assert!(lost.is_empty(), "{} of {} requests to {service} failed: {lost:?}", lost.len(), answers.len());
    }
}
