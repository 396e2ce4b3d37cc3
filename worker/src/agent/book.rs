//! Every task of this node: what is wanted, what was last seen, and whether the manager knows it.
//!
//! A status stays here until the manager has acknowledged exactly that one. What the next worker could not find out or do
//! again is written to the task's record before anyone is told: the assignment, and statuses from *starting* on. What comes
//! before is done again, and a new session tells the manager everything anyway.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use orch_model::{
    TaskId,
    assignment::{Assignment, TaskAssignment},
    task::{Health, Task, TaskState, TaskStatus},
};
use orch_proto::{conv::ToProto, wire};
use tokio::sync::{Notify, watch};

use super::{task::Event, unix_ms, waiting::Words};
use crate::{
    local::health_report,
    runtime::{Container, Exit},
    store::Store,
};

/// One task of this node.
#[derive(Clone)]
pub(crate) struct Entry {
    pub task: Arc<Task>,
    pub desired: TaskState,
    pub status: TaskStatus,
    pub acknowledged: bool,
    /// While the container exists.
    pub container: Option<Container>,
    /// How the container ended.
    pub end: Option<wire::ContainerEnd>,
    /// Manifest digest of the image that it was made from.
    pub image: Option<String>,
    pub command: Vec<String>,
    /// What its health check says, when it has one.
    pub health: Option<Health>,
    pub created_at_ms: u64,
    /// Where its executor hears what is wanted.
    pub news: watch::Sender<News>,
}

/// What an executor has to know from outside: always the latest, so that however much is said nothing piles up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct News {
    /// What the manager wants.
    pub desired: TaskState,
    /// The assignment went away.
    pub unassigned: bool,
    /// What the health check said last, when that means something.
    pub healthy: Option<bool>,
}

impl News {
    pub(crate) fn new(desired: TaskState) -> Self {
        Self { desired, unassigned: false, healthy: None }
    }

    /// The next thing in which `now` is ahead of what is known, which it is no longer then.
    pub(super) fn catch_up(&mut self, now: Self) -> Option<Event> {
        if self.desired != now.desired {
            self.desired = now.desired;
            return Some(Event::Desired(now.desired));
        }
        if self.unassigned != now.unassigned {
            self.unassigned = now.unassigned;
            return Some(Event::Unassigned);
        }
        let healthy = now.healthy.filter(|_| self.healthy != now.healthy)?;
        self.healthy = now.healthy;
        Some(if healthy { Event::Listening } else { Event::Unhealthy })
    }
}

pub(crate) struct Book {
    store: Arc<Store>,
    entries: Mutex<BTreeMap<TaskId, Entry>>,
    changed: Notify,
}

impl Book {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store, entries: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn add(&self, entry: Entry) {
        self.save(&entry, false);
        self.lock().insert(entry.task.id.clone(), entry);
        self.changed.notify_one();
    }

    pub(crate) fn entry(&self, task: &TaskId) -> Option<Entry> {
        self.lock().get(task).cloned()
    }

    pub(crate) fn knows(&self, task: &TaskId) -> bool {
        self.lock().contains_key(task)
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.lock().values().cloned().collect()
    }

    pub(crate) fn change(&self, task: &TaskId, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.lock().get_mut(task) {
            change(entry);
        }
    }

