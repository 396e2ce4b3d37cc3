//! Specs back to a file: what is loaded from it means the same again.

use std::collections::BTreeSet;

use orch_model::{
    Kind,
    network::{DRIVER_OVERLAY, NetworkSpec},
    secret::TemplateDriver,
    service::{
        ContainerSpec, DependencyCondition, EndpointMode, FailureAction, HealthConfig, LogDriver, Mount, MountKind,
        PlacementStrategy, RestartCondition, ServiceMode, TaskSpec, UpdateConfig, UpdateOrder,
    },
};
use serde_json::{Map, Value, json};

use super::{Content, IMAGE_LABEL, NAMESPACE_LABEL, Stack, StackData, StackService};
use crate::{
    flags::{duration, file_ref::NamedFile, mount},
    inspect,
};

/// What the Compose specification has no key for.
pub(super) const OWN_KEY: &str = "x-orch";

/// The stack as a file without `version:`. Secrets and configs are named, not contained.
pub(crate) fn document(stack: &str, objects: &Stack) -> Value {
    let exporter = Exporter::new(stack, &objects.services, objects);
    let mut root = Map::new();
    root.insert("name".into(), stack.into());
    let mut volumes = Map::new();
    let mut services = Map::new();
    for service in &objects.services {
        services.insert(exporter.short(&service.spec.annotations.name), exporter.service(service));
        for mount in &service.spec.task.container.mounts {
            exporter.volume(mount, &mut volumes);
        }
    }
    root.insert("services".into(), Value::Object(services));
    let networks = objects.networks.iter().map(|network| {
        let spec = &network.spec;
        (exporter.key(Section::Networks, &spec.annotations.name), exporter.network(spec, network.external))
    });
    put(&mut root, "networks", Value::Object(networks.collect()));
    put(&mut root, "volumes", Value::Object(volumes));
    for (name, section, kind) in
        [("secrets", Section::Secrets, Kind::Secret), ("configs", Section::Configs, Kind::Config)]
    {
        let data = objects.data.iter().filter(|data| data.kind == kind);
        let entries = data.map(|data| (exporter.key(section, &data.annotations.name), exporter.data(section, data)));
        put(&mut root, name, Value::Object(entries.collect()));
    }
    Value::Object(root)
}

/// One service as a file would describe it.
pub(crate) fn service(stack: &str, service: &StackService) -> Value {
    Exporter::new(stack, std::slice::from_ref(service), &Stack::default()).service(service)
}

/// The same with every `$` doubled, so that nothing of it is taken for a variable.
pub(crate) fn escaped(value: &Value) -> Value {
    match value {
        Value::String(text) => text.replace('$', "$$").into(),
        Value::Array(items) => items.iter().map(escaped).collect(),
        Value::Object(entries) => {
            Value::Object(entries.iter().map(|(key, inner)| (key.clone(), escaped(inner))).collect())
        }
        other => other.clone(),
    }
}

/// What has names of its own in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Networks,
    Volumes,
    Secrets,
    Configs,
}

struct Exporter<'a> {
    stack: &'a str,
    /// What the file speaks of, by its names in the cluster.
    names: BTreeSet<(Section, &'a str)>,
}

impl<'a> Exporter<'a> {
    fn new(stack: &'a str, services: &'a [StackService], objects: &'a Stack) -> Self {
        let mut names = BTreeSet::new();
        for service in services {
            let mounts = service.spec.task.container.mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
            names.extend(mounts.map(|mount| (Section::Volumes, mount.source.as_str())));
            names.extend(service.networks.iter().map(|attachment| (Section::Networks, attachment.network.as_str())));
            names.extend(service.secrets.iter().map(|file| (Section::Secrets, file.source.as_str())));
            names.extend(service.configs.iter().map(|file| (Section::Configs, file.source.as_str())));
        }
        names.extend(objects.networks.iter().map(|n| (Section::Networks, n.spec.annotations.name.as_str())));
        names.extend(objects.data.iter().map(|data| {
            let section = if data.kind == Kind::Secret { Section::Secrets } else { Section::Configs };
            (section, data.annotations.name.as_str())
        }));
        Self { stack, names }
    }
}

