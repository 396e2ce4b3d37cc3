//! What is in a container's root filesystem: read as a tar, written from one, compared with the image, measured.
//!
//! Paths are the container's: every link in them is resolved as if its root were `/`. Files are opened below folders
//! that are open already, so that a program inside cannot lead this one elsewhere by moving things about.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirEntryExt, FileTypeExt, MetadataExt},
        },
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{self as rfs, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use tar::{Builder, EntryType, Header};

use crate::{users::Remap, within};

/// Deepest folder that is walked.
const MAX_DEPTH: usize = 512;
/// What overlayfs puts on a folder that hides the one below.
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub name: String,
    /// With the file's type.
    pub mode: u32,
    pub size_bytes: u64,
    /// Of a symbolic link.
    pub link_target: String,
}

/// How a path differs from the image's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Change {
    pub path: String,
    pub kind: ChangeKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChangeKind {
    Added,
    Changed,
    Deleted,
}

/// The root folder of a container.
pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rfs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// What `path` is; a link at its end is followed only when asked for, or where the path goes on behind it (`link/`, `link/.`).
pub(crate) fn find(root: BorrowedFd<'_>, path: &str, follow: bool) -> io::Result<(OwnedFd, Found)> {
    let wants_folder = path.ends_with('/') || path.ends_with("/.");
    let nofollow = if follow || wants_folder { OFlags::empty() } else { OFlags::NOFOLLOW };
    let opened = open_in(root, path, OFlags::PATH | nofollow)?;
    let stat = rfs::fstat(&opened)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let link_target = if kind == FileType::Symlink {
        let target = rfs::readlinkat(&opened, "", Vec::new())?;
        String::from_utf8_lossy(target.as_bytes()).into_owned()
    } else {
        String::new()
    };
    if wants_folder && kind != FileType::Directory {
        return Err(Errno::NOTDIR.into());
    }
    let name = clean(path).file_name().map_or_else(|| "/".to_owned(), |name| name.to_string_lossy().into_owned());
    let size_bytes = u64::try_from(stat.st_size).unwrap_or_default();
    Ok((opened, Found { name, mode: stat.st_mode, size_bytes, link_target }))
}

/// Writes what was found, with everything below it, as a tar whose names begin with the found one's; with none when that is
/// `/` or `.`, which means a folder's content.
pub(crate) fn pack(opened: &OwnedFd, found: &Found, remap: Option<Remap>, to: impl Write) -> io::Result<()> {
    let mut tar = Packer { tar: Builder::new(to), remap, names: HashMap::new() };
    let name = if matches!(found.name.as_str(), "/" | ".") { PathBuf::from("./") } else { PathBuf::from(&found.name) };
    let stat = rfs::fstat(opened)?;
    add(&mut tar, &name, opened.as_fd(), &stat, 0)?;
    tar.tar.into_inner()?.flush()
}

/// What a container has changed: its upper folder beside the image's layers, top layer first.
pub(crate) fn changes(upper: &Path, layers: &[PathBuf]) -> io::Result<Vec<Change>> {
    let mut found = BTreeSet::new();
    compare(upper, Path::new(""), layers, &mut found, 0)?;
    Ok(found.into_iter().collect())
}

/// Bytes on the disk, each file once however many names it has.
pub(crate) fn disk_bytes(folder: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    measure(folder, &mut seen, 0)
}

/// Opens below the container's root, links resolved inside it.
pub(crate) fn open_in(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let path = clean(path);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(within::open(root, path, flags, resolve)?)
}

/// Without a leading `/` and `.`; `..` stays, the kernel stops it at the root.
fn clean(path: &str) -> PathBuf {
    let kept = Path::new(path).components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
    kept.collect()
}

