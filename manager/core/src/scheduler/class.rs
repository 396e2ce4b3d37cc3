//! Nodes that pass the same fixed filters, as a tree by the values of the same spread preferences.
//!
//! The leaves hold the nodes, those with the fewest tasks first. Tasks are only ever added during a round, so an entry
//! may be too low but never too high, and is put right when it is met.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::{
    filter::{Filter, Needs, NodeInfo},
    spread,
};

/// The position of a branch in its class. The first is the root.
pub(super) type BranchId = usize;
pub(super) const ROOT: BranchId = 0;

pub(super) struct Class {
    branches: Vec<Branch>,
    /// By node.
    leaf_of: Vec<Option<BranchId>>,
}

#[derive(Default)]
struct Branch {
    parent: Option<BranchId>,
    /// By the value of the preference's label.
    children: BTreeMap<String, BranchId>,
    /// (tasks, node), on leaves.
    nodes: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Class {
    pub(super) fn new(nodes: &[NodeInfo], needs: &Needs<'_>, descriptors: &[String]) -> Self {
        let mut class = Self { branches: vec![Branch::default()], leaf_of: vec![None; nodes.len()] };
        for (position, info) in nodes.iter().enumerate() {
            if Filter::FIXED.into_iter().all(|filter| filter.passes(info, needs, 0)) {
                let leaf = descriptors
                    .iter()
                    .fold(ROOT, |at, descriptor| class.child(at, spread::value(&info.node, descriptor)));
                class.leaf_of[position] = Some(leaf);
                class.put(leaf, info.tasks, position);
            }
        }
        class
    }

    fn child(&mut self, parent: BranchId, value: &str) -> BranchId {
        if let Some(child) = self.branches[parent].children.get(value) {
            return *child;
        }
        let child = self.branches.len();
        self.branches.push(Branch { parent: Some(parent), ..Branch::default() });
        self.branches[parent].children.insert(value.to_owned(), child);
        child
    }

    pub(super) fn branch_count(&self) -> usize {
        self.branches.len()
    }

    pub(super) fn children(&self, branch: BranchId) -> impl ExactSizeIterator<Item = BranchId> + '_ {
        self.branches[branch].children.values().copied()
    }

    /// A branch and all above it.
    pub(super) fn path(&self, branch: BranchId) -> impl Iterator<Item = BranchId> + '_ {
        std::iter::successors(Some(branch), |at| self.branches[*at].parent)
    }

    /// `None` for a node that is not of this class.
    pub(super) fn leaf_of(&self, node: usize) -> Option<BranchId> {
        self.leaf_of[node]
    }

    /// All nodes of the class.
    pub(super) fn members(&self) -> impl Iterator<Item = usize> + '_ {
        self.leaf_of.iter().enumerate().filter_map(|(node, leaf)| leaf.map(|_| node))
    }

    pub(super) fn put(&mut self, leaf: BranchId, tasks: u64, node: usize) {
        self.branches[leaf].nodes.push(Reverse((tasks, node)));
    }

    /// Takes out the node of a leaf with the fewest tasks.
    pub(super) fn pop(&mut self, leaf: BranchId, nodes: &[NodeInfo]) -> Option<usize> {
        loop {
            let Reverse((tasks, node)) = self.branches[leaf].nodes.pop()?;
            if tasks == nodes[node].tasks {
                return Some(node);
            }
            self.put(leaf, nodes[node].tasks, node);
        }
    }
}
