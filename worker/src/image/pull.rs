//! Pulls images from registries (OCI distribution, version 2).
//!
//! Everything is checked by digest on arrival. A layer is unpacked while it is downloaded.

use std::{cmp::Ordering, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::{
    errors::{OciDistributionError, OciErrorCode},
    manifest::{ImageIndexEntry, OciDescriptor, OciImageIndex, OciImageManifest, OciManifest},
};
use orch_proto::wire;
use reqwest::StatusCode;
use tokio::{sync::mpsc, time::Instant};

use self::{asker::Asker, patience::Patience};
use super::{
    arrival::Arrival,
    import::architecture,
    reference::{Reference, is_digest},
    registry::{Endpoint, endpoints, of_host},
    store::{ImageStore, StoreError, StoredImage, UnpackedLayer},
};
use crate::config::RegistryConfig;

const PARALLEL_LAYERS: usize = 3;
/// Deepest index in an index that is followed.
pub(super) const MAX_INDEXES: usize = 4;
/// A download that brings less than this in [`PACE_WINDOW`] has broken off: what only drips would go on for ever, and no room
/// is made on the disk while something arrives.
const SLOWEST_BYTES: u64 = 60 << 10;
const PACE_WINDOW: Duration = Duration::from_secs(60);
const RESUME_PAUSE: Duration = Duration::from_millis(500);
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json";

#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    /// The registry answered that it has no such image, or none that strangers may see.
    #[error("registry {registry} has no image {image}, or asks for a login")]
    NotFound { registry: String, image: String },
    #[error("no route to registry {registry}: {reason}")]
    Unreachable { registry: String, reason: String },
    /// What it sends one on to, which is another's machine.
    #[error("registry {registry} sends one on to {target}, which cannot be used: {reason}")]
    Elsewhere { registry: String, target: String, reason: String },
    #[error("registry {registry}: {reason}")]
    Registry { registry: String, reason: String },
    #[error("no matching manifest for linux/{arch} in the manifest list of {image}")]
    Platform { image: String, arch: &'static str },
    #[error("{image} is no container image, but {what}")]
    NoImage { image: String, what: String },
    #[error("read the manifest of {image}")]
    Manifest {
        image: String,
        #[source]
        source: serde_json::Error,
    },
    /// An answer that may be another one soon.
    #[error("registry {registry}: {reason}")]
    Busy { registry: String, reason: String, wanted: Option<Duration> },
    /// Without an answer.
    #[error("registry {registry} broke off the connection: {reason}")]
    Cut { registry: String, reason: String },
    #[error("registry {registry}: the transfer of {digest} broke off: {reason}")]
    BrokeOff { registry: String, digest: String, reason: String },
    #[error("denied: requested access to the resource is denied: log in with `orch login` to push {image}")]
    Denied { image: String },
    #[error("registry {registry} refuses the login: incorrect username or password")]
    Login { registry: String },
    #[error("store the image")]
    Store(#[from] StoreError),
}

impl PullError {
    /// Whether it lies between here and there, so that another attempt may get through.
    pub(super) fn is_of_the_way(&self) -> bool {
        matches!(self, Self::BrokeOff { .. } | Self::Cut { .. } | Self::Unreachable { .. } | Self::Elsewhere { .. })
    }
}

/// Receives progress; may be dropped at any time.
pub(crate) type Progress = mpsc::Sender<wire::PullProgress>;

/// Pulls `reference` and puts it into the store, named by its digest alone; with it the digest of the index that it was
/// chosen from.
pub(crate) async fn pull(
    store: &ImageStore,
    registries: &RegistryConfig,
    reference: &Reference,
    login: Option<&wire::RegistryAuth>,
    progress: &Progress,
) -> Result<(StoredImage, Option<String>), PullError> {
    let _arriving = store.arriving();
    let mut tried = Tried::default();
    for endpoint in endpoints(registries, &reference.registry) {
        asking(progress, &endpoint.host);
        let pulled = match Asker::new(&endpoint, reference, login) {
            Ok(asker) => Session { store, asker }.pull(progress).await,
            Err(error) => Err(error),
        };
        if let Some(done) = tried.counts(&endpoint, reference, pulled) {
            return done;
        }
    }
    Err(tried.failure(&reference.registry))
}

/// The digest of what `reference` means at its registry now: of the index, where there is one.
pub(crate) async fn resolve(
    registries: &RegistryConfig,
    reference: &Reference,
    login: Option<&wire::RegistryAuth>,
) -> Result<String, PullError> {
    let mut tried = Tried::default();
    for endpoint in endpoints(registries, &reference.registry) {
        let resolved = resolve_at(&endpoint, reference, login).await;
        if let Some(done) = tried.counts(&endpoint, reference, resolved) {
            return done;
        }
    }
    Err(tried.failure(&reference.registry))
}

async fn resolve_at(
    endpoint: &Endpoint,
    reference: &Reference,
    login: Option<&wire::RegistryAuth>,
) -> Result<String, PullError> {
    let mut patience = Patience::new(endpoint, reference, None);
    let asker = Asker::new(endpoint, reference, login)?;
    loop {
        match asker.digest(wanted(reference)).await {
            Err(error) => patience.wait(error).await?,
            done => return done,
        }
    }
}

/// Whether a registry takes the login, and what to keep of it.
pub(crate) async fn check_login(
    registries: &RegistryConfig,
    registry: &str,
    login: &wire::RegistryAuth,
) -> Result<wire::RegistryAuth, PullError> {
    let mut last = None;
    for endpoint in of_host(registries, registry) {
        match endpoint.check_login(login).await {
            Err(error @ PullError::Unreachable { .. }) => last = Some(last.unwrap_or(error)),
            done => return done,
        }
    }
    Err(last.unwrap_or_else(|| nowhere(registry)))
}

/// What asking a registry's mirrors and itself in turn has come to.
#[derive(Default)]
struct Tried {
    last: Option<PullError>,
}

impl Tried {
    /// The result when it is the one that counts; `None`: the next is to be asked.
    fn counts<T>(
        &mut self,
        endpoint: &Endpoint,
        reference: &Reference,
        result: Result<T, PullError>,
    ) -> Option<Result<T, PullError>> {
        match result {
            Err(error @ (PullError::Unreachable { .. } | PullError::NotFound { .. })) => {
                // A mirror that lacks it says less than the registry itself, which comes last, also when it cannot be
                // reached; but an insecure registry's refusal over TLS must not be hidden by the failure of plain HTTP.
                let has_refused = matches!(&self.last, Some(PullError::NotFound { registry, .. })
                    if *registry == reference.registry);
                if !has_refused || matches!(error, PullError::NotFound { .. }) {
                    self.last = Some(error);
                }
                None
            }
            // Whatever is wrong with a mirror, the registry may have it.
            Err(error) if endpoint.host != reference.registry => {
                tracing::warn!(error = super::chain(&error), "a registry mirror is passed over");
                self.last = Some(error);
                None
            }
            done => Some(done),
        }
    }

    fn failure(self, registry: &str) -> PullError {
        self.last.unwrap_or_else(|| nowhere(registry))
    }
}

fn nowhere(registry: &str) -> PullError {
    PullError::Unreachable { registry: registry.to_owned(), reason: "it has no address".to_owned() }
}

/// A blob on its way.
struct Download {
    arrival: Arrival,
    reported: u64,
}

/// How much had arrived when it was looked at last.
pub(super) struct Pace {
    since: Instant,
    bytes: u64,
    window: Duration,
}

impl Pace {
    pub(super) fn new(now: Instant, bytes: u64, window: Duration) -> Self {
        Self { since: now, bytes, window }
    }

    pub(super) fn drips(&mut self, now: Instant, bytes: u64) -> bool {
        if now.duration_since(self.since) < self.window {
            return false;
        }
        let drips = bytes.saturating_sub(self.bytes) < SLOWEST_BYTES;
        *self = Self { since: now, bytes, ..*self };
        drips
    }
}

/// A layer's descriptor and the digest of what it unpacks to.
struct Layer<'a> {
    blob: &'a OciDescriptor,
    diff_id: &'a str,
}

struct Session<'a> {
    store: &'a ImageStore,
    asker: Asker<'a>,
}

