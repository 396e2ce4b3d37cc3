//! `orch network inspect --verbose`: who is on a network, and where.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use orch_model::{
    NetworkId, ServiceId,
    network::{IpamConfig, Network},
    node::Node,
    service::Service,
    task::{Task, TaskState},
};
use orch_proto::{paths::Paths, wire};
use serde_json::{Map, Value, json};

use crate::api::{Api, explain, worker};

/// What of this node is on networks of the cluster, tasks and one-off containers, each with its container's id. Nothing
/// on a worker, which is told nothing about networks of the cluster.
pub(super) async fn here(paths: &Paths) -> anyhow::Result<Vec<(String, Arc<Task>)>> {
    let Ok(mut api) = Api::connect(paths).await else { return Ok(Vec::new()) };
    let of_services = wire::Filters { node_ids: vec![api.info().await?.node_id], ..Default::default() };
    let one_off = wire::Filters { service_ids: vec![ServiceId::nobody().to_string()], ..of_services.clone() };
    let mut tasks = api.list::<Task>(of_services).await?;
    tasks.extend(api.list::<Task>(one_off).await?);
    tasks.retain(|task| !task.status.state.is_terminal());
    let containers = match worker(paths).await {
        Ok(mut worker) => worker.list_containers(wire::Empty {}).await.map_err(explain)?.into_inner().containers,
        Err(_) => Vec::new(),
    };
    let with_id = tasks.into_iter().filter_map(|task| {
        let container = containers.iter().find(|container| container.task_id == task.id.as_str())?;
        Some((container.container_id.clone(), task))
    });
    Ok(with_id.collect())
}

/// What managers know, read once for all networks.
pub(super) struct Cluster {
    nodes: Vec<Arc<Node>>,
    services: Vec<Arc<Service>>,
    /// Of services, and one-off containers.
    tasks: Vec<Arc<Task>>,
}

impl Cluster {
    /// `None` on a worker.
    pub(super) async fn read(paths: &Paths) -> anyhow::Result<Option<Self>> {
        let Ok(mut api) = Api::connect(paths).await else { return Ok(None) };
        let one_off = wire::Filters { service_ids: vec![ServiceId::nobody().to_string()], ..Default::default() };
        let mut tasks = api.all::<Task>().await?;
        tasks.extend(api.list::<Task>(one_off).await?);
        tasks.retain(|task| !task.status.state.is_terminal());
        Ok(Some(Self { nodes: api.all::<Node>().await?, services: api.all::<Service>().await?, tasks }))
    }

    /// The fields that `--verbose` adds.
    pub(super) fn on(&self, network: &Network) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("Containers".to_owned(), self.containers(&network.id));
        fields.insert("Peers".to_owned(), self.peers(network));
        fields.insert("Services".to_owned(), self.services(&network.id));
        fields.insert("Addresses".to_owned(), self.addresses(network));
        fields
    }

    /// Nodes that take part: those with a task there, and on ingress all.
    fn peers(&self, network: &Network) -> Value {
        let takes_part = |node: &&Arc<Node>| {
            network.spec.ingress || self.on_network(&network.id).any(|(task, _)| task.node.as_ref() == Some(&node.id))
        };
        let peer = |node: &Arc<Node>| {
            let addr = node.description.data_addr.map(|addr| addr.to_string()).unwrap_or_default();
            json!({"Name": node.description.hostname, "ID": node.id.as_str(), "IP": addr})
        };
        self.nodes.iter().filter(takes_part).map(peer).collect()
    }

    fn services(&self, network: &NetworkId) -> Value {
        let mut services = Map::new();
        for service in &self.services {
            let tasks: Vec<_> = self.on_network(network).filter(|(task, _)| task.service == service.id).collect();
            let vip = service.endpoint.vips.iter().find(|vip| vip.network == *network).map(|vip| vip.addr.ip());
            if tasks.is_empty() && vip.is_none() {
                continue;
            }
            let ports = service
                .endpoint
                .ports
                .iter()
                .map(|port| format!("Target: {}, Publish: {}", port.target_port, port.published_port));
            let mut by_node: BTreeMap<String, u64> = BTreeMap::new();
            for (task, _) in tasks.iter().filter(|(task, _)| serves(task)) {
                *by_node.entry(self.node_name(task)).or_default() += 1;
            }
            let shown = json!({
                "VIP": vip.map(|vip| vip.to_string()).unwrap_or_default(),
                "Ports": ports.collect::<Vec<_>>(),
                "BackendsPerNode": by_node,
                "Tasks": tasks.iter().map(|(task, address)| self.task(task, *address)).collect::<Value>(),
            });
            services.insert(service.spec.annotations.name.clone(), shown);
        }
        Value::Object(services)
    }

    fn task(&self, task: &Task, address: Option<IpNetwork>) -> Value {
        json!({
            "Name": task.container_name(),
            "EndpointIP": address.map(|address| address.ip().to_string()).unwrap_or_default(),
            "Node": self.node_name(task),
            "State": task.status.state.word(),
            "Serving": serves(task),
        })
    }

    /// One-off ones; a service's tasks are with it.
    fn containers(&self, network: &NetworkId) -> Value {
        let one_off = self.on_network(network).filter(|(task, _)| task.is_one_off());
        let shown = one_off.map(|(task, address)| {
            let address = address.map(|address| address.to_string()).unwrap_or_default();
            (task.id.to_string(), json!({"Name": task.name(), "IPv4Address": address, "Node": self.node_name(task)}))
        });
        Value::Object(shown.collect())
    }

    /// How full each subnet is.
    fn addresses(&self, network: &Network) -> Value {
        let ipam = network.allocation.iter().flat_map(|allocation| &allocation.ipam);
        let of_tasks = self.tasks.iter().flat_map(|task| {
            task.networks.iter().filter(|n| n.network == network.id).flat_map(|n| n.addresses.iter().map(IpNetwork::ip))
        });
        let of_services = self.services.iter().flat_map(|service| {
            service.endpoint.vips.iter().filter(|vip| vip.network == network.id).map(|vip| vip.addr.ip())
        });
        let of_nodes = self.nodes.iter().filter_map(|node| node.attachments.get(&network.id).copied());
        let held: std::collections::BTreeSet<IpAddr> = of_tasks.chain(of_services).chain(of_nodes).collect();
        ipam.map(|config| usage(config, held.iter().filter(|address| config.subnet.contains(**address)).count()))
            .collect()
    }

    fn on_network<'a>(&'a self, network: &'a NetworkId) -> impl Iterator<Item = (&'a Arc<Task>, Option<IpNetwork>)> {
        self.tasks.iter().filter_map(move |task| {
            let attachment = task.networks.iter().find(|n| n.network == *network)?;
            Some((task, attachment.addresses.first().copied()))
        })
    }

    fn node_name(&self, task: &Task) -> String {
        let node = self.nodes.iter().find(|node| task.node.as_ref() == Some(&node.id));
        node.map(|node| node.description.hostname.clone()).unwrap_or_default()
    }
}

