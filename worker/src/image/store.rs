//! The node's images: blobs by digest, unpacked layers by diff id, and an index of names.
//!
//! Layout of the folder: `blobs/sha256/<hex>`, `layers/<hex of the diff id>/`, `ingest/` for what is being written,
//! `partial/<hex>` for what broke off, `index.json` and its copy. An index that is damaged or lost is put aside and made again
//! from the copy and from what is there: containers run on these layers. Invariants: a blob or layer is there completely or not at all (written aside, checked, synced,
//! renamed); an image is in the index only when all its blobs and layers are there; no path is made from a digest that
//! [`is_digest`] has not seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use oci_client::manifest::OciImageManifest;
use orch_model::node::Platform;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    config::ImageConfig,
    partial::{self, Partial},
    reference::{Reference, is_digest},
    room::Room,
    unpack::{LayerFacts, UnpackError, unpack_layer},
};
use crate::store::aside;

/// Largest manifest or configuration that is read into memory.
pub(crate) const MAX_METADATA_BYTES: u64 = 8 << 20;
/// What is read at once of a layer that is gone on with.
const TAKE_UP_BYTES: usize = 256 << 10;
/// Shortest prefix of an image id that is looked up.
const MIN_ID_PREFIX: usize = 3;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{action} {path:?}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0:?} is not a digest (sha256: and 64 hex digits)")]
    NotADigest(String),
    #[error("the content of {expected} has the digest {actual}: it was damaged or forged on the way")]
    DigestMismatch { expected: String, actual: String },
    #[error("layer {blob} unpacks to {actual}, but the image's configuration says {expected}")]
    DiffId { blob: String, expected: String, actual: String },
    #[error("blob {0} is not on this node")]
    NoBlob(String),
    #[error("blob {digest} is {bytes} bytes, more than a manifest or configuration may have")]
    TooLarge { digest: String, bytes: u64 },
    #[error("read {what} {digest}")]
    Json {
        what: &'static str,
        digest: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("image {0} has another number of layers in its manifest than in its configuration")]
    LayerCount(String),
    #[error("unpack layer {digest}")]
    Unpack {
        digest: String,
        #[source]
        source: UnpackError,
    },
    #[error("blob {digest} is longer than the {bytes} bytes that its manifest says")]
    TooLong { digest: String, bytes: u64 },
    #[error("unpacking was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

type Result<T, E = StoreError> = std::result::Result<T, E>;

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

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
struct Index {
    /// By manifest digest.
    images: BTreeMap<String, ImageRecord>,
    /// Normalised reference (with a tag, or with the digest of a multi-platform index) to manifest digest.
    names: BTreeMap<String, String>,
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
        let repository = |name: &str| Reference::parse(name).map(|reference| reference.name()).unwrap_or_default();
        let has_tag = |of: &str| left().any(|name| pinned(name).is_none() && repository(name) == repository(of));
        let lost_its_tag =
            |name: &str| pinned(name).is_some() && repository(name) == repository(gone) && !has_tag(name);
        left().filter(|name| pinned(gone).is_some() || !lost_its_tag(name)).cloned().collect()
    }
}

/// What [`ImageStore::remove`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    pub untagged: Vec<String>,
    pub deleted: Vec<String>,
}

/// Clones share the index.
#[derive(Clone)]
pub(crate) struct ImageStore {
    dir: PathBuf,
    index: Arc<Mutex<Index>>,
    /// How many pulls and imports are under way: their blobs are in no image yet and must not be swept.
    arriving: Arc<AtomicUsize>,
    /// Taken while a layer is unpacked, so that images which share it do not unpack it twice.
    unpacking: Arc<Mutex<()>>,
}

