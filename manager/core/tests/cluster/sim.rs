//! Nodes, agents and a log, in virtual time: what the manager's and worker's shells do, without any I/O.
//!
//! After every step the rules that must always hold are checked, whatever a test is about.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use orch_manager_core::{
    Event, State, bootstrap,
    bootstrap::Bootstrap,
    control::{self, ControlError, Proposal},
    decision,
    dispatch::{self, AssignmentSet, Sources},
    drain::Drain,
    plan, resolve,
};
use orch_model::{
    Annotations, ClusterId, Duration, Meta, NodeId, Object, ServiceId, TaskId, Timestamp,
    assignment::Assignment,
    change::{Change, Transaction},
    cluster::{ClusterSpec, JoinTokens, RootCa},
    node::{Availability, Node, NodeDescription, NodeRole, NodeSpec, NodeState, NodeStatus, Platform, Resources},
    service::{
        ContainerSpec, EndpointSpec, PortConfig, Protocol, PublishMode, Service, ServiceMode, ServiceSpec, TaskSpec,
    },
    task::{Task, TaskState, TaskStatus},
};

/// One step of virtual time.
pub(crate) const STEP: Duration = Duration::from_millis(100);
const GIB: u64 = 1 << 30;

/// An agent: whether it lives, what it was sent, how far its tasks are.
#[derive(Default)]
struct Agent {
    alive: bool,
    sequence: u64,
    set: AssignmentSet,
    /// The part of it that no other node has, as it was when it was last looked at.
    own: Option<AssignmentSet>,
}

/// A cluster in virtual time.
pub(crate) struct Sim {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    /// Events since the test last looked.
    pub(crate) events: Vec<Event>,
    index: u64,
    random: u128,
    /// What is made later gets the smaller id; both happen.
    pub(crate) ids_fall: bool,
    agents: BTreeMap<NodeId, Agent>,
    drain: Drain,
    /// What was drained since the last increments.
    released: Vec<TaskId>,
    touched: dispatch::Touched,
    shared: dispatch::SharedItems,
    /// Status reports of a stop are held back for this long.
    pub(crate) stop_takes: Duration,
    stopping: BTreeMap<String, Timestamp>,
    wake: Option<Timestamp>,
    /// Decides beside the one that looks at everything: both must say the same.
    planner: plan::Planner,
}

impl Sim {
    /// A cluster of `nodes` nodes n1, n2, …; n1 is the manager.
    pub(crate) fn new(nodes: u8) -> Self {
        Self::with_spec(nodes, bootstrap::default_cluster_spec())
    }

    pub(crate) fn with_spec(nodes: u8, spec: ClusterSpec) -> Self {
        let mut sim = Self {
            state: State::empty(),
            now: Timestamp::from_unix_ms(1_000_000),
            events: Vec::new(),
            index: 0,
            random: 1 << 100,
            ids_fall: false,
            agents: BTreeMap::new(),
            drain: Drain::new(),
            released: Vec::new(),
            touched: dispatch::Touched::everything(),
            shared: dispatch::SharedItems::default(),
            stop_takes: Duration::ZERO,
            stopping: BTreeMap::new(),
            wake: None,
            planner: plan::Planner::default(),
        };
        let init = Bootstrap {
            cluster_id: ClusterId::from_random(7),
            spec,
            root_ca: RootCa { cert_pem: "cert".into(), key_pem: "key".into() },
            join_tokens: JoinTokens { worker: "w".into(), manager: "m".into() },
            node: node(1, sim.now),
            unlock_key: None,
        };
        let now = sim.now;
        let tx = sim.with_ids(|_, ids| bootstrap::transaction(init, now, ids));
        sim.commit(&tx);
        sim.agents.insert(node_id(1), Agent { alive: true, ..Agent::default() });
        for number in 2..=nodes {
            sim.join(number);
        }
        sim.run(STEP * 2);
        sim
    }