impl Session<'_> {
    async fn pull(&self, progress: &Progress) -> Result<(StoredImage, Option<String>), PullError> {
        let (index_digest, digest, manifest) = self.manifest(progress).await?;
        self.blob(&manifest.config, None, &mpsc::channel(1).0).await?;
        let config = self.store.config(&manifest.config.digest)?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(StoreError::LayerCount(digest).into());
        }
        for layer in &manifest.layers {
            match self.store.has_blob(&layer.digest) {
                true => report(progress, &layer.digest, bytes_of(layer), "exists", bytes_of(layer)),
                false => report(progress, &layer.digest, bytes_of(layer), "waiting", 0),
            }
        }
        let layers = manifest.layers.iter().zip(&diff_ids).map(|(blob, diff_id)| Layer { blob, diff_id });
        let downloads: Vec<_> = layers.map(|layer| self.layer(layer, progress)).collect();
        let unpacked: Vec<_> = stream::iter(downloads).buffer_unordered(PARALLEL_LAYERS).try_collect().await?;
        let store = self.store.clone();
        // By this name it is found again, here and by other nodes, whatever its tag means by then.
        let named = index_digest.clone().unwrap_or_else(|| digest.clone());
        let pinned = Reference { tag: None, digest: Some(named), ..self.asker.reference.clone() };
        let arriving = store.arriving();
        let stored = tokio::task::spawn_blocking(move || {
            // Its own: whoever gives up waiting does not end this work.
            let _arriving = arriving;
            store.publish(unpacked.into_iter().flatten().collect())?;
            // What was here packed only is unpacked now.
            let image = store.add_image(&digest)?;
            // In one go: without a name nothing would ever take it away.
            store.set_name(&pinned, &digest)?;
            Ok(store.by_digest(&digest).unwrap_or(image))
        });
        let image: StoredImage = stored.await.map_err(StoreError::Interrupted)?.map_err(PullError::Store)?;
        for layer in &manifest.layers {
            report(progress, &layer.digest, bytes_of(layer), "done", bytes_of(layer));
        }
        Ok((image, index_digest))
    }

    /// The digest of the index, when there is one; the platform's manifest, stored, with its digest.
    async fn manifest(&self, progress: &Progress) -> Result<(Option<String>, String, OciImageManifest), PullError> {
        let reference = self.asker.reference;
        let (mut digest, mut manifest) =
            self.fetch_manifest(wanted(reference), reference.digest.as_deref(), progress).await?;
        let mut outermost = None;
        for _ in 0..=MAX_INDEXES {
            let index = match manifest {
                OciManifest::Image(image) => return Ok((outermost, digest, image)),
                OciManifest::ImageIndex(index) => index,
            };
            let _ = outermost.get_or_insert(digest);
            let chosen = platform_manifest(&index).ok_or_else(|| self.no_platform())?;
            (digest, manifest) = self.fetch_manifest(chosen, Some(chosen), progress).await?;
        }
        Err(self.no_platform())
    }

    async fn fetch_manifest(
        &self,
        of: &str,
        expected: Option<&str>,
        progress: &Progress,
    ) -> Result<(String, OciManifest), PullError> {
        let Asker { endpoint, reference, .. } = self.asker;
        let mut patience = Patience::new(endpoint, reference, Some(progress));
        let bytes = loop {
            match self.asker.manifest(of).await {
                Ok(bytes) => break bytes,
                Err(error) => patience.wait(error).await?,
            }
        };
        if let Some(what) = manifest::other_than_image(&bytes) {
            return Err(PullError::NoImage { image: reference.familiar(), what });
        }
        let digest = self.store.put_bytes(&bytes, expected).map_err(|error| self.wrong(error))?;
        let manifest = serde_json::from_slice(&bytes)
            .map_err(|source| PullError::Manifest { image: reference.familiar(), source })?;
        Ok((digest, manifest))
    }

    /// Downloads a layer and unpacks it aside; `None` when it is here already.
    async fn layer(
        &self,
        layer: Layer<'_>,
        progress: &Progress,
    ) -> Result<Option<(String, String, UnpackedLayer)>, PullError> {
        let Layer { blob, diff_id } = layer;
        let unpacked = self.blob(blob, Some(diff_id), progress).await?;
        Ok(unpacked.map(|unpacked| (blob.digest.clone(), diff_id.to_owned(), unpacked)))
    }

    /// Downloads a blob, and unpacks it on the way when it is a layer that is not here.
    async fn blob(
        &self,
        blob: &OciDescriptor,
        diff_id: Option<&str>,
        progress: &Progress,
    ) -> Result<Option<UnpackedLayer>, PullError> {
        if self.store.has_blob(&blob.digest) {
            report(progress, &blob.digest, bytes_of(blob), "exists", bytes_of(blob));
            return Ok(None);
        }
        let is_resumed = self.store.partial_bytes(&blob.digest) > 0;
        match self.download(blob, diff_id, progress).await {
            Err(error @ (PullError::Store(_) | PullError::Registry { .. })) if is_resumed => {
                tracing::info!(digest = blob.digest, %error, "a download that was gone on with begins anew");
                self.download(blob, diff_id, progress).await
            }
            done => done,
        }
    }

    async fn download(
        &self,
        blob: &OciDescriptor,
        diff_id: Option<&str>,
        progress: &Progress,
    ) -> Result<Option<UnpackedLayer>, PullError> {
        let is_new_layer = diff_id.is_some_and(|diff_id| !self.store.has_layer(diff_id));
        let mut download = Download { arrival: self.start(blob, is_new_layer).await?, reported: 0 };
        self.store.check_room(bytes_of(blob).saturating_sub(download.arrival.bytes))?;
        report(progress, &blob.digest, bytes_of(blob), "downloading", download.arrival.bytes);
        let mut attempt = 1;
        let mut patience = Patience::new(self.asker.endpoint, self.asker.reference, Some(progress));
        // What has arrived is kept: the next attempt asks for the rest.
        while let Err(error) = self.go_on(&mut download, blob, is_new_layer, progress).await {
            let broke_off = error.is_of_the_way();
            let is_busy = matches!(error, PullError::Busy { .. });
            if !broke_off && !is_busy {
                download.arrival.spoil();
            }
            if is_busy {
                patience.wait(error).await?;
                continue;
            }
            if !broke_off || attempt == patience::ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
            tracing::info!(digest = blob.digest, %error, attempt, "a download is resumed");
            trouble(progress, format!("{error}: going on with what has come"));
            tokio::time::sleep(RESUME_PAUSE * (attempt - 1)).await;
        }
        report(progress, &blob.digest, bytes_of(blob), "unpacking", bytes_of(blob));
        download.arrival.finish(&blob.digest).await.map_err(|error| self.wrong(error))
    }

    async fn start(&self, blob: &OciDescriptor, is_new_layer: bool) -> Result<Arrival, StoreError> {
        match is_new_layer {
            true => Arrival::of_layer(self.store, &blob.digest).await,
            false => Arrival::of_blob(self.store),
        }
    }

    async fn go_on(
        &self,
        download: &mut Download,
        blob: &OciDescriptor,
        is_new_layer: bool,
        progress: &Progress,
    ) -> Result<(), PullError> {
        let from = download.arrival.bytes;
        match from.cmp(&bytes_of(blob)) {
            Ordering::Equal if from > 0 => return Ok(()),
            Ordering::Greater => {
                return Err(StoreError::TooLong { digest: blob.digest.clone(), bytes: bytes_of(blob) }.into());
            }
            Ordering::Equal | Ordering::Less => {}
        }
        let mut answer = self.asker.blob(&blob.digest, from).await?;
        if from > 0 && answer.status() == StatusCode::OK {
            // A registry that knows no parts.
            download.arrival.spoil();
            *download = Download { arrival: self.start(blob, is_new_layer).await?, reported: 0 };
        }
        let broke_off = |reason: String| PullError::BrokeOff {
            registry: self.asker.endpoint.host.clone(),
            digest: blob.digest.clone(),
            reason,
        };
        let mut pace = Pace::new(Instant::now(), download.arrival.bytes, PACE_WINDOW);
        while let Some(piece) = answer.chunk().await.map_err(|error| broke_off(innermost(&error)))? {
            download.arrival.append(piece).await?;
            let done = download.arrival.bytes;
            if done > bytes_of(blob) {
                return Err(StoreError::TooLong { digest: blob.digest.clone(), bytes: bytes_of(blob) }.into());
            }
            if pace.drips(Instant::now(), done) {
                let (kib, seconds) = (SLOWEST_BYTES >> 10, PACE_WINDOW.as_secs());
                return Err(broke_off(format!("less than {kib} KiB arrived in {seconds} s")));
            }
            if done - download.reported >= PROGRESS_STEP_BYTES {
                download.reported = done;
                report(progress, &blob.digest, bytes_of(blob), "downloading", done);
            }
        }
        if download.arrival.bytes < bytes_of(blob) {
            return Err(broke_off(format!("{} of {} bytes arrived", download.arrival.bytes, bytes_of(blob))));
        }
        Ok(())
    }

    /// Whose content is another than it should be is said.
    fn wrong(&self, error: StoreError) -> PullError {
        match error {
            StoreError::DigestMismatch { .. } => self.asker.endpoint.failed(error.to_string()),
            error => error.into(),
        }
    }

    fn no_platform(&self) -> PullError {
        PullError::Platform { image: self.asker.reference.familiar(), arch: architecture() }
    }
}

