//! One service of a file.

use std::collections::{BTreeMap, BTreeSet};

use orch_model::{
    Annotations,
    network::NodeNetwork,
    service::{
        Balance, ContainerSpec, EndpointSpec, HealthConfig, LogDriver, Mount, MountKind, PlacementStrategy, PortConfig,
        ServiceMode, ServiceSpec, TaskSpec, Ulimit,
    },
};

use super::{
    IMAGE_LABEL, StackService, Surroundings,
    convert::Reader,
    deploy,
    error::ComposeError,
    export, keys, ports, volumes,
    yaml::{Key, Node, Yaml},
};
use crate::flags::{
    duration, file_ref::NamedFile, key_value, linux, mount, network::NamedAttachment, quantity, resolver, words,
};

/// Collects in `used` the networks that the service is on.
pub(super) fn service(
    reader: &Reader<'_>,
    key: &Key,
    node: &Node,
    used: &mut BTreeSet<String>,
) -> Result<StackService, ComposeError> {
    let name = &key.text;
    let path = format!("services.{name}");
    let Some(image) = node.get("image") else {
        let message = format!("{path} has no image");
        let help = "a cluster builds nothing: build and import (or push) the image first, then write `image: NAME`";
        return Err(reader.source.error_with_help(key.place, message, Some(help.into())));
    };
    let image = reader.text(image, &format!("{path}.image"))?;
    let deploy = node.get("deploy");
    let mut labels = reader.labels(deploy.and_then(|d| d.get("labels")), &format!("{path}.deploy.labels"))?;
    labels.insert(IMAGE_LABEL.into(), image.clone());
    let mut spec = ServiceSpec {
        annotations: Annotations { name: reader.scoped(name), labels },
        task: TaskSpec { container: container(reader, node, &path, image)?, ..TaskSpec::default() },
        mode: ServiceMode::Replicated { replicas: 1 },
        update: None,
        rollback: None,
        endpoint: EndpointSpec { ports: ports(reader, node, &path)?, ..EndpointSpec::default() },
        depends_on: Vec::new(),
    };
    spec.task.log_driver = node.get("logging").map(|n| logging(reader, n, &path)).transpose()?;
    deploy::older_limits(reader, node, &path, &mut spec)?;
    if let Some(restart) = node.get("restart") {
        deploy::restart(reader, restart, &format!("{path}.restart"), &mut spec)?;
    }
    if let Some(deploy) = deploy {
        deploy::apply(reader, deploy, &format!("{path}.deploy"), &mut spec)?;
    }
    own_keys(reader, node, &mut spec)?;
    Ok(StackService {
        spec,
        networks: networks(reader, name, node, &path, used)?,
        secrets: files(reader, node, "secrets", &path)?,
        configs: files(reader, node, "configs", &path)?,
    })
}

/// What an exported file says in addition.
fn own_keys(reader: &Reader<'_>, node: &Node, spec: &mut ServiceSpec) -> Result<(), ComposeError> {
    let Some(own) = node.get(export::OWN_KEY) else { return Ok(()) };
    if let Some(digest) = own.get("image-digest") {
        spec.task.container.image_digest = Some(reader.text(digest, export::OWN_KEY)?);
    }
    if let Some(strategy) = own.get("placement-strategy") {
        spec.task.placement.strategy = reader.parsed(strategy, export::OWN_KEY, |text| match text {
            "spread" => Ok(PlacementStrategy::Spread),
            "pack" => Ok(PlacementStrategy::Pack),
            _ => Err("expected spread or pack".into()),
        })?;
    }
    if let Some(balance) = own.get("endpoint-balance") {
        spec.endpoint.balance = Some(reader.parsed(balance, export::OWN_KEY, |text| match text {
            "round-robin" => Ok(Balance::RoundRobin),
            "random" => Ok(Balance::Random),
            "source-hash" => Ok(Balance::SourceHash),
            "weighted" => Ok(Balance::Weighted),
            _ => Err("expected round-robin, random, source-hash or weighted".into()),
        })?);
    }
    if let Some(prefer) = own.get("endpoint-prefer-local") {
        spec.endpoint.prefer_local = reader.boolean(prefer, export::OWN_KEY)?;
    }
    if let (Some(most), ServiceMode::ReplicatedJob { max_concurrent, .. }) = (own.get("max-concurrent"), &mut spec.mode)
    {
        *max_concurrent = reader.number(most, export::OWN_KEY)?;
    }
    Ok(())
}

