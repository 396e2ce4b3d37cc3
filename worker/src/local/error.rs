//! What can go wrong with one-off containers, in Docker's words where it has some.

use std::net::SocketAddr;

use orch_model::service::PortConfig;

use super::policy::PolicyError;
use crate::{
    agent::prepare::PrepareError,
    image::{ImageError, reference::ReferenceError},
    runtime::RuntimeError,
    store::StoreError,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalError {
    #[error("No such container: {0}")]
    NotFound(String),
    #[error("{0} is the start of several ids: give more of it")]
    Ambiguous(String),
    #[error("Invalid container name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    Name(String),
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) \
         that container to be able to reuse that name."
    )]
    NameTaken { name: String, id: String },
    #[error("this node has no address {0} to publish a port on: choose one that `ip address` shows, or none for all")]
    NoAddress(std::net::IpAddr),
    #[error(
        "port {0}/sctp cannot be published on an address of IPv6: publish it on one of IPv4, or without an address"
    )]
    SctpOfV6(u16),
    #[error("Unable to find image '{0}' locally")]
    NoImage(String),
    #[error(
        "container {0} belongs to a service: its task ends and starts as the service says; see `orch service update` and \
         `orch service rm`"
    )]
    OfService(String),
    #[error("cannot join network of a non running container: {0}: start that one first")]
    JoinsStopped(String),
    #[error("container {0} is restarting, wait until the container is running")]
    JoinsRestarting(String),
    #[error("Container {0} is not running")]
    NotRunning(String),
    #[error("You cannot remove a running container {0}. Stop the container before attempting removal or force remove")]
    Running(String),
    #[error("driver failed programming external connectivity: Bind for {at} failed: port is already allocated{by}")]
    Port { at: SocketAddr, by: String },
    #[error("no free port is left for {0}")]
    NoPort(u16),
    #[error("Invalid signal: {0}")]
    Signal(String),
    #[error("network {0} not found")]
    Network(String),
    #[error("invalid network alias: {0:?} (it must be a host name: letters, digits, - and _, in parts of at most 63)")]
    Alias(String),
    #[error("network {0} is named twice")]
    Twice(String),
    #[error("network {0} is one that every node has: name it alone, with --network {0}")]
    Predefined(String),
    #[error(
        "container sharing network namespace with another container or host cannot be connected to any other network"
    )]
    HostMode,
    #[error("container cannot be connected to multiple networks with one of the networks in private (none) mode")]
    NoneMode,
    #[error("endpoint with name {container} already exists in network {network}")]
    Connected { container: String, network: String },
    #[error("container {container} is not connected to network {network}")]
    NotConnected { container: String, network: String },
    #[error(
        "no manager of the cluster is reachable: containers can be put on this node's own networks only (`orch network \
         ls` says which are local)"
    )]
    NoManager,
    #[error("{}", .0.message())]
    Managers(Box<tonic::Status>),
    #[error(transparent)]
    UserNetwork(#[from] super::networks::NetworkError),
    #[error("conflicting options: port publishing and the container type network mode {0}: leave one of them out")]
    PortsOn(String),
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("keep the container's record")]
    Store(#[from] StoreError),
}

impl LocalError {
    /// With the program that has the port, where one is found.
    pub(super) fn port(port: &PortConfig, holder: Option<String>) -> Self {
        Self::Port { at: port.bound_to(), by: holder.map(|holder| format!(" by {holder}")).unwrap_or_default() }
    }

    /// What `orch run` ends with: 126 or 127 when the program could not be started, else 125.
    pub(crate) fn exit_code(&self) -> i32 {
        const NOT_RUN: i32 = 125;
        match self {
            Self::Runtime(error) => error.exit_code().filter(|code| matches!(code, 126 | 127)).unwrap_or(NOT_RUN),
            _ => NOT_RUN,
        }
    }
}
