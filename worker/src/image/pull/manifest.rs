//! Asks a registry for a manifest, or for its digest alone, and says what a manifest is that is no image's.

use std::time::Duration;

use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, HeaderMap, HeaderValue},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::{ACCEPTED, PullError, asker::Asker, is_absent, is_digest};
use crate::image::store::MAX_METADATA_BYTES;

/// For all of an answer: a few kilobytes, mostly.
const LONGEST: Duration = Duration::from_secs(60);
const DIGEST_HEADER: &str = "docker-content-digest";

impl Asker<'_> {
    /// The bytes of the manifest with this tag or digest.
    pub(super) async fn manifest(&self, of: &str) -> Result<Vec<u8>, PullError> {
        self.in_time(self.checked_text(of)).await
    }

    /// What the tag means now.
    pub(super) async fn digest(&self, of: &str) -> Result<String, PullError> {
        self.in_time(async {
            let answer = self.ask_for_manifest(Method::HEAD, of).await?;
            // A refusal says why only to whom asks for all of it, and some registries know no such question.
            match said_digest(&answer).filter(|_| answer.status().is_success()) {
                Some(digest) if is_digest(&digest) => Ok(digest),
                Some(digest) => Err(self.failed(format!("it gives {digest:?} for a digest"))),
                None => Ok(digest_of(&self.checked_text(of).await?)),
            }
        })
        .await
    }

    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, PullError>>) -> Result<T, PullError> {
        let late = |_| Err(self.failed(format!("its manifest takes longer than {} s", LONGEST.as_secs())));
        timeout(LONGEST, answer).await.unwrap_or_else(late)
    }

    async fn checked_text(&self, of: &str) -> Result<Vec<u8>, PullError> {
        let mut answer = self.ask_for_manifest(Method::GET, of).await?;
        if answer.status() != StatusCode::OK {
            let (registry, image) = (self.endpoint.host.clone(), self.reference.familiar());
            return Err(match self.refusal(answer).await? {
                refused if is_absent(&refused) => PullError::NotFound { registry, image },
                refused => self.endpoint.error(refused),
            });
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

    async fn ask_for_manifest(&self, method: Method, of: &str) -> Result<Response, PullError> {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(ACCEPTED))]);
        self.ask(method, &format!("manifests/{of}"), headers).await
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