fn container(reader: &Reader<'_>, node: &Node, path: &str, image: String) -> Result<ContainerSpec, ComposeError> {
    let text = |key: &str| node.get(key).map(|n| reader.text(n, &format!("{path}.{key}"))).transpose();
    let texts = |key: &str| node.get(key).map(|n| reader.texts(n, &format!("{path}.{key}"))).transpose();
    let flag = |key: &str| node.get(key).map(|n| reader.boolean(n, &format!("{path}.{key}"))).transpose();
    let command = |key: &str| node.get(key).map(|n| command(reader, n, &format!("{path}.{key}"))).transpose();
    // Docker ignores some keys in files with a version.
    let with_more = reader.version == keys::MODERN;
    let mut container = ContainerSpec {
        image,
        command: command("entrypoint")?.unwrap_or_default(),
        args: command("command")?.unwrap_or_default(),
        hostname: text("hostname")?.unwrap_or_default(),
        env: environment(reader, node, path)?
            .into_iter()
            // A bare name takes the image's variable away.
            .map(|(name, value)| value.map_or_else(|| name.clone(), |value| format!("{name}={value}")))
            .collect(),
        dir: text("working_dir")?.unwrap_or_default(),
        user: text("user")?.unwrap_or_default(),
        labels: reader.labels(node.get("labels"), &format!("{path}.labels"))?,
        tty: flag("tty")?.unwrap_or(false),
        open_stdin: flag("stdin_open")?.unwrap_or(false),
        read_only: flag("read_only")?.unwrap_or(false),
        init: flag("init")?,
        privileged: with_more && flag("privileged")?.unwrap_or(false),
        stop_signal: text("stop_signal")?.unwrap_or_default(),
        mounts: mounts(reader, node, path)?,
        cap_add: texts("cap_add")?.unwrap_or_default(),
        cap_drop: texts("cap_drop")?.unwrap_or_default(),
        groups: texts("group_add")?.unwrap_or_default(),
        devices: if with_more { texts("devices")?.unwrap_or_default() } else { Vec::new() },
        sysctls: reader.map(node.get("sysctls"), &format!("{path}.sysctls"))?,
        hosts: hosts(reader, node, path)?,
        ulimits: ulimits(reader, node, path)?,
        ..ContainerSpec::default()
    };
    if let Some(score) = node.get("oom_score_adj") {
        container.oom_score_adj = reader.parsed(score, &format!("{path}.oom_score_adj"), linux::oom_score)?;
    }
    if let Some(grace) = node.get("stop_grace_period") {
        let grace = reader.parsed(grace, &format!("{path}.stop_grace_period"), duration::parse)?;
        container.stop_grace_period = Some(grace);
    }
    if let Some(dns) = node.get("dns") {
        for server in reader.texts(dns, &format!("{path}.dns"))? {
            let address =
                server.parse().map_err(|_| reader.error(dns, format!("{path}.dns: {server:?} is not an address")))?;
            container.dns.nameservers.push(address);
        }
    }
    container.dns.search = texts("dns_search")?.unwrap_or_default();
    container.dns.options = texts("dns_opt")?.unwrap_or_default();
    container.health = node.get("healthcheck").map(|n| health(reader, n, path)).transpose()?;
    Ok(container)
}

/// A text is cut into words as a shell does; a list is taken as it is.
fn command(reader: &Reader<'_>, node: &Node, path: &str) -> Result<Vec<String>, ComposeError> {
    match &node.value {
        Yaml::Scalar(_) => reader.parsed(node, path, words::split),
        _ => reader.texts(node, path),
    }
}

