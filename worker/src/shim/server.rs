//! The shim's loop: container output to the log, requests on the socket, ends of processes. One thread, one `poll`.

use std::{
    fs, io,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signalfd::SignalFd,
};
use rustix::process::{WaitOptions, WaitStatus, wait};

use super::{
    attach::{Attached, Waits},
    check::Checks,
    complain,
    container::{Instance, Output},
    log::{Lines, LogWriter, Source},
    pace::Pace,
    protocol::{
        ExecOrder, ExitRecord, Failure, Files, HealthPlan, MAX_LINE_BYTES, Message, Reply, Request, ShimConfig,
        VERSION, to_ns,
    },
    silence::Network,
    starting::{Started, Starting},
    wire,
};
use crate::signals;

/// More connections than this are refused: the worker needs one per waiter and one per executed process. Who is refused
/// may take the container for ended, so others have room where executed processes are as many as may be.
const MAX_CONNECTIONS: usize = 4 * MAX_EXECUTED;
/// Commands that run in the container at once on behalf of the worker.
const MAX_EXECUTED: usize = 1024;
/// Read at once from the container's output.
const READ_BYTES: usize = 64 * 1024;

/// What a container that a signal ended returns in a shell's eyes.
const SIGNAL_CODE_BASE: i32 = 128;

pub(super) struct Server {
    pub(super) folder: PathBuf,
    pub(super) listener: UnixListener,
    pub(super) signals: SignalFd,
    pub(super) instance: Instance,
    pub(super) log: LogWriter,
    network: Option<Network>,
    /// The worker sent a signal: what ends then was meant to end.
    signalled: bool,
    streams: Vec<Stream>,
    pace: Pace,
    attached: Attached,
    terminal: Option<OwnedFd>,
    connections: Vec<Connection>,
    /// Connections that have a process, while they are served.
    executing: usize,
    started_at: Option<SystemTime>,
    start_failure: Option<Failure>,
    /// How its health will be checked once it runs.
    health: Option<HealthPlan>,
    checks: Option<Checks>,
    buffer: Vec<u8>,
}

/// One of the container's output streams.
struct Stream {
    fd: fs::File,
    lines: Lines,
}

struct Connection {
    stream: UnixStream,
    text: Vec<u8>,
    fds: Vec<std::os::fd::OwnedFd>,
    waits: bool,
    watches_health: bool,
    /// A process on its way into the container on behalf of this connection.
    starting: Option<Starting>,
    /// The process that was executed on behalf of this connection.
    executed: Option<i32>,
}

