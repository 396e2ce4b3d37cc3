//! Room on the disk: an image is refused before it fills the disk that containers write to.
//!
//! Layers may say, or unpack to, any size: tar bombs and huge sparse files cost their author nothing.

use std::io;

use rustix::fs::{StatVfs, fstatvfs};

/// Left free at least, unless a twentieth of the disk is less.
const RESERVE_BYTES: u64 = 1 << 30;
const RESERVE_DIVISOR: u64 = 20;
/// How much is written between two looks at the disk.
const LOOK_EVERY_BYTES: u64 = 32 << 20;
/// Files and folders cost inodes, which are looked at as often.
const LOOK_EVERY_ENTRIES: u64 = 4096;
/// More entries than any layer of sense has.
const MAX_ENTRIES: u64 = 5_000_000;

/// Watches one writer's use of a disk.
#[derive(Debug, Default)]
pub(crate) struct Room {
    bytes: u64,
    entries: u64,
}

impl Room {
    /// Before something of a known size is written.
    pub(crate) fn check(disk: impl std::os::fd::AsFd, bytes: u64) -> io::Result<()> {
        let free = free(&fstatvfs(disk)?);
        if bytes <= free { Ok(()) } else { Err(full(bytes, free)) }
    }

    /// One more file or folder.
    pub(crate) fn entry(&mut self, disk: impl std::os::fd::AsFd) -> io::Result<()> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            let text = format!("it has more than {MAX_ENTRIES} entries: this is no image but a tar bomb");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if !self.entries.is_multiple_of(LOOK_EVERY_ENTRIES) {
            return Ok(());
        }
        let disk = fstatvfs(disk)?;
        // Some file systems do not count them.
        let reserve = disk.f_files / RESERVE_DIVISOR;
        if disk.f_files > 0 && disk.f_favail <= reserve {
            let text = format!("the disk would have less than {reserve} inodes left: remove what is not needed");
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        Ok(())
    }

    /// So much is about to be written.
    pub(crate) fn write(&mut self, disk: impl std::os::fd::AsFd, bytes: usize) -> io::Result<()> {
        self.bytes += bytes as u64;
        if self.bytes < LOOK_EVERY_BYTES {
            return Ok(());
        }
        self.bytes = 0;
        Self::check(disk, LOOK_EVERY_BYTES)
    }
}

fn free(disk: &StatVfs) -> u64 {
    let available = disk.f_bavail.saturating_mul(disk.f_frsize);
    let reserve = (disk.f_blocks.saturating_mul(disk.f_frsize) / RESERVE_DIVISOR).min(RESERVE_BYTES);
    available.saturating_sub(reserve)
}

fn full(wanted: u64, free: u64) -> io::Error {
    let mb = |bytes: u64| bytes >> 20;
    let text = format!(
        "{} MB more do not fit: the disk has {} MB for images; make room with `orch image prune -a`",
        mb(wanted),
        mb(free)
    );
    io::Error::new(io::ErrorKind::StorageFull, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let disk = std::fs::File::open(dir.path()).unwrap();
        assert!(Room::check(&disk, 1).is_ok());
        let refused = Room::check(&disk, 1 << 60).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        let mut room = Room::default();
        assert!((0..100).all(|_| room.write(&disk, 1 << 20).is_ok() && room.entry(&disk).is_ok()));
        room.entries = MAX_ENTRIES;
        assert!(room.entry(&disk).unwrap_err().to_string().contains("tar bomb"));
    }
}
