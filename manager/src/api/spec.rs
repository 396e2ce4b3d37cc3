//! A user's spec from the wire: names of other objects become ids.

use orch_manager_core::{State, resolve};
use orch_model::{
    Annotations,
    cluster::ClusterSpec,
    network::{NetworkSpec, NodeNetwork},
    node::NodeSpec,
    secret::TemplateDriver,
    service::ServiceSpec,
};
use orch_proto::{
    conv::{FromProto, ToProto, required},
    wire::{self, spec},
};
use tonic::Status;

use super::status;

/// What a user asks for.
pub(super) enum Spec {
    Service(Box<ServiceSpec>),
    Network(NetworkSpec),
    Secret(Annotations, Vec<u8>, Option<TemplateDriver>),
    Config(Annotations, Vec<u8>, Option<TemplateDriver>),
    Node(NodeSpec),
    Cluster(ClusterSpec),
}

/// Decodes a spec. Networks, secrets and configs may be named instead of identified.
pub(super) fn decode(state: &State, spec: Option<wire::Spec>) -> Result<Spec, Box<Status>> {
    let missing = || Box::new(Status::invalid_argument("a request without a spec"));
    Ok(match spec.and_then(|s| s.spec).ok_or_else(missing)? {
        spec::Spec::Service(mut service) => {
            identify(state, &mut service)?;
            Spec::Service(Box::new(model(service)?))
        }
        spec::Spec::Network(network) => Spec::Network(model(network)?),
        spec::Spec::Secret(secret) => {
            Spec::Secret(annotations(secret.annotations, "SecretSpec")?, secret.data.to_vec(), model(secret.template)?)
        }
        spec::Spec::Config(config) => {
            Spec::Config(annotations(config.annotations, "ConfigSpec")?, config.data.to_vec(), model(config.template)?)
        }
        spec::Spec::Node(node) => Spec::Node(model(node)?),
        spec::Spec::Cluster(cluster) => Spec::Cluster(model(cluster)?),
    })
}

fn model<T: FromProto>(proto: T::Proto) -> Result<T, Box<Status>> {
    T::from_proto(proto).map_err(|e| Box::new(status::malformed(&e)))
}

fn annotations(proto: Option<wire::Annotations>, message: &'static str) -> Result<Annotations, Box<Status>> {
    required(proto, message, "annotations").map_err(|e| Box::new(status::malformed(&e)))
}

/// Replaces names by ids.
fn identify(state: &State, service: &mut wire::ServiceSpec) -> Result<(), Box<Status>> {
    let Some(task) = &mut service.task else { return Ok(()) };
    name_node_network(task)?;
    for attachment in &mut task.networks {
        let network = resolve::network(state, &attachment.network).map_err(refused)?;
        attachment.network = network.id.to_string();
    }
    let Some(container) = &mut task.container else { return Ok(()) };
    for file in &mut container.secrets {
        let reference = if file.id.is_empty() { &file.name } else { &file.id };
        let secret = resolve::secret(state, reference).map_err(refused)?;
        (file.id, file.name) = (secret.id.to_string(), secret.annotations.name.clone());
    }
    for file in &mut container.configs {
        let reference = if file.id.is_empty() { &file.name } else { &file.id };
        let config = resolve::config(state, reference).map_err(refused)?;
        (file.id, file.name) = (config.id.to_string(), config.annotations.name.clone());
    }
    Ok(())
}

/// Networks that every node has are none of the cluster's: one among those that are named becomes the field that it is.
fn name_node_network(task: &mut wire::TaskSpec) -> Result<(), Box<Status>> {
    let mut of_cluster = Vec::with_capacity(task.networks.len());
    for attachment in std::mem::take(&mut task.networks) {
        let is_plain = attachment.aliases.is_empty() && attachment.driver_options.is_empty();
        let network = NodeNetwork::of_service(&attachment.network, is_plain);
        match network.map_err(|error| Box::new(Status::invalid_argument(error.to_string())))? {
            None => of_cluster.push(attachment),
            Some(_) if task.node_network.is_some() => {
                let said = "a service is on one network of its nodes at most: name host or bridge, and once";
                return Err(Box::new(Status::invalid_argument(said)));
            }
            Some(network) => task.node_network = Some(network.to_proto()),
        }
    }
    task.networks = of_cluster;
    Ok(())
}

fn refused(error: resolve::ResolveError) -> Box<Status> {
    Box::new(status::from_resolve(&error))
}
