//! An index that was lost is made again from its copy and from what is there.

use std::{
    fs::{self, File},
    io::Read,
};

use oci_client::manifest::OciImageManifest;
use sha2::{Digest, Sha256};

use super::{
    ImageStore, Result,
    index::{ImageRecord, Index, read_index},
    io_error,
};
use crate::image::{chain, config::ImageConfig};

impl ImageStore {
    /// The index was lost: names come from its copy, images from what is here of them.
    pub(super) fn rebuild(&self) -> Result<()> {
        let mut copied = read_index(&self.copy_path()).unwrap_or_default();
        copied.images.retain(|digest, record| self.is_here(digest, record));
        let Index { images, names } = &mut copied;
        names.retain(|_, digest| images.contains_key(digest));
        let copied_count = images.len();
        *self.lock() = copied;
        let blobs = self.dir.join("blobs/sha256");
        for entry in fs::read_dir(&blobs).map_err(io_error("list", &blobs))? {
            let entry = entry.map_err(io_error("list", &blobs))?;
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
            let is_listed = self.lock().images.contains_key(&digest);
            if !is_listed
                && self.is_whole_image(&digest)
                && let Err(error) = self.add_image(&digest)
            {
                tracing::warn!(digest, error = chain(&error), "an image is not taken up again");
            }
        }
        let index = self.lock();
        // On a full disk it is made again at the next start too.
        if let Err(error) = self.save(&index) {
            tracing::warn!(error = chain(&error), "the index of images is not saved");
        }
        tracing::warn!(
            images = index.images.len(),
            named = copied_count,
            "the index of images was lost: made again. Images whose names are lost too are there by their ids, or are pulled again"
        );
        Ok(())
    }

    fn is_here(&self, digest: &str, record: &ImageRecord) -> bool {
        let mut blobs = [digest, &record.config].into_iter().chain(record.layers.iter().map(String::as_str));
        blobs.all(|blob| self.has_blob(blob)) && record.diff_ids.iter().all(|diff_id| self.has_layer(diff_id))
    }

    /// Whether it is a manifest of an image that is all here, unpacked. Anything else may lie among the blobs.
    fn is_whole_image(&self, digest: &str) -> bool {
        let whole = |digest: &str| self.read_blob(digest).ok().filter(|bytes| digest_of(bytes) == digest);
        let begins_as_json = || {
            let mut first = [0];
            let file = File::open(self.blob_path(digest).ok()?).ok()?;
            (&file).read_exact(&mut first).ok().map(|()| first == *b"{")
        };
        if begins_as_json() != Some(true) {
            return false;
        }
        let manifest = whole(digest).and_then(|bytes| serde_json::from_slice::<OciImageManifest>(&bytes).ok());
        let Some(manifest) = manifest else { return false };
        let config =
            whole(&manifest.config.digest).and_then(|bytes| serde_json::from_slice::<ImageConfig>(&bytes).ok());
        let Some(config) = config else { return false };
        let record = ImageRecord {
            config: manifest.config.digest,
            layers: manifest.layers.into_iter().map(|layer| layer.digest).collect(),
            diff_ids: config.rootfs.diff_ids,
            ..ImageRecord::default()
        };
        self.is_here(digest, &record)
    }
}

fn digest_of(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}
