//! The cluster object.

use orch_model::cluster::{Cluster, ClusterSpec, JoinTokens, RootCa};

use super::record::record;

record!(Cluster { values: id, feature_level, ingress_network; parts: meta, spec, root_ca, join_tokens; });
record!(ClusterSpec {
    values: task_history_limit, address_pools, subnet_prefix_len, data_path_port;
    renamed: heartbeat_period => heartbeat_period_ms, cert_expiry => cert_expiry_ms;
    parts: annotations;
});
record!(RootCa { values: cert_pem, key_pem; });
record!(JoinTokens { values: worker, manager; });
