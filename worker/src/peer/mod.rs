//! Gives image blobs to other nodes: 7946/tcp, mutual TLS, and only with a manager's grant.
//!
//! Invariant: a blob leaves this node only when a grant signed by the cluster's CA names the calling node and an image
//! that the blob belongs to, and has not expired, and when the caller is still one of the cluster's nodes.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::stream::BoxStream;
use orch_model::{NodeId, node::NodeRole};
use orch_proto::{
    ca::verify_blob,
    tls::{PeerIdentity, SharedIdentity, require_role},
    transport::tls_incoming,
    wire::{
        BlobChunk, FetchBlobRequest, FetchGrant, SignedGrant,
        peer_server::{Peer, PeerServer},
    },
};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    net::TcpListener,
    sync::{Semaphore, watch},
    time::timeout,
};
use tonic::{Request, Response, Status, transport::Server};

use crate::{agent::unix_ms, image::store::ImageStore};

/// Where workers give images to each other.
pub(crate) const PEER_PORT: u16 = 7946;
const CHUNK_BYTES: usize = 256 << 10;
/// For word of a new node to arrive here.
const NEWCOMER_GRACE: Duration = Duration::from_secs(2);
/// Blobs that are sent at once; more wait.
const MAX_FETCHES: usize = 32;
/// For so long, less than it takes for this node to count as dead; then the asker may try another.
const SLOT_LIMIT: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5000 });

#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("listen on {addr}: is another program using the port?")]
    Listen {
        addr: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("serve images to other nodes")]
    Serve(#[from] tonic::transport::Error),
}

/// Why a grant does not allow a fetch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GrantError {
    #[error("the grant cannot be read")]
    Unreadable,
    #[error("the grant is not signed by this cluster")]
    Signature,
    #[error("the grant is for another node")]
    AnotherNode,
    #[error("the grant is for another image")]
    AnotherImage,
    #[error("the grant has expired")]
    Expired,
}

/// Opens the port, so that a taken one is an error at start.
pub(crate) async fn listen(addr: SocketAddr) -> Result<TcpListener, PeerError> {
    TcpListener::bind(addr).await.map_err(|source| PeerError::Listen { addr, source })
}

/// Serves until the process ends.
pub(crate) async fn serve(
    listener: TcpListener,
    identity: SharedIdentity,
    store: ImageStore,
    members: Members,
) -> Result<(), PeerError> {
    let service = Blobs { identity: identity.clone(), store, slots: Arc::new(Semaphore::new(MAX_FETCHES)), members };
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .add_service(PeerServer::new(service));
    Ok(server.serve_with_incoming(tls_incoming(listener, identity)).await?)
}

/// Checks a grant for what a caller wants.
pub(crate) fn check_grant(
    root_pem: &str,
    caller: &PeerIdentity,
    request: &FetchBlobRequest,
    now: SystemTime,
) -> Result<(), GrantError> {
    let signed = SignedGrant::decode(request.grant.clone()).map_err(|_| GrantError::Unreadable)?;
    verify_blob(root_pem, &signed.grant, &signed.signature).map_err(|_| GrantError::Signature)?;
    let grant = FetchGrant::decode(signed.grant).map_err(|_| GrantError::Unreadable)?;
    if grant.node_id != caller.node_id.as_str() {
        return Err(GrantError::AnotherNode);
    }
    if grant.image_digest != request.image_digest {
        return Err(GrantError::AnotherImage);
    }
    if grant.expires_at_ms <= unix_ms(now) {
        return Err(GrantError::Expired);
    }
    Ok(())
}

/// The cluster's nodes as this one was told last; grants outlive nodes that are removed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Members(watch::Sender<BTreeSet<String>>);

impl Members {
    pub(crate) fn set(&self, node_ids: BTreeSet<String>) {
        self.0.send_if_modified(|known| {
            let is_new = *known != node_ids;
            *known = node_ids;
            is_new
        });
    }

    /// Whether the node is in the cluster. One that is not known may be new: word of it gets a moment to arrive. A node
    /// that was told of nobody cannot tell.
    async fn has(&self, node: &NodeId) -> bool {
        let mut members = self.0.subscribe();
        let known = members.wait_for(|known| known.is_empty() || known.contains(node.as_str()));
        timeout(NEWCOMER_GRACE, known).await.is_ok()
    }
}

struct Blobs {
    identity: SharedIdentity,
    store: ImageStore,
    slots: Arc<Semaphore>,
    members: Members,
}

#[tonic::async_trait]
impl Peer for Blobs {
    type FetchBlobStream = BoxStream<'static, Result<BlobChunk, Status>>;

    async fn fetch_blob(&self, request: Request<FetchBlobRequest>) -> Result<Response<Self::FetchBlobStream>, Status> {
        let caller = require_role(&request, &[NodeRole::Worker])?;
        let request = request.into_inner();
        let root_pem = &self.identity.current().root_pem;
        check_grant(root_pem, &caller, &request, SystemTime::now())
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        if !self.members.has(&caller.node_id).await {
            return Err(Status::permission_denied(
                "this node is not in the cluster, as far as the one with the image knows",
            ));
        }
        self.check_belongs(&request)?;
        let busy = |_| Status::resource_exhausted(format!("the node gives {MAX_FETCHES} blobs to others already"));
        let slot = timeout(SLOT_LIMIT, self.slots.clone().acquire_owned()).await.map_err(busy)?;
        let slot = slot.map_err(|_| Status::unavailable("shutting down"))?;
        let path =
            self.store.blob_path(&request.digest).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let absent = |error: std::io::Error| Status::not_found(format!("blob {}: {error}", request.digest));
        let mut file = tokio::fs::File::open(path).await.map_err(absent)?;
        let total_bytes = file.metadata().await.map_err(absent)?.len();
        file.seek(std::io::SeekFrom::Start(request.offset)).await.map_err(absent)?;
        let chunks = async_stream::try_stream! {
            let _slot = slot;
            loop {
                let mut data = Vec::with_capacity(CHUNK_BYTES);
                let read = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data).await;
                if read.map_err(|error| Status::internal(error.to_string()))? == 0 {
                    break;
                }
                yield BlobChunk { data: Bytes::from(data), total_bytes };
            }
        };
        Ok(Response::new(Box::pin(chunks)))
    }
}

impl Blobs {
    /// The grant is for an image; only its own blobs may be had with it.
    fn check_belongs(&self, request: &FetchBlobRequest) -> Result<(), Status> {
        if request.digest == request.image_digest {
            return Ok(());
        }
        let image = self.store.by_digest(&request.image_digest);
        let image = image.ok_or_else(|| Status::not_found(format!("image {} is not here", request.image_digest)))?;
        if image.digest == request.digest
            || image.record.config == request.digest
            || image.record.layers.contains(&request.digest)
        {
            Ok(())
        } else {
            Err(Status::permission_denied("the blob does not belong to the image of the grant"))
        }
    }
}

#[cfg(test)]
mod tests;
