//! `orch build`: hands a Dockerfile to an installed builder, and loads what comes of it.
//!
//! Orch builds nothing itself. buildah and BuildKit (`buildctl` with a running `buildkitd`) both write an archive that
//! `orch load` reads.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use clap::Args;
use orch_proto::{paths::Paths, wire};
use serde::Deserialize;
use tokio_stream::StreamExt as _;

use super::{image::registry_of, image_files::send};
use crate::api::{Worker, explain, worker};

/// Only there when cgroups are of version 2 alone, which OCI runtimes of builders want.
const PURE_CGROUP2: &str = "/sys/fs/cgroup/cgroup.controllers";

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Name and optionally a tag (format: name:tag)
    #[arg(short, long, value_name = "NAME[:TAG]", required = true)]
    tag: Vec<String>,
    /// Name of the Dockerfile (default: DIR/Dockerfile)
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Set build-time variables
    #[arg(long, value_name = "NAME=VALUE")]
    build_arg: Vec<String>,
    /// Set the target build stage to build
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do not use cache when building the image
    #[arg(long)]
    no_cache: bool,
    /// The folder that the Dockerfile's COPY reads from
    #[arg(value_name = "DIR")]
    context: PathBuf,
}

pub(crate) async fn build(args: BuildArgs, paths: &Paths) -> anyhow::Result<()> {
    if !args.context.is_dir() {
        bail!("{} is not a folder: give the folder with the Dockerfile", args.context.display());
    }
    let folder = std::env::temp_dir().join(format!("orch-build-{}", std::process::id()));
    std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let archive = folder.join("image.tar");
    let outcome = build_and_load(&args, &folder, &archive, paths).await;
    // It may be large.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

async fn build_and_load(args: &BuildArgs, folder: &Path, archive: &Path, paths: &Paths) -> anyhow::Result<()> {
    // Before the work, not after it.
    let mut worker = worker(paths).await?;
    let Some(name) = args.tag.first() else { bail!("give the image a name with --tag") };
    if is_installed("buildah") {
        with_buildah(args, name, folder, archive, &mut worker, paths).await?;
    } else if is_installed("buildctl") {
        run(&mut buildctl(args, name, archive))?;
    } else {
        bail!(
            "orch build needs a builder: install buildah (`apt-get install buildah`), or BuildKit (buildctl, with buildkitd \
             running), and try again. An image built elsewhere comes in with `docker save {name} | orch load`"
        );
    }
    let file = tokio::fs::File::open(archive).await.context("the builder wrote no archive")?;
    for name in send(&mut worker, Box::new(file)).await? {
        println!("Loaded image: {name}");
    }
    for other in &args.tag[1..] {
        let request = wire::TagImageRequest { source: name.clone(), target: other.clone() };
        worker.tag_image(request).await.map_err(explain)?;
        println!("Loaded image: {other}");
    }
    Ok(())
}

/// Gives buildah the base images that this node has, and what the node's configuration says about registries.
async fn with_buildah(
    args: &BuildArgs,
    name: &str,
    folder: &Path,
    archive: &Path,
    worker: &mut Worker,
    paths: &Paths,
) -> anyhow::Result<()> {
    let file = args.file.clone().unwrap_or_else(|| args.context.join("Dockerfile"));
    // buildah says what is wrong with one that cannot be read.
    let bases = base_images(&std::fs::read_to_string(&file).unwrap_or_default(), &args.build_arg);
    let registries = folder.join("registries.conf");
    let text = registries_conf(&node_config(paths), &bases);
    std::fs::write(&registries, text).with_context(|| format!("cannot write {}", registries.display()))?;
    let buildah = |verb: &str| {
        let mut command = Command::new("buildah");
        command.arg(verb).env("CONTAINERS_REGISTRIES_CONF", &registries);
        if std::env::var_os("BUILDAH_ISOLATION").is_none() && !Path::new(PURE_CGROUP2).exists() {
            command.env("BUILDAH_ISOLATION", "chroot");
        }
        command
    };
    for (n, base) in bases.iter().enumerate() {
        let request = wire::ImageReference { reference: base.clone() };
        if worker.inspect_image(request).await.is_ok() {
            let base_archive = folder.join(format!("base-{n}.tar"));
            save(worker, base, &base_archive).await?;
            run(buildah("pull").arg("--quiet").arg(format!("docker-archive:{}", base_archive.display())))?;
            // It may be large.
            let _ = std::fs::remove_file(base_archive);
        }
    }
    let id_file = folder.join("id");
    let mut build = buildah("bud");
    // Docker's form keeps what the other has no word for: health checks.
    build.args(["--format", "docker", "--tag", name, "--iidfile"]).arg(&id_file);
    run(with_options(&mut build, args))?;
    let id = std::fs::read_to_string(&id_file).context("buildah does not say what it built")?;
    // By its id it has the one name that is given here.
    run(buildah("push").args(["--quiet", id.trim(), &format!("docker-archive:{}:{}", archive.display(), tagged(name))]))
}

/// An archive's name needs its tag.
fn tagged(name: &str) -> String {
    super::image::with_tag(name)
}

async fn save(worker: &mut Worker, image: &str, to: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", to.display());
    let request = wire::ImageReferences { references: vec![image.to_owned()] };
    let mut chunks = worker.save_images(request).await.map_err(explain)?.into_inner();
    let mut file = std::fs::File::create(to).with_context(failed)?;
    while let Some(chunk) = chunks.next().await {
        file.write_all(&chunk.map_err(explain)?.data).with_context(failed)?;
    }
    Ok(())
}

/// The images that a Dockerfile begins its stages with.
fn base_images(dockerfile: &str, build_args: &[String]) -> Vec<String> {
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let (mut bases, mut stages) = (Vec::new(), Vec::new());
    for line in dockerfile.lines() {
        let mut words = line.split_whitespace();
        match words.next().map(str::to_ascii_uppercase).as_deref() {
            Some("ARG") => {
                for word in words {
                    let (name, default) = word.split_once('=').unwrap_or((word, ""));
                    let given = build_args.iter().filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
                    let value = given.map_or(default, |(_, value)| value).trim_matches('"');
                    values.insert(name.to_owned(), value.to_owned());
                }
            }
            Some("FROM") => {
                let words: Vec<&str> = words.filter(|word| !word.starts_with("--")).collect();
                let image = words.first().map(|image| filled_in(image, &values)).unwrap_or_default();
                if !image.is_empty() && image != "scratch" && !stages.contains(&image) && !bases.contains(&image) {
                    bases.push(image);
                }
                stages.extend(words.get(2).map(|name| (*name).to_owned()));
            }
            _ => {}
        }
    }
    bases
}

/// `$NAME` and `${NAME}`, as FROM may have them.
fn filled_in(text: &str, values: &BTreeMap<String, String>) -> String {
    // Longer names first: `$AB` is not `$A` and a `B`.
    let mut names: Vec<&String> = values.keys().collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    names.into_iter().fold(text.to_owned(), |text, name| {
        text.replace(&format!("${{{name}}}"), &values[name]).replace(&format!("${name}"), &values[name])
    })
}

/// What `orch.toml` says about registries.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct NodeConfig {
    insecure_registries: Vec<String>,
    registry_mirrors: Vec<String>,
}

