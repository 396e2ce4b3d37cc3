//! Images for the command line: list, import, pull, remove, inspect.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use orch_proto::wire::{
    FileChunk, ForgetImageRequest, ImageReference, ImportImageRequest, ImportImageStart, LoadImagesResponse,
    LocalImage, PruneImagesRequest, PruneImagesResponse, PullImageRequest, PullProgress, RegisterImageRequest,
    RegistryAuth, RemoveImageRequest, RemoveImageResponse, import_image_request::Message, pull_progress,
};
use orch_proto::{code, conv::ToProto};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    agent::{Agent, container_id},
    image::{
        ImageError,
        archive::{self, ArchiveError, Loaded},
        chain, import,
        pull::PullError,
        reference::Reference,
        room::Room,
        store::{ImageStore, Removed, StoreError, StoredImage, pinned},
    },
};

/// How long a name waits for a leader that takes it; an election takes one to two seconds.
const LEADER_TIMEOUT: Duration = Duration::from_secs(6);
const LEADER_POLL: Duration = Duration::from_millis(50);
/// Progress messages that a slow terminal may be behind; more are dropped.
const BUFFERED_PROGRESS: usize = 256;
const SHORT_ID_LEN: usize = 12;
/// Of an archive being saved.
const CHUNK_BYTES: usize = 1 << 20;
const BUFFERED_CHUNKS: usize = 4;

pub(super) fn list(agent: &Agent) -> Vec<LocalImage> {
    let store = &agent.host.images.store;
    store.list().into_iter().map(|image| local_image(store, image)).collect()
}

pub(super) fn inspect(agent: &Agent, reference: &str) -> Result<LocalImage, Status> {
    let store = &agent.host.images.store;
    let image = store.find(reference).ok_or_else(|| no_such_image(reference))?;
    Ok(local_image(store, image))
}

/// The name is registered with the leader before it means anything here: nothing is half done.
pub(super) async fn import(agent: &Agent, mut messages: Streaming<ImportImageRequest>) -> Result<LocalImage, Status> {
    let Some(Message::Start(start)) = messages.message().await?.and_then(|first| first.message) else {
        return Err(Status::invalid_argument("the first message must say what is imported"));
    };
    let name = Some(&start.name).filter(|name| !name.is_empty()).map(|name| Reference::parse(name));
    let name = name.transpose().map_err(|error| Status::invalid_argument(error.to_string()))?;
    if name.as_ref().is_some_and(|name| name.digest.is_some()) {
        return Err(Status::invalid_argument("an import is named NAME[:TAG]; its digest follows from its content"));
    }
    let config = import::configuration(&start.changes).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if name.is_some() {
        // Before anything is sent for nothing.
        agent.session.wait().await.ok_or_else(no_leader)?;
    }

    let store = agent.host.images.store.clone();
    let internal = |error: &dyn std::error::Error| Status::internal(chain(error));
    let mut writer = store.blob_writer().map_err(|error| internal(&error))?;
    while let Some(message) = messages.message().await? {
        if let Some(Message::Data(data)) = message.message {
            tokio::task::block_in_place(|| writer.append(&data)).map_err(|error| internal(&error))?;
        }
    }
    // Not before: a client that stops sending would keep every other image from making room.
    let _arriving = store.arriving();
    let known: HashSet<String> = store.list().into_iter().map(|image| image.digest).collect();
    let (for_import, note) = (store.clone(), start.message.clone());
    let imported = tokio::task::spawn_blocking(move || {
        let layer = writer.commit(None)?;
        import::import(&for_import, &layer, config, &note)
    });
    let called = name.as_ref().map_or_else(String::new, |name| format!(" {}", name.familiar()));
    let image = imported
        .await
        .map_err(|error| internal(&error))?
        .map_err(|error| Status::invalid_argument(format!("import{called}: {}", chain(&error))))?;
    // Without a name it is this node's alone.
    let Some(name) = name else { return Ok(local_image(&store, image)) };

    if let Err(refused) = register(agent, &name, &image, &start).await {
        // The same archive may have been imported before, and be in use.
        let is_nameless = store.by_digest(&image.digest).is_some_and(|image| image.names.is_empty());
        if !known.contains(&image.digest)
            && is_nameless
            && let Err(error) = delete(&store, &image.digest, None).await
        {
            tracing::warn!(%error, "an image whose name was refused stays");
        }
        return Err(refused);
    }
    store.set_announced(&image.digest, &agent.announced_as()).map_err(|error| internal(&error))?;
    store.set_name(&name, &image.digest).map_err(|error| internal(&error))?;
    let image = store.by_digest(&image.digest).ok_or_else(|| no_such_image(&start.name))?;
    Ok(local_image(&store, image))
}

