//! Services and what their tasks are made from.

use orch_model::network::NodeNetwork;
use orch_model::service::{
    Balance, BindRecursive, ContainerSpec, Dependency, DependencyCondition, DnsConfig, Endpoint, EndpointMode,
    EndpointSpec, FailureAction, FileRef, HealthConfig, LogDriver, Mount, MountKind, NetworkAttachmentSpec, Placement,
    PlacementStrategy, PortConfig, Protocol, PublishMode, ResourceLimits, RestartCondition, RestartPolicy, Service,
    ServiceMode, ServiceSpec, TaskSpec, Ulimit, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus, Vip,
};

use super::{
    DecodeError, FromProto, ToProto, field, present,
    record::{choice, record},
};
use crate::wire;

choice!(EndpointMode { Vip, DnsRoundRobin });
choice!(Balance { RoundRobin, Random, SourceHash, Weighted });
choice!(Protocol { Tcp, Udp, Sctp });
choice!(PublishMode { Ingress, Host });
choice!(FailureAction { Pause, Continue, Rollback });
choice!(UpdateOrder { StopFirst, StartFirst });
choice!(UpdateState { Updating, Paused, Completed, RollbackStarted, RollbackPaused, RollbackCompleted });
choice!(DependencyCondition { Started, Healthy, Completed });
choice!(RestartCondition { None, OnFailure, Any });
choice!(MountKind { Volume, Bind, Tmpfs });
choice!(BindRecursive { Disabled, Writable, Readonly });
choice!(NodeNetwork { Host, Bridge });

record!(Service {
    values: id, spec_version, previous_spec, update_status, removing;
    parts: meta, spec, endpoint;
});
record!(Endpoint { values: ports, vips, problem; });
record!(Vip { values: network, addr; });
record!(ServiceSpec { values: update, rollback, depends_on; parts: annotations, task, mode, endpoint; });
record!(Dependency { values: service, condition, required; });
record!(EndpointSpec { values: mode, ports, balance, prefer_local; });
record!(PortConfig { values: name, protocol, target_port, published_port, publish_mode, masquerade, host_ip; });
record!(UpdateConfig {
    values: parallelism, failure_action, max_failure_ratio, order;
    renamed: delay => delay_ms, monitor => monitor_ms;
});
record!(UpdateStatus { values: state, started_at, first_started_at, completed_at, message; });
record!(TaskSpec {
    values: networks, log_driver, force_update, generic, node_network;
    parts: container, limits, reservations, restart, placement;
});
record!(ResourceLimits { values: nano_cpus, memory_bytes, pids; });
record!(RestartPolicy {
    values: condition, max_attempts;
    renamed: delay => delay_ms, window => window_ms;
});
record!(Placement { values: constraints, spread, max_replicas_per_node; renamed: strategy => pack; });

impl ToProto for PlacementStrategy {
    type Proto = bool;

    fn to_proto(&self) -> bool {
        match self {
            Self::Spread => false,
            Self::Pack => true,
        }
    }
}

impl FromProto for PlacementStrategy {
    type Proto = bool;

    fn from_proto(pack: bool) -> Result<Self, DecodeError> {
        Ok(if pack { Self::Pack } else { Self::Spread })
    }
}

record!(NetworkAttachmentSpec { values: network, aliases, driver_options; });
record!(LogDriver { values: name, options; });
record!(ContainerSpec {
    values: image, image_digest, command, args, hostname, env, dir, user, groups, labels, tty, open_stdin, read_only,
        init, privileged, stop_signal, mounts, secrets, configs, hosts, health, cap_add, cap_drop, sysctls, ulimits,
        devices, oom_score_adj, registry_auth;
    renamed: stop_grace_period => stop_grace_period_ms;
    parts: dns;
});
record!(DnsConfig { values: nameservers, search, options; });
record!(Mount {
    values: kind, source, target, read_only, no_copy, volume_driver, volume_labels, propagation, tmpfs_size_bytes,
        tmpfs_mode, bind_recursive, volume_subpath;
});
record!(HealthConfig {
    values: test, retries;
    renamed: interval => interval_ms, timeout => timeout_ms, start_period => start_period_ms,
        start_interval => start_interval_ms;
});
record!(Ulimit { values: name, soft, hard; });

impl ToProto for ServiceMode {
    type Proto = wire::ServiceMode;

    fn to_proto(&self) -> Self::Proto {
        use wire::service_mode::Mode as Wire;
        let mode = match *self {
            Self::Replicated { replicas } => Wire::Replicated(wire::Replicated { replicas }),
            Self::Global => Wire::Global(wire::Empty {}),
            Self::ReplicatedJob { max_concurrent, total_completions } => {
                Wire::ReplicatedJob(wire::ReplicatedJob { max_concurrent, total_completions })
            }
            Self::GlobalJob => Wire::GlobalJob(wire::Empty {}),
        };
        wire::ServiceMode { mode: Some(mode) }
    }
}

impl FromProto for ServiceMode {
    type Proto = wire::ServiceMode;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        use wire::service_mode::Mode as Wire;
        Ok(match present(proto.mode, "ServiceMode", "mode")? {
            Wire::Replicated(wire::Replicated { replicas }) => Self::Replicated { replicas },
            Wire::Global(wire::Empty {}) => Self::Global,
            Wire::ReplicatedJob(wire::ReplicatedJob { max_concurrent, total_completions }) => {
                Self::ReplicatedJob { max_concurrent, total_completions }
            }
            Wire::GlobalJob(wire::Empty {}) => Self::GlobalJob,
        })
    }
}

impl<Id: ToProto<Proto = String>> ToProto for FileRef<Id> {
    type Proto = wire::FileRef;

    fn to_proto(&self) -> Self::Proto {
        let Self { id, name, target, uid, gid, mode } = self;
        wire::FileRef {
            id: id.to_proto(),
            name: name.clone(),
            target: target.clone(),
            uid: uid.clone(),
            gid: gid.clone(),
            mode: *mode,
        }
    }
}

impl<Id: FromProto<Proto = String>> FromProto for FileRef<Id> {
    type Proto = wire::FileRef;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        let wire::FileRef { id, name, target, uid, gid, mode } = proto;
        Ok(Self { id: field(id, "FileRef", "id")?, name, target, uid, gid, mode })
    }
}
