//! Damaged files that the worker has put aside: somebody should know of a disk that loses files, and look whether what was
//! lost is missed.

use std::{fs, path::Path};

use orch_proto::paths::{ASIDE, Paths};

/// More of them say nothing new.
const MOST: usize = 20;

/// Their paths, until somebody deletes them.
pub(super) fn files(paths: &Paths) -> Vec<String> {
    let worker = paths.worker_dir();
    let folders = ["", "images", "local", "networks", "tasks"].map(|folder| worker.join(folder));
    let volumes = fs::read_dir(paths.volumes_dir()).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<String> = folders.into_iter().chain(volumes).flat_map(|folder| inside(&folder)).collect();
    found.sort();
    found.truncate(MOST);
    found
}

fn inside(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let aside = entries.filter(|entry| entry.file_name().to_string_lossy().contains(ASIDE));
    aside.map(|entry| entry.path().display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_aside_is_found_where_it_lies() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        assert_eq!(files(&paths), [""; 0]);
        let images = paths.worker_dir().join("images");
        fs::create_dir_all(images.join("index.json.broken-7")).unwrap();
        fs::write(images.join("index.json"), "").unwrap();
        fs::write(paths.worker_dir().join("local.broken-8"), "").unwrap();
        fs::create_dir_all(paths.volumes_dir().join("data/volume.json.broken-9")).unwrap();
        let found = files(&paths);
        assert_eq!(found.len(), 3);
        assert!(found[0].ends_with("/worker/images/index.json.broken-7"), "{found:?}");
    }
}
