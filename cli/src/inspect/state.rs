//! A container of this node, as Docker Engine's `GET /containers/{id}/json` has it.

use std::net::Ipv6Addr;

use orch_model::{
    Timestamp,
    service::{ContainerSpec, HealthConfig, PortConfig, TaskSpec},
    task::Health,
};
use orch_proto::{conv::FromProto, wire};
use orch_template::native::Zero;
use serde_json::{Map, Value, json};

use super::Fields;
use crate::render::{ports, time};

/// What Go writes for a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

pub(crate) fn local_container(details: &wire::ContainerDetails) -> Value {
    let container = details.container.clone().unwrap_or_default();
    let spec = TaskSpec::from_proto(details.spec.clone().unwrap_or_default()).unwrap_or_default();
    let local = details.local.clone().unwrap_or_default();
    let (program, args) = match container.command.split_first() {
        Some((program, args)) => (program.as_str(), args),
        None => ("", &[][..]),
    };
    Fields::default()
        .always("Id", container.container_id.as_str())
        .always("Created", time::rfc3339(Timestamp::from_unix_ms(container.created_at_ms)))
        .always("Path", program)
        .always("Args", json!(args))
        .always("State", state(&container, details))
        .always("Image", details.config_digest.as_str())
        .always("ResolvConfPath", file_of(details, "resolv.conf"))
        .always("HostnamePath", file_of(details, "hostname"))
        .always("HostsPath", file_of(details, "hosts"))
        .always("LogPath", details.log_path.as_str())
        .always("Name", format!("/{}", container.name))
        .always("RestartCount", local.restart_count)
        .always("Driver", "overlay2")
        .always("Platform", "linux")
        .always("MountLabel", "")
        .always("ProcessLabel", "")
        .always("AppArmorProfile", details.apparmor_profile.as_str())
        .unset("ExecIDs", Zero::List)
        .always("HostConfig", host_config(&spec, &local, details))
        .always("GraphDriver", graph_driver(&details.root.clone().unwrap_or_default()))
        .always("Mounts", details.mounts.iter().filter(|mount| !is_tmpfs(&local, mount)).map(mount).collect::<Value>())
        .always("Config", config(&spec.container, &container, details))
        .always("NetworkSettings", network_settings(&container, details))
        .unset("SizeRw", Zero::Pointer)
        .unset("SizeRootFs", Zero::Pointer)
        .done()
}

fn file_of(details: &wire::ContainerDetails, name: &str) -> String {
    if details.files_dir.is_empty() { String::new() } else { format!("{}/{name}", details.files_dir) }
}

fn graph_driver(root: &wire::RootDirs) -> Value {
    let data = json!({
        "LowerDir": root.lower.join(":"),
        "MergedDir": root.merged,
        "UpperDir": root.upper,
        "WorkDir": root.work,
    });
    json!({"Name": "overlay2", "Data": if root.upper.is_empty() { Value::Null } else { data }})
}

/// Of `--tmpfs`, which Docker shows in `HostConfig` alone.
fn is_tmpfs(local: &wire::LocalContainer, mount: &wire::MountPoint) -> bool {
    local.options.as_ref().is_some_and(|options| options.tmpfs.contains_key(&mount.target))
}

fn state(container: &wire::Container, details: &wire::ContainerDetails) -> Value {
    let is = |word: &str| container.state == word;
    let at = |unix_ms: u64| match unix_ms {
        0 => NEVER.to_owned(),
        _ => time::rfc3339(Timestamp::from_unix_ms(unix_ms)),
    };
    Fields::default()
        .always("Status", container.state.as_str())
        .always("Running", is("running") || is("paused"))
        .always("Paused", is("paused"))
        .always("Restarting", is("restarting"))
        .always("OOMKilled", details.oom_killed)
        .always("Dead", false)
        .always("Pid", container.pid)
        .always("ExitCode", container.exit_code)
        .always("Error", details.error.as_str())
        .always("StartedAt", at(container.started_at_ms))
        .always("FinishedAt", at(container.finished_at_ms))
        .some("Health", details.health.as_ref().map(health))
        .done()
}

