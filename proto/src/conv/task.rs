//! Tasks.

use orch_model::task::{ContainerStatus, Health, Task, TaskAttachment, TaskState, TaskStatus};

use super::record::{choice, record};

choice!(TaskState {
    New,
    Pending,
    Assigned,
    Accepted,
    Preparing,
    Ready,
    Starting,
    Running,
    Complete,
    Shutdown,
    Failed,
    Rejected,
    Remove,
    Orphaned,
});

choice!(Health { Starting, Healthy, Unhealthy });

record!(Task {
    values: id, service, slot, node, spec_version, desired_state, start_at, running_since, networks,
        host_ports, displaced, generic;
    parts: meta, service_annotations, spec, status;
});
record!(TaskAttachment { values: network, addresses, aliases; });
record!(TaskStatus { values: state, at, message, error, container; });
record!(ContainerStatus { values: container_id, pid, exit_code, health; });
