//! Files into and out of containers, and what a container has changed.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use orch_model::{TaskId, service::MountKind};
use orch_proto::wire::{
    CopyFromRequest, CopyFromResponse, CopyToRequest, FileChange, FileChangeList, PathStat,
    copy_from_response::Message as From, copy_to_request::Message as To,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::live;
use crate::{
    agent::{Agent, Host},
    arriving::Arriving,
    contents::{self, Change, ChangeKind, Found},
    image::{chain, rootfs::Rootfs, unpack},
    local::One,
    runtime::Container,
    users::Remap,
};

const CHUNK_BYTES: usize = 256 << 10;
const BUFFERED_CHUNKS: usize = 8;
/// What every container has a place for, in an image or not.
const PLACES_OF_MOUNTS: [&str; 6] = ["/dev", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc", "/sys"];

/// What stands for a place inside.
struct Place {
    target: String,
    /// A folder or a file.
    source: PathBuf,
    read_only: bool,
}

/// Where a container's files are. A stopped one's root is mounted for as long as this lives.
struct View {
    root: Place,
    /// Volumes and binds of a stopped container.
    mounts: Vec<Place>,
    mounted: Option<Rootfs>,
    /// Whom its volumes are mounted for.
    borrower: Option<(Arc<Host>, TaskId)>,
    /// Whose numbers the files have.
    remap: Option<Remap>,
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(rootfs) = &self.mounted
            && let Err(error) = rootfs.unmount()
        {
            tracing::warn!(error = chain(&error), "a container's root stays mounted");
        }
        if let Some((host, task)) = &self.borrower
            && let Err(error) = host.volumes.release(task)
        {
            tracing::warn!(error = chain(&error), "a container's volumes stay mounted");
        }
    }
}

impl View {
    fn of_running(container: &Container, remap: Option<Remap>) -> Self {
        // The kernel knows what is read-only there.
        let root = Place::root(format!("/proc/{}/root", container.pid()).into(), false);
        Self { root, mounts: Vec::new(), mounted: None, borrower: None, remap }
    }

    fn of_stopped(agent: &Agent, one: &One) -> Result<Self, Status> {
        let store = &agent.host.images.store;
        let digest = one.now().record.image_digest.clone();
        let image = store.by_digest(&digest).ok_or_else(|| Status::not_found(format!("No such image: {digest}")))?;
        let (_, layers) = agent.host.images.parts(&image).map_err(|error| Status::internal(chain(&error)))?;
        let rootfs = Rootfs::inside(&agent.host.store.container_dir(&one.id));
        let remap = agent.locals.remap_of(&one.now().record);
        rootfs.mount_again(&layers, remap).map_err(|error| Status::internal(chain(&error)))?;
        let spec = &one.task.spec.container;
        let is_read_only = |target: &str| spec.mounts.iter().any(|mount| mount.target == target && mount.read_only);
        let volumes = agent.host.volumes.of_task(&one.id).into_iter().map(|(_, target, folder)| Place {
            source: folder.into(),
            read_only: is_read_only(&target),
            target,
        });
        let root = Place::root(rootfs.root.clone(), spec.read_only);
        // From here on what is mounted goes with it.
        let borrower = Some((agent.host.clone(), one.id.clone()));
        let mut view = Self { root, mounts: volumes.collect(), mounted: Some(rootfs), borrower, remap };
        for mount in spec.mounts.iter().filter(|mount| !mount.source.is_empty()) {
            let folder = match mount.kind {
                MountKind::Volume => {
                    let borrowed = agent.host.volumes.borrow_inside(&mount.source, &mount.volume_subpath, &one.id);
                    borrowed.map_err(|error| Status::failed_precondition(chain(&error)))?
                }
                MountKind::Bind | MountKind::Tmpfs => PathBuf::from(&mount.source),
            };
            view.mounts.push(Place { target: mount.target.clone(), source: folder, read_only: mount.read_only });
        }
        view.mounts.sort_by_key(|mount| std::cmp::Reverse(mount.target.len()));
        Ok(view)
    }

    /// The folder that stands for the root, open, and the path below it.
    fn open(&self, path: &str) -> io::Result<(OwnedFd, String)> {
        let (Place { target, source, .. }, below) = self.place(path);
        let is_mounted_file = !target.is_empty() && !source.is_dir();
        if !is_mounted_file {
            return Ok((contents::open_root(source)?, below.to_owned()));
        }
        // A single file is mounted there: its folder stands for the root.
        let file = source.canonicalize()?;
        let (folder, name) = file.parent().zip(file.file_name()).ok_or(io::ErrorKind::NotFound)?;
        let name = name.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((contents::open_root(folder)?, format!("{name}{below}")))
    }

    /// What stands for the root, and the path below it.
    fn place<'a>(&'a self, path: &'a str) -> (&'a Place, &'a str) {
        let below = |target: &str| {
            let rest = path.strip_prefix(target.trim_end_matches('/'))?;
            (rest.is_empty() || rest.starts_with('/')).then_some(rest)
        };
        let found = self.mounts.iter().find_map(|mount| below(&mount.target).map(|rest| (mount, rest)));
        found.unwrap_or((&self.root, path))
    }

    /// Why nothing may be written there, in Docker's words.
    fn refusal(&self, path: &str) -> Option<&'static str> {
        let (place, _) = self.place(path);
        place.read_only.then_some(match place.target.as_str() {
            "" => "container rootfs is marked read-only",
            _ => "mounted volume is marked read-only",
        })
    }
}

