//! `orch push`, `orch tag`, `image history` and `image prune`.

use anyhow::bail;
use clap::Args;
use orch_model::Timestamp;
use orch_proto::{paths::Paths, wire};
use serde_json::Value;

use super::{
    container_control::{confirmed, until},
    image::{Show, asked_for, canonical, credentials_for, familiar, follow, labels, with_tag},
};
use crate::{
    api::{Worker, explain, worker},
    flags::{filter::FilterSet, quantity},
    render::{
        ellipsis,
        listing::{Listing, Row, Shape, row},
        short_id, time,
    },
};

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    #[arg(value_name = "NAME[:TAG]")]
    image: String,
}

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    target: String,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Format output: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    image: String,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Provide filter values (until=TIME, dangling=BOOL)
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

pub(crate) async fn push(args: PushArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    let auth = credentials_for(&args.image)?;
    let request = wire::PullImageRequest { reference: args.image.clone(), auth, ..Default::default() };
    let named = with_tag(&args.image);
    if named != args.image && !args.quiet {
        println!("Using default tag: latest");
    }
    let progress = worker.push_image(request).await.map_err(explain)?.into_inner();
    let image = follow(progress, Show { quiet: args.quiet, stderr: false }).await?;
    match args.quiet {
        true => println!("{}", canonical(&args.image)),
        false => println!("{}: digest: {} size: {}", asked_for(&named).1, image.digest, image.manifest_bytes),
    }
    Ok(())
}

pub(crate) async fn tag(args: TagArgs, paths: &Paths) -> anyhow::Result<()> {
    let request = wire::TagImageRequest { source: args.source, target: args.target };
    worker(paths).await?.tag_image(request).await.map(drop).map_err(explain)
}

pub(crate) async fn prune(args: PruneArgs, paths: &Paths) -> anyhow::Result<()> {
    let filters = FilterSet::parse(&args.filter, &["until", "dangling"]).map_err(anyhow::Error::msg)?;
    let until = until(&filters)?;
    let all = args.all || !filters.any("dangling", |dangling| matches!(dangling, "true" | "1"));
    let warning = match all {
        true => "This will remove all images without at least one container associated to them.",
        false => "This will remove all dangling images.",
    };
    let mut worker = worker(paths).await?;
    if !args.force && !confirmed(warning)? {
        return Ok(());
    }
    let freed_bytes = prune_unused(&mut worker, all, until).await?;
    println!("Total reclaimed space: {}", quantity::human(freed_bytes));
    Ok(())
}

/// Says what it removes; returns how many bytes that frees.
pub(crate) async fn prune_unused(worker: &mut Worker, all: bool, until: Option<u64>) -> anyhow::Result<u64> {
    let request = wire::PruneImagesRequest { all, until_ms: until.unwrap_or(0) };
    let pruned = worker.prune_images(request).await.map_err(explain)?.into_inner();
    if !pruned.deleted.is_empty() {
        println!("Deleted Images:");
        pruned.untagged.iter().for_each(|name| println!("untagged: {}", familiar(name)));
        pruned.deleted.iter().for_each(|digest| println!("deleted: {digest}"));
        println!();
    }
    Ok(pruned.freed_bytes)
}

const HISTORY: Listing<'static> = Listing {
    default: "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
    headings: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
    quiet: "ID",
};

pub(crate) async fn history(args: HistoryArgs, paths: &Paths) -> anyhow::Result<()> {
    let request = wire::ImageReference { reference: args.image.clone() };
    let image = worker(paths).await?.inspect_image(request).await.map_err(explain)?.into_inner();
    let Ok(config) = serde_json::from_str::<Value>(&image.config_json) else {
        bail!("the configuration of {} cannot be read", args.image);
    };
    let rows = history_rows(&image, &config, &args, time::now());
    Ok(HISTORY.print(&Shape { format: args.format, quiet: args.quiet }, &rows)?)
}

fn created_at(text: &str) -> Option<Timestamp> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(Timestamp::from_unix_ms(u64::try_from(at.as_millisecond()).ok()?))
}

/// Newest first. Layers belong, in their order, to the entries that say that they made one.
fn history_rows(image: &wire::LocalImage, config: &Value, args: &HistoryArgs, now: Timestamp) -> Vec<Row> {
    let mut sizes = image.layer_sizes.iter();
    let mut rows: Vec<Row> = Vec::new();
    for entry in config["history"].as_array().into_iter().flatten() {
        let empty = entry["empty_layer"].as_bool().unwrap_or(false);
        let bytes = if empty { 0 } else { sizes.next().copied().unwrap_or(0) };
        let text = |name: &str| entry[name].as_str().unwrap_or_default();
        let created = created_at(text("created")).unwrap_or(Timestamp::from_unix_ms(image.created_at_ms));
        let by = text("created_by").replace('\t', " ");
        rows.push(row([
            ("ID", "<missing>".into()),
            ("CreatedSince", if args.human { time::ago(created, now) } else { time::rfc3339(created) }.into()),
            ("CreatedAt", time::rfc3339(created).into()),
            ("CreatedBy", if args.no_trunc { by } else { ellipsis(&by, 45) }.into()),
            ("Size", if args.human { quantity::human(bytes) } else { bytes.to_string() }.into()),
            ("Comment", text("comment").into()),
        ]));
    }
    rows.reverse();
    if let Some(first) = rows.first_mut() {
        let id = image.config_digest.as_str();
        let id = if args.no_trunc { id } else { short_id(id.strip_prefix("sha256:").unwrap_or(id)) };
        first.insert("ID".into(), id.into());
    }
    rows
}
