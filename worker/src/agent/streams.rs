//! Announced streams: the node dials back on a connection of its own and carries logs or a command's terminal.

use std::sync::Arc;

use futures::{StreamExt, stream};
use orch_model::{TaskId, node::NodeRole};
use orch_proto::{
    transport::{TransportError, tls_channel},
    wire::{
        FromNode, StreamAnnouncement, StreamHello, from_node, stream_announcement::What, streams_client::StreamsClient,
        to_node,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Host, attach};

/// Messages under way to the manager; a slow reader holds up only its own stream.
const BUFFERED_MESSAGES: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("dial the manager that announced the stream")]
    Connect(#[from] TransportError),
    #[error("attach to the announced stream")]
    Attach(#[from] tonic::Status),
}

/// Serves one announcement of the manager at `addr` to its end.
pub(crate) async fn serve(host: Arc<Host>, addr: String, announced: StreamAnnouncement) -> Result<(), StreamError> {
    let channel = tls_channel(&addr, &host.identity.current(), NodeRole::Manager).await?;
    let (to_manager, messages) = mpsc::channel(BUFFERED_MESSAGES);
    let hello = from_node::Message::Hello(StreamHello { stream_id: announced.stream_id.clone() });
    // The channel is new and has room.
    let _ = to_manager.send(wrap(hello)).await;
    let from_manager = StreamsClient::new(channel).attach(ReceiverStream::new(messages)).await?.into_inner();
    let failed = match run(&host, &announced, from_manager, to_manager.clone()).await {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let _ = to_manager.send(wrap(from_node::Message::Error(failed))).await;
    Ok(())
}

fn wrap(message: from_node::Message) -> FromNode {
    FromNode { message: Some(message) }
}

async fn run(
    host: &Host,
    announced: &StreamAnnouncement,
    mut from_manager: tonic::Streaming<orch_proto::wire::ToNode>,
    to_manager: mpsc::Sender<FromNode>,
) -> Result<(), String> {
    let task: TaskId = announced.task_id.parse().map_err(|error| format!("{error}"))?;
    match &announced.what {
        Some(What::Logs(options)) => {
            let mut lines = attach::logs(host, &task, options)?;
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
            let inputs = stream::unfold(from_manager, |mut from_manager| async move {
                loop {
                    match from_manager.message().await.ok()??.message? {
                        to_node::Message::Exec(input) => match input.input {
                            Some(input) => return Some((input, from_manager)),
                            None => continue,
                        },
                        to_node::Message::Cancel(_) => return None,
                    }
                }
            });
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
            let (ended, ()) = tokio::join!(attach::exec(host, &task, start, Box::pin(inputs), outputs), forward);
            ended
        }
        None => Err("this node's version does not know what the stream is for".to_owned()),
    }
}
