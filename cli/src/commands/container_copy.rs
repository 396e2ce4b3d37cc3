//! `orch cp`: files into and out of containers, with Docker's rules for what a path means.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use orch_proto::{paths::Paths, wire};
use orch_worker::Arriving;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use wire::{copy_from_response::Message as From, copy_to_request::Message as To};

use crate::api::{Worker, explain, worker};

const CHUNK_BYTES: usize = 256 << 10;
const QUEUE: usize = 8;
/// The type in a file's mode.
const TYPE: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
/// Longest chain of links at a destination that is followed.
const MAX_LINKS: usize = 40;

#[derive(Debug, Args)]
#[command(
    override_usage = "orch cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n       orch cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH"
)]
pub(crate) struct CopyArgs {
    /// Archive mode (copy all uid/gid information)
    #[arg(short, long)]
    archive: bool,
    /// Always follow symbol link in SRC_PATH
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Suppress progress output during copy
    #[arg(short, long)]
    quiet: bool,
    source: String,
    destination: String,
}

/// `CONTAINER:PATH`, or a path here.
fn place(text: &str) -> (Option<&str>, &str) {
    // A path that begins so is one of this machine, whatever follows.
    if text.starts_with(['/', '.']) || text == "-" {
        return (None, text);
    }
    text.split_once(':').map_or((None, text), |(container, path)| (Some(container), path))
}

pub(crate) async fn copy(args: CopyArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    match (place(&args.source), place(&args.destination)) {
        ((Some(container), from), (None, to)) => copy_out(&args, container, from, to, &mut worker).await,
        ((None, from), (Some(container), to)) => copy_in(&args, from, container, to, &mut worker).await,
        ((Some(_), _), (Some(_), _)) => bail!("copying between containers is not supported"),
        ((None, _), (None, _)) => bail!("must specify at least one container source"),
    }
}

/// `dir/.` means what is in it.
fn means_content(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    path == "." || path.ends_with("/.")
}