impl ImageStore {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let ingest = dir.join("ingest");
        // What a crash left half written.
        if ingest.is_dir() {
            fs::remove_dir_all(&ingest).map_err(io_error("empty", &ingest))?;
        }
        let partial = dir.join("partial");
        for folder in [&dir.join("blobs/sha256"), &dir.join("layers"), &ingest, &partial] {
            aside::make_folder(folder).map_err(io_error("create", folder))?;
        }
        partial::clean(&partial, SystemTime::now(), partial::KEPT_FOR).map_err(io_error("clean", &partial))?;
        let path = dir.join("index.json");
        let (index, is_whole) = match read_index(&path) {
            Ok(index) => (index, true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (Index::default(), is_empty(&dir.join("layers"))),
            Err(e) if aside::is_damage(&e) => {
                aside::put_aside(&path, &e).map_err(io_error("put aside", &path))?;
                (Index::default(), false)
            }
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        let store = Self {
            dir: dir.to_owned(),
            index: Arc::new(Mutex::new(index)),
            arriving: Arc::default(),
            unpacking: Arc::default(),
        };
        if !is_whole {
            store.rebuild()?;
        }
        Ok(store)
    }

    /// The index was lost: names come from its copy, images from what is here of them.
    fn rebuild(&self) -> Result<()> {
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
                tracing::warn!(digest, error = super::chain(&error), "an image is not taken up again");
            }
        }
        let index = self.lock();
        // On a full disk it is made again at the next start too.
        if let Err(error) = self.save(&index) {
            tracing::warn!(error = super::chain(&error), "the index of images is not saved");
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

    fn copy_path(&self) -> PathBuf {
        self.dir.join("index.json").with_extension("copy")
    }

    /// Keeps blobs of no image from being swept until dropped.
    pub(crate) fn arriving(&self) -> Arriving {
        // Never in the middle of a sweep, which holds the index: what is found here stays.
        let _index = self.lock();
        self.arriving.fetch_add(1, Ordering::SeqCst);
        Arriving(self.arriving.clone())
    }

    /// While it is so, removing images makes no room.
    pub(crate) fn is_arriving(&self) -> bool {
        self.arriving.load(Ordering::SeqCst) > 0
    }

    /// Whether so much more fits.
    pub(crate) fn check_room(&self, bytes: u64) -> Result<()> {
        let folder = File::open(&self.dir).map_err(io_error("open", &self.dir))?;
        Room::check(&folder, bytes).map_err(io_error("store an image in", &self.dir))
    }

    /// Starts a blob of unknown digest.
    pub(crate) fn blob_writer(&self) -> Result<BlobWriter> {
        let ingest = self.dir.join("ingest");
        let file = tempfile::NamedTempFile::new_in(&ingest).map_err(io_error("create a file in", &ingest))?;
        Ok(BlobWriter {
            store: self.clone(),
            aside: Aside::Temporary(file),
            hash: Sha256::new(),
            bytes: 0,
            room: Room::default(),
        })
    }

    /// Goes on with a layer: what an earlier try has left of it is there, but not [taken up](BlobWriter::take_up) yet.
    pub(super) fn layer_writer(&self, digest: &str) -> Result<BlobWriter> {
        let folder = self.partial_dir();
        let partial = Partial::take(&folder, hex_of(digest)?).map_err(io_error("go on with a layer in", &folder))?;
        let Some(partial) = partial else { return self.blob_writer() };
        Ok(BlobWriter {
            store: self.clone(),
            aside: Aside::Partial(partial),
            hash: Sha256::new(),
            bytes: 0,
            room: Room::default(),
        })
    }

    /// Bytes that an earlier try has left of a layer.
    pub(super) fn partial_bytes(&self, digest: &str) -> u64 {
        hex_of(digest).map_or(0, |hex| partial::bytes(&self.partial_dir(), hex))
    }

    /// Deletes what broke off and was not gone on with for so long.
    pub(crate) fn forget_partials(&self, age: Duration) -> Result<()> {
        let folder = self.partial_dir();
        partial::clean(&folder, SystemTime::now(), age).map_err(io_error("clean", &folder))
    }

    fn partial_dir(&self) -> PathBuf {
        self.dir.join("partial")
    }

    pub(crate) fn put_bytes(&self, bytes: &[u8], expected: Option<&str>) -> Result<String> {
        let mut writer = self.blob_writer()?;
        writer.append(bytes)?;
        writer.commit(expected)
    }

    pub(crate) fn has_blob(&self, digest: &str) -> bool {
        self.blob_path(digest).is_ok_and(|path| path.exists())
    }

    pub(crate) fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        Ok(self.dir.join("blobs/sha256").join(hex_of(digest)?))
    }

    pub(crate) fn layer_path(&self, diff_id: &str) -> Result<PathBuf> {
        Ok(self.dir.join("layers").join(hex_of(diff_id)?))
    }

