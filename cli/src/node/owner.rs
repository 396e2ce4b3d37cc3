//! The user that the manager runs as, where the machine has one, and what that user must be able to get at.
//!
//! The user may be made or removed at any time, and whoever writes for the manager does so as root: the manager's files are
//! given to it before each start, as they are after each change.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid};
use orch_proto::paths::Paths;

/// The user that the manager runs as, when the machine has it.
pub(super) fn manager_user() -> Option<(Uid, Gid)> {
    const NAME: &str = "orch";
    nix::unistd::User::from_name(NAME).ok().flatten().map(|user| (user.uid, user.gid))
}

/// Gives the manager's files to the user that it runs as, and lets it get there.
pub(super) fn hand_over(paths: &Paths) -> Result<()> {
    let Some((uid, gid)) = manager_user() else {
        tracing::info!("this machine has no user \"orch\": the manager runs as root");
        return Ok(());
    };
    let_through(&paths.root, gid).with_context(|| format!("cannot open {} to the manager", paths.root.display()))?;
    prepare_run_dir(&paths.run)?;
    // Where it ran as root before: nobody removes another's socket there.
    chown_all(&paths.manager_sock(), uid, gid)?;
    chown_all(&paths.manager_dir(), uid, gid)
}

/// The manager must be able to make its socket here when it has a user of its own; nobody removes another's.
pub(super) fn prepare_run_dir(run: &Path) -> Result<()> {
    fs::create_dir_all(run).with_context(|| format!("cannot make the folder {}", run.display()))?;
    let mode = match manager_user() {
        Some((_, gid)) => {
            nix::unistd::chown(run, None, Some(gid)).with_context(|| format!("cannot chown {}", run.display()))?;
            0o1775
        }
        None => 0o755,
    };
    fs::set_permissions(run, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", run.display()))
}

/// A folder that is closed to others is opened to that group, to pass and not to look; to all where another group has it.
fn let_through(dir: &Path, gid: Gid) -> io::Result<()> {
    let meta = fs::metadata(dir)?;
    let mode = meta.mode() & 0o7777;
    let passes = mode & 0o001 != 0 || (meta.gid() == gid.as_raw() && mode & 0o010 != 0);
    if passes {
        return Ok(());
    }
    if meta.gid() != gid.as_raw() && mode & 0o070 != 0 {
        return fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o001));
    }
    nix::unistd::chown(dir, None, Some(gid))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o010))
}

/// What goes away meanwhile needs no owner.
fn chown_all(path: &Path, uid: Uid, gid: Gid) -> Result<()> {
    match chown_here(path, uid, gid) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot chown {}", path.display())),
        Ok(entries) => entries.into_iter().flatten().try_for_each(|entry| {
            let entry = entry.with_context(|| format!("cannot look into {}", path.display()))?;
            chown_all(&entry.path(), uid, gid)
        }),
    }
}

/// The entries of a folder.
fn chown_here(path: &Path, uid: Uid, gid: Gid) -> io::Result<Option<fs::ReadDir>> {
    let meta = path.symlink_metadata()?;
    if (meta.uid(), meta.gid()) != (uid.as_raw(), gid.as_raw()) {
        lchown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
    }
    meta.is_dir().then(|| fs::read_dir(path)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody else where the test may give files away.
    fn somebody() -> (Uid, Gid) {
        match nix::unistd::geteuid().is_root() {
            true => (Uid::from_raw(54_321), Gid::from_raw(54_322)),
            false => (nix::unistd::getuid(), nix::unistd::getgid()),
        }
    }

    #[test]
    fn everything_in_a_folder_is_given_away_and_what_is_gone_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let (uid, gid) = somebody();
        let inner = dir.path().join("manager/tls");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("node.key"), "").unwrap();
        std::os::unix::fs::symlink("/nowhere", inner.join("link")).unwrap();
        for _ in 0..2 {
            chown_all(&dir.path().join("manager"), uid, gid).unwrap();
            for path in [inner.clone(), inner.join("node.key"), inner.join("link")] {
                let meta = path.symlink_metadata().unwrap();
                assert_eq!((meta.uid(), meta.gid()), (uid.as_raw(), gid.as_raw()), "{}", path.display());
            }
        }
        chown_all(&dir.path().join("gone"), uid, gid).unwrap();
    }

    #[test]
    fn the_managers_user_passes_and_no_other_group_loses_what_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let (_, ours) = somebody();
        let theirs = nix::unistd::getgid();
        for (group, mode, want, want_group) in [
            (ours, 0o755, 0o755, ours),
            (ours, 0o711, 0o711, ours),
            (ours, 0o700, 0o710, ours),
            (ours, 0o710, 0o710, ours),
            (ours, 0o750, 0o750, ours),
            (theirs, 0o755, 0o755, theirs),
            (theirs, 0o700, 0o710, ours),
            (theirs, 0o750, 0o751, theirs),
            (theirs, 0o710, 0o711, theirs),
        ] {
            // Who may not give files away has one group only.
            if group != ours && !nix::unistd::geteuid().is_root() {
                continue;
            }
            nix::unistd::chown(dir.path(), None, Some(group)).unwrap();
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let_through(dir.path(), ours).unwrap();
            let meta = fs::metadata(dir.path()).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.gid()), (want, want_group.as_raw()), "{group} {mode:o}");
        }
    }
}
