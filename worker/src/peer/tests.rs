//! Grants one by one, and a fetch between two nodes over mutual TLS.

use orch_model::{ClusterId, NodeId, TaskId, assignment::ImageSource, cluster::RootCa};
use orch_proto::{
    ca::{generate_root, new_key_and_csr, sign_blob, sign_csr},
    tls::{Identity, install_crypto_provider},
    transport::shared_channel,
    wire::{PullProgress, peer_client::PeerClient, pull_progress},
};

use super::*;
use crate::image::{
    config::ImageConfig,
    fetch, import,
    pull::Progress,
    reference::Reference,
    store::{ImageStore, StoredImage},
};

/// Progress that nobody follows.
fn unheard() -> Progress {
    tokio::sync::mpsc::channel(1).0
}

const HOUR: Duration = Duration::from_secs(3600);

fn root(cluster: &ClusterId) -> RootCa {
    install_crypto_provider();
    generate_root(cluster, SystemTime::now()).unwrap()
}

fn identity(root: &RootCa, cluster: &ClusterId, node: &NodeId) -> Identity {
    let keys = new_key_and_csr().unwrap();
    let cert = sign_csr(root, &keys.csr_pem, node, cluster, NodeRole::Worker, HOUR, SystemTime::now()).unwrap();
    Identity::from_pem(root.cert_pem.clone(), cert, keys.key_pem.to_string()).unwrap()
}

fn grant(root: &RootCa, node: &NodeId, digest: &str, expires_at: SystemTime) -> Vec<u8> {
    let grant =
        FetchGrant { node_id: node.to_string(), image_digest: digest.to_owned(), expires_at_ms: unix_ms(expires_at) }
            .encode_to_vec();
    let signature = sign_blob(root, &grant).unwrap();
    SignedGrant { grant: grant.into(), signature: signature.into() }.encode_to_vec()
}

#[test]
fn a_grant_is_for_one_node_one_image_and_some_time() {
    let cluster = ClusterId::from_random(1);
    let (ours, theirs) = (root(&cluster), root(&cluster));
    let (me, other) = (NodeId::from_random(2), NodeId::from_random(3));
    let now = SystemTime::now();
    let check = |signer: &RootCa, node: &NodeId, digest: &str, expires_at, expected| {
        let request = FetchBlobRequest {
            digest: "blob".to_owned(),
            image_digest: "image".to_owned(),
            grant: grant(signer, node, digest, expires_at).into(),
            offset: 0,
        };
        let caller = PeerIdentity {
            node_id: me.clone(),
            cluster_id: cluster.clone(),
            role: NodeRole::Worker,
            issued_at: SystemTime::now(),
        };
        assert_eq!(check_grant(&ours.cert_pem, &caller, &request, now), expected);
    };
    check(&ours, &me, "image", now + HOUR, Ok(()));
    check(&theirs, &me, "image", now + HOUR, Err(GrantError::Signature));
    check(&ours, &other, "image", now + HOUR, Err(GrantError::AnotherNode));
    check(&ours, &me, "other", now + HOUR, Err(GrantError::AnotherImage));
    check(&ours, &me, "image", now - HOUR, Err(GrantError::Expired));
}

fn imported(store: &ImageStore) -> StoredImage {
    imported_for(store, import::architecture())
}

fn imported_for(store: &ImageStore, architecture: &str) -> StoredImage {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    // More than one chunk.
    let content = vec![7; 3 * CHUNK_BYTES + 1];
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "data", content.as_slice()).unwrap();
    let layer = store.put_bytes(&tar.into_inner().unwrap(), None).unwrap();
    let config = ImageConfig { architecture: architecture.to_owned(), os: "linux".to_owned(), ..Default::default() };
    import::import(store, &layer, config, "").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_fetches_an_image_from_another() {
    let cluster = ClusterId::from_random(1);
    let ca = root(&cluster);
    let (holder, asker) = (NodeId::from_random(2), NodeId::from_random(3));
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [has, wants] = [0, 1].map(|n: usize| ImageStore::open(dirs[n].path()).unwrap());
    let image = imported(&has);

    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let members = Members::default();
    tokio::spawn(serve(listener, SharedIdentity::new(identity(&ca, &cluster, &holder)), has.clone(), members.clone()));
    let mine = SharedIdentity::new(identity(&ca, &cluster, &asker));
    let source = |grant: Vec<u8>| ImageSource {
        task: TaskId::from_random(9),
        name: "docker.io/library/x:latest".to_owned(),
        digest: image.digest.clone(),
        // The first one is dead.
        holders: vec!["127.0.0.1:1".to_owned(), addr.clone()],
        grant,
    };
    let now = SystemTime::now();
    let refused =
        fetch::fetch(&wants, &mine, &source(grant(&ca, &holder, &image.digest, now + HOUR)), &unheard()).await;
    assert!(refused.unwrap_err().to_string().contains("another node"));
    assert!(wants.list().is_empty());

    // A grant outlives a node that was removed.
    members.set([holder.to_string()].into());
    let refused = fetch::fetch(&wants, &mine, &source(grant(&ca, &asker, &image.digest, now + HOUR)), &unheard()).await;
    assert!(refused.unwrap_err().to_string().contains("not in the cluster"));
    assert!(wants.list().is_empty());
    // Of a new one, word may come a moment later.
    let (telling, both) = (members.clone(), [&holder, &asker].map(ToString::to_string).into());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        telling.set(both);
    });
    let (progress, mut steps) = tokio::sync::mpsc::channel(100);
    let fetched =
        fetch::fetch(&wants, &mine, &source(grant(&ca, &asker, &image.digest, now + HOUR)), &progress).await.unwrap();
    let mut states = Vec::new();
    let asked = steps.try_recv().unwrap().progress.unwrap();
    assert_eq!(asked, pull_progress::Progress::Asking("other nodes".to_owned()));
    while let Ok(PullProgress { progress: Some(pull_progress::Progress::Layer(layer)) }) = steps.try_recv() {
        states.push((layer.state, layer.done_bytes == layer.total_bytes));
    }
    assert_eq!(states.first(), Some(&("waiting".to_owned(), false)));
    assert_eq!(states.last(), Some(&("done".to_owned(), true)));
    assert!(states.contains(&("downloading".to_owned(), false)), "{states:?}");
    assert_eq!(fetched.digest, image.digest);
    assert_eq!(fetched.record.diff_ids, image.record.diff_ids);
    let data = wants.layer_path(&fetched.record.diff_ids[0]).unwrap().join("data");
    assert_eq!(std::fs::metadata(data).unwrap().len(), 3 * CHUNK_BYTES as u64 + 1);
}

