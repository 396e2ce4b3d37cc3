//! Volumes of the `local` driver that are a mount: `--opt type=tmpfs --opt device=tmpfs --opt o=size=100m`, a bind, NFS.
//!
//! Mounted when the first container starts to use the volume, and until the last one has ended. A server that does not
//! answer costs a container its start, never the worker more than [`MOUNT_LIMIT`].

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    net::{IpAddr, ToSocketAddrs},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::Duration,
};

use rustix::{
    fs::{CWD, statfs},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, mount_remount,
        move_mount, unmount as unmount_now,
    },
};

use super::{VolumeError, bounded::within};

const KNOWN: [&str; 3] = ["type", "device", "o"];
/// For a server to answer who mounts from it.
const MOUNT_LIMIT: Duration = Duration::from_secs(30);
/// For a server to answer where it has answered before, and to be told goodbye.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Whether Docker's driver would take these.
pub(super) fn check(options: &BTreeMap<String, String>) -> Result<(), VolumeError> {
    if options.is_empty() {
        return Ok(());
    }
    if let Some(unknown) = options.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(VolumeError::Option(unknown.clone()));
    }
    match ["type", "device"].into_iter().find(|key| !options.contains_key(*key)) {
        Some(missing) => Err(VolumeError::OptionMissing(missing)),
        None => Ok(()),
    }
}

/// Mounts it unless it is mounted; then its server must answer.
pub(super) fn mount(name: &str, options: &BTreeMap<String, String>, at: &Path) -> Result<(), VolumeError> {
    let option = |key: &str| options.get(key).map(String::as_str).unwrap_or_default();
    let (kind, device) = (option("type"), option("device"));
    let failed =
        |source| VolumeError::Mount { name: name.to_owned(), device: device.to_owned(), at: at.to_owned(), source };
    if is_mount_point(at).map_err(failed)? {
        return ask(at).map_err(failed);
    }
    fs::create_dir_all(at).map_err(failed)?;
    let mut words = Words::parse(option("o"));
    if let Some(recursive) = words.bind {
        return bind(device, at, recursive, words.flags).map_err(failed);
    }
    if let Some(server) = server(kind, device, &words.rest) {
        let address = resolve(server).map_err(|source| VolumeError::Address {
            name: name.to_owned(),
            server: server.to_owned(),
            source,
        })?;
        words.rest = addressed(&words.rest, address);
    }
    attach(kind, device, at, &words).map_err(failed)
}

/// Fine when nothing is mounted there.
pub(super) fn unmount(at: &Path) -> Result<(), VolumeError> {
    let failed = |error| super::io_error("unmount", at)(error);
    if !is_mount_point(at).map_err(failed)? {
        return Ok(());
    }
    let path = CString::new(at.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    match within(ANSWER_LIMIT, None, || unmount_now(path.as_c_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)) {
        // It has left its place at once; what takes long is telling the server.
        Err(error) if is_mount_point(at).map_err(failed)? => Err(failed(error)),
        _ => Ok(()),
    }
}

/// The words of `o`.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    flags: Vec<Flag>,
    /// A folder of the node, and whether what is mounted below comes along.
    bind: Option<bool>,
    /// The file system's own.
    rest: Vec<String>,
}

/// What the kernel keeps for a mount, whatever is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flag {
    ReadOnly,
    NoSuid,
    NoExec,
    NoDev,
    NoAtime,
    NoDirAtime,
    StrictAtime,
}

impl Words {
    fn parse(text: &str) -> Self {
        let mut words = Self { flags: Vec::new(), bind: None, rest: Vec::new() };
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "ro" => words.flags.push(Flag::ReadOnly),
                "rw" | "defaults" | "suid" | "exec" | "dev" | "atime" | "diratime" | "relatime" => {}
                "nosuid" => words.flags.push(Flag::NoSuid),
                "noexec" => words.flags.push(Flag::NoExec),
                "nodev" => words.flags.push(Flag::NoDev),
                "noatime" => words.flags.push(Flag::NoAtime),
                "nodiratime" => words.flags.push(Flag::NoDirAtime),
                "strictatime" => words.flags.push(Flag::StrictAtime),
                "bind" => words.bind = words.bind.or(Some(false)),
                "rbind" => words.bind = Some(true),
                word => words.rest.push(word.to_owned()),
            }
        }
        words
    }
}

impl Flag {
    fn of_mount(self) -> MountAttrFlags {
        match self {
            Self::ReadOnly => MountAttrFlags::MOUNT_ATTR_RDONLY,
            Self::NoSuid => MountAttrFlags::MOUNT_ATTR_NOSUID,
            Self::NoExec => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            Self::NoDev => MountAttrFlags::MOUNT_ATTR_NODEV,
            Self::NoAtime => MountAttrFlags::MOUNT_ATTR_NOATIME,
            Self::NoDirAtime => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            Self::StrictAtime => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        }
    }

