//! Blobs that are forged, swept, and an index that is lost.

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

#[test]
fn a_name_with_a_digest_moves_no_tag() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let [old, new] = ["old", "new"].map(|salt| empty_image(&store, CONFIG, salt));
    let tag = Reference::parse("api:1").unwrap();
    let meant = || store.find_name(&tag).unwrap().digest;
    let by_digest = |digest: &String| Reference { digest: Some(digest.clone()), ..tag.clone() };
    store.name_brought(&by_digest(&new), &new, Asker::User).unwrap();
    assert_eq!(meant(), new, "it was free");
    store.set_fetched(&new).unwrap();
    for asker in [Asker::User, Asker::Task] {
        store.name_brought(&by_digest(&old), &old, asker).unwrap();
        assert_eq!(meant(), new);
    }
    store.name_brought(&tag, &old, Asker::User).unwrap();
    assert_eq!(meant(), old);
}

#[test]
fn a_tasks_tag_means_what_the_cluster_says_and_nothing_is_lost_by_it() {
    let pinned = |name: &str| format!("{name}@sha256:{}", "a".repeat(64));
    // The first image's other name, whether it came from another node, and whether the second one gets the tag.
    for (name, fetched, want) in [
        (None, false, false),
        (None, true, true),
        (Some(pinned("api")), false, true),
        (Some(pinned("other")), false, false),
        (Some("api:2".to_owned()), false, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let [first, second] = ["1", "2"].map(|salt| empty_image(&store, CONFIG, salt));
        let tag = Reference::parse("api:1").unwrap();
        store.name_brought(&tag, &first, Asker::Task).unwrap();
        if let Some(name) = &name {
            store.set_name(&Reference::parse(name).unwrap(), &first).unwrap();
        }
        if fetched {
            store.set_fetched(&first).unwrap();
        }
        store.name_brought(&tag, &second, Asker::Task).unwrap();
        let meant = store.find_name(&tag).unwrap().digest;
        assert_eq!(meant == second, want, "{name:?} {fetched}");
    }
}

/// Runs `test` in a folder of a small file system of its own, which nobody else sees. Needs root.
fn on_a_small_disk(options: &'static str, test: fn(&Path)) {
    use nix::sched::{CloneFlags, unshare};
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    // Mount namespaces are a thread's own, so the other tests do not notice.
    let node = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount("none", &at, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        test(&at);
    });
    node.join().unwrap();
}

/// Until neither a byte nor another file fits.
fn fill(dir: &Path) {
    let mut file = File::create(dir.join("filler")).unwrap();
    while io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    while tempfile::Builder::new().disable_cleanup(true).tempfile_in(dir).is_ok() {}
}

#[test]
fn a_full_disk_keeps_no_image() {
    on_a_small_disk("size=1m,nr_inodes=100", |disk| {
        let store = ImageStore::open(disk).unwrap();
        let image = small_image(&store);
        fill(disk);
        // Its blobs stay while something arrives, so there is no room for the new index either.
        let arriving = store.arriving();
        assert!(is_full(&store.remove(&image.digest, None).unwrap_err()));
        assert!(is_full(&store.untag(&image.digest, None).unwrap_err()));
        assert_eq!(store.list(), std::slice::from_ref(&image), "it is on the disk still");
        drop(arriving);
        let removed = store.remove(&image.digest, None).unwrap();
        assert_eq!(removed.untagged, image.names);
        assert!(store.list().is_empty() && !store.has_layer(&image.record.diff_ids[0]));
        assert_eq!(fs::read_dir(disk.join("ingest")).unwrap().count(), 0);
        assert!(ImageStore::open(disk).unwrap().list().is_empty());
    });
}

#[test]
fn what_went_before_the_index_was_written_is_not_listed_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let stays = empty_image(&store, CONFIG, "");
    let goes = small_image(&store);
    let index = fs::read(dir.path().join("index.json")).unwrap();
    let _ = store.remove(&goes.digest, None).unwrap();
    fs::write(dir.path().join("index.json"), index).unwrap();
    let listed = || ImageStore::open(dir.path()).unwrap().list();
    assert_eq!(listed().into_iter().map(|image| image.digest).collect::<Vec<_>>(), std::slice::from_ref(&stays));
    // What a disk has lost of an image is no reason to take its layers from containers.
    fs::remove_file(store.blob_path(&stays).unwrap()).unwrap();
    assert_eq!(listed().len(), 1);
}
