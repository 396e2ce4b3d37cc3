//! Uploads an image to its registry: what is there already is not sent again, and the manifest goes last, so that a name
//! never means half an image.
//!
//! A blob goes in one piece, which every registry takes; what breaks off begins anew.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use orch_proto::wire;
use reqwest::{
    Body, Client, Method, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION},
};
use tokio::{io::AsyncReadExt, sync::mpsc, time::Instant};

use super::{
    pull::{
        Pace, Progress, PullError,
        asker::Asker,
        patience::{self, Patience},
        report,
    },
    reference::Reference,
    registry::{Endpoint, of_host},
    store::{ImageStore, StoredImage},
};
use crate::config::RegistryConfig;

const PARALLEL_LAYERS: usize = 3;
/// Repositories of the registry that are asked for a blob.
const MAX_OTHERS: usize = 3;
const PIECE_BYTES: usize = 64 << 10;
const PROGRESS_STEP_BYTES: u64 = 1 << 20;
/// How often it is looked at how much the registry took; see [`Pace`].
const PACE_WINDOW: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });
/// For a registry to make sure of what it was sent.
const LONGEST_CHECK: Duration = Duration::from_secs(600);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) async fn push(
    store: &ImageStore,
    registries: &RegistryConfig,
    reference: &Reference,
    image: &StoredImage,
    login: Option<&wire::RegistryAuth>,
    progress: &Progress,
) -> Result<(), PullError> {
    let mut last = None;
    for endpoint in of_host(registries, &reference.registry) {
        match push_to(&endpoint, store, reference, image, login, progress).await {
            Err(error @ PullError::Unreachable { .. }) => last = Some(error),
            done => return done,
        }
    }
    last.map_or(Ok(()), Err)
}

async fn push_to(
    endpoint: &Endpoint,
    store: &ImageStore,
    reference: &Reference,
    image: &StoredImage,
    login: Option<&wire::RegistryAuth>,
    progress: &Progress,
) -> Result<(), PullError> {
    let others = others(reference, image);
    let asker = Asker::for_push(endpoint, reference, login, &others)?;
    let upload = Upload { asker, http: endpoint.http_without_limit()?, store, others, progress };
    upload.run(image).await
}

/// The registry's repositories that have the image: it has a name by digest there.
fn others(reference: &Reference, image: &StoredImage) -> Vec<String> {
    let names = image.names.iter().filter_map(|name| Reference::parse(name).ok());
    let others = names.filter(|name| {
        name.digest.is_some() && name.registry == reference.registry && name.repository != reference.repository
    });
    let others: BTreeSet<_> = others.map(|name| name.repository).collect();
    others.into_iter().take(MAX_OTHERS).collect()
}

struct Upload<'a> {
    asker: Asker<'a>,
    /// Waits for as long as it takes.
    http: Client,
    store: &'a ImageStore,
    others: Vec<String>,
    progress: &'a Progress,
}

struct Blob<'a> {
    digest: &'a str,
    path: PathBuf,
    bytes: u64,
    progress: &'a Progress,
}

/// What a registry says when it is asked to take a blob.
enum Begun {
    /// It had it in another repository.
    Mounted,
    /// Where to send it.
    At(Url),
}

