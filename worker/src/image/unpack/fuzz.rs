//! Layers that nobody would build: whatever a tar says, nothing outside its folder changes, and it ends.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::*;
use crate::fuzz::{Random, each_seed};

/// How many layers a run tries; `ORCH_FUZZ_INPUTS` says another number.
const INPUTS: u64 = 600;

/// A layer of nothing but oddities would be refused at its first entry: most entries are of the first kinds and names.
const USUAL_NAMES: usize = 7;
const USUAL_KINDS: usize = 3;

/// Names that lead elsewhere, hide something, or meet what another entry made.
const NAMES: &[&str] = &[
    "a",
    "a/b",
    "a/b/c",
    "link",
    "link/x",
    "link/link/x",
    "b",
    "./a",
    "/a",
    "//a//b",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    ".",
    "/",
    "",
    ".wh.a",
    "a/.wh.b",
    ".wh.link",
    ".wh..wh..opq",
    "a/.wh..wh..opq",
    ".wh.",
    ".wh..",
    ".wh...",
    ".wh..wh.plnk",
    "dev",
    "dev/null",
    "proc/self/fd/3",
    "hard",
    "\u{e9}",
    "a b",
    "x\ny",
];
const TARGETS: &[&str] = &[
    "a",
    "/",
    "..",
    "../..",
    "../outside",
    "/outside",
    "link",
    "link2",
    ".",
    "/proc/self/root",
    "a/b",
    "b",
    "",
    "/etc/passwd",
];
const KINDS: &[EntryType] = &[
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
    EntryType::Char,
    EntryType::Block,
    EntryType::Fifo,
    EntryType::GNUSparse,
    EntryType::Continuous,
    EntryType::XHeader,
    EntryType::GNULongName,
];

/// Names go into the header as they are: the tar crate would refuse some.
fn raw_entry(random: &mut Random) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    let kind = KINDS[random.mostly(USUAL_KINDS, KINDS.len())];
    let name = NAMES[random.mostly(USUAL_NAMES, NAMES.len())].as_bytes();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    let target = random.pick(TARGETS).as_bytes();
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_entry_type(kind);
    header.set_mode(u32::try_from(random.next() & 0o7777).unwrap());
    header.set_uid(random.next() % 70_000);
    header.set_gid(random.next() % 70_000);
    header.set_mtime(random.next() >> random.below(64));
    if kind == EntryType::Char || kind == EntryType::Block {
        header.set_device_major(u32::try_from(random.below(3)).unwrap()).unwrap();
        header.set_device_minor(u32::try_from(random.below(5)).unwrap()).unwrap();
    }
    let content = if matches!(kind, EntryType::Regular | EntryType::XHeader | EntryType::GNULongName) {
        match random.below(4) {
            0 => b"30 SCHILY.xattr.user.a=bcdefg\n".to_vec(),
            1 => b"40 SCHILY.xattr.trusted.overlay.opaque=y\n".to_vec(),
            2 => b"20 path=../../outside\n".to_vec(),
            _ => vec![b'x'; random.below(2000)],
        }
    } else {
        Vec::new()
    };
    // Now and then a length that is not true.
    let length = if random.below(60) == 0 { random.next() >> random.below(64) } else { content.len() as u64 };
    header.set_size(length);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(&content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn layer(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let count = 1 + random.below(14);
    let mut tar: Vec<u8> = (0..count).flat_map(|_| raw_entry(&mut random)).collect();
    if random.below(4) > 0 {
        tar.extend([0; 1024]);
    }
    for _ in 0..random.below(6).saturating_sub(3) {
        let at = random.below(tar.len());
        tar[at] ^= 1 << random.below(8);
    }
    match random.below(6) {
        0 => {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(&tar).unwrap();
            let mut packed = packed.finish().unwrap();
            packed.truncate(random.below(packed.len()) + 1);
            packed
        }
        1 => {
            let mut packed = zstd::encode_all(tar.as_slice(), 1).unwrap();
            let at = random.below(packed.len());
            packed[at] ^= 1 << random.below(8);
            packed
        }
        _ => tar,
    }
}

/// Everything beside the layer's folder: path, kind and mode, owner, length, time.
fn outside(dir: &Path, layer: &Path) -> BTreeMap<PathBuf, (u32, u32, u64, i64)> {
    let mut seen = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if path == layer {
                continue;
            }
            seen.insert(path.clone(), (meta.mode(), meta.uid(), meta.len(), meta.mtime()));
            if meta.is_dir() {
                folders.push(path);
            }
        }
    }
    seen
}

/// Needs root, as unpacking does.
#[test]
fn no_layer_reaches_outside_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("outside"), "mine").unwrap();
    fs::create_dir(dir.path().join("x")).unwrap();
    fs::set_permissions(dir.path().join("x"), fs::Permissions::from_mode(0o711)).unwrap();
    let (mut unpacked, mut refused) = (0, 0);
    let inputs = each_seed(INPUTS, |seed| {
        let root = dir.path().join("layer");
        fs::create_dir(&root).unwrap();
        let before = outside(dir.path(), &root);
        let passwd = fs::read("/etc/passwd").unwrap();
        match unpack_layer(layer(seed).as_slice(), &root) {
            Ok(_) => unpacked += 1,
            Err(_) => refused += 1,
        }
        assert_eq!(outside(dir.path(), &root), before, "seed {seed} reached outside");
        assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "mine", "seed {seed}");
        assert_eq!(fs::read("/etc/passwd").unwrap(), passwd, "seed {seed}");
        fs::remove_dir_all(&root).unwrap();
    });
    // Inputs that are all refused at once would show nothing.
    assert!(unpacked > inputs / 20 && refused > inputs / 20, "{unpacked} unpacked, {refused} refused");
}
