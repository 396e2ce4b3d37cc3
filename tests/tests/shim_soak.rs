//! Many containers started and stopped, shims, workers and node daemons killed again and again: in the end nothing is left of
//! it, neither processes nor mounts, control groups, namespaces, links, folders or descriptors.
//!
//! A short form runs always; `--features full` makes a thousand cycles and two hundred kills.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use orch_tests::{Dice, Lab, PATIENCE, RESTART_LIMIT, eventually, within};

/// Containers that come and go together.
const TOGETHER: usize = if cfg!(feature = "full") { 25 } else { 10 };
const ROUNDS: usize = if cfg!(feature = "full") { 40 } else { 2 };
const KILLS: usize = if cfg!(feature = "full") { 200 } else { 6 };
/// A place whose tasks fail again and again waits ever longer for the next one; new places have no past.
const KILLS_IN_A_ROW: usize = 10;
/// How many run while something is killed.
const REPLICAS: usize = 5;
/// Connections and files that a daemon may happen to have open at one moment and not at another.
const DESCRIPTORS_SLACK: usize = 12;
/// `/run/orch/netns/` and a task's id.
const TASK_NETNS_LEN: usize = 16 + 25;
const NAME: &str = "shim-soak";

/// What there is of the node, to be the same again.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    mounts: BTreeMap<String, usize>,
    cgroups: BTreeSet<String>,
    processes: BTreeMap<String, usize>,
    links: BTreeSet<String>,
    folders: BTreeSet<String>,
}

impl Traces {
    fn of(lab: &Lab) -> Result<Self, String> {
        let mut mounts = BTreeMap::new();
        for line in lab.exec("n1", &["cat", "/proc/self/mountinfo"]).result()?.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
            *mounts.entry(format!("{kind} {}", fields[4])).or_default() += 1;
        }
        let mut cgroups = BTreeSet::new();
        let mut processes = BTreeMap::new();
        for hierarchy in hierarchies() {
            let root = Path::new(&hierarchy).join("orch-lab").join(NAME);
            walk(&root, &mut |folder| {
                cgroups.insert(folder.display().to_string());
                for pid in fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
                    *processes.entry(format!("{hierarchy} {}", words(pid))).or_default() += 1;
                }
            });
        }
        let links = lab.exec("n1", &["ls", "/sys/class/net"]).result()?.lines().map(str::to_owned).collect();
        let find = ["find", "/run/orch/shim", "/run/orch/netns", "-mindepth", "1", "-maxdepth", "1"];
        let folders = lab.exec("n1", &find).stdout.lines().map(str::to_owned).collect();
        Ok(Self { mounts, cgroups, processes, links, folders })
    }
}

/// Where control groups are mounted on this machine.
fn hierarchies() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let of_cgroups = mounts.lines().filter(|line| line.contains(" - cgroup ") || line.contains(" - cgroup2 "));
    of_cgroups.filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    visit(folder);
    entries.flatten().filter(|entry| entry.path().is_dir()).for_each(|entry| walk(&entry.path(), visit));
}

/// The first words of a process's command; a zombie has none.
fn words(pid: &str) -> String {
    let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = name.split(|&byte| byte == 0).take(2).map(String::from_utf8_lossy).collect();
    words.join(" ").trim().to_owned()
}

/// Open descriptors of each daemon of the node.
fn descriptors(lab: &Lab) -> Result<BTreeMap<String, usize>, String> {
    let info = lab.orch(&["info"]).result()?;
    let mut all = BTreeMap::new();
    for line in info.lines().filter_map(|line| line.trim().strip_prefix("Daemon ")) {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let Some(pid) = rest.split("pid ").nth(1).and_then(|rest| rest.split(',').next()) else { continue };
        let count = fs::read_dir(format!("/proc/{pid}/fd")).map_err(|err| format!("{name}: {err}"))?.count();
        all.insert(name.to_owned(), count);
    }
    if all.len() >= 3 { Ok(all) } else { Err(info) }
}

fn scale(lab: &Lab, replicas: usize) {
    eventually("the service is scaled", || lab.orch(&["service", "scale", "-d", &format!("web={replicas}")]).result());
    lab.wait_replicas("web", &format!("{replicas}/{replicas}"));
}

/// All tasks are gone, and what they had.
fn settle(lab: &Lab, wanted: &Traces) {
    scale(lab, 0);
    within(PATIENCE * 2, "nothing is left of any container", || {
        let now = Traces::of(lab)?;
        if now == *wanted { Ok(()) } else { Err(difference(wanted, &now)) }
    });
}

