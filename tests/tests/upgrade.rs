//! The binary is replaced and the nodes are restarted one by one: no request fails, no task restarts, nothing is lost.

use std::{
    fs,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use orch_tests::{Lab, Load, RESTART_LIMIT, eventually, failures, orch_binary, within};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Container and process ids on all nodes.
fn running(lab: &Lab) -> Result<String, String> {
    let on = |node| lab.orch_on(node, &["ps", "--no-trunc", "--format", "{{.Names}} {{.PID}}"]).result();
    let mut lines: Vec<String> = Vec::new();
    for node in NODES {
        lines.extend(on(node)?.lines().map(str::to_owned));
    }
    lines.sort();
    Ok(lines.join("\n"))
}

/// A new file in the place of the old one, as a package manager does it.
fn replace(program: &Path) {
    let new = program.with_extension("new");
    fs::copy(orch_binary(), &new).expect("copying the binary");
    fs::rename(&new, program).expect("putting the new binary in place");
}

/// Whether the daemons of a node run from the file that is there now.
fn runs_the_new_one(lab: &Lab, node: &str) -> Result<(), String> {
    let info = lab.orch_on(node, &["info"]).result()?;
    let pids =
        info.lines().filter_map(|line| line.trim().strip_prefix("Daemon ")?.split("pid ").nth(1)?.split(',').next());
    let files: Vec<String> =
        pids.map(|pid| lab.exec(node, &["readlink", &format!("/proc/{pid}/exe")]).stdout).collect();
    let is_old = files.is_empty() || files.iter().any(|file| file.is_empty() || file.contains("(deleted)"));
    if is_old { Err(format!("{files:?} {info}")) } else { Ok(()) }
}

fn all_is_well(lab: &Lab) -> Result<(), String> {
    for node in NODES {
        let format = "{{.Status}} {{.ManagerStatus}}";
        let nodes = lab.orch_on(node, &["node", "ls", "--format", format]).result()?.replacen("Leader", "Reachable", 1);
        if nodes != "Ready Reachable\n".repeat(NODES.len()) {
            return Err(format!("{node}: {nodes}"));
        }
    }
    Ok(())
}

#[test]
fn nodes_are_upgraded_one_by_one_and_nobody_notices() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("orch");
    replace(&program);
    let lab = Lab::of_binary(program.clone(), "upgrade", 3, 3);
    lab.import("busybox", "busybox", &[]);
    let args = ["service", "create", "-d", "--name", "web", "--replicas", "6", "-p", "8000:80"];
    // Its web server has no mind to stop when asked.
    let args = [&args[..], &["--stop-grace-period", "1s", "--update-parallelism", "2"]].concat();
    let _ = lab.orch(&[&args[..], &["busybox", "httpd", "-f", "-p", "80", "-h", "/etc"]].concat()).ok();
    lab.wait_replicas("web", "6/6");
    let before = running(&lab).expect("containers");
    let loads = NODES.map(|node| {
        let url = format!("http://{}:8000/hostname", lab.address(node));
        eventually("the port answers", || lab.get("client", &url));
        Load::start(&lab, "client", &url, Duration::from_millis(50), Duration::from_secs(200))
    });
    let (stop, acknowledged) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let name = format!("c{number}");
                let made = lab.exec_with_input(
                    NODES[number % 3],
                    &["timeout", "20", "orch", "config", "create", &name, "-"],
                    b"x",
                );
                // Who asks a manager that is being restarted hears so, and knows nothing.
                if made.code == 0 {
                    acknowledged.lock().expect("no panic").push(name);
                }
            }
        });
        let upgraded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| upgrade(&lab, &program, &before)));
        stop.store(true, Ordering::SeqCst);
        upgraded.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    for load in loads {
        let answers = load.stop();
        assert!(answers.len() > 50, "only {} requests", answers.len());
        let failed = failures(&answers);
        assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), answers.len());
    }
    let acknowledged = acknowledged.into_inner().expect("no panic");
    assert!(acknowledged.len() > 20, "only {} writes", acknowledged.len());
    for node in NODES {
        let listed = lab.orch_on(node, &["config", "ls", "--format", "{{.Name}}"]).ok();
        let there: Vec<&str> = listed.lines().collect();
        let lost: Vec<&String> = acknowledged.iter().filter(|name| !there.contains(&name.as_str())).collect();
        assert!(lost.is_empty(), "{node} lost {lost:?}");
    }
}

fn upgrade(lab: &Lab, program: &Path, before: &str) {
    replace(program);
    // Until its supervisor is restarted, a node goes on with both: a daemon that dies comes back as the new one.
    let _ = lab.command("kill", &["n2", "manager"]).ok();
    within(RESTART_LIMIT, "the cluster is whole", || all_is_well(lab));
    for node in NODES {
        let _ = lab.command("kill", &[node, "node"]).ok();
        let _ = lab.command("start", &[node]).ok();
        within(RESTART_LIMIT, "the node runs the new binary", || runs_the_new_one(lab, node));
        within(RESTART_LIMIT, "the cluster is whole", || all_is_well(lab));
        eventually("all containers are known again", || {
            let now = running(lab)?;
            if now == before { Ok(()) } else { Err(format!("{now}\ninstead of\n{before}")) }
        });
    }
    // Shims of old tasks are older than their worker: it stops them, and starts new ones.
    let _ = lab.orch(&["service", "update", "-d", "--force", "web"]).ok();
    eventually("all tasks are new ones", || {
        let now = running(lab)?;
        let is_new = now.lines().count() == 6 && now.lines().all(|line| !before.contains(line));
        if is_new { Ok(()) } else { Err(now) }
    });
}
