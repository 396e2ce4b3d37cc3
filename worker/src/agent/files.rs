//! Files that a container gets from its node: hosts, hostname, resolv.conf, secrets and configs.
//!
//! Secrets and configs live in a tmpfs of their own per task, never on disk.

use std::{
    borrow::Cow,
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use orch_model::{
    secret::TemplateDriver,
    service::{ContainerSpec, DnsConfig, FileRef},
};
use orch_template::{TemplateError, files::Sources};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use serde_json::Value;

use super::items::Items;
use crate::runtime::BindMount;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("{action} {path:?}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{kind} {name} is not known to this node: was it removed?")]
    Unknown { kind: &'static str, name: String },
    #[error("{kind} {name}: the owner {owner:?} is not a number")]
    Owner { kind: &'static str, name: String, owner: String },
    #[error("{kind} {name} cannot be filled in")]
    Template {
        kind: &'static str,
        name: String,
        #[source]
        source: TemplateError,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    move |source| FilesError::Io { action, path: path.to_owned(), source }
}

/// Writes /etc/hosts, /etc/hostname and /etc/resolv.conf of a container into `dir`.
pub(crate) fn write_network_files(
    dir: &Path,
    hostname: &str,
    resolv_conf: &str,
    hosts: String,
) -> Result<Vec<BindMount>, FilesError> {
    fs::create_dir_all(dir).map_err(io_error("create", dir))?;
    let binds = network_files_in(dir);
    // In their order.
    let contents = [hosts, format!("{hostname}\n"), resolv_conf.to_owned()];
    for (bind, content) in binds.iter().zip(contents) {
        let source = &bind.source;
        fs::write(source, content).map_err(io_error("write", source))?;
        fs::set_permissions(source, fs::Permissions::from_mode(0o644))
            .map_err(io_error("change the mode of", source))?;
    }
    Ok(binds)
}

/// The same files once they are written, for those too that share their owner's network.
pub(crate) fn network_files_in(dir: &Path) -> Vec<BindMount> {
    let bind = |name| BindMount {
        source: dir.join(name),
        target: format!("/etc/{name}"),
        read_only: false,
        propagation: String::new(),
    };
    ["hosts", "hostname", "resolv.conf"].map(bind).into()
}

/// The names that a container in the node's network knows: the node's own, and its own extra ones.
pub(crate) fn hosts_file_of_node(own: &str, extra: &[String]) -> String {
    let mut text = own.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    extra.iter().for_each(|line| text.extend([line.as_str(), "\n"]));
    text
}

/// The node's resolvers, but for what the container is given of its own.
pub(crate) fn resolv_conf_of_node(own: String, dns: &DnsConfig) -> String {
    let servers = dns.nameservers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let list = |keyword: &str, words: &[String]| match words {
        [] => String::new(),
        words => format!("{keyword} {}\n", words.join(" ")),
    };
    let given = [
        (&["nameserver"][..], servers),
        (&["search", "domain"], list("search", &dns.search)),
        (&["options"], list("options", &dns.options)),
    ];
    given.into_iter().filter(|(_, lines)| !lines.is_empty()).fold(own, |text, (keywords, lines): (_, String)| {
        let is_replaced = |line: &&str| line.split_whitespace().next().is_some_and(|word| keywords.contains(&word));
        text.lines().filter(|line| !is_replaced(line)).map(|line| format!("{line}\n")).collect::<String>() + &lines
    })
}

pub(crate) fn hosts_file(hostname: &str, address: &str, extra: &[String]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for line in extra {
        text.push_str(line);
        text.push('\n');
    }
    // Its own name means something even before it has an address.
    let own = if address.is_empty() { "127.0.1.1" } else { address };
    text.push_str(&format!("{own}\t{hostname}\n"));
    text
}

/// Writes the secrets and configs of a container into a tmpfs on `dir`.
pub(crate) fn write_secret_files(
    dir: &Path,
    spec: &ContainerSpec,
    items: &Items,
    values: &Value,
) -> Result<Vec<BindMount>, FilesError> {
    if spec.secrets.is_empty() && spec.configs.is_empty() {
        return Ok(Vec::new());
    }
    remove_secret_files(dir)?;
    fs::create_dir_all(dir).map_err(io_error("create", dir))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Swap is a disk, too; kernels before 6.4 cannot keep a tmpfs out of it.
    let mounted = match mount("tmpfs", dir, "tmpfs", flags, c"mode=0700,noswap") {
        Err(Errno::INVAL) => mount("tmpfs", dir, "tmpfs", flags, c"mode=0700"),
        other => other,
    };
    mounted.map_err(|e| io_error("mount a tmpfs on", dir)(e.into()))?;
    let mut binds = Vec::new();
    for (n, file) in spec.secrets.iter().enumerate() {
        let secret = items.secret(&file.id).ok_or_else(|| unknown("secret", &file.name))?;
        let data = content("secret", &file.name, &secret.data, secret.template, spec, items, values)?;
        binds.push(write_one(&dir.join(format!("secret-{n}")), "secret", file, &data, "/run/secrets")?);
    }
    for (n, file) in spec.configs.iter().enumerate() {
        let config = items.config(&file.id).ok_or_else(|| unknown("config", &file.name))?;
        let data = content("config", &file.name, &config.data, config.template, spec, items, values)?;
        binds.push(write_one(&dir.join(format!("config-{n}")), "config", file, &data, "")?);
    }
    Ok(binds)
}

/// A file's content; a template is filled in for this task.
fn content<'a>(
    kind: &'static str,
    name: &str,
    data: &'a [u8],
    template: Option<TemplateDriver>,
    spec: &ContainerSpec,
    items: &Items,
    values: &Value,
) -> Result<Cow<'a, [u8]>, FilesError> {
    let Some(TemplateDriver::Golang) = template else { return Ok(Cow::Borrowed(data)) };
    let secret = |target: &str| {
        let file = spec.secrets.iter().find(|file| target_of(file) == target)?;
        items.secret(&file.id).map(|secret| secret.data.clone())
    };
    let config = |target: &str| {
        let file = spec.configs.iter().find(|file| target_of(file) == target)?;
        items.config(&file.id).map(|config| config.data.clone())
    };
    let sources = Sources { secret: &secret, config: &config, env: &spec.env };
    let filled = orch_template::files::fill(&String::from_utf8_lossy(data), values, &sources);
    let failed = |source| FilesError::Template { kind, name: name.to_owned(), source };
    filled.map(|text| Cow::Owned(text.into_bytes())).map_err(failed)
}