async fn copy_out(args: &CopyArgs, container: &str, from: &str, to: &str, worker: &mut Worker) -> anyhow::Result<()> {
    let request = wire::CopyFromRequest {
        reference: container.into(),
        path: from.into(),
        follow_link: args.follow_link,
        stat_only: false,
    };
    let mut messages = worker.copy_from_container(request).await.map_err(explain)?.into_inner();
    let Some(From::Stat(stat)) = messages.next().await.transpose().map_err(explain)?.and_then(|first| first.message)
    else {
        bail!("the worker does not say what {from} is");
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writing = if to == "-" {
        tokio::task::spawn_blocking(move || {
            let mut out = io::stdout().lock();
            io::copy(&mut Arriving::new(receiver), &mut out).and_then(|_| out.flush()).map_err(Into::into)
        })
    } else {
        let target = Target::find(to, &stat)?;
        let archive = args.archive;
        tokio::task::spawn_blocking(move || target.unpack(Arriving::new(receiver), archive))
    };
    while let Some(message) = messages.next().await {
        if let Some(From::Data(data)) = message.map_err(explain)?.message
            && sender.send(data).await.is_err()
        {
            break;
        }
    }
    drop(sender);
    let written: anyhow::Result<()> = writing.await?;
    written?;
    if !args.quiet && to != "-" {
        remark!("Successfully copied {from} from {container} to {to}");
    }
    Ok(())
}

/// Where a tar goes on this machine, and what its first name becomes there.
struct Target {
    folder: PathBuf,
    /// Instead of the first part of each name; empty: what is below goes into the folder itself.
    name: PathBuf,
    /// The root of a container and `dir/.` have no name of their own: names begin below them.
    of_content: bool,
}

impl Target {
    /// Docker's rules: into a folder that is there; else under the new name, in a folder that must be there.
    fn find(written: &str, source: &wire::PathStat) -> anyhow::Result<Self> {
        let source_is_folder = source.mode & TYPE == FOLDER;
        let of_content = matches!(source.name.as_str(), "/" | ".");
        let path = followed(written)?;
        match fs::metadata(&path) {
            Ok(there) if there.is_dir() => {
                let name = if of_content { PathBuf::new() } else { PathBuf::from(&source.name) };
                Ok(Self { folder: path, name, of_content })
            }
            Ok(_) if source_is_folder => bail!("cannot copy directory to a file: {written} is one"),
            Ok(_) if written.ends_with('/') || means_content(written) => bail!("not a directory: {written}"),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context(written.to_owned()),
            Err(_) if means_content(written) || (written.ends_with('/') && !source_is_folder) => {
                bail!("no such directory: {written}")
            }
            Ok(_) | Err(_) => {
                let name = path.file_name().context("the destination has no name")?;
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                if !folder.is_dir() {
                    bail!("invalid output path: directory {:?} does not exist", folder.display().to_string());
                }
                Ok(Self { folder: folder.to_owned(), name: name.into(), of_content })
            }
        }
    }

    fn unpack(&self, tar: impl Read, archive: bool) -> anyhow::Result<()> {
        let mut archived = tar::Archive::new(tar);
        archived.set_preserve_ownerships(archive);
        archived.set_preserve_permissions(true);
        for entry in archived.entries()? {
            let mut entry = entry?;
            let path = self.renamed(&entry.path()?);
            if path.as_os_str().is_empty() {
                continue;
            }
            let target = self.folder.join(&path);
            let first = entry.link_name()?.filter(|_| entry.header().entry_type().is_hard_link());
            let written = match first.map(|first| self.folder.join(self.renamed(&first))) {
                Some(first) => give_name(&first, &target),
                None => entry.unpack(&target).map(drop),
            };
            written.with_context(|| format!("cannot write {}", target.display()))?;
        }
        Ok(())
    }

    /// What a name in the tar is below the folder; empty: the folder itself.
    fn renamed(&self, name: &Path) -> PathBuf {
        let named = name.components().filter(|part| matches!(part, Component::Normal(_)));
        let below: PathBuf = named.skip(usize::from(!self.of_content)).collect();
        if below.as_os_str().is_empty() { self.name.clone() } else { self.name.join(below) }
    }
}

/// Another name for a file that was written just before; a copy where the file system has no such names.
fn give_name(first: &Path, target: &Path) -> io::Result<()> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::hard_link(first, target).or_else(|_| fs::copy(first, target).map(drop))
}

/// A link is not replaced: what is written goes where it leads, be there something or not.
fn followed(written: &str) -> io::Result<PathBuf> {
    // Without a slash at the end, which would hide that it is a link.
    let mut path: PathBuf = Path::new(written).components().collect();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other(format!("{written}: too many levels of symbolic links")))
}

async fn copy_in(args: &CopyArgs, from: &str, container: &str, to: &str, worker: &mut Worker) -> anyhow::Result<()> {
    let (folder, name) =
        if from == "-" { (to.to_owned(), None) } else { inside(args, from, container, to, worker).await? };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let start = wire::CopyToStart { reference: container.into(), path: folder };
    sender.send(wire::CopyToRequest { message: Some(To::Start(start)) }).await?;
    let (source, follow) = (from.to_owned(), args.follow_link);
    let owner = if args.archive { None } else { Some((0, 0)) };
    let reading = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let mut to = io::BufWriter::with_capacity(CHUNK_BYTES, Leaving(sender));
        match name {
            None => io::copy(&mut io::stdin().lock(), &mut to).map(drop)?,
            Some(name) => pack(Path::new(&source), &name, follow, owner, &mut to)?,
        }
        Ok(to.flush()?)
    });
    let sent = worker.copy_to_container(ReceiverStream::new(receiver)).await.map_err(explain);
    let read = reading.await?;
    // What the container says explains why reading was cut short.
    sent?;
    read?;
    if !args.quiet && from != "-" {
        remark!("Successfully copied {from} to {container}:{to}");
    }
    Ok(())
}

