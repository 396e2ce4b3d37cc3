//! `orch volume …`: this node's volumes.

use clap::Subcommand;
use orch_proto::{paths::Paths, wire};

use super::{ListFlags, for_each, print_inspected};
use crate::{
    api::{explain, worker},
    inspect,
    render::listing::{Listing, Row, row},
};

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
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
}

const VOLUMES: Listing<'static> = Listing {
    default: "{{.Driver}}\t{{.Name}}",
    headings: &[("Driver", "DRIVER"), ("Name", "VOLUME NAME"), ("Mountpoint", "MOUNTPOINT"), ("Labels", "LABELS")],
    quiet: "Name",
};

pub(crate) async fn run(command: VolumeCommand, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    match command {
        VolumeCommand::Ls(flags) => {
            let filters = flags.filters(&["name", "label", "driver"])?;
            let mut volumes = worker.list_volumes(wire::Empty {}).await.map_err(explain)?.into_inner().volumes;
            volumes.sort_by(|a, b| a.name.cmp(&b.name));
            let rows: Vec<Row> = volumes
                .iter()
                .filter(|v| {
                    filters.any("name", |part| v.name.contains(part))
                        && filters.any("driver", |driver| v.driver == driver)
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

fn volume_row(volume: &wire::Volume) -> Row {
    let labels: Vec<String> = volume.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    row([
        ("Driver", volume.driver.as_str().into()),
        ("Name", volume.name.as_str().into()),
        ("Mountpoint", volume.mountpoint.as_str().into()),
        ("Labels", labels.join(",").into()),
    ])
}
