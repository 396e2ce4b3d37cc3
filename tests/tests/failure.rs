//! What dies and what lives on: tasks, daemons, whole nodes.

use std::{collections::BTreeMap, time::Duration};

use orch_tests::{Lab, Load, PATIENCE, RESTART_LIMIT, eventually, failures, within};

// No Redis here: the counter's connection is refused at once.
const HITS: &[&str] = &["CMD [\"python3\", \"/app/hits.py\"]", "EXPOSE 80", "ENV REDIS_HOST=127.0.0.1"];

/// Container id -> pid on a node, of what runs.
fn pids(lab: &Lab, node: &str) -> Result<BTreeMap<String, String>, String> {
    let text = lab.orch_on(node, &["ps", "--no-trunc", "--format", "{{.ID}} {{.PID}}"]).result()?;
    Ok(text.lines().filter_map(|line| line.split_once(' ')).map(|(id, pid)| (id.into(), pid.into())).collect())
}

fn lab_with_web(name: &str) -> Lab {
    let lab = Lab::up(name, 3, 1);
    lab.import("hits", "hits", HITS);
    let args =
        ["service", "create", "--name", "web", "--replicas", "3", "-p", "8000:80", "--restart-delay", "2s", "hits"];
    let _ = lab.orch(&args).ok();
    lab.wait_replicas("web", "3/3");
    for node in ["n1", "n2", "n3"] {
        eventually("the port answers on every node", || {
            lab.get("client", &format!("http://{}:8000/", lab.address(node)))
        });
    }
    lab
}

