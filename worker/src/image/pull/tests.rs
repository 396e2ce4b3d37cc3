//! Where images are asked for, and a pull from a real registry (Debian's docker-registry must be installed).

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
use crate::image::{config::ImageConfig, import};

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

/// Between a registry and us: counts what the registry sends, and holds it back or cuts it off at some number of bytes.
struct Between {
    host: String,
    sent: Arc<AtomicU64>,
    /// Once so much was sent, every connection is cut, once.
    cut_at: Arc<AtomicU64>,
    /// Once so much was sent, nothing more is; a connection that was held is cut when this is taken back, so that what
    /// it would have sent into the void is not counted.
    hold_at: Arc<AtomicU64>,
}

impl Between {
    async fn start(registry: &Registry) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let [sent, cut_at, hold_at] = [0, u64::MAX, u64::MAX].map(|n| Arc::new(AtomicU64::new(n)));
        let between = Self { host, sent, cut_at, hold_at };
        let (upstream, shared) = (registry.host.clone(), between.shared());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(&upstream).await.unwrap();
                tokio::spawn(shared.shared().carry(client, server));
            }
        });
        between
    }

    fn shared(&self) -> Self {
        let Self { host, sent, cut_at, hold_at } = self;
        Self { host: host.clone(), sent: sent.clone(), cut_at: cut_at.clone(), hold_at: hold_at.clone() }
    }

    async fn carry(self, client: tokio::net::TcpStream, server: tokio::net::TcpStream) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let asking = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
        let mut buffer = vec![0; 16 << 10];
        loop {
            let mut was_held = false;
            while self.sent.load(SeqCst) >= self.hold_at.load(SeqCst) {
                was_held = true;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if was_held {
                break;
            }
            let Ok(read @ 1..) = from_server.read(&mut buffer).await else { break };
            if to_client.write_all(&buffer[..read]).await.is_err() {
                break;
            }
            if self.sent.fetch_add(read as u64, SeqCst) + read as u64 >= self.cut_at.load(SeqCst) {
                self.cut_at.store(u64::MAX, SeqCst);
                break;
            }
        }
        asking.abort();
    }
}

const LAYER_BYTES: u64 = 6 << 20;
/// Beside the layer: manifest, configuration, headers; and what was on its way when a connection was cut.
const BESIDE_BYTES: u64 = 1 << 20;

/// Bytes that do not get smaller by packing.
fn incompressible() -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(usize::try_from(LAYER_BYTES).unwrap()).collect()
}

