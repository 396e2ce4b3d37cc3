//! Bringing one namespace up to date, on a thread inside it.

use std::{collections::BTreeSet, io, sync::Arc};

use orch_model::node::TunnelKey;
use orch_netd_core::{
    ns::{LinkKind, NsName, NsPlan},
    ops::{NetOp, steps},
};

use super::pass::blocking;
use crate::{
    netlink::{Namespaces, Session},
    netns::{self, NetNs},
    nfnetlink::Socket,
    nft,
};

/// What was last carried out in a namespace.
#[derive(Debug, Clone)]
pub(super) struct Applied {
    pub(super) plan: Arc<NsPlan>,
    /// The ruleset's generation after it was loaded: as long as it stays, nobody has changed it.
    pub(super) generation: u32,
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) applied: Option<Applied>,
    /// Namespaces that new links lead to: they have to be looked at too.
    pub(super) touched: BTreeSet<NsName>,
    /// Of the WireGuard device there, where one is.
    pub(super) key: Option<TunnelKey>,
    /// The task's program has ended, and nobody has said so yet.
    pub(super) ended: bool,
    pub(super) error: Option<io::Error>,
}

/// All that a thread needs to know.
pub(super) struct Job {
    pub(super) name: NsName,
    pub(super) ns: NetNs,
    pub(super) plan: Arc<NsPlan>,
    /// Whether to look at everything there, even if only the rules are to be changed.
    pub(super) thorough: bool,
    /// Its links were made anew from the other end in this pass: what hangs on them is missing, and nobody's fault.
    pub(super) made_anew: bool,
    /// The namespace was made in this pass.
    pub(super) is_new: bool,
    pub(super) last: Option<Applied>,
    pub(super) peers: Arc<Namespaces>,
}

impl Job {
    pub(super) async fn run(self) -> (NsName, Outcome) {
        let name = self.name.clone();
        let outcome = match self.changes_only_rules() {
            Some(socket) => match blocking(move || Ok(self.only_rules(&socket).ok_or(self))).await {
                Ok(Ok(outcome)) => return (name, outcome),
                Ok(Err(job)) => netns::aside(move || job.carry_out()).await,
                Err(error) => Err(error),
            },
            None => netns::aside(move || self.carry_out()).await,
        };
        (
            name,
            outcome.unwrap_or_else(|error| Outcome {
                applied: None,
                touched: BTreeSet::new(),
                key: None,
                ended: false,
                error: Some(error),
            }),
        )
    }

    /// With which socket; `None`: not so.
    fn changes_only_rules(&self) -> Option<Arc<Socket>> {
        self.last.as_ref().filter(|last| !self.thorough && last.plan.is_but_for_rules(&self.plan))?;
        self.ns.opened_netfilter()
    }

    /// A change of rules alone (backends that come and go, everywhere at once) needs neither a look at the rest nor a
    /// thread inside. `None`: what fails here, also because somebody else has changed rules, is done and told by the thorough
    /// way.
    fn only_rules(&self, socket: &Socket) -> Option<Outcome> {
        let last = self.last.as_ref()?;
        let generation = nft::reload(socket, last.generation, &last.plan.ruleset, &self.plan.ruleset).ok()?;
        let applied = Some(Applied { plan: self.plan.clone(), generation });
        Some(Outcome { applied, touched: BTreeSet::new(), key: None, ended: false, error: None })
    }

