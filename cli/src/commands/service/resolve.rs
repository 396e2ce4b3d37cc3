//! Names of networks, secrets and configs to ids, so that a spec means the same after a rename.

use std::sync::Arc;

use anyhow::Context as _;
use orch_model::{
    ConfigId, SecretId,
    network::Network,
    secret::{Config, Secret},
    service::{FileRef, NetworkAttachmentSpec},
};

use crate::{
    api::Api,
    flags::{file_ref::NamedFile, network::NamedAttachment},
};

pub(crate) async fn networks(api: &mut Api, named: &[NamedAttachment]) -> anyhow::Result<Vec<NetworkAttachmentSpec>> {
    let mut resolved = Vec::with_capacity(named.len());
    for attachment in named {
        let network: Arc<Network> =
            api.get(&attachment.network).await.with_context(|| format!("network {:?}", attachment.network))?;
        if resolved.iter().any(|have: &NetworkAttachmentSpec| have.network == network.id) {
            anyhow::bail!("network {:?} is named twice: name it once", attachment.network);
        }
        resolved.push(NetworkAttachmentSpec {
            network: network.id.clone(),
            aliases: attachment.aliases.clone(),
            driver_options: attachment.driver_options.clone(),
        });
    }
    Ok(resolved)
}

pub(crate) async fn secrets(api: &mut Api, named: &[NamedFile]) -> anyhow::Result<Vec<FileRef<SecretId>>> {
    let mut resolved = Vec::with_capacity(named.len());
    for file in named {
        let secret: Arc<Secret> = api.get(&file.source).await.with_context(|| format!("secret {:?}", file.source))?;
        resolved.push(file_ref(file, secret.id.clone(), &secret.annotations.name, ""));
    }
    Ok(resolved)
}

pub(crate) async fn configs(api: &mut Api, named: &[NamedFile]) -> anyhow::Result<Vec<FileRef<ConfigId>>> {
    let mut resolved = Vec::with_capacity(named.len());
    for file in named {
        let config: Arc<Config> = api.get(&file.source).await.with_context(|| format!("config {:?}", file.source))?;
        resolved.push(file_ref(file, config.id.clone(), &config.annotations.name, "/"));
    }
    Ok(resolved)
}

pub(super) fn file_ref<Id>(file: &NamedFile, id: Id, name: &str, prefix: &str) -> FileRef<Id> {
    let target = if file.target.is_empty() { format!("{prefix}{}", file.source) } else { file.target.clone() };
    FileRef { id, name: name.into(), target, uid: file.uid.clone(), gid: file.gid.clone(), mode: file.mode }
}
