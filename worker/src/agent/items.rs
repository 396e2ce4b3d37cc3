//! Assigned items that tasks need to start: secrets, configs, published ports, and where images can be fetched from. In
//! memory only.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use orch_model::{
    ConfigId, NetworkId, SecretId, ServiceId, TaskId,
    assignment::{Assignment, AssignmentKey, ImageSource},
    secret::{Config, Secret},
    service::PortConfig,
};
use tokio::sync::watch;

use super::assignments::Delta;

#[derive(Debug, Default)]
pub(crate) struct Items {
    kept: Mutex<Kept>,
    told: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Kept {
    secrets: BTreeMap<SecretId, Arc<Secret>>,
    configs: BTreeMap<ConfigId, Arc<Config>>,
    images: BTreeMap<TaskId, ImageSource>,
    ports: BTreeMap<(ServiceId, NetworkId), Vec<PortConfig>>,
}

impl Items {
    /// In one: a task that is being prepared finds what it had before, or what it has now.
    pub(crate) fn apply(&self, delta: &Delta) {
        let mut kept = self.lock();
        if delta.complete {
            *kept = Kept::default();
        }
        delta.removed.iter().for_each(|key| kept.remove(key));
        delta.put.iter().for_each(|item| kept.put(item));
    }

    /// From here on what is not here is not assigned.
    pub(crate) fn set_told(&self) {
        self.told.send_replace(true);
    }

    /// Waits until managers have said everything once: before, what an earlier worker was told is not here.
    pub(crate) async fn told(&self) {
        // The sender lives as long as `self`.
        let _ = self.told.subscribe().wait_for(|told| *told).await;
    }

    pub(crate) fn secret(&self, id: &SecretId) -> Option<Arc<Secret>> {
        self.lock().secrets.get(id).cloned()
    }

    pub(crate) fn config(&self, id: &ConfigId) -> Option<Arc<Config>> {
        self.lock().configs.get(id).cloned()
    }

    pub(crate) fn image_source(&self, task: &TaskId) -> Option<ImageSource> {
        self.lock().images.get(task).cloned()
    }

    /// What the service publishes through ingress.
    pub(crate) fn published(&self, service: &ServiceId) -> Vec<PortConfig> {
        let kept = self.lock();
        kept.ports.iter().filter(|((of, _), _)| of == service).flat_map(|(_, ports)| ports.clone()).collect()
    }

    /// What all services publish through ingress, this node too answering on it.
    pub(crate) fn published_by_all(&self) -> Vec<PortConfig> {
        self.lock().ports.values().flatten().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing that a holder does can panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn put(&mut self, item: &Assignment) {
        match item {
            Assignment::Secret(secret) => drop(self.secrets.insert(secret.id.clone(), secret.clone())),
            Assignment::Config(config) => drop(self.configs.insert(config.id.clone(), config.clone())),
            Assignment::Image(image) => drop(self.images.insert(image.task.clone(), image.clone())),
            Assignment::ServiceEndpoint(endpoint) => {
                let key = (endpoint.service.clone(), endpoint.network.clone());
                self.ports.insert(key, endpoint.ports.clone());
            }
            Assignment::Task(_) | Assignment::Peer(_) | Assignment::Network(_) | Assignment::Endpoint(_) => {}
        }
    }

    fn remove(&mut self, key: &AssignmentKey) {
        match key {
            AssignmentKey::Secret(id) => drop(self.secrets.remove(id)),
            AssignmentKey::Config(id) => drop(self.configs.remove(id)),
            AssignmentKey::Image(id) => drop(self.images.remove(id)),
            AssignmentKey::ServiceEndpoint(network, service) => {
                drop(self.ports.remove(&(service.clone(), network.clone())));
            }
            AssignmentKey::Task(_)
            | AssignmentKey::Peer(_)
            | AssignmentKey::Network(_)
            | AssignmentKey::Endpoint(..) => {}
        }
    }
}
