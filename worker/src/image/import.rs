//! `orch image import`: a root filesystem tar becomes an image of one layer.

use std::{fs::File, io::Read};

use serde_json::json;

use super::{
    change::{self, ChangeError},
    config::{History, ImageConfig, RootFs},
    store::{ImageStore, StoreError, StoredImage},
    unpack::{Compression, LayerFacts},
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("the file holds no root filesystem: it is empty")]
    Empty,
    #[error("store the image")]
    Store(#[from] StoreError),
    #[error("encode the image's configuration")]
    Encode(#[from] serde_json::Error),
    #[error("read the layer")]
    Read(#[source] std::io::Error),
}

/// Checks instructions before anything is uploaded.
pub(crate) fn configuration(changes: &[String]) -> Result<ImageConfig, ImportError> {
    let mut image =
        ImageConfig { architecture: architecture().to_owned(), os: "linux".to_owned(), ..Default::default() };
    for change in changes {
        change::apply(&mut image.config, change)?;
    }
    if image.config.env.iter().all(|entry| !entry.starts_with("PATH=")) {
        image.config.env.insert(0, DEFAULT_PATH.to_owned());
    }
    Ok(image)
}

/// Makes the image of a layer blob that is in the store already. The name is the caller's business. It is as old as the
/// newest file in it.
pub(crate) fn import(
    store: &ImageStore,
    layer: &str,
    mut config: ImageConfig,
    message: &str,
) -> Result<StoredImage, ImportError> {
    let (layer_type, layer_bytes) = layer_media_type(store, layer)?;
    let LayerFacts { diff_id, modified_at } = store.unpack_new(layer)?;
    // Docker would say now. Then one archive gave another image on each node, and the cluster would ask which of them the
    // name means: the same bytes have to give the same digest.
    let created = jiff::Timestamp::from_second(modified_at).ok().map(|at| at.to_string());
    config.created.clone_from(&created);
    config.rootfs = RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id] };
    let comment = if message.is_empty() { "Imported from -".to_owned() } else { message.to_owned() };
    config.history = vec![History { created, comment, ..Default::default() }];
    let config_bytes = serde_json::to_vec(&config)?;
    let config_digest = store.put_bytes(&config_bytes, None)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest,
            "size": config_bytes.len(),
        },
        "layers": [{ "mediaType": layer_type, "digest": layer, "size": layer_bytes }],
    });
    let manifest_digest = store.put_bytes(&serde_json::to_vec(&manifest)?, None)?;
    Ok(store.add_image(&manifest_digest)?)
}

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The platform's name in image configurations (Go's).
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn layer_media_type(store: &ImageStore, layer: &str) -> Result<(&'static str, u64), ImportError> {
    let path = store.blob_path(layer)?;
    let bytes = std::fs::metadata(path).map_err(ImportError::Read)?.len();
    if bytes == 0 {
        return Err(ImportError::Empty);
    }
    Ok((layer_type(store, layer).map_err(ImportError::Read)?, bytes))
}

/// By how the layer begins.
pub(super) fn layer_type(store: &ImageStore, layer: &str) -> std::io::Result<&'static str> {
    let mut file = File::open(store.blob_path(layer).map_err(std::io::Error::other)?)?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic)?;
    Ok(match Compression::of(&magic) {
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files, and when each was modified.
    fn tar_of(files: &[(&str, u64)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, modified_at) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(*modified_at);
            tar.append_data(&mut header, name, &b"#!"[..]).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn one_tar_is_one_image_on_every_node_as_old_as_its_newest_file() {
        let cases = [
            (&[("a", 1_600_000_000), ("b", 1_700_000_000), ("c", 0)][..], Some("2023-11-14T22:13:20Z")),
            (&[("a", 0)], Some("1970-01-01T00:00:00Z")),
            // In no year that a calendar has.
            (&[("a", u64::MAX >> 20)], None),
        ];
        for (files, expected) in cases {
            let imported = [(), ()].map(|()| {
                let dir = tempfile::tempdir().unwrap();
                let store = ImageStore::open(dir.path()).unwrap();
                let layer = store.put_bytes(&tar_of(files), None).unwrap();
                let image = import(&store, &layer, configuration(&[]).unwrap(), "").unwrap();
                (image.digest, store.config(&image.record.config).unwrap().created)
            });
            assert_eq!(imported[0].1.as_deref(), expected, "{files:?}");
            assert_eq!(imported[0], imported[1], "{files:?}");
        }
    }

    #[test]
    fn an_imported_tar_is_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let layer = store.put_bytes(&tar_of(&[("./bin/sh", 0)]), None).unwrap();
        let config = configuration(&["CMD [\"/bin/sh\"]".to_owned()]).unwrap();
        let image = import(&store, &layer, config, "").unwrap();
        let config = store.config(&image.record.config).unwrap();
        assert_eq!(config.config.cmd, ["/bin/sh"]);
        assert_eq!(config.config.env, [DEFAULT_PATH]);
        assert_eq!(std::fs::read(store.layer_path(&image.record.diff_ids[0]).unwrap().join("bin/sh")).unwrap(), b"#!");
        assert_eq!(image.record.size_bytes, store.list()[0].record.size_bytes);

        let reference = super::super::reference::Reference::parse("web").unwrap();
        store.set_name(&reference, &image.digest).unwrap();
        let reopened = ImageStore::open(dir.path()).unwrap();
        for text in ["web", "docker.io/library/web:latest", &image.record.config, &image.record.config[7..19]] {
            assert_eq!(reopened.find(text).map(|found| found.digest), Some(image.digest.clone()), "{text}");
        }
        let removed = reopened.remove(&image.digest, None).unwrap();
        assert_eq!(removed.untagged, ["docker.io/library/web:latest"]);
        assert!(reopened.find("web").is_none());
        assert_eq!(std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
    }

    #[test]
    fn an_empty_file_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let layer = store.put_bytes(b"", None).unwrap();
        let imported = import(&store, &layer, ImageConfig::default(), "");
        assert!(matches!(imported, Err(ImportError::Empty)));
    }
}
