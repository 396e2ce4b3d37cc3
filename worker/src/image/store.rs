//! The node's images: blobs by digest, unpacked layers by diff id, and an index of names.
//!
//! Layout of the folder: `blobs/sha256/<hex>`, `layers/<hex of the diff id>/`, `ingest/` for what is being written,
//! `partial/<hex>` for what broke off, `index.json` and its copy. An index that is damaged or lost is put aside and made again
//! from the copy and from what is there: containers run on these layers. Invariants: a blob or layer is there completely or
//! not at all (written aside, checked, synced, renamed); an image is in the index only when all its blobs and layers are
//! there; no path is made from a digest that [`is_digest`] has not seen.

mod index;
mod layers;
mod rebuild;
mod writer;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
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
use serde::Deserialize;

use self::index::{Index, read_index};
pub(crate) use self::{
    index::{ImageRecord, StoredImage, pinned},
    layers::UnpackedLayer,
    writer::BlobWriter,
};
use super::{
    config::ImageConfig,
    partial,
    reference::{Reference, is_digest},
    room::Room,
    unpack::UnpackError,
};
use crate::store::aside;

/// Largest manifest or configuration that is read into memory.
pub(crate) const MAX_METADATA_BYTES: u64 = 8 << 20;
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

/// What [`ImageStore::remove`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    pub untagged: Vec<String>,
    pub deleted: Vec<String>,
}

/// Who wanted an image that was brought here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    User,
    /// The cluster says what its tag means.
    Task,
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
    /// How much has left its place to be deleted.
    left: Arc<AtomicUsize>,
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
            left: Arc::default(),
        };
        if is_whole {
            store.drop_removed();
        } else {
            store.rebuild()?;
        }
        Ok(store)
    }

    /// A full disk may have kept the index from being written when images went: see [`Self::remove`].
    fn drop_removed(&self) {
        let mut index = self.lock();
        let Index { images, names } = &mut *index;
        images.retain(|digest, record| self.has_blob(digest) || self.can_run(record));
        names.retain(|_, digest| images.contains_key(digest));
    }

    /// Containers run on it, whatever else of it is damaged.
    fn can_run(&self, record: &ImageRecord) -> bool {
        self.has_blob(&record.config) && record.diff_ids.iter().all(|diff_id| self.has_layer(diff_id))
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

    /// Names what was brought under a name by its tag, which then means that. It goes on meaning what it meant here where
    /// a digest was asked for, which may be an older one, and for a task's sake where that is nowhere else.
    pub(super) fn name_brought(&self, reference: &Reference, digest: &str, asker: Asker) -> Result<()> {
        let tag = Reference { digest: None, ..reference.clone() };
        let name = if tag.tag.is_some() { tag } else { reference.clone() };
        let stays = |meant: StoredImage| match asker {
            _ if reference.digest.is_some() => true,
            Asker::User => false,
            Asker::Task => !meant.is_elsewhere(&name.to_string()),
        };
        if self.find_name(&name).is_some_and(stays) { Ok(()) } else { self.set_name(&name, digest) }
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
    /// image has. With `only`, just that name. After a failure the index is what it was.
    ///
    /// On a full disk nothing is written before something has gone: the image goes first, its manifest before its layers,
    /// so that [`Self::drop_removed`] knows it should the worker end before the index is written.
    ///
    /// Deleting takes as long as the image has files: not for a thread that others wait for.
    pub(crate) fn remove(&self, digest: &str, only: Option<&str>) -> Result<Removed> {
        let mut index = self.lock();
        let before = index.clone();
        let mut removed = Removed { untagged: index.take_names(digest, only), deleted: Vec::new() };
        if !index.names.values().any(|of| of == digest) {
            index.images.remove(digest);
            removed.deleted.push(digest.to_owned());
        }
        let saved = self.save(&index);
        if let Err(error) = &saved
            && (!is_full(error) || removed.deleted.is_empty() || self.is_arriving())
        {
            *index = before;
            return saved.map(|()| removed);
        }
        let mut gone = Vec::new();
        let swept = self.sweep(&index, &mut gone, Duration::ZERO);
        drop(index);
        let deleted = delete(gone);
        if saved.is_err()
            && let Err(error) = self.save(&self.lock())
        {
            tracing::warn!(digest, error = super::chain(&error), "an image has gone, and the index is not saved");
        }
        removed.deleted.extend(swept?);
        deleted.map(|()| removed)
    }

    /// Takes away names of an image, which stays. With `only`, just that name.
    pub(crate) fn untag(&self, digest: &str, only: Option<&str>) -> Result<Removed> {
        let mut index = self.lock();
        let before = index.clone();
        let untagged = index.take_names(digest, only);
        if let Err(error) = self.save(&index) {
            *index = before;
            return Err(error);
        }
        Ok(Removed { untagged, deleted: Vec::new() })
    }

    /// Deletes what no image has and nobody has written to for `age`: what is left of transfers that failed, and of
    /// images that were removed while something arrived.
    pub(crate) fn sweep_left(&self, age: Duration) -> Result<()> {
        let mut gone = Vec::new();
        let swept = self.sweep(&self.lock(), &mut gone, age);
        delete(gone).and(swept.map(drop))
    }

    /// What goes leaves its place first, so that nobody waits for the index meanwhile. That makes no folder: the disk may
    /// be full.
    fn take_away(&self, path: &Path) -> Result<PathBuf> {
        let to = self.dir.join("ingest").join(format!("gone-{}", self.left.fetch_add(1, Ordering::Relaxed)));
        fs::rename(path, &to).map_err(io_error("delete", path))?;
        Ok(to)
    }

    fn json<T: for<'a> Deserialize<'a>>(&self, what: &'static str, digest: &str) -> Result<T> {
        let bytes = self.read_blob(digest)?;
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Json { what, digest: digest.to_owned(), source })
    }

    fn size_of<'a>(&self, digests: impl Iterator<Item = &'a str>) -> Result<u64> {
        let mut total = 0;
        for digest in digests {
            let path = self.blob_path(digest)?;
            total += fs::metadata(&path).map_err(io_error("read the size of", &path))?.len();
        }
        Ok(total)
    }

    /// Takes away what no image of the index uses, and was not changed for `age`, and says in `gone` where to; left to the
    /// next sweep while something arrives. The layers that went.
    fn sweep(&self, index: &Index, gone: &mut Vec<PathBuf>, age: Duration) -> Result<Vec<String>> {
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
        for (kind, used) in [("blobs/sha256", &blobs), ("layers", &layers)] {
            let folder = self.dir.join(kind);
            for entry in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
                let entry = entry.map_err(io_error("list", &folder))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_young = || entry.metadata().is_ok_and(|found| changed_since(&found, now) < age);
                if used.contains(&name) || (!age.is_zero() && is_young()) {
                    continue;
                }
                gone.push(self.take_away(&entry.path())?);
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

fn is_full(error: &StoreError) -> bool {
    let StoreError::Io { source, .. } = error else { return false };
    matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Goes on after a failure.
fn delete(gone: Vec<PathBuf>) -> Result<()> {
    let delete_one = |path: PathBuf| {
        let deleted = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        deleted.map_err(io_error("delete", &path))
    };
    gone.into_iter().map(delete_one).fold(Ok(()), Result::and)
}

/// A folder that cannot be looked into is full of what somebody may need.
fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// See [`ImageStore::arriving`].
pub(crate) struct Arriving(Arc<AtomicUsize>);

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
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
mod tests;
