//! Managers whose keys are locked while they are off.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use orch_tests::{Lab, RESTART_LIMIT, eventually, within};

const LOCKED: &str = "Cluster is encrypted and needs to be unlocked before it can be used.";

fn manager_folder(lab: &Lab, node: &str) -> PathBuf {
    let hosts = lab.hosts();
    let host = hosts.iter().find(|host| host["name"] == node).unwrap_or_else(|| panic!("no {node}"));
    PathBuf::from(host["data_dir"].as_str().expect("data_dir is text")).join("manager")
}

/// Waits until both key files of the manager begin like this.
#[track_caller]
fn wait_keys(lab: &Lab, node: &str, locked: bool) {
    let dir = manager_folder(lab, node);
    eventually("the keys lie on the disk as wanted", || {
        let first = |name: &str| {
            let text = fs::read_to_string(dir.join(name)).map_err(|e| format!("{name}: {e}"))?;
            Ok::<_, String>(text.lines().next().unwrap_or_default().to_owned())
        };
        let now = [first("keys")?, first("tls/node.key")?];
        let wanted = if locked {
            ["orch locked data keys 1", "orch sealed key 1"]
        } else {
            ["orch data keys 1", "-----BEGIN PRIVATE KEY-----"]
        };
        if now == wanted { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

fn restart(lab: &Lab, node: &str) {
    let _ = lab.command("kill", &[node, "all"]).ok();
    // Not waited for: a locked manager is not ready.
    let _ = lab.command("start", &[node]);
    within(RESTART_LIMIT, "it is locked", || {
        let said = lab.orch_on(node, &["node", "ls"]);
        if said.code != 0 && said.stderr.starts_with(LOCKED) { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

fn unlock(lab: &Lab, node: &str, key: &str) -> orch_tests::Outcome {
    lab.exec_with_input(node, &["orch", "unlock"], key.as_bytes())
}

#[track_caller]
fn wait_answers(lab: &Lab, node: &str) {
    within(RESTART_LIMIT, "the manager answers", || lab.orch_on(node, &["node", "ls", "-q"]).result());
}

#[test]
fn a_locked_manager_serves_nothing_until_it_gets_its_key() {
    let lab = Lab::up("autolock", 3, 3);
    let said = lab.orch(&["unlock-key"]).refused();
    assert!(said.contains("autolock is off"), "{said}");
    let said = lab.orch(&["unlock-key", "--rotate"]).refused();
    assert!(said.contains("autolock is off"), "{said}");
    assert!(unlock(&lab, "n1", "x").refused().contains("this manager is not locked"));
    let said = lab.orch(&["swarm", "update", "--autolock=true"]).ok();
    let first = lab.orch(&["unlock-key", "-q"]).ok().trim().to_owned();
    assert!(said.starts_with("Cluster updated.\n") && said.contains(&first), "{said}");
    assert!(first.starts_with("ORCHKEY-1-"), "{first}");
    for node in ["n1", "n2", "n3"] {
        wait_keys(&lab, node, true);
    }

    lab.import("busybox", "busybox", &[]);
    let create = ["service", "create", "-d", "--name", "here", "--constraint", "node.hostname == n3"];
    let _ = lab.orch(&[&create[..], &["busybox", "sleep", "10000"]].concat()).ok();
    lab.wait_replicas("here", "1/1");
    // Only the daemons: containers outlive them.
    let _ = lab.command("kill", &["n3", "node"]).ok();
    let _ = lab.command("start", &["n3"]);
    within(RESTART_LIMIT, "it is locked", || {
        let said = lab.orch_on("n3", &["service", "ls"]);
        if said.stderr.starts_with(LOCKED) { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let info = lab.orch_on("n3", &["info", "--format", "{{.Swarm.LocalNodeState}}"]).ok();
    assert_eq!(info, "locked\n");
    let said = lab.orch_on("n3", &["node", "reset-manager"]).refused();
    assert!(said.contains("orch unlock"), "{said}");
    // Its worker half goes on.
    assert_eq!(lab.orch_on("n3", &["ps", "-q"]).ok().lines().count(), 1);
    let _ = lab
        .orch(&[
            "service",
            "create",
            "-d",
            "--name",
            "more",
            "--constraint",
            "node.hostname == n3",
            "busybox",
            "sleep",
            "10000",
        ])
        .ok();
    lab.wait_replicas("more", "1/1");

    // A new root: its worker's key gets a certificate for the worker alone, and the rotation waits for its manager.
    let certificate =
        |half: &str| fs::read(manager_folder(&lab, "n3").join(half).join("node.crt")).expect("a certificate");
    let (worker, manager) = (certificate("../worker/tls"), certificate("tls"));
    let _ = lab.orch(&["ca", "--rotate", "--detach"]).ok();
    within(RESTART_LIMIT, "the worker of n3 goes over to the new root", || {
        if certificate("../worker/tls") == worker { Err("it has its old certificate".to_owned()) } else { Ok(()) }
    });
    assert_eq!(certificate("tls"), manager);
    let waiting = lab.orch(&["info"]).ok();
    assert!(waiting.contains("Root Rotation In Progress: true\n"), "{waiting}");

    // It was off while the key was rotated, and opens with the one that it knows.
    let second = lab.orch(&["unlock-key", "--rotate", "-q"]).ok().trim().to_owned();
    assert_ne!(second, first);
    assert!(unlock(&lab, "n3", &second).refused().contains("invalid key"));
    assert!(unlock(&lab, "n3", "nonsense").refused().contains("this is not an unlock key"));
    let before = sealing_key(&lab, "n3");
    let _ = unlock(&lab, "n3", &first).ok();
    wait_answers(&lab, "n3");
    // From now on the new one: with the change of the lock comes another data key. That the file of the data keys changes
    // would not say so, because old data keys are dropped from it under the old lock too.
    within(RESTART_LIMIT, "the keys of n3 are locked anew", || {
        let now = sealing_key(&lab, "n3");
        if now > before { Ok(()) } else { Err(format!("sealed with data key {now}")) }
    });
    let _ = lab.command("kill", &["n3", "manager"]).ok();
    within(RESTART_LIMIT, "the new key opens it", || unlock(&lab, "n3", &second).result());
    eventually("n3 takes part", || {
        let now = lab.orch(&["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"]).result()?;
        if now.contains("n3 Reachable") { Ok(()) } else { Err(now) }
    });
    within(RESTART_LIMIT, "its manager goes over to the new root", || {
        let now = lab.orch(&["info"]).result()?;
        if now.contains("Root Rotation In Progress: false\n") { Ok(()) } else { Err(now) }
    });
    assert_ne!(certificate("tls"), manager);
    wait_keys(&lab, "n3", true);

    // The leader, with the new key; the others go on meanwhile.
    restart(&lab, "n1");
    wait_answers(&lab, "n2");
    assert!(unlock(&lab, "n1", &first).refused().contains("invalid key"));
    let _ = unlock(&lab, "n1", &second).ok();
    wait_answers(&lab, "n1");
    let _ = lab.orch(&["update", "--autolock=false"]).ok();
    for node in ["n1", "n2", "n3"] {
        wait_keys(&lab, node, false);
    }
    let _ = lab.command("kill", &["n2", "manager"]).ok();
    wait_answers(&lab, "n2");
}

/// Ends the load also when the test fails: its scope waits for it.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The number of the data key that the TLS key of a locked manager is sealed with: four bytes after one of the version.
fn sealing_key(lab: &Lab, node: &str) -> u32 {
    let text = fs::read_to_string(manager_folder(lab, node).join("tls/node.key")).expect("the TLS key");
    let number = text.lines().nth(1).and_then(|hex| hex.get(2..10)).expect("a sealed key");
    u32::from_str_radix(number, 16).expect("hexadecimal")
}

/// The numbers of the data keys in an open key file.
fn data_keys(lab: &Lab, node: &str) -> Vec<u32> {
    let text = fs::read_to_string(manager_folder(lab, node).join("keys")).expect("the keys");
    text.lines().skip(1).filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

#[test]
fn data_keys_are_replaced_under_load_although_a_manager_is_killed_meanwhile() {
    let lab = Lab::up("datakeys", 3, 3);
    assert_eq!(data_keys(&lab, "n2"), [1]);
    let _ = lab.orch(&["update", "--autolock"]).ok();
    let mut keys = vec![lab.orch(&["unlock-key", "-q"]).ok().trim().to_owned()];
    let stop = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut written = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let name = format!("c{}", written.len());
                let _ = lab.exec_with_input("n1", &["orch", "config", "create", &name, "-"], b"x").ok();
                written.push(name);
            }
            written
        });
        let _stop = StopOnDrop(&stop);
        // Killed at another point of the rotation each time.
        for pause_ms in [0, 300, 700, 1200, 2000] {
            keys.push(lab.orch(&["unlock-key", "--rotate", "-q"]).ok().trim().to_owned());
            thread::sleep(Duration::from_millis(pause_ms));
            let _ = lab.command("kill", &["n2", "manager"]).ok();
            within(RESTART_LIMIT, "the key of the time when it was killed opens it", || {
                let said = lab.orch_on("n2", &["node", "ls", "-q"]);
                if said.code == 0 {
                    return Ok(());
                }
                let tried: Vec<_> = keys.iter().rev().map(|key| unlock(&lab, "n2", key)).collect();
                if tried.iter().any(|said| said.code == 0) { Ok(()) } else { Err(format!("{said:?} {tried:?}")) }
            });
        }
        stop.store(true, Ordering::Relaxed);
        load.join().expect("the load")
    });
    assert!(written.len() > 5, "the load wrote something: {written:?}");
    wait_answers(&lab, "n2");
    let _ = lab.orch(&["update", "--autolock=false"]).ok();
    for node in ["n1", "n2", "n3"] {
        wait_keys(&lab, node, false);
        within(RESTART_LIMIT * 2, "only the last data key is left", || match data_keys(&lab, node)[..] {
            [last] if last > 1 => Ok(()),
            ref keys => Err(format!("{node} has {keys:?}")),
        });
    }
    // From the disk, with that key alone.
    let _ = lab.command("kill", &["n2", "manager"]).ok();
    wait_answers(&lab, "n2");
    let there = lab.orch_on("n2", &["config", "ls", "--format", "{{.Name}}"]).ok();
    assert!(written.iter().all(|name| there.lines().any(|line| line == name)), "{written:?} {there}");
}

/// Going on alone starts the manager anew, which locks it.
#[test]
fn a_locked_manager_goes_on_alone_once_it_gets_its_key() {
    let lab = Lab::up("autolock-alone", 2, 2);
    let _ = lab.orch(&["update", "--autolock=true"]).ok();
    let key = lab.orch(&["unlock-key", "-q"]).ok().trim().to_owned();
    wait_keys(&lab, "n1", true);
    let _ = lab.exec_with_input("n1", &["orch", "config", "create", "kept", "-"], b"x").ok();
    let _ = lab.command("kill", &["n2"]).ok();
    let said = within(RESTART_LIMIT, "the quorum is gone", || {
        lab.orch(&["init", "--force-new-cluster", "--advertise-addr", &lab.address("n1")]).result()
    });
    assert!(said.contains("as soon as it is unlocked: run \"orch unlock\""), "{said}");
    assert!(lab.orch(&["node", "ls"]).refused().contains(LOCKED));
    let _ = unlock(&lab, "n1", &key).ok();
    wait_answers(&lab, "n1");
    assert_eq!(lab.orch(&["config", "ls", "--format", "{{.Name}}"]).ok(), "kept\n");
    assert_eq!(lab.orch(&["info", "--format", "{{.Swarm.Managers}}"]).ok(), "1\n");
    eventually("the node's worker has found its manager", || {
        let listed = lab.orch(&["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"]).result()?;
        if listed.contains("n1 Ready Leader") { Ok(()) } else { Err(listed) }
    });
}
