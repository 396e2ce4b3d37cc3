//! A manager whose disk is full, read-only or damaged: it names the file, serves nothing, and its peers go on.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use orch_tests::{Lab, PATIENCE, eventually, within};

const MANAGER_DIR: &str = "/var/lib/orch/manager";
/// What one start of a manager that cannot serve takes, at least.
const PAUSE: Duration = Duration::from_secs(5);

fn data_dir(lab: &Lab, node: &str) -> PathBuf {
    let hosts = lab.hosts();
    let host = hosts.iter().find(|host| host["name"] == node).expect("the node");
    PathBuf::from(host["data_dir"].as_str().expect("data_dir"))
}

/// Ends a daemon of a node and keeps it from being started while `change` is made.
fn while_off(lab: &Lab, node: &str, daemon: &str, change: impl FnOnce()) {
    let _ = lab.command("pause", &[node, "node"]).ok();
    let _ = lab.command("kill", &[node, daemon]).ok();
    change();
    let _ = lab.command("resume", &[node]).ok();
}

fn sh(lab: &Lab, node: &str, script: &str) -> String {
    lab.exec(node, &["sh", "-c", script]).ok()
}

/// Until `orch info` on the node says that it is in error, with every one of `words`.
fn wait_error(lab: &Lab, node: &str, what: &str, words: &[&str]) -> String {
    eventually(&format!("{what}: {node} says what is wrong"), || {
        let said = lab.orch_on(node, &["info"]).result()?;
        let named = said.contains("Cluster: error") && words.iter().all(|word| said.contains(word));
        if named { Ok(said) } else { Err(said) }
    })
}

fn wait_serving(lab: &Lab, node: &str) {
    within(PATIENCE * 2, &format!("{node} serves again"), || {
        let seen = lab.orch_on(node, &["node", "ls"]).result()?;
        let mine = lab.list(&["node", "ls"])?;
        let reachable = mine.iter().any(|n| n["Hostname"] == node && n["ManagerStatus"] == "Reachable");
        if reachable { Ok(()) } else { Err(format!("{seen}\n{mine:?}")) }
    });
}

/// A write through n1, which must work whatever happens to n3.
fn write(lab: &Lab, name: &str) {
    let answered = eventually("the others take a write", || {
        lab.exec_with_input("n1", &["orch", "config", "create", name, "-"], name.as_bytes()).result()
    });
    assert!(!answered.is_empty());
}

#[test]
fn a_full_or_read_only_disk_stops_its_manager_only_until_there_is_room_again() {
    let lab = Lab::up("disk-full", 3, 3);
    // A disk of its own for n3's manager, with little room.
    let _ = lab.command("pause", &["n3", "manager"]).ok();
    let small = "mkdir /var/lib/orch/small && mount -t tmpfs -o size=40m tmpfs /var/lib/orch/small \
                 && cp -a /var/lib/orch/manager/. /var/lib/orch/small/ && mount --bind /var/lib/orch/small /var/lib/orch/manager";
    let _ = sh(&lab, "n3", small);
    let _ = lab.command("kill", &["n3", "manager"]).ok();
    wait_serving(&lab, "n3");

    let _ = sh(&lab, "n3", &format!("dd if=/dev/zero of={MANAGER_DIR}/filler bs=64k 2>/dev/null; true"));
    // Entries that n3 is sent and cannot keep.
    let big = vec![b'x'; 600 * 1024];
    let mut number = 0;
    let said = within(PATIENCE * 2, "n3 notices that its disk is full", || {
        number += 1;
        let name = format!("big{number}");
        let _ = lab.exec_with_input("n1", &["orch", "config", "create", &name, "-"], &big).ok();
        let said = lab.orch_on("n3", &["info"]).result()?;
        if said.contains("Cluster: error") && said.contains("No space left") { Ok(said) } else { Err(said) }
    });
    assert!(said.contains(MANAGER_DIR), "no file is named: {said}");
    let listed = lab.orch_on("n3", &["node", "ls"]);
    assert!(listed.code != 0 && listed.stderr.contains("No space left"), "{listed:?}");
    assert!(lab.orch_on("n3", &["config", "ls"]).code != 0, "it serves what it may not have");
    write(&lab, "while-full");
    let restarts = || -> u64 {
        let text = lab.orch_on("n3", &["info"]).ok();
        let line = text.lines().find(|line| line.contains("Daemon manager")).expect("the manager").to_owned();
        line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("restarts")
    };
    let before = restarts();
    std::thread::sleep(2 * PAUSE);
    assert!(restarts() - before <= 3, "the supervisor spins");
    let _ = sh(&lab, "n3", &format!("rm {MANAGER_DIR}/filler"));
    wait_serving(&lab, "n3");
    eventually("what it missed is there", || lab.orch_on("n3", &["config", "inspect", "while-full"]).result());

    while_off(&lab, "n3", "manager", || {
        // Busy until the killed manager's files are closed.
        let remount = ["mount", "-o", "remount,ro", MANAGER_DIR];
        eventually("the disk can be made read-only", || lab.exec("n3", &remount).result());
    });
    let said = wait_error(&lab, "n3", "read-only", &["Read-only file system", MANAGER_DIR]);
    assert!(said.contains("does not serve"), "{said}");
    write(&lab, "while-read-only");
    let _ = sh(&lab, "n3", &format!("mount -o remount,rw {MANAGER_DIR}"));
    wait_serving(&lab, "n3");
}

