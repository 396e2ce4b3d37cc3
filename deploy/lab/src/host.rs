//! A host's namespaces: making them, and the process that keeps them.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{pause, sethostname, setsid},
};

use crate::{
    cgroup::Cgroups,
    registry::{CLIENT, Host, Lab},
};

/// What the holder says when the namespaces are ready.
const READY: &[u8] = b"ready";
/// Where a node finds its own folders.
pub(crate) const LIB: &str = "/var/lib/orch";
pub(crate) const RUN: &str = "/run/orch";
pub(crate) const ETC: &str = "/etc/orch";
/// Its presence means "systemd runs here", and a node has none.
const SYSTEMD_SIGN: &str = "/run/systemd/system";

/// The process that keeps the host's namespaces; `None` when its power is off.
pub(crate) fn holder(host: &Host<'_>, cgroups: &Cgroups) -> Option<i32> {
    cgroups.processes(&host.holder_cgroup()).into_iter().next()
}

/// Makes the host's folders, cgroups and namespaces; its cable comes later.
pub(crate) fn power_on(host: &Host<'_>, cgroups: &Cgroups) -> Result<i32> {
    for group in [host.holder_cgroup(), host.processes_cgroup(), host.containers_cgroup()] {
        cgroups.create(&group)?;
    }
    make_folders(host)?;
    let log_path = host.dir().join("holder.log");
    let log = fs::File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut command = Command::new(&host.lab.program);
    command.args(["lab", "hold", "--name", &host.lab.name, &host.name]);
    let child = command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
    let mut child = child.with_context(|| format!("cannot start {}", host.lab.program.display()))?;
    let mut said = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut said).context("cannot hear from the host's holder")?;
    }
    if said != READY {
        let log = fs::read_to_string(&log_path).unwrap_or_default();
        bail!("the namespaces of {} cannot be made: {}", host.name, log.trim());
    }
    i32::try_from(child.id()).context("a process id is out of range")
}

/// `orch lab hold`: becomes the host and stays until it is killed.
pub(crate) fn hold(lab: &str, name: &str) -> Result<()> {
    let lab = Lab::load(lab)?;
    let host = if name == lab.switch().name { lab.switch() } else { lab.host(name)? };
    Cgroups::find()?.enter(&host.holder_cgroup())?;
    setsid().context("cannot leave the caller's session")?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .context("cannot make namespaces")?;
    sethostname(&host.name).context("cannot set the hostname")?;
    if host.name != lab.switch().name {
        arrange_files(&host)?;
    }
    if host.name == CLIENT {
        // Everyone's way out leads here; forwarding makes it say "unreachable" instead of nothing.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot turn on forwarding")?;
        // Nobody has to serve names here: who asks hears so at once, however often.
        fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0").context("cannot set the limit of refusals")?;
    }
    let mut stdout = std::io::stdout();
    stdout.write_all(READY).and_then(|()| stdout.flush()).context("cannot report")?;
    // The caller waits for the end of this pipe.
    nix::unistd::dup2_stdout(fs::File::open("/dev/null").context("cannot open /dev/null")?)?;
    loop {
        pause();
    }
}

/// Starts `program` on the host as a process of its own, with its output in `log`.
#[allow(unsafe_code)]
pub(crate) fn spawn_detached(host: &Host<'_>, args: &[&str], log: &Path) -> Result<()> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let out = fs::OpenOptions::new().create(true).append(true).open(log);
    let out = out.with_context(|| format!("cannot open {}", log.display()))?;
    let program = &host.lab.program;
    let mut command = Command::new(program);
    command.args(["lab", "exec", "--name", &host.lab.name, &host.name, "--"]).arg(program).args(args);
    command.current_dir("/").stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    // SAFETY: setsid is one system call and allocates nothing.
    unsafe { command.pre_exec(|| setsid().map(drop).map_err(Into::into)) };
    command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(())
}

fn make_folders(host: &Host<'_>) -> Result<()> {
    let mut dirs = vec![host.data_dir(), host.etc_dir()];
    dirs.extend([LIB, RUN, ETC].map(PathBuf::from));
    for dir in dirs {
        fs::create_dir_all(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    }
    let resolver = host.lab.host(CLIENT)?.address();
    write(&host.dir().join("resolv.conf"), &format!("nameserver {resolver}\noptions timeout:1 attempts:2\n"))?;
    write(&host.dir().join("hostname"), &format!("{}\n", host.name))?;
    let config = host.etc_dir().join("orch.toml");
    if !config.exists() {
        write(&config, &format!("cgroup-parent = \"/{}\"\n", host.containers_cgroup()))?;
    }
    Ok(())
}

/// Puts the host's own folders and files in the places where programs look. Only this mount namespace sees it.
fn arrange_files(host: &Host<'_>) -> Result<()> {
    let no_data = None::<&str>;
    // The machine's later mounts show up here, ours never there.
    mount(no_data, "/", no_data, MsFlags::MS_REC | MsFlags::MS_SLAVE, no_data)
        .context("cannot separate the host's mounts from the machine's")?;
    bind(&host.data_dir(), LIB)?;
    bind(&host.etc_dir(), ETC)?;
    tmpfs(RUN)?;
    if Path::new(SYSTEMD_SIGN).is_dir() {
        tmpfs("/run/systemd")?;
    }
    for (own, place) in [("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")] {
        if Path::new(place).exists() {
            bind(&host.dir().join(own), place)?;
        }
    }
    Ok(())
}

fn bind(source: &Path, target: &str) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot bind {} to {target}", source.display()))
}

fn tmpfs(target: &str) -> Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))
        .with_context(|| format!("cannot mount a tmpfs at {target}"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
