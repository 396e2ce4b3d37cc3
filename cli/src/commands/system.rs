//! `orch system …`: what this node's disk is used for.

use clap::{Args, Subcommand};
use orch_model::size;
use orch_proto::{paths::Paths, wire};

use super::{
    container_control::{confirmed, prune_stopped, until},
    events, image_registry, info, network, volume,
};
use crate::{
    api::{explain, worker},
    flags::filter::FilterSet,
    render::listing::{Listing, Row, Shape, row},
};

#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Show disk usage of this node
    Df(DfArgs),
    /// Get events of this node's containers and volumes and, on a manager, of the cluster
    Events(events::EventsArgs),
    /// Remove unused data of this node
    Prune(PruneArgs),
    /// Display what is known of this node and its cluster
    Info(info::FormatArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    /// Show detailed information on disk usage
    #[arg(short, long)]
    verbose: bool,
    /// Format output: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Prune anonymous volumes too
    #[arg(long)]
    volumes: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Provide filter values (until=TIME, label=KEY=VALUE, label!=KEY=VALUE)
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

const USAGE: Listing<'static> = Listing {
    default: "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
    headings: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ],
    quiet: "Type",
};

const DETAILS: Listing<'static> = Listing {
    default: "{{.Name}}\t{{.Users}}\t{{.Size}}",
    headings: &[("Name", "NAME"), ("Users", "CONTAINERS"), ("Size", "SIZE")],
    quiet: "Name",
};

pub(crate) async fn run(command: SystemCommand, paths: &Paths) -> anyhow::Result<()> {
    match command {
        SystemCommand::Df(args) => df(args, paths).await,
        SystemCommand::Events(args) => events::events(args, paths).await,
        SystemCommand::Prune(args) => prune(args, paths).await,
        SystemCommand::Info(args) => info::info(args, paths).await,
    }
}

/// One line of the table: how many there are, how many of them are used, and what they take.
#[derive(Default)]
struct Sum {
    total: u64,
    active: u64,
    bytes: u64,
    unused_bytes: u64,
}

impl Sum {
    fn of(items: impl Iterator<Item = (bool, u64)>) -> Self {
        items.fold(Self::default(), |sum, (active, bytes)| Self {
            total: sum.total + 1,
            active: sum.active + u64::from(active),
            bytes: sum.bytes + bytes,
            unused_bytes: sum.unused_bytes + if active { 0 } else { bytes },
        })
    }

    fn row(&self, kind: &str) -> Row {
        let percent = self.unused_bytes.checked_mul(100).and_then(|part| part.checked_div(self.bytes)).unwrap_or(0);
        row([
            ("Type", kind.into()),
            ("TotalCount", self.total.into()),
            ("Active", self.active.into()),
            ("Size", size::human(self.bytes).into()),
            ("Reclaimable", format!("{} ({percent}%)", size::human(self.unused_bytes)).into()),
        ])
    }
}

impl PruneArgs {
    fn warning(&self) -> String {
        let mut lines = vec!["all stopped containers", "all networks not used by at least one container"];
        if self.volumes {
            lines.push("all anonymous volumes not used by at least one container");
        }
        lines.push(match self.all {
            true => "all images without at least one container associated to them",
            false => "all dangling images",
        });
        let mut text = format!("This will remove:\n  - {}", lines.join("\n  - "));
        if !self.filter.is_empty() {
            text += &format!("\nonly what fits:\n  - {}", self.filter.join("\n  - "));
        }
        text
    }

    fn filters(&self) -> anyhow::Result<FilterSet> {
        let filters = FilterSet::parse(&self.filter, &["until", "label", "label!"]).map_err(anyhow::Error::msg)?;
        if self.volumes && filters.has("until") {
            anyhow::bail!("the filter until is not for volumes, whose age says nothing: leave out --volumes or until");
        }
        Ok(filters)
    }
}

/// What nothing uses any more: containers first, which frees what they used.
async fn prune(args: PruneArgs, paths: &Paths) -> anyhow::Result<()> {
    let filters = args.filters()?;
    let until = until(&filters)?;
    let mut worker = worker(paths).await?;
    if !args.force && !confirmed(&args.warning())? {
        return Ok(());
    }
    let mut freed_bytes = prune_stopped(&mut worker, &filters, until).await?;
    if network::prune::prune_unused(&filters, until, paths).await? {
        println!();
    }
    if args.volumes {
        freed_bytes += volume::prune_unused(&mut worker, &filters, false).await?;
    }
    freed_bytes += image_registry::prune_unused(&mut worker, &filters, args.all, until).await?;
    println!("Total reclaimed space: {}", size::human(freed_bytes));
    Ok(())
}

