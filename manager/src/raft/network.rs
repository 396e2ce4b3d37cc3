//! Raft messages to other managers, over mutual TLS.
//!
//! Every call has a time limit, and the connections probe their peer: without both, a manager that vanished without a
//! word would hold up replication for ever.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream};
use openraft::{
    RPCTypes, RaftNetworkFactory, RaftNetworkV2,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use orch_model::ClusterId;
use orch_proto::{
    tls::SharedIdentity,
    transport::{self, TransportError},
    wire::{self, raft_client::RaftClient},
};
use tokio::sync::mpsc;
use tonic::{Status, body::Body, metadata::MetadataValue};
use tower::{BoxError, ServiceExt, util::BoxCloneSyncService};

use super::{
    blocking::blocking,
    machine::Image,
    snapshot::Encoder,
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
/// The largest message that a manager takes from another.
pub const MESSAGE_LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// Metadata: the raft number that a message is for. A manager that lost its log has the same address and another number;
/// what it says must never count as said by the one that it was.
pub(super) const TARGET_KEY: &str = "orch-raft-to";

type RpcError = RPCError<TypeConfig>;

/// A connection to another manager: takes calls, gives answers.
pub type Link = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Broken>;

/// A connection that broke during a call.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Broken(#[from] pub BoxError);

/// How other managers are reached.
pub trait Dial: Send + Sync + 'static {
    /// Connects to the manager at `addr` (`HOST:PORT`).
    fn dial(&self, addr: &str) -> BoxFuture<'static, Result<Link, TransportError>>;
}

/// Over TCP, with this manager's certificate.
pub struct TlsDial(pub SharedIdentity);

impl Dial for TlsDial {
    fn dial(&self, addr: &str) -> BoxFuture<'static, Result<Link, TransportError>> {
        let (identity, addr) = (self.0.clone(), addr.to_owned());
        Box::pin(async move {
            let channel = transport::raft_channel(&addr, &identity).await?;
            Ok(BoxCloneSyncService::new(channel.map_err(|error| Broken(error.into()))))
        })
    }
}

/// A client of the manager at `addr`.
pub(super) async fn connect(dial: &dyn Dial, addr: &str) -> Result<RaftClient<Link>, TransportError> {
    let link = tokio::time::timeout(CONNECT_LIMIT, dial.dial(addr))
        .await
        .map_err(|_| TransportError::TimedOut { addr: addr.to_owned(), limit: CONNECT_LIMIT })??;
    let client = RaftClient::new(link);
    Ok(client.max_decoding_message_size(MESSAGE_LIMIT_BYTES).max_encoding_message_size(MESSAGE_LIMIT_BYTES))
}

/// A call for the manager with this raft number and no other.
pub(super) fn addressed<T>(target: u64, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(TARGET_KEY, MetadataValue::from(target));
    request
}

/// The managers that refused the last word of this one, or could not be given it: known before the time is up after which
/// a silent one counts as gone. A dead process refuses connections, a locked manager or one that lost its log says so.
#[derive(Clone, Default)]
pub(super) struct Refusals(Arc<RwLock<BTreeSet<u64>>>);

impl Refusals {
    pub(super) fn contains(&self, raft_id: u64) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&raft_id)
    }

    /// What came of a message. Silence is none: it may be a slow network.
    fn note<T>(&self, raft_id: u64, outcome: &Result<T, RpcError>) {
        let refused = match outcome {
            Ok(_) => false,
            Err(RPCError::Unreachable(_)) => true,
            Err(_) => return,
        };
        if self.contains(raft_id) == refused {
            return;
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let _ = if refused { all.insert(raft_id) } else { all.remove(&raft_id) };
    }
}

