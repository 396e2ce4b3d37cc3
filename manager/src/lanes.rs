//! Two servers behind one port: raft's messages are answered on raft's own thread, everything else on the others.
//!
//! A message of raft that arrives on a thread of the API has to wake raft's, and its answer has to wake the other again:
//! that is most of the time of a write on a quiet machine. Which connection is which is the client's word, heard from
//! managers only; what may be called on it the gate decides as everywhere.

use std::io;

use futures::{Stream, StreamExt};
use orch_proto::transport::TlsConnection;
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// Connections that a server has not picked up yet.
const READY: usize = 64;

/// Connections for one server.
pub(crate) type Lane = ReceiverStream<io::Result<TlsConnection>>;

/// Raft's connections, moved to its runtime, and all others. Ends when nobody takes the others any more.
pub(crate) fn split(
    incoming: impl Stream<Item = io::Result<TlsConnection>> + Send + 'static,
    raft: Handle,
) -> (Lane, Lane) {
    let (to_raft, for_raft) = mpsc::channel(READY);
    let (to_others, others) = mpsc::channel(READY);
    tokio::spawn(async move {
        let mut incoming = std::pin::pin!(incoming);
        loop {
            let connection = tokio::select! {
                () = to_others.closed() => return,
                connection = incoming.next() => connection,
            };
            let lane = match connection {
                None => return,
                Some(Ok(mut connection)) if connection.is_for_raft() => match connection.move_to(&raft) {
                    Ok(()) => to_raft.send(Ok(connection)).await,
                    Err(error) => {
                        tracing::warn!(%error, "cannot take over a connection of another manager");
                        continue;
                    }
                },
                Some(other) => to_others.send(other).await,
            };
            if lane.is_err() {
                return;
            }
        }
    });
    (ReceiverStream::new(for_raft), ReceiverStream::new(others))
}
