//! What every session tells its node of the others: the managers, whom to watch, and the keys of gossip.
//!
//! Computed once per change for all sessions: with thousands of nodes, each of them looking through all nodes at every
//! commit would be most of what the leader does.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use orch_manager_core::liveness::Ring;
use orch_model::{NodeId, ObjectId, Timestamp, cluster::Cluster};
use orch_proto::{gossip, wire};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    authority,
    raft::{Commit, Committed, Consensus, Proposer, View},
};

/// How often it is looked whether the keys' time is over.
const KEY_CHECK: Duration = Duration::from_secs(60);
/// Changes of nodes that come this close together are one.
const GATHER: Duration = Duration::from_millis(20);

/// The same for all nodes; see [`Guide::gossip`] for the part of one.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Guide {
    pub(super) managers: Vec<String>,
    pub(super) trust: Trust,
    pub(super) ring: Ring,
    keys: Vec<wire::GossipKey>,
}

/// What certificates are checked with.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Trust {
    pub(super) roots_pem: Bytes,
    /// Digest of the root that every certificate is to be of.
    pub(super) issuer: String,
}

impl Trust {
    fn new(cluster: &Cluster) -> Self {
        let roots_pem = authority::trusted_roots(cluster).into();
        Self { roots_pem, issuer: authority::desired_issuer(cluster) }
    }
}

impl Guide {
    fn new(view: &View, now: Timestamp) -> Self {
        let nodes = || view.state.nodes().map(Arc::as_ref);
        Self {
            trust: view.state.cluster().map(|cluster| Trust::new(cluster)).unwrap_or_default(),
            managers: nodes().filter_map(|node| node.manager.as_ref()).map(|manager| manager.addr.clone()).collect(),
            ring: Ring::new(nodes()),
            keys: view.state.cluster().map(|cluster| gossip_keys(cluster, now)).unwrap_or_default(),
        }
    }

    /// What `node` needs to know to take part in gossip.
    pub(super) fn gossip(&self, node: &NodeId) -> wire::GossipConfig {
        let peer = |(id, addr): &(NodeId, std::net::IpAddr)| wire::GossipPeer {
            node_id: id.to_string(),
            addr: addr.to_string(),
        };
        wire::GossipConfig {
            keys: self.keys.clone(),
            peers: self.ring.watched_by(node).map(peer).collect(),
            watchers: u32::try_from(self.ring.watchers()).unwrap_or(u32::MAX),
        }
    }
}

fn gossip_keys(cluster: &Cluster, now: Timestamp) -> Vec<wire::GossipKey> {
    let next = cluster.root_rotation.as_ref().map(|rotation| &rotation.target);
    gossip::keys(&cluster.root_ca, next, &cluster.id, now)
}

/// The current guide, kept by [`keep`].
pub(super) fn channel(consensus: &Consensus, proposer: &Proposer) -> watch::Sender<Arc<Guide>> {
    watch::Sender::new(Arc::new(Guide::new(&consensus.store().view(), proposer.now())))
}

/// Follows the state for as long as the reign lasts.
pub(super) async fn keep(consensus: Consensus, proposer: Proposer, guide: watch::Sender<Arc<Guide>>) {
    let mut commits = consensus.store().commits();
    loop {
        let now = Guide::new(&consensus.store().view(), proposer.now());
        guide.send_if_modified(|known| {
            let is_new = **known != now;
            if is_new {
                *known = Arc::new(now);
            }
            is_new
        });
        // Time passing is a reason, too.
        let until = Instant::now() + KEY_CHECK;
        while let Ok(commit) = timeout_at(until, commits.recv()).await {
            // Having missed some is a reason.
            if commit.as_deref().map_or(true, is_about_nodes) {
                break;
            }
        }
        // Nodes that come together are one change.
        sleep(GATHER).await;
        commits.skip_to_now();
    }
}

fn is_about_nodes(commit: &Commit) -> bool {
    let Committed::Transactions(transactions) = &commit.change else { return true };
    let mut events = transactions.iter().flat_map(|events| events.iter());
    events.any(|event| matches!(event.id(), ObjectId::Node(_) | ObjectId::Cluster(_)))
}
