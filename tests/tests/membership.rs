//! Nodes change their part in the cluster: promoted, demoted, drained, removed; a quorum is lost and found again.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::Child,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use orch_tests::{Lab, RESTART_LIMIT, eventually, within};

/// How soon the cluster acts on what an operator says.
const AT_ONCE: Duration = Duration::from_secs(15);

/// `HOSTNAME` to `MANAGER STATUS`, as `on` tells it.
fn managers(lab: &Lab, on: &str) -> Result<Vec<String>, String> {
    let text = lab.orch_on(on, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"]).result()?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

#[track_caller]
fn wait_managers(lab: &Lab, on: &str, expected: &[&str]) {
    within(AT_ONCE, "the managers are as wanted", || {
        let now = managers(lab, on)?;
        if now == expected { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

/// Which of these leads.
fn leader(lab: &Lab, on: &str) -> Result<String, String> {
    let now = managers(lab, on)?;
    let leader = now.iter().find_map(|line| line.strip_suffix(" Leader"));
    leader.map(str::to_owned).ok_or(format!("nobody leads: {now:?}"))
}

fn has_manager_folder(lab: &Lab, node: &str) -> bool {
    lab.exec(node, &["test", "-e", "/var/lib/orch/manager"]).code == 0
}

/// How many containers run on the node.
fn containers(lab: &Lab, node: &str) -> Result<usize, String> {
    Ok(lab.orch_on(node, &["ps", "-q"]).result()?.lines().count())
}

#[track_caller]
fn wait_containers(lab: &Lab, node: &str, count: usize) {
    within(AT_ONCE, &format!("{count} containers on {node}"), || match containers(lab, node)? {
        now if now == count => Ok(()),
        now => Err(now.to_string()),
    });
}

fn sleepers(lab: &Lab, args: &[&str]) {
    lab.import("busybox", "busybox", &[]);
    let mut all = vec!["service", "create", "-d", "--name", "sleepers", "--restart-delay", "1s"];
    all.extend(args);
    all.extend(["busybox", "sleep", "10000"]);
    let _ = lab.orch(&all).ok();
}

#[test]
fn managers_are_promoted_and_demoted_down_to_one() {
    let lab = Lab::up("roles", 3, 1);
    let _ = lab.orch(&["node", "promote", "n2", "n3"]).ok();
    wait_managers(&lab, "n2", &["n1 Leader", "n2 Reachable", "n3 Reachable"]);
    assert_eq!(lab.orch(&["node", "promote", "n2"]).ok(), "Node n2 is already a manager.\n");

    // The leader itself.
    let _ = lab.orch(&["node", "demote", "n1"]).ok();
    within(AT_ONCE, "n1 is no manager any more", || match has_manager_folder(&lab, "n1") {
        false => Ok(()),
        true => Err("its folder is there".into()),
    });
    let said = lab.orch(&["node", "ls"]).refused();
    assert!(said.starts_with("This node is not a manager"), "{said}");
    let led_by = within(AT_ONCE, "another leads", || leader(&lab, "n2"));
    assert_ne!(led_by, "n1");
    let _ = lab.orch_on("n2", &["node", "update", "--role", "manager", "n1"]).ok();
    within(AT_ONCE, "n1 is a manager again", || {
        let now = managers(&lab, "n1")?;
        if now[0] == "n1 Reachable" { Ok(()) } else { Err(format!("{now:?}")) }
    });

    // One that is down.
    let _ = lab.command("kill", &["n3", "all"]).ok();
    within(AT_ONCE, "n3 is unreachable", || {
        let now = managers(&lab, "n1")?;
        if now[2] == "n3 Unreachable" { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let said = lab.orch(&["node", "demote", "n2"]).refused();
    let arithmetic =
        "without n2, 2 of the 3 managers remain, 2 of them are needed for a quorum, and 1 is reachable now";
    assert!(said.contains(arithmetic), "{said}");
    let _ = lab.orch(&["node", "demote", "n3"]).ok();
    within(AT_ONCE, "n3 is out", || {
        let now = managers(&lab, "n1")?;
        if now[2] == "n3" { Ok(()) } else { Err(format!("{now:?}")) }
    });
    // Down to one.
    let _ = lab.orch(&["node", "demote", "n2"]).ok();
    wait_managers(&lab, "n1", &["n1 Leader", "n2", "n3"]);
    let said = lab.orch(&["node", "demote", "n1"]).refused();
    assert!(said.starts_with("attempting to demote the last manager of the cluster"), "{said}");
    // It was demoted in its sleep.
    let _ = lab.command("start", &["n3"]).ok();
    within(AT_ONCE, "n3 finds itself a worker", || match has_manager_folder(&lab, "n3") {
        false => Ok(()),
        true => Err("its manager's folder is there".into()),
    });
}

/// The leader dies at different moments after it has accepted the change: before it did anything, in between, when done.
#[test]
fn what_a_leader_leaves_undone_the_next_one_finishes() {
    let lab = Lab::up("next-leader", 5, 3);
    let (verbs, others) = (["promote", "demote"], ["n4", "n5"]);
    for (turn, moment_ms) in [0, 60, 250, 700].into_iter().enumerate() {
        let led_by = within(RESTART_LIMIT, "somebody leads", || {
            ["n1", "n2", "n3"].iter().find_map(|node| leader(&lab, node).ok()).ok_or("nobody".to_owned())
        });
        let via = if led_by == "n1" { "n2" } else { "n1" };
        let verb = verbs[turn % 2];
        // Both at once, through a manager that only passes it on.
        let _ = lab.orch_on(via, &[&["node", verb], &others[..]].concat()).ok();
        std::thread::sleep(Duration::from_millis(moment_ms));
        let _ = lab.command("kill", &[led_by.as_str(), "manager"]).ok();
        let count = if verb == "promote" { 5 } else { 3 };
        within(RESTART_LIMIT, &format!("{count} managers, {moment_ms} ms after {verb}"), || {
            let now = managers(&lab, via)?;
            let active = now.iter().filter(|line| line.ends_with("Leader") || line.ends_with("Reachable")).count();
            let workers = now.iter().filter(|line| !line.contains(' ')).count();
            if active == count && workers == 5 - count { Ok(()) } else { Err(format!("{now:?}")) }
        });
        let folders = others.iter().filter(|node| has_manager_folder(&lab, node)).count();
        assert!(verb == "demote" || folders == 2, "{folders} folders of managers");
    }
}

#[test]
fn a_node_that_joins_waits_until_somebody_leads() {
    let lab = Lab::up("join-led", 3, 2);
    let token = lab.orch(&["join-token", "-q", "worker"]).ok();
    let _ = lab.orch_on("n3", &["leave"]).ok();
    let _ = lab.command("kill", &["n1", "all"]).ok();
    let remote = format!("{}:2377", lab.address("n2"));
    let mut joining = lab.spawn("n3", &["orch", "join", "--token", token.trim(), &remote]);
    let mut said = String::new();
    let mut stderr = BufReader::new(joining.stderr.take().expect("a pipe"));
    let _ = stderr.read_line(&mut said).expect("reading what it says");
    assert!(
        said.starts_with(&format!("Waiting up to 60 s until {remote} finds a leader: the cluster has no")),
        "{said}"
    );
    let _ = lab.command("start", &["n1"]).ok();
    let joined = joining.wait_with_output().expect("waiting for it");
    let _ = stderr.read_to_string(&mut said).expect("reading what it says");
    assert!(joined.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&joined.stdout), "This node joined a cluster as a worker.\n");
    assert_eq!(said.lines().count(), 1, "it says so once: {said}");
}

#[test]
fn five_managers_go_on_without_two() {
    let lab = Lab::up("five", 5, 5);
    wait_managers(&lab, "n1", &["n1 Leader", "n2 Reachable", "n3 Reachable", "n4 Reachable", "n5 Reachable"]);
    let _ = lab.orch(&["config", "create", "before", "/etc/hostname"]).ok();
    for lost in ["n1", "n5"] {
        let _ = lab.command("kill", &[lost, "all"]).ok();
    }
    within(AT_ONCE, "writes go through", || {
        lab.orch_on("n2", &["node", "update", "--label-add", "still=here", "n2"]).result()
    });
    within(AT_ONCE, "the lost ones show", || {
        let now = managers(&lab, "n3")?;
        let lost = now[0] == "n1 Unreachable" && now[4] == "n5 Unreachable";
        if lost && now.iter().any(|line| line.ends_with("Leader")) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    // A third one would be too many, and is not taken out by mistake.
    let said = lab.orch_on("n2", &["node", "demote", "n3"]).refused();
    let sentence = "can't remove member from the raft: this would result in a loss of quorum: without n3, 4 of the 5 \
                    managers remain, 3 of them are needed for a quorum, and 2 are reachable now";
    assert!(said.contains(sentence), "{said}");
    for lost in ["n1", "n5"] {
        let _ = lab.command("start", &[lost]).ok();
    }
    within(RESTART_LIMIT, "all five are back", || {
        let now = managers(&lab, "n1")?;
        let back = now.iter().filter(|line| line.ends_with("Leader") || line.ends_with("Reachable")).count();
        if back == 5 { Ok(()) } else { Err(format!("{now:?}")) }
    });
    assert!(lab.orch_on("n5", &["config", "ls"]).ok().contains("before"));
}

#[test]
fn a_manager_leaves_only_when_told_twice() {
    let lab = Lab::up("leave", 3, 3);
    let said = lab.orch_on("n3", &["leave"]).refused();
    let warning = "You are attempting to leave the cluster on a node that is participating as a manager. ";
    assert!(said.starts_with(warning) && said.contains("`--force`"), "{said}");
    let said = lab.orch(&["node", "rm", "n3"]).refused();
    assert!(said.contains("It must be demoted to worker before removal: \"orch node demote n3\""), "{said}");
    let said = lab.orch(&["node", "rm", "--force", "n3"]).refused();
    assert!(said.contains("must be demoted"), "{said}");
    let _ = lab.orch_on("n3", &["leave", "--force"]).ok();
    // It said goodbye, so it is no manager any more, and needs no demotion.
    within(AT_ONCE, "n3 shows as gone", || {
        let text = lab.orch(&["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"]).result()?;
        if text.contains("n3 Down \n") { Ok(()) } else { Err(text) }
    });
    let _ = lab.orch(&["node", "rm", "n3"]).ok();
    wait_managers(&lab, "n2", &["n1 Leader", "n2 Reachable"]);
    // It may come again, as another manager.
    let token = lab.orch(&["join-token", "-q", "manager"]).ok();
    let _ = lab.orch_on("n3", &["join", "--token", token.trim(), &format!("{}:2377", lab.address("n2"))]).ok();
    wait_managers(&lab, "n3", &["n1 Leader", "n2 Reachable", "n3 Reachable"]);
}

#[test]
fn nodes_are_drained_paused_labelled_and_removed() {
    let lab = Lab::up("nodes", 3, 1);
    sleepers(&lab, &["--mode", "global", "--constraint", "node.labels.kind != odd"]);
    for node in ["n1", "n2", "n3"] {
        wait_containers(&lab, node, 1);
    }
    let news = News::of(&lab);
    let _ = lab.orch(&["node", "update", "--availability", "drain", "n2"]).ok();
    wait_containers(&lab, "n2", 0);
    let _ = lab.orch(&["node", "update", "--availability", "active", "n2"]).ok();
    wait_containers(&lab, "n2", 1);
    let _ = lab.orch(&["node", "update", "--label-add", "kind=odd", "n3"]).ok();
    wait_containers(&lab, "n3", 0);
    let _ = lab.orch(&["node", "update", "--label-rm", "kind", "--availability", "pause", "n3"]).ok();
    let _ = lab.orch(&["node", "update", "--availability", "pause", "n2"]).ok();
    // Paused keeps what it has and gets nothing new.
    let listed = lab.orch(&["node", "ls", "--format", "{{.Hostname}} {{.Availability}}"]).ok();
    assert_eq!(listed, "n1 Active\nn2 Pause\nn3 Pause\n");
    assert_eq!((containers(&lab, "n2"), containers(&lab, "n3")), (Ok(1), Ok(0)));
    let _ = lab.orch(&["node", "update", "--availability", "active", "n3"]).ok();
    wait_containers(&lab, "n3", 1);
    assert_eq!(containers(&lab, "n2"), Ok(1));
    what_waits_is_placed_once_a_label_allows_it(&lab);
    less_history_is_kept_at_once(&lab);

    let said = lab.orch(&["node", "rm", "n2"]).refused();
    assert!(said.contains("is not down and can't be removed"), "{said}");
    let _ = lab.orch(&["node", "rm", "--force", "n2"]).ok();
    assert_eq!(lab.orch(&["node", "ls", "--format", "{{.Hostname}}"]).ok(), "n1\nn3\n");
    // Its tasks are nobody's any more.
    wait_containers(&lab, "n2", 0);
    let said = lab.orch(&["node", "rm", "--force", "n1"]).refused();
    assert!(said.contains("must be demoted to worker before removal"), "{said}");
    // The same machine may come back as another node.
    let token = lab.orch(&["join-token", "-q", "worker"]).ok();
    let _ = lab.orch_on("n2", &["leave", "--force"]).ok();
    let remote = format!("{}:2377", lab.address("n1"));
    let _ = lab.orch_on("n2", &["join", "--token", token.trim(), &remote]).ok();
    wait_containers(&lab, "n2", 1);
    news.tell(&[
        "update n2 availability.new=drain availability.old=active",
        "update n2 availability.new=active availability.old=drain",
        "update n3",
        "update n3 availability.new=pause availability.old=active",
        "remove n2",
        "create n2",
    ]);
    let said = lab.orch_on("n3", &["events", "--filter", "type=node"]).refused();
    assert!(said.contains("This node is not a manager"), "{said}");
}

/// `orch events` of the nodes, as they come.
struct News {
    program: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl News {
    /// Returns once it tells of what happens.
    fn of(lab: &Lab) -> Self {
        let format = "{{.Type}} {{.Action}}{{range $k, $v := .Actor.Attributes}} {{$k}}={{$v}}{{end}}";
        let wanted = ["--filter", "type=node", "--filter", "type=config", "--format", format];
        let mut program = lab.spawn("n1", &[&["orch", "events"][..], &wanted].concat());
        let output = BufReader::new(program.stdout.take().expect("its output"));
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let told = Arc::clone(&lines);
        thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| told.lock().expect("the lines").push(line))
        });
        let mut number = 0;
        eventually("events are told", || {
            number += 1;
            let _ = lab.orch(&["config", "create", &format!("marker-{number}"), "/etc/hostname"]).ok();
            if lines.lock().expect("the lines").is_empty() { Err("nothing".to_owned()) } else { Ok(()) }
        });
        Self { program, lines }
    }

    /// All of these have been told of nodes, in this order; others may lie between them.
    fn tell(&self, expected: &[&str]) {
        eventually("all events are told", || {
            let lines = self.lines.lock().expect("the lines");
            let all: Vec<String> = lines.iter().filter_map(|line| node_event(line)).collect();
            let mut rest = all.iter();
            match expected.iter().find(|wanted| !rest.any(|line| line == **wanted)) {
                Some(missing) => Err(format!("{missing:?} is missing from {all:?}")),
                None => Ok(()),
            }
        });
    }
}

impl Drop for News {
    fn drop(&mut self) {
        let _ = self.program.kill().and_then(|()| self.program.wait());
    }
}

/// `update n2 state.new=down` of `node update name=n2 state.new=down`.
fn node_event(line: &str) -> Option<String> {
    let (action, attributes) = line.strip_prefix("node ")?.split_once(' ')?;
    let (names, others): (Vec<_>, Vec<_>) = attributes.split(' ').partition(|word| word.starts_with("name="));
    let name = names.first()?.strip_prefix("name=")?;
    Some([vec![action, name], others].concat().join(" "))
}

/// The states of a service's tasks, wanted ones first.
fn states(lab: &Lab, service: &str) -> Result<Vec<String>, String> {
    let tasks = lab.list(&["service", "ps", service])?;
    Ok(tasks.iter().map(|task| task["CurrentState"].as_str().unwrap_or_default().to_owned()).collect())
}

fn what_waits_is_placed_once_a_label_allows_it(lab: &Lab) {
    let picky = ["service", "create", "-d", "--name", "picky", "--stop-signal", "KILL"];
    let _ = lab
        .orch(&[&picky[..], &["--constraint", "node.labels.disk == ssd", "busybox", "sleep", "10000"]].concat())
        .ok();
    within(AT_ONCE, "its task waits", || match states(lab, "picky")? {
        now if now.len() == 1 && now[0].starts_with("Pending") => Ok(()),
        now => Err(format!("{now:?}")),
    });
    let _ = lab.orch(&["node", "update", "--label-add", "disk=ssd", "n3"]).ok();
    within(AT_ONCE, "its task runs", || match states(lab, "picky")? {
        now if now.len() == 1 && now[0].starts_with("Running") => Ok(()),
        now => Err(format!("{now:?}")),
    });
}

fn less_history_is_kept_at_once(lab: &Lab) {
    for kept in 2..=4 {
        let _ = lab.orch(&["service", "update", "-d", "--force", "picky"]).ok();
        within(AT_ONCE, "another task runs", || match states(lab, "picky")? {
            now if now.len() == kept && now[0].starts_with("Running") => Ok(()),
            now => Err(format!("{now:?}")),
        });
    }
    let _ = lab.orch(&["update", "--task-history-limit", "2"]).ok();
    within(AT_ONCE, "less is kept", || match states(lab, "picky")? {
        // Those that ended count.
        now if now.len() == 3 && now[0].starts_with("Running") => Ok(()),
        now => Err(format!("{now:?}")),
    });
    let _ = lab.orch(&["service", "rm", "picky"]).ok();
}

#[test]
fn tasks_of_nodes_that_left_or_were_removed_run_elsewhere_at_once() {
    let lab = Lab::up("gone", 3, 1);
    sleepers(&lab, &["--replicas", "6"]);
    for node in ["n1", "n2", "n3"] {
        wait_containers(&lab, node, 2);
    }
    let _ = lab.orch_on("n3", &["leave"]).ok();
    wait_containers(&lab, "n1", 3);
    wait_containers(&lab, "n2", 3);
    let _ = lab.orch(&["node", "rm", "--force", "n2"]).ok();
    wait_containers(&lab, "n1", 6);
    wait_containers(&lab, "n2", 0);
}

#[test]
fn a_node_that_was_cut_off_stops_what_is_no_longer_its_own() {
    let lab = Lab::up("cut-off", 3, 1);
    let _ = lab.orch(&["update", "--dispatcher-heartbeat", "1s"]).ok();
    sleepers(&lab, &["--replicas", "3"]);
    for node in ["n1", "n2", "n3"] {
        wait_containers(&lab, node, 1);
    }
    for other in ["n1", "n2"] {
        let _ = lab.command("partition", &["n3", other]).ok();
    }
    within(AT_ONCE, "its task runs elsewhere", || match containers(&lab, "n1")? + containers(&lab, "n2")? {
        3 => Ok(()),
        now => Err(format!("{now} on n1 and n2")),
    });
    // Nobody told it, so it goes on.
    assert_eq!(containers(&lab, "n3"), Ok(1));
    let _ = lab.command("heal", &[] as &[&str]).ok();
    wait_containers(&lab, "n3", 0);
    eventually("n3 is ready", || {
        let nodes = lab.orch(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"]).result()?;
        if nodes.contains("n3 Ready") { Ok(()) } else { Err(nodes) }
    });
    assert_eq!(containers(&lab, "n1").and_then(|one| Ok(one + containers(&lab, "n2")?)), Ok(3));
}

#[test]
fn one_manager_goes_on_alone_after_the_quorum_is_lost() {
    let lab = Lab::up("force", 4, 3);
    sleepers(&lab, &["--replicas", "4"]);
    lab.wait_replicas("sleepers", "4/4");
    let said = lab.orch(&["init", "--force-new-cluster"]).refused();
    assert!(said.starts_with("the cluster has a quorum"), "{said}");
    let running = |node: &str| lab.orch_on(node, &["ps", "--no-trunc", "--format", "{{.ID}} {{.PID}}"]).ok();
    let before = ["n1", "n4"].map(running);
    let here = lab.orch(&["ps", "--format", "{{.ID}} {{.Names}}"]).ok();
    let (id, name) = here.lines().next().and_then(|one| one.split_once(' ')).expect("a task is here");
    let start_of_id = &id[..6];
    assert_eq!(lab.orch(&["exec", start_of_id, "echo", "here"]).ok(), "here\n");
    for lost in ["n2", "n3"] {
        let _ = lab.command("kill", &[lost, "all"]).ok();
    }
    // What is left says so, and names the way out: reads, changes and what they point to.
    eventually("it says that the quorum is lost", || {
        let error = lab.orch(&["info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.Error}}"]).result()?;
        if error.contains("quorum") && error.contains("--force-new-cluster") { Ok(()) } else { Err(error) }
    });
    // What runs on the node itself is at hand all the same.
    let in_slot = name.rsplit_once('.').expect("SERVICE.SLOT.ID").0;
    for reference in [start_of_id, in_slot] {
        assert_eq!(lab.orch(&["exec", reference, "echo", "here"]).ok(), "here\n", "{reference}");
    }
    let _ = lab.orch(&["logs", name]).ok();
    let refused = lab.orch(&["network", "create", "-d", "overlay", "late"]).refused();
    assert!(refused.contains("nothing was changed") && refused.contains("orch info"), "{refused}");
    let said = within(AT_ONCE, "it goes on alone", || lab.orch(&["init", "--force-new-cluster"]).result());
    assert!(said.contains("is the only manager of its cluster now"), "{said}");
    wait_managers(&lab, "n1", &["n1 Leader", "n2", "n3", "n4"]);
    // It can decide, and the worker that was there comes back by itself.
    let _ = lab
        .orch(&[
            "service",
            "create",
            "-d",
            "--name",
            "here",
            "--constraint",
            "node.hostname == n4",
            "busybox",
            "sleep",
            "99",
        ])
        .ok();
    lab.wait_replicas("here", "1/1");
    for (node, before) in ["n1", "n4"].into_iter().zip(&before) {
        let now = running(node);
        assert!(before.lines().all(|task| now.contains(task)), "{node}: {before} became {now}");
    }
    let _ = lab.command("start", &["n3"]).ok();
    within(RESTART_LIMIT, "the lost one is a worker now", || match has_manager_folder(&lab, "n3") {
        false => Ok(()),
        true => Err("its manager's folder is there".into()),
    });
    let _ = lab.orch(&["node", "promote", "n3"]).ok();
    wait_managers(&lab, "n1", &["n1 Leader", "n2", "n3 Reachable", "n4"]);
}

#[test]
fn a_manager_that_stood_still_takes_nobody_for_dead() {
    let lab = Lab::up("paused", 2, 1);
    let _ = lab.orch(&["update", "--dispatcher-heartbeat", "1s"]).ok();
    sleepers(&lab, &["--replicas", "2"]);
    wait_containers(&lab, "n1", 1);
    wait_containers(&lab, "n2", 1);
    let tasks = || lab.orch(&["service", "ps", "--no-trunc", "--format", "{{.ID}} {{.Node}}", "sleepers"]).result();
    let before = tasks().expect("tasks");
    let pid = lab.daemon_pid("n1", "manager");
    // Far longer than three heartbeats.
    let _ = lab.exec("n1", &["sh", "-c", &format!("kill -STOP {pid} && sleep 7 && kill -CONT {pid}")]).ok();
    within(RESTART_LIMIT, "it answers again", &tasks);
    // It has had time to look for silent nodes, and everyone to come back.
    let _ = lab.orch(&["service", "scale", "-d", "sleepers=4"]).ok();
    wait_containers(&lab, "n1", 2);
    wait_containers(&lab, "n2", 2);
    let after = tasks().expect("tasks");
    for task in before.lines() {
        assert!(after.contains(task), "{task} was replaced: {after}");
    }
    assert_eq!(after.lines().count(), 4, "a task was lost and replaced: {after}");
}

#[test]
fn a_manager_without_its_log_joins_anew_and_harms_nobody() {
    let lab = Lab::up("wiped", 3, 3);
    let restarts = |node: &str| {
        let info = lab.orch_on(node, &["info"]).ok();
        info.lines().find(|line| line.contains("Daemon manager")).map(|l| l.rsplit(' ').next().map(str::to_owned))
    };
    let before = restarts("n1");
    let _ = lab.command("kill", &["n2", "all"]).ok();
    wait_managers(&lab, "n1", &["n1 Leader", "n2 Unreachable", "n3 Reachable"]);
    let hosts = lab.hosts();
    let n2 = hosts.iter().find(|host| host["name"] == "n2").unwrap_or_else(|| panic!("no n2: {hosts:?}"));
    let raft = std::path::Path::new(n2["data_dir"].as_str().expect("data_dir")).join("manager/raft");
    std::fs::remove_dir_all(raft).expect("wiping");
    let _ = lab.command("start", &["n2"]).ok();
    wait_managers(&lab, "n1", &["n1 Leader", "n2 Reachable", "n3 Reachable"]);
    assert_eq!(restarts("n1"), before, "the leader fell over");
    // It counts again: without the third there is a quorum.
    let _ = lab.command("kill", &["n3", "all"]).ok();
    let _ = lab.orch(&["node", "update", "--label-add", "x=y", "n1"]).ok();
}
