//! Desired states to plan from, by small numbers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use orch_model::{
    NetworkId, NodeId, ServiceId, TaskId,
    assignment::{Assignment, EndpointItem, NetworkItem, Peer, ServiceEndpointItem},
    node::TunnelKey,
    service::{Balance, PortConfig, Protocol, PublishMode},
    task::TaskAttachment,
};
use orch_netd_core::{
    desired::{Desired, LinkNumbers, LocalTask},
    gateway::{Gateway, GatewayV6},
    plan::{Inputs, NodeFacts, Plan, WayOutV6, plan},
};

/// The ingress network's number.
pub(crate) const INGRESS: u8 = 0;

pub(crate) struct Scenario {
    pub(crate) items: Vec<Assignment>,
    pub(crate) tasks: BTreeMap<TaskId, LocalTask>,
    pub(crate) suspects: BTreeSet<NodeId>,
    /// Whether this node's kernel can.
    pub(crate) encrypts: bool,
    pub(crate) way_out_v6: Option<WayOutV6>,
}

pub(crate) fn net_id(network: u8) -> NetworkId {
    NetworkId::from_random(network.into())
}

pub(crate) fn task_id(task: u8) -> TaskId {
    TaskId::from_random(task.into())
}

fn node_id(node: u8) -> NodeId {
    NodeId::from_random(node.into())
}

fn service_id(service: u8) -> ServiceId {
    ServiceId::from_random(service.into())
}

/// 10.0.NETWORK.10 + task.
pub(crate) fn addr(network: u8, task: u8) -> IpAddr {
    IpAddr::from([10, 0, network, 10 + task])
}

pub(crate) fn port(published_port: u16, target_port: u16, publish_mode: PublishMode) -> PortConfig {
    PortConfig::new(Protocol::Tcp, published_port, target_port, publish_mode)
}

impl Scenario {
    /// Nodes 1..=`nodes`; this is node 1.
    pub(crate) fn new(nodes: u8) -> Self {
        let peer = |node| {
            Assignment::Peer(Peer {
                node: node_id(node),
                index: node.into(),
                data_addr: IpAddr::from([192, 168, 9, node]),
                ingress_addr: Some(IpAddr::from([10, 0, 0, 200 + node])),
                weight: None,
                tunnel_key: None,
            })
        };
        Self {
            items: (1..=nodes).map(peer).collect(),
            tasks: BTreeMap::new(),
            suspects: BTreeSet::new(),
            encrypts: false,
            way_out_v6: None,
        }
    }

    pub(crate) fn network(mut self, network: u8, internal: bool) -> Self {
        let subnet = ipnetwork::IpNetwork::new(IpAddr::from([10, 0, network, 0]), 24).unwrap();
        self.items.push(Assignment::Network(NetworkItem {
            id: net_id(network),
            name: format!("net{network}"),
            vni: 4096 + u32::from(network),
            subnets: vec![subnet],
            gateways: vec![IpAddr::from([10, 0, network, 1])],
            internal,
            ingress: network == INGRESS,
            driver_options: BTreeMap::new(),
            data_path_port: 4789,
        }));
        self
    }

    /// Service 2 balances by the source on network 1 and at random elsewhere, others in turn. Service `service` has the VIP 10.0.NETWORK.100 + service on a user network, its ports on the ingress network.
    pub(crate) fn service(mut self, network: u8, service: u8, ports: Vec<PortConfig>) -> Self {
        let vip = IpAddr::from([10, 0, network, 100 + service]);
        self.items.push(Assignment::ServiceEndpoint(ServiceEndpointItem {
            network: net_id(network),
            service: service_id(service),
            names: vec![format!("svc{service}")],
            vips: if network == INGRESS { vec![] } else { vec![vip] },
            ports,
            declared: vec![],
            balance: match (service, network) {
                (2, 1) => Some(Balance::SourceHash),
                (2, _) => Some(Balance::Random),
                _ => None,
            },
            prefer_local: false,
        }));
        self
    }

    /// A network of this node alone, with a smaller MTU.
    pub(crate) fn local_network(self, network: u8) -> Self {
        let mut scenario = self.network(network, false);
        if let Some(Assignment::Network(item)) = scenario.items.last_mut() {
            item.vni = 0;
            item.driver_options.insert("com.docker.network.driver.mtu".to_owned(), "1400".to_owned());
        }
        scenario
    }

