//! Facts about the cluster and its managers.

use orch_manager_core::{State, rotation};
use orch_model::cluster::{Cluster, ClusterSpec};
use orch_proto::{conv::ToProto, wire};

use crate::{authority, raft::Consensus};

/// What `orch info` shows. Without a leader it is what this manager last knew.
pub(super) fn cluster_info(consensus: &Consensus, answering_node: &str) -> wire::ClusterInfo {
    let view = consensus.store().view();
    let state = &view.state;
    let leadership = consensus.leadership().borrow().clone();
    let cluster = state.cluster();
    let (leader_id, leader_addr) = leadership.leader.as_ref().map(|(_, m)| (m.node_id.clone(), m.addr.clone())).unzip();
    let managers: Vec<_> = state.nodes().filter_map(|n| n.manager.as_ref().map(|m| (n, m))).collect();
    let (_, reachable) = consensus.voters();
    let reachability = managers.iter().map(|(node, manager)| wire::ManagerReachability {
        node_id: node.id.to_string(),
        leader: leader_id.as_deref() == Some(node.id.as_str()),
        reachable: reachable.contains(&manager.raft_id),
    });
    wire::ClusterInfo {
        cluster_id: consensus.cluster().to_string(),
        node_id: answering_node.to_owned(),
        managers: managers.len().try_into().unwrap_or(u64::MAX),
        nodes: state.nodes().map(|_| 1).sum(),
        worker_token: cluster.map(|c| c.join_tokens.worker.clone()).unwrap_or_default(),
        manager_token: cluster.map(|c| c.join_tokens.manager.clone()).unwrap_or_default(),
        root_cert_pem: cluster.map(|c| c.root_ca.cert_pem.clone()).unwrap_or_default(),
        manager_addrs: managers.iter().map(|(_, manager)| manager.addr.clone()).collect(),
        spec: cluster.map(|c| ClusterSpec::to_proto(&c.spec)),
        created_at_ms: cluster.map(|c| c.meta.created_at.unix_ms).unwrap_or_default(),
        raft_index: view.index,
        root: cluster.map(|cluster| root_status(state, cluster)),
        reachability: reachability.collect(),
        leader_id: leader_id.unwrap_or_default(),
        leader_addr: leader_addr.unwrap_or_default(),
    }
}

fn root_status(state: &State, cluster: &Cluster) -> wire::RootStatus {
    let desired = authority::desired_issuer(cluster);
    let progress = rotation::progress(state, &desired);
    let count = |n: usize| n.try_into().unwrap_or(u64::MAX);
    wire::RootStatus {
        desired_digest: desired,
        rotating: cluster.root_rotation.is_some(),
        nodes: count(progress.nodes),
        rotated_certificates: count(progress.rotated_certificates),
        rotated_roots: count(progress.rotated_roots),
        awaited: progress.awaited,
        rotations: cluster.root_rotations,
    }
}