/// Whoever cannot write what it has to say goes on all the same: the daemons, and above all the shims, without which there is
/// no container.
#[test]
fn logs_that_cannot_be_written_cost_nobody_anything_else() {
    let lab = Lab::up("disk-logs", 1, 1);
    lab.import("box", "busybox", &["CMD [\"sleep\", \"100000\"]", "STOPSIGNAL SIGKILL"]);
    let _ = lab.command("kill", &["n1", "node"]).ok();
    let logs = "cd /var/lib/orch/node/log && for log in node manager worker netd; do ln -sf /dev/full $log.log; done; \
                umount /var/lib/orch/worker/containers; mkdir /var/lib/orch/small \
                && mount -t tmpfs -o size=200m tmpfs /var/lib/orch/small \
                && cp -a /var/lib/orch/worker/. /var/lib/orch/small/ && mount --bind /var/lib/orch/small /var/lib/orch/worker";
    let _ = sh(&lab, "n1", logs);
    let _ = lab.command("start", &["n1"]).ok();
    eventually("the cluster answers", || lab.orch(&["node", "ls"]).result());
    let much = "while true; do seq 10000; sleep 0.2; done";
    let _ = lab.orch(&["service", "create", "-q", "--name", "loud", "box", "sh", "-c", much]).ok();
    let task = lab.orch(&["service", "ps", "-q", "loud"]).ok();
    let daemons = || {
        let info = lab.orch(&["info"]).ok();
        info.lines().filter(|line| line.contains("Daemon ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = daemons();
    let fill = "cd /var/lib/orch/small; dd if=/dev/zero of=filler bs=4k 2>/dev/null; df --output=avail . | tail -1";
    assert_eq!(sh(&lab, "n1", fill).trim(), "0", "room for logs is left");
    let mut log = String::new();
    let grows = |log: &mut String| {
        let now = lab.orch(&["service", "logs", "--tail", "1", "-t", "loud"]).ok();
        let before = std::mem::replace(log, now);
        if before == *log { Ok(()) } else { Err(log.clone()) }
    };
    eventually("nothing more can be kept of what it prints", || grows(&mut log));
    assert_eq!(lab.orch(&["service", "ps", "-q", "--filter", "desired-state=running", "loud"]).ok(), task);
    let _ = sh(&lab, "n1", "rm /var/lib/orch/small/filler");
    eventually("it is heard again", || if grows(&mut log).is_err() { Ok(()) } else { Err(log.clone()) });
    // Something to log for everyone.
    let _ = lab.orch(&["service", "create", "-q", "--name", "other", "-p", "8000:80", "--replicas", "3", "box"]).ok();
    let _ = lab.orch(&["service", "rm", "other"]).ok();
    let _ = lab.command("kill", &["n1", "worker"]).ok();
    eventually("the worker is back", || lab.orch_on("n1", &["ps"]).result());
    let _ = lab.orch(&["service", "create", "-q", "--name", "another", "--replicas", "3", "box"]).ok();
    lab.wait_replicas("another", "3/3");
    let running = lab.orch(&["service", "ps", "-q", "--filter", "desired-state=running", "loud"]).ok();
    assert_eq!(running, task, "the container that could not be heard was ended");
    let others = |lines: Vec<String>| lines.into_iter().filter(|line| !line.contains("worker")).collect::<Vec<_>>();
    assert_eq!(others(daemons()), others(before), "a daemon ended");
}

#[test]
fn damage_is_named_never_served_and_healed_by_one_command() {
    let lab = Lab::up("disk-damage", 3, 3);
    write(&lab, "before");
    let dir = data_dir(&lab, "n3").join("manager");
    let copy = tempfile::tempdir().expect("a folder");
    let node_id = lab.orch_on("n3", &["info", "--format", "{{.Swarm.NodeID}}"]).ok();
    while_off(&lab, "n3", "manager", || {
        assert!(copy_dir(&dir, &copy.path().join("manager")));
    });
    wait_serving(&lab, "n3");
    let log = dir.join("raft/log");
    let overwrite = |path: PathBuf, at: usize| {
        let mut bytes = fs::read(&path).expect("the file");
        let at = at.min(bytes.len() - 1);
        let end = (at + 4096).min(bytes.len());
        bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::write(&path, bytes).expect("writing it");
    };
    type Damage<'a> = (&'a str, &'a str, Box<dyn Fn() + 'a>);
    let damages: Vec<Damage> = vec![
        ("the log's file is cut short", "raft/log", Box::new(|| cut(&log))),
        ("the data keys are garbled", "/keys", Box::new(|| overwrite(dir.join("keys"), 0))),
        ("the witness is garbled", "raft/log/tip", Box::new(|| overwrite(log.join("tip"), 0))),
    ];
    for (what, file, damage) in &damages {
        while_off(&lab, "n3", "manager", damage);
        let said = wait_error(&lab, "n3", what, &[file]);
        assert!(lab.orch_on("n3", &["config", "ls"]).code != 0, "{what}: it serves all the same: {said}");
        write(&lab, &format!("after-{}", file.replace('/', "-")));
        while_off(&lab, "n3", "manager", || {
            fs::remove_dir_all(&dir).expect("removing the damaged files");
            assert!(copy_dir(&copy.path().join("manager"), &dir));
        });
        wait_serving(&lab, "n3");
    }
    // One bit: where it matters it is noticed, and where it does not (what was safe twice), nothing is missing or made up.
    for file in ["journal", "db"] {
        while_off(&lab, "n3", "manager", || flip_a_bit(&log.join(file)));
        eventually(&format!("a bit of {file} is flipped: n3 says so, or has everything"), || {
            let said = lab.orch_on("n3", &["info"]).result()?;
            let is_named = said.contains("Cluster: error") && said.contains("raft/log");
            let list = ["config", "ls", "--format", "{{.ID}} {{.Name}}"];
            let is_whole = || lab.orch_on("n3", &list).result().is_ok_and(|own| own == lab.orch(&list).ok());
            if is_named || is_whole() { Ok(()) } else { Err(said) }
        });
        while_off(&lab, "n3", "manager", || {
            fs::remove_dir_all(&dir).expect("removing the damaged files");
            assert!(copy_dir(&copy.path().join("manager"), &dir));
        });
        wait_serving(&lab, "n3");
    }
    // Without a copy: one command.
    while_off(&lab, "n3", "manager", || cut(&log));
    let _ = wait_error(&lab, "n3", "cut short", &["raft/log"]);
    let said = lab.orch_on("n3", &["node", "reset-manager"]).ok();
    assert!(said.contains("manager.lost-"), "{said}");
    wait_serving(&lab, "n3");
    assert_eq!(lab.orch_on("n3", &["info", "--format", "{{.Swarm.NodeID}}"]).ok(), node_id, "it is another node now");
    assert!(lab.orch_on("n3", &["config", "ls"]).ok().contains("before"));
}

/// Keeps the first page of the log's file, and nothing of the journal that could mend it. (A half is too much: the file
/// has room ahead, so a young log may lose half of it and still be whole.)
fn cut(log: &Path) {
    let path = log.join("db");
    let file = fs::OpenOptions::new().write(true).open(&path).expect("the file");
    file.set_len(4096).expect("cutting it");
    fs::write(log.join("journal"), b"").expect("emptying the journal");
}

/// In the last thing that was written to the file: it has room ahead, which is zero.
fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).expect("the file");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("something in it");
    bytes[end.saturating_sub(40)] ^= 1;
    fs::write(path, bytes).expect("writing it");
}

