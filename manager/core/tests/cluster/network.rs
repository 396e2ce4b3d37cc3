//! Subnets, addresses, ports, and what nodes are told of them.

use std::{collections::BTreeMap, sync::Arc};

use ipnetwork::IpNetwork;
use orch_manager_core::{bootstrap, control, encryption, validate};
use orch_model::{
    Annotations, Duration, NetworkId, Object, ObjectId, TaskId,
    assignment::{Assignment, AssignmentKey},
    change::Change,
    cluster::ClusterSpec,
    network::{DRIVER_OVERLAY, ENCRYPTED_OPTION, ENCRYPTED_PORT, IpamConfig, NetworkSpec, NodeNetwork},
    node::{
        Encryption, NodeDescription, TunnelKey,
        features::{ENCRYPTED_NETWORKS, HOST_GATEWAY, MOUNT_OPTIONS, NODE_NETWORKS, PUBLISH_OPTIONS, VOLUME_SUBPATH},
    },
    service::{
        Balance, BindRecursive, EndpointSpec, Mount, MountKind, NetworkAttachmentSpec, PublishMode, Service,
        ServiceMode, ServiceSpec, WEIGHT_LABEL,
    },
    task::{Task, TaskState, TaskStatus},
};

use crate::sim::{Sim, port, secs, web};

pub(crate) fn network(sim: &mut Sim, name: &str, subnet: Option<&str>) -> Result<NetworkId, control::ControlError> {
    let ipam = subnet.map(|s| IpamConfig {
        subnet: s.parse().expect("a subnet"),
        range: None,
        gateway: None,
        aux: BTreeMap::new(),
    });
    let spec = NetworkSpec {
        annotations: Annotations { name: name.into(), labels: BTreeMap::new() },
        driver: DRIVER_OVERLAY.into(),
        ipam: ipam.into_iter().collect(),
        ..NetworkSpec::default()
    };
    create(sim, spec)
}

fn encrypted(sim: &mut Sim, name: &str) -> Result<NetworkId, control::ControlError> {
    let spec = NetworkSpec {
        annotations: Annotations { name: name.into(), labels: BTreeMap::new() },
        driver: DRIVER_OVERLAY.into(),
        driver_options: [(ENCRYPTED_OPTION.to_owned(), String::new())].into(),
        attachable: true,
        ..NetworkSpec::default()
    };
    create(sim, spec)
}

fn create(sim: &mut Sim, spec: NetworkSpec) -> Result<NetworkId, control::ControlError> {
    let now = sim.now;
    let proposal = sim.with_ids(|state, ids| control::create_network(state, now, ids, spec))?;
    sim.accept(&proposal);
    sim.step();
    let ObjectId::Network(id) = proposal.id else { panic!("not a network") };
    Ok(id)
}

pub(crate) fn on(name: &str, replicas: u64, network: &NetworkId) -> ServiceSpec {
    let mut spec = web(name, "nginx", replicas);
    spec.task.networks.push(NetworkAttachmentSpec {
        network: network.clone(),
        aliases: vec!["alias".into()],
        driver_options: BTreeMap::new(),
    });
    spec
}

fn subnet(sim: &Sim, id: &NetworkId) -> Option<IpNetwork> {
    sim.state.network(id).and_then(|n| n.allocation.as_ref()).map(|a| a.ipam[0].subnet)
}

fn pools(pools: &[&str]) -> ClusterSpec {
    let address_pools = pools.iter().map(|p| p.parse().expect("a pool")).collect();
    ClusterSpec { address_pools, ..bootstrap::default_cluster_spec() }
}

#[test]
fn networks_get_identifiers_and_subnets_that_overlap_nothing() {
    let mut sim = Sim::new(2);
    let ingress = sim.state.ingress_network().expect("init made it").clone();
    assert_eq!(subnet(&sim, &ingress.id), "10.0.0.0/24".parse().ok());
    let a = network(&mut sim, "a", None).expect("accepted");
    let b = network(&mut sim, "b", Some("10.0.2.0/23")).expect("accepted");
    let c = network(&mut sim, "c", None).expect("accepted");
    assert_eq!(subnet(&sim, &a), "10.0.1.0/24".parse().ok());
    assert_eq!(subnet(&sim, &c), "10.0.4.0/24".parse().ok());
    let vnis: Vec<_> =
        [&ingress.id, &a, &b, &c].map(|id| sim.state.network(id)?.allocation.as_ref().map(|a| a.vni)).into();
    assert_eq!(vnis, [Some(4096), Some(4097), Some(4098), Some(4099)]);
    let refused = network(&mut sim, "d", Some("10.0.1.128/25")).expect_err("it overlaps");
    assert!(refused.text.contains("overlaps 10.0.1.0/24 of network a"), "{refused}");
    let refused = network(&mut sim, "e", Some("192.168.0.0/16")).expect_err("it overlaps the underlay");
    assert!(refused.text.contains("a network that node n1 is on"), "{refused}");
}

#[test]
fn subnets_keep_out_of_the_nodes_own_networks() {
    let mut sim = Sim::with_spec(1, pools(&["192.168.6.0/23"]));
    let ingress = sim.state.ingress_network().expect("init made it").id.clone();
    assert_eq!(subnet(&sim, &ingress), "192.168.6.0/24".parse().ok());
    let id = network(&mut sim, "a", None).expect("accepted");
    let network = sim.state.network(&id).expect("stored");
    let problem = network.problem.as_deref().unwrap_or_default();
    assert!(problem.contains("every /24 of 192.168.6.0/23 belongs to a network or overlaps"), "{network:?}");
}

