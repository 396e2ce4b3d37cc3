//! What a node's certificate is worth by now: the node may have been removed or demoted since it was made.
//!
//! Every call asks; and who has no business here any more does not stay connected either, so that streams that were opened
//! in time end, too.

use std::{
    collections::HashSet,
    convert::Infallible,
    time::{Duration, UNIX_EPOCH},
};

use orch_manager_core::{
    roles::{Standing, standing},
    state::NodesMark,
};
use orch_model::{NodeId, Timestamp, node::NodeRole};
use orch_proto::{tls::PeerIdentity, transport::Connections};
use tokio::time::sleep;

use crate::raft::Consensus;

/// How often connections are looked at. One that is bad twice in a row is cut: a node gets the answer to its own leaving.
const PERIOD: Duration = Duration::from_secs(1);
/// While no node has changed, who is in may stay; who came in since is looked at this often. Calls are checked each by itself.
const PERIODS_AT_REST: u32 = 10;

/// Knows the cluster's nodes.
#[derive(Clone)]
pub struct Register {
    consensus: Consensus,
    own: NodeId,
    fence: Option<Timestamp>,
}

impl Register {
    /// `own` is this node; of other managers, certificates from before `fence` are worth nothing.
    #[must_use]
    pub fn new(consensus: Consensus, own: NodeId, fence: Option<Timestamp>) -> Self {
        Self { consensus, own, fence }
    }

    pub(super) fn own(&self) -> &NodeId {
        &self.own
    }

    pub(super) fn standing(&self, peer: &PeerIdentity) -> Standing {
        let issued_ms = peer.issued_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let issued_at = Timestamp::from_unix_ms(u64::try_from(issued_ms).unwrap_or(u64::MAX));
        let is_lost = |fence| peer.role == NodeRole::Manager && peer.node_id != self.own && issued_at <= fence;
        // A caller that was passed on has no age; whoever passed it on has.
        if issued_at != Timestamp::default() && self.fence.is_some_and(is_lost) {
            return Standing::Demoted;
        }
        standing(&self.consensus.store().view().state, &peer.node_id, peer.role, issued_at)
    }

    /// Cuts the connections of nodes that were removed or demoted, for as long as the manager runs.
    pub async fn show_out(self, connections: Connections) -> Infallible {
        let mut noticed = HashSet::new();
        let (mut seen, mut at_rest) = (NodesMark::default(), 0);
        loop {
            sleep(PERIOD).await;
            let now = self.consensus.store().view().state.nodes_mark();
            at_rest += 1;
            if now == seen && noticed.is_empty() && at_rest < PERIODS_AT_REST {
                continue;
            }
            (seen, at_rest) = (now, 0);
            let mut bad = HashSet::new();
            connections.retain(|peer| {
                if self.standing(peer) == Standing::Good {
                    return true;
                }
                let who = (peer.node_id.clone(), peer.role == NodeRole::Manager, peer.issued_at);
                let stays = !noticed.contains(&who);
                bad.insert(who);
                stays
            });
            noticed = bad;
        }
    }
}
