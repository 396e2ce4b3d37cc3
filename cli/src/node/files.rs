//! Files that are either the old ones or the new ones, whenever the machine stops.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use anyhow::{Context as _, Result};

/// Replaces a file's content: temporary file, fsync, rename, fsync of the folder.
pub(super) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let tmp = path.with_extension("tmp");
        if_present(fs::remove_file(&tmp))?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&tmp, path)?;
        sync_parent(path)
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a folder that only root may look into, and the folders above it.
pub(super) fn private_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Gives a file another name in its folder, for good.
pub(super) fn rename(path: &Path, to: &Path) -> Result<()> {
    let renamed = fs::rename(path, to).and_then(|()| sync_parent(path));
    renamed.with_context(|| format!("cannot rename {}", path.display()))
}

/// Removes a file for good; none there is fine.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    if_present(fs::remove_file(path))
        .and_then(|()| if path.parent().is_some_and(Path::exists) { sync_parent(path) } else { Ok(()) })
        .with_context(|| format!("cannot remove {}", path.display()))
}

/// Removes a folder with everything in it; none there is fine.
pub(super) fn remove_dir(path: &Path) -> Result<()> {
    if_present(fs::remove_dir_all(path)).with_context(|| format!("cannot remove {}", path.display()))
}

fn if_present(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