#[test]
fn an_exhausted_pool_is_said_and_tried_again() {
    let mut sim = Sim::with_spec(1, pools(&["10.7.0.0/23"]));
    let a = network(&mut sim, "a", None).expect("accepted");
    let b = network(&mut sim, "b", None).expect("accepted");
    sim.create(on("web", 1, &b)).expect("accepted");
    sim.run(secs(1));
    let text = sim.ps("web");
    assert!(text.starts_with("1 - Running New: network b is not ready: could not find an available"), "{text}");
    let removal = control::remove_network(&sim.state, sim.now, &a).expect("unused");
    sim.accept(&removal);
    sim.run(secs(1));
    assert_eq!(sim.running("web")["n1"], 1, "{}", sim.ps("web"));
}

#[test]
fn a_full_subnet_is_said_and_the_task_waits() {
    let mut sim = Sim::new(1);
    // 8 addresses: network, gateway, broadcast, a virtual one and room for 4 tasks.
    let id = network(&mut sim, "small", Some("10.9.0.0/29")).expect("accepted");
    sim.create(on("web", 5, &id)).expect("accepted");
    sim.run(secs(1));
    assert_eq!(sim.running("web")["n1"], 4);
    assert!(sim.ps("web").contains("5 - Running New: network small has no free address left in 10.9.0.0/29"));
    sim.scale("web", 4);
    sim.run(secs(1));
    sim.fail("web.2");
    sim.run(secs(7));
    assert_eq!(sim.running("web")["n1"], 4, "a stopped task gave its address back:\n{}", sim.ps("web"));
}

#[test]
fn an_address_is_not_given_out_while_its_task_still_stops() {
    let mut sim = Sim::new(1);
    let id = network(&mut sim, "small", Some("10.9.0.0/29")).expect("accepted");
    sim.create(on("web", 4, &id)).expect("accepted");
    sim.run(secs(1));
    sim.stop_takes = secs(5);
    sim.scale("web", 0);
    sim.step();
    sim.scale("web", 4);
    sim.run(secs(3));
    assert_eq!(sim.running("web"), BTreeMap::new());
    assert!(sim.ps("web").contains("no free address left"), "{}", sim.ps("web"));
    sim.run(secs(6));
    assert_eq!(sim.running("web")["n1"], 4);
}

#[test]
fn a_freed_address_rests_before_it_is_used_again() {
    let mut sim = Sim::new(1);
    let id = network(&mut sim, "net", None).expect("accepted");
    sim.create(on("web", 1, &id)).expect("accepted");
    let mut seen = Vec::new();
    for _ in 0..4 {
        sim.run(secs(7));
        let task = sim.state.tasks().find(|t| t.is_wanted()).expect("a task");
        seen.push(task.networks[0].addresses[0].to_string());
        sim.fail("web.1");
    }
    assert_eq!(seen, ["10.0.1.3/24", "10.0.1.4/24", "10.0.1.5/24", "10.0.1.6/24"]);
}

#[test]
fn what_becomes_of_another_task_does_not_bring_a_freed_address_back() {
    let mut sim = Sim::new(1);
    let id = network(&mut sim, "net", None).expect("accepted");
    sim.create(on("web", 3, &id)).expect("accepted");
    sim.run(secs(1));
    let task = |sim: &Sim, slot: u64| {
        let found = sim.state.tasks().find(|t| t.slot == slot && t.is_wanted());
        found.map(|t| (**t).clone()).expect("a task")
    };
    let address = |sim: &Sim, slot: u64| task(sim, slot).networks[0].addresses[0].to_string();
    assert_eq!([1, 2, 3].map(|slot| address(&sim, slot)), ["10.0.1.3/24", "10.0.1.4/24", "10.0.1.5/24"]);
    // Each kind of change of the first task, while the second has just given its address back.
    let changes: [fn(Task) -> Change; 2] = [
        |task| {
            let status = TaskStatus { message: "healthy".into(), ..task.status };
            Change::TaskStatus { task: task.id, node: task.node.expect("a node"), status }
        },
        |mut task| {
            task.desired_state = TaskState::Shutdown;
            Change::Update(Object::Task(Arc::new(task)))
        },
    ];
    let mut seen = Vec::new();
    for change in changes {
        sim.fail("web.2");
        sim.commit_changes(vec![change(task(&sim, 1))]);
        sim.run(secs(12));
        seen.push(address(&sim, 2));
    }
    assert!(seen.iter().all(|address| address != "10.0.1.4/24"), "{seen:?}");
    assert_eq!(seen[0], "10.0.1.6/24");
}

