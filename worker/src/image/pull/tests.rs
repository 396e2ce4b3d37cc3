//! Where images are asked for, and a pull from a real registry (Debian's docker-registry must be installed).

mod broken;
mod tokens;

use std::{
    fs,
    net::TcpListener,
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use oci_client::{
    Client, Reference as OciReference,
    client::{ClientConfig, ClientProtocol},
    manifest::{OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE},
    secrets::RegistryAuth,
};

use super::*;
use crate::{
    agent::tests::Node,
    image::{Sources, config::ImageConfig, import},
};

/// A registry on a port of this machine, ended with the test.
pub(in crate::image) struct Registry {
    server: Child,
    _dir: tempfile::TempDir,
    pub(in crate::image) host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

pub(in crate::image) async fn registry() -> Registry {
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        dir.path().display()
    );
    let file = dir.path().join("config.yml");
    fs::write(&file, config).unwrap();
    let server = std::process::Command::new("docker-registry")
        .args(["serve".as_ref(), file.as_os_str()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("this test needs a registry: apt-get install docker-registry");
    let host = format!("127.0.0.1:{port}");
    let registry = Registry { server, _dir: dir, host };
    let up = async {
        while tokio::net::TcpStream::connect(&registry.host).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), up).await.expect("the registry does not start");
    registry
}

/// Imports an image into a store of its own and uploads it; returns the manifest's digest.
async fn push(registry: &Registry, repository: &str) -> String {
    push_with(registry, repository, b"hello").await
}

/// The same with another content of its one file.
async fn push_with(registry: &Registry, repository: &str, content: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "hello", content).unwrap();
    let plain = tar.into_inner().unwrap();
    let layer = store.put_bytes(&zstd::encode_all(plain.as_slice(), 1).unwrap(), None).unwrap();
    let image = import::import(&store, &layer, ImageConfig::default(), "").unwrap();
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        accept_invalid_certificates: true,
        ..Default::default()
    });
    let reference = OciReference::with_tag(registry.host.clone(), repository.to_owned(), "1".to_owned());
    client.auth(&reference, &RegistryAuth::Anonymous, oci_client::RegistryOperation::Push).await.unwrap();
    for blob in [&layer, &image.record.config] {
        let content = fs::read(store.blob_path(blob).unwrap()).unwrap();
        client.push_blob(&reference, content, blob).await.unwrap();
    }
    let manifest = store.read_blob(&image.digest).unwrap();
    client.push_manifest_raw(&reference, manifest.clone(), OCI_IMAGE_MEDIA_TYPE.parse().unwrap()).await.unwrap();
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_IMAGE_INDEX_MEDIA_TYPE,
        "manifests": [{
            "mediaType": OCI_IMAGE_MEDIA_TYPE,
            "digest": image.digest,
            "size": manifest.len(),
            "platform": { "architecture": architecture(), "os": "linux" },
        }],
    });
    let tagged = OciReference::with_tag(registry.host.clone(), repository.to_owned(), "multi".to_owned());
    let index = serde_json::to_vec(&index).unwrap();
    client.push_manifest_raw(&tagged, index, OCI_IMAGE_INDEX_MEDIA_TYPE.parse().unwrap()).await.unwrap();
    image.digest
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_from_a_registry_on_this_machine() {
    orch_proto::tls::install_crypto_provider();
    let registry = registry().await;
    let digest = push(&registry, "team/web").await;
    let none = mpsc::channel(1).0;
    let registries = RegistryConfig::default();
    for (reference, has_index) in [("1".to_owned(), false), ("multi".to_owned(), true)] {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let (progress, mut messages) = mpsc::channel(100);
        let reference = Reference::parse(&format!("{}/team/web:{reference}", registry.host)).unwrap();
        let (image, index) = pull(&store, &registries, &reference, None, &progress).await.unwrap();
        assert_eq!((&image.digest, index.is_some()), (&digest, has_index));
        let file = store.layer_path(&image.record.diff_ids[0]).unwrap().join("hello");
        assert_eq!(fs::read_to_string(file).unwrap(), "hello");
        let (mut asked, mut states) = (Vec::new(), Vec::new());
        while let Ok(message) = messages.try_recv() {
            match message.progress.unwrap() {
                wire::pull_progress::Progress::Asking(whom) => asked.push(whom),
                wire::pull_progress::Progress::Layer(layer) => states.push(layer.state),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(asked.last(), Some(&registry.host));
        assert_eq!(states, ["waiting", "downloading", "unpacking", "done"]);
    }
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    for absent in ["team/web:2", "team/none:1"] {
        let reference = Reference::parse(&format!("{}/{absent}", registry.host)).unwrap();
        let refused = pull(&store, &registries, &reference, None, &none).await;
        assert!(matches!(refused, Err(PullError::NotFound { .. })), "{refused:?}");
    }
    let pinned = Reference::parse(&format!("{}/team/web@{digest}", registry.host)).unwrap();
    assert_eq!(pull(&store, &registries, &pinned, None, &none).await.unwrap().0.digest, digest);
    let dead = Reference::parse("127.0.0.1:1/web").unwrap();
    let unreachable = pull(&store, &registries, &dead, None, &none).await.unwrap_err();
    assert!(unreachable.to_string().starts_with("no route to registry 127.0.0.1:1: "), "{unreachable}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tasks_tag_means_what_was_brought_for_it_last() {
    let node = Node::new().await;
    let worker = node.worker().await;
    let images = &worker.agent.host.images;
    let registry = registry().await;
    let name = format!("{}/team/web:1", registry.host);
    for content in [b"one", b"two"] {
        let digest = push_with(&registry, "team/web", content).await;
        let from = Sources { holders: None, login: None };
        let _ = images.ensure(&name, Some(&digest), from, &mpsc::channel(1).0).await.unwrap();
        assert_eq!(images.store.find(&name).map(|image| image.digest), Some(digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_may_say_no_platform_and_hold_indexes() {
    orch_proto::tls::install_crypto_provider();
    let registry = registry().await;
    let digest = push(&registry, "team/web").await;
    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..Default::default() });
    let entry = |media_type: &str, digest: &str, platform: Option<&str>| {
        let mut entry = serde_json::json!({ "mediaType": media_type, "digest": digest, "size": 1 });
        if let Some(architecture) = platform {
            entry["platform"] = serde_json::json!({ "architecture": architecture, "os": "linux" });
        }
        entry
    };
    let put = async |tag: &str, entries: Vec<serde_json::Value>| {
        let index = serde_json::json!(
            { "schemaVersion": 2, "mediaType": OCI_IMAGE_INDEX_MEDIA_TYPE, "manifests": entries }
        );
        let bytes = serde_json::to_vec(&index).unwrap();
        let tagged = OciReference::with_tag(registry.host.clone(), "team/web".to_owned(), tag.to_owned());
        let kind = OCI_IMAGE_INDEX_MEDIA_TYPE.parse().unwrap();
        client.push_manifest_raw(&tagged, bytes.clone(), kind).await.unwrap();
        use sha2::Digest;
        format!("sha256:{}", hex::encode(sha2::Sha256::digest(&bytes)))
    };
    let image = |platform| entry(OCI_IMAGE_MEDIA_TYPE, &digest, platform);
    let inner = put("silent", vec![image(None)]).await;
    let _ = put("nested", vec![entry(OCI_IMAGE_INDEX_MEDIA_TYPE, &inner, None)]).await;
    let _ = put("foreign", vec![image(Some("pdp11"))]).await;
    let mut below = inner;
    for depth in 2..=MAX_INDEXES + 1 {
        below = put(&format!("depth{depth}"), vec![entry(OCI_IMAGE_INDEX_MEDIA_TYPE, &below, None)]).await;
    }
    let (deepest, too_deep) = (format!("depth{MAX_INDEXES}"), format!("depth{}", MAX_INDEXES + 1));
    for (tag, is_found) in
        [("silent", true), ("nested", true), ("foreign", false), (deepest.as_str(), true), (too_deep.as_str(), false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let reference = Reference::parse(&format!("{}/team/web:{tag}", registry.host)).unwrap();
        match pull(&store, &RegistryConfig::default(), &reference, None, &mpsc::channel(1).0).await {
            Ok((image, index)) => {
                assert_eq!((is_found, &image.digest, index.is_some()), (true, &digest, true), "{tag}")
            }
            Err(error) => assert!(!is_found && matches!(error, PullError::Platform { .. }), "{tag}: {error}"),
        }
    }
}

#[test]
fn what_drips_has_broken_off() {
    let start = Instant::now();
    let mut pace = Pace::new(start, 0, PACE_WINDOW);
    for (seconds, bytes, drips) in [
        (1, 1, false),
        (59, 2, false),
        (60, SLOWEST_BYTES, false),
        (119, SLOWEST_BYTES + 1, false),
        (120, SLOWEST_BYTES * 2 - 1, true),
        (180, SLOWEST_BYTES * 9, false),
    ] {
        assert_eq!(pace.drips(start + Duration::from_secs(seconds), bytes), drips, "{seconds} s, {bytes} bytes");
    }
}

#[test]
fn the_registry_itself_says_more_than_its_mirrors() {
    let reference = Reference::parse("web").unwrap();
    let at = |host: &str| Endpoint { host: host.to_owned(), plain_http: false, any_certificate: false, roots: vec![] };
    let lacks = |host: &str| PullError::NotFound { registry: host.to_owned(), image: "web".to_owned() };
    let is_dead = |host: &str| PullError::Unreachable { registry: host.to_owned(), reason: "dead".to_owned() };
    let own = "docker.io";
    for (answers, expected) in [
        (vec![("mirror", lacks("mirror")), (own, lacks(own))], lacks(own)),
        (vec![("mirror", lacks("mirror")), (own, is_dead(own))], is_dead(own)),
        (vec![("mirror", is_dead("mirror")), (own, lacks(own))], lacks(own)),
        // Over TLS, then over plain HTTP.
        (vec![(own, lacks(own)), (own, is_dead(own))], lacks(own)),
    ] {
        let mut tried = Tried::default();
        for (host, error) in answers {
            assert!(tried.counts::<()>(&at(host), &reference, Err(error)).is_none());
        }
        assert_eq!(tried.failure(own).to_string(), expected.to_string());
    }
}

#[test]
fn of_an_index_the_machines_own_variant_is_taken() {
    for (entries, architecture, variant, expected) in [
        (&["amd64/v3", "amd64"][..], "amd64", 1, Some(1)),
        (&["amd64/v1"], "amd64", 1, Some(0)),
        (&["amd64/v2"], "amd64", 1, None),
        (&["arm/v5", "arm/v6", "arm/v7"], "arm", 6, Some(1)),
        (&["arm/v5", "arm/v6", "arm/v7"], "arm", 7, Some(2)),
        (&["arm/v5", "arm/v7", "arm/v6"], "arm", 8, Some(1)),
        (&["arm/v7", "arm"], "arm", 7, Some(0)),
        (&["arm/v7"], "arm", 6, None),
        (&["arm64/v8"], "arm64", 8, Some(0)),
        (&["arm64", "arm64/v9"], "arm64", 8, Some(0)),
        (&["arm64/strange", ""], "arm64", 8, Some(1)),
        (&["", "s390x"], "s390x", 1, Some(1)),
        (&["s390x"], "amd64", 1, None),
    ] {
        let of = |(n, entry): (usize, &&str)| {
            let mut of = serde_json::json!({ "mediaType": OCI_IMAGE_MEDIA_TYPE, "digest": n.to_string(), "size": 1 });
            if let Some(architecture) = entry.split('/').next().filter(|name| !name.is_empty()) {
                of["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture });
            }
            if let Some((_, variant)) = entry.split_once('/') {
                of["platform"]["variant"] = variant.into();
            }
            of
        };
        let manifests: Vec<_> = entries.iter().enumerate().map(of).collect();
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
        let index: OciImageIndex = serde_json::from_value(index).unwrap();
        let found = best_for(&index, architecture, variant).map(|digest| digest.parse().unwrap());
        assert_eq!(found, expected, "{entries:?} on {architecture}/{variant}");
    }
}
