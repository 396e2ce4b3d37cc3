//! Uploads an image to its registry: what is there already is not sent again, and the manifest goes last, so that a name
//! never means half an image.

use std::io::SeekFrom;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use oci_client::{Reference as OciReference, RegistryOperation, errors::OciDistributionError};
use orch_proto::wire;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{
    pull::{Progress, PullError, report},
    reference::Reference,
    registry::{Endpoint, login_for, of_host},
    store::{ImageStore, StoredImage},
};
use crate::config::RegistryConfig;

const PARALLEL_LAYERS: usize = 3;
const CHUNK_BYTES: usize = 1 << 20;
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
        let login = login_for(login, &endpoint, reference);
        let upload = Upload { endpoint: &endpoint, store, reference, image };
        match upload.run(login, progress).await {
            Err(error @ PullError::Unreachable { .. }) => last = Some(error),
            done => return done,
        }
    }
    last.map_or(Ok(()), Err)
}

struct Upload<'a> {
    endpoint: &'a Endpoint,
    store: &'a ImageStore,
    reference: &'a Reference,
    image: &'a StoredImage,
}

impl Upload<'_> {
    async fn run(&self, login: Option<&wire::RegistryAuth>, progress: &Progress) -> Result<(), PullError> {
        let auth = self.endpoint.auth(login, self.reference, RegistryOperation::Push).await?;
        let client = self.endpoint.client()?;
        let (host, repository) = (self.endpoint.host.clone(), self.reference.repository.clone());
        let tag = self.reference.tag.clone().unwrap_or_else(|| "latest".to_owned());
        let target = OciReference::with_tag(host, repository, tag);
        if let Err(error) = client.auth(&target, &auth, RegistryOperation::Push).await {
            let trouble = self.endpoint.token_trouble(&auth, self.reference, RegistryOperation::Push).await;
            return Err(trouble.unwrap_or_else(|| self.error(error)));
        }

        let record = &self.image.record;
        let blobs: Vec<&String> = record.layers.iter().chain([&record.config]).collect();
        let uploads: Vec<_> = blobs.into_iter().map(|digest| self.blob(&client, &target, digest, progress)).collect();
        stream::iter(uploads).buffer_unordered(PARALLEL_LAYERS).try_collect::<Vec<()>>().await?;

        let manifest = self.store.read_blob(&self.image.digest)?;
        let parsed: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
        let media_type = parsed["mediaType"].as_str().unwrap_or(MANIFEST_TYPE);
        let media_type = media_type.parse().map_err(|_| PullError::Registry {
            registry: self.endpoint.host.clone(),
            reason: format!("the manifest says that it is {media_type:?}, which is no media type"),
        })?;
        client.push_manifest_raw(&target, manifest, media_type).await.map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn blob(
        &self,
        client: &oci_client::Client,
        target: &OciReference,
        digest: &str,
        progress: &Progress,
    ) -> Result<(), PullError> {
        let path = self.store.blob_path(digest)?;
        let failed = |error: std::io::Error| PullError::Registry {
            registry: self.endpoint.host.clone(),
            reason: format!("reading {}: {error}", path.display()),
        };
        let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
        let bytes = file.seek(SeekFrom::End(0)).await.map_err(failed)?;
        file.rewind().await.map_err(failed)?;
        if client.blob_exists(target, digest).await.unwrap_or(false) {
            report(progress, digest, bytes, "exists", bytes);
            return Ok(());
        }
        report(progress, digest, bytes, "uploading", 0);
        let chunks = async_stream::try_stream! {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let len = file.read(&mut chunk).await.map_err(OciDistributionError::IoError)?;
                if len == 0 {
                    break;
                }
                chunk.truncate(len);
                yield Bytes::from(chunk);
            }
        };
        client.push_blob_stream(target, chunks, digest, Some(bytes)).await.map_err(|error| self.error(error))?;
        report(progress, digest, bytes, "pushed", bytes);
        Ok(())
    }

    fn error(&self, error: OciDistributionError) -> PullError {
        match error {
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
            // Where the password itself is asked for, the upload is what is refused.
            | OciDistributionError::ServerError { code: 401 | 403, .. } => {
                PullError::Denied { image: self.reference.familiar() }
            }
            other => self.endpoint.error(other),
        }
    }
}