/// A manager that does not lead any more has changed nothing: the next one is asked.
async fn register(
    agent: &Agent,
    name: &Reference,
    image: &StoredImage,
    start: &ImportImageStart,
) -> Result<(), Status> {
    let request = RegisterImageRequest {
        name: name.to_string(),
        digest: image.digest.clone(),
        size_bytes: image.record.size_bytes,
        replace: start.replace,
        holder_only: false,
        platform: agent.host.images.store.platform(image).map(|platform| platform.to_proto()),
    };
    let give_up_at = Instant::now() + LEADER_TIMEOUT;
    loop {
        let mut live = agent.session.wait().await.ok_or_else(no_leader)?;
        let registered = {
            let _turn = agent.host.images.telling.lock().await;
            live.dispatcher.register_image(request.clone()).await
        };
        let Err(status) = registered else { return Ok(()) };
        if !code::of(&status).is_some_and(code::is_leaderless) || Instant::now() >= give_up_at {
            let text = format!("register {} in the cluster: {}", name.familiar(), status.message());
            return Err(Status::new(status.code(), text));
        }
        sleep(LEADER_POLL).await;
    }
}

pub(super) fn pull(
    agent: &Arc<Agent>,
    request: PullImageRequest,
) -> Result<BoxStream<'static, Result<PullProgress, Status>>, Status> {
    let reference =
        Reference::parse(&request.reference).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let (progress, messages) = mpsc::channel(BUFFERED_PROGRESS);
    let (result, last) = mpsc::channel(1);
    let images = agent.host.images.clone();
    tokio::spawn(async move {
        let status = pull_progress::Progress::Status(pulling(&reference));
        let _ = progress.try_send(PullProgress { progress: Some(status) });
        // Who goes away wants it no more, as with Docker; what has arrived is there for the next pull.
        let pulled = tokio::select! {
            pulled = images.pull(&reference, request.auth.as_ref(), &progress) => pulled,
            () = progress.closed() => return,
        };
        drop(progress);
        let done = match pulled {
            Ok(image) => {
                let image = local_image(&images.store, image);
                Ok(PullProgress { progress: Some(pull_progress::Progress::Done(image)) })
            }
            Err(error) => Err(pull_status(&error)),
        };
        // The reader may be gone; the image is here all the same.
        let _ = result.send(done).await;
    });
    Ok(ReceiverStream::new(messages).map(Ok).chain(ReceiverStream::new(last)).boxed())
}

/// As Docker says it: `latest: Pulling from library/web`.
fn pulling(reference: &Reference) -> String {
    let version = reference.digest.as_ref().or(reference.tag.as_ref()).map_or("", String::as_str);
    format!("{version}: Pulling from {}", reference.repository)
}

pub(super) async fn check_login(agent: &Agent, request: PullImageRequest) -> Result<RegistryAuth, Status> {
    let login = request.auth.unwrap_or_default();
    agent.host.images.check_login(&request.reference, &login).await.map_err(|error| match error {
        PullError::Login { .. } => Status::unauthenticated(chain(&error)),
        PullError::Unreachable { .. } => Status::unavailable(chain(&error)),
        error => Status::internal(chain(&error)),
    })
}

/// What a name means at its registry; a name with a digest means that.
pub(super) async fn resolve(agent: &Agent, request: PullImageRequest) -> Result<ImageReference, Status> {
    let reference =
        Reference::parse(&request.reference).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let digest = match &reference.digest {
        Some(digest) => digest.clone(),
        None => {
            let asked = agent.host.images.resolve(&reference, request.auth.as_ref()).await;
            asked.map_err(|error| pull_status(&ImageError::Pull(error)))?
        }
    };
    let pinned = Reference { tag: None, digest: Some(digest), ..reference };
    Ok(ImageReference { reference: pinned.to_string() })
}