impl Upload<'_> {
    async fn run(&self, image: &StoredImage) -> Result<(), PullError> {
        // Whether there is a way to it at all is found out once.
        self.asker.greet().await?;
        let record = &image.record;
        // Of the configuration nothing is shown.
        let nobody = mpsc::channel(1).0;
        let layers = record.layers.iter().map(|digest| (digest, self.progress));
        let blobs = layers.chain([(&record.config, &nobody)]);
        let uploads: Vec<_> = blobs.map(|(digest, progress)| self.blob(digest, progress)).collect();
        stream::iter(uploads).buffer_unordered(PARALLEL_LAYERS).try_collect::<Vec<()>>().await?;
        self.manifest(&image.digest).await
    }

    async fn blob(&self, digest: &str, progress: &Progress) -> Result<(), PullError> {
        let path = self.store.blob_path(digest)?;
        let bytes = tokio::fs::metadata(&path).await.map_err(|error| self.unreadable(&error))?.len();
        let blob = Blob { digest, path, bytes, progress };
        let mut tries = Tries::new(self);
        let state = loop {
            match self.put(&blob).await {
                Ok(state) => break state,
                Err(error) => tries.again(error).await?,
            }
        };
        report(progress, digest, bytes, &state, bytes);
        Ok(())
    }

    /// What has become of the blob, as it is shown.
    async fn put(&self, blob: &Blob<'_>) -> Result<String, PullError> {
        let url = self.asker.url(&format!("blobs/{}", blob.digest))?;
        let there = self.ask(Method::HEAD, url, HeaderMap::new()).await?;
        if there.status().is_success() {
            return Ok("layer-exists".to_owned());
        }
        let mut begun = None;
        for other in &self.others {
            match self.begin(&format!("?mount={}&from={other}", blob.digest)).await {
                Ok(Begun::Mounted) => return Ok(format!("Mounted from {other}")),
                Ok(Begun::At(url)) => begun = Some(url),
                // What may not be taken from there is sent.
                Err(error) => tracing::debug!(%error, other, "a blob is not taken from another repository"),
            }
        }
        let url = match begun {
            Some(url) => url,
            None => match self.begin("").await? {
                Begun::At(url) => url,
                Begun::Mounted => return Ok("pushed".to_owned()),
            },
        };
        self.send(blob, url).await?;
        Ok("pushed".to_owned())
    }

    async fn begin(&self, query: &str) -> Result<Begun, PullError> {
        let url = self.asker.url(&format!("blobs/uploads/{query}"))?;
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("0"))]);
        let answer = self.ask(Method::POST, url, headers).await?;
        match answer.status() {
            StatusCode::CREATED => return Ok(Begun::Mounted),
            StatusCode::ACCEPTED => {}
            _ => return Err(self.refused(answer).await),
        }
        let said = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok()).unwrap_or_default();
        let onward = answer.url().join(said).ok().filter(|_| !said.is_empty());
        let onward = onward.ok_or_else(|| {
            self.asker.endpoint.failed(format!("it sends an upload on to {said:?}, which is no address"))
        })?;
        Ok(Begun::At(self.asker.endpoint.not_less_safe(onward)))
    }

    async fn send(&self, blob: &Blob<'_>, mut url: Url) -> Result<(), PullError> {
        url.query_pairs_mut().append_pair("digest", blob.digest);
        let headers = HeaderMap::from_iter([
            (CONTENT_LENGTH, HeaderValue::from(blob.bytes)),
            (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        ]);
        let sent = Arc::new(AtomicU64::new(0));
        let body = || {
            sent.store(0, Relaxed);
            Body::wrap_stream(pieces(blob, sent.clone()))
        };
        report(blob.progress, blob.digest, blob.bytes, "uploading", 0);
        let broke_off = |reason| PullError::BrokeOff {
            registry: self.asker.endpoint.host.clone(),
            digest: blob.digest.to_owned(),
            reason,
        };
        let answer = tokio::select! {
            answer = self.asker.send(&self.http, Method::PUT, url, headers, body) => answer,
            reason = stalls(&sent, blob.bytes) => return Err(broke_off(reason)),
        };
        match answer {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(self.refused(answer).await),
            // The connection was there a moment ago.
            Err(PullError::Registry { reason, .. }) => Err(broke_off(reason)),
            Err(error) => Err(error),
        }
    }

    async fn manifest(&self, digest: &str) -> Result<(), PullError> {
        let manifest = Bytes::from(self.store.read_blob(digest)?);
        let parsed: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
        let media_type = parsed["mediaType"].as_str().unwrap_or(MANIFEST_TYPE);
        let media_type = HeaderValue::from_str(media_type).map_err(|_| {
            self.asker.endpoint.failed(format!("the manifest says that it is {media_type:?}, which is no media type"))
        })?;
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, media_type)]);
        let tag = self.asker.reference.tag.as_deref().unwrap_or("latest");
        let mut tries = Tries::new(self);
        loop {
            let url = self.asker.url(&format!("manifests/{tag}"))?;
            let body = || Body::from(manifest.clone());
            let error = match self.asker.send(self.asker.http(), Method::PUT, url, headers.clone(), body).await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => self.refused(answer).await,
                Err(error) => error,
            };
            tries.again(error).await?;
        }
    }

    /// Asks until the registry is not busy.
    async fn ask(&self, method: Method, url: Url, headers: HeaderMap) -> Result<Response, PullError> {
        let mut tries = Tries::new(self);
        loop {
            let asked = self.asker.send(self.asker.http(), method.clone(), url.clone(), headers.clone(), Body::default);
            match asked.await {
                Ok(answer) if patience::is_passing(answer.status().as_u16()) => {
                    tries.patience.wait(self.refused(answer).await).await.map_err(for_good)?;
                }
                Err(error @ PullError::Busy { .. }) => tries.patience.wait(error).await.map_err(for_good)?,
                done => return done,
            }
        }
    }

    async fn refused(&self, answer: Response) -> PullError {
        let denied = || PullError::Denied { image: self.asker.reference.familiar() };
        match self.asker.refusal(answer).await {
            // Where the password itself is asked for, the upload is what is refused.
            Ok(
                OciDistributionError::UnauthorizedError { .. } | OciDistributionError::ServerError { code: 403, .. },
            ) => denied(),
            Ok(OciDistributionError::RegistryError { envelope, .. })
                if envelope.errors.iter().all(|error| error.code == OciErrorCode::Unauthorized) =>
            {
                denied()
            }
            Ok(error) => self.asker.endpoint.error(error),
            Err(error) => error,
        }
    }

    fn unreadable(&self, error: &io::Error) -> PullError {
        self.asker.endpoint.failed(format!("the image cannot be read: {error}"))
    }
}

