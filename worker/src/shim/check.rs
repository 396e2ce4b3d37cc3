//! Runs a container's health checks: processes in its namespaces and its control group, with its rights, started by the
//! [`Runner`]. This side says when, takes their output, and ends those that take too long.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, pipe2},
};

use super::{
    entry::{Entry, Process, Program},
    health::{MAX_OUTPUT_BYTES, Monitor},
    protocol::{Failure, HealthPlan, HealthRecord, HealthResult, HealthWord, to_ns},
    runner::Runner,
};
use crate::runtime::seccomp::Instruction;

/// What a check that could not be run at all returns.
const CODE_NOT_RUN: i32 = -1;
/// What a pipe holds, and its end. Whoever prints without end must not keep the shim from everything else.
const READS: usize = 65536 / MAX_OUTPUT_BYTES + 1;
const FOREVER: Duration = Duration::from_secs(3600);

/// The health checks of a running container.
pub(super) struct Checks {
    monitor: Monitor,
    subject: Subject,
    began: Instant,
    /// Made for the first check, and again when it is gone.
    runner: Option<Runner>,
    running: Option<Running>,
    /// The container stood still when it was looked at last.
    stood_still: bool,
    is_over: bool,
}

/// A check under way.
struct Running {
    output: Output,
    text: Vec<u8>,
    /// More was printed than is kept.
    is_cut: bool,
    /// Of its program, which has ended. What it started may still print: Docker waits for that.
    code: Option<i32>,
    began: Instant,
    began_ns: u64,
}

/// A pipe that a check prints to. The shim has both ends: it is told of a check's end as of any child's, and need not hear
/// a second time that the output has ended, unless somebody else has it still.
struct Output {
    ours: File,
    /// Until the check's program has ended.
    theirs: Option<OwnedFd>,
}

/// What is checked: the container's own program, as far as its rights go.
pub(super) struct Subject {
    /// The OCI `process` object of the container.
    pub(super) process: Process,
    pub(super) caps: u64,
    pub(super) filter: Option<Rc<Vec<Instruction>>>,
}

impl Checks {
    /// For a container that runs from now on.
    pub(super) fn new(plan: HealthPlan, mut subject: Subject) -> Self {
        subject.process.args.clone_from(&plan.test);
        Self {
            monitor: Monitor::new(plan),
            subject,
            began: Instant::now(),
            runner: None,
            running: None,
            stood_still: false,
            is_over: false,
        }
    }

    pub(super) fn health(&self) -> HealthWord {
        self.monitor.health()
    }

    pub(super) fn record(&self) -> HealthRecord {
        self.monitor.record()
    }

    /// Until something is to be done although nothing happened.
    pub(super) fn patience(&self) -> Duration {
        if self.is_over {
            return FOREVER;
        }
        let until = match &self.running {
            Some(running) => running.began + self.monitor.timeout(),
            None => self.began + self.monitor.due(),
        };
        until.saturating_duration_since(Instant::now())
    }