struct Packer<W: Write> {
    tar: Builder<W>,
    /// Whose numbers the files have; the tar has the container's.
    remap: Option<Remap>,
    /// Of files with several names the first one, by what they are.
    names: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packer<W> {
    /// The name that the file is in the tar with; it is in it with this one if there was none.
    fn first_name(&mut self, name: &Path, stat: &Stat) -> Option<PathBuf> {
        if stat.st_nlink < 2 {
            return None;
        }
        match self.names.entry((stat.st_dev, stat.st_ino)) {
            Entry::Occupied(first) => Some(first.get().clone()),
            Entry::Vacant(place) => {
                // As the tar has it.
                place.insert(name.components().filter(|part| *part != Component::CurDir).collect());
                None
            }
        }
    }
}

fn add<W: Write>(to: &mut Packer<W>, name: &Path, node: BorrowedFd<'_>, stat: &Stat, depth: usize) -> io::Result<()> {
    let mut header = header(stat, to.remap);
    let kind = FileType::from_raw_mode(stat.st_mode);
    let first = if kind == FileType::RegularFile { to.first_name(name, stat) } else { None };
    let tar = &mut to.tar;
    if let Some(first) = first {
        header.set_entry_type(EntryType::Link);
        return tar.append_link(&mut header, name, first);
    }
    match kind {
        FileType::RegularFile => {
            let file = reopen(node, OFlags::RDONLY | OFlags::NONBLOCK)?;
            header.set_size(u64::try_from(stat.st_size).unwrap_or_default());
            // As long as the header says, whatever a program does to the file meanwhile.
            let content = Padded { file: File::from(file), left: u64::try_from(stat.st_size).unwrap_or_default() };
            tar.append_data(&mut header, name, content)
        }
        FileType::Directory => {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, slashed(name), io::empty())?;
            if depth == MAX_DEPTH {
                return Err(io::Error::other(format!("folders are nested too deeply at {}", name.display())));
            }
            add_folder(to, name, node, depth)
        }
        FileType::Symlink => {
            header.set_entry_type(EntryType::Symlink);
            let target = rfs::readlinkat(node, "", Vec::new())?;
            tar.append_link(&mut header, name, OsStr::from_bytes(target.as_bytes()))
        }
        FileType::Fifo => {
            header.set_entry_type(EntryType::Fifo);
            tar.append_data(&mut header, name, io::empty())
        }
        kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
            header.set_entry_type(if kind == FileType::BlockDevice { EntryType::Block } else { EntryType::Char });
            header.set_device_major(rfs::major(stat.st_rdev))?;
            header.set_device_minor(rfs::minor(stat.st_rdev))?;
            tar.append_data(&mut header, name, io::empty())
        }
        // Sockets mean nothing elsewhere.
        _ => Ok(()),
    }
}

fn add_folder<W: Write>(to: &mut Packer<W>, name: &Path, node: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    let folder = reopen(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names: Vec<OsString> = Vec::new();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let entry = OsStr::from_bytes(entry.file_name().to_bytes());
        if entry != "." && entry != ".." {
            names.push(entry.to_owned());
        }
    }
    names.sort_unstable();
    for entry in names {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let child = match rfs::openat(&folder, &entry, flags, Mode::empty()) {
            // It went meanwhile.
            Err(Errno::NOENT) => continue,
            opened => opened?,
        };
        let stat = rfs::fstat(&child)?;
        add(to, &name.join(&entry), child.as_fd(), &stat, depth + 1)?;
    }
    Ok(())
}

fn slashed(name: &Path) -> PathBuf {
    name.join("")
}

fn header(stat: &Stat, remap: Option<Remap>) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    let (uid, gid) = remap.map_or((0, 0), |remap| (remap.uid, remap.gid));
    header.set_uid(stat.st_uid.saturating_sub(uid).into());
    header.set_gid(stat.st_gid.saturating_sub(gid).into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
    header.set_size(0);
    header
}

