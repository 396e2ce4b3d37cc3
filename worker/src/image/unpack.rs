//! Unpacks a layer's tar into a folder, whatever the tar says, without leaving the folder.
//!
//! Every parent folder is opened with `openat2(RESOLVE_IN_ROOT)`, so symbolic links made by earlier entries resolve
//! inside the layer; the last component is only ever used with calls that do not follow links. Whiteouts become what
//! overlayfs reads: a 0/0 character device, and `trusted.overlay.opaque` on the folder. A tar's own
//! `trusted.overlay.*` attributes are dropped: they could point overlayfs at other folders.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use rustix::{
    fs::{
        self as rfs, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
        makedev,
    },
    io::Errno,
};
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use crate::users::Remap;

use self::sparse::Sparse;
use super::room::Room;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Bookkeeping of old union file systems.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const XATTR_RECORD_PREFIX: &str = "SCHILY.xattr.";
/// Longest chain of missing parents that is made for an entry.
const MAX_DEPTH: usize = 256;
const COPY_BYTES: u64 = 128 << 10;
const SMALLEST_HOLE_BYTES: usize = 4096;
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("read the layer's tar")]
    Read(#[source] io::Error),
    #[error("the layer has an entry {0:?}, which would leave the image: its tar is broken or malicious")]
    Escape(PathBuf),
    #[error("unpack {path:?}")]
    Entry {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("open the folder of the layer")]
    Root(#[source] io::Error),
}

/// What is known of a layer once it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerFacts {
    /// The digest of the uncompressed tar.
    pub(crate) diff_id: String,
    /// When the newest of its entries was modified, in seconds since 1970; 0 when there is none.
    pub(crate) modified_at: i64,
}

/// Unpacks the layer in `blob` (plain, gzip or zstd).
pub(crate) fn unpack_layer(blob: impl Read, root: &Path) -> Result<LayerFacts, UnpackError> {
    let plain = decompress(blob).map_err(UnpackError::Read)?;
    let mut hashed = HashingReader { inner: plain, hash: Sha256::new() };
    let modified_at = unpack_tar(&mut hashed, root)?;
    // What follows the end marker belongs to the digest as well.
    io::copy(&mut hashed, &mut io::sink()).map_err(UnpackError::Read)?;
    Ok(LayerFacts { diff_id: format!("sha256:{}", hex::encode(hashed.hash.finalize())), modified_at })
}

/// Recognises gzip and zstd by their first bytes.
pub(crate) fn decompress<'a>(mut blob: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(4);
    blob.by_ref().take(4).read_to_end(&mut magic)?;
    let kind = Compression::of(&magic);
    let whole = io::Cursor::new(magic).chain(blob);
    Ok(match kind {
        Compression::Gzip => Box::new(MultiGzDecoder::new(io::BufReader::with_capacity(1 << 17, whole))),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(whole)?),
        Compression::None => Box::new(io::BufReader::with_capacity(1 << 17, whole)),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

struct HashingReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}

fn unpack_tar(tar: impl Read, root: &Path) -> Result<i64, UnpackError> {
    let root = rfs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| UnpackError::Root(e.into()))?;
    Layer::new(root, PathBuf::new(), Purpose::Layer).add_all(tar)
}

/// Unpacks a tar into the folder `base` of a container's root, links resolved inside that. Names mean themselves there,
/// and no folder makes room for a file, nor a file or a link for a folder. What is there may be full: it is the container's.
/// Owners become the node's numbers of a remapped container's.
pub(crate) fn unpack_into(tar: impl Read, root: OwnedFd, base: &Path, remap: Option<Remap>) -> Result<(), UnpackError> {
    let base = inside(base).ok_or_else(|| UnpackError::Escape(base.to_owned()))?;
    Layer::new(root, base, Purpose::Container(remap)).add_all(tar).map(drop)
}

/// What a tar is unpacked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Layer,
    Container(Option<Remap>),
}

struct Layer {
    root: OwnedFd,
    /// Below the root: where the tar's names begin.
    base: PathBuf,
    purpose: Purpose,
    /// Set last: making files inside changes them.
    folder_times: Vec<(PathBuf, Timestamps)>,
    modified_at: i64,
    /// Of a layer: what a container has may be on any disk.
    room: Option<Room>,
}