fn partials(store: &ImageStore) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(store.dir().join("partial")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn check_pulled(store: &ImageStore, image: &StoredImage, content: &[u8]) {
    let file = store.layer_path(&image.record.diff_ids[0]).unwrap().join("hello");
    assert!(fs::read(file).unwrap() == content, "the layer has another content");
    assert_eq!(partials(store), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    orch_proto::tls::install_crypto_provider();
    let registry = registry().await;
    let content = incompressible();
    let _ = push_with(&registry, "team/large", &content).await;
    let between = Between::start(&registry).await;
    let registries = RegistryConfig::default();
    let reference = Reference::parse(&format!("{}/team/large:1", between.host)).unwrap();
    let none = mpsc::channel(1).0;

    // Cut in the middle.
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    between.cut_at.store(LAYER_BYTES / 2, SeqCst);
    let (image, _) = pull(&store, &registries, &reference, None, &none).await.unwrap();
    check_pulled(&store, &image, &content);
    let sent = between.sent.swap(0, SeqCst);
    assert!((LAYER_BYTES..LAYER_BYTES + BESIDE_BYTES).contains(&sent), "{sent} bytes were sent");

    // The worker ends in the middle; the next one goes on.
    let dir = tempfile::tempdir().unwrap();
    let first = ImageStore::open(dir.path()).unwrap();
    between.hold_at.store(LAYER_BYTES / 2, SeqCst);
    let pulling = tokio::spawn({
        let (store, reference) = (first.clone(), reference.clone());
        async move { pull(&store, &RegistryConfig::default(), &reference, None, &mpsc::channel(1).0).await.map(drop) }
    });
    let kept = || partials(&first).iter().map(|path| fs::metadata(path).unwrap().len()).sum::<u64>();
    let arrived = async {
        while kept() < LAYER_BYTES / 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), arrived).await.expect("half of the layer arrives");
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
    let kept = kept();
    drop(first);
    between.sent.store(0, SeqCst);
    between.hold_at.store(u64::MAX, SeqCst);
    let second = ImageStore::open(dir.path()).unwrap();
    let (image, _) = pull(&second, &registries, &reference, None, &none).await.unwrap();
    check_pulled(&second, &image, &content);
    let sent = between.sent.swap(0, SeqCst);
    assert!(sent < LAYER_BYTES - kept + BESIDE_BYTES, "{sent} bytes were sent again, {kept} were here");

    // What was kept may be damaged, too long, or all of it.
    let layer = fs::read(second.blob_path(&image.record.layers[0]).unwrap()).unwrap();
    let name = image.record.layers[0].strip_prefix("sha256:").unwrap();
    let mut damaged = layer[..layer.len() / 2].to_vec();
    damaged[1000] ^= 1;
    for left in [&damaged[..], b"no layer at all", &[&layer[..], b"more"].concat(), &layer] {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        fs::write(store.dir().join("partial").join(name), left).unwrap();
        let (image, _) = pull(&store, &registries, &reference, None, &none).await.unwrap();
        check_pulled(&store, &image, &content);
    }
}

/// Before a registry: the first questions for each thing are answered with something else.
struct Busy {
    host: String,
    asked: Arc<AtomicU64>,
}

impl Busy {
    /// `times` questions for each path are answered with `answer`, a status line and headers, or not at all.
    async fn start(registry: &Registry, times: u64, answer: &'static str) -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let busy = Self { host: listener.local_addr().unwrap().to_string(), asked: Arc::default() };
        let (upstream, asked) = (registry.host.clone(), busy.asked.clone());
        let seen: Arc<std::sync::Mutex<std::collections::HashMap<String, u64>>> = Arc::default();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (upstream, asked, seen) = (upstream.clone(), asked.clone(), seen.clone());
                tokio::spawn(async move {
                    let mut head = vec![0; 16 << 10];
                    let read = client.read(&mut head).await.unwrap_or(0);
                    // One that tries TLS is sent away.
                    let Some(question) =
                        std::str::from_utf8(&head[..read]).ok().filter(|text| text.ends_with("\r\n\r\n"))
                    else {
                        return;
                    };
                    let (first, rest) = question.split_once("\r\n").unwrap();
                    let path = first.split(' ').nth(1).unwrap();
                    let is_thing = path.contains("/manifests/") || path.contains("/blobs/");
                    let before = {
                        let mut seen = seen.lock().unwrap();
                        let count = seen.entry(path.to_owned()).or_default();
                        // Asking about it is not asking for it.
                        *count += u64::from(first.starts_with("GET "));
                        *count
                    };
                    if is_thing && before <= times {
                        asked.fetch_add(u64::from(first.starts_with("GET ")), SeqCst);
                        if answer.is_empty() {
                            return;
                        }
                        let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                        let _ = client.write_all(answer.as_bytes()).await;
                        return;
                    }
                    let mut server = tokio::net::TcpStream::connect(&upstream).await.unwrap();
                    let question = format!("{first}\r\nConnection: close\r\n{rest}");
                    server.write_all(question.as_bytes()).await.unwrap();
                    let _ = tokio::io::copy(&mut server, &mut client).await;
                });
            }
        });
        busy
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_asked_again() {
    orch_proto::tls::install_crypto_provider();
    let registry = registry().await;
    let digest = push(&registry, "team/web").await;
    // Manifest, configuration and layer, each.
    const THINGS: u64 = 3;
    for (times, answer, questions, at_least, fails) in [
        (1, "429 Too Many Requests\r\nRetry-After: 1", THINGS, Duration::from_secs(3), None),
        (2, "503 Service Unavailable", 2 * THINGS, Duration::ZERO, None),
        (4, "500 Internal Server Error", 4 * THINGS, Duration::ZERO, None),
        (1, "", THINGS, Duration::ZERO, None),
        (99, "", 5, Duration::ZERO, Some("broke off the connection")),
        (99, "503 Service Unavailable", 5, Duration::ZERO, Some("it answers 503")),
        (1, "429 Too Many Requests\r\nRetry-After: 3600", 1, Duration::ZERO, Some("left alone for 3600 s")),
    ] {
        let busy = Busy::start(&registry, times, answer).await;
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let reference = Reference::parse(&format!("{}/team/web:1", busy.host)).unwrap();
        let (progress, mut messages) = mpsc::channel(100);
        let begun = std::time::Instant::now();
        let pulled = pull(&store, &RegistryConfig::default(), &reference, None, &progress).await;
        match (pulled, fails) {
            (Ok((image, _)), None) => assert_eq!(image.digest, digest, "{answer}"),
            (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{answer}: {error}"),
            (pulled, _) => panic!("{answer}: {pulled:?}"),
        }
        assert!(begun.elapsed() >= at_least, "{answer}: {:?}", begun.elapsed());
        assert_eq!(busy.asked.load(SeqCst), questions, "{answer}");
        let mut said = 0;
        while let Ok(message) = messages.try_recv() {
            said += usize::from(matches!(
                message.progress,
                Some(wire::pull_progress::Progress::Status(text)) if text.contains(": asking again in 1 s")
            ));
        }
        assert_eq!(said > 0, fails.is_none_or(|words| !words.contains("left alone")), "{answer}");
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

/// A registry that gives nothing without a token, and its token server, which always answers the same.
async fn with_token_server(answer: &'static str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let own = host.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = vec![0; 16 << 10];
            let read = client.read(&mut head).await.unwrap_or(0);
            let asks_for_token = head[..read].starts_with(b"GET /token") || head[..read].starts_with(b"HEAD /token");
            // One that tries TLS is sent away.
            if !head[..read].starts_with(b"GET ") && !head[..read].starts_with(b"HEAD ") {
                continue;
            }
            let unauthorized = format!(
                "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"s\"\r\n\
                 Content-Length: 0\r\n\r\n"
            );
            let said = if asks_for_token { answer } else { unauthorized.as_str() };
            let said = format!("HTTP/1.1 {}", said.replacen("\r\n", "\r\nConnection: close\r\n", 1));
            let _ = client.write_all(said.as_bytes()).await;
        }
    });
    host
}

