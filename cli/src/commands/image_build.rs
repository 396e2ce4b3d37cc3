//! `orch build`: hands a Dockerfile to an installed builder, and loads what comes of it.
//!
//! Orch builds nothing itself. buildah and BuildKit (`buildctl` with a running `buildkitd`) both write an archive that
//! `orch load` reads.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use clap::Args;
use orch_proto::paths::Paths;

use super::image_files::send;
use crate::api::worker;

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Name and optionally a tag (format: name:tag)
    #[arg(short, long, value_name = "NAME[:TAG]", required = true)]
    tag: String,
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
    let outcome = build_and_load(&args, &archive, paths).await;
    // It may be large.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

async fn build_and_load(args: &BuildArgs, archive: &Path, paths: &Paths) -> anyhow::Result<()> {
    // Before the work, not after it.
    let mut worker = worker(paths).await?;
    if is_installed("buildah") {
        run(&mut buildah(args, "bud"))?;
        let to = format!("docker-archive:{}:{}", archive.display(), args.tag);
        run(Command::new("buildah").args(["push", &args.tag, &to]))?;
    } else if is_installed("buildctl") {
        run(&mut buildctl(args, archive))?;
    } else {
        bail!(
            "orch build needs a builder: install buildah (`apt-get install buildah`), or BuildKit (buildctl, with buildkitd \
             running), and try again. An image built elsewhere comes in with `docker save {} | orch load`",
            args.tag
        );
    }
    let file = tokio::fs::File::open(archive).await.context("the builder wrote no archive")?;
    for name in send(&mut worker, Box::new(file)).await? {
        println!("Loaded image: {name}");
    }
    Ok(())
}

fn buildah(args: &BuildArgs, verb: &str) -> Command {
    let mut command = Command::new("buildah");
    command.args([verb, "--tag", &args.tag]);
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
    command.arg(&args.context);
    command
}

fn buildctl(args: &BuildArgs, archive: &Path) -> Command {
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
    command.arg("--output").arg(format!("type=docker,name={},dest={}", args.tag, archive.display()));
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
