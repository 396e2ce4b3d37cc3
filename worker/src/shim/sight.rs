//! What the making of a container sees of the node's mounts: not those of other containers.
//!
//! libcontainer reads the list of all mounts (on version 1 of control groups once for each hierarchy), and a container's mount
//! namespace begins as a copy of its maker's. With each other container's root and network among them, containers would be
//! made the more slowly the more there are, and would hold each other's file systems for a moment.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree,
        unmount,
    },
};

use crate::contents::mount_point;

/// Moves this process to a mount namespace of its own without what is mounted in `hidden`, which are mounts themselves, except
/// `kept`.
pub(super) fn narrow<'a>(
    hidden: impl IntoIterator<Item = &'a Path>,
    kept: impl IntoIterator<Item = &'a Path>,
) -> io::Result<()> {
    let clone = |path| {
        let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        Ok((path, tree))
    };
    let kept = kept.into_iter().map(clone).collect::<Result<Vec<_>, Errno>>()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Before anything is unmounted: the node must not lose it too.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    hidden.into_iter().try_for_each(|folder| unmount(folder, UnmountFlags::DETACH))?;
    for (path, tree) in kept {
        move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    Ok(())
}

/// Shows this process, in a mount namespace of its own, at `at` what another namespace has at `path`. The node does not see it,
/// but goes on seeing what is mounted elsewhere.
pub(super) fn borrow(namespace: &Path, path: &Path, at: &Path) -> io::Result<()> {
    let (own, other) = (File::open("/proc/thread-self/ns/mnt")?, File::open(namespace)?);
    fs::create_dir_all(at)?;
    setns(other, CloneFlags::CLONE_NEWNS)?;
    let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    setns(own, CloneFlags::CLONE_NEWNS)?;
    let tree = tree?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Not all mounts: what the container mounts in a shared bind is to appear on the node.
    mount_change(mount_point(at), MountPropagationFlags::DOWNSTREAM)?;
    move_mount(&tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::mount::{MountFlags, mount, mount_bind};

    use super::*;
    use crate::contents::is_mounted;

    /// Needs root. Mount namespaces are a thread's own, so the other tests do not notice.
    #[test]
    fn only_what_is_kept_stays_in_sight_and_the_node_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, other_folder) = (dir.path().join("hidden"), dir.path().join("shown"));
        let node = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let points = [folder.join("own"), folder.join("others"), other_folder];
            fs::create_dir(&folder).unwrap();
            mount_bind(&folder, &folder).unwrap();
            // As on most machines: what is unmounted in a copy of the namespace would go here too.
            mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).unwrap();
            for point in &points {
                fs::create_dir(point).unwrap();
                mount("none", point, "tmpfs", MountFlags::empty(), None).unwrap();
                fs::write(point.join("file"), "").unwrap();
            }
            let seen = || points.each_ref().map(|point| point.join("file").exists());
            let (own, hidden) = (points[0].clone(), folder);
            let within = std::thread::scope(|scope| {
                let maker = scope.spawn(|| {
                    narrow([hidden.as_path()], [own.as_path()]).unwrap();
                    seen()
                });
                maker.join().unwrap()
            });
            (within, seen())
        });
        assert_eq!(node.join().unwrap(), ([true, false, true], [true; 3]));
    }

    /// Needs root.
    #[test]
    fn the_node_sees_nothing_of_what_is_borrowed_and_all_that_is_mounted_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let [lent, own, shared] = ["lent", "own", "shared"].map(|name| dir.path().join(name));
        fs::create_dir(&lent).unwrap();
        fs::write(lent.join("file"), "").unwrap();
        let other = format!("/proc/{}/ns/mnt", std::process::id());
        let node = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            for point in [&own, &shared] {
                fs::create_dir(point).unwrap();
                mount("none", point, "tmpfs", MountFlags::empty(), None).unwrap();
                mount_change(point, MountPropagationFlags::SHARED).unwrap();
            }
            let (at, below) = (own.join("at"), shared.join("below"));
            let seen = || [at.join("file").exists(), is_mounted(&below)];
            let within = std::thread::scope(|scope| {
                let maker = scope.spawn(|| {
                    // A namespace is not changed while its folders are others', too.
                    unshare(CloneFlags::CLONE_FS).unwrap();
                    borrow(Path::new(&other), &lent, &at).unwrap();
                    fs::create_dir(&below).unwrap();
                    mount("none", &below, "tmpfs", MountFlags::empty(), None).unwrap();
                    seen()
                });
                maker.join().unwrap()
            });
            (within, seen())
        });
        assert_eq!(node.join().unwrap(), ([true, true], [false, true]));
    }
}
