//! From a plan to an OCI runtime specification: pure, except that devices are looked up on the host by the caller.
//!
//! The result is JSON rather than `oci_spec`'s types: it goes to a file, where libcontainer reads it; a test checks that
//! it does.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use orch_model::{
    linux::is_ulimit,
    service::{BindRecursive, ContainerSpec, Mount, MountKind, ResourceLimits, Ulimit},
};

use super::{
    caps::CapSet,
    cgroup::Layout,
    init,
    plan::{BindMount, ContainerPlan, HostOptions, ImageDefaults, MoreLimits, Sharing},
    proc,
    user::User,
};

/// Where programs are looked for unless the image says otherwise.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Length of the scheduler's period, in microseconds; the quota is a share of it.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel's limits.
const MAX_CPU_PERIOD_US: u64 = 1_000_000;
const MIN_CPU_QUOTA_US: u64 = 1000;
const NANOS_PER_CPU: u64 = 1_000_000_000;
/// Size of /dev/shm unless the user says otherwise.
const SHM_BYTES: u64 = 64 << 20;
/// Of mounts that are for data.
const TMPFS_OPTIONS: [&str; 3] = ["nosuid", "noexec", "nodev"];
/// Mode of tmpfs mounts.
const TMPFS_MODE: u32 = 0o1777;

/// What tells about the host rather than about the container.
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What changes the host.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Controllers of cgroup version 1 that programs read their limits from.
const VISIBLE_CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"];

/// Why a specification cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("no command specified: neither the service nor the image names one")]
    NoCommand,
    #[error("unknown ulimit {0:?}: use a name like nofile, nproc or core")]
    Ulimit(String),
    #[error("the mount target {0:?} is not an absolute path")]
    Target(String),
    #[error("{0:?} cannot be mounted because it is inside /proc, which is the kernel's: choose another target")]
    InsideProc(String),
    #[error("the working directory {0:?} is not an absolute path")]
    WorkingDir(String),
    #[error("the device {0:?} is not written as /dev/x[:/dev/y[:rwm]]")]
    Device(String),
}

/// What was found out about the host and the image.
pub(crate) struct Facts<'a> {
    pub(crate) user: &'a User,
    pub(crate) caps: CapSet,
    pub(crate) layout: &'a Layout,
    pub(crate) cgroup: &'a str,
    pub(crate) devices: &'a [Device],
    /// Whether the kernel counts swap.
    pub(crate) counts_swap: bool,
    /// The AppArmor profile; `None`: none.
    pub(crate) apparmor: Option<String>,
    /// The program that is the first process when the user wants one.
    pub(crate) init: &'a Path,
    /// Where the maker of a container that shares another's IPC namespace has the other's /dev/shm.
    pub(crate) shm: &'a Path,
}

/// A device that the container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// On the node.
    pub(crate) host: String,
    /// In the container.
    pub(crate) path: String,
    /// `c` or `b`
    pub(crate) kind: char,
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) mode: u32,
    pub(crate) access: String,
}

impl Device {
    /// libcontainer makes no nodes elsewhere; there the node's own is mounted.
    fn is_in_dev(&self) -> bool {
        Path::new(&self.path).starts_with("/dev")
    }

    fn as_bind(&self) -> BindMount {
        let (source, target) = (PathBuf::from(&self.host), self.path.clone());
        // The node's own file: its mode and owner are not the container's. Whether it may be written to is the group's affair.
        BindMount { source, target, read_only: true, propagation: String::new() }
    }
}

