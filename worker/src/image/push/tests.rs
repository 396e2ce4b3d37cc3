//! Uploads to a real registry (Debian's docker-registry must be installed), and to one that is in trouble.

use std::{collections::HashMap, sync::Mutex};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::image::{
    config::ImageConfig,
    import,
    pull::tests::{Registry, registry},
};

struct Local {
    store: ImageStore,
    image: StoredImage,
    _dir: tempfile::TempDir,
}

/// An image of one small layer.
fn local() -> Local {
    orch_proto::tls::install_crypto_provider();
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
    let layer = store.put_bytes(&tar.into_inner().unwrap(), None).unwrap();
    let image = import::import(&store, &layer, ImageConfig::default(), "").unwrap();
    Local { store, image, _dir: dir }
}

impl Local {
    /// What came of it, and the states that were shown.
    async fn push(&self, name: &str, login: Option<&wire::RegistryAuth>) -> (Result<(), PullError>, Vec<String>) {
        let (progress, mut messages) = mpsc::channel(100);
        let name = Reference::parse(name).unwrap();
        let registries = RegistryConfig::default();
        let pushed = push(&self.store, &registries, &name, &self.image, login, &progress).await;
        let mut states = Vec::new();
        while let Ok(message) = messages.try_recv() {
            if let Some(wire::pull_progress::Progress::Layer(layer)) = message.progress {
                states.push(layer.state);
            }
        }
        (pushed, states)
    }
}

async fn digest_at(name: &str) -> String {
    let name = Reference::parse(name).unwrap();
    crate::image::pull::resolve(&RegistryConfig::default(), &name, None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_has_is_not_sent_again() {
    let registry = registry().await;
    let mut local = local();
    let web = format!("{}/team/web:1", registry.host);
    for expected in [&["uploading", "pushed"][..], &["layer-exists"]] {
        let (pushed, states) = local.push(&web, None).await;
        pushed.unwrap();
        assert_eq!(states, expected);
    }
    assert_eq!(digest_at(&web).await, local.image.digest);
    // Known to be in one of its repositories, it is taken from there for another.
    local.image.names = vec![format!("{}/team/web@{}", registry.host, local.image.digest)];
    let other = format!("{}/team/other:1", registry.host);
    let (pushed, states) = local.push(&other, None).await;
    pushed.unwrap();
    assert_eq!(states, ["Mounted from team/web"]);
    assert_eq!(digest_at(&other).await, local.image.digest);
    // Not, though, from where it is no more.
    local.image.names = vec![format!("{}/team/gone@{}", registry.host, local.image.digest)];
    let (pushed, states) = local.push(&format!("{}/team/third:1", registry.host), None).await;
    pushed.unwrap();
    assert_eq!(states, ["uploading", "pushed"]);
}

/// What is said of a question instead of passing it on.
enum Said {
    Text(String),
    /// The same, and then spaces until nobody listens.
    Endless(String),
    /// Nothing: the connection ends.
    Nothing,
}

/// A question's kind, such as `PUT blob`; how many there were of it before; all of its head.
struct Asked<'a> {
    kind: String,
    before: u64,
    head: &'a str,
}

struct Door {
    host: String,
    asked: Arc<Mutex<HashMap<String, u64>>>,
    sent: Arc<AtomicU64>,
}

impl Door {
    /// Before a registry, on plain HTTP.
    async fn before(registry: &Registry, say: impl Fn(&Asked<'_>) -> Option<Said> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let door = Self { host, asked: Arc::default(), sent: Arc::default() };
        let (asked, sent, upstream) = (door.asked.clone(), door.sent.clone(), registry.host.clone());
        let say = Arc::new(say);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (asked, sent, upstream, say) = (asked.clone(), sent.clone(), upstream.clone(), say.clone());
                tokio::spawn(async move { answer(client, &upstream, &asked, &sent, &*say).await });
            }
        });
        door
    }

    fn asked(&self, kind: &str) -> u64 {
        self.asked.lock().unwrap().get(kind).copied().unwrap_or(0)
    }
}

