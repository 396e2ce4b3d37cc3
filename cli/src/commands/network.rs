//! `orch network …`.

use clap::{Args, Subcommand};
use ipnetwork::IpNetwork;
use orch_model::{
    Annotations, Kind,
    network::{DRIVER_OVERLAY, IpamConfig, Network, NetworkSpec},
};
use orch_proto::{conv::ToProto, paths::Paths, wire};

use super::{ListFlags, for_each, print_inspected, warn};
use crate::{
    api::Api,
    flags::key_value,
    inspect,
    render::{
        listing::{Listing, Row, row},
        natural_order, short_id, time,
    },
};

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Create a network
    Create(CreateArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Display detailed information on one or more networks
    Inspect {
        /// Format output: 'json' or a Go template
        #[arg(short, long)]
        format: Option<String>,
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Remove one or more networks
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Driver to manage the network
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
    /// Enable IPv6 address assignment
    #[arg(long)]
    ipv6: bool,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<IpNetwork>,
    /// Allocate container addresses from a sub-range
    #[arg(long, value_name = "CIDR")]
    ip_range: Vec<IpNetwork>,
    /// Gateway for the subnet
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<std::net::IpAddr>,
    /// Set metadata on a network
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    label: Vec<(String, String)>,
    /// Set driver specific options
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    opt: Vec<(String, String)>,
    network: String,
}

const NETWORKS: Listing<'static> = Listing {
    default: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    headings: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
    quiet: "ID",
};

pub(crate) async fn run(command: NetworkCommand, paths: &Paths) -> anyhow::Result<()> {
    match command {
        NetworkCommand::Create(args) => create(args, paths).await,
        NetworkCommand::Ls(flags) => list(&flags, paths).await,
        NetworkCommand::Inspect { format, networks } => {
            let mut api = Api::connect(paths).await?;
            let mut found = Vec::new();
            let outcome = for_each(&networks, async |reference| {
                found.push(inspect::network(&*api.get::<Network>(reference).await?));
                Ok(())
            })
            .await;
            print_inspected(found, format.as_deref())?;
            outcome
        }
        NetworkCommand::Rm { networks } => {
            let mut api = Api::connect(paths).await?;
            for_each(&networks, async |reference| {
                api.remove(Kind::Network, reference, false).await?;
                println!("{reference}");
                Ok(())
            })
            .await
        }
    }
}

async fn create(args: CreateArgs, paths: &Paths) -> anyhow::Result<()> {
    let ipam = ipam(&args).map_err(anyhow::Error::msg)?;
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
    let mut api = Api::connect(paths).await?;
    let (network, warnings) = api.create::<Network>(wire::spec::Spec::Network(spec.to_proto())).await?;
    warn(&warnings);
    println!("{}", network.id);
    Ok(())
}

/// Ranges and gateways belong to the subnet that contains them.
fn ipam(args: &CreateArgs) -> Result<Vec<IpamConfig>, String> {
    let mut configs: Vec<IpamConfig> =
        args.subnet.iter().map(|subnet| IpamConfig { subnet: *subnet, range: None, gateway: None }).collect();
    for range in &args.ip_range {
        let config = configs.iter_mut().find(|c| c.subnet.contains(range.ip()));
        config.ok_or_else(|| format!("--ip-range {range} is in no --subnet that was given"))?.range = Some(*range);
    }
    for gateway in &args.gateway {
        let config = configs.iter_mut().find(|c| c.subnet.contains(*gateway));
        config.ok_or_else(|| format!("--gateway {gateway} is in no --subnet that was given"))?.gateway = Some(*gateway);
    }
    Ok(configs)
}

async fn list(flags: &ListFlags, paths: &Paths) -> anyhow::Result<()> {
    let filters = flags.filters(&["id", "name", "driver", "label", "scope", "type"])?;
    let mut api = Api::connect(paths).await?;
    let mut networks = api.all::<Network>().await?;
    networks.sort_by(|a, b| natural_order(&a.spec.annotations.name, &b.spec.annotations.name));
    let rows: Vec<Row> = networks
        .iter()
        .filter(|network| {
            let Annotations { name, labels } = &network.spec.annotations;
            filters.any("id", |id| network.id.as_str().starts_with(id))
                && filters.any("name", |part| name.contains(part))
                && filters.any("driver", |driver| network.spec.driver == driver)
                && filters.any("scope", |scope| scope == "swarm")
                && filters.any("type", |kind| kind == if network.spec.ingress { "builtin" } else { "custom" })
                && filters.labels("label", labels)
        })
        .map(|network| network_row(network, flags.no_trunc))
        .collect();
    Ok(NETWORKS.print(&flags.shape(), &rows)?)
}

fn network_row(network: &Network, no_trunc: bool) -> Row {
    let id = network.id.as_str();
    let labels: Vec<String> = network.spec.annotations.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    row([
        ("ID", if no_trunc { id } else { short_id(id) }.into()),
        ("Name", network.spec.annotations.name.as_str().into()),
        ("Driver", network.spec.driver.as_str().into()),
        ("Scope", "swarm".into()),
        ("IPv6", network.spec.ipv6.to_string().into()),
        ("Internal", network.spec.internal.to_string().into()),
        ("Labels", labels.join(",").into()),
        ("CreatedAt", time::go_style(network.meta.created_at).into()),
    ])
}

fn driver(text: &str) -> Result<String, String> {
    if text == DRIVER_OVERLAY {
        Ok(text.into())
    } else {
        Err("the networks of a cluster use the driver overlay".into())
    }
}
