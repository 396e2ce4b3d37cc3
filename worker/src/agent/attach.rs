//! Logs of and commands in the containers of this node, whoever asks: a manager's stream or the local socket.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{Stream, StreamExt, stream::BoxStream};
use orch_model::TaskId;
use orch_proto::wire::{self, exec_input::Input, exec_output::Output};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    Host,
    executor::log_files,
    logging,
    stdin::{AHEAD_BYTES, Controls, feed},
};
use crate::{
    events::{Events, Subject},
    image::chain,
    runtime::{self, Container, Exec, ExecOutput, ExecRequest, LogFiles, LogSource, Runtime, RuntimeError},
    signals,
};

/// Output is passed on in pieces of at most this size.
const CHUNK_BYTES: usize = 32 << 10;
/// What processes that a command leaves behind print for so long after its end is still passed on, as with Docker.
const DRAIN: Duration = Duration::from_secs(2);
/// After that, a terminal that has been silent for so long has handed over everything.
const QUIET: Duration = Duration::from_millis(100);
/// More than a terminal keeps for who reads slowly.
const TERMINAL_BYTES: usize = 64 << 10;

/// A container to look into, a task's or a one-off one.
pub(crate) struct Target {
    pub id: TaskId,
    pub subject: Subject,
    /// While it runs.
    pub container: Option<Container>,
    pub log: LogFiles,
}

impl Target {
    pub(crate) fn of_task(host: &Host, task: &TaskId) -> Result<Self, String> {
        let entry = host.book.entry(task).ok_or_else(|| format!("task {task} is not on this node"))?;
        let (subject, log) = (Subject::of_task(&entry.task), log_files(host, &entry.task));
        Ok(Self { id: task.clone(), subject, container: entry.container, log })
    }
}

/// The log lines of a container, also of one that is gone.
pub(crate) fn logs(
    target: &Target,
    options: &wire::LogOptions,
) -> Result<BoxStream<'static, Result<wire::LogLine, String>>, String> {
    let wanted = runtime::LogOptions {
        follow: options.follow,
        tail: options.tail.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
        since: options.since_unix_ns.map(time_of_ns).or(options.since_ms.map(time_of)),
        // From an older version, to the end of that millisecond: a line's own time is finer.
        until: (options.until_unix_ns.map(time_of_ns))
            .or(options.until_ms.map(|until| time_of(until) + Duration::from_nanos(999_999))),
    };
    if logging::is_none(&target.log) {
        return Err("configured logging driver does not support reading: it is \"none\"".to_owned());
    }
    let lines = match &target.container {
        Some(container) => container.logs(wanted),
        None => Runtime::logs(&target.log, wanted),
    };
    let (both, stdout, stderr) = (!options.stdout && !options.stderr, options.stdout, options.stderr);
    let task = target.id.to_string();
    let shown = lines.filter_map(move |line| {
        let line = match line {
            Ok(line) => {
                let is_stderr = matches!(line.stream, LogSource::Stderr);
                let wanted = both || if is_stderr { stderr } else { stdout };
                wanted.then(|| Ok(wire_line(&task, line, is_stderr)))
            }
            Err(error) => Some(Err(chain(&error))),
        };
        std::future::ready(line)
    });
    Ok(shown.boxed())
}

/// Runs a command; its last output is the exit code. Ends early when nobody takes the output any more.
pub(crate) async fn exec(
    events: &Arc<Events>,
    target: Target,
    start: &wire::ExecStart,
    inputs: impl Stream<Item = Input> + Send + Unpin + 'static,
    outputs: mpsc::Sender<Output>,
) -> Result<(), String> {
    let not_running = || format!("Container {} is not running", target.subject.id);
    let container = target.container.ok_or_else(not_running)?;
    let request = ExecRequest {
        args: start.argv.clone(),
        env: start.env.clone(),
        cwd: start.dir.clone(),
        user: start.user.clone(),
        tty: start.tty,
        stdin: start.stdin,
        privileged: start.privileged,
        detach: start.detach,
        size: start.size.as_ref().map(terminal_size),
    };
    if start.waits_for_room && start.stdin {
        // Before all output, and however long it takes to start: who hears nothing takes this node for an older one.
        let _ = outputs.send(Output::StdinRoom(AHEAD_BYTES)).await;
    }
    let told = Told::begin(events.clone(), target.subject, &start.argv);
    let mut running = match container.exec(&request).await {
        Ok(running) => running,
        Err(error) => {
            // As a shell does: say why and end with 126 or 127.
            let unknown_user = matches!(error, RuntimeError::User(_)).then_some(CANNOT_EXECUTE);
            let Some(code) = error.exit_code().or(unknown_user) else { return Err(chain(&error)) };
            told.died(code);
            let text = format!("{}\n", chain(&error)).into_bytes();
            let _ = outputs.send(Output::Stderr(text.into())).await;
            let _ = outputs.send(Output::ExitCode(code)).await;
            return Ok(());
        }
    };
    if start.detach {
        let _ = outputs.send(Output::ExitCode(0)).await;
        tokio::spawn(Session::of(running, told).drain());
        return Ok(());
    }
    let pid = running.pid;
    let (tell_taken, mut taken) = watch::channel(0);
    let tell_taken = start.waits_for_room.then_some(tell_taken);
    let controls = Controls { pid, resizer: running.resizer(), stdin: running.stdin.take(), taken: tell_taken };
    let (detach, mut detached) = mpsc::channel(1);
    let mut session = Session::of(running, told);
    let feed = AbortOnDrop(tokio::spawn(feed(inputs, controls, detach)));
    loop {
        tokio::select! {
            said = session.next() => match said {
                Said::Output(output) => drop(outputs.send(output).await),
                Said::Ended(code) => {
                    let _ = outputs.send(Output::ExitCode(code.map_err(|error| chain(&error))?)).await;
                    return Ok(());
                }
            },
            Ok(()) = taken.changed() => {
                let room = *taken.borrow_and_update() + AHEAD_BYTES;
                let _ = outputs.send(Output::StdinRoom(room)).await;
            }
            Some(stdin) = detached.recv() => {
                let _ = outputs.send(Output::ExitCode(0)).await;
                tokio::spawn(async move {
                    // Open, as the user left it; what was typed before is the command's.
                    let _stdin = stdin;
                    session.drain().await;
                });
                return Ok(());
            }
            () = outputs.closed() => {
                signal(pid, HANG_UP);
                drop(feed);
                return Ok(());
            }
        }
    }
}

