//! Placing tasks that are alike, one after the other: filter, then prefer.
//!
//! Nodes on which this version of the service keeps failing come last; then the user's spread preferences decide; then
//! the fewest tasks of the service, then the fewest tasks. Services that are packed go to the fullest node instead.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use orch_model::{NodeId, service::PlacementStrategy, task::Task};

use super::{
    board::{Board, Share},
    class::{BranchId, ROOT},
    filter::{Filter, Needs, NodeInfo},
};
use crate::volume;

pub(super) struct Run<'b, 'a> {
    board: &'b mut Board<'a>,
    needs: Needs<'b>,
    class: usize,
    share: Share,
    /// Tasks of the service by branch.
    counts: Vec<u64>,
    /// Branches with no node left that could take a task.
    exhausted: Vec<bool>,
    /// By leaf: nodes that have tasks of the service.
    members: BTreeMap<BranchId, BinaryHeap<Reverse<Member>>>,
    /// What was taken out of the class, to be put back.
    aside: Vec<(BranchId, usize)>,
    faulty: Vec<(BranchId, usize)>,
    refusal: Option<String>,
    /// Slots whose volumes hold them to a node.
    pins: BTreeMap<u64, NodeId>,
    /// Only for services that are packed: (load, node), the fullest first.
    packed: Option<BinaryHeap<(Load, Reverse<usize>)>>,
}

/// Tasks of the service, tasks in all, node.
type Member = (u64, u64, usize);

/// How full a node is: the larger share of its CPU and memory that is reserved, in millionths, then its tasks.
type Load = (u64, u64);

impl<'b, 'a> Run<'b, 'a> {
    pub(super) fn new(board: &'b mut Board<'a>, needs: Needs<'b>, pins: BTreeMap<u64, NodeId>) -> Self {
        let class = board.class(&needs);
        let share = board.take_share(needs.service);
        let branches = board.classes[class].branch_count();
        let mut run = Self {
            board,
            needs,
            class,
            share,
            counts: vec![0; branches],
            exhausted: vec![false; branches],
            members: BTreeMap::new(),
            aside: Vec::new(),
            faulty: Vec::new(),
            refusal: None,
            pins,
            packed: None,
        };
        if run.needs.service.spec.task.placement.strategy == PlacementStrategy::Pack {
            let members = run.board.classes[class].members();
            run.packed = Some(members.map(|node| (load(&run.board.nodes[node]), Reverse(node))).collect());
        }
        let class = &run.board.classes[class];
        for (node, tasks) in &run.share.tasks {
            let leaf = class.leaf_of(*node);
            leaf.into_iter().flat_map(|leaf| class.path(leaf)).for_each(|branch| run.counts[branch] += tasks);
        }
        run
    }

    /// The best node for a task.
    ///
    /// # Errors
    /// With the explanation that `service ps` shows.
    pub(super) fn choose(&mut self, task: &Task) -> Result<usize, String> {
        // Global tasks come with their node.
        if let Some(own) = &task.node {
            return self.only(own);
        }
        if let Some(pin) = self.pins.get(&task.slot) {
            let name = self.board.position(pin).map_or("", |at| &self.board.nodes[at].node.description.hostname);
            let advice = volume::advice(&self.needs.service.spec.annotations.name, task.slot, name);
            return self.only(pin).map_err(|why| format!("{why}; {advice}"));
        }
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        if self.packed.is_some() {
            return match self.fullest() {
                Some(node) => Ok(node),
                None => Err(self.refuse()),
            };
        }
        loop {
            if let Some(leaf) = self.emptiest_leaf() {
                match self.pick(leaf) {
                    Some(node) => return Ok(node),
                    None => self.exhaust(leaf),
                }
            } else if !self.admit_faulty() {
                return Err(self.refuse());
            }
        }
    }

    /// The one node that comes into question.
    fn only(&self, id: &NodeId) -> Result<usize, String> {
        let node = self.board.position(id).filter(|node| self.passes_all(*node));
        node.ok_or_else(|| explain(self.refused(|info| info.node.id == *id)))
    }

    fn refuse(&mut self) -> String {
        let refusal = explain(self.refused(|_| true));
        self.refusal.insert(refusal).clone()
    }

    /// For packed services: the fullest node that fits; spread preferences and the service's own tasks do not count.
    fn fullest(&mut self) -> Option<usize> {
        let mut last_resort = Vec::new();
        let found = loop {
            let Some((_, Reverse(node))) = self.packed.as_mut()?.pop() else { break None };
            // What does not fit now will not fit later in this run either.
            if !self.passes_changing(node) {
                continue;
            }
            if !self.share.faulty.contains(&node) {
                break Some(node);
            }
            last_resort.push(node);
        };
        let found = found.or_else(|| last_resort.first().copied());
        let back = last_resort.into_iter().filter(|node| Some(*node) != found);
        let back: Vec<_> = back.map(|node| (load(&self.board.nodes[node]), Reverse(node))).collect();
        self.packed.as_mut()?.extend(back);
        found
    }

