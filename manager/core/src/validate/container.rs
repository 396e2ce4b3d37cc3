//! What a task runs: image, environment, mounts, files.

use std::collections::BTreeSet;

use orch_model::{
    Duration, linux, resolver,
    service::{ContainerSpec, FileRef, HealthConfig, Mount, MountKind, Ulimit},
};

use orch_template::placeholders;

use super::{SpecError, field, label_names};
use crate::image_name::normalise_image_name;

/// Environment, commands and labels together; what execve takes is a little more.
const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// Docker's minimum of health check times.
const MIN_HEALTH_TIME: Duration = Duration::from_millis(1);

pub(super) fn container_spec(container: &ContainerSpec) -> Result<(), SpecError> {
    if container.image.is_empty() {
        return Err(SpecError::Rule("ContainerSpec: image reference must be provided".to_owned()));
    }
    normalise_image_name(&container.image)?;
    texts(container)?;
    placeholders::check(container).map_err(|error| SpecError::Rule(error.to_string()))?;
    if !container.dir.is_empty() && (!container.dir.starts_with('/') || container.dir.contains(char::is_control)) {
        return Err(field("working directory", &container.dir, "it must be an absolute path"));
    }
    if !container.hostname.is_empty() && !is_host_name(&container.hostname) {
        return Err(field("hostname", &container.hostname, "at most 63 letters, digits, '-', '_' and '.'"));
    }
    label_names("container label", container.labels.keys())?;
    let mut targets = BTreeSet::new();
    for one in &container.mounts {
        mount(one)?;
        if !targets.insert(parts(&one.target)) {
            return Err(SpecError::Rule(format!("ContainerSpec: duplicate mount point: {}", one.target)));
        }
    }
    names(container)?;
    resolution(container)?;
    files("secret", &container.secrets)?;
    files("config", &container.configs)?;
    container.health.as_ref().map_or(Ok(()), health)
}

/// What the kernel would not know is refused here, not on the task's node.
fn names(container: &ContainerSpec) -> Result<(), SpecError> {
    let capabilities = container.cap_add.iter().chain(&container.cap_drop);
    if let Some(name) = capabilities.into_iter().find(|name| !linux::is_capability(name)) {
        return Err(field("capability", name, "expected a name such as NET_ADMIN, or ALL"));
    }
    if !container.stop_signal.is_empty() && !linux::is_signal(&container.stop_signal) {
        return Err(field("stop signal", &container.stop_signal, "expected a signal such as SIGTERM, or its number"));
    }
    container.ulimits.iter().try_for_each(ulimit)?;
    if !container.user.is_empty() && !linux::is_user(&container.user) {
        return Err(field("user", &container.user, "expected NAME or NUMBER, or both a user and a group: USER:GROUP"));
    }
    if let Some(group) = container.groups.iter().find(|group| !linux::is_group(group)) {
        return Err(field("group", group, "expected a group's name or number"));
    }
    if let Some(name) = container.sysctls.keys().find(|name| !linux::is_sysctl(name)) {
        return Err(SpecError::Rule(format!(
            "sysctl '{name}' is not allowed: containers have their own kernel.msg*, kernel.sem, kernel.shm*, \
             kernel.domainname, fs.mqueue.* and net.*"
        )));
    }
    if let Some((name, value)) = container.sysctls.iter().find(|(_, value)| !is_line(value)) {
        return Err(field("sysctl", format!("{name}={value}"), "expected KEY=VALUE, such as net.core.somaxconn=1024"));
    }
    if !(-1000..=1000).contains(&container.oom_score_adj) {
        return Err(field("OOM score", container.oom_score_adj, "expected a number from -1000 to 1000"));
    }
    Ok(())
}

fn ulimit(limit: &Ulimit) -> Result<(), SpecError> {
    let shown = || format!("{}={}:{}", limit.name, limit.soft, limit.hard);
    if !linux::is_ulimit(&limit.name) {
        return Err(field("ulimit", &limit.name, format!("the names are {}", linux::ULIMITS.join(", "))));
    }
    if limit.soft < -1 || limit.hard < -1 {
        return Err(field("ulimit", shown(), "expected numbers from 0, or -1 for unlimited"));
    }
    if limit.hard != -1 && (limit.soft == -1 || limit.soft > limit.hard) {
        return Err(field("ulimit", shown(), "ulimit soft limit must be less than or equal to hard limit"));
    }
    Ok(())
}

/// What the container's /etc/hosts and /etc/resolv.conf say.
fn resolution(container: &ContainerSpec) -> Result<(), SpecError> {
    if let Some(line) = container.hosts.iter().find(|line| !resolver::is_host_line(line)) {
        return Err(field("host", line, "expected an address and a name, such as 10.1.2.3 db"));
    }
    if let Some(domain) = container.dns.search.iter().find(|domain| !resolver::is_search_domain(domain)) {
        return Err(field("DNS search domain", domain, "it is not a valid domain, such as example.org, or . for none"));
    }
    match container.dns.options.iter().find(|option| !resolver::is_option(option)) {
        Some(option) => Err(field("DNS option", option, "expected one word, such as ndots:2")),
        None => Ok(()),
    }
}