impl Exporter<'_> {
    /// A name as the file uses it.
    fn short(&self, name: &str) -> String {
        let own = name.strip_prefix(self.stack).and_then(|rest| rest.strip_prefix('_'));
        own.filter(|own| !own.is_empty()).unwrap_or(name).to_owned()
    }

    /// The key of what has a section: its short name, unless something else there has that as its whole name.
    fn key(&self, section: Section, name: &str) -> String {
        let short = self.short(name);
        let is_anothers = short != name && self.names.contains(&(section, short.as_str()));
        if is_anothers { name.to_owned() } else { short }
    }

    /// `name:`, where it does not follow from the key.
    fn named(&self, entry: &mut Map<String, Value>, section: Section, name: &str) {
        if format!("{}_{}", self.stack, self.key(section, name)) != name {
            entry.insert("name".into(), name.into());
        }
    }

    fn labels(&self, labels: &std::collections::BTreeMap<String, String>) -> Value {
        let own = labels.iter().filter(|(key, _)| ![NAMESPACE_LABEL, IMAGE_LABEL].contains(&key.as_str()));
        Value::Object(own.map(|(key, value)| (key.clone(), value.clone().into())).collect())
    }

    fn service(&self, service: &StackService) -> Value {
        let spec = &service.spec;
        let mut entry = self.container(&spec.task.container);
        put(&mut entry, "ports", spec.endpoint.ports.iter().map(port).collect());
        put(&mut entry, "networks", self.attachments(service));
        put(&mut entry, "secrets", service.secrets.iter().map(|f| self.file(Section::Secrets, f)).collect());
        put(&mut entry, "configs", service.configs.iter().map(|f| self.file(Section::Configs, f)).collect());
        let depends = spec.depends_on.iter().map(|dependency| {
            let condition = match dependency.condition {
                DependencyCondition::Started => "service_started",
                DependencyCondition::Healthy => "service_healthy",
                DependencyCondition::Completed => "service_completed_successfully",
            };
            let detail = json!({"condition": condition, "required": dependency.required});
            (self.short(&dependency.service), detail)
        });
        put(&mut entry, "depends_on", Value::Object(depends.collect()));
        put(&mut entry, "logging", spec.task.log_driver.as_ref().map_or(Value::Null, logging));
        put(&mut entry, "deploy", self.deploy(service));
        let mut own = Map::new();
        if let Some(digest) = &spec.task.container.image_digest {
            own.insert("image-digest".into(), digest.clone().into());
        }
        if let ServiceMode::ReplicatedJob { max_concurrent, .. } = spec.mode {
            own.insert("max-concurrent".into(), max_concurrent.into());
        }
        if spec.task.placement.strategy == PlacementStrategy::Pack {
            own.insert("placement-strategy".into(), "pack".into());
        }
        put(&mut own, "endpoint-balance", spec.endpoint.balance.map_or(Value::Null, |b| inspect::balance(b).into()));
        if spec.endpoint.prefer_local {
            own.insert("endpoint-prefer-local".into(), true.into());
        }
        put(&mut entry, OWN_KEY, Value::Object(own));
        Value::Object(entry)
    }

    fn attachments(&self, service: &StackService) -> Value {
        let short = self.short(&service.spec.annotations.name);
        let mut networks = Map::new();
        for attachment in &service.networks {
            let mut detail = Map::new();
            let aliases = attachment.aliases.iter().filter(|alias| **alias != short);
            put(&mut detail, "aliases", aliases.cloned().map(Value::String).collect());
            put(&mut detail, "driver_opts", json!(attachment.driver_options));
            networks.insert(self.key(Section::Networks, &attachment.network), Value::Object(detail));
        }
        Value::Object(networks)
    }

    fn file(&self, section: Section, file: &NamedFile) -> Value {
        json!({
            "source": self.key(section, &file.source), "target": file.target, "uid": file.uid, "gid": file.gid,
            "mode": file.mode,
        })
    }

    fn container(&self, container: &ContainerSpec) -> Map<String, Value> {
        let mut entry = Map::new();
        entry.insert("image".into(), container.image.clone().into());
        for (key, words) in [
            ("entrypoint", &container.command),
            ("command", &container.args),
            ("environment", &container.env),
            ("group_add", &container.groups),
            ("cap_add", &container.cap_add),
            ("cap_drop", &container.cap_drop),
            ("devices", &container.devices),
            ("dns_search", &container.dns.search),
            ("dns_opt", &container.dns.options),
        ] {
            put(&mut entry, key, json!(words));
        }
        for (key, text) in [
            ("hostname", &container.hostname),
            ("working_dir", &container.dir),
            ("user", &container.user),
            ("stop_signal", &container.stop_signal),
        ] {
            put(&mut entry, key, text.clone().into());
        }
        for (key, flag) in [
            ("tty", container.tty),
            ("stdin_open", container.open_stdin),
            ("read_only", container.read_only),
            ("privileged", container.privileged),
        ] {
            if flag {
                entry.insert(key.into(), true.into());
            }
        }
        if let Some(init) = container.init {
            entry.insert("init".into(), init.into());
        }
        if let Some(grace) = container.stop_grace_period {
            entry.insert("stop_grace_period".into(), duration::show(grace).into());
        }
        put(&mut entry, "labels", self.labels(&container.labels));
        put(&mut entry, "volumes", container.mounts.iter().map(|mount| self.mount(mount)).collect());
        put(&mut entry, "dns", container.dns.nameservers.iter().map(|server| json!(server.to_string())).collect());
        put(&mut entry, "extra_hosts", container.hosts.iter().flat_map(|line| host(line)).map(Value::String).collect());
        put(&mut entry, "sysctls", json!(container.sysctls));
        if container.oom_score_adj != 0 {
            entry.insert("oom_score_adj".into(), container.oom_score_adj.into());
        }
        let ulimits = container.ulimits.iter().map(|l| (l.name.clone(), json!({"soft": l.soft, "hard": l.hard})));
        put(&mut entry, "ulimits", Value::Object(ulimits.collect()));
        put(&mut entry, "healthcheck", container.health.as_ref().map_or(Value::Null, health));
        entry
    }

    fn mount(&self, mount: &Mount) -> Value {
        let mut entry = Map::new();
        let source = match mount.kind {
            MountKind::Volume => self.key(Section::Volumes, &mount.source),
            MountKind::Bind | MountKind::Tmpfs => mount.source.clone(),
        };
        entry.insert("type".into(), format!("{:?}", mount.kind).to_lowercase().into());
        put(&mut entry, "source", source.into());
        put(&mut entry, "target", mount.target.clone().into());
        if mount.read_only {
            entry.insert("read_only".into(), true.into());
        }
        let mut volume = Map::new();
        if mount.no_copy {
            volume.insert("nocopy".into(), true.into());
        }
        put(&mut volume, "subpath", mount.volume_subpath.clone().into());
        put(&mut entry, "volume", Value::Object(volume));
        let mut bind = Map::new();
        put(&mut bind, "propagation", mount.propagation.clone().into());
        put(&mut bind, "recursive", mount.bind_recursive.map_or(Value::Null, |r| mount::recursive_word(r).into()));
        put(&mut entry, "bind", Value::Object(bind));
        let mut tmpfs = Map::new();
        if mount.tmpfs_size_bytes != 0 {
            tmpfs.insert("size".into(), mount.tmpfs_size_bytes.into());
        }
        if mount.tmpfs_mode != 0 {
            tmpfs.insert("mode".into(), mount.tmpfs_mode.into());
        }
        put(&mut entry, "tmpfs", Value::Object(tmpfs));
        Value::Object(entry)
    }

    /// The volume's definition, which a file has in a section of its own.
    fn volume(&self, mount: &Mount, volumes: &mut Map<String, Value>) {
        if mount.kind != MountKind::Volume || mount.source.is_empty() {
            return;
        }
        let mut entry = Map::new();
        self.named(&mut entry, Section::Volumes, &mount.source);
        if mount.volume_labels.contains_key(NAMESPACE_LABEL) {
            put(&mut entry, "labels", self.labels(&mount.volume_labels));
            if let Some(driver) = &mount.volume_driver {
                put(&mut entry, "driver", driver.name.clone().into());
                put(&mut entry, "driver_opts", json!(driver.options));
            }
        } else {
            entry.insert("external".into(), true.into());
            entry.insert("name".into(), mount.source.clone().into());
        }
        volumes.insert(self.key(Section::Volumes, &mount.source), Value::Object(entry));
    }

    fn network(&self, spec: &NetworkSpec, external: bool) -> Value {
        let mut entry = Map::new();
        if external {
            return json!({"external": true, "name": spec.annotations.name});
        }
        self.named(&mut entry, Section::Networks, &spec.annotations.name);
        if spec.driver != DRIVER_OVERLAY {
            entry.insert("driver".into(), spec.driver.clone().into());
        }
        put(&mut entry, "driver_opts", json!(spec.driver_options));
        for (key, flag) in [("internal", spec.internal), ("attachable", spec.attachable), ("enable_ipv6", spec.ipv6)] {
            if flag {
                entry.insert(key.into(), true.into());
            }
        }
        put(&mut entry, "labels", self.labels(&spec.annotations.labels));
        let pools = spec.ipam.iter().map(|pool| {
            let mut item = Map::new();
            item.insert("subnet".into(), pool.subnet.to_string().into());
            put(&mut item, "ip_range", pool.range.map_or(Value::Null, |range| range.to_string().into()));
            put(&mut item, "aux_addresses", json!(pool.aux));
            put(&mut item, "gateway", pool.gateway.map_or(Value::Null, |gateway| gateway.to_string().into()));
            Value::Object(item)
        });
        let pools: Vec<Value> = pools.collect();
        if !pools.is_empty() {
            entry.insert("ipam".into(), json!({"config": pools}));
        }
        Value::Object(entry)
    }

    fn data(&self, section: Section, data: &StackData) -> Value {
        let mut entry = Map::new();
        match &data.content {
            Content::External => return json!({"external": true, "name": data.annotations.name}),
            Content::File(file) => put(&mut entry, "file", file.clone().into()),
            Content::Text(text) => put(&mut entry, "content", text.clone().into()),
        }
        if let Some(TemplateDriver::Golang) = data.template {
            entry.insert("template_driver".into(), "golang".into());
        }
        self.named(&mut entry, section, &data.annotations.name);
        put(&mut entry, "labels", self.labels(&data.annotations.labels));
        Value::Object(entry)
    }

    fn deploy(&self, service: &StackService) -> Value {
        let spec = &service.spec;
        let mut entry = Map::new();
        let (mode, replicas) = match spec.mode {
            ServiceMode::Replicated { replicas } => ("replicated", Some(replicas)),
            ServiceMode::Global => ("global", None),
            ServiceMode::ReplicatedJob { total_completions, .. } => ("replicated-job", Some(total_completions)),
            ServiceMode::GlobalJob => ("global-job", None),
        };
        if mode != "replicated" {
            entry.insert("mode".into(), mode.into());
        }
        if let Some(replicas) = replicas {
            entry.insert("replicas".into(), replicas.into());
        }
        put(&mut entry, "labels", self.labels(&spec.annotations.labels));
        put(&mut entry, "update_config", spec.update.as_ref().map_or(Value::Null, pace));
        put(&mut entry, "rollback_config", spec.rollback.as_ref().map_or(Value::Null, pace));
        if spec.endpoint.mode == EndpointMode::DnsRoundRobin {
            entry.insert("endpoint_mode".into(), "dnsrr".into());
        }
        task(&mut entry, &spec.task);
        Value::Object(entry)
    }
}