/// The `config.json` of a bundle.
pub(crate) fn build(plan: &ContainerPlan<'_>, facts: &Facts<'_>) -> Result<Value, SpecError> {
    let container = &plan.spec.container;
    let hostname = hostname(plan);
    let options = &plan.options;
    let mut namespaces: Vec<Value> = [("pid", &options.pid), ("ipc", &options.ipc), ("uts", &options.uts)]
        .into_iter()
        .filter_map(|(kind, sharing)| namespace(kind, sharing))
        .collect();
    namespaces.push(json!({"type": "mount"}));
    if let Some(users) = &plan.users {
        namespaces.push(json!({"type": "user", "path": users.path}));
    }
    match options.joined.as_ref().or(plan.netns.as_ref()) {
        Some(path) => namespaces.push(json!({"type": "network", "path": path})),
        None if plan.host_network => {}
        None => namespaces.push(json!({"type": "network"})),
    }
    if facts.layout.is_v2() {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": facts.cgroup,
        "resources": resources(plan.spec.limits, &options.limits, facts, container.privileged),
        "sysctl": sysctls(container, plan.host_network || options.joined.is_some(), plan.users.is_some()),
    });
    if plan.shares_mounts() {
        linux["rootfsPropagation"] = json!("shared");
    }
    if !facts.devices.is_empty() {
        linux["devices"] = facts.devices.iter().filter(|device| device.is_in_dev()).map(node).collect();
    }
    if !container.privileged && !options.paths_shown {
        linux["maskedPaths"] = json!(MASKED_PATHS);
        linux["readonlyPaths"] = json!(READONLY_PATHS);
    }
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "root": {"path": plan.rootfs, "readonly": container.read_only},
        "process": process(plan, facts, &hostname)?,
        "mounts": mounts(plan, facts)?,
        "linux": linux,
    });
    // Nobody gives the host another name.
    if options.uts != Sharing::Host {
        spec["hostname"] = json!(hostname);
    }
    Ok(spec)
}

fn namespace(kind: &str, sharing: &Sharing) -> Option<Value> {
    match sharing {
        Sharing::Own => Some(json!({"type": kind})),
        Sharing::Host => None,
        Sharing::Other(path) => Some(json!({"type": kind, "path": path})),
    }
}

/// The service's own, else the first 12 digits of the container's id.
pub(crate) fn hostname(plan: &ContainerPlan<'_>) -> String {
    match plan.spec.container.hostname.as_str() {
        "" => plan.container_id.chars().take(12).collect(),
        name => name.to_owned(),
    }
}

/// Where the program starts.
pub(crate) fn working_dir(container: &ContainerSpec, image: &ImageDefaults) -> Result<String, SpecError> {
    let dir = [&container.dir, &image.working_dir].into_iter().find(|dir| !dir.is_empty()).map_or("/", String::as_str);
    if dir.starts_with('/') { Ok(dir.to_owned()) } else { Err(SpecError::WorkingDir(dir.to_owned())) }
}

/// The five sets as the specification has them: the wanted ones and what the executor needs until it drops it.
pub(crate) fn capabilities(wanted: CapSet) -> Value {
    let names = wanted.with(&crate::shim::NEEDED_CAPS).names();
    let none: [&str; 0] = [];
    json!({"bounding": names, "effective": names, "permitted": names, "inheritable": none, "ambient": none})
}

/// The user as the specification has it.
pub(crate) fn user_value(user: &User) -> Value {
    json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups, "umask": 0o022})
}

/// `base` with the variables of `over` set (`NAME=value`) or taken away (`NAME`).
pub(crate) fn merge_env(base: Vec<String>, over: &[String]) -> Vec<String> {
    let name = |var: &str| var.split('=').next().unwrap_or_default().to_owned();
    let mut env = base;
    for var in over {
        let same = env.iter().position(|old| name(old) == name(var));
        match (same, var.contains('=')) {
            (Some(at), true) => env[at].clone_from(var),
            (Some(at), false) => drop(env.remove(at)),
            (None, true) => env.push(var.clone()),
            (None, false) => {}
        }
    }
    env
}

fn process(plan: &ContainerPlan<'_>, facts: &Facts<'_>, hostname: &str) -> Result<Value, SpecError> {
    let container = &plan.spec.container;
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}"), format!("HOME={}", facts.user.home)];
    if container.tty {
        env.push("TERM=xterm".to_owned());
    }
    let env = merge_env(merge_env(env, &plan.image.env), &container.env);
    let args = with_init(container, args(container, &plan.image)?);
    let mut process = json!({
        "terminal": container.tty,
        "user": user_value(facts.user),
        "args": args,
        "env": env,
        "cwd": working_dir(container, &plan.image)?,
        "capabilities": capabilities(facts.caps),
        "rlimits": container.ulimits.iter().map(rlimit).collect::<Result<Vec<_>, _>>()?,
        "oomScoreAdj": container.oom_score_adj,
    });
    if plan.options.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    if let Some(profile) = &facts.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    Ok(process)
}

fn with_init(container: &ContainerSpec, args: Vec<String>) -> Vec<String> {
    if container.init != Some(true) {
        return args;
    }
    [init::TARGET.to_owned(), "--".to_owned()].into_iter().chain(args).collect()
}