async fn df(args: DfArgs, paths: &Paths) -> anyhow::Result<()> {
    let report = worker(paths).await?.disk_usage(wire::Empty {}).await.map_err(explain)?.into_inner();
    let is_running =
        |container: &wire::Container| matches!(container.state.as_str(), "running" | "paused" | "restarting");
    let images = Sum::of(report.images.iter().map(|usage| {
        let image = usage.image.clone().unwrap_or_default();
        (users(&report.containers, &image) > 0, image.size_bytes)
    }));
    let containers = Sum::of(
        report.containers.iter().map(|usage| (usage.container.as_ref().is_some_and(is_running), usage.size_bytes)),
    );
    let volumes = Sum::of(
        report
            .volumes
            .iter()
            .map(|usage| (usage.volume.as_ref().is_some_and(|volume| !volume.users.is_empty()), usage.size_bytes)),
    );
    let shape = Shape { format: args.format, quiet: false };
    if !args.verbose {
        let rows = [images.row("Images"), containers.row("Containers"), volumes.row("Local Volumes")];
        return Ok(USAGE.print(&shape, &rows)?);
    }
    let line = |name: &str, users: u64, bytes: u64| {
        row([("Name", name.into()), ("Users", users.into()), ("Size", size::human(bytes).into())])
    };
    println!("Images space usage:\n");
    let rows: Vec<Row> = report
        .images
        .iter()
        .flat_map(|usage| usage.image.clone())
        .map(|image| {
            line(image.names.first().unwrap_or(&image.digest), users(&report.containers, &image), image.size_bytes)
        })
        .collect();
    DETAILS.print(&shape, &rows)?;
    println!("\nContainers space usage:\n");
    let rows: Vec<Row> = report
        .containers
        .iter()
        .map(|usage| {
            let container = usage.container.clone().unwrap_or_default();
            line(&container.name, u64::from(is_running(&container)), usage.size_bytes)
        })
        .collect();
    DETAILS.print(&shape, &rows)?;
    println!("\nLocal Volumes space usage:\n");
    let rows: Vec<Row> = report
        .volumes
        .iter()
        .map(|usage| {
            let volume = usage.volume.clone().unwrap_or_default();
            line(&volume.name, volume.users.len() as u64, usage.size_bytes)
        })
        .collect();
    Ok(DETAILS.print(&shape, &rows)?)
}

/// How many containers were made from the image.
fn users(containers: &[wire::ContainerUsage], image: &wire::LocalImage) -> u64 {
    let made_from = containers.iter().filter_map(|usage| usage.container.as_ref());
    made_from.filter(|container| container.image_digest == image.digest).count() as u64
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: PruneArgs,
    }

    #[test]
    fn containers_are_counted_by_their_image() {
        let of = |digest: &str| wire::ContainerUsage {
            container: Some(wire::Container { image_digest: digest.into(), ..Default::default() }),
            ..Default::default()
        };
        let containers = [of("sha256:a"), of("sha256:b"), of("sha256:a"), wire::ContainerUsage::default()];
        for (digest, count) in [("sha256:a", 2), ("sha256:b", 1), ("sha256:c", 0)] {
            let image = wire::LocalImage { digest: digest.into(), ..Default::default() };
            assert_eq!(users(&containers, &image), count, "{digest}");
        }
    }

    #[test]
    fn a_prune_says_what_goes() {
        let all = ["stopped containers", "networks", "anonymous volumes", "dangling images", "all images", "fits"];
        for (line, said) in [
            ("prune", &["stopped containers", "networks", "dangling images"][..]),
            ("prune -a --volumes", &["stopped containers", "networks", "anonymous volumes", "all images"]),
            ("prune --filter until=1h", &["stopped containers", "networks", "dangling images", "fits"]),
            ("prune --filter label!=keep", &["stopped containers", "networks", "dangling images", "fits"]),
        ] {
            let args = Line::try_parse_from(line.split(' ')).unwrap().args;
            let warning = args.warning();
            for part in all {
                assert_eq!(warning.contains(part), said.contains(&part), "{line}: {part} in {warning}");
            }
        }
        for line in ["prune --volumes --filter until=1h", "prune --filter name=x"] {
            assert!(Line::try_parse_from(line.split(' ')).unwrap().args.filters().is_err(), "{line}");
        }
    }
}
