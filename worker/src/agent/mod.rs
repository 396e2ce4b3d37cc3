//! The agent: takes assignments from the leader, carries them out, and reports.
//!
//! Invariants: what runs is never stopped because a manager cannot be reached; a restarted worker finds its containers
//! again before it takes assignments, so that nothing is started twice; networks are handed to netd before tasks that
//! may need them, and an acknowledgement means that the kernel has them.

mod assignments;
mod attach;
mod book;
pub(crate) mod describe;
mod executor;
mod files;
pub(crate) mod generic;
mod gossip;
mod items;
mod listening;
pub(crate) mod logging;
pub(crate) mod prepare;
mod quiet;
mod session;
mod stdin;
mod streams;
mod task;
pub(crate) mod waiting;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::DirBuilder,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use orch_model::{
    TaskId,
    assignment::{Assignment, AssignmentKey, TaskAssignment},
    node::{NodeDescription, NodeRole},
    task::{Task, TaskState, TaskStatus},
};
use orch_proto::{
    conv::{FromProto, ToProto},
    paths::Paths,
    tls::SharedIdentity,
    wire,
};
use orch_template::placeholders;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use self::{
    assignments::{AssignmentSet, Delta},
    book::{Book, News},
    executor::Executor,
    gossip::Gossip,
    items::Items,
    task::{Command, Ended, Event, Found, Machine},
};
use crate::{
    config::{ConfigError, Settings},
    events::Events,
    image::{Images, chain},
    local::Locals,
    netd_client::Netd,
    peer::Members,
    runtime::{Container, Recovered, Runtime, RuntimeError},
    store::Store,
    users::Remap,
    volume::Volumes,
};

pub(crate) use attach::{Target, exec, logs, pass_on, terminal_size};
pub(crate) use book::Entry;
pub(crate) use describe::{cgroup_version, has_ipv6, host_networks};
pub(crate) use executor::{container_id, container_id_of, log_files, signal_number};
pub(crate) use session::{CurrentSession, Live};

/// What tasks are carried out with.
pub(crate) struct Host {
    pub paths: Paths,
    pub store: Arc<Store>,
    pub book: Book,
    pub events: Arc<Events>,
    pub items: Items,
    /// This node, as placeholders show it.
    pub facts: OnceLock<placeholders::NodeFacts>,
    /// Where containers reach this node.
    pub data_addr: OnceLock<IpAddr>,
    pub images: Images,
    pub volumes: Volumes,
    pub netd: Netd,
    pub runtime: Runtime,
    pub identity: SharedIdentity,
    /// Whose numbers containers have on this node.
    pub remap: Option<Remap>,
}

/// What certificates of this cluster are checked with, in the leader's words.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trust {
    /// One or more certificates, PEM.
    pub roots_pem: bytes::Bytes,
    /// Digest of the root that this node's certificates are to be of.
    pub issuer: String,
}

