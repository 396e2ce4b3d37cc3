//! Takes this node's containers away: for `orch leave` and `orch worker --cleanup`.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use futures::{StreamExt, stream};
use orch_proto::paths::Paths;
use rustix::mount::{UnmountFlags, unmount};
use tokio::time::{Instant, timeout_at};

use crate::{
    config::Settings,
    contents::is_mounted,
    image::rootfs::Rootfs,
    runtime::{Recovered, Runtime},
    volume,
};

/// All of it takes no longer than whoever leaves a cluster waits.
const DELETE_LIMIT: Duration = Duration::from_secs(35);
/// Containers that are deleted at the same time.
const DELETED_AT_ONCE: usize = 128;

/// Kills this node's containers, unmounts what was mounted for them and deletes their records and run state. Images and
/// volumes stay. The worker must not run. Goes on after a failure and reports the first.
pub fn cleanup(paths: &Paths) -> anyhow::Result<()> {
    let mut problems = Problems::default();
    let deleted = delete_containers(paths, &mut problems);
    problems.note(deleted.context("delete the containers"));
    // What does not end keeps what it has, and by its shim's folder the next worker or clean-up finds it.
    let left: BTreeSet<OsString> =
        subfolders(&paths.shims_dir()).iter().filter_map(|dir| dir.file_name().map(ToOwned::to_owned)).collect();
    let is_left = |dir: &PathBuf| dir.file_name().is_some_and(|name| left.contains(name));
    let containers = paths.containers_dir();
    for dir in subfolders(&containers).into_iter().filter(|dir| !is_left(dir)) {
        problems.note(Rootfs::inside(&dir).delete().context("unmount a container's root"));
        problems.note(delete_dir(&dir));
    }
    // Mounted by the supervisor, which takes it away itself.
    if !is_mounted(&containers) && left.is_empty() {
        problems.note(delete_dir(&containers));
    }
    let secrets = paths.run.join("secrets");
    for dir in subfolders(&secrets).into_iter().filter(|dir| !is_left(dir)) {
        // Not mounted is as good.
        let _ = unmount(&dir, UnmountFlags::DETACH);
        problems.note(delete_dir(&dir));
    }
    for dir in subfolders(&paths.volume_pins_dir()).into_iter().filter(|dir| !is_left(dir)) {
        problems.note(volume::unpin(&dir).context("unmount what containers had of volumes"));
    }
    if left.is_empty() {
        problems.note(delete_dir(&secrets));
        let pins = absent_is_fine(fs::remove_dir(paths.volume_pins_dir()));
        problems.note(pins.context("delete the folder of these mounts"));
        problems.note(delete_dir(&paths.shims_dir()));
    }
    problems.note(volume::unmount_all(&paths.volumes_dir()).context("unmount volumes"));
    problems.note(delete_dir(&paths.volume_users_dir()));
    problems.note(delete_dir(&paths.run.join("files")));
    for records in ["tasks", "local"] {
        problems.note(delete_dir(&paths.worker_dir().join(records)));
    }
    for file in ["networks.pb", "managers"] {
        problems.note(delete_file(&paths.worker_dir().join(file)));
    }
    problems.first.map_or(Ok(()), Err)
}

#[derive(Default)]
struct Problems {
    first: Option<anyhow::Error>,
}

impl Problems {
    fn note(&mut self, result: anyhow::Result<()>) {
        if let Err(error) = result {
            tracing::warn!("cleaning up: {error:#}");
            self.first.get_or_insert(error);
        }
    }
}

fn delete_containers(paths: &Paths, problems: &mut Problems) -> anyhow::Result<()> {
    let cgroup_parent = Settings::new(paths.config_file()).cgroup_parent()?;
    let runtime = Runtime::new(paths, &cgroup_parent)?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let deleted = tokio.block_on(async {
        let found = runtime.recover().await?;
        let deadline = Instant::now() + DELETE_LIMIT;
        let deleted = stream::iter(found).map(|found| delete(found, deadline)).buffer_unordered(DELETED_AT_ONCE);
        anyhow::Ok(deleted.collect::<Vec<_>>().await)
    });
    // Who waits for what does not end is not waited for.
    tokio.shutdown_background();
    deleted?.into_iter().for_each(|deleted| problems.note(deleted));
    Ok(())
}

async fn delete(found: Recovered, deadline: Instant) -> anyhow::Result<()> {
    let (Recovered::Created(container) | Recovered::Running(container) | Recovered::Ended(container, _)) = found;
    let deleted = timeout_at(deadline, container.delete()).await;
    let deleted = deleted.context("it has been killed and does not end").and_then(|deleted| Ok(deleted?));
    deleted.with_context(|| format!("delete the container of task {}", container.task_id()))
}

fn subfolders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path()).collect());
    entries.unwrap_or_default()
}

fn delete_dir(dir: &Path) -> anyhow::Result<()> {
    absent_is_fine(fs::remove_dir_all(dir)).with_context(|| format!("delete {}", dir.display()))
}

fn delete_file(path: &Path) -> anyhow::Result<()> {
    absent_is_fine(fs::remove_file(path)).with_context(|| format!("delete {}", path.display()))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