/// Asked as often as it makes sense: not to be asked again for all of it.
fn for_good(error: PullError) -> PullError {
    match error {
        PullError::Busy { registry, reason, .. } => PullError::Registry { registry, reason },
        other => other,
    }
}

/// How often something was tried, and why it is again.
struct Tries<'a> {
    patience: Patience<'a>,
    attempt: u32,
}

impl<'a> Tries<'a> {
    fn new(upload: &'a Upload<'_>) -> Self {
        let Asker { endpoint, reference, .. } = upload.asker;
        Self { patience: Patience::new(endpoint, reference, Some(upload.progress)), attempt: 1 }
    }

    /// Returns when it is time for another try; else gives the error back.
    async fn again(&mut self, error: PullError) -> Result<(), PullError> {
        if !error.is_of_the_way() {
            return self.patience.wait(error).await;
        }
        if self.attempt == patience::ATTEMPTS {
            return Err(error);
        }
        tracing::info!(%error, attempt = self.attempt, "an upload begins anew");
        tokio::time::sleep(RETRY_PAUSE * self.attempt).await;
        self.attempt += 1;
        Ok(())
    }
}

/// A blob's content, piece by piece; `sent`: how much of it was taken.
fn pieces(blob: &Blob<'_>, sent: Arc<AtomicU64>) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let (digest, path, bytes) = (blob.digest.to_owned(), blob.path.clone(), blob.bytes);
    let progress = blob.progress.clone();
    async_stream::try_stream! {
        let mut file = tokio::fs::File::open(path).await?;
        let (mut done, mut reported) = (0, 0);
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece).await?;
            if read == 0 {
                break;
            }
            done += read as u64;
            sent.store(done, Relaxed);
            if done - reported >= PROGRESS_STEP_BYTES {
                reported = done;
                report(&progress, &digest, bytes, "uploading", done);
            }
            yield Bytes::from(piece);
        }
    }
}

/// Returns once the registry takes nothing any more, or says nothing of what it took.
async fn stalls(sent: &AtomicU64, bytes: u64) -> String {
    let begun = Instant::now();
    let mut pace = Pace::new(begun, 0, PACE_WINDOW);
    let mut all_sent_at = None;
    loop {
        tokio::time::sleep(PACE_WINDOW).await;
        let (now, sent) = (Instant::now(), sent.load(Relaxed));
        if sent == bytes {
            let since = *all_sent_at.get_or_insert(now);
            if now.duration_since(since) > LONGEST_CHECK {
                return format!("it says nothing for {} s", LONGEST_CHECK.as_secs());
            }
        } else if pace.drips(now, sent) {
            return format!("it takes nothing for {} s", PACE_WINDOW.as_secs());
        }
    }
}

#[cfg(test)]
mod tests;