    /// A file that is gone when it is closed, for what is on its way.
    pub(crate) fn scratch(&self) -> Result<File> {
        let ingest = self.dir.join("ingest");
        tempfile::tempfile_in(&ingest).map_err(io_error("create a file in", &ingest))
    }

    /// Compressed sizes of an image's layers, bottom first.
    pub(crate) fn layer_sizes(&self, record: &ImageRecord) -> Vec<u64> {
        record.layers.iter().map(|layer| self.blob_bytes(layer)).collect()
    }

    /// Zero when it is not here.
    pub(crate) fn blob_bytes(&self, digest: &str) -> u64 {
        self.size_of([digest].into_iter()).unwrap_or(0)
    }

    /// A manifest or configuration, whole.
    pub(crate) fn read_blob(&self, digest: &str) -> Result<Vec<u8>> {
        let path = self.blob_path(digest)?;
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(StoreError::NoBlob(digest.to_owned())),
            opened => opened.map_err(io_error("open", &path))?,
        };
        let bytes = file.metadata().map_err(io_error("read", &path))?.len();
        if bytes > MAX_METADATA_BYTES {
            return Err(StoreError::TooLarge { digest: digest.to_owned(), bytes });
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(io_error("read", &path))?;
        Ok(content)
    }

    pub(crate) fn manifest(&self, digest: &str) -> Result<OciImageManifest> {
        self.json("manifest", digest)
    }

    pub(crate) fn config(&self, digest: &str) -> Result<ImageConfig> {
        self.json("image configuration", digest)
    }

    /// Of the image with this manifest; `None` when it is not here any more.
    pub(crate) fn config_of(&self, manifest: &str) -> Option<ImageConfig> {
        self.config(&self.by_digest(manifest)?.record.config).ok()
    }

