//! Manifests, indexes, configurations and archives that nobody would write: none panics, takes long, reaches outside the
//! store, or becomes an image that is not whole.

use std::{collections::BTreeMap, fs, path::Path};

use oci_client::manifest::OciManifest;
use serde_json::{Value, json};

use super::{
    archive,
    config::ImageConfig,
    import::{self, architecture},
    pull::platform_manifest,
    store::{ImageStore, StoredImage},
};
use crate::{
    agent::prepare,
    fuzz::{Random, bend, damage, each_seed},
};

/// How many images a run tries; `ORCH_FUZZ_INPUTS` says another number.
const INPUTS: u64 = 1500;
const ARCHIVES: u64 = 300;

/// An image of one file, to be bent.
fn usual(store: &ImageStore) -> StoredImage {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "file", &b"ok"[..]).unwrap();
    let layer = store.put_bytes(&tar.into_inner().unwrap(), None).unwrap();
    let config = import::configuration(&[
        "USER root:root".to_owned(),
        "EXPOSE 80/tcp 53/udp".to_owned(),
        "VOLUME /data".to_owned(),
        "CMD [\"sh\", \"-c\", \"true\"]".to_owned(),
        "ENV A=b".to_owned(),
        "LABEL c=d".to_owned(),
    ]);
    import::import(store, &layer, config.unwrap(), "").unwrap()
}

/// The document, bent in places or damaged as text; now and then as it was.
fn odd_text(random: &mut Random, document: &Value) -> Vec<u8> {
    let mut document = document.clone();
    let kind = random.below(8);
    if kind > 0 {
        bend(random, &mut document);
    }
    let mut text = document.to_string().into_bytes();
    if kind > 5 {
        damage(random, &mut text);
    }
    text
}

/// What is beside the store: nothing of it may change.
fn beside(dir: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().unwrap().len())).collect()
}

/// Everything that starting a container reads of a configuration.
fn read(config: ImageConfig) {
    let _ = config.created_at_ms();
    let command = prepare::command_line(
        &orch_model::service::ContainerSpec::default(),
        &config.config.entrypoint,
        &config.config.cmd,
    );
    let defaults = prepare::defaults(config);
    assert!(command.len() >= defaults.cmd.len());
}

#[test]
fn odd_manifests_and_configurations_are_refused_or_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let image = usual(&store);
    let parse = |digest: &str| -> Value { serde_json::from_slice(&store.read_blob(digest).unwrap()).unwrap() };
    let (manifest, mut config) = (parse(&image.digest), parse(&image.record.config));
    config["config"]["Healthcheck"] = json!({"Test": ["CMD", "true"], "Interval": 5_000_000_000_u64, "Retries": 2});
    let before = beside(dir.path());
    let (mut taken, mut refused) = (0_u64, 0_u64);
    let inputs = each_seed(INPUTS, |seed| {
        let mut random = Random::new(seed);
        let (mut of_manifest, of_config) = (manifest.clone(), odd_text(&mut random, &config));
        if seed % 2 == 0 {
            of_manifest["config"]["digest"] = json!(store.put_bytes(&of_config, None).unwrap());
        }
        let text = if seed % 2 == 0 { of_manifest.to_string().into_bytes() } else { odd_text(&mut random, &manifest) };
        let digest = store.put_bytes(&text, None).unwrap();
        if let Ok(config) = serde_json::from_slice::<ImageConfig>(&of_config) {
            read(config);
        }
        match store.add_image(&digest) {
            Ok(added) => {
                taken += 1;
                let whole = added.record.diff_ids.iter().all(|diff_id| store.has_layer(diff_id));
                let blobs = added.record.layers.iter().chain([&added.record.config]).all(|blob| store.has_blob(blob));
                assert!(whole && blobs, "seed {seed}: an image that is not whole");
                let _ = store.platform(&added);
                if added.digest != image.digest {
                    let _ = store.remove(&added.digest, None).unwrap();
                }
            }
            Err(_) => {
                refused += 1;
                assert!(store.by_digest(&digest).is_none(), "seed {seed}: refused, and there all the same");
            }
        }
        assert_eq!(beside(dir.path()), before, "seed {seed}");
    });
    assert!(taken > inputs / 20 && refused > inputs / 20, "{taken} taken, {refused} refused");
    // What was right before is, still.
    assert!(store.add_image(&image.digest).is_ok());
    assert!(ImageStore::open(&dir.path().join("images")).is_ok(), "the index cannot be read back");
}

#[test]
fn odd_indexes_choose_a_digest_or_nothing() {
    let entry = |architecture: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 7,
            "digest": format!("sha256:{}", "0".repeat(64)),
            "platform": { "architecture": architecture, "os": "linux", "variant": "v1" },
            "annotations": { "a": "b" },
        })
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry("pdp11"), entry(architecture())],
    });
    let (mut chosen, mut refused) = (0_u64, 0_u64);
    let inputs = each_seed(INPUTS, |seed| {
        let mut random = Random::new(seed);
        match serde_json::from_slice::<OciManifest>(&odd_text(&mut random, &index)) {
            Ok(OciManifest::ImageIndex(index)) if platform_manifest(&index).is_some() => chosen += 1,
            _ => refused += 1,
        }
    });
    assert!(chosen > inputs / 20 && refused > inputs / 20, "{chosen} chosen, {refused} refused");
}

/// The archive of `orch save`, its files odd in places.
fn odd_archive(random: &mut Random, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut content = content.clone();
        if random.below(6) == 0 {
            content = match serde_json::from_slice::<Value>(&content) {
                Ok(document) => odd_text(random, &document),
                Err(_) => {
                    damage(random, &mut content);
                    content
                }
            };
        }
        let name = if random.below(30) == 0 { "odd" } else { name };
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    let mut bytes = tar.into_inner().unwrap();
    if random.below(8) == 0 {
        damage(random, &mut bytes);
    }
    bytes
}

#[test]
fn odd_archives_are_refused_or_whole() {
    let dir = tempfile::tempdir().unwrap();
    let source = ImageStore::open(&dir.path().join("source")).unwrap();
    let image = usual(&source);
    let mut saved = Vec::new();
    archive::save(&source, &[(image, vec!["docker.io/library/web:1".to_owned()])], &mut saved).unwrap();
    let mut files = Vec::new();
    for entry in tar::Archive::new(saved.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        files.push((entry.path().unwrap().display().to_string(), content));
    }
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let before = beside(dir.path());
    let (mut taken, mut refused) = (0_u64, 0_u64);
    let inputs = each_seed(ARCHIVES, |seed| {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &odd_archive(&mut Random::new(seed), &files)).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        match archive::load(&store, file) {
            Ok(loaded) => {
                taken += 1;
                let whole = |one: &archive::Loaded| one.image.record.diff_ids.iter().all(|id| store.has_layer(id));
                assert!(loaded.iter().all(whole), "seed {seed}: an image that is not whole");
                // It may be there twice.
                for one in loaded {
                    let _ = store.remove(&one.image.digest, None).unwrap();
                }
            }
            Err(_) => refused += 1,
        }
        assert_eq!(beside(dir.path()), before, "seed {seed}");
    });
    assert!(taken > inputs / 20 && refused > inputs / 20, "{taken} taken, {refused} refused");
}
