//! `orch lab kill` and `orch lab start`.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, net::UnixStream},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill as send},
    unistd::Pid,
};

use crate::{
    Target,
    cgroup::Cgroups,
    host, net,
    registry::{Host, Lab, LabsLock},
};

const POLL_INTERVAL: Duration = Duration::from_millis(20);
const DIE_LIMIT: Duration = Duration::from_secs(10);
const START_LIMIT: Duration = Duration::from_secs(30);

/// A node's daemons; what is not among them are containers and their shims.
const NODE_DAEMONS: [&str; 4] = ["node", "manager", "worker", "netd"];

impl Target {
    /// The subcommand that the daemon was started with.
    fn word(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
            Self::Netd => "netd",
            Self::Node => "node",
            Self::All => "all",
        }
    }
}

/// `orch lab kill NODE [TARGET]`
pub(crate) fn kill(lab: &str, node: &str, target: Target) -> Result<()> {
    let _lock = LabsLock::take()?;
    let lab = Lab::load(lab)?;
    let host = lab.host(node)?;
    let cgroups = Cgroups::find()?;
    if target == Target::All {
        return power_off(&host, &cgroups);
    }
    let victims = daemons(&host, &cgroups, target.word());
    if victims.is_empty() {
        bail!("no {} runs on {node}", target.word());
    }
    signal(&victims, Signal::SIGKILL)?;
    wait_gone(&host, &cgroups, target.word(), &victims)
}

/// `orch lab pause NODE [TARGET]`
pub(crate) fn pause(lab: &str, node: &str, target: Target) -> Result<()> {
    let _lock = LabsLock::take()?;
    let lab = Lab::load(lab)?;
    let host = lab.host(node)?;
    let cgroups = Cgroups::find()?;
    let words = match target {
        Target::All => &NODE_DAEMONS[..],
        Target::Manager | Target::Worker | Target::Netd | Target::Node => &[target.word()],
    };
    let found: BTreeSet<i32> = words.iter().flat_map(|word| daemons(&host, &cgroups, word)).collect();
    if found.is_empty() {
        bail!("no {} runs on {node}", target.word());
    }
    signal(&found, Signal::SIGSTOP)
}

/// `orch lab resume NODE`; nothing when nothing stands still.
pub(crate) fn resume(lab: &str, node: &str) -> Result<()> {
    let _lock = LabsLock::take()?;
    let lab = Lab::load(lab)?;
    let host = lab.host(node)?;
    let cgroups = Cgroups::find()?;
    let found: BTreeSet<i32> = NODE_DAEMONS.iter().flat_map(|word| daemons(&host, &cgroups, word)).collect();
    signal(&found, Signal::SIGCONT)
}

/// A process that has ended meanwhile needs no signal.
fn signal(processes: &BTreeSet<i32>, signal: Signal) -> Result<()> {
    for process in processes {
        match send(Pid::from_raw(*process), signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno).with_context(|| format!("cannot send {signal} to process {process}")),
        }
    }
    Ok(())
}

/// Everything of the host that a power cut would end: processes, and with them mounts, networks and namespaces.
pub(crate) fn power_off(host: &Host<'_>, cgroups: &Cgroups) -> Result<()> {
    // Processes that are killed say goodbye to their peers; those of a machine without power do not.
    net::unplug(host, cgroups);
    cgroups.kill(&host.cgroup()).with_context(|| format!("cannot cut the power of {}", host.name))?;
    cgroups.remove(&host.cgroup())
}

/// `orch lab start NODE`: whatever is missing of it; nothing when it runs.
pub(crate) fn start(lab: &str, node: &str) -> Result<()> {
    let lock = LabsLock::take()?;
    let lab = Lab::load(lab)?;
    let host = lab.host(node)?;
    let cgroups = Cgroups::find()?;
    boot(&host, &cgroups)?;
    drop(lock);
    if host.is_node() {
        wait_ready(&host, &cgroups)?;
    }
    Ok(())
}