/// Env files first, then `environment:`. What has no value gets the shell's, and keeps none if that has none.
pub(super) fn environment(
    reader: &Reader<'_>,
    node: &Node,
    path: &str,
) -> Result<BTreeMap<String, Option<String>>, ComposeError> {
    let mut given = env_files(reader, node, &format!("{path}.env_file"))?;
    if let Some(node) = node.get("environment") {
        given.extend(reader.pairs(node, &format!("{path}.environment"))?);
    }
    let filled = given.into_iter().map(|(name, value)| {
        let known = if value.as_ref().is_none_or(String::is_empty) { (reader.around.variable)(&name) } else { None };
        (name, known.or(value))
    });
    Ok(filled.collect())
}

fn env_files(reader: &Reader<'_>, node: &Node, path: &str) -> Result<Vec<(String, Option<String>)>, ComposeError> {
    let Some(files) = node.get("env_file") else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    let list = match &files.value {
        Yaml::List(items) => items.as_slice(),
        _ => std::slice::from_ref(files),
    };
    for item in list {
        let file = reader.text(item.get("path").unwrap_or(item), path)?;
        let required = item.get("required").map(|n| reader.boolean(n, path)).transpose()?.unwrap_or(true);
        let absolute = if file.starts_with('/') { file.clone() } else { mount::join(reader.around.dir, &file) };
        let lines = match (reader.around.read)(&absolute) {
            Err(_) if !required => continue,
            Err(reason) if reason == "is a directory" => {
                Err(format!("invalid env file ({absolute}): read {absolute}: {reason}"))
            }
            Err(reason) => Err(format!("open {absolute}: {reason}")),
            Ok(text) => key_value::env_file(&text).map_err(|reason| format!("invalid env file ({absolute}): {reason}")),
        };
        let lines = lines.map_err(|reason| reader.error(item, format!("{path}: {reason}")))?;
        for line in lines {
            match line.split_once('=') {
                Some((name, value)) => all.push((name.to_owned(), Some(value.to_owned()))),
                // A name alone is the shell's variable, when that has it.
                None => all.extend((reader.around.variable)(&line).map(|value| (line, Some(value)))),
            }
        }
    }
    Ok(all)
}

fn ports(reader: &Reader<'_>, node: &Node, path: &str) -> Result<Vec<PortConfig>, ComposeError> {
    let Some(list) = node.get("ports") else { return Ok(Vec::new()) };
    let path = format!("{path}.ports");
    if !matches!(list.value, Yaml::List(_)) {
        return Err(reader.error(list, format!("{path} must be a list")));
    }
    let mut all = Vec::new();
    for item in list.items() {
        let parsed = ports::parse(item).map_err(|reason| reader.error(item, format!("{path}: {reason}")))?;
        reader.warnings.borrow_mut().extend(parsed.warning);
        all.extend(parsed.ports);
    }
    Ok(all)
}

fn mounts(reader: &Reader<'_>, node: &Node, path: &str) -> Result<Vec<Mount>, ComposeError> {
    let mut mounts = Vec::new();
    for item in node.get("volumes").map(Node::items).unwrap_or_default() {
        let path = format!("{path}.volumes");
        let mount = match &item.value {
            Yaml::Map(_) => long_mount(reader, item, &path)?,
            _ => reader.parsed(item, &path, |text| short_mount(reader.around, text))?,
        };
        mounts.push(named_volume(reader, item, mount)?);
    }
    let Some(node) = node.get("tmpfs") else { return Ok(mounts) };
    let path = format!("{path}.tmpfs");
    for text in reader.texts(node, &path)? {
        let (made, ignored) = tmpfs(&text).map_err(|reason| reader.error(node, format!("{path}: {reason}")))?;
        if !ignored.is_empty() {
            let ignored = ignored.join(", ");
            let warning = format!("{path}: ignoring {ignored} of {text}: a service's tmpfs has size, mode and ro");
            reader.warnings.borrow_mut().push(warning);
        }
        mounts.push(made);
    }
    Ok(mounts)
}

