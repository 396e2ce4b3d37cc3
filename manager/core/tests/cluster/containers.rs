//! One-off containers on networks of the cluster: who may be where, with which address, and until when.

use std::collections::{BTreeMap, BTreeSet};

use orch_manager_core::control::{self, ContainerNetworks, ControlError, WantedNetwork};
use orch_model::{
    Annotations, NetworkId, NodeId, ObjectId, TaskId,
    assignment::{Assignment, AssignmentKey},
    network::{DRIVER_OVERLAY, IpamConfig, NetworkSpec},
};

use crate::{
    network::on,
    sim::{Sim, node_id, secs},
};

fn attachable(sim: &mut Sim, name: &str, subnet: Option<&str>, attachable: bool) -> NetworkId {
    let ipam = subnet.map(|s| IpamConfig {
        subnet: s.parse().expect("a subnet"),
        range: None,
        gateway: None,
        aux: [("router".to_owned(), "10.60.0.2".parse().expect("an address"))].into(),
    });
    let spec = NetworkSpec {
        annotations: Annotations { name: name.into(), labels: BTreeMap::new() },
        driver: DRIVER_OVERLAY.into(),
        ipam: ipam.into_iter().collect(),
        attachable,
        ..NetworkSpec::default()
    };
    let now = sim.now;
    let proposal = sim.with_ids(|state, ids| control::create_network(state, now, ids, spec)).expect("accepted");
    sim.accept(&proposal);
    sim.step();
    let ObjectId::Network(id) = proposal.id else { panic!("not a network") };
    id
}

fn wanted(networks: &[(&str, &str)]) -> Vec<WantedNetwork> {
    let one = |(network, address): &(&str, &str)| WantedNetwork {
        network: (*network).to_owned(),
        aliases: vec!["alias".to_owned()],
        addresses: address.parse().into_iter().collect(),
    };
    networks.iter().map(one).collect()
}

/// Commits it; the addresses that the container has then.
fn set(sim: &mut Sim, node: &NodeId, id: u128, networks: &[(&str, &str)]) -> Result<Vec<String>, ControlError> {
    let request = ContainerNetworks {
        node: node.clone(),
        id: TaskId::from_random(id),
        name: format!("c{id}"),
        networks: wanted(networks),
    };
    let (transaction, attached) = control::set_container_networks(&sim.state, sim.now, &request)?;
    sim.commit_changes(transaction.changes);
    Ok(attached.iter().flat_map(|a| a.addresses.iter().map(ToString::to_string)).collect())
}

#[test]
fn a_container_is_where_its_node_says() {
    let mut sim = Sim::new(2);
    let shared = attachable(&mut sim, "shared", Some("10.60.0.0/24"), true);
    attachable(&mut sim, "more", None, true);
    attachable(&mut sim, "closed", None, false);
    let (n1, n2) = (node_id(1), node_id(2));
    assert_eq!(set(&mut sim, &n1, 1, &[("shared", "")]).expect("given"), ["10.60.0.3/24"], "10.60.0.2 is reserved");
    assert_eq!(set(&mut sim, &n2, 2, &[("shared", "10.60.0.77")]).expect("given"), ["10.60.0.77/24"]);
    for (networks, said) in [
        (&[("closed", "")][..], "Could not attach to network closed: network closed not manually attachable"),
        (&[("ingress", "")], "not manually attachable"),
        (&[("nowhere", "")], "network nowhere not found"),
        (&[("shared", "10.60.0.77")], "Address already in use"),
        (&[("shared", "10.60.0.2")], "Address already in use"),
        (&[("shared", "10.60.0.1")], "Address already in use"),
        (&[("shared", "10.61.0.9")], "It does not belong to any of this network's subnets"),
        (&[("more", "10.0.1.9")], "only when connecting to networks with user configured subnets"),
        (&[("shared", ""), ("shared", "")], "is named twice"),
    ] {
        let refused = set(&mut sim, &n1, 3, networks).expect_err("refused");
        assert!(refused.text.contains(said), "{networks:?}: {refused}");
        assert!(sim.state.task(&TaskId::from_random(3)).is_none());
    }
    let again = set(&mut sim, &n1, 1, &[("shared", ""), ("more", "")]).expect("given");
    assert_eq!(again.len(), 2);
    assert_eq!(again[0], "10.60.0.3/24", "what it has it keeps");
    let refused = set(&mut sim, &n1, 2, &[]).expect_err("another node's");
    assert!(refused.text.contains("not a one-off container of this node"), "{refused}");
    let removal = control::remove_network(&sim.state, sim.now, &shared).expect_err("in use");
    assert!(removal.text.contains("in use by container c1"), "{removal}");
    assert_eq!(set(&mut sim, &n1, 1, &[]).expect("nothing"), [""; 0]);
    assert!(sim.state.task(&TaskId::from_random(1)).is_none());
    let kept = BTreeSet::new();
    let gone = control::keep_containers(&sim.state, sim.now, &n2, &kept).expect("removed");
    sim.commit_changes(gone.changes);
    control::remove_network(&sim.state, sim.now, &shared).expect("nobody is on it");
}

#[test]
fn nodes_hear_of_containers_but_are_not_told_to_run_them() {
    let mut sim = Sim::new(2);
    let shared = attachable(&mut sim, "shared", Some("10.60.0.0/24"), true);
    sim.create(on("web", 2, &shared)).expect("accepted");
    sim.run(secs(5));
    let n2 = node_id(2);
    set(&mut sim, &n2, 1, &[("shared", "")]).expect("given");
    sim.step();
    let id = TaskId::from_random(1);
    for node in [1, 2] {
        let set = sim.set_of(node);
        assert!(!set.contains_key(&AssignmentKey::Task(id.clone())));
        let Some(Assignment::Endpoint(endpoint)) = set.get(&AssignmentKey::Endpoint(shared.clone(), id.clone())) else {
            panic!("no endpoint on {node}");
        };
        assert_eq!((endpoint.names.clone(), endpoint.serving), (vec!["c1".to_owned(), "alias".to_owned()], true));
    }
    let removal = control::remove_node(&sim.state, sim.now, &n2, true).expect("it is a worker");
    sim.accept(&removal);
    sim.step();
    assert!(sim.state.task(&id).is_none(), "a node that is gone gives its containers' addresses up");
}