    pub(crate) fn endpoint(mut self, network: u8, task: u8, service: u8, node: u8, serving: bool) -> Self {
        self.items.push(Assignment::Endpoint(EndpointItem {
            network: net_id(network),
            task: task_id(task),
            service: service_id(service),
            node: node_id(node),
            addresses: vec![addr(network, task)],
            names: vec![format!("svc{service}.{task}")],
            serving,
        }));
        self
    }

    /// A task of this node.
    pub(crate) fn task(mut self, task: u8, networks: &[u8], host_ports: Vec<PortConfig>, down: bool) -> Self {
        let attachment = |network: &u8| TaskAttachment {
            network: net_id(*network),
            addresses: vec![ipnetwork::IpNetwork::new(addr(*network, task), 24).unwrap()],
            aliases: vec![],
        };
        self.tasks.insert(
            task_id(task),
            LocalTask {
                id: task_id(task),
                service: None,
                hostname: format!("t{task}"),
                links: LinkNumbers::first(&networks.iter().map(attachment).collect::<Vec<_>>()),
                attachments: networks.iter().map(attachment).collect(),
                no_way_out: false,
                host_ports,
                nameservers: vec![],
                gateway_addr: [172, 18, 0, 10 + task].into(),
                dns_port: 40_000 + u16::from(task),
                down,
            },
        );
        self
    }

    /// Gives everything that is on `network` by now an IPv6 address beside each IPv4 address: fd00:NETWORK::HOST.
    pub(crate) fn dual_stack(mut self, network: u8) -> Self {
        let beside = |addr: &IpAddr| match addr {
            IpAddr::V4(v4) => Some(IpAddr::from([0xfd00, network.into(), 0, 0, 0, 0, 0, v4.octets()[3].into()])),
            IpAddr::V6(_) => None,
        };
        let both = |addrs: &mut Vec<IpAddr>| addrs.extend(addrs.iter().filter_map(beside).collect::<Vec<_>>());
        for item in &mut self.items {
            match item {
                Assignment::Network(item) if item.id == net_id(network) => {
                    item.subnets.push(format!("fd00:{network}::/64").parse().unwrap());
                    both(&mut item.gateways);
                }
                Assignment::ServiceEndpoint(item) if item.network == net_id(network) => both(&mut item.vips),
                Assignment::Endpoint(item) if item.network == net_id(network) => both(&mut item.addresses),
                _ => {}
            }
        }
        for attachment in self.tasks.values_mut().flat_map(|task| &mut task.attachments) {
            if attachment.network == net_id(network) {
                let beside = attachment.addresses.iter().filter_map(|addr| beside(&addr.ip()));
                let beside: Vec<_> = beside.map(|addr| ipnetwork::IpNetwork::new(addr, 64).unwrap()).collect();
                attachment.addresses.extend(beside);
            }
        }
        self
    }

    /// `network` is encrypted, and all nodes but `unable` can; the key of node N is all Ns.
    pub(crate) fn encrypted(mut self, network: u8, unable: &[u8]) -> Self {
        self.encrypts = !unable.contains(&1);
        for item in &mut self.items {
            match item {
                Assignment::Network(item) if item.id == net_id(network) => {
                    item.driver_options.insert("encrypted".to_owned(), String::new());
                }
                Assignment::Peer(peer) => {
                    let node = u8::try_from(peer.index).unwrap();
                    peer.tunnel_key = (!unable.contains(&node)).then_some(TunnelKey([node; 32]));
                }
                _ => {}
            }
        }
        self
    }

    /// The node goes out by IPv6, and learnt how by eth0.
    pub(crate) fn way_out_v6(mut self) -> Self {
        let gateway = GatewayV6::choose(0x0123_4567_89ab_cdef);
        self.way_out_v6 = Some(WayOutV6 { gateway, learning: ["eth0".to_owned()].into() });
        self
    }

    /// Gossip takes these nodes for dead.
    pub(crate) fn suspects(mut self, nodes: &[u8]) -> Self {
        self.suspects = nodes.iter().map(|node| node_id(*node)).collect();
        self
    }

    pub(crate) fn desired(&self) -> Desired {
        Desired::new(Some(node_id(1)), self.items.clone())
    }

    pub(crate) fn inputs<'a>(&'a self, desired: &'a Desired) -> Inputs<'a> {
        let gateway = Gateway::choose(&[]).unwrap();
        let facts = NodeFacts { gateway, underlay_mtu: 1500, filters_bridges: true, encrypts: self.encrypts };
        Inputs { desired, tasks: &self.tasks, suspects: &self.suspects, facts, way_out_v6: self.way_out_v6.as_ref() }
    }

    pub(crate) fn plan(&self) -> Plan {
        plan(self.inputs(&self.desired()))
    }
}
