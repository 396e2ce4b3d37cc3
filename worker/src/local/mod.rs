//! One-off containers (`orch run`): of this node alone, managers do not know them.
//!
//! Unlike a task, such a container stays when it has ended, with what it wrote, and can be started again. Its record on
//! disk says what it is made of and how it ended last. Invariants: one operation on a container at a time, but for
//! signals, which wait for none; a worker that starts finds running ones again, and starts those again that their
//! restart policy wants; names are unique.

mod attachment;
mod create;
mod error;
mod joined;
mod life;
mod limits;
mod live;
mod names;
mod networks;
mod options;
mod policy;
mod port_holder;
mod report;
mod starting;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use orch_model::{
    TaskId,
    task::{Health, Task},
};
use orch_proto::wire::{LocalContainer, LocalState};
use tokio::sync::watch;

pub(crate) use error::LocalError;
pub(crate) use networks::NetworkError;
pub(crate) use report::{details, health_report, list_entry, of_task};

use attachment::Presence;
use names::ReservedNames;
use networks::UserNetworks;
use starting::StartingPorts;

use crate::{
    agent::{CurrentSession, Host, container_id_of},
    events::Subject,
    runtime::{Container, Exit, Recovered},
    store::StoreError,
};

/// Shortest prefix of an id that is looked up.
const MIN_ID_PREFIX: usize = 3;

/// All of this node's one-off containers.
pub(crate) struct Locals {
    host: Arc<Host>,
    networks: UserNetworks,
    pub(crate) presence: Presence,
    table: Mutex<BTreeMap<TaskId, Arc<One>>>,
    starting: StartingPorts,
    reserved: ReservedNames,
}

/// One of them.
pub(crate) struct One {
    pub(crate) id: TaskId,
    /// In the form of a task, which the rest of the worker knows how to prepare.
    pub(crate) task: Arc<Task>,
    now: Mutex<Now>,
    /// Held by whoever starts or removes it, or changes it; what runs is told to stop without it.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Counts ends, so that waiting for the next one cannot miss it; that it is not to be restarted after all is one.
    ends: watch::Sender<Ends>,
}

/// What it is at the moment.
pub(crate) struct Now {
    pub(crate) record: LocalContainer,
    /// While it runs.
    pub(crate) container: Option<Container>,
    pub(crate) health: Option<Health>,
    pub(crate) address: String,
    /// Its process is gone, and what it had is being given back. On disk its record says already how it ended.
    ending: Option<Exit>,
    /// Restarts in a row.
    restarts: u32,
    /// How many are about to start it again once it has ended: until then it stays, whatever `--rm` says.
    held: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ends {
    count: u64,
    removed: bool,
}

/// A container that runs, and how to learn that it has ended.
struct Run {
    container: Container,
    ends: watch::Receiver<Ends>,
    seen: u64,
}

impl Run {
    /// Waits for it.
    async fn end(&mut self) {
        let seen = self.seen;
        // The sender lives as long as the container.
        let _ = self.ends.wait_for(|ends| ends.is_past(seen)).await;
    }
}

impl Ends {
    /// Whether nothing is to be waited for any more by whoever has seen so many.
    fn is_past(&self, seen: u64) -> bool {
        self.count > seen || self.removed
    }
}

fn invalid(error: impl std::fmt::Display) -> LocalError {
    LocalError::Invalid(error.to_string())
}

impl One {
    fn new(task: Arc<Task>, record: LocalContainer) -> Self {
        let (container, health, address, ending) = (None, None, String::new(), None);
        let now = Now { record, container, health, address, ending, restarts: 0, held: 0 };
        Self { id: task.id.clone(), task, now: Mutex::new(now), turn: Arc::default(), ends: watch::Sender::default() }
    }

