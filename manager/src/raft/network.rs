//! Raft messages to other managers, over mutual TLS.
//!
//! Every call has a time limit, and the connections probe their peer: without both, a manager that vanished without a
//! word would hold up replication for ever.

use std::{future::Future, time::Duration};

use bytes::BytesMut;
use futures::StreamExt;
use openraft::{
    RPCTypes, RaftNetworkFactory, RaftNetworkV2,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use orch_model::{ClusterId, node::NodeRole};
use orch_proto::{
    tls::SharedIdentity,
    transport,
    wire::{self, raft_client::RaftClient},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, metadata::MetadataValue, transport::Channel};

use super::{
    machine::Image,
    snapshot,
    types::{Member, SnapshotMeta, TypeConfig, Vote},
    wire as convert,
};

/// For messages with entries; openraft's own limit is a heartbeat, too short for megabytes.
const APPEND_LIMIT: Duration = Duration::from_secs(5);
const VOTE_LIMIT: Duration = Duration::from_secs(1);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Without progress of one chunk for this long, a snapshot is given up.
const SNAPSHOT_CHUNK_LIMIT: Duration = Duration::from_secs(10);
const SNAPSHOT_INSTALL_LIMIT: Duration = Duration::from_secs(60);
const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;
/// Chunks on their way at once.
const SNAPSHOT_CHUNKS_AHEAD: usize = 4;
/// The largest message that a manager takes from another.
pub const MESSAGE_LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// Metadata: the raft number that a message is for. A manager that lost its log has the same address and another number;
/// what it says must never count as said by the one that it was.
pub(super) const TARGET_KEY: &str = "orch-raft-to";

type RpcError = RPCError<TypeConfig>;

/// Makes the connections of this manager.
pub(crate) struct Network {
    pub(crate) own_id: u64,
    pub(crate) cluster: ClusterId,
    pub(crate) identity: SharedIdentity,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, member: &Member) -> Peer {
        Peer {
            own_id: self.own_id,
            target,
            addr: member.addr.clone(),
            cluster: self.cluster.clone(),
            identity: self.identity.clone(),
            client: None,
        }
    }
}

/// The connection to one manager; made when first needed, and again after it broke.
pub(crate) struct Peer {
    own_id: u64,
    target: u64,
    addr: String,
    cluster: ClusterId,
    identity: SharedIdentity,
    client: Option<RaftClient<Channel>>,
}

impl Peer {
    async fn client(&mut self) -> Result<RaftClient<Channel>, RpcError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let identity = self.identity.current();
        let connecting = transport::tls_channel(&self.addr, &identity, NodeRole::Manager);
        let channel = match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(RPCError::Unreachable(Unreachable::new(&error))),
            Err(elapsed) => return Err(RPCError::Unreachable(Unreachable::new(&elapsed))),
        };
        let client = RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
            .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
        self.client = Some(client.clone());
        Ok(client)
    }

    fn addressed<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert(TARGET_KEY, MetadataValue::from(self.target));
        request
    }

    /// One call with its time limit. A connection that failed is not used again.
    async fn call<T>(
        &mut self,
        action: RPCTypes,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                self.client = None;
                Err(status_error(&status))
            }
            Err(_) => {
                self.client = None;
                let (id, target) = (self.own_id, self.target);
                Err(RPCError::Timeout(Timeout { action, id, target, timeout: limit }))
            }
        }
    }

    async fn ask_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        pre: bool,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let mut client = self.client().await?;
        let message = convert::vote_request(&request, pre);
        let message = self.addressed(message);
        let response = self.call(RPCTypes::Vote, VOTE_LIMIT, client.vote(message)).await?;
        convert::vote_response_from(response).map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = Image;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let mut client = self.client().await?;
        let limit = if request.entries.is_empty() { option.hard_ttl().max(VOTE_LIMIT) } else { APPEND_LIMIT };
        let message = self.addressed(convert::append_request(&request, request.entries.len()));
        let response = self.call(RPCTypes::AppendEntries, limit, client.append_entries(message)).await?;
        convert::append_response_from(response).map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_vote(request, false).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_vote(request, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, Image>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.client().await?;
        let (chunks, outgoing) = mpsc::channel(SNAPSHOT_CHUNKS_AHEAD);
        let cluster = self.cluster.clone();
        let encoder = tokio::task::spawn_blocking(move || {
            send_chunks(&cluster, &vote, &snapshot.meta, &snapshot.snapshot, &chunks)
        });
        let (stream, stalled) = watched(ReceiverStream::new(outgoing));
        let call = client.snapshot(self.addressed(stream));
        let response = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            () = stalled => {
                let (id, target) = (self.own_id, self.target);
                let timeout = SNAPSHOT_CHUNK_LIMIT;
                self.client = None;
                return Err(Timeout { action: RPCTypes::InstallSnapshot, id, target, timeout }.into());
            }
            response = call => response,
        };
        drop(encoder);
        let response = response.map_err(|status| {
            self.client = None;
            StreamingError::from(status_error(&status))
        })?;
        let vote = response.into_inner().vote.ok_or(convert::WireError::Missing("vote")).and_then(convert::vote_from);
        vote.map(SnapshotResponse::new).map_err(|e| StreamingError::Network(NetworkError::new(&e)))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let mut client = self.client().await?;
        let message = self.addressed(convert::transfer_request(&request));
        self.call(RPCTypes::TransferLeader, VOTE_LIMIT, client.transfer_leader(message)).await.map(|_| Ok(()))
    }
}

/// The stream, and a future that completes when nothing was taken from it for too long.
fn watched<S>(stream: S) -> (impl futures::Stream<Item = S::Item> + Send, impl Future<Output = ()>)
where
    S: futures::Stream + Send + 'static,
{
    let (taken, mut progress) = mpsc::channel::<()>(1);
    let stream = stream.inspect(move |_| {
        // Full: progress was noted already.
        let _ = taken.try_send(());
    });
    let stalled = async move {
        while let Ok(Some(())) = tokio::time::timeout(SNAPSHOT_CHUNK_LIMIT, progress.recv()).await {}
        // All was taken (or nothing is any more): the receiver installs the snapshot before it answers.
        tokio::time::sleep(SNAPSHOT_INSTALL_LIMIT).await;
    };
    (stream, stalled)
}

/// Encodes the snapshot, about a megabyte at a time, until the receiver is gone.
fn send_chunks(
    cluster: &ClusterId,
    vote: &Vote,
    meta: &SnapshotMeta,
    image: &Image,
    chunks: &mpsc::Sender<wire::SnapshotChunk>,
) {
    let mut chunk = wire::SnapshotChunk {
        vote: Some(convert::vote(vote)),
        meta: Some(convert::snapshot_meta(meta)),
        data: bytes::Bytes::new(),
    };
    let mut data = BytesMut::with_capacity(SNAPSHOT_CHUNK_BYTES);
    for frame in snapshot::frames(cluster, &image.state) {
        data.extend_from_slice(&frame);
        while data.len() >= SNAPSHOT_CHUNK_BYTES {
            chunk.data = data.split_to(SNAPSHOT_CHUNK_BYTES).freeze();
            if chunks.blocking_send(std::mem::take(&mut chunk)).is_err() {
                return;
            }
        }
    }
    chunk.data = data.freeze();
    // The receiver is gone: the call has ended with an error of its own.
    let _ = chunks.blocking_send(chunk);
}

/// Any failed call counts as a peer that cannot be reached now, so that openraft pauses before it tries again.
fn status_error(status: &Status) -> RpcError {
    RPCError::Unreachable(Unreachable::new(status))
}
