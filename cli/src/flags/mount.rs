//! `--mount type=volume,source=data,target=/data,readonly`.

use std::collections::BTreeMap;

use orch_model::service::{BindRecursive, LogDriver, Mount, MountKind};

use super::{Refusal, boolean, long_form_once, quantity};

const FORM: &str = "expected type=volume|bind|tmpfs,source=NAME|/HOST/PATH,target=/PATH[,readonly]";

pub(crate) fn empty(kind: MountKind) -> Mount {
    Mount { kind, ..Mount::default() }
}

pub(crate) fn parse(text: &str) -> Result<Mount, Refusal> {
    let mut mount = empty(MountKind::Volume);
    let mut driver = LogDriver::default();
    let fields = long_form_once(text, &["volume-label", "volume-opt"])?;
    for (key, value) in &fields {
        let text_value = || value.clone().ok_or_else(|| format!("{key:?} has no value; {FORM}"));
        match key.as_str() {
            "type" => mount.kind = kind(&text_value()?)?,
            "source" | "src" => mount.source = text_value()?,
            "target" | "dst" | "destination" => mount.target = text_value()?,
            "readonly" | "ro" => mount.read_only = boolean(key, value.as_deref())?,
            "volume-nocopy" => mount.no_copy = boolean(key, value.as_deref())?,
            "volume-label" => insert(&mut mount.volume_labels, key, &text_value()?)?,
            "volume-driver" => driver.name = text_value()?,
            "volume-opt" => insert(&mut driver.options, key, &text_value()?)?,
            "bind-propagation" => mount.propagation = propagation(&text_value()?)?,
            "bind-recursive" => mount.bind_recursive = recursive(&text_value()?)?,
            "bind-nonrecursive" => {
                mount.bind_recursive = boolean(key, value.as_deref())?.then_some(BindRecursive::Disabled);
            }
            "volume-subpath" => mount.volume_subpath = text_value()?,
            "tmpfs-size" => mount.tmpfs_size_bytes = quantity::bytes(&text_value()?)?,
            "tmpfs-mode" => mount.tmpfs_mode = octal(&text_value()?)?,
            // What Docker's client on a Mac makes of it.
            "consistency" => consistency(&text_value()?)?,
            _ => return Err(format!("unknown key {key:?}; {FORM}")),
        }
    }
    if driver != LogDriver::default() {
        mount.volume_driver = Some(driver);
    }
    let kind = word(mount.kind);
    let foreign = ["bind", "volume", "tmpfs"].into_iter().filter(|other| *other != kind);
    for other in foreign {
        if fields.iter().any(|(key, _)| key.strip_prefix(other).is_some_and(|rest| rest.starts_with('-'))) {
            return Err(format!("cannot mix '{other}-*' options with mount type '{kind}': leave them out"));
        }
    }
    if mount.kind == MountKind::Bind && (mount.source == "." || mount.source.starts_with("./")) {
        mount.source = absolute(&mount.source)?;
    }
    check_recursive(&mount)?;
    check(mount)
}

/// As Docker's client takes it: from where the command is given.
fn absolute(source: &str) -> Result<String, Refusal> {
    let here = std::env::current_dir().map_err(|error| format!("source {source:?}: {error}"))?;
    here.to_str()
        .map(|here| join(here, source))
        .ok_or_else(|| format!("source {source:?}: no text: {}", here.display()))
}

fn word(kind: MountKind) -> &'static str {
    match kind {
        MountKind::Volume => "volume",
        MountKind::Bind => "bind",
        MountKind::Tmpfs => "tmpfs",
    }
}

/// As Docker's client has it.
pub(crate) fn check_recursive(mount: &Mount) -> Result<(), Refusal> {
    let (recursive, is_private) = match mount.bind_recursive {
        None | Some(BindRecursive::Disabled) => return Ok(()),
        Some(recursive @ BindRecursive::Writable) => (recursive, true),
        Some(recursive @ BindRecursive::Readonly) => (recursive, mount.propagation == "rprivate"),
    };
    let word = recursive_word(recursive);
    let needs = |what: &str| Err(format!("bind-recursive={word} needs {what} beside it"));
    match (mount.read_only, is_private) {
        (false, _) => needs("readonly"),
        (true, false) => needs("bind-propagation=rprivate"),
        (true, true) => Ok(()),
    }
}

pub(crate) fn recursive_word(recursive: BindRecursive) -> &'static str {
    match recursive {
        BindRecursive::Disabled => "disabled",
        BindRecursive::Writable => "writable",
        BindRecursive::Readonly => "readonly",
    }
}

/// What both the flag and stack files must satisfy.
pub(crate) fn check(mount: Mount) -> Result<Mount, Refusal> {
    if mount.target.is_empty() {
        return Err(format!("target is missing; {FORM}"));
    }
    if !mount.target.starts_with('/') {
        return Err(format!("target {:?} is not an absolute path", mount.target));
    }
    if join("/", &mount.target) == "/" {
        return Err(format!("target {:?} is the container's root: expected a folder in it", mount.target));
    }
    if !mount.has_valid_subpath() {
        return Err(format!(
            "volume-subpath {:?}: subpath must be a relative path within the volume",
            mount.volume_subpath
        ));
    }
    if !mount.volume_subpath.is_empty() && mount.kind != MountKind::Volume {
        return Err(format!("volume-subpath {:?}: only a mount of type volume has one", mount.volume_subpath));
    }
    match mount.kind {
        MountKind::Bind if mount.source.is_empty() => Err("a bind mount needs source=/PATH on the host".into()),
        MountKind::Bind if !mount.source.starts_with('/') => {
            Err(format!("source {:?} of a bind mount is not an absolute path", mount.source))
        }
        MountKind::Tmpfs if !mount.source.is_empty() => Err("a tmpfs mount takes no source".into()),
        MountKind::Volume if mount.source.starts_with('/') => {
            Err(format!("source {:?} is a path: use type=bind, or name a volume", mount.source))
        }
        _ => Ok(mount),
    }
}

