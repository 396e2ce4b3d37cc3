//! What a service's image means at its registry, and the login that goes with it (`--with-registry-auth`).
//!
//! The digest is found out once, here, so that all nodes run the same. The login is stored as a secret of the service: sealed
//! in raft, sent to the nodes that run it, in memory only, and never given out by the API. Managers remove it with the service.

use std::time::Duration;

use anyhow::Context as _;
use orch_model::{Annotations, Kind, SecretId, image::Image, secret::Secret, service::ContainerSpec};
use orch_proto::{conv::ToProto, wire};
use prost::Message as _;
use tokio::time::timeout;
use tonic::Code;

use crate::{
    api::{Api, explain, worker},
    commands::image,
};

/// The label of such secrets; its value is the service's name.
pub(crate) const LOGIN_LABEL: &str = "orch.registry-login";
/// A registry that does not answer must not hold up who asks for long: every node asks for itself then.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(8);

/// What is wanted of a service's image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) resolve: bool,
    pub(crate) login: bool,
}

/// A login that was stored for a service which does not exist yet.
#[derive(Debug, Default)]
pub(crate) struct NewLogin(Option<SecretId>);

impl NewLogin {
    /// The service was refused: nobody would ever use it.
    pub(crate) async fn take_back(self, api: &mut Api) {
        if let Some(id) = self.0
            && let Err(error) = api.remove(Kind::Secret, id.as_str(), false).await
        {
            remark!("the stored registry login {id} stays behind: {error:#}");
        }
    }
}

/// Fills in the digest and the login of a service's image.
pub(crate) async fn settle(
    api: &mut Api,
    service: &str,
    container: &mut ContainerSpec,
    wanted: Wanted,
) -> anyhow::Result<NewLogin> {
    if wanted.resolve {
        resolve(api, container).await?;
    }
    if !wanted.login {
        return Ok(NewLogin::default());
    }
    // As with Docker: a registry that wants no login needs none.
    let Some(login) = image::credentials_for(&container.image)? else { return Ok(NewLogin::default()) };
    let bits: u64 = rand::random();
    let annotations = Annotations {
        name: format!("registry-login-{service}-{bits:016x}"),
        labels: [(LOGIN_LABEL.to_owned(), service.to_owned())].into(),
    };
    let spec = wire::SecretSpec {
        annotations: Some(annotations.to_proto()),
        data: login.encode_to_vec().into(),
        template: None,
    };
    let stored = api.create::<Secret>(wire::spec::Spec::Secret(spec)).await;
    let (secret, _) = stored.context("the registry login cannot be stored")?;
    container.registry_auth = Some(secret.id.clone());
    Ok(NewLogin(Some(secret.id.clone())))
}

/// What the cluster calls by this name goes before what a registry does: such images need no registry.
async fn resolve(api: &mut Api, container: &mut ContainerSpec) -> anyhow::Result<()> {
    if container.image_digest.is_some() || container.image.contains('@') {
        return Ok(());
    }
    let name = image::canonical(&container.image);
    if api.all::<Image>().await?.iter().any(|known| known.name == name) {
        return Ok(());
    }
    match timeout(RESOLVE_TIMEOUT, ask(api, &container.image)).await {
        Ok(Ok(digest)) => container.image_digest = digest,
        Ok(Err(error)) => warn(&container.image, &format!("{error:#}")),
        Err(_) => warn(&container.image, "its registry does not answer"),
    }
    Ok(())
}

/// In Docker's words, with the reason.
fn warn(image: &str, why: &str) {
    remark!(
        "image {image} could not be accessed on a registry to record\nits digest. Each node will access {image} \
         independently,\npossibly leading to different nodes running different\nversions of the image.\n({why})\n"
    );
}

async fn ask(api: &Api, image: &str) -> anyhow::Result<Option<String>> {
    let request = wire::PullImageRequest {
        reference: image.to_owned(),
        auth: image::credentials_for(image)?,
        ..Default::default()
    };
    let resolved = match worker(api.paths()).await?.resolve_image(request).await {
        Ok(resolved) => resolved.into_inner(),
        // That is no name: the managers refuse it with the form.
        Err(status) if status.code() == Code::InvalidArgument => return Ok(None),
        Err(status) => return Err(explain(status)),
    };
    Ok(resolved.reference.split_once('@').map(|(_, digest)| digest.to_owned()))
}
