//! Another content for a secret or a config: a new version under the same name, to which the services that use it go over.
//!
//! The content of one object never changes: a task's files stay what its spec says, and a rollback finds the old ones. So
//! the version that had the name is kept beside as NAME.1, NAME.2, … until the next change at which nothing uses it and
//! no service could roll back to it.

use std::sync::Arc;

use orch_model::{
    Annotations, ConfigId, Meta, Object, SecretId, Timestamp, Version,
    change::{Change, Transaction},
    secret::{Config, Secret},
    service::{ContainerSpec, FileRef, Service, ServiceSpec, TaskSpec},
};

use super::{ControlError, Proposal, propose, removal, update_service};
use crate::{decision::Ids, state::State};

/// On versions that gave their name up: the name that they had.
pub(super) const VERSION_OF_LABEL: &str = "orch.version-of";

/// What secrets and configs have in common.
pub(super) trait Data: Clone {
    type Id: Clone + PartialEq;

    /// One like this with another name and content.
    fn with(&self, id: Self::Id, annotations: Annotations, data: Vec<u8>) -> Self;
    fn new_id(bits: u128) -> Self::Id;
    fn id(&self) -> &Self::Id;
    fn annotations(&mut self) -> &mut Annotations;
    fn name_and_labels(&self) -> &Annotations;
    fn meta(&mut self) -> &mut Meta;
    fn object(self) -> Object;
    fn all(state: &State) -> Vec<Arc<Self>>;
    fn files(container: &ContainerSpec) -> &[FileRef<Self::Id>];
    fn files_mut(container: &mut ContainerSpec) -> &mut [FileRef<Self::Id>];
}

/// Puts `data` in the place of `old`, which keeps everything but its name.
pub(super) fn replace<T: Data>(
    state: &State,
    now: Timestamp,
    ids: Ids<'_>,
    old: &T,
    version: Version,
    annotations: Annotations,
    data: Vec<u8>,
) -> Result<Proposal, ControlError> {
    let name = &annotations.name;
    let earlier: Vec<Arc<T>> = T::all(state).into_iter().filter(|kept| is_version_of(kept.as_ref(), name)).collect();
    let (wanted, stale): (Vec<_>, Vec<_>) = earlier.iter().partition(|kept| is_used::<T>(state, kept.id()));
    let mut changes: Vec<Change> = stale.iter().map(|kept| removal(&T::clone(kept).object())).collect();

    let mut kept = old.clone();
    kept.meta().version = version;
    let last = earlier.iter().filter_map(|kept| number(&kept.name_and_labels().name, name)).max().unwrap_or(0);
    kept.annotations().name = format!("{name}.{}", last + 1);
    kept.annotations().labels.insert(VERSION_OF_LABEL.to_owned(), name.clone());
    let new_id = T::new_id(ids());
    let fresh = old.with(new_id.clone(), annotations, data).object();
    let id = fresh.id();
    changes.extend([Change::Update(kept.object()), Change::Create(fresh)]);

    // A service that was rolled back uses an earlier version, and goes along.
    let replaced: Vec<&T::Id> = wanted.iter().map(|kept| kept.id()).chain([old.id()]).collect();
    let mut ahead = state.clone();
    ahead.apply(state.last_index() + 1, &Transaction { at: now.max(state.last_stamp()), changes: changes.clone() })?;
    for service in state.services().filter(|service| !service.removing) {
        changes.extend(go_over::<T>(&ahead, now, service, &replaced, &new_id)?);
    }
    propose(state, now, id, changes)
}

/// The change after which the service uses `new` wherever it used one of `replaced`.
fn go_over<T: Data>(
    ahead: &State,
    now: Timestamp,
    service: &Service,
    replaced: &[&T::Id],
    new: &T::Id,
) -> Result<Vec<Change>, ControlError> {
    let mut spec: ServiceSpec = service.spec.clone();
    let mut changed = false;
    for file in T::files_mut(&mut spec.task.container).iter_mut().filter(|file| replaced.contains(&&file.id)) {
        file.id = new.clone();
        changed = true;
    }
    if !changed {
        return Ok(Vec::new());
    }
    Ok(update_service(ahead, now, &service.id, service.meta.version, spec)?.transaction.changes)
}

fn is_version_of<T: Data>(kept: &T, name: &str) -> bool {
    kept.name_and_labels().labels.get(VERSION_OF_LABEL).is_some_and(|of| of == name)
}

fn number(kept: &str, name: &str) -> Option<u64> {
    kept.strip_prefix(name)?.strip_prefix('.')?.parse().ok()
}

/// By a service, by what a service would roll back to, or by a task that has not ended.
fn is_used<T: Data>(state: &State, id: &T::Id) -> bool {
    let names = |task: &TaskSpec| T::files(&task.container).iter().any(|file| file.id == *id);
    let previous = |service: &Service| service.previous_spec.as_ref().is_some_and(|spec| names(&spec.task));
    state.services().any(|service| names(&service.spec.task) || previous(service))
        || state.tasks().any(|task| !task.status.state.is_terminal() && names(&task.spec))
}

macro_rules! data {
    ($type:ident, $id:ident, $all:ident) => {
        impl Data for $type {
            type Id = $id;

            fn with(&self, id: $id, annotations: Annotations, data: Vec<u8>) -> Self {
                Self { id, meta: Meta::default(), annotations, data, template: self.template, removing: false }
            }

            fn new_id(bits: u128) -> $id {
                $id::from_random(bits)
            }

            fn id(&self) -> &$id {
                &self.id
            }

            fn annotations(&mut self) -> &mut Annotations {
                &mut self.annotations
            }

            fn name_and_labels(&self) -> &Annotations {
                &self.annotations
            }

            fn meta(&mut self) -> &mut Meta {
                &mut self.meta
            }

            fn object(self) -> Object {
                Object::$type(Arc::new(self))
            }

            fn all(state: &State) -> Vec<Arc<Self>> {
                state.$all().filter(|object| !object.removing).cloned().collect()
            }

            fn files(container: &ContainerSpec) -> &[FileRef<$id>] {
                &container.$all
            }

            fn files_mut(container: &mut ContainerSpec) -> &mut [FileRef<$id>] {
                &mut container.$all
            }
        }
    };
}
data!(Secret, SecretId, secrets);
data!(Config, ConfigId, configs);