fn copy_dir(from: &Path, to: &Path) -> bool {
    std::process::Command::new("cp").arg("-a").args([from, to]).status().is_ok_and(|status| status.success())
}

#[test]
fn nothing_secret_lies_on_a_disk_in_clear_text() {
    const SECRET: &str = "a-marker-that-only-this-test-knows-4711";
    let lab = Lab::up("disk-secrets", 3, 3);
    lab.import("busybox", "busybox", &[]);
    let _ = lab.exec_with_input("n1", &["orch", "secret", "create", "db", "-"], SECRET.as_bytes()).ok();
    let service = ["service", "create", "-d", "--name", "user", "--mode", "global", "--secret", "db"];
    let _ = lab.orch(&[&service[..], &["busybox", "sleep", "10000"]].concat()).ok();
    lab.wait_replicas("user", "3/3");
    let mut hidden = vec![SECRET.to_owned()];
    for role in ["worker", "manager"] {
        let token = lab.orch(&["join-token", "-q", role]).ok().trim().to_owned();
        // The part that nobody else may know.
        hidden.push(token.rsplit('-').next().expect("a secret").to_owned());
    }
    let key = lab.orch(&["update", "--autolock"]).ok();
    let key = key.split_whitespace().find(|word| word.starts_with("ORCHKEY-")).unwrap_or_else(|| panic!("{key}"));
    hidden.push(key.to_owned());
    for host in lab.hosts() {
        for folder in ["data_dir", "run_dir"] {
            let Some(dir) = host[folder].as_str() else { continue };
            for text in &hidden {
                let found = std::process::Command::new("grep").args(["-rlaF", text, dir]).output().expect("grep");
                let holders = String::from_utf8_lossy(&found.stdout).into_owned();
                assert!(holders.is_empty(), "{} on {}: {holders}", &text[..8], host["name"]);
            }
        }
    }
}

