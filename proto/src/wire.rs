//! What `build.rs` generates from `orch/v1/*.proto`.

#![allow(clippy::large_enum_variant, clippy::enum_variant_names, unreachable_pub, missing_docs)]

use std::fmt;

tonic::include_proto!("orch.v1");

impl fmt::Debug for RootCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootCa").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinTokens(..)")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("id", &self.id).field("annotations", &self.annotations).finish_non_exhaustive()
    }
}

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GossipKey").field("id", &self.id).finish_non_exhaustive()
    }
}