pub(super) async fn remove(agent: &Arc<Agent>, request: RemoveImageRequest) -> Result<RemoveImageResponse, Status> {
    let store = &agent.host.images.store;
    let image = store.find(&request.reference).ok_or_else(|| no_such_image(&request.reference))?;
    let named = Reference::parse(&request.reference).ok().map(|reference| reference.to_string());
    let only = named.filter(|name| image.names.contains(name));
    let last_name = only.as_deref().is_none_or(|only| image.names_without(only).is_empty());
    let tags = image.names.iter().filter(|name| pinned(name).is_none()).count();
    if only.is_none() && tags > 1 && !request.force {
        return Err(Status::failed_precondition(format!(
            "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
            short_id(&image)
        )));
    }
    let going = agent.host.images.claims.going(&image.digest);
    if last_name && going.is_none() {
        return Err(Status::failed_precondition(format!(
            "conflict: unable to remove repository reference {:?} - a container is just being made of its image {}, or \
             somebody else removes it: try again",
            request.reference,
            short_id(&image)
        )));
    }
    let used = last_name.then(|| use_of(agent, &image)).flatten();
    if let Some(used) = &used {
        used.check(&request, &image, only.is_some()).map_err(Status::failed_precondition)?;
    }
    // The container may be started again.
    let stays = used.is_some();
    let agent = agent.clone();
    // The leader hears of it also when the caller has gone.
    let removed = super::to_the_end(async move {
        let _going = going;
        let store = &agent.host.images.store;
        let removed = match stays {
            true => store.untag(&image.digest, only.as_deref()).map_err(|error| Status::internal(chain(&error))),
            false => delete(store, &image.digest, only).await,
        };
        forget(&agent, &image).await;
        removed
    })
    .await?;
    Ok(RemoveImageResponse { untagged: removed.untagged, deleted: removed.deleted })
}

