//! All nodes during one round of scheduling, and what each service has on them.

use std::collections::{BTreeMap, BTreeSet};

use orch_model::{
    NodeId, ServiceId, Timestamp,
    service::Service,
    task::{Task, TaskState},
};

use super::{
    class::Class,
    filter::{Needs, NodeInfo, counts},
};
use crate::{
    orchestrator::restart::{FAILURE_WINDOW, FAILURES_BEFORE_BACKOFF},
    state::State,
};

/// What the fixed filters look at, and spread descriptors: services with the same ones share a class.
type ClassKey = (Vec<String>, Vec<String>, Option<(String, String)>, Vec<&'static str>, Vec<&'static str>, bool);

pub(super) struct Board<'a> {
    state: &'a State,
    now: Timestamp,
    /// In the order of their ids; elsewhere a node is its position here.
    pub(super) nodes: Vec<NodeInfo>,
    pub(super) classes: Vec<Class>,
    class_of: BTreeMap<ClassKey, usize>,
    shares: BTreeMap<ServiceId, Share>,
}

/// What a service has on the nodes.
#[derive(Debug, Clone, Default)]
pub(super) struct Share {
    /// Tasks by node; nodes without any are left out.
    pub(super) tasks: BTreeMap<usize, u64>,
    /// Where the service's current version keeps failing.
    pub(super) faulty: BTreeSet<usize>,
}

impl<'a> Board<'a> {
    pub(super) fn new(state: &'a State, now: Timestamp) -> Self {
        let nodes = state.nodes().map(|node| NodeInfo::new(state, node)).collect();
        Self { state, now, nodes, classes: Vec::new(), class_of: BTreeMap::new(), shares: BTreeMap::new() }
    }

    pub(super) fn position(&self, node: &NodeId) -> Option<usize> {
        self.nodes.binary_search_by(|info| info.node.id.cmp(node)).ok()
    }

    /// The class of the nodes that these tasks may run on.
    pub(super) fn class(&mut self, needs: &Needs<'_>) -> usize {
        let placement = &needs.service.spec.task.placement;
        let platform = needs.platform.as_ref().map(|platform| (platform.os.clone(), platform.arch.clone()));
        let (constraints, spread) = (placement.constraints.clone(), placement.spread.clone());
        let key = (constraints, spread, platform, needs.features.clone(), needs.versions.clone(), needs.encryption);
        if let Some(known) = self.class_of.get(&key) {
            return *known;
        }
        self.classes.push(Class::new(&self.nodes, needs, &placement.spread));
        let class = self.classes.len() - 1;
        self.class_of.insert(key, class);
        class
    }

    /// What a service has, with what it was given in this round. To be handed back with [`Self::put_share`].
    pub(super) fn take_share(&mut self, service: &Service) -> Share {
        self.shares.remove(&service.id).unwrap_or_else(|| self.count(service))
    }

    pub(super) fn put_share(&mut self, service: &ServiceId, share: Share) {
        self.shares.insert(service.clone(), share);
    }

    fn count(&self, service: &Service) -> Share {
        let mut share = Share::default();
        let mut failures: BTreeMap<usize, usize> = BTreeMap::new();
        for task in self.state.tasks_of(&service.id) {
            let Some(node) = task.node.as_ref().and_then(|id| self.position(id)) else { continue };
            if task.status.state >= TaskState::Assigned && !task.status.state.is_terminal() && counts(task) {
                *share.tasks.entry(node).or_default() += 1;
            }
            if task.spec_version == service.spec_version && self.has_failed_lately(task) {
                *failures.entry(node).or_default() += 1;
            }
        }
        let is_faulty = |(_, count): &(usize, usize)| *count >= FAILURES_BEFORE_BACKOFF;
        share.faulty = failures.into_iter().filter(is_faulty).map(|(node, _)| node).collect();
        share
    }

    fn has_failed_lately(&self, task: &Task) -> bool {
        let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
        failed && self.now.since(task.status.at) < FAILURE_WINDOW
    }
}
