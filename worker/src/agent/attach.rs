//! Logs of and commands in the containers of this node, whoever asks: a manager's stream or the local socket.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{Stream, StreamExt, stream::BoxStream};
use orch_model::TaskId;
use orch_proto::wire::{self, exec_input::Input, exec_output::Output};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::{Host, executor::log_files, logging};
use crate::{
    events::{Events, Subject},
    image::chain,
    runtime::{self, Container, Exec, ExecInput, ExecRequest, LogFiles, LogSource, Runtime, RuntimeError, Terminal},
};

/// Output is passed on in pieces of at most this size.
const CHUNK_BYTES: usize = 32 << 10;

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
        since: options.since_ms.map(time_of),
        // To the end of that millisecond: a line's own time is finer.
        until: options.until_ms.map(|until| time_of(until) + Duration::from_nanos(999_999)),
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
    let not_running = || format!("container of task {} is not running", target.id);
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
    let (pid, resizer, stdin) = (running.pid, running.resizer(), running.stdin.take());
    let (detach, mut detached) = mpsc::channel(1);
    let mut session = Session::of(running, told);
    let feed = AbortOnDrop(tokio::spawn(feed(inputs, stdin, resizer, pid, detach)));
    loop {
        tokio::select! {
            said = session.next() => match said {
                Said::Output(output) => drop(outputs.send(output).await),
                Said::Ended(code) => {
                    let _ = outputs.send(Output::ExitCode(code.map_err(|error| chain(&error))?)).await;
                    return Ok(());
                }
            },
            Some(stdin) = detached.recv() => {
                let _ = outputs.send(Output::ExitCode(0)).await;
                tokio::spawn(async move {
                    // Open, as the user left it.
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

/// What the user does, to the command.
async fn feed(
    mut inputs: impl Stream<Item = Input> + Send + Unpin,
    mut stdin: Option<ExecInput>,
    resizer: Option<Terminal>,
    pid: u32,
    detach: mpsc::Sender<Option<ExecInput>>,
) {
    while let Some(input) = inputs.next().await {
        match input {
            Input::Stdin(data) => {
                let Some(to) = &mut stdin else { continue };
                if to.write_all(&data).await.is_err() {
                    stdin = None;
                }
            }
            Input::StdinClosed(_) => stdin = None,
            Input::Resize(size) => {
                if let Some(resizer) = &resizer {
                    let (rows, columns) = terminal_size(&size);
                    // The terminal may be gone with its process.
                    let _ = resizer.resize(rows, columns);
                }
            }
            Input::Signal(number) => signal(pid, number),
            Input::Detach(_) => {
                // The command may have ended meanwhile.
                let _ = detach.send(stdin).await;
                return;
            }
            Input::Start(_) => {}
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
            let out = pass_on(stdout, to.clone(), Output::Stdout);
            let err = async {
                if let Some(stderr) = stderr {
                    pass_on(stderr, to.clone(), Output::Stderr).await;
                }
            };
            let (code, (), ()) = tokio::join!(exit.wait(), out, err);
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

fn signal(pid: u32, number: i32) {
    let (Ok(pid), Ok(signal)) = (i32::try_from(pid), nix::sys::signal::Signal::try_from(number)) else { return };
    if pid > 0 {
        // Gone already: nothing to tell.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
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

pub(crate) fn terminal_size(size: &wire::TerminalSize) -> (u16, u16) {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    (clamp(size.rows), clamp(size.columns))
}

fn time_of(unix_ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(unix_ms)
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