fn health(report: &wire::HealthReport) -> Value {
    let result = |result: &wire::HealthResult| {
        json!({
            "Start": time::rfc3339_nanos(result.start_ns),
            "End": time::rfc3339_nanos(result.end_ns),
            "ExitCode": result.exit_code,
            "Output": result.output,
        })
    };
    json!({
        "Status": Health::from_proto(report.health).map_or("none", Health::word),
        "FailingStreak": report.failing_streak,
        "Log": report.results.iter().map(result).collect::<Value>(),
    })
}

fn host_config(spec: &TaskSpec, local: &wire::LocalContainer, details: &wire::ContainerDetails) -> Value {
    let restart = local.restart.clone().unwrap_or_default();
    let options = local.options.clone().unwrap_or_default();
    let limits = options.limits.clone().unwrap_or_default();
    let container = &spec.container;
    let shared = |mode: &str, usual: &str| if mode.is_empty() { usual.to_owned() } else { mode.to_owned() };
    let security: Vec<&String> = options.security.iter().collect();
    let binds: Vec<String> = details
        .mounts
        .iter()
        .filter(|mount| mount.kind == "bind")
        .map(|mount| format!("{}:{}{}", mount.source, mount.target, if mount.read_only { ":ro" } else { "" }))
        .collect();
    Fields::default()
        .always("Binds", json!(binds))
        .always("NetworkMode", if local.network.is_empty() { "default" } else { &local.network })
        .always("PortBindings", bindings(&published(details), asked))
        .always(
            "RestartPolicy",
            json!({
                "Name": if restart.condition.is_empty() { "no" } else { &restart.condition },
                "MaximumRetryCount": restart.max_retries,
            }),
        )
        .always("AutoRemove", local.auto_remove)
        .always("CapAdd", json!(container.cap_add))
        .always("CapDrop", json!(container.cap_drop))
        .always("Dns", container.dns.nameservers.iter().map(ToString::to_string).collect::<Value>())
        .always("DnsOptions", json!(container.dns.options))
        .always("DnsSearch", json!(container.dns.search))
        .always("ExtraHosts", container.hosts.iter().flat_map(|line| extra_hosts(line)).collect::<Value>())
        .always("Privileged", container.privileged)
        .always("ReadonlyRootfs", container.read_only)
        .always("Memory", spec.limits.memory_bytes)
        .always("NanoCpus", spec.limits.nano_cpus)
        .always("PidsLimit", spec.limits.pids)
        .always("MemorySwap", match limits.memory_swap_bytes {
            0 => i64::try_from(spec.limits.memory_bytes.saturating_mul(2)).unwrap_or(i64::MAX),
            swap => swap,
        })
        .always("MemoryReservation", limits.memory_reservation_bytes)
        .always("CpuShares", limits.cpu_shares)
        .always("CpusetCpus", limits.cpuset_cpus.as_str())
        .always("CpusetMems", limits.cpuset_mems.as_str())
        .always("OomScoreAdj", container.oom_score_adj)
        .always("ShmSize", if options.shm_bytes == 0 { 64 << 20 } else { options.shm_bytes })
        .always("SecurityOpt", if security.is_empty() { Value::Null } else { json!(security) })
        .always("PidMode", options.pid_mode.as_str())
        .always("IpcMode", shared(&options.ipc_mode, "private"))
        .always("UTSMode", options.uts_mode.as_str())
        .always("UsernsMode", options.userns_mode.as_str())
        .always("Tmpfs", if options.tmpfs.is_empty() { Value::Null } else { json!(options.tmpfs) })
        .always("Devices", container.devices.iter().map(|device| mapped_device(device)).collect::<Value>())
        .always("GroupAdd", json!(container.groups))
        .always("Sysctls", json!(container.sysctls))
        .always("Ulimits", container.ulimits.iter().map(|u| json!({"Name": u.name, "Hard": u.hard, "Soft": u.soft})).collect::<Value>())
        .always("Init", container.init.unwrap_or(false))
        .always("CgroupnsMode", "private")
        .unset("ContainerIDFile", Zero::Of("".into()))
        .unset("VolumeDriver", Zero::Of("".into()))
        .unset("VolumesFrom", Zero::List)
        .unset("ConsoleSize", Zero::List)
        .unset("Annotations", Zero::Map)
        .unset("Cgroup", Zero::Of("".into()))
        .unset("Links", Zero::List)
        .unset("PublishAllPorts", Zero::Of(false.into()))
        .unset("StorageOpt", Zero::Map)
        .unset("Runtime", Zero::Of("".into()))
        .unset("Isolation", Zero::Of("".into()))
        .unset("CgroupParent", Zero::Of("".into()))
        .unset("BlkioWeight", Zero::Of(0.into()))
        .unset("BlkioWeightDevice", Zero::List)
        .unset("BlkioDeviceReadBps", Zero::List)
        .unset("BlkioDeviceWriteBps", Zero::List)
        .unset("BlkioDeviceReadIOps", Zero::List)
        .unset("BlkioDeviceWriteIOps", Zero::List)
        .unset("CpuPeriod", Zero::Of(0.into()))
        .unset("CpuQuota", Zero::Of(0.into()))
        .unset("CpuRealtimePeriod", Zero::Of(0.into()))
        .unset("CpuRealtimeRuntime", Zero::Of(0.into()))
        .unset("DeviceCgroupRules", Zero::List)
        .unset("DeviceRequests", Zero::List)
        .unset("MemorySwappiness", Zero::Pointer)
        .unset("OomKillDisable", Zero::Of(false.into()))
        .unset("CpuCount", Zero::Of(0.into()))
        .unset("CpuPercent", Zero::Of(0.into()))
        .unset("IOMaximumIOps", Zero::Of(0.into()))
        .unset("IOMaximumBandwidth", Zero::Of(0.into()))
        .unset("MaskedPaths", Zero::List)
        .unset("ReadonlyPaths", Zero::List)
        .unset("Mounts", Zero::List)
        .always(
            "LogConfig",
            json!({
                "Type": spec.log_driver.as_ref().map_or("json-file", |d| if d.name.is_empty() { "json-file" } else { &d.name }),
                "Config": spec.log_driver.as_ref().map(|d| d.options.clone()).unwrap_or_default(),
            }),
        )
        .done()
}

