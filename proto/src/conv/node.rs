//! Nodes.

use orch_model::node::{
    Availability, ManagerStatus, Node, NodeCertificates, NodeDescription, NodeRole, NodeSpec, NodeState, NodeStatus,
    Platform, Resources,
};

use super::record::{choice, record};

choice!(NodeRole { Worker, Manager });
choice!(Availability { Active, Pause, Drain });
choice!(NodeState { Unknown, Down, Ready, Disconnected });

record!(Node { values: id, role, manager, index, attachments, certificates; parts: meta, spec, description, status; });
record!(NodeCertificates { values: issuer, trusted, expires_at; });
record!(NodeSpec { values: role, availability; parts: annotations; });
record!(NodeDescription {
    values: hostname, engine_version, engine_labels, features, underlay, data_addr;
    parts: platform, resources;
});
record!(Platform { values: os, arch; });
record!(Resources { values: nano_cpus, memory_bytes; });
record!(NodeStatus { values: state, message, addr, since; });
record!(ManagerStatus { values: raft_id, addr; });
