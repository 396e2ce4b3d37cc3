//! Where images are asked for, and a pull from a real registry (Debian's docker-registry must be installed).

use std::{fs, net::TcpListener, process::Child};

use oci_client::{
    client::{ClientConfig, ClientProtocol},
    manifest::OCI_IMAGE_MEDIA_TYPE,
};

use super::*;
use crate::image::{config::ImageConfig, import};

/// A registry on a port of this machine, ended with the test.
struct Registry {
    server: Child,
    _dir: tempfile::TempDir,
    host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

async fn registry() -> Registry {
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
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "hello", &b"hello"[..]).unwrap();
    let plain = tar.into_inner().unwrap();
    let layer = store.put_bytes(&zstd::encode_all(plain.as_slice(), 1).unwrap(), None).unwrap();
    let image = import::import(&store, &layer, ImageConfig::default(), "", jiff::Timestamp::UNIX_EPOCH).unwrap();
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
        let mut states = Vec::new();
        while let Ok(wire::PullProgress { progress: Some(wire::pull_progress::Progress::Layer(layer)) }) =
            messages.try_recv()
        {
            states.push(layer.state);
        }
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
