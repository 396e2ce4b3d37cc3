//! Pulls images from registries (OCI distribution, version 2).
//!
//! Everything is checked by digest on arrival. Plain HTTP is used only for registries that the operator listed as
//! insecure and, as Docker does, for this machine's own.

use std::{net::IpAddr, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::{
    Client, Reference as OciReference,
    client::{BlobResponse, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    manifest::{
        IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
        OciDescriptor, OciImageIndex, OciImageManifest, OciManifest,
    },
    secrets::RegistryAuth,
};
use orch_proto::wire;
use tokio::sync::mpsc;

use super::{
    import::architecture,
    reference::{DEFAULT_REGISTRY, Reference},
    store::{BlobWriter, ImageStore, StoreError, StoredImage},
};
use crate::config::RegistryConfig;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a byte for so long, a download has failed.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const PARALLEL_LAYERS: usize = 3;
/// How often a download that breaks off is gone on with.
const DOWNLOAD_ATTEMPTS: u32 = 5;
const RESUME_PAUSE: Duration = Duration::from_millis(500);
const ACCEPTED: [&str; 4] =
    [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE];

#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    /// The registry answered that it has no such image, or none that strangers may see.
    #[error("registry {registry} has no image {image}, or asks for a login")]
    NotFound { registry: String, image: String },
    #[error("no route to registry {registry}: {reason}")]
    Unreachable { registry: String, reason: String },
    #[error("registry {registry}: {reason}")]
    Registry { registry: String, reason: String },
    #[error("no matching manifest for linux/{arch} in the manifest list of {image}")]
    Platform { image: String, arch: &'static str },
    #[error("read the manifest of {image}")]
    Manifest {
        image: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("registry {registry}: the download of {digest} broke off: {reason}")]
    BrokeOff { registry: String, digest: String, reason: String },
    #[error("denied: requested access to the resource is denied: log in with `orch login` to push {image}")]
    Denied { image: String },
    #[error("registry {registry} refuses the login: incorrect username or password")]
    Login { registry: String },
    #[error("store the image")]
    Store(#[from] StoreError),
}

/// Receives progress; may be dropped at any time.
pub(crate) type Progress = mpsc::Sender<wire::PullProgress>;

/// Pulls `reference` and puts it into the store, without a name.
pub(crate) async fn pull(
    store: &ImageStore,
    registries: &RegistryConfig,
    reference: &Reference,
    auth: Option<&wire::RegistryAuth>,
    progress: &Progress,
) -> Result<(StoredImage, Option<String>), PullError> {
    let _arriving = store.arriving();
    let mut last = None;
    for endpoint in endpoints(registries, &reference.registry) {
        match endpoint.pull(store, reference, &credentials(auth, &endpoint, reference), progress).await {
            Err(error @ (PullError::Unreachable { .. } | PullError::NotFound { .. })) => {
                // A mirror that lacks it says less than the registry itself, which comes last; but an insecure
                // registry's refusal over TLS must not be hidden by the failure of plain HTTP.
                if !matches!(last, Some(PullError::NotFound { .. })) || matches!(error, PullError::NotFound { .. }) {
                    last = Some(error);
                }
            }
            done => return done,
        }
    }
    Err(last.unwrap_or_else(|| PullError::Unreachable {
        registry: reference.registry.clone(),
        reason: "it has no address".to_owned(),
    }))
}

/// Asks the registry's front door, which every registry has.
pub(crate) async fn check_login(
    registries: &RegistryConfig,
    registry: &str,
    auth: &wire::RegistryAuth,
) -> Result<(), PullError> {
    let auth = RegistryAuth::Basic(auth.username.clone(), auth.password.clone());
    let mut last = None;
    for endpoint in of_host(registries, registry) {
        // Any name will do: what counts is whether the registry knows who asks.
        let reference = OciReference::with_tag(endpoint.host.clone(), "library/login".to_owned(), "latest".to_owned());
        match endpoint.client()?.fetch_manifest_digest(&reference, &auth).await {
            Err(
                error @ (OciDistributionError::UnauthorizedError { .. }
                | OciDistributionError::AuthenticationFailure(_)),
            ) => {
                tracing::debug!(%error, registry, "the login was refused");
                return Err(PullError::Login { registry: registry.to_owned() });
            }
            Err(error @ OciDistributionError::RequestError(_)) => last = Some(endpoint.error(error)),
            // That the image is not there was to be expected.
            Ok(_) | Err(_) => return Ok(()),
        }
    }
    last.map_or(Ok(()), Err)
}

/// A mirror never sees what the user gave for the registry itself.
pub(super) fn credentials(
    auth: Option<&wire::RegistryAuth>,
    endpoint: &Endpoint,
    reference: &Reference,
) -> RegistryAuth {
    match auth.filter(|_| endpoint.host == reference.registry) {
        Some(auth) => RegistryAuth::Basic(auth.username.clone(), auth.password.clone()),
        None => RegistryAuth::Anonymous,
    }
}

/// Where a registry's content may be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `host[:port]`.
    host: String,
    plain_http: bool,
    /// Listed as insecure: any certificate will do.
    any_certificate: bool,
}

fn endpoints(registries: &RegistryConfig, registry: &str) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    if registry == DEFAULT_REGISTRY {
        for mirror in &registries.mirrors {
            match mirror.trim_end_matches('/').split_once("://") {
                Some(("http", host)) => {
                    endpoints.push(Endpoint { host: host.to_owned(), plain_http: true, any_certificate: true });
                }
                Some((_, host)) => endpoints.extend(of_host(registries, host)),
                None => endpoints.extend(of_host(registries, mirror)),
            }
        }
    }
    endpoints.extend(of_host(registries, registry));
    endpoints
}

pub(super) fn of_host(registries: &RegistryConfig, host: &str) -> Vec<Endpoint> {
    let insecure = registries.is_insecure(host) || is_this_machine(host);
    let https = Endpoint { host: host.to_owned(), plain_http: false, any_certificate: insecure };
    if insecure { vec![https.clone(), Endpoint { plain_http: true, ..https }] } else { vec![https] }
}

fn is_this_machine(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Endpoint {
    async fn pull(
        &self,
        store: &ImageStore,
        reference: &Reference,
        auth: &RegistryAuth,
        progress: &Progress,
    ) -> Result<(StoredImage, Option<String>), PullError> {
        let client = self.client()?;
        let session = Session { endpoint: self, client, store, reference, auth };
        let (index_digest, digest, manifest) = session.manifest().await?;
        session.blob(&manifest.config, &mpsc::channel(1).0).await?;
        let downloads: Vec<_> = manifest.layers.iter().map(|layer| session.blob(layer, progress)).collect();
        stream::iter(downloads).buffer_unordered(PARALLEL_LAYERS).try_collect::<Vec<()>>().await?;
        let (store, digest) = (store.clone(), digest);
        let unpacked = tokio::task::spawn_blocking(move || store.add_image(&digest)).await;
        let image = unpacked.map_err(|error| PullError::Registry {
            registry: self.host.clone(),
            reason: format!("unpacking was interrupted: {error}"),
        })??;
        for layer in &manifest.layers {
            report(progress, &layer.digest, bytes_of(layer), "done", bytes_of(layer));
        }
        Ok((image, index_digest))
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn client(&self) -> Result<Client, PullError> {
        let config = ClientConfig {
            protocol: if self.plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
            accept_invalid_certificates: self.any_certificate,
            platform_resolver: None,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("orch/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        Client::try_from(config).map_err(|error| self.error(error))
    }

    /// What TLS says of a registry that speaks plain HTTP tells nobody what to do.
    fn advised(&self, reason: String) -> String {
        if self.plain_http || !reason.contains("InvalidContentType") {
            return reason;
        }
        let host = &self.host;
        format!(
            "it does not speak TLS; if it is meant to speak plain HTTP, add insecure-registries = [\"{host}\"] to \
             /etc/orch/orch.toml on every node"
        )
    }

    pub(super) fn error(&self, error: OciDistributionError) -> PullError {
        let registry = self.host.clone();
        match error {
            OciDistributionError::RequestError(error) if error.is_connect() || error.is_timeout() => {
                PullError::Unreachable { registry, reason: self.advised(innermost(&error)) }
            }
            OciDistributionError::RequestError(error) => PullError::Registry { registry, reason: innermost(&error) },
            other => PullError::Registry { registry, reason: innermost(&other) },
        }
    }
}

/// A blob on its way.
struct Download {
    writer: BlobWriter,
    done: u64,
    reported: u64,
}

struct Session<'a> {
    endpoint: &'a Endpoint,
    client: Client,
    store: &'a ImageStore,
    reference: &'a Reference,
    auth: &'a RegistryAuth,
}

impl Session<'_> {
    /// The digest of the index, when there is one; the platform's manifest, stored, with its digest.
    async fn manifest(&self) -> Result<(Option<String>, String, OciImageManifest), PullError> {
        let (digest, manifest) = self.fetch_manifest(&self.oci_reference(None)).await?;
        match manifest {
            OciManifest::Image(image) => Ok((None, digest, image)),
            OciManifest::ImageIndex(index) => {
                let chosen = platform_manifest(&index).ok_or_else(|| self.no_platform())?.to_owned();
                match self.fetch_manifest(&self.oci_reference(Some(&chosen))).await? {
                    (chosen, OciManifest::Image(image)) => Ok((Some(digest), chosen, image)),
                    _ => Err(self.no_platform()),
                }
            }
        }
    }

    async fn fetch_manifest(&self, reference: &OciReference) -> Result<(String, OciManifest), PullError> {
        let pulled = self.client.pull_manifest_raw(reference, self.auth, &ACCEPTED).await;
        let (bytes, _) = pulled.map_err(|error| {
            if is_absent(&error) {
                let registry = self.endpoint.host.clone();
                PullError::NotFound { registry, image: self.reference.familiar() }
            } else {
                self.endpoint.error(error)
            }
        })?;
        let digest = self.store.put_bytes(&bytes, reference.digest())?;
        let manifest = serde_json::from_slice(&bytes)
            .map_err(|source| PullError::Manifest { image: self.reference.familiar(), source })?;
        Ok((digest, manifest))
    }

    async fn blob(&self, blob: &OciDescriptor, progress: &Progress) -> Result<(), PullError> {
        if self.store.has_blob(&blob.digest) {
            report(progress, &blob.digest, bytes_of(blob), "exists", bytes_of(blob));
            return Ok(());
        }
        report(progress, &blob.digest, bytes_of(blob), "downloading", 0);
        let mut download = Download { writer: self.store.blob_writer()?, done: 0, reported: 0 };
        let mut attempt = 1;
        // What has arrived is kept: the next attempt asks for the rest.
        while let Err(error) = self.go_on(&mut download, blob, progress).await {
            if attempt == DOWNLOAD_ATTEMPTS || !matches!(error, PullError::BrokeOff { .. }) {
                return Err(error);
            }
            attempt += 1;
            tracing::info!(digest = blob.digest, %error, attempt, "a download is resumed");
            tokio::time::sleep(RESUME_PAUSE).await;
        }
        let Download { writer, done, .. } = download;
        tokio::task::block_in_place(|| writer.commit(Some(&blob.digest)))?;
        report(progress, &blob.digest, bytes_of(blob), "unpacking", done);
        Ok(())
    }

    async fn go_on(&self, download: &mut Download, blob: &OciDescriptor, progress: &Progress) -> Result<(), PullError> {
        let reference = self.oci_reference(None);
        let mut stream = if download.done == 0 {
            let whole = self.client.pull_blob_stream(&reference, blob).await;
            whole.map_err(|error| self.endpoint.error(error))?.stream
        } else {
            let rest = self.client.pull_blob_stream_partial(&reference, blob, download.done, None).await;
            match rest.map_err(|error| self.endpoint.error(error))? {
                BlobResponse::Partial(rest) => rest.stream,
                BlobResponse::Full(whole) => {
                    *download = Download { writer: self.store.blob_writer()?, done: 0, reported: 0 };
                    whole.stream
                }
            }
        };
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| PullError::BrokeOff {
                registry: self.endpoint.host.clone(),
                digest: blob.digest.clone(),
                reason: innermost(&error),
            })?;
            download.writer.append(&chunk)?;
            download.done += chunk.len() as u64;
            if download.done - download.reported >= PROGRESS_STEP_BYTES {
                download.reported = download.done;
                report(progress, &blob.digest, bytes_of(blob), "downloading", download.done);
            }
        }
        if download.done < bytes_of(blob) {
            return Err(PullError::BrokeOff {
                registry: self.endpoint.host.clone(),
                digest: blob.digest.clone(),
                reason: format!("{} of {} bytes arrived", download.done, bytes_of(blob)),
            });
        }
        Ok(())
    }

    fn oci_reference(&self, digest: Option<&str>) -> OciReference {
        let (registry, repository) = (self.registry_host(), self.reference.repository.clone());
        match (digest.or(self.reference.digest.as_deref()), &self.reference.tag) {
            (Some(digest), _) => OciReference::with_digest(registry, repository, digest.to_owned()),
            (None, Some(tag)) => OciReference::with_tag(registry, repository, tag.clone()),
            (None, None) => OciReference::with_tag(registry, repository, "latest".to_owned()),
        }
    }

    fn no_platform(&self) -> PullError {
        PullError::Platform { image: self.reference.familiar(), arch: architecture() }
    }

    fn registry_host(&self) -> String {
        self.endpoint.host.clone()
    }
}

const PROGRESS_STEP_BYTES: u64 = 1 << 20;

pub(super) fn report(progress: &Progress, digest: &str, total_bytes: u64, state: &str, done_bytes: u64) {
    let layer = wire::LayerProgress { digest: digest.to_owned(), done_bytes, total_bytes, state: state.to_owned() };
    // Progress is a courtesy: a slow or absent reader loses some of it.
    let _ = progress.try_send(wire::PullProgress { progress: Some(wire::pull_progress::Progress::Layer(layer)) });
}

fn bytes_of(blob: &OciDescriptor) -> u64 {
    u64::try_from(blob.size).unwrap_or(0)
}

fn platform_manifest(index: &OciImageIndex) -> Option<&str> {
    let fits = |entry: &&oci_client::manifest::ImageIndexEntry| {
        entry
            .platform
            .as_ref()
            .is_some_and(|p| p.os.to_string() == "linux" && p.architecture.to_string() == architecture())
    };
    index.manifests.iter().find(fits).map(|entry| entry.digest.as_str())
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
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests;
