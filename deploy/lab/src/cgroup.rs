//! Control groups as a way to know which processes belong to a host: the same path in every hierarchy, v1 and v2.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getpid},
};

const KILL_LIMIT: Duration = Duration::from_secs(15);
const REMOVE_LIMIT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    unified: bool,
}

/// Every hierarchy of this machine.
#[derive(Debug)]
pub(crate) struct Cgroups(Vec<Hierarchy>);

impl Cgroups {
    pub(crate) fn find() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        let hierarchies = parse_mounts(&mounts);
        if hierarchies.is_empty() {
            bail!("no cgroup hierarchy is mounted on this machine (usually at /sys/fs/cgroup)");
        }
        Ok(Self(hierarchies))
    }

    /// Makes the group in every hierarchy.
    pub(crate) fn create(&self, group: &str) -> Result<()> {
        for hierarchy in &self.0 {
            let mut dir = hierarchy.root.clone();
            for part in group.split('/') {
                let parent = dir.clone();
                dir.push(part);
                match fs::create_dir(&dir) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error).with_context(|| format!("cannot make the cgroup {}", dir.display()));
                    }
                    _ => {}
                }
                if !hierarchy.unified {
                    inherit_cpuset(&parent, &dir)?;
                }
            }
        }
        Ok(())
    }

    /// Moves this process.
    pub(crate) fn enter(&self, group: &str) -> Result<()> {
        for hierarchy in &self.0 {
            let procs = hierarchy.root.join(group).join("cgroup.procs");
            fs::write(&procs, getpid().to_string()).with_context(|| format!("cannot enter {}", procs.display()))?;
        }
        Ok(())
    }

    /// The processes in this group and below it, in whichever hierarchy.
    pub(crate) fn processes(&self, group: &str) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for hierarchy in &self.0 {
            walk(&hierarchy.root.join(group), &mut |dir| {
                // A group that vanishes meanwhile has no processes.
                let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            });
        }
        found.remove(&getpid().as_raw());
        found
    }

    /// Kills everything in this group and below it; new processes of the old ones too. The ids of what it killed.
    pub(crate) fn kill(&self, group: &str) -> Result<BTreeSet<i32>> {
        let deadline = Instant::now() + KILL_LIMIT;
        let mut killed = BTreeSet::new();
        loop {
            for hierarchy in self.0.iter().filter(|hierarchy| hierarchy.unified) {
                // Kernels before 5.14 have no such file; the loop below does it for them.
                drop(fs::write(hierarchy.root.join(group).join("cgroup.kill"), "1"));
            }
            let processes = self.processes(group);
            if processes.is_empty() {
                return Ok(killed);
            }
            killed.extend(&processes);
            for process in &processes {
                thaw(*process);
                // It may have ended already.
                let _ = kill(Pid::from_raw(*process), Signal::SIGKILL);
            }
            if Instant::now() >= deadline {
                bail!("these processes do not die: {processes:?}");
            }
            sleep(POLL_INTERVAL);
        }
    }

    /// Removes the group and those below it. Its processes must have been killed.
    pub(crate) fn remove(&self, group: &str) -> Result<()> {
        for hierarchy in &self.0 {
            let deadline = Instant::now() + REMOVE_LIMIT;
            let dir = hierarchy.root.join(group);
            while let Err(error) = remove_tree(&dir) {
                // A process that was just killed occupies its group for a moment longer.
                if Instant::now() >= deadline {
                    return Err(error).with_context(|| format!("cannot remove the cgroup {}", dir.display()));
                }
                sleep(POLL_INTERVAL);
            }
        }
        Ok(())
    }

    /// Removes the group where nothing is in it. Whether it is gone everywhere.
    pub(crate) fn remove_if_empty(&self, group: &str) -> bool {
        self.0.iter().fold(true, |gone, hierarchy| {
            let path = hierarchy.root.join(group);
            drop(fs::remove_dir(&path));
            gone && !path.exists()
        })
    }
}

/// Waits until the machine's init has reaped these. One that never does is the machine's trouble, not the lab's.
pub(crate) fn wait_reaped(killed: &BTreeSet<i32>) {
    let deadline = Instant::now() + REMOVE_LIMIT;
    while killed.iter().any(|process| is_zombie(*process)) && Instant::now() < deadline {
        sleep(POLL_INTERVAL);
    }
}

fn is_zombie(process: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // The name in parentheses may hold anything, parentheses too.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// A hierarchy that is mounted twice counts once.
fn parse_mounts(mountinfo: &str) -> Vec<Hierarchy> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let unified = match filesystem.split(' ').next() {
            Some("cgroup2") => true,
            Some("cgroup") => false,
            _ => continue,
        };
        let fields: Vec<&str> = mount.split(' ').collect();
        if let [_, _, device, _, root, ..] = fields[..]
            && seen.insert(device)
        {
            found.push(Hierarchy { root: PathBuf::from(root), unified });
        }
    }
    found
}

/// A new v1 cpuset has no processors, and no process can enter it.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = dir.join(file);
        let Ok(current) = fs::read_to_string(&own) else { continue };
        if current.trim().is_empty() {
            let inherited = fs::read_to_string(parent.join(file)).context("cannot read the parent's cpuset")?;
            fs::write(&own, inherited).with_context(|| format!("cannot write {}", own.display()))?;
        }
    }
    Ok(())
}

/// A frozen v1 process dies only after it thaws.
fn thaw(process: i32) {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    let freezer = groups.lines().find_map(|line| line.split_once(":freezer:").map(|(_, path)| path));
    if let Some(path) = freezer {
        let state = format!("/sys/fs/cgroup/freezer{path}/freezer.state");
        if fs::read_to_string(&state).is_ok_and(|text| text.trim() != "THAWED") {
            drop(fs::write(state, "THAWED"));
        }
    }
}

/// Visits the folder and those below it, the deepest first.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    if dir.is_dir() {
        visit(dir);
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let mut result = Ok(());
    walk(dir, &mut |dir| {
        if let Err(error) = fs::remove_dir(dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            result = Err(error);
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_hierarchy_is_found_once() {
        let mountinfo = "\
24 30 0:22 / /proc rw,nosuid - proc proc rw
30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:28 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct
";
        let expected = [("/sys/fs/cgroup/unified", true), ("/sys/fs/cgroup/cpu,cpuacct", false)]
            .map(|(root, unified)| Hierarchy { root: root.into(), unified });
        assert_eq!(parse_mounts(mountinfo), expected);
    }
}