pub(crate) fn kind(text: &str) -> Result<MountKind, Refusal> {
    match text.to_lowercase().as_str() {
        "volume" => Ok(MountKind::Volume),
        "bind" => Ok(MountKind::Bind),
        "tmpfs" => Ok(MountKind::Tmpfs),
        other => Err(format!("mount type {other:?} is not one of volume, bind, tmpfs")),
    }
}

pub(crate) fn octal(text: &str) -> Result<u32, Refusal> {
    let mode = u32::from_str_radix(text.trim_start_matches("0o"), 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| format!("mode {text:?} is not an octal file mode such as 0444"))
}

fn propagation(text: &str) -> Result<String, Refusal> {
    const KNOWN: [&str; 6] = ["rprivate", "private", "rshared", "shared", "rslave", "slave"];
    if KNOWN.contains(&text) {
        Ok(text.into())
    } else {
        Err(format!("bind-propagation is one of {}", KNOWN.join(", ")))
    }
}

pub(crate) fn recursive(text: &str) -> Result<Option<BindRecursive>, Refusal> {
    match text {
        "enabled" => Ok(None),
        "disabled" => Ok(Some(BindRecursive::Disabled)),
        "writable" => Ok(Some(BindRecursive::Writable)),
        "readonly" => Ok(Some(BindRecursive::Readonly)),
        _ => Err("bind-recursive is one of enabled, disabled, writable, readonly".into()),
    }
}

fn consistency(text: &str) -> Result<(), Refusal> {
    const KNOWN: [&str; 4] = ["consistent", "cached", "delegated", "default"];
    if KNOWN.contains(&text) { Ok(()) } else { Err(format!("consistency is one of {}", KNOWN.join(", "))) }
}

fn insert(map: &mut BTreeMap<String, String>, option: &str, text: &str) -> Result<(), Refusal> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.trim().is_empty() {
        return Err(format!("{option} has no key: expected {option}=KEY=VALUE"));
    }
    map.insert(key.into(), value.into());
    Ok(())
}

/// Joins without asking the file system, so that the result is the same everywhere.
pub(crate) fn join(dir: &str, relative: &str) -> String {
    let mut parts: Vec<&str> = dir.split('/').filter(|p| !p.is_empty()).collect();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_forms() {
        let mount = parse("type=bind,src=/a,dst=/b,ro").unwrap();
        assert_eq!((mount.kind, mount.source.as_str(), mount.target.as_str()), (MountKind::Bind, "/a", "/b"));
        assert!(mount.read_only);
        let here = std::env::current_dir().unwrap().display().to_string();
        for (source, expected) in [("./conf", format!("{here}/conf")), (".", here.clone())] {
            assert_eq!(parse(&format!("type=bind,source={source},target=/c")).unwrap().source, expected);
        }
        assert!(parse("type=bind,source=conf,target=/c").is_err());
        let mount = parse("source=data,target=/d,readonly=false,volume-label=a=b,volume-opt=type=nfs").unwrap();
        assert_eq!((mount.kind, mount.read_only), (MountKind::Volume, false));
        assert_eq!(mount.volume_labels["a"], "b");
        assert_eq!(mount.volume_driver.unwrap().options["type"], "nfs");
        let mount = parse("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=0770").unwrap();
        assert_eq!((mount.tmpfs_size_bytes, mount.tmpfs_mode), (64 << 20, 0o770));
        for path in ["a", "a/b", "./a", "a/../b", ".."] {
            let mount = parse(&format!("source=a,target=/b,volume-subpath={path}")).map(|mount| mount.volume_subpath);
            assert_eq!(mount.ok().as_deref(), (path != "..").then_some(path), "{path}");
        }
        for (text, want) in [
            ("bind-recursive=enabled,ro", None),
            ("bind-recursive=disabled", Some(BindRecursive::Disabled)),
            ("bind-nonrecursive", Some(BindRecursive::Disabled)),
            ("bind-nonrecursive=false", None),
            ("bind-recursive=writable,ro", Some(BindRecursive::Writable)),
            ("bind-recursive=readonly,ro,bind-propagation=rprivate", Some(BindRecursive::Readonly)),
        ] {
            let mount = parse(&format!("type=bind,source=/a,target=/b,{text}")).unwrap();
            assert_eq!(mount.bind_recursive, want, "{text}");
        }
        for text in [
            "type=bind,source=/a,target=/b,bind-recursive=writable",
            "type=bind,source=/a,target=/b,bind-recursive=readonly,ro",
            "type=bind,source=/a,target=/b,bind-recursive=all",
            "source=a,target=/b,bind-recursive=disabled",
            "source=a,target=/b,volume-subpath=/c",
            "source=a,target=/b,volume-subpath=c/../../d",
            "type=bind,source=/a,target=/b,volume-subpath=c",
            "type=image,source=a,target=/b",
            "type=bind,target=/b",
            "type=nfs,target=/x",
            "source=a",
            "target=rel",
            "type=volume,source=/a,target=/b",
            "bogus=1,target=/x",
            "type=tmpfs,source=a,target=/b",
            "type=tmpfs,target=/b,volume-nocopy",
            "type=bind,source=/a,target=/b,tmpfs-size=1m",
            "type=bind,source=/a,target=/b,volume-opt=a=b",
            "source=a,target=/b,bind-propagation=shared",
            "source=a,target=/b,target=/c",
            "source=a,target=/b,volume-label==x",
            "source=a,target=/b,consistency=x",
            "source=a,target=/",
            "source=a,target=/b/..",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