/// Who keeps an image from being deleted.
struct Use {
    container: String,
    by: User,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum User {
    Task,
    Running,
    Stopped,
}

fn use_of(agent: &Agent, image: &StoredImage) -> Option<Use> {
    let task = agent.host.user_of_image(&image.digest);
    let task = task.map(|entry| Use { container: container_id(&entry.task), by: User::Task });
    let one_off = || {
        let users = agent.locals.users_of_image(&image.digest);
        let running = users.iter().find(|one| one.container().is_some());
        let by = if running.is_some() { User::Running } else { User::Stopped };
        running.or(users.first()).map(|one| Use { container: one.container_id(), by })
    };
    task.or_else(one_off)
}

impl Use {
    /// Whether the image may lose its last names, as with Docker; it stays for the container.
    fn check(&self, request: &RemoveImageRequest, image: &StoredImage, by_name: bool) -> Result<(), String> {
        let (short, nameless, image) = (&self.container[..SHORT_ID_LEN], image.names.is_empty(), short_id(image));
        match (self.by, request.force) {
            (User::Task, _) => Err(format!(
                "conflict: unable to remove repository reference {:?} - container {short} is using its referenced image \
                 {image}, also when it is stopped: remove its service first",
                request.reference
            )),
            (User::Running, true) if !by_name => Err(format!(
                "conflict: unable to delete {image} (cannot be forced) - image is being used by running container {short}"
            )),
            (User::Stopped, true) if nameless => Err(format!(
                "conflict: unable to delete {image} - stopped container {short} needs it to be started again: remove that \
                 one (`orch rm {short}`) first"
            )),
            (User::Running | User::Stopped, true) => Ok(()),
            (User::Running | User::Stopped, false) => Err(format!(
                "conflict: unable to remove repository reference {:?} (must force) - container {short} is using its \
                 referenced image {image}, also when it is stopped: remove it (`orch rm {short}`) first",
                request.reference
            )),
        }
    }
}

/// On a thread of its own: a large image has many files.
async fn delete(store: &ImageStore, digest: &str, only: Option<String>) -> Result<Removed, Status> {
    let (store, digest) = (store.clone(), digest.to_owned());
    let removed = tokio::task::spawn_blocking(move || store.remove(&digest, only.as_deref())).await;
    removed.map_err(|error| Status::internal(chain(&error)))?.map_err(|error| Status::internal(chain(&error)))
}

/// Makes another name for an image, here and in the cluster.
pub(super) async fn tag(agent: &Agent, source: &str, target: &str) -> Result<(), Status> {
    let store = &agent.host.images.store;
    let image = store.find(source).ok_or_else(|| no_such_image(source))?;
    let name = Reference::parse(target).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if name.digest.is_some() {
        return Err(Status::invalid_argument("refusing to create a tag with a digest reference"));
    }
    if name.familiar().starts_with("sha256:") {
        return Err(Status::invalid_argument("refusing to create an ambiguous tag using digest algorithm as name"));
    }
    name_it(agent, &image, &name).await
}

/// As Docker, a name that means something else means this from now on.
async fn name_it(agent: &Agent, image: &StoredImage, name: &Reference) -> Result<(), Status> {
    let store = &agent.host.images.store;
    let start = ImportImageStart { replace: true, ..Default::default() };
    register(agent, name, image, &start).await?;
    let internal = |error: StoreError| Status::internal(chain(&error));
    store.set_announced(&image.digest, &agent.announced_as()).map_err(internal)?;
    store.set_name(name, &image.digest).map_err(internal)
}

pub(super) async fn load(agent: &Agent, mut chunks: Streaming<FileChunk>) -> Result<LoadImagesResponse, Status> {
    let store = agent.host.images.store.clone();
    let mut file = store.scratch().map_err(|error| Status::internal(chain(&error)))?;
    let mut room = Room::default();
    while let Some(chunk) = chunks.message().await? {
        let written = tokio::task::block_in_place(|| {
            room.write(&file, chunk.data.len())?;
            std::io::Write::write_all(&mut file, &chunk.data)
        });
        written.map_err(|error| Status::internal(format!("keep the archive: {error}")))?;
    }
    let for_load = store.clone();
    let loaded = tokio::task::spawn_blocking(move || {
        std::io::Seek::rewind(&mut file).map_err(ArchiveError::Read)?;
        archive::load(&for_load, file)
    });
    let loaded = loaded.await.map_err(|error| Status::internal(error.to_string()))?;
    let loaded = loaded.map_err(|error| Status::invalid_argument(format!("load: {}", chain(&error))))?;
    let (mut said, mut notices) = (Vec::new(), Vec::new());
    for Loaded { image, names } in &loaded {
        for name in names {
            let before = store.find_name(name).map(|before| before.record.config);
            notices.extend(before.filter(|before| *before != image.record.config).map(|id| moved(name, &id)));
            name_it(agent, image, name).await?;
            said.push(name.familiar());
        }
        if names.is_empty() {
            said.push(image.record.config.clone());
        }
    }
    Ok(LoadImagesResponse { loaded: said, notices })
}

/// In Docker's words.
fn moved(name: &Reference, id: &str) -> String {
    format!("The image {} already exists, renaming the old one with ID {id} to empty string", name.familiar())
}

pub(super) fn save(
    agent: &Agent,
    references: &[String],
) -> Result<BoxStream<'static, Result<FileChunk, Status>>, Status> {
    let store = agent.host.images.store.clone();
    let mut images: Vec<(StoredImage, Vec<String>)> = Vec::new();
    for reference in references {
        let mut named = of_repository(store.list(), reference);
        if named.is_empty() {
            let image = store.find(reference).ok_or_else(|| no_such_image(reference))?;
            let name = Reference::parse(reference).ok().map(|name| name.to_string());
            let name = name.filter(|name| image.names.contains(name));
            named.push((image, name.into_iter().collect()));
        }
        named.into_iter().for_each(|(image, names)| add(&mut images, image, names));
    }
    let (sender, receiver) = mpsc::channel(BUFFERED_CHUNKS);
    tokio::task::spawn_blocking(move || {
        let to = std::io::BufWriter::with_capacity(CHUNK_BYTES, Chunks(sender.clone()));
        if let Err(error) = archive::save(&store, &images, to) {
            // The reader may be gone: that is the usual reason.
            let _ = sender.blocking_send(Err(Status::internal(chain(&error))));
        }
    });
    Ok(ReceiverStream::new(receiver).boxed())
}