    /// Gives the node the task that `make` makes for it.
    pub(super) fn take(&mut self, node: usize, make: impl FnOnce(&NodeInfo) -> Task) -> Task {
        let task = make(&self.board.nodes[node]);
        self.board.nodes[node].add(&task);
        *self.share.tasks.entry(node).or_default() += 1;
        if let Some(packed) = &mut self.packed {
            packed.push((load(&self.board.nodes[node]), Reverse(node)));
        }
        let class = &self.board.classes[self.class];
        if let Some(leaf) = class.leaf_of(node) {
            class.path(leaf).for_each(|branch| self.counts[branch] += 1);
            self.join(leaf, node);
        }
        task
    }

    /// Leaves the board for the next run.
    pub(super) fn finish(self) {
        for (leaf, node) in self.aside {
            let tasks = self.board.nodes[node].tasks;
            self.board.classes[self.class].put(leaf, tasks, node);
        }
        self.board.put_share(&self.needs.service.id, self.share);
    }

    /// From the root, always the branch with the fewest tasks of the service.
    fn emptiest_leaf(&self) -> Option<BranchId> {
        let class = &self.board.classes[self.class];
        let mut at = ROOT;
        while !self.exhausted[at] {
            if class.children(at).len() == 0 {
                return Some(at);
            }
            at = class
                .children(at)
                .filter(|branch| !self.exhausted[*branch])
                .min_by_key(|branch| self.counts[*branch])?;
        }
        None
    }

    fn exhaust(&mut self, leaf: BranchId) {
        let class = &self.board.classes[self.class];
        for branch in class.path(leaf) {
            if class.children(branch).any(|child| !self.exhausted[child]) {
                return;
            }
            self.exhausted[branch] = true;
        }
    }

    /// The best node of a leaf: first those that have no task of the service.
    fn pick(&mut self, leaf: BranchId) -> Option<usize> {
        while let Some(node) = self.board.classes[self.class].pop(leaf, &self.board.nodes) {
            self.aside.push((leaf, node));
            if !self.passes_changing(node) {
                continue;
            }
            if self.share.faulty.contains(&node) {
                self.faulty.push((leaf, node));
            } else if self.of_service(node) > 0 {
                self.join(leaf, node);
            } else {
                return Some(node);
            }
        }
        loop {
            let Reverse((of_service, tasks, node)) = self.members.get_mut(&leaf)?.pop()?;
            if (of_service, tasks) != (self.of_service(node), self.board.nodes[node].tasks) {
                self.join(leaf, node);
            } else if self.passes_changing(node) {
                return Some(node);
            }
        }
    }

    /// Lets in the nodes on which the service keeps failing, now that no other is left. `false` when there are none.
    fn admit_faulty(&mut self) -> bool {
        if self.faulty.is_empty() {
            return false;
        }
        for (leaf, node) in std::mem::take(&mut self.faulty) {
            self.join(leaf, node);
            let class = &self.board.classes[self.class];
            class.path(leaf).for_each(|branch| self.exhausted[branch] = false);
        }
        true
    }

    fn join(&mut self, leaf: BranchId, node: usize) {
        let entry = Reverse((self.of_service(node), self.board.nodes[node].tasks, node));
        self.members.entry(leaf).or_default().push(entry);
    }

    fn of_service(&self, node: usize) -> u64 {
        self.share.tasks.get(&node).copied().unwrap_or(0)
    }

    fn passes_changing(&self, node: usize) -> bool {
        let (info, of_service) = (&self.board.nodes[node], self.of_service(node));
        Filter::CHANGING.into_iter().all(|filter| filter.passes(info, &self.needs, of_service))
    }

    fn passes_all(&self, node: usize) -> bool {
        let (info, of_service) = (&self.board.nodes[node], self.of_service(node));
        Filter::ALL.into_iter().all(|filter| filter.passes(info, &self.needs, of_service))
    }

    /// How many of these nodes each filter refused first.
    fn refused(&self, is_candidate: impl Fn(&NodeInfo) -> bool) -> BTreeMap<Filter, usize> {
        let mut refused = BTreeMap::new();
        for (node, info) in self.board.nodes.iter().enumerate().filter(|(_, info)| is_candidate(info)) {
            let of_service = self.of_service(node);
            let first = Filter::ALL.into_iter().find(|filter| !filter.passes(info, &self.needs, of_service));
            if let Some(filter) = first {
                *refused.entry(filter).or_default() += 1;
            }
        }
        refused
    }
}

fn load(info: &NodeInfo) -> Load {
    let all = info.node.description.resources;
    let share = |all: u64, free: u64| all.saturating_sub(free).saturating_mul(1_000_000).checked_div(all).unwrap_or(0);
    let (cpu, memory) =
        (share(all.nano_cpus, info.free.nano_cpus), share(all.memory_bytes / 1024, info.free.memory_bytes / 1024));
    (cpu.max(memory), info.tasks)
}

fn explain(refused: BTreeMap<Filter, usize>) -> String {
    let mut reasons: Vec<_> = refused.into_iter().collect();
    reasons.sort_by_key(|(filter, count)| (Reverse(*count), *filter));
    let advice: String =
        reasons.iter().filter_map(|(filter, _)| filter.advice()).map(|text| format!("; {text}")).collect();
    let reasons: Vec<_> = reasons.into_iter().map(|(filter, count)| filter.explain(count)).collect();
    match reasons.is_empty() {
        true => "no suitable node (the cluster has no nodes)".to_owned(),
        false => format!("no suitable node ({}){advice}", reasons.join("; ")),
    }
}