/// What an entry's header says besides its kind and content.
struct Attributes {
    mode: Mode,
    owner: Uid,
    group: Gid,
    times: Timestamps,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Layer {
    fn new(root: OwnedFd, base: PathBuf, purpose: Purpose) -> Self {
        let room = (purpose == Purpose::Layer).then(Room::default);
        Self { root, base, purpose, folder_times: Vec::new(), modified_at: 0, room }
    }

    /// When the newest entry was modified.
    fn add_all(mut self, tar: impl Read) -> Result<i64, UnpackError> {
        let mut archive = Archive::new(tar);
        for entry in archive.entries().map_err(UnpackError::Read)? {
            self.add(entry.map_err(UnpackError::Read)?)?;
        }
        let modified_at = self.modified_at;
        self.finish().map(|()| modified_at)
    }

    /// Removes what is in the way.
    fn make_room(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        match self.purpose {
            Purpose::Layer => make_room(parent, name),
            Purpose::Container(_) => match rfs::unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(Errno::ISDIR) => Err(io::Error::other("cannot overwrite directory with non-directory")),
                Err(error) => Err(error.into()),
            },
        }
    }

    fn add<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), UnpackError> {
        let sparse = Sparse::of(&mut entry).map_err(UnpackError::Read)?;
        let named = sparse.as_ref().and_then(|sparse| sparse.name.as_deref());
        let raw = PathBuf::from(OsStr::from_bytes(named.unwrap_or(&entry.path_bytes())));
        let path = inside(&raw).ok_or_else(|| UnpackError::Escape(raw.clone()))?;
        let path = self.base.join(path);
        self.add_at(&path, &mut entry, sparse).map_err(|source| UnpackError::Entry { path, source })
    }

    fn add_at<R: Read>(&mut self, path: &Path, entry: &mut Entry<'_, R>, sparse: Option<Sparse>) -> io::Result<()> {
        let mut attributes = Attributes::of(entry)?;
        self.modified_at = self.modified_at.max(attributes.times.last_modification.tv_sec);
        if let Purpose::Container(Some(remap)) = self.purpose {
            let shift = |id: u32, by: u32| id.checked_add(by).ok_or_else(|| invalid("the owner is not a user id"));
            attributes.owner = Uid::from_raw(shift(attributes.owner.as_raw(), remap.uid)?);
            attributes.group = Gid::from_raw(shift(attributes.group.as_raw(), remap.gid)?);
        }
        let name = match path.file_name() {
            Some(name) if path != self.base => name,
            // The folder itself: the root, or what a link at the base leads to, which stays a link.
            _ => return self.add_folder_attributes(path, &attributes),
        };
        if let Some(room) = &mut self.room {
            room.entry(&self.root)?;
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        let parent = make_way(self.root.as_fd(), parent, self.purpose, MAX_DEPTH)?;
        if self.purpose == Purpose::Layer
            && let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX)
        {
            return whiteout(parent.as_fd(), name.as_bytes(), hidden);
        }
        match kind_of(entry) {
            EntryType::Directory => {
                make_folder(parent.as_fd(), name, self.purpose)?;
                self.add_folder_attributes(path, &attributes)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let bytes = sparse.as_ref().map_or(entry.size(), |sparse| sparse.bytes);
                if self.room.is_some() {
                    Room::check(&self.root, bytes)?;
                }
                self.make_room(parent.as_fd(), name)?;
                let mut writing = Writing { room: self.room.as_mut(), buffer: bytes.clamp(1, COPY_BYTES) };
                match sparse {
                    Some(sparse) => {
                        let mut content = sparse.expand(entry)?;
                        write_file(parent.as_fd(), name, &mut content, &attributes, &mut writing)
                    }
                    None => write_file(parent.as_fd(), name, entry, &attributes, &mut writing),
                }
            }
            EntryType::Link => {
                let target = link_target(entry)?;
                let target = inside(&target).ok_or_else(|| invalid("the hard link leaves the image"))?;
                let target = self.base.join(target);
                self.make_room(parent.as_fd(), name)?;
                hard_link(self.root.as_fd(), &target, parent.as_fd(), name)
            }
            EntryType::Symlink => {
                self.make_room(parent.as_fd(), name)?;
                rfs::symlinkat(&link_target(entry)?, &parent, name)?;
                attributes.set(parent.as_fd(), name, Follow::Symlink)
            }
            kind @ (EntryType::Char | EntryType::Block | EntryType::Fifo) => {
                self.make_room(parent.as_fd(), name)?;
                make_node(parent.as_fd(), name, kind, entry)?;
                attributes.set(parent.as_fd(), name, Follow::Node)
            }
            // Global headers and unknown records carry no file.
            _ => Ok(()),
        }
    }

    fn add_folder_attributes(&mut self, path: &Path, attributes: &Attributes) -> io::Result<()> {
        let folder = open_folder(self.root.as_fd(), path)?;
        attributes.set_on_folder(folder.as_fd())?;
        self.folder_times.push((path.to_owned(), attributes.times.clone()));
        Ok(())
    }

    fn finish(self) -> Result<(), UnpackError> {
        for (path, times) in self.folder_times.iter().rev() {
            let set = || -> io::Result<()> {
                match open_folder(self.root.as_fd(), path).map_err(io::Error::from) {
                    Ok(folder) => Ok(rfs::utimensat(CWD, proc_path(folder.as_fd()), times, AtFlags::empty())?),
                    // A later entry replaced the folder.
                    Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
                    Err(e) => Err(e),
                }
            };
            set().map_err(|source| UnpackError::Entry { path: path.clone(), source })?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    Symlink,
    Node,
}

impl Attributes {
    fn of<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Self> {
        let header = entry.header();
        let owner = u32::try_from(header.uid()?).map_err(|_| invalid("the owner is not a user id"))?;
        let group = u32::try_from(header.gid()?).map_err(|_| invalid("the group is not a group id"))?;
        let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
        // GNU tar writes times before 1970 in two's complement.
        let mut times = timestamps(header.mtime()?.cast_signed(), 0);
        let mut xattrs = Vec::new();
        if let Some(records) = entry.pax_extensions()? {
            for record in records {
                let record = record?;
                let Ok(key) = record.key() else { continue };
                if key == "mtime" {
                    times = record.value().ok().and_then(pax_time).unwrap_or(times);
                } else if let Some(name) = key.strip_prefix(XATTR_RECORD_PREFIX)
                    && is_xattr_taken(name)
                {
                    xattrs.push((name.to_owned(), record.value_bytes().to_vec()));
                }
            }
        }
        Ok(Self { mode, owner: Uid::from_raw(owner), group: Gid::from_raw(group), times, xattrs })
    }

    fn set(&self, parent: BorrowedFd<'_>, name: &OsStr, follow: Follow) -> io::Result<()> {
        rfs::chownat(parent, name, Some(self.owner), Some(self.group), AtFlags::SYMLINK_NOFOLLOW)?;
        if follow == Follow::Node {
            crate::within::chmod(parent, name, self.mode)?;
        }
        rfs::utimensat(parent, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn set_on_folder(&self, folder: BorrowedFd<'_>) -> io::Result<()> {
        let path = proc_path(folder);
        rfs::chownat(CWD, &path, Some(self.owner), Some(self.group), AtFlags::empty())?;
        rfs::chmodat(CWD, &path, self.mode, AtFlags::empty())?;
        for (name, value) in &self.xattrs {
            set_xattr(&path, name, value)?;
        }
        Ok(())
    }
}

/// The path below the root that an entry's name means; `None` when it has `..` or names nothing.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Before POSIX, a folder was a file whose name ends in a slash.
fn kind_of<R: Read>(entry: &Entry<'_, R>) -> EntryType {
    match entry.header().entry_type() {
        EntryType::Regular if entry.size() == 0 && entry.path_bytes().ends_with(b"/") => EntryType::Directory,
        kind => kind,
    }
}

fn link_target<R: Read>(entry: &Entry<'_, R>) -> io::Result<PathBuf> {
    let target = entry.link_name_bytes().ok_or_else(|| invalid("a link without a target"))?;
    Ok(PathBuf::from(OsStr::from_bytes(&target)))
}

/// The magic link of an open folder: calls that want a path act on the folder itself, wherever it is.
fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Opens a folder below the root, links resolved inside it.
fn open_folder(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let shown = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    crate::within::open(root, shown, FOLDER, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// The same, making at most `depth` missing ones on the way.
fn make_way(root: BorrowedFd<'_>, path: &Path, purpose: Purpose, depth: usize) -> io::Result<OwnedFd> {
    match open_folder(root, path) {
        Err(Errno::NOENT) if depth > 0 => {
            let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(Errno::NOENT.into());
            };
            let above = make_way(root, above, purpose, depth - 1)?;
            // A dangling link is in the way: in a layer a folder takes its place, as nothing can be reached through it.
            match rfs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                Err(Errno::EXIST) => make_folder(above.as_fd(), name, purpose)?,
                made => made?,
            }
            Ok(rfs::openat(&above, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?)
        }
        opened => Ok(opened?),
    }
}

/// Makes a folder, or keeps the one that is there; one that hides another of a lower layer is made opaque.
fn make_folder(parent: BorrowedFd<'_>, name: &OsStr, purpose: Purpose) -> io::Result<()> {
    let replaced_whiteout = match rfs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(()),
        // As with Docker also a link to a folder: it may be the one to all libraries.
        Ok(_) if purpose != Purpose::Layer => {
            return Err(io::Error::other("cannot overwrite non-directory with directory"));
        }
        Ok(stat) => {
            make_room(parent, name)?;
            is_whiteout(&stat)
        }
        Err(Errno::NOENT) => false,
        Err(e) => return Err(e.into()),
    };
    rfs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    if replaced_whiteout {
        set_xattr(&proc_path(parent).join(name), OPAQUE_XATTR, b"y")?;
    }
    Ok(())
}

/// Removes what is in the way of a new entry.
fn make_room(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rfs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // The standard library's removal does not follow links below the path that it is given.
        Err(Errno::ISDIR) => std::fs::remove_dir_all(proc_path(parent).join(name)),
        Err(e) => Err(e.into()),
    }
}

/// How a file's content is written.
struct Writing<'a> {
    room: Option<&'a mut Room>,
    /// Bytes at a time: small files need little.
    buffer: u64,
}

fn write_file(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    content: &mut impl Read,
    has: &Attributes,
    writing: &mut Writing<'_>,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rfs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
    write_content(content, &mut file, writing)?;
    // In this order: a change of owner clears the set-id bits and file capabilities.
    rfs::fchown(&file, Some(has.owner), Some(has.group))?;
    rfs::fchmod(&file, has.mode)?;
    for (xattr, value) in &has.xattrs {
        rfs::fsetxattr(&file, xattr.as_str(), value, XattrFlags::empty())?;
    }
    rfs::futimens(&file, &has.times)?;
    Ok(())
}

/// Zeros become holes: a sparse file takes no more room than its content.
fn write_content(content: &mut impl Read, file: &mut File, writing: &mut Writing<'_>) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(writing.buffer).unwrap_or(SMALLEST_HOLE_BYTES)];
    let mut ends_in_hole = false;
    loop {
        let len = content.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        let piece = &buffer[..len];
        ends_in_hole = len >= SMALLEST_HOLE_BYTES && piece.iter().all(|&byte| byte == 0);
        if ends_in_hole {
            file.seek(SeekFrom::Current(i64::try_from(len).unwrap_or(0)))?;
        } else {
            if let Some(room) = &mut writing.room {
                room.write(&*file, len)?;
            }
            file.write_all(piece)?;
        }
    }
    if ends_in_hole {
        let len = file.stream_position()?;
        file.set_len(len)?;
    }
    Ok(())
}

fn hard_link(root: BorrowedFd<'_>, target: &Path, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let target_name = target.file_name().ok_or_else(|| invalid("a hard link to the root folder"))?;
    let target_parent = open_folder(root, target.parent().unwrap_or(Path::new("")))?;
    rfs::linkat(&target_parent, target_name, parent, name, AtFlags::empty())?;
    Ok(())
}

fn make_node<R: Read>(parent: BorrowedFd<'_>, name: &OsStr, kind: EntryType, entry: &Entry<'_, R>) -> io::Result<()> {
    let header = entry.header();
    let (major, minor) = match kind {
        // Python's tarfile leaves the numbers of what has none empty.
        EntryType::Fifo => (0, 0),
        _ => (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)),
    };
    let (kind, device) = match kind {
        EntryType::Char if (major, minor) == (0, 0) => return Err(invalid("a whiteout device inside a tar")),
        EntryType::Char => (FileType::CharacterDevice, makedev(major, minor)),
        EntryType::Block => (FileType::BlockDevice, makedev(major, minor)),
        _ => (FileType::Fifo, 0),
    };
    rfs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)?;
    Ok(())
}

