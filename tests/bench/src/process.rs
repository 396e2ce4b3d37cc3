//! Child processes that end with us, whatever becomes of us.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Context;

/// A daemon under test. Dropped: killed.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts it with its output in `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(log).context("cannot open a log")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        #[allow(unsafe_code)] // The only way to ask for a signal when this process dies.
        // SAFETY: the closure only makes a system call, which is allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(std::io::Error::from)
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { child })
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Resident memory.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Seconds of processor time that it has used.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.cpu_split().map(|(user, system)| user + system)
    }

    /// The same as user and system time.
    pub(crate) fn cpu_split(&self) -> anyhow::Result<(f64, f64)> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or_default();
        // In hundredths of a second.
        Ok((ticks(11) / 100.0, ticks(12) / 100.0))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
