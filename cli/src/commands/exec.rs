//! `orch exec TASK COMMAND…`: the terminal, the signals and the exit code of a command in a task's container.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd},
    process::ExitCode,
};

use anyhow::{anyhow, bail};
use clap::Args;
use nix::sys::termios::{self, SetArg, Termios};
use orch_proto::{paths::Paths, wire};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use wire::{exec_input::Input, exec_output::Output};

use crate::{
    api::{Api, explain, worker},
    flags::key_value,
};

/// What is read from the keyboard or a pipe at once.
const STDIN_CHUNK_BYTES: usize = 16 << 10;
/// Messages that may wait to be sent.
const QUEUE: usize = 16;

#[derive(Debug, Args)]
#[command(override_usage = "orch exec [OPTIONS] TASK COMMAND [ARG...]")]
pub(crate) struct ExecArgs {
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Set environment variables
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = key_value::variable)]
    env: Vec<String>,
    /// Working directory inside the container
    #[arg(short, long, default_value = "")]
    workdir: String,
    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(short, long, default_value = "")]
    user: String,
    /// Give extended privileges to the command
    #[arg(long)]
    privileged: bool,
    /// A task, then the command and its arguments
    #[arg(value_name = "TASK COMMAND [ARG...]", required = true, trailing_var_arg = true)]
    task_and_command: Vec<String>,
}

pub(crate) async fn run(args: ExecArgs, paths: &Paths) -> anyhow::Result<ExitCode> {
    let Some((task, argv)) = args.task_and_command.split_first().filter(|(_, argv)| !argv.is_empty()) else {
        bail!("a command is required: orch exec [OPTIONS] TASK COMMAND [ARG...]");
    };
    if args.tty && args.interactive && !std::io::stdin().is_terminal() {
        bail!("the input device is not a TTY: leave out -t when standard input is a pipe or a file");
    }
    let start = wire::ExecStart {
        task: task.clone(),
        argv: argv.to_vec(),
        env: key_value::merge_env(args.env.clone(), |name| std::env::var(name).ok()),
        dir: args.workdir.clone(),
        user: args.user.clone(),
        tty: args.tty,
        stdin: args.interactive,
        size: args.tty.then(terminal_size).flatten(),
        privileged: args.privileged,
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    sender.send(input(Input::Start(start))).await?;
    let stream = ReceiverStream::new(receiver);
    let outputs = match Api::connect(paths).await {
        Ok(mut api) => api.control.exec(stream).await,
        // On a worker, the containers of the node itself are at hand.
        Err(no_manager) => match worker(paths).await {
            Ok(mut worker) => worker.exec(stream).await,
            Err(_) => return Err(no_manager),
        },
    };
    let outputs = outputs.map_err(explain)?.into_inner();

    let raw = if args.tty && args.interactive { RawTerminal::enter() } else { None };
    if args.interactive {
        forward_stdin(sender.clone());
    } else {
        sender.send(input(Input::StdinClosed(wire::Empty {}))).await?;
    }
    if args.tty {
        tokio::spawn(forward_resizes(sender.clone()));
    } else {
        tokio::spawn(forward_signals(sender.clone()));
    }
    let outcome = copy_output(outputs).await;
    drop(raw);
    outcome
}

fn input(input: Input) -> wire::ExecInput {
    wire::ExecInput { input: Some(input) }
}

async fn copy_output(mut outputs: tonic::Streaming<wire::ExecOutput>) -> anyhow::Result<ExitCode> {
    while let Some(message) = outputs.next().await {
        match message.map_err(explain)?.output {
            Some(Output::Stdout(data)) => {
                let mut out = std::io::stdout().lock();
                out.write_all(&data)?;
                out.flush()?;
            }
            Some(Output::Stderr(data)) => std::io::stderr().lock().write_all(&data)?,
            Some(Output::ExitCode(code)) => return Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))),
            None => {}
        }
    }
    Err(anyhow!("the connection to the task ended before the command did; whether it still runs is unknown"))
}

/// A thread of its own: a blocked read of a terminal cannot be cancelled.
fn forward_stdin(sender: mpsc::Sender<wire::ExecInput>) {
    std::thread::spawn(move || {
        let mut chunk = vec![0; STDIN_CHUNK_BYTES];
        while let Ok(read) = std::io::stdin().read(&mut chunk) {
            if read == 0 {
                break;
            }
            let data = chunk[..read].to_vec();
            if sender.blocking_send(input(Input::Stdin(data.into()))).is_err() {
                return;
            }
        }
        // The receiver is gone when the command has ended first.
        let _ = sender.blocking_send(input(Input::StdinClosed(wire::Empty {})));
    });
}

async fn forward_resizes(sender: mpsc::Sender<wire::ExecInput>) {
    let Ok(mut changes) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        let Some(size) = terminal_size() else { continue };
        if sender.send(input(Input::Resize(size))).await.is_err() {
            return;
        }
    }
}

/// Without a terminal of its own, the command gets our interrupts.
async fn forward_signals(sender: mpsc::Sender<wire::ExecInput>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        let number = tokio::select! {
            _ = interrupt.recv() => libc::SIGINT,
            _ = terminate.recv() => libc::SIGTERM,
        };
        if sender.send(input(Input::Signal(number))).await.is_err() {
            return;
        }
    }
}

fn terminal_size() -> Option<wire::TerminalSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    #[allow(unsafe_code)]
    // SAFETY: TIOCGWINSZ writes one winsize into the struct that the pointer is to.
    let outcome = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (outcome == 0).then(|| wire::TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() })
}

/// Puts the terminal back on drop.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        let fd: BorrowedFd<'_> = stdin.as_fd();
        let before = termios::tcgetattr(fd).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(fd, SetArg::TCSANOW, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done when the terminal is gone.
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}
