//! Names of networks, secrets and configs to ids, so that a spec means the same after a rename.

use std::sync::Arc;

use anyhow::Context as _;
use orch_model::{
    ConfigId, SecretId,
    network::{Network, NodeNetwork},
    secret::{Config, Secret},
    service::{FileRef, NetworkAttachmentSpec, ServiceSpec},
};
use orch_proto::{conv::ToProto, wire};

use crate::{
    api::Api,
    flags::{file_ref::NamedFile, network::NamedAttachment},
};

/// Where a service is to be: networks of the cluster, and the one that every node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Networks {
    pub(crate) of_cluster: Vec<NetworkAttachmentSpec>,
    pub(crate) of_node: Option<NodeNetwork>,
}

pub(crate) async fn networks(api: &mut Api, named: &[NamedAttachment]) -> anyhow::Result<Networks> {
    let of_node = of_node(named)?;
    let mut resolved = Vec::with_capacity(named.len());
    for attachment in named.iter().filter(|attachment| NodeNetwork::find(&attachment.network).is_none()) {
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
    Ok(Networks { of_cluster: resolved, of_node })
}

pub(super) fn of_node(named: &[NamedAttachment]) -> anyhow::Result<Option<NodeNetwork>> {
    let mut found = None;
    for NamedAttachment { network, aliases, driver_options } in named {
        let is_plain = aliases.is_empty() && driver_options.is_empty();
        match (NodeNetwork::of_service(network, is_plain)?, found) {
            (None, _) => {}
            (again, Some(before)) if again == found => anyhow::bail!("network {before} is named twice: name it once"),
            (Some(network), Some(before)) => anyhow::bail!(
                "a service is on one network of its nodes at most, and both {before} and {network} are named: leave one out"
            ),
            (of_node, None) => found = of_node,
        }
    }
    Ok(found)
}

/// A service as managers are asked for it. A network of the nodes goes by its name: a manager that does not know it refuses
/// what it would ignore in a field of its own.
pub(crate) fn asked(spec: &ServiceSpec) -> wire::spec::Spec {
    let mut asked = spec.to_proto();
    if let Some(task) = &mut asked.task {
        task.node_network = None;
        let name =
            |network: NodeNetwork| wire::NetworkAttachmentSpec { network: network.to_string(), ..Default::default() };
        task.networks.extend(spec.task.node_network.map(name));
    }
    wire::spec::Spec::Service(asked)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager that does not know the field sees a network that it does not have.
    #[test]
    fn a_network_of_the_nodes_is_asked_for_by_its_name() {
        for (network, named) in
            [(None, &[][..]), (Some(NodeNetwork::Host), &["host"]), (Some(NodeNetwork::Bridge), &["bridge"])]
        {
            let mut spec = crate::commands::service::surface::created("");
            spec.task.node_network = network;
            let wire::spec::Spec::Service(asked) = asked(&spec) else { panic!("not a service") };
            let task = asked.task.unwrap();
            let names: Vec<_> = task.networks.iter().map(|n| n.network.as_str()).collect();
            assert_eq!((names.as_slice(), task.node_network), (named, None));
        }
    }
}
