//! What a disk has damaged: it is put aside, so that one broken file does not keep the worker from the rest.
//!
//! `orch info` lists what lies aside, until somebody has looked at it and deleted it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use orch_proto::paths::ASIDE;

/// Between what is damaged and what the machine is short of for the moment, which passes: a record that was whole would be
/// lost.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let of_the_disk = [Errno::IO, Errno::BADMSG, Errno::UCLEAN].map(Errno::raw_os_error);
    matches!(error.kind(), io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidData)
        || error.raw_os_error().is_some_and(|code| of_the_disk.contains(&code))
}

/// Reads a file that should be one: whatever else stands in its place is damage, and a pipe would never be read to its end.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.is_file() {
        return fs::read(path);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file"))
}

/// Renames it, and says so.
pub(crate) fn put_aside(path: &Path, why: &dyn std::fmt::Display) -> io::Result<()> {
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let aside = free_name(path, at);
    tracing::error!(path = %path.display(), error = %why, aside = %aside.display(), "a damaged file is put aside");
    fs::rename(path, aside)
}

/// Gives a file its name; a folder in its place is put aside.
pub(crate) fn persist(file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    let Err(refused) = file.persist(path) else { return Ok(()) };
    if refused.error.kind() != io::ErrorKind::IsADirectory {
        return Err(refused.error);
    }
    put_aside(path, &refused.error)?;
    refused.file.persist(path).map(drop).map_err(|refused| refused.error)
}

fn free_name(path: &Path, at: u64) -> PathBuf {
    let named = |at: u64| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("{ASIDE}{at}"));
        PathBuf::from(name)
    };
    // Nobody puts the same aside more often than that.
    (at..at + 1000).map(named).find(|name| name.symlink_metadata().is_err()).unwrap_or_else(|| named(at))
}

/// Makes the folder; what stands in its place and is none is put aside.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok() && !path.is_dir() {
        put_aside(path, &"it should be a folder")?;
    }
    fs::create_dir_all(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_no_damage() {
        for (code, want) in [(libc::EIO, true), (libc::EISDIR, true), (libc::EMFILE, false), (libc::ENOMEM, false)] {
            assert_eq!(is_damage(&io::Error::from_raw_os_error(code)), want, "{code}");
        }
    }

    #[test]
    fn the_same_name_is_put_aside_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.json");
        for content in ["a", "b"] {
            fs::write(&path, content).unwrap();
            put_aside(&path, &"test").unwrap();
        }
        fs::create_dir(&path).unwrap();
        put_aside(&path, &"test").unwrap();
        make_folder(&path).unwrap();
        make_folder(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "c").unwrap();
        make_folder(&path).unwrap();
        assert!(path.is_dir());
        persist(tempfile::NamedTempFile::new_in(dir.path()).unwrap(), &path).unwrap();
        assert!(path.is_file());
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.starts_with("index.json.broken-")).count(), 5);
    }
}
