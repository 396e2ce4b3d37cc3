//! Runs a container's health check: a process in its namespaces and its control group, with its rights, made by one
//! fork of the shim.
//!
//! What the process needs is looked up once; a check is a fork, a handful of system calls and the program's own work.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    rc::Rc,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, killpg},
    unistd::{Pid, pipe2},
};
use seccompiler::sock_filter;

use super::{
    entry::{Entry, Process, Program, Streams},
    health::{MAX_OUTPUT_BYTES, Monitor},
    protocol::{Failure, HealthPlan, HealthRecord, HealthResult, HealthWord, to_ns},
};

/// What a check that could not be run at all returns.
const CODE_NOT_RUN: i32 = -1;

/// The health checks of a running container.
pub(super) struct Checks {
    monitor: Monitor,
    subject: Subject,
    began: Instant,
    running: Option<Running>,
}

/// A check under way.
struct Running {
    pid: i32,
    /// Until it ends.
    output: Option<File>,
    text: Vec<u8>,
    began: Instant,
    began_ns: u64,
}

/// What is checked: the container's own program, as far as its rights go.
pub(super) struct Subject {
    /// The OCI `process` object of the container.
    pub(super) process: Process,
    pub(super) caps: u64,
    pub(super) filter: Option<Rc<Vec<sock_filter>>>,
}

impl Checks {
    /// For a container that runs from now on.
    pub(super) fn new(plan: HealthPlan, mut subject: Subject) -> Self {
        subject.process.args.clone_from(&plan.test);
        Self { monitor: Monitor::new(plan), subject, began: Instant::now(), running: None }
    }

    pub(super) fn health(&self) -> HealthWord {
        self.monitor.health()
    }

    pub(super) fn record(&self) -> HealthRecord {
        self.monitor.record()
    }

    /// Until something is to be done although nothing happened.
    pub(super) fn patience(&self) -> Duration {
        let until = match &self.running {
            Some(running) => running.began + self.monitor.timeout(),
            None => self.began + self.monitor.due(),
        };
        until.saturating_duration_since(Instant::now())
    }

    /// What a running check prints.
    pub(super) fn output(&self) -> Option<&File> {
        self.running.as_ref()?.output.as_ref()
    }

    pub(super) fn read_output(&mut self) {
        if let Some(running) = &mut self.running {
            running.read();
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.patience().is_zero()
    }

    /// What is due: starts a check, or ends one that takes too long. Whether the health changed.
    pub(super) fn tick(&mut self, entry: io::Result<&Entry>) -> bool {
        if let Some(running) = self.running.take() {
            // Gone already, or about to be: its end is collected like any other.
            let _ = killpg(Pid::from_raw(running.pid), Signal::SIGKILL);
            let text = format!("Health check exceeded timeout ({})", go_duration(self.monitor.timeout()));
            return self.end(CODE_NOT_RUN, text, running.began, running.began_ns);
        }
        let (began, began_ns) = (Instant::now(), now_ns());
        match self.subject.check(entry) {
            Ok((pid, output)) => {
                self.running = Some(Running { pid, output: Some(output), text: Vec::new(), began, began_ns });
                false
            }
            Err(err) => self.end(CODE_NOT_RUN, format!("the check cannot be run: {err}"), began, began_ns),
        }
    }

    /// Whether the process is a check, and whether its end changed the health.
    pub(super) fn reaped(&mut self, pid: i32, code: i32) -> Option<bool> {
        let mut running = self.running.take_if(|running| running.pid == pid)?;
        running.read();
        let text = String::from_utf8_lossy(&running.text).into_owned();
        Some(self.end(code, text, running.began, running.began_ns))
    }

    fn end(&mut self, exit_code: i32, output: String, began: Instant, start_ns: u64) -> bool {
        let result = HealthResult { start_ns, end_ns: now_ns(), exit_code, output };
        self.monitor.ended(result, began - self.began, self.began.elapsed())
    }
}

impl Running {
    /// What is there now.
    fn read(&mut self) {
        let mut buffer = [0; MAX_OUTPUT_BYTES];
        while let Some(output) = &mut self.output {
            match output.read(&mut buffer) {
                Ok(0) => self.output = None,
                Ok(len) => {
                    let room = MAX_OUTPUT_BYTES.saturating_sub(self.text.len());
                    self.text.extend_from_slice(&buffer[..len.min(room)]);
                }
                Err(_) => return,
            }
        }
    }
}

impl Subject {
    /// The process's number and its output.
    fn check(&self, entry: io::Result<&Entry>) -> io::Result<(i32, File)> {
        let entry = entry?;
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        let flags = OFlag::from_bits_retain(fcntl(&ours, FcntlArg::F_GETFL)?);
        fcntl(&ours, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let theirs = File::from(theirs);
        let null = File::open("/dev/null")?;
        let streams = Streams::Given { stdin: null.as_fd(), stdout: theirs.as_fd(), stderr: theirs.as_fd() };
        let filter = self.filter.as_ref().map(|filter| filter.as_slice());
        let program = Program { args: &self.process.args, process: &self.process, caps: self.caps, filter };
        // Said where the program would have printed.
        let failed = |failure: &Failure| {
            let _ = (&theirs).write_all(failure.message.as_bytes());
            failure.code.unwrap_or(CODE_NOT_RUN)
        };
        Ok((entry.run(&program, &streams, failed)?, ours.into()))
    }
}

/// As Go prints it: `3s`, `1m30s`, `500ms`.
fn go_duration(length: Duration) -> String {
    let (minutes, seconds) = (length.as_secs() / 60, length.as_secs() % 60);
    match (minutes, length.subsec_millis()) {
        (0, 0) => format!("{seconds}s"),
        (0, millis) if seconds == 0 => format!("{millis}ms"),
        (0, _) => format!("{}s", length.as_secs_f64()),
        (_, _) => format!("{minutes}m{seconds}s"),
    }
}

fn now_ns() -> u64 {
    to_ns(std::time::SystemTime::now())
}