impl Place {
    fn root(source: PathBuf, read_only: bool) -> Self {
        Self { target: String::new(), source, read_only }
    }
}

/// From the root, without `.` and `..` on the way, as Docker reads paths before it follows links. What it ends in stays: a
/// slash is for a folder, `/.` for what is in one.
fn absolute(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let trimmed = path.trim_end_matches('/');
    let end = match () {
        () if trimmed == "." || trimmed.ends_with("/.") => "/.",
        () if path.ends_with('/') || parts.is_empty() => "/",
        () => "",
    };
    if parts.is_empty() { end.to_owned() } else { format!("/{}{end}", parts.join("/")) }
}

/// Does something with a container's files. A one-off container that is stopped stays so meanwhile.
async fn with_view<T: Send + 'static>(
    agent: &Arc<Agent>,
    reference: &str,
    work: impl FnOnce(&View) -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let (id, _, container) = live::any(agent, reference)?;
    let one = agent.locals.find(&id).ok();
    let agent = agent.clone();
    let turn = match &one {
        Some(one) if container.is_none() => Some(one.hold().await),
        _ => None,
    };
    let blocking = move || {
        // Moved in here, and dropped after the view: whoever gives up waiting does not end this work.
        let _turn = turn;
        let view = match (container, &one) {
            (Some(container), one) => {
                let own = |one: &Arc<One>| agent.locals.remap_of(&one.now().record);
                View::of_running(&container, one.as_ref().map_or(agent.host.remap, own))
            }
            (None, Some(one)) if one.container().is_none() => View::of_stopped(&agent, one)?,
            (None, _) => return Err(Status::failed_precondition(format!("Container {id} is not running"))),
        };
        work(&view)
    };
    tokio::task::spawn_blocking(blocking).await.map_err(|error| Status::internal(error.to_string()))?
}

fn not_found(reference: &str, path: &str, error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound => {
            Status::not_found(format!("Could not find the file {path} in container {reference}"))
        }
        io::ErrorKind::NotADirectory => {
            Status::invalid_argument(format!("not a directory: {path} in container {reference}"))
        }
        _ => Status::internal(format!("{path} in container {reference}: {error}")),
    }
}

pub(super) fn copy_from(
    agent: &Arc<Agent>,
    request: CopyFromRequest,
) -> BoxStream<'static, Result<CopyFromResponse, Status>> {
    let (sender, receiver) = mpsc::channel(BUFFERED_CHUNKS);
    let agent = agent.clone();
    tokio::spawn(async move {
        let (chunks, reference) = (Chunks(sender.clone()), request.reference.clone());
        let work = move |view: &View| send(view, &request, chunks);
        if let Err(status) = with_view(&agent, &reference, work).await {
            // The reader may be gone: that is the usual reason.
            let _ = sender.send(Err(status)).await;
        }
    });
    ReceiverStream::new(receiver).boxed()
}

