//! Takes this node's containers away: for `orch leave` and `orch worker --cleanup`.

use std::{fs, io, path::Path};

use anyhow::Context;
use orch_proto::paths::Paths;
use rustix::mount::{UnmountFlags, unmount};

use crate::{
    config::Settings,
    contents::is_mounted,
    image::rootfs::Rootfs,
    runtime::{Recovered, Runtime},
    volume,
};

/// Kills this node's containers, unmounts what was mounted for them and deletes their records and run state. Images and
/// volumes stay. The worker must not run. Goes on after a failure and reports the first.
pub fn cleanup(paths: &Paths) -> anyhow::Result<()> {
    let mut problems = Problems::default();
    problems.note(delete_containers(paths).context("delete the containers"));
    let containers = paths.containers_dir();
    for dir in subfolders(&containers) {
        problems.note(Rootfs::inside(&dir).delete().context("unmount a container's root"));
        problems.note(delete_dir(&dir));
    }
    // Mounted by the supervisor, which takes it away itself.
    if !is_mounted(&containers) {
        problems.note(delete_dir(&containers));
    }
    let secrets = paths.run.join("secrets");
    for dir in subfolders(&secrets) {
        // Not mounted is as good.
        let _ = unmount(&dir, UnmountFlags::DETACH);
    }
    problems.note(delete_dir(&secrets));
    for dir in subfolders(&paths.volume_pins_dir()) {
        problems.note(volume::unpin(&dir).context("unmount what containers had of volumes"));
    }
    problems.note(absent_is_fine(fs::remove_dir(paths.volume_pins_dir())).context("delete the folder of these mounts"));
    problems.note(volume::unmount_all(&paths.volumes_dir()).context("unmount volumes"));
    problems.note(delete_dir(&paths.volume_users_dir()));
    problems.note(delete_dir(&paths.run.join("files")));
    problems.note(delete_dir(&paths.shims_dir()));
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

fn delete_containers(paths: &Paths) -> anyhow::Result<()> {
    let cgroup_parent = Settings::new(paths.config_file()).cgroup_parent()?;
    let runtime = Runtime::new(paths, &cgroup_parent)?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        for found in runtime.recover().await? {
            let (Recovered::Created(container) | Recovered::Running(container) | Recovered::Ended(container, _)) =
                found;
            container.delete().await?;
        }
        Ok(())
    })
}

fn subfolders(dir: &Path) -> Vec<std::path::PathBuf> {
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
