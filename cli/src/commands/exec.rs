//! `orch exec TASK COMMAND…`: the terminal, the signals and the exit code of a command in a task's container.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::bail;
use clap::Args;
use orch_proto::{paths::Paths, wire};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use wire::exec_input::Input;

use super::{
    container,
    container_attach::{copy_output, detach_keys},
    run::{environment, exit_code},
    terminal::{self, DetachKeys, FromUser, RawTerminal, Room},
};
use crate::{
    api::{Api, Worker, explain},
    flags::key_value,
};

/// Messages that may wait to be sent.
const QUEUE: usize = 16;
/// How long the node may take to let go of a command that the user leaves.
const DETACH_LIMIT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
#[command(override_usage = "orch exec [OPTIONS] TASK COMMAND [ARG...]")]
pub(crate) struct ExecArgs {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    detach: bool,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Set environment variables
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = key_value::variable)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory inside the container
    #[arg(short, long, default_value = "")]
    workdir: String,
    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(short, long, default_value = "")]
    user: String,
    /// Give extended privileges to the command
    #[arg(long)]
    privileged: bool,
    /// Override the key sequence for detaching from the command
    #[arg(long, value_name = "KEYS", value_parser = detach_keys, default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// A task, then the command and its arguments
    #[arg(value_name = "TASK COMMAND [ARG...]", required = true, trailing_var_arg = true)]
    task_and_command: Vec<String>,
}

pub(crate) async fn run(args: ExecArgs, paths: &Paths) -> anyhow::Result<ExitCode> {
    let Some((task, argv)) = args.task_and_command.split_first().filter(|(_, argv)| !argv.is_empty()) else {
        bail!("a command is required: orch exec [OPTIONS] TASK COMMAND [ARG...]");
    };
    if args.tty && args.interactive && !args.detach && !terminal::is_terminal() {
        bail!("the input device is not a TTY: leave out -t when standard input is a pipe or a file");
    }
    let start = wire::ExecStart {
        task: task.clone(),
        argv: argv.to_vec(),
        env: environment(&args.env_file, &args.env)?,
        dir: args.workdir.clone(),
        user: args.user.clone(),
        tty: args.tty,
        stdin: args.interactive && !args.detach,
        size: args.tty.then(terminal::size).flatten(),
        privileged: args.privileged,
        detach: args.detach,
        waits_for_room: true,
    };
    // A call that failed has taken its input with it.
    let input = || {
        let (sender, receiver) = mpsc::channel(QUEUE);
        // There is room for the first.
        let _ = sender.try_send(wire::ExecInput { input: Some(Input::Start(start.clone())) });
        (sender, ReceiverStream::new(receiver))
    };
    let of_managers = async |mut api: Api| {
        let (sender, stream) = input();
        Ok::<_, Status>((sender, api.control.exec(stream).await?.into_inner()))
    };
    let of_worker = async |mut worker: Worker| {
        let (sender, stream) = input();
        Ok::<_, Status>((sender, worker.exec(stream).await?.into_inner()))
    };
    let (sender, outputs) = container::ask(paths, task, of_managers, of_worker).await?;

    if args.detach {
        // Says only whether it could be started.
        return copy_output(outputs, &Room::default()).await.map(exit_code).map_err(explain);
    }
    let raw = if args.tty && args.interactive { RawTerminal::enter() } else { None };
    let (detached, mut detach) = mpsc::channel(1);
    let room = Room::default();
    if args.interactive {
        let keys = args.tty.then_some(args.detach_keys);
        terminal::forward_stdin(sender.clone(), keys, detached.clone(), room.clone());
    } else {
        // Refused when the command could not be started; the answer says why.
        let _ = sender.send(FromUser::Closed.into()).await;
    }
    if args.tty {
        tokio::spawn(terminal::forward_resizes(sender.clone()));
    } else {
        tokio::spawn(terminal::forward_signals(sender.clone()));
    }
    let copying = copy_output(outputs, &room);
    tokio::pin!(copying);
    let outcome = tokio::select! {
        code = &mut copying => code.map_err(explain),
        // As if the connection had broken off.
        code = terminal::ended_by_signal(), if raw.is_some() => Ok(code),
        Some(()) = detach.recv() => {
            // The command goes on, as with Docker, once its node knows that nobody has gone by accident.
            let _ = sender.send(wire::ExecInput { input: Some(Input::Detach(wire::Empty {})) }).await;
            let _ = tokio::time::timeout(DETACH_LIMIT, &mut copying).await;
            Ok(0)
        }
    };
    drop(raw);
    outcome.map(exit_code)
}
