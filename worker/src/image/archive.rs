//! Images as files: `docker save`'s tar and OCI layouts, read and written.
//!
//! Reading is one pass: every file of the archive becomes a blob (by what it is, not by what it is called), and only
//! then is it looked at what the archive says of them. So the order of its entries does not matter, and nothing is
//! believed that a digest does not prove.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufReader, Read, Seek, Write},
    path::Path,
};

use oci_client::manifest::OciImageManifest;
use serde::Deserialize;
use serde_json::{Value, json};
use tar::{Archive, Builder, EntryType, Header};

use super::{
    import::architecture,
    reference::{Reference, ReferenceError},
    store::{ImageStore, MAX_METADATA_BYTES, StoreError, StoredImage},
    unpack::Compression,
};

/// More files than this are in no archive of images.
const MAX_ENTRIES: usize = 100_000;
const COPY_BYTES: usize = 1 << 20;
const OCI_NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("read the archive")]
    Read(#[source] io::Error),
    #[error("write the archive")]
    Write(#[source] io::Error),
    #[error(
        "this is no archive of images: it has neither manifest.json (docker save) nor index.json (OCI); the files of a root \
         filesystem become an image by `orch image import FILE NAME`"
    )]
    NoImages,
    #[error("the archive has more than {MAX_ENTRIES} files")]
    TooMany,
    #[error("{file} of the archive is larger than {} MiB", MAX_METADATA_BYTES >> 20)]
    TooLarge { file: String },
    #[error("{file} of the archive is not valid")]
    Json {
        file: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the archive names {0}, which is not in it")]
    Missing(String),
    #[error("the archive has no image for linux/{}", architecture())]
    Platform,
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Result<T> = std::result::Result<T, ArchiveError>;

/// An image out of an archive, in the store, with the names that the archive gives it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub image: StoredImage,
    pub names: Vec<Reference>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// The archive's files as blobs, by path.
#[derive(Default)]
struct Contents {
    digests: HashMap<String, String>,
    /// `manifest.json` and `index.json`.
    texts: HashMap<String, Vec<u8>>,
}

/// Reads an archive (plain, gzip or zstd) and puts its images into the store, without names.
pub(crate) fn load(store: &ImageStore, file: File) -> Result<Vec<Loaded>> {
    let _arriving = store.arriving();
    let contents = read(store, file)?;
    if contents.texts.contains_key("manifest.json") {
        contents.docker(store)
    } else if contents.texts.contains_key("index.json") {
        contents.oci(store)
    } else {
        Err(ArchiveError::NoImages)
    }
}

fn read(store: &ImageStore, mut file: File) -> Result<Contents> {
    let mut magic = Vec::new();
    (&mut file).take(4).read_to_end(&mut magic).map_err(ArchiveError::Read)?;
    file.rewind().map_err(ArchiveError::Read)?;
    let plain: Box<dyn Read> = match Compression::of(&magic) {
        Compression::None => Box::new(BufReader::new(file)),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(file).map_err(ArchiveError::Read)?),
    };
    let mut contents = Contents::default();
    let mut links = Vec::new();
    for (n, entry) in Archive::new(plain).entries().map_err(ArchiveError::Read)?.enumerate() {
        if n >= MAX_ENTRIES {
            return Err(ArchiveError::TooMany);
        }
        let mut entry = entry.map_err(ArchiveError::Read)?;
        let path = clean(&entry.path().map_err(ArchiveError::Read)?);
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => contents.add(store, path, &mut entry)?,
            // Old archives name a layer that they have already by a link to it.
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name().map_err(ArchiveError::Read)?.unwrap_or_default();
                let from = Path::new(&path).parent().unwrap_or(Path::new(""));
                links.push((path.clone(), clean(&from.join(&target)), clean(&target)));
            }
            _ => {}
        }
    }
    for (path, beside, absolute) in links {
        let digest = contents.digests.get(&beside).or_else(|| contents.digests.get(&absolute)).cloned();
        if let Some(digest) = digest {
            contents.digests.insert(path, digest);
        }
    }
    Ok(contents)
}

