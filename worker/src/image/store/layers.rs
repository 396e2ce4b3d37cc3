//! Layers, unpacked aside and made part of the store when they are whole.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use super::{ImageStore, Result, StoreError, io_error};
use crate::image::unpack::{LayerFacts, unpack_layer};

impl ImageStore {
    pub(super) fn unpack(&self, blob: &str, diff_id: &str) -> Result<()> {
        let _one_at_a_time = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let target = self.layer_path(diff_id)?;
        if target.exists() {
            return Ok(());
        }
        let path = self.blob_path(blob)?;
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let unpacked = self.unpack_aside(blob, file)?;
        if unpacked.facts.diff_id != diff_id {
            return Err(StoreError::DiffId {
                blob: blob.to_owned(),
                expected: diff_id.to_owned(),
                actual: unpacked.facts.diff_id,
            });
        }
        unpacked.publish(&target)
    }

    /// Unpacks a layer whose diff id is not known yet (an import); [`ImageStore::add_image`] finds it afterwards.
    pub(crate) fn unpack_new(&self, blob: &str) -> Result<LayerFacts> {
        let _one_at_a_time = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.blob_path(blob)?;
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let unpacked = self.unpack_aside(blob, file)?;
        let facts = unpacked.facts.clone();
        let target = self.layer_path(&facts.diff_id)?;
        if !target.exists() {
            unpacked.publish(&target)?;
        }
        Ok(facts)
    }

    /// Unpacks where nobody sees it.
    pub(in crate::image) fn unpack_aside(&self, blob: &str, packed: impl Read) -> Result<UnpackedLayer> {
        let ingest = self.dir.join("ingest");
        let dir = tempfile::Builder::new()
            .prefix("layer-")
            .tempdir_in(&ingest)
            .map_err(io_error("create a folder in", &ingest))?;
        let root = dir.path().join("fs");
        fs::create_dir(&root).map_err(io_error("create", &root))?;
        let facts =
            unpack_layer(packed, &root).map_err(|source| StoreError::Unpack { digest: blob.to_owned(), source })?;
        Ok(UnpackedLayer { _dir: dir, root, facts })
    }

    pub(crate) fn has_layer(&self, diff_id: &str) -> bool {
        self.layer_path(diff_id).is_ok_and(|path| path.exists())
    }

    /// Makes layers that were unpacked aside part of the store; each comes with its blob and the diff id that it must have.
    pub(crate) fn publish(&self, layers: Vec<(String, String, UnpackedLayer)>) -> Result<()> {
        let _one_at_a_time = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut synced = false;
        for (blob, expected, layer) in layers {
            if layer.facts.diff_id != expected {
                return Err(StoreError::DiffId { blob, expected, actual: layer.facts.diff_id });
            }
            let target = self.layer_path(&expected)?;
            if target.exists() {
                continue;
            }
            if !synced {
                // One sync is for all of them, they are on one file system.
                layer.sync()?;
                synced = true;
            }
            fs::rename(&layer.root, &target).map_err(io_error("rename a layer to", &target))?;
        }
        Ok(())
    }
}

/// A layer that is complete and not part of the store.
pub(crate) struct UnpackedLayer {
    /// Deletes what is left when the layer is not published.
    _dir: tempfile::TempDir,
    root: PathBuf,
    facts: LayerFacts,
}

impl UnpackedLayer {
    /// Synced first: after a power cut, a layer that has its name is whole.
    fn publish(self, target: &Path) -> Result<()> {
        self.sync()?;
        fs::rename(&self.root, target).map_err(io_error("rename a layer to", target))
    }

    fn sync(&self) -> Result<()> {
        let folder = File::open(&self.root).map_err(io_error("open", &self.root))?;
        rustix::fs::syncfs(&folder).map_err(|e| io_error("sync", &self.root)(e.into()))
    }
}