#[test]
fn ports_are_published_once_and_automatic_ones_stay() {
    let mut sim = Sim::new(2);
    let mut spec = web("a", "nginx", 1);
    spec.endpoint.ports = vec![port(80, 8080, PublishMode::Ingress), port(0, 9090, PublishMode::Ingress)];
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    let numbers = |sim: &Sim| sim.service("a").endpoint.ports.iter().map(|p| p.published_port).collect::<Vec<_>>();
    assert_eq!(numbers(&sim), [80, 30000]);
    let mut spec = web("b", "nginx", 1);
    spec.endpoint.ports = vec![port(80, 80, PublishMode::Ingress)];
    let refused = sim.create(spec).expect_err("the port is taken");
    assert!(refused.text.starts_with("port '80' is already in use by service 'a'"), "{refused}");
    let vips = sim.service("a").endpoint.vips.clone();
    assert_eq!(vips.len(), 1, "on the ingress network");
    let before = sim.state.tasks().map(|t| t.id.clone()).collect::<Vec<_>>();
    sim.update("a", |s| s.endpoint.ports.push(port(81, 8081, PublishMode::Ingress))).expect("accepted");
    sim.run(secs(1));
    assert_eq!(numbers(&sim), [80, 30000, 81]);
    assert_eq!(sim.state.tasks().map(|t| t.id.clone()).collect::<Vec<_>>(), before, "no task is restarted for a port");
    sim.update("a", |s| s.task.force_update = 1).expect("accepted");
    sim.run(secs(10));
    assert_eq!(sim.service("a").endpoint.vips, vips, "the address stays across an update");
}

/// Whoever asks the node would find the one or the other, and everybody else on the other nodes only the other.
#[test]
fn a_port_of_all_nodes_is_no_tasks_own() {
    use PublishMode::{Host, Ingress};
    let mut sim = Sim::new(2);
    let service = |name: &str, ports: &[(u16, PublishMode)]| {
        let mut spec = web(name, "nginx", 1);
        spec.endpoint.ports =
            ports.iter().zip(80..).map(|((number, mode), target)| port(*number, target, *mode)).collect();
        spec
    };
    let numbers = |sim: &Sim, name: &str| {
        let of_task = |task: &Arc<Task>| task.host_ports.iter().map(|port| port.published_port).collect::<Vec<_>>();
        let service = sim.service(name);
        let ports = service.endpoint.ports.iter().filter(|port| port.publish_mode == Ingress);
        let task = sim.state.tasks_of(&service.id).next();
        (ports.map(|port| port.published_port).collect::<Vec<_>>(), task.map(of_task).unwrap_or_default())
    };
    // Who asks for which ports, what is given on all nodes and to the task, or what the refusal begins with.
    for (name, asked, want) in [
        ("named", vec![(80, Ingress), (32767, Ingress), (30000, Host)], Ok((vec![80, 32767], vec![30000]))),
        ("own", vec![(0, Host), (0, Ingress), (0, Host)], Ok((vec![30001], vec![32766, 32765]))),
        ("a", vec![(80, Host)], Err("port '80' is already in use by service 'named'")),
        ("b", vec![(30000, Ingress)], Err("port '30000' is already in use by service 'named'")),
        ("c", vec![(30001, Host)], Err("port '30001' is already in use by service 'own'")),
        ("d", vec![(32766, Ingress)], Err("port '32766' is already in use by service 'own'")),
        ("same", vec![(30000, Host), (0, Ingress)], Ok((vec![30002], vec![30000]))),
    ] {
        let said = sim.create(service(name, &asked)).map_err(|error| error.text);
        sim.run(secs(1));
        match want {
            Ok(want) => assert_eq!(said.map(|_| numbers(&sim, name)), Ok(want), "{name}"),
            Err(start) => {
                let said = said.expect_err(name);
                assert!(said.starts_with(start) && said.ends_with("choose another published port"), "{name}: {said}");
            }
        }
    }
    // What is stored already, from a version that did not look, can still be scaled.
    let mut before = Service::clone(&sim.service("same"));
    before.spec.endpoint.ports[0] = port(80, 80, Host);
    sim.commit_changes(vec![Change::Update(Object::Service(Arc::new(before)))]);
    sim.update("same", |spec| spec.mode = ServiceMode::Replicated { replicas: 2 }).expect("accepted");
}

/// Without what is mounted below it.
fn bind_alone() -> Mount {
    Mount {
        kind: MountKind::Bind,
        source: "/a".into(),
        target: "/b".into(),
        bind_recursive: Some(BindRecursive::Disabled),
        ..Mount::default()
    }
}

