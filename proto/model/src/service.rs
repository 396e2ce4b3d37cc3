//! Services: what should run, how many of it, how to change it, and how to reach it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use crate::{
    Annotations, ConfigId, Duration, Meta, NetworkId, SecretId, ServiceId, Timestamp, Version, network::NodeNetwork,
    node::Resources,
};

/// Automatically published ports.
pub const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: ServiceSpec,
    /// Version of the object at which the part of the spec that makes a task (`spec.task`) last changed.
    pub spec_version: Version,
    pub previous_spec: Option<Box<ServiceSpec>>,
    pub endpoint: Endpoint,
    pub update_status: Option<UpdateStatus>,
    /// Set by removal; the object goes when its last task is gone.
    pub removing: bool,
}

/// What the allocator gave a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// As in the spec, with automatic ports filled in.
    pub ports: Vec<PortConfig>,
    pub vips: Vec<Vip>,
    /// Why something is missing, for the operator.
    pub problem: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    pub network: NetworkId,
    /// Address with the prefix length of its subnet.
    pub addr: ipnetwork::IpNetwork,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ServiceSpec {
    pub annotations: Annotations,
    pub task: TaskSpec,
    pub mode: ServiceMode,
    /// `None`: the defaults.
    pub update: Option<UpdateConfig>,
    pub rollback: Option<UpdateConfig>,
    pub endpoint: EndpointSpec,
    /// What the service's first tasks wait for.
    pub depends_on: Vec<Dependency>,
}