/// How a registry knows it.
fn wanted(reference: &Reference) -> &str {
    reference.digest.as_deref().or(reference.tag.as_deref()).unwrap_or("latest")
}

pub(super) const PROGRESS_STEP_BYTES: u64 = 1 << 20;

/// Says who is asked now.
pub(super) fn asking(progress: &Progress, whom: &str) {
    say(progress, wire::pull_progress::Progress::Asking(whom.to_owned()));
}

/// Says what is in the way.
fn trouble(progress: &Progress, text: String) {
    say(progress, wire::pull_progress::Progress::Status(text));
}

fn say(progress: &Progress, what: wire::pull_progress::Progress) {
    // Progress is a courtesy: a slow or absent reader loses some of it.
    let _ = progress.try_send(wire::PullProgress { progress: Some(what) });
}

pub(super) fn report(progress: &Progress, digest: &str, total_bytes: u64, state: &str, done_bytes: u64) {
    let layer = wire::LayerProgress { digest: digest.to_owned(), done_bytes, total_bytes, state: state.to_owned() };
    say(progress, wire::pull_progress::Progress::Layer(layer));
}

pub(super) fn bytes_of(blob: &OciDescriptor) -> u64 {
    u64::try_from(blob.size).unwrap_or(0)
}

/// The one made for this machine's kind of processor that makes the most of it; else one that does not say whose it is.
pub(super) fn platform_manifest(index: &OciImageIndex) -> Option<&str> {
    best_for(index, architecture(), variant())
}