/// A line of /etc/hosts as `--add-host` takes it: each name with the address.
fn extra_hosts(line: &str) -> Vec<String> {
    let mut words = line.split_whitespace();
    let address = words.next().unwrap_or_default();
    words.map(|name| format!("{name}:{address}")).collect()
}

/// `/dev/x[:/dev/y][:rwm]`
fn mapped_device(device: &str) -> Value {
    let parts: Vec<&str> = device.split(':').collect();
    let (on_host, in_container, permissions) = match parts.as_slice() {
        [host, access] if !access.starts_with('/') => (*host, *host, *access),
        [host, path] => (*host, *path, "rwm"),
        [host, path, access] => (*host, *path, *access),
        _ => (device, device, "rwm"),
    };
    json!({"PathOnHost": on_host, "PathInContainer": in_container, "CgroupPermissions": permissions})
}

fn mount(mount: &wire::MountPoint) -> Value {
    Fields::default()
        .always("Type", mount.kind.as_str())
        .some("Name", mount.name.as_str())
        .always("Source", mount.source.as_str())
        .always("Destination", mount.target.as_str())
        .some("Driver", if mount.kind == "volume" { "local" } else { "" })
        .always("Mode", "")
        .always("RW", !mount.read_only)
        .always("Propagation", mount.propagation.as_str())
        .done()
}