/// A service's command replaces the image's entrypoint, and with it the image's arguments.
fn args(container: &ContainerSpec, image: &ImageDefaults) -> Result<Vec<String>, SpecError> {
    let (entrypoint, args) = container.invocation(&image.entrypoint, &image.cmd);
    let all: Vec<String> = entrypoint.iter().chain(args).cloned().collect();
    if all.is_empty() { Err(SpecError::NoCommand) } else { Ok(all) }
}

fn rlimit(ulimit: &Ulimit) -> Result<Value, SpecError> {
    if !is_ulimit(&ulimit.name) {
        return Err(SpecError::Ulimit(ulimit.name.clone()));
    }
    // -1 is "unlimited", the largest number.
    let limit = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    Ok(json!({
        "type": format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase()),
        "soft": limit(ulimit.soft),
        "hard": limit(ulimit.hard),
    }))
}

fn resources(limits: ResourceLimits, more: &MoreLimits, facts: &Facts<'_>, privileged: bool) -> Value {
    let rules = facts.devices.iter().map(
        |d| json!({"allow": true, "type": d.kind.to_string(), "major": d.major, "minor": d.minor, "access": d.access}),
    );
    let base = json!({"allow": privileged, "access": "rwm"});
    let rules: Vec<Value> = [base].into_iter().chain(rules).collect();
    let mut resources = json!({"devices": rules});
    if let Some(memory) = memory(limits.memory_bytes, more, facts.counts_swap) {
        resources["memory"] = memory;
    }
    let mut cpu = serde_json::Map::new();
    if limits.nano_cpus > 0 {
        let share = cpu_share(limits.nano_cpus);
        cpu.insert("quota".to_owned(), json!(share.quota_us));
        cpu.insert("period".to_owned(), json!(share.period_us));
    }
    if more.cpu_shares > 0 {
        cpu.insert("shares".to_owned(), json!(more.cpu_shares));
    }
    for (key, set) in [("cpus", &more.cpuset_cpus), ("mems", &more.cpuset_mems)] {
        if !set.is_empty() {
            cpu.insert(key.to_owned(), json!(set));
        }
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if limits.pids > 0 {
        resources["pids"] = json!({"limit": limits.pids});
    }
    resources
}

/// So much of every so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CpuShare {
    pub(super) quota_us: u64,
    pub(super) period_us: u64,
}

/// The kernel takes no quota under a millisecond: a smaller part of a processor is one of a longer time.
pub(super) fn cpu_share(nano_cpus: u64) -> CpuShare {
    let quota_us = |period_us: u64| nano_cpus.saturating_mul(period_us) / NANOS_PER_CPU;
    let is_small = nano_cpus > 0 && quota_us(CPU_PERIOD_US) < MIN_CPU_QUOTA_US;
    let period_us = if is_small { MAX_CPU_PERIOD_US } else { CPU_PERIOD_US };
    CpuShare { quota_us: quota_us(period_us).max(MIN_CPU_QUOTA_US), period_us }
}

/// Swap without a limit would make that of memory one of speed only: with Docker, and here, as much swap as memory.
fn memory(limit_bytes: u64, more: &MoreLimits, counts_swap: bool) -> Option<Value> {
    let mut memory = serde_json::Map::new();
    if limit_bytes > 0 {
        memory.insert("limit".to_owned(), json!(limit_bytes));
    }
    let swap = match more.memory_swap_bytes {
        0 if limit_bytes > 0 => i64::try_from(limit_bytes.saturating_mul(2)).unwrap_or(i64::MAX),
        given => given,
    };
    if swap != 0 && counts_swap {
        memory.insert("swap".to_owned(), json!(swap));
    }
    if more.memory_reservation_bytes > 0 {
        memory.insert("reservation".to_owned(), json!(more.memory_reservation_bytes));
    }
    (!memory.is_empty()).then_some(Value::Object(memory))
}

