//! `orch volume …`: this node's volumes.

use clap::{Args, Subcommand};
use orch_model::size;
use orch_proto::{paths::Paths, wire};
use tonic::Code;

use super::{ListFlags, container_control::confirmed, for_each, print_inspected};
use crate::{
    api::{Worker, explain, worker},
    flags::{
        filter::{self, FilterSet},
        key_value,
    },
    inspect,
    render::listing::{Listing, Row, by_key, row},
};

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume on this node
    Create(CreateVolumeArgs),
    /// List volumes of this node
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Display detailed information on one or more volumes
    Inspect {
        /// Format output: 'json' or a Go template
        #[arg(short, long)]
        format: Option<String>,
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Remove one or more volumes of this node
    #[command(visible_alias = "remove")]
    Rm {
        /// Force the removal of one or more volumes
        #[arg(short, long)]
        force: bool,
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Remove unused volumes of this node
    Prune(PruneVolumesArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateVolumeArgs {
    /// Specify volume driver name
    #[arg(short, long, default_value = "local")]
    driver: String,
    /// Set metadata for a volume
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::run::label)]
    label: Vec<(String, String)>,
    /// Set driver specific options (type, device, o)
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    opt: Vec<(String, String)>,
    /// Made up when it is left out
    #[arg(value_name = "VOLUME", default_value = "")]
    name: String,
    /// The name, as older clients of Docker gave it
    #[arg(long = "name", value_name = "VOLUME", hide = true, conflicts_with = "name")]
    old_name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneVolumesArgs {
    /// Remove all unused volumes, not just anonymous ones
    #[arg(short, long)]
    all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Provide filter values (label=KEY=VALUE)
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

const VOLUMES: Listing<'static> = Listing {
    default: "{{.Driver}}\t{{.Name}}",
    headings: &[
        ("Driver", "DRIVER"),
        ("Name", "VOLUME NAME"),
        ("Scope", "SCOPE"),
        ("Mountpoint", "MOUNTPOINT"),
        ("Labels", "LABELS"),
        ("Size", "SIZE"),
        ("Links", "LINKS"),
        ("Availability", "AVAILABILITY"),
        ("Group", "GROUP"),
        ("Status", "STATUS"),
    ],
    quiet: "Name",
};

pub(crate) async fn run(command: VolumeCommand, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    match command {
        VolumeCommand::Create(args) => {
            let made = worker.create_volume(wire::Volume {
                name: args.old_name.unwrap_or(args.name),
                driver: args.driver,
                labels: args.label.into_iter().collect(),
                options: args.opt.into_iter().collect(),
                ..Default::default()
            });
            println!("{}", made.await.map_err(explain)?.into_inner().name);
            Ok(())
        }
        VolumeCommand::Prune(args) => prune(args, &mut worker).await,
        VolumeCommand::Ls(flags) => {
            let filters = flags.filters(&["name", "label", "driver", "dangling"])?;
            let filters = filters.only("dangling", &["true", "false", "1", "0"]).map_err(anyhow::Error::msg)?;
            let mut volumes = worker.list_volumes(wire::Empty {}).await.map_err(explain)?.into_inner().volumes;
            volumes.sort_by(|a, b| a.name.cmp(&b.name));
            let rows: Vec<Row> = volumes
                .iter()
                .filter(|v| {
                    filters.any("name", |pattern| filter::names(pattern, &v.name))
                        && filters.any("driver", |driver| v.driver == driver)
                        && filters.any("dangling", |wanted| matches!(wanted, "true" | "1") == v.users.is_empty())
                        && filters.labels("label", &v.labels)
                })
                .map(volume_row)
                .collect();
            Ok(VOLUMES.print(&flags.shape(), &rows)?)
        }
        VolumeCommand::Inspect { format, volumes } => {
            let all = worker.list_volumes(wire::Empty {}).await.map_err(explain)?.into_inner().volumes;
            let mut found = Vec::new();
            let outcome = for_each(&volumes, async |name| {
                let volume = all.iter().find(|v| v.name == name);
                found
                    .push(inspect::volume(volume.ok_or_else(|| {
                        anyhow::anyhow!("no such volume on this node: {name}; see `orch volume ls`")
                    })?));
                Ok(())
            })
            .await;
            print_inspected(found, format.as_deref())?;
            outcome
        }
        VolumeCommand::Rm { force, volumes } => {
            for_each(&volumes, async |name| {
                worker.remove_volume(wire::VolumeReference { name: name.into(), force }).await.map_err(explain)?;
                println!("{name}");
                Ok(())
            })
            .await
        }
    }
}

/// Without `--all` only those that nobody named.
async fn prune(args: PruneVolumesArgs, worker: &mut Worker) -> anyhow::Result<()> {
    let filters = FilterSet::parse(&args.filter, &["label", "label!", "all"]).map_err(anyhow::Error::msg)?;
    let all = args.all || args.filter.iter().any(|filter| matches!(filter.as_str(), "all=true" | "all=1"));
    let which = if all { "all local volumes" } else { "anonymous local volumes" };
    if !args.force && !confirmed(&format!("This will remove {which} not used by at least one container."))? {
        return Ok(());
    }
    let freed_bytes = prune_unused(worker, &filters, all).await?;
    println!("Total reclaimed space: {}", size::human(freed_bytes));
    Ok(())
}

/// Says what it removes; returns how many bytes that frees.
pub(crate) async fn prune_unused(worker: &mut Worker, filters: &FilterSet, all: bool) -> anyhow::Result<u64> {
    let usage = worker.disk_usage(wire::Empty {}).await.map_err(explain)?.into_inner();
    let mut freed_bytes = 0;
    let mut header = "Deleted Volumes:\n";
    for (volume, size_bytes) in usage.volumes.into_iter().filter_map(|usage| Some((usage.volume?, usage.size_bytes))) {
        if !volume.users.is_empty() || !(all || volume.anonymous) || !filters.labels("label", &volume.labels) {
            continue;
        }
        match worker.remove_volume(wire::VolumeReference { name: volume.name.clone(), force: false }).await {
            // A container began to use it meanwhile, or it went.
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::NotFound) => continue,
            removed => removed.map_err(explain)?,
        };
        println!("{header}{}", volume.name);
        header = "";
        freed_bytes += size_bytes;
    }
    if header.is_empty() {
        println!();
    }
    Ok(freed_bytes)
}

fn volume_row(volume: &wire::Volume) -> Row {
    let labels: Vec<String> = volume.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    row([
        ("Driver", volume.driver.as_str().into()),
        ("Name", volume.name.as_str().into()),
        ("Mountpoint", volume.mountpoint.as_str().into()),
        ("Labels", labels.join(",").into()),
        ("Label", by_key(&volume.labels)),
        ("Scope", "local".into()),
        // Docker's words where nobody was asked (`system df` is) or there is no such thing.
        ("Size", "N/A".into()),
        ("Links", "N/A".into()),
        ("Availability", "N/A".into()),
        ("Group", "N/A".into()),
        ("Status", "N/A".into()),
    ])
}
