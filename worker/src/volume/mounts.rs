//! Volumes of the `local` driver that are a mount: `--opt type=tmpfs --opt device=tmpfs --opt o=size=100m`, a bind, NFS.
//!
//! Mounted when a container first uses the volume, and until the volume is removed.

use std::{collections::BTreeMap, ffi::CString, io, path::Path};

use rustix::{
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount as mount_now, mount_change, mount_remount,
        unmount as unmount_now,
    },
};

use super::VolumeError;

const KNOWN: [&str; 3] = ["type", "device", "o"];

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

/// Mounts it unless it is mounted.
pub(super) fn mount(name: &str, options: &BTreeMap<String, String>, at: &Path) -> Result<(), VolumeError> {
    let option = |key: &str| options.get(key).map(String::as_str).unwrap_or_default();
    let device = option("device");
    if crate::contents::is_mounted(at) {
        return Ok(());
    }
    let (flags, data) = flags(option("o"));
    let done = || -> io::Result<()> {
        let data = CString::new(addressed(device, &data))?;
        if flags.contains(MountFlags::BIND) {
            match option("o").split(',').any(|word| word == "rbind") {
                true => rustix::mount::mount_bind_recursive(device, at)?,
                false => rustix::mount::mount_bind(device, at)?,
            }
            if flags.contains(MountFlags::RDONLY) {
                mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, c"")?;
            }
        } else {
            mount_now(device, at, option("type"), flags, data.as_c_str())?;
        }
        Ok(mount_change(at, MountPropagationFlags::PRIVATE)?)
    };
    done().map_err(|source| VolumeError::Mount {
        name: name.to_owned(),
        device: device.to_owned(),
        at: at.to_owned(),
        source,
    })
}

/// Fine when nothing is mounted there.
pub(super) fn unmount(at: &Path) -> Result<(), VolumeError> {
    match unmount_now(at, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(super::io_error("unmount", at)(error.into())),
    }
}

/// Words that are the kernel's own flags, and the rest, which is the file system's.
fn flags(text: &str) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut rest = Vec::new();
    for word in text.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" | "suid" | "exec" | "dev" => {}
            "nosuid" => flags |= MountFlags::NOSUID,
            "noexec" => flags |= MountFlags::NOEXEC,
            "nodev" => flags |= MountFlags::NODEV,
            "noatime" => flags |= MountFlags::NOATIME,
            "bind" | "rbind" => flags |= MountFlags::BIND,
            word => rest.push(word),
        }
    }
    (flags, rest.join(","))
}

/// NFS wants to know the server's address, which mount(8) would fill in.
fn addressed(device: &str, data: &str) -> String {
    if !data.contains("addr=") || device.is_empty() {
        return data.to_owned();
    }
    let name = data.split(',').find_map(|word| word.strip_prefix("addr=")).unwrap_or_default();
    let found = std::net::ToSocketAddrs::to_socket_addrs(&(name, 0)).ok().and_then(|mut all| all.next());
    found.map_or_else(
        || data.to_owned(),
        |address| data.replace(&format!("addr={name}"), &format!("addr={}", address.ip())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_flags_or_the_file_systems() {
        assert_eq!(
            flags("ro,size=1m,nosuid,mode=700"),
            (MountFlags::RDONLY | MountFlags::NOSUID, "size=1m,mode=700".to_owned())
        );
        assert_eq!(addressed(":/export", "addr=127.0.0.1,vers=4"), "addr=127.0.0.1,vers=4");
        let options = |keys: &[&str]| keys.iter().map(|&key| (key.to_owned(), "x".to_owned())).collect();
        assert!(check(&options(&[])).is_ok() && check(&options(&["type", "device", "o"])).is_ok());
        assert!(check(&options(&["type", "device", "uid"])).unwrap_err().to_string().contains("\"uid\""));
        assert!(check(&options(&["o", "type"])).unwrap_err().to_string().contains("\"device\""));
    }

    /// As in Docker's examples: `--opt type=nfs --opt device=:/export --opt o=addr=SERVER,rw,nfsvers=4,soft`.
    #[test]
    fn nfs_is_asked_for_as_the_kernel_wants_it() {
        let (found, data) = flags("addr=localhost,rw,noatime,nfsvers=4,soft");
        assert_eq!((found, data.as_str()), (MountFlags::NOATIME, "addr=localhost,nfsvers=4,soft"));
        let data = addressed(":/export", &data);
        let address = data.strip_prefix("addr=").and_then(|rest| rest.strip_suffix(",nfsvers=4,soft")).unwrap();
        assert!(address.parse::<std::net::IpAddr>().unwrap().is_loopback(), "{data}");
    }

    /// Needs root.
    #[test]
    fn a_tmpfs_is_mounted_once_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let options: BTreeMap<String, String> = [("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=64k")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        mount("scratch", &options, dir.path()).unwrap();
        std::fs::write(dir.path().join("kept"), "").unwrap();
        mount("scratch", &options, dir.path()).unwrap();
        assert!(dir.path().join("kept").exists());
        unmount(dir.path()).unwrap();
        unmount(dir.path()).unwrap();
        assert!(!dir.path().join("kept").exists());
    }
}
