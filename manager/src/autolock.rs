//! Autolock: while it is on, this manager's keys lie on its disk only in a form that the cluster's unlock key opens.
//!
//! The data keys are wrapped with the unlock key; the TLS key is sealed with the data keys, so that one file decides, and
//! a change of the unlock key is done at once or not at all. A manager that starts with locked keys serves nothing but
//! the call that unlocks it, on its local socket.

use std::{
    convert::Infallible,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use http::{Request, Response};
use orch_model::cluster::UnlockKeyText;
use orch_proto::{
    paths::Paths,
    tls::{Identity, TlsError, UnlockKey},
    transport,
    wire::{
        self,
        lock_server::{Lock, LockServer},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status, body::Body, transport::Server};
use tower::{Layer, Service};

use crate::{
    api::status,
    home::Home,
    log::{Aad, Kept, KeyRing, Kind, SealError, Sealer, from_hex, key_of, to_hex},
    raft::Consensus,
};

/// A renewed TLS key is open on the disk for no longer than this.
const LOOK: Duration = Duration::from_secs(1);
const SEALED_HEADING: &str = "orch sealed key 1\n";
const SOCKET_MODE: u32 = 0o660;
/// Between snapshots that are made so that an old data key can go.
const COMPACT_INTERVAL: Duration = Duration::from_secs(20);
/// For the answer to reach whoever unlocked.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a locked manager answers to everything.
const LOCKED: &str = "Cluster is encrypted and needs to be unlocked before it can be used. Please use \"orch unlock\" to \
                      unlock it.";

/// Opens a TLS key that may be sealed.
pub(crate) fn open_tls_key(sealer: Arc<Sealer>, dir: PathBuf) -> impl Fn(String) -> Result<String, TlsError> {
    move |text| open_text(&sealer, &dir, text)
}

fn open_text(sealer: &Sealer, dir: &Path, text: String) -> Result<String, TlsError> {
    let Some(sealed) = text.strip_prefix(SEALED_HEADING) else { return Ok(text) };
    let plain = from_hex(sealed.trim_end()).and_then(|sealed| sealer.open(Aad::single(Kind::TlsKey), &sealed).ok());
    plain.and_then(|plain| String::from_utf8(plain).ok()).ok_or_else(|| TlsError::KeyMismatch { dir: dir.to_owned() })
}

/// Brings the keys on the disk to what the cluster's state asks for, again and again, and lets data keys go that nothing
/// is sealed with any more. Killed at any point, the next start goes on from what lies on the disk.
pub(crate) async fn keep(home: Arc<Home>, consensus: Consensus, sealer: Arc<Sealer>, unlock: Option<UnlockKey>) {
    // What the log held at the start has been acted on; a state that is older says nothing.
    let floor = consensus.last_log_index();
    let mut wanted = unlock.map(|key| key.text());
    let mut compact_at = Instant::now();
    loop {
        {
            let view = consensus.store().view();
            if let Some(cluster) = view.state.cluster().filter(|_| view.index >= floor) {
                wanted.clone_from(&cluster.unlock_key);
            }
        }
        match bring(&home, &sealer, wanted.as_ref()) {
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "cannot change how this manager's keys lie on the disk");
            }
            Ok(unlock) if sealer.has_old_keys() => {
                if let Err(error) = retire(&home, &consensus, &sealer, unlock.as_ref(), &mut compact_at).await {
                    tracing::warn!(error = format!("{error:#}"), "cannot let go of an old data key yet");
                }
            }
            Ok(_) => {}
        }
        sleep(LOOK).await;
    }
}

fn bring(home: &Home, sealer: &Sealer, wanted: Option<&UnlockKeyText>) -> anyhow::Result<Option<UnlockKey>> {
    let unlock = wanted.map(|text| UnlockKey::parse(&text.0)).transpose()?;
    // The TLS key first: locked data keys with an open TLS key would be half a lock.
    keep_tls_key(home, sealer, unlock.is_some())?;
    match sealer.keep_locked(&home.keys(), unlock.as_ref())? {
        Kept::AsItWas => {}
        Kept::Opened => tracing::info!("autolock is off: the data keys lie open"),
        Kept::Locked => {
            tracing::info!(data_key = sealer.current_key(), "the data keys are locked, and a new one is used");
            keep_tls_key(home, sealer, true)?;
        }
    }
    Ok(unlock)
}

/// The TLS key lies open, or sealed with the current data key.
fn keep_tls_key(home: &Home, sealer: &Sealer, locked: bool) -> anyhow::Result<()> {
    let tls = home.tls();
    let rewrite = |now: &str, identity: &Identity| match (locked, key_of_text(now)) {
        (true, sealed_with) if sealed_with != Some(sealer.current_key()) => {
            let sealed = sealer.seal(Aad::single(Kind::TlsKey), identity.key_pem.as_bytes()).ok()?;
            Some(format!("{SEALED_HEADING}{}\n", to_hex(&sealed)))
        }
        (false, Some(_)) => Some(identity.key_pem.clone()),
        (true, _) | (false, None) => None,
    };
    let open = |text| open_text(sealer, &tls, text);
    Identity::rewrite_key(&tls, &open, rewrite).context("the TLS key")
}