/// Only a key: no file of this name is ever made.
fn clean(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let text = path.to_string_lossy().into_owned();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Contents {
    fn add(&mut self, store: &ImageStore, path: String, content: &mut impl Read) -> Result<()> {
        if matches!(path.as_str(), "manifest.json" | "index.json") {
            let mut text = Vec::new();
            content.take(MAX_METADATA_BYTES + 1).read_to_end(&mut text).map_err(ArchiveError::Read)?;
            if text.len() as u64 > MAX_METADATA_BYTES {
                return Err(ArchiveError::TooLarge { file: path });
            }
            self.texts.insert(path, text);
            return Ok(());
        }
        let mut writer = store.blob_writer()?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match content.read(&mut buffer).map_err(ArchiveError::Read)? {
                0 => break,
                len => writer.append(&buffer[..len])?,
            }
        }
        self.digests.insert(path, writer.commit(None)?);
        Ok(())
    }

    fn json<T: for<'a> Deserialize<'a>>(&self, file: &str) -> Result<T> {
        let text = self.texts.get(file).ok_or_else(|| ArchiveError::Missing(file.to_owned()))?;
        serde_json::from_slice(text).map_err(|source| ArchiveError::Json { file: file.to_owned(), source })
    }

    fn digest(&self, path: &str) -> Result<&String> {
        self.digests.get(&clean(Path::new(path))).ok_or_else(|| ArchiveError::Missing(path.to_owned()))
    }

    fn docker(&self, store: &ImageStore) -> Result<Vec<Loaded>> {
        let manifests = self.manifests_by_config(store);
        let entries: Vec<DockerEntry> = self.json("manifest.json")?;
        let mut loaded = Vec::new();
        for entry in entries {
            let config = self.digest(&entry.config)?;
            let manifest = match manifests.get(config) {
                // The archive has the manifest as it was in the registry: the digest stays.
                Some(manifest) => manifest.clone(),
                None => self.make_manifest(store, config, &entry.layers)?,
            };
            let tags = entry.repo_tags.unwrap_or_default();
            let names = tags.iter().map(|tag| Reference::parse(tag)).collect::<std::result::Result<_, _>>()?;
            loaded.push(Loaded { image: store.add_image(&manifest)?, names });
        }
        Ok(loaded)
    }

    fn make_manifest(&self, store: &ImageStore, config: &str, layers: &[String]) -> Result<String> {
        let descriptor = |digest: &str, media_type: String| -> Result<Value> {
            let path = store.blob_path(digest)?;
            let bytes = std::fs::metadata(&path).map_err(ArchiveError::Read)?.len();
            Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes}))
        };
        let mut described = Vec::new();
        for layer in layers {
            let digest = self.digest(layer)?;
            let media_type = super::import::layer_type(store, digest).map_err(ArchiveError::Read)?;
            described.push(descriptor(digest, media_type.to_owned())?);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(config, "application/vnd.oci.image.config.v1+json".to_owned())?,
            "layers": described,
        });
        Ok(store.put_bytes(manifest.to_string().as_bytes(), None)?)
    }

    /// The manifests that `index.json` names, by the configuration of each.
    fn manifests_by_config(&self, store: &ImageStore) -> HashMap<String, String> {
        let index: Index = self.json("index.json").unwrap_or(Index { manifests: Vec::new() });
        let digests = index.manifests.into_iter().filter_map(|entry| resolve(store, &entry).ok());
        let with_config = digests.filter_map(|digest| {
            let manifest: OciImageManifest = store.manifest(&digest).ok()?;
            let whole = manifest.layers.iter().all(|layer| store.has_blob(&layer.digest));
            whole.then_some((manifest.config.digest, digest))
        });
        with_config.collect()
    }

    fn oci(&self, store: &ImageStore) -> Result<Vec<Loaded>> {
        let index: Index = self.json("index.json")?;
        let mut loaded = Vec::new();
        for entry in &index.manifests {
            let digest = resolve(store, entry)?;
            let annotations = entry.annotations.clone().unwrap_or_default();
            let full = annotations.get(FULL_NAME).or_else(|| {
                // A bare tag, as many tools write it, names no repository.
                annotations.get(OCI_NAME).filter(|name| name.contains(['/', ':']))
            });
            let names = full.map(|name| Reference::parse(name)).transpose()?.into_iter().collect();
            loaded.push(Loaded { image: store.add_image(&digest)?, names });
        }
        if loaded.is_empty() { Err(ArchiveError::NoImages) } else { Ok(loaded) }
    }
}