    fn of_remount(self) -> MountFlags {
        match self {
            Self::ReadOnly => MountFlags::RDONLY,
            Self::NoSuid => MountFlags::NOSUID,
            Self::NoExec => MountFlags::NOEXEC,
            Self::NoDev => MountFlags::NODEV,
            Self::NoAtime => MountFlags::NOATIME,
            Self::NoDirAtime => MountFlags::NODIRATIME,
            Self::StrictAtime => MountFlags::STRICTATIME,
        }
    }
}

/// The server that a file system is on, which the kernel wants to know by address: as `addr=` has it, else as the device.
fn server<'a>(kind: &str, device: &'a str, words: &'a [String]) -> Option<&'a str> {
    let of_device = match kind {
        "nfs" | "nfs4" => device.split_once(":/").map(|(host, _)| host),
        "cifs" | "smb3" => device.strip_prefix("//").and_then(|rest| rest.split('/').next()),
        _ => return None,
    };
    let said = words.iter().find_map(|word| word.strip_prefix("addr=").or(word.strip_prefix("ip=")));
    said.or(of_device).map(|host| host.trim_matches(['[', ']'])).filter(|host| !host.is_empty())
}

fn addressed(words: &[String], address: IpAddr) -> Vec<String> {
    let others = words.iter().filter(|word| !word.starts_with("addr=") && !word.starts_with("ip="));
    others.cloned().chain([format!("addr={address}")]).collect()
}

