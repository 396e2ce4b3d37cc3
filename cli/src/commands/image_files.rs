//! `orch save` and `orch load`: images as files.

use std::{
    io::{IsTerminal as _, Write as _},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
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
    if let Some(file) = &args.output {
        check_output(file)?;
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
    let (Some(aside), Some(file)) = (aside, args.output) else { return outcome };
    let renamed = || std::fs::rename(&aside, &file).with_context(|| format!("cannot write {}", file.display()));
    outcome.and_then(|()| renamed()).inspect_err(|_| drop(std::fs::remove_file(&aside)))
}

/// Only a regular file is replaced, as by Docker and in its words: what else stands under the name would be gone.
fn check_output(file: &Path) -> anyhow::Result<()> {
    let kind = match std::fs::symlink_metadata(file) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            return match folder.filter(|folder| !folder.exists()) {
                Some(folder) => bail!(
                    "failed to save image: invalid output path: stat {}: no such file or directory",
                    folder.display()
                ),
                None => Ok(()),
            };
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {}", file.display())),
    };
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_symlink() => "a symbolic link directly",
        kind if kind.is_fifo() => "a named pipe (FIFO)",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() => "a character device file",
        kind if kind.is_block_device() => "a block device file",
        _ => "what is no regular file",
    };
    bail!("failed to save image: cannot write to {what}: leave out -o and redirect the output, or name a file");
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What Docker's client (28.2) says of each.
    #[test]
    fn only_files_are_replaced_by_archives() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for file in [path("file"), path("new"), PathBuf::from("new")] {
            assert!(check_output(&file).is_ok(), "{}", file.display());
        }
        for (file, said) in [
            (path(""), "failed to save image: cannot write to a directory"),
            (path("link"), "failed to save image: cannot write to a symbolic link directly"),
            (path("socket"), "failed to save image: cannot write to a socket"),
            (PathBuf::from("/dev/null"), "failed to save image: cannot write to a character device file"),
            (path("no/new"), "failed to save image: invalid output path: stat "),
        ] {
            let error = check_output(&file).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
