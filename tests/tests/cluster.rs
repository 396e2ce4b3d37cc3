//! Making a cluster, joining it, leaving it, and everything that is refused on the way.

use orch_tests::{Lab, eventually};

#[test]
fn three_nodes_with_three_managers_take_writes_anywhere() {
    let lab = Lab::up("managers", 3, 3);
    let nodes = lab.list(&["node", "ls"]).expect("node ls");
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    let status = |wanted: &str| nodes.iter().filter(|n| n["ManagerStatus"] == *wanted).count();
    assert_eq!((status("Leader"), status("Reachable")), (1, 2), "{nodes:?}");
    for node in ["n1", "n2", "n3"] {
        let name = format!("net-{node}");
        let _ = lab.orch_on(node, &["network", "create", "-d", "overlay", &name]).ok();
    }
    for node in ["n1", "n2", "n3"] {
        let names = lab.orch_on(node, &["network", "ls", "--format", "{{.Name}}"]).ok();
        for other in ["net-n1", "net-n2", "net-n3"] {
            assert!(names.lines().any(|name| name == other), "{other} on {node}: {names}");
        }
    }
    let _ = lab.command("kill", &["n1", "all"]).ok();
    eventually("a write is taken without the first leader", || {
        lab.orch_on("n2", &["network", "create", "-d", "overlay", "after"])
            .result()
            .or_else(|error| if error.contains("already exists") { Ok(String::new()) } else { Err(error) })
    });
    let _ = lab.command("start", &["n1"]).ok();
    eventually("the old leader catches up", || {
        let names = lab.orch(&["network", "ls", "--format", "{{.Name}}"]).result()?;
        if names.lines().any(|name| name == "after") { Ok(()) } else { Err(names) }
    });
}

#[test]
fn what_is_wrong_at_init_and_join_is_said_and_changes_nothing() {
    let lab = Lab::up("refused", 3, 1);
    let address = format!("{}:2377", lab.address("n1"));

    let twice = lab.orch(&["init"]).refused();
    assert!(twice.contains("already part of a cluster") && twice.contains("orch leave"), "{twice}");
    let token = lab.orch(&["join-token", "-q", "worker"]).ok().trim().to_owned();
    let joined = lab.orch_on("n2", &["join", "--token", &token, &address]).refused();
    assert!(joined.contains("already part of a cluster"), "{joined}");

    // n3 leaves, so that it can try to join again in all the wrong ways.
    let _ = lab.orch_on("n3", &["leave"]).ok();
    let not_member = lab.orch_on("n3", &["node", "ls"]).refused();
    assert!(not_member.contains("not part of a cluster") || not_member.contains("not a manager"), "{not_member}");
    let join = |token: &str, address: &str| lab.orch_on("n3", &["join", "--token", token, address]).refused();

    let malformed = join("ORCHTKN-1-nonsense", &address);
    assert!(malformed.contains("token"), "{malformed}");
    let mut other_digest: Vec<char> = token.chars().collect();
    other_digest[12] = if other_digest[12] == 'a' { 'b' } else { 'a' };
    let foreign = join(&other_digest.into_iter().collect::<String>(), &address);
    assert!(foreign.contains("does not belong to the cluster"), "{foreign}");
    let dead = join(&token, &format!("{}:2377", lab.address("client")));
    assert!(dead.contains(&lab.address("client")), "{dead}");

    let rotated = lab.orch(&["join-token", "--rotate", "-q", "worker"]).ok().trim().to_owned();
    assert_ne!(rotated, token);
    let old = join(&token, &address);
    assert!(old.contains("token") && old.contains("join-token"), "{old}");

    let worker_only = lab.orch_on("n2", &["service", "ls"]).refused();
    assert!(worker_only.contains("This node is not a manager"), "{worker_only}");

    let said = lab.orch_on("n3", &["join", "--token", &rotated, &address]).ok();
    assert!(said.contains("This node joined a cluster as a worker."), "{said}");
    eventually("the node that came back is ready", || {
        let nodes = lab.list(&["node", "ls"])?;
        let ready = nodes.iter().filter(|n| n["Hostname"] == "n3" && n["Status"] == "Ready").count();
        if ready == 1 { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
}

#[test]
fn a_lab_leaves_nothing_behind() {
    {
        let lab = Lab::up("traces", 2, 1);
        lab.import("box", "busybox", &["CMD [\"sleep\", \"1000\"]"]);
        let _ = lab.orch(&["service", "create", "--name", "idle", "--replicas", "2", "box"]).ok();
        lab.wait_replicas("idle", "2/2");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let left: Vec<_> = mounts.lines().filter(|line| line.contains("orch-lab/traces")).collect();
    assert!(left.is_empty(), "mounts: {left:?}");
    let namespaces = std::process::Command::new("ip").args(["netns", "list"]).output().expect("ip netns");
    let namespaces = String::from_utf8_lossy(&namespaces.stdout).into_owned();
    assert!(!namespaces.contains("traces"), "namespaces: {namespaces}");
    let cgroups = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-path", "*orch-lab/traces*"])
        .output()
        .expect("find");
    assert!(cgroups.stdout.is_empty(), "cgroups: {}", String::from_utf8_lossy(&cgroups.stdout));
    let mut processes = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let cmdline = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if cmdline.contains("orch-lab/traces") {
            processes.push(entry.path());
        }
    }
    assert!(processes.is_empty(), "processes: {processes:?}");
    assert!(!std::path::Path::new("/var/lib/orch-lab/traces").exists(), "the lab's folder is still there");
}
