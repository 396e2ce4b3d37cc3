//! What a stack file may contain: one table for checking, merging and printing.
//!
//! Every mistake is collected, so that one attempt shows them all.

use super::{
    error::{Finding, Source},
    keys::{MODERN, Version},
    yaml::{Node, Yaml},
};

/// What a value looks like.
pub(super) enum Shape {
    Text,
    Whole,
    Real,
    Flag,
    Duration,
    Size,
    /// A text, or a list of texts.
    Texts,
    List(&'static Shape),
    /// A text that is cut into words, or a list.
    Words,
    /// `KEY: value`, or a list of `KEY=value`.
    Pairs,
    /// The same, where no value is an empty one.
    Labels,
    /// `HOST: IP`, or a list of `HOST:IP`.
    Hosts,
    /// Names of the user's to values.
    Map(&'static Shape),
    Object(&'static [Field]),
    /// A text, or a mapping with more detail; the text is the field that is named.
    Detailed(&'static str, &'static [Field]),
    /// A list of names, or a mapping of names to detail.
    Named(&'static [Field]),
    /// A whole number, or a mapping.
    Ulimit,
    /// A text that is given to the shell, or a list.
    HealthTest,
    Ports,
    Volumes,
    /// Secrets and configs of a service.
    Files,
    /// true, or (once) a mapping with the name.
    External,
    Anything,
}

/// A key and the version that brought it.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) since: Version,
    pub(super) shape: Shape,
}

const fn field(name: &'static str, since: Version, shape: Shape) -> Field {
    Field { name, since, shape }
}

use Shape::{Duration, Files, Flag, Hosts, Labels, Object, Pairs, Real, Size, Text, Texts, Whole, Words};

pub(super) const ROOT: &[Field] = &[
    field("version", 0, Text),
    field("name", 0, Text),
    field("services", 0, Shape::Map(&Object(SERVICE))),
    field("networks", 0, Shape::Map(&Object(NETWORK))),
    field("volumes", 0, Shape::Map(&Object(VOLUME))),
    field("secrets", 1, Shape::Map(&Object(SECRET))),
    field("configs", 3, Shape::Map(&Object(CONFIG))),
    field("include", MODERN, Shape::Anything),
    field("models", MODERN, Shape::Anything),
];

pub(super) const SERVICE: &[Field] = &[
    field("annotations", MODERN, Labels),
    field("attach", MODERN, Flag),
    field("blkio_config", MODERN, Shape::Anything),
    field("build", 0, Shape::Detailed("context", BUILD)),
    field("cap_add", 0, Shape::List(&Text)),
    field("cap_drop", 0, Shape::List(&Text)),
    field("cgroup", MODERN, Text),
    field("cgroup_parent", 0, Text),
    field("cgroupns_mode", 9, Text),
    field("command", 0, Words),
    field("configs", 3, Files),
    field("container_name", 0, Text),
    field("cpu_count", MODERN, Shape::Anything),
    field("cpu_percent", MODERN, Shape::Anything),
    field("cpu_period", MODERN, Shape::Anything),
    field("cpu_quota", MODERN, Shape::Anything),
    field("cpu_rt_period", MODERN, Shape::Anything),
    field("cpu_rt_runtime", MODERN, Shape::Anything),
    field("cpu_shares", MODERN, Shape::Anything),
    field("cpus", MODERN, Text),
    field("cpuset", MODERN, Text),
    field("credential_spec", 3, Object(CREDENTIAL_SPEC)),
    field("depends_on", 0, Shape::Named(DEPENDENCY)),
    field("deploy", 0, Object(DEPLOY)),
    field("develop", MODERN, Shape::Anything),
    field("device_cgroup_rules", MODERN, Shape::List(&Text)),
    field("devices", 0, Shape::List(&Shape::Anything)),
    field("dns", 0, Texts),
    field("dns_opt", MODERN, Shape::List(&Text)),
    field("dns_search", 0, Texts),
    field("domainname", 0, Text),
    field("entrypoint", 0, Words),
    field("env_file", 0, Shape::Anything),
    field("environment", 0, Pairs),
    field("expose", 0, Shape::List(&Text)),
    field("extends", MODERN, Shape::Detailed("service", EXTENDS)),
    field("external_links", 0, Shape::List(&Text)),
    field("extra_hosts", 0, Hosts),
    field("gpus", MODERN, Shape::Anything),
    field("group_add", MODERN, Shape::List(&Text)),
    field("healthcheck", 0, Object(HEALTHCHECK)),
    field("hostname", 0, Text),
    field("image", 0, Text),
    field("init", 7, Flag),
    field("ipc", 0, Text),
    field("isolation", 5, Text),
    field("label_file", MODERN, Texts),
    field("labels", 0, Labels),
    field("links", 0, Shape::List(&Text)),
    field("logging", 0, Object(LOGGING)),
    field("mac_address", 0, Text),
    field("mem_limit", MODERN, Size),
    field("mem_reservation", MODERN, Size),
    field("mem_swappiness", MODERN, Whole),
    field("memswap_limit", MODERN, Shape::Anything),
    field("models", MODERN, Shape::Anything),
    field("network_mode", 0, Text),
    field("networks", 0, Shape::Named(ATTACHMENT)),
    field("oom_kill_disable", MODERN, Flag),
    field("oom_score_adj", 13, Whole),
    field("pid", 0, Text),
    field("pids_limit", MODERN, Whole),
    field("platform", MODERN, Text),
    field("ports", 0, Shape::Ports),
    field("post_start", MODERN, Shape::Anything),
    field("pre_stop", MODERN, Shape::Anything),
    field("privileged", 0, Flag),
    field("profiles", MODERN, Shape::List(&Text)),
    field("provider", MODERN, Shape::Anything),
    field("pull_policy", MODERN, Text),
    field("pull_refresh_after", MODERN, Text),
    field("read_only", 0, Flag),
    field("restart", 0, Text),
    field("runtime", MODERN, Text),
    field("scale", MODERN, Whole),
    field("secrets", 1, Files),
    field("security_opt", 0, Shape::List(&Text)),
    field("shm_size", 0, Size),
    field("stdin_open", 0, Flag),
    field("stop_grace_period", 0, Duration),
    field("stop_signal", 0, Text),
    field("storage_opt", MODERN, Shape::Anything),
    field("sysctls", 0, Labels),
    field("tmpfs", 0, Texts),
    field("tty", 0, Flag),
    field("ulimits", 0, Shape::Map(&Shape::Ulimit)),
    field("use_api_socket", MODERN, Flag),
    field("user", 0, Text),
    field("userns_mode", 0, Text),
    field("uts", MODERN, Text),
    field("volumes", 0, Shape::Volumes),
    field("volumes_from", MODERN, Shape::List(&Text)),
    field("working_dir", 0, Text),
];

const EXTENDS: &[Field] = &[field("service", MODERN, Text), field("file", MODERN, Text)];
const CREDENTIAL_SPEC: &[Field] = &[field("config", 8, Text), field("file", 3, Text), field("registry", 3, Text)];
const LOGGING: &[Field] = &[field("driver", 0, Text), field("options", 0, Shape::Map(&Text))];
const ULIMIT: &[Field] = &[field("soft", 0, Whole), field("hard", 0, Whole)];
const EXTERNAL: &[Field] = &[field("name", 0, Text)];
const DEPENDENCY: &[Field] =
    &[field("condition", MODERN, Text), field("required", MODERN, Flag), field("restart", MODERN, Flag)];
const FILE: &[Field] = &[
    field("source", 1, Text),
    field("target", 1, Text),
    field("uid", 1, Text),
    field("gid", 1, Text),
    field("mode", 1, Text),
];

const BUILD: &[Field] = &[
    field("context", 0, Text),
    field("dockerfile", 0, Text),
    field("args", 0, Pairs),
    field("cache_from", 2, Texts),
    field("labels", 3, Labels),
    field("network", 4, Text),
    field("target", 4, Text),
    field("shm_size", 5, Size),
    field("extra_hosts", 9, Hosts),
    field("additional_contexts", MODERN, Shape::Anything),
    field("cache_to", MODERN, Shape::Anything),
    field("dockerfile_inline", MODERN, Text),
    field("entitlements", MODERN, Shape::Anything),
    field("isolation", MODERN, Text),
    field("no_cache", MODERN, Flag),
    field("platforms", MODERN, Shape::Anything),
    field("privileged", MODERN, Flag),
    field("provenance", MODERN, Shape::Anything),
    field("pull", MODERN, Flag),
    field("sbom", MODERN, Shape::Anything),
    field("secrets", MODERN, Shape::Anything),
    field("ssh", MODERN, Shape::Anything),
    field("tags", MODERN, Shape::Anything),
    field("ulimits", MODERN, Shape::Anything),
];

const ATTACHMENT: &[Field] = &[
    field("aliases", 0, Shape::List(&Text)),
    field("ipv4_address", 0, Text),
    field("ipv6_address", 0, Text),
    field("driver_opts", 13, Shape::Map(&Text)),
    field("gw_priority", MODERN, Real),
    field("interface_name", MODERN, Text),
    field("link_local_ips", MODERN, Shape::List(&Text)),
    field("mac_address", MODERN, Text),
    field("priority", MODERN, Real),
];

const HEALTHCHECK: &[Field] = &[
    field("disable", 0, Flag),
    field("interval", 0, Duration),
    field("retries", 0, Whole),
    field("start_interval", 12, Duration),
    field("start_period", 4, Duration),
    field("test", 0, Shape::HealthTest),
    field("timeout", 0, Duration),
];

const DEPLOY: &[Field] = &[
    field("endpoint_mode", 2, Text),
    field("labels", 0, Labels),
    field("mode", 0, Text),
    field("placement", 0, Object(PLACEMENT)),
    field("replicas", 0, Whole),
    field("resources", 0, Object(RESOURCES)),
    field("restart_policy", 0, Object(RESTART_POLICY)),
    field("rollback_config", 7, Object(PACE)),
    field("update_config", 0, Object(PACE)),
];
const PACE: &[Field] = &[
    field("delay", 0, Duration),
    field("failure_action", 0, Text),
    field("max_failure_ratio", 0, Real),
    field("monitor", 0, Duration),
    field("order", 4, Text),
    field("parallelism", 0, Whole),
];
const RESTART_POLICY: &[Field] = &[
    field("condition", 0, Text),
    field("delay", 0, Duration),
    field("max_attempts", 0, Whole),
    field("window", 0, Duration),
];
const PLACEMENT: &[Field] = &[
    field("constraints", 0, Shape::List(&Text)),
    field("max_replicas_per_node", 8, Whole),
    field("preferences", 3, Shape::List(&Object(PREFERENCE))),
];
const PREFERENCE: &[Field] = &[field("spread", 3, Text)];
const RESOURCES: &[Field] = &[field("limits", 0, Object(LIMITS)), field("reservations", 0, Object(RESERVATIONS))];
const LIMITS: &[Field] = &[field("cpus", 0, Text), field("memory", 0, Size), field("pids", 9, Whole)];
const RESERVATIONS: &[Field] = &[
    field("cpus", 0, Text),
    field("devices", MODERN, Shape::Anything),
    field("generic_resources", 5, Shape::List(&Object(GENERIC))),
    field("memory", 0, Size),
];
const GENERIC: &[Field] = &[field("discrete_resource_spec", 5, Object(DISCRETE))];
const DISCRETE: &[Field] = &[field("kind", 5, Text), field("value", 5, Whole)];

const PORT: &[Field] = &[
    field("mode", 2, Text),
    field("protocol", 2, Text),
    field("published", 2, Text),
    field("target", 2, Text),
    field("app_protocol", MODERN, Text),
    field("host_ip", MODERN, Text),
    field("name", MODERN, Text),
];

const MOUNT: &[Field] = &[
    field("bind", 2, Object(BIND)),
    field("cluster", 10, Shape::Anything),
    field("consistency", 2, Text),
    field("image", MODERN, Shape::Anything),
    field("read_only", 2, Flag),
    field("source", 2, Text),
    field("target", 2, Text),
    field("tmpfs", 6, Object(TMPFS)),
    field("type", 2, Text),
    field("volume", 2, Object(VOLUME_OPTIONS)),
];
const BIND: &[Field] = &[
    field("propagation", 2, Text),
    field("create_host_path", MODERN, Flag),
    field("recursive", MODERN, Text),
    field("selinux", MODERN, Text),
];
const TMPFS: &[Field] = &[field("size", 6, Size), field("mode", MODERN, Text)];
const VOLUME_OPTIONS: &[Field] =
    &[field("nocopy", 2, Flag), field("labels", MODERN, Labels), field("subpath", MODERN, Text)];

const NETWORK: &[Field] = &[
    field("attachable", 2, Flag),
    field("driver", 0, Text),
    field("driver_opts", 0, Shape::Map(&Text)),
    field("enable_ipv4", MODERN, Flag),
    field("enable_ipv6", MODERN, Flag),
    field("external", 0, Shape::External),
    field("internal", 0, Flag),
    field("ipam", 0, Object(IPAM)),
    field("labels", 0, Labels),
    field("name", 5, Text),
];
const IPAM: &[Field] = &[
    field("config", 0, Shape::List(&Object(IPAM_CONFIG))),
    field("driver", 0, Text),
    field("options", MODERN, Shape::Map(&Text)),
];
const IPAM_CONFIG: &[Field] = &[
    field("subnet", 0, Text),
    field("aux_addresses", MODERN, Shape::Map(&Text)),
    field("gateway", MODERN, Text),
    field("ip_range", MODERN, Text),
];
const VOLUME: &[Field] = &[
    field("driver", 0, Text),
    field("driver_opts", 0, Shape::Map(&Text)),
    field("external", 0, Shape::External),
    field("labels", 0, Labels),
    field("name", 4, Text),
];
const SECRET: &[Field] = &[
    field("driver", 8, Text),
    field("driver_opts", 8, Shape::Map(&Text)),
    field("environment", MODERN, Text),
    field("external", 1, Shape::External),
    field("file", 1, Text),
    field("labels", 1, Labels),
    field("name", 5, Text),
    field("template_driver", 8, Text),
];
const CONFIG: &[Field] = &[
    field("content", MODERN, Text),
    field("environment", MODERN, Text),
    field("external", 3, Shape::External),
    field("file", 3, Text),
    field("labels", 3, Labels),
    field("name", 5, Text),
    field("template_driver", 8, Text),
];

/// What is wrong with a file, and what is only odd, each in the file's order.
pub(super) struct Checked {
    pub(super) findings: Vec<Finding>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn check(root: &Node, version: Version, source: &Source) -> Checked {
    let mut checker = Checker { version, source, findings: Vec::new(), warnings: Vec::new() };
    checker.object(root, "", ROOT);
    Checked { findings: checker.findings, warnings: checker.warnings }
}

struct Checker<'a> {
    version: Version,
    source: &'a Source,
    findings: Vec<Finding>,
    warnings: Vec<String>,
}

impl Checker<'_> {
    fn value(&mut self, node: &Node, path: &str, shape: &Shape) {
        if matches!(node.value, Yaml::Null) {
            return;
        }
        let scalar = matches!(node.value, Yaml::Scalar(_));
        let list = matches!(node.value, Yaml::List(_));
        let map = matches!(node.value, Yaml::Map(_));
        match shape {
            Shape::Anything => {}
            Text | Duration | Size => self.expect(scalar, node, path, "a string"),
            Whole => self.expect(scalar, node, path, "an integer"),
            Real => self.expect(scalar, node, path, "a number"),
            Flag => self.expect(scalar, node, path, "a boolean"),
            Texts | Words | Shape::HealthTest => {
                self.expect(scalar || list, node, path, "a string or a list");
                self.items(node, path, &Text);
            }
            Shape::List(inner) => {
                self.expect(list, node, path, "a list");
                self.items(node, path, inner);
            }
            Pairs | Labels | Hosts => {
                self.expect(map || list, node, path, "a mapping or a list");
                self.items(node, path, &Text);
                self.members(node, path, &Text);
            }
            Shape::Map(inner) => {
                self.expect(map, node, path, "a mapping");
                self.members(node, path, inner);
            }
            Object(fields) => self.object(node, path, fields),
            Shape::Detailed(_, fields) if !scalar => self.object(node, path, fields),
            Shape::Detailed(..) => {}
            Shape::Named(fields) => {
                self.expect(map || list, node, path, "a list or a mapping");
                self.items(node, path, &Text);
                for (key, inner) in own_entries(node) {
                    self.value(inner, &join(path, &key.text), &Object(fields));
                }
            }
            Shape::Ulimit if scalar => {}
            Shape::Ulimit => self.object(node, path, ULIMIT),
            Shape::Ports => self.details(node, path, PORT),
            Shape::Volumes => self.details(node, path, MOUNT),
            Files => self.details(node, path, FILE),
            Shape::External if scalar => {}
            Shape::External => self.object(node, path, EXTERNAL),
        }
    }

    fn expect(&mut self, right: bool, node: &Node, path: &str, what: &str) {
        if !right {
            let finding = self.source.finding(node.place, format!("{path} must be {what}"), None);
            self.findings.push(finding);
        }
    }

    fn items(&mut self, node: &Node, path: &str, shape: &Shape) {
        for (at, item) in node.items().iter().enumerate() {
            self.value(item, &join(path, &at.to_string()), shape);
        }
    }

    fn members(&mut self, node: &Node, path: &str, shape: &Shape) {
        for (key, inner) in own_entries(node) {
            self.value(inner, &join(path, &key.text), shape);
        }
    }

    /// A list of texts and of mappings.
    fn details(&mut self, node: &Node, path: &str, fields: &[Field]) {
        self.expect(matches!(node.value, Yaml::List(_)), node, path, "a list");
        for (at, item) in node.items().iter().enumerate() {
            if !matches!(item.value, Yaml::Scalar(_)) {
                self.object(item, &join(path, &at.to_string()), fields);
            }
        }
    }

    fn object(&mut self, node: &Node, path: &str, fields: &[Field]) {
        if !matches!(node.value, Yaml::Map(_) | Yaml::Null) {
            self.expect(false, node, if path.is_empty() { "the file" } else { path }, "a mapping");
            return;
        }
        for (key, inner) in own_entries(node) {
            match fields.iter().find(|field| field.name == key.text) {
                Some(field) if field.since <= self.version || field.since == MODERN => {
                    if field.since > self.version {
                        let path = join(path, &key.text);
                        self.warnings.push(format!("{path} is not of version 3 of the format: Docker refuses it"));
                    }
                    self.value(inner, &join(path, &key.text), &field.shape);
                }
                known => {
                    let name = &key.text;
                    let help = match known {
                        Some(Field { since, .. }) => {
                            Some(format!("{name} exists from version 3.{since} on: write version: \"3.{since}\""))
                        }
                        None => nearest(name, fields).map(|near| format!("did you mean {near}?")),
                    };
                    let path = if path.is_empty() { "(root)" } else { path };
                    let message = format!("{path} Additional property {name} is not allowed");
                    let finding = self.source.finding(key.place, message, help);
                    self.findings.push(finding);
                }
            }
        }
    }
}

/// Without `x-…`, which is the user's own, everywhere.
fn own_entries(node: &Node) -> impl Iterator<Item = &(super::yaml::Key, Node)> {
    node.entries().iter().filter(|(key, _)| !key.text.starts_with("x-"))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The known key that a mistyped one is closest to.
fn nearest(name: &str, fields: &[Field]) -> Option<&'static str> {
    let close = fields.iter().map(|field| (distance(name, field.name), field.name)).min()?;
    (close.0 <= name.len().max(3) / 3).then_some(close.1)
}

/// How many letters must be added, removed or replaced.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