/// Without a token, a registry says of everything that it needs a login.
#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_a_token_server_is_not_an_image_that_is_missing() {
    orch_proto::tls::install_crypto_provider();
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    for (answer, words) in [
        ("503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "its token server answers 503"),
        ("429 Too Many Requests\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n", "left alone for 3600 s"),
        ("200 OK\r\nContent-Length: 2\r\n\r\n{}", "its token server gives no token"),
        ("200 OK\r\nContent-Length: 6\r\n\r\n<html>", "its token server's answer"),
        ("401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "has no image"),
        ("403 Forbidden\r\nContent-Length: 0\r\n\r\n", "has no image"),
    ] {
        let host = with_token_server(answer).await;
        let reference = Reference::parse(&format!("{host}/team/web:1")).unwrap();
        let registries = RegistryConfig::default();
        let pulled = pull(&store, &registries, &reference, None, &mpsc::channel(1).0).await;
        let resolved = resolve(&registries, &reference, None).await;
        for error in [pulled.map(drop).unwrap_err(), resolved.map(drop).unwrap_err()] {
            assert!(error.to_string().contains(words), "{answer}: {error}");
        }
    }
}

/// A registry that says of everything the same, head and body, and then goes on with zeros until nobody listens.
async fn endless(head: &'static str) -> (String, Arc<AtomicU64>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut asked = vec![0; 4096];
                let read = client.read(&mut asked).await.unwrap_or(0);
                let is_door = asked[..read].starts_with(b"GET /v2/ ");
                let door = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                if client.write_all(if is_door { door } else { head }.as_bytes()).await.is_err() || is_door {
                    return;
                }
                let zeros = vec![b' '; 64 << 10];
                while asked.starts_with(b"GET") && client.write_all(&zeros).await.is_ok() {
                    counted.fetch_add(zeros.len() as u64, SeqCst);
                }
            });
        }
    });
    (host, sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_sends_without_end_is_not_listened_to() {
    orch_proto::tls::install_crypto_provider();
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let registries = RegistryConfig::default();
    const MANIFEST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4000000000\r\nConnection: close\r\n\r\n";
    const REFUSAL: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 4000000000\r\nConnection: close\r\n\r\n";
    for (head, expected) in [(MANIFEST, "larger than 8 MiB"), (REFUSAL, "has no image")] {
        let (host, sent) = endless(head).await;
        let reference = Reference::parse(&format!("{host}/web:1")).unwrap();
        let pulled = pull(&store, &registries, &reference, None, &mpsc::channel(1).0).await.map(drop);
        let resolved = resolve(&registries, &reference, None).await.map(drop);
        for refused in [pulled, resolved] {
            let said = refused.unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
        // What lies in buffers on the way counts as sent.
        assert!(sent.load(SeqCst) < 100 << 20, "{} bytes were taken", sent.load(SeqCst));
    }
}

/// What is said of a question instead of passing it on to the registry.
enum Said {
    /// A status line, headers and a body, all of it.
    Text(String),
    /// The same, and then spaces until nobody listens.
    Endless(String),
}

/// Before a registry, on plain HTTP: `say` decides by a question's path and its token.
async fn before(
    registry: &Registry,
    say: impl Fn(&str, Option<&str>) -> Option<Said> + Send + Sync + 'static,
) -> (String, Arc<AtomicU64>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (sent, say) = (Arc::new(AtomicU64::new(0)), Arc::new(say));
    let (counted, upstream) = (sent.clone(), registry.host.clone());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (counted, upstream, say) = (counted.clone(), upstream.clone(), say.clone());
            tokio::spawn(async move {
                let mut head = vec![0; 16 << 10];
                let read = client.read(&mut head).await.unwrap_or(0);
                // One that tries TLS is sent away.
                let Some(question) = std::str::from_utf8(&head[..read]).ok().filter(|text| text.ends_with("\r\n\r\n"))
                else {
                    return;
                };
                let (first, rest) = question.split_once("\r\n").unwrap();
                let token = rest.lines().find_map(|line| line.strip_prefix("authorization: Bearer "));
                match say(first.split(' ').nth(1).unwrap(), token) {
                    Some(Said::Text(text)) => drop(client.write_all(text.as_bytes()).await),
                    Some(Said::Endless(text)) => {
                        let _ = client.write_all(text.as_bytes()).await;
                        let spaces = vec![b' '; 64 << 10];
                        while counted.fetch_add(spaces.len() as u64, SeqCst) < 200 << 20
                            && client.write_all(&spaces).await.is_ok()
                        {}
                    }
                    None => {
                        let mut server = tokio::net::TcpStream::connect(&upstream).await.unwrap();
                        let question = format!("{first}\r\nConnection: close\r\n{rest}");
                        server.write_all(question.as_bytes()).await.unwrap();
                        let _ = tokio::io::copy(&mut server, &mut client).await;
                    }
                }
            });
        }
    });
    (host, sent)
}

