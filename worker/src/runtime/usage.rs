//! What a container uses of its node, from its cgroup and its network namespace; freezing and new limits of a running one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::cgroup::Layout;

/// Counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub at_ns: u64,
    pub cpu_ns: u64,
    /// Without what the kernel could drop at once.
    pub memory_bytes: u64,
    /// The machine's memory when nothing less is set.
    pub memory_limit_bytes: u64,
    pub pids: u64,
    pub net_rx_bytes: u64,
    pub net_tx_bytes: u64,
    pub block_read_bytes: u64,
    pub block_write_bytes: u64,
}

/// A process of a container, with its number on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessInfo {
    pub pid: i32,
    pub parent: i32,
    pub uid: u32,
    pub started_ms: u64,
    pub cpu_ms: u64,
    /// Empty: none.
    pub tty: String,
    pub command: String,
}

/// New limits; `None`: as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewLimits {
    pub nano_cpus: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub memory_swap_bytes: Option<i64>,
    pub memory_reservation_bytes: Option<u64>,
    pub pids: Option<u64>,
    pub cpu_shares: Option<u64>,
    pub cpuset_cpus: Option<String>,
}

/// Kernel ticks per second; the same on every architecture that Linux runs on today.
const TICKS_PER_SECOND: u64 = 100;
/// When a process was started, after the name in its `stat` in /proc.
const STARTED_FIELD: usize = 19;

pub(super) fn usage(layout: &Layout, cgroup: &str, pid: u32) -> Usage {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let read = |controller: &str, file: &str| read(layout, cgroup, controller, file);
    let number = |controller: &str, file: &str| read(controller, file).trim().parse::<u64>().unwrap_or_default();
    let machine = total_memory();
    let (cpu_ns, memory, dropped, limit) = if layout.is_v2() {
        (
            keyed(&read("cpu", "cpu.stat"), "usage_usec") * 1000,
            number("memory", "memory.current"),
            keyed(&read("memory", "memory.stat"), "inactive_file"),
            number("memory", "memory.max"),
        )
    } else {
        (
            number("cpuacct", "cpuacct.usage"),
            number("memory", "memory.usage_in_bytes"),
            keyed(&read("memory", "memory.stat"), "total_inactive_file"),
            number("memory", "memory.limit_in_bytes"),
        )
    };
    let (block_read_bytes, block_write_bytes) = blocks(layout, &read);
    let (net_rx_bytes, net_tx_bytes) = network(pid);
    Usage {
        at_ns: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
        cpu_ns,
        memory_bytes: memory.saturating_sub(dropped),
        // `max` reads as 0; version 1 says a number larger than any memory.
        memory_limit_bytes: if limit == 0 { machine } else { limit.min(machine) },
        pids: number("pids", "pids.current"),
        net_rx_bytes,
        net_tx_bytes,
        block_read_bytes,
        block_write_bytes,
    }
}

/// Everything in the cgroup, by number.
pub(super) fn processes(layout: &Layout, cgroup: &str) -> Vec<ProcessInfo> {
    let mut pids = pids(layout, cgroup);
    pids.sort_unstable();
    pids.into_iter().filter_map(process).collect()
}

/// The oldest process in the cgroup: all others came after a container's first one, and end with it.
pub(super) fn first_process(layout: &Layout, cgroup: &str) -> Option<i32> {
    // Nothing else is read: what is in a process's memory is not to be had while that hangs.
    let started = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ticks = stat.rsplit_once(") ")?.1.split(' ').nth(STARTED_FIELD)?.parse::<u64>().ok()?;
        Some((ticks, pid))
    };
    pids(layout, cgroup).into_iter().filter_map(started).min().map(|(_, pid)| pid)
}

fn pids(layout: &Layout, cgroup: &str) -> Vec<i32> {
    let folder = layout.folder_of(cgroup, "pids").or_else(|| layout.folders(cgroup).into_iter().next());
    folder.map(|folder| super::cgroup::processes(&folder)).unwrap_or_default()
}