/// Power, cable and the supervisor; does not wait for the daemons.
pub(crate) fn boot(host: &Host<'_>, cgroups: &Cgroups) -> Result<()> {
    if host::holder(host, cgroups).is_none() {
        let switch = host::holder(&host.lab.switch(), cgroups);
        let switch = switch.with_context(|| format!("the switch of lab {:?} is gone; take it down", host.lab.name))?;
        let holder = host::power_on(host, cgroups)?;
        net::plug_in(host, switch, holder)?;
    }
    if host.is_node() && !supervisor_runs(host, cgroups) {
        let log = host.data_dir().join("node/log/node.log");
        host::spawn_detached(host, &["node"], &log)?;
    }
    Ok(())
}

pub(crate) fn supervisor_runs(host: &Host<'_>, cgroups: &Cgroups) -> bool {
    !daemons(host, cgroups, Target::Node.word()).is_empty()
}

/// Until the supervisor answers and, on a member of a cluster, its daemons do.
pub(crate) fn wait_ready(host: &Host<'_>, cgroups: &Cgroups) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let missing = missing_sockets(host, cgroups);
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let logs = host.data_dir().join("node/log");
            bail!("{} does not come up: no answer from {}; see {}", host.name, missing.join(", "), logs.display());
        }
        sleep(POLL_INTERVAL);
    }
}

fn missing_sockets(host: &Host<'_>, cgroups: &Cgroups) -> Vec<&'static str> {
    let Some(holder) = host::holder(host, cgroups) else { return vec!["the node"] };
    let run = PathBuf::from(format!("/proc/{holder}/root{}", host::RUN));
    let mut wanted = vec!["node"];
    wanted.extend(expected_daemons(host));
    wanted.into_iter().filter(|name| UnixStream::connect(run.join(format!("{name}.sock"))).is_err()).collect()
}

/// The daemons that the node's membership calls for.
fn expected_daemons(host: &Host<'_>) -> Vec<&'static str> {
    match membership(host) {
        None => Vec::new(),
        Some(Membership { manager: true }) => vec!["manager", "worker", "netd"],
        Some(Membership { manager: false }) => vec!["worker", "netd"],
    }
}

/// What the node's own state file says.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Membership {
    pub(crate) manager: bool,
}

pub(crate) fn membership(host: &Host<'_>) -> Option<Membership> {
    let text = fs::read(host.data_dir().join("node/state.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The host's processes that were started as `orch WORD`.
fn daemons(host: &Host<'_>, cgroups: &Cgroups, word: &str) -> BTreeSet<i32> {
    let mut found = cgroups.processes(&host.cgroup());
    found.retain(|process| {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        is_daemon(&line, &host.lab.program, word)
    });
    found
}

/// `orch node` is the supervisor, `orch node ls` is not.
fn is_daemon(command_line: &[u8], program: &Path, word: &str) -> bool {
    let args: Vec<&[u8]> = command_line.strip_suffix(&[0]).unwrap_or(command_line).split(|byte| *byte == 0).collect();
    let [called, subcommand] = args[..] else { return false };
    Path::new(OsStr::from_bytes(called)).file_name() == program.file_name() && subcommand == word.as_bytes()
}

fn wait_gone(host: &Host<'_>, cgroups: &Cgroups, word: &str, victims: &BTreeSet<i32>) -> Result<()> {
    let deadline = Instant::now() + DIE_LIMIT;
    while !daemons(host, cgroups, word).is_disjoint(victims) {
        if Instant::now() >= deadline {
            bail!("the {word} of {} does not die", host.name);
        }
        sleep(POLL_INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_known_by_its_whole_command_line() {
        let program = Path::new("/usr/bin/orch");
        let check = |line: &[u8], word| is_daemon(line, program, word);
        assert!(check(b"/usr/bin/orch\0node\0", "node"));
        assert!(check(b"orch\0worker\0", "worker"));
        assert!(!check(b"orch\0node\0ls\0", "node"));
        assert!(!check(b"orch\0worker\0", "node"));
        assert!(!check(b"sh\0node\0", "node"));
        assert!(!check(b"", "node"));
    }
}
