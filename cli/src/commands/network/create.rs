//! `orch network create`.

use std::net::IpAddr;

use anyhow::{anyhow, bail};
use clap::Args;
use ipnetwork::IpNetwork;
use orch_model::{
    Annotations,
    network::{DRIVER_OVERLAY, IpamConfig, Network, NetworkSpec},
};
use orch_proto::{conv::ToProto, paths::Paths, wire};

use super::{DRIVER_BRIDGE, warn};
use crate::{
    api::{Api, explain, worker},
    flags::key_value,
};

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Driver to manage the network: overlay (of the whole cluster), bridge (of this node alone)
    #[arg(short, long, default_value = DRIVER_OVERLAY, value_parser = driver)]
    driver: String,
    /// Enable manual container attachment
    #[arg(long)]
    attachable: bool,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Create the network that published ports arrive on
    #[arg(long)]
    ingress: bool,
    /// Enable or disable IPv4 address assignment
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    ipv4: bool,
    /// Enable IPv6 address assignment
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    ipv6: bool,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<IpNetwork>,
    /// Allocate container addresses from a sub-range
    #[arg(long, value_name = "CIDR")]
    ip_range: Vec<IpNetwork>,
    /// Gateway for the subnet
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// Addresses that are somebody else's: never given to containers
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = aux_address)]
    aux_address: Vec<(String, IpAddr)>,
    /// IP address management driver: default is the only one
    #[arg(long, value_name = "DRIVER", default_value = "default", value_parser = ipam_driver)]
    ipam_driver: String,
    /// Options of the address management driver: it has none
    #[arg(long, value_name = "KEY=VALUE", value_parser = no_ipam_option)]
    ipam_opt: Vec<String>,
    /// The network's scope: swarm with the driver overlay, local with bridge
    #[arg(long, value_name = "SCOPE", value_parser = ["swarm", "local"])]
    scope: Option<String>,
    /// Not supported: a network has its settings from the command that makes it
    #[arg(long, hide = true)]
    config_only: bool,
    /// Not supported, see --config-only
    #[arg(long, hide = true, value_name = "NETWORK")]
    config_from: Option<String>,
    /// Set metadata on a network
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    label: Vec<(String, String)>,
    /// Set driver specific options
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    opt: Vec<(String, String)>,
    network: String,
}

pub(super) async fn create(args: CreateArgs, paths: &Paths) -> anyhow::Result<()> {
    refuse(&args)?;
    let ipam = ipam(&args).map_err(anyhow::Error::msg)?;
    if args.driver == DRIVER_BRIDGE {
        on_this_node(args, ipam, paths).await
    } else {
        in_the_cluster(args, ipam, paths).await
    }
}

/// What neither kind of network can do, with the reason.
fn refuse(args: &CreateArgs) -> anyhow::Result<()> {
    if args.config_only || args.config_from.is_some() {
        bail!(
            "--config-only and --config-from are for drivers whose settings differ from node to node (macvlan, ipvlan); \
             overlay networks have the same everywhere, and bridges are made node by node: give the settings to each"
        );
    }
    if !args.ipv4 {
        bail!("--ipv4=false: networks have IPv4 addresses; --ipv6 adds others");
    }
    let scope = if args.driver == DRIVER_BRIDGE { "local" } else { "swarm" };
    if let Some(asked) = args.scope.as_ref().filter(|asked| *asked != scope) {
        bail!("--scope {asked}: networks of the driver {} have the scope {scope}", args.driver);
    }
    // Every container of its node can be on a bridge: --attachable is taken and changes nothing, as with Docker.
    if args.ingress && args.driver == DRIVER_BRIDGE {
        bail!("--ingress is for networks of the driver overlay; leave it out, or add --driver overlay");
    }
    Ok(())
}