pub(crate) struct Agent {
    pub host: Arc<Host>,
    pub locals: Arc<Locals>,
    pub session: Arc<CurrentSession>,
    pub gossip: Gossip,
    pub members: Members,
    daemon: wire::DaemonConfig,
    settings: Settings,
    managers: Mutex<Vec<String>>,
    stream_slots: Arc<Semaphore>,
    /// What the leader said last.
    node_role: Mutex<Option<NodeRole>>,
    trust: Mutex<Trust>,
    /// The revision that netd was given last.
    networks_revision: Mutex<u64>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("read the records of tasks")]
    Store(#[from] crate::store::StoreError),
    #[error("find containers of an earlier run")]
    Runtime(#[from] RuntimeError),
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

impl Host {
    #[allow(clippy::too_many_arguments)] // The parts of a node, each made by another module.
    pub(crate) fn new(
        paths: Paths,
        store: Arc<Store>,
        images: Images,
        volumes: Volumes,
        netd: Netd,
        runtime: Runtime,
        identity: SharedIdentity,
        remap: Option<Remap>,
    ) -> Self {
        let book = Book::new(store.clone());
        let (items, facts, events) = (Items::default(), OnceLock::new(), Arc::default());
        let data_addr = OnceLock::new();
        Self { paths, store, book, events, items, facts, data_addr, images, volumes, netd, runtime, identity, remap }
    }

    /// Remapped containers reach their files through folders of the worker's, which are nobody else's.
    pub(crate) fn open_folders(&self) -> std::io::Result<()> {
        let files = prepare::network_files(self);
        DirBuilder::new().recursive(true).mode(0o700).create(&files)?;
        let Some(remap) = self.remap else { return Ok(()) };
        let users = prepare::users_dir(self);
        std::fs::create_dir_all(&users)?;
        [self.paths.worker_dir(), self.paths.shims_dir(), self.paths.volume_pins_dir(), users, files]
            .iter()
            .try_for_each(|folder| remap.open_folder(folder))
    }

    /// What a task's placeholders stand for here.
    pub(crate) fn values(&self, task: &Task) -> serde_json::Value {
        let nowhere = placeholders::NodeFacts::default();
        placeholders::values(task, self.facts.get().unwrap_or(&nowhere))
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.book.entries()
    }

    pub(crate) fn user_of_image(&self, digest: &str) -> Option<Entry> {
        self.book.user_of_image(digest)
    }
}

impl Agent {
    pub(crate) fn new(host: Host, daemon: wire::DaemonConfig, settings: Settings) -> Arc<Self> {
        let platform = describe::platform();
        let facts = placeholders::NodeFacts {
            id: daemon.node_id.clone(),
            hostname: describe::hostname(&daemon),
            os: platform.os,
            arch: platform.arch,
        };
        host.facts.get_or_init(|| facts);
        if let Ok(addr) = daemon.data_addr.parse() {
            host.data_addr.get_or_init(|| addr);
        }
        let known = host.store.managers();
        let managers = known.into_iter().chain(daemon.managers.iter().cloned()).collect();
        let host = Arc::new(host);
        let session = Arc::new(CurrentSession::default());
        Arc::new(Self {
            locals: Locals::new(host.clone(), session.clone()),
            host,
            session,
            gossip: Gossip::default(),
            members: Members::default(),
            daemon,
            settings,
            managers: Mutex::new(managers),
            stream_slots: session::stream_slots(),
            node_role: Mutex::default(),
            trust: Mutex::default(),
            networks_revision: Mutex::default(),
        })
    }

    /// Takes up the tasks of an earlier run; nothing else may be started before. Does not wait for what is to go: a container
    /// that does not end must not keep the node from its managers.
    pub(crate) async fn recover(&self) -> Result<(), AgentError> {
        let networks = self.host.store.networks();
        if !networks.is_empty() {
            self.set_networks(networks);
        }
        let mut containers: BTreeMap<TaskId, Recovered> = BTreeMap::new();
        for found in self.host.runtime.recover().await? {
            containers.insert(recovered_task(&found), found);
        }
        containers.values().for_each(|found| self.note_volumes(found));
        for record in self.host.store.tasks()? {
            let Some(known) = decode_record(record) else {
                tracing::error!("a task record of an earlier version is ignored");
                continue;
            };
            let found = containers.remove(&known.assignment.task.id);
            self.take_up(known, found);
        }
        self.locals.recover(&mut containers).await?;
        for (task, found) in containers {
            tracing::warn!(%task, "deleting a container that belongs to no task");
            tokio::spawn(delete_container(found));
        }
        Ok(())
    }

    /// Before anything is given back: an earlier version that mounted volumes noted nowhere for whom.
    fn note_volumes(&self, found: &Recovered) {
        let Recovered::Running(container) = found else { return };
        let task = container.task_id();
        let folders = container.sources().map_err(|error| chain(&error));
        let noted = folders.and_then(|folders| self.host.volumes.note(task, &folders).map_err(|error| chain(&error)));
        if let Err(error) = noted {
            tracing::warn!(%task, error, "who uses the container's volumes is not noted");
        }
    }

    /// Whether there is a task or a one-off container of this id here, running or not.
    pub(crate) fn knows(&self, task: &TaskId) -> bool {
        self.host.book.knows(task) || self.locals.knows(task)
    }

    /// The role that the leader says this node has.
    pub(crate) fn node_role(&self) -> Option<NodeRole> {
        *self.node_role.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The roots to trust and the one to have certificates of, as the leader said last.
    pub(crate) fn trust(&self) -> Trust {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trust(&self, trust: Trust) {
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) = trust;
    }

    fn set_node_role(&self, role: NodeRole) {
        *self.node_role.lock().unwrap_or_else(PoisonError::into_inner) = Some(role);
    }

    /// Stops everything: this node was removed from its cluster, whose tasks run elsewhere by now.
    fn stop_all(&self) {
        let nothing = Delta { sequence: 0, complete: true, put: Vec::new(), removed: BTreeSet::new() };
        self.apply(&AssignmentSet::default(), &nothing);
    }

    /// Keeps the session; ends with the process.
    pub(crate) async fn keep_session(self: Arc<Self>) {
        session::keep(self).await;
    }

    pub(crate) fn describe(&self) -> Result<NodeDescription, ConfigError> {
        Ok(describe::describe(&self.daemon, self.settings.offer()?, self.host.netd.encryption()))
    }

    /// Applies what changed and returns the revision that netd must have applied before it may be acknowledged.
    fn apply(&self, set: &AssignmentSet, delta: &Delta) -> u64 {
        self.host.items.apply(delta);
        let changed =
            delta.put.iter().map(Assignment::key).chain(delta.removed.iter().cloned()).any(|key| is_network(&key));
        let revision = if delta.complete || changed {
            let items: Vec<_> = set.items().filter(|item| is_network(&item.key())).map(ToProto::to_proto).collect();
            if let Err(error) = self.host.store.save_networks(&items) {
                tracing::warn!(error = chain(&error), "the networks are not saved");
            }
            self.set_networks(items)
        } else {
            *self.networks_revision.lock().unwrap_or_else(PoisonError::into_inner)
        };
        self.apply_tasks(delta);
        // Tasks know by now what is wanted of them: of one that is to stop, the secrets need not be here.
        self.host.items.set_told();
        revision
    }

    fn apply_tasks(&self, delta: &Delta) {
        let mut kept = BTreeSet::new();
        for item in &delta.put {
            let Assignment::Task(assignment) = item else { continue };
            kept.insert(assignment.task.id.clone());
            match self.host.book.entry(&assignment.task.id) {
                Some(_) => self.host.book.set_desired(&assignment.task.id, assignment.desired_state),
                None => self.begin(assignment),
            }
        }
        for entry in self.host.book.entries() {
            let task = &entry.task.id;
            let removed = delta.removed.contains(&AssignmentKey::Task(task.clone()));
            if !kept.contains(task) && (removed || delta.complete) {
                entry.news.send_modify(|news| news.unassigned = true);
            }
        }
    }

    /// A task that this node has no record of.
    fn begin(&self, assignment: &TaskAssignment) {
        let state = assignment.task.status.state;
        if state.is_terminal() {
            return;
        }
        let (machine, commands) = if state >= TaskState::Starting {
            Machine::lost(assignment.desired_state)
        } else {
            let mut machine = Machine::new(assignment.desired_state);
            let commands = machine.step(Event::Assigned);
            (machine, commands)
        };
        let known = Known {
            assignment: assignment.clone(),
            status: assignment.task.status.clone(),
            acknowledged: true,
            image: None,
            command: Vec::new(),
            end: None,
        };
        self.spawn(known, machine, commands, None, None);
    }

    fn take_up(&self, mut known: Known, found: Option<Recovered>) {
        if let Some(Recovered::Ended(_, exit)) = &found {
            known.end = Some(book::container_end(exit));
        }
        let assignment = &known.assignment;
        let mut unwanted = None;
        let (found, container) = match found {
            Some(Recovered::Running(container)) => (Found::Running { pid: container.pid() }, Some(container)),
            Some(Recovered::Ended(container, exit)) => {
                let ended = Ended { code: exit.code, oom_killed: exit.oom_killed, error: exit.error };
                (Found::Exited(ended), Some(container))
            }
            Some(created @ Recovered::Created(_)) => {
                unwanted = Some(created);
                (Found::Nothing, None)
            }
            None => (Found::Nothing, None),
        };
        if let Found::Running { pid } = found {
            tracing::info!(task = %assignment.task.id, pid, "found a running container again");
            if prepare::has_namespace(&assignment.task) {
                self.host.netd.remember(&assignment.task.id, prepare::attach_request(&assignment.task));
            }
        }
        let (machine, commands) = Machine::recover(known.status.state, assignment.desired_state, found);
        self.spawn(known, machine, commands, container, unwanted);
    }

    /// What is `unwanted` of an earlier run goes before anything is done.
    fn spawn(
        &self,
        known: Known,
        machine: Machine,
        commands: Vec<Command>,
        container: Option<Container>,
        unwanted: Option<Recovered>,
    ) {
        let Known { assignment, status, acknowledged, image, command, end } = known;
        let (news, receiver) = watch::channel(News::new(assignment.desired_state));
        self.host.book.add(Entry {
            task: assignment.task.clone(),
            desired: assignment.desired_state,
            created_at_ms: assignment.task.meta.created_at.unix_ms,
            command,
            health: None,
            // Only what a container is made of is in use.
            image: image.filter(|_| container.is_some()),
            status,
            acknowledged,
            container: container.clone(),
            end,
            news,
        });
        let task = self.with_placeholders(assignment.task);
        let executor = Executor::new(self.host.clone(), self.locals.clone(), task, machine, receiver, container);
        tokio::spawn(async move {
            if let Some(unwanted) = unwanted {
                delete_container(unwanted).await;
            }
            executor.run(commands).await;
        });
    }

    /// The task as it runs here. Managers refuse placeholders that cannot be filled in, so what fails is left as it is.
    fn with_placeholders(&self, task: Arc<Task>) -> Arc<Task> {
        match placeholders::fill(&task.spec.container, &self.host.values(&task)) {
            Ok(None) if task.generic.is_empty() => task,
            Ok(filled) => {
                let mut own = Task::clone(&task);
                let container = &mut Arc::make_mut(&mut own.spec).container;
                *container = filled.unwrap_or_else(|| container.clone());
                container.env.extend(generic::variables(&task.generic));
                Arc::new(own)
            }
            Err(error) => {
                tracing::warn!(task = %task.id, %error, "a placeholder cannot be filled in");
                task
            }
        }
    }

    fn set_networks(&self, items: Vec<wire::Assignment>) -> u64 {
        self.members.set(items.iter().filter_map(peer_id).collect());
        let mut current = self.networks_revision.lock().unwrap_or_else(PoisonError::into_inner);
        *current = self.host.netd.set_desired(items);
        *current
    }

    fn managers(&self) -> Vec<String> {
        let mut managers = self.managers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        managers.sort();
        managers.dedup();
        managers
    }

    fn set_managers(&self, managers: Vec<String>) {
        let mut known = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == managers {
            return;
        }
        if let Err(error) = self.host.store.save_managers(&managers) {
            tracing::warn!(error = chain(&error), "the managers' addresses are not saved");
        }
        *known = managers;
    }

    /// Under which cluster and node images are announced: another cluster must hear of them anew.
    pub(crate) fn announced_as(&self) -> String {
        format!("{}/{}", self.daemon.cluster_id, self.daemon.node_id)
    }
}

fn peer_id(item: &wire::Assignment) -> Option<String> {
    match &item.assignment {
        Some(wire::assignment::Assignment::Peer(peer)) => Some(peer.node.clone()),
        _ => None,
    }
}

fn is_network(key: &AssignmentKey) -> bool {
    match key {
        AssignmentKey::Peer(_)
        | AssignmentKey::Network(_)
        | AssignmentKey::Endpoint(..)
        | AssignmentKey::ServiceEndpoint(..) => true,
        AssignmentKey::Task(_) | AssignmentKey::Secret(_) | AssignmentKey::Config(_) | AssignmentKey::Image(_) => false,
    }
}

/// What is known of a task when its executor begins.
struct Known {
    assignment: TaskAssignment,
    status: TaskStatus,
    acknowledged: bool,
    image: Option<String>,
    command: Vec<String>,
    end: Option<wire::ContainerEnd>,
}

fn decode_record(record: wire::WorkerTaskRecord) -> Option<Known> {
    let Assignment::Task(assignment) = Assignment::from_proto(record.assignment?).ok()? else { return None };
    Some(Known {
        assignment,
        status: TaskStatus::from_proto(record.status?).ok()?,
        acknowledged: false,
        image: Some(record.image_digest).filter(|digest| !digest.is_empty()),
        command: record.command,
        end: record.end,
    })
}

fn recovered_task(found: &Recovered) -> TaskId {
    match found {
        Recovered::Running(container) | Recovered::Created(container) | Recovered::Ended(container, _) => {
            container.task_id().clone()
        }
    }
}

/// How long a container of an earlier run that is not wanted is waited for.
const DELETE_LIMIT: Duration = Duration::from_secs(30);

/// One that does not end is left where it is: the next worker tries again.
pub(crate) async fn delete_container(found: Recovered) {
    let (Recovered::Running(container) | Recovered::Created(container) | Recovered::Ended(container, _)) = found;
    let task = container.task_id();
    match timeout(DELETE_LIMIT, container.delete()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%task, error = chain(&error), "a container stays"),
        Err(_) => tracing::warn!(%task, "a container stays: it has been killed and does not end"),
    }
}

#[cfg(test)]
pub(crate) mod tests;