fn node_config(paths: &Paths) -> NodeConfig {
    // The worker says what is wrong with one that cannot be read.
    let text = std::fs::read_to_string(paths.config_file()).unwrap_or_default();
    toml::from_str(&text).unwrap_or_default()
}

/// The same in the builder's words. Docker takes this machine's own registries to be insecure, too.
fn registries_conf(config: &NodeConfig, bases: &[String]) -> String {
    let mut text = String::from("unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"permissive\"\n");
    let is_own = |host: &&str| host.starts_with("localhost") || host.starts_with("127.");
    let own = bases.iter().filter_map(|base| registry_of(base)).filter(is_own);
    let listed = config.insecure_registries.iter().map(String::as_str).filter(|host| !host.contains('/'));
    let mut insecure: Vec<&str> = own.chain(listed).collect();
    insecure.sort_unstable();
    insecure.dedup();
    for host in insecure {
        let _ = write!(text, "[[registry]]\nlocation = {host:?}\ninsecure = true\n");
    }
    if !config.registry_mirrors.is_empty() {
        text.push_str("[[registry]]\nlocation = \"docker.io\"\n");
    }
    for mirror in &config.registry_mirrors {
        let plain = mirror.starts_with("http://");
        let host = mirror.split_once("://").map_or(mirror.as_str(), |(_, host)| host).trim_end_matches('/');
        let _ = write!(text, "[[registry.mirror]]\nlocation = {host:?}\ninsecure = {plain}\n");
    }
    text
}