/// Makes the connections of this manager.
pub(crate) struct Network {
    pub(crate) own_id: u64,
    pub(crate) cluster: ClusterId,
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) chunk_bytes: usize,
    pub(super) refusals: Refusals,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, member: &Member) -> Peer {
        Peer {
            own_id: self.own_id,
            target,
            addr: member.addr.clone(),
            cluster: self.cluster.clone(),
            dial: Arc::clone(&self.dial),
            chunk_bytes: self.chunk_bytes,
            refusals: self.refusals.clone(),
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
    dial: Arc<dyn Dial>,
    chunk_bytes: usize,
    refusals: Refusals,
    client: Option<RaftClient<Link>>,
}

impl Peer {
    async fn client(&mut self) -> Result<RaftClient<Link>, RpcError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let connected = connect(self.dial.as_ref(), &self.addr).await;
        let client = connected.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))?;
        self.client = Some(client.clone());
        Ok(client)
    }

    fn addressed<T>(&self, message: T) -> tonic::Request<T> {
        addressed(self.target, message)
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

    /// The snapshot piece by piece, each encoded when it is asked for.
    fn chunks(
        &self,
        vote: &Vote,
        meta: &SnapshotMeta,
        image: Image,
    ) -> impl futures::Stream<Item = wire::SnapshotChunk> + Send + use<> {
        let heading = wire::SnapshotChunk {
            vote: Some(convert::vote(vote)),
            meta: Some(convert::snapshot_meta(meta)),
            data: bytes::Bytes::new(),
        };
        let (encoder, size) = (Encoder::new(&self.cluster, image.state), self.chunk_bytes);
        stream::unfold((heading, encoder), move |(heading, mut encoder)| async move {
            let encoded = blocking(move || (encoder.next_chunk(size), encoder)).await;
            // Encoding that failed ends the stream early, and the receiver refuses what it got.
            let (data, encoder) = encoded.ok()?;
            Some((wire::SnapshotChunk { data: data?, ..heading }, (wire::SnapshotChunk::default(), encoder)))
        })
    }

    async fn append(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        limit: Duration,
    ) -> Result<wire::AppendEntriesResponse, RpcError> {
        let mut client = self.client().await?;
        let message = self.addressed(convert::append_request(&request, request.entries.len()));
        self.call(RPCTypes::AppendEntries, limit, client.append_entries(message)).await
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
        let limit = if request.entries.is_empty() { option.hard_ttl().max(VOTE_LIMIT) } else { APPEND_LIMIT };
        let appended = self.append(request, limit).await;
        self.refusals.note(self.target, &appended);
        convert::append_response_from(appended?).map_err(|e| RPCError::Network(NetworkError::new(&e)))
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
        let (stream, stalled) = watched(self.chunks(&vote, &snapshot.meta, snapshot.snapshot));
        let call = client.snapshot(self.addressed(stream));
        let response = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            () = stalled => {
                let (id, target) = (self.own_id, self.target);
                let timeout = SNAPSHOT_CHUNK_LIMIT;
                self.client = None;
                return Err(Timeout { action: RPCTypes::InstallSnapshot, id, target, timeout }.into());
            }
            response = call => response,
        };
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
        loop {
            match tokio::time::timeout(SNAPSHOT_CHUNK_LIMIT, progress.recv()).await {
                Ok(Some(())) => {}
                // All was taken: the receiver installs the snapshot before it answers.
                Ok(None) => return tokio::time::sleep(SNAPSHOT_INSTALL_LIMIT).await,
                Err(_) => return,
            }
        }
    };
    (stream, stalled)
}

/// Any failed call counts as a peer that cannot be reached now, so that openraft pauses before it tries again.
fn status_error(status: &Status) -> RpcError {
    RPCError::Unreachable(Unreachable::new(status))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn who_refused_counts_until_it_answers_and_silence_changes_nothing() {
        let refusals = Refusals::default();
        let timeout = Duration::from_secs(1);
        let silence = || Err(RPCError::Timeout(Timeout { action: RPCTypes::AppendEntries, id: 1, target: 2, timeout }));
        let refusal = || Err(status_error(&Status::failed_precondition("locked")));
        let after = |outcome: Result<(), RpcError>| {
            refusals.note(2, &outcome);
            assert!(!refusals.contains(3));
            refusals.contains(2)
        };
        assert!(!after(silence()));
        assert!(after(refusal()));
        assert!(after(silence()));
        assert!(!after(Ok(())));
        assert!(!after(silence()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_that_stalls_is_given_up_before_one_that_is_installed() {
        let start = Instant::now();
        let (mut stream, stalled) = watched(stream::iter(0..5));
        let stalled = tokio::spawn(stalled);
        for _ in 0..2 {
            tokio::time::sleep(SNAPSHOT_CHUNK_LIMIT - Duration::from_secs(1)).await;
            stream.next().await.unwrap();
        }
        let taken = start.elapsed();
        stalled.await.unwrap();
        assert_eq!(start.elapsed(), taken + SNAPSHOT_CHUNK_LIMIT);

        let start = Instant::now();
        let (stream, stalled) = watched(stream::iter(0..5));
        assert_eq!(stream.count().await, 5);
        stalled.await;
        assert_eq!(start.elapsed(), SNAPSHOT_INSTALL_LIMIT);
    }
}