/// The manifest of this machine's platform.
fn resolve(store: &ImageStore, entry: &Descriptor) -> Result<String> {
    if !store.has_blob(&entry.digest) {
        return Err(ArchiveError::Missing(entry.digest.clone()));
    }
    if !entry.media_type.contains("index") && !entry.media_type.contains("manifest.list") {
        return Ok(entry.digest.clone());
    }
    let text = store.read_blob(&entry.digest)?;
    let invalid = |source| ArchiveError::Json { file: entry.digest.clone(), source };
    let index: Index = serde_json::from_slice(&text).map_err(invalid)?;
    let ours = |entry: &&Descriptor| {
        entry.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
    };
    // An archive need not have every platform that its index names.
    let found = index.manifests.iter().filter(ours).find(|entry| store.has_blob(&entry.digest));
    found.map(|entry| entry.digest.clone()).ok_or(ArchiveError::Platform)
}

/// Writes images as an archive that `docker load` and OCI tools read. Each comes with the names that it shall have.
pub(crate) fn save(store: &ImageStore, images: &[(StoredImage, Vec<String>)], to: impl Write) -> Result<()> {
    let mut tar = Builder::new(to);
    let mut written: Vec<String> = Vec::new();
    let (mut docker, mut index) = (Vec::new(), Vec::new());
    for (image, names) in images {
        let record = &image.record;
        for digest in [&image.digest, &record.config].into_iter().chain(&record.layers) {
            if !written.contains(digest) {
                append_blob(store, &mut tar, digest)?;
                written.push(digest.clone());
            }
        }
        let references: Vec<Reference> =
            names.iter().filter_map(|name| Reference::parse(name).ok()).filter(|name| name.digest.is_none()).collect();
        let tags: Vec<String> = references.iter().map(Reference::familiar).collect();
        docker.push(json!({
            "Config": in_layout(&record.config),
            "RepoTags": tags,
            "Layers": record.layers.iter().map(|layer| in_layout(layer)).collect::<Vec<_>>(),
        }));
        index.extend(entries(store, image, &references)?);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": index,
    });
    append(&mut tar, "index.json", index.to_string().as_bytes())?;
    append(&mut tar, "manifest.json", Value::Array(docker).to_string().as_bytes())?;
    append(&mut tar, "oci-layout", LAYOUT)?;
    tar.finish().map_err(ArchiveError::Write)
}

