//! Choosing a node: filter, then prefer.

use std::collections::BTreeMap;

use orch_model::{NodeId, task::Task};

use super::{
    filter::{Filter, Needs, NodeInfo},
    spread,
};
use crate::orchestrator::restart::FAILURES_BEFORE_BACKOFF;

/// The best node for a task.
///
/// Nodes on which this version of the service keeps failing come last; then the user's spread preferences; then the
/// fewest tasks of the service, then the fewest tasks.
///
/// # Errors
/// With the explanation that `service ps` shows.
pub fn choose(nodes: &BTreeMap<NodeId, NodeInfo>, task: &Task, needs: &Needs<'_>) -> Result<NodeId, String> {
    // Global tasks come with their node.
    let candidates = nodes.values().filter(|info| task.node.as_ref().is_none_or(|id| *id == info.node.id));
    let mut refused: BTreeMap<Filter, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    for info in candidates {
        match Filter::ALL.into_iter().find(|filter| !filter.passes(info, needs)) {
            Some(filter) => *refused.entry(filter).or_default() += 1,
            None => fitting.push(info),
        }
    }
    let service = &needs.service.id;
    let is_faulty = |i: &&NodeInfo| i.failures.get(service).copied().unwrap_or(0) >= FAILURES_BEFORE_BACKOFF;
    let (faulty, healthy): (Vec<_>, Vec<_>) = fitting.into_iter().partition(is_faulty);
    let preferred = if healthy.is_empty() { faulty } else { healthy };
    let preferred = spread::narrow(preferred, &needs.service.spec.task.placement.spread, service);
    let of_service = |i: &NodeInfo| i.tasks_by_service.get(service).copied().unwrap_or(0);
    match preferred.into_iter().min_by_key(|i| (of_service(i), i.tasks)) {
        Some(info) => Ok(info.node.id.clone()),
        None => Err(explain(&refused)),
    }
}

fn explain(refused: &BTreeMap<Filter, usize>) -> String {
    let advice = match refused.contains_key(&Filter::Constraints) {
        true => "; change the constraint, or label a node with `orch node update --label-add`",
        false => "",
    };
    let mut reasons: Vec<_> = refused.iter().collect();
    reasons.sort_by_key(|(filter, count)| (std::cmp::Reverse(**count), **filter));
    let reasons: Vec<_> = reasons.into_iter().map(|(filter, count)| filter.explain(*count)).collect();
    match reasons.is_empty() {
        true => "no suitable node (the cluster has no nodes)".to_owned(),
        false => format!("no suitable node ({}){advice}", reasons.join("; ")),
    }
}