fn task(entry: &mut Map<String, Value>, spec: &TaskSpec) {
    let mut resources = Map::new();
    let mut limits = amounts(spec.limits.nano_cpus, spec.limits.memory_bytes);
    if spec.limits.pids != 0 {
        limits.insert("pids".into(), spec.limits.pids.into());
    }
    put(&mut resources, "limits", Value::Object(limits));
    let mut reservations = amounts(spec.reservations.nano_cpus, spec.reservations.memory_bytes);
    let generic =
        spec.generic.iter().map(|(kind, value)| json!({"discrete_resource_spec": {"kind": kind, "value": value}}));
    put(&mut reservations, "generic_resources", generic.collect());
    put(&mut resources, "reservations", Value::Object(reservations));
    put(entry, "resources", Value::Object(resources));
    let policy = &spec.restart;
    let condition = match policy.condition {
        RestartCondition::None => "none",
        RestartCondition::OnFailure => "on-failure",
        RestartCondition::Any => "any",
    };
    let mut restart = Map::new();
    restart.insert("condition".into(), condition.into());
    restart.insert("delay".into(), duration::show(policy.delay).into());
    if policy.max_attempts != 0 {
        restart.insert("max_attempts".into(), policy.max_attempts.into());
    }
    if !policy.window.is_zero() {
        restart.insert("window".into(), duration::show(policy.window).into());
    }
    entry.insert("restart_policy".into(), Value::Object(restart));
    let mut placement = Map::new();
    put(&mut placement, "constraints", json!(spec.placement.constraints));
    put(&mut placement, "preferences", spec.placement.spread.iter().map(|over| json!({"spread": over})).collect());
    if spec.placement.max_replicas_per_node != 0 {
        placement.insert("max_replicas_per_node".into(), spec.placement.max_replicas_per_node.into());
    }
    put(entry, "placement", Value::Object(placement));
}

