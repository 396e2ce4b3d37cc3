//! Starting the supervisor on behalf of `orch init` and `orch join`.

use std::{
    fs,
    os::unix::{net::UnixStream, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use orch_proto::paths::Paths;
use tokio::time::sleep;

use crate::api::{Silence, is_denied};

use super::{
    daemon::{LAST_LINES, log_file, log_tail, own_program},
    files,
};

const UNIT: &str = "orch.service";
const START_LIMIT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Returns when the supervisor of this machine answers; starts it when none does, with systemd where that runs and
/// knows orch, as a process of its own otherwise.
pub(crate) async fn ensure_running(paths: &Paths) -> Result<()> {
    if answers(paths) {
        return Ok(());
    }
    let socket = paths.node_sock();
    if is_denied(&socket) {
        bail!(Silence::Denied(socket));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("orch does not run on this machine, and starting it needs root: run this command with sudo");
    }
    let mut child = if systemd_has_unit() {
        let status = Command::new("systemctl").args(["start", UNIT]).status().context("cannot run systemctl")?;
        if !status.success() {
            bail!("systemd cannot start {UNIT}: see `journalctl -u {UNIT}`");
        }
        None
    } else {
        Some(spawn_detached(paths)?)
    };
    wait_for_answer(paths, child.as_mut()).await
}

async fn wait_for_answer(paths: &Paths, mut child: Option<&mut Child>) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while !answers(paths) {
        let ended = child.as_mut().map(|child| child.try_wait()).transpose()?.flatten();
        if ended.is_some() || Instant::now() >= deadline {
            bail!(not_started(paths, child.is_none()));
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

fn not_started(paths: &Paths, by_systemd: bool) -> String {
    if by_systemd {
        return format!("orch does not start: see `journalctl -u {UNIT}`");
    }
    format!(
        "orch does not start; the end of {}:\n{}",
        log_file(paths, "node").display(),
        log_tail(paths, "node", LAST_LINES)
    )
}

fn answers(paths: &Paths) -> bool {
    UnixStream::connect(paths.node_sock()).is_ok()
}

fn systemd_has_unit() -> bool {
    Path::new("/run/systemd/system").is_dir()
        && Command::new("systemctl")
            .args(["cat", UNIT])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

/// In a session of its own, so that closing the terminal does not end it.
#[allow(unsafe_code)]
fn spawn_detached(paths: &Paths) -> Result<Child> {
    let log = log_file(paths, "node");
    if let Some(dir) = log.parent() {
        files::private_dir(dir)?;
    }
    let out = fs::OpenOptions::new().create(true).append(true).open(&log);
    let out = out.with_context(|| format!("cannot open {}", log.display()))?;
    let mut command = Command::new(own_program()?);
    command.arg("node").current_dir("/").stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    // SAFETY: setsid is one system call and allocates nothing.
    unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
    command.spawn().context("cannot start the supervisor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_it_does_not_start_is_looked_for_where_it_says_so() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let log = log_file(&paths, "node");
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::write(&log, "of another day\n").unwrap();
        assert_eq!(not_started(&paths, true), "orch does not start: see `journalctl -u orch.service`");
        assert!(not_started(&paths, false).ends_with("/node/log/node.log:\nof another day"));
    }
}
