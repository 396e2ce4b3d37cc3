//! Images: what they are called, where they come from, how they are kept, and how a container gets its root from one.
//!
//! Invariants: content is only ever taken by digest and checked; an image is used only when all of it is here; the same
//! content is fetched once, however many tasks wait for it.

pub(crate) mod archive;
pub(crate) mod arrival;
pub(crate) mod change;
pub(crate) mod claims;
pub(crate) mod collect;
pub(crate) mod config;
pub(crate) mod fetch;
#[cfg(test)]
mod fuzz;
pub(crate) mod import;
mod partial;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod reference;
pub(crate) mod registry;
pub(crate) mod room;
pub(crate) mod rootfs;
pub(crate) mod store;
pub(crate) mod unpack;

pub(crate) use orch_proto::report::chain;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use orch_model::assignment::ImageSource;
use orch_proto::{tls::SharedIdentity, wire};
use tokio::time::sleep;

use self::{
    claims::{Claim, Claims},
    config::ImageConfig,
    pull::{Progress, PullError},
    reference::{Reference, ReferenceError},
    store::{Asker, ImageStore, StoreError, StoredImage},
};
use crate::config::{CollectConfig, Settings};

/// How often whoever waits for an image to have gone looks again.
const UNTIL_GONE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// In Docker's words, with the reason behind it.
    #[error("No such image: {image}{}; check the name, or bring it into the cluster with `orch image import`", because(.reasons))]
    NotFound { image: String, reasons: Vec<String> },
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn because(reasons: &[String]) -> String {
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

/// Who an image that is not here may come from.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    /// Nodes that have it.
    pub holders: Option<&'a ImageSource>,
    /// For its registry.
    pub login: Option<&'a wire::RegistryAuth>,
}

/// This node's images and the ways to get more.
#[derive(Clone)]
pub(crate) struct Images {
    pub store: ImageStore,
    settings: Settings,
    identity: SharedIdentity,
    /// Told when an image arrived.
    arrived: Arc<tokio::sync::Notify>,
    /// One at a time, so that the leader hears of what comes and goes in that order.
    pub telling: Arc<tokio::sync::Mutex<()>>,
    /// One fetch per reference at a time; the others wait and then find the image here.
    fetching: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    pub claims: Claims,
    /// When an image was wanted last, by digest.
    used: Arc<Mutex<HashMap<String, SystemTime>>>,
    /// Whatever was wanted before is not known.
    opened_at: SystemTime,
}

impl Images {
    pub(crate) fn new(store: ImageStore, settings: Settings, identity: SharedIdentity) -> Self {
        Self {
            store,
            settings,
            identity,
            arrived: Arc::default(),
            telling: Arc::default(),
            fetching: Arc::default(),
            claims: Claims::default(),
            used: Arc::default(),
            opened_at: SystemTime::now(),
        }
    }

    pub(crate) fn collect_config(&self) -> CollectConfig {
        self.settings.collect()
    }

    /// When a task or a user wanted the image last.
    pub(crate) fn used_at(&self, digest: &str) -> SystemTime {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.get(digest).copied().unwrap_or(self.opened_at)
    }

    fn note_use(&self, image: StoredImage) -> StoredImage {
        self.note_used(&image.digest);
        image
    }