/// Services as the options make them, and what the refusal begins with.
#[test]
fn what_older_nodes_would_ignore_waits_until_they_are_upgraded() {
    type Option = fn(&mut ServiceSpec);
    let known =
        [PUBLISH_OPTIONS, MOUNT_OPTIONS, VOLUME_SUBPATH, HOST_GATEWAY, NODE_NETWORKS].map(str::to_owned).to_vec();
    let options: [(&str, Option); 8] = [
        ("a port that answers on one address", |s| s.endpoint.ports[0].host_ip = Some([127, 0, 0, 1].into())),
        ("a port with source=masquerade", |s| s.endpoint.ports[0].masquerade = true),
        ("to prefer local tasks", |s| s.endpoint.prefer_local = true),
        ("endpoint balance weighted", |s| s.endpoint.balance = Some(Balance::Weighted)),
        ("a bind with bind-recursive", |s| {
            s.task.container.mounts = vec![bind_alone()];
        }),
        ("a service on the network bridge", |s| s.task.node_network = Some(NodeNetwork::Bridge)),
        ("a host with host-gateway", |s| s.task.container.hosts = vec!["host-gateway node".into()]),
        ("a mount with volume-subpath", |s| {
            let target = "/b".to_owned();
            s.task.container.mounts = vec![Mount { target, volume_subpath: "a".into(), ..Mount::default() }];
        }),
    ];
    for (what, option) in options {
        let mut sim = Sim::new(2);
        let knows = |sim: &mut Sim, node, knows: bool| {
            sim.edit_node(node, |node| {
                node.description.engine_version = "0.1.0".into();
                node.description.features = if knows { known.clone() } else { Vec::new() };
            });
        };
        knows(&mut sim, 1, true);
        knows(&mut sim, 2, false);
        let mut spec = web("a", "nginx", 1);
        spec.endpoint.ports = vec![port(8080, 80, PublishMode::Ingress)];
        sim.create(spec.clone()).expect("nothing that older nodes do not know");
        let refused = sim.update("a", option).expect_err(what).to_string();
        assert!(refused.starts_with(what) && refused.contains("and n2 would ignore it"), "{refused}");
        option(&mut spec);
        spec.annotations.name = "b".into();
        spec.endpoint.ports[0].published_port = 8081;
        sim.create(spec.clone()).expect_err(what);
        knows(&mut sim, 2, true);
        sim.update("a", option).expect("accepted");
        sim.create(spec).expect("accepted");
    }
}

/// What a node knows of a spec that needs two features, and what the refusal begins with.
#[test]
fn each_feature_that_a_spec_needs_is_asked_of_nodes() {
    for (known, refused) in [
        (&[][..], Some("to prefer local tasks")),
        (&[PUBLISH_OPTIONS], Some("a bind with bind-recursive")),
        (&[MOUNT_OPTIONS], Some("to prefer local tasks")),
        (&[PUBLISH_OPTIONS, MOUNT_OPTIONS], None),
    ] {
        let mut sim = Sim::new(1);
        sim.edit_node(1, |node| {
            node.description.engine_version = "0.1.0".into();
            node.description.features = known.iter().map(|&feature| feature.to_owned()).collect();
        });
        let mut spec = web("a", "nginx", 1);
        spec.endpoint.ports = vec![port(8080, 80, PublishMode::Ingress)];
        spec.endpoint.prefer_local = true;
        spec.task.container.mounts = vec![bind_alone()];
        let said = sim.create(spec).err().map(|error| error.to_string());
        let is_said = said.as_deref().zip(refused).is_some_and(|(said, refused)| said.starts_with(refused));
        assert!(is_said || (said.is_none() && refused.is_none()), "{known:?}: {said:?}");
    }
}

#[test]
fn weights_are_labels_of_nodes() {
    let mut sim = Sim::new(1);
    let weight = |sim: &mut Sim, label: Option<&str>| {
        let labels = label.map(|text| (WEIGHT_LABEL.to_owned(), text.to_owned())).into_iter().collect();
        sim.edit_node(1, |node| node.spec.annotations.labels = labels);
        sim.run(secs(1));
        let peer = sim.set_of(1).into_values().find_map(|item| match item {
            Assignment::Peer(peer) => Some(peer),
            _ => None,
        });
        peer.expect("itself").weight
    };
    for (label, expected) in
        [(None, None), (Some("3"), Some(3)), (Some("0"), Some(0)), (Some("11"), None), (Some("x"), None)]
    {
        assert_eq!(weight(&mut sim, label), expected, "{label:?}");
    }
}

#[test]
fn a_service_that_starts_to_publish_moves_its_tasks_onto_ingress() {
    let mut sim = Sim::new(1);
    sim.create(web("a", "nginx", 1)).expect("accepted");
    sim.run(secs(1));
    sim.update("a", |s| s.endpoint.ports = vec![port(80, 80, PublishMode::Ingress)]).expect("accepted");
    sim.run(secs(10));
    let ingress = sim.state.ingress_network().expect("init made it").id.clone();
    let task = sim.state.tasks().find(|t| t.is_wanted()).expect("a task");
    assert!(task.networks.iter().any(|n| n.network == ingress && !n.addresses.is_empty()), "{task:?}");
}

fn without_ingress(sim: &mut Sim) -> NetworkId {
    let ingress = sim.state.ingress_network().expect("init made it").id.clone();
    let removal = control::remove_network(&sim.state, sim.now, &ingress).expect("nobody publishes");
    sim.accept(&removal);
    ingress
}

#[test]
fn tasks_that_wait_for_an_ingress_network_join_it() {
    let mut sim = Sim::new(1);
    without_ingress(&mut sim);
    let spec = ServiceSpec {
        endpoint: EndpointSpec { ports: vec![port(80, 80, PublishMode::Ingress)], ..EndpointSpec::default() },
        ..web("web", "nginx", 1)
    };
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    assert!(sim.ps("web").contains("there is no ingress network"), "{}", sim.ps("web"));
    let spec = NetworkSpec {
        annotations: Annotations { name: "ingress2".into(), labels: BTreeMap::new() },
        driver: DRIVER_OVERLAY.into(),
        ingress: true,
        ..NetworkSpec::default()
    };
    let ingress = create(&mut sim, spec).expect("accepted");
    sim.run(secs(10));
    let task = sim.state.tasks().find(|t| t.status.state == TaskState::Running).expect("it runs");
    assert!(task.networks.iter().any(|n| n.network == ingress && !n.addresses.is_empty()), "{task:?}");
}