#[test]
fn a_killed_task_is_replaced_in_its_slot_and_only_requests_in_flight_to_it_fail() {
    let lab = lab_with_web("killed-task");
    let url = format!("http://{}:8000/", lab.address("n2"));
    let load = Load::start(&lab, "client", &url, Duration::from_millis(20), Duration::from_secs(60));
    eventually("the load runs", || if load.so_far() > 50 { Ok(()) } else { Err(load.so_far().to_string()) });
    let web = lab.list(&["service", "ps", "web"]).expect("service ps");
    let on_n3 = web.iter().find(|t| t["Node"] == "n3").unwrap_or_else(|| panic!("no task on n3: {web:?}"));
    let killed_slot = on_n3["Name"].as_str().expect("name").to_owned();
    kill_main_process(&lab, "n3", &killed_slot);
    eventually("a new task runs in the slot", || {
        let now = lab.list(&["service", "ps", "--filter", "desired-state=running", "web"])?;
        let fresh = now.iter().any(|t| {
            t["Name"] == *killed_slot
                && t["ID"] != on_n3["ID"]
                && t["CurrentState"].as_str().is_some_and(|s| s.starts_with("Running"))
        });
        if fresh { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let at = load.so_far();
    eventually("requests go on", || if load.so_far() > at + 100 { Ok(()) } else { Err(load.so_far().to_string()) });
    let answers = load.stop();
    let failed = failures(&answers);
    // One request every 20 ms, each a few ms long: at most what was on its way to the killed process.
    assert!(failed.len() <= 2, "{} of {} failed: {failed:?}", failed.len(), answers.len());
}

/// netd repairs links that somebody took down. Those of a killed container stay down, also when nobody tells netd of it.
#[test]
fn a_killed_task_stays_silent_while_its_worker_hangs() {
    let lab = lab_with_web("hanging-worker");
    let text = lab.orch_on("n3", &["ps", "--no-trunc", "--format", "{{.Names}} {{.PID}}"]).ok();
    let (name, pid) = text.trim().split_once(' ').expect("one container");
    let task = name.rsplit('.').next().expect("a task");
    let worker = lab.daemon_pid("n3", "worker");
    let signal = |signal: &str| drop(lab.exec("n3", &["kill", signal, &worker]).ok());
    signal("-STOP");
    let _ = lab.exec("n3", &["kill", "-9", pid]).ok();
    // Its own node finds out when it looks at its networks, and sends nobody there any more.
    within(Duration::from_secs(15), "the node's port is answered by the others", || {
        let url = format!("http://{}:8000/", lab.address("n3"));
        (0..9).try_for_each(|_| lab.get("client", &url).map(drop))
    });
    let netns = format!("--net=/run/orch/netns/{task}");
    let links = || lab.exec("n3", &["nsenter", &netns, "ip", "-o", "link", "show"]).ok();
    assert!(links().contains("eth0"), "{}", links());
    let log = || lab.exec("n3", &["cat", "/var/lib/orch/node/log/netd.log"]).ok();
    // A change of rules makes netd look at every task again.
    let _ = lab.orch(&["service", "create", "-d", "--name", "other", "-p", "8001:80", "hits"]).ok();
    lab.wait_replicas("other", "1/1");
    for line in links().lines().filter(|line| !line.contains(" lo: ")) {
        assert!(!line.contains(",UP") && !line.contains("<UP"), "a dead task's link is up: {line}");
    }
    assert!(!log().contains("someone else changed"), "{}", log());
    signal("-CONT");
    lab.wait_replicas("web", "3/3");
}

fn kill_main_process(lab: &Lab, node: &str, task_name: &str) {
    let text = lab.orch_on(node, &["ps", "--no-trunc", "--format", "{{.Names}} {{.PID}}"]).ok();
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{task_name}.")))
        .unwrap_or_else(|| panic!("no {task_name} in {text}"));
    let pid = line.rsplit(' ').next().expect("a pid");
    let _ = lab.exec(node, &["kill", "-9", pid]).ok();
}

#[test]
fn containers_outlive_every_daemon_of_their_node() {
    let lab = lab_with_web("daemons");
    for (node, daemon) in [("n2", "worker"), ("n2", "netd"), ("n1", "manager"), ("n3", "node")] {
        let before = pids(&lab, node).expect("orch ps");
        assert!(!before.is_empty(), "no containers on {node}");
        let url = format!("http://{}:8000/", lab.address(node));
        let _ = lab.command("kill", &[node, daemon]).ok();
        let _ = lab.command("start", &[node]).ok();
        eventually(&format!("the containers of {node} are managed again after kill {daemon}"), || {
            let now = pids(&lab, node)?;
            if now == before { Ok(()) } else { Err(format!("{now:?} instead of {before:?}")) }
        });
        eventually("the port answers", || lab.get("client", &url));
        lab.wait_replicas("web", "3/3");
        assert_eq!(pids(&lab, node).expect("orch ps"), before, "containers were restarted after kill {daemon}");
    }
    // What ends while netd is away leaves no namespace, also when its worker does not see netd come back.
    let namespaces = || lab.exec("n1", &["ls", "/run/orch/netns"]).result();
    let before = namespaces().expect("ls");
    let _ = lab.orch(&["run", "-d", "--name", "brief", "hits"]).ok();
    assert_ne!(namespaces().expect("ls"), before);
    let _ = lab.command("pause", &["n1", "node"]).ok();
    let _ = lab.command("kill", &["n1", "netd"]).ok();
    let _ = lab.orch(&["rm", "-f", "brief"]).ok();
    let _ = lab.command("kill", &["n1", "worker"]).ok();
    let _ = lab.command("resume", &["n1"]).ok();
    eventually("its namespace goes", || match namespaces()? {
        now if now == before => Ok(()),
        now => Err(format!("{now:?} instead of {before:?}")),
    });
    // Managed again, not just listed: scaling reaches them.
    let _ = lab.orch(&["service", "scale", "web=0"]).ok();
    for node in ["n1", "n2", "n3"] {
        eventually("nothing runs any more", || match pids(&lab, node)? {
            none if none.is_empty() => Ok(()),
            some => Err(format!("{some:?}")),
        });
    }
}

#[test]
fn a_worker_is_reached_at_its_new_address() {
    let lab = lab_with_web("moved");
    let old = lab.address("n3");
    let new = format!("{old}3");
    // With the first address its others go as well.
    let change = format!("ip address del {old}/24 dev eth0; ip address add {new}/24 dev eth0");
    let _ = lab.exec("n3", &["sh", "-c", &change]).ok();
    let url = format!("http://{new}:8000/");
    within(PATIENCE, "the port answers at the new address, by all tasks", || {
        for _ in 0..6 {
            let _ = lab.get("client", &url)?;
        }
        Ok(())
    });
    eventually("the node says so", || {
        let info = lab.orch_on("n3", &["info"]).result()?;
        if info.contains(&format!("Node Address: {new}")) { Ok(()) } else { Err(info) }
    });
    eventually("n3 is ready", || {
        let address =
            lab.orch(&["node", "inspect", "n3", "--format", "{{.Status.State}} {{.Status.Addr}}"]).result()?;
        if address.trim() == format!("ready {new}") { Ok(()) } else { Err(address) }
    });
}

#[test]
fn after_a_power_cut_of_the_manager_everything_is_as_it_was() {
    let lab = lab_with_web("power-cut");
    let facts = || -> Result<Vec<String>, String> {
        Ok(vec![
            lab.orch(&["node", "ls", "--format", "{{.ID}} {{.Hostname}}"]).result()?,
            lab.orch(&["service", "inspect", "web", "--format", "{{.ID}} {{.Version.Index}} {{json .Endpoint}}"])
                .result()?,
            lab.orch(&["join-token", "-q", "worker"]).result()?,
            lab.orch(&["join-token", "-q", "manager"]).result()?,
        ])
    };
    let before = facts().expect("facts before");
    let _ = lab.command("kill", &["n1", "all"]).ok();
    let url = format!("http://{}:8000/", lab.address("n2"));
    // The data plane goes on without a manager.
    eventually("the port answers on n2", || lab.get("client", &url));
    let _ = lab.command("start", &["n1"]).ok();
    let after = within(RESTART_LIMIT, "the manager answers", &facts);
    assert_eq!(after, before);
    within(RESTART_LIMIT, "three replicas run again", || {
        let services = lab.list(&["service", "ls"])?;
        if services.iter().any(|s| s["Name"] == "web" && s["Replicas"] == "3/3") {
            Ok(())
        } else {
            Err(format!("{services:?}"))
        }
    });
    let nodes = lab.list(&["node", "ls"]).expect("node ls");
    assert_eq!(nodes.len(), 3, "a node joined anew: {nodes:?}");
    eventually("every node is ready", || {
        let nodes = lab.list(&["node", "ls"])?;
        if nodes.iter().all(|n| n["Status"] == "Ready") { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
}
