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

#[derive(Debug, Default)]
pub(crate) struct Items(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    secrets: BTreeMap<SecretId, Arc<Secret>>,
    configs: BTreeMap<ConfigId, Arc<Config>>,
    images: BTreeMap<TaskId, ImageSource>,
    ports: BTreeMap<(ServiceId, NetworkId), Vec<PortConfig>>,
}

impl Items {
    pub(crate) fn clear(&self) {
        *self.lock() = Kept::default();
    }

    pub(crate) fn put(&self, item: &Assignment) {
        let mut kept = self.lock();
        match item {
            Assignment::Secret(secret) => drop(kept.secrets.insert(secret.id.clone(), secret.clone())),
            Assignment::Config(config) => drop(kept.configs.insert(config.id.clone(), config.clone())),
            Assignment::Image(image) => drop(kept.images.insert(image.task.clone(), image.clone())),
            Assignment::ServiceEndpoint(endpoint) => {
                let key = (endpoint.service.clone(), endpoint.network.clone());
                kept.ports.insert(key, endpoint.ports.clone());
            }
            Assignment::Task(_) | Assignment::Peer(_) | Assignment::Network(_) | Assignment::Endpoint(_) => {}
        }
    }

    pub(crate) fn remove(&self, key: &AssignmentKey) {
        let mut kept = self.lock();
        match key {
            AssignmentKey::Secret(id) => drop(kept.secrets.remove(id)),
            AssignmentKey::Config(id) => drop(kept.configs.remove(id)),
            AssignmentKey::Image(id) => drop(kept.images.remove(id)),
            AssignmentKey::ServiceEndpoint(network, service) => {
                drop(kept.ports.remove(&(service.clone(), network.clone())));
            }
            AssignmentKey::Task(_)
            | AssignmentKey::Peer(_)
            | AssignmentKey::Network(_)
            | AssignmentKey::Endpoint(..) => {}
        }
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
        // Each holder changes one entry.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
