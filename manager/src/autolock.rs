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
    time::{sleep, timeout},
};
use tonic::{Code, Status, body::Body, transport::Server};
use tower::{Layer, Service};

use crate::{
    api::status,
    home::Home,
    log::{Aad, KeyRing, Kind, SealError, Sealer, from_hex, to_hex},
    raft::Consensus,
};

/// A renewed TLS key is open on the disk for no longer than this.
const LOOK: Duration = Duration::from_secs(1);
const SEALED_HEADING: &str = "orch sealed key 1\n";
const SOCKET_MODE: u32 = 0o660;
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

/// Brings the keys on the disk to what the cluster's state asks for, again and again.
pub(crate) async fn keep(home: Arc<Home>, consensus: Consensus, sealer: Arc<Sealer>, unlock: Option<UnlockKey>) {
    // What the log held at the start has been acted on; a state that is older says nothing.
    let floor = consensus.last_log_index();
    let mut wanted = unlock.map(|key| key.text());
    loop {
        {
            let view = consensus.store().view();
            if let Some(cluster) = view.state.cluster().filter(|_| view.index >= floor) {
                wanted.clone_from(&cluster.unlock_key);
            }
        }
        if let Err(error) = bring(&home, &sealer, wanted.as_ref()) {
            tracing::error!(error = format!("{error:#}"), "cannot change how this manager's keys lie on the disk");
        }
        sleep(LOOK).await;
    }
}

fn bring(home: &Home, sealer: &Sealer, wanted: Option<&UnlockKeyText>) -> anyhow::Result<()> {
    let unlock = wanted.map(|text| UnlockKey::parse(&text.0)).transpose()?;
    // The TLS key first: locked data keys with an open TLS key would be half a lock.
    let tls = home.tls();
    let rewrite = |now: &str, identity: &Identity| match (&unlock, now.starts_with(SEALED_HEADING)) {
        (Some(_), false) => {
            let sealed = sealer.seal(Aad::single(Kind::TlsKey), identity.key_pem.as_bytes()).ok()?;
            Some(format!("{SEALED_HEADING}{}\n", to_hex(&sealed)))
        }
        (None, true) => Some(identity.key_pem.clone()),
        (Some(_), true) | (None, false) => None,
    };
    let open = |text| open_text(sealer, &tls, text);
    Identity::rewrite_key(&tls, &open, rewrite).context("the TLS key")?;
    if sealer.keep_locked(&home.keys(), unlock.as_ref())? {
        tracing::info!(locked = unlock.is_some(), "the data keys were written anew");
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
