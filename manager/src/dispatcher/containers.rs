//! One-off containers of nodes, on networks of the cluster.

use std::net::IpAddr;

use orch_manager_core::control::{ContainerNetworks, WantedNetwork, set_container_networks};
use orch_model::NodeId;
use orch_proto::{
    conv::{FromProto, ToProto},
    wire,
};
use tonic::Status;

use super::{
    reign::Reign,
    service::{commit, invalid},
};
use crate::api::status;

/// Commits where the container is to be, and says what it was given.
pub(super) async fn set_networks(
    reign: &Reign,
    node: NodeId,
    request: wire::SetContainerNetworksRequest,
) -> Result<wire::SetContainerNetworksResponse, Status> {
    let check_only = request.check_only;
    let wanted = wanted(node, request)?;
    if !check_only {
        commit(reign, |view, now| set_container_networks(&view.state, now, &wanted).map(|(tx, _)| tx)).await?;
    }
    let view = reign.consensus.store().view();
    let attached = set_container_networks(&view.state, reign.proposer.now(), &wanted);
    let (_, networks) = attached.map_err(|e| status::from_control(&e))?;
    let name = |id| view.state.network(id).map(|network| network.spec.annotations.name.clone()).unwrap_or_default();
    let names = networks.iter().map(|attachment| name(&attachment.network)).collect();
    Ok(wire::SetContainerNetworksResponse { networks: networks.to_proto(), names })
}

fn wanted(node: NodeId, request: wire::SetContainerNetworksRequest) -> Result<ContainerNetworks, Status> {
    let network = |wanted: wire::WantedNetwork| -> Result<WantedNetwork, Status> {
        let addresses = Vec::<IpAddr>::from_proto(wanted.addresses).map_err(invalid)?;
        Ok(WantedNetwork { network: wanted.network, aliases: wanted.aliases, addresses })
    };
    Ok(ContainerNetworks {
        node,
        id: request.task_id.parse().map_err(invalid)?,
        name: request.name,
        networks: request.networks.into_iter().map(network).collect::<Result<_, _>>()?,
    })
}