pub(super) fn set_frozen(layout: &Layout, cgroup: &str, frozen: bool) -> io::Result<()> {
    let (file, value) = match (layout.is_v2(), frozen) {
        (true, true) => ("cgroup.freeze", "1"),
        (true, false) => ("cgroup.freeze", "0"),
        (false, true) => ("freezer.state", "FROZEN"),
        (false, false) => ("freezer.state", "THAWED"),
    };
    write(layout, cgroup, "freezer", file, value)
}

/// Sets limits of a running container. Order matters: the kernel refuses memory above memory and swap together.
pub(super) fn set_limits(layout: &Layout, cgroup: &str, new: &NewLimits) -> io::Result<()> {
    let set = |controller: &str, file: &str, value: String| write(layout, cgroup, controller, file, &value);
    let no_limit = || "max".to_owned();
    if let Some(nano_cpus) = new.nano_cpus {
        let super::spec::CpuShare { quota_us: quota, period_us: period } = super::spec::cpu_share(nano_cpus);
        if layout.is_v2() {
            let quota = if nano_cpus == 0 { no_limit() } else { quota.to_string() };
            set("cpu", "cpu.max", format!("{quota} {period}"))?;
        } else {
            set("cpu", "cpu.cfs_period_us", period.to_string())?;
            set("cpu", "cpu.cfs_quota_us", if nano_cpus == 0 { "-1".to_owned() } else { quota.to_string() })?;
        }
    }
    if let Some(pids) = new.pids {
        set("pids", "pids.max", if pids == 0 { no_limit() } else { pids.to_string() })?;
    }
    if let Some(shares) = new.cpu_shares {
        match layout.is_v2() {
            true => set("cpu", "cpu.weight", cpu_weight(shares).to_string())?,
            false => set("cpu", "cpu.shares", shares.to_string())?,
        }
    }
    if let Some(cpus) = &new.cpuset_cpus {
        set("cpuset", "cpuset.cpus", cpus.clone())?;
    }
    if let Some(bytes) = new.memory_reservation_bytes {
        let file = if layout.is_v2() { "memory.low" } else { "memory.soft_limit_in_bytes" };
        set("memory", file, bytes.to_string())?;
    }
    // A kernel that does not count swap has nothing to write to.
    let counts_swap = layout.counts_swap();
    let swap = new.memory_swap_bytes.filter(|_| counts_swap);
    match (layout.is_v2(), new.memory_bytes) {
        (true, memory) => {
            if let Some(bytes) = memory {
                set("memory", "memory.max", if bytes == 0 { no_limit() } else { bytes.to_string() })?;
            }
            match (swap, memory) {
                (None, Some(0)) if counts_swap => set("memory", "memory.swap.max", no_limit()),
                (Some(swap), _) if swap < 0 => set("memory", "memory.swap.max", no_limit()),
                (Some(swap), Some(bytes)) => {
                    let swap = swap.unsigned_abs().saturating_sub(bytes);
                    set("memory", "memory.swap.max", swap.to_string())
                }
                _ => Ok(()),
            }
        }
        (false, memory) => memory_v1(layout, cgroup, memory, swap),
    }
}

fn memory_v1(layout: &Layout, cgroup: &str, memory: Option<u64>, swap: Option<i64>) -> io::Result<()> {
    let set = |file: &str, value: String| write(layout, cgroup, "memory", file, &value);
    let limit = memory.map(|bytes| if bytes == 0 { "-1".to_owned() } else { bytes.to_string() });
    let both = swap.map(|bytes| bytes.to_string());
    let file = |which: &str| format!("memory.{which}limit_in_bytes");
    match (limit, both) {
        (Some(limit), Some(both)) => {
            // Growing: the larger one first; shrinking: the smaller one.
            if set(&file("memsw."), both.clone()).is_ok() {
                return set(&file(""), limit);
            }
            set(&file(""), limit)?;
            set(&file("memsw."), both)
        }
        (Some(limit), None) => {
            if limit == "-1" {
                // Memory alone cannot be above both together. Fails where swap is not counted.
                let _ = set(&file("memsw."), limit.clone());
            }
            set(&file(""), limit)
        }
        (None, Some(both)) => set(&file("memsw."), both),
        (None, None) => Ok(()),
    }
}