/// What the image says, with what the user said over it.
fn config(spec: &ContainerSpec, container: &wire::Container, details: &wire::ContainerDetails) -> Value {
    let exposed: Map<String, Value> = details
        .exposed
        .iter()
        .cloned()
        .chain(published(details).iter().map(port_key))
        .map(|port| (port, json!({})))
        .collect();
    let image = details.image.clone().unwrap_or_default();
    let either = |own: &str, other: &str| if own.is_empty() { other.to_owned() } else { own.to_owned() };
    let (entrypoint, cmd) = spec.invocation(&image.entrypoint, &image.cmd);
    let or_null = |words: &[String]| if words.is_empty() { Value::Null } else { json!(words) };
    let volumes: Map<String, Value> = image.volumes.iter().map(|target| (target.clone(), json!({}))).collect();
    let local = details.local.as_ref().map(|local| local.options.clone().unwrap_or_default());
    let stdin_once = local.is_some_and(|options| options.stdin_once.unwrap_or(true));
    let labels: Map<String, Value> =
        image.labels.iter().chain(&container.labels).map(|(key, value)| (key.clone(), json!(value))).collect();
    Fields::default()
        .always("Hostname", details.hostname.as_str())
        .always("Domainname", "")
        .always("User", either(&spec.user, &image.user))
        .unset("AttachStdin", Zero::Of(false.into()))
        .unset("AttachStdout", Zero::Of(false.into()))
        .unset("AttachStderr", Zero::Of(false.into()))
        .always("Tty", spec.tty)
        .always("OpenStdin", spec.open_stdin)
        .always("StdinOnce", spec.open_stdin && stdin_once)
        .some("ExposedPorts", Value::Object(exposed))
        .always("Env", json!(environment(&image.env, &spec.env)))
        .always("Cmd", or_null(cmd))
        .some("Healthcheck", health_check(spec.health.as_ref(), &image).as_ref().map(super::container::health))
        .always("Image", container.image.as_str())
        .always("Volumes", if volumes.is_empty() { Value::Null } else { Value::Object(volumes) })
        .always("WorkingDir", either(&spec.dir, &image.working_dir))
        .always("Entrypoint", or_null(entrypoint))
        .always("Labels", Value::Object(labels))
        .unset("MacAddress", Zero::Of("".into()))
        .unset("NetworkDisabled", Zero::Of(false.into()))
        .unset("OnBuild", Zero::List)
        .some("StopTimeout", spec.stop_grace_period.map(|period| period.as_secs()))
        .unset("Shell", Zero::List)
        .some("StopSignal", either(&spec.stop_signal, &image.stop_signal))
        .done()
}

/// What the user leaves open is the image's, field by field.
fn health_check(own: Option<&HealthConfig>, image: &wire::ImageWords) -> Option<HealthConfig> {
    let of_image = image.health.clone().and_then(|health| HealthConfig::from_proto(health).ok());
    let (Some(own), Some(of_image)) = (own, &of_image) else { return own.cloned().or(of_image) };
    Some(HealthConfig {
        test: if own.test.is_empty() { of_image.test.clone() } else { own.test.clone() },
        interval: own.interval.or(of_image.interval),
        timeout: own.timeout.or(of_image.timeout),
        start_period: own.start_period.or(of_image.start_period),
        start_interval: own.start_interval.or(of_image.start_interval),
        retries: if own.retries == 0 { of_image.retries } else { own.retries },
    })
}

/// The user's variables first, then those of the image that they do not set, as Docker shows it.
fn environment(image: &[String], own: &[String]) -> Vec<String> {
    let name = |var: &str| var.split('=').next().unwrap_or_default().to_owned();
    let others = image.iter().filter(|var| !own.iter().any(|other| name(other) == name(var)));
    own.iter().filter(|var| var.contains('=')).chain(others).cloned().collect()
}

