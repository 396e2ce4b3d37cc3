//! Managers that come back with nothing: wiped, without their log, or to a cluster that went on without them; and one that
//! is brought back on another machine from a backup.

use std::fs;

use orch_tests::{Lab, PATIENCE, eventually, image, within};

fn manager_dir(lab: &Lab, node: &str) -> std::path::PathBuf {
    let hosts = lab.hosts();
    let host = hosts.iter().find(|host| host["name"] == node).expect("the node");
    std::path::Path::new(host["data_dir"].as_str().expect("data_dir")).join("manager")
}

fn while_off(lab: &Lab, node: &str, change: impl FnOnce()) {
    let _ = lab.command("pause", &[node, "node"]).ok();
    let _ = lab.command("kill", &[node, "manager"]).ok();
    change();
    let _ = lab.command("resume", &[node]).ok();
}

fn wait_reachable(lab: &Lab, node: &str) {
    within(PATIENCE * 2, &format!("{node} is a manager that answers"), || {
        let nodes = lab.list(&["node", "ls"])?;
        let is_there = nodes.iter().any(|n| n["Hostname"] == node && n["ManagerStatus"] == "Reachable");
        if is_there && nodes.len() == 3 { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
    eventually("it answers itself", || lab.orch_on(node, &["config", "inspect", "kept"]).result());
}

#[test]
fn a_manager_that_lost_everything_comes_back_by_one_command() {
    let lab = Lab::up("recovery", 3, 3);
    let _ = lab.exec_with_input("n1", &["orch", "config", "create", "kept", "-"], b"kept").ok();
    let id = |node: &str| lab.orch_on(node, &["info", "--format", "{{.Swarm.NodeID}}"]).ok();
    let before = id("n3");

    // Only the log: by itself, under another number.
    let dir = manager_dir(&lab, "n3");
    while_off(&lab, "n3", || fs::remove_dir_all(dir.join("raft/log")).expect("removing the log"));
    wait_reachable(&lab, "n3");
    assert!(
        fs::read_dir(&dir)
            .expect("the folder")
            .flatten()
            .any(|e| e.file_name().to_string_lossy().starts_with("raft.lost-"))
    );

    // The whole folder: keys, certificate, log.
    while_off(&lab, "n3", || fs::remove_dir_all(&dir).expect("removing the folder"));
    eventually("n3 says what is missing", || {
        let said = lab.orch_on("n3", &["info"]).result()?;
        if said.contains("Cluster: error") && said.contains("/var/lib/orch/manager") { Ok(()) } else { Err(said) }
    });
    let _ = lab.orch_on("n3", &["node", "reset-manager"]).ok();
    wait_reachable(&lab, "n3");
    assert_eq!(id("n3"), before);

    // It counts again: the quorum holds without another one.
    let _ = lab.command("kill", &["n2", "all"]).ok();
    eventually("two of three decide", || {
        lab.exec_with_input("n1", &["orch", "config", "create", "later", "-"], b"later").result()
    });
    // Without a quorum of the others there is nobody to join, and nothing is thrown away.
    let refused = lab.orch_on("n3", &["node", "reset-manager"]).refused();
    assert!(refused.contains("nothing was changed"), "{refused}");
    eventually("n3 still has what it had", || lab.orch_on("n3", &["config", "inspect", "later"]).result());
}

#[test]
fn the_only_manager_is_not_thrown_away() {
    let lab = Lab::up("recovery-one", 1, 1);
    let refused = lab.orch(&["node", "reset-manager"]).refused();
    assert!(refused.contains("nothing was changed") && refused.contains("no other manager"), "{refused}");
    let _ = lab.orch(&["node", "ls"]).ok();
}

/// What docs/managers.md says of backups.
#[test]
fn a_backup_brings_the_cluster_back_on_another_machine() {
    let lab = Lab::up("recovery-backup", 2, 1);
    lab.import("busybox", "busybox", &[]);
    let _ = lab.exec_with_input("n1", &["orch", "secret", "create", "key", "-"], b"open").ok();
    let _ =
        lab.orch(&["service", "create", "-q", "--name", "web", "--secret", "key", "busybox", "sleep", "100000"]).ok();
    let before = lab.orch(&["service", "inspect", "--format", "{{.ID}} {{.Spec.Name}}", "web"]).ok();
    let (from, to) = (manager_dir(&lab, "n1"), manager_dir(&lab, "n2"));
    let (from, to) = (from.parent().expect("a folder"), to.parent().expect("a folder"));
    for node in ["n1", "n2"] {
        let _ = lab.command("kill", &[node]).ok();
    }
    for part in ["node", "manager", "worker"] {
        let _ = fs::remove_dir_all(to.join(part));
    }
    let copy = format!("tar -C {} -c node manager worker/tls | tar -C {} -x", from.display(), to.display());
    let copied = std::process::Command::new("sh").args(["-c", &copy]).status().expect("tar");
    assert!(copied.success(), "{copied}");

    let _ = lab.command("start", &["n2"]).ok();
    let address = lab.address("n2");
    let on_n2 = |args: &[&str]| lab.orch_on("n2", args);
    eventually("its manager serves", || on_n2(&["node", "ls"]).result());
    let _ = on_n2(&["init", "--force-new-cluster", "--advertise-addr", &address]).ok();
    assert_eq!(on_n2(&["service", "inspect", "--format", "{{.ID}} {{.Spec.Name}}", "web"]).ok(), before);
    let tar = image("busybox");
    let _ = on_n2(&["image", "import", "busybox", tar.to_str().expect("utf-8")]).ok();
    eventually("the service runs here with its secret", || {
        let id = on_n2(&["ps", "-q", "--filter", "label=com.docker.swarm.service.name=web"]).result()?;
        on_n2(&["exec", id.trim(), "grep", "-x", "open", "/run/secrets/key"]).result()
    });
    let here = on_n2(&["node", "inspect", "--format", "{{.Status.State}} {{.Status.Addr}}", "self"]).ok();
    assert_eq!(here, format!("ready {address}\n"));
}
