//! Registries with token servers, and such as say what they should not.

use super::*;

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
