//! What a stack file may contain: one table for checking, merging and printing.

use super::keys::{MODERN, Version};

/// What a value looks like.
pub(super) enum Shape {
    Text,
    /// A text in version 3; the Compose specification has numbers, too.
    TextOrNumber,
    TextOrNull,
    Whole,
    /// From 0 up.
    Natural,
    /// The same, of which Docker's client drops what is after the point.
    Count,
    Real,
    Flag,
    Duration,
    /// The same, where none is as good as no time.
    Pause,
    /// A text such as `50M`.
    Size,
    /// The same, or a number of bytes.
    Bytes,
    /// One of these texts, from the version on.
    Word(Version, &'static [&'static str]),
    /// A text, or a list of different texts.
    Texts,
    List(&'static Shape),
    /// A list in which nothing may stand twice.
    Set(&'static Shape),
    /// A text that is cut into words, or a list.
    Words,
    /// `KEY: value`, or a list of `KEY=value`.
    Pairs,
    /// The same, where no value is an empty one.
    Labels,
    /// `HOST: IP`, or a list of `HOST:IP`.
    Hosts,
    /// Options of the user's to texts or numbers, or (when true) nothing.
    Options(bool),
    /// Names of the user's, of letters, digits, `.`, `_` and `-`.
    Section(&'static Shape),
    /// The same with any names.
    Map(&'static Shape),
    Object(&'static [Field]),
    /// An object, or nothing; the user's own `x-` keys may stand in it from this version on.
    Maybe(Version, &'static [Field]),
    /// An object in which version 3 overlooks what it does not know.
    Open(&'static [Field]),
    /// An object in which the user's own `x-` keys may stand, from this version on.
    Owned(Version, &'static [Field]),
    /// `build`: a folder, or an object that is open from the version on.
    Build(Version, &'static [Field]),
    /// A text, or a mapping with more detail; the text is the field that is named.
    Detailed(&'static str, &'static [Field]),
    /// A list of names.
    Names(&'static [Field]),
    /// A list of names, or a mapping of names to detail.
    Named(&'static [Field]),
    /// A whole number, or a mapping.
    Ulimit,
    /// A text; the Compose specification has mappings, too.
    Device,
    Expose,
    /// A whole number or a text.
    WholeOrText,
    Ports,
    Volumes,
    /// A text that is given to the shell, or a list.
    HealthTest,
    EnvFile,
    /// Secrets and configs of a service.
    Files,
    /// true, or (once) a mapping with the name.
    External(bool),
    Anything,
}

impl Shape {
    /// The keys, of shapes that are objects.
    pub(super) fn fields(&self) -> Option<&'static [Field]> {
        match self {
            Self::Object(fields)
            | Self::Open(fields)
            | Self::Maybe(_, fields)
            | Self::Owned(_, fields)
            | Self::Build(_, fields)
            | Self::Detailed(_, fields) => Some(fields),
            _ => None,
        }
    }
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

use Shape::{
    Bytes, Count, Duration, EnvFile, Expose, Files, Flag, Hosts, Labels, List, Maybe, Natural, Object, Open, Options,
    Owned, Pairs, Real, Set, Size, Text, TextOrNumber, Texts, Whole, Word, Words,
};

pub(super) const ROOT: &[Field] = &[
    // Read before anything else.
    field("version", 0, Shape::Anything),
    field("name", MODERN, Text),
    field("services", 0, Shape::Section(&Owned(7, SERVICE))),
    field("networks", 0, Shape::Map(&Maybe(7, NETWORK))),
    field("volumes", 0, Shape::Section(&Maybe(7, VOLUME))),
    field("secrets", 1, Shape::Section(&Owned(7, SECRET))),
    field("configs", 3, Shape::Section(&Owned(7, CONFIG))),
    field("include", MODERN, List(&Shape::Anything)),
    field("models", MODERN, Shape::Anything),
];

pub(super) const SERVICE: &[Field] = &[
    field("annotations", MODERN, Labels),
    field("attach", MODERN, Flag),
    field("blkio_config", MODERN, Shape::Anything),
    field("build", 0, Shape::Build(11, BUILD)),
    field("cap_add", 0, Set(&Text)),
    field("cap_drop", 0, Set(&Text)),
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
    field("cpus", MODERN, TextOrNumber),
    field("cpuset", MODERN, Text),
    field("credential_spec", 3, Object(CREDENTIAL_SPEC)),
    field("depends_on", 0, Shape::Names(DEPENDENCY)),
    field("deploy", 0, Maybe(MODERN, DEPLOY)),
    field("develop", MODERN, Shape::Anything),
    field("device_cgroup_rules", MODERN, List(&Text)),
    field("devices", 0, Set(&Shape::Device)),
    field("dns", 0, Texts),
    field("dns_opt", MODERN, List(&Text)),
    field("dns_search", 0, Texts),
    field("domainname", 0, Text),
    field("entrypoint", 0, Words),
    field("env_file", 0, EnvFile),
    field("environment", 0, Pairs),
    field("expose", 0, Set(&Expose)),
    field("extends", MODERN, Shape::Detailed("service", EXTENDS)),
    field("external_links", 0, Set(&Text)),
    field("extra_hosts", 0, Hosts),
    field("gpus", MODERN, Shape::Anything),
    field("group_add", MODERN, List(&Text)),
    field("healthcheck", 0, Object(HEALTHCHECK)),
    field("hostname", 0, Text),
    field("image", 0, Text),
    field("init", 7, Flag),
    field("ipc", 0, Text),
    field("isolation", 5, Text),
    field("label_file", MODERN, Texts),
    field("labels", 0, Labels),
    field("links", 0, Set(&Text)),
    field("logging", 0, Object(LOGGING)),
    field("mac_address", 0, Text),
    field("mem_limit", MODERN, Bytes),
    field("mem_reservation", MODERN, Bytes),
    field("mem_swappiness", MODERN, Whole),
    field("memswap_limit", MODERN, Shape::Anything),
    field("models", MODERN, Shape::Anything),
    field("network_mode", 0, Text),
    field("networks", 0, Shape::Named(ATTACHMENT)),
    field("oom_kill_disable", MODERN, Flag),
    field("oom_score_adj", 13, Whole),
    field("pid", 0, Shape::TextOrNull),
    field("pids_limit", MODERN, Whole),
    field("platform", MODERN, Text),
    field("ports", 0, Shape::Ports),
    field("post_start", MODERN, Shape::Anything),
    field("pre_stop", MODERN, Shape::Anything),
    field("privileged", 0, Flag),
    field("profiles", MODERN, List(&Text)),
    field("provider", MODERN, Shape::Anything),
    field("pull_policy", MODERN, Text),
    field("pull_refresh_after", MODERN, Text),
    field("read_only", 0, Flag),
    field("restart", 0, Text),
    field("runtime", MODERN, Text),
    field("scale", MODERN, Whole),
    field("secrets", 1, Files),
    field("security_opt", 0, Set(&Text)),
    field("shm_size", 0, Bytes),
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
    field("volumes_from", MODERN, List(&Text)),
    field("working_dir", 0, Text),
];

const EXTENDS: &[Field] = &[field("service", MODERN, Text), field("file", MODERN, Text)];
const CREDENTIAL_SPEC: &[Field] = &[field("config", 8, Text), field("file", 3, Text), field("registry", 3, Text)];
const LOGGING: &[Field] = &[field("driver", 0, Text), field("options", 0, Options(true))];
pub(super) const ULIMIT: &[Field] = &[field("soft", 0, Whole), field("hard", 0, Whole)];
pub(super) const EXTERNAL: &[Field] = &[field("name", 0, Text)];
const DEPENDENCY: &[Field] =
    &[field("condition", MODERN, Text), field("required", MODERN, Flag), field("restart", MODERN, Flag)];
pub(super) const FILE: &[Field] = &[
    field("source", 1, Text),
    field("target", 1, Text),
    field("uid", 1, Text),
    field("gid", 1, Text),
    field("mode", 1, Count),
];

const BUILD: &[Field] = &[
    field("context", 0, Text),
    field("dockerfile", 0, Text),
    field("args", 0, Pairs),
    field("cache_from", 2, Set(&Text)),
    field("labels", 3, Labels),
    field("network", 4, Text),
    field("target", 4, Text),
    field("shm_size", 5, Shape::WholeOrText),
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
    field("aliases", 0, Set(&Text)),
    field("ipv4_address", 0, Text),
    field("ipv6_address", 0, Text),
    field("driver_opts", 13, Options(false)),
    field("gw_priority", MODERN, Real),
    field("interface_name", MODERN, Text),
    field("link_local_ips", MODERN, List(&Text)),
    field("mac_address", MODERN, Text),
    field("priority", MODERN, Real),
];

const HEALTHCHECK: &[Field] = &[
    field("disable", 0, Flag),
    field("interval", 0, Duration),
    field("retries", 0, Count),
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
    field("replicas", 0, Natural),
    field("resources", 0, Object(RESOURCES)),
    field("restart_policy", 0, Object(RESTART_POLICY)),
    field("rollback_config", 7, Object(PACE)),
    field("update_config", 0, Object(PACE)),
];
const PACE: &[Field] = &[
    field("delay", 0, Shape::Pause),
    field("failure_action", 0, Text),
    field("max_failure_ratio", 0, Real),
    field("monitor", 0, Shape::Pause),
    field("order", 4, Word(4, ORDERS)),
    field("parallelism", 0, Natural),
];
const ORDERS: &[&str] = &["start-first", "stop-first"];
const RESTART_POLICY: &[Field] = &[
    field("condition", 0, Text),
    field("delay", 0, Duration),
    field("max_attempts", 0, Natural),
    field("window", 0, Duration),
];
const PLACEMENT: &[Field] = &[
    field("constraints", 0, List(&Text)),
    field("max_replicas_per_node", 8, Natural),
    field("preferences", 3, List(&Object(PREFERENCE))),
];
const PREFERENCE: &[Field] = &[field("spread", 3, Text)];
const RESOURCES: &[Field] = &[field("limits", 0, Object(LIMITS)), field("reservations", 0, Object(RESERVATIONS))];
const LIMITS: &[Field] = &[field("cpus", 0, TextOrNumber), field("memory", 0, Size), field("pids", 9, Whole)];
const RESERVATIONS: &[Field] = &[
    field("cpus", 0, TextOrNumber),
    field("devices", MODERN, Shape::Anything),
    field("generic_resources", 5, List(&Object(GENERIC))),
    field("memory", 0, Size),
];
const GENERIC: &[Field] = &[field("discrete_resource_spec", 5, Object(DISCRETE))];
const DISCRETE: &[Field] = &[field("kind", 5, Text), field("value", 5, Count)];

pub(super) const PORT: &[Field] = &[
    field("mode", 2, Text),
    field("protocol", 2, Text),
    field("published", 2, Natural),
    field("target", 2, Natural),
    field("app_protocol", MODERN, Text),
    field("host_ip", MODERN, Text),
    field("name", MODERN, Text),
];

pub(super) const MOUNT: &[Field] = &[
    field("bind", 2, Open(BIND)),
    field("cluster", MODERN, Shape::Anything),
    field("consistency", 2, Text),
    field("image", MODERN, Shape::Anything),
    field("read_only", 2, Flag),
    field("source", 2, Text),
    field("target", 2, Text),
    field("tmpfs", 6, Open(TMPFS)),
    field("type", 2, Text),
    field("volume", 2, Open(VOLUME_OPTIONS)),
];
const BIND: &[Field] = &[
    field("propagation", 2, Text),
    field("create_host_path", MODERN, Flag),
    field("recursive", MODERN, Text),
    field("selinux", MODERN, Text),
];
const TMPFS: &[Field] = &[field("size", 6, Natural), field("mode", MODERN, Count)];
const VOLUME_OPTIONS: &[Field] =
    &[field("nocopy", 2, Flag), field("labels", MODERN, Labels), field("subpath", 2, Text)];

const NETWORK: &[Field] = &[
    field("attachable", 2, Flag),
    field("driver", 0, Text),
    field("driver_opts", 0, Options(false)),
    field("enable_ipv4", MODERN, Flag),
    field("enable_ipv6", MODERN, Flag),
    field("external", 0, Shape::External(false)),
    field("internal", 0, Flag),
    field("ipam", 0, Object(IPAM)),
    field("labels", 0, Labels),
    field("name", 5, Text),
];
const IPAM: &[Field] = &[
    field("config", 0, List(&Object(IPAM_CONFIG))),
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
    field("driver_opts", 0, Options(false)),
    field("external", 0, Shape::External(false)),
    field("labels", 0, Labels),
    field("name", 4, Text),
    field("x-cluster-spec", 7, Open(CLUSTER_VOLUME)),
];
const CLUSTER_VOLUME: &[Field] = &[
    field("access_mode", 7, Open(ACCESS_MODE)),
    field("accessibility_requirements", 7, Open(ACCESSIBILITY)),
    field("availability", 7, Text),
    field("capacity_range", 7, Open(CAPACITY)),
    field("group", 7, Text),
    field("secrets", 7, Shape::Anything),
];
const ACCESS_MODE: &[Field] = &[
    field("block_volume", 7, Open(&[])),
    field("mount_volume", 7, Open(MOUNT_VOLUME)),
    field("scope", 7, Text),
    field("sharing", 7, Text),
];
const MOUNT_VOLUME: &[Field] = &[field("fs_type", 7, Text), field("mount_flags", 7, List(&Text))];
const ACCESSIBILITY: &[Field] =
    &[field("preferred", 7, List(&Open(TOPOLOGY))), field("requisite", 7, List(&Open(TOPOLOGY)))];
const TOPOLOGY: &[Field] = &[field("segments", 7, Labels)];
const CAPACITY: &[Field] = &[field("limit_bytes", 7, Text), field("required_bytes", 7, Text)];
const SECRET: &[Field] = &[
    field("driver", 8, Text),
    field("driver_opts", 8, Options(false)),
    field("environment", MODERN, Text),
    field("external", 1, Shape::External(true)),
    field("file", 1, Text),
    field("labels", 1, Labels),
    field("name", 5, Text),
    field("template_driver", 8, Text),
];
const CONFIG: &[Field] = &[
    field("content", MODERN, Text),
    field("environment", MODERN, Text),
    field("external", 3, Shape::External(true)),
    field("file", 3, Text),
    field("labels", 3, Labels),
    field("name", 5, Text),
    field("template_driver", 8, Text),
];
