//! Fetches images from other nodes of the cluster, by digest only.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use orch_model::{assignment::ImageSource, node::NodeRole};
use orch_proto::{
    tls::{Identity, SharedIdentity},
    transport::{TransportError, tls_channel},
    wire::{FetchBlobRequest, peer_client::PeerClient},
};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;

use super::store::{ImageStore, MAX_METADATA_BYTES, StoreError, StoredImage};

const PARALLEL_BLOBS: usize = 4;
/// Without a byte for so long, the next holder is asked.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("no node is known to hold {0}")]
    NoHolder(String),
    #[error("reach the node at {holder}")]
    Connect {
        holder: String,
        #[source]
        source: TransportError,
    },
    #[error("fetch {digest} from {holder}: {}", .status.message())]
    Refused { digest: String, holder: String, status: Box<tonic::Status> },
    #[error("{holder} stopped sending {digest}")]
    Stalled { digest: String, holder: String },
    #[error("{0} is larger than a manifest or configuration may be")]
    TooLarge(String),
    #[error("store the image")]
    Store(#[from] StoreError),
    #[error("unpacking was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

/// Fetches the image of `from` and puts it into the store, without a name.
pub(crate) async fn fetch(
    store: &ImageStore,
    identity: &SharedIdentity,
    from: &ImageSource,
) -> Result<StoredImage, FetchError> {
    let _arriving = store.arriving();
    let holders = reachable(identity, from).await?;
    let fetcher = Fetcher { store, from, holders };
    fetcher.blob(0, &from.digest, Some(MAX_METADATA_BYTES)).await?;
    let manifest = store.manifest(&from.digest)?;
    fetcher.blob(0, &manifest.config.digest, Some(MAX_METADATA_BYTES)).await?;
    let downloads: Vec<_> =
        manifest.layers.iter().enumerate().map(|(n, layer)| fetcher.blob(n, &layer.digest, None)).collect();
    stream::iter(downloads).buffer_unordered(PARALLEL_BLOBS).try_collect::<Vec<()>>().await?;
    let (store, digest) = (store.clone(), from.digest.clone());
    let image = tokio::task::spawn_blocking(move || store.add_image(&digest)).await.map_err(FetchError::Interrupted)?;
    Ok(image?)
}

struct Holder {
    addr: String,
    client: PeerClient<Channel>,
}

/// Connects to all holders at once, so that a dead one costs no waiting while another answers.
async fn reachable(identity: &SharedIdentity, from: &ImageSource) -> Result<Vec<Holder>, FetchError> {
    let identity = identity.current();
    let connects: Vec<_> = from.holders.iter().map(|addr| connect(addr.clone(), identity.clone())).collect();
    let (mut holders, mut last) = (Vec::new(), FetchError::NoHolder(from.digest.clone()));
    let mut tries = stream::iter(connects).buffer_unordered(from.holders.len().max(1));
    while let Some(tried) = tries.next().await {
        match tried {
            Ok(holder) => {
                holders.push(holder);
                // The ones that answer within a moment of the first share the work.
                let deadline = Instant::now() + HOLDER_GRACE;
                while let Ok(Some(tried)) = timeout_at(deadline, tries.next()).await {
                    holders.extend(tried);
                }
                return Ok(holders);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect(addr: String, identity: Arc<Identity>) -> Result<Holder, FetchError> {
    match tls_channel(&addr, &identity, NodeRole::Worker).await {
        Ok(channel) => Ok(Holder { addr, client: PeerClient::new(channel) }),
        Err(source) => Err(FetchError::Connect { holder: addr, source }),
    }
}

const HOLDER_GRACE: Duration = Duration::from_millis(50);

struct Fetcher<'a> {
    store: &'a ImageStore,
    from: &'a ImageSource,
    holders: Vec<Holder>,
}

impl Fetcher<'_> {
    /// Asks the `n`th holder first, then the others.
    async fn blob(&self, n: usize, digest: &str, limit: Option<u64>) -> Result<(), FetchError> {
        if self.store.has_blob(digest) {
            return Ok(());
        }
        let mut last = FetchError::NoHolder(digest.to_owned());
        for turn in 0..self.holders.len() {
            let holder = &self.holders[(n + turn) % self.holders.len()];
            match self.blob_from(holder, digest, limit).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(digest, holder = holder.addr, %error, "fetching from a node failed");
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn blob_from(&self, holder: &Holder, digest: &str, limit: Option<u64>) -> Result<(), FetchError> {
        let refused = |status: tonic::Status| FetchError::Refused {
            digest: digest.to_owned(),
            holder: holder.addr.clone(),
            status: Box::new(status),
        };
        let stalled = || FetchError::Stalled { digest: digest.to_owned(), holder: holder.addr.clone() };
        let request = FetchBlobRequest {
            digest: digest.to_owned(),
            image_digest: self.from.digest.clone(),
            grant: Bytes::copy_from_slice(&self.from.grant),
            offset: 0,
        };
        let mut client = holder.client.clone();
        let answered = timeout(STALL_TIMEOUT, client.fetch_blob(request)).await.map_err(|_| stalled())?;
        let mut chunks = answered.map_err(refused)?.into_inner();
        let mut writer = self.store.blob_writer()?;
        let mut bytes = 0;
        while let Some(chunk) =
            timeout(STALL_TIMEOUT, chunks.message()).await.map_err(|_| stalled())?.map_err(refused)?
        {
            bytes += chunk.data.len() as u64;
            if limit.is_some_and(|limit| bytes > limit) {
                return Err(FetchError::TooLarge(digest.to_owned()));
            }
            writer.append(&chunk.data)?;
        }
        tokio::task::block_in_place(|| writer.commit(Some(digest)))?;
        Ok(())
    }
}
