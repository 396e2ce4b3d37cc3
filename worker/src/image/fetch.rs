//! Fetches images from other nodes of the cluster, by digest only.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use oci_client::manifest::{OciDescriptor, OciManifest};
use orch_model::{assignment::ImageSource, node::NodeRole};
use orch_proto::{
    tls::SharedIdentity,
    transport::{TransportError, shared_channel},
    wire::{FetchBlobRequest, peer_client::PeerClient},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{Code, transport::Channel};

use super::{
    arrival::Arrival,
    pull::{MAX_INDEXES, PROGRESS_STEP_BYTES, Pace, Progress, asking, bytes_of, platform_manifest, report},
    store::{ImageStore, MAX_METADATA_BYTES, StoreError, StoredImage, UnpackedLayer},
};

const PARALLEL_BLOBS: usize = 4;
/// Without a byte for so long, the next holder is asked.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Whoever brings too little in this time is as good as one who brings nothing.
const PACE_WINDOW: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });
/// Nodes that give to as many as they can are asked again, before a registry is, which may not have the image.
const BUSY_LIMIT: Duration = Duration::from_secs(600);
/// They have let the asker wait already.
const BUSY_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 1000 });

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
    #[error("{holder} sends {digest} too slowly")]
    Drips { digest: String, holder: String },
    #[error("{0} is larger than its manifest says, or than a manifest or configuration may be")]
    TooLarge(String),
    #[error("the index {0} has no image for this machine")]
    Platform(String),
    #[error("store the image")]
    Store(#[from] StoreError),
    #[error("unpacking was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

impl FetchError {
    fn is_busy(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code() == Code::ResourceExhausted)
    }
}

/// Fetches the image of `from` and puts it into the store, without a name. The digest may be that of an index.
pub(crate) async fn fetch(
    store: &ImageStore,
    identity: &SharedIdentity,
    from: &ImageSource,
    progress: &Progress,
) -> Result<StoredImage, FetchError> {
    let arriving = store.arriving();
    asking(progress, "other nodes");
    let holders = Holders::reach(identity, from).await?;
    let fetcher = Fetcher { store, from, holders, progress };
    fetcher.blob(&from.digest).await?;
    let digest = fetcher.manifest_digest().await?;
    let manifest = store.manifest(&digest)?;
    fetcher.blob(&manifest.config.digest).await?;
    let diff_ids = store.config(&manifest.config.digest)?.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err(StoreError::LayerCount(digest).into());
    }
    let is_new = |layer: &&OciDescriptor| !store.has_blob(&layer.digest);
    for layer in manifest.layers.iter().filter(is_new) {
        report(progress, &layer.digest, bytes_of(layer), "waiting", 0);
    }
    let layers = manifest.layers.iter().zip(&diff_ids).enumerate();
    let downloads: Vec<_> =
        layers.map(|(n, (layer, diff_id))| fetcher.layer(n, &layer.digest, diff_id, bytes_of(layer))).collect();
    let unpacked: Vec<_> = stream::iter(downloads).buffer_unordered(PARALLEL_BLOBS).try_collect().await?;
    let store = store.clone();
    let stored = tokio::task::spawn_blocking(move || {
        // Moved in here: whoever gives up waiting does not end this work.
        let _arriving = arriving;
        store.publish(unpacked.into_iter().flatten().collect())?;
        store.add_image(&digest)
    });
    Ok(stored.await.map_err(FetchError::Interrupted)??)
}

#[derive(Clone)]
struct Holder {
    addr: String,
    client: PeerClient<Channel>,
}

/// In the order in which they have connected.
struct Holders {
    connected: Mutex<Vec<Holder>>,
    tries: tokio::sync::Mutex<JoinSet<Result<Holder, FetchError>>>,
}

