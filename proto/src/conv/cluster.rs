//! The cluster object.

use orch_model::cluster::{Cluster, ClusterSpec, JoinTokens, RootCa, RootRotation, UnlockKeyText};

use super::{DecodeError, FromProto, ToProto, record::record};

record!(Cluster {
    values: id, feature_level, ingress_network, unlock_key, root_rotation, root_rotations;
    parts: meta, spec, root_ca, join_tokens;
});
record!(RootRotation { values: digest, cross_signed_pem; parts: target; });
record!(ClusterSpec {
    values: task_history_limit, address_pools, subnet_prefix_len, data_path_port, autolock;
    renamed: heartbeat_period => heartbeat_period_ms, cert_expiry => cert_expiry_ms;
    parts: annotations;
});
impl ToProto for UnlockKeyText {
    type Proto = String;

    fn to_proto(&self) -> String {
        self.0.clone()
    }
}

impl FromProto for UnlockKeyText {
    type Proto = String;

    fn from_proto(proto: String) -> Result<Self, DecodeError> {
        Ok(Self(proto))
    }
}

record!(RootCa { values: cert_pem, key_pem; });
record!(JoinTokens { values: worker, manager; });