    pub(crate) fn join(&mut self, number: u8) {
        let object = Object::Node(Arc::new(node(number, self.now)));
        self.commit_changes(vec![Change::Create(object)]);
        self.agents.insert(node_id(number), Agent { alive: true, ..Agent::default() });
    }

    /// The node stops answering, and the managers have noticed.
    pub(crate) fn down(&mut self, number: u8) {
        if let Some(agent) = self.agents.get_mut(&node_id(number)) {
            agent.alive = false;
        }
        self.released.extend(self.drain.on_session_gone(&node_id(number)));
        self.edit_node(number, |n| n.status.state = NodeState::Down);
    }

    pub(crate) fn up(&mut self, number: u8) {
        if let Some(agent) = self.agents.get_mut(&node_id(number)) {
            *agent = Agent { alive: true, ..Agent::default() };
        }
        self.edit_node(number, |n| n.status.state = NodeState::Ready);
    }

    /// The node is removed by force, whatever it does.
    pub(crate) fn remove(&mut self, number: u8) {
        self.agents.remove(&node_id(number));
        self.released.extend(self.drain.on_session_gone(&node_id(number)));
        let removal = control::remove_node(&self.state, self.now, &node_id(number), true).expect("it is a worker");
        self.accept(&removal);
    }

    pub(crate) fn availability(&mut self, number: u8, availability: Availability) {
        self.edit_node(number, |n| n.spec.availability = availability);
    }

    pub(crate) fn edit_node(&mut self, number: u8, edit: impl FnOnce(&mut Node)) {
        let mut node = Node::clone(self.state.node(&node_id(number)).expect("a node of the test"));
        let before = node.status.state;
        edit(&mut node);
        if node.status.state != before {
            node.status.since = self.now;
        }
        self.commit_changes(vec![Change::Update(Object::Node(Arc::new(node)))]);
    }

    pub(crate) fn create(&mut self, spec: ServiceSpec) -> Result<ServiceId, ControlError> {
        let now = self.now;
        let proposal = self.with_ids(|state, ids| control::create_service(state, now, ids, spec))?;
        self.accept(&proposal);
        let orch_model::ObjectId::Service(id) = proposal.id else { panic!("not a service") };
        Ok(id)
    }

    pub(crate) fn update(&mut self, name: &str, edit: impl FnOnce(&mut ServiceSpec)) -> Result<(), ControlError> {
        let service = self.service(name);
        let mut spec = service.spec.clone();
        edit(&mut spec);
        let proposal = control::update_service(&self.state, self.now, &service.id, service.meta.version, spec)?;
        self.accept(&proposal);
        Ok(())
    }

    pub(crate) fn scale(&mut self, name: &str, replicas: u64) {
        self.update(name, |s| s.mode = ServiceMode::Replicated { replicas }).expect("scaling");
    }

    pub(crate) fn accept(&mut self, proposal: &Proposal) {
        self.commit(&proposal.transaction);
    }

    pub(crate) fn service(&self, name: &str) -> Arc<Service> {
        resolve::service(&self.state, name).expect("a service of the test")
    }

    pub(crate) fn with_ids<T>(&mut self, f: impl FnOnce(&State, &mut dyn FnMut() -> u128) -> T) -> T {
        let mut random = self.random;
        let result = f(&self.state, &mut || {
            random = if self.ids_fall { random - 0x1_0000_0001 } else { random + 0x1_0000_0001 };
            random
        });
        self.random = random;
        result
    }

    pub(crate) fn commit_changes(&mut self, changes: Vec<Change>) {
        self.commit(&Transaction { at: self.now, changes });
    }