/// A node of a cluster with an image store, and its blobs to be had.
struct Node {
    store: ImageStore,
    identity: SharedIdentity,
    id: NodeId,
    addr: String,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn start(ca: &RootCa, cluster: &ClusterId, n: u128) -> Self {
        let (id, dir) = (NodeId::from_random(n), tempfile::tempdir().unwrap());
        let store = ImageStore::open(dir.path()).unwrap();
        let identity = SharedIdentity::new(identity(ca, cluster, &id));
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        tokio::spawn(serve(listener, identity.clone(), store.clone(), Members::default()));
        Self { store, identity, id, addr, _dir: dir }
    }

    /// Fetches what `digest` names from others.
    async fn fetch(&self, ca: &RootCa, digest: &str, holders: &[&Self]) -> Result<StoredImage, fetch::FetchError> {
        let source = ImageSource {
            task: TaskId::from_random(9),
            name: "docker.io/library/x:latest".to_owned(),
            digest: digest.to_owned(),
            holders: holders.iter().map(|holder| holder.addr.clone()).collect(),
            grant: grant(ca, &self.id, digest, SystemTime::now() + HOUR),
        };
        fetch::fetch(&self.store, &self.identity, &source, &unheard()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_its_own_platforms_image_of_an_index() {
    const ELSEWHERE: &str = "pdp11";
    let cluster = ClusterId::from_random(1);
    let ca = root(&cluster);
    let [other, same, asker, last] = [2, 3, 4, 5].map(|n| Node::start(&ca, &cluster, n));
    let (other, same, asker, last) = tokio::join!(other, same, asker, last);
    let theirs = imported_for(&other.store, ELSEWHERE);
    let ours = imported(&same.store);
    assert_ne!(theirs.digest, ours.digest);
    let entry = |image: &StoredImage, architecture: &str| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.digest, "size": 1,
            "platform": { "architecture": architecture, "os": "linux" },
        })
    };
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(&theirs, ELSEWHERE), entry(&ours, import::architecture())],
    });
    let index = index.to_string();
    let pinned = |digest: &str| Reference::parse(&format!("x@{digest}")).unwrap();
    let mut digest = String::new();
    for (node, image) in [(&other, &theirs), (&same, &ours)] {
        digest = node.store.put_bytes(index.as_bytes(), None).unwrap();
        node.store.set_name(&pinned(&digest), &image.digest).unwrap();
    }

    // A node of another platform has the index, but nothing that would run here: the registry is asked then.
    let refused = asker.fetch(&ca, &digest, &[&other]).await.unwrap_err();
    assert!(crate::image::chain(&refused).contains("does not belong to the image"), "{refused:?}");
    assert!(asker.store.list().is_empty());

    // One of the same platform is found behind it.
    let fetched = asker.fetch(&ca, &digest, &[&other, &same]).await.unwrap();
    assert_eq!(fetched.digest, ours.digest);
    asker.store.set_name(&pinned(&digest), &fetched.digest).unwrap();
    // The index stays as long as its name does, and goes on to others.
    let gone = imported_for(&asker.store, ELSEWHERE);
    let _ = asker.store.remove(&gone.digest, None).unwrap();
    assert_eq!(asker.store.read_blob(&digest).unwrap(), index.as_bytes());
    assert_eq!(last.fetch(&ca, &digest, &[&asker]).await.unwrap().digest, ours.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_busy_is_asked_again() {
    let cluster = ClusterId::from_random(1);
    let ca = root(&cluster);
    let [holder, asker] = [2, 3].map(|n| Node::start(&ca, &cluster, n));
    let (holder, asker) = tokio::join!(holder, asker);
    let image = imported(&holder.store);
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let incoming = tls_incoming(listener, holder.identity.clone());
    let slots = Arc::new(Semaphore::new(0));
    let (identity, store) = (holder.identity.clone(), holder.store.clone());
    let service = PeerServer::new(Blobs { identity, store, slots: slots.clone(), members: Members::default() });
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let holder = Node { addr, ..holder };
    let channel = shared_channel(&holder.addr, &asker.identity, NodeRole::Worker).await.unwrap();
    let request = FetchBlobRequest {
        digest: image.digest.clone(),
        image_digest: image.digest.clone(),
        grant: grant(&ca, &asker.id, &image.digest, SystemTime::now() + HOUR).into(),
        offset: 0,
    };
    let refused = PeerClient::new(channel).fetch_blob(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    tokio::spawn(async move {
        tokio::time::sleep(3 * SLOT_LIMIT).await;
        slots.add_permits(MAX_FETCHES);
    });
    let fetched = asker.fetch(&ca, &image.digest, &[&holder]).await;
    assert_eq!(fetched.map(|image| image.digest).map_err(|error| crate::image::chain(&error)), Ok(image.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_far_away_is_asked_when_the_near_ones_cannot_give_it() {
    let cluster = ClusterId::from_random(1);
    let ca = root(&cluster);
    let [near, holder, asker] = [2, 3, 4].map(|n| Node::start(&ca, &cluster, n));
    let (near, holder, asker) = tokio::join!(near, holder, asker);
    let image = imported(&holder.store);
    let way = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, to) = (way.local_addr().unwrap().to_string(), holder.addr.clone());
    tokio::spawn(async move {
        while let Ok((mut from, _)) = way.accept().await {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mut to = tokio::net::TcpStream::connect(&to).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
        }
    });
    let far = Node { addr, ..holder };
    let fetched = asker.fetch(&ca, &image.digest, &[&near, &far]).await;
    assert_eq!(fetched.map(|image| image.digest).map_err(|error| crate::image::chain(&error)), Ok(image.digest));
}

/// What a node does that gives others nothing of use.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Forges,
    EndsEarly,
    Drips,
    ForgesAndStopsThere,
}

struct Harmful {
    store: ImageStore,
    harm: Harm,
}

#[tonic::async_trait]
impl Peer for Harmful {
    type FetchBlobStream = BoxStream<'static, Result<BlobChunk, Status>>;

    async fn fetch_blob(&self, request: Request<FetchBlobRequest>) -> Result<Response<Self::FetchBlobStream>, Status> {
        let (path, harm) = (self.store.blob_path(&request.get_ref().digest).unwrap(), self.harm);
        let content = std::fs::read(path).unwrap();
        let half = content.len() / 2;
        let pieces: Vec<Bytes> = match harm {
            Harm::Forges => vec![vec![0; content.len()].into()],
            Harm::EndsEarly => vec![Bytes::copy_from_slice(&content[..half])],
            Harm::Drips => content.iter().map(|byte| Bytes::copy_from_slice(&[*byte])).collect(),
            Harm::ForgesAndStopsThere => vec![vec![0; half].into()],
        };
        let chunks = async_stream::try_stream! {
            for data in pieces {
                yield BlobChunk { data, total_bytes: content.len() as u64 };
                if matches!(harm, Harm::Drips) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            if matches!(harm, Harm::ForgesAndStopsThere) {
                Err(Status::internal("enough"))?;
            }
        };
        Ok(Response::new(Box::pin(chunks)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_gives_nothing_of_use_is_followed_by_the_next() {
    let cluster = ClusterId::from_random(1);
    let ca = root(&cluster);
    let holder = Node::start(&ca, &cluster, 2).await;
    let image = imported(&holder.store);
    for harm in [Harm::Forges, Harm::EndsEarly, Harm::Drips, Harm::ForgesAndStopsThere] {
        let asker = Node::start(&ca, &cluster, 3).await;
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let incoming = tls_incoming(listener, holder.identity.clone());
        let service = PeerServer::new(Harmful { store: holder.store.clone(), harm });
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        let harmful = Node { addr, store: holder.store.clone(), ..Node::start(&ca, &cluster, 4).await };
        let fetched = asker.fetch(&ca, &image.digest, &[&harmful, &holder]).await;
        assert_eq!(fetched.map(|image| image.digest).map_err(|e| crate::image::chain(&e)), Ok(image.digest.clone()));
        let alone = Node::start(&ca, &cluster, 5).await;
        let refused = alone.fetch(&ca, &image.digest, &[&harmful]).await;
        assert!(refused.is_err(), "{harm:?}");
    }
}