    /// What is worth a call of [`Checks::hear`] when it becomes readable.
    pub(super) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let output = self.running.as_ref().map(|running| running.output.ours.as_fd());
        output.into_iter().chain(self.runner.as_ref().and_then(Runner::socket))
    }

    /// Takes output, and complaints of the runner. Whether the health changed.
    pub(super) fn hear(&mut self) -> bool {
        let changed = self.hear_output();
        let Some(complaint) = self.runner.as_mut().and_then(Runner::complaint) else { return changed };
        let has_started = self.runner.as_ref().is_some_and(|runner| runner.check().is_some());
        // One that has started ends by itself, and is collected.
        match self.running.take_if(|_| !has_started) {
            Some(running) => self.not_run(&complaint, running.began, running.began_ns),
            None => changed,
        }
    }

    /// A check is over when its program has ended and nobody can print for it any more. Whether the health changed.
    fn hear_output(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        let (is_silent, code) = (running.read(), running.code);
        let Some(code) = code.filter(|_| is_silent) else { return false };
        let Some(running) = self.running.take() else { return false };
        self.end(code, running.said(), running.began, running.began_ns)
    }

    /// The container stands still, which says nothing of its health: what is due does not take place, and a check under way is
    /// given up.
    pub(super) fn skip(&mut self) {
        if let Some(running) = self.running.take() {
            self.abandon(&running);
        }
        self.stood_still = true;
        self.monitor.skipped(self.began.elapsed());
    }

    /// Whether the container may stand still: a check takes too long, or it did. To look each time would be a tenth of what a
    /// check costs.
    pub(super) fn may_stand_still(&self) -> bool {
        self.running.is_some() || self.stood_still
    }

    /// Ends a check's program, if it has not ended by itself. What that started goes on, as with Docker.
    fn abandon(&mut self, running: &Running) {
        if running.code.is_some() {
            return;
        }
        // With the runner, which may hang with it: the program may lie on a volume that does not answer.
        if let Some(pid) = self.runner.take().and_then(|runner| runner.check()) {
            kill_group(pid);
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.patience().is_zero()
    }

    /// What is due: starts a check, or ends one that takes too long. Whether the health changed.
    pub(super) fn tick(&mut self, entry: io::Result<&Entry>) -> bool {
        self.stood_still = false;
        if let Some(mut running) = self.running.take() {
            self.abandon(&running);
            running.read();
            let mut text = format!("Health check exceeded timeout ({})", go_duration(self.monitor.timeout()));
            if !running.text.is_empty() {
                text = format!("{text}: {}", running.said());
            }
            return self.end(CODE_NOT_RUN, text, running.began, running.began_ns);
        }
        let (began, began_ns) = (Instant::now(), now_ns());
        match self.start(entry) {
            Ok(output) => {
                self.running = Some(Running { output, text: Vec::new(), is_cut: false, code: None, began, began_ns });
                false
            }
            Err(err) => self.not_run(&Failure { message: err.to_string(), code: None }, began, began_ns),
        }
    }

    /// Whether the process is a check or their runner, and whether its end changed the health.
    pub(super) fn reaped(&mut self, pid: i32, code: i32) -> Option<bool> {
        let runner = self.runner.as_mut()?;
        if runner.reaped(pid) {
            // What it had to say waits on its socket.
            return Some(false);
        }
        runner.check().filter(|&check| check == pid)?;
        // The number may be another's by now.
        let running = self.running.as_mut().filter(|running| running.code.is_none())?;
        running.code = Some(code);
        running.output.theirs = None;
        Some(self.hear_output())
    }

    /// The container ends: there are no more checks, and the one under way says nothing. `collected` has just ended.
    pub(super) fn stop(&mut self, collected: i32) {
        if let Some(mut runner) = self.runner.take() {
            runner.reaped(collected);
        }
        self.running = None;
        self.is_over = true;
    }

    /// Orders a check, of a new runner if need be.
    fn start(&mut self, entry: io::Result<&Entry>) -> io::Result<Output> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        if self.runner.as_ref().is_some_and(|runner| runner.order(theirs.as_fd()).is_ok()) {
            return Ok(Output { ours: ours.into(), theirs: Some(theirs) });
        }
        let subject = &self.subject;
        let filter = subject.filter.as_ref().map(|filter| filter.as_slice());
        let program = Program { args: &subject.process.args, process: &subject.process, caps: subject.caps, filter };
        let runner = self.runner.insert(Runner::start(entry?, &program)?);
        runner.order(theirs.as_fd())?;
        Ok(Output { ours: ours.into(), theirs: Some(theirs) })
    }

    fn not_run(&mut self, failure: &Failure, began: Instant, start_ns: u64) -> bool {
        self.end(CODE_NOT_RUN, format!("the check cannot be run: {}", failure.message), began, start_ns)
    }

    fn end(&mut self, exit_code: i32, output: String, began: Instant, start_ns: u64) -> bool {
        let result = HealthResult { start_ns, end_ns: now_ns(), exit_code, output };
        self.monitor.ended(result, began - self.began, self.began.elapsed())
    }
}

impl Running {
    /// What is there now. Whether there will be no more.
    fn read(&mut self) -> bool {
        let mut buffer = [0; MAX_OUTPUT_BYTES];
        for _ in 0..READS {
            match self.output.ours.read(&mut buffer) {
                Ok(0) => return true,
                Ok(len) => self.take(&buffer[..len]),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        false
    }

    fn take(&mut self, printed: &[u8]) {
        let room = MAX_OUTPUT_BYTES.saturating_sub(self.text.len());
        self.is_cut |= printed.len() > room;
        self.text.extend_from_slice(&printed[..printed.len().min(room)]);
    }

    /// As Docker shows it.
    fn said(&self) -> String {
        let end = if self.is_cut { "..." } else { "" };
        format!("{}{end}", String::from_utf8_lossy(&self.text))
    }
}

/// A check with what it started. It is a child that was not collected yet: the number is its.
fn kill_group(pid: i32) {
    let pid = Pid::from_raw(pid);
    let _ = killpg(pid, Signal::SIGKILL);
    // It may not have got as far as to lead a group.
    let _ = kill(pid, Signal::SIGKILL);
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