/// One entry of the index per name, or one without.
fn entries(store: &ImageStore, image: &StoredImage, names: &[Reference]) -> Result<Vec<Value>> {
    let text = store.read_blob(&image.digest)?;
    let manifest: Value =
        serde_json::from_slice(&text).map_err(|source| ArchiveError::Json { file: image.digest.clone(), source })?;
    let media_type = manifest["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
    let plain = json!({"mediaType": media_type, "digest": image.digest, "size": text.len()});
    if names.is_empty() {
        return Ok(vec![plain]);
    }
    let named = names.iter().map(|name| {
        let mut entry = plain.clone();
        entry["annotations"] = json!({FULL_NAME: name.to_string(), OCI_NAME: name.tag});
        entry
    });
    Ok(named.collect())
}

fn in_layout(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn append_blob(store: &ImageStore, tar: &mut Builder<impl Write>, digest: &str) -> Result<()> {
    let mut file = File::open(store.blob_path(digest)?).map_err(ArchiveError::Read)?;
    let bytes = file.metadata().map_err(ArchiveError::Read)?.len();
    let mut header = header(bytes);
    tar.append_data(&mut header, in_layout(digest), &mut file).map_err(ArchiveError::Write)
}

fn append(tar: &mut Builder<impl Write>, path: &str, content: &[u8]) -> Result<()> {
    tar.append_data(&mut header(content.len() as u64), path, content).map_err(ArchiveError::Write)
}

/// The same archive for the same images, whenever it is written.
fn header(bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(EntryType::Regular);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{config::ImageConfig, import};

    fn image(store: &ImageStore, content: &[u8]) -> StoredImage {
        let mut tar = Builder::new(Vec::new());
        append(&mut tar, "etc/file", content).unwrap();
        let layer = store.put_bytes(&tar.into_inner().unwrap(), None).unwrap();
        import::import(store, &layer, ImageConfig::default(), "").unwrap()
    }

    fn to_file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn store() -> (tempfile::TempDir, ImageStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        (dir, store)
    }

    fn names(loaded: &[Loaded]) -> Vec<String> {
        loaded.iter().flat_map(|loaded| loaded.names.iter().map(Reference::familiar)).collect()
    }

    #[test]
    fn what_is_saved_loads_as_the_same_images() {
        let (_dir, store_a) = store();
        let images = [image(&store_a, b"one"), image(&store_a, b"two")];
        let mut bytes = Vec::new();
        let with_names = [
            (images[0].clone(), vec!["docker.io/library/one:1".to_owned(), "reg:5000/one:1".to_owned()]),
            (images[1].clone(), Vec::new()),
        ];
        save(&store_a, &with_names, &mut bytes).unwrap();
        let zipped = zstd::encode_all(bytes.as_slice(), 1).unwrap();
        for archive in [&bytes, &zipped] {
            let (_dir, store_b) = store();
            let loaded = load(&store_b, to_file(archive)).unwrap();
            let digests: Vec<&str> = loaded.iter().map(|loaded| loaded.image.digest.as_str()).collect();
            assert_eq!(digests, [images[0].digest.as_str(), images[1].digest.as_str()]);
            assert_eq!(names(&loaded), ["one:1", "reg:5000/one:1"]);
            let file = store_b.layer_path(&loaded[0].image.record.diff_ids[0]).unwrap().join("etc/file");
            assert_eq!(std::fs::read(file).unwrap(), b"one");
        }
    }

    /// Before Docker 25: no index, layers as folders, links to layers that are there already.
    #[test]
    fn old_archives_load() {
        let (_dir, source) = store();
        let made = image(&source, b"old");
        let config = source.read_blob(&made.record.config).unwrap();
        let layer = source.read_blob(&made.record.layers[0]).unwrap();
        let mut tar = Builder::new(Vec::new());
        let manifest = r#"[{"Config":"c.json","RepoTags":["old:7"],"Layers":["b/layer.tar"]}]"#;
        append(&mut tar, "manifest.json", manifest.as_bytes()).unwrap();
        let mut link = header(0);
        link.set_entry_type(EntryType::Symlink);
        tar.append_link(&mut link, "b/layer.tar", "../a/layer.tar").unwrap();
        append(&mut tar, "a/layer.tar", &layer).unwrap();
        append(&mut tar, "c.json", &config).unwrap();
        let (_dir, target) = store();
        let loaded = load(&target, to_file(&tar.into_inner().unwrap())).unwrap();
        assert_eq!((names(&loaded), &loaded[0].image.record.config), (vec!["old:7".to_owned()], &made.record.config));
    }

    #[test]
    fn what_is_no_archive_of_images_is_refused() {
        let (_dir, store) = store();
        let mut tar = Builder::new(Vec::new());
        append(&mut tar, "etc/passwd", b"x").unwrap();
        assert!(matches!(load(&store, to_file(&tar.into_inner().unwrap())), Err(ArchiveError::NoImages)));
        assert!(matches!(load(&store, to_file(b"no tar at all")), Err(ArchiveError::Read(_) | ArchiveError::NoImages)));
        let mut tar = Builder::new(Vec::new());
        append(&mut tar, "manifest.json", br#"[{"Config":"../../etc/passwd","Layers":[]}]"#).unwrap();
        let refused = load(&store, to_file(&tar.into_inner().unwrap())).unwrap_err();
        assert_eq!(refused.to_string(), "the archive names ../../etc/passwd, which is not in it");
    }
}