/// One question a connection.
async fn answer(
    mut client: TcpStream,
    upstream: &str,
    asked: &Mutex<HashMap<String, u64>>,
    sent: &AtomicU64,
    say: &(impl Fn(&Asked<'_>) -> Option<Said> + Send + Sync),
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
        // One that tries TLS is sent away.
        head[0].is_ascii_uppercase().then_some(())?;
    }
    let head = String::from_utf8(head).ok()?;
    let (first, rest) = head.split_once("\r\n")?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let of = ["/blobs/", "/manifests/", "/token"].into_iter().find(|of| path.contains(of)).unwrap_or("door");
    let kind = format!("{method} {}", of.trim_matches('/').trim_end_matches('s'));
    let before = {
        let mut asked = asked.lock().unwrap();
        let count = asked.entry(kind.clone()).or_default();
        *count += 1;
        *count - 1
    };
    let said = say(&Asked { kind, before, head: &head });
    if let Some(Said::Nothing) = said {
        return None;
    }
    let length = rest.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body).await.ok()?;
    match said {
        Some(Said::Text(text)) => client.write_all(text.as_bytes()).await.ok(),
        Some(Said::Endless(text)) => {
            client.write_all(text.as_bytes()).await.ok()?;
            let spaces = vec![b' '; 64 << 10];
            while sent.fetch_add(spaces.len() as u64, Relaxed) < 200 << 20 {
                client.write_all(&spaces).await.ok()?;
            }
            Some(())
        }
        Some(Said::Nothing) | None => {
            let mut server = TcpStream::connect(upstream).await.ok()?;
            server.write_all(format!("{first}\r\nConnection: close\r\n{rest}").as_bytes()).await.ok()?;
            server.write_all(&body).await.ok()?;
            tokio::io::copy(&mut server, &mut client).await.ok().map(drop)
        }
    }
}

fn text(status: &str, headers: &str, body: &str) -> Option<Said> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    Some(Said::Text(head + body))
}