/// Each image once, with each of its names once.
fn add(images: &mut Vec<(StoredImage, Vec<String>)>, image: StoredImage, names: Vec<String>) {
    match images.iter_mut().find(|(have, _)| have.digest == image.digest) {
        Some((_, have)) => {
            let new: Vec<_> = names.into_iter().filter(|name| !have.contains(name)).collect();
            have.extend(new);
        }
        None => images.push((image, names)),
    }
}

/// As with Docker, a repository without a tag is all its tags; nothing for what has one, or is no repository.
fn of_repository(images: Vec<StoredImage>, text: &str) -> Vec<(StoredImage, Vec<String>)> {
    let has_tag = text.contains('@') || text.rsplit('/').next().is_some_and(|name| name.contains(':'));
    let Some(wanted) = Reference::parse(text).ok().filter(|_| !has_tag) else { return Vec::new() };
    let is_of = |name: &String| {
        pinned(name).is_none() && Reference::parse(name).is_ok_and(|reference| reference.name() == wanted.name())
    };
    let named = images.into_iter().map(|image| {
        let names = image.names.iter().filter(|name| is_of(name)).cloned().collect();
        (image, names)
    });
    named.filter(|(_, names): &(_, Vec<String>)| !names.is_empty()).collect()
}

/// Writes into a stream of messages.
struct Chunks(mpsc::Sender<Result<FileChunk, Status>>);

impl std::io::Write for Chunks {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let chunk = FileChunk { data: data.to_vec().into() };
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(chunk)).map_err(gone)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(super) fn push(
    agent: &Arc<Agent>,
    request: PullImageRequest,
) -> Result<BoxStream<'static, Result<PullProgress, Status>>, Status> {
    let reference =
        Reference::parse(&request.reference).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if reference.digest.is_some() {
        return Err(Status::invalid_argument("cannot push a digest reference"));
    }
    let images = agent.host.images.clone();
    let image = images.store.find_name(&reference).ok_or_else(|| {
        Status::not_found(format!("An image does not exist locally with the tag: {}", reference.familiar()))
    })?;
    let (progress, messages) = mpsc::channel(BUFFERED_PROGRESS);
    let (result, last) = mpsc::channel(1);
    tokio::spawn(async move {
        let status = format!("The push refers to repository [{}]", reference.name());
        let _ = progress.try_send(PullProgress { progress: Some(pull_progress::Progress::Status(status)) });
        let pushed = tokio::select! {
            pushed = images.push(&reference, &image, request.auth.as_ref(), &progress) => pushed,
            () = progress.closed() => return,
        };
        drop(progress);
        // From now on its registry knows it by its digest.
        let by_digest = Reference { tag: None, digest: Some(image.digest.clone()), ..reference };
        let named = pushed.and_then(|()| Ok(images.store.set_name(&by_digest, &image.digest)?));
        let done = match named {
            Ok(()) => {
                let manifest_bytes = images.store.blob_bytes(&image.digest);
                let image = LocalImage { manifest_bytes, ..local_image(&images.store, image) };
                Ok(PullProgress { progress: Some(pull_progress::Progress::Done(image)) })
            }
            Err(error) => Err(pull_status(&ImageError::Pull(error))),
        };
        // The reader may be gone; the image is there all the same.
        let _ = result.send(done).await;
    });
    Ok(ReceiverStream::new(messages).map(Ok).chain(ReceiverStream::new(last)).boxed())
}

