//! `orch attach`, and the foreground of `orch run` and `orch start -a`.

use std::{io::Write as _, time::Duration};

use clap::Args;
use orch_proto::{
    paths::Paths,
    wire::{self, attach_input::Input, exec_output::Output},
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Status;

use super::terminal::{self, FromUser, RawTerminal, Room};
use crate::api::{Worker, worker};

pub(crate) use super::terminal::{DetachKeys, is_terminal};

/// Messages that may wait to be sent.
const QUEUE: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS", value_parser = detach_keys, default_value = "ctrl-p,ctrl-q")]
    pub(super) detach_keys: DetachKeys,
    /// Do not attach STDIN
    #[arg(long)]
    pub(super) no_stdin: bool,
    /// Proxy all received signals to the process
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub(super) sig_proxy: bool,
    pub(super) container: String,
}

pub(crate) fn detach_keys(text: &str) -> Result<DetachKeys, String> {
    DetachKeys::parse(text)
}

/// One attachment.
pub(crate) struct Session {
    pub(crate) reference: String,
    /// Start the container once attached.
    pub(crate) run: bool,
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
    pub(crate) keys: DetachKeys,
    pub(crate) signals: bool,
}

/// A program that does not take what was typed keeps nobody here.
const DETACH_LIMIT: Duration = Duration::from_secs(1);

/// Until the container ends: its code; `None` when the user detached.
pub(crate) async fn attach(session: Session, worker: &mut Worker, paths: &Paths) -> Result<Option<i32>, Status> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let reference = session.reference.clone();
    let start = wire::AttachStart {
        reference: session.reference,
        stdin: session.stdin,
        run: session.run,
        size: session.tty.then(terminal::size).flatten(),
        logs: false,
    };
    let closed = || Status::internal("the session ended before it began");
    let first = wire::AttachInput { input: Some(Input::Start(start)) };
    sender.send(first).await.map_err(|_| closed())?;
    let outputs = worker.attach_container(ReceiverStream::new(receiver)).await?.into_inner();

    let raw = if session.tty && session.stdin { RawTerminal::enter() } else { None };
    let (detached, mut detach) = mpsc::channel(1);
    // Signals go their own way.
    let room = Room::unlimited();
    if session.stdin {
        let keys = session.tty.then_some(session.keys);
        terminal::forward_stdin(sender.clone(), keys, detached.clone(), room.clone());
    } else {
        let _ = sender.send(FromUser::Closed.into()).await;
    }
    let mut forwards = tokio::task::JoinSet::new();
    if session.tty {
        forwards.spawn(terminal::forward_resizes(sender.clone()));
    }
    if session.signals {
        forwards.spawn(forward_signals(reference, paths.clone()));
    }
    let copying = copy_output(outputs, &room);
    tokio::pin!(copying);
    let outcome = tokio::select! {
        code = &mut copying => code.map(Some),
        Some(()) = detach.recv() => {
            // What was typed before is the program's: the node ends the session once it has passed all of it on.
            drop(sender);
            forwards.shutdown().await;
            let _ = tokio::time::timeout(DETACH_LIMIT, &mut copying).await;
            Ok(None)
        }
        code = terminal::ended_by_signal(), if raw.is_some() && !session.signals => Ok(Some(code)),
    };
    drop(raw);
    outcome
}

/// Each over a connection of its own: in the session's they would wait behind input that the program does not take.
async fn forward_signals(reference: String, paths: Paths) {
    let (sender, mut signals) = mpsc::channel::<FromUser>(QUEUE);
    let catching = terminal::forward_signals(sender);
    tokio::pin!(catching);
    loop {
        let signal = tokio::select! {
            () = &mut catching => return,
            signal = signals.recv() => signal,
        };
        let Some(FromUser::Signal(number)) = signal else { continue };
        let request = wire::KillContainerRequest { reference: reference.clone(), signal: number.to_string() };
        if let Ok(mut worker) = worker(&paths).await {
            // It may have ended.
            let _ = worker.kill_container(request).await;
        }
    }
}

/// Until the program has ended. `room` is told of what its node has room for.
pub(super) async fn copy_output(mut outputs: tonic::Streaming<wire::ExecOutput>, room: &Room) -> Result<i32, Status> {
    let written = |error: std::io::Error| Status::aborted(format!("cannot write the output: {error}"));
    while let Some(message) = outputs.next().await {
        match message?.output {
            Some(Output::Stdout(data)) => {
                let mut out = std::io::stdout().lock();
                out.write_all(&data).and_then(|()| out.flush()).map_err(written)?;
            }
            Some(Output::Stderr(data)) => std::io::stderr().lock().write_all(&data).map_err(written)?,
            Some(Output::StdinRoom(bytes)) => room.set(bytes),
            Some(Output::ExitCode(code)) => return Ok(code),
            None => {}
        }
    }
    Err(Status::aborted("the connection ended before the program did; whether it still runs is unknown"))
}