fn target_of<Id>(file: &FileRef<Id>) -> &str {
    if file.target.is_empty() { &file.name } else { &file.target }
}

pub(crate) fn remove_secret_files(dir: &Path) -> Result<(), FilesError> {
    match unmount(dir, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(e) => return Err(io_error("unmount", dir)(e.into())),
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("delete", dir)(e)),
        _ => Ok(()),
    }
}

fn unknown(kind: &'static str, name: &str) -> FilesError {
    FilesError::Unknown { kind, name: name.to_owned() }
}

fn write_one<Id>(
    source: &Path,
    kind: &'static str,
    file: &FileRef<Id>,
    data: &[u8],
    base: &str,
) -> Result<BindMount, FilesError> {
    let number = |owner: &str| match owner {
        "" => Ok(0),
        _ => owner.parse::<u32>().map_err(|_| FilesError::Owner {
            kind,
            name: file.name.clone(),
            owner: owner.to_owned(),
        }),
    };
    let (uid, gid) = (number(&file.uid)?, number(&file.gid)?);
    fs::write(source, data).map_err(io_error("write", source))?;
    chown(source, Some(uid), Some(gid)).map_err(io_error("change the owner of", source))?;
    fs::set_permissions(source, fs::Permissions::from_mode(file.mode))
        .map_err(io_error("change the mode of", source))?;
    let name = target_of(file);
    let target = if name.starts_with('/') { name.to_owned() } else { format!("{base}/{name}") };
    Ok(BindMount { source: source.to_owned(), target, read_only: true, propagation: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_finds_itself_and_the_extra_hosts() {
        let text = hosts_file("web", "10.0.1.3", &["1.2.3.4 db".to_owned()]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n") && text.ends_with("1.2.3.4 db\n10.0.1.3\tweb\n"), "{text}");
    }

    /// What the container is given, and what comes of the node's file.
    #[test]
    fn resolvers_of_its_own_take_the_place_of_the_nodes() {
        let own = "# the node's\nnameserver 10.0.0.2\nsearch lan\noptions ndots:2";
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (servers, search, options, want) in [
            ("", "", "", own),
            (
                "9.9.9.9 fd00::1",
                "",
                "",
                "# the node's\nsearch lan\noptions ndots:2\nnameserver 9.9.9.9\nnameserver fd00::1\n",
            ),
            ("", "a b", "", "# the node's\nnameserver 10.0.0.2\noptions ndots:2\nsearch a b\n"),
            ("9.9.9.9", "a", "rotate", "# the node's\nnameserver 9.9.9.9\nsearch a\noptions rotate\n"),
        ] {
            let nameservers = words(servers).iter().map(|server| server.parse().unwrap()).collect();
            let dns = DnsConfig { nameservers, search: words(search), options: words(options) };
            assert_eq!(resolv_conf_of_node(own.to_owned(), &dns), want);
        }
    }
}