    /// What the manager wants now; passes it on when it is news.
    pub(crate) fn set_desired(&self, task: &TaskId, desired: TaskState) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(task)
            && entry.desired != desired
        {
            entry.desired = desired;
            let entry = entry.clone();
            drop(entries);
            self.save(&entry, false);
            entry.news.send_modify(|news| news.desired = desired);
        }
    }

    pub(crate) fn report(&self, task: &TaskId, status: TaskStatus) {
        let changed = {
            let mut entries = self.lock();
            entries.get_mut(task).map(|entry| {
                entry.status = status;
                entry.acknowledged = false;
                entry.clone()
            })
        };
        if let Some(entry) = changed {
            if entry.status.state >= TaskState::Starting {
                self.save(&entry, is_milestone(entry.status.state));
            }
            self.changed.notify_one();
        }
    }

    /// Says what a task that is being prepared waits for.
    pub(super) fn explain(&self, task: &TaskId, words: Words) {
        let is_news = {
            let mut entries = self.lock();
            let preparing = entries.get_mut(task).filter(|entry| entry.status.state == TaskState::Preparing);
            preparing.is_some_and(|entry| {
                let status = &mut entry.status;
                let is_news = status.message != words.message || status.error != words.error;
                // Since when it is prepared does not change.
                (status.message, status.error) = (words.message, words.error);
                entry.acknowledged &= !is_news;
                is_news
            })
        };
        if is_news {
            self.changed.notify_one();
        }
    }

    /// Statuses that the manager does not know yet, at most `limit`.
    pub(crate) fn pending(&self, limit: usize) -> Vec<(TaskId, TaskStatus)> {
        let entries = self.lock();
        let pending = entries.values().filter(|entry| !entry.acknowledged);
        pending.take(limit).map(|entry| (entry.task.id.clone(), entry.status.clone())).collect()
    }

    /// The manager has these; a status that changed since stays pending.
    pub(crate) fn acknowledge(&self, sent: &[(TaskId, TaskStatus)]) {
        let mut entries = self.lock();
        for (task, status) in sent {
            if let Some(entry) = entries.get_mut(task).filter(|entry| entry.status == *status) {
                entry.acknowledged = true;
            }
        }
    }

    /// After a change of manager nothing counts as known: statuses that its predecessor took may be lost with it.
    pub(crate) fn unacknowledge_all(&self) {
        for entry in self.lock().values_mut() {
            entry.acknowledged = false;
        }
        self.changed.notify_one();
    }

    /// Waits for news; may return without any.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(crate) fn forget(&self, task: &TaskId) {
        self.lock().remove(task);
        if let Err(error) = self.store.forget_task(task) {
            tracing::error!(%task, error = crate::image::chain(&error), "the task's record stays");
        }
    }

    /// Whether a container, running or not, was made from this image.
    pub(crate) fn user_of_image(&self, digest: &str) -> Option<Entry> {
        self.lock().values().find(|entry| entry.image.as_deref() == Some(digest)).cloned()
    }

    /// With `durable`, it outlives a power cut.
    fn save(&self, entry: &Entry, durable: bool) {
        let assignment =
            Assignment::Task(TaskAssignment { task: entry.task.clone(), desired_state: entry.desired }).to_proto();
        let record = wire::WorkerTaskRecord {
            assignment: Some(assignment),
            status: Some(entry.status.to_proto()),
            image_digest: entry.image.clone().unwrap_or_default(),
            command: entry.command.clone(),
            end: entry.end.clone(),
        };
        // Without its record, a task is not found again after a restart, but it can run: go on.
        if let Err(error) = self.store.save_task(&entry.task.id, &record, durable) {
            tracing::error!(task = %entry.task.id, error = crate::image::chain(&error), "the task's record is not saved");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskId, Entry>> {
        // Each holder changes one entry as a whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stays to be asked for when the container is gone: of a check that failed it, too.
pub(super) fn container_end(exit: &Exit) -> wire::ContainerEnd {
    wire::ContainerEnd {
        started_at_ms: exit.started_at.map_or(0, unix_ms),
        finished_at_ms: unix_ms(exit.finished_at),
        oom_killed: exit.oom_killed,
        health: exit.health.as_ref().map(health_report),
    }
}

/// What must outlive a power cut: that a container was started, and how it ended. The rest can be done again.
fn is_milestone(state: TaskState) -> bool {
    state == TaskState::Starting || state.is_terminal()
}

#[cfg(test)]
mod tests {
    use orch_model::Timestamp;

    use super::*;

    #[test]
    fn however_much_is_said_an_executor_hears_the_latest_of_each_once() {
        let (sender, receiver) = watch::channel(News::new(TaskState::Ready));
        let mut known = *receiver.borrow();
        assert_eq!(known.catch_up(*receiver.borrow()), None);
        for healthy in [false, true, false] {
            sender.send_modify(|news| news.healthy = Some(healthy));
        }
        sender.send_modify(|news| news.desired = TaskState::Running);
        sender.send_modify(|news| news.desired = TaskState::Shutdown);
        sender.send_modify(|news| news.unassigned = true);
        let heard: Vec<_> = std::iter::from_fn(|| known.catch_up(*receiver.borrow())).collect();
        assert_eq!(heard, [Event::Desired(TaskState::Shutdown), Event::Unassigned, Event::Unhealthy]);
    }

    #[test]
    fn what_a_task_waits_for_is_said_while_it_is_prepared() {
        let folder = tempfile::tempdir().unwrap();
        let book = Book::new(Arc::new(Store::open(folder.path()).unwrap()));
        let task = crate::agent::tests::task(1, "web", &[]);
        let status = |state, message: &str| {
            let at = Timestamp::from_unix_ms(1);
            TaskStatus { state, at, message: message.to_owned(), error: None, container: None }
        };
        book.add(Entry {
            task: task.clone(),
            desired: TaskState::Running,
            status: status(TaskState::Assigned, ""),
            acknowledged: true,
            container: None,
            end: None,
            image: None,
            command: Vec::new(),
            health: None,
            created_at_ms: 0,
            news: watch::Sender::new(News::new(TaskState::Running)),
        });
        let words = |message: &str| Words { message: message.to_owned(), error: Some("trouble".to_owned()) };
        for (state, is_told) in
            [(TaskState::Accepted, false), (TaskState::Preparing, true), (TaskState::Shutdown, false)]
        {
            book.report(&task.id, status(state, "before"));
            book.acknowledge(&book.pending(9));
            book.explain(&task.id, words("waiting"));
            let pending = book.pending(9);
            assert_eq!(pending.len(), usize::from(is_told), "{state}");
            book.acknowledge(&pending);
            book.explain(&task.id, words("waiting"));
            assert_eq!(book.pending(9), [], "said once");
            let now = book.entry(&task.id).unwrap().status;
            let told = if is_told { ("waiting", Some("trouble")) } else { ("before", None) };
            assert_eq!((now.state, now.message.as_str(), now.error.as_deref()), (state, told.0, told.1));
            assert_eq!(now.at, Timestamp::from_unix_ms(1), "since when it is prepared does not change");
        }
    }
}