#[test]
fn who_holds_an_ingress_network_that_nobody_needs_is_said() {
    let mut sim = Sim::new(1);
    let spec = ServiceSpec {
        endpoint: EndpointSpec { ports: vec![port(80, 80, PublishMode::Ingress)], ..EndpointSpec::default() },
        ..web("web", "nginx", 1)
    };
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.endpoint.ports.clear()).expect("accepted");
    sim.run(secs(1));
    let ingress = sim.state.ingress_network().expect("init made it").id.clone();
    let refused = control::remove_network(&sim.state, sim.now, &ingress).expect_err("in use").text;
    assert!(!refused.contains("stopping") && refused.contains("`orch service update --force web`"), "{refused}");
    sim.update("web", |s| s.task.force_update = 1).expect("accepted");
    sim.run(secs(10));
    without_ingress(&mut sim);
}

#[test]
fn nodes_learn_only_of_networks_that_they_take_part_in() {
    let mut sim = Sim::new(3);
    let id = network(&mut sim, "net", None).expect("accepted");
    let mut spec = on("shop_web", 1, &id);
    spec.endpoint.ports = vec![port(8080, 80, PublishMode::Ingress)];
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    let ingress = sim.state.ingress_network().expect("init made it").id.clone();
    let service = sim.service("shop_web").id.clone();
    let knows = |node: u8, key: &AssignmentKey| sim.set_of(node).get(key).cloned();
    assert!(knows(1, &AssignmentKey::Network(id.clone())).is_some());
    assert!(knows(2, &AssignmentKey::Network(id.clone())).is_none());
    for node in 1..=3 {
        let Some(Assignment::ServiceEndpoint(item)) =
            knows(node, &AssignmentKey::ServiceEndpoint(ingress.clone(), service.clone()))
        else {
            panic!("node {node} does not know the published port");
        };
        assert_eq!(item.ports.iter().map(|p| p.published_port).collect::<Vec<_>>(), [8080]);
        let peers = sim.set_of(node).values().filter(|i| matches!(i, Assignment::Peer(p) if p.index > 0)).count();
        assert_eq!(peers, 3);
    }
    let Some(Assignment::ServiceEndpoint(item)) = knows(1, &AssignmentKey::ServiceEndpoint(id, service)) else {
        panic!("n1 does not know the service");
    };
    assert_eq!(item.names, ["shop_web", "alias"]);
    assert_eq!((item.vips.len(), item.ports.len()), (1, 0));
}

#[test]
fn a_backend_is_withdrawn_everywhere_before_its_task_is_stopped() {
    let mut sim = Sim::new(2);
    let id = network(&mut sim, "net", None).expect("accepted");
    sim.create(on("web", 2, &id)).expect("accepted");
    sim.run(secs(1));
    sim.scale("web", 1);
    let task = sim.state.tasks().find(|t| t.slot == 2).expect("slot 2").clone();
    let node = if task.node == Some(crate::sim::node_id(1)) { 1 } else { 2 };
    sim.step();
    let seen = |sim: &Sim, on: u8| match sim.set_of(on).get(&AssignmentKey::Endpoint(id.clone(), task.id.clone())) {
        Some(Assignment::Endpoint(e)) => Some(e.serving),
        _ => None,
    };
    let desired = |sim: &Sim| match sim.set_of(node).get(&AssignmentKey::Task(task.id.clone())) {
        Some(Assignment::Task(t)) => Some(t.desired_state),
        _ => None,
    };
    assert_eq!((seen(&sim, 1), seen(&sim, 2), desired(&sim)), (Some(false), Some(false), Some(TaskState::Running)));
    sim.step();
    assert_eq!(sim.state.task(&task.id).map(|t| t.status.state), None, "stopped, then deleted");
}

#[test]
fn a_network_in_use_stays() {
    let mut sim = Sim::new(1);
    let id = network(&mut sim, "net", None).expect("accepted");
    sim.stop_takes = secs(2);
    let service = sim.create(on("web", 1, &id)).expect("accepted");
    sim.run(secs(1));
    let refused = control::remove_network(&sim.state, sim.now, &id).expect_err("in use");
    assert_eq!(refused.text, "network net is in use by service web: remove that first");
    let removal = control::remove_service(&sim.state, sim.now, &service).expect("accepted");
    sim.accept(&removal);
    sim.step();
    let refused = control::remove_network(&sim.state, sim.now, &id).expect_err("still in use");
    assert!(refused.text.contains("task web.1 (which is stopping)"), "{refused}");
    sim.run(secs(4));
    control::remove_network(&sim.state, sim.now, &id).expect("free now");
}

fn on_the_host(name: &str, replicas: u64) -> ServiceSpec {
    let mut spec = web(name, "nginx", replicas);
    spec.task.node_network = Some(NodeNetwork::Host);
    spec
}