fn amounts(nano_cpus: u64, memory_bytes: u64) -> Map<String, Value> {
    let mut entry = Map::new();
    if nano_cpus != 0 {
        let text = format!("{}.{:09}", nano_cpus / 1_000_000_000, nano_cpus % 1_000_000_000);
        entry.insert("cpus".into(), text.trim_end_matches('0').trim_end_matches('.').into());
    }
    if memory_bytes != 0 {
        entry.insert("memory".into(), memory_bytes.to_string().into());
    }
    entry
}

fn pace(config: &UpdateConfig) -> Value {
    let action = match config.failure_action {
        FailureAction::Pause => "pause",
        FailureAction::Continue => "continue",
        FailureAction::Rollback => "rollback",
    };
    let order = match config.order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    };
    // As it is written: 0.1, not what a wider number makes of it.
    let ratio: f64 = config.max_failure_ratio.to_string().parse().unwrap_or(0.0);
    json!({
        "parallelism": config.parallelism, "delay": duration::show(config.delay), "failure_action": action,
        "monitor": duration::show(config.monitor), "max_failure_ratio": ratio, "order": order,
    })
}

fn port(port: &orch_model::service::PortConfig) -> Value {
    let mut entry = Map::new();
    put(&mut entry, "name", port.name.clone().into());
    entry.insert("target".into(), port.target_port.into());
    if port.published_port != 0 {
        entry.insert("published".into(), port.published_port.into());
    }
    entry.insert("protocol".into(), format!("{:?}", port.protocol).to_lowercase().into());
    entry.insert("mode".into(), format!("{:?}", port.publish_mode).to_lowercase().into());
    put(&mut entry, "x-host-ip", port.host_ip.map_or(Value::Null, |addr| addr.to_string().into()));
    put(&mut entry, "x-source", if port.masquerade { "masquerade".into() } else { Value::Null });
    Value::Object(entry)
}

/// `IP host [alias…]` as `host=IP`, one for each name.
fn host(line: &str) -> Vec<String> {
    let mut words = line.split_whitespace();
    let address = words.next().unwrap_or_default();
    words.map(|name| format!("{name}={address}")).collect()
}

fn logging(driver: &LogDriver) -> Value {
    let mut entry = Map::new();
    put(&mut entry, "driver", driver.name.clone().into());
    put(&mut entry, "options", json!(driver.options));
    Value::Object(entry)
}

fn health(config: &HealthConfig) -> Value {
    let mut entry = Map::new();
    put(&mut entry, "test", json!(config.test));
    for (key, length) in [
        ("interval", config.interval),
        ("timeout", config.timeout),
        ("start_period", config.start_period),
        ("start_interval", config.start_interval),
    ] {
        if let Some(length) = length {
            entry.insert(key.into(), duration::show(length).into());
        }
    }
    if config.retries != 0 {
        entry.insert("retries".into(), config.retries.into());
    }
    Value::Object(entry)
}

/// Leaves out what says nothing.
fn put(entry: &mut Map<String, Value>, key: &str, value: Value) {
    let is_empty = match &value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    if !is_empty {
        entry.insert(key.into(), value);
    }
}