const ENDLESS: &str = "Content-Length: 4000000000\r\nConnection: close\r\n\r\n";

/// What asks for a token, and what is said of whoever comes without.
fn unauthorized() -> Said {
    let challenge = "WWW-Authenticate: Bearer realm=\"http://REALM/token\",service=\"s\"";
    Said::Text(format!("HTTP/1.1 401 Unauthorized\r\n{challenge}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
}

fn token(text: &str) -> Said {
    let body = serde_json::json!({ "token": text }).to_string();
    Said::Text(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()))
}

async fn pull_from(host: &str) -> (Result<StoredImage, PullError>, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let reference = Reference::parse(&format!("{host}/team/web:1")).unwrap();
    let begun = std::time::Instant::now();
    let pulled = pull(&store, &RegistryConfig::default(), &reference, None, &mpsc::channel(1).0).await;
    (pulled.map(|(image, _)| image), begun.elapsed())
}

/// A registry with a token server: `given` says of the nth token what it is, `say` what is said to whom has it.
async fn with_tokens(
    registry: &Registry,
    given: impl Fn(u64) -> Said + Send + Sync + 'static,
    say: impl Fn(&str, &str) -> Option<Said> + Send + Sync + 'static,
) -> (String, Arc<AtomicU64>, Arc<AtomicU64>) {
    let tokens = Arc::new(AtomicU64::new(0));
    let (realm, counted) = (Arc::new(std::sync::OnceLock::<String>::new()), tokens.clone());
    let known = realm.clone();
    let (host, sent) = before(registry, move |path, shown| match shown {
        _ if path.starts_with("/token") => Some(given(counted.fetch_add(1, SeqCst) + 1)),
        Some(shown) if path != "/v2/" => say(path, shown),
        _ => match unauthorized() {
            Said::Text(text) => Some(Said::Text(text.replace("REALM", known.get().unwrap()))),
            endless @ Said::Endless(_) => Some(endless),
        },
    })
    .await;
    realm.set(host.clone()).unwrap();
    (host, tokens, sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_had_its_time_is_followed_by_another() {
    orch_proto::tls::install_crypto_provider();
    let registry = registry().await;
    let digest = push(&registry, "team/web").await;
    let refused = || Some(Said::Text("HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()));
    // Good for the manifest only; then as long as it is wanted.
    let for_manifest =
        move |path: &str, shown: &str| if path.contains("/blobs/") && shown == "t1" { refused() } else { None };
    let (host, tokens, _) = with_tokens(&registry, |n| token(&format!("t{n}")), for_manifest).await;
    assert_eq!(pull_from(&host).await.0.unwrap().digest, digest);
    assert_eq!(tokens.load(SeqCst), 2);

    // Never good: one more is asked for, not one after another.
    let (host, tokens, _) = with_tokens(&registry, |n| token(&format!("t{n}")), move |_, _| refused()).await;
    assert!(matches!(pull_from(&host).await.0, Err(PullError::NotFound { .. })));
    assert_eq!(tokens.load(SeqCst), 1);

    // What is no token ends the pull, not the worker.
    let (host, _, _) = with_tokens(&registry, |n| token(if n == 1 { "t1" } else { "a\nb" }), for_manifest).await;
    let said = pull_from(&host).await.0.unwrap_err().to_string();
    assert!(said.contains("header value"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_with_tokens_is_left_alone_for_as_long_as_it_says() {
    orch_proto::tls::install_crypto_provider();
    let registry = registry().await;
    let digest = push(&registry, "team/web").await;
    let asked = AtomicU64::new(0);
    let busy = move |path: &str, _: &str| {
        let is_busy = path.contains("/manifests/") && asked.fetch_add(1, SeqCst) == 0;
        let body = r#"{"errors":[{"code":"UNKNOWN","message":"slow down"}]}"#;
        let head = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nConnection: close";
        is_busy.then(|| Said::Text(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())))
    };
    let (host, _, _) = with_tokens(&registry, |_| token("t"), busy).await;
    let (pulled, took) = pull_from(&host).await;
    assert_eq!(pulled.unwrap().digest, digest);
    assert!(took >= Duration::from_secs(2), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_refusal_nor_a_token_without_end_is_listened_to() {
    orch_proto::tls::install_crypto_provider();
    let registry = registry().await;
    let _ = push(&registry, "team/web").await;
    let endless = |status: &str| Some(Said::Endless(format!("HTTP/1.1 {status}\r\n{ENDLESS}")));
    let blob = move |path: &str, _: Option<&str>| path.contains("/blobs/").then(|| endless("404 Not Found")).flatten();
    let (refusing, refused) = before(&registry, blob).await;
    let (giving, _, given) = with_tokens(&registry, move |_| endless("200 OK").unwrap(), |_, _| None).await;
    for (host, sent, words) in [(refusing, refused, "404"), (giving, given, "its token server sends too much")] {
        let said = pull_from(&host).await.0.unwrap_err().to_string();
        assert!(said.contains(words), "{said}");
        // What lies in buffers on the way counts as sent.
        assert!(sent.load(SeqCst) < 100 << 20, "{} bytes were taken", sent.load(SeqCst));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_registry_sends_one_on_to_is_named() {
    orch_proto::tls::install_crypto_provider();
    let registry = registry().await;
    let redirect = |path: &str, _: Option<&str>| {
        let head = "HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0";
        path.contains("/manifests/").then(|| Said::Text(format!("{head}\r\nConnection: close\r\n\r\n")))
    };
    let (host, _) = before(&registry, redirect).await;
    let said = pull_from(&host).await.0.unwrap_err().to_string();
    let expected = format!("registry {host} sends one on to 127.0.0.1:1, which cannot be used: ");
    assert!(said.starts_with(&expected), "{said}");

    // One that works is gone to, and one that leads nowhere is not gone to for ever.
    let digest = push(&registry, "team/web").await;
    let storage = registry.host.clone();
    let onward = move |path: &str, _: Option<&str>| {
        let head = format!("HTTP/1.1 307 Elsewhere\r\nLocation: http://{storage}{path}\r\nContent-Length: 0");
        path.contains("sha256").then(|| Said::Text(format!("{head}\r\nConnection: close\r\n\r\n")))
    };
    let (host, _) = before(&registry, onward).await;
    assert_eq!(pull_from(&host).await.0.unwrap().digest, digest);
    let around = |path: &str, _: Option<&str>| {
        let head = format!("HTTP/1.1 307 Elsewhere\r\nLocation: {path}\r\nContent-Length: 0");
        path.contains("/manifests/").then(|| Said::Text(format!("{head}\r\nConnection: close\r\n\r\n")))
    };
    let (host, _) = before(&registry, around).await;
    let said = pull_from(&host).await.0.unwrap_err().to_string();
    assert!(said.contains("it sends one on and on"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_gives_something_else_is_named() {
    orch_proto::tls::install_crypto_provider();
    let registry = registry().await;
    let digest = push(&registry, "team/web").await;
    let other = |path: &str, _: Option<&str>| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close";
        path.contains("/manifests/").then(|| Said::Text(format!("{head}\r\n\r\n{{}}")))
    };
    let (host, _) = before(&registry, other).await;
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let reference = Reference::parse(&format!("{host}/team/web@{digest}")).unwrap();
    let pulled = pull(&store, &RegistryConfig::default(), &reference, None, &mpsc::channel(1).0).await;
    let said = pulled.map(drop).unwrap_err().to_string();
    assert!(said.starts_with(&format!("registry {host}: the content of {digest} has the digest sha256:")), "{said}");
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