/// `/run`, `/run:size=64m,mode=1770`; and the options of `run --tmpfs` that services do not have.
fn tmpfs(text: &str) -> Result<(Mount, Vec<&str>), String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut made = Mount { target: target.to_owned(), ..mount::empty(MountKind::Tmpfs) };
    let mut ignored = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", size) if !size.ends_with('%') => made.tmpfs_size_bytes = quantity::bytes(size)?,
            ("mode", mode) => made.tmpfs_mode = mount::octal(mode)?,
            ("ro", "") => made.read_only = true,
            // As every tmpfs is.
            ("rw" | "noexec" | "nosuid" | "nodev", "") => {}
            _ => ignored.push(option),
        }
    }
    mount::check(made).map(|made| (made, ignored))
}

fn short_mount(around: &Surroundings<'_>, text: &str) -> Result<Mount, String> {
    // Docker takes the one letter for a drive of Windows, and then refuses the rest.
    if let Some((name, target)) = text.split_once(':').filter(|(name, rest)| name.len() == 1 && rest.starts_with('/'))
        && name.bytes().all(|b| b.is_ascii_alphabetic())
        && !target.contains(':')
    {
        let volume = Mount { source: name.to_owned(), target: target.to_owned(), ..mount::empty(MountKind::Volume) };
        return mount::check(volume);
    }
    volumes::parse(text)?.mount(around)
}

fn long_mount(reader: &Reader<'_>, item: &Node, path: &str) -> Result<Mount, ComposeError> {
    let text = |key: &str| item.get(key).map(|n| reader.text(n, &format!("{path}.{key}"))).transpose();
    let kind = item.get("type").map(|n| reader.parsed(n, path, mount::kind)).transpose()?;
    let mut made = mount::empty(kind.unwrap_or(MountKind::Volume));
    made.source = text("source")?.unwrap_or_default();
    made.target = text("target")?.unwrap_or_default();
    if made.kind == MountKind::Bind {
        made.source = volumes::host_path(reader.around, &made.source);
    }
    made.read_only = item.get("read_only").map(|n| reader.boolean(n, path)).transpose()?.unwrap_or(false);
    if let Some(bind) = item.get("bind") {
        made.propagation = bind.get("propagation").map(|n| reader.text(n, path)).transpose()?.unwrap_or_default();
        made.bind_recursive =
            bind.get("recursive").map(|n| reader.parsed(n, path, mount::recursive)).transpose()?.flatten();
    }
    if let Some(no_copy) = item.get("volume").and_then(|v| v.get("nocopy")) {
        made.no_copy = reader.boolean(no_copy, path)?;
    }
    if let Some(subpath) = item.get("volume").and_then(|v| v.get("subpath")) {
        made.volume_subpath = reader.text(subpath, path)?;
    }
    if let Some(size) = item.get("tmpfs").and_then(|t| t.get("size")) {
        made.tmpfs_size_bytes = reader.parsed(size, path, quantity::bytes)?;
    }
    if let Some(mode) = item.get("tmpfs").and_then(|t| t.get("mode")) {
        made.tmpfs_mode = reader.parsed(mode, path, file_mode)?;
    }
    let checked = mount::check_recursive(&made).and_then(|()| mount::check(made));
    checked.map_err(|reason| reader.error(item, format!("{path}: {reason}")))
}

