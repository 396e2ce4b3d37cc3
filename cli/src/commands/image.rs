//! `orch image …` and `orch images`: this node's images.

use std::{
    collections::{BTreeMap, HashMap},
    io::IsTerminal as _,
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use clap::{Args, Subcommand};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use orch_model::{Timestamp, size};
use orch_proto::{paths::Paths, wire};
use tokio::io::AsyncReadExt as _;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

pub(crate) use super::image_files::{LoadArgs, SaveArgs, load, save};
use super::image_registry::{HistoryArgs, PruneArgs, history, prune};
pub(crate) use super::image_registry::{PushArgs, TagArgs, push, tag};
use super::image_source::{self, Source};
use super::{ListFlags, for_each, image_build, image_login as login, print_inspected};
use crate::{
    api::{Worker, explain, worker},
    flags::pattern::Pattern,
    inspect,
    render::{
        listing::{Listing, Row, row},
        short_id, time,
    },
};

/// What goes into one message of an import.
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Import a root filesystem tar (plain, gzip or zstd) as an image
    Import(ImportArgs),
    /// Download an image from a registry
    Pull(PullArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Display detailed information on one or more images
    Inspect {
        /// Format output: 'json' or a Go template
        #[arg(short, long)]
        format: Option<String>,
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Show the history of an image
    History(HistoryArgs),
    /// Remove unused images
    Prune(PruneArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save(SaveArgs),
    /// Load images from a tar archive (docker save or OCI layout) or STDIN
    Load(LoadArgs),
    /// Create a tag TARGET that refers to SOURCE
    Tag(TagArgs),
    /// Upload an image to a registry
    Push(PushArgs),
    /// Build an image from a Dockerfile, with buildah or BuildKit
    Build(image_build::BuildArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Force removal of the image
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Apply a Dockerfile instruction to the created image (CMD, ENTRYPOINT, ENV, WORKDIR, EXPOSE, USER, LABEL,
    /// HEALTHCHECK, ...)
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Set a message for the imported image
    #[arg(short, long, default_value = "")]
    message: String,
    /// Let the name mean another content than it does now
    #[arg(long)]
    replace: bool,
    /// A file, or - for STDIN
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Name of the image, which has none without; it may also come before the file
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    image: String,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    list: ListFlags,
    /// Show all images
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

const HEADINGS: &[(&str, &str)] = &[
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("VirtualSize", "SIZE"),
];
/// What Docker's list of images does not know either.
const NOT_KNOWN: &str = "N/A";

pub(crate) async fn run(command: ImageCommand, paths: &Paths) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import(args) => import(args, paths).await,
        ImageCommand::Pull(args) => pull(args, paths).await,
        ImageCommand::Ls(args) => list(args, paths).await,
        ImageCommand::Inspect { format, images } => {
            let mut worker = worker(paths).await?;
            let mut found = Vec::new();
            let outcome = for_each(&images, async |reference| {
                let request = wire::ImageReference { reference: reference.into() };
                found.push(inspect::image(&worker.inspect_image(request).await.map_err(explain)?.into_inner()));
                Ok(())
            })
            .await;
            print_inspected(found, format.as_deref())?;
            outcome
        }
        ImageCommand::Rm(args) => remove_all(args, paths).await,
        ImageCommand::History(args) => history(args, paths).await,
        ImageCommand::Prune(args) => prune(args, paths).await,
        ImageCommand::Save(args) => save(args, paths).await,
        ImageCommand::Load(args) => load(args, paths).await,
        ImageCommand::Tag(args) => tag(args, paths).await,
        ImageCommand::Push(args) => push(args, paths).await,
        ImageCommand::Build(args) => image_build::build(args, paths).await,
    }
}

pub(crate) async fn remove_all(args: RmArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    for_each(&args.images, async |reference| remove(&mut worker, reference, args.force).await).await
}

async fn remove(worker: &mut Worker, reference: &str, force: bool) -> anyhow::Result<()> {
    let request = wire::RemoveImageRequest { reference: reference.into(), force };
    let removed = match worker.remove_image(request).await {
        // With force, one that is gone is no failure.
        Err(status) if force && status.code() == tonic::Code::NotFound => {
            remark!("{}", explain(status));
            return Ok(());
        }
        removed => removed.map_err(explain)?.into_inner(),
    };
    removed.untagged.iter().for_each(|name| println!("Untagged: {}", familiar(name)));
    removed.deleted.iter().for_each(|digest| println!("Deleted: {digest}"));
    Ok(())
}

/// How the names of root filesystem archives end.
const ARCHIVES: &[&str] = &[".tar", ".tgz", ".gz", ".zst", ".xz", ".txz", ".bz2"];

pub(crate) async fn import(args: ImportArgs, paths: &Paths) -> anyhow::Result<()> {
    // `orch image import NAME FILE` has them the other way round, which can be told from what is a file. An archive that is
    // missing is no name, even where a file is called like the image.
    let is_source = |text: &Path| text.as_os_str() == "-" || text.is_file();
    let is_name = |text: &Path| !is_source(text) && !ARCHIVES.iter().any(|end| text.to_string_lossy().ends_with(end));
    let (name, file) = match args.name {
        Some(name) if is_name(&name) && is_source(&args.file) => (name, args.file),
        Some(file) => (args.file, file),
        None => (PathBuf::new(), args.file),
    };
    let name = name.display().to_string();
    let source = image_source::open(Some(file.as_path()).filter(|file| file.as_os_str() != "-"))?;
    let mut worker = worker(paths).await?;
    let start = wire::ImportImageStart { name, changes: args.change, replace: args.replace, message: args.message };
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let feeder = tokio::spawn(feed(start, source, sender));
    let outcome = worker.import_image(ReceiverStream::new(receiver)).await;
    // The worker's answer is what counts; a read error explains it better.
    feeder.abort();
    if let Ok(Err(error)) = feeder.await {
        return Err(error.context(format!("cannot read {}", file.display())));
    }
    println!("{}", outcome.map_err(explain)?.into_inner().config_digest);
    Ok(())
}

async fn feed(
    start: wire::ImportImageStart,
    mut source: Source,
    sender: tokio::sync::mpsc::Sender<wire::ImportImageRequest>,
) -> anyhow::Result<()> {
    let message = |message| wire::ImportImageRequest { message: Some(message) };
    let mut next = message(wire::import_image_request::Message::Start(start));
    loop {
        if sender.send(next).await.is_err() {
            return Ok(());
        }
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let read = (&mut source).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await?;
        if read == 0 {
            return Ok(());
        }
        next = message(wire::import_image_request::Message::Data(chunk.into()));
    }
}

pub(crate) async fn pull(args: PullArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    let auth = credentials_for(&args.image)?;
    if with_tag(&args.image) != args.image && !args.quiet {
        println!("Using default tag: latest");
    }
    let known = worker.inspect_image(wire::ImageReference { reference: args.image.clone() }).await;
    let known = known.map(|image| image.into_inner().digest).unwrap_or_default();
    let request = wire::PullImageRequest { reference: args.image.clone(), auth, ..Default::default() };
    let show = Show { quiet: args.quiet, stderr: false };
    let digest = show_pull(&mut worker, request, show).await?;
    show.line(&match digest == known {
        true => format!("Status: Image is up to date for {}", with_tag(&args.image)),
        false => format!("Status: Downloaded newer image for {}", with_tag(&args.image)),
    });
    println!("{}", canonical(&args.image));
    Ok(())
}

/// `web` is `docker.io/library/web:latest`.
pub(crate) fn canonical(image: &str) -> String {
    let image = image.strip_prefix("index.").unwrap_or(image);
    let image = image.strip_prefix("docker.io/").unwrap_or(image);
    let named = with_tag(image);
    match (registry_of(image), named.contains('/')) {
        (Some(_), _) => named,
        (None, true) => format!("docker.io/{named}"),
        (None, false) => format!("docker.io/library/{named}"),
    }
}

/// The registry that a name begins with.
pub(super) fn registry_of(image: &str) -> Option<&str> {
    let (first, _) = image.split_once('/')?;
    (first.contains(['.', ':']) || first == "localhost").then_some(first)
}

/// Where and how much of a download is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Show {
    pub(super) quiet: bool,
    pub(super) stderr: bool,
}

impl Show {
    pub(crate) fn on_stderr(quiet: bool) -> Self {
        Self { quiet, stderr: true }
    }

    fn line(self, text: &str) {
        match (self.quiet, self.stderr) {
            (true, _) => {}
            (false, true) => remark!("{text}"),
            (false, false) => println!("{text}"),
        }
    }
}

/// Downloads and says so; the image's digest.
pub(crate) async fn show_pull(
    worker: &mut Worker,
    request: wire::PullImageRequest,
    show: Show,
) -> anyhow::Result<String> {
    let repository = split_name(&with_tag(&request.reference)).0;
    let progress = worker.pull_image(request).await.map_err(explain)?.into_inner();
    let image = follow(progress, show).await?;
    show.line(&format!("Digest: {}", repository_digest(&image, &repository)));
    Ok(image.digest)
}

/// Bars on a terminal, a line per change of state elsewhere: bytes alone would flood a pipe.
pub(super) async fn follow(
    mut progress: tonic::Streaming<wire::PullProgress>,
    show: Show,
) -> anyhow::Result<wire::LocalImage> {
    use wire::pull_progress::Progress;
    let mut layers = Layers::new(show);
    while let Some(message) = progress.next().await {
        match message.map_err(explain)?.progress {
            Some(Progress::Layer(layer)) => layers.update(&layer),
            Some(Progress::Status(text)) => layers.say(&text),
            Some(Progress::Done(image)) => return Ok(image),
            // The name that was typed says it.
            Some(Progress::Asking(_)) | None => {}
        }
    }
    Err(anyhow!("the worker ended the transfer without a word; see the node's log"))
}

struct Layers {
    show: Show,
    bars: Option<MultiProgress>,
    seen: HashMap<String, (String, ProgressBar)>,
}

impl Layers {
    fn new(show: Show) -> Self {
        let terminal = if show.stderr { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        let target = if show.stderr { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::stdout() };
        let bars = (terminal && !show.quiet).then(|| MultiProgress::with_draw_target(target));
        Self { show, bars, seen: HashMap::new() }
    }

    fn say(&self, text: &str) {
        match &self.bars {
            // The terminal may be gone.
            Some(bars) => drop(bars.println(text)),
            None => self.show.line(text),
        }
    }

    fn update(&mut self, layer: &wire::LayerProgress) {
        let digest = layer.digest.strip_prefix("sha256:").unwrap_or(&layer.digest);
        let (show, bars) = (self.show, &self.bars);
        let words = layer_words(&layer.state);
        let new_bar = || match bars {
            Some(bars) => bars.add(ProgressBar::new(layer.total_bytes).with_style(bar_style())),
            None => ProgressBar::hidden(),
        };
        let (state, bar) = self.seen.entry(layer.digest.clone()).or_insert_with(|| (String::new(), new_bar()));
        if *state != layer.state && bars.is_none() {
            show.line(&format!("{}: {words}", short_id(digest)));
        }
        state.clone_from(&layer.state);
        bar.set_prefix(short_id(digest).to_owned());
        bar.set_message(words.to_owned());
        bar.set_position(layer.done_bytes);
        if matches!(layer.state.as_str(), "done" | "exists" | "pushed" | "layer-exists")
            || layer.state.starts_with("Mounted from ")
        {
            bar.abandon();
        }
    }
}

fn bar_style() -> ProgressStyle {
    let template = "{prefix}: {msg:14} [{bar:40}] {bytes}/{total_bytes}";
    ProgressStyle::with_template(template)
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "))
}

/// As the user typed it, with the tag that a name without one means.
pub(crate) fn with_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// What Docker's credential files have for the image's registry.
pub(crate) fn credentials_for(image: &str) -> anyhow::Result<Option<wire::RegistryAuth>> {
    let registry = registry_of(image);
    let login = login::stored(&login::key_of(registry))?;
    Ok(login.map(|login| wire::RegistryAuth { registry: registry.unwrap_or("docker.io").to_owned(), ..login }))
}

pub(super) fn layer_words(state: &str) -> &str {
    match state {
        "waiting" => "Waiting",
        "downloading" => "Downloading",
        "unpacking" => "Extracting",
        "done" => "Pull complete",
        "exists" => "Already exists",
        "layer-exists" => "Layer already exists",
        "uploading" => "Pushing",
        "pushed" => "Pushed",
        other => other,
    }
}

pub(crate) async fn list(args: LsArgs, paths: &Paths) -> anyhow::Result<()> {
    let flags = &args.list;
    let filters = flags.filters(&["reference", "dangling", "label", "before", "since"])?;
    let filters = filters.only("dangling", &["true", "false", "1", "0"]).map_err(anyhow::Error::msg)?;
    // As with Docker, what is asked for by name is one more pattern.
    let patterns = args.repository.iter().chain(filters.values("reference"));
    let patterns: Vec<Pattern> =
        patterns.map(|text| Pattern::parse(text)).collect::<Result<_, _>>().map_err(anyhow::Error::msg)?;
    let mut worker = worker(paths).await?;
    let mut images = worker.list_images(wire::Empty {}).await.map_err(explain)?.into_inner().images;
    images.sort_by(|a, b| b.created_at_ms.cmp(&a.created_at_ms).then(a.names.cmp(&b.names)));
    let before = created(filters.values("before"), &mut worker).await?.into_iter().min();
    let since = created(filters.values("since"), &mut worker).await?.into_iter().max();
    let is_between = |image: &wire::LocalImage| {
        before.is_none_or(|at| image.created_at_ms < at) && since.is_none_or(|at| image.created_at_ms > at)
    };
    let now = time::now();
    let mut rows: Vec<Row> = Vec::new();
    for image in images.iter().filter(|image| is_between(image) && filters.labels("label", &labels(image))) {
        let is_dangling = image.names.iter().all(|name| name.contains('@'));
        for name in shown_names(image) {
            let (repository, tag) = split_name(&name);
            if (patterns.is_empty() || patterns.iter().any(|pattern| is_named(pattern, &name)))
                && filters.any("dangling", |d| matches!(d, "true" | "1") == is_dangling)
            {
                rows.push(image_row(image, &repository, &tag, now, flags.no_trunc));
            }
        }
    }
    if flags.quiet && flags.format.is_none() {
        rows.dedup_by(|a, b| a.get("ID") == b.get("ID"));
    }
    let default = if args.digests {
        "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    } else {
        "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    };
    Ok(Listing { default, headings: HEADINGS, quiet: "ID" }.print(&flags.shape(), &rows)?)
}

/// When the named images were created.
async fn created(names: &[String], worker: &mut Worker) -> anyhow::Result<Vec<u64>> {
    let mut times = Vec::new();
    for name in names {
        let request = wire::ImageReference { reference: name.clone() };
        times.push(worker.inspect_image(request).await.map_err(explain)?.into_inner().created_at_ms);
    }
    Ok(times)
}

pub(super) fn labels(image: &wire::LocalImage) -> BTreeMap<String, String> {
    let config: serde_json::Value = serde_json::from_str(&image.config_json).unwrap_or_default();
    serde_json::from_value(config["config"]["Labels"].clone()).unwrap_or_default()
}

/// As it is typed or in full, with its tag or without.
fn is_named(pattern: &Pattern, name: &str) -> bool {
    let short = familiar(name);
    let repository = |name: &str| match name.split_once('@') {
        Some((repository, _)) => repository.to_owned(),
        None => asked_for(name).0.to_owned(),
    };
    !name.is_empty()
        && [short, name].into_iter().any(|name| pattern.matches(name) || pattern.matches(&repository(name)))
}

fn image_row(image: &wire::LocalImage, repository: &str, tag: &str, now: Timestamp, no_trunc: bool) -> Row {
    let created = Timestamp::from_unix_ms(image.created_at_ms);
    let id = image.config_digest.as_str();
    let id = if no_trunc { id } else { short_id(id.strip_prefix("sha256:").unwrap_or(id)) };
    row([
        ("Repository", repository.into()),
        ("Tag", tag.into()),
        ("Digest", repository_digest(image, repository).into()),
        ("ID", id.into()),
        ("CreatedSince", time::ago(created, now).into()),
        ("CreatedAt", time::go_style(created).into()),
        ("Size", size::human(image.size_bytes).into()),
        ("Containers", NOT_KNOWN.into()),
        ("SharedSize", NOT_KNOWN.into()),
        ("UniqueSize", NOT_KNOWN.into()),
        ("VirtualSize", size::human(image.size_bytes).into()),
    ])
}

/// One line per tag; a name by digest only where its repository has no tag.
fn shown_names(image: &wire::LocalImage) -> Vec<String> {
    let repository_of = |name: &str| split_name(name).0;
    let (by_digest, tags): (Vec<&String>, Vec<&String>) = image.names.iter().partition(|name| name.contains('@'));
    let tagged: Vec<String> = tags.iter().map(|name| repository_of(name)).collect();
    let mut shown: Vec<String> = tags.into_iter().cloned().collect();
    shown.extend(by_digest.into_iter().filter(|name| !tagged.contains(&repository_of(name))).cloned());
    if shown.is_empty() { vec![String::new()] } else { shown }
}

/// The digest by which the repository's registry knows the image; else that of its manifest.
fn repository_digest<'a>(image: &'a wire::LocalImage, repository: &str) -> &'a str {
    let in_repository = |name: &&String| split_name(name).0 == repository;
    let by_digest = image.names.iter().filter(in_repository).find_map(|name| name.split_once('@'));
    by_digest.map_or(image.digest.as_str(), |(_, digest)| digest)
}

/// The name as the user would type it.
pub(crate) fn familiar(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

fn split_name(name: &str) -> (String, String) {
    if name.is_empty() {
        return ("<none>".into(), "<none>".into());
    }
    if let Some((repository, _)) = familiar(name).split_once('@') {
        return (repository.into(), "<none>".into());
    }
    match asked_for(familiar(name)) {
        (repository, "") => (repository.into(), "<none>".into()),
        (repository, tag) => (repository.into(), tag.into()),
    }
}

/// Repository and tag of what the user typed; no tag: any. A colon before a slash is a registry's port.
pub(super) fn asked_for(text: &str) -> (&str, &str) {
    match text.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (text, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_no_tags() {
        assert_eq!(asked_for("web"), ("web", ""));
        assert_eq!(asked_for("web:1"), ("web", "1"));
        assert_eq!(asked_for("reg:5000/web"), ("reg:5000/web", ""));
        assert_eq!(asked_for("reg:5000/web:1"), ("reg:5000/web", "1"));
    }

    #[test]
    fn patterns_are_for_every_way_to_write_a_name() {
        const WEB: &str = "docker.io/library/web:1";
        const TEAM: &str = "reg:5000/team/web:2";
        for (pattern, name, is_match) in [
            ("web", WEB, true),
            ("web:1", WEB, true),
            ("w*", WEB, true),
            ("*:1", WEB, true),
            ("*:2", WEB, false),
            ("docker.io/library/web", WEB, true),
            ("docker.io/*/w*", WEB, true),
            ("reg:5000/team/*", TEAM, true),
            ("reg:5000/*", TEAM, false),
            ("*/*/web:[2-3]", TEAM, true),
            ("web", TEAM, false),
            ("web", "docker.io/library/web@sha256:00", true),
            ("*", "", false),
        ] {
            assert_eq!(is_named(&Pattern::parse(pattern).unwrap(), name), is_match, "{pattern} {name}");
        }
    }

    #[test]
    fn names_by_digest_are_shown_where_no_tag_is() {
        let shown = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            shown_names(&wire::LocalImage { names, ..Default::default() })
        };
        assert_eq!(shown(&["a:1", "a@sha256:00", "b@sha256:00"]), ["a:1", "b@sha256:00"]);
        assert_eq!(shown(&[]), [""]);
    }

    #[test]
    fn a_pull_says_the_whole_name() {
        for (typed, whole) in [
            ("web", "docker.io/library/web:latest"),
            ("docker.io/web", "docker.io/library/web:latest"),
            ("team/web:1", "docker.io/team/web:1"),
            ("localhost:5000/web", "localhost:5000/web:latest"),
        ] {
            assert_eq!(canonical(typed), whole);
        }
    }

    #[test]
    fn names_as_typed() {
        for (name, repository, tag) in [
            ("docker.io/library/web:latest", "web", "latest"),
            ("docker.io/user/web:1", "user/web", "1"),
            ("127.0.0.1:5000/web:1", "127.0.0.1:5000/web", "1"),
            ("127.0.0.1:5000/web", "127.0.0.1:5000/web", "<none>"),
            ("docker.io/library/web@sha256:00", "web", "<none>"),
            ("", "<none>", "<none>"),
        ] {
            assert_eq!(split_name(name), (repository.into(), tag.into()), "{name}");
        }
    }
}