/// Deletes images that no container was made from: those without a name, or all of them.
pub(super) async fn prune(agent: &Arc<Agent>, request: PruneImagesRequest) -> Result<PruneImagesResponse, Status> {
    let store = &agent.host.images.store;
    let mut pruned = PruneImagesResponse::default();
    for image in store.list() {
        // Somebody else's, or a container's that is not on record yet.
        let Some(going) = agent.host.images.claims.going(&image.digest) else { continue };
        let used =
            agent.host.user_of_image(&image.digest).is_some() || !agent.locals.users_of_image(&image.digest).is_empty();
        let wanted = request.all || image.names.iter().all(|name| pinned(name).is_some());
        let recent = request.until_ms > 0 && image.record.created_at_ms >= request.until_ms;
        if used || !wanted || recent {
            continue;
        }
        let layers = image.record.diff_ids.clone().into_iter().zip(store.layer_sizes(&image.record));
        let layers: Vec<_> = layers.collect();
        let agent = agent.clone();
        let removed = super::to_the_end(async move {
            let _going = going;
            let removed = delete(&agent.host.images.store, &image.digest, None).await;
            forget(&agent, &image).await;
            removed
        })
        .await?;
        // A layer that another image has stays.
        let gone = layers.iter().filter(|(diff_id, _)| removed.deleted.contains(diff_id));
        pruned.freed_bytes += gone.map(|(_, bytes)| bytes).sum::<u64>();
        pruned.untagged.extend(removed.untagged);
        pruned.deleted.extend(removed.deleted);
    }
    Ok(pruned)
}

/// Tells the leader what this node no longer has of an image. Without a leader, others will find out when they ask.
///
/// What arrives again from now on is announced after that.
pub(crate) async fn forget(agent: &Agent, image: &StoredImage) {
    let _turn = agent.host.images.telling.lock().await;
    let left = agent.host.images.store.by_digest(&image.digest);
    let Some(mut live) = agent.session.get() else { return };
    for request in forgotten(image, left.as_ref()) {
        let (name, digest) = (request.name.clone(), request.digest.clone());
        if let Err(status) = live.dispatcher.forget_image(request).await {
            let error = status.message();
            tracing::warn!(name, digest, error, "the leader was not told that an image is gone");
        }
    }
}

/// The names that are gone. When the image is, also what was said by digest: under names that others gave it, too.
fn forgotten(image: &StoredImage, left: Option<&StoredImage>) -> Vec<ForgetImageRequest> {
    let of = |name: &str| pinned(name).unwrap_or(&image.digest).to_owned();
    let is_gone = |name: &&String| left.is_none_or(|left| !left.names.contains(name));
    let gone: Vec<&String> = image.names.iter().filter(is_gone).collect();
    let mut requests: Vec<_> =
        gone.iter().map(|name| ForgetImageRequest { name: (*name).clone(), digest: of(name) }).collect();
    if left.is_none() {
        let digests: BTreeSet<String> = gone.iter().map(|name| of(name)).chain([image.digest.clone()]).collect();
        requests.extend(digests.into_iter().map(|digest| ForgetImageRequest { name: String::new(), digest }));
    }
    requests
}

fn local_image(store: &ImageStore, image: StoredImage) -> LocalImage {
    let config_json = store.read_blob(&image.record.config).unwrap_or_default();
    let layer_sizes = store.layer_sizes(&image.record);
    LocalImage {
        names: image.names,
        digest: image.digest,
        config_digest: image.record.config,
        size_bytes: image.record.size_bytes,
        created_at_ms: image.record.created_at_ms,
        config_json: String::from_utf8_lossy(&config_json).into_owned(),
        layer_sizes,
        ..LocalImage::default()
    }
}

fn short_id(image: &StoredImage) -> &str {
    let hex = image.record.config.strip_prefix("sha256:").unwrap_or(&image.record.config);
    hex.get(..SHORT_ID_LEN).unwrap_or(hex)
}

fn no_such_image(reference: &str) -> Status {
    let shown = Reference::parse(reference).map_or_else(|_| reference.to_owned(), |reference| reference.familiar());
    Status::not_found(format!("No such image: {shown}"))
}

fn no_leader() -> Status {
    Status::unavailable(
        "no manager can be reached, so the name cannot be registered in the cluster: try again when one answers",
    )
}

