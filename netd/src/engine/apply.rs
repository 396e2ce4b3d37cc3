//! Bringing one namespace up to date, on a thread inside it.

use std::{collections::BTreeSet, io};

use orch_netd_core::{
    ns::{LinkKind, NsName, NsPlan},
    ops::{NetOp, steps},
};

use crate::{
    netlink::{Namespaces, Session},
    netns::{self, NetNs},
    nft,
};

/// What was last carried out in a namespace.
#[derive(Debug, Clone)]
pub(super) struct Applied {
    pub(super) plan: NsPlan,
    /// The ruleset's generation after it was loaded: as long as it stays, nobody has changed it.
    pub(super) generation: u32,
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) applied: Option<Applied>,
    /// Namespaces that new links lead to: they have to be looked at too.
    pub(super) touched: BTreeSet<NsName>,
    pub(super) error: Option<io::Error>,
}

/// All that a thread needs to know.
pub(super) struct Job {
    pub(super) name: NsName,
    pub(super) ns: NetNs,
    pub(super) plan: NsPlan,
    pub(super) last: Option<Applied>,
    pub(super) peers: Namespaces,
}

impl Job {
    /// Blocks; must not run on a runtime's thread that is needed elsewhere.
    pub(super) fn run(self) -> (NsName, Outcome) {
        let name = self.name.clone();
        let outcome = netns::on_own_thread(move || self.carry_out());
        (name, outcome.unwrap_or_else(|error| Outcome { applied: None, touched: BTreeSet::new(), error: Some(error) }))
    }

    fn carry_out(self) -> io::Result<Outcome> {
        let session = Session::enter(&self.ns)?;
        let mut observed = session.observe(&self.plan)?;
        let socket = self.ns.netfilter()?;
        let generation = nft::generation(&socket)?;
        observed.ruleset = self.last.filter(|last| last.generation == generation).map(|last| last.plan.ruleset);
        let ops = steps(&self.name, &self.plan, &observed);
        tracing::debug!(ns = %self.name, steps = ops.len(), "bringing up to date");
        let error = session.execute(&ops, &self.peers, &socket).err();
        let loaded = ops.iter().any(|op| matches!(op, NetOp::LoadRuleset { .. }));
        let generation = if loaded { nft::generation(&socket)? } else { generation };
        let applied = error.is_none().then_some(Applied { plan: self.plan, generation });
        Ok(Outcome { applied, touched: touched(&ops), error })
    }
}

fn touched(ops: &[NetOp]) -> BTreeSet<NsName> {
    ops.iter()
        .filter_map(|op| match op {
            NetOp::CreateLink { link, .. } => match &link.kind {
                LinkKind::Veth { peer_ns, .. } => Some(peer_ns.clone()),
                LinkKind::Loopback | LinkKind::Bridge | LinkKind::Vxlan(_) | LinkKind::VethPeer => None,
            },
            _ => None,
        })
        .collect()
}