/// The volume's name in the cluster, its driver and labels, from the top-level section.
fn named_volume(reader: &Reader<'_>, item: &Node, mut mount: Mount) -> Result<Mount, ComposeError> {
    if mount.kind != MountKind::Volume || mount.source.is_empty() {
        return Ok(mount);
    }
    let name = mount.source.clone();
    let Some(node) = reader.defined("volumes", &name) else {
        return Err(reader.error(item, format!("undefined volume {name:?}: add it under the top-level `volumes:`")));
    };
    let (real, external) = reader.real_name("volumes", &name)?;
    mount.source = real;
    if external {
        return Ok(mount);
    }
    mount.volume_labels = reader.labels(node.get("labels"), &format!("volumes.{name}.labels"))?;
    let driver = node.get("driver").map(|n| reader.text(n, "driver")).transpose()?.unwrap_or_default();
    let options = reader.map(node.get("driver_opts"), &format!("volumes.{name}.driver_opts"))?;
    if !driver.is_empty() || !options.is_empty() {
        mount.volume_driver = Some(LogDriver { name: driver, options });
    }
    Ok(mount)
}

fn networks(
    reader: &Reader<'_>,
    service: &str,
    node: &Node,
    path: &str,
    used: &mut BTreeSet<String>,
) -> Result<Vec<NamedAttachment>, ComposeError> {
    let path = format!("{path}.networks");
    let mut wanted: Vec<(String, &Node, Vec<String>)> = Vec::new();
    let mut options = BTreeMap::new();
    match node.get("networks") {
        None => wanted.push(("default".into(), node, Vec::new())),
        Some(list) => match &list.value {
            Yaml::List(items) => {
                for item in items {
                    wanted.push((reader.text(item, &path)?, item, Vec::new()));
                }
            }
            Yaml::Map(entries) => {
                for (key, inner) in entries {
                    let path = format!("{path}.{}", key.text);
                    let aliases = inner.get("aliases").map(|n| reader.texts(n, &path)).transpose()?;
                    options.insert(key.text.clone(), reader.map(inner.get("driver_opts"), &path)?);
                    wanted.push((key.text.clone(), inner, aliases.unwrap_or_default()));
                }
            }
            _ => return Err(reader.error(list, format!("{path} must be a list or a mapping"))),
        },
    }
    let mut attachments = Vec::new();
    for (name, place, mut aliases) in wanted {
        if name != "default" && reader.defined("networks", &name).is_none() {
            let message = format!("undefined network {name:?}: add it under the top-level `networks:`");
            return Err(reader.error(place, message));
        }
        let (network, is_external) = reader.real_name("networks", &name)?;
        let driver_options = options.remove(&name).unwrap_or_default();
        used.insert(name);
        // The service is found by its short name by its neighbours; a node's own network has no names.
        if !is_external || NodeNetwork::find(&network).is_none() {
            aliases.push(service.to_owned());
        }
        attachments.push(NamedAttachment { network, aliases, driver_options });
    }
    attachments.sort_by(|a, b| a.network.cmp(&b.network));
    Ok(attachments)
}

fn files(reader: &Reader<'_>, node: &Node, section: &str, path: &str) -> Result<Vec<NamedFile>, ComposeError> {
    let path = format!("{path}.{section}");
    let mut files = Vec::new();
    for item in node.get(section).map(Node::items).unwrap_or_default() {
        let mut file = NamedFile::new("");
        if let Yaml::Map(_) = item.value {
            let text = |key: &str| item.get(key).map(|n| reader.text(n, &path)).transpose();
            file.source = text("source")?.unwrap_or_default();
            file.target = text("target")?.unwrap_or_default();
            file.uid = text("uid")?.unwrap_or(file.uid);
            file.gid = text("gid")?.unwrap_or(file.gid);
            file.mode = item.get("mode").map(|n| reader.parsed(n, &path, file_mode)).transpose()?.unwrap_or(file.mode);
        } else {
            file.source = reader.text(item, &path)?;
        }
        if reader.defined(section, &file.source).is_none() {
            let message = format!("undefined entry {:?}: add it under the top-level `{section}:`", file.source);
            return Err(reader.error(item, message));
        }
        if file.target.is_empty() {
            file.target = if section == "configs" { format!("/{}", file.source) } else { file.source.clone() };
        }
        (file.source, _) = reader.real_name(section, &file.source)?;
        files.push(file);
    }
    Ok(files)
}

