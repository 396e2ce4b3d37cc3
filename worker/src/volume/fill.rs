//! Fills a new volume with what the image has at the place where it is mounted.
//!
//! Containers that have the volume may write to it meanwhile, and put links in the place of folders: below the volume's
//! folder nothing is done by a path. A half would count as filled, so the copy is made beside the volume, where it can be,
//! and moved when it is whole; what others have made there by then stays.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self as rfs, AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, Uid},
    io::Errno,
};

/// The copy, in the volume's folder: on its way, and whole.
const COPYING: &str = "_copying";
const COPIED: &str = "_copied";
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Copies into the folder `to` what the image has at `target`; nothing when it has no folder there. The copy is made in
/// `aside`, when that is of the same disk.
pub(super) fn fill(to: &Path, root: &Path, target: &str, aside: Option<&Path>) -> io::Result<()> {
    let root = File::open(root)?;
    let inside = target.trim_start_matches('/');
    let inside = if inside.is_empty() { "." } else { inside };
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    // Links in the image resolve inside the image.
    let Ok(from) = crate::within::open(&root, inside, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    else {
        return Ok(());
    };
    let from = PathBuf::from(format!("/proc/self/fd/{}/.", from.as_raw_fd()));
    let Some(aside) = aside else { return copy(&from, to) };
    let copying = aside.join(COPYING);
    fs::create_dir(&copying)?;
    if let Err(error) = copy(&from, &copying) {
        // Of the disk that is full, for one.
        let _ = fs::remove_dir_all(&copying);
        return Err(error);
    }
    fs::rename(&copying, aside.join(COPIED))?;
    finish(to, aside)
}

/// Moves a copy that is whole into the folder `to`, also one that an earlier worker has left; deletes one that is not.
pub(super) fn finish(to: &Path, aside: &Path) -> io::Result<()> {
    match fs::remove_dir_all(aside.join(COPYING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let copied = aside.join(COPIED);
    let names = match fs::read_dir(&copied) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()?,
    };
    let (from, into) = (File::open(&copied)?, File::open(to)?);
    let moved = names.iter().try_for_each(|name| move_one(&from, &into, name));
    match moved {
        // Somebody has mounted another disk at the volume's folder.
        Err(Errno::XDEV) => copy(&copied, to)?,
        moved => {
            moved?;
            set_attributes(into.as_fd(), &from.metadata()?)?;
        }
    }
    fs::remove_dir_all(&copied)
}

/// What somebody else has made there stays.
fn move_one(from: &File, to: &File, name: &OsStr) -> Result<(), Errno> {
    let moved = match rfs::renameat_with(from, name, to, name, RenameFlags::NOREPLACE) {
        // The file system cannot tell by itself.
        Err(Errno::INVAL) => match rfs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => rfs::renameat(from, name, to, name),
            found => found.map(drop),
        },
        moved => moved,
    };
    if moved == Err(Errno::EXIST) { Ok(()) } else { moved }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let to = File::open(to)?;
    Copier { root: to.as_fd(), copied: BTreeMap::new() }.folder(from, to.as_fd(), Path::new(""))
}

struct Copier<'a> {
    root: BorrowedFd<'a>,
    /// Files with several names, by device and number, and where below the root the first of them is.
    copied: BTreeMap<(u64, u64), PathBuf>,
}

impl Copier<'_> {
    /// What is there already stays. `at`: where below the root the folder `to` is.
    fn folder(&mut self, from: &Path, to: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (source, name) = (entry.path(), entry.file_name());
            let metadata = fs::symlink_metadata(&source)?;
            let at = at.join(&name);
            if metadata.is_dir() {
                if let Some(folder) = make_folder(to, &name)? {
                    self.folder(&source, folder.as_fd(), &at)?;
                }
                continue;
            }
            let id = (metadata.nlink() > 1).then_some((metadata.dev(), metadata.ino()));
            let copied = match id.and_then(|id| self.copied.get(&id)) {
                Some(first) => self.link(first, to, &name).map(|()| false),
                None => copy_one(&source, &metadata, to, &name),
            };
            match copied {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                copied => {
                    if copied? {
                        self.copied.extend(id.map(|id| (id, at)));
                    }
                }
            }
        }
        set_attributes(to, &fs::metadata(from)?)
    }

    fn link(&self, first: &Path, to: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let above = match first.parent() {
            Some(above) if above != Path::new("") => above,
            _ => Path::new("."),
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let above = crate::within::open(self.root, above, OFlags::PATH | FOLDER, resolve)?;
        let first = first.file_name().unwrap_or_default();
        Ok(rfs::linkat(&above, first, to, name, AtFlags::empty())?)
    }
}

