//! VXLAN network identifiers: 24 bits, from 4096 up (below are those that people configure by hand).

use std::collections::BTreeSet;

use crate::state::State;

const FIRST_VNI: u32 = 4096;
const LAST_VNI: u32 = (1 << 24) - 1;

/// Hands out identifiers that no network has.
pub struct Vnis {
    taken: BTreeSet<u32>,
    next: u32,
}

impl Vnis {
    #[must_use]
    pub fn new(state: &State) -> Self {
        let taken = state.networks().filter_map(|n| n.allocation.as_ref()).map(|a| a.vni).collect();
        Self { taken, next: FIRST_VNI }
    }

    /// The lowest free identifier.
    pub fn allocate(&mut self) -> Option<u32> {
        let vni = (self.next..=LAST_VNI).find(|vni| !self.taken.contains(vni))?;
        self.next = vni + 1;
        Some(vni)
    }
}
