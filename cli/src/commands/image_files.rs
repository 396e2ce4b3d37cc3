//! `orch save` and `orch load`: images as files.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use clap::Args;
use orch_proto::{paths::Paths, wire};
use tokio::io::AsyncReadExt as _;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::image_source::{self, Source};
use crate::api::{Worker, explain, worker};

/// What goes into one message.
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Read from tar archive file, instead of STDIN
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Suppress the load output: there is none but what was loaded, which Docker says all the same
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn save(args: SaveArgs, paths: &Paths) -> anyhow::Result<()> {
    if args.output.is_none() && std::io::stdout().is_terminal() {
        bail!("cowardly refusing to save to a terminal. Use the -o flag or redirect");
    }
    let mut worker = worker(paths).await?;
    let request = wire::ImageReferences { references: args.images };
    let mut chunks = worker.save_images(request).await.map_err(explain)?.into_inner();
    // Aside, so that a failure leaves no half archive under the name.
    let aside = args.output.as_ref().map(|file| file.with_extension(format!("partial-{}", std::process::id())));
    let mut to: Box<dyn std::io::Write> = match &aside {
        Some(file) => {
            Box::new(std::fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?)
        }
        None => Box::new(std::io::stdout().lock()),
    };
    let outcome = async {
        while let Some(chunk) = chunks.next().await {
            to.write_all(&chunk.map_err(explain)?.data).context("cannot write the archive")?;
        }
        to.flush().context("cannot write the archive")
    }
    .await;
    drop(to);
    match (outcome, aside, args.output) {
        (Ok(()), Some(aside), Some(file)) => {
            std::fs::rename(&aside, &file).with_context(|| format!("cannot write {}", file.display()))
        }
        (Err(error), Some(aside), _) => {
            let _ = std::fs::remove_file(aside);
            Err(error)
        }
        (outcome, _, _) => outcome,
    }
}

pub(crate) async fn load(args: LoadArgs, paths: &Paths) -> anyhow::Result<()> {
    if args.input.is_none() && std::io::stdin().is_terminal() {
        bail!("requested load from stdin, but stdin is empty: give a file with -i, or redirect one");
    }
    let source = image_source::open(args.input.as_deref())?;
    let mut worker = worker(paths).await?;
    let outcome = send(&mut worker, source).await?;
    outcome.notices.iter().for_each(|notice| println!("{notice}"));
    for name in outcome.loaded {
        match name.starts_with("sha256:") {
            true => println!("Loaded image ID: {name}"),
            false => println!("Loaded image: {name}"),
        }
    }
    Ok(())
}

/// Sends an archive to the worker; what came of it.
pub(super) async fn send(worker: &mut Worker, mut source: Source) -> anyhow::Result<wire::LoadImagesResponse> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let feeder = tokio::spawn(async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let read = (&mut source).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await?;
            if read == 0 || sender.send(wire::FileChunk { data: chunk.into() }).await.is_err() {
                return Ok::<(), std::io::Error>(());
            }
        }
    });
    let outcome = worker.load_images(ReceiverStream::new(receiver)).await;
    feeder.abort();
    if let Ok(Err(error)) = feeder.await {
        return Err(error).context("cannot read the archive");
    }
    Ok(outcome.map_err(explain)?.into_inner())
}