/// The folder in the container, and what the source is called there.
async fn inside(
    args: &CopyArgs,
    from: &str,
    container: &str,
    to: &str,
    worker: &mut Worker,
) -> anyhow::Result<(String, Option<PathBuf>)> {
    let source = if args.follow_link { fs::metadata(from) } else { fs::symlink_metadata(from) };
    let source = source.with_context(|| format!("cannot copy {from}"))?;
    let mut path = to.to_owned();
    let mut there = stat_inside(container, &path, worker).await?;
    for _ in 0..MAX_LINKS {
        let Some(link) = there.as_ref().filter(|stat| stat.mode & TYPE == LINK) else { break };
        path = leads_to(&path, &link.link_target);
        there = stat_inside(container, &path, worker).await?;
    }
    match there {
        Some(stat) if stat.mode & TYPE == FOLDER => {
            let own = Path::new(from).canonicalize().ok().and_then(|path| path.file_name().map(PathBuf::from));
            let name = Path::new(from).file_name().map(PathBuf::from).or(own).unwrap_or_default();
            Ok((path, Some(if means_content(from) { PathBuf::from(".") } else { name })))
        }
        Some(_) if source.is_dir() => bail!("cannot copy directory to a file: {container}:{to} is one"),
        Some(_) | None => {
            if means_content(to) || (to.ends_with('/') && !source.is_dir()) {
                bail!("no such directory: {container}:{to}");
            }
            let path = path.trim_end_matches('/');
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            let folder = if folder.is_empty() { "/" } else { folder };
            Ok((folder.to_owned(), Some(PathBuf::from(name))))
        }
    }
}

/// What the path is in the container; a link is one.
async fn stat_inside(container: &str, path: &str, worker: &mut Worker) -> anyhow::Result<Option<wire::PathStat>> {
    let request =
        wire::CopyFromRequest { reference: container.into(), path: path.into(), follow_link: false, stat_only: true };
    let mut answer = worker.copy_from_container(request).await.map_err(explain)?.into_inner();
    match answer.next().await {
        Some(Ok(wire::CopyFromResponse { message: Some(From::Stat(stat)) })) => Ok(Some(stat)),
        Some(Err(status)) => {
            let is_container = status.message().starts_with("No such container");
            if status.code() == tonic::Code::NotFound && !is_container { Ok(None) } else { Err(explain(status)) }
        }
        Some(Ok(_)) | None => Ok(None),
    }
}

/// Where the link at `path` in a container leads.
fn leads_to(path: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    let folder = path.trim_end_matches('/').rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{folder}/{target}")
}

fn pack(source: &Path, name: &Path, follow: bool, owner: Option<(u64, u64)>, to: impl Write) -> anyhow::Result<()> {
    let mut tar = tar::Builder::new(to);
    add(&mut tar, source, name, follow, owner)?;
    tar.into_inner()?;
    Ok(())
}

/// `follow` is for the first one only: links below are copied as links.
fn add<W: Write>(
    tar: &mut tar::Builder<W>,
    source: &Path,
    name: &Path,
    follow: bool,
    owner: Option<(u64, u64)>,
) -> anyhow::Result<()> {
    let metadata = if follow { fs::metadata(source) } else { fs::symlink_metadata(source) };
    let metadata = metadata.with_context(|| format!("cannot read {}", source.display()))?;
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&metadata);
    if let Some((uid, gid)) = owner {
        header.set_uid(uid);
        header.set_gid(gid);
    }
    if metadata.is_dir() {
        tar.append_data(&mut header, name.join(""), io::empty())?;
        let mut entries = fs::read_dir(source)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            add(tar, &entry.path(), &name.join(entry.file_name()), false, owner)?;
        }
        return Ok(());
    }
    if metadata.is_symlink() {
        tar.append_link(&mut header, name, fs::read_link(source)?)?;
    } else if metadata.is_file() {
        let file = File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
        tar.append_data(&mut header, name, file.take(metadata.len()))?;
    } else if metadata.file_type().is_socket() {
        // As with Docker: nobody would listen to a copy.
        remark!("WARNING: {} is a socket and was left out", source.display());
    } else {
        // Pipes and devices: what they are is all that there is of them.
        header.set_size(0);
        if !metadata.file_type().is_fifo() {
            header.set_device_major(libc::major(metadata.rdev()))?;
            header.set_device_minor(libc::minor(metadata.rdev()))?;
        }
        tar.append_data(&mut header, name, io::empty())?;
    }
    Ok(())
}

