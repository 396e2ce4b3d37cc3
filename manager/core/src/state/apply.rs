//! Applying a committed transaction: all of it or nothing.
//!
//! Managers replay the same log, so nothing here may depend on anything but the state and the transaction.
//!
//! A status report does not change a task's version: the agent and the managers each own a part of a task (what was seen,
//! what is wanted), so a report never refuses a manager's decision. In return an update of a task never takes its
//! status back: see [`later_status`].

use std::sync::Arc;

use orch_model::{
    Meta, NodeId, Object, ObjectId, TaskId, Timestamp, Version,
    change::{Change, Transaction},
    service::Service,
    task::{Task, TaskState, TaskStatus},
};

use super::{ApplyError, Event, State, check, makes_other_tasks};

impl State {
    /// Applies the transaction that was committed at `index`; on an error the state is as before.
    ///
    /// # Errors
    /// When a change does not fit: see [`ApplyError`].
    pub fn apply(&mut self, index: u64, tx: &Transaction) -> Result<Vec<Event>, ApplyError> {
        let at = tx.at.max(self.last_stamp);
        let mut events = Vec::with_capacity(tx.changes.len());
        if let [change] = &tx.changes[..] {
            // One change is checked before anything is touched. With no copy beside it, what the maps share with nobody
            // need not be copied either.
            events.extend(self.apply_change(Version(index), at, change)?);
        } else {
            let mut next = self.clone();
            for change in &tx.changes {
                events.extend(next.apply_change(Version(index), at, change)?);
            }
            *self = next;
        }
        self.last_index = index.max(self.last_index);
        self.last_stamp = at;
        Ok(events)
    }

    /// Whether [`State::apply`] would succeed.
    ///
    /// # Errors
    /// As it would give.
    pub fn may_apply(&self, index: u64, tx: &Transaction) -> Result<(), ApplyError> {
        let at = tx.at.max(self.last_stamp);
        match &tx.changes[..] {
            [Change::Create(object)] => self.created(Version(index), at, object).map(drop),
            [Change::Update(object)] => self.updated(Version(index), at, object).map(drop),
            [Change::Remove { id, version }] => self.removed(id, *version).map(drop),
            _ => self.clone().apply(index, tx).map(drop),
        }
    }

    fn apply_change(&mut self, version: Version, at: Timestamp, change: &Change) -> Result<Option<Event>, ApplyError> {
        match change {
            Change::Create(object) => self.create(version, at, object).map(Some),
            Change::Update(object) => self.update(version, at, object).map(Some),
            Change::Remove { id, version } => self.remove(id, *version).map(Some),
            Change::TaskStatus { task, node, status } => Ok(self.report(at, task, node, status)),
        }
    }

    fn create(&mut self, version: Version, at: Timestamp, object: &Object) -> Result<Event, ApplyError> {
        let object = self.created(version, at, object)?;
        self.put(object.clone());
        Ok(Event::Created(object))
    }

    /// The object as it would be stored.
    fn created(&self, version: Version, at: Timestamp, object: &Object) -> Result<Object, ApplyError> {
        if self.get(&object.id()).is_some() {
            return Err(ApplyError::Exists(object.id()));
        }
        let meta = Meta { version, created_at: at, updated_at: at };
        let mut object = with_meta(object, meta);
        if let Object::Service(service) = &mut object {
            Arc::make_mut(service).spec_version = version;
        }
        let object = self.interned(object);
        check::may_put(self, None, &object)?;
        Ok(object)
    }

    fn update(&mut self, version: Version, at: Timestamp, object: &Object) -> Result<Event, ApplyError> {
        let (old, new) = self.updated(version, at, object)?;
        self.put(new.clone());
        Ok(Event::Updated { old, new })
    }

    /// The object as it is, and as it would be stored.
    fn updated(&self, version: Version, at: Timestamp, object: &Object) -> Result<(Object, Object), ApplyError> {
        let id = object.id();
        let old = self.get(&id).ok_or_else(|| ApplyError::Missing(id.clone()))?;
        expect_version(&id, object.meta().version, old.meta().version)?;
        let meta = Meta { version, created_at: old.meta().created_at, updated_at: at };
        let mut object = with_meta(object, meta);
        match (&old, &mut object) {
            (Object::Service(old), Object::Service(new)) => set_spec_version(old, Arc::make_mut(new), version),
            (Object::Task(old), Object::Task(new)) => {
                if new.desired_state < old.desired_state {
                    let (from, to) = (old.desired_state.word(), new.desired_state.word());
                    return Err(ApplyError::Backwards { task: new.id.clone(), from, to });
                }
                let new = Arc::make_mut(new);
                later_status(old, new);
                // What came with the log is a copy.
                share(&mut new.spec, &old.spec);
                share(&mut new.service_annotations, &old.service_annotations);
            }
            _ => {}
        }
        let object = self.interned(object);
        check::may_put(self, Some(&old), &object)?;
        Ok((old, object))
    }

