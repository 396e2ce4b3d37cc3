//! Announced streams: the node dials back on a connection of its own and carries logs or a command's terminal.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use orch_model::{TaskId, node::NodeRole};
use orch_proto::{
    transport::{TransportError, shared_channel},
    wire::{
        FromNode, StreamAnnouncement, StreamHello, ToNode, exec_input, from_node, stream_announcement::What,
        streams_client::StreamsClient, to_node,
    },
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::{Host, attach};

/// Messages under way to the manager; a slow reader holds up only its own stream.
const BUFFERED_MESSAGES: usize = 64;
/// How long the manager may take to hang up after the last message.
const LINGER: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("dial the manager that announced the stream")]
    Connect(#[from] TransportError),
    #[error("attach to the announced stream")]
    Attach(#[from] tonic::Status),
}

/// Serves one announcement of the manager at `addr` to its end.
pub(crate) async fn serve(host: Arc<Host>, addr: String, announced: StreamAnnouncement) -> Result<(), StreamError> {
    let channel = shared_channel(&addr, &host.identity, NodeRole::Manager).await?;
    let (to_manager, messages) = mpsc::channel(BUFFERED_MESSAGES);
    let hello = from_node::Message::Hello(StreamHello { stream_id: announced.stream_id.clone() });
    // The channel is new and has room.
    let _ = to_manager.send(wrap(hello)).await;
    let mut from_manager = StreamsClient::new(channel).attach(ReceiverStream::new(messages)).await?.into_inner();
    if let Err(failed) = run(&host, &announced, &mut from_manager, &to_manager).await {
        // The manager may be gone.
        let _ = to_manager.send(wrap(from_node::Message::Error(failed))).await;
    }
    drop(to_manager);
    // Hanging up resets the call, and what is still on its way would be lost: the manager hangs up first.
    let hung_up = async { while let Ok(Some(_)) = from_manager.message().await {} };
    let _ = timeout(LINGER, hung_up).await;
    Ok(())
}

fn wrap(message: from_node::Message) -> FromNode {
    FromNode { message: Some(message) }
}

async fn run(
    host: &Host,
    announced: &StreamAnnouncement,
    from_manager: &mut tonic::Streaming<ToNode>,
    to_manager: &mpsc::Sender<FromNode>,
) -> Result<(), String> {
    let task: TaskId = announced.task_id.parse().map_err(|error| format!("{error}"))?;
    match &announced.what {
        Some(What::Logs(options)) => {
            let mut lines = attach::logs(&attach::Target::of_task(host, &task)?, options)?;
            loop {
                tokio::select! {
                    // Only a cancellation can come.
                    _ = from_manager.message() => return Ok(()),
                    line = lines.next() => match line {
                        Some(line) => {
                            if to_manager.send(wrap(from_node::Message::Log(line?))).await.is_err() {
                                return Ok(());
                            }
                        }
                        None => return Ok(()),
                    },
                }
            }
        }
        Some(What::Exec(start)) => {
            let (to_command, inputs) = mpsc::channel(BUFFERED_MESSAGES);
            let (outputs, mut from_command) = mpsc::channel(BUFFERED_MESSAGES);
            let forward = async {
                while let Some(output) = from_command.recv().await {
                    let output = orch_proto::wire::ExecOutput { output: Some(output) };
                    if to_manager.send(wrap(from_node::Message::Exec(output))).await.is_err() {
                        break;
                    }
                }
                // Dropping the receiver tells the command that nobody listens.
                drop(from_command);
            };
            let target = attach::Target::of_task(host, &task)?;
            let exec = attach::exec(&host.events, target, start, ReceiverStream::new(inputs), outputs);
            tokio::select! {
                (ended, ()) = async { tokio::join!(exec, forward) } => ended,
                // The client went away.
                () = feed(from_manager, to_command) => Ok(()),
            }
        }
        None => Err("this node's version does not know what the stream is for".to_owned()),
    }
}

/// Passes what the client sends to the command, until the client goes away.
async fn feed(from_manager: &mut tonic::Streaming<ToNode>, to_command: mpsc::Sender<exec_input::Input>) {
    while let Ok(Some(ToNode { message: Some(to_node::Message::Exec(input)) })) = from_manager.message().await {
        if let Some(input) = input.input {
            // A command that has ended reads nothing more.
            let _ = to_command.send(input).await;
        }
    }
}