/// Ports below 1024 and `ping` need no privilege in a network of one's own, which are Docker's defaults. And where the network
/// between nodes carries less than their links say and drops what is larger, TCP finds out instead of hanging for ever.
fn sysctls(container: &ContainerSpec, others_network: bool, remapped: bool) -> Value {
    let defaults = [
        ("net.ipv4.ip_unprivileged_port_start", "0"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
        ("net.ipv4.tcp_mtu_probing", "1"),
    ];
    // The range names groups that remapped users do not have.
    let usable = |(key, _): &(&str, &str)| !(remapped && *key == "net.ipv4.ping_group_range");
    let mut all: serde_json::Map<String, Value> = defaults
        .into_iter()
        .filter(|_| !others_network)
        .filter(usable)
        .map(|(k, v)| (k.to_owned(), json!(v)))
        .collect();
    all.extend(container.sysctls.iter().map(|(k, v)| (k.clone(), json!(v))));
    Value::Object(all)
}

fn node(device: &Device) -> Value {
    json!({
        "path": device.path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
        "fileMode": device.mode, "uid": 0, "gid": 0,
    })
}

fn mounts(plan: &ContainerPlan<'_>, facts: &Facts<'_>) -> Result<Vec<Value>, SpecError> {
    let container = &plan.spec.container;
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let read = if container.privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", read]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    all.push(shm(&plan.options, facts.shm));
    all.extend(cgroup_mounts(facts, read));
    let binds = plan.binds.iter().map(|bind| (bind.target.clone(), bind_mount(bind)));
    let options = &plan.options.tmpfs;
    let own = container.mounts.iter().filter_map(|m| own_mount(m, options).map(|value| (m.target.clone(), value)));
    let elsewhere = facts.devices.iter().filter(|device| !device.is_in_dev());
    let nodes = elsewhere.map(|device| (device.path.clone(), bind_mount(&device.as_bind())));
    let mut wanted: Vec<(String, Value)> = binds.chain(own).chain(nodes).collect();
    if container.init == Some(true) {
        wanted.push((init::TARGET.to_owned(), bind_mount(&init_mount(facts.init))));
    }
    if let Some((target, _)) = wanted.iter().find(|(target, _)| !target.starts_with('/')) {
        return Err(SpecError::Target(target.clone()));
    }
    if let Some((target, _)) = wanted.iter().find(|(target, _)| proc::is_inside(target)) {
        return Err(SpecError::InsideProc(target.clone()));
    }
    // What lies deeper comes later, or it would be covered.
    wanted.sort_by_key(|(target, _)| target.split('/').filter(|part| !part.is_empty()).count());
    all.extend(wanted.into_iter().map(|(_, value)| value));
    Ok(all)
}

/// Goes with the IPC namespace: POSIX keeps its semaphores and shared memory there.
fn shm(options: &HostOptions, of_other: &Path) -> Value {
    let shared = match options.ipc {
        Sharing::Own => None,
        Sharing::Host => Some(Path::new("/dev/shm")),
        Sharing::Other(_) => Some(of_other),
    };
    if let Some(source) = shared {
        return json!({"destination": "/dev/shm", "type": "bind", "source": source, "options": ["rbind", "rprivate"]});
    }
    let bytes = if options.shm_bytes == 0 { SHM_BYTES } else { options.shm_bytes };
    let size = format!("size={}k", bytes.div_ceil(1024));
    let all: Vec<&str> = TMPFS_OPTIONS.into_iter().chain(["mode=1777", size.as_str()]).collect();
    json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": all})
}

fn init_mount(program: &Path) -> BindMount {
    let (source, target) = (program.to_owned(), init::TARGET.to_owned());
    BindMount { source, target, read_only: true, propagation: String::new() }
}

/// Version 1 by hand: libcontainer would mount every hierarchy, and writable.
fn cgroup_mounts(facts: &Facts<'_>, read: &str) -> Vec<Value> {
    let target = "/sys/fs/cgroup";
    let Layout::V1(hierarchies) = facts.layout else {
        return vec![
            json!({"destination": target, "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", read]}),
        ];
    };
    let tmpfs = json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "nodev", "mode=755", "size=64k"]});
    let visible = hierarchies.iter().filter(|h| VISIBLE_CONTROLLERS.iter().any(|name| h.has(name)));
    let binds = visible.map(|hierarchy| {
        let name = hierarchy.mount.file_name().unwrap_or_default().to_string_lossy();
        let source = hierarchy.mount.join(facts.cgroup.trim_start_matches('/'));
        json!({"destination": format!("{target}/{name}"), "type": "bind", "source": source, "options": ["bind", "nosuid", "noexec", "nodev", read]})
    });
    [tmpfs].into_iter().chain(binds).collect()
}