fn with_options<'a>(command: &'a mut Command, args: &BuildArgs) -> &'a mut Command {
    if let Some(file) = &args.file {
        command.arg("--file").arg(file);
    }
    for pair in &args.build_arg {
        command.args(["--build-arg", pair]);
    }
    if let Some(stage) = &args.target {
        command.args(["--target", stage]);
    }
    if args.no_cache {
        command.arg("--no-cache");
    }
    command.arg(&args.context)
}

fn buildctl(args: &BuildArgs, name: &str, archive: &Path) -> Command {
    let file = args.file.clone().unwrap_or_else(|| args.context.join("Dockerfile"));
    let folder = file.parent().unwrap_or(&args.context);
    let mut command = Command::new("buildctl");
    command.args(["build", "--frontend", "dockerfile.v0"]);
    command.arg("--local").arg(format!("context={}", args.context.display()));
    command.arg("--local").arg(format!("dockerfile={}", folder.display()));
    if let Some(name) = file.file_name() {
        command.arg("--opt").arg(format!("filename={}", name.to_string_lossy()));
    }
    for pair in &args.build_arg {
        command.arg("--opt").arg(format!("build-arg:{pair}"));
    }
    if let Some(stage) = &args.target {
        command.arg("--opt").arg(format!("target={stage}"));
    }
    if args.no_cache {
        command.arg("--no-cache");
    }
    command.arg("--output").arg(format!("type=docker,name={name},dest={}", archive.display()));
    command
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if status.success() { Ok(()) } else { bail!("{program} failed ({status}); its words are above") }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_images_are_found() {
        let dockerfile = "ARG V=1\nARG BASE=\"web\"\n# FROM no\nFROM --platform=linux/amd64 ${BASE}:$V AS one\nRUN x\nfrom scratch\nFROM one\nFROM other AS two\n";
        assert_eq!(base_images(dockerfile, &[]), ["web:1", "other"]);
        assert_eq!(base_images(dockerfile, &["V=2".to_owned()]), ["web:2", "other"]);
        assert_eq!(base_images("", &[]), [] as [&str; 0]);
    }

    #[test]
    fn registries_are_said_in_the_builders_words() {
        let config = NodeConfig {
            insecure_registries: vec!["reg:5000".to_owned(), "10.0.0.0/8".to_owned()],
            registry_mirrors: vec!["http://mirror:80/".to_owned()],
        };
        let text = registries_conf(&config, &["localhost:5000/a".to_owned(), "web".to_owned()]);
        let registries: toml::Value = toml::from_str(&text).unwrap();
        let all = registries["registry"].as_array().unwrap();
        let locations: Vec<&str> = all.iter().filter_map(|one| one["location"].as_str()).collect();
        assert_eq!(locations, ["localhost:5000", "reg:5000", "docker.io"]);
        assert_eq!(all[2]["mirror"][0]["location"].as_str(), Some("mirror:80"));
    }
}
