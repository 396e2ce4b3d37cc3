//! Control groups of containers, on both versions: where they are, killing what is in one, removing it.
//!
//! Limits are set by libcontainer when it creates the container; this module only finds, empties and removes.

use std::{
    fs, io,
    os::fd::{AsFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::usage;

const ROOT: &str = "/sys/fs/cgroup";
/// How long to wait for killed processes to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How often killing is repeated while processes keep forking.
const KILL_ROUNDS: usize = 50;

/// The control groups of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One folder per controller (a bare version 2 beside them does not count: it controls nothing).
    V1(Vec<Hierarchy>),
    V2(PathBuf),
}

/// A mounted hierarchy of version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    /// Mount options: controllers' names among others.
    pub(super) options: String,
}

impl Hierarchy {
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|option| option == controller)
    }
}

impl Layout {
    pub(crate) fn detect() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    pub(super) fn parse(mountinfo: &str) -> Self {
        let mut hierarchies = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) if mount == Path::new(ROOT) => return Self::V2(mount),
                (Some("cgroup"), Some(options)) if mount.starts_with(ROOT) => {
                    hierarchies.push(Hierarchy { mount, options: options.to_owned() });
                }
                _ => {}
            }
        }
        Self::V1(hierarchies)
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self, Self::V2(_))
    }

    /// The folder of `cgroup` in each hierarchy.
    pub(crate) fn folders(&self, cgroup: &str) -> Vec<PathBuf> {
        let relative = cgroup.trim_start_matches('/');
        match self {
            Self::V1(hierarchies) => hierarchies.iter().map(|h| h.mount.join(relative)).collect(),
            Self::V2(mount) => vec![mount.join(relative)],
        }
    }

    /// The folders of `cgroup` where its processes are counted (and listed), and the others.
    pub(crate) fn counted_apart(&self, cgroup: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let counted = self.folder_of(cgroup, "pids");
        self.folders(cgroup).into_iter().partition(|folder| Some(folder) == counted.as_ref())
    }

    /// The folder of `cgroup` with the files of `controller`; `None` where this machine has no such controller.
    pub(crate) fn folder_of(&self, cgroup: &str, controller: &str) -> Option<PathBuf> {
        let relative = cgroup.trim_start_matches('/');
        match self {
            Self::V1(hierarchies) => hierarchies.iter().find(|h| h.has(controller)).map(|h| h.mount.join(relative)),
            Self::V2(mount) => Some(mount.join(relative)),
        }
    }

    /// Whether a container's swap can be limited.
    pub(crate) fn counts_swap(&self) -> bool {
        match self {
            Self::V1(hierarchies) => hierarchies
                .iter()
                .find(|h| h.has("memory"))
                .is_some_and(|memory| memory.mount.join("memory.memsw.limit_in_bytes").exists()),
            // Counted wherever the kernel has swap.
            Self::V2(_) => Path::new("/proc/swaps").exists(),
        }
    }

    /// Makes `cgroup` where it is missing and moves this process into it. Hierarchies that do not take processes yet
    /// (cpuset without CPUs) are left out: nothing is limited there.
    pub(crate) fn enter(&self, cgroup: &str) -> io::Result<()> {
        let is_optional = |folder: &Path| matches!(self, Self::V1(h) if h.iter().any(|h| folder.starts_with(&h.mount) && h.has("cpuset")));
        for folder in self.folders(cgroup) {
            let entered = fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join("cgroup.procs"), "0"));
            match entered {
                Err(err) if !is_optional(&folder) => return Err(err),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether what is in `cgroup` was told to stand still.
    pub(crate) fn is_frozen(&self, cgroup: &str) -> bool {
        let file = if self.is_v2() { "cgroup.freeze" } else { "freezer.state" };
        let state = self.folder_of(cgroup, "freezer").and_then(|folder| fs::read_to_string(folder.join(file)).ok());
        state.is_some_and(|state| matches!(state.trim(), "1" | "FROZEN" | "FREEZING"))
    }

    /// Whether the kernel killed something in `cgroup` for want of memory.
    pub(crate) fn oom_killed(&self, cgroup: &str) -> bool {
        let relative = cgroup.trim_start_matches('/');
        let file = match self {
            Self::V1(hierarchies) => match hierarchies.iter().find(|h| h.has("memory")) {
                Some(memory) => memory.mount.join(relative).join("memory.oom_control"),
                None => return false,
            },
            Self::V2(mount) => mount.join(relative).join("memory.events"),
        };
        let counters = fs::read_to_string(file).unwrap_or_default();
        counters.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
    }

    /// Kills everything in `cgroup`, waits until it is gone, and removes the folders. Fine when there is nothing.
    pub(crate) fn destroy(&self, cgroup: &str) -> io::Result<()> {
        let deadline = Instant::now() + KILL_LIMIT;
        let folders = self.folders(cgroup);
        // On version 1 what is frozen does not end. Refused where nothing is left.
        let _ = usage::set_frozen(self, cgroup, false);
        for folder in &folders {
            kill_all(folder, deadline)?;
        }
        for folder in &folders {
            remove_tree(folder)?;
        }
        Ok(())
    }
}

