//! Downloads that broke off: what has arrived of a layer is kept by its digest, so that the next try goes on there, also
//! one of the next worker's.
//!
//! Layout: `partial/<hex>` in the store's folder. Nothing in there is believed: it counts only once the whole has the
//! digest. A file belongs to the download that holds its lock, so that two never write one.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::fs::{FlockOperation, flock};

/// What nobody has gone on with for so long goes.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// The beginning of a layer; dropped, it stays for the next try unless it is [spoiled](Self::spoil).
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    /// Whether another file has this one's name by now, or none.
    is_renamed: bool,
}

impl Partial {
    /// What is there of the layer, or an empty file; `None` while another download has it.
    pub(super) fn take(folder: &Path, hex: &str) -> io::Result<Option<Self>> {
        let path = folder.join(hex);
        let file = OpenOptions::new().create(true).append(true).read(true).open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        // Its last owner may have finished or deleted it between the two steps.
        let is_same = |found: fs::Metadata| file.metadata().is_ok_and(|own| own.ino() == found.ino());
        let is_there = fs::metadata(&path).is_ok_and(is_same);
        Ok(is_there.then_some(Self { file, path, is_renamed: false }))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What has arrived is no good.
    pub(super) fn spoil(&mut self) {
        if !std::mem::replace(&mut self.is_renamed, true) {
            // One that stays is refused by its digest.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Makes it the whole file at `target`.
    pub(super) fn persist(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.is_renamed = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.file.metadata().is_ok_and(|found| found.len() == 0) {
            self.spoil();
        }
    }
}

/// Bytes that are there of a layer.
pub(super) fn bytes(folder: &Path, hex: &str) -> u64 {
    fs::metadata(folder.join(hex)).map_or(0, |found| found.len())
}

/// Deletes what nobody has written to for `age`, and nobody is writing.
pub(super) fn clean(folder: &Path, now: SystemTime, age: Duration) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let written = entry.metadata().and_then(|found| found.modified());
        let is_old = |written: SystemTime| now.duration_since(written).is_ok_and(|passed| passed >= age);
        if !written.is_ok_and(is_old) {
            continue;
        }
        // What cannot even be opened is in nobody's way.
        if let Ok(Some(mut left)) = Partial::take(folder, &entry.file_name().to_string_lossy()) {
            left.spoil();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn one_download_has_it_and_the_next_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let there = || fs::read_dir(dir.path()).unwrap().count();
        let first = Partial::take(dir.path(), "ab").unwrap().unwrap();
        assert!(Partial::take(dir.path(), "ab").unwrap().is_none(), "two have it");
        first.file().write_all(b"one").unwrap();
        drop(first);
        assert_eq!(bytes(dir.path(), "ab"), 3);

        let second = Partial::take(dir.path(), "ab").unwrap().unwrap();
        let mut text = String::new();
        second.file().read_to_string(&mut text).unwrap();
        second.file().write_all(b" two").unwrap();
        assert_eq!(text, "one");
        second.persist(&dir.path().join("whole")).unwrap();
        assert_eq!((fs::read_to_string(dir.path().join("whole")).unwrap().as_str(), there()), ("one two", 1));

        let mut spoiled = Partial::take(dir.path(), "ab").unwrap().unwrap();
        spoiled.file().write_all(b"x").unwrap();
        spoiled.spoil();
        drop(spoiled);
        drop(Partial::take(dir.path(), "empty").unwrap().unwrap());
        assert_eq!(there(), 1, "spoiled and empty ones stay");
    }

    #[test]
    fn what_nobody_goes_on_with_goes() {
        let dir = tempfile::tempdir().unwrap();
        let of = |hex: &str| {
            let partial = Partial::take(dir.path(), hex).unwrap().unwrap();
            partial.file().write_all(b"x").unwrap();
            partial
        };
        drop(of("left"));
        let held = of("held");
        let now = SystemTime::now();
        clean(dir.path(), now + KEPT_FOR / 2, KEPT_FOR).unwrap();
        assert_eq!((bytes(dir.path(), "left"), bytes(dir.path(), "held")), (1, 1));
        clean(dir.path(), now + KEPT_FOR * 2, KEPT_FOR).unwrap();
        assert_eq!((bytes(dir.path(), "left"), bytes(dir.path(), "held")), (0, 1));
        drop(held);
    }
}