    pub(crate) fn now(&self) -> MutexGuard<'_, Now> {
        // Each holder changes one thing as a whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one that does not run as it is: nobody starts or removes it meanwhile.
    pub(crate) async fn hold(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    pub(crate) fn container_id(&self) -> String {
        container_id_of(&self.id)
    }

    pub(crate) fn name(&self) -> String {
        self.now().record.name.clone()
    }

    pub(crate) fn state(&self) -> LocalState {
        self.now().record.state()
    }

    fn count_end(&self) {
        self.ends.send_modify(|ends| ends.count += 1);
    }

    /// Whoever has found it before and waited for their turn asks again.
    fn is_removed(&self) -> bool {
        self.ends.borrow().removed
    }

    pub(crate) fn container(&self) -> Option<Container> {
        self.now().container.clone()
    }

    fn run(&self) -> Option<Run> {
        self.run_of(&self.now())
    }

    fn run_of(&self, now: &Now) -> Option<Run> {
        let mut ends = self.ends.subscribe();
        let seen = ends.borrow_and_update().count;
        now.container.clone().map(|container| Run { container, ends, seen })
    }

    /// The container, unless it has ended or is about to, and the record of that moment.
    fn running(&self) -> (Option<Container>, LocalContainer) {
        let now = self.now();
        (now.container.clone().filter(|_| now.ending.is_none()), now.record.clone())
    }

    /// As its events name it.
    pub(crate) fn subject(&self) -> Subject {
        let spec = &self.task.spec.container;
        Subject::new(self.container_id(), self.name(), &spec.image, spec.labels.clone())
    }
}

impl Locals {
    pub(crate) fn new(host: Arc<Host>, session: Arc<CurrentSession>) -> Arc<Self> {
        let networks = UserNetworks::new(host.store.clone());
        Arc::new(Self {
            host,
            networks,
            presence: Presence::new(session),
            table: Mutex::default(),
            starting: StartingPorts::default(),
            reserved: ReservedNames::default(),
        })
    }

    pub(crate) fn all(&self) -> Vec<Arc<One>> {
        self.lock().values().cloned().collect()
    }

    pub(crate) fn knows(&self, id: &TaskId) -> bool {
        self.lock().contains_key(id)
    }

    /// By name, id, or a unique start of the id.
    pub(crate) fn find(&self, reference: &str) -> Result<Arc<One>, LocalError> {
        let reference = reference.strip_prefix('/').unwrap_or(reference);
        let all = self.all();
        if let Some(one) = all.iter().find(|one| one.name() == reference || one.container_id() == reference) {
            return Ok(one.clone());
        }
        let mut matches =
            all.iter().filter(|one| reference.len() >= MIN_ID_PREFIX && one.container_id().starts_with(reference));
        match (matches.next(), matches.next()) {
            (Some(one), None) => Ok(one.clone()),
            (None, _) => Err(LocalError::NotFound(reference.to_owned())),
            (Some(_), Some(_)) => Err(LocalError::Ambiguous(reference.to_owned())),
        }
    }

    /// Containers, running or not, that were made from this image.
    pub(crate) fn users_of_image(&self, digest: &str) -> Vec<Arc<One>> {
        self.all().into_iter().filter(|one| one.now().record.image_digest == digest).collect()
    }

    /// Takes up what an earlier worker left. Takes its containers out of `found`.
    pub(crate) async fn recover(self: &Arc<Self>, found: &mut BTreeMap<TaskId, Recovered>) -> Result<(), StoreError> {
        self.networks.load()?;
        let mut known = Vec::new();
        for record in self.host.store.locals()? {
            let Some(one) = self.known(record) else { continue };
            let left = found.remove(&one.id);
            known.push((one, left));
        }
        // Those that run come first: what is started again must not be given their addresses and ports.
        known.sort_by_key(|(_, left)| !matches!(left, Some(Recovered::Running(_))));
        for (one, left) in known {
            self.take_up(&one, left).await;
        }
        Ok(())
    }

    fn known(&self, record: LocalContainer) -> Option<Arc<One>> {
        let task = match create::task_of(&record) {
            Ok(task) => Arc::new(task),
            Err(error) => {
                tracing::error!(name = record.name, %error, "the record of a one-off container cannot be read");
                return None;
            }
        };
        Some(self.add(task, record))
    }

    fn add(&self, task: Arc<Task>, record: LocalContainer) -> Arc<One> {
        let one = Arc::new(One::new(task, record));
        self.lock().insert(one.id.clone(), one.clone());
        one
    }

    fn tell(&self, one: &One, action: &str) {
        self.tell_with(one, action, &[]);
    }

    fn tell_with(&self, one: &One, action: &str, more: &[(&str, String)]) {
        self.host.events.of_container(one.subject(), action, more);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskId, Arc<One>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