    /// Unpacks the layers of an image whose blobs are all here, and puts it into the index.
    pub(crate) fn add_image(&self, digest: &str) -> Result<StoredImage> {
        let manifest = self.manifest(digest)?;
        let config = self.config(&manifest.config.digest)?;
        let diff_ids = config.rootfs.diff_ids.clone();
        if diff_ids.len() != manifest.layers.len() {
            return Err(StoreError::LayerCount(digest.to_owned()));
        }
        for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
            self.unpack(&layer.digest, diff_id)?;
        }
        let layers: Vec<String> = manifest.layers.into_iter().map(|layer| layer.digest).collect();
        let mut record = ImageRecord {
            size_bytes: self
                .size_of([digest, &manifest.config.digest].into_iter().chain(layers.iter().map(String::as_str)))?,
            config: manifest.config.digest,
            layers,
            diff_ids,
            created_at_ms: config.created_at_ms(),
            announced_as: String::new(),
            fetched: false,
        };
        let mut index = self.lock();
        if let Some(have) = index.images.get(digest) {
            record.announced_as = have.announced_as.clone();
            record.fetched = have.fetched;
        }
        index.images.insert(digest.to_owned(), record);
        self.save(&index)?;
        index.stored(digest).ok_or_else(|| StoreError::NoBlob(digest.to_owned()))
    }

    /// What the image runs on; `None` when its configuration does not say.
    pub(crate) fn platform(&self, image: &StoredImage) -> Option<Platform> {
        let config = self.config(&image.record.config).ok()?;
        let known = !config.os.is_empty() && !config.architecture.is_empty();
        known.then_some(Platform { os: config.os, arch: config.architecture })
    }

    /// Makes `name` mean the image.
    pub(crate) fn set_name(&self, name: &Reference, digest: &str) -> Result<()> {
        let mut index = self.lock();
        let is_new = index.names.insert(name.to_string(), digest.to_owned()).is_none();
        // What other nodes may ask this one for has changed.
        if let Some(record) = index.images.get_mut(digest).filter(|_| is_new && name.digest.is_some()) {
            record.announced_as.clear();
        }
        self.save(&index)
    }

    pub(crate) fn set_announced(&self, digest: &str, announced_as: &str) -> Result<()> {
        let mut index = self.lock();
        match index.images.get_mut(digest) {
            Some(record) if record.announced_as != announced_as => record.announced_as = announced_as.to_owned(),
            _ => return Ok(()),
        }
        self.save(&index)
    }

    /// The image is on another node as well; one that was here before stays what it was.
    pub(crate) fn set_fetched(&self, digest: &str) -> Result<()> {
        let mut index = self.lock();
        if let Some(record) = index.images.get_mut(digest) {
            record.fetched = true;
        }
        self.save(&index)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn list(&self) -> Vec<StoredImage> {
        let index = self.lock();
        index.images.keys().filter_map(|digest| index.stored(digest)).collect()
    }

    pub(crate) fn by_digest(&self, digest: &str) -> Option<StoredImage> {
        self.lock().stored(digest)
    }

    /// What exactly this name means here.
    pub(crate) fn find_name(&self, name: &Reference) -> Option<StoredImage> {
        let index = self.lock();
        index.stored(index.names.get(&name.to_string())?)
    }

    /// Finds an image by name, by name and digest, or by (a prefix of) its id as `image ls` shows it.
    pub(crate) fn find(&self, text: &str) -> Option<StoredImage> {
        let index = self.lock();
        if let Ok(reference) = Reference::parse(text) {
            if let Some(digest) = &reference.digest {
                let untagged = Reference { tag: None, ..reference.clone() }.to_string();
                return index.stored(digest).or_else(|| index.stored(index.names.get(&untagged)?));
            }
            if let Some(found) = index.names.get(&reference.to_string()).and_then(|digest| index.stored(digest)) {
                return Some(found);
            }
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.len() < MIN_ID_PREFIX || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let is_match = |digest: &str| digest.strip_prefix("sha256:").is_some_and(|hex| hex.starts_with(prefix));
        let matches: Vec<_> =
            index.images.iter().filter(|(digest, record)| is_match(&record.config) || is_match(digest)).collect();
        let (_, first) = matches.first()?;
        // The same image may be here in two manifests, packed once and plain once: they are one id, and run alike.
        if matches.iter().any(|(_, record)| record.config != first.config) {
            return None;
        }
        let is_named = |digest: &str| index.names.values().any(|of| of == digest);
        let best = matches.iter().find(|(digest, _)| is_named(digest)).or(matches.first())?;
        index.stored(best.0)
    }

    /// Takes away names of an image; without names left, the image goes too, with the blobs and layers that no other
    /// image has. With `only`, just that name.
    ///
    /// Deleting takes as long as the image has files: not for a thread that others wait for.
    pub(crate) fn remove(&self, digest: &str, only: Option<&str>) -> Result<Removed> {
        let gone = self.gone()?;
        let mut index = self.lock();
        let mut removed = Removed::default();
        let kept = match (only, index.stored(digest)) {
            (Some(only), Some(image)) => image.names_without(only),
            _ => Vec::new(),
        };
        index.names.retain(|name, of| {
            let goes = of == digest && !kept.contains(name);
            if goes {
                removed.untagged.push(name.clone());
            }
            !goes
        });
        if !index.names.values().any(|of| of == digest) {
            index.images.remove(digest);
            removed.deleted.push(digest.to_owned());
        }
        self.save(&index)?;
        removed.deleted.extend(self.sweep(&index, gone.path(), Duration::ZERO)?);
        drop(index);
        gone.close().map_err(io_error("delete what was removed from", &self.dir))?;
        Ok(removed)
    }

    /// Deletes what no image has and nobody has written to for `age`: what is left of transfers that failed, and of
    /// images that were removed while something arrived.
    pub(crate) fn sweep_left(&self, age: Duration) -> Result<()> {
        let gone = self.gone()?;
        let index = self.lock();
        let _ = self.sweep(&index, gone.path(), age)?;
        drop(index);
        gone.close().map_err(io_error("delete what was left in", &self.dir))
    }

    /// What goes leaves its place first, so that nobody waits for the index meanwhile.
    fn gone(&self) -> Result<tempfile::TempDir> {
        let ingest = self.dir.join("ingest");
        let gone = tempfile::Builder::new().prefix("gone-").tempdir_in(&ingest);
        gone.map_err(io_error("create a folder in", &ingest))
    }

    fn json<T: for<'a> Deserialize<'a>>(&self, what: &'static str, digest: &str) -> Result<T> {
        let bytes = self.read_blob(digest)?;
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Json { what, digest: digest.to_owned(), source })
    }

    fn unpack(&self, blob: &str, diff_id: &str) -> Result<()> {
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
    pub(super) fn unpack_aside(&self, blob: &str, packed: impl Read) -> Result<UnpackedLayer> {
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

    fn size_of<'a>(&self, digests: impl Iterator<Item = &'a str>) -> Result<u64> {
        let mut total = 0;
        for digest in digests {
            let path = self.blob_path(digest)?;
            total += fs::metadata(&path).map_err(io_error("read the size of", &path))?.len();
        }
        Ok(total)
    }

    /// Moves what no image of the index uses, and was not changed for `age`, to `gone`; left to the next sweep while
    /// something arrives.
    fn sweep(&self, index: &Index, gone: &Path, age: Duration) -> Result<Vec<String>> {
        if self.is_arriving() {
            return Ok(Vec::new());
        }
        let now = SystemTime::now();
        let mut blobs = BTreeSet::new();
        let mut layers = BTreeSet::new();
        for index in index.names.keys().filter_map(|name| pinned(name)) {
            blobs.insert(hex_of(index)?.to_owned());
        }
        for (digest, record) in &index.images {
            for used in [digest, &record.config].into_iter().chain(&record.layers) {
                blobs.insert(hex_of(used)?.to_owned());
            }
            for diff_id in &record.diff_ids {
                layers.insert(hex_of(diff_id)?.to_owned());
            }
        }
        let mut deleted = Vec::new();
        for (kind, used) in [("layers", &layers), ("blobs/sha256", &blobs)] {
            let folder = self.dir.join(kind);
            for entry in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
                let entry = entry.map_err(io_error("list", &folder))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_young = || entry.metadata().is_ok_and(|found| changed_since(&found, now) < age);
                if used.contains(&name) || (!age.is_zero() && is_young()) {
                    continue;
                }
                let path = entry.path();
                // A blob that is not packed has the name of its layer.
                let to = if kind == "layers" { format!("layer-{name}") } else { name.clone() };
                fs::rename(&path, gone.join(to)).map_err(io_error("delete", &path))?;
                if kind == "layers" {
                    deleted.push(format!("sha256:{name}"));
                }
            }
        }
        Ok(deleted)
    }

    fn save(&self, index: &Index) -> Result<()> {
        let path = self.dir.join("index.json");
        let text = serde_json::to_vec_pretty(index).map_err(|source| StoreError::Json {
            what: "the index of images",
            digest: path.display().to_string(),
            source,
        })?;
        crate::store::write_atomically(&path, &text).map_err(io_error("write", &path))?;
        crate::store::keep_copy(&path, &text);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // The index is changed as a whole and saved before it is used; a panic elsewhere leaves it valid.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_index(path: &Path) -> io::Result<Index> {
    let text = aside::read(path)?;
    // Also an end that comes too early is damage.
    serde_json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A folder that cannot be looked into is full of what somebody may need.
fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn digest_of(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

impl Index {
    /// By the digest of its manifest, or of an index that it was chosen from.
    fn stored(&self, digest: &str) -> Option<StoredImage> {
        let digest = match self.images.contains_key(digest) {
            true => digest,
            false => self.names.iter().find(|(name, _)| pinned(name) == Some(digest)).map(|(_, of)| of.as_str())?,
        };
        let record = self.images.get(digest)?.clone();
        let names = self.names.iter().filter(|(_, of)| *of == digest).map(|(name, _)| name.clone()).collect();
        Some(StoredImage { names, digest: digest.to_owned(), record })
    }
}

/// The digest in a name that has one.
pub(crate) fn pinned(name: &str) -> Option<&str> {
    name.split_once('@').map(|(_, digest)| digest)
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

/// See [`ImageStore::arriving`].
pub(crate) struct Arriving(Arc<AtomicUsize>);

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A blob on its way into the store; dropped, it leaves nothing, or what the next try begins with.
pub(crate) struct BlobWriter {
    store: ImageStore,
    aside: Aside,
    hash: Sha256,
    /// That went into the hash.
    bytes: u64,
    room: Room,
}

/// Where a blob is written.
enum Aside {
    Temporary(tempfile::NamedTempFile),
    Partial(Partial),
}

impl BlobWriter {
    pub(crate) fn append(&mut self, data: &[u8]) -> Result<()> {
        let file = match &self.aside {
            Aside::Temporary(file) => file.as_file(),
            Aside::Partial(partial) => partial.file(),
        };
        self.room.write(file, data.len()).map_err(io_error("write", &self.store.dir))?;
        self.file().write_all(data).map_err(io_error("write", self.path()))?;
        self.hash.update(data);
        self.bytes += data.len() as u64;
        Ok(())
    }

    /// The next piece of what was there before; `None` when all of it has been taken up.
    pub(super) fn take_up(&mut self) -> Result<Option<Vec<u8>>> {
        let Aside::Partial(partial) = &self.aside else { return Ok(None) };
        let mut piece = Vec::with_capacity(TAKE_UP_BYTES);
        let read = partial.file().take(TAKE_UP_BYTES as u64).read_to_end(&mut piece);
        if read.map_err(io_error("read", partial.path()))? == 0 {
            return Ok(None);
        }
        self.hash.update(&piece);
        self.bytes += piece.len() as u64;
        Ok(Some(piece))
    }

    /// The next try begins anew.
    pub(super) fn spoil(&mut self) {
        if let Aside::Partial(partial) = &mut self.aside {
            partial.spoil();
        }
    }

    /// Checks the digest, when one is expected, and makes the blob part of the store.
    pub(crate) fn commit(mut self, expected: Option<&str>) -> Result<String> {
        let actual = format!("sha256:{}", hex::encode(self.hash.clone().finalize()));
        if let Some(expected) = expected
            && expected != actual
        {
            self.spoil();
            return Err(StoreError::DigestMismatch { expected: expected.to_owned(), actual });
        }
        let path = self.store.blob_path(&actual)?;
        let length = self.file().metadata().map_err(io_error("read the size of", &path))?.len();
        if length != self.bytes {
            self.spoil();
            let other = io::Error::other(format!("{length} bytes are there, {} were written", self.bytes));
            return Err(io_error("store", &path)(other));
        }
        self.file().sync_all().map_err(io_error("sync", &path))?;
        let persisted = match self.aside {
            Aside::Temporary(file) => file.persist(&path).map(drop).map_err(|error| error.error),
            Aside::Partial(partial) => partial.persist(&path),
        };
        persisted.map_err(io_error("rename a blob to", &path))?;
        Ok(actual)
    }

    fn file(&self) -> &File {
        match &self.aside {
            Aside::Temporary(file) => file.as_file(),
            Aside::Partial(partial) => partial.file(),
        }
    }

    fn path(&self) -> &Path {
        match &self.aside {
            Aside::Temporary(file) => file.path(),
            Aside::Partial(partial) => partial.path(),
        }
    }
}

/// A layer's folder says of itself that it was modified when its image says so: only the kernel's own time counts. A
/// clock that went back makes it young.
fn changed_since(found: &fs::Metadata, now: SystemTime) -> Duration {
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(found.ctime()).unwrap_or(0));
    now.duration_since(changed).unwrap_or(Duration::ZERO)
}

fn hex_of(digest: &str) -> Result<&str> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if is_digest(digest) => Ok(hex),
        _ => Err(StoreError::NotADigest(digest.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_with_another_content_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let wrong = format!("sha256:{}", "0".repeat(64));
        assert!(matches!(store.put_bytes(b"x", Some(&wrong)), Err(StoreError::DigestMismatch { .. })));
        assert!(!store.has_blob(&wrong));
        assert_eq!(fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
        let digest = store.put_bytes(b"x", None).unwrap();
        assert_eq!(store.read_blob(&digest).unwrap(), b"x");
    }

    /// An image of no layers with this configuration; `salt` makes another manifest.
    fn empty_image(store: &ImageStore, config: &str, salt: &str) -> String {
        let digest = store.put_bytes(config.as_bytes(), None).unwrap();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {"mediaType": "x", "digest": digest, "size": config.len()},
            "layers": [],
            "annotations": {"salt": salt},
        });
        let digest = store.put_bytes(manifest.to_string().as_bytes(), None).unwrap();
        store.add_image(&digest).unwrap().digest
    }

    const CONFIG: &str = r#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;

    #[test]
    fn what_no_image_has_goes_once_nothing_arrives_and_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let image = empty_image(&store, CONFIG, "");
        let left = store.put_bytes(b"left by a pull that failed", None).unwrap();
        let arriving = store.arriving();
        let _ = store.remove(&image, None).unwrap();
        store.sweep_left(Duration::ZERO).unwrap();
        assert!(store.is_arriving() && store.has_blob(&image) && store.has_blob(&left), "taken from what arrives");
        drop(arriving);
        store.sweep_left(Duration::from_secs(3600)).unwrap();
        assert!(!store.is_arriving() && store.has_blob(&image) && store.has_blob(&left), "too young");
        store.sweep_left(Duration::ZERO).unwrap();
        assert!(!store.has_blob(&image) && !store.has_blob(&left));
    }

    #[test]
    fn an_id_that_is_listed_is_found_also_when_two_manifests_have_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let (one, two) = (empty_image(&store, CONFIG, "1"), empty_image(&store, CONFIG, "2"));
        let other = empty_image(&store, &CONFIG.replace("amd64", "arm64"), "1");
        let id = store.by_digest(&one).unwrap().record.config;
        assert_eq!(store.by_digest(&two).unwrap().record.config, id);
        let hex = id.strip_prefix("sha256:").unwrap();
        store.set_name(&Reference::parse("web").unwrap(), &two).unwrap();
        for text in [id.as_str(), hex, &hex[..12], &hex[..MIN_ID_PREFIX]] {
            assert_eq!(store.find(text).map(|image| image.digest).as_ref(), Some(&two), "{text}");
        }
        let _ = store.remove(&two, None).unwrap();
        assert_eq!(store.find(hex).map(|image| image.digest), Some(one));
        assert!(store.find("").is_none() && store.find(&hex[..2]).is_none());
        assert_eq!(store.find(&other).map(|image| image.digest), Some(other));
    }

    /// An image of one layer.
    fn small_image(store: &ImageStore) -> StoredImage {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(1);
        tar.append_data(&mut header, "file", &b"x"[..]).unwrap();
        let layer = store.put_bytes(&tar.into_inner().unwrap(), None).unwrap();
        let image = crate::image::import::import(store, &layer, ImageConfig::default(), "").unwrap();
        store.set_name(&Reference::parse("box").unwrap(), &image.digest).unwrap();
        store.by_digest(&image.digest).unwrap()
    }

    #[test]
    fn a_lost_index_is_made_again_and_takes_no_layer_along() {
        type Damage = (&'static str, fn(&Path));
        fn remove(path: &Path) {
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
        }
        let damages: [Damage; 5] = [
            ("empty", |path| fs::write(path, "").unwrap()),
            ("cut", |path| {
                let whole = fs::read(path).unwrap();
                fs::write(path, &whole[..whole.len() / 2]).unwrap();
            }),
            ("another", |path| fs::write(path, "{}").unwrap()),
            ("folder", |path| {
                remove(path);
                fs::create_dir(path).unwrap();
            }),
            ("gone", remove),
        ];
        for (what, damage) in damages {
            for copy_is_whole in [true, false] {
                let dir = tempfile::tempdir().unwrap();
                let store = ImageStore::open(dir.path()).unwrap();
                let image = small_image(&store);
                // Not all here, not what it is named after, and no image at all.
                let half = store.put_bytes(
                    br#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:0","size":1},"layers":[]}"#,
                    None,
                );
                let forged = store.blob_path(&format!("sha256:{}", "0".repeat(64))).unwrap();
                fs::copy(store.blob_path(&image.digest).unwrap(), forged).unwrap();
                drop(store);
                if !copy_is_whole {
                    damage(&dir.path().join("index.copy"));
                }
                damage(&dir.path().join("index.json"));
                for again in 0..2 {
                    let store = ImageStore::open(dir.path()).unwrap();
                    let found = store.list();
                    let names = if copy_is_whole { image.names.clone() } else { Vec::new() };
                    assert_eq!(found, [StoredImage { names, ..image.clone() }], "{what} {copy_is_whole} {again}");
                    store.sweep_left(Duration::ZERO).unwrap();
                    assert!(store.has_layer(&image.record.diff_ids[0]), "{what} {copy_is_whole} {again}");
                    assert!(!store.has_blob(half.as_ref().unwrap()));
                }
                let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
                let aside = names.filter(|name| name.to_string_lossy().starts_with("index.json.broken-")).count();
                assert_eq!(aside, usize::from(what != "gone"), "{what}");
            }
        }
    }

    #[test]
    fn a_digest_cannot_name_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        for digest in ["sha256:../../../etc/passwd", "sha512:00", "", "sha256:"] {
            assert!(matches!(store.blob_path(digest), Err(StoreError::NotADigest(_))), "{digest}");
        }
    }
}
