//! The scheduler alone: how long deciding takes for many tasks on many nodes.
//!
//! `cargo bench -p orch-manager-core --bench scheduler [-- --full]` prints a table; `--full` adds a million tasks.
//! The workload: 10,000 nodes in 4 regions of 10 zones of 5 racks, half of them with an SSD; 1,000 services that reserve
//! memory and CPU, each with a constraint (SSD, not a region, or a zone's label) and three spread preferences.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)] // A benchmark reads the clock.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use orch_manager_core::{
    State,
    orchestrator::{self, slot::SlotKey},
    scheduler,
};
use orch_model::{
    Annotations, Meta, NodeId, Object, ServiceId, Timestamp, Version,
    change::{Change, Transaction},
    node::{Availability, Node, NodeDescription, NodeRole, NodeSpec, NodeState, NodeStatus, Resources},
    service::{ContainerSpec, Endpoint, EndpointSpec, Placement, Service, ServiceMode, ServiceSpec, TaskSpec},
    task::TaskState,
};

const NODES: u64 = 10_000;
const SERVICES: u64 = 1_000;
const ROUNDS: usize = 5;
const GIB: u64 = 1 << 30;

struct World {
    state: State,
    index: u64,
    random: u128,
}

impl World {
    fn commit(&mut self, changes: Vec<Change>) {
        self.index += 1;
        self.state.apply(self.index, &Transaction { at: now(), changes }).expect("it fits");
    }

    fn random(&mut self) -> u128 {
        self.random += 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835;
        self.random
    }
}

fn now() -> Timestamp {
    Timestamp::from_unix_ms(1_000_000)
}

fn node(id: u128, number: u64) -> Node {
    let region = number % 4;
    let zone = number % 40;
    let rack = number % 200;
    let labels = BTreeMap::from([
        ("region".to_owned(), format!("r{region}")),
        ("zone".to_owned(), format!("z{zone}")),
        ("rack".to_owned(), format!("k{rack}")),
        ("disk".to_owned(), if number.is_multiple_of(2) { "ssd" } else { "hdd" }.to_owned()),
    ]);
    Node {
        id: NodeId::from_random(id),
        meta: Meta::default(),
        spec: NodeSpec {
            annotations: Annotations { name: String::new(), labels },
            role: NodeRole::Worker,
            availability: Availability::Active,
        },
        role: NodeRole::Worker,
        description: NodeDescription {
            hostname: format!("n{number}"),
            resources: Resources { nano_cpus: 64_000_000_000, memory_bytes: 256 * GIB },
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, message: String::new(), addr: None, since: now() },
        manager: None,
        index: 0,
        attachments: BTreeMap::new(),
        certificates: Default::default(),
    }
}

fn spec(number: u64, replicas: u64) -> ServiceSpec {
    let constraint = match number % 3 {
        0 => "node.labels.disk == ssd".to_owned(),
        1 => format!("node.labels.region != r{}", number % 4),
        _ => "node.labels.zone != z0".to_owned(),
    };
    ServiceSpec {
        annotations: Annotations { name: format!("s{number}"), labels: BTreeMap::new() },
        task: TaskSpec {
            container: ContainerSpec { image: "app".into(), ..ContainerSpec::default() },
            reservations: Resources { nano_cpus: 10_000_000, memory_bytes: 16 << 20 },
            placement: Placement {
                constraints: vec![constraint],
                spread: ["region", "zone", "rack"].map(|label| format!("node.labels.{label}")).to_vec(),
                ..Placement::default()
            },
            ..TaskSpec::default()
        },
        mode: ServiceMode::Replicated { replicas },
        update: None,
        rollback: None,
        endpoint: EndpointSpec::default(),
        depends_on: Vec::new(),
    }
}

/// A cluster in which so many tasks wait for a node.
fn world(tasks: u64) -> State {
    let mut world = World { state: State::empty(), index: 0, random: 1 };
    for chunk in 0..NODES / 100 {
        let numbers = chunk * 100..(chunk + 1) * 100;
        let nodes = numbers.map(|n| Change::Create(Object::Node(Arc::new(node(world.random(), n))))).collect();
        world.commit(nodes);
    }
    for number in 0..SERVICES {
        let replicas = tasks / SERVICES;
        let service = Service {
            id: ServiceId::from_random(world.random()),
            meta: Meta::default(),
            spec: spec(number, replicas),
            spec_version: Version::default(),
            previous_spec: None,
            endpoint: Endpoint::default(),
            update_status: None,
            removing: false,
        };
        let id = service.id.clone();
        world.commit(vec![Change::Create(Object::Service(Arc::new(service)))]);
        let service = world.state.service(&id).expect("just made").clone();
        let made = (1..=replicas).map(|slot| {
            let random = world.random();
            let key = SlotKey::Slot(slot);
            let mut task =
                orchestrator::new_task(&world.state, &service, &key, TaskState::Running, None, now(), random);
            task.status.state = TaskState::Pending;
            Change::Create(Object::Task(Arc::new(task)))
        });
        let made = made.collect();
        world.commit(made);
    }
    world.state
}

fn main() {
    let full = std::env::args().any(|argument| argument == "--full");
    let sizes: &[u64] = if full { &[10_000, 100_000, 1_000_000] } else { &[10_000, 100_000] };
    println!("{NODES} nodes, {SERVICES} services, one core; median of {ROUNDS}");
    println!("| tasks | seconds | µs per task | placed |\n|---:|---:|---:|---:|");
    for tasks in sizes {
        let state = world(*tasks);
        let mut seconds = Vec::new();
        let mut placed = 0;
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let decision = scheduler::decide(&state, now());
            seconds.push(started.elapsed().as_secs_f64());
            placed = decision
                .changes
                .iter()
                .filter(|c| matches!(c, Change::Update(Object::Task(t)) if t.status.state == TaskState::Assigned))
                .count();
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[ROUNDS / 2];
        #[allow(clippy::cast_precision_loss)] // For show.
        let each = median * 1e6 / *tasks as f64;
        println!("| {tasks} | {median:.3} | {each:.2} | {placed} |");
    }
}