    pub(crate) fn commit(&mut self, tx: &Transaction) {
        self.index += 1;
        let events = self.state.apply(self.index, tx).expect("the transaction fits");
        events.iter().for_each(|event| self.planner.note(&self.state, event));
        events.iter().for_each(|event| self.touched.note(&self.state, event));
        self.events.extend(events);
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.leap(end);
        }
    }

    /// A step, and the time until the next one in which something may happen.
    pub(crate) fn leap(&mut self, end: Timestamp) {
        let before = self.events.len();
        self.step();
        // Nothing happens until something wakes: a decision that forgot to ask for a wake-up would be missed here.
        if self.events.len() == before && !self.agents_are_busy() {
            let wake = decision::earliest(self.wake, self.drain.wake()).unwrap_or(end);
            self.now = self.now.max((wake - STEP).min(end));
        }
    }

    /// Whether time alone will make an agent report something.
    fn agents_are_busy(&self) -> bool {
        let stops = |t: &Task| t.desired_state > TaskState::Running && t.status.state >= TaskState::Assigned;
        let ends = |t: &Task| {
            t.status.state == TaskState::Running && ["flaky", "work"].contains(&t.spec.container.image.as_str())
        };
        let pulls = |t: &Task| t.status.state == TaskState::Assigned && t.spec.container.image == "slow";
        let alive = |t: &Task| t.node.as_ref().is_some_and(|n| self.agents.get(n).is_some_and(|a| a.alive));
        self.state.tasks().any(|t| !t.status.state.is_terminal() && alive(t) && (stops(t) || ends(t) || pulls(t)))
    }

    /// Decides, lets agents act, checks what must always hold.
    pub(crate) fn step(&mut self) {
        self.now = self.now + STEP;
        self.decide();
        self.dispatch();
        self.act();
        self.decide();
        self.check_rules();
    }

    fn decide(&mut self) {
        let now = self.now;
        let plan = self.decided(now);
        assert_eq!(plan.refused, Vec::<String>::new(), "a stage proposed what the state refuses");
        let mut rounds = 0;
        let mut next = plan;
        while !next.transactions.is_empty() {
            for tx in &next.transactions {
                assert!(tx.changes.len() <= plan::MAX_CHANGES, "a transaction of {} changes", tx.changes.len());
                self.commit(tx);
            }
            rounds += 1;
            assert!(rounds < 5, "no fixed point: still {:#?}", next.transactions);
            self.planner.committed();
            next = self.decided(now);
        }
        self.wake = next.wake;
    }

    /// What is decided now cannot be committed.
    pub(crate) fn decide_in_vain(&mut self) {
        let mut planner = std::mem::take(&mut self.planner);
        let now = self.now;
        let plan = self.with_ids(|state, ids| planner.decide(state, now, ids));
        assert_ne!(plan.transactions, [], "nothing was to be decided");
        planner.failed();
        self.planner = planner;
    }

    /// What is decided by looking at everything, and by looking at what changed: the same.
    fn decided(&mut self, now: Timestamp) -> plan::Plan {
        let (random, was_idle) = (self.random, self.planner.is_idle(now));
        let mut planner = std::mem::take(&mut self.planner);
        let incremental = self.with_ids(|state, ids| planner.decide(state, now, ids));
        self.planner = planner;
        self.random = random;
        let plan = self.with_ids(|state, ids| plan::decide(state, now, ids));
        assert_eq!(incremental, plan, "what changed leads to another plan than everything");
        assert!(!was_idle || plan.transactions.is_empty(), "nothing was to be decided, and there is {plan:#?}");
        plan
    }

    fn dispatch(&mut self) {
        let mut released = std::mem::take(&mut self.released);
        released.extend(self.drain.on_time(self.now));
        let mut touched = std::mem::take(&mut self.touched);
        touched.nodes.extend(released.iter().filter_map(|id| self.state.task(id)?.node.clone()));
        let drain = self.drain.clone();
        let sources = Sources {
            drained: &|task| drain.is_drained(task),
            holder: &|node| node.status.addr.map(|a| format!("{a}:7946")),
            grant: &|_, _| vec![1],
        };
        let view = dispatch::View::new(&self.state);
        self.shared.refresh(&self.state, &touched);
        let incremental = dispatch::View::with(&self.state, std::mem::take(&mut self.shared));
        let mut acks = Vec::new();
        let mut sent = BTreeMap::new();
        for (id, agent) in self.agents.iter_mut().filter(|(_, a)| a.alive) {
            let set = view.assignments(id, &sources);
            if touched.everything || touched.nodes.contains(id) || agent.own.is_none() {
                agent.own = Some(incremental.own(id, &sources));
            }
            let mut known = agent.own.clone().unwrap_or_default();
            incremental.shared(id).values().for_each(|part| known.extend((**part).clone()));
            let missed = dispatch::diff(&known, &set);
            assert_eq!(missed, (Vec::new(), Vec::new()), "what was touched does not lead to the complete set");
            let (put, removed) = dispatch::diff(&agent.set, &set);
            // The agent keeps what it was sent, as a real one does.
            for item in put {
                agent.set.insert(item.key(), item);
            }
            for key in removed {
                agent.set.remove(&key);
            }
            assert!(agent.set.keys().eq(set.keys()), "increments lead to another set than the complete one");
            agent.sequence += 1;
            sent.insert(id.clone(), agent.sequence);
            acks.push((id.clone(), agent.sequence));
        }
        self.shared = incremental.into_shared();
        let mut all = self.drain.clone();
        all.on_state(&self.state, None, &|| sent.clone(), self.now);
        self.released.extend(self.drain.on_state(&self.state, Some(&touched.stopping), &|| sent.clone(), self.now));
        assert_eq!(self.drain, all, "a task that stops was missed");
        for (node, sequence) in acks {
            self.released.extend(self.drain.on_ack(&node, sequence));
        }
    }

    fn act(&mut self) {
        let mut reports = Vec::new();
        for (node, agent) in self.agents.iter().filter(|(_, a)| a.alive) {
            for item in agent.set.values() {
                let Assignment::Task(assigned) = item else { continue };
                let Some(task) = self.state.task(&assigned.task.id) else { continue };
                if let Some(status) = self.progress(task, assigned.desired_state) {
                    reports.push(Change::TaskStatus { task: task.id.clone(), node: node.clone(), status });
                }
            }
        }
        for report in &reports {
            if let Change::TaskStatus { task, status, .. } = report
                && status.state.is_terminal()
            {
                self.stopping.remove(task.as_str());
            }
        }
        let now = self.now;
        for task in self.state.tasks().filter(|t| t.desired_state > TaskState::Running) {
            self.stopping.entry(task.id.to_string()).or_insert(now);
        }
        self.commit_changes(reports);
    }

    /// What an agent reports next. The image's name says how the task behaves.
    fn progress(&self, task: &Task, desired: TaskState) -> Option<TaskStatus> {
        let image = task.spec.container.image.as_str();
        let state = task.status.state;
        let ran = task.running_since.map_or(Duration::ZERO, |since| self.now.since(since));
        let status = |state, error: Option<&str>| {
            let (at, error) = (self.now, error.map(str::to_owned));
            Some(TaskStatus { state, at, message: "agent".to_owned(), error, container: None })
        };
        if state.is_terminal() || state < TaskState::Assigned {
            return None;
        }
        if desired > TaskState::Running {
            let since = self.stopping.get(task.id.as_str()).copied().unwrap_or(self.now);
            return (self.now.since(since) >= self.stop_takes).then(|| status(TaskState::Shutdown, None)).flatten();
        }
        match (state, image) {
            (TaskState::Assigned, "slow") if self.now.since(task.meta.created_at) < Duration::from_secs(2) => None,
            (TaskState::Assigned, "missing") => status(TaskState::Rejected, Some("No such image: missing")),
            (TaskState::Assigned, _) => status(TaskState::Ready, None),
            (TaskState::Ready, "crash") if desired == TaskState::Running => status(TaskState::Failed, Some("exit 1")),
            (TaskState::Ready, "stuck") => None,
            (TaskState::Ready, _) if desired == TaskState::Running => status(TaskState::Running, None),
            (TaskState::Running, "once") => status(TaskState::Complete, None),
            (TaskState::Running, "work") if ran >= Duration::from_secs(3) => status(TaskState::Complete, None),
            (TaskState::Running, "flaky") if ran >= Duration::from_secs(2) => status(TaskState::Failed, Some("exit 2")),
            _ => None,
        }
    }

    /// A task's process ends.
    pub(crate) fn fail(&mut self, name: &str) {
        let task = resolve::task(&self.state, name).expect("a task of the test");
        let status = TaskStatus {
            state: TaskState::Failed,
            at: self.now,
            message: "agent".into(),
            error: Some("task: non-zero exit (1)".into()),
            container: None,
        };
        let node = task.node.clone().expect("an assigned task");
        self.commit_changes(vec![Change::TaskStatus { task: task.id.clone(), node, status }]);
    }

    fn check_rules(&self) {
        let mut held: BTreeSet<(String, IpAddr)> = BTreeSet::new();
        let mut hold = |network: String, ip: IpAddr| {
            assert!(held.insert((network.clone(), ip)), "{ip} of {network} is held twice");
        };
        for task in self.state.tasks().filter(|t| !t.status.state.is_terminal()) {
            for n in &task.networks {
                n.addresses.iter().for_each(|a| hold(n.network.to_string(), a.ip()));
            }
            assert!(
                task.status.state < TaskState::Assigned || task.node.is_some(),
                "{} is assigned to no node",
                task.name()
            );
        }
        for service in self.state.services() {
            service.endpoint.vips.iter().for_each(|v| hold(v.network.to_string(), v.addr.ip()));
            if let ServiceMode::Replicated { replicas } = service.spec.mode {
                let wanted = self.state.tasks_of(&service.id).filter(|t| t.is_wanted());
                let slots: BTreeSet<u64> = wanted.map(|t| t.slot).collect();
                assert!(slots.len() as u64 <= replicas, "{} has slots {slots:?}", service.spec.annotations.name);
            }
        }
        self.check_limits();
        for node in self.state.nodes() {
            node.attachments.iter().for_each(|(n, a)| hold(n.to_string(), *a));
        }
    }

    /// No node gives out more than it has; no service has more tasks on a node than it may.
    fn check_limits(&self) {
        for node in self.state.nodes() {
            let live = |t: &&Arc<Task>| t.status.state >= TaskState::Assigned && !t.status.state.is_terminal();
            let tasks: Vec<&Arc<Task>> = self.state.tasks_on(&node.id).filter(live).collect();
            let (has, name) = (&node.description, &node.description.hostname);
            let cpus: u64 = tasks.iter().map(|t| t.spec.reservations.nano_cpus).sum();
            let memory: u64 = tasks.iter().map(|t| t.spec.reservations.memory_bytes).sum();
            assert!(cpus <= has.resources.nano_cpus && memory <= has.resources.memory_bytes, "{name} is overbooked");
            let named: Vec<_> = tasks.iter().flat_map(|t| &t.generic.named).collect();
            let distinct: BTreeSet<_> = named.iter().collect();
            assert_eq!(named.len(), distinct.len(), "{name} gave something out twice: {named:?}");
            for (kind, count) in &has.generic.counted {
                let given: u64 = tasks.iter().filter_map(|t| t.generic.counted.get(kind)).sum();
                assert!(given <= *count, "{name} gave out {given} of {count} {kind}");
            }
            let mut of_service: BTreeMap<&ServiceId, u64> = BTreeMap::new();
            for task in tasks.iter().filter(|t| !t.is_one_off() && t.desired_state <= TaskState::Running) {
                *of_service.entry(&task.service).or_default() += 1;
            }
            for (service, count) in of_service {
                let service = self.state.service(service).expect("its tasks are there");
                let max = service.spec.task.placement.max_replicas_per_node;
                assert!(max == 0 || count <= max, "{count} tasks of {} on {name}", service.spec.annotations.name);
            }
        }
    }

    /// `orch service ps`, oldest first: slot, node, desired, current, error.
    pub(crate) fn ps(&self, name: &str) -> String {
        let service = self.service(name);
        let mut tasks: Vec<_> = self.state.tasks_of(&service.id).collect();
        tasks.sort_by_key(|t| (t.slot, t.node.clone().filter(|_| t.slot == 0), t.meta.created_at, t.id.clone()));
        let mut text = String::new();
        for task in tasks {
            let node = task.node.as_ref().and_then(|n| self.state.node(n));
            let node = node.map_or("-", |n| n.description.hostname.as_str());
            let slot = if task.slot == 0 { String::new() } else { format!("{} ", task.slot) };
            let _ = write!(text, "{slot}{node} {} {}", task.desired_state, task.status.state);
            if let Some(error) = &task.status.error {
                let _ = write!(text, ": {error}");
            }
            text.push('\n');
        }
        text
    }

    /// How many tasks run and should, by hostname.
    pub(crate) fn running(&self, name: &str) -> BTreeMap<String, usize> {
        let service = self.service(name);
        let mut nodes = BTreeMap::new();
        let runs = |t: &&Arc<Task>| t.status.state == TaskState::Running && t.desired_state == TaskState::Running;
        for task in self.state.tasks_of(&service.id).filter(runs) {
            let node = task.node.as_ref().and_then(|n| self.state.node(n)).expect("a running task has a node");
            *nodes.entry(node.description.hostname.clone()).or_default() += 1;
        }
        nodes
    }

    pub(crate) fn set_of(&self, number: u8) -> AssignmentSet {
        self.agents[&node_id(number)].set.clone()
    }
}