/// What is told of a command, under one id.
struct Told {
    events: Arc<Events>,
    subject: Subject,
}

impl Told {
    fn begin(events: Arc<Events>, mut subject: Subject, command: &[String]) -> Self {
        subject.attributes.insert("execID".to_owned(), hex::encode(rand::random::<[u8; 32]>()));
        for action in ["exec_create", "exec_start"] {
            events.of_container(subject.clone(), &format!("{action}: {}", command.join(" ")), &[]);
        }
        Self { events, subject }
    }

    fn died(self, code: i32) {
        self.events.of_container(self.subject, "exec_die", &[("exitCode", code.to_string())]);
    }
}

/// A command's output and end. Dropped, it closes the command's streams; the command's end is told all the same.
struct Session {
    outputs: mpsc::Receiver<Output>,
    /// Reads what the command prints, and waits for its end.
    work: tokio::task::JoinHandle<Result<i32, RuntimeError>>,
    code: Option<Result<i32, RuntimeError>>,
}

enum Said {
    Output(Output),
    Ended(Result<i32, RuntimeError>),
}

impl Session {
    fn of(running: Exec, told: Told) -> Self {
        let (to, outputs) = mpsc::channel(1);
        // Its terminal is closed by who reads from it: another holder would keep it open.
        let Exec { stdout, stderr, exit, .. } = running;
        let work = async move {
            let (tell_end, end) = watch::channel(false);
            let out = pass_on_of(stdout, to.clone(), Output::Stdout, stderr.is_none(), end.clone());
            let err = async {
                if let Some(stderr) = stderr {
                    pass_on_of(stderr, to.clone(), Output::Stderr, false, end).await;
                }
            };
            let exit = async {
                let code = exit.wait().await;
                tell_end.send_replace(true);
                code
            };
            let (code, (), ()) = tokio::join!(exit, out, err);
            if let Ok(code) = code {
                told.died(code);
            }
            code
        };
        Self { outputs, work: tokio::spawn(work), code: None }
    }

    /// May be cancelled. The end comes after all output, and once.
    async fn next(&mut self) -> Said {
        loop {
            tokio::select! {
                output = self.outputs.recv() => match (output, self.code.take()) {
                    (Some(output), code) => {
                        self.code = code;
                        return Said::Output(output);
                    }
                    (None, Some(code)) => return Said::Ended(code),
                    (None, None) => return Said::Ended(outcome((&mut self.work).await)),
                },
                code = &mut self.work, if self.code.is_none() => self.code = Some(outcome(code)),
            }
        }
    }

    /// Nobody listens any more; the command must not notice.
    async fn drain(mut self) {
        while matches!(self.next().await, Said::Output(_)) {}
    }
}

fn outcome(work: Result<Result<i32, RuntimeError>, tokio::task::JoinError>) -> Result<i32, RuntimeError> {
    work.unwrap_or_else(|error| Err(RuntimeError::Protocol(error.to_string())))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

const HANG_UP: i32 = 1;
/// As a shell returns it.
const CANNOT_EXECUTE: i32 = 126;

pub(super) fn signal(pid: u32, number: i32) {
    if let Ok(pid @ 1..) = i32::try_from(pid) {
        // Gone already, or no signal: nothing to tell.
        let _ = signals::send(pid, number);
    }
}

/// Until the output ends or nobody takes it any more; either closes it.
pub(crate) async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    to: mpsc::Sender<Output>,
    wrap: fn(bytes::Bytes) -> Output,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            // It may be long until more is printed.
            () = to.closed() => return,
        };
        // A terminal whose process has ended answers with an error instead of the end.
        let Ok(n @ 1..) = read else { return };
        if to.send(wrap(bytes::Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
            return;
        }
    }
}

