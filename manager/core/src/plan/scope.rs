//! Which services a change may concern.
//!
//! What a stage decides about a service follows from the service, its tasks, and the nodes, networks and settings of the
//! cluster; so an event concerns the service that it is of, or many when it is of something that all may depend on.

use std::collections::BTreeSet;

use orch_model::{Object, ServiceId};

use crate::{
    orchestrator::slot::{is_global, is_job},
    state::{Event, State},
};

/// The services that have to be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scope {
    everything: bool,
    services: BTreeSet<ServiceId>,
    /// Services that did not get an address or a port: they try again whenever anything is decided.
    troubled: BTreeSet<ServiceId>,
    /// Something has changed that the stages without a service look at.
    whole: bool,
}

impl Scope {
    pub(super) fn everything() -> Self {
        Self { everything: true, whole: true, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.everything && !self.whole && self.services.is_empty()
    }

    pub(super) fn insert(&mut self, service: ServiceId) {
        self.services.insert(service);
    }

    /// Takes in what an event concerns; `state` is the one after it.
    pub(super) fn extend(&mut self, state: &State, event: &Event) {
        let object = match event {
            Event::Created(object) | Event::Removed(object) | Event::Updated { new: object, .. } => object,
        };
        match object {
            // Nothing is decided about these, except when they go.
            Object::Secret(secret) if !secret.removing => return,
            Object::Config(config) if !config.removing => return,
            Object::Secret(_) | Object::Config(_) => {}
            // It may say where tasks that wait can run.
            Object::Image(_) => {}
            Object::Cluster(_) | Object::Network(_) => self.everything = true,
            Object::Node(node) => {
                self.services.extend(state.tasks_on(&node.id).map(|task| task.service.clone()));
                // These have something to do on every node.
                let everywhere = state.services().filter(|s| is_global(s) || is_job(s));
                self.services.extend(everywhere.map(|s| s.id.clone()));
            }
            Object::Service(service) => {
                self.services.insert(service.id.clone());
                let is_gone = matches!(event, Event::Removed(_));
                match service.endpoint.problem.is_some() && !is_gone {
                    true => self.troubled.insert(service.id.clone()),
                    false => self.troubled.remove(&service.id),
                };
            }
            Object::Task(task) => drop(self.services.insert(task.service.clone())),
        }
        self.whole = true;
    }

    /// The services, in the order of their ids.
    pub(super) fn services(&self, state: &State) -> Vec<ServiceId> {
        match self.everything {
            true => state.services().map(|service| service.id.clone()).collect(),
            false => self.services.union(&self.troubled).cloned().collect(),
        }
    }

    /// What has been looked at is left out from now on; who did not get what it needs is remembered.
    pub(super) fn looked_at(&mut self, state: &State) {
        if self.everything {
            let troubled = state.services().filter(|service| service.endpoint.problem.is_some());
            self.troubled = troubled.map(|service| service.id.clone()).collect();
        }
        *self = Self { troubled: std::mem::take(&mut self.troubled), ..Self::default() };
    }

    /// What was looked at has to be looked at again.
    pub(super) fn put_back(&mut self, looked_at: Self) {
        self.everything |= looked_at.everything;
        self.whole |= looked_at.whole;
        self.services.extend(looked_at.services);
    }
}
