//! Registries that break off, or are busy.

use super::*;

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