/// As [`pass_on`], of a command. When it has ended, what it printed is passed on however long that takes; others that it
/// has left behind with the same output are not waited for.
async fn pass_on_of(
    mut from: ExecOutput,
    to: mpsc::Sender<Output>,
    wrap: fn(bytes::Bytes) -> Output,
    is_terminal: bool,
    mut end: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut rest: Option<Rest> = None;
    loop {
        let patience = rest.as_ref().map(|rest| rest.patience(Instant::now()));
        if patience == Some(Duration::ZERO) {
            return;
        }
        let read = tokio::select! {
            biased;
            () = to.closed() => return,
            () = is_over(&mut end), if rest.is_none() => {
                let unseen = if is_terminal { TERMINAL_BYTES } else { 0 };
                rest = Some(Rest { until: Instant::now() + DRAIN, own_bytes: from.held_bytes() + unseen });
                continue;
            }
            read = from.read(&mut buffer) => read,
            () = sleep(patience.unwrap_or_default()), if patience.is_some() => return,
        };
        let Ok(n @ 1..) = read else { return };
        if let Some(rest) = &mut rest {
            rest.own_bytes = rest.own_bytes.saturating_sub(n);
        }
        if to.send(wrap(bytes::Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
            return;
        }
    }
}

async fn is_over(end: &mut watch::Receiver<bool>) {
    // Who knows that is gone only when it is over.
    let _ = end.wait_for(|ended| *ended).await;
}

/// What is read yet from the output of a command that has ended.
struct Rest {
    /// So long others may add to it.
    until: Instant,
    /// At most so much is its own, and comes first.
    own_bytes: usize,
}

impl Rest {
    /// How long to wait for more.
    fn patience(&self, now: Instant) -> Duration {
        let left = self.until.saturating_duration_since(now);
        if self.own_bytes == 0 { left } else { left.max(QUIET) }
    }
}

pub(crate) fn terminal_size(size: &wire::TerminalSize) -> (u16, u16) {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    (clamp(size.rows), clamp(size.columns))
}

fn time_of(unix_ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(unix_ms)
}

fn time_of_ns(unix_ns: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(unix_ns)
}

fn wire_line(task: &str, line: runtime::LogLine, stderr: bool) -> wire::LogLine {
    let since = line.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    wire::LogLine {
        task_id: task.to_owned(),
        at_unix_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        stderr,
        data: line.line.into_bytes().into(),
        notice: String::new(),
        details: line.details.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// The command prints so much and ends. Another process holds its output and prints on.
    async fn check(printed: usize, reader_pause: Duration, other_prints: bool) {
        let (from, to) = std::io::pipe().unwrap();
        let (mut command, mut other) = (to.try_clone().unwrap(), to);
        let (outputs, mut receiver) = mpsc::channel(1);
        let (tell_end, end) = watch::channel(false);
        let from = ExecOutput::over(from.into()).unwrap();
        let work = tokio::spawn(pass_on_of(from, outputs, Output::Stdout, false, end));
        let text = vec![b'x'; printed];
        // As the command would: it waits for the reader while the pipe is full.
        let command =
            tokio::task::spawn_blocking(move || command.write_all(&text).map(|()| tell_end.send_replace(true)));
        let began = Instant::now();
        let others = tokio::task::spawn_blocking(move || {
            while other_prints && other.write_all(b"o").is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
            other
        });
        let mut got = Vec::new();
        while let Some(Output::Stdout(bytes)) = receiver.recv().await {
            got.extend_from_slice(&bytes);
            sleep(reader_pause).await;
        }
        work.await.unwrap();
        command.await.unwrap().unwrap();
        let own = got.iter().filter(|&&byte| byte == b'x').count();
        assert_eq!(own, printed, "of {printed} bytes, reading every {reader_pause:?}");
        let pauses = reader_pause * u32::try_from(printed / 4096 + 3).unwrap();
        assert!(began.elapsed() < DRAIN + pauses + Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(began.elapsed() > DRAIN - QUIET, "others may say something yet");
        drop(others.await.unwrap());
    }

    #[tokio::test]
    async fn what_a_command_leaves_behind_is_not_waited_for_and_nothing_of_its_own_is_lost() {
        let slow = Duration::from_millis(1500);
        tokio::join!(
            check(0, Duration::ZERO, false),
            check(3, Duration::ZERO, false),
            check(3, Duration::ZERO, true),
            check(1 << 20, Duration::ZERO, true),
            check(100 << 10, slow, false),
            check(100 << 10, slow, true),
        );
    }
}