fn difference(wanted: &Traces, now: &Traces) -> String {
    let (wanted, now) = (format!("{wanted:#?}"), format!("{now:#?}"));
    let known: BTreeSet<&str> = wanted.lines().collect();
    let seen: BTreeSet<&str> = now.lines().collect();
    let more: Vec<&&str> = seen.difference(&known).take(20).collect();
    let fewer: Vec<&&str> = known.difference(&seen).take(20).collect();
    format!("more: {more:?}; fewer: {fewer:?}")
}

fn shims(lab: &Lab) -> Result<Vec<String>, String> {
    let pids = lab.orch(&["ps", "--format", "{{.PID}}"]).result()?;
    let parent = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(1).map(str::to_owned)
    };
    let found: Vec<String> = pids.lines().filter_map(parent).filter(|pid| words(pid) == "orch shim").collect();
    if found.is_empty() { Err(pids) } else { Ok(found) }
}

fn kill_something(lab: &Lab, dice: &mut Dice) {
    match dice.between(0, 9) {
        0 => {
            let _ = lab.command("kill", &["n1", "node"]).ok();
            let _ = lab.command("start", &["n1"]).ok();
        }
        // The last one may have been killed just now, and the next may not be there yet.
        1..=3 => {
            drop(within(RESTART_LIMIT, "there is a worker to kill", || lab.command("kill", &["n1", "worker"]).result()))
        }
        _ => {
            let shims = within(RESTART_LIMIT, "there is a shim to kill", || shims(lab));
            let shim = dice.pick(&shims).as_str();
            // It may have ended by itself meanwhile.
            let _ = lab.exec("n1", &["kill", "-9", shim]);
        }
    }
}

#[test]
fn nothing_is_left_of_many_containers_and_kills() {
    let lab = Lab::up(NAME, 1, 1);
    lab.import("busybox", "busybox", &[]);
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "1", "--restart-delay", "0s"];
    let _ = lab.orch(&[&create[..], &["busybox", "sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"]].concat()).ok();
    lab.wait_replicas("web", "1/1");
    // What the first container brings along, stays: the gateway's bridge, the compiled filter.
    scale(&lab, 0);
    let wanted = within(PATIENCE, "the first container is gone", || {
        let traces = Traces::of(&lab)?;
        let shims = traces.processes.keys().any(|process| process.ends_with("orch shim"));
        // The namespaces of networks stay, and have longer names than tasks'.
        let of_task = |path: &&String| path.starts_with("/run/orch/shim/") || path.len() == TASK_NETNS_LEN;
        let mut left: Vec<_> = traces.folders.iter().filter(of_task).cloned().collect();
        // The last step of a container's end; looked at before the others.
        left.extend(traces.mounts.keys().filter(|mount| mount.starts_with("overlay ")).cloned());
        if left.is_empty() && !shims { Ok(traces) } else { Err(format!("{left:?}, shims: {shims}")) }
    });
    let before = descriptors(&lab).expect("orch info");

    for _ in 0..ROUNDS {
        scale(&lab, TOGETHER);
        scale(&lab, 0);
    }
    settle(&lab, &wanted);
    let after = eventually("the daemons have closed what they opened", || {
        let now = descriptors(&lab)?;
        let more = now.iter().any(|(name, count)| *count > before.get(name).copied().unwrap_or(0) + DESCRIPTORS_SLACK);
        if more { Err(format!("{now:?} after {before:?}")) } else { Ok(now) }
    });
    println!("{} cycles: descriptors {before:?} before, {after:?} after", TOGETHER * ROUNDS);

    let seed = 4;
    let mut dice = Dice::new(seed);
    scale(&lab, REPLICAS);
    for done in 1..=KILLS {
        kill_something(&lab, &mut dice);
        if done % KILLS_IN_A_ROW == 0 {
            scale(&lab, 0);
            scale(&lab, REPLICAS);
        } else if dice.one_in(3) || done == KILLS {
            lab.wait_replicas("web", &format!("{REPLICAS}/{REPLICAS}"));
        }
    }
    settle(&lab, &wanted);
    let _ = lab.orch(&["service", "rm", "web"]).ok();
    eventually("the logs are gone with the service", || {
        let left = lab.exec("n1", &["ls", "/var/lib/orch/worker/containers"]).result()?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    println!("{KILLS} kills with seed {seed}: nothing is left");
}
