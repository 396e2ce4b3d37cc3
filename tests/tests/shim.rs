//! The process beside each container: what becomes of the container when it is killed, and of it when others are.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use orch_tests::{Lab, eventually};

/// Container id -> number of its first process, of what runs on n1.
fn running(lab: &Lab) -> Result<BTreeMap<String, i32>, String> {
    let text = lab.orch(&["ps", "--no-trunc", "--format", "{{.ID}} {{.PID}}"]).result()?;
    let parse = |line: &str| {
        let (id, pid) = line.split_once(' ')?;
        Some((id.to_owned(), pid.parse().ok()?))
    };
    text.lines().map(|line| parse(line).ok_or_else(|| line.to_owned())).collect()
}

/// The node shares the machine's process numbers.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit(") ").next()?.split(' ').map(str::to_owned).collect())
}

fn shim_of(pid: i32) -> i32 {
    let shim = stat(pid).and_then(|fields| fields[1].parse().ok()).unwrap_or_else(|| panic!("{pid} has no parent"));
    let name = fs::read_to_string(format!("/proc/{shim}/cmdline")).expect("the shim's name");
    assert!(name.starts_with("orch\0shim\0/"), "{pid} is the child of {name:?}");
    shim
}

fn kill(lab: &Lab, pids: &[i32]) {
    kill_with(lab, "-KILL", pids);
}

fn kill_with(lab: &Lab, signal: &str, pids: &[i32]) {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let args: Vec<&str> = ["kill", signal].into_iter().chain(pids.iter().map(String::as_str)).collect();
    let _ = lab.exec("n1", &args).ok();
}

fn wait_gone(pids: &[i32]) {
    for pid in pids {
        // Not even as a zombie: whoever adopts an orphan collects it.
        eventually(&format!("process {pid} is gone"), || stat(*pid).map_or(Ok(()), |stat| Err(stat.join(" "))));
    }
}

/// Until three others than `before` run.
fn wait_replaced(lab: &Lab, before: &BTreeMap<String, i32>) -> BTreeMap<String, i32> {
    eventually("three others run", || {
        let now = running(lab)?;
        let fresh = now.len() == 3 && now.keys().all(|id| !before.contains_key(id));
        if fresh { Ok(now) } else { Err(format!("{now:?} after {before:?}")) }
    })
}

#[test]
fn a_shim_that_stands_still_keeps_nobody_waiting() {
    let lab = Lab::up("still", 1, 1);
    lab.import("busybox", "busybox", &[]);
    let _ = lab.orch(&["run", "-d", "--name", "still", "busybox", "sh", "-c", "echo said; exec sleep 1000"]).ok();
    let pid: i32 = lab.orch(&["inspect", "-f", "{{.State.Pid}}", "still"]).ok().trim().parse().expect("a pid");
    let shim = shim_of(pid);
    kill_with(&lab, "-STOP", &[shim]);
    let begun = Instant::now();
    assert_eq!(lab.orch(&["inspect", "-f", "{{.State.Status}}", "still"]).ok(), "running\n");
    assert!(lab.orch(&["ps"]).ok().contains("still"));
    assert_eq!(lab.orch(&["logs", "still"]).ok(), "said\n");
    assert!(begun.elapsed() < Duration::from_secs(6), "looked for {:?}", begun.elapsed());
    let _ = lab.orch(&["rm", "-f", "still"]).ok();
    wait_gone(&[pid, shim]);
    assert_eq!(lab.orch(&["ps", "-aq"]).ok(), "");
}

#[test]
fn a_killed_shim_is_found_reported_and_leaves_nothing() {
    let lab = Lab::up("shim", 1, 1);
    lab.import("busybox", "busybox", &[]);
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "3", "--restart-delay", "0s", "busybox"];
    // Two processes, of which one would outlive the first.
    let _ = lab.orch(&[&create[..], &["sh", "-c", "sleep 100000 & sleep 100000"]].concat()).ok();
    lab.wait_replicas("web", "3/3");

    let first = running(&lab).expect("orch ps");
    let shims: Vec<i32> = first.values().map(|&pid| shim_of(pid)).collect();
    kill(&lab, &shims);
    wait_gone(&first.values().copied().chain(shims).collect::<Vec<_>>());
    let second = wait_replaced(&lab, &first);
    eventually("the tasks have failed, with the reason", || {
        let rows = lab.list(&["service", "ps", "--no-trunc", "web"])?;
        let lost = rows.iter().filter(|row| {
            row["CurrentState"].as_str().is_some_and(|state| state.starts_with("Failed"))
                && row["Error"].as_str().is_some_and(|error| error.contains("shim was killed"))
        });
        if lost.count() == 3 { Ok(()) } else { Err(format!("{rows:?}")) }
    });

    // With nobody there to see it: the kernel ends the containers, the next worker finds them.
    let shims: Vec<i32> = second.values().map(|&pid| shim_of(pid)).collect();
    let _ = lab.command("kill", &["n1", "node"]).ok();
    kill(&lab, &shims);
    wait_gone(&second.values().copied().chain(shims).collect::<Vec<_>>());
    let _ = lab.command("start", &["n1"]).ok();
    let third = wait_replaced(&lab, &second);

    // A new worker drives shims that are older than it is.
    let _ = lab.command("kill", &["n1", "worker"]).ok();
    let shims: Vec<i32> = third.values().map(|&pid| shim_of(pid)).collect();
    let (id, _) = third.first_key_value().expect("three");
    eventually("the container can be entered", || lab.orch(&["exec", id, "true"]).result());
    assert_eq!(running(&lab).expect("orch ps"), third);
    let _ = lab.orch(&["service", "rm", "web"]).ok();
    wait_gone(&third.values().copied().chain(shims).collect::<Vec<_>>());
    eventually("nothing is left of shims", || {
        let left = lab.exec("n1", &["ls", "/run/orch/shim"]).result()?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