/// Docker's conversion of version 1's shares (2 to 262144) to version 2's weight (1 to 10000).
pub(super) fn cpu_weight(shares: u64) -> u64 {
    if shares == 0 { 100 } else { 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142 }
}

fn read(layout: &Layout, cgroup: &str, controller: &str, file: &str) -> String {
    let folder = layout.folder_of(cgroup, controller);
    folder.and_then(|folder| fs::read_to_string(folder.join(file)).ok()).unwrap_or_default()
}

fn write(layout: &Layout, cgroup: &str, controller: &str, file: &str, value: &str) -> io::Result<()> {
    let missing = || io::Error::other(format!("this machine has no cgroup controller {controller}"));
    let path: PathBuf = layout.folder_of(cgroup, controller).ok_or_else(missing)?.join(file);
    fs::write(&path, value).map_err(|error| io::Error::new(error.kind(), format!("{file} = {value}: {error}")))
}

/// The value behind `key ` in a file with a pair per line.
fn keyed(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

/// Read and written, over all devices.
fn blocks(layout: &Layout, read: &impl Fn(&str, &str) -> String) -> (u64, u64) {
    let sum = |text: &str, word: &str| -> u64 {
        let fields = text.lines().filter_map(|line| line.strip_prefix(|c: char| c.is_ascii_digit()).map(|_| line));
        fields.filter_map(|line| line.split(' ').find_map(|field| field.strip_prefix(word)?.parse::<u64>().ok())).sum()
    };
    if layout.is_v2() {
        let text = read("io", "io.stat");
        return (sum(&text, "rbytes="), sum(&text, "wbytes="));
    }
    let text = read("blkio", "blkio.throttle.io_service_bytes_recursive");
    let sum = |word: &str| -> u64 {
        let lines = text.lines().filter_map(|line| line.split_once(' ')?.1.strip_prefix(word));
        lines.filter_map(|value| value.trim().parse::<u64>().ok()).sum()
    };
    (sum("Read "), sum("Write "))
}

/// Received and sent over every device but the loopback; nothing of what goes over the node's own.
fn network(pid: u32) -> (u64, u64) {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    if namespace(&pid.to_string()) == namespace("self") {
        return (0, 0);
    }
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let mut sums = (0_u64, 0_u64);
    for line in text.lines() {
        let Some((device, counters)) = line.split_once(':') else { continue };
        if device.trim() == "lo" {
            continue;
        }
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|counter| counter.parse().ok()).collect();
        sums.0 += counters.first().copied().unwrap_or_default();
        sums.1 += counters.get(8).copied().unwrap_or_default();
    }
    sums
}

fn total_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or_default() * 1024
}

fn process(pid: i32) -> Option<ProcessInfo> {
    let folder = Path::new("/proc").join(pid.to_string());
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    // The name, in parentheses, may have anything in it.
    let (head, fields) = stat.rsplit_once(") ")?;
    let name = head.split_once('(').map(|(_, name)| name.to_owned()).unwrap_or_default();
    let fields: Vec<&str> = fields.split(' ').collect();
    let number = |n: usize| fields.get(n).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    let command = fs::read(folder.join("cmdline")).unwrap_or_default();
    let words: Vec<String> =
        command.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let command = words.join(" ").trim_end().to_owned();
    let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok());
    let ticks_ms = |ticks: u64| ticks * 1000 / TICKS_PER_SECOND;
    Some(ProcessInfo {
        pid,
        parent: i32::try_from(number(1)).unwrap_or_default(),
        uid: uid.unwrap_or_default(),
        started_ms: boot_ms() + ticks_ms(number(STARTED_FIELD)),
        cpu_ms: ticks_ms(number(11) + number(12)),
        tty: terminal(number(4)),
        command: if command.is_empty() { format!("[{name}]") } else { command },
    })
}