const KINDS: [&str; 4] = ["HEAD blob", "POST blob", "PUT blob", "PUT manifest"];

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_in_trouble_is_asked_again() {
    let registry = registry().await;
    for (n, trouble) in ["429 Too Many Requests", "503 Service Unavailable", "500 No", ""].into_iter().enumerate() {
        let door = Door::before(&registry, move |asked| {
            if asked.before > 0 || !KINDS.contains(&asked.kind.as_str()) {
                return None;
            }
            if trouble.is_empty() { Some(Said::Nothing) } else { text(trouble, "", "later") }
        })
        .await;
        let local = local();
        let name = format!("{}/team/n{n}:1", door.host);
        let (pushed, _) = local.push(&name, None).await;
        pushed.unwrap_or_else(|error| panic!("{trouble}: {error}"));
        assert_eq!(digest_at(&name).await, local.image.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_begins_anew() {
    let registry = registry().await;
    let cut = |asked: &Asked<'_>| (asked.kind == "PUT blob" && asked.before < 2).then_some(Said::Nothing);
    let door = Door::before(&registry, cut).await;
    let local = local();
    let name = format!("{}/team/web:1", door.host);
    local.push(&name, None).await.0.unwrap();
    assert_eq!((digest_at(&name).await, door.asked("PUT blob")), (local.image.digest.clone(), 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn patience_and_attention_end() {
    let registry = registry().await;
    let local = local();
    let busy = |asked: &Asked<'_>| (asked.kind == "PUT manifest").then(|| text("503 No", "", "not now")).flatten();
    let door = Door::before(&registry, busy).await;
    let said = local.push(&format!("{}/team/busy:1", door.host), None).await.0.unwrap_err();
    assert!(matches!(said, PullError::Busy { .. }) && said.to_string().contains("503: not now"), "{said}");
    assert_eq!(door.asked("PUT manifest"), u64::from(patience::ATTEMPTS));
    // Of each of the two blobs.
    for kind in &KINDS[..3] {
        let busy = move |asked: &Asked<'_>| (asked.kind == *kind).then(|| text("500 No", "", "")).flatten();
        let door = Door::before(&registry, busy).await;
        let said = local.push(&format!("{}/team/{}:1", door.host, kind.len()), None).await.0.unwrap_err();
        assert!(said.to_string().contains("it answers 500"), "{said}");
        assert!(door.asked(kind) <= 2 * u64::from(patience::ATTEMPTS), "{kind}: {}", door.asked(kind));
    }

    for kind in KINDS.into_iter().skip(1) {
        let endless = move |asked: &Asked<'_>| {
            let head = "HTTP/1.1 400 No\r\nContent-Length: 4000000000\r\nConnection: close\r\n\r\n";
            (asked.kind == kind).then(|| Said::Endless(head.to_owned()))
        };
        let door = Door::before(&registry, endless).await;
        let said = local.push(&format!("{}/team/endless:1", door.host), None).await.0.unwrap_err();
        assert!(said.to_string().contains("400"), "{kind}: {said}");
        // What lies in buffers on the way counts as sent.
        assert!(door.sent.load(Relaxed) < 100 << 20, "{kind}: {} bytes were taken", door.sent.load(Relaxed));
    }
    for (sent, bytes) in [(0, 100), (99, 100)] {
        let said = stalls(&AtomicU64::new(sent), bytes).await;
        assert!(said.starts_with("it takes nothing for"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_push_is_told() {
    let registry = registry().await;
    let local = local();
    const QUOTA: &str = r#"{"errors":[{"code":"DENIED","message":"the quota is used up"}]}"#;
    for (status, body, words) in [
        ("401 No", "", "requested access to the resource is denied"),
        ("403 No", "", "requested access to the resource is denied"),
        ("403 No", QUOTA, "the quota is used up"),
    ] {
        let refuse = move |asked: &Asked<'_>| (asked.kind == "POST blob").then(|| text(status, "", body)).flatten();
        let door = Door::before(&registry, refuse).await;
        let said = local.push(&format!("{}/team/web:1", door.host), None).await.0.unwrap_err();
        assert!(said.to_string().contains(words), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_not_shown_to_where_a_registry_sends_uploads() {
    let registry = registry().await;
    let local = local();
    let login = wire::RegistryAuth { username: "u".to_owned(), password: "p".to_owned(), ..Default::default() };
    let shown = Arc::new(Mutex::new(Vec::new()));
    let (seen, is_shown) = (shown.clone(), |head: &str| head.contains("\r\nauthorization: Basic "));
    let storage = Door::before(&registry, move |asked| {
        seen.lock().unwrap().push((asked.kind.clone(), is_shown(asked.head)));
        text("201 Created", "", "")
    })
    .await;
    let onward = format!("Location: http://{}/storage/blobs/x?a=b\r\n", storage.host);
    let (seen, sending) = (shown.clone(), onward.clone());
    let door = Door::before(&registry, move |asked| {
        if asked.kind.ends_with("blob") {
            seen.lock().unwrap().push((asked.kind.clone(), is_shown(asked.head)));
        }
        match asked.kind.as_str() {
            "POST blob" => text("202 Accepted", &sending, ""),
            "PUT manifest" => text("201 Created", "", ""),
            _ => None,
        }
    })
    .await;
    local.push(&format!("{}/team/web:1", door.host), Some(&login)).await.0.unwrap();
    let mut shown = std::mem::take(&mut *shown.lock().unwrap());
    shown.sort();
    shown.dedup();
    let expected = [("HEAD blob", true), ("POST blob", true), ("PUT blob", false)];
    assert_eq!(shown, expected.map(|(kind, shown)| (kind.to_owned(), shown)));
}