fn send(view: &View, request: &CopyFromRequest, chunks: Chunks) -> Result<(), Status> {
    let path = absolute(&request.path);
    let failed = |error: io::Error| not_found(&request.reference, &path, &error);
    let (root, inside) = view.open(&path).map_err(failed)?;
    let (opened, found) = contents::find(root.as_fd(), &inside, request.follow_link).map_err(failed)?;
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/").to_owned();
    let found = Found { name, ..found };
    let stat = PathStat {
        name: found.name.clone(),
        mode: found.mode,
        size_bytes: found.size_bytes,
        link_target: found.link_target.clone(),
    };
    let first = CopyFromResponse { message: Some(From::Stat(stat)) };
    if chunks.0.blocking_send(Ok(first)).is_err() || request.stat_only {
        return Ok(());
    }
    contents::pack(&opened, &found, view.remap, io::BufWriter::with_capacity(CHUNK_BYTES, chunks)).map_err(failed)
}

/// Writes into a stream of messages.
struct Chunks(mpsc::Sender<Result<CopyFromResponse, Status>>);

impl io::Write for Chunks {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let message = CopyFromResponse { message: Some(From::Data(data.to_vec().into())) };
        self.0.blocking_send(Ok(message)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) async fn copy_to(agent: &Arc<Agent>, mut messages: Streaming<CopyToRequest>) -> Result<(), Status> {
    let Some(To::Start(start)) = messages.message().await?.and_then(|first| first.message) else {
        return Err(Status::invalid_argument("the first message must say where to"));
    };
    let (sender, receiver) = mpsc::channel(BUFFERED_CHUNKS);
    let reference = start.reference.clone();
    let path = absolute(&start.path);
    let work = {
        let reference = reference.clone();
        let path = path.clone();
        move |view: &View| receive(view, &reference, &path, Arriving::new(receiver))
    };
    let feed = async move {
        while let Ok(Some(message)) = messages.message().await {
            if let Some(To::Data(data)) = message.message
                && sender.send(data).await.is_err()
            {
                return;
            }
        }
    };
    let (done, ()) = tokio::join!(with_view(agent, &reference, work), feed);
    done
}

fn receive(view: &View, reference: &str, path: &str, tar: Arriving) -> Result<(), Status> {
    let failed = |error: io::Error| not_found(reference, path, &error);
    let (root, inside) = view.open(path).map_err(failed)?;
    if !contents::is_folder(root.as_fd(), &inside).map_err(failed)? {
        return Err(Status::invalid_argument(format!("extraction point is not a directory: {path}")));
    }
    if let Some(refusal) = view.refusal(path) {
        return Err(Status::invalid_argument(refusal));
    }
    unpack::unpack_into(tar, root, std::path::Path::new(&inside), view.remap)
        .map_err(|error| Status::internal(chain(&error)))
}

pub(super) async fn changes(agent: &Arc<Agent>, reference: &str) -> Result<FileChangeList, Status> {
    let (digest, id) = match agent.locals.find(reference) {
        Ok(one) => (one.now().record.image_digest.clone(), one.id.clone()),
        Err(_) => {
            let task = super::tasks::find(&agent.host, reference)?;
            let entry = agent.host.book.entry(&task);
            (entry.and_then(|entry| entry.image).unwrap_or_default(), task)
        }
    };
    let image = agent.host.images.store.by_digest(&digest);
    let image = image.ok_or_else(|| Status::not_found(format!("No such image: {digest}")))?;
    let (_, mut layers) = agent.host.images.parts(&image).map_err(|error| Status::internal(chain(&error)))?;
    layers.reverse();
    let upper = agent.host.store.container_dir(&id).join("upper");
    let found = tokio::task::spawn_blocking(move || contents::changes(&upper, &layers)).await;
    let found = found.map_err(|error| Status::internal(error.to_string()))?;
    let found = found.map_err(|error| Status::internal(error.to_string()))?;
    let wire = |change: Change| FileChange {
        path: change.path,
        kind: match change.kind {
            ChangeKind::Added => "A",
            ChangeKind::Changed => "C",
            ChangeKind::Deleted => "D",
        }
        .to_owned(),
    };
    Ok(FileChangeList { changes: of_its_own(found).into_iter().map(wire).collect() })
}

/// Places for what is mounted there are none of the container's doing, nor a folder that changed by them alone.
fn of_its_own(found: Vec<Change>) -> Vec<Change> {
    let is_place =
        |change: &Change| change.kind == ChangeKind::Added && PLACES_OF_MOUNTS.contains(&change.path.as_str());
    let (places, own): (Vec<_>, Vec<_>) = found.into_iter().partition(is_place);
    let parent =
        |change: &Change| change.path.rsplit_once('/').map_or_else(String::new, |(parent, _)| parent.to_owned());
    let of_places: BTreeSet<String> = places.iter().map(parent).collect();
    let of_own: BTreeSet<String> = own.iter().map(parent).collect();
    let by_places = |change: &Change| {
        change.kind == ChangeKind::Changed && of_places.contains(&change.path) && !of_own.contains(&change.path)
    };
    own.into_iter().filter(|change| !by_places(change)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_docker_reads_them() {
        for (path, want) in [
            ("/s/d", "/s/d"),
            ("s/d/", "/s/d/"),
            ("/s/./d/../d/.", "/s/d/."),
            ("/s/d/./", "/s/d/."),
            ("/s/d/..", "/s"),
            ("../../x", "/x"),
            ("/", "/"),
            ("", "/"),
            (".", "/."),
            ("/..", "/"),
        ] {
            assert_eq!(absolute(path), want, "{path}");
        }
    }

    #[test]
    fn places_of_mounts_are_no_changes() {
        let change = |text: &str| {
            let (kind, path) = text.split_once(' ').unwrap();
            let kind = match kind {
                "A" => ChangeKind::Added,
                "C" => ChangeKind::Changed,
                _ => ChangeKind::Deleted,
            };
            Change { path: path.to_owned(), kind }
        };
        for (found, want) in [
            (&["A /dev", "C /etc", "A /etc/hosts", "A /proc"][..], &[][..]),
            (&["C /etc", "A /etc/hosts", "A /etc/own"], &["C /etc", "A /etc/own"]),
            (&["C /etc", "D /etc/motd"], &["C /etc", "D /etc/motd"]),
            // Its mode, say.
            (&["C /etc"], &["C /etc"]),
            (&["C /etc", "C /etc/hosts"], &["C /etc", "C /etc/hosts"]),
            (&["A /etc", "A /etc/hosts"], &["A /etc"]),
            (&["C /root", "A /root/x"], &["C /root", "A /root/x"]),
        ] {
            let own = of_its_own(found.iter().map(|text| change(text)).collect());
            assert_eq!(own, want.iter().map(|text| change(text)).collect::<Vec<_>>(), "{found:?}");
        }
    }

    #[test]
    fn what_is_mounted_read_only_is_not_written_to() {
        let mount = |target: &str, read_only| Place { target: target.to_owned(), source: PathBuf::new(), read_only };
        let view = |read_only| {
            let root = Place::root(PathBuf::new(), read_only);
            let mounts = vec![mount("/data/own", false), mount("/data", true)];
            View { root, mounts, mounted: None, borrower: None, remap: None }
        };
        let (volume, root) = ("mounted volume is marked read-only", "container rootfs is marked read-only");
        for (path, in_writable, in_read_only) in [
            ("/data", Some(volume), Some(volume)),
            ("/data/sub/.", Some(volume), Some(volume)),
            ("/data/own/sub", None, None),
            ("/database", None, Some(root)),
            ("/", None, Some(root)),
        ] {
            assert_eq!((view(false).refusal(path), view(true).refusal(path)), (in_writable, in_read_only), "{path}");
        }
    }

    #[test]
    fn a_stopped_container_may_have_files_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["root/etc", "volume/sub"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("file"), "mounted").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        let mount = |target: &str, source| Place { target: target.to_owned(), source, read_only: false };
        let mounts = vec![mount("/etc/link", at("link")), mount("/etc/conf", at("file")), mount("/data", at("volume"))];
        let root = Place::root(at("root"), false);
        let view = View { root, mounts, mounted: None, borrower: None, remap: None };
        let kind = |path: &str| {
            let (root, inside) = view.open(path).map_err(|error| error.kind())?;
            contents::find(root.as_fd(), &inside, false)
                .map(|(_, found)| found.mode >> 12)
                .map_err(|error| error.kind())
        };
        const FOLDER: u32 = 0o4;
        const FILE: u32 = 0o10;
        for (path, want) in [
            ("/etc/conf", Ok(FILE)),
            ("/etc/link", Ok(FILE)),
            ("/etc/conf/", Err(io::ErrorKind::NotADirectory)),
            ("/etc/conf/x", Err(io::ErrorKind::NotADirectory)),
            ("/data/sub", Ok(FOLDER)),
            ("/data/.", Ok(FOLDER)),
            ("/etc", Ok(FOLDER)),
            ("/none", Err(io::ErrorKind::NotFound)),
        ] {
            assert_eq!(kind(path), want, "{path}");
        }
    }
}