fn kill_all(folder: &Path, deadline: Instant) -> io::Result<()> {
    for _ in 0..KILL_ROUNDS {
        let pids = processes(folder);
        if pids.is_empty() {
            return Ok(());
        }
        let killed: Vec<OwnedFd> = pids.iter().filter_map(|&pid| kill(pid)).collect();
        for process in killed {
            wait_gone(&process, deadline)?;
        }
    }
    Err(io::Error::other(format!("processes in {} keep appearing", folder.display())))
}

/// The processes in a folder and below it.
pub(super) fn processes(folder: &Path) -> Vec<i32> {
    let own = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 0).collect();
    children(folder).iter().for_each(|child| pids.extend(processes(child)));
    pids
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())).map(|entry| entry.path()).collect()
}

/// SIGKILLs by descriptor, which cannot hit another process that got the number meanwhile.
fn kill(pid: i32) -> Option<OwnedFd> {
    let process = open_process(pid).ok()?;
    send_kill(&process);
    Some(process)
}

#[allow(unsafe_code)]
fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers; the descriptor that it returns is ours alone.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

#[allow(unsafe_code)]
fn send_kill(process: &OwnedFd) {
    use std::os::fd::AsRawFd;
    // SAFETY: a valid descriptor, a signal number, no siginfo. That the process is gone already is fine.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, std::ptr::null::<u8>(), 0)
    };
}

/// A descriptor of a process becomes readable when the process ends.
fn wait_gone(process: &OwnedFd, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "a killed process does not end")),
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    children(folder).iter().try_for_each(|child| remove_tree(child))?;
    match fs::remove_dir(folder) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime shared:4 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn version_1_with_a_bare_version_2_is_version_1() {
        let layout = Layout::parse(HYBRID);
        let folders = layout.folders("/orch.slice/x");
        assert_eq!(
            folders,
            [Path::new("/sys/fs/cgroup/cpu,cpuacct/orch.slice/x"), Path::new("/sys/fs/cgroup/memory/orch.slice/x")]
        );
        assert_eq!(layout.counted_apart("/x"), (Vec::new(), layout.folders("/x")));
        let counting = HYBRID.replace("rw,memory", "rw,pids").replace("/memory", "/pids");
        let (counted, others) = Layout::parse(&counting).counted_apart("/x");
        assert_eq!(counted, [Path::new("/sys/fs/cgroup/pids/x")]);
        assert_eq!(others, [Path::new("/sys/fs/cgroup/cpu,cpuacct/x")]);
        let Layout::V1(hierarchies) = layout else { panic!("not version 1") };
        assert!(hierarchies[0].has("cpuacct") && !hierarchies[0].has("memory"));
    }

    #[test]
    fn version_2_is_found() {
        let layout = Layout::parse("30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate");
        assert!(layout.is_v2());
        assert_eq!(layout.folders("/a"), [Path::new("/sys/fs/cgroup/a")]);
        assert_eq!(layout.counted_apart("/a"), (layout.folders("/a"), Vec::new()));
    }
}
