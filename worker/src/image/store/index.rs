//! Which images are there, and what they are called.

use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{image::reference::Reference, store::aside};

/// One image, as the index keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub config: String,
    /// Layer blobs, bottom first.
    pub layers: Vec<String>,
    /// Their diff ids, in the same order.
    pub diff_ids: Vec<String>,
    pub size_bytes: u64,
    pub created_at_ms: u64,
    /// Cluster and node under which managers know that this node holds it.
    #[serde(default)]
    pub announced_as: String,
    /// It came from another node of the cluster.
    #[serde(default)]
    pub fetched: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Index {
    /// By manifest digest.
    pub(super) images: BTreeMap<String, ImageRecord>,
    /// Normalised reference (with a tag, or with the digest of a multi-platform index) to manifest digest.
    pub(super) names: BTreeMap<String, String>,
}

/// An image with its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredImage {
    pub names: Vec<String>,
    /// Of the manifest.
    pub digest: String,
    pub record: ImageRecord,
}

impl StoredImage {
    /// The names that are left when this one goes: a name by digest goes with the last tag of its repository.
    pub(crate) fn names_without(&self, gone: &str) -> Vec<String> {
        let left = || self.names.iter().filter(|name| *name != gone);
        let has_tag = |of: &str| left().any(|name| pinned(name).is_none() && repository(name) == repository(of));
        let lost_its_tag =
            |name: &str| pinned(name).is_some() && repository(name) == repository(gone) && !has_tag(name);
        left().filter(|name| pinned(gone).is_some() || !lost_its_tag(name)).cloned().collect()
    }

    /// Whether what this name means can be had again: from the name's registry, or from another node.
    pub(crate) fn is_elsewhere(&self, name: &str) -> bool {
        let of = repository(name);
        self.record.fetched || self.names.iter().any(|name| pinned(name).is_some() && repository(name) == of)
    }
}

fn repository(name: &str) -> String {
    Reference::parse(name).map(|reference| reference.name()).unwrap_or_default()
}

pub(super) fn read_index(path: &Path) -> io::Result<Index> {
    let text = aside::read(path)?;
    // Also an end that comes too early is damage.
    serde_json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

impl Index {
    /// By the digest of its manifest, or of an index that it was chosen from.
    pub(super) fn stored(&self, digest: &str) -> Option<StoredImage> {
        let digest = match self.images.contains_key(digest) {
            true => digest,
            false => self.names.iter().find(|(name, _)| pinned(name) == Some(digest)).map(|(_, of)| of.as_str())?,
        };
        let record = self.images.get(digest)?.clone();
        let names = self.names.iter().filter(|(_, of)| *of == digest).map(|(name, _)| name.clone()).collect();
        Some(StoredImage { names, digest: digest.to_owned(), record })
    }

    /// All names of an image, or `only` one and what goes with it; those that it had.
    pub(super) fn take_names(&mut self, digest: &str, only: Option<&str>) -> Vec<String> {
        let kept = match (only, self.stored(digest)) {
            (Some(only), Some(image)) => image.names_without(only),
            _ => Vec::new(),
        };
        let mut taken = Vec::new();
        self.names.retain(|name, of| {
            let goes = of == digest && !kept.contains(name);
            if goes {
                taken.push(name.clone());
            }
            !goes
        });
        taken
    }
}

/// The digest in a name that has one.
pub(crate) fn pinned(name: &str) -> Option<&str> {
    name.split_once('@').map(|(_, digest)| digest)
}