/// The node's own network has the container's one address there; others say what they gave.
fn attached(name: &str, details: &wire::ContainerDetails) -> Value {
    let of_one_off = details.local.iter().flat_map(|local| &local.networks);
    let named = of_one_off.chain(&details.networks).find(|network| network.network == name);
    let Some(network) = named else {
        return json!({"IPAddress": details.address, "NetworkID": "", "Aliases": null, "IPPrefixLen": 0});
    };
    let of_family = |v6: bool| {
        let given = network.given.iter().find(|given| given.contains(':') == v6);
        let (address, prefix) = given.and_then(|given| given.split_once('/')).unwrap_or_default();
        (address.to_owned(), prefix.parse::<u8>().unwrap_or(0))
    };
    let ((address, prefix), (address6, prefix6)) = (of_family(false), of_family(true));
    json!({
        "IPAddress": address,
        "IPPrefixLen": prefix,
        "GlobalIPv6Address": address6,
        "GlobalIPv6PrefixLen": prefix6,
        "NetworkID": network.network_id,
        "Aliases": network.aliases,
    })
}

fn network_settings(container: &wire::Container, details: &wire::ContainerDetails) -> Value {
    let running = matches!(container.state.as_str(), "running" | "paused");
    let is_apart = details.local.as_ref().is_some_and(|local| matches!(local.network.as_str(), "none" | "host"));
    let mut all = Map::new();
    for exposed in details.exposed.iter().filter(|_| running && !is_apart) {
        let key = if exposed.contains('/') { exposed.clone() } else { format!("{exposed}/tcp") };
        all.insert(key, Value::Null);
    }
    if let Value::Object(bound) = bindings(&published(details), |_| running) {
        all.extend(bound);
    }
    let networks: Map<String, Value> =
        container.networks.iter().map(|name| (name.clone(), attached(name, details))).collect();
    // What `nsenter --net=` takes, as Docker's file does.
    let namespace = if running { format!("/proc/{}/ns/net", container.pid) } else { String::new() };
    Fields::default()
        .unset("Bridge", Zero::Of("".into()))
        .unset("SandboxID", Zero::Of("".into()))
        .always("SandboxKey", namespace)
        .always("Ports", all)
        .unset("EndpointID", Zero::Of("".into()))
        .unset("Gateway", Zero::Of("".into()))
        .unset("GlobalIPv6Address", Zero::Of("".into()))
        .unset("GlobalIPv6PrefixLen", Zero::Of(0.into()))
        .always("IPAddress", details.address.as_str())
        .unset("IPPrefixLen", Zero::Of(0.into()))
        .unset("IPv6Gateway", Zero::Of("".into()))
        .unset("MacAddress", Zero::Of("".into()))
        .always("Networks", networks)
        .done()
}

fn published(details: &wire::ContainerDetails) -> Vec<PortConfig> {
    Vec::from_proto(details.ports.clone()).unwrap_or_default()
}

/// What the worker adds, where IPv6 clients are answered too, nobody has asked for.
fn asked(port: &PortConfig) -> bool {
    port.host_ip != Some(Ipv6Addr::UNSPECIFIED.into())
}

/// `{"8080/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}]}`
fn bindings(published: &[PortConfig], wanted: impl Fn(&PortConfig) -> bool) -> Value {
    let mut bound: Map<String, Value> = Map::new();
    for port in published.iter().filter(|port| wanted(port)) {
        let at = port.bound_to();
        let binding = json!({"HostIp": at.ip().to_string(), "HostPort": at.port().to_string()});
        if let Value::Array(list) = bound.entry(port_key(port)).or_insert_with(|| json!([])) {
            list.push(binding);
        }
    }
    Value::Object(bound)
}

fn port_key(port: &PortConfig) -> String {
    format!("{}/{}", port.target_port, ports::protocol_word(port.protocol))
}