/// As managers tell the nodes.
fn serves(task: &Task) -> bool {
    let unhealthy =
        task.status.container.as_ref().is_some_and(|c| c.health == Some(orch_model::task::Health::Unhealthy));
    task.status.state == TaskState::Running && task.desired_state <= TaskState::Running && !unhealthy
}

/// `used` counts what tasks, services, nodes and containers hold; the gateway and reserved addresses are nobody's to have.
fn usage(config: &IpamConfig, used: usize) -> Value {
    let range = config.range.unwrap_or(config.subnet);
    let bits = if range.is_ipv4() { 32_u32 } else { 128 };
    let size = 1_u128.checked_shl(bits - u32::from(range.prefix())).unwrap_or(u128::MAX);
    let edges: Vec<IpAddr> = match config.subnet {
        IpNetwork::V4(net) => vec![net.network().into(), net.broadcast().into()],
        IpNetwork::V6(net) => vec![net.network().into()],
    };
    let reserved = edges.into_iter().chain(config.gateway).chain(config.aux.values().copied());
    let reserved: std::collections::BTreeSet<IpAddr> = reserved.filter(|address| range.contains(*address)).collect();
    let total = size.saturating_sub(reserved.len() as u128);
    let free = total.saturating_sub(used as u128);
    // JSON's numbers end before IPv6 does.
    let number = |count: u128| u64::try_from(count).map_or_else(|_| Value::from(count.to_string()), Value::from);
    json!({"Subnet": config.subnet.to_string(), "Used": used, "Free": number(free), "Total": number(total)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_say_how_full_they_are() {
        let config = |subnet: &str, range: Option<&str>, aux: &[&str]| IpamConfig {
            subnet: subnet.parse().unwrap(),
            range: range.map(|range| range.parse().unwrap()),
            gateway: "10.0.1.1".parse().ok(),
            aux: aux.iter().map(|a| ((*a).to_owned(), a.parse().unwrap())).collect(),
        };
        for (config, used, free, total) in [
            (config("10.0.1.0/24", None, &[]), 3, json!(250), json!(253)),
            (config("10.0.1.0/24", None, &["10.0.1.9"]), 0, json!(252), json!(252)),
            (config("10.0.1.0/24", Some("10.0.1.128/25"), &[]), 127, json!(0), json!(127)),
            (config("fd00::/64", None, &[]), 1, json!(u64::MAX - 1), json!(u64::MAX)),
        ] {
            let seen = usage(&config, used);
            assert_eq!((&seen["Free"], &seen["Total"]), (&free, &total), "{seen}");
        }
    }
}