/// As YAML reads it: 0440 and 0o440 are octal, 288 is not.
pub(super) fn file_mode(text: &str) -> Result<u32, String> {
    if text.starts_with('0') {
        return mount::octal(text);
    }
    let mode = text.parse().ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| format!("mode {text:?} is not a file mode such as 0444"))
}

fn hosts(reader: &Reader<'_>, node: &Node, path: &str) -> Result<Vec<String>, ComposeError> {
    let Some(list) = node.get("extra_hosts") else { return Ok(Vec::new()) };
    let path = format!("{path}.extra_hosts");
    let mut lines = Vec::new();
    let mut add = |place: &Node, host: &str, ip: &str| match resolver::host_address(ip) {
        Some(ip) => {
            lines.push(format!("{ip} {host}"));
            Ok(())
        }
        None => Err(reader.error(place, format!("{path}: \"{host}:{ip}\": expected HOST:IP, such as db:10.1.2.3"))),
    };
    for item in list.items() {
        let text = reader.text(item, &path)?;
        let (host, ip) = text.split_once('=').or_else(|| text.split_once(':')).unwrap_or((&text, ""));
        add(item, host, ip)?;
    }
    for (key, inner) in list.entries() {
        for address in if inner.items().is_empty() { std::slice::from_ref(inner) } else { inner.items() } {
            add(address, &key.text, address.text().unwrap_or_default())?;
        }
    }
    Ok(lines)
}

fn ulimits(reader: &Reader<'_>, node: &Node, path: &str) -> Result<Vec<Ulimit>, ComposeError> {
    let mut ulimits = Vec::new();
    for (key, value) in node.get("ulimits").map(Node::entries).unwrap_or_default() {
        let path = format!("{path}.ulimits.{}", key.text);
        let number =
            |node: &Node| reader.parsed(node, &path, |t| t.parse().map_err(|_| "expected a number".to_owned()));
        let both = |key: &str| value.get(key).map(number).transpose();
        let (soft, hard) = match value.value {
            Yaml::Map(_) => {
                let (soft, hard) = (both("soft")?, both("hard")?);
                let either = soft.or(hard).ok_or_else(|| reader.error(value, format!("{path} needs soft and hard")))?;
                (soft.unwrap_or(either), hard.unwrap_or(either))
            }
            _ => (number(value)?, number(value)?),
        };
        ulimits.push(Ulimit { name: key.text.clone(), soft, hard });
    }
    ulimits.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(ulimits)
}

fn health(reader: &Reader<'_>, node: &Node, path: &str) -> Result<HealthConfig, ComposeError> {
    let path = format!("{path}.healthcheck");
    let length =
        |key: &str| node.get(key).map(|n| reader.parsed(n, &format!("{path}.{key}"), duration::parse)).transpose();
    let disabled = node.get("disable").map(|n| reader.boolean(n, &path)).transpose()?.unwrap_or(false);
    let test = match node.get("test") {
        _ if disabled => vec!["NONE".into()],
        Some(test) if matches!(test.value, Yaml::Scalar(_)) => vec!["CMD-SHELL".into(), reader.text(test, &path)?],
        Some(test) => reader.texts(test, &path)?,
        None => Vec::new(),
    };
    let retries = node.get("retries").map(|n| reader.number(n, &path)).transpose()?.unwrap_or(0);
    Ok(HealthConfig {
        test,
        interval: length("interval")?,
        timeout: length("timeout")?,
        retries: u32::try_from(retries).unwrap_or(u32::MAX),
        start_period: length("start_period")?,
        start_interval: length("start_interval")?,
    })
}

fn logging(reader: &Reader<'_>, node: &Node, path: &str) -> Result<LogDriver, ComposeError> {
    let path = format!("{path}.logging");
    let name = node.get("driver").map(|n| reader.text(n, &path)).transpose()?.unwrap_or_default();
    Ok(LogDriver { name, options: reader.map(node.get("options"), &path)? })
}