impl Holders {
    /// Connects to all holders at once, so that a dead one costs no waiting while another answers. The ones that answer
    /// within a moment of the first share the work; the others are for when these cannot give it.
    async fn reach(identity: &SharedIdentity, from: &ImageSource) -> Result<Self, FetchError> {
        let mut tries: JoinSet<_> = from.holders.iter().map(|addr| connect(addr.clone(), identity.clone())).collect();
        let mut last = FetchError::NoHolder(from.digest.clone());
        while let Some(tried) = next(&mut tries).await {
            match tried {
                Ok(holder) => {
                    let mut connected = vec![holder];
                    let deadline = Instant::now() + HOLDER_GRACE;
                    while let Ok(Some(tried)) = timeout_at(deadline, next(&mut tries)).await {
                        connected.extend(tried);
                    }
                    return Ok(Self { connected: Mutex::new(connected), tries: tokio::sync::Mutex::new(tries) });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn connected(&self) -> MutexGuard<'_, Vec<Holder>> {
        // Each holder makes one change.
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for as many to connect, if they do.
    async fn nth(&self, n: usize) -> Option<Holder> {
        let found = || self.connected().get(n).cloned();
        if let Some(holder) = found() {
            return Some(holder);
        }
        let mut tries = self.tries.lock().await;
        loop {
            // Whoever waited before may have got it.
            if let Some(holder) = found() {
                return Some(holder);
            }
            match next(&mut tries).await? {
                Ok(holder) => self.connected().push(holder),
                Err(error) => tracing::info!(error = super::chain(&error), "a node with the image is not reached"),
            }
        }
    }
}

async fn next(tries: &mut JoinSet<Result<Holder, FetchError>>) -> Option<Result<Holder, FetchError>> {
    loop {
        // A try that panicked is one that failed.
        if let Ok(tried) = tries.join_next().await? {
            return Some(tried);
        }
    }
}

async fn connect(addr: String, identity: SharedIdentity) -> Result<Holder, FetchError> {
    match shared_channel(&addr, &identity, NodeRole::Worker).await {
        Ok(channel) => Ok(Holder { addr, client: PeerClient::new(channel) }),
        Err(source) => Err(FetchError::Connect { holder: addr, source }),
    }
}

const HOLDER_GRACE: Duration = Duration::from_millis(50);

/// What is fetched.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    digest: &'a str,
    /// More than this makes no sense; of a layer, all of it.
    limit: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A manifest or configuration.
    Metadata,
    /// A layer that is here unpacked.
    Layer,
    /// It is unpacked, too.
    NewLayer,
}

struct Fetcher<'a> {
    store: &'a ImageStore,
    from: &'a ImageSource,
    holders: Holders,
    progress: &'a Progress,
}

impl Fetcher<'_> {
    /// The digest of the manifest for this machine.
    async fn manifest_digest(&self) -> Result<String, FetchError> {
        let mut digest = self.from.digest.clone();
        for _ in 0..=MAX_INDEXES {
            let text = self.store.read_blob(&digest)?;
            let read: OciManifest = serde_json::from_slice(&text).map_err(|source| StoreError::Json {
                what: "manifest",
                digest: digest.clone(),
                source,
            })?;
            let OciManifest::ImageIndex(index) = read else { return Ok(digest) };
            let chosen = platform_manifest(&index).ok_or_else(|| FetchError::Platform(self.from.digest.clone()))?;
            self.blob(chosen).await?;
            chosen.clone_into(&mut digest);
        }
        Err(FetchError::Platform(self.from.digest.clone()))
    }

    /// A layer, unpacked aside; `None` when it is here.
    async fn layer(
        &self,
        n: usize,
        digest: &str,
        diff_id: &str,
        bytes: u64,
    ) -> Result<Option<(String, String, UnpackedLayer)>, FetchError> {
        if self.store.has_blob(digest) {
            return Ok(None);
        }
        let kind = if self.store.has_layer(diff_id) { Kind::Layer } else { Kind::NewLayer };
        let unpacked = self.one_after_another(n, Wanted { digest, limit: bytes, kind }).await?;
        report(self.progress, digest, bytes, "done", bytes);
        Ok(unpacked.map(|unpacked| (digest.to_owned(), diff_id.to_owned(), unpacked)))
    }

    async fn blob(&self, digest: &str) -> Result<(), FetchError> {
        if self.store.has_blob(digest) {
            return Ok(());
        }
        let wanted = Wanted { digest, limit: MAX_METADATA_BYTES, kind: Kind::Metadata };
        self.one_after_another(0, wanted).await.map(drop)
    }

    /// Asks the `n`th holder first, then the others, then those again that were busy; what one began the next goes on with.
    async fn one_after_another(&self, n: usize, wanted: Wanted<'_>) -> Result<Option<UnpackedLayer>, FetchError> {
        let digest = wanted.digest;
        let mut last = FetchError::NoHolder(digest.to_owned());
        let mut arrival = self.start(wanted).await?;
        let mut busy = VecDeque::new();
        let (first, give_up_at) = (self.holders.connected().len(), Instant::now() + BUSY_LIMIT);
        for turn in 0.. {
            let at = if turn < first { (n + turn) % first } else { turn };
            let holder = match self.holders.nth(at).await {
                Some(holder) => holder,
                None if Instant::now() >= give_up_at => break,
                None => {
                    let Some(again) = busy.pop_front() else { break };
                    sleep(BUSY_PAUSE).await;
                    again
                }
            };
            let is_gone_on_with = arrival.bytes > 0;
            let mut tried = self.all_from(&holder, wanted, arrival).await;
            if let Err((error, None)) = &tried
                && is_gone_on_with
            {
                // What is wrong may be what was there before.
                warn(digest, &holder, error);
                tried = self.all_from(&holder, wanted, self.start(wanted).await?).await;
            }
            let (error, left) = match tried {
                Ok(unpacked) => return Ok(unpacked),
                Err(failed) => failed,
            };
            if error.is_busy() {
                tracing::info!(digest, holder = holder.addr, "a node with the image is busy");
                busy.push_back(holder);
            } else {
                warn(digest, &holder, &error);
            }
            if self.store.has_blob(digest) {
                // It is what was asked for: nobody has a better one.
                return Err(error);
            }
            last = error;
            arrival = match left {
                Some(left) => *left,
                None => self.start(wanted).await?,
            };
        }
        Err(last)
    }

    async fn start(&self, wanted: Wanted<'_>) -> Result<Arrival, StoreError> {
        match wanted.kind {
            Kind::Metadata | Kind::Layer => Arrival::of_blob(self.store),
            Kind::NewLayer => Arrival::of_layer(self.store, wanted.digest).await,
        }
    }

    /// The rest of a blob from one holder. With the error comes what the next one may go on with.
    async fn all_from(
        &self,
        holder: &Holder,
        wanted: Wanted<'_>,
        mut arrival: Arrival,
    ) -> Result<Option<UnpackedLayer>, (FetchError, Option<Box<Arrival>>)> {
        match self.blob_from(holder, wanted, &mut arrival).await {
            Ok(()) => arrival.finish(wanted.digest).await.map_err(|error| (error.into(), None)),
            Err(error @ (FetchError::Stalled { .. } | FetchError::Drips { .. } | FetchError::Refused { .. })) => {
                Err((error, Some(Box::new(arrival))))
            }
            Err(error) => {
                arrival.spoil();
                Err((error, None))
            }
        }
    }

    async fn blob_from(
        &self,
        holder: &Holder,
        Wanted { digest, limit, kind }: Wanted<'_>,
        arrival: &mut Arrival,
    ) -> Result<(), FetchError> {
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
            offset: arrival.bytes,
        };
        let mut client = holder.client.clone();
        let answered = timeout(STALL_TIMEOUT, client.fetch_blob(request)).await.map_err(|_| stalled())?;
        let mut chunks = answered.map_err(refused)?.into_inner();
        let arrives = |bytes| {
            if kind != Kind::Metadata {
                report(self.progress, digest, limit, "downloading", bytes);
            }
        };
        arrives(arrival.bytes);
        let mut pace = Pace::new(Instant::now(), arrival.bytes, PACE_WINDOW);
        while let Some(chunk) =
            timeout(STALL_TIMEOUT, chunks.message()).await.map_err(|_| stalled())?.map_err(refused)?
        {
            if arrival.bytes + chunk.data.len() as u64 > limit {
                return Err(FetchError::TooLarge(digest.to_owned()));
            }
            let before = arrival.bytes;
            arrival.append(chunk.data).await?;
            if before / PROGRESS_STEP_BYTES != arrival.bytes / PROGRESS_STEP_BYTES {
                arrives(arrival.bytes);
            }
            if pace.drips(Instant::now(), arrival.bytes) {
                return Err(FetchError::Drips { digest: digest.to_owned(), holder: holder.addr.clone() });
            }
        }
        Ok(())
    }
}

fn warn(digest: &str, holder: &Holder, error: &FetchError) {
    tracing::warn!(digest, holder = holder.addr, error = super::chain(error), "fetching from a node failed");
}