#[test]
fn a_worker_whose_certificate_is_damaged_names_the_file_and_the_way_back() {
    const TLS_DIR: &str = "/var/lib/orch/worker/tls";
    let lab = Lab::up("disk-worker", 2, 1);
    // A lone manager's node shows the same as a worker's.
    for node in ["n1", "n2"] {
        // Of a worker that answers, the node would renew it.
        while_off(&lab, node, "worker", || {
            let _ = sh(&lab, node, &format!("cp -a {TLS_DIR} /var/lib/orch/copy && echo damaged > {TLS_DIR}/node.crt"));
        });
        let said = eventually("the node says why its worker does not run", || {
            let said = lab.orch_on(node, &["info"]).result()?;
            let named = said.contains("Last Words: load this node's worker certificate") && said.contains(TLS_DIR);
            if named { Ok(said) } else { Err(said) }
        });
        assert!(said.contains("node/log/worker.log"), "{said}");
        eventually("a command for the worker says the same", || {
            let said = lab.orch_on(node, &["ps"]);
            let named = said.code != 0 && said.stderr.contains(TLS_DIR) && said.stderr.contains("orch leave");
            if named { Ok(()) } else { Err(said.stderr) }
        });
    }
    // As it was before,
    let _ = sh(&lab, "n1", &format!("cp -a /var/lib/orch/copy/. {TLS_DIR}/"));
    eventually("the worker runs again", || lab.orch_on("n1", &["ps"]).result());
    // or anew.
    let token = lab.orch(&["join-token", "-q", "worker"]).ok();
    let _ = lab.orch_on("n2", &["leave"]).ok();
    let _ = lab.orch_on("n2", &["join", "--token", token.trim(), &format!("{}:2377", lab.address("n1"))]).ok();
    let _ = lab.orch_on("n2", &["ps"]).ok();
}

/// The file that says which cluster a node is in.
#[test]
fn a_lost_state_file_costs_no_cluster() {
    let lab = Lab::up("disk-state", 1, 1);
    write(&lab, "kept");
    let root = data_dir(&lab, "n1");
    let state_file = root.join("node/state.json");
    let while_off = |damage: &dyn Fn()| {
        let _ = lab.command("kill", &["n1"]).ok();
        damage();
        let _ = lab.command("start", &["n1"]).ok();
    };
    let damages: [&dyn Fn(); 2] = [&|| fs::remove_file(&state_file).expect("removing the state file"), &|| {
        fs::write(&state_file, "{").expect("cutting the state file short")
    }];
    for damage in damages {
        while_off(damage);
        eventually("the cluster is as it was", || {
            let found = lab.orch(&["config", "ls", "--format", "{{.Name}}"]).result()?;
            if found == "kept\n" { Ok(()) } else { Err(found) }
        });
    }
    // With its copy lost, too, the node is as a new one, and what its manager had is kept beside.
    while_off(&|| {
        for name in ["state.json", "state-copy.json"] {
            fs::remove_file(root.join("node").join(name)).expect("removing both");
        }
    });
    eventually("the node is in no cluster", || {
        let said = lab.orch(&["info", "--format", "{{.Swarm.LocalNodeState}}"]).result()?;
        if said == "inactive\n" { Ok(()) } else { Err(said) }
    });
    let _ = lab.orch(&["init", "--advertise-addr", &lab.address("n1")]).ok();
    assert_eq!(lab.orch(&["config", "ls", "-q"]).ok(), "");
    assert_eq!(sh(&lab, "n1", &format!("ls -d {MANAGER_DIR}.lost-*/raft | wc -l")), "1\n");
}
