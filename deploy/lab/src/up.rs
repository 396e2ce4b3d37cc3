//! `orch lab up` and `orch lab down`.

use std::{
    env, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cgroup::{Cgroups, wait_reaped},
    host, net, power,
    registry::{self, CLIENT, Lab, LabsLock, check_name, lab_cgroup},
};

const REMOVE_LIMIT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Makes the lab and does what a user would: starts the nodes, init on the first, join on the others.
pub(crate) fn up(name: &str, nodes: u8, managers: u8) -> Result<()> {
    for tool in ["ip", "nft"] {
        check_tool(tool)?;
    }
    let lab = {
        let _lock = LabsLock::take()?;
        let lab = Lab::plan(name, nodes, managers, env::current_exe().context("cannot find this program's file")?)?;
        // Remains of a lab of this name whose registry was lost.
        remove(name)?;
        lab.save()?;
        lab
    };
    let made = build(&lab).and_then(|()| form_cluster(&lab));
    if let Err(error) = made {
        keep_logs(&lab);
        down(name).context("the lab could not be removed either")?;
        return Err(error);
    }
    print_next_steps(&lab);
    Ok(())
}

/// Removes whatever there is of the lab; fine when there is nothing.
pub(crate) fn down(name: &str) -> Result<()> {
    check_name(name)?;
    let _lock = LabsLock::take()?;
    remove(name)?;
    // Somebody with a mount namespace of their own (the benchmarks) does not see the labs of others, but sees their groups. The
    // kernel takes the mounts of a folder that is removed away, in every namespace: those labs' nodes would lose their data.
    if registry::all()?.is_empty() && Cgroups::find()?.remove_if_empty("orch-lab") {
        // Where nodes saw their own folders. They stay when the machine itself has something there.
        for dir in [host::LIB, host::RUN, host::ETC] {
            drop(fs::remove_dir(dir));
        }
    }
    registry::remove_labs_dir_if_empty();
    Ok(())
}

fn remove(name: &str) -> Result<()> {
    let cgroups = Cgroups::find()?;
    let killed = cgroups.kill(&lab_cgroup(name))?;
    cgroups.remove(&lab_cgroup(name))?;
    remove_folder(&registry::dir(name))?;
    wait_reaped(&killed);
    Ok(())
}

/// The kernel takes a moment to dissolve the mount namespaces of the processes that were just killed.
fn remove_folder(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + REMOVE_LIMIT;
    loop {
        match fs::remove_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
            }
            Err(_) => sleep(POLL_INTERVAL),
        }
    }
}

fn build(lab: &Lab) -> Result<()> {
    let cgroups = Cgroups::find()?;
    let bin = lab.bin_dir();
    fs::create_dir_all(&bin)
        .and_then(|()| symlink(&lab.program, bin.join("orch")))
        .with_context(|| format!("cannot fill {}", bin.display()))?;
    println!("Making {} nodes and a client on 192.168.{}.0/24", lab.nodes, lab.subnet);
    let switch = host::power_on(&lab.switch(), &cgroups)?;
    net::make_switch(switch)?;
    for host in lab.hosts() {
        power::boot(&host, &cgroups)?;
    }
    for node in lab.node_names() {
        power::wait_ready(&lab.host(&node)?, &cgroups)?;
    }
    Ok(())
}

fn form_cluster(lab: &Lab) -> Result<()> {
    let first = lab.host("n1")?.address().to_string();
    println!("n1: orch init --advertise-addr {first}");
    orch_on(lab, "n1", &["init", "--advertise-addr", &first])?;
    let remote = format!("{first}:2377");
    for (place, node) in lab.node_names().iter().enumerate().skip(1) {
        let role = if place < usize::from(lab.managers) { "manager" } else { "worker" };
        println!("{node}: orch join --token <{role} token> {remote}");
        let token = orch_on(lab, "n1", &["join-token", "-q", role])?;
        orch_on(lab, node, &["join", "--token", token.trim(), &remote])?;
    }
    Ok(())
}

/// Runs `orch ARGS` on a node as a user would; its output.
fn orch_on(lab: &Lab, node: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(&lab.program);
    command.args(["lab", "exec", "--name", &lab.name, node, "--", "orch"]).args(args).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run {}", lab.program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`orch {}` failed on {node}: {}", args.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the nodes logged outlives a lab that did not come up.
fn keep_logs(lab: &Lab) {
    let kept = env::temp_dir().join(format!("orch-lab-{}-logs", lab.name));
    drop(fs::remove_dir_all(&kept));
    for host in lab.hosts().iter().filter(|host| host.is_node()) {
        let (from, to) = (host.data_dir().join("node/log"), kept.join(&host.name));
        for entry in fs::read_dir(&from).into_iter().flatten().flatten() {
            if let Err(error) =
                fs::create_dir_all(&to).and_then(|()| fs::copy(entry.path(), to.join(entry.file_name())))
            {
                eprintln!("cannot keep {}: {error}", entry.path().display());
            }
        }
    }
    eprintln!("The nodes' logs are in {}", kept.display());
}

fn check_tool(tool: &str) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).any(|dir| dir.join(tool).is_file());
    if !found {
        bail!("the lab needs the program `{tool}`: install the packages iproute2 and nftables");
    }
    Ok(())
}

fn print_next_steps(lab: &Lab) {
    let name = if lab.name == "lab" { String::new() } else { format!(" --name {}", lab.name) };
    println!(
        "\nThe cluster is up. Try:\n  \
         orch lab exec{name} n1 -- orch node ls\n  \
         orch lab exec{name} n1 -- orch stack deploy -c compose.yml\n  \
         orch lab exec{name} {CLIENT} -- curl http://{}:8080/\n  \
         orch lab ls{name}\n  \
         orch lab down{name}",
        lab.hosts()[0].address()
    );
}
