//! Layers that try to leave their folder, and what becomes of whiteouts and attributes. Needs root.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
};

use tar::{Builder, Header};

use super::*;

/// One entry of a layer.
enum Item<'a> {
    File(&'a str, &'a str),
    Folder(&'a str),
    Symlink(&'a str, &'a str),
    Hardlink(&'a str, &'a str),
    /// Character device with this major number.
    Device(&'a str, u32),
}

fn header(kind: EntryType, name: &str, size: usize) -> Header {
    let mut header = Header::new_gnu();
    // Set as bytes: `set_path` refuses the names that these tests are about.
    let bytes = name.as_bytes();
    header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
    header.set_entry_type(kind);
    header.set_mode(0o4751);
    header.set_uid(1234);
    header.set_gid(4321);
    header.set_mtime(1_000_000);
    header.set_size(size as u64);
    header
}

fn layer(items: &[Item<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for item in items {
        let (mut header, content) = match item {
            Item::File(name, content) => (header(EntryType::Regular, name, content.len()), *content),
            Item::Folder(name) => (header(EntryType::Directory, name, 0), ""),
            Item::Symlink(name, _) => (header(EntryType::Symlink, name, 0), ""),
            Item::Hardlink(name, _) => (header(EntryType::Link, name, 0), ""),
            Item::Device(name, _) => (header(EntryType::Char, name, 0), ""),
        };
        if let Item::Symlink(_, target) | Item::Hardlink(_, target) = item {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        }
        if let Item::Device(_, major) = item {
            header.set_device_major(*major).unwrap();
            header.set_device_minor(0).unwrap();
        }
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A folder to unpack into, beside a file that no layer may touch.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/precious"), "precious").unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn outside(&self) -> String {
        self.dir.path().join("outside").to_str().unwrap().to_owned()
    }

    fn unpack(&self, items: &[Item<'_>]) -> Result<LayerFacts, UnpackError> {
        unpack_layer(layer(items).as_slice(), &self.root())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }

    fn check_untouched(&self) {
        let outside = self.dir.path().join("outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        let precious = outside.join("precious");
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(fs::metadata(precious).unwrap().nlink(), 1);
    }
}

#[test]
fn names_with_dots_are_refused() {
    for name in ["../outside/x", "a/../../outside/x", "..", "a/.."] {
        let place = Place::new();
        assert!(matches!(place.unpack(&[Item::File(name, "x")]), Err(UnpackError::Escape(_))), "{name}");
        place.check_untouched();
    }
}

#[test]
fn absolute_names_and_links_stay_inside() {
    let place = Place::new();
    let outside = place.outside();
    let inside = format!("{}/x", outside.trim_start_matches('/'));
    place.unpack(&[Item::File(&format!("{outside}/x"), "absolute")]).unwrap();
    assert_eq!(place.read(&inside), "absolute");
    place.check_untouched();

    // A link to a folder outside means the folder of that name inside the layer.
    let place = Place::new();
    let outside = place.outside();
    let inside = outside.trim_start_matches('/').to_owned();
    place.unpack(&[Item::Folder(&inside), Item::Symlink("link", &outside), Item::File("link/x", "through")]).unwrap();
    assert_eq!(place.read(&format!("{inside}/x")), "through");
    place.check_untouched();
}

#[test]
fn chained_links_stay_inside() {
    let place = Place::new();
    let items = [
        Item::Symlink("a", ".."),
        Item::Symlink("b", "a/.."),
        Item::Symlink("c", "b/../../../../outside"),
        Item::File("c/x", "x"),
    ];
    // Refused or inside the layer: both are fine, outside is not.
    let _ = place.unpack(&items);
    place.check_untouched();

    let place = Place::new();
    let _ = place.unpack(&[Item::Symlink("x", "../outside/precious"), Item::File("x", "overwritten")]);
    assert_eq!(place.read("x"), "overwritten");
    place.check_untouched();
}

#[test]
fn hard_links_stay_inside() {
    let place = Place::new();
    let outside = place.outside();
    for target in ["../outside/precious", &format!("{outside}/precious")] {
        assert!(place.unpack(&[Item::Hardlink("h", target)]).is_err(), "{target}");
        assert!(!place.root().join("h").exists());
    }
    let through = [Item::Symlink("up", &outside), Item::Hardlink("h", "up/precious")];
    assert!(place.unpack(&through).is_err());
    place.check_untouched();
    place.unpack(&[Item::File("f", "shared"), Item::Hardlink("h", "f")]).unwrap();
    assert_eq!(place.read("h"), "shared");
    assert_eq!(fs::metadata(place.root().join("h")).unwrap().nlink(), 2);
}

#[test]
fn a_link_that_was_there_before_is_replaced_not_followed() {
    let place = Place::new();
    symlink(place.outside(), place.root().join("d")).unwrap();
    place.unpack(&[Item::Folder("d"), Item::File("d/x", "mine")]).unwrap();
    assert_eq!(place.read("d/x"), "mine");
    place.check_untouched();
}

/// What containers have is theirs; an image with all libraries behind a link would be dead.
#[test]
fn a_copy_into_a_container_takes_nothing_away_for_a_folder() {
    let place = Place::new();
    let root = place.root();
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    symlink("usr/lib", root.join("lib")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    fs::write(root.join("file"), "mine").unwrap();
    let copy = |items: &[Item<'_>]| {
        let opened = rfs::open(&root, FOLDER, Mode::empty()).unwrap();
        unpack_into(layer(items).as_slice(), opened, Path::new("/"), None).map_err(|error| crate::image::chain(&error))
    };
    for items in [
        &[Item::Folder("lib")][..],
        &[Item::Folder("dangling")],
        &[Item::Folder("file")],
        &[Item::File("dangling/x", "")],
    ] {
        assert!(copy(items).unwrap_err().contains("cannot overwrite non-directory with directory"));
    }
    copy(&[Item::Folder("usr"), Item::File("lib/new", "through"), Item::Folder("new/folder")]).unwrap();
    assert_eq!(place.read("usr/lib/new"), "through");
    for link in ["lib", "dangling"] {
        assert!(root.join(link).is_symlink(), "{link}");
    }
    assert_eq!(place.read("file"), "mine");
}

#[test]
fn a_copy_into_a_container_may_take_the_last_of_a_disk() {
    let place = Place::new();
    let mut header = header(EntryType::Regular, "huge", 0);
    header.set_size(1 << 60);
    header.set_cksum();
    let opened = rfs::open(place.root(), FOLDER, Mode::empty()).unwrap();
    let refused = unpack_into(header.as_bytes().as_slice(), opened, Path::new("/"), None).unwrap_err();
    // Of the tar, which ends early.
    assert!(matches!(refused, UnpackError::Read(_)), "{refused:?}");
}

#[test]
fn whiteouts_become_what_overlayfs_reads() {
    let place = Place::new();
    place
        .unpack(&[
            Item::Folder("opaque"),
            Item::File("opaque/.wh..wh..opq", ""),
            Item::File("opaque/new", "new"),
            Item::File(".wh.gone", ""),
            Item::File("both", "stays"),
            Item::File(".wh.both", ""),
            Item::File(".wh.again", ""),
            Item::Folder("again"),
            Item::File(".wh..wh.plnk", ""),
        ])
        .unwrap();
    let gone = fs::symlink_metadata(place.root().join("gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(place.read("both"), "stays");
    for folder in ["opaque", "again"] {
        let mut value = [0; 1];
        rfs::getxattr(place.root().join(folder), OPAQUE_XATTR, &mut value).unwrap();
        assert_eq!(&value, b"y", "{folder}");
    }
    assert!(!place.root().join(".wh..wh.plnk").exists());
    for name in [".wh.", ".wh...", ".wh..", "a/.wh..."] {
        assert!(Place::new().unpack(&[Item::File(name, "")]).is_err(), "{name}");
    }
    // A tar may not bring overlayfs's own mark.
    assert!(place.unpack(&[Item::Device("forged", 0)]).is_err());
    place.unpack(&[Item::Device("null", 1)]).unwrap();
}

#[test]
fn owners_modes_and_times_are_kept() {
    let place = Place::new();
    let items = [Item::Folder("d"), Item::File("d/f", "x"), Item::Symlink("d/s", "nowhere")];
    place.unpack(&items).unwrap();
    for (path, mode) in [("d", 0o4751), ("d/f", 0o4751), ("d/s", 0o777)] {
        let metadata = fs::symlink_metadata(place.root().join(path)).unwrap();
        let found = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid(), metadata.mtime());
        assert_eq!(found, (mode, 1234, 4321, 1_000_000), "{path}");
    }
}

#[test]
fn extended_attributes_are_kept_except_overlayfs_own() {
    let place = Place::new();
    let mut tar = Builder::new(Vec::new());
    let attributes = [
        ("SCHILY.xattr.user.mine", b"v".as_slice()),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("mtime", b"12.5"),
    ];
    tar.append_pax_extensions(attributes).unwrap();
    let mut header = header(EntryType::Regular, "f", 0);
    header.set_cksum();
    tar.append(&header, io::empty()).unwrap();
    unpack_layer(tar.into_inner().unwrap().as_slice(), &place.root()).unwrap();
    let file = place.root().join("f");
    let mut value = [0; 1];
    rfs::getxattr(&file, "user.mine", &mut value).unwrap();
    assert_eq!(&value, b"v");
    assert!(rfs::getxattr(&file, "trusted.overlay.redirect", &mut value).is_err());
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (12, 500_000_000));
}

#[test]
fn compression_is_recognised_and_the_diff_id_is_of_the_plain_tar() {
    let plain = layer(&[Item::File("f", "content")]);
    let expected = format!("sha256:{}", hex::encode(Sha256::digest(&plain)));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    for blob in [plain.clone(), gzip.finish().unwrap(), zstd] {
        let place = Place::new();
        assert_eq!(unpack_layer(blob.as_slice(), &place.root()).unwrap().diff_id, expected);
        assert_eq!(place.read("f"), "content");
    }
}

#[test]
fn huge_files_are_refused_before_they_fill_the_disk() {
    let place = Place::new();
    let mut header = header(EntryType::Regular, "huge", 0);
    header.set_size(1 << 60);
    header.set_cksum();
    let refused = unpack_layer(header.as_bytes().as_slice(), &place.root()).unwrap_err();
    let UnpackError::Entry { source, .. } = refused else { panic!("{refused}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull, "{source}");
    assert!(!place.root().join("huge").exists());
}

#[test]
fn zeros_take_no_room() {
    let place = Place::new();
    let mut content = vec![0; 8 << 20];
    content[4 << 20] = b'x';
    let mut header = header(EntryType::Regular, "sparse", content.len());
    header.set_cksum();
    let mut tar = Builder::new(Vec::new());
    tar.append(&header, content.as_slice()).unwrap();
    unpack_layer(tar.into_inner().unwrap().as_slice(), &place.root()).unwrap();
    let file = place.root().join("sparse");
    assert_eq!(fs::read(&file).unwrap(), content);
    assert!(fs::metadata(file).unwrap().blocks() * 512 < 1 << 20);
}

/// As Python's `tarfile` writes them: whatever is no device has no numbers, not even zeros.
#[test]
fn numbers_of_devices_may_be_empty() {
    let place = Place::new();
    let mut tar = Builder::new(Vec::new());
    for (kind, name) in [(EntryType::Fifo, "fifo"), (EntryType::Regular, "file"), (EntryType::Directory, "folder")] {
        let mut header = header(kind, name, 0);
        let ustar = header.as_gnu_mut().unwrap();
        ustar.dev_major = [0; 8];
        ustar.dev_minor = [0; 8];
        header.set_cksum();
        tar.append(&header, &b""[..]).unwrap();
    }
    let _ = unpack_layer(tar.into_inner().unwrap().as_slice(), &place.root()).unwrap();
    assert!(fs::symlink_metadata(place.root().join("fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn files_with_holes_of_pax_archives_are_whole() {
    let place = Place::new();
    let mut tar = Builder::new(Vec::new());
    let records = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"a/real"),
        ("GNU.sparse.realsize", b"1000000"),
    ];
    tar.append_pax_extensions(records).unwrap();
    let mut content = b"1\n999999\n1\n".to_vec();
    content.resize(512, 0);
    content.push(b'x');
    let mut header = header(EntryType::Regular, "a/GNUSparseFile.1/real", content.len());
    header.set_cksum();
    tar.append(&header, content.as_slice()).unwrap();
    tar.append_pax_extensions([("GNU.sparse.size", &b"7"[..]), ("GNU.sparse.map", b"")]).unwrap();
    let mut hole = self::header(EntryType::Regular, "hole", 0);
    hole.set_cksum();
    tar.append(&hole, &b""[..]).unwrap();
    let _ = unpack_layer(tar.into_inner().unwrap().as_slice(), &place.root()).unwrap();
    let found = fs::read(place.root().join("a/real")).unwrap();
    assert_eq!((found.len(), found[999_999], found.iter().filter(|&&byte| byte != 0).count()), (1_000_000, b'x', 1));
    assert_eq!(fs::read_dir(place.root().join("a")).unwrap().count(), 1, "the name that is made up is there as well");
    assert_eq!(fs::read(place.root().join("hole")).unwrap(), [0; 7]);
}

#[test]
fn old_times_and_old_folders_are_what_they_were() {
    let place = Place::new();
    let mut tar = Builder::new(Vec::new());
    let mut old = header(EntryType::Regular, "old", 0);
    old.set_mtime((-86_400_i64).cast_unsigned());
    let mut folder = header(EntryType::Regular, "folder/", 0);
    folder.as_old_mut().linkflag = [0];
    for header in [&mut old, &mut folder] {
        header.set_cksum();
        tar.append(header, &b""[..]).unwrap();
    }
    let facts = unpack_layer(tar.into_inner().unwrap().as_slice(), &place.root()).unwrap();
    assert_eq!(fs::metadata(place.root().join("old")).unwrap().mtime(), -86_400);
    assert!(place.root().join("folder").is_dir());
    assert_eq!(facts.modified_at, 1_000_000);
}