/// Another service that must have come this far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// By name, as it may be created later.
    pub service: String,
    pub condition: DependencyCondition,
    /// Without, a service that does not exist is not waited for.
    pub required: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DependencyCondition {
    Started,
    /// Running, which means healthy where there is a health check.
    Healthy,
    /// All of its tasks have ended with success.
    Completed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceMode {
    Replicated { replicas: u64 },
    Global,
    ReplicatedJob { max_concurrent: u64, total_completions: u64 },
    GlobalJob,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointSpec {
    pub mode: EndpointMode,
    pub ports: Vec<PortConfig>,
    /// `None`: each task in turn.
    pub balance: Option<Balance>,
    /// Tasks on the node where a connection begins or comes in serve before those on others.
    pub prefer_local: bool,
}

/// Which of a service's tasks a new connection goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    Random,
    /// The same for every connection of one client, while the tasks stay the same.
    SourceHash,
    /// In turn, by the weights of the tasks' nodes: [`WEIGHT_LABEL`].
    Weighted,
}

/// The label of a node that says how much of a weighted service's connections its tasks take, against others with 1.
pub const WEIGHT_LABEL: &str = "orch.balance.weight";
/// The greatest weight.
pub const MAX_WEIGHT: u16 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointMode {
    #[default]
    Vip,
    DnsRoundRobin,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortConfig {
    pub name: String,
    pub protocol: Protocol,
    pub target_port: u16,
    /// 0: the allocator picks one of [`DYNAMIC_PORTS`].
    pub published_port: u16,
    pub publish_mode: PublishMode,
    /// Whether tasks see the node's address in place of the client's.
    pub masquerade: bool,
    /// The only address that answers; `None`: all of a node's.
    pub host_ip: Option<IpAddr>,
}

impl PortConfig {
    /// On all addresses, with the client's address kept.
    #[must_use]
    pub fn new(protocol: Protocol, published_port: u16, target_port: u16, publish_mode: PublishMode) -> Self {
        let name = String::new();
        Self { name, protocol, target_port, published_port, publish_mode, masquerade: false, host_ip: None }
    }

    /// Where it is published on a node, as Docker shows it: all addresses of IPv4 are `0.0.0.0`.
    #[must_use]
    pub fn bound_to(&self) -> SocketAddr {
        SocketAddr::new(self.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), self.published_port)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PublishMode {
    /// Every node answers.
    Ingress,
    /// Only the nodes that run a task.
    Host,
}

#[derive(Debug, Clone, PartialEq)]
pub struct UpdateConfig {
    /// 0: all at once.
    pub parallelism: u64,
    pub delay: Duration,
    pub failure_action: FailureAction,
    pub monitor: Duration,
    pub max_failure_ratio: f32,
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: Duration::from_secs(5),
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureAction {
    Pause,
    Continue,
    Rollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateOrder {
    StopFirst,
    StartFirst,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started_at: Timestamp,
    /// When it started first, if it was paused and began anew: what it made since then is still its own.
    pub first_started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

/// What a task of a service runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskSpec {
    pub container: ContainerSpec,
    pub limits: ResourceLimits,
    pub reservations: Resources,
    /// How many of each kind of generic resource.
    pub generic: BTreeMap<String, u64>,
    pub restart: RestartPolicy,
    pub placement: Placement,
    pub networks: Vec<NetworkAttachmentSpec>,
    /// With the node's own network there is no other.
    pub node_network: Option<NodeNetwork>,
    pub log_driver: Option<LogDriver>,
    /// Raised by `update --force`: tasks are replaced although nothing else changed.
    pub force_update: u64,
}

impl TaskSpec {
    /// Whether a task of this specification does what a service asks for by now, so that no update replaces it and whoever
    /// waits for the service counts it. Where it may run is left out: a task that still fits stays.
    #[must_use]
    pub fn does_the_work_of(&self, wanted: &Self) -> bool {
        let Self {
            container,
            limits,
            reservations,
            restart,
            placement: _,
            networks,
            node_network,
            log_driver,
            force_update,
            generic,
        } = self;
        container.is_as_good_as(&wanted.container)
            && *limits == wanted.limits
            && *reservations == wanted.reservations
            && *restart == wanted.restart
            && *networks == wanted.networks
            && *node_network == wanted.node_network
            && *log_driver == wanted.log_driver
            && *force_update == wanted.force_update
            && *generic == wanted.generic
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceLimits {
    /// 0: no limit.
    pub nano_cpus: u64,
    /// 0: no limit.
    pub memory_bytes: u64,
    /// 0: no limit.
    pub pids: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    pub delay: Duration,
    /// 0: unlimited.
    pub max_attempts: u64,
    /// 0: unbounded.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartCondition {
    None,
    OnFailure,
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// As the user wrote them: `node.role == manager`.
    pub constraints: Vec<String>,
    /// `spread` descriptors, outermost first: `node.labels.zone`.
    pub spread: Vec<String>,
    /// 0: unlimited.
    pub max_replicas_per_node: u64,
    pub strategy: PlacementStrategy,
}

/// What the scheduler prefers among the nodes that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlacementStrategy {
    /// The node with the fewest tasks.
    #[default]
    Spread,
    /// The node that is fullest already, so that others stay free.
    Pack,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkAttachmentSpec {
    /// Resolved by the control API when the service is stored.
    pub network: NetworkId,
    /// Names besides the service's own.
    pub aliases: Vec<String>,
    pub driver_options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogDriver {
    pub name: String,
    pub options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerSpec {
    /// As the user wrote it; `image_digest` says which content that was when the service was stored.
    pub image: String,
    /// Manifest digest, when the cluster knows one.
    pub image_digest: Option<String>,
    /// Replaces the image's entrypoint when not empty; `[""]` replaces it by none.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    pub hostname: String,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Working directory.
    pub dir: String,
    pub user: String,
    pub groups: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub tty: bool,
    pub open_stdin: bool,
    pub read_only: bool,
    pub init: Option<bool>,
    pub privileged: bool,
    pub stop_signal: String,
    /// `None`: 10 s.
    pub stop_grace_period: Option<Duration>,
    pub mounts: Vec<Mount>,
    pub secrets: Vec<FileRef<SecretId>>,
    pub configs: Vec<FileRef<ConfigId>>,
    /// `IP hostname [alias…]` lines of /etc/hosts.
    pub hosts: Vec<String>,
    pub dns: DnsConfig,
    pub health: Option<HealthConfig>,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub sysctls: BTreeMap<String, String>,
    pub ulimits: Vec<Ulimit>,
    /// Host paths of devices, `/dev/x[:/dev/y[:rwm]]`.
    pub devices: Vec<String>,
    /// -1000 to 1000: how soon the kernel ends it when memory runs out; above 0 sooner than others.
    pub oom_score_adj: i32,
    /// The secret with the login for the image's registry; it belongs to this service alone.
    pub registry_auth: Option<SecretId>,
}

impl ContainerSpec {
    /// What runs in a container of an image with this entrypoint and command: its own entrypoint, and the words behind it. An
    /// entrypoint of its own leaves out both of the image's. `[""]` is none at all, as Docker writes it.
    pub fn invocation<'a>(&'a self, entrypoint: &'a [String], cmd: &'a [String]) -> (&'a [String], &'a [String]) {
        match self.command.as_slice() {
            [] => (entrypoint, if self.args.is_empty() { cmd } else { &self.args }),
            [none] if none.is_empty() => (&[], &self.args),
            own => (own, &self.args),
        }
    }

    /// A container that was started by name, before the cluster knew the content, is not replaced because it is known
    /// now; nor is one because the next would log in to the registry in another way.
    fn is_as_good_as(&self, wanted: &Self) -> bool {
        if self.registry_auth == wanted.registry_auth && (self.image_digest.is_some() || wanted.image_digest.is_none())
        {
            return self == wanted;
        }
        let image_digest = self.image_digest.clone().or_else(|| wanted.image_digest.clone());
        Self { image_digest, registry_auth: wanted.registry_auth.clone(), ..self.clone() } == *wanted
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsConfig {
    pub nameservers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    pub kind: MountKind,
    /// Volume name (empty: an anonymous one), or the host's path; unused for tmpfs.
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// Do not fill an empty volume from the image.
    pub no_copy: bool,
    pub volume_driver: Option<LogDriver>,
    pub volume_labels: BTreeMap<String, String>,
    /// Bind propagation: `rprivate` when empty.
    pub propagation: String,
    /// tmpfs: 0 is unlimited.
    pub tmpfs_size_bytes: u64,
    /// tmpfs: 0 is 1777.
    pub tmpfs_mode: u32,
    /// Bind: what is mounted below its source; `None`: comes along, read-only where the bind is.
    pub bind_recursive: Option<BindRecursive>,
    /// Volume: the folder or file in it that is mounted; empty: all of it.
    pub volume_subpath: String,
}

impl Mount {
    /// Whether the subpath is one, as far as its letters say: relative, and never above where it began. Links are the
    /// node's to follow.
    #[must_use]
    pub fn has_valid_subpath(&self) -> bool {
        let mut depth = 0_usize;
        let stays = |part: &str| match part {
            "" | "." => true,
            ".." => depth.checked_sub(1).map(|up| depth = up).is_some(),
            _ => {
                depth += 1;
                true
            }
        };
        let path = &self.volume_subpath;
        !path.starts_with('/') && !path.contains(char::is_control) && path.split('/').all(stays)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindRecursive {
    /// Stays behind.
    Disabled,
    /// Comes along, and may be written to also where the bind is read-only.
    Writable,
    /// Comes along, read-only, or the container is not made.
    Readonly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountKind {
    #[default]
    Volume,
    Bind,
    Tmpfs,
}

/// A secret or config as a file in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRef<Id> {
    pub id: Id,
    pub name: String,
    /// Absolute, or relative to /run/secrets (secrets) or / (configs).
    pub target: String,
    pub uid: String,
    pub gid: String,
    pub mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// `["NONE"]`, `["CMD", …]`, `["CMD-SHELL", script]`; empty: inherit from the image.
    pub test: Vec<String>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub retries: u32,
    pub start_period: Option<Duration>,
    pub start_interval: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}