    fn remove(&mut self, id: &ObjectId, version: Version) -> Result<Event, ApplyError> {
        let old = self.removed(id, version)?;
        self.take(&old);
        Ok(Event::Removed(old))
    }

    /// The object that would go.
    fn removed(&self, id: &ObjectId, version: Version) -> Result<Object, ApplyError> {
        let old = self.get(id).ok_or_else(|| ApplyError::Missing(id.clone()))?;
        expect_version(id, version, old.meta().version)?;
        check::may_remove(self, &old)?;
        Ok(old)
    }

    /// Takes an agent's report, if it is from the task's node and says something newer.
    fn report(&mut self, at: Timestamp, task: &TaskId, node: &NodeId, status: &TaskStatus) -> Option<Event> {
        let old = self.task(task)?.clone();
        let mut status = status.clone();
        // What ends after it was told to stop did not end by itself, whatever its exit code: the restart policy and
        // the failure counts must not see a failure there.
        if status.state.is_terminal() && old.desired_state > TaskState::Running {
            status.state = TaskState::Shutdown;
        }
        // A node whose clock is ahead must not reach into the future: windows and back-off count from here.
        status.at = status.at.min(at);
        let from_its_node = old.node.as_ref() == Some(node);
        let upward = status.state > old.status.state
            || (status.state == old.status.state && !old.status.state.is_terminal() && status != old.status);
        // Below *assigned* the managers write.
        let agents_turn = status.state > TaskState::Assigned && old.status.state >= TaskState::Assigned;
        if !from_its_node || !upward || !agents_turn || status.state == TaskState::Remove {
            return None;
        }
        let mut new = Task::clone(&old);
        new.status = status;
        if new.status.container.is_none() {
            new.status.container.clone_from(&old.status.container);
        }
        if new.status.state == TaskState::Running && new.running_since.is_none() {
            new.running_since = Some(at);
        }
        new.meta.updated_at = at;
        let new = Object::Task(Arc::new(new));
        self.put(new.clone());
        Some(Event::Updated { old: Object::Task(old), new })
    }

    /// The same object. A task shares with its service what is the same, instead of carrying copies.
    pub(super) fn interned(&self, object: Object) -> Object {
        let Object::Task(mut task) = object else { return object };
        let own = Arc::make_mut(&mut task);
        if let Some(shared) = self.indexes.shared.get(&own.service) {
            share(&mut own.spec, &shared.spec);
            share(&mut own.service_annotations, &shared.annotations);
        }
        Object::Task(task)
    }
}

/// Makes `own` the shared copy if both are the same; usually it is that copy already.
pub(super) fn share<T: PartialEq>(own: &mut Arc<T>, shared: &Arc<T>) {
    if !Arc::ptr_eq(own, shared) && **own == **shared {
        *own = shared.clone();
    }
}

fn expect_version(id: &ObjectId, expected: Version, found: Version) -> Result<(), ApplyError> {
    if expected == found { Ok(()) } else { Err(ApplyError::Stale { id: id.clone(), expected, found }) }
}

fn set_spec_version(old: &Service, new: &mut Service, version: Version) {
    new.spec_version = if makes_other_tasks(&old.spec, &new.spec) { version } else { old.spec_version };
}

/// Keeps the status that was reported while a manager decided about something else of the task.
///
/// Up to *assigned* the managers write the status; from then on they may only raise it (*rejected*, *orphaned*).
fn later_status(old: &Task, new: &mut Task) {
    let managers_turn = old.status.state <= TaskState::Assigned && new.status.state >= old.status.state;
    if !managers_turn && new.status.state <= old.status.state {
        new.status = old.status.clone();
    }
    new.running_since = old.running_since;
}

fn with_meta(object: &Object, meta: Meta) -> Object {
    macro_rules! with {
        ($($kind:ident),+) => {
            match object {
                $(Object::$kind(o) => {
                    let mut o = (**o).clone();
                    o.meta = meta;
                    Object::$kind(Arc::new(o))
                })+
            }
        };
    }
    with!(Cluster, Node, Service, Task, Network, Secret, Config, Image)
}
