//! Asks a registry for a manifest, or for its digest alone, and says what a manifest is that is no image's.
//!
//! Not by the client, which takes whatever arrives into memory: here an answer has a limit, and a time.

use std::time::Duration;

use oci_client::{
    Client, Reference as OciReference, RegistryOperation,
    errors::{OciDistributionError, OciEnvelope},
    secrets::RegistryAuth,
};
use reqwest::{Method, Response, StatusCode, header::ACCEPT};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::{ACCEPTED, PullError, is_digest, refusal};
use crate::image::{reference::Reference, registry::Endpoint, store::MAX_METADATA_BYTES};

/// For all of an answer: a few kilobytes, mostly.
const LONGEST: Duration = Duration::from_secs(60);
/// What is read of an answer that is no manifest.
const MAX_REFUSAL_BYTES: u64 = 64 << 10;
const DIGEST_HEADER: &str = "docker-content-digest";

/// Who asks whom about what.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    pub endpoint: &'a Endpoint,
    pub client: &'a Client,
    pub auth: &'a RegistryAuth,
    pub reference: &'a Reference,
}

impl Asker<'_> {
    /// The manifest's bytes. A token that is got for it is kept for the next one.
    pub(super) async fn text(&self, of: &OciReference, token: &mut Option<String>) -> Result<Vec<u8>, PullError> {
        self.in_time(self.checked_text(of, token)).await
    }

    /// What the name means now.
    pub(super) async fn digest(&self, of: &OciReference) -> Result<String, PullError> {
        self.in_time(async {
            let mut token = None;
            let answer = self.ask(Method::HEAD, of, &mut token).await?;
            // A refusal says why only to whom asks for all of it, and some registries know no such question.
            match said_digest(&answer).filter(|_| answer.status().is_success()) {
                Some(digest) if is_digest(&digest) => Ok(digest),
                Some(digest) => Err(self.failed(format!("it gives {digest:?} for a digest"))),
                None => Ok(digest_of(&self.checked_text(of, &mut token).await?)),
            }
        })
        .await
    }

    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, PullError>>) -> Result<T, PullError> {
        let late = |_| Err(self.failed(format!("its manifest takes longer than {} s", LONGEST.as_secs())));
        timeout(LONGEST, answer).await.unwrap_or_else(late)
    }

    async fn checked_text(&self, of: &OciReference, token: &mut Option<String>) -> Result<Vec<u8>, PullError> {
        let mut answer = self.ask(Method::GET, of, token).await?;
        if answer.status() != StatusCode::OK {
            *token = None;
            return Err(self.refused(answer).await);
        }
        let text = self.read(&mut answer, MAX_METADATA_BYTES).await?;
        if text.len() as u64 > MAX_METADATA_BYTES {
            let limit = MAX_METADATA_BYTES >> 20;
            return Err(self.failed(format!("its manifest is larger than {limit} MiB, more than any image's")));
        }
        match said_digest(&answer).filter(|said| is_digest(said)) {
            Some(said) if said != digest_of(&text) => {
                let found = digest_of(&text);
                Err(self.failed(format!("the manifest that it calls {said} is {found}: damaged or forged on the way")))
            }
            _ => Ok(text),
        }
    }

    async fn ask(&self, method: Method, of: &OciReference, token: &mut Option<String>) -> Result<Response, PullError> {
        if token.is_none() {
            // Without one the registry says what is wrong.
            *token = self.client.auth(of, self.auth, RegistryOperation::Pull).await.ok().flatten();
        }
        let what = of.digest().or(of.tag()).unwrap_or("latest");
        let url = format!("{}{}/manifests/{what}", self.endpoint.base(), of.repository());
        let request = self.endpoint.http()?.request(method, url).header(ACCEPT, ACCEPTED.join(", "));
        let request = match (token, self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, _) => request,
        };
        request.send().await.map_err(|error| self.endpoint.error(error.into()))
    }

    /// At most one piece more than the limit.
    async fn read(&self, answer: &mut Response, limit: u64) -> Result<Vec<u8>, PullError> {
        let mut text = Vec::new();
        while text.len() as u64 <= limit
            && let Some(piece) = answer.chunk().await.map_err(|error| self.endpoint.error(error.into()))?
        {
            text.extend_from_slice(&piece);
        }
        Ok(text)
    }

    async fn refused(&self, mut answer: Response) -> PullError {
        let (status, url) = (answer.status(), answer.url().to_string());
        let body = match self.read(&mut answer, MAX_REFUSAL_BYTES).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        let error = match (status, serde_json::from_slice::<OciEnvelope>(&body)) {
            (StatusCode::UNAUTHORIZED, _) => OciDistributionError::UnauthorizedError { url },
            (status, Ok(envelope)) if status.is_client_error() => OciDistributionError::RegistryError { envelope, url },
            (status, _) => {
                let message = String::from_utf8_lossy(&body).into_owned();
                OciDistributionError::ServerError { code: status.as_u16(), url, message }
            }
        };
        refusal(self.endpoint, self.auth, self.reference, error).await
    }

    fn failed(&self, reason: String) -> PullError {
        PullError::Registry { registry: self.endpoint.host.clone(), reason }
    }
}