impl Server {
    #[allow(clippy::too_many_arguments)] // The parts of one container, each made by another module.
    pub(super) fn new(
        folder: PathBuf,
        listener: UnixListener,
        signals: SignalFd,
        instance: Instance,
        output: Output,
        log: LogWriter,
        network: Option<Network>,
        config: &ShimConfig,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let terminal = output.stderr.is_none().then(|| output.stdout.try_clone()).transpose()?;
        let stdin = match (&terminal, output.stdin) {
            (Some(terminal), _) => Some(terminal.try_clone()?),
            (None, stdin) => stdin,
        };
        if let Some(stdin) = &stdin {
            set_nonblocking(stdin.as_fd())?;
        }
        // A terminal stays: whoever detached may come back.
        let attached = Attached::new(stdin, config.stdin_once && terminal.is_none());
        let stdout = Stream { fd: output.stdout.into(), lines: Lines::new(Source::Stdout, &log) };
        let stderr = output.stderr.map(|fd| Stream { fd: fd.into(), lines: Lines::new(Source::Stderr, &log) });
        let streams: Vec<Stream> = [Some(stdout), stderr].into_iter().flatten().collect();
        for stream in &streams {
            set_nonblocking(stream.fd.as_fd())?;
        }
        Ok(Self {
            folder,
            listener,
            signals,
            instance,
            log,
            network,
            signalled: false,
            streams,
            pace: Pace::new(Instant::now()),
            attached,
            terminal,
            connections: Vec::new(),
            executing: 0,
            started_at: None,
            start_failure: None,
            health: config.health.clone(),
            checks: None,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Until the container has ended and its end is on disk.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            let ready = self.wait_ready()?;
            if ready.streams.iter().any(|&ready| ready) {
                self.read_output(&ready.streams);
            }
            self.attached.serve(&ready.attached);
            if ready.starting {
                self.hear_of_starts();
            }
            if ready.connections.iter().any(|&ready| ready) {
                self.serve(&ready.connections);
            }
            if ready.listener {
                self.accept();
            }
            if ready.signals {
                while let Ok(Some(_)) = self.signals.read_signal() {}
            }
            let mut heard = false;
            if ready.check
                && let Some(checks) = &mut self.checks
            {
                heard = checks.hear();
            }
            if heard {
                self.tell_health();
            }
            self.tick();
            // Also without a signal: one may have arrived while libcontainer waited for its own children.
            if let Some(status) = self.reap() {
                return self.finish(status);
            }
        }
    }

    fn wait_ready(&self) -> io::Result<Ready> {
        let pause = self.output_pause();
        let behind = pause.is_some() || self.attached.is_behind();
        let attached = self.attached.poll_fds();
        let fds = [self.signals.as_fd(), self.listener.as_fd()]
            .into_iter()
            .chain(self.streams.iter().filter(|_| !behind).map(|stream| stream.fd.as_fd()))
            .chain(self.checks.iter().flat_map(Checks::sources))
            .chain(self.connections.iter().map(|connection| connection.stream.as_fd()));
        let mut polled: Vec<PollFd<'_>> = fds.map(|fd: BorrowedFd<'_>| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let fixed = polled.len();
        polled.extend(attached.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)));
        let starting = self.connections.iter().filter_map(|connection| connection.starting.as_ref());
        polled.extend(starting.map(|starting| PollFd::new(starting.socket(), PollFlags::POLLIN)));
        // Rounded up: waking before something is due would be in vain.
        let patience = self.checks.as_ref().map(Checks::patience).into_iter().chain(pause).min();
        let patience = patience.map(|patience| patience.as_millis() + 1);
        let timeout = patience.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
        let check_sources = self.checks.as_ref().map_or(0, |checks| checks.sources().count());
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        let mut ready = polled[..fixed].iter().map(is_ready);
        Ok(Ready {
            signals: ready.next().unwrap_or(false),
            listener: ready.next().unwrap_or(false),
            starting: polled[fixed + attached.len()..].iter().any(is_ready),
            attached: attached
                .iter()
                .zip(&polled[fixed..])
                .filter(|(_, fd)| is_ready(fd))
                .map(|((w, ..), _)| *w)
                .collect(),
            streams: ready.by_ref().take(if behind { 0 } else { self.streams.len() }).collect(),
            // All of them: what follows is the connections'.
            check: ready.by_ref().take(check_sources).filter(|&ready| ready).count() > 0,
            connections: ready.collect(),
        })
    }

    /// How long output is left where it is. Whoever is attached takes it as fast as it comes.
    fn output_pause(&self) -> Option<Duration> {
        self.pace.pause(Instant::now()).filter(|_| self.attached.is_empty())
    }

    /// Reads once from each ready stream; streams that have ended go.
    fn read_output(&mut self, ready: &[bool]) {
        let mut objects = Vec::new();
        let now = Timestamp::now();
        let mut ready = ready.iter();
        let (buffer, attached, pace) = (&mut self.buffer, &mut self.attached, &mut self.pace);
        self.streams.retain_mut(|stream| {
            let progress = match ready.next() {
                Some(true) => stream.read(buffer, now, &mut objects, attached),
                Some(false) | None => Progress::Nothing,
            };
            if let Progress::Read(bytes) = progress {
                pace.took(bytes, Instant::now());
            }
            progress != Progress::Ended
        });
        self.write_log(&objects);
    }

    fn write_log(&mut self, objects: &[u8]) {
        if let Some(err) = self.log.write_or_lose(objects) {
            complain(format_args!("output is lost: cannot write the log: {err}"));
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() < MAX_CONNECTIONS && stream.set_nonblocking(true).is_ok() {
                self.connections.push(Connection::new(stream));
            }
        }
    }

    fn serve(&mut self, ready: &[bool]) {
        let connections = std::mem::take(&mut self.connections);
        self.executing = connections.iter().filter(|connection| connection.has_process()).count();
        let served = connections.into_iter().enumerate().filter_map(|(n, mut connection)| {
            let keep = !ready.get(n).is_some_and(|&ready| ready) || self.serve_one(&mut connection).is_some();
            keep.then_some(connection)
        });
        self.connections = served.collect();
    }

    /// Nothing when the connection is to be closed.
    fn serve_one(&mut self, connection: &mut Connection) -> Option<()> {
        match wire::receive(&connection.stream, &mut self.buffer) {
            Ok((0, _)) => return None,
            Ok((len, fds)) => {
                connection.text.extend_from_slice(&self.buffer[..len]);
                connection.fds.extend(fds);
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Some(()),
            Err(_) => return None,
        }
        while let Some(end) = connection.text.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = connection.text.drain(..=end).collect();
            match serde_json::from_slice::<Message>(&line) {
                Ok(message) => self.answer(connection, message.request)?,
                Err(err) => {
                    let message = format!("this shim (protocol {VERSION}) does not understand the request: {err}");
                    connection.reply(&Reply::Failed(Failure { message, code: None }))?;
                }
            }
        }
        (connection.text.len() <= MAX_LINE_BYTES).then_some(())
    }

    fn answer(&mut self, connection: &mut Connection, request: Request) -> Option<()> {
        match request {
            Request::State => {
                let started = self.started_at.is_some() || self.start_failure.is_some();
                connection.reply(&Reply::State { pid: self.instance.pid(), started })
            }
            Request::Start => {
                let done = self.start().map_or_else(Reply::Failed, |()| Reply::Done);
                connection.reply(&done)
            }
            Request::Kill { signal } => {
                let done = self.kill(signal).map_or_else(Reply::Failed, |()| Reply::Done);
                connection.reply(&done)
            }
            Request::Wait => {
                connection.waits = true;
                Some(())
            }
            Request::Exec(order) => self.exec(connection, *order),
            Request::Health => match &self.checks {
                Some(checks) => connection.reply(&Reply::Health(checks.record())),
                None => connection.reply(&Reply::Done),
            },
            Request::Attach { stdin } => {
                let fds = std::mem::take(&mut connection.fds);
                let added = self.attached.add(fds, stdin);
                let failed = |err: io::Error| Reply::Failed(Failure { message: err.to_string(), code: None });
                connection.reply(&added.map_or_else(failed, |()| Reply::Done))
            }
            Request::Resize { rows, columns } => {
                let resized = self.terminal.as_ref().map_or(Ok(()), |terminal| resize(terminal, rows, columns));
                let failed = |err: io::Error| Reply::Failed(Failure { message: err.to_string(), code: None });
                connection.reply(&resized.map_or_else(failed, |()| Reply::Done))
            }
            Request::WatchHealth => {
                connection.watches_health = true;
                let health = self.checks.as_ref().map(Checks::health);
                health.map_or(Some(()), |health| connection.reply(&Reply::HealthIs { health }))
            }
        }
    }

    fn start(&mut self) -> Result<(), Failure> {
        if self.started_at.is_some() || self.start_failure.is_some() {
            return Err(Failure { message: "the container has been started already".to_owned(), code: None });
        }
        let started = self.instance.start();
        match &started {
            Ok(()) => {
                self.started_at = Some(SystemTime::now());
                self.check_health();
            }
            Err(failure) => self.start_failure = Some(failure.clone()),
        }
        started
    }

    /// A check that cannot even be prepared leaves the container starting, and says why to the operator.
    fn check_health(&mut self) {
        let Some(plan) = self.health.take() else { return };
        match self.instance.subject() {
            Ok(subject) => self.checks = Some(Checks::new(plan, subject)),
            Err(err) => complain(format_args!("the health cannot be checked: {err}")),
        }
    }

    /// Does what is due although nothing happened.
    fn tick(&mut self) {
        let Some(checks) = self.checks.as_mut().filter(|checks| checks.is_due()) else { return };
        if checks.may_stand_still() && self.instance.is_frozen() {
            checks.skip();
        } else if checks.tick(self.instance.entry()) {
            self.tell_health();
        }
    }

    fn tell_health(&mut self) {
        let Some(health) = self.checks.as_ref().map(Checks::health) else { return };
        self.connections.retain_mut(|connection| {
            !connection.watches_health || connection.reply(&Reply::HealthIs { health }).is_some()
        });
    }

    /// The process exists until [`Server::reap`] has seen its end, so the number cannot mean another one.
    fn kill(&mut self, signal: i32) -> Result<(), Failure> {
        self.signalled = true;
        let failure =
            |err: Errno| Failure { message: format!("cannot send signal {signal}: {}", err.desc()), code: None };
        signals::send(self.instance.pid(), signal).map_err(failure)
    }

    /// Answered when the program runs, or cannot.
    fn exec(&mut self, connection: &mut Connection, order: ExecOrder) -> Option<()> {
        let stdio = std::mem::take(&mut connection.fds);
        if self.executing >= MAX_EXECUTED {
            let message = format!(
                "{MAX_EXECUTED} executed commands run in the container already: try again when some have ended"
            );
            return connection.reply(&Reply::Failed(Failure { message, code: None }));
        }
        match self.instance.exec(order, stdio) {
            Ok(starting) => {
                self.executing += 1;
                connection.starting = Some(starting);
                Some(())
            }
            Err(failure) => connection.reply(&Reply::Failed(failure)),
        }
    }

    /// Passes on how executed processes came out.
    fn hear_of_starts(&mut self) {
        self.connections.retain_mut(|connection| {
            let Some(started) = connection.starting.as_mut().and_then(Starting::hear) else { return true };
            connection.starting = None;
            let told = match started {
                Started::Running { pid, terminal } => {
                    connection.executed = Some(pid);
                    let terminal: Vec<_> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
                    connection.reply_with(&Reply::Running { pid }, &terminal)
                }
                Started::Failed(failure) => connection.reply(&Reply::Failed(failure)),
            };
            told.is_some()
        });
    }

    /// Collects ended children; how the container's first process ended, once it has.
    fn reap(&mut self) -> Option<WaitStatus> {
        let mut container = None;
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid.as_raw_pid() == self.instance.pid() => container = Some(status),
                Ok(Some((pid, status))) => self.executed_ended(pid.as_raw_pid(), status),
                Ok(None) | Err(_) => return container,
            }
        }
    }

    fn executed_ended(&mut self, pid: i32, status: WaitStatus) {
        // It may have ended before it was heard that it runs.
        self.hear_of_starts();
        let (code, signal) = code_of(status);
        // The kernel kills all of the container before its first process is collected: what becomes of checks then says
        // nothing of its health.
        if signal.is_some() && is_ending(self.instance.pid()) {
            self.checks.iter_mut().for_each(|checks| checks.stop(pid));
        }
        if let Some(changed) = self.checks.as_mut().and_then(|checks| checks.reaped(pid, code)) {
            if changed {
                self.tell_health();
            }
            return;
        }
        self.connections.retain_mut(|connection| {
            connection.executed != Some(pid) || connection.reply(&Reply::Ended { code }).is_none()
        });
    }

    /// A program that ended by itself may have an answer on its way; one that was killed has none.
    fn silence_if_killed(&self, status: WaitStatus) {
        let killed = status.signaled() && !self.signalled;
        if let (true, Some(network)) = (killed, &self.network)
            && let Err(error) = network.silence()
        {
            complain(format_args!("the network of the killed container is not silenced: {error}"));
        }
    }

    /// The rest of the output, the exit file, the answers to those who wait, then the cgroup: in this order, because the
    /// file is what a worker believes, and removal takes time.
    fn finish(mut self, status: WaitStatus) -> io::Result<()> {
        self.silence_if_killed(status);
        // They are in nobody's way, and would be found in the cgroup.
        let health = self.checks.take().map(|checks| checks.record());
        self.drain_output();
        let (code, signal) = code_of(status);
        let failure = self.start_failure.take();
        let record = ExitRecord {
            version: VERSION,
            code: failure.as_ref().and_then(|failure| failure.code).unwrap_or(code),
            signal: signal.filter(|_| failure.is_none()),
            oom_killed: self.instance.was_oom_killed(),
            error: failure.map(|failure| failure.message),
            started_at_ns: self.started_at.map(to_ns),
            finished_at_ns: to_ns(SystemTime::now()),
            health,
        };
        write_exit(&Files(&self.folder), &record)?;
        let reply = Reply::Exit(record);
        for connection in self.connections.iter_mut().filter(|connection| connection.waits) {
            let _ = connection.reply(&reply);
        }
        self.instance.remove();
        Ok(())
    }

    fn drain_output(&mut self) {
        let now = Timestamp::now();
        let mut objects = Vec::new();
        // Read already, and perhaps the last there was.
        self.attached.finish();
        for mut stream in std::mem::take(&mut self.streams) {
            while let Progress::Read(_) = stream.read(&mut self.buffer, now, &mut objects, &mut self.attached) {
                self.write_log(&std::mem::take(&mut objects));
                self.attached.finish();
            }
            stream.lines.finish(now, &mut objects);
        }
        self.write_log(&objects);
    }
}