/// Writes into a stream of messages.
struct Leaving(mpsc::Sender<wire::CopyToRequest>);

impl Write for Leaving {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let message = wire::CopyToRequest { message: Some(To::Data(data.to_vec().into())) };
        self.0.blocking_send(message).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_dockers() {
        for (text, want) in [
            ("web:/etc", (Some("web"), "/etc")),
            ("web:", (Some("web"), "")),
            ("./web:x", (None, "./web:x")),
            ("/a:b", (None, "/a:b")),
            ("-", (None, "-")),
            ("file", (None, "file")),
        ] {
            assert_eq!(place(text), want, "{text}");
        }
        assert!(
            ["a/.", "a/./", ".", "./"].into_iter().all(means_content)
                && !["a", "a/", ".."].into_iter().any(means_content)
        );
    }

    /// A tar as the worker makes it, with `name` for what the container's path is called.
    fn tar_of(name: &str, kind: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind: tar::EntryType, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o755);
            header.set_size(content.len() as u64);
            match kind {
                tar::EntryType::Symlink => tar.append_link(&mut header, name, "d").unwrap(),
                _ => tar.append_data(&mut header, name, content).unwrap(),
            }
        };
        match kind {
            "file" => add(name, tar::EntryType::Regular, b"f"),
            "link" => add(name, tar::EntryType::Symlink, b""),
            _ => {
                add(&format!("{name}/"), tar::EntryType::Directory, b"");
                add(&format!("{name}/a"), tar::EntryType::Regular, b"1");
                add(&format!("{name}/sub/"), tar::EntryType::Directory, b"");
                add(&format!("{name}/sub/b"), tar::EntryType::Regular, b"2");
            }
        }
        tar.into_inner().unwrap()
    }

    fn tree(dir: &Path, below: &Path, into: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(dir.join(below)).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = below.join(entry.file_name());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                tree(dir, &path, into);
            } else if kind.is_symlink() {
                into.push(format!("{}@{}", path.display(), fs::read_link(dir.join(&path)).unwrap().display()));
            } else {
                into.push(format!("{}={}", path.display(), fs::read_to_string(dir.join(&path)).unwrap()));
            }
        }
    }

    /// What Debian's `docker cp` (20.10.24) left, for every pair.
    #[test]
    fn copies_out_are_dockers() {
        const BEFORE: [&str; 4] = ["ldang@fresh", "ldir@there", "lold@old", "old=x"];
        for (source, kind, to, want) in [
            ("d", "folder", "there", "there/d/a=1 there/d/sub/b=2"),
            ("d", "folder", "there/", "there/d/a=1 there/d/sub/b=2"),
            ("d", "folder", "there/.", "there/d/a=1 there/d/sub/b=2"),
            ("d", "folder", "new", "new/a=1 new/sub/b=2"),
            ("d", "folder", "new/", "new/a=1 new/sub/b=2"),
            ("d", "folder", "new/.", "no such directory"),
            ("d", "folder", "old", "cannot copy directory to a file"),
            ("d", "folder", "no/new", "invalid output path"),
            ("d", "folder", "ldir", "there/d/a=1 there/d/sub/b=2"),
            ("d", "folder", "ldir/", "there/d/a=1 there/d/sub/b=2"),
            ("d", "folder", "lold", "cannot copy directory to a file"),
            ("d", "folder", "ldang", "fresh/a=1 fresh/sub/b=2"),
            (".", "folder", "there", "there/a=1 there/sub/b=2"),
            (".", "folder", "there/", "there/a=1 there/sub/b=2"),
            (".", "folder", "there/.", "there/a=1 there/sub/b=2"),
            (".", "folder", "new", "new/a=1 new/sub/b=2"),
            (".", "folder", "new/", "new/a=1 new/sub/b=2"),
            (".", "folder", "new/.", "no such directory"),
            (".", "folder", "old", "cannot copy directory to a file"),
            (".", "folder", "ldir", "there/a=1 there/sub/b=2"),
            (".", "folder", "ldang", "fresh/a=1 fresh/sub/b=2"),
            ("/", "folder", "there", "there/a=1 there/sub/b=2"),
            ("/", "folder", "new", "new/a=1 new/sub/b=2"),
            ("file", "file", "there", "there/file=f"),
            ("file", "file", "there/", "there/file=f"),
            ("file", "file", "new", "new=f"),
            ("file", "file", "new/", "no such directory"),
            ("file", "file", "new/.", "no such directory"),
            ("file", "file", "old", "old=f"),
            ("file", "file", "old/", "not a directory"),
            ("file", "file", "lold", "old=f"),
            ("file", "file", "ldir", "there/file=f"),
            ("file", "file", "ldang", "fresh=f"),
            ("ld", "link", "there", "there/ld@d"),
            ("ld", "link", "new", "new@d"),
            ("ld", "link", "new/", "no such directory"),
            ("ld", "link", "old", "old@d"),
            ("ld", "link", "lold", "old@d"),
            ("ld", "link", "ldang", "fresh@d"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            fs::create_dir(at("there")).unwrap();
            fs::write(at("old"), "x").unwrap();
            for (name, target) in [("ldir", "there"), ("lold", "old"), ("ldang", "fresh")] {
                std::os::unix::fs::symlink(target, at(name)).unwrap();
            }
            let mode = match kind {
                "folder" => FOLDER | 0o755,
                "link" => LINK | 0o777,
                _ => 0o100_644,
            };
            let stat = wire::PathStat { name: source.into(), mode, ..Default::default() };
            let tar = tar_of(if source == "/" { "." } else { source }, kind);
            let done = Target::find(at(to).to_str().unwrap(), &stat).and_then(|to| to.unpack(&tar[..], false));
            let seen = match done {
                Ok(()) => {
                    let mut seen = Vec::new();
                    tree(dir.path(), Path::new(""), &mut seen);
                    seen.retain(|line| !BEFORE.contains(&line.as_str()));
                    seen.join(" ")
                }
                Err(error) => error.to_string().split(':').next().unwrap_or_default().to_owned(),
            };
            assert_eq!(seen, want, "{source} ({kind}) to {to}");
        }
    }

    #[test]
    fn other_names_of_a_file_are_written() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(1);
        tar.append_data(&mut header, "d/a", &b"1"[..]).unwrap();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Link);
        for name in ["d/b", "d/old"] {
            tar.append_link(&mut header, name, "d/a").unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let stat = wire::PathStat { name: ".".into(), mode: FOLDER | 0o755, ..Default::default() };
        let to = dir.path().join("new");
        fs::create_dir_all(to.join("d")).unwrap();
        fs::write(to.join("d/old"), "x").unwrap();
        Target::find(to.to_str().unwrap(), &stat).unwrap().unpack(&tar[..], false).unwrap();
        let links = ["d/a", "d/b", "d/old"].map(|name| fs::metadata(to.join(name)).unwrap().ino());
        assert!(links.iter().all(|ino| *ino == links[0]), "{links:?}");
    }

    #[test]
    fn pipes_are_packed_and_sockets_are_not() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
        let _listening = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let mut packed = Vec::new();
        pack(dir.path(), Path::new("in"), false, None, &mut packed).unwrap();
        let mut tar = tar::Archive::new(packed.as_slice());
        let kinds: Vec<_> = tar
            .entries()
            .unwrap()
            .map(Result::unwrap)
            .map(|entry| (entry.path().unwrap().display().to_string(), entry.header().entry_type()))
            .collect();
        assert_eq!(kinds, [("in/".into(), tar::EntryType::Directory), ("in/pipe".into(), tar::EntryType::Fifo)]);
    }

    #[test]
    fn links_at_the_destination_lead_on() {
        for (path, target, want) in
            [("/w/l", "there", "/w/there"), ("/w/l/", "../x", "/w/../x"), ("l", "a", "/a"), ("/w/l", "/abs", "/abs")]
        {
            assert_eq!(leads_to(path, target), want, "{path}");
        }
    }
}
