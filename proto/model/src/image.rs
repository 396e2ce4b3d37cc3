//! Image names that the cluster knows: `orch image import` on one node makes the name mean the same on all.

use std::collections::BTreeSet;

use crate::{ImageId, Meta, NodeId, node::Platform};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub id: ImageId,
    pub meta: Meta,
    /// Normalised reference, e.g. `docker.io/library/web:latest`.
    pub name: String,
    /// Manifest digest, `sha256:…`.
    pub digest: String,
    /// Bytes of all blobs together.
    pub size_bytes: u64,
    /// What it runs on; unknown for one that was registered by an older node.
    pub platform: Option<Platform>,
    /// The nodes that announced that they have the content.
    pub holders: BTreeSet<NodeId>,
}