struct Ready {
    signals: bool,
    listener: bool,
    streams: Vec<bool>,
    attached: Vec<Waits>,
    check: bool,
    starting: bool,
    connections: Vec<bool>,
}

#[derive(PartialEq, Eq)]
enum Progress {
    /// So many bytes.
    Read(usize),
    Nothing,
    Ended,
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8], now: Timestamp, objects: &mut Vec<u8>, attached: &mut Attached) -> Progress {
        match self.fd.read(buffer) {
            // A terminal whose other side is closed fails with EIO.
            Ok(0) => self.end(now, objects),
            Ok(len) => {
                self.lines.push(&buffer[..len], now, objects);
                attached.output(self.lines.source(), &buffer[..len]);
                Progress::Read(len)
            }
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Progress::Nothing
            }
            Err(_) => self.end(now, objects),
        }
    }

    fn end(&mut self, now: Timestamp, objects: &mut Vec<u8>) -> Progress {
        self.lines.finish(now, objects);
        Progress::Ended
    }
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        let (text, fds) = (Vec::new(), Vec::new());
        Self { stream, text, fds, waits: false, watches_health: false, starting: None, executed: None }
    }

    fn has_process(&self) -> bool {
        self.starting.is_some() || self.executed.is_some()
    }

    fn reply(&mut self, reply: &Reply) -> Option<()> {
        self.reply_with(reply, &[])
    }

    fn reply_with(&mut self, reply: &Reply, fds: &[i32]) -> Option<()> {
        let mut text = serde_json::to_vec(reply).ok()?;
        text.push(b'\n');
        let sent = wire::send(&self.stream, &text, fds).ok()?;
        (sent == text.len()).then_some(())
    }
}