/// `None`: something else has the name.
fn make_folder(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    match rfs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    match rfs::openat(parent, name, OFlags::RDONLY | FOLDER, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether it was: sockets and devices of an image have no meaning in a volume.
fn copy_one(source: &Path, metadata: &Metadata, to: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    let kind = metadata.file_type();
    if kind.is_file() {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut copy = File::from(rfs::openat(to, name, flags, Mode::from_raw_mode(0o600))?);
        if let Err(error) = File::open(source).and_then(|mut source| io::copy(&mut source, &mut copy)) {
            let _ = rfs::unlinkat(to, name, AtFlags::empty());
            return Err(error);
        }
        set_attributes(copy.as_fd(), metadata)?;
        return Ok(true);
    }
    if kind.is_symlink() {
        rfs::symlinkat(fs::read_link(source)?, to, name)?;
    } else if kind.is_fifo() {
        rfs::mknodat(to, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    } else {
        return Ok(false);
    }
    let (owner, group) = owner(metadata);
    rfs::chownat(to, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
    // Links have none of their own.
    if kind.is_fifo() {
        crate::within::chmod(to, name, mode(metadata))?;
    }
    rfs::utimensat(to, name, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(true)
}

fn set_attributes(of: BorrowedFd<'_>, from: &Metadata) -> io::Result<()> {
    let (owner, group) = owner(from);
    rfs::fchown(of, owner, group)?;
    // After the owner: changing that clears the set-id bits.
    rfs::fchmod(of, mode(from))?;
    Ok(rfs::futimens(of, &times(from))?)
}

fn owner(of: &Metadata) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(of.uid())), Some(Gid::from_raw(of.gid())))
}

fn mode(of: &Metadata) -> Mode {
    Mode::from_raw_mode(of.mode() & 0o7777)
}

fn times(of: &Metadata) -> Timestamps {
    let at = Timespec { tv_sec: of.mtime(), tv_nsec: of.mtime_nsec() };
    Timestamps { last_access: at, last_modification: at }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use super::*;

    #[test]
    fn a_filled_volume_has_the_links_and_times_of_the_image() {
        for is_aside in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (root, data) = (dir.path().join("root"), dir.path().join("data"));
            fs::create_dir_all(root.join("real/sub")).unwrap();
            fs::create_dir(&data).unwrap();
            fs::write(root.join("real/one"), "same").unwrap();
            fs::hard_link(root.join("real/one"), root.join("real/sub/two")).unwrap();
            symlink("one", root.join("real/link")).unwrap();
            rfs::mknodat(rfs::CWD, root.join("real/pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
            lchown(root.join("real/sub"), Some(999), Some(998)).unwrap();
            fs::set_permissions(root.join("real"), fs::Permissions::from_mode(0o1750)).unwrap();
            let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
            let old = Timestamps { last_access: old, last_modification: old };
            rfs::utimensat(rfs::CWD, root.join("real/link"), &old, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            fill(&data, &root, "/real", is_aside.then_some(dir.path())).unwrap();
            let of = |name: &str| fs::symlink_metadata(data.join(name)).unwrap();
            assert_eq!((of("one").nlink(), of("one").ino()), (2, of("sub/two").ino()));
            assert_eq!((of("link").mtime(), of("link").mtime_nsec()), (1_000_000_000, 5));
            assert_eq!(fs::read_to_string(data.join("sub/two")).unwrap(), "same");
            assert_eq!((of("pipe").file_type().is_fifo(), of("pipe").mode() & 0o7777), (true, 0o640));
            assert_eq!((of("sub").uid(), of("sub").gid(), of("").mode() & 0o7777), (999, 998, 0o1750));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something is left beside the volume");
        }
    }

    #[test]
    fn what_a_container_has_put_there_meanwhile_stays_and_leads_nowhere() {
        for is_aside in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let [root, data, outside] = ["root", "data", "outside"].map(|name| dir.path().join(name));
            for folder in [&root.join("sub"), &root.join("deep/sub"), &data, &outside] {
                fs::create_dir_all(folder).unwrap();
            }
            for file in ["sub/file", "deep/sub/file", "file", "rest"] {
                fs::write(root.join(file), "of the image").unwrap();
            }
            let before = fs::metadata(&outside).unwrap();
            for link in ["sub", "file"] {
                symlink(&outside, data.join(link)).unwrap();
            }
            fill(&data, &root, "/", is_aside.then_some(dir.path())).unwrap();
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
            assert_eq!(fs::metadata(&outside).unwrap().mtime(), before.mtime());
            assert!(data.join("sub").is_symlink() && data.join("file").is_symlink());
            for file in ["rest", "deep/sub/file"] {
                assert_eq!(fs::read_to_string(data.join(file)).unwrap(), "of the image");
            }
        }
    }

    #[test]
    fn what_an_earlier_worker_has_copied_is_moved_and_a_half_goes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["data", "_copying/half", "_copied/sub"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for (file, content) in [("_copied/sub/file", "whole"), ("_copied/both", "copied"), ("data/both", "moved")] {
            fs::write(at(file), content).unwrap();
        }
        fs::set_permissions(at("_copied"), fs::Permissions::from_mode(0o1700)).unwrap();
        finish(&at("data"), dir.path()).unwrap();
        assert_eq!(fs::read_to_string(at("data/sub/file")).unwrap(), "whole");
        assert_eq!(fs::read_to_string(at("data/both")).unwrap(), "moved");
        assert_eq!(fs::metadata(at("data")).unwrap().mode() & 0o7777, 0o1700);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        finish(&at("data"), dir.path()).unwrap();
    }
}