/// IPv4 before IPv6, as Docker has it.
fn resolve(server: &str) -> io::Result<IpAddr> {
    let mut found: Vec<IpAddr> = (server, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.first().copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has no address"))
}

fn bind(device: &str, at: &Path, recursive: bool, flags: Vec<Flag>) -> io::Result<()> {
    match recursive {
        true => rustix::mount::mount_bind_recursive(device, at)?,
        false => rustix::mount::mount_bind(device, at)?,
    }
    let flags = flags.into_iter().fold(MountFlags::BIND, |all, flag| all | flag.of_remount());
    // With all below it, and first: else what is unmounted here goes at its source, too.
    mount_change(at, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let remounted = if flags == MountFlags::BIND { Ok(()) } else { mount_remount(at, flags, c"") };
    if let Err(error) = remounted {
        // Else the next try would take it as mounted, without its flags.
        unmount_now(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        return Err(error.into());
    }
    Ok(())
}

fn attach(kind: &str, device: &str, at: &Path, words: &Words) -> io::Result<()> {
    let opened = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| match error {
        Errno::NODEV => io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the kernel of this node has no file system {kind:?}, or cannot load its module"),
        ),
        error => error.into(),
    })?;
    let explained = |error: Errno| explain(&opened, error.into());
    fsconfig_set_string(&opened, "source", device).map_err(explained)?;
    for word in &words.rest {
        let set = match word.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&opened, key, value),
            None => fsconfig_set_flag(&opened, word.as_str()),
        };
        set.map_err(explained)?;
    }
    if words.flags.contains(&Flag::ReadOnly) {
        fsconfig_set_flag(&opened, "ro").map_err(explained)?;
    }
    within(MOUNT_LIMIT, Some(opened.as_fd()), || fsconfig_create(&opened)).map_err(|error| explain(&opened, error))?;
    let attributes = words.flags.iter().fold(MountAttrFlags::empty(), |all, flag| all | flag.of_mount());
    let mounted = fsmount(&opened, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(explained)?;
    move_mount(&mounted, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(mount_change(at, MountPropagationFlags::PRIVATE)?)
}

/// With what the kernel has said about it.
fn explain(opened: &OwnedFd, error: io::Error) -> io::Error {
    /// One message each; the kernel keeps eight.
    const MAX_MESSAGES: usize = 8;
    let mut said = Vec::new();
    let mut message = [0_u8; 512];
    while said.len() < MAX_MESSAGES
        && let Ok(length @ 1..) = rustix::io::read(opened, &mut message)
    {
        let text = String::from_utf8_lossy(&message[..length]).trim().to_owned();
        // `e `, `w ` and `i `: how bad it is.
        said.push(text.get(2..).unwrap_or_default().to_owned());
    }
    if said.is_empty() { error } else { io::Error::new(error.kind(), format!("{error}: {}", said.join("; "))) }
}

/// Whether its server answers.
fn ask(at: &Path) -> io::Result<()> {
    let path = CString::new(at.as_os_str().as_bytes())?;
    within(ANSWER_LIMIT, None, || statfs(path.as_c_str()).map(drop))
}

/// Read from the list of mounts: the file system itself may not answer.
fn is_mount_point(at: &Path) -> io::Result<bool> {
    let (Some(folder), Some(name)) = (at.parent(), at.file_name()) else { return Ok(true) };
    match folder.canonicalize() {
        Ok(folder) => Ok(is_listed(&fs::read("/proc/self/mountinfo")?, &folder.join(name))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_listed(mountinfo: &[u8], at: &Path) -> bool {
    const PLACE: usize = 4;
    let escaped: Vec<u8> = at.as_os_str().as_bytes().iter().fold(Vec::new(), |mut escaped, &byte| {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
            byte => escaped.push(byte),
        }
        escaped
    });
    mountinfo.split(|&byte| byte == b'\n').any(|line| line.split(|&byte| byte == b' ').nth(PLACE) == Some(&escaped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_flags_or_the_file_systems() {
        let words = Words::parse("ro,size=1m,nosuid, mode=700,,sync");
        let rest = ["size=1m", "mode=700", "sync"].map(str::to_owned).to_vec();
        assert_eq!(words, Words { flags: vec![Flag::ReadOnly, Flag::NoSuid], bind: None, rest });
        assert_eq!((Words::parse("bind,ro").bind, Words::parse("rbind,bind").bind), (Some(false), Some(true)));
        let options = |keys: &[&str]| keys.iter().map(|&key| (key.to_owned(), "x".to_owned())).collect();
        assert!(check(&options(&[])).is_ok() && check(&options(&["type", "device", "o"])).is_ok());
        assert!(check(&options(&["type", "device", "uid"])).unwrap_err().to_string().contains("\"uid\""));
        assert!(check(&options(&["o", "type"])).unwrap_err().to_string().contains("\"device\""));
    }

    /// As in Docker's examples: `--opt type=nfs --opt device=:/export --opt o=addr=SERVER,rw,nfsvers=4,soft`.
    #[test]
    fn the_kernel_is_told_the_servers_address() {
        let check = |kind: &str, device: &str, o: &str, wanted: Option<&str>| {
            assert_eq!(server(kind, device, &Words::parse(o).rest), wanted, "{kind} {device} {o}");
        };
        check("nfs", ":/export", "addr=nas,rw,clientaddr=10.0.0.2", Some("nas"));
        check("nfs", ":/export", "clientaddr=10.0.0.2,mountaddr=10.0.0.3", None);
        check("nfs4", "nas.example.org:/export", "rw", Some("nas.example.org"));
        check("nfs", "[fd00::1]:/export", "", Some("fd00::1"));
        check("nfs", "nas:/export", "addr=10.0.0.1", Some("10.0.0.1"));
        check("cifs", "//nas/share", "username=me", Some("nas"));
        check("cifs", "//nas/share", "ip=10.0.0.1", Some("10.0.0.1"));
        check("tmpfs", "tmpfs", "addr=nas", None);
        let words = Words::parse("addr=nas,rw,noatime,clientaddr=nas,nfsvers=4,soft").rest;
        assert_eq!(
            addressed(&words, IpAddr::from([10, 0, 0, 1])),
            ["clientaddr=nas", "nfsvers=4", "soft", "addr=10.0.0.1"]
        );
        assert!(resolve("localhost").unwrap().is_ipv4());
        assert_eq!(resolve("fd00::1").unwrap().to_string(), "fd00::1");
    }

    #[test]
    fn a_mount_is_found_by_its_place_alone() {
        let list =
            b"36 35 98:0 / /var/lib/a\\040b/_data rw,noatime - nfs4 :/a rw\n37 35 0:5 / /var/lib/c rw - proc proc rw\n";
        let check = |path: &str| is_listed(list, Path::new(path));
        assert!(check("/var/lib/a b/_data") && check("/var/lib/c"));
        assert!(!check("/var/lib/a b") && !check("/var/lib/c/_data") && !check("/a"));
    }

    /// Needs root.
    #[test]
    fn a_tmpfs_is_mounted_once_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("_data");
        let options = |o: &str| -> BTreeMap<String, String> {
            [("type", "tmpfs"), ("device", "tmpfs"), ("o", o)].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        };
        mount("scratch", &options("size=64k,noexec"), &at).unwrap();
        fs::write(at.join("kept"), "").unwrap();
        mount("scratch", &options("size=64k,noexec"), &at).unwrap();
        assert!(at.join("kept").exists());
        let list = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = list.lines().find(|line| line.contains(at.to_str().unwrap())).unwrap();
        assert!(line.contains("noexec") && line.contains("size=64k"), "{line}");
        unmount(&at).unwrap();
        unmount(&at).unwrap();
        assert!(!at.join("kept").exists());

        let refused = mount("scratch", &options("size=64k,sise=1"), &at).unwrap_err();
        assert!(crate::image::chain(&refused).contains("sise"), "{}", crate::image::chain(&refused));
        let kind =
            |kind: &str| BTreeMap::from([("type", kind), ("device", "x")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        let refused = mount("scratch", &kind("nosuchfs"), &at).unwrap_err();
        assert!(crate::image::chain(&refused).contains("no file system \"nosuchfs\""));
        assert!(!is_mount_point(&at).unwrap());
    }
}