fn bind_mount(bind: &BindMount) -> Value {
    let options = bind_options(bind.read_only, &bind.propagation, None);
    json!({"destination": bind.target, "type": "bind", "source": bind.source, "options": options})
}

/// Read-only is all of a bind, as with Docker: also what is mounted below it.
fn bind_options(read_only: bool, propagation: &str, recursive: Option<BindRecursive>) -> [&str; 3] {
    let (bind, read) = match recursive {
        Some(BindRecursive::Disabled) => ("bind", "ro"),
        Some(BindRecursive::Writable) => ("rbind", "ro"),
        Some(BindRecursive::Readonly) | None => ("rbind", "rro"),
    };
    let propagation = if propagation.is_empty() { "rprivate" } else { propagation };
    [bind, propagation, if read_only { read } else { "rw" }]
}

/// Volumes come as binds from the caller, who knows where they are.
fn own_mount(mount: &Mount, tmpfs: &BTreeMap<String, Vec<String>>) -> Option<Value> {
    match mount.kind {
        MountKind::Volume => None,
        MountKind::Bind => {
            let options = bind_options(mount.read_only, &mount.propagation, mount.bind_recursive);
            Some(json!({"destination": mount.target, "type": "bind", "source": mount.source, "options": options}))
        }
        MountKind::Tmpfs => {
            if let Some(given) = tmpfs.get(&mount.target) {
                return Some(tmpfs_mount(&mount.target, given));
            }
            let mode = if mount.tmpfs_mode == 0 { TMPFS_MODE } else { mount.tmpfs_mode };
            let mut options: Vec<String> = TMPFS_OPTIONS.map(str::to_owned).into();
            options.push(format!("mode={mode:o}"));
            if mount.tmpfs_size_bytes > 0 {
                options.push(format!("size={}", mount.tmpfs_size_bytes));
            }
            if mount.read_only {
                options.push("ro".to_owned());
            }
            Some(json!({"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options}))
        }
    }
}

/// The user's options over the usual ones: `exec` takes `noexec` away.
fn tmpfs_mount(target: &str, given: &[String]) -> Value {
    let opposed = |usual: &str| given.iter().any(|option| usual.strip_prefix("no") == Some(option));
    let has_mode = given.iter().any(|option| option.starts_with("mode="));
    let usual = TMPFS_OPTIONS.into_iter().filter(|usual| !opposed(usual)).map(str::to_owned);
    let mode = (!has_mode).then(|| format!("mode={TMPFS_MODE:o}"));
    // What is the default anyway needs no word, and some words no kernel knows.
    let needless = ["defaults", "rw", "exec", "suid", "dev"];
    let given = given.iter().filter(|option| !needless.contains(&option.as_str())).cloned();
    let options: Vec<String> = usual.chain(mode).chain(given).collect();
    json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options})
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use orch_model::{TaskId, service::TaskSpec};

    use super::*;
    use crate::runtime::plan::LogFiles;

    const V1: &str = "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer";
    const V2: &str = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";

    fn make(task: &TaskSpec, mountinfo: &str, change: impl FnOnce(&mut ContainerPlan<'_>)) -> Result<Value, SpecError> {
        make_with(task, mountinfo, &[], change)
    }

    fn make_with(
        task: &TaskSpec,
        mountinfo: &str,
        devices: &[Device],
        change: impl FnOnce(&mut ContainerPlan<'_>),
    ) -> Result<Value, SpecError> {
        let mut plan = ContainerPlan {
            task_id: TaskId::from_random(1),
            container_id: "0123456789abcdef".repeat(4),
            rootfs: "/rootfs".into(),
            image: ImageDefaults { cmd: vec!["run".to_owned()], ..Default::default() },
            spec: task,
            netns: None,
            host_network: false,
            binds: Vec::new(),
            log: LogFiles::at(PathBuf::from("/log")),
            options: HostOptions::default(),
            users: None,
        };
        change(&mut plan);
        let user = User { uid: 33, gid: 33, groups: vec![33, 40], home: "/srv".to_owned() };
        let layout = Layout::parse(mountinfo);
        let facts = Facts {
            user: &user,
            caps: CapSet(1),
            layout: &layout,
            cgroup: "/orch.slice/x",
            devices,
            counts_swap: true,
            apparmor: None,
            init: Path::new("/var/lib/orch/init"),
            shm: Path::new("/run/orch/shim/x/shm"),
        };
        let spec = build(&plan, &facts)?;
        let read: oci_spec::runtime::Spec =
            serde_json::from_value(spec.clone()).expect("libcontainer could not read it");
        assert!(read.linux().is_some());
        Ok(spec)
    }

    #[test]
    fn nothing_is_mounted_inside_proc() {
        let bind = |target: &str| BindMount {
            source: "/x".into(),
            target: target.to_owned(),
            read_only: false,
            propagation: String::new(),
        };
        let refused = make(&TaskSpec::default(), V1, |plan| plan.binds = vec![bind("/proc/foo")]).unwrap_err();
        assert!(refused.to_string().starts_with("\"/proc/foo\" cannot be mounted because it is inside /proc"));
        assert!(make(&TaskSpec::default(), V1, |plan| plan.binds = vec![bind("/proc/uptime")]).is_ok());
    }

    #[test]
    fn devices_outside_dev_are_the_nodes_own() {
        let device = |path: &str| Device {
            host: "/dev/fuse".to_owned(),
            path: path.to_owned(),
            kind: 'c',
            major: 10,
            minor: 229,
            mode: 0o666,
            access: "rw".to_owned(),
        };
        for (path, is_node) in [("/dev/fuse", true), ("/dev/a/b", true), ("/srv/fuse", false), ("/device", false)] {
            let spec = make_with(&TaskSpec::default(), V1, &[device(path)], |_| {}).unwrap();
            let made = spec["linux"]["devices"].as_array().unwrap().iter().any(|node| node["path"] == path);
            let mounts = spec["mounts"].as_array().unwrap();
            let mounted = mounts.iter().any(|mount| mount["destination"] == path && mount["source"] == "/dev/fuse");
            assert_eq!((made, mounted), (is_node, !is_node), "{path}");
            assert_eq!(spec["linux"]["resources"]["devices"][1]["major"], 10, "{path} is not allowed");
        }
    }

    #[test]
    fn a_small_part_of_a_processor_is_one_of_a_longer_time() {
        for (nano_cpus, quota_us, period_us) in [
            (1_500_000_000, 150_000, 100_000),
            (10_000_000, 1000, 100_000),
            (9_000_000, 9000, 1_000_000),
            (1_000_000, 1000, 1_000_000),
        ] {
            assert_eq!(cpu_share(nano_cpus), CpuShare { quota_us, period_us }, "{nano_cpus}");
        }
    }

    #[test]
    fn a_plain_container() {
        let limits = ResourceLimits { nano_cpus: 1_500_000_000, memory_bytes: 1 << 20, pids: 9 };
        let task = TaskSpec { limits, ..Default::default() };
        let spec = make(&task, V1, |plan| plan.netns = Some("/run/orch/netns/x".into())).unwrap();
        let process = &spec["process"];
        assert_eq!(process["args"], json!(["run"]));
        assert_eq!(process["cwd"], "/");
        assert_eq!(process["env"], json!([DEFAULT_PATH, "HOSTNAME=0123456789ab", "HOME=/srv"]));
        assert_eq!(process["user"], json!({"uid": 33, "gid": 33, "additionalGids": [33, 40], "umask": 18}));
        assert_eq!(process["capabilities"]["effective"], json!(["CAP_CHOWN", "CAP_SETPCAP", "CAP_SYS_ADMIN"]));
        assert_eq!(process["capabilities"]["inheritable"], json!([]));
        assert_eq!(process["capabilities"]["ambient"], json!([]));
        assert_eq!(process.get("noNewPrivileges"), None);
        assert_eq!(spec["hostname"], "0123456789ab");
        let resources = &spec["linux"]["resources"];
        assert_eq!(resources["cpu"], json!({"quota": 150_000, "period": 100_000}));
        assert_eq!(resources["memory"], json!({"limit": 1 << 20, "swap": 2 << 20}));
        assert_eq!(resources["pids"], json!({"limit": 9}));
        assert_eq!(resources["devices"], json!([{"allow": false, "access": "rwm"}]));
        let kinds: Vec<&str> =
            spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "network"]);
        assert_eq!(spec["linux"]["namespaces"][4]["path"], "/run/orch/netns/x");
        assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(spec["linux"]["sysctl"]["net.ipv4.tcp_mtu_probing"], "1");
        // Another's network is as the other has it.
        let spec = make(&task, V1, |plan| plan.options.joined = Some("/proc/7/ns/net".into())).unwrap();
        assert_eq!(spec["linux"]["namespaces"][4]["path"], "/proc/7/ns/net");
        assert_eq!(spec["linux"]["sysctl"], json!({}));
    }

    #[test]
    fn cgroups_are_shown_read_only_on_both_versions() {
        let task = TaskSpec::default();
        let shown = |mountinfo: &str| -> Vec<(String, String)> {
            let spec = make(&task, mountinfo, |_| {}).unwrap();
            let mounts = spec["mounts"].as_array().unwrap().iter();
            let cgroups = mounts
                .filter(|m| m["destination"].as_str().unwrap().starts_with("/sys/fs/cgroup/") || m["type"] == "cgroup");
            cgroups
                .map(|m| {
                    assert!(m["options"].as_array().unwrap().contains(&json!("ro")), "{m}");
                    (m["destination"].as_str().unwrap().to_owned(), m["source"].as_str().unwrap().to_owned())
                })
                .collect()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            shown(V1),
            [
                pair("/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/orch.slice/x"),
                pair("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/orch.slice/x"),
            ]
        );
        assert_eq!(shown(V2), [pair("/sys/fs/cgroup", "cgroup")]);
    }

    #[test]
    fn commands_are_composed_as_docker_does() {
        let check = |own: [&[&str]; 2], image: [&[&str]; 2], want: Result<&[&str], SpecError>| {
            let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
            let container = ContainerSpec { command: owned(own[0]), args: owned(own[1]), ..Default::default() };
            let image = ImageDefaults { entrypoint: owned(image[0]), cmd: owned(image[1]), ..Default::default() };
            assert_eq!(args(&container, &image), want.map(owned));
        };
        check([&[], &[]], [&["entry"], &["cmd"]], Ok(&["entry", "cmd"]));
        check([&[], &["arg"]], [&["entry"], &["cmd"]], Ok(&["entry", "arg"]));
        check([&["own"], &[]], [&["entry"], &["cmd"]], Ok(&["own"]));
        check([&["own"], &["arg"]], [&["entry"], &["cmd"]], Ok(&["own", "arg"]));
        check([&[], &[]], [&[], &[]], Err(SpecError::NoCommand));
        check([&[""], &["arg", "b"]], [&["entry"], &["cmd"]], Ok(&["arg", "b"]));
        check([&[""], &[]], [&["entry"], &["cmd"]], Err(SpecError::NoCommand));
        check([&["", "a"], &[]], [&["entry"], &["cmd"]], Ok(&["", "a"]));
    }

    #[test]
    fn variables_replace_and_remove() {
        let env = |vars: &[&str]| vars.iter().map(|&var| var.to_owned()).collect::<Vec<_>>();
        let merged = merge_env(env(&["PATH=/a", "X=1", "Y=2"]), &env(&["X=3", "Y", "Z=a=b", "NONE"]));
        assert_eq!(merged, ["PATH=/a", "X=3", "Z=a=b"]);
    }

    #[test]
    fn deeper_mounts_come_later_and_targets_are_absolute() {
        let task = TaskSpec::default();
        let bind = |target: &str| BindMount {
            source: "/src".into(),
            target: target.to_owned(),
            read_only: true,
            propagation: String::new(),
        };
        let spec = make(&task, V2, |plan| plan.binds = vec![bind("/a/b/c"), bind("/a"), bind("/a/b")]).unwrap();
        let binds = spec["mounts"].as_array().unwrap().iter().filter(|m| m["type"] == "bind");
        let targets: Vec<&str> = binds.map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(targets, ["/a", "/a/b", "/a/b/c"]);
        let err = make(&task, V2, |plan| plan.binds = vec![bind("a")]).unwrap_err();
        assert_eq!(err.to_string(), "the mount target \"a\" is not an absolute path");
    }

    #[test]
    fn what_a_container_mounts_appears_on_the_node_when_it_is_asked_for() {
        for (asked, want) in [("", None), ("rslave", None), ("rshared", Some("shared")), ("shared", Some("shared"))] {
            let mut task = TaskSpec::default();
            task.container.mounts = vec![Mount {
                kind: MountKind::Bind,
                source: "/src".to_owned(),
                target: "/t".to_owned(),
                propagation: asked.to_owned(),
                ..tmpfs()
            }];
            let spec = make(&task, V2, |_| {}).unwrap();
            assert_eq!(spec["linux"].get("rootfsPropagation").and_then(Value::as_str), want, "{asked}");
        }
    }

    #[test]
    fn read_only_is_all_of_a_bind_unless_it_is_said_otherwise() {
        use BindRecursive::{Disabled, Readonly, Writable};
        for (read_only, recursive, want) in [
            (false, None, ["rbind", "rslave", "rw"]),
            (true, None, ["rbind", "rslave", "rro"]),
            (false, Some(Disabled), ["bind", "rslave", "rw"]),
            (true, Some(Disabled), ["bind", "rslave", "ro"]),
            (true, Some(Writable), ["rbind", "rslave", "ro"]),
            (true, Some(Readonly), ["rbind", "rslave", "rro"]),
        ] {
            assert_eq!(bind_options(read_only, "rslave", recursive), want, "{read_only} {recursive:?}");
        }
    }

    #[test]
    fn a_privileged_container_sees_the_machine() {
        let mut task = TaskSpec::default();
        task.container.privileged = true;
        let spec = make(&task, V2, |_| {}).unwrap();
        assert_eq!(spec["linux"].get("maskedPaths"), None);
        assert_eq!(spec["linux"].get("readonlyPaths"), None);
        assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], true);
    }

    #[test]
    fn one_off_containers_have_more_options() {
        let mut task = TaskSpec::default();
        task.container.init = Some(true);
        let mount = Mount { target: "/t".to_owned(), ..tmpfs() };
        task.container.mounts = vec![mount];
        let spec = make(&task, V2, |plan| {
            let given = ["size=64m", "exec", "mode=700"].map(str::to_owned).to_vec();
            plan.options = HostOptions {
                shm_bytes: 1 << 30,
                no_new_privileges: true,
                paths_shown: true,
                pid: Sharing::Other("/proc/7/ns/pid".into()),
                uts: Sharing::Host,
                tmpfs: BTreeMap::from([("/t".to_owned(), given)]),
                limits: MoreLimits { cpu_shares: 512, cpuset_cpus: "0".to_owned(), ..Default::default() },
                ..Default::default()
            };
        })
        .unwrap();
        assert_eq!(spec["process"]["args"], json!(["/dev/init", "--", "run"]));
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        assert_eq!((spec.get("hostname"), spec["linux"].get("maskedPaths")), (None, None));
        assert_eq!(spec["linux"]["resources"]["cpu"], json!({"shares": 512, "cpus": "0"}));
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        let kinds: Vec<&str> = namespaces.iter().map(|n| n["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["pid", "ipc", "mount", "network", "cgroup"]);
        assert_eq!(namespaces[0]["path"], "/proc/7/ns/pid");
        let options = |target: &str| {
            let mounts = spec["mounts"].as_array().unwrap();
            mounts.iter().find(|m| m["destination"] == target).unwrap()["options"].clone()
        };
        assert_eq!(options("/t"), json!(["nosuid", "nodev", "size=64m", "mode=700"]));
        assert_eq!(options("/dev/shm"), json!(["nosuid", "noexec", "nodev", "mode=1777", "size=1048576k"]));
        assert_eq!(options("/dev/init"), json!(["rbind", "rprivate", "rro"]));
        for (ipc, source) in [
            (Sharing::Own, "shm"),
            (Sharing::Host, "/dev/shm"),
            (Sharing::Other("/proc/7/ns/ipc".into()), "/run/orch/shim/x/shm"),
        ] {
            let spec = make(&task, V2, |plan| plan.options.ipc = ipc).unwrap();
            let mounts = spec["mounts"].as_array().unwrap();
            assert_eq!(mounts.iter().find(|m| m["destination"] == "/dev/shm").unwrap()["source"], source);
        }
    }

    fn tmpfs() -> Mount {
        Mount { kind: MountKind::Tmpfs, ..Mount::default() }
    }

    #[test]
    fn ulimits_have_known_names() {
        let ulimit = |name: &str, soft| Ulimit { name: name.to_owned(), soft, hard: -1 };
        let want = json!({"type": "RLIMIT_NOFILE", "soft": 5, "hard": u64::MAX});
        assert_eq!(rlimit(&ulimit("nofile", 5)), Ok(want));
        assert_eq!(rlimit(&ulimit("files", 5)), Err(SpecError::Ulimit("files".to_owned())));
    }
}