    fn carry_out(self) -> io::Result<Outcome> {
        let session = Session::enter(&self.ns, &self.plan, &self.peers)?;
        let mut observed = match self.is_new {
            true => session.observe_new(&self.plan)?,
            false => session.observe(&self.plan)?,
        };
        if matches!(self.name, NsName::Task(_)) && observed.has_ended(&self.plan) {
            // Up again, it would refuse clients that others can serve.
            return Ok(Outcome { applied: self.last, touched: BTreeSet::new(), key: None, ended: true, error: None });
        }
        let socket = self.ns.netfilter()?;
        let generation = nft::generation(&socket)?;
        // What was complete and is not wanted otherwise by now: no step should be needed.
        let wanted_before = self.last.as_ref().is_some_and(|last| last.plan == self.plan) && !self.made_anew;
        let unchanged = self.last.filter(|last| last.generation == generation);
        observed.ruleset = unchanged.map(|last| last.plan.ruleset.clone());
        let ops = steps(&self.name, &self.plan, &observed);
        if wanted_before && !ops.iter().all(is_expected) {
            tracing::warn!(ns = %self.name, put_back = summary(&ops), "someone else changed the network here");
        }
        tracing::debug!(ns = %self.name, steps = ops.len(), "bringing up to date");
        let error = session.execute(&ops, &self.peers, &socket).err();
        let loaded = ops.iter().any(|op| matches!(op, NetOp::LoadRuleset { .. }));
        let generation = if loaded { nft::generation(&socket)? } else { generation };
        let key = match ops.iter().any(|op| matches!(op, NetOp::MakeKey(_))) {
            true => session.observe(&self.plan)?.wireguard,
            false => observed.wireguard,
        };
        let key = key.and_then(|device| device.key);
        let applied = error.is_none().then_some(Applied { plan: self.plan, generation });
        Ok(Outcome { applied, touched: touched(&ops), key, ended: false, error })
    }
}

/// Nobody's doing: a node that has several addresses corrects, by signed packets, where WireGuard thinks that it is.
fn is_expected(op: &NetOp) -> bool {
    matches!(op, NetOp::SetCorrespondent { .. })
}

/// What steps change, in words; the first few of many.
fn summary(ops: &[NetOp]) -> String {
    const SHOWN: usize = 6;
    let words = ops.iter().take(SHOWN).map(|op| match op {
        NetOp::DeleteRule(rule) | NetOp::AddRule(rule) => format!("routing rule of table {}", rule.table),
        NetOp::DeleteRoute(route) | NetOp::AddRoute(route) => format!("route to {}", route.destination),
        NetOp::DeleteFdb(entry) | NetOp::SetFdb(entry) => format!("fdb entry of {}", entry.mac),
        NetOp::DeleteNeighbour(neighbour) | NetOp::SetNeighbour(neighbour) => format!("neighbour {}", neighbour.addr),
        NetOp::DeleteAddress(link, addr) | NetOp::AddAddress(link, addr) => format!("address {addr} of {link}"),
        NetOp::DeleteLink(name) | NetOp::CreateLink { name, .. } | NetOp::SetLink { name, .. } => {
            format!("link {name}")
        }
        NetOp::SetUp { name, .. } => format!("state of {name}"),
        NetOp::SetSysctl { path, .. } => format!("setting {path}"),
        // Also after a change of somebody else's rules alone: ours are the same then, and loading them harms nothing.
        NetOp::LoadRuleset { .. } => "nftables rules".to_owned(),
        NetOp::MakeKey(_) => "WireGuard's key".to_owned(),
        NetOp::SetPort { .. } => "WireGuard's port".to_owned(),
        NetOp::SetCorrespondent { .. } | NetOp::ForgetCorrespondent { .. } => "a node that WireGuard knows".to_owned(),
    });
    let mut words: Vec<_> = words.collect();
    words.dedup();
    let more = ops.len().saturating_sub(SHOWN);
    if more > 0 { format!("{} and {more} more", words.join(", ")) } else { words.join(", ") }
}

fn touched(ops: &[NetOp]) -> BTreeSet<NsName> {
    ops.iter()
        .filter_map(|op| match op {
            NetOp::CreateLink { link, .. } => match &link.kind {
                LinkKind::Veth { peer_ns, .. } => Some(peer_ns.clone()),
                LinkKind::Loopback
                | LinkKind::Bridge
                | LinkKind::Vxlan { .. }
                | LinkKind::WireGuard
                | LinkKind::VethPeer => None,
            },
            _ => None,
        })
        .collect()
}
