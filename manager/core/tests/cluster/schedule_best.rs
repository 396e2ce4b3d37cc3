//! Each task goes to a node that no other node beats, by rules that are written down here once more, plainly.

use std::{collections::BTreeMap, sync::Arc};

use orch_manager_core::{State, orchestrator, orchestrator::slot::SlotKey, scheduler};
use orch_model::{
    Meta, NodeId, Object, ServiceId, Timestamp,
    change::{Change, Transaction},
    node::Node,
    service::{Endpoint, Service, ServiceSpec},
    task::{Task, TaskState},
};
use proptest::prelude::*;

use crate::sim::{Sim, node_id, web};

const GIB: u64 = 1 << 30;

#[derive(Debug, Clone)]
struct Wish {
    replicas: u64,
    constraint: Option<&'static str>,
    spread: Vec<&'static str>,
    max_per_node: u64,
    reserved_gib: u64,
}

fn wish() -> impl Strategy<Value = Wish> {
    let constraint = prop_oneof![3 => Just(None), 1 => Just(Some("node.labels.zone == a")), 1 => Just(Some("node.labels.rack != 1"))];
    let spread = prop_oneof![
        Just(vec![]),
        Just(vec!["node.labels.zone"]),
        Just(vec!["node.labels.zone", "node.labels.rack"]),
        Just(vec!["node.labels.none", "node.labels.rack", "node.labels.zone"])
    ];
    let (max, reserved) = (prop_oneof![3 => Just(0_u64), 1 => 1..3_u64], prop_oneof![2 => Just(0_u64), 1 => 1..4_u64]);
    (0..14_u64, constraint, spread, max, reserved).prop_map(
        |(replicas, constraint, spread, max_per_node, reserved_gib)| Wish {
            replicas,
            constraint,
            spread,
            max_per_node,
            reserved_gib,
        },
    )
}

fn spec(number: usize, wish: &Wish) -> ServiceSpec {
    let mut spec = web(&format!("s{number}"), "nginx", wish.replicas);
    spec.task.placement.constraints = wish.constraint.into_iter().map(str::to_owned).collect();
    spec.task.placement.spread = wish.spread.iter().map(|s| (*s).to_owned()).collect();
    spec.task.placement.max_replicas_per_node = wish.max_per_node;
    spec.task.reservations.memory_bytes = wish.reserved_gib * GIB;
    spec
}

/// A state in which all tasks of these services wait for a node.
fn waiting(labels: &[(u8, u8)], wishes: &[Wish]) -> (State, Timestamp) {
    let nodes = u8::try_from(labels.len()).expect("a few nodes");
    let mut sim = Sim::new(nodes);
    for (number, (zone, rack)) in (1..).zip(labels) {
        sim.edit_node(number, |n| {
            n.spec.annotations.labels.insert("zone".into(), char::from(b'a' + zone).to_string());
            n.spec.annotations.labels.insert("rack".into(), rack.to_string());
        });
    }
    let (mut random, now) = (1 << 90, sim.now);
    let mut state = sim.state.clone();
    let mut index = u64::MAX / 2;
    let mut commit = |changes: Vec<Change>| {
        index += 1;
        state.apply(index, &Transaction { at: now, changes }).expect("the transaction fits");
        state.clone()
    };
    for (number, wish) in wishes.iter().enumerate() {
        random += 1;
        let service = Service {
            id: ServiceId::from_random(random),
            meta: Meta::default(),
            spec: spec(number, wish),
            spec_version: orch_model::Version::default(),
            previous_spec: None,
            endpoint: Endpoint::default(),
            update_status: None,
            removing: false,
        };
        let after = commit(vec![Change::Create(Object::Service(Arc::new(service.clone())))]);
        let service = after.service(&service.id).expect("just made").clone();
        let tasks = (1..=wish.replicas).map(|slot| {
            random += 1;
            let key = SlotKey::Slot(slot);
            let mut task = orchestrator::new_task(&after, &service, &key, TaskState::Running, None, now, random);
            task.status.state = TaskState::Pending;
            Change::Create(Object::Task(Arc::new(task)))
        });
        commit(tasks.collect());
    }
    (commit(Vec::new()), now)
}

/// What the rules need to know of the nodes, kept by hand.
struct Plain {
    nodes: Vec<Arc<Node>>,
    free_gib: BTreeMap<NodeId, u64>,
    tasks: BTreeMap<NodeId, u64>,
    of_service: BTreeMap<(ServiceId, NodeId), u64>,
}

