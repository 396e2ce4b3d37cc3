//! Folders that are mounts of their own, so that all that daemons mount in one of them can be left out of a mount namespace
//! in one step: the worker's shims do so while they make a container.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount as mount_now, umount2};

/// Makes them so. Where it cannot be done nothing but speed is lost.
pub(super) fn mount(folders: impl IntoIterator<Item = PathBuf>) {
    for folder in folders {
        if let Err(error) = mount_one(&folder) {
            tracing::warn!(%error, ?folder, "cannot make this folder a mount of its own: containers start more slowly");
        }
    }
}

fn mount_one(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    // What is mounted in it already, by a version that did not do this, would be hidden.
    if is_mounted_in(&fs::read("/proc/self/mountinfo")?, folder) {
        return Ok(());
    }
    mount_now(Some(folder), folder, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    // Apart from the file system that it is of, where all would be mounted once more; but programs that have a copy of the node's
    // mounts lose what is unmounted here.
    for propagation in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount_now(None::<&str>, folder, None::<&str>, propagation, None::<&str>)?;
    }
    Ok(())
}

/// Undoes it, when nothing of a membership is left.
pub(super) fn unmount(folders: impl IntoIterator<Item = PathBuf>) {
    for folder in folders {
        // Not mounted is as good.
        let _ = umount2(&folder, MntFlags::MNT_DETACH);
    }
}

/// On the folder itself, or anywhere below.
fn is_mounted_in(mountinfo: &[u8], folder: &Path) -> bool {
    let points = mountinfo.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    points.map(|point| Path::new(OsStr::from_bytes(point))).any(|point| point.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_on_a_folder_and_below() {
        let mountinfo = b"22 1 8:1 / / rw - ext4 /dev/vda rw\n\
            23 22 8:1 /a /var/lib/orch/worker/containers rw - ext4 /dev/vda rw\n\
            24 22 0:4 net:[4026532] /run/orch/netns/3f rw - nsfs nsfs rw\n";
        let check = |folder: &str, want| assert_eq!(is_mounted_in(mountinfo, Path::new(folder)), want, "{folder}");
        check("/var/lib/orch/worker/containers", true);
        check("/run/orch/netns", true);
        check("/run/orch/net", false);
        check("/run/orch/shim", false);
        check("/var/lib/orch/worker/containers/x", false);
    }
}
