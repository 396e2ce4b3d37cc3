//! Binds that pass mounts on, between a container and the node: only what is on a mount that does so can.
//!
//! Decided by the worker's list of mounts, which is the node's: the namespaces in which containers are made take part in
//! less, and a container would be started that never sees what it asked for.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// What is said of it is Docker's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "path {} is mounted on {} but it is not a {needed} mount: run `mount --make-{} {}` on the node first, or bind it \
     without bind-propagation={asked}",
    .path.display(), .on.display(), .needed.split(' ').next().unwrap_or_default(), .on.display()
)]
pub(crate) struct PropagationError {
    path: PathBuf,
    on: PathBuf,
    needed: &'static str,
    asked: String,
}

/// Whether a bind with that propagation asks for more than a private mount gives.
pub(crate) fn needs_more(propagation: &str) -> bool {
    needed(propagation).is_some()
}

fn needed(propagation: &str) -> Option<&'static str> {
    match propagation {
        "shared" | "rshared" => Some("shared"),
        "slave" | "rslave" => Some("shared or slave"),
        _ => None,
    }
}

/// `source` without symbolic links, `mountinfo` as `/proc/self/mountinfo` has it.
pub(crate) fn check(mountinfo: &[u8], source: &Path, propagation: &str) -> Result<(), PropagationError> {
    let Some(needed) = needed(propagation) else { return Ok(()) };
    let mounts = mountinfo.split(|&byte| byte == b'\n').filter_map(Mount::parse);
    let around = mounts.filter(|mount| source.starts_with(&mount.point));
    // Of several on one place the last covers the others.
    let Some(on) = around.max_by_key(|mount| mount.point.components().count()) else { return Ok(()) };
    if on.is_shared || (needed != "shared" && on.is_slave) {
        return Ok(());
    }
    Err(PropagationError { path: source.to_owned(), on: on.point, needed, asked: propagation.to_owned() })
}

struct Mount {
    point: PathBuf,
    is_shared: bool,
    is_slave: bool,
}

impl Mount {
    /// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ').skip(4);
        let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
        let optional: Vec<&[u8]> = fields.skip(1).take_while(|field| *field != b"-").collect();
        let has = |tag: &[u8]| optional.iter().any(|field| field.starts_with(tag));
        Some(Self { point, is_shared: has(b"shared:"), is_slave: has(b"master:") })
    }
}

/// Spaces and the like are written in octal: `\040`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"22 1 8:1 / / rw shared:1 - ext4 /dev/vda rw\n\
        23 22 0:20 / /run rw,nosuid - tmpfs tmpfs rw\n\
        24 23 0:21 / /run/a\\040b rw shared:7 - tmpfs tmpfs rw\n\
        25 22 0:22 / /slave rw master:1 - tmpfs tmpfs rw\n\
        26 22 0:23 / /twice rw shared:9 - tmpfs tmpfs rw\n\
        27 26 0:24 / /twice rw - tmpfs tmpfs rw\n";

    #[test]
    fn only_mounts_that_pass_mounts_on_are_bound_so() {
        for (source, propagation, refused) in [
            ("/srv/x", "rshared", None),
            ("/run/x", "", None),
            ("/run/x", "rprivate", None),
            ("/run/x", "shared", Some("/run but it is not a shared mount")),
            ("/run/x", "rslave", Some("/run but it is not a shared or slave mount")),
            ("/running", "rshared", None),
            ("/run/a b/c", "rshared", None),
            ("/slave", "rslave", None),
            ("/slave", "rshared", Some("/slave but it is not a shared mount")),
            ("/twice/x", "slave", Some("/twice but it is not a shared or slave mount")),
        ] {
            let said = check(MOUNTINFO, Path::new(source), propagation).map_err(|error| error.to_string());
            match refused {
                None => assert_eq!(said, Ok(()), "{source} {propagation}"),
                Some(on) => {
                    let start = format!("path {source} is mounted on {on}: run `mount --make-shared ");
                    assert!(
                        said.clone().is_err_and(|said| said.starts_with(&start)),
                        "{source} {propagation}: {said:?}"
                    );
                }
            }
        }
    }
}