/// The data key that a sealed TLS key needs.
fn key_of_text(text: &str) -> Option<u32> {
    let sealed = from_hex(text.strip_prefix(SEALED_HEADING)?.trim_end())?;
    key_of(&sealed).ok()
}

/// Lets the old data keys go once nothing on the disk needs them. What still does goes with the next snapshot, which is
/// made for it.
async fn retire(
    home: &Home,
    consensus: &Consensus,
    sealer: &Sealer,
    unlock: Option<&UnlockKey>,
    compact_at: &mut Instant,
) -> anyhow::Result<()> {
    consensus.reseal().await.context("sealing the vote anew")?;
    let current = sealer.current_key();
    if consensus.keys_in_use().await?.iter().all(|key| *key == current) {
        // A renewal may have come in between.
        keep_tls_key(home, sealer, unlock.is_some())?;
        sealer.drop_old_keys(&home.keys(), unlock)?;
        tracing::info!(data_key = current, "the old data keys are gone");
        return Ok(());
    }
    // Nothing to compact before raft has applied something, or while it is busy with it.
    if Instant::now() >= *compact_at {
        *compact_at = Instant::now() + COMPACT_INTERVAL;
        consensus.compact().await.context("making a snapshot")?;
    }
    Ok(())
}

/// Serves a locked manager until somebody brings the key that opens it.
pub(crate) async fn wait_for_key(
    paths: &Paths,
    stopping: impl Future<Output = ()>,
) -> anyhow::Result<Option<UnlockKey>> {
    tracing::warn!("the keys of this manager are locked: waiting for \"orch unlock\"");
    let home = Arc::new(Home::open(paths)?);
    let (sender, mut key) = mpsc::channel(1);
    let socket = transport::unix_incoming(&paths.manager_sock(), SOCKET_MODE)?;
    let found: Arc<Mutex<Option<UnlockKey>>> = Arc::default();
    let lock = Locked { keys: home.keys(), found: Arc::clone(&found), opened: sender };
    let opened = async {
        tokio::select! {
            _ = key.recv() => {}
            () = stopping => {}
        }
    };
    let serving = Server::builder()
        .layer(OnlyUnlock)
        .add_service(LockServer::new(lock))
        .serve_with_incoming_shutdown(socket, opened);
    tokio::pin!(serving);
    loop {
        if found.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            // Clients that keep their connection must not keep the manager from starting.
            let _ = timeout(FAREWELL, &mut serving).await;
            break;
        }
        if let Ok(ended) = timeout(LOOK / 10, &mut serving).await {
            ended.context("the local server of the locked manager failed")?;
            break;
        }
    }
    Ok(found.lock().unwrap_or_else(PoisonError::into_inner).take())
}

struct Locked {
    keys: PathBuf,
    found: Arc<Mutex<Option<UnlockKey>>>,
    opened: mpsc::Sender<()>,
}

#[tonic::async_trait]
impl Lock for Locked {
    async fn unlock(&self, request: tonic::Request<wire::UnlockKey>) -> Result<tonic::Response<wire::Empty>, Status> {
        let refused = |stable, text: String| status::with_code(Code::InvalidArgument, stable, text);
        let key = UnlockKey::parse(&request.into_inner().key).map_err(|e| refused("bad-unlock-key", e.to_string()))?;
        match KeyRing::load_or_create(&self.keys, Some(&key)) {
            Ok(_) => {}
            Err(SealError::WrongUnlockKey { .. }) => {
                return Err(refused(
                    "wrong-unlock-key",
                    "invalid key: it does not open this manager. One that was off while the key was rotated opens with \
                     the key of that time"
                        .to_owned(),
                ));
            }
            Err(other) => return Err(Status::internal(other.to_string())),
        }
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
        // Somebody else was as quick.
        let _ = self.opened.try_send(());
        Ok(tonic::Response::new(wire::Empty {}))
    }
}

/// A manager that is not locked has nothing to unlock.
pub(crate) struct Unlocked;

#[tonic::async_trait]
impl Lock for Unlocked {
    async fn unlock(&self, _: tonic::Request<wire::UnlockKey>) -> Result<tonic::Response<wire::Empty>, Status> {
        Err(status::with_code(Code::FailedPrecondition, "not-locked", "this manager is not locked"))
    }
}

/// Answers everything but the unlocking call.
#[derive(Clone)]
struct OnlyUnlock;

impl<S> Layer<S> for OnlyUnlock {
    type Service = OnlyUnlockService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OnlyUnlockService(inner)
    }
}

#[derive(Clone)]
struct OnlyUnlockService<S>(S);

impl<S> Service<Request<Body>> for OnlyUnlockService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() == "/orch.v1.Lock/Unlock" {
            return Box::pin(self.0.call(request));
        }
        Box::pin(async { Ok(status::with_code(Code::FailedPrecondition, "locked", LOCKED).into_http()) })
    }
}