/// What a service on the nodes' own network asks for besides, and what the refusal says of it.
#[test]
fn the_nodes_own_network_comes_alone() {
    type Edit = fn(&mut ServiceSpec);
    let other: Edit = |s| {
        let (network, aliases) = (NetworkId::from_random(1), Vec::new());
        s.task.networks = vec![NetworkAttachmentSpec { network, aliases, driver_options: BTreeMap::new() }];
    };
    let cases: [(Edit, Option<&str>); 7] = [
        (|_| {}, None),
        (|s| s.mode = ServiceMode::Global, None),
        (|s| s.task.container.sysctls = [("kernel.shmmax".into(), "9".into())].into(), None),
        (other, Some("it cannot be on any other network; name host alone")),
        (|s| s.endpoint.ports = vec![port(0, 80, PublishMode::Ingress)], Some("it publishes no ports")),
        (|s| s.endpoint.ports = vec![port(80, 80, PublishMode::Host)], Some("leave the port 80 out")),
        (
            |s| s.task.container.sysctls = [("net.core.somaxconn".into(), "9".into())].into(),
            Some("sysctl net.core.somaxconn would change the node"),
        ),
    ];
    for (edit, refused) in cases {
        let mut spec = on_the_host("agent", 1);
        edit(&mut spec);
        let said = validate::service_spec(&spec).err().map(|error| error.to_string());
        assert!(said.as_deref().unwrap_or_default().contains(refused.unwrap_or_default()), "{said:?}");
        assert_eq!(said.is_some(), refused.is_some(), "{said:?}");
        // Where a way out is all that is asked for, nothing of this is anybody's concern.
        spec.task.node_network = Some(NodeNetwork::Bridge);
        assert_eq!(validate::service_spec(&spec), Ok(()));
    }
}

#[test]
fn networks_of_the_nodes_keep_their_names() {
    let mut sim = Sim::new(1);
    for name in ["host", "bridge", "none", "default"] {
        let refused = network(&mut sim, name, None).expect_err(name).to_string();
        assert!(refused.contains("every node has a predefined network of this name"), "{refused}");
    }
    network(&mut sim, "hosts", None).expect("another name");
}

/// A node of an older version would show the container all of the volume.
#[test]
fn folders_of_volumes_are_for_versions_that_know_them() {
    let mut sim = Sim::new(2);
    let knows = |sim: &mut Sim, node, feature: &str| {
        sim.edit_node(node, |node| {
            node.description.engine_version = "0.1.0".into();
            node.description.features = vec![feature.to_owned()];
        });
    };
    knows(&mut sim, 1, VOLUME_SUBPATH);
    knows(&mut sim, 2, VOLUME_SUBPATH);
    let mut spec = web("part", "nginx", 4);
    let mount = Mount { source: "v".into(), target: "/b".into(), volume_subpath: "a".into(), ..Mount::default() };
    spec.task.container.mounts = vec![Mount { kind: MountKind::Volume, ..mount }];
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    assert_eq!(sim.running("part").len(), 2);
    knows(&mut sim, 2, MOUNT_OPTIONS);
    sim.run(secs(30));
    assert_eq!(sim.running("part").keys().map(String::as_str).collect::<Vec<_>>(), ["n1"]);
}

/// Such a service has neither addresses nor names. A node that went back to an older version loses its tasks, one that joins with
/// one gets none, and an update away from the network starts them everywhere.
#[test]
fn tasks_on_the_nodes_own_network_are_for_versions_that_know_it() {
    let mut sim = Sim::new(2);
    let knows = |sim: &mut Sim, node, knows: bool| {
        sim.edit_node(node, |node| {
            node.description.engine_version = "0.1.0".into();
            node.description.features = knows.then(|| NODE_NETWORKS.to_owned()).into_iter().collect();
        });
    };
    knows(&mut sim, 1, true);
    knows(&mut sim, 2, false);
    let refused = sim.create(on_the_host("pair", 4)).expect_err("n2 is older").to_string();
    assert!(refused.starts_with("a service on the network host needs every node"), "{refused}");
    knows(&mut sim, 2, true);
    sim.create(on_the_host("pair", 4)).expect("accepted");
    sim.create(ServiceSpec { mode: ServiceMode::Global, ..on_the_host("each", 0) }).expect("accepted");
    sim.run(secs(1));
    let on = |nodes: &[(&str, usize)]| -> BTreeMap<_, _> {
        nodes.iter().map(|(n, count)| ((*n).to_owned(), *count)).collect()
    };
    assert_eq!(sim.running("pair"), on(&[("n1", 2), ("n2", 2)]), "two share a node");
    assert_eq!(sim.running("each"), on(&[("n1", 1), ("n2", 1)]));
    assert!(sim.service("pair").endpoint.vips.is_empty() && sim.service("pair").endpoint.problem.is_none());

    knows(&mut sim, 2, false);
    sim.run(secs(30));
    assert_eq!([sim.running("pair"), sim.running("each")], [on(&[("n1", 4)]), on(&[("n1", 1)])]);
    knows(&mut sim, 1, false);
    sim.run(secs(30));
    let said = sim.ps("pair");
    assert!(said.contains("a version too old for what the service asks for on 2 nodes"), "{said}");
    sim.update("pair", |s| s.task.node_network = None).expect("away from it");
    sim.run(secs(60));
    assert_eq!(sim.running("pair").values().sum::<usize>(), 4, "{}", sim.ps("pair"));
}