fn whiteout(parent: BorrowedFd<'_>, name: &[u8], hidden: &[u8]) -> io::Result<()> {
    if name == OPAQUE_WHITEOUT {
        return set_xattr(&proc_path(parent), OPAQUE_XATTR, b"y");
    }
    if name.starts_with(WHITEOUT_META_PREFIX) {
        return Ok(());
    }
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(invalid("a whiteout of no file"));
    }
    let hidden = OsStr::from_bytes(hidden);
    match rfs::statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
        // This layer has it as well: only what lower layers have is hidden.
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            set_xattr(&proc_path(parent).join(hidden), OPAQUE_XATTR, b"y")
        }
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => Ok(rfs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?),
        Err(e) => Err(e.into()),
    }
}

fn is_whiteout(stat: &rfs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(0, 0)
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    // The path's prefix is a magic link that must be followed; callers give no symbolic link as its last part.
    Ok(rfs::setxattr(path, name, value, XattrFlags::empty())?)
}

/// File capabilities and what users set; nothing that steers overlayfs or the machine's security modules.
fn is_xattr_taken(name: &str) -> bool {
    name == "security.capability" || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

fn timestamps(seconds: i64, nanoseconds: i64) -> Timestamps {
    let at = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps { last_access: at, last_modification: at }
}

/// `1700000000.25`
fn pax_time(text: &str) -> Option<Timestamps> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(timestamps(seconds.parse().ok()?, digits.parse().ok()?))
}

mod sparse;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
