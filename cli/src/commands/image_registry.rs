//! `orch push`, `orch tag`, `image history` and `image prune`.

use anyhow::bail;
use clap::Args;
use orch_model::{Timestamp, size};
use orch_proto::{paths::Paths, wire};
use serde_json::Value;
use tonic::Code;

use super::{
    container_control::{confirmed, until},
    image::{Show, asked_for, canonical, credentials_for, familiar, follow, labels, with_tag},
};
use crate::{
    api::{Worker, explain, worker},
    flags::filter::FilterSet,
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
    /// Provide filter values (until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE], dangling=BOOL)
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

pub(crate) async fn push(args: PushArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    let auth = credentials_for(&args.image)?;
    let named = with_tag(&args.image);
    if named != args.image && !args.quiet {
        println!("Using default tag: latest");
    }
    let request = wire::PullImageRequest { reference: args.image.clone(), auth, ..Default::default() };
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
    let filters = FilterSet::parse(&args.filter, &["until", "dangling", "label", "label!"]);
    let filters = filters.and_then(|filters| filters.only("dangling", &["true", "false", "1", "0"]));
    let filters = filters.map_err(anyhow::Error::msg)?;
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
    let freed_bytes = prune_unused(&mut worker, &filters, all, until).await?;
    println!("Total reclaimed space: {}", size::human(freed_bytes));
    Ok(())
}

/// Says what it removes; returns how many bytes that frees.
pub(crate) async fn prune_unused(
    worker: &mut Worker,
    filters: &FilterSet,
    all: bool,
    until: Option<u64>,
) -> anyhow::Result<u64> {
    let pruned = if filters.has("label") || filters.has("label!") {
        prune_labelled(worker, filters, all, until).await?
    } else {
        let request = wire::PruneImagesRequest { all, until_ms: until.unwrap_or(0) };
        worker.prune_images(request).await.map_err(explain)?.into_inner()
    };
    if !pruned.deleted.is_empty() {
        println!("Deleted Images:");
        pruned.untagged.iter().for_each(|name| println!("untagged: {}", familiar(name)));
        pruned.deleted.iter().for_each(|digest| println!("deleted: {digest}"));
        println!();
    }
    Ok(pruned.freed_bytes)
}

/// One by one: the worker knows no labels.
async fn prune_labelled(
    worker: &mut Worker,
    filters: &FilterSet,
    all: bool,
    until: Option<u64>,
) -> anyhow::Result<wire::PruneImagesResponse> {
    let images = worker.list_images(wire::Empty {}).await.map_err(explain)?.into_inner().images;
    let containers = worker.list_containers(wire::Empty {}).await.map_err(explain)?.into_inner().containers;
    // By force an image loses its names although a container has it that is stopped.
    let is_used = |image: &wire::LocalImage| containers.iter().any(|container| container.image_digest == image.digest);
    let mut pruned = wire::PruneImagesResponse::default();
    for image in images.iter().filter(|image| is_prunable(image, filters, all, until) && !is_used(image)) {
        let request = wire::RemoveImageRequest { reference: image.digest.clone(), force: true };
        let removed = match worker.remove_image(request).await {
            // A container uses it, or it went meanwhile.
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::NotFound) => continue,
            removed => removed.map_err(explain)?.into_inner(),
        };
        pruned.freed_bytes += freed(image, &removed.deleted);
        pruned.untagged.extend(removed.untagged);
        pruned.deleted.extend(removed.deleted);
    }
    Ok(pruned)
}

fn is_prunable(image: &wire::LocalImage, filters: &FilterSet, all: bool, until: Option<u64>) -> bool {
    let is_dangling = image.names.iter().all(|name| name.contains('@'));
    (all || is_dangling)
        && until.is_none_or(|until| image.created_at_ms < until)
        && filters.labels("label", &labels(image))
}

/// What the layers had that are deleted.
fn freed(image: &wire::LocalImage, deleted: &[String]) -> u64 {
    let config: Value = serde_json::from_str(&image.config_json).unwrap_or_default();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let layers = diff_ids.zip(&image.layer_sizes);
    layers.filter(|(diff_id, _)| deleted.iter().any(|gone| gone == diff_id)).map(|(_, bytes)| bytes).sum()
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
            ("Size", if args.human { size::human(bytes) } else { bytes.to_string() }.into()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn image(names: &[&str], created_at_ms: u64, labels: &[(&str, &str)]) -> wire::LocalImage {
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        let config = serde_json::json!({ "config": { "Labels": labels }, "rootfs": { "diff_ids": ["a", "b"] } });
        wire::LocalImage {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            created_at_ms,
            config_json: config.to_string(),
            layer_sizes: vec![3, 5],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_pruned_by_label() {
        const NAMED: &[&str] = &["docker.io/library/web:1"];
        const DANGLING: &[&str] = &["docker.io/library/web@sha256:00"];
        for (names, filter, all, until, is_prunable_then) in [
            (DANGLING, "label=x", false, None, true),
            (NAMED, "label=x", false, None, false),
            (NAMED, "label=x", true, None, true),
            (NAMED, "label=x=1", true, None, true),
            (NAMED, "label=x=2", true, None, false),
            (NAMED, "label!=x", true, None, false),
            (NAMED, "label!=y", true, None, true),
            (NAMED, "label=x", true, Some(100), false),
            (NAMED, "label=x", true, Some(101), true),
        ] {
            let filters = FilterSet::parse(&[filter.to_owned()], &["label", "label!"]).unwrap();
            let image = image(names, 100, &[("x", "1")]);
            assert_eq!(
                is_prunable(&image, &filters, all, until),
                is_prunable_then,
                "{names:?} {filter} {all} {until:?}"
            );
        }
        let freed = |deleted: &[&str]| {
            freed(&image(NAMED, 0, &[]), &deleted.iter().map(|d| (*d).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!((freed(&["sha256:manifest"]), freed(&["b"]), freed(&["a", "b"])), (0, 5, 8));
    }
}