pub(crate) fn node_id(number: u8) -> NodeId {
    NodeId::from_random(u128::from(number) << 64)
}

fn node(number: u8, now: Timestamp) -> Node {
    let addr = IpAddr::V4(Ipv4Addr::new(192, 168, 7, number));
    let role = if number == 1 { NodeRole::Manager } else { NodeRole::Worker };
    Node {
        id: node_id(number),
        meta: Meta::default(),
        spec: NodeSpec { annotations: Annotations::default(), role, availability: Availability::Active },
        role,
        description: NodeDescription {
            hostname: format!("n{number}"),
            platform: Platform { os: "linux".into(), arch: "x86_64".into() },
            resources: Resources { nano_cpus: 4_000_000_000, memory_bytes: 8 * GIB },
            underlay: vec!["192.168.7.0/24".parse().expect("a network")],
            data_addr: Some(addr),
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, message: String::new(), addr: Some(addr), since: now },
        manager: None,
        index: 0,
        attachments: BTreeMap::new(),
        certificates: None,
    }
}

/// A replicated service of an image.
pub(crate) fn web(name: &str, image: &str, replicas: u64) -> ServiceSpec {
    ServiceSpec {
        annotations: Annotations { name: name.into(), labels: BTreeMap::new() },
        task: TaskSpec {
            container: ContainerSpec { image: image.into(), ..ContainerSpec::default() },
            ..TaskSpec::default()
        },
        mode: ServiceMode::Replicated { replicas },
        update: None,
        rollback: None,
        endpoint: EndpointSpec::default(),
        depends_on: Vec::new(),
    }
}

pub(crate) fn port(published_port: u16, target_port: u16, publish_mode: PublishMode) -> PortConfig {
    PortConfig::new(Protocol::Tcp, published_port, target_port, publish_mode)
}

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Compares with a text that is indented in the test's source.
#[track_caller]
pub(crate) fn check(actual: &str, expected: &str) {
    let lines: Vec<_> = expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    assert_eq!(actual.lines().map(str::trim).collect::<Vec<_>>(), lines, "\nin full:\n{actual}");
}