    /// Something uses the image now.
    pub(crate) fn note_used(&self, digest: &str) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(digest.to_owned(), SystemTime::now());
        used.retain(|digest, _| self.store.by_digest(digest).is_some());
    }

    /// The image that a task needs: from here, else from another node, else from its registry.
    ///
    /// A name without a digest means what it means here, when it means something here: the cluster gives every name
    /// that it knows a digest, and asking a registry that may be away would hold up every start.
    pub(crate) async fn ensure(
        &self,
        image: &str,
        digest: Option<&str>,
        from: Sources<'_>,
        progress: &Progress,
    ) -> Result<(StoredImage, Claim), ImageError> {
        loop {
            let found = self.found_or_brought(image, digest, from, progress).await?;
            if let Some(kept) = self.keep(found).await {
                return Ok(kept);
            }
        }
    }

    /// Keeps it for whoever makes a container of it, until that is on record. `None`: it was just about to go, and has gone.
    pub(crate) async fn keep(&self, found: StoredImage) -> Option<(StoredImage, Claim)> {
        let claim = loop {
            match self.claims.claim(&found.digest) {
                Some(claim) => break claim,
                None => sleep(UNTIL_GONE).await,
            }
        };
        self.store.by_digest(&found.digest)?;
        Some((self.note_use(found), claim))
    }

    async fn found_or_brought(
        &self,
        image: &str,
        digest: Option<&str>,
        Sources { holders, login }: Sources<'_>,
        progress: &Progress,
    ) -> Result<StoredImage, ImageError> {
        let reference = Reference::parse(image)?;
        let digest = digest.or(holders.map(|holders| holders.digest.as_str())).or(reference.digest.as_deref());
        let name = reference.to_string();
        let here = || self.here(&name, digest);
        if let Some(found) = here() {
            return Ok(found);
        }
        let turn = self.turn(digest.unwrap_or(image));
        let _one_at_a_time = match turn.try_lock() {
            Ok(first) => first,
            Err(_) => {
                pull::asking(progress, "another task's download on this node");
                turn.lock().await
            }
        };
        if let Some(found) = here() {
            return Ok(found);
        }
        let mut reasons = Vec::new();
        if let Some(from) = holders {
            match fetch::fetch(&self.store, &self.identity, from, progress).await {
                Ok(found) => {
                    self.note_fetched(&reference, &from.digest, &found)?;
                    return self.take_in(&reference, found, Asker::Task);
                }
                Err(error) => reasons.push(format!("from other nodes: {}", chain(&error))),
            }
        }
        let wanted = Reference { digest: digest.map(str::to_owned), ..reference.clone() };
        match self.pull_now(&wanted, login, progress).await {
            Ok(found) => self.take_in(&reference, found, Asker::Task),
            Err(error) => {
                reasons.push(chain(&error));
                Err(ImageError::NotFound { image: reference.familiar(), reasons })
            }
        }
    }

    /// What a task is made of, when it is here: by its digest if it has one, whatever its name means.
    pub(crate) fn here(&self, name: &str, digest: Option<&str>) -> Option<StoredImage> {
        match digest {
            Some(digest) => self.store.by_digest(digest),
            None => self.store.find(name),
        }
    }

    /// `orch image pull`: asks the registry even when the name is known here.
    pub(crate) async fn pull(
        &self,
        reference: &Reference,
        auth: Option<&wire::RegistryAuth>,
        progress: &Progress,
    ) -> Result<StoredImage, ImageError> {
        let turn = self.turn(&reference.to_string());
        let _one_at_a_time = turn.lock().await;
        let pulled = self.pull_now(reference, auth, progress).await?;
        Ok(self.note_use(self.take_in(reference, pulled, Asker::User)?))
    }

    /// Uploads an image under a name.
    pub(crate) async fn push(
        &self,
        reference: &Reference,
        image: &StoredImage,
        auth: Option<&wire::RegistryAuth>,
        progress: &Progress,
    ) -> Result<(), PullError> {
        push::push(&self.store, &self.settings.registries(), reference, image, auth, progress).await
    }

    /// Whether a registry takes the login, and what to keep of it.
    pub(crate) async fn check_login(
        &self,
        registry: &str,
        login: &wire::RegistryAuth,
    ) -> Result<wire::RegistryAuth, PullError> {
        pull::check_login(&self.settings.registries(), registry, login).await
    }

    /// What a name means at its registry now.
    pub(crate) async fn resolve(
        &self,
        reference: &Reference,
        login: Option<&wire::RegistryAuth>,
    ) -> Result<String, PullError> {
        pull::resolve(&self.settings.registries(), reference, login).await
    }

    /// Waits for the next image to arrive; may return without one.
    pub(crate) async fn changed(&self) {
        self.arrived.notified().await;
    }

    /// What the image says about running it, and its unpacked layers, bottom first.
    pub(crate) fn parts(&self, image: &StoredImage) -> Result<(ImageConfig, Vec<PathBuf>), StoreError> {
        let config = self.store.config(&image.record.config)?;
        let layers =
            image.record.diff_ids.iter().map(|diff_id| self.store.layer_path(diff_id)).collect::<Result<_, _>>()?;
        Ok((config, layers))
    }

    async fn pull_now(
        &self,
        reference: &Reference,
        auth: Option<&wire::RegistryAuth>,
        progress: &Progress,
    ) -> Result<StoredImage, PullError> {
        let registries = self.settings.registries();
        crate::metrics::IMAGE_PULLS.inc();
        let (image, _) = pull::pull(&self.store, &registries, reference, auth, progress).await?;
        Ok(image)
    }

    /// An image that came from another node; an index that it was chosen from is a name of it.
    fn note_fetched(&self, reference: &Reference, digest: &str, image: &StoredImage) -> Result<(), StoreError> {
        if digest != image.digest {
            let pinned = Reference { tag: None, digest: Some(digest.to_owned()), ..reference.clone() };
            self.store.set_name(&pinned, &image.digest)?;
        }
        self.store.set_fetched(&image.digest)
    }

    /// Names what has arrived, and lets managers hear of it.
    fn take_in(&self, asked: &Reference, image: StoredImage, asker: Asker) -> Result<StoredImage, ImageError> {
        self.store.name_brought(asked, &image.digest, asker)?;
        self.arrived.notify_one();
        Ok(self.store.by_digest(&image.digest).unwrap_or(image))
    }

    fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for what only this map holds.
        fetching.retain(|_, turn| Arc::strong_count(turn) > 1);
        fetching.entry(key.to_owned()).or_default().clone()
    }
}
