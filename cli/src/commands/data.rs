//! `orch secret …` and `orch config …`: the same commands over two kinds of objects.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use orch_model::{
    Annotations, Kind, Meta,
    secret::{Config, MAX_CONFIG_BYTES, MAX_SECRET_BYTES, Secret, TemplateDriver},
};
use orch_proto::{conv::ToProto, paths::Paths, wire};

use super::{ListFlags, for_each, print_inspected, warn};
use crate::{
    api::Api,
    commands::service::registry::LOGIN_LABEL,
    flags::key_value,
    inspect,
    render::{
        listing::{Listing, Row, by_key, row},
        natural_order, time,
    },
};

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Create one from a file or STDIN as content
    Create(CreateArgs),
    /// List them
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Display detailed information on one or more
    Inspect {
        /// Format output: 'json' or a Go template
        #[arg(short, long)]
        format: Option<String>,
        /// Print the information in a human friendly format
        #[arg(long, conflicts_with = "format")]
        pretty: bool,
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Change the content, the labels or both; services that use it are updated to another content
    Update(UpdateArgs),
    /// Remove one or more
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Labels
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    label: Vec<(String, String)>,
    /// Template driver: golang fills the content in for each task
    #[arg(long, value_enum, value_name = "DRIVER")]
    template_driver: Option<TemplateFlag>,
    name: String,
    /// A file, or - for STDIN
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TemplateFlag {
    Golang,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Add or update a label (key=value)
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    label_add: Vec<(String, String)>,
    /// Remove a label if exists
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    name: String,
    /// The new content: a file, or - for STDIN
    #[arg(value_name = "FILE|-", required_unless_present_any = ["label_add", "label_rm"])]
    file: Option<PathBuf>,
}

const SECRETS: Listing<'static> =
    Listing { default: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.CreatedAt}}\t{{.UpdatedAt}}", ..CONFIGS };

const CONFIGS: Listing<'static> = Listing {
    default: "{{.ID}}\t{{.Name}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
        ("Labels", "LABELS"),
    ],
    quiet: "ID",
};

/// `kind` is secret or config.
pub(crate) async fn run(kind: Kind, command: DataCommand, paths: &Paths) -> anyhow::Result<()> {
    match command {
        DataCommand::Create(args) => create(kind, args, paths).await,
        DataCommand::Ls(flags) => list(kind, &flags, paths).await,
        DataCommand::Inspect { format, pretty, names } => {
            let mut api = Api::connect(paths).await?;
            let (mut found, mut texts) = (Vec::new(), Vec::new());
            let outcome = for_each(&names, async |reference| {
                if kind == Kind::Secret {
                    let secret = api.get::<Secret>(reference).await?;
                    found.push(inspect::secret(&secret));
                    texts.push(pretty_text(secret.id.as_str(), &secret.meta, &secret.annotations, None));
                } else {
                    let config = api.get::<Config>(reference).await?;
                    found.push(inspect::config(&config));
                    texts.push(pretty_text(config.id.as_str(), &config.meta, &config.annotations, Some(&config.data)));
                }
                Ok(())
            })
            .await;
            if pretty {
                print!("{}", texts.join("\n"));
            } else {
                print_inspected(found, format.as_deref())?;
            }
            outcome
        }
        DataCommand::Update(args) => update(kind, args, paths).await,
        DataCommand::Rm { names } => {
            let mut api = Api::connect(paths).await?;
            for_each(&names, async |reference| {
                api.remove(kind, reference, false).await?;
                println!("{reference}");
                Ok(())
            })
            .await
        }
    }
}

async fn create(kind: Kind, args: CreateArgs, paths: &Paths) -> anyhow::Result<()> {
    let data = content(kind, &args.file)?;
    let annotations = Annotations { name: args.name, labels: key_value::map(&args.label) };
    let template = args.template_driver.map(|TemplateFlag::Golang| TemplateDriver::Golang);
    let mut api = Api::connect(paths).await?;
    println!("{}", store(&mut api, kind, &annotations, data, template).await?);
    Ok(())
}

/// The id of the version that has the content now.
async fn update(kind: Kind, args: UpdateArgs, paths: &Paths) -> anyhow::Result<()> {
    let data = args.file.as_deref().map(|file| content(kind, file)).transpose()?.unwrap_or_default();
    let mut api = Api::connect(paths).await?;
    let change = |mut annotations: Annotations| {
        annotations.labels.retain(|key, _| !args.label_rm.contains(key));
        annotations.labels.extend(args.label_add.iter().cloned());
        Some(annotations.to_proto())
    };
    let (id, warnings) = if kind == Kind::Secret {
        let old = api.get::<Secret>(&args.name).await?;
        let spec = wire::SecretSpec { annotations: change(old.annotations.clone()), data: data.into(), template: None };
        let spec = wire::spec::Spec::Secret(spec);
        let (secret, warnings) = api.replace::<Secret>(old.id.as_str(), old.meta.version, spec).await?;
        (secret.id.to_string(), warnings)
    } else {
        let old = api.get::<Config>(&args.name).await?;
        let spec = wire::ConfigSpec { annotations: change(old.annotations.clone()), data: data.into(), template: None };
        let spec = wire::spec::Spec::Config(spec);
        let (config, warnings) = api.replace::<Config>(old.id.as_str(), old.meta.version, spec).await?;
        (config.id.to_string(), warnings)
    };
    warn(&warnings);
    println!("{id}");
    Ok(())
}

