//! Bringing one namespace up to date, on a thread inside it.

use std::{collections::BTreeSet, io};

use orch_netd_core::{
    ns::{LinkKind, NsName, NsPlan},
    ops::{NetOp, steps},
    ruleset::Ruleset,
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
    /// Whether to look at everything there, even if only the rules are to be changed.
    pub(super) thorough: bool,
    pub(super) last: Option<Applied>,
    pub(super) peers: Namespaces,
}

impl Job {
    /// Blocks; must not run on a runtime's thread that is needed elsewhere.
    pub(super) fn run(self) -> (NsName, Outcome) {
        let name = self.name.clone();
        if let Some(outcome) = self.only_rules() {
            return (name, outcome);
        }
        let outcome = netns::on_own_thread(move || self.carry_out());
        (name, outcome.unwrap_or_else(|error| Outcome { applied: None, touched: BTreeSet::new(), error: Some(error) }))
    }

    /// A change of rules alone (backends that come and go, everywhere at once) needs neither a look at the rest nor a
    /// thread inside. `None`: that is not what this is.
    fn only_rules(&self) -> Option<Outcome> {
        let last = self.last.as_ref().filter(|last| !self.thorough && same_but_rules(&last.plan, &self.plan))?;
        let socket = self.ns.opened_netfilter()?;
        if nft::generation(&socket).ok()? != last.generation {
            return None;
        }
        // What fails here is tried again, and told, by the thorough way.
        nft::load(&socket, Some(&last.plan.ruleset), &self.plan.ruleset).ok()?;
        let generation = nft::generation(&socket).ok()?;
        let applied = Some(Applied { plan: self.plan.clone(), generation });
        Some(Outcome { applied, touched: BTreeSet::new(), error: None })
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

fn same_but_rules(a: &NsPlan, b: &NsPlan) -> bool {
    let rest = |plan: &NsPlan| NsPlan { ruleset: Ruleset::default(), ..plan.clone() };
    rest(a) == rest(b)
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
