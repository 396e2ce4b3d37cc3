//! What runs of a stack, in the words of a file: names instead of ids.

use std::{collections::BTreeMap, sync::Arc};

use orch_model::{
    Annotations, Kind,
    network::{Network, NetworkSpec, NodeNetwork},
    service::{FileRef, Service},
};

use super::in_stack;
use crate::{
    api::Api,
    compose::{Content, NAMESPACE_LABEL, Stack, StackData, StackNetwork, StackService},
    flags::{file_ref::NamedFile, network::NamedAttachment},
};

/// Secrets and configs are somebody else's in it: their content is in the cluster.
pub(super) async fn stack(api: &mut Api, name: &str) -> anyhow::Result<Stack> {
    let networks = api.all::<Network>().await?;
    let mut stack = Stack::default();
    for service in api.list::<Service>(in_stack(name)).await?.iter().filter(|service| !service.removing) {
        stack.services.push(named(service, &networks));
    }
    stack.services.sort_by(|a, b| a.spec.annotations.name.cmp(&b.spec.annotations.name));
    let is_own = |annotations: &Annotations| annotations.labels.get(NAMESPACE_LABEL).is_some_and(|own| own == name);
    let used = |network: &Network| is_used(&stack.services, &network.spec.annotations.name);
    let of_stack =
        networks.iter().filter(|network| !network.removing && (is_own(&network.spec.annotations) || used(network)));
    stack.networks = of_stack
        .map(|network| StackNetwork { external: !is_own(&network.spec.annotations), spec: network.spec.clone() })
        .collect();
    let of_nodes = NodeNetwork::ALL.into_iter().filter(|network| is_used(&stack.services, network.name())).map(of_node);
    stack.networks.extend(of_nodes);
    stack.networks.sort_by(|a, b| a.spec.annotations.name.cmp(&b.spec.annotations.name));
    stack.data = data(&stack.services);
    Ok(stack)
}

fn is_used(services: &[StackService], network: &str) -> bool {
    services.iter().any(|service| service.networks.iter().any(|attachment| attachment.network == network))
}

/// As a file names it.
fn of_node(network: NodeNetwork) -> StackNetwork {
    let annotations = Annotations { name: network.to_string(), ..Annotations::default() };
    StackNetwork { external: true, spec: NetworkSpec { annotations, ..NetworkSpec::default() } }
}

/// A service with the names of what it uses in place of the ids.
fn named(service: &Service, networks: &[Arc<Network>]) -> StackService {
    let mut spec = service.spec.clone();
    let name_of = |id: &orch_model::NetworkId| {
        let network = networks.iter().find(|network| network.id == *id);
        network.map_or_else(|| id.to_string(), |network| network.spec.annotations.name.clone())
    };
    let mut attachments: Vec<NamedAttachment> = std::mem::take(&mut spec.task.networks)
        .into_iter()
        .map(|attachment| NamedAttachment {
            network: name_of(&attachment.network),
            aliases: attachment.aliases,
            driver_options: attachment.driver_options,
        })
        .collect();
    let of_node = spec.task.node_network.take();
    attachments.extend(of_node.map(|n| NamedAttachment { network: n.to_string(), ..NamedAttachment::default() }));
    attachments.sort_by(|a, b| a.network.cmp(&b.network));
    let secrets = std::mem::take(&mut spec.task.container.secrets).iter().map(file).collect();
    let configs = std::mem::take(&mut spec.task.container.configs).iter().map(file).collect();
    StackService { spec, networks: attachments, secrets, configs }
}

fn file<Id>(file: &FileRef<Id>) -> NamedFile {
    NamedFile {
        source: file.name.clone(),
        target: file.target.clone(),
        uid: file.uid.clone(),
        gid: file.gid.clone(),
        mode: file.mode,
    }
}

fn data(services: &[StackService]) -> Vec<StackData> {
    let mut found: BTreeMap<(u8, &str), Kind> = BTreeMap::new();
    for service in services {
        found.extend(service.secrets.iter().map(|file| ((0, file.source.as_str()), Kind::Secret)));
        found.extend(service.configs.iter().map(|file| ((1, file.source.as_str()), Kind::Config)));
    }
    let external = |((_, name), kind): ((u8, &str), Kind)| StackData {
        kind,
        annotations: Annotations { name: name.to_owned(), ..Annotations::default() },
        content: Content::External,
        template: None,
    };
    found.into_iter().map(external).collect()
}
