//! Nodes that die, stand still or are cut off: who notices, how soon, and who is wrongly taken for dead (nobody).

use std::{
    collections::BTreeSet,
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use orch_tests::{Lab, Load, eventually, failures, within};
use serde_json::Value;

const SLEEPER: &[&str] = &["CMD [\"sleep\", \"100000\"]", "STOPSIGNAL SIGKILL"];
// No Redis here: the counter's connection is refused at once.
const HITS: &[&str] = &["CMD [\"python3\", \"/app/hits.py\"]", "EXPOSE 80", "ENV REDIS_HOST=127.0.0.1"];
/// How long things stand still.
const STILL: Duration = Duration::from_secs(if cfg!(feature = "full") { 10 } else { 5 });
const UNREACHABLE: &str = "unreachable for its peers";

/// Hostname, status and why, of every node; `from` is asked.
fn nodes(lab: &Lab, from: &str) -> Result<Vec<(String, String, String)>, String> {
    let text = lab.orch_on(from, &["node", "ls", "--format", "{{.Hostname}}|{{.Status}}|{{.Message}}"]).result()?;
    let parts = |line: &str| {
        let mut parts = line.split('|').map(str::to_owned);
        Some((parts.next()?, parts.next()?, parts.next()?))
    };
    text.lines().map(|line| parts(line).ok_or_else(|| line.to_owned())).collect()
}

fn expect_node(lab: &Lab, from: &str, node: &str, status: &str, why: &str) -> Result<(), String> {
    let now = nodes(lab, from)?;
    let wanted = (node.to_owned(), status.to_owned(), why.to_owned());
    if now.contains(&wanted) { Ok(()) } else { Err(format!("{now:?}")) }
}

/// Wanted tasks of the service: name, node, current state, id.
fn wanted(lab: &Lab, service: &str) -> Result<Vec<Value>, String> {
    lab.list(&["service", "ps", "--no-trunc", "--filter", "desired-state=running", service])
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

/// Each slot has one running task, none of them on `without`.
fn expect_slots(lab: &Lab, service: &str, slots: usize, without: &str) -> Result<BTreeSet<String>, String> {
    let tasks = wanted(lab, service)?;
    let is_good = |task: &&Value| text(task, "CurrentState").starts_with("Running") && text(task, "Node") != without;
    let names: BTreeSet<_> = tasks.iter().filter(is_good).map(|task| text(task, "Name").to_owned()).collect();
    if names.len() == slots && tasks.len() == slots { Ok(names) } else { Err(format!("{tasks:?}")) }
}

/// Containers that run on a node.
fn containers(lab: &Lab, node: &str) -> Result<BTreeSet<String>, String> {
    Ok(lab.orch_on(node, &["ps", "-q", "--no-trunc"]).result()?.lines().map(str::to_owned).collect())
}

/// For so long, `calm` holds.
fn hold(length: Duration, mut calm: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while start.elapsed() < length {
        calm().unwrap_or_else(|broken| panic!("after {:?}: {broken}", start.elapsed()));
        sleep(Duration::from_millis(300));
    }
}

fn all_ready(lab: &Lab, from: &str, count: usize) -> Result<(), String> {
    let now = nodes(lab, from)?;
    let ready = now.iter().filter(|(_, status, _)| status == "Ready").count();
    if ready == count && now.len() == count { Ok(()) } else { Err(format!("{now:?}")) }
}

fn settle(lab: &Lab, count: usize) {
    eventually("every node is ready", || all_ready(lab, "n1", count));
    // Probes have to have found everyone before anyone can be missed.
    sleep(Duration::from_secs(3));
}

fn ids(tasks: &[Value]) -> BTreeSet<String> {
    tasks.iter().map(|task| text(task, "ID").to_owned()).collect()
}

/// Requests to the service's port on a node, for a minute at most; returns once they run.
fn begin_load(lab: &Lab, node: &str) -> Load {
    let url = format!("http://{}:8000/", lab.address(node));
    let load = Load::start(lab, "client", &url, Duration::from_millis(25), Duration::from_secs(60));
    eventually("the load runs", || if load.so_far() > 100 { Ok(()) } else { Err(load.so_far().to_string()) });
    load
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// How long after `cut` the last request began that had to be sent again. None may have failed.
fn last_slow(answers: &[Value], cut: f64) -> f64 {
    let failed = failures(answers);
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), answers.len());
    let at = |answer: &Value| answer["at"].as_f64().expect("a time") - cut;
    let slow = |answer: &&Value| answer["took_ms"].as_f64().is_none_or(|took| took > 900.0);
    let last = answers.iter().filter(slow).map(at).fold(f64::MIN, f64::max);
    eprintln!("the last request that had to be sent again began {last:.2} s after the cut");
    assert!(last > 0.0, "no request went where nobody answers: this test shows nothing");
    last
}

#[test]
fn after_a_power_cut_tasks_run_elsewhere_within_five_seconds_and_a_node_that_comes_back_has_none_twice() {
    let lab = Lab::up("gossip-cut", 4, 1);
    lab.import("box", "busybox", SLEEPER);
    let _ = lab.orch(&["service", "create", "-q", "--name", "s", "--replicas", "8", "box"]).ok();
    lab.wait_replicas("s", "8/8");
    settle(&lab, 4);

    let _ = lab.command("kill", &["n3", "all"]).ok();
    within(Duration::from_secs(5), "eight run without n3", || expect_slots(&lab, "s", 8, "n3"));
    expect_node(&lab, "n1", "n3", "Down", UNREACHABLE).expect("why n3 is down");
    let _ = lab.command("start", &["n3"]).ok();
    eventually("n3 is back", || expect_node(&lab, "n1", "n3", "Ready", ""));

    // Cut off instead: its containers go on, and have to go once it is back.
    settle(&lab, 4);
    let stranded = containers(&lab, "n2").expect("containers of n2");
    assert!(!stranded.is_empty());
    for other in ["n1", "n3", "n4"] {
        let _ = lab.command("partition", &["n2", other]).ok();
    }
    within(Duration::from_secs(6), "eight run without n2", || expect_slots(&lab, "s", 8, "n2"));
    assert_eq!(containers(&lab, "n2").expect("containers of n2"), stranded, "no manager told it to stop them");
    let _ = lab.command("heal", &[] as &[&str]).ok();
    within(Duration::from_secs(15), "n2 stops what is not its own", || {
        let left: Vec<_> = containers(&lab, "n2")?.intersection(&stranded).cloned().collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    expect_slots(&lab, "s", 8, "nowhere").expect("one task in each slot");
}

#[test]
fn with_no_manager_up_a_dead_nodes_tasks_leave_the_balancing_within_two_seconds() {
    let lab = Lab::up("gossip-data", 4, 1);
    lab.import("hits", "hits", HITS);
    let args = ["service", "create", "-q", "--name", "web", "--mode", "global", "-p", "8000:80", "hits"];
    let _ = lab.orch(&args).ok();
    for node in ["n1", "n2", "n3", "n4"] {
        let url = format!("http://{}:8000/", lab.address(node));
        eventually("the port answers on every node", || lab.get("client", &url));
    }
    settle(&lab, 4);
    let _ = lab.command("pause", &["n1", "manager"]).ok();
    // Its supervisor has nobody to ask: what it was told is kept for the next one.
    let _ = lab.command("kill", &["n2", "node"]).ok();
    let _ = lab.command("start", &["n2"]).ok();
    sleep(Duration::from_secs(4));
    let load = begin_load(&lab, "n2");
    let cut = now();
    let _ = lab.command("kill", &["n4", "all"]).ok();
    sleep(Duration::from_secs(8));
    let answers = load.stop();
    let _ = lab.command("resume", &["n1"]).ok();
    let last_slow = last_slow(&answers, cut);
    assert!(last_slow < 2.0, "a request that began {last_slow} s after the cut still went to the dead node");
}

#[test]
fn two_nodes_cut_off_from_each_other_alone_send_each_other_no_new_connections() {
    let lab = Lab::up("gossip-pair", 3, 1);
    lab.import("hits", "hits", HITS);
    let args = ["service", "create", "-q", "--name", "web", "--mode", "global", "-p", "8000:80", "hits"];
    let _ = lab.orch(&args).ok();
    for node in ["n1", "n2", "n3"] {
        let url = format!("http://{}:8000/", lab.address(node));
        eventually("the port answers on every node", || lab.get("client", &url));
    }
    settle(&lab, 3);
    let load = begin_load(&lab, "n2");
    let cut = now();
    let _ = lab.command("partition", &["n2", "n3"]).ok();
    hold(Duration::from_secs(12), || all_ready(&lab, "n1", 3));
    let answers = load.stop();
    let last_slow = last_slow(&answers, cut);
    assert!(last_slow < 5.0, "a request that began {last_slow} s after the cut was still sent over it");
    let log = || lab.exec("n2", &["cat", "/var/lib/orch/node/log/node.log"]).ok();
    assert!(log().contains("the network between the two is cut"), "{}", log());
    let _ = lab.command("heal", &[] as &[&str]).ok();
    within(Duration::from_secs(10), "and no longer", || {
        let log = log();
        if log.contains("no longer cut off from this node") { Ok(()) } else { Err(log) }
    });
}

#[test]
fn whoever_stands_still_or_has_its_port_closed_is_not_dead() {
    let lab = Lab::up("gossip-calm", 3, 1);
    lab.import("box", "busybox", SLEEPER);
    let _ = lab.orch(&["service", "create", "-q", "--name", "s", "--replicas", "6", "box"]).ok();
    lab.wait_replicas("s", "6/6");
    settle(&lab, 3);
    let before = ids(&wanted(&lab, "s").expect("tasks"));
    let unchanged = || {
        let now = ids(&wanted(&lab, "s")?);
        if now == before { all_ready(&lab, "n1", 3) } else { Err(format!("tasks were replaced: {now:?}")) }
    };

    // The supervisor: its node's tasks and session go on.
    let _ = lab.command("pause", &["n2", "node"]).ok();
    hold(STILL, unchanged);
    let log = lab.exec("n1", &["cat", "/var/lib/orch/node/log/netd.log"]).ok();
    assert!(!log.contains("takes this node for dead"), "backends were withdrawn: {log}");
    let _ = lab.command("resume", &["n2"]).ok();
    // Everything of a node, as when it gets no time on its processors: the heartbeats' grace has not passed.
    let _ = lab.command("pause", &["n2", "all"]).ok();
    hold(STILL, unchanged);
    let _ = lab.command("resume", &["n2"]).ok();
    hold(Duration::from_secs(3), unchanged);
    // The leader's manager, and all that waited for it meanwhile.
    let _ = lab.command("pause", &["n1", "manager"]).ok();
    sleep(STILL);
    let _ = lab.command("resume", &["n1"]).ok();
    eventually("the manager answers", || nodes(&lab, "n1"));
    hold(Duration::from_secs(5), unchanged);
    // The only manager hears nobody for a while.
    for other in ["n2", "n3"] {
        let _ = lab.command("partition", &["n1", other]).ok();
    }
    hold(Duration::from_secs(8), unchanged);
    let _ = lab.command("heal", &[] as &[&str]).ok();
    hold(Duration::from_secs(5), unchanged);

    // Its gossip port closed: that is said, and nothing else happens.
    let closed = "table inet shut { chain in { type filter hook input priority 0; udp dport 7946 drop; }; }";
    let _ = lab.exec("n2", &["nft", closed]).ok();
    within(Duration::from_secs(20), "the status says so", || {
        unchanged()?;
        expect_node(&lab, "n1", "n2", "Ready", "gossip does not reach it: open 7946/udp")
    });
    let log = lab.exec("n2", &["cat", "/var/lib/orch/node/log/node.log"]).ok();
    assert!(log.contains("nothing of gossip reaches this node"), "{log}");
    let reopen = || {
        let _ = lab.exec("n2", &["nft", "delete table inet shut"]).ok();
        within(Duration::from_secs(10), "and no longer", || expect_node(&lab, "n1", "n2", "Ready", ""));
        unchanged().expect("all is as it was");
    };
    reopen();

    // In every way: nobody reaches anybody, but the manager answers.
    let closed = "table inet shut { chain in { type filter hook input priority 0; th dport 7946 drop; th sport 7946 drop; }; \
                  chain out { type filter hook output priority 0; th dport 7946 drop; th sport 7946 drop; }; }";
    let _ = lab.exec("n2", &["nft", closed]).ok();
    hold(STILL, unchanged);
    within(Duration::from_secs(20), "the status says so", || {
        unchanged()?;
        expect_node(&lab, "n1", "n2", "Ready", "gossip does not reach it: open 7946/udp")
    });
    reopen();
}

#[test]
#[cfg_attr(not(feature = "full"), ignore = "takes half a minute: deploy/test --full")]
fn a_leader_that_is_cut_off_takes_nobody_down_and_neither_does_the_next() {
    let lab = Lab::up("gossip-leader", 4, 3);
    lab.import("box", "busybox", SLEEPER);
    settle(&lab, 4);
    let leader = lab.list(&["node", "ls"]).expect("node ls").into_iter().find(|n| n["ManagerStatus"] == "Leader");
    let leader = text(&leader.expect("a leader"), "Hostname").to_owned();
    let others: Vec<String> = (1..=4).map(|n| format!("n{n}")).filter(|node| *node != leader).collect();
    let constraint = format!("node.hostname!={leader}");
    let args = ["service", "create", "-q", "--name", "s", "--replicas", "6", "--constraint", &constraint, "box"];
    let _ = lab.orch(&args).ok();
    lab.wait_replicas("s", "6/6");
    let before = ids(&wanted(&lab, "s").expect("tasks"));
    for other in &others {
        let _ = lab.command("partition", &[&leader, other]).ok();
    }
    let from = &others[0];
    within(Duration::from_secs(15), "the others agree that it is gone", || {
        expect_node(&lab, from, &leader, "Down", UNREACHABLE)
    });
    hold(Duration::from_secs(8), || {
        let down: Vec<_> = nodes(&lab, from)?.into_iter().filter(|n| n.1 != "Ready" && n.0 != leader).collect();
        if down.is_empty() { Ok(()) } else { Err(format!("{down:?}")) }
    });
    let _ = lab.command("heal", &[] as &[&str]).ok();
    eventually("it is back", || all_ready(&lab, from, 4));
    assert_eq!(ids(&wanted(&lab, "s").expect("tasks")), before, "no task was replaced");
}

#[test]
fn a_leader_to_which_nobody_can_come_hands_over_and_takes_nobody_for_dead() {
    let lab = Lab::up("gossip-shut", 4, 3);
    lab.import("box", "busybox", SLEEPER);
    let _ = lab.orch(&["service", "create", "-q", "--name", "s", "--replicas", "8", "box"]).ok();
    lab.wait_replicas("s", "8/8");
    settle(&lab, 4);
    let leader = |from: &str| {
        let text = lab.orch_on(from, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"]).result()?;
        let leads = text.lines().find_map(|line| line.strip_suffix(" Leader").map(str::to_owned));
        leads.ok_or(text)
    };
    let deaf = leader("n1").expect("a leader");
    let from = if deaf == "n2" { "n3" } else { "n2" };
    let before = ids(&wanted(&lab, "s").expect("tasks"));
    let closed = "table inet shut { chain in { type filter hook input priority 0; iif != lo tcp dport 2377 drop; }; }";
    let _ = lab.exec(&deaf, &["nft", closed]).ok();
    within(Duration::from_secs(15), "another manager leads", || {
        let now = leader(from)?;
        if now == deaf { Err(now) } else { Ok(()) }
    });
    hold(Duration::from_secs(8), || {
        let ready: Vec<_> = nodes(&lab, from)?.into_iter().filter(|node| node.1 == "Ready").collect();
        if ready.len() == 4 { Ok(()) } else { Err(format!("{ready:?}")) }
    });
    let tasks =
        lab.orch_on(from, &["service", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", "s"]).ok();
    assert_eq!(tasks.lines().map(str::to_owned).collect::<BTreeSet<_>>(), before, "tasks were replaced");
    let said = lab.orch_on(&deaf, &["service", "ls"]);
    assert!(said.stderr.contains("what it sends has not arrived here"), "{said:?}");
    let _ = lab.orch_on(&deaf, &["config", "create", "by-way-of-the-leader", "/etc/hostname"]).ok();
    let configs = lab.orch_on(from, &["config", "ls", "--format", "{{.Name}}"]).ok();
    assert_eq!(configs.trim(), "by-way-of-the-leader");
    let log = lab.exec(&deaf, &["cat", "/var/lib/orch/node/log/manager.log"]).ok();
    assert!(log.contains("no other node comes to this manager"), "it does not say why: {log}");
}

#[test]
#[cfg_attr(not(feature = "full"), ignore = "takes half a minute: deploy/test --full")]
fn with_two_nodes_only_the_heartbeats_grace_counts_and_a_new_period_at_once() {
    let lab = Lab::up("gossip-two", 2, 1);
    let _ = lab.orch(&["update", "--dispatcher-heartbeat", "2s"]).ok();
    // Until the next heartbeat of the old period has brought the new one.
    sleep(Duration::from_secs(6));
    let start = Instant::now();
    let _ = lab.command("kill", &["n2", "all"]).ok();
    within(Duration::from_secs(12), "n2 is down", || expect_node(&lab, "n1", "n2", "Down", "heartbeat failure"));
    assert!(start.elapsed() > Duration::from_secs(4), "down before its grace was over: {:?}", start.elapsed());
}

#[test]
fn packets_that_are_not_ours_are_dropped_and_counted() {
    let lab = Lab::up("gossip-junk", 3, 1);
    settle(&lab, 3);
    // The daemons die with their supervisor.
    let daemons = || {
        let info = lab.orch_on("n2", &["info"]).ok();
        info.lines().filter(|line| line.contains("Daemon ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = daemons();
    assert_eq!(before.len(), 2, "worker and netd: {before:?}");
    let script = format!(
        "import os,random,socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\nfor n in range(20000):\n \
         s.sendto(bytes([1]*(n%2))+os.urandom(random.randrange(1400)),('{}',7946))",
        lab.address("n2")
    );
    let _ = lab.exec("client", &["python3", "-c", &script]).ok();
    eventually("the log says how many", || {
        let log = lab.exec("n2", &["cat", "/var/lib/orch/node/log/node.log"]).result()?;
        let line = log.lines().find(|line| line.contains("dropped gossip packets"));
        if line.is_some_and(|line| line.contains("foreign=")) { Ok(()) } else { Err(log) }
    });
    assert_eq!(daemons(), before, "the supervisor was restarted");
    hold(Duration::from_secs(3), || all_ready(&lab, "n1", 3));
    let _ = lab.command("kill", &["n3", "all"]).ok();
    within(Duration::from_secs(5), "gossip goes on", || expect_node(&lab, "n1", "n3", "Down", UNREACHABLE));
}
