//! The program that is a container's first process with `--init`: a file of this node, mounted into the container.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::store::aside;

/// Where the container has it: on its own /dev, so that nothing of it stays in what the container wrote.
pub(super) const TARGET: &str = "/dev/init";

/// Made by the build script from `init/init.rs`.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// Writes it into the folder unless it is there. Not on /run, which may forbid executing.
pub(super) fn install(folder: &Path) -> io::Result<PathBuf> {
    let path = folder.join("container-init");
    if fs::read(&path).is_ok_and(|found| found == PROGRAM) {
        return Ok(path);
    }
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut file, PROGRAM)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o755))?;
    aside::persist(file, &path)?;
    Ok(path)
}