impl Plain {
    fn has(&self, service: &ServiceId, node: &NodeId) -> u64 {
        self.of_service.get(&(service.clone(), node.clone())).copied().unwrap_or(0)
    }

    fn allowed(&self, wish: &Wish, node: &Node) -> bool {
        let label = |name: &str| node.spec.annotations.labels.get(name).map(String::as_str).unwrap_or_default();
        match wish.constraint {
            Some("node.labels.zone == a") => label("zone") == "a",
            Some(_) => label("rack") != "1",
            None => true,
        }
    }

    fn fits(&self, wish: &Wish, service: &ServiceId, node: &Node) -> bool {
        self.allowed(wish, node)
            && self.free_gib[&node.id] >= wish.reserved_gib
            && (wish.max_per_node == 0 || self.has(service, &node.id) < wish.max_per_node)
    }

    /// The nodes that no other beats.
    fn best(&self, wish: &Wish, service: &ServiceId) -> Vec<NodeId> {
        let mut within: Vec<&Arc<Node>> = self.nodes.iter().filter(|n| self.allowed(wish, n)).collect();
        for label in &wish.spread {
            let name = label.strip_prefix("node.labels.").expect("a node's label");
            let mut branches: BTreeMap<&str, (u64, Vec<&Arc<Node>>)> = BTreeMap::new();
            for node in within {
                let value = node.spec.annotations.labels.get(name).map(String::as_str).unwrap_or_default();
                let branch = branches.entry(value).or_default();
                branch.0 += self.has(service, &node.id);
                branch.1.push(node);
            }
            let open = branches.into_values().filter(|(_, nodes)| nodes.iter().any(|n| self.fits(wish, service, n)));
            within = open.min_by_key(|(tasks, _)| *tasks).map(|(_, nodes)| nodes).unwrap_or_default();
        }
        let key = |n: &&Arc<Node>| (self.has(service, &n.id), self.tasks[&n.id]);
        let fitting = || within.iter().copied().filter(|n| self.fits(wish, service, n));
        let least = fitting().map(|n| key(&n)).min();
        fitting().filter(|n| Some(key(n)) == least).map(|n| n.id.clone()).collect()
    }

    fn take(&mut self, wish: &Wish, service: &ServiceId, node: &NodeId) {
        *self.free_gib.get_mut(node).expect("a node") -= wish.reserved_gib;
        *self.tasks.get_mut(node).expect("a node") += 1;
        *self.of_service.entry((service.clone(), node.clone())).or_default() += 1;
    }
}

fn check(labels: &[(u8, u8)], wishes: &[Wish]) {
    let (state, now) = waiting(labels, wishes);
    let mut plain = Plain {
        nodes: state.nodes().cloned().collect(),
        free_gib: state.nodes().map(|n| (n.id.clone(), n.description.resources.memory_bytes / GIB)).collect(),
        tasks: state.nodes().map(|n| (n.id.clone(), 0)).collect(),
        of_service: BTreeMap::new(),
    };
    let decision = scheduler::decide(&state, now);
    let total: u64 = wishes.iter().map(|w| w.replicas).sum();
    assert_eq!(decision.changes.len() as u64, total, "each task is placed, or told why not");
    for change in &decision.changes {
        let Change::Update(Object::Task(task)) = change else { panic!("{change:?}") };
        let task: &Task = task;
        let number: usize = task.service_annotations.name[1..].parse().expect("s0, s1, …");
        let (wish, best) = (&wishes[number], plain.best(&wishes[number], &task.service));
        match &task.node {
            Some(node) => {
                assert!(best.contains(node), "{} on {node}, better: {best:?}", task.name());
                plain.take(wish, &task.service, node);
            }
            None => assert_eq!(best, [], "{} waits: {:?}", task.name(), task.status.error),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_node_beats_the_chosen_one(
        labels in prop::collection::vec((0..3_u8, 0..3_u8), 1..9),
        wishes in prop::collection::vec(wish(), 1..6),
    ) {
        check(&labels, &wishes);
    }
}

#[test]
fn the_order_of_equals_is_that_of_their_ids() {
    let wish = Wish { replicas: 3, constraint: None, spread: Vec::new(), max_per_node: 0, reserved_gib: 0 };
    let (state, now) = waiting(&[(0, 0), (1, 0), (2, 0)], &[wish]);
    let nodes: Vec<_> = scheduler::decide(&state, now)
        .changes
        .into_iter()
        .map(|change| match change {
            Change::Update(Object::Task(task)) => task.node.clone().expect("placed"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(nodes, [node_id(1), node_id(2), node_id(3)]);
}