fn said_digest(answer: &Response) -> Option<String> {
    Some(answer.headers().get(DIGEST_HEADER)?.to_str().ok()?.trim().to_owned())
}

fn digest_of(text: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(text)))
}

/// As much of a manifest as tells what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Part>,
    #[serde(default)]
    layers: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    #[serde(default)]
    media_type: String,
}

/// The configurations that Docker takes for an image's; some tools give theirs no type of its own.
const CONFIGS: [&str; 4] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
    "",
];

/// What it is instead of an image or an index of images, and what to do; `None`: nothing speaks against it.
pub(super) fn other_than_image(text: &[u8]) -> Option<String> {
    let outline: Outline = serde_json::from_slice(text).ok()?;
    if outline.schema_version == 1 {
        return Some(
            "in the format schema 1, which nobody makes any more: push it to its registry again with a tool of today \
             (`skopeo copy --format v2s2`), and pull that"
                .to_owned(),
        );
    }
    if outline.layers.iter().any(|layer| layer.media_type.starts_with("application/vnd.in-toto")) {
        return Some("an attestation, which tells how an image was built: pull the image by its own name".to_owned());
    }
    let config = outline.config?.media_type;
    match outline.artifact_type.filter(|name| !name.is_empty()) {
        None if CONFIGS.contains(&config.as_str()) => None,
        _ if config.starts_with("application/vnd.cncf.helm.") => {
            Some("a Helm chart: `helm pull oci://…` fetches it".to_owned())
        }
        // An image may say what kind of artifact it is, too.
        Some(_) if CONFIGS[..2].contains(&config.as_str()) => None,
        named => {
            let kind = named.unwrap_or(config);
            Some(format!("an artifact of the type {kind:?}: the tool that made it fetches it (`oras pull` any)"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_is_said() {
        let of = |config: &str, rest: &str| {
            format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"d","size":1}}{rest}}}"#)
        };
        let image = "application/vnd.oci.image.config.v1+json";
        for (text, expected) in [
            (of(image, ""), None),
            (of(CONFIGS[1], r#","layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip"}]"#), None),
            (of("application/octet-stream", ""), None),
            (of(image, r#","artifactType":"application/x.thing""#), None),
            (r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(), None),
            ("<html>".to_owned(), None),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), Some("schema 1")),
            (of("application/vnd.cncf.helm.config.v1+json", ""), Some("a Helm chart")),
            (
                of("application/vnd.oci.empty.v1+json", r#","artifactType":"application/x.thing""#),
                Some("an artifact of the type \"application/x.thing\""),
            ),
            (of("application/vnd.docker.plugin.v1+json", ""), Some("vnd.docker.plugin.v1+json\"")),
            (of(image, r#","layers":[{"mediaType":"application/vnd.in-toto+json"}]"#), Some("an attestation")),
        ] {
            let said = other_than_image(text.as_bytes());
            assert_eq!(said.is_some(), expected.is_some(), "{text}: {said:?}");
            assert!(said.unwrap_or_default().contains(expected.unwrap_or_default()), "{text}");
        }
    }
}