async fn in_the_cluster(args: CreateArgs, ipam: Vec<IpamConfig>, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    if let Ok(mut worker) = worker(paths).await {
        let local = worker.list_networks(wire::Empty {}).await.map_err(explain)?.into_inner().networks;
        if local.iter().any(|network| network.name == args.network) {
            bail!("network with name {} already exists on this node", args.network);
        }
    }
    let spec = NetworkSpec {
        annotations: Annotations { name: args.network, labels: key_value::map(&args.label) },
        driver: args.driver,
        driver_options: key_value::map(&args.opt),
        ipam,
        internal: args.internal,
        attachable: args.attachable,
        ingress: args.ingress,
        ipv6: args.ipv6,
    };
    let (network, warnings) = api.create::<Network>(wire::spec::Spec::Network(spec.to_proto())).await?;
    warn(&warnings);
    println!("{}", network.id);
    Ok(())
}

async fn on_this_node(args: CreateArgs, ipam: Vec<IpamConfig>, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    // On a worker nobody can be asked; then the name may exist in the cluster too, and the one of the node is found.
    if let Ok(mut api) = Api::connect(paths).await
        && api.get_optional::<Network>(&args.network).await?.is_some_and(|n| n.spec.annotations.name == args.network)
    {
        bail!("network with name {} already exists in the cluster", args.network);
    }
    let network = wire::LocalNetwork {
        name: args.network,
        driver: args.driver,
        ipam: ipam.to_proto(),
        internal: args.internal,
        ipv6: args.ipv6,
        labels: args.label.into_iter().collect(),
        options: args.opt.into_iter().collect(),
        ..Default::default()
    };
    let created = worker.create_network(network).await.map_err(explain)?.into_inner();
    println!("{}", created.id);
    Ok(())
}

/// Ranges, gateways and reserved addresses belong to the subnet that contains them.
fn ipam(args: &CreateArgs) -> Result<Vec<IpamConfig>, String> {
    let empty =
        |subnet: &IpNetwork| IpamConfig { subnet: *subnet, range: None, gateway: None, aux: Default::default() };
    let mut configs: Vec<IpamConfig> = args.subnet.iter().map(empty).collect();
    let of = |address: IpAddr, flag: String| {
        let config = configs.iter().position(|config| config.subnet.contains(address));
        config.ok_or_else(|| format!("{flag} is in no --subnet that was given"))
    };
    let ranges = args.ip_range.iter().map(|r| of(r.ip(), format!("--ip-range {r}"))).collect::<Result<Vec<_>, _>>()?;
    let gateways = args.gateway.iter().map(|g| of(*g, format!("--gateway {g}"))).collect::<Result<Vec<_>, _>>()?;
    let aux = args
        .aux_address
        .iter()
        .map(|(n, a)| of(*a, format!("--aux-address {n}={a}")))
        .collect::<Result<Vec<_>, _>>()?;
    for (at, range) in ranges.into_iter().zip(&args.ip_range) {
        configs[at].range = Some(*range);
    }
    for (at, gateway) in gateways.into_iter().zip(&args.gateway) {
        configs[at].gateway = Some(*gateway);
    }
    for (at, (name, address)) in aux.into_iter().zip(&args.aux_address) {
        configs[at].aux.insert(name.clone(), *address);
    }
    Ok(configs)
}

fn driver(text: &str) -> Result<String, String> {
    match text {
        DRIVER_OVERLAY | DRIVER_BRIDGE => Ok(text.into()),
        "host" | "null" | "none" => {
            Err(format!("only one instance of \"{text}\" network is allowed: every node has it"))
        }
        other => Err(format!(
            "{other:?} is no driver of Orch's networks: overlay is for networks of the whole cluster, bridge for those of \
             one node"
        )),
    }
}

fn aux_address(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("expected NAME=ADDRESS")?;
    let address = address.parse().map_err(|_| format!("{address:?} is no address"))?;
    Ok((name.to_owned(), address))
}

fn ipam_driver(text: &str) -> Result<String, String> {
    if text == "default" {
        Ok(text.into())
    } else {
        Err("the only one is \"default\": managers give the addresses".into())
    }
}

fn no_ipam_option(text: &str) -> Result<String, String> {
    Err(anyhow!("the address management driver has no options, so {text:?} would change nothing: leave it out")
        .to_string())
}