fn content(kind: Kind, file: &Path) -> anyhow::Result<Vec<u8>> {
    // One byte too many is enough to know; it may be endless.
    let limit = max_bytes(kind) as u64 + 1;
    let mut data = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().take(limit).read_to_end(&mut data).context("cannot read standard input")?;
    } else {
        let opened = std::fs::File::open(file);
        let read = opened.and_then(|opened| opened.take(limit).read_to_end(&mut data));
        read.with_context(|| format!("cannot read {}", file.display()))?;
    }
    check_size(kind, data.len())?;
    Ok(data)
}

fn max_bytes(kind: Kind) -> usize {
    if kind == Kind::Secret { MAX_SECRET_BYTES } else { MAX_CONFIG_BYTES }
}

pub(crate) fn check_size(kind: Kind, bytes: usize) -> anyhow::Result<()> {
    let max = max_bytes(kind);
    match bytes {
        0 => bail!("a {kind} holds from 1 to {max} bytes; this content is empty"),
        _ if bytes > max => bail!("a {kind} holds from 1 to {max} bytes; this content has more"),
        _ => Ok(()),
    }
}

/// The new object's id.
pub(crate) async fn store(
    api: &mut Api,
    kind: Kind,
    annotations: &Annotations,
    data: Vec<u8>,
    template: Option<TemplateDriver>,
) -> anyhow::Result<String> {
    let annotations = Some(annotations.to_proto());
    let template = template.to_proto();
    let (id, warnings) = if kind == Kind::Secret {
        let spec = wire::SecretSpec { annotations, data: data.into(), template };
        let (secret, warnings) = api.create::<Secret>(wire::spec::Spec::Secret(spec)).await?;
        (secret.id.to_string(), warnings)
    } else {
        let spec = wire::ConfigSpec { annotations, data: data.into(), template };
        let (config, warnings) = api.create::<Config>(wire::spec::Spec::Config(spec)).await?;
        (config.id.to_string(), warnings)
    };
    warn(&warnings);
    Ok(id)
}

/// A secret has no data here.
fn pretty_text(id: &str, meta: &Meta, annotations: &Annotations, data: Option<&[u8]>) -> String {
    let labels: String = annotations.labels.iter().map(|(k, v)| format!(" - {k}={v}\n")).collect();
    let driver = if data.is_none() { "Driver:\n" } else { "" };
    let data = data.map(|data| format!("Data:\n{}\n", String::from_utf8_lossy(data))).unwrap_or_default();
    format!(
        "ID:\t\t\t{id}\nName:\t\t\t{}\nLabels:\n{labels}{driver}Created at:            \t{}\nUpdated at:            \t{}\n{data}",
        annotations.name,
        time::go_style(meta.created_at),
        time::go_style(meta.updated_at),
    )
}

async fn list(kind: Kind, flags: &ListFlags, paths: &Paths) -> anyhow::Result<()> {
    let filters = flags.filters(&["id", "name", "label"])?;
    let mut api = Api::connect(paths).await?;
    let mut items: Vec<(String, Meta, Annotations)> = match kind {
        Kind::Secret => {
            let all = api.all::<Secret>().await?;
            all.iter()
                .filter(|s| !s.removing)
                .map(|s| (s.id.to_string(), s.meta.clone(), s.annotations.clone()))
                .collect()
        }
        _ => {
            let all = api.all::<Config>().await?;
            all.iter()
                .filter(|c| !c.removing)
                .map(|c| (c.id.to_string(), c.meta.clone(), c.annotations.clone()))
                .collect()
        }
    };
    items.sort_by(|a, b| natural_order(&a.2.name, &b.2.name));
    let now = time::now();
    let rows: Vec<Row> = items
        .iter()
        .filter(|(id, _, annotations)| {
            filters.any("id", |prefix| id.starts_with(prefix))
                && filters.any("name", |prefix| annotations.name.starts_with(prefix))
                && filters.labels("label", &annotations.labels)
                // What belongs to a service is shown to those who ask for it.
                && (!annotations.labels.contains_key(LOGIN_LABEL) || filters.has("label"))
        })
        .map(|(id, meta, annotations)| {
            let labels: Vec<String> = annotations.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            row([
                ("ID", id.as_str().into()),
                ("Name", annotations.name.as_str().into()),
                ("Driver", "".into()),
                ("CreatedAt", time::ago(meta.created_at, now).into()),
                ("UpdatedAt", time::ago(meta.updated_at, now).into()),
                ("Labels", labels.join(",").into()),
                ("Label", by_key(&annotations.labels)),
            ])
        })
        .collect();
    let listing = if kind == Kind::Secret { SECRETS } else { CONFIGS };
    Ok(listing.print(&flags.shape(), &rows)?)
}