/// `pts/0`; only pseudo-terminals have names here.
fn terminal(device: u64) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    if (136..144).contains(&major) { format!("pts/{}", minor + (major - 136) * 256) } else { String::new() }
}

fn boot_ms() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    keyed(&text, "btime") * 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_keys_are_read() {
        let text = "inactive_file 5\ninactive 7\ntotal_inactive_file 9\n";
        assert_eq!((keyed(text, "inactive_file"), keyed(text, "inactive"), keyed(text, "none")), (5, 7, 0));
        assert_eq!((terminal(0x8803), terminal(0)), ("pts/3".to_owned(), String::new()));
        assert_eq!([2, 1024, 262_144].map(cpu_weight), [1, 39, 10_000]);
    }

    #[test]
    fn memory_and_swap_are_set_together() {
        use super::super::cgroup::Hierarchy;
        let of = |memory, swap| NewLimits { memory_bytes: memory, memory_swap_bytes: swap, ..NewLimits::default() };
        let (v1, memsw) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        // Version 2, version 1 with swap counted and without; new memory and both together; the two files then.
        for (version, new, files) in [
            ("2", of(Some(64), Some(96)), [("memory.max", "64"), ("memory.swap.max", "32")]),
            ("2", of(Some(0), None), [("memory.max", "max"), ("memory.swap.max", "max")]),
            ("2", of(Some(64), Some(-1)), [("memory.max", "64"), ("memory.swap.max", "max")]),
            ("1 with swap", of(Some(64), Some(96)), [(v1, "64"), (memsw, "96")]),
            ("1 with swap", of(Some(0), None), [(v1, "-1"), (memsw, "-1")]),
            ("1", of(Some(64), Some(96)), [(v1, "64"), (memsw, "")]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mount = folder.path().to_owned();
            if version == "1 with swap" {
                fs::write(mount.join(memsw), "").unwrap();
            }
            let layout = match version {
                "2" => Layout::V2(mount.clone()),
                _ => Layout::V1(vec![Hierarchy { mount: mount.clone(), options: "rw,memory".to_owned() }]),
            };
            fs::create_dir(mount.join("c")).unwrap();
            set_limits(&layout, "/c", &new).unwrap();
            let now = files.map(|(file, _)| fs::read_to_string(mount.join("c").join(file)).unwrap_or_default());
            assert_eq!(now, files.map(|(_, value)| value), "{version} {new:?}");
        }
    }

    #[test]
    fn the_nodes_traffic_is_no_containers() {
        assert_eq!(network(std::process::id()), (0, 0));
    }

    #[test]
    fn the_first_process_is_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::V2(folder.path().to_owned());
        fs::create_dir_all(folder.path().join("c/below")).unwrap();
        assert_eq!(first_process(&layout, "/c"), None);
        let own = i32::try_from(std::process::id()).unwrap();
        let parent = process(own).unwrap().parent;
        fs::write(folder.path().join("c/cgroup.procs"), format!("{own}\n")).unwrap();
        fs::write(folder.path().join("c/below/cgroup.procs"), format!("{parent}\n{}\n", i32::MAX)).unwrap();
        assert_eq!(first_process(&layout, "/c"), Some(parent));
    }

    #[test]
    fn a_process_is_described() {
        let own = process(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.command.contains("orch") && own.parent > 0, "{own:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        assert!(now.abs_diff(own.started_ms.into()) < 3_600_000, "{own:?}");
    }
}