/// Whether the process has begun to end, with all of its threads: its first one alone may. One that is not there has.
fn is_ending(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads
        .flatten()
        .all(|thread| fs::read_to_string(thread.path().join("stat")).map_or(true, |stat| is_exiting(&stat)))
}

/// What a thread's `stat` in /proc says.
fn is_exiting(stat: &str) -> bool {
    // `PF_EXITING` of the kernel's include/linux/sched.h.
    const EXITING: u64 = 0x4;
    // After the name, which may hold anything.
    const FLAGS: usize = 6;
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let flags = after_name.split(' ').nth(FLAGS).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

/// Code as a shell has it, and the signal if there was one: any, also a real-time one.
fn code_of(status: WaitStatus) -> (i32, Option<i32>) {
    match status.terminating_signal() {
        Some(signal) => (SIGNAL_CODE_BASE + signal, Some(signal)),
        None => (status.exit_status().unwrap_or(0), None),
    }
}

/// Complete or absent: a worker that sees the file believes it.
pub(super) fn write_exit(files: &Files<'_>, record: &ExitRecord) -> io::Result<()> {
    let temporary = files.exit().with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    fs::rename(temporary, files.exit())
}

/// The terminal's program is told, as by a terminal emulator.
#[allow(unsafe_code)]
fn resize(terminal: &OwnedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Pid, waitpid};

    use super::*;

    #[test]
    fn a_threads_flags_are_found_whatever_its_name_is() {
        for (stat, expected) in [
            ("1 (sh) S 0 1 1 0 -1 4194560 100 0", false),
            ("1 (sh) S 0 1 1 0 -1 4194564 100 0", true),
            ("1 (a) S 4 4 4 4 4 4 4) Z 0 1 1 0 -1 4227084 0 0", true),
            ("1 (a) S 4 4 4 4 4 4 4) S 0 1 1 0 -1 4194560 0 0", false),
            ("", false),
        ] {
            assert_eq!(is_exiting(stat), expected, "{stat}");
        }
    }

    #[test]
    fn a_program_is_ending_from_its_kill_on_until_it_is_collected_and_after() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(!is_ending(pid));
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !is_ending(pid) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(is_ending(pid), "as a zombie");
        child.wait().unwrap();
        assert!(is_ending(pid), "gone");
    }

    #[test]
    fn every_signal_ends_a_program_with_its_code() {
        for (script, want) in [
            ("exit 0", (0, None)),
            ("exit 42", (42, None)),
            ("kill -9 $$", (137, Some(9))),
            ("kill -37 $$", (165, Some(37))),
            ("kill -64 $$", (192, Some(64))),
        ] {
            // It is waited for below, as the server does it.
            #[allow(clippy::zombie_processes)]
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let (_, status) = waitpid(Some(Pid::from_child(&child)), WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(code_of(status), want, "{script}");
        }
    }
}