/// Three nodes: the first cannot, of the third's version nothing is known of it, the second can later.
#[test]
fn encrypted_networks_are_for_nodes_that_can() {
    let mut sim = Sim::new(3);
    let lacks = Encryption::Unavailable("no WireGuard here".into());
    for node in [1, 2] {
        sim.edit_node(node, |n| n.description.encryption = Some(lacks.clone()));
    }
    let before = sim.state.networks().count();
    let refused = encrypted(&mut sim, "secret").expect_err("nobody can").to_string();
    for part in [
        "no node of the cluster can encrypt",
        "n1, n2: no WireGuard here",
        "n3: it has only just joined",
        "leave the option out",
    ] {
        assert!(refused.contains(part), "{part:?} is missing: {refused}");
    }
    assert_eq!(sim.state.networks().count(), before, "nothing changed");
    sim.edit_node(3, |n| n.description.engine_version = "0.0.9".into());
    sim.edit_node(2, |n| n.description.encryption = Some(Encryption::Key(TunnelKey([1; 32]))));
    let refused = encrypted(&mut sim, "secret").expect_err("n3 would ignore it").to_string();
    assert!(refused.contains("every node to run a version that knows it, and n3 would ignore it"), "{refused}");
    sim.edit_node(3, |n| n.description.engine_version.clear());

    let key = TunnelKey([2; 32]);
    sim.edit_node(2, |n| n.description.encryption = Some(Encryption::Key(key)));
    let id = encrypted(&mut sim, "secret").expect("n2 can");
    sim.create(on("web", 2, &id)).expect("accepted");
    sim.run(secs(1));
    assert_eq!(sim.running("web"), [("n2".to_owned(), 2)].into());
    let peers: BTreeMap<_, _> = sim
        .set_of(2)
        .into_values()
        .filter_map(|item| if let Assignment::Peer(peer) = item { Some((peer.index, peer.tunnel_key)) } else { None })
        .collect();
    let told: Vec<_> = peers.values().flatten().collect();
    assert_eq!((peers.len(), told), (3, vec![&key]), "who cannot is known, without a key");

    sim.edit_node(2, |n| n.description.encryption = Some(lacks.clone()));
    sim.update("web", |s| s.task.force_update += 1).expect("accepted");
    sim.run(secs(30));
    assert!(sim.ps("web").contains("no WireGuard for an encrypted network on 3 nodes"), "{}", sim.ps("web"));
}

/// What n1 says when it comes back, and what becomes of what it had: two of four replicas, a global task, a container.
#[test]
fn a_node_that_cannot_encrypt_any_more_is_told_of_no_encrypted_network() {
    let key = |n| Some(Encryption::Key(TunnelKey([n; 32])));
    let lost = || Some(Encryption::Unavailable("no WireGuard here".into()));
    for (said, can) in [(key(1), true), (key(9), true), (lost(), false), (None, false)] {
        let mut sim = Sim::new(2);
        sim.edit_node(1, |n| n.description.encryption = key(1));
        sim.edit_node(2, |n| n.description.encryption = key(2));
        let sealed = encrypted(&mut sim, "sealed").expect("both can");
        let open = network(&mut sim, "open", None).expect("accepted");
        sim.create(on("secret", 4, &sealed)).expect("accepted");
        sim.create(ServiceSpec { mode: ServiceMode::Global, ..on("each", 0, &sealed) }).expect("accepted");
        sim.create(on("plain", 4, &open)).expect("accepted");
        let container = control::ContainerNetworks {
            node: crate::sim::node_id(1),
            id: TaskId::from_random(77),
            name: "box".into(),
            networks: vec![control::WantedNetwork { network: "sealed".into(), ..Default::default() }],
        };
        let (attached, _) = control::set_container_networks(&sim.state, sim.now, &container).expect("n1 can");
        sim.commit_changes(attached.changes);
        sim.run(secs(1));
        let told = |sim: &Sim, node: u8, network: &NetworkId| {
            sim.set_of(node).into_keys().any(|key| match key {
                AssignmentKey::Network(id) => id == *network,
                AssignmentKey::Endpoint(id, _) | AssignmentKey::ServiceEndpoint(id, _) => id == *network,
                _ => false,
            })
        };
        let running = |sim: &Sim, service: &str| sim.running(service).into_values().collect::<Vec<_>>();
        let before = ["secret", "each", "plain"].map(|service| running(&sim, service));
        assert_eq!(before, [vec![2, 2], vec![1, 1], vec![2, 2]]);

        sim.edit_node(1, |n| n.description.encryption = said.clone());
        sim.step();
        assert_eq!([1, 2].map(|node| told(&sim, node, &sealed)), [can, true], "at once: {said:?}");
        sim.run(secs(30));
        assert_eq!([1, 2].map(|node| told(&sim, node, &sealed)), [can, true], "{said:?}");
        let after = ["secret", "each", "plain"].map(|service| sim.running(service));
        let on = |nodes: &[(&str, usize)]| -> BTreeMap<_, _> {
            nodes.iter().map(|(n, count)| ((*n).to_owned(), *count)).collect()
        };
        let both = on(&[("n1", 2), ("n2", 2)]);
        let expected = match can {
            true => [both.clone(), on(&[("n1", 1), ("n2", 1)]), both],
            false => [on(&[("n2", 4)]), on(&[("n2", 1)]), both],
        };
        assert_eq!(after, expected, "{said:?}");

        sim.edit_node(1, |n| n.description.encryption = key(1));
        sim.run(secs(30));
        assert!(told(&sim, 1, &sealed), "it can again");
        assert_eq!(sim.running("each"), on(&[("n1", 1), ("n2", 1)]));
    }
}