fn texts(container: &ContainerSpec) -> Result<(), SpecError> {
    for line in &container.env {
        if line.split('=').next().is_none_or(str::is_empty) {
            return Err(field("environment variable", line, "expected NAME=VALUE or NAME"));
        }
    }
    let all = container.env.iter().chain(&container.command).chain(&container.args);
    if let Some(text) = all.clone().find(|t| t.contains('\0')) {
        return Err(field("text", text.replace('\0', "\\0"), "environment and arguments cannot contain a zero byte"));
    }
    let bytes: usize = all.map(String::len).sum();
    if bytes > MAX_TEXT_BYTES {
        return Err(SpecError::Rule(format!(
            "environment, command and arguments have {bytes} bytes together: at most {MAX_TEXT_BYTES}; put large \
             content in a config"
        )));
    }
    Ok(())
}

fn mount(mount: &Mount) -> Result<(), SpecError> {
    if !mount.target.starts_with('/') || parts(&mount.target).is_empty() {
        return Err(field("mount target", &mount.target, "invalid mount target, must be an absolute path and not /"));
    }
    if !mount.has_valid_subpath() {
        return Err(field(
            "volume subpath",
            &mount.volume_subpath,
            "subpath must be a relative path within the volume",
        ));
    }
    if !mount.volume_subpath.is_empty() && mount.kind != MountKind::Volume {
        return Err(field("volume subpath", &mount.volume_subpath, "only a mount of type volume has one"));
    }
    for (what, path) in [("mount target", &mount.target), ("mount source", &mount.source)] {
        if path.contains(char::is_control) {
            return Err(field(what, path, "a path has no control characters"));
        }
    }
    if let Some(driver) = mount.volume_driver.as_ref().filter(|driver| !["", "local"].contains(&driver.name.as_str())) {
        return Err(SpecError::Rule(format!(
            "invalid mount config for type \"volume\": volume driver {:?} is not known, only \"local\" is: shares of a \
             network are options of it, such as volume-opt=type=nfs",
            driver.name
        )));
    }
    match mount.kind {
        MountKind::Bind if !mount.source.starts_with('/') => {
            Err(field("mount source", &mount.source, "invalid bind mount source, must be an absolute path"))
        }
        MountKind::Volume if mount.source.starts_with('/') => Err(field(
            "mount source",
            &mount.source,
            "invalid volume mount source, must not be an absolute path: a volume has a name; for a folder of the node \
             use type=bind",
        )),
        MountKind::Volume if !mount.source.is_empty() && !is_volume_name(&mount.source) => {
            Err(field("volume name", &mount.source, "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"))
        }
        MountKind::Tmpfs if !mount.source.is_empty() => {
            Err(field("mount source", &mount.source, "invalid tmpfs source, source must be empty"))
        }
        MountKind::Bind | MountKind::Volume | MountKind::Tmpfs => Ok(()),
    }
}

fn files<Id>(what: &'static str, refs: &[FileRef<Id>]) -> Result<(), SpecError> {
    let mut targets = BTreeSet::new();
    for file in refs {
        let last = file.target.rsplit('/').next().unwrap_or_default();
        let leads_out = file.target.split('/').any(|part| part == "..");
        if ["", "."].contains(&last) || leads_out || file.target.contains(char::is_control) {
            return Err(SpecError::Rule(format!(
                "{what} {}: target {:?} is not valid: expected a file name or an absolute path without ..",
                file.name, file.target
            )));
        }
        let is_id = |id: &str| id.is_empty() || id.parse().is_ok_and(|id: u32| id < u32::MAX);
        if let Some(id) = [&file.uid, &file.gid].into_iter().find(|id| !is_id(id)) {
            return Err(SpecError::Rule(format!(
                "{what} {}: owner {id:?} is not valid: uid and gid are numbers, such as 0 or 1000",
                file.name
            )));
        }
        if !targets.insert(file.target.as_str()) {
            return Err(SpecError::Rule(format!(
                "{what} references {} and another one have a conflicting target: {}",
                file.name, file.target
            )));
        }
    }
    Ok(())
}

fn health(health: &HealthConfig) -> Result<(), SpecError> {
    let known = ["NONE", "CMD", "CMD-SHELL"];
    if let Some(first) = health.test.first().filter(|first| !known.contains(&first.as_str())) {
        return Err(field("health check", first, "it must start with NONE, CMD or CMD-SHELL"));
    }
    let times = [health.interval, health.timeout, health.start_period, health.start_interval];
    match times.into_iter().flatten().find(|t| !t.is_zero() && *t < MIN_HEALTH_TIME) {
        Some(time) => Err(field("health check time", format!("{time:?}"), "it must be 0 or at least 1ms")),
        None => Ok(()),
    }
}

/// What a path comes to, whatever `.`, `..` and `//` are in it.
fn parts(path: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

/// Something, on one line.
fn is_line(text: &str) -> bool {
    !text.trim().is_empty() && !text.contains(|c: char| c.is_control() && c != '\t')
}

fn is_host_name(text: &str) -> bool {
    // Templates like {{.Node.Hostname}} are filled in on the node.
    text.contains("{{") || (text.len() <= 63 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)))
}

fn is_volume_name(text: &str) -> bool {
    text.contains("{{")
        || (text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)))
}
