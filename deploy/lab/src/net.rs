//! The lab's network: a bridge in the switch, a cable to each host, and cut connections.

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::{
    cgroup::Cgroups,
    host,
    registry::{CLIENT, Host, Lab, LabsLock, PREFIX_LEN},
};

/// A host's end of its cable.
const INTERFACE: &str = "eth0";

/// Makes the bridge in the switch that `holder` keeps.
pub(crate) fn make_switch(holder: i32) -> Result<()> {
    ip_batch(holder, "link set lo up\nlink add br0 type bridge\nlink set br0 up\n").context("cannot make the switch")
}

/// Connects the host that `holder` keeps to the switch.
pub(crate) fn plug_in(host: &Host<'_>, switch: i32, holder: i32) -> Result<()> {
    let (port, address) = (host.port(), host.address());
    // Its other end vanished with the host's old namespace; the kernel may be still at it.
    ip_batch_best_effort(switch, &format!("link del {port}\n"));
    let cable = format!("link add {port} netns {switch} type veth peer name {INTERFACE} netns {holder}\n");
    ip_batch(switch, &cable).with_context(|| format!("cannot make the cable of {}", host.name))?;
    ip_batch(switch, &format!("link set {port} master br0\nlink set {port} up\n"))?;
    let mut inside = format!(
        "link set lo up\nlink set {INTERFACE} address {}\naddr add {address}/{PREFIX_LEN} dev {INTERFACE}\n\
         link set {INTERFACE} up\n",
        host.mac_address()
    );
    if host.name != CLIENT {
        inside.push_str(&format!("route add default via {}\n", host.lab.host(CLIENT)?.address()));
    }
    ip_batch(holder, &inside).with_context(|| format!("cannot set the address of {}", host.name))
}

/// Pulls the host's cable, so that nobody hears how it dies. The switch may be gone already.
pub(crate) fn unplug(host: &Host<'_>, cgroups: &Cgroups) {
    if let Some(switch) = host::holder(&host.lab.switch(), cgroups) {
        ip_batch_best_effort(switch, &format!("link set {} down\n", host.port()));
    }
}

/// `orch lab partition A B`; one-way: A is not heard by B any more, B by A still is
pub(crate) fn partition(lab: &str, a: &str, b: &str, one_way: bool) -> Result<()> {
    let _lock = LabsLock::take()?;
    let mut lab = Lab::load(lab)?;
    let (a, b) = (lab.host(a)?.name, lab.host(b)?.name);
    if a == b {
        bail!("a host cannot be cut off from itself; name two");
    }
    let cuts = if one_way { vec![(a, b)] } else { vec![(a.clone(), b.clone()), (b, a)] };
    for cut in cuts {
        if !lab.partitions.contains(&cut) {
            lab.partitions.push(cut);
        }
    }
    apply_partitions(&lab)?;
    lab.save()
}

/// `orch lab heal`
pub(crate) fn heal(lab: &str) -> Result<()> {
    let _lock = LabsLock::take()?;
    let mut lab = Lab::load(lab)?;
    lab.partitions.clear();
    apply_partitions(&lab)?;
    lab.save()
}

/// Makes the switch drop what goes from the first to the second host of each pair.
fn apply_partitions(lab: &Lab) -> Result<()> {
    let cgroups = Cgroups::find()?;
    let switch = host::holder(&lab.switch(), &cgroups)
        .with_context(|| format!("the switch is gone; `orch lab down --name {}` and up again", lab.name))?;
    let rules = partition_rules(lab)?;
    run_in(switch, "nft", &["-f", "-"], &rules).context("cannot change which hosts hear each other")
}

/// The whole ruleset of the switch, so that applying it twice is the same as once.
fn partition_rules(lab: &Lab) -> Result<String> {
    let mut rules = String::from("add table bridge orch_lab\ndelete table bridge orch_lab\n");
    if lab.partitions.is_empty() {
        return Ok(rules);
    }
    rules.push_str("table bridge orch_lab {\n  chain forward {\n    type filter hook forward priority 0;\n");
    for (a, b) in &lab.partitions {
        let (from, to) = (lab.host(a)?.port(), lab.host(b)?.port());
        rules.push_str(&format!("    iifname \"{from}\" oifname \"{to}\" drop\n"));
    }
    rules.push_str("  }\n}\n");
    Ok(rules)
}

fn ip_batch(holder: i32, commands: &str) -> Result<()> {
    run_in(holder, "ip", &["-batch", "-"], commands)
}

fn ip_batch_best_effort(holder: i32, commands: &str) {
    drop(ip_batch(holder, commands));
}

/// Runs a program in the network namespace that `holder` keeps; in that one only, so that it sees the machine's files.
#[allow(unsafe_code)]
fn run_in(holder: i32, program: &str, args: &[&str], stdin: &str) -> Result<()> {
    let namespace = fs::File::open(format!("/proc/{holder}/ns/net")).context("the host's network namespace is gone")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: setns is one system call on a descriptor that lives until the child has started; nothing is allocated.
    unsafe { command.pre_exec(move || setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(Into::into)) };
    let child = command.spawn();
    let mut child = child.with_context(|| format!("cannot run {program}; is its package installed?"))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(stdin.as_bytes()).with_context(|| format!("cannot talk to {program}"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_drops_one_direction_and_healing_drops_nothing() {
        let mut lab = Lab {
            name: "t".into(),
            subnet: 100,
            nodes: 2,
            managers: 1,
            program: "/orch".into(),
            partitions: vec![("n1".into(), "client".into())],
        };
        let rules = partition_rules(&lab).unwrap();
        assert!(rules.contains(r#"iifname "p-n1" oifname "p-client" drop"#), "{rules}");
        assert!(!rules.contains(r#"iifname "p-client""#), "{rules}");
        lab.partitions.clear();
        assert!(!partition_rules(&lab).unwrap().contains("drop"));
    }
}