/// A service that moves onto an encrypted network: its old tasks elsewhere wait for their turn in the update.
#[test]
fn tasks_stay_by_the_networks_that_they_are_on() {
    let mut sim = Sim::new(2);
    sim.edit_node(2, |n| n.description.encryption = Some(Encryption::Key(TunnelKey([2; 32]))));
    let sealed = encrypted(&mut sim, "sealed").expect("n2 can");
    let open = network(&mut sim, "open", None).expect("accepted");
    sim.create(on("web", 4, &open)).expect("accepted");
    sim.run(secs(1));
    sim.update("web", |s| s.update.get_or_insert_default().delay = secs(20)).expect("accepted");
    sim.update("web", |s| s.task.networks = on("web", 4, &sealed).task.networks).expect("accepted");
    sim.run(secs(10));
    assert!(sim.running("web").contains_key("n1"), "one of four was replaced: {}", sim.ps("web"));
    assert_eq!(sim.running("web").values().sum::<usize>(), 4, "{}", sim.ps("web"));
    sim.run(secs(120));
    assert_eq!(sim.running("web"), [("n2".to_owned(), 4)].into(), "{}", sim.ps("web"));
}

#[test]
fn a_container_on_a_node_that_cannot_encrypt_is_refused() {
    let mut sim = Sim::new(2);
    sim.edit_node(2, |n| n.description.encryption = Some(Encryption::Key(TunnelKey([2; 32]))));
    sim.edit_node(1, |n| n.description.encryption = Some(Encryption::Unavailable("no WireGuard here".into())));
    encrypted(&mut sim, "secret").expect("n2 can");
    let attach = |sim: &Sim, node: u8| {
        let request = control::ContainerNetworks {
            node: crate::sim::node_id(node),
            id: TaskId::from_random(77),
            name: "box".into(),
            networks: vec![control::WantedNetwork { network: "secret".into(), ..Default::default() }],
        };
        control::set_container_networks(&sim.state, sim.now, &request)
    };
    let refused = attach(&sim, 1).expect_err("n1 cannot").to_string();
    assert!(
        refused.contains("network secret is encrypted, and node n1 cannot encrypt: no WireGuard here"),
        "{refused}"
    );
    assert_eq!(attach(&sim, 2).expect("n2 can").1.len(), 1);
}

#[test]
fn a_key_belongs_to_who_had_it_first() {
    let mut sim = Sim::new(2);
    let key = |n| Some(Encryption::Key(TunnelKey([n; 32])));
    sim.edit_node(1, |n| n.description.encryption = key(1));
    let believed = |node, said| {
        let description = NodeDescription { encryption: said, ..NodeDescription::default() };
        encryption::believed(&sim.state, &crate::sim::node_id(node), &description)
    };
    assert_eq!(believed(1, key(1)), key(1));
    assert_eq!(believed(2, key(2)), key(2));
    assert_eq!(believed(2, None), None);
    let stolen = believed(2, key(1));
    assert!(matches!(&stolen, Some(Encryption::Unavailable(why)) if why.contains("its key is that of")), "{stolen:?}");
}

#[test]
fn what_a_node_said_before_holds_until_its_network_daemon_answers() {
    let mut sim = Sim::new(2);
    let key = Some(Encryption::Key(TunnelKey([1; 32])));
    sim.edit_node(1, |n| n.description.encryption = key.clone());
    let silent = |node, features: &[&str]| {
        let features = features.iter().map(|feature| (*feature).to_owned()).collect();
        let description = NodeDescription { features, ..NodeDescription::default() };
        encryption::believed(&sim.state, &crate::sim::node_id(node), &description)
    };
    assert_eq!(silent(1, &[ENCRYPTED_NETWORKS]), key);
    assert_eq!(silent(1, &[PUBLISH_OPTIONS]), None, "it went back to a version that knows none");
    let new = silent(2, &[ENCRYPTED_NETWORKS]);
    assert!(matches!(&new, Some(Encryption::Unavailable(why)) if why.contains("not answered yet")), "{new:?}");
}

/// A cluster of an earlier version may have been made so.
#[test]
fn encrypted_networks_need_their_port() {
    let mut sim =
        Sim::with_spec(1, ClusterSpec { data_path_port: ENCRYPTED_PORT, ..bootstrap::default_cluster_spec() });
    sim.edit_node(1, |n| n.description.encryption = Some(Encryption::Key(TunnelKey([1; 32]))));
    let refused = encrypted(&mut sim, "secret").expect_err("the port is taken").to_string();
    assert!(refused.contains("needs port 7947/udp"), "{refused}");
    validate::cluster_spec(&sim.state.cluster().expect("a cluster").spec, Duration::ZERO).expect("it can be updated");
}

#[test]
fn an_ingress_network_is_not_encrypted() {
    let spec = NetworkSpec {
        annotations: Annotations { name: "in".into(), labels: BTreeMap::new() },
        driver: DRIVER_OVERLAY.into(),
        driver_options: [(ENCRYPTED_OPTION.to_owned(), "true".to_owned())].into(),
        ingress: true,
        ..NetworkSpec::default()
    };
    let refused = create(&mut Sim::new(1), spec).expect_err("refused").to_string();
    assert!(refused.contains("an ingress network cannot be encrypted"), "{refused}");
}
