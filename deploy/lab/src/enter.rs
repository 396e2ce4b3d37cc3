//! `orch lab exec`: this process moves into a host and becomes the command.

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::{cgroup::Cgroups, host, registry::Lab};

const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
/// They would lead `orch` away from the host's own folders.
const PATH_VARS: [&str; 3] = ["ORCH_ROOT_DIR", "ORCH_RUN_DIR", "ORCH_ETC_DIR"];
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns only when the command cannot be started.
pub(crate) fn exec(lab: &str, node: &str, command: &[OsString]) -> Result<ExitCode> {
    let lab = Lab::load(lab)?;
    let host = lab.host(node)?;
    let cgroups = Cgroups::find()?;
    let Some(holder) = host::holder(&host, &cgroups) else {
        bail!("{node} is off; `orch lab start --name {} {node}` brings it back", lab.name);
    };
    let folder = env::current_dir().context("the current folder is gone")?;
    cgroups.enter(&host.processes_cgroup())?;
    enter_namespaces(holder)?;
    env::set_current_dir(&folder).with_context(|| format!("{node} has no folder {}", folder.display()))?;
    Ok(become_command(command, &lab.bin_dir()))
}

/// Moves into the namespaces that `holder` keeps. The current folder becomes the root.
fn enter_namespaces(holder: i32) -> Result<()> {
    let threads = fs::read_dir("/proc/self/task").context("cannot list this process's threads")?.count();
    if threads != 1 {
        bail!("this process has {threads} threads and can therefore not change its mount namespace");
    }
    let proc = PathBuf::from(format!("/proc/{holder}/ns"));
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        // The last one: after it, paths mean something else.
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    for (name, kind) in kinds {
        let file = fs::File::open(proc.join(name)).with_context(|| format!("the host's {name} namespace is gone"))?;
        setns(file, kind).with_context(|| format!("cannot enter the host's {name} namespace"))?;
    }
    Ok(())
}

fn become_command(command: &[OsString], bin_dir: &Path) -> ExitCode {
    let [program, args @ ..] = command else {
        eprintln!("orch lab exec: no command");
        return ExitCode::from(NOT_FOUND);
    };
    let search = search_path(bin_dir);
    let Some(file) = find(program, &search) else {
        eprintln!("orch lab exec: {}: command not found", program.to_string_lossy());
        return ExitCode::from(NOT_FOUND);
    };
    let mut process = Command::new(file);
    process.arg0(program).args(args).env("PATH", &search);
    for name in PATH_VARS {
        process.env_remove(name);
    }
    let error = process.exec();
    eprintln!("orch lab exec: {}: {error}", program.to_string_lossy());
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE })
}

/// The lab's own `orch` comes first.
fn search_path(bin_dir: &Path) -> OsString {
    let mut path = bin_dir.as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()));
    path
}

fn find(program: &OsStr, search: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(program.into());
    }
    env::split_paths(search).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    let Ok(path) = CString::new(file.as_os_str().as_bytes()) else { return false };
    file.is_file() && nix::unistd::access(path.as_c_str(), nix::unistd::AccessFlags::X_OK).is_ok()
}