fn best_for<'a>(index: &'a OciImageIndex, architecture: &str, variant: u32) -> Option<&'a str> {
    let fits = |entry: &'a ImageIndexEntry| {
        let platform = entry.platform.as_ref()?;
        let is_ours = platform.os.to_string() == "linux" && platform.architecture.to_string() == architecture;
        let wanted = is_ours.then(|| variant_of(architecture, platform.variant.as_deref())).flatten()?;
        (wanted <= variant).then_some((wanted, entry))
    };
    let fitting = index.manifests.iter().filter_map(fits);
    // Of several, the first.
    let best = fitting.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, entry)| entry);
    let says_nothing = || index.manifests.iter().find(|entry| entry.platform.is_none());
    best.or_else(says_nothing).map(|entry| entry.digest.as_str())
}

/// `v7` is 7; no variant is the one that Docker means by the architecture alone. `None`: one that is not known.
fn variant_of(architecture: &str, variant: Option<&str>) -> Option<u32> {
    match (variant.filter(|variant| !variant.is_empty()), architecture) {
        (Some(variant), _) => variant.strip_prefix('v').unwrap_or(variant).parse().ok(),
        (None, "arm") => Some(7),
        (None, "arm64") => Some(8),
        (None, _) => Some(1),
    }
}

/// This machine's, as Docker sees it: of amd64 and arm64 the first, whatever newer processors can.
fn variant() -> u32 {
    let said = || {
        let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("CPU architecture"))?;
        line.trim_start_matches([' ', '\t', ':']).trim().parse().ok()
    };
    match architecture() {
        "arm" => said().unwrap_or(7),
        other => variant_of(other, None).unwrap_or(1),
    }
}

/// Docker Hub asks strangers for a login where an image does not exist.
fn is_absent(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_)
        | OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        OciDistributionError::RegistryError { envelope, .. } => envelope.errors.iter().any(|error| {
            matches!(
                error.code,
                OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound
                    | OciErrorCode::Unauthorized
                    | OciErrorCode::Denied
            )
        }),
        _ => false,
    }
}

/// The last cause: "connection refused" tells more than "error sending request".
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

pub(super) mod asker;
mod manifest;
pub(super) mod patience;

#[cfg(test)]
pub(super) mod tests;