pub(super) fn pull_status(error: &ImageError) -> Status {
    let text = chain(error);
    match error {
        ImageError::NotFound { .. } | ImageError::Pull(PullError::NotFound { .. } | PullError::Platform { .. }) => {
            Status::not_found(text)
        }
        ImageError::Pull(PullError::Unreachable { .. } | PullError::Elsewhere { .. } | PullError::Cut { .. }) => {
            Status::unavailable(text)
        }
        ImageError::Reference(_) => Status::invalid_argument(text),
        ImageError::Pull(PullError::Denied { .. } | PullError::Login { .. }) => Status::permission_denied(text),
        ImageError::Pull(_) | ImageError::Store(_) => Status::internal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::store::ImageRecord;

    #[test]
    fn a_repository_is_saved_with_all_its_tags_and_each_name_once() {
        let image = |digest: &str, names: &[&str]| StoredImage {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            digest: digest.to_owned(),
            record: Default::default(),
        };
        let one = image("1", &["docker.io/library/web:1", "docker.io/library/web:2", "reg:5000/web:1"]);
        let two = image("2", &["docker.io/library/web:latest", "docker.io/library/web@sha256:00"]);
        let three = image("3", &["docker.io/library/other:1"]);
        let store = [one, two, three];
        for (text, expected) in [
            ("web", &[("1", 2), ("2", 1)][..]),
            ("docker.io/library/web", &[("1", 2), ("2", 1)]),
            ("reg:5000/web", &[("1", 1)]),
            ("web:1", &[]),
            ("web@sha256:00", &[]),
            ("none", &[]),
        ] {
            let mut chosen = Vec::new();
            // Named twice, it is there once.
            for (image, names) in [of_repository(store.to_vec(), text), of_repository(store.to_vec(), text)].concat() {
                add(&mut chosen, image, names);
            }
            let found: Vec<_> = chosen.iter().map(|(image, names)| (image.digest.as_str(), names.len())).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_node_without_an_image_is_no_holder_of_it_under_any_name() {
        let image = |names: &[&str]| StoredImage {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            digest: "sha256:1".to_owned(),
            record: ImageRecord::default(),
        };
        let had = image(&["web:1", "web:2", "web@sha256:2"]);
        let left = image(&["web:2", "web@sha256:2"]);
        for (left, want) in [
            (Some(&left), &[("web:1", "sha256:1")][..]),
            (Some(&had), &[]),
            (
                None,
                &[
                    ("web:1", "sha256:1"),
                    ("web:2", "sha256:1"),
                    ("web@sha256:2", "sha256:2"),
                    ("", "sha256:1"),
                    ("", "sha256:2"),
                ],
            ),
        ] {
            let said: Vec<_> =
                forgotten(&had, left).into_iter().map(|request| (request.name, request.digest)).collect();
            assert_eq!(said, want.iter().map(|(n, d)| (String::from(*n), String::from(*d))).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_image_in_use_loses_its_names_by_force_alone() {
        let image = |names: &[&str]| StoredImage {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            digest: String::new(),
            record: ImageRecord::default(),
        };
        for (by, force, by_name, want) in [
            (User::Stopped, false, true, "(must force) - container c0ffee012345"),
            (User::Running, false, true, "(must force)"),
            (User::Running, false, false, "(must force)"),
            (User::Running, true, false, "(cannot be forced) - image is being used by running container c0ffee012345"),
            (User::Task, true, true, "remove its service first"),
            (User::Stopped, true, true, ""),
            (User::Stopped, true, false, ""),
            (User::Running, true, true, ""),
        ] {
            let request = RemoveImageRequest { reference: "web".into(), force };
            let used = Use { container: "c0ffee0123456789".into(), by };
            let said = used.check(&request, &image(&["web"]), by_name).err().unwrap_or_default();
            assert!(said.contains(want) && said.is_empty() == want.is_empty(), "{force} {by_name}: {said}");
        }
        let request = RemoveImageRequest { reference: "c0de".into(), force: true };
        let used = Use { container: "c0ffee0123456789".into(), by: User::Stopped };
        assert!(used.check(&request, &image(&[]), false).unwrap_err().contains("orch rm c0ffee012345"));
    }
}