/// From a descriptor that only names a file to one that reads it: by the file itself, not by a name.
fn reopen(node: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    Ok(rfs::open(format!("/proc/self/fd/{}", node.as_raw_fd()), flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// A file that ends exactly when it should: cut, or filled with zeros.
struct Padded {
    file: File,
    left: u64,
}

impl io::Read for Padded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..room];
        let mut read = self.file.read(buffer)?;
        if read == 0 && room > 0 {
            buffer.fill(0);
            read = room;
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn compare(
    upper: &Path,
    inside: &Path,
    layers: &[PathBuf],
    found: &mut BTreeSet<Change>,
    depth: usize,
) -> io::Result<()> {
    if depth == MAX_DEPTH {
        return Ok(());
    }
    let entries = match fs::read_dir(upper.join(inside)) {
        // The container never ran.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = inside.join(entry.file_name());
        let metadata = entry.metadata()?;
        let kind = metadata.file_type();
        let was = layers.iter().any(|layer| is_in(layer, &path));
        let said = |kind| Change { path: format!("/{}", path.display()), kind };
        if kind.is_char_device() && metadata.rdev() == 0 {
            if was {
                found.insert(said(ChangeKind::Deleted));
            }
            continue;
        }
        found.insert(said(if was { ChangeKind::Changed } else { ChangeKind::Added }));
        if kind.is_dir() {
            let hides = rfs::getxattr(entry.path(), OPAQUE_XATTR, &mut [0_u8; 4]).is_ok();
            compare(upper, &path, if hides { &[] } else { layers }, found, depth + 1)?;
        }
    }
    Ok(())
}

/// Whether a layer has something there that is no whiteout.
fn is_in(layer: &Path, path: &Path) -> bool {
    let found = fs::symlink_metadata(layer.join(path));
    found.is_ok_and(|metadata| !(metadata.file_type().is_char_device() && metadata.rdev() == 0))
}

fn measure(folder: &Path, seen: &mut BTreeSet<(u64, u64)>, depth: usize) -> u64 {
    const BLOCK_BYTES: u64 = 512;
    let mut bytes = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert((metadata.dev(), entry.ino())) {
            continue;
        }
        bytes += metadata.blocks() * BLOCK_BYTES;
        if metadata.is_dir() && depth < MAX_DEPTH {
            bytes += measure(&entry.path(), seen, depth + 1);
        }
    }
    bytes
}

/// Whether there is a folder at the path, through links.
pub(crate) fn is_folder(root: BorrowedFd<'_>, path: &str) -> io::Result<bool> {
    match open_in(root, path, OFlags::PATH) {
        Ok(opened) => Ok(FileType::from_raw_mode(rfs::fstat(&opened)?.st_mode) == FileType::Directory),
        Err(error) => Err(error),
    }
}

/// Whether a file system is mounted on the folder.
pub(crate) fn is_mounted(folder: &Path) -> bool {
    let stat = rfs::statx(rfs::CWD, folder, AtFlags::empty(), rfs::StatxFlags::BASIC_STATS);
    stat.is_ok_and(|stat| stat.stx_attributes.contains(rfs::StatxAttributes::MOUNT_ROOT))
}

/// Where the file system is mounted that a path lies on.
pub(crate) fn mount_point(path: &Path) -> &Path {
    path.ancestors().find(|folder| is_mounted(folder)).unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Backups of a container keep what is one file.
    #[test]
    fn a_file_with_two_names_is_packed_once() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("d/sub")).unwrap();
        fs::write(from.join("d/a"), "one").unwrap();
        for name in ["d/b", "d/sub/c", "outside"] {
            fs::hard_link(from.join("d/a"), from.join(name)).unwrap();
        }
        let root = open_root(&from).unwrap();
        for (path, want) in [
            ("/d", "d/= d/a=one d/b->d/a d/sub/= d/sub/c->d/a"),
            ("/d/.", "d/= d/a=one d/b->d/a d/sub/= d/sub/c->d/a"),
            ("/d/b", "b=one"),
            ("/", "./= d/= d/a=one d/b->d/a d/sub/= d/sub/c->d/a outside->d/a"),
        ] {
            let (opened, found) = find(root.as_fd(), path, false).unwrap();
            let mut tar = Vec::new();
            pack(&opened, &found, None, &mut tar).unwrap();
            let mut seen = Vec::new();
            for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
                let mut entry = entry.unwrap();
                let mut content = String::new();
                io::Read::read_to_string(&mut entry, &mut content).unwrap();
                let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                seen.push(match entry.link_name_bytes() {
                    Some(first) => format!("{name}->{}", String::from_utf8_lossy(&first)),
                    None => format!("{name}={content}"),
                });
            }
            assert_eq!(seen.join(" "), want, "{path}");
        }
    }

    #[test]
    fn a_tar_goes_in_as_it_came_out() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("etc/sub")).unwrap();
        fs::create_dir_all(to.join("real")).unwrap();
        fs::write(from.join("etc/sub/.wh.file"), "content").unwrap();
        symlink("/nowhere", from.join("etc/link")).unwrap();
        symlink("/etc", from.join("cfg")).unwrap();
        symlink("/real", to.join("alias")).unwrap();
        let root = open_root(&from).unwrap();
        assert_eq!(find(root.as_fd(), "/cfg", false).unwrap().1.link_target, "/etc");
        let (opened, found) = find(root.as_fd(), "/../cfg", true).unwrap();
        assert_eq!(found.name, "cfg");
        let mut tar = Vec::new();
        pack(&opened, &found, None, &mut tar).unwrap();
        crate::image::unpack::unpack_into(tar.as_slice(), open_root(&to).unwrap(), Path::new("/alias"), None).unwrap();
        assert_eq!(fs::read_to_string(to.join("real/cfg/sub/.wh.file")).unwrap(), "content");
        assert_eq!(fs::read_link(to.join("real/cfg/link")).unwrap(), Path::new("/nowhere"));
        // A folder's content goes to where a link leads; the link stays.
        let (opened, found) = find(root.as_fd(), "/etc/sub/.", false).unwrap();
        let mut tar = Vec::new();
        pack(&opened, &Found { name: ".".to_owned(), ..found }, None, &mut tar).unwrap();
        crate::image::unpack::unpack_into(tar.as_slice(), open_root(&to).unwrap(), Path::new("/alias"), None).unwrap();
        assert_eq!(fs::read_link(to.join("alias")).unwrap(), Path::new("/real"));
        assert_eq!(fs::read_to_string(to.join("real/.wh.file")).unwrap(), "content");
        // A file does not take a folder's place.
        fs::write(from.join("sub"), "").unwrap();
        let (opened, found) = find(root.as_fd(), "sub", false).unwrap();
        let mut tar = Vec::new();
        pack(&opened, &found, None, &mut tar).unwrap();
        let refused =
            crate::image::unpack::unpack_into(tar.as_slice(), open_root(&to).unwrap(), Path::new("real/cfg"), None);
        assert!(refused.is_err() && to.join("real/cfg/sub").is_dir());
        assert!(find(root.as_fd(), "none", false).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
    }

    /// Needs root: whiteouts are device nodes.
    #[test]
    fn changes_are_what_the_image_does_not_have() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, layer) = (dir.path().join("upper"), dir.path().join("layer"));
        fs::create_dir_all(upper.join("etc")).unwrap();
        fs::create_dir_all(layer.join("etc")).unwrap();
        for (folder, name) in [(&upper, "etc/new"), (&upper, "etc/both"), (&layer, "etc/both"), (&layer, "gone")] {
            fs::write(folder.join(name), "x").unwrap();
        }
        rfs::mknodat(rfs::CWD, upper.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        let seen = changes(&upper, &[layer]).unwrap();
        let seen: Vec<(&str, ChangeKind)> = seen.iter().map(|change| (change.path.as_str(), change.kind)).collect();
        use ChangeKind::{Added, Changed, Deleted};
        assert_eq!(seen, [("/etc", Changed), ("/etc/both", Changed), ("/etc/new", Added), ("/gone", Deleted)]);
        assert!(disk_bytes(dir.path()) > 0);
    }
}
